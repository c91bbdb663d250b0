"""Deals the prompts of a pool to devices, where the broker has no shared subscriptions or devices come and go.

What always holds: a prompt is acknowledged when its answer is with the broker, so that a gateway that dies finds it
again, in the session that the broker keeps; nothing is decided here (:mod:`edgeslm.link.pool` does).

Two connections: one of a kept session on which prompts come and answers go, and one of a clean session to the devices,
whose retained presence every new connection brings anew. The answers of devices come to a topic whose name nobody else
knows. MQTT 5 alone has what this needs.
"""

from __future__ import annotations

import logging
import math
import queue
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final, TypeVar

from pydantic import BaseModel

from edgeslm import codec, topics
from edgeslm.errors import BodySizeError, CodecError, LinkError, TopicError, UsageError, WireCode
from edgeslm.link.client import REPLY_ROOT
from edgeslm.link.mqtt import MqttLink
from edgeslm.link.pool import Action, Drop, Forward, Pool, Reply, Requester, TakeBack, error_body
from edgeslm.link.port import Link, Message
from edgeslm.schema.config import BrokerConfig
from edgeslm.schema.message import (
    MAX_BODY_BYTES,
    NO_SESSION_IN_POOLS,
    Availability,
    CancelRequest,
    Info,
    PromptRequest,
    Result,
)
from edgeslm.schema.metrics import InferenceMetrics, PowerMetrics
from edgeslm.schema.pool import PoolReport

log = logging.getLogger(__name__)

DEFAULT_PATIENCE_S: Final = 120.0
_TICK_S: Final = 0.5
_MOST_NEWS: Final = 4096
_UNIDENTIFIED: Final = "unidentified"

ModelT = TypeVar("ModelT", bound=BaseModel)


@dataclass(frozen=True)
class _Event:
    """What a link told: a message, a confirmed token, or (neither) that it came up or went down."""

    is_asking: bool
    message: Message | None = None
    token: int | None = None
    is_up: bool = False


class _Ear:
    """Puts what a link tells into the gateway's queue; a flood of reports is shed, prompts and answers are not."""

    def __init__(self, events: queue.SimpleQueue[_Event], *, is_asking: bool) -> None:
        self._events, self._is_asking = events, is_asking

    def on_message(self, message: Message) -> None:
        if not self._is_asking:
            message.acknowledge()
            if self._events.qsize() > _MOST_NEWS and "/m/" in message.topic:
                return
        self._events.put(_Event(self._is_asking, message=message))

    def on_connected(self, *, session_present: bool) -> None:
        del session_present
        self._events.put(_Event(self._is_asking, is_up=True))

    def on_disconnected(self, reason: str) -> None:
        log.warning("%s: %s", "prompts" if self._is_asking else "devices", reason)
        self._events.put(_Event(self._is_asking))

    def on_published(self, token: int) -> None:
        if self._is_asking:
            self._events.put(_Event(self._is_asking, token=token))


class PoolGateway:
    """One per pool; :meth:`run` works on the calling thread."""

    def __init__(
        self, fleet: str, model: str, asking: Link, devices: Link, *, patience_s: float = DEFAULT_PATIENCE_S
    ) -> None:
        """Take the links, which are not started.

        Args:
            asking: of a kept session.
            devices: of a clean session.
            patience_s: how long prompts live that come without a deadline.

        Raises:
            TopicError: `fleet` or `model` is no identifier.
        """
        self._fleet, self._model = fleet, model
        self._prompts = topics.pool_topic(fleet, model)
        self._asking, self._devices = asking, devices
        self._pool = Pool(fleet, model, patience_s=patience_s)
        self._replies = f"{REPLY_ROOT}/{uuid.uuid4().hex}/result"
        self._events: queue.SimpleQueue[_Event] = queue.SimpleQueue()
        self._serial = 0
        self._messages: dict[int, Message] = {}
        """Not acknowledged, by serial."""
        self._leaving: dict[int, int] = {}
        """Serials of prompts whose answer is on its way, by token."""
        self._unsent: list[Reply] = []
        self._ready: list[str] = []
        self._listens = False

    def run(self, stopped: threading.Event, told: Callable[[list[str]], None] | None = None) -> PoolReport:
        """Work until `stopped`.

        Args:
            told: gets the names of the devices that can be asked, each time they change.

        Raises:
            LinkError: a link cannot be set up.
            ConfigError: a password or TLS file cannot be used.
        """
        power, inference, *_ = topics.metrics_filters(self._fleet)
        filters = [
            (self._replies, 1),
            (topics.fleet_filter(self._fleet, "availability"), 1),
            (topics.fleet_filter(self._fleet, "info"), 1),
            (power, 0),
            (inference, 0),
        ]
        self._devices.start(_Ear(self._events, is_asking=False), filters)
        try:
            while not stopped.is_set():
                self._step(_TICK_S)
                if told is not None and (ready := self._pool.ready) != self._ready:
                    self._ready = ready
                    told(ready)
        finally:
            self._asking.stop()
            self._devices.stop()
        return self._pool.report

    def _step(self, longest_s: float) -> None:
        wait_s = max(0.0, min(longest_s, self._pool.due_s() - time.monotonic()))
        try:
            event = self._events.get(timeout=wait_s)
        except queue.Empty:
            pass
        else:
            try:
                self._do(self._handle(event))
            except Exception:  # a gateway that ends is worse than one message lost
                log.exception("an event of the pool failed")
        unsent, self._unsent = self._unsent, []
        self._do([*unsent, *self._pool.tick(time.monotonic())])

    def _handle(self, event: _Event) -> Sequence[Action]:
        if event.message is not None:
            if event.is_asking:
                return self._read_prompt(event.message)
            return self._read_news(event.message)
        if event.token is not None:
            self._acknowledge(self._leaving.pop(event.token, 0))
        elif event.is_asking:
            # The broker delivers what was not acknowledged again, and what was answered is answered again then.
            self._messages.clear()
            self._leaving.clear()
            self._unsent.clear()
        elif event.is_up:
            if not self._listens:
                self._listens = True
                self._asking.start(_Ear(self._events, is_asking=True), [(self._prompts, 1)])
            return self._pool.again(time.monotonic())
        return ()

    # --- reading -------------------------------------------------------------------------------------------------

    def _read_prompt(self, message: Message) -> Sequence[Action]:
        self._serial += 1
        self._messages[self._serial] = message
        requester = Requester(message.response_topic, message.correlation, self._serial)
        if message.retain or (
            message.response_topic is not None and not topics.is_publishable(message.response_topic)
        ):
            # A retained order would be carried out at every start.
            log.warning("a prompt of the pool is dropped: retained, or its response topic is none")
            return [Drop(self._serial)]
        try:
            request = codec.decode(PromptRequest, message.payload, max_bytes=MAX_BODY_BYTES)
        except CodecError as error:
            too_large = isinstance(error, BodySizeError)
            request_id = _UNIDENTIFIED if too_large else _id_in(message.payload)
            code: WireCode = "too_large" if too_large else "bad_request"
            return [Reply(requester, request_id, None, error_body(request_id, code, str(error)))]
        if request.options.session is not None:
            body = error_body(request.id, "bad_request", NO_SESSION_IN_POOLS)
            return [Reply(requester, request.id, None, body)]
        requester = replace(requester, packs="gzip" in request.accept_encoding)
        return self._pool.take(request, requester, message.expiry_s, time.monotonic())

    def _read_news(self, message: Message) -> Sequence[Action]:
        now_s = time.monotonic()
        if message.topic == self._replies:
            result = _decode(Result, message)
            return () if result is None else self._pool.answered(result, codec.plain(message.payload), now_s)
        try:
            topic = topics.parse(message.topic)
        except TopicError:
            return ()
        if not isinstance(topic, topics.DeviceTopic):
            return ()
        device = topic.device
        if topic.channel == "availability":
            presence = _decode(Availability, message) if message.payload else None
            is_online = presence is not None and presence.state == "online"
            return self._pool.note_presence(device, now_s, is_online=is_online)
        if topic.channel == "info":
            info = _decode(Info, message) if message.payload else None
            actions = self._pool.note_info(device, info, now_s)
            if info is not None and info.pool and self._pool.serves(device):
                log.warning("%s takes the pool's prompts itself as well: set `pool: false` for it", device)
            return actions
        if not self._pool.serves(device):
            return ()
        if topic.channel == "m/power" and (power := _decode(PowerMetrics, message)) is not None:
            self._pool.note_power(device, power)
        if topic.channel == "m/inference" and (work := _decode(InferenceMetrics, message)) is not None:
            self._pool.note_inference(device, work)
        return ()

    # --- doing ---------------------------------------------------------------------------------------------------

    def _do(self, actions: Sequence[Action]) -> None:
        for action in actions:
            match action:
                case Forward(device, request, left_s):
                    log.info("%s goes to %s", request.id, device)
                    topic = topics.device_topic(self._fleet, device, "prompt")
                    self._tell(
                        Message(
                            topic,
                            codec.encode(request),
                            response_topic=self._replies,
                            correlation=request.id.encode(),
                            expiry_s=max(1, math.ceil(left_s)),
                        )
                    )
                case TakeBack(device, request_id):
                    topic = topics.device_topic(self._fleet, device, "cancel")
                    self._tell(Message(topic, codec.encode(CancelRequest(id=request_id)), expiry_s=60))
                case Drop(serial):
                    self._acknowledge(serial)
                case Reply():
                    self._reply(action)

    def _tell(self, message: Message) -> None:
        try:
            # Not connected: what devices hold is asked again on connecting.
            self._devices.publish(message)
        except LinkError as error:
            log.warning("a device cannot be asked: %s", error)

    def _reply(self, reply: Reply) -> None:
        requester = reply.requester
        if requester.serial not in self._messages:
            return  # it came over a connection that is gone, and comes again
        if requester.topic is None and reply.device is None:
            log.warning("nobody can be told of %s: it names no response topic", reply.request_id)
            self._acknowledge(requester.serial)
            return
        try:
            topic = requester.topic or topics.id_topic(
                self._fleet, reply.device or "", "result", reply.request_id
            )
            body = codec.compress(reply.body) if requester.packs else reply.body
            token = self._asking.publish(Message(topic, body, correlation=requester.correlation))
        except (LinkError, TopicError) as error:
            log.warning("an answer is given up: %s", error)
            self._acknowledge(requester.serial)
            return
        if token is None:
            self._unsent.append(reply)
        else:
            self._leaving[token] = requester.serial

    def _acknowledge(self, serial: int) -> None:
        message = self._messages.pop(serial, None)
        if message is not None:
            message.acknowledge()


def open_gateway(fleet: str, model: str, config: BrokerConfig, *, patience_s: float) -> PoolGateway:
    """A gateway over MQTT.

    Raises:
        TopicError: `fleet` or `model` is no identifier.
        UsageError: over MQTT 3.1.1.
    """
    if config.protocol != "5":
        raise UsageError("a pool cannot be served over MQTT 3.1.1", hint="Use MQTT 5")
    topics.pool_topic(fleet, model)
    asking = MqttLink(config, f"edgeslm-pool-{fleet}-{model}")
    clean = config.model_copy(update={"session_expiry_s": 0})
    devices = MqttLink(clean, f"{REPLY_ROOT}-{uuid.uuid4().hex[:12]}")
    return PoolGateway(fleet, model, asking, devices, patience_s=patience_s)


def _decode(kind: type[ModelT], message: Message) -> ModelT | None:
    try:
        return codec.decode(kind, message.payload, max_bytes=MAX_BODY_BYTES)
    except CodecError as error:
        log.warning("a message on %s is dropped: %s", message.topic[:120], error)
        return None


def _id_in(payload: bytes) -> str:
    """The id in a body that is wrong in other ways, so that its sender can tell which one it was."""
    try:
        return codec.decode(CancelRequest, payload).id
    except CodecError:
        return _UNIDENTIFIED
