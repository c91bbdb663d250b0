"""The operator at the broker while devices are asked to do something: what is posted arrives, what is said is read.

What always holds: what was posted and not confirmed when the connection broke is sent again; hostile or foreign
messages are logged and dropped.
"""

from __future__ import annotations

import logging
import queue
import secrets
import threading
import time
from collections import deque
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from edgeslm import codec, topics
from edgeslm.errors import CodecError, LinkError, TopicError
from edgeslm.link.mqtt import MqttLink
from edgeslm.link.port import Link, Message
from edgeslm.schema.config import BrokerConfig
from edgeslm.schema.message import MAX_BODY_BYTES, Availability
from edgeslm.schema.operation import OperationEvent

_LOG = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 10.0
_QUIET_S = 1.0
_RETRY_S = 0.2
_FEW = 50
"""Devices that are listened to one by one; of more than that the whole fleet is heard."""

Said = OperationEvent | Availability


class Desk:
    """The operator at the broker; used as a context manager it is connected inside. One thread uses it."""

    def __init__(
        self, config: BrokerConfig, fleet: str, devices: Sequence[str], more: Sequence[str] = ()
    ) -> None:
        """Set up.

        Args:
            devices: that are listened to.
            more: other filters.
        """
        self.fleet = fleet
        self._config = config.model_copy(update={"session_expiry_s": 0})
        self._link: Link = MqttLink(self._config, f"edgeslm-exec-{secrets.token_hex(6)}")
        kind = topics.OPERATION_EVENT
        if len(devices) > _FEW:
            filters = [topics.event_filter(fleet, kind), topics.fleet_filter(fleet, "availability")]
        else:
            filters = [topics.id_topic(fleet, device, "e", kind) for device in devices]
            filters += [topics.device_topic(fleet, device, "availability") for device in devices]
        self._filters = [(name, 1) for name in (*filters, *more)]
        self._inbox: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self._changed = threading.Condition()
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
        """
        try:
            self._link.start(self, self._filters)
            with self._changed:
                is_there = self._changed.wait_for(lambda: self._connections > 0, CONNECT_TIMEOUT_S)
            if not is_there:
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

    def flush(self, timeout_s: float) -> None:
        """Wait until the broker has everything that was posted.

        Raises:
            LinkError: it does not take it in time.
        """
        until_s = time.monotonic() + timeout_s
        while True:
            self._pump()
            if not self._waiting and not self._flying:
                return
            if time.monotonic() >= until_s:
                raise self._fault(f"does not confirm: {self._reason}")
            with self._changed:
                self._changed.wait(_RETRY_S)

    def hear(self, timeout_s: float) -> tuple[bool, list[tuple[str, Said]]]:
        """What devices said, after at most `timeout_s`; and whether the connection was lost meanwhile."""
        self._pump()
        heard: list[tuple[str, Said]] = []
        try:
            message = self._inbox.get(timeout=max(timeout_s, 0.0))
            while True:
                if (said := self._read(message)) is not None:
                    heard.append(said)
                message = self._inbox.get_nowait()
        except queue.Empty:
            pass
        was_away, self._was_away = self._was_away, False
        return was_away, heard

    def kept_commands(self, op: str, command_id: str, devices: Sequence[str]) -> dict[str, bytes]:
        """The commands that the broker keeps, by device."""
        found: dict[str, bytes] = {}
        while True:
            try:
                message = self._inbox.get(timeout=_QUIET_S)
            except queue.Empty:
                return dict(sorted(found.items()))
            try:
                topic = topics.parse(message.topic)
            except TopicError:
                continue
            if (
                isinstance(topic, topics.CommandTopic)
                and (topic.op, topic.command_id) == (op, command_id)
                and (not devices or topic.device in devices)
                and message.payload
            ):
                found[topic.device] = message.payload

    def _read(self, message: Message) -> tuple[str, Said] | None:
        """A message of a device; ``None`` for what is none."""
        try:
            topic = topics.parse(message.topic)
            if not isinstance(topic, topics.DeviceTopic):
                return None
            if topic.channel == "availability":
                if not message.payload:
                    return None
                return topic.device, codec.decode(Availability, message.payload, max_bytes=MAX_BODY_BYTES)
            return topic.device, codec.decode(OperationEvent, message.payload, max_bytes=MAX_BODY_BYTES)
        except (CodecError, TopicError) as error:
            _LOG.warning("a message on %s is dropped: %s", message.topic[:120], error)
            return None

    def _pump(self) -> None:
        with self._changed:
            for token in self._confirmed:
                self._flying.pop(token, None)
            self._confirmed.clear()
            if self._connections > self._seen_connections:
                self._seen_connections, self._was_away = self._connections, True
                self._waiting.extendleft(reversed(self._flying.values()))
                self._flying.clear()
        while self._waiting and (taken := self._link.publish(self._waiting[0])) is not None:
            self._flying[taken] = self._waiting.popleft()

    def _fault(self, what: str) -> LinkError:
        return LinkError(f"the broker at {self._config.host}:{self._config.port} {what}")

    # --- the link's thread ---

    def on_message(self, message: Message) -> None:
        """Part of ``LinkEvents``."""
        self._inbox.put(message)
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
