"""Asks devices to do something once, all over one connection, and gathers what they answer.

What always holds:

* every device has the same id of the request, and answers it effectively once: asking again under that id is safe, and
  gives the last word again;
* a command is cleared at the broker once its device has said the last word, and it clears itself when its life is over;
* what is still open at the end is taken back, so that nothing happens later that nobody waits for, unless it is to be
  kept; then :func:`collect` asks for what came of it.

Left to others: which devices, who may ask, and what the answers mean.
"""

from __future__ import annotations

import math
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from pydantic import ValidationError
from sqlalchemy.orm import Session

from edgeslm import codec, topics
from edgeslm.errors import CodecError
from edgeslm.fleet.broker_line import CONNECT_TIMEOUT_S
from edgeslm.fleet.operation_desk import Desk
from edgeslm.fleet.registry import audit, device_row, note_event
from edgeslm.link.port import Message
from edgeslm.schema.config import BrokerConfig
from edgeslm.schema.fleet import Record
from edgeslm.schema.message import MAX_BODY_BYTES, DeviceState
from edgeslm.schema.operation import (
    OperationCommand,
    OperationEvent,
    OperationFault,
    OperationState,
)

TAKE_BACK_S = 5.0
"""Seconds that devices get to say what becomes of a command that was taken back."""
_LOOK_S = 0.2

OutcomeState = OperationState | Literal["pending"]


class Outcome(Record):
    """What a device said last about a command.

    Attributes:
        state: ``pending`` as long as it said nothing.
        presence: whether it is there, as it says itself.
        open: it did not say the last word.
        kept: the command waits for it at the broker.
    """

    device: str
    op: str
    id: str
    state: OutcomeState = "pending"
    presence: DeviceState | None = None
    open: bool = True
    kept: bool = False
    at: str | None = None
    text: str = ""
    share: float | None = None
    result: dict[str, Any] | None = None
    error: OperationFault | None = None

    @property
    def is_done(self) -> bool:
        """Whether it was done."""
        return self.state == "done"


def new_id() -> str:
    """An id for a request."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(4)}"


class Gathering:
    """What devices said about one request. Pure."""

    def __init__(self, op: str, command_id: str, devices: Iterable[str]) -> None:
        """Nobody has said anything."""
        self._outcomes = {name: Outcome(device=name, op=op, id=command_id) for name in devices}
        self._names = (op, command_id)

    def take(self, device: str, event: OperationEvent) -> Outcome | None:
        """An event of `device`; what is new by it, if anything is.

        Args:
            device: whose topic it came on, which nobody else can write to.
        """
        before = self._outcomes.get(device)
        if before is None or (event.op, event.id) != self._names or not before.open:
            return None
        after = before.model_copy(
            update={
                "state": event.state,
                "open": not event.is_final,
                "at": event.at,
                "text": event.text,
                "share": event.share,
                "result": event.result,
                "error": event.error,
            }
        )
        self._outcomes[device] = after
        return after if after != before else None

    def present(self, device: str, state: DeviceState | None) -> Outcome | None:
        """What `device` says of its presence; what is new by it, if anything is."""
        before = self._outcomes.get(device)
        if before is None or before.presence == state:
            return None
        self._outcomes[device] = before.model_copy(update={"presence": state})
        return self._outcomes[device]

    def keep(self, devices: Iterable[str]) -> None:
        """The commands of these stay at the broker."""
        for name in devices:
            self._outcomes[name] = self._outcomes[name].model_copy(update={"kept": True})

    @property
    def open(self) -> list[str]:
        """Devices that have not said the last word."""
        return [name for name, outcome in self._outcomes.items() if outcome.open]

    def outcomes(self) -> tuple[Outcome, ...]:
        """What is known of each device, in the order in which they were named."""
        return tuple(self._outcomes.values())


@dataclass(frozen=True)
class Wishes:
    """How long is waited, and what becomes of what is open then.

    Attributes:
        timeout_s: seconds to wait for last words.
        life: for how long a command may wait for its device.
        keep: leave open commands to their devices instead of taking them back.
        on_news: told of each thing that a device says.
        stop: ends the waiting early.
    """

    timeout_s: float = 120.0
    life: timedelta = timedelta(hours=1)
    keep: bool = False
    on_news: Callable[[Outcome], None] = lambda _: None
    stop: threading.Event = field(default_factory=threading.Event)


def request(
    config: BrokerConfig,
    fleet: str,
    op: str,
    args: Mapping[str, Mapping[str, Any]],
    wishes: Wishes,
    *,
    command_id: str | None = None,
) -> tuple[Outcome, ...]:
    """Ask devices to do `op`, and wait for what comes of it.

    Args:
        config: how the operator reaches the broker.
        fleet: whose devices.
        op: what to do.
        args: for each device, by its name.
        wishes: how long is waited.
        command_id: of the request; a new one if it is ``None``.

    Raises:
        LinkError: the broker cannot be reached, or takes a command from nobody.
        TopicError: a device's name cannot be in a topic.
        CodecError: name, id, life or arguments are none of a command, or too large.
    """
    now = datetime.now(UTC)
    chosen = command_id or new_id()
    bodies = {device: _body(op, chosen, given, now, wishes.life) for device, given in args.items()}
    gathering = Gathering(op, chosen, bodies)
    with Desk(config, fleet, list(bodies)) as desk:
        return _carry_out(desk, gathering, op, chosen, bodies, dict.fromkeys(bodies, wishes.life), wishes)


def collect(
    config: BrokerConfig, fleet: str, op: str, command_id: str, wishes: Wishes, devices: Sequence[str] = ()
) -> tuple[Outcome, ...]:
    """Ask for what came of an earlier request that was kept.

    Args:
        config: how the operator reaches the broker.
        fleet: whose devices.
        op: of that request, and `command_id` its id.
        wishes: how long is waited.
        devices: only these; none named is all for which the broker keeps the command.

    Raises:
        LinkError: the broker cannot be reached.
        TopicError: a name or the id cannot be in a topic.
    """
    pattern = topics.commands_filter(fleet, op, command_id)
    with Desk(config, fleet, (), [pattern]) as desk:
        bodies = desk.kept_commands(op, command_id, devices)
    ends = {device: _end(body) for device, body in bodies.items()}
    now = datetime.now(UTC)
    lives = {device: end - now for device, end in ends.items() if end is not None and end > now}
    if not lives:
        return ()
    gathering = Gathering(op, command_id, lives)
    with Desk(config, fleet, list(lives)) as desk:
        return _carry_out(desk, gathering, op, command_id, bodies, lives, wishes)


def note_request(
    session: Session, op: str, command_id: str, devices: Iterable[str], *, actor: str, now: datetime
) -> None:
    """Note who asked which devices for what."""
    for device in devices:
        audit(session, actor, "operation", device, now, op=op, id=command_id)


def note_outcomes(session: Session, outcomes: Iterable[Outcome], now: datetime) -> None:
    """Note the last words, for whoever looks at a device later."""
    for outcome in outcomes:
        row = device_row(session, outcome.device)
        if outcome.open or row is None:
            continue
        text = f"{outcome.op} {outcome.id}: {outcome.state} {outcome.text}".strip()
        severity: Literal["info", "warning"] = "info" if outcome.is_done else "warning"
        note_event(session, outcome.device, "operation", text[:1000], now, severity=severity, device=row)


# --- at the broker --------------------------------------------------------------------------------------------


def _body(op: str, command_id: str, args: Mapping[str, Any], now: datetime, life: timedelta) -> bytes:
    try:
        command = OperationCommand(
            id=command_id, op=op, issued_at=now, expires_at=now + life, args=dict(args)
        )
    except ValidationError as error:
        raise CodecError(codec.describe(error)) from error
    body = codec.encode(command)
    if len(body) > MAX_BODY_BYTES:
        raise CodecError(f"a command of {len(body)} bytes; devices take {MAX_BODY_BYTES} at most")
    return body


def _end(body: bytes) -> datetime | None:
    """When the life of a command that the broker keeps is over; ``None`` where it is none of ours."""
    try:
        return codec.decode(OperationCommand, body, max_bytes=MAX_BODY_BYTES).expires_at
    except CodecError:
        return None


def _carry_out(
    desk: Desk,
    gathering: Gathering,
    op: str,
    command_id: str,
    bodies: Mapping[str, bytes],
    lives: Mapping[str, timedelta],
    wishes: Wishes,
) -> tuple[Outcome, ...]:
    fleet = desk.fleet
    commands = {device: topics.command_topic(fleet, device, op, command_id) for device in lives}

    def ask(devices: Iterable[str]) -> None:
        for device in devices:
            life_s = math.ceil(lives[device].total_seconds())
            desk.post(Message(commands[device], bodies[device], retain=True, expiry_s=life_s))

    def clear(devices: Iterable[str]) -> None:
        for device in devices:
            desk.post(Message(commands[device], b"", retain=True))

    def listen(until_s: float, stop: threading.Event | None) -> None:
        """Take what comes until nothing is open any more."""
        while gathering.open and time.monotonic() < until_s and not (stop is not None and stop.is_set()):
            was_away, heard = desk.said(min(until_s - time.monotonic(), _LOOK_S))
            if was_away:  # what was said meanwhile is lost, but is said again when asked again
                ask(gathering.open)
            for device, message in heard:
                news = (
                    gathering.take(device, message)
                    if isinstance(message, OperationEvent)
                    else gathering.present(device, message.state)
                )
                if news is None:
                    continue
                wishes.on_news(news)
                if not news.open and isinstance(message, OperationEvent):
                    clear([device])

    ask(commands)
    desk.deliver(CONNECT_TIMEOUT_S)
    listen(time.monotonic() + wishes.timeout_s, wishes.stop)
    if wishes.keep:
        gathering.keep(gathering.open)
    elif gathering.open:
        clear(gathering.open)
        _drop_pending(gathering, listen)
    desk.deliver(CONNECT_TIMEOUT_S)
    return gathering.outcomes()


def _drop_pending(gathering: Gathering, listen: Callable[[float, threading.Event | None], None]) -> None:
    """Wait a moment for those that had begun; who said nothing yet will say nothing now."""
    if any(outcome.open and outcome.state != "pending" for outcome in gathering.outcomes()):
        listen(time.monotonic() + TAKE_BACK_S, None)
