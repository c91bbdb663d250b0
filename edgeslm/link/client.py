"""Asking an agent, as any MQTT client would: what the command line and the demos use.

What always holds: a request that was not answered before the connection broke is sent again under the same
id, which devices answer effectively once; `on_delta` runs in the thread that asked, never in the link's;
deltas come in order and at most once; hostile or foreign messages are logged and dropped.

Answers come to a reply topic of this client alone (Response Topic and Correlation Data, MQTT 5). Over 3.1.1,
which has neither, they are awaited on the device's own result topic; a pool has none, so it cannot be asked
over 3.1.1.

Left to others: what a request says, and what an error in a result means.
"""

from __future__ import annotations

import logging
import math
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Self, TypeVar

from pydantic import BaseModel

from edgeslm import codec, topics
from edgeslm.errors import BadRequestError, CodecError, LinkError, NoAnswerError, TopicError, UsageError
from edgeslm.link.mqtt import MqttLink
from edgeslm.link.port import Message, SubscribingLink
from edgeslm.schema.config import BrokerConfig
from edgeslm.schema.message import (
    MAX_BODY_BYTES,
    Availability,
    CancelRequest,
    DeviceState,
    Info,
    PromptRequest,
    Result,
    StreamDelta,
)

_LOG = logging.getLogger(__name__)

REPLY_ROOT = "edgeslm-client"
MAX_DELTAS = 8192
"""Deltas of one request that wait for a slow `on_delta`; beyond them the oldest go, the answer never."""
MAX_DEVICES = 100_000
_RETRY_S = 0.5
_LONGEST_EXPIRY_S = 86_400

ModelT = TypeVar("ModelT", bound=BaseModel)


@dataclass(frozen=True)
class DeviceView:
    """What a device says about itself: its presence and, if it has told, its description."""

    device: str
    state: DeviceState | None = None
    info: Info | None = None


@dataclass
class _Pending:
    """A request on its way."""

    is_due: bool = True
    last_seq: int = -1
    deltas: deque[StreamDelta] = field(default_factory=lambda: deque(maxlen=MAX_DELTAS))
    result: Result | None = None


def _decode(kind: type[ModelT], message: Message) -> ModelT | None:
    try:
        return codec.decode(kind, message.payload, max_bytes=MAX_BODY_BYTES)
    except CodecError as error:
        _LOG.warning("a message on %s is dropped: %s", message.topic[:120], error)
        return None


class RequestClient:
    """A client with many requests at once; every method may be called from any thread."""

    def __init__(self, config: BrokerConfig | None = None, *, link: SubscribingLink | None = None) -> None:
        """Prepare a client with a clean session.

        Args:
            config: how the broker is reached; the default is MQTT 5 on this machine.
            link: use this link, not started yet, instead of one of our own.
        """
        self._config = (config or BrokerConfig()).model_copy(update={"session_expiry_s": 0})
        name = uuid.uuid4().hex
        self._reply_topic = f"{REPLY_ROOT}/{name}/result"
        self._link: SubscribingLink = link or MqttLink(self._config, f"{REPLY_ROOT}-{name[:12]}")
        self._changed = threading.Condition()
        self._is_connected = False
        self._last_reason = "no answer yet"
        self._pending: dict[str, _Pending] = {}
        self._devices: dict[tuple[str, str], DeviceView] = {}
        self._watched: dict[str, float] = {}

    # --- coming and going ---------------------------------------------------------------------------------

    def connect(self, timeout_s: float = 10.0) -> Self:
        """Connect and wait for it.

        Raises:
            NoAnswerError: no broker within `timeout_s`; the text says why the last attempt failed.
            ConfigError: a password or TLS file cannot be used.
            LinkError: the link cannot be set up.
        """
        filters = [(self._reply_topic, 1)] if self._config.protocol == "5" else []
        self._link.start(self, filters)
        if not self._wait(lambda: self._is_connected, time.monotonic() + timeout_s):
            self._link.stop()
            where = f"{self._config.host}:{self._config.port}"
            raise NoAnswerError(
                f"no broker at {where} within {timeout_s:g} s: {self._last_reason}",
                waited_s=timeout_s,
                hint="Is it running, and are host, port and credentials right?",
            )
        return self

    def close(self) -> None:
        """Disconnect. Idempotent."""
        self._link.stop()

    def __enter__(self) -> Self:
        return self.connect()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- asking -------------------------------------------------------------------------------------------

    def ask(
        self,
        topic: str,
        request: PromptRequest,
        on_delta: Callable[[StreamDelta], None] | None = None,
        timeout_s: float = 60.0,
        *,
        compresses: bool = False,
    ) -> Result:
        """Send `request` and wait for its result, which may be an error that the device reports.

        Args:
            topic: prompt topic of a device or a pool.
            request: what to ask; its id must not be on its way already.
            on_delta: called in this thread with each piece of a streamed answer.
            timeout_s: seconds to wait, outages included.
            compresses: send the request compressed, where that makes it shorter.

        Raises:
            NoAnswerError: no result in time.
            LinkError: the request can never be sent.
            TopicError: `topic` is no prompt topic.
            BadRequestError: the id is in use.
            UsageError: a pool is asked over MQTT 3.1.1.
        """
        filters = self._answer_filters(topic, request)
        body = codec.encode(request)
        message = Message(
            topic,
            codec.compress(body) if compresses else body,
            response_topic=self._reply_topic,
            correlation=request.id.encode(),
            expiry_s=min(_LONGEST_EXPIRY_S, max(1, math.ceil(timeout_s))),
        )
        pending = self._register(request.id)
        try:
            if filters:
                self._link.subscribe(filters)
            result = self._await_result(pending, message, on_delta, time.monotonic() + timeout_s)
        finally:
            with self._changed:
                del self._pending[request.id]
            if filters:
                self._link.unsubscribe([name for name, _ in filters])
        if result is None:
            raise NoAnswerError(
                f"no answer to request '{request.id}' on {topic} within {timeout_s:g} s"
                + ("" if self._is_connected else f" (not connected: {self._last_reason})"),
                waited_s=timeout_s,
                hint="See whether the device is online",
            )
        return result

    def cancel(self, fleet: str, device: str, request_id: str) -> None:
        """Take a prompt back; whoever asks for it gets a result that says so.

        Raises:
            LinkError: not connected.
        """
        body = codec.encode(CancelRequest(id=request_id))
        if self._link.publish(Message(topics.device_topic(fleet, device, "cancel"), body)) is None:
            raise LinkError(f"'{request_id}' cannot be cancelled: not connected ({self._last_reason})")

    # --- devices ------------------------------------------------------------------------------------------

    def wait_online(self, fleet: str, device: str, timeout_s: float = 30.0) -> None:
        """Wait until `device` says that it is online.

        Raises:
            NoAnswerError: it does not within `timeout_s`.
        """
        topic = topics.device_topic(fleet, device, "availability")
        self._watch([topic])
        key = (fleet, device)

        def is_online() -> bool:
            return key in self._devices and self._devices[key].state == "online"

        if not self._wait(is_online, time.monotonic() + timeout_s):
            view = self._devices.get(key)
            state = view.state if view is not None else None
            raise NoAnswerError(
                f"device '{device}' of fleet '{fleet}' is {state or 'unheard of'} after {timeout_s:g} s",
                waited_s=timeout_s,
                hint="Start its agent, or look which devices there are",
            )

    def list_devices(self, fleet: str, wait_s: float = 1.0) -> list[DeviceView]:
        """The devices of `fleet`, by name.

        Args:
            fleet: whose.
            wait_s: seconds to collect what the broker retains; a later call knows it already.
        """
        filters = [topics.fleet_filter(fleet, "availability"), topics.fleet_filter(fleet, "info")]
        since_s = self._watch(filters)
        self._wait(lambda: False, since_s + wait_s)
        with self._changed:
            found = [view for (its_fleet, _), view in self._devices.items() if its_fleet == fleet]
        return sorted(found, key=lambda view: view.device)

    # --- the link's events: they only note ----------------------------------------------------------------

    def on_connected(self, *, session_present: bool) -> None:
        """Send what is unanswered again: answers to a clean session are lost while it is away."""
        _ = session_present
        with self._changed:
            self._is_connected = True
            for pending in self._pending.values():
                pending.is_due = True
            self._changed.notify_all()

    def on_disconnected(self, reason: str) -> None:
        """Note why."""
        with self._changed:
            self._is_connected = False
            self._last_reason = reason
            self._changed.notify_all()

    def on_published(self, token: int) -> None:
        """Nothing: only the answer counts."""

    def on_message(self, message: Message) -> None:
        """Sort a message to whoever waits for it."""
        message.acknowledge()
        if message.topic == self._reply_topic:
            self._take_result(message)
            return
        try:
            topic = topics.parse(message.topic)
        except TopicError as error:
            _LOG.warning("a message is dropped: %s", error)
            return
        if not isinstance(topic, topics.DeviceTopic):
            return
        if topic.channel == "result":
            self._take_result(message)
        elif topic.channel == "stream":
            self._take_delta(message, topic.request_id or "")
        elif topic.channel in {"availability", "info"}:
            self._take_presence(message, topic)

    # --- inside -------------------------------------------------------------------------------------------

    def _answer_filters(self, topic: str, request: PromptRequest) -> list[tuple[str, int]]:
        target = topics.parse(topic)
        if isinstance(target, topics.CommandTopic | topics.EnrolTopic) or (
            isinstance(target, topics.DeviceTopic) and target.channel != "prompt"
        ):
            raise TopicError(f"'{topic[:120]}' is no prompt topic")
        filters = []
        if request.options.stream:
            filters.append((topics.stream_filter(target.fleet, request.id), 0))
        if self._config.protocol == "3.1.1":
            if isinstance(target, topics.PoolTopic):
                raise UsageError(
                    "a pool cannot be asked over MQTT 3.1.1", hint="Use MQTT 5, or name a device"
                )
            filters.append((topics.id_topic(target.fleet, target.device, "result", request.id), 1))
        return filters

    def _register(self, request_id: str) -> _Pending:
        with self._changed:
            if request_id in self._pending:
                raise BadRequestError(f"request '{request_id}' is on its way already")
            return self._pending.setdefault(request_id, _Pending())

    def _await_result(
        self,
        pending: _Pending,
        message: Message,
        on_delta: Callable[[StreamDelta], None] | None,
        deadline_s: float,
    ) -> Result | None:
        while True:
            with self._changed:
                deltas = list(pending.deltas)
                pending.deltas.clear()
                result, is_due = pending.result, pending.is_due
                pending.is_due = False
            if on_delta is not None:
                for delta in deltas:
                    on_delta(delta)
            if result is not None:
                return result
            if time.monotonic() >= deadline_s:
                return None
            is_refused = is_due and self._link.publish(message) is None
            with self._changed:
                # Not connected, or the link is full: connecting makes it due again, and so does some time.
                pending.is_due = pending.is_due or is_refused
                if pending.result is None and not pending.deltas and (is_refused or not pending.is_due):
                    longest_s = _RETRY_S if is_refused else math.inf
                    self._changed.wait(max(0.0, min(deadline_s - time.monotonic(), longest_s)))

    def _take_result(self, message: Message) -> None:
        result = _decode(Result, message)
        if result is None:
            return
        with self._changed:
            pending = self._pending.get(result.id)
            if pending is not None and pending.result is None:
                pending.result = result
                self._changed.notify_all()

    def _take_delta(self, message: Message, request_id: str) -> None:
        delta = _decode(StreamDelta, message)
        if delta is None:
            return
        with self._changed:
            pending = self._pending.get(request_id)
            # A device that answers a second time, after a crash for example, starts from the front.
            if pending is not None and delta.seq > pending.last_seq:
                pending.last_seq = delta.seq
                pending.deltas.append(delta)
                self._changed.notify_all()

    def _take_presence(self, message: Message, topic: topics.DeviceTopic) -> None:
        key = (topic.fleet, topic.device)
        with self._changed:
            view = self._devices.get(key, DeviceView(topic.device))
            if topic.channel == "availability":
                availability = _decode(Availability, message) if message.payload else None
                view = replace(view, state=availability.state if availability is not None else None)
            else:
                view = replace(view, info=_decode(Info, message) if message.payload else None)
            if view == DeviceView(topic.device):
                self._devices.pop(key, None)
            elif key in self._devices or len(self._devices) < MAX_DEVICES:
                self._devices[key] = view
            self._changed.notify_all()

    def _watch(self, filters: Sequence[str]) -> float:
        """Subscribe once and for good, so that views stay true; when the latest began (monotonic)."""
        with self._changed:
            new = [name for name in filters if name not in self._watched]
            self._watched.update(dict.fromkeys(new, time.monotonic()))
            since_s = max(self._watched[name] for name in filters)
        if new:
            self._link.subscribe([(name, 1) for name in new])
        return since_s

    def _wait(self, is_met: Callable[[], bool], deadline_s: float) -> bool:
        with self._changed:
            return self._changed.wait_for(is_met, max(0.0, deadline_s - time.monotonic()))
