"""The port between the agent and whatever carries its messages.

Adapters: :mod:`edgeslm.link.mqtt` (paho) and :mod:`edgeslm.link.inprocess`. Both pass one contract suite.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

HOPS_PROPERTY: Final = "edgeslm-hops"
MAX_HOPS_TOLD: Final = 255


def no_ack() -> None:
    """Acknowledge nothing: the message needs no acknowledgement."""


@dataclass(frozen=True)
class Message:
    """One message, in or out.

    Attributes:
        qos: 0 or 1; nothing here depends on QoS 2.
        response_topic: MQTT 5 Response Topic (section 3.3.2.3.5).
        correlation: MQTT 5 Correlation Data (section 3.3.2.3.6).
        expiry_s: MQTT 5 Message Expiry Interval in seconds, or ``None``.
        hops: rules, of whichever devices, that stand behind it one after the other: MQTT 5 User Property
            (section 3.3.2.3.7) :data:`HOPS_PROPERTY`, up to :data:`MAX_HOPS_TOLD`. 0 where nobody says.
        acknowledge: on a received QoS 1 message, tells the sender side that it is safe here. Until it is
            called the message is delivered again after a reconnect. Callable from any thread, once.
    """

    topic: str
    payload: bytes
    qos: int = 1
    retain: bool = False
    response_topic: str | None = None
    correlation: bytes | None = None
    expiry_s: int | None = None
    hops: int = 0
    acknowledge: Callable[[], None] = field(default=no_ack, compare=False)


class LinkEvents(Protocol):
    """What a link tells its owner, always from the link's own thread: handlers must only enqueue."""

    def on_message(self, message: Message) -> None:
        """A message arrived on a subscribed filter."""

    def on_connected(self, *, session_present: bool) -> None:
        """The broker accepted us; `session_present` says that it kept our subscriptions and messages."""

    def on_disconnected(self, reason: str) -> None:
        """The connection is gone; the link reconnects by itself with backoff."""

    def on_published(self, token: int) -> None:
        """The QoS 1 message published under `token` is with the broker."""


class Link(Protocol):
    """Carries messages; reconnects by itself; never blocks the caller on the network."""

    def start(self, events: LinkEvents, filters: Sequence[tuple[str, int]]) -> None:
        """Connect in the background and keep (filter, qos) subscribed over reconnects.

        Raises:
            ConfigError: a password or TLS file cannot be used.
            LinkError: the link cannot even be set up (a bad will, or started before, for example). An
                unreachable broker is no error here: it is waited for.
        """

    def publish(self, message: Message) -> int | None:
        """Hand `message` over.

        A message that was handed over but not yet confirmed when the connection breaks is **not** sent again
        by the link after reconnecting: its owner, who has it stored, does that.

        Returns:
            A token that ``on_published`` repeats (for QoS 1 only), or ``None`` if the message was not taken:
            not connected, or as much is under way as the link holds. Trying again later makes sense.

        Raises:
            LinkError: it can never be sent: its topic is none to publish to, or it is longer than what the
                broker takes. Trying again is futile.
        """

    def stop(self, farewell: Message | None = None) -> None:
        """Publish `farewell` if connected, disconnect cleanly (no will), and join the thread. Idempotent."""


class SubscribingLink(Link, Protocol):
    """A link whose filters can change while it runs."""

    def subscribe(self, filters: Sequence[tuple[str, int]]) -> None:
        """Subscribe to more (filter, qos) and keep them."""

    def unsubscribe(self, names: Sequence[str]) -> None:
        """Give filters up."""

    def hold(self, seconds: float) -> None:
        """Tell nothing of what arrives for at most `seconds`; it waits outside. 0 goes on at once.

        Sending goes on meanwhile; confirmations of what is sent wait as well.
        """
