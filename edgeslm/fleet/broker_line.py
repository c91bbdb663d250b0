"""A line from the operator to the broker: what is posted arrives, what comes is handed over in batches.

What always holds: what was posted and not confirmed when the connection broke is posted again; what comes is bounded,
and what nobody takes in time is dropped, the latest first; one thread posts and hears.

Left to others: what messages mean, and that answers to a session without memory are lost while it is away
(:attr:`Heard.was_away` says so).
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from edgeslm.errors import LinkError
from edgeslm.link.mqtt import MqttLink
from edgeslm.link.port import Link, Message
from edgeslm.schema.config import BrokerConfig

_LOG = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 10.0
MAX_INBOX = 50_000
"""Messages that wait to be heard."""
_MAX_BATCH = 1000
_RETRY_S = 0.2


@dataclass(frozen=True)
class Heard:
    """What came.

    Attributes:
        was_away: the connection was lost and is there again: what was said meanwhile is lost, but for what the broker
            keeps, which comes again.
    """

    was_away: bool = False
    messages: tuple[Message, ...] = ()


class BrokerLine:
    """See the module. Used as a context manager it is connected inside."""

    def __init__(self, config: BrokerConfig, client_id: str, filters: Sequence[str]) -> None:
        """Set up.

        Args:
            config: how the operator reaches the broker.
            client_id: of this line alone.
            filters: of topics that are heard.
        """
        self._config = config.model_copy(update={"session_expiry_s": 0})
        self._filters = [(name, 1) for name in filters]
        self._link: Link = MqttLink(self._config, client_id)
        self._changed = threading.Condition()
        self._inbox: deque[Message] = deque()
        self._dropped = 0
        self._connections = 0
        self._seen_connections = 1
        self._was_away = False
        self._reason = "no answer"
        self._waiting: deque[Message] = deque()
        self._flying: dict[int, Message] = {}
        self._confirmed: set[int] = set()

    def __enter__(self) -> Self:
        """Connect.

        Raises:
            LinkError: the broker cannot be reached.
            ConfigError: a key or certificate cannot be used.
        """
        try:
            self._link.start(self, self._filters)
            with self._changed:
                if not self._changed.wait_for(lambda: self._connections > 0, CONNECT_TIMEOUT_S):
                    raise self._fault(f"cannot be reached: {self._reason}")
        except BaseException:
            self._link.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._link.stop()

    def post(self, message: Message) -> None:
        """Publish `message` as soon as the link takes it.

        Raises:
            LinkError: it can never be sent.
        """
        self._waiting.append(message)
        self._pump()

    def flush(self, timeout_s: float) -> bool:
        """Wait until the broker has all that was posted; ``False`` if it does not in time.

        Raises:
            LinkError: something can never be sent.
        """
        until_s = time.monotonic() + timeout_s
        while True:
            self._pump()
            if not self._waiting and not self._flying:
                return True
            left_s = until_s - time.monotonic()
            if left_s <= 0:
                return False
            with self._changed:
                if not self._confirmed:
                    self._changed.wait(min(left_s, _RETRY_S))

    def hear(self, timeout_s: float) -> Heard:
        """What came, at once if something did, else after at most `timeout_s`.

        Raises:
            LinkError: something that was posted can never be sent.
        """
        until_s = time.monotonic() + timeout_s
        while True:
            self._pump()
            with self._changed:
                if self._inbox or self._was_away:
                    return self._take()
                left_s = until_s - time.monotonic()
                if left_s <= 0:
                    return Heard()
                if not self._confirmed:
                    self._changed.wait(min(left_s, _RETRY_S) if self._waiting else left_s)

    def _take(self) -> Heard:
        batch = [self._inbox.popleft() for _ in range(min(len(self._inbox), _MAX_BATCH))]
        was_away, self._was_away = self._was_away, False
        if self._dropped:
            _LOG.warning("%d messages were dropped: they came faster than they were read", self._dropped)
            self._dropped = 0
        return Heard(was_away, tuple(batch))

    def _pump(self) -> None:
        with self._changed:
            for token in self._confirmed:
                self._flying.pop(token, None)
            self._confirmed.clear()
            if self._connections > self._seen_connections:
                self._seen_connections, self._was_away = self._connections, True
                self._waiting.extendleft(reversed(self._flying.values()))
                self._flying.clear()
        # Outside of the lock, which the link's own thread waits for when it tells something.
        while self._waiting and (token_taken := self._link.publish(self._waiting[0])) is not None:
            self._flying[token_taken] = self._waiting.popleft()

    def _fault(self, what: str) -> LinkError:
        return LinkError(
            f"the broker at {self._config.host}:{self._config.port} {what}",
            hint="Is it running? See: edgeslm fleet doctor",
        )

    # --- the link's thread ---

    def on_message(self, message: Message) -> None:
        """Part of ``LinkEvents``."""
        with self._changed:
            if len(self._inbox) < MAX_INBOX:
                self._inbox.append(message)
                self._changed.notify_all()
            else:
                self._dropped += 1
        message.acknowledge()

    def on_connected(self, *, session_present: bool) -> None:
        """Part of ``LinkEvents``."""
        del session_present
        with self._changed:
            self._connections += 1
            self._changed.notify_all()

    def on_disconnected(self, reason: str) -> None:
        """Part of ``LinkEvents``."""
        self._reason = reason

    def on_published(self, token: int) -> None:
        """Part of ``LinkEvents``."""
        with self._changed:
            self._confirmed.add(token)
            self._changed.notify_all()
