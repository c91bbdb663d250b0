"""Asks devices prompts, all over one connection, and gathers what they answer.

What always holds: a prompt goes to devices that are there, and expires with the waiting for it, so that none answers
later what nobody waits for; what is still open at the end is cancelled on the device; asking again after the connection
was lost costs nothing, since a device answers an id once and repeats its answer.

Left to others: what answers mean (:mod:`edgeslm.fleet.asking`).
"""

from __future__ import annotations

import logging
import math
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from edgeslm import codec, topics
from edgeslm.errors import CodecError, LinkError, TopicError
from edgeslm.fleet.asking import Answer, Gathering
from edgeslm.fleet.broker_line import BrokerLine
from edgeslm.link.client import REPLY_ROOT
from edgeslm.link.port import Message
from edgeslm.schema.config import BrokerConfig
from edgeslm.schema.message import (
    MAX_BODY_BYTES,
    Availability,
    CancelRequest,
    DeviceState,
    PromptRequest,
    Result,
)

_LOG = logging.getLogger(__name__)

MAX_ONE_BY_ONE = 50
"""Devices whose presence is heard one by one; of more than that the whole fleet's is."""
QUIET_S = 0.5
"""A broker sends what it retains right after it took the subscription: after such a pause there is no more."""
_PRESENCE_TIMEOUT_S = 10.0
COME_BACK_S = 5.0
"""Seconds that a device may be away while it owes an answer, if nobody else owes one."""
_CANCEL_TIMEOUT_S = 2.0
_LOOK_S = 0.2


@dataclass(frozen=True)
class Wishes:
    """How long is waited.

    Attributes:
        timeout_s: seconds to wait for answers.
        on_answer: told of each device whose answer is there, or will not come.
        stop: ends the waiting early.
    """

    timeout_s: float = 60.0
    on_answer: Callable[[Answer], None] = lambda _: None
    stop: threading.Event = field(default_factory=threading.Event)


class Asker:
    """Asks devices of one fleet; used as a context manager it is connected inside. One thread uses it."""

    def __init__(self, config: BrokerConfig, fleet: str, devices: Sequence[str]) -> None:
        """Set up.

        Args:
            config: how the operator reaches the broker.
            fleet: whose devices.
            devices: that are asked.

        Raises:
            TopicError: a name cannot be in a topic.
        """
        self._fleet = fleet
        self._devices = tuple(devices)
        # Nobody but the broker and those who are asked learn this name.
        name = secrets.token_hex(16)
        self._reply_topic = f"{REPLY_ROOT}/{name}/result"
        if len(devices) > MAX_ONE_BY_ONE:
            presences = [topics.fleet_filter(fleet, "availability")]
        else:
            presences = [topics.device_topic(fleet, device, "availability") for device in devices]
        self._line = BrokerLine(config, f"edgeslm-ask-{name[:12]}", [self._reply_topic, *presences])
        self._presence: dict[str, DeviceState] = {}

    def __enter__(self) -> Self:
        """Connect, and learn who is there.

        Raises:
            LinkError: the broker cannot be reached.
            ConfigError: a key or certificate cannot be used.
        """
        self._line.__enter__()
        wanted, until_s = set(self._devices), time.monotonic() + _PRESENCE_TIMEOUT_S
        while not wanted <= self._presence.keys() and time.monotonic() < until_s:
            heard = self._line.hear(QUIET_S).messages
            if not heard:
                break
            for message in heard:
                self._take_presence(message)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._line.__exit__(kind, error, trace)

    def ask(self, request: PromptRequest, wishes: Wishes) -> tuple[Answer, ...]:
        """Ask every device that is there, and wait for the answers.

        Args:
            request: what to ask; each device gets it under an id of its own.
            wishes: how long is waited.

        Returns:
            What became of it on each device, in the order in which they were named.

        Raises:
            LinkError: the request can never be sent.
        """
        gathering = Gathering(self._devices, self._presence)
        for answer in gathering.answers:
            if answer.state == "absent":
                wishes.on_answer(answer)
        self._post(gathering, request, gathering.open, wishes.timeout_s)
        began_s = time.monotonic()
        self._gather(gathering, request, wishes, began_s)
        late = gathering.give_up()
        if late:
            self._cancel(gathering, [answer.device for answer in late])
            for answer in late:
                wishes.on_answer(answer)
        return gathering.answers

    # --- inside ---------------------------------------------------------------------------------------------

    def _gather(self, gathering: Gathering, request: PromptRequest, wishes: Wishes, began_s: float) -> None:
        until_s, alone_s = began_s + wishes.timeout_s, began_s
        while gathering.open and not wishes.stop.is_set():
            now_s = time.monotonic()
            if gathering.reachable:
                alone_s = now_s
            if now_s >= until_s or now_s - alone_s >= COME_BACK_S:
                return
            heard = self._line.hear(min(until_s - now_s, _LOOK_S))
            if heard.was_away:  # answers may be lost; devices repeat them when they are asked again
                left_s = max(1.0, until_s - time.monotonic())
                self._post(gathering, request, gathering.open, left_s)
            for message in heard.messages:
                if message.topic == self._reply_topic:
                    result = _decoded_result(message)
                    if result is None:
                        continue
                    answer = gathering.take(result, time.monotonic() - began_s)
                    if answer is not None:
                        wishes.on_answer(answer)
                elif (device := self._take_presence(message)) is not None:
                    state = self._presence.get(device)
                    gathering.present(device, state)
                    if state == "online" and not message.retain and device in gathering.ids:
                        self._ask_again(gathering, request, device, until_s)

    def _ask_again(self, gathering: Gathering, request: PromptRequest, device: str, until_s: float) -> None:
        """A device is back: a broker that forgot its session has forgotten the prompt as well."""
        if device in gathering.open:
            self._post(gathering, request, [device], max(1.0, until_s - time.monotonic()))

    def _post(
        self, gathering: Gathering, request: PromptRequest, devices: Iterable[str], life_s: float
    ) -> None:
        for device in devices:
            asked = request.model_copy(update={"id": gathering.ids[device]})
            self._line.post(
                Message(
                    topics.device_topic(self._fleet, device, "prompt"),
                    codec.encode(asked),
                    response_topic=self._reply_topic,
                    expiry_s=math.ceil(life_s),
                )
            )

    def _cancel(self, gathering: Gathering, devices: Iterable[str]) -> None:
        """Let devices not go on with what nobody waits for."""
        try:
            for device in devices:
                body = codec.encode(CancelRequest(id=gathering.ids[device]))
                topic = topics.device_topic(self._fleet, device, "cancel")
                self._line.post(Message(topic, body, expiry_s=60))
            self._line.flush(_CANCEL_TIMEOUT_S)
        except LinkError as error:
            _LOG.warning("prompts could not be cancelled: %s", error)

    def _take_presence(self, message: Message) -> str | None:
        """Note what a device says of its presence; which one it is."""
        try:
            topic = topics.parse(message.topic)
            if not isinstance(topic, topics.DeviceTopic) or topic.channel != "availability":
                return None
            if message.payload:
                said = codec.decode(Availability, message.payload, max_bytes=1024)
                self._presence[topic.device] = said.state
            else:
                self._presence.pop(topic.device, None)
        except (CodecError, TopicError) as error:
            _LOG.warning("a message on %s is dropped: %s", message.topic[:120], error)
            return None
        return topic.device


def _decoded_result(message: Message) -> Result | None:
    try:
        return codec.decode(Result, message.payload, max_bytes=MAX_BODY_BYTES)
    except CodecError as error:
        _LOG.warning("an answer is dropped: %s", error)
        return None
