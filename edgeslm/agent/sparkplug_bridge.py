"""Shows a device to Sparkplug hosts: one client at the device's topics, one client that is the edge node.

What always holds: the edge node is born while the device is known to be online, and only then; every connection of it
has a number of its own (``bdSeq``), which is on the disk before the connection is made, and which its will, its birth
and its farewell share. Whatever a host sends, the bridge goes on.

A will cannot change while a connection lasts, and a link reconnects with the will that it has. So a connection that is
lost ends its link, and the next one gets a new link with the next number.
"""

from __future__ import annotations

import hashlib
import logging
import queue
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias, TypeVar

from pydantic import BaseModel

from edgeslm import codec, topics
from edgeslm.agent import sparkplug_node
from edgeslm.agent.sparkplug import MAX_PAYLOAD_BYTES, Value
from edgeslm.agent.sparkplug_node import NUMBERS, Ask, EdgeNode, Rebirth, Refuse
from edgeslm.errors import CodecError, JournalError
from edgeslm.files import read_bounded, replace_file
from edgeslm.link.client import REPLY_ROOT
from edgeslm.link.mqtt import MqttLink
from edgeslm.link.port import Message, SubscribingLink
from edgeslm.schema.config import BrokerConfig
from edgeslm.schema.message import MAX_BODY_BYTES, Availability, Info, Result
from edgeslm.schema.metrics import InferenceMetrics, PowerMetrics, SystemMetrics

log = logging.getLogger(__name__)

_TICK_S: Final = 0.2
_MAX_WAITING: Final = 4_096
_FIRST_PAUSE_S: Final = 0.5
_LONGEST_PAUSE_S: Final = 30.0

ModelT = TypeVar("ModelT", bound=BaseModel)
OpenLink: TypeAlias = Callable[[str, Message | None], SubscribingLink]
"""Makes a link that is not started and keeps no session, for a client id and a will."""


class BirthNumbers:
    """The numbers of an edge node's connections, in a file."""

    def __init__(self, directory: Path, group: str, node: str) -> None:
        """Names the file; nothing is read yet."""
        self._path = directory / f"{hashlib.sha256(f'{group}/{node}'.encode()).hexdigest()[:16]}.bdseq"

    def take(self) -> int:
        """The next number, 0 to 255; no later call gives it before all others had their turn.

        Raises:
            JournalError: it cannot be remembered.
        """
        number = (self._last() + 1) % NUMBERS
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(self._path, b"%d\n" % number)
        except OSError as error:
            raise JournalError(
                f"the number of births cannot be kept in {self._path}: {error.strerror}"
            ) from error
        return number

    def _last(self) -> int:
        try:
            text = read_bounded(self._path, 8).strip()
        except FileNotFoundError:
            return -1
        except OSError as error:
            raise JournalError(f"{self._path} cannot be read: {error.strerror}") from error
        if text.isdigit() and int(text) < NUMBERS:
            return int(text)
        # Any number will do that the last connection did not have, most likely; the disk is to blame, not the fleet.
        log.warning("%s holds no number from 0 to 255; counting begins anew", self._path)
        return -1


@dataclass(frozen=True)
class _Up:
    link: SubscribingLink


@dataclass(frozen=True)
class _Down:
    link: SubscribingLink
    reason: str


@dataclass(frozen=True)
class _Arrived:
    link: SubscribingLink
    message: Message


_Event = _Up | _Down | _Arrived


class _Ear:
    """Puts what a link tells into the bridge's queue; a full queue loses messages, never the news of a connection."""

    def __init__(self, events: queue.SimpleQueue[_Event], link: SubscribingLink) -> None:
        self._events = events
        self._link = link

    def on_message(self, message: Message) -> None:
        if self._events.qsize() < _MAX_WAITING:
            self._events.put(_Arrived(self._link, message))
        message.acknowledge()

    def on_connected(self, *, session_present: bool) -> None:
        del session_present
        self._events.put(_Up(self._link))

    def on_disconnected(self, reason: str) -> None:
        self._events.put(_Down(self._link, reason))

    def on_published(self, token: int) -> None:
        """Nothing waits for it."""


class SparkplugBridge:
    """One device at one group."""

    def __init__(
        self,
        fleet: str,
        device: str,
        node: EdgeNode,
        numbers: BirthNumbers,
        open_link: OpenLink,
        open_node_link: OpenLink | None = None,
    ) -> None:
        """Take the parts.

        Args:
            fleet: of the device.
            device: which one.
            node: the edge node that it appears as.
            numbers: of its connections.
            open_link: makes the link to the device's broker; MQTT 5, since answers need a Response Topic.
            open_node_link: makes those to the broker of the hosts; ``None`` where that is the same.
        """
        self._names = fleet, device
        self._node = node
        self._numbers = numbers
        self._open_link = open_link
        self._open_node_link = open_node_link or open_link
        self._events: queue.SimpleQueue[_Event] = queue.SimpleQueue()
        self._client_id = f"{REPLY_ROOT}-{uuid.uuid4().hex[:12]}"
        self._reply_topic = f"{REPLY_ROOT}/{uuid.uuid4().hex}/result"
        self._device_link: SubscribingLink
        self._node_link: SubscribingLink | None = None
        self._bd_seq = 0
        self._was_up = False
        self._is_wanted = False
        self._failures = 0
        self._next_try_s = 0.0

    def run(self, stopped: threading.Event) -> None:
        """Serve until `stopped`.

        Raises:
            ConfigError: a password or TLS file cannot be used.
            LinkError: a link cannot be set up.
            JournalError: the number of a connection cannot be kept.
        """
        fleet, device = self._names
        channels: tuple[topics.DeviceChannel, ...] = (
            "availability",
            "info",
            "m/power",
            "m/inference",
            "m/system",
        )
        filters = [(topics.device_topic(fleet, device, channel), 1) for channel in channels]
        self._device_link = self._start(
            self._open_link(self._client_id, None), [*filters, (self._reply_topic, 1)]
        )
        try:
            while not stopped.is_set():
                self._turn()
        finally:
            self._die()
            self._device_link.stop()

    # --- the two connections --------------------------------------------------------------------------------

    def _turn(self) -> None:
        if self._is_wanted and self._node_link is None and time.monotonic() >= self._next_try_s:
            self._connect()
        try:
            event = self._events.get(timeout=_TICK_S)
        except queue.Empty:
            return
        if event.link is self._device_link:
            if isinstance(event, _Arrived):
                self._hear(event.message)
            elif isinstance(event, _Down):
                # Hosts take what a living node said last for true; nobody knows that of this one now.
                log.warning("the topics of the device are out of reach: %s", event.reason)
                self._is_wanted = False
                self._die()
        elif event.link is self._node_link:
            self._host(event)

    def _start(self, link: SubscribingLink, filters: list[tuple[str, int]]) -> SubscribingLink:
        link.start(_Ear(self._events, link), filters)
        return link

    def _connect(self) -> None:
        self._bd_seq = self._numbers.take()
        self._was_up = False
        will = self._node.death(self._bd_seq)
        link = self._open_node_link(f"{self._client_id}-n", will)
        self._node_link = self._start(link, [(self._node.command_topic, 1)])

    def _die(self) -> None:
        """End the edge node's connection with a farewell: a broker publishes no will after a clean end."""
        if self._node_link is not None:
            link, self._node_link = self._node_link, None
            link.stop(self._node.death(self._bd_seq) if self._node.is_born else None)

    def _host(self, event: _Event) -> None:
        if isinstance(event, _Up):
            self._was_up = True
            self._failures = 0
            self._publish(self._node.birth(self._bd_seq))
        elif isinstance(event, _Down):
            log.warning("the edge node lost its connection: %s", event.reason)
            if self._was_up and self._node_link is not None:
                link, self._node_link = self._node_link, None
                self._node.death(self._bd_seq)
                link.stop()
                pause_s = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2.0 ** min(self._failures, 10))
                self._failures += 1
                self._next_try_s = time.monotonic() + pause_s
        else:
            self._obey(event.message)

    def _publish(self, message: Message | None) -> None:
        if message is not None and self._node_link is not None:
            # What the link does not take is lost; hosts see the gap in `seq` and ask for a birth.
            self._node_link.publish(message)

    def _report(self, values: dict[str, Value]) -> None:
        self._publish(self._node.report(values))

    # --- what the device says -------------------------------------------------------------------------------

    def _hear(self, message: Message) -> None:
        if message.topic == self._reply_topic:
            self._report_of(Result, message, sparkplug_node.answered)
            return
        topic = topics.parse(message.topic)
        channel = topic.channel if isinstance(topic, topics.DeviceTopic) else None
        if channel == "availability":
            presence = self._read(Availability, message)
            if presence is not None:
                self._is_wanted = presence.state == "online"
                if not self._is_wanted:
                    self._die()
        elif channel == "info":
            self._report_of(Info, message, sparkplug_node.described)
        elif channel == "m/power":
            self._report_of(PowerMetrics, message, sparkplug_node.powered)
        elif channel == "m/inference":
            self._report_of(InferenceMetrics, message, sparkplug_node.inferred)
        elif channel == "m/system":
            self._report_of(SystemMetrics, message, sparkplug_node.observed)

    def _report_of(
        self, kind: type[ModelT], message: Message, values: Callable[[ModelT], dict[str, Value]]
    ) -> None:
        body = self._read(kind, message)
        if body is not None:
            self._report(values(body))

    def _read(self, kind: type[ModelT], message: Message) -> ModelT | None:
        if not message.payload:
            return None  # what was retained is cleared
        try:
            return codec.decode(kind, message.payload, max_bytes=MAX_BODY_BYTES)
        except CodecError as error:
            log.warning("a message on %s is dropped: %s", message.topic[:120], error)
            return None

    # --- what hosts want ------------------------------------------------------------------------------------

    def _obey(self, message: Message) -> None:
        if message.retain or len(message.payload) > MAX_PAYLOAD_BYTES:
            log.warning("a command of %d bytes is dropped: retained, or too long", len(message.payload))
            return
        try:
            orders = self._node.orders(message.payload)
        except CodecError as error:
            log.warning("a command is dropped: %s", error)
            return
        for order in orders:
            if isinstance(order, Rebirth):
                self._publish(self._node.birth(self._bd_seq))
            elif isinstance(order, Refuse):
                self._report(sparkplug_node.refused(order))
            else:
                self._ask(order)

    def _ask(self, order: Ask) -> None:
        topic = topics.device_topic(*self._names, "prompt")
        request = order.request
        sent = self._device_link.publish(
            Message(topic, codec.encode(request), response_topic=self._reply_topic)
        )
        if sent is None:
            self._report(sparkplug_node.refused(Refuse(request.id, "busy: the device cannot be reached")))


def mqtt_links(broker: BrokerConfig) -> OpenLink:
    """Links to `broker`, without a session, as :class:`SparkplugBridge` wants them."""
    config = broker.model_copy(update={"session_expiry_s": 0})
    return lambda client_id, will: MqttLink(config, client_id, will)
