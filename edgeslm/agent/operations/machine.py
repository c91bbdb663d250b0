"""What becomes of a command: the states of an operation, decided without a clock, a disk or a thread. Pure.

::

    received -> running -> restarting -> running ... -> done | failed | rolled_back
    received -> expired | cancelled        received | running -> refused        running -> expired | cancelled

What always holds: a final state is never left; an operation is begun at most once, whatever ends the process; one that
was begun and not ended is resumed, but not by more processes than :data:`MAX_STARTS` that ended unexpectedly.

Left to others: writing down what is decided here before it has effects (:mod:`edgeslm.agent.operations.runner`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from edgeslm.agent.operations.ports import Done, Restart, Step, Waiting
from edgeslm.schema.operation import (
    FINAL,
    MAX_TEXT_CHARS,
    OperationCommand,
    OperationEvent,
    OperationFault,
    OperationReason,
    OperationState,
)

MAX_WAITING = 16
"""Commands that may wait at once; what comes on top is refused."""
MAX_STARTS = 5
"""Processes that may end unexpectedly while one operation runs: it may be what ends them."""
GRACE = 2.0
"""An operation that was told to end at its deadline may wait for its way back until this many times that."""


@dataclass(frozen=True)
class Entry:
    """One command as it stands.

    Attributes:
        number: in order of arrival, from 1.
        args: empty once it is over.
        expires_at: Unix time after which it is not begun any more.
        begun: its operation was called.
        memo: of the last step.
        wait_s: seconds after which it is to be resumed.
        taken_back: the requester wants it no more.
        starts: processes that ended unexpectedly while it ran.
        left: the last process ended in order while it ran.
        spent_s: seconds since it was begun, those without power not counted.
        reduced: its result was let go of.
    """

    number: int
    op: str
    id: str
    expires_at: float
    args: Mapping[str, Any]
    state: OperationState = "received"
    begun: bool = False
    memo: Mapping[str, Any] | None = None
    wait_s: float = 0.0
    taken_back: bool = False
    starts: int = 0
    left: bool = False
    spent_s: float = 0.0
    text: str = ""
    share: float | None = None
    result: Mapping[str, Any] | None = None
    fault: OperationFault | None = None
    reduced: bool = False

    @property
    def is_final(self) -> bool:
        """Whether nothing more becomes of it."""
        return self.state in FINAL


@dataclass(frozen=True)
class Offered:
    """What a device can do.

    Attributes:
        ops: names of its operations.
        closed: operations that exist, but not on this device, each with the reason.
    """

    ops: frozenset[str]
    closed: Mapping[str, str]


def receive(
    number: int, command: OperationCommand, offered: Offered, *, waiting: int, now_s: float | None
) -> Entry:
    """A command that was not seen before.

    Args:
        number: for it.
        offered: what can be done here.
        waiting: commands that wait already.
        now_s: Unix time, or ``None`` where the clock is not set: nothing is too late there.
    """
    entry = Entry(number, command.op, command.id, command.expires_at.timestamp(), command.args)
    if command.op in offered.closed:
        return refuse(entry, offered.closed[command.op])
    if command.op not in offered.ops:
        known = ", ".join(sorted(offered.ops)) or "none"
        return refuse(entry, f"this device knows no operation '{command.op}' (it knows: {known})")
    if (late := _too_late(entry, now_s)) is not None:
        return late
    if waiting >= MAX_WAITING:
        return refuse(entry, f"{waiting} commands wait already; ask again later")
    return replace(entry, text=f"waits for {waiting} others" if waiting else "")


def begin(entry: Entry, now_s: float | None) -> Entry:
    """Its turn has come; what this gives is written down before the operation is called."""
    if entry.state != "received":
        return entry
    return _too_late(entry, now_s) or replace(entry, state="running", begun=True, text="")


def step(entry: Entry, taken: Step) -> Entry:
    """What the operation came to."""
    if entry.is_final:
        return entry
    match taken:
        case Done(result):
            return _end(replace(entry, result=dict(result)), "done", None)
        case Restart(memo):
            return replace(
                entry, state="restarting", memo=dict(memo), wait_s=0.0, share=None, text="the agent restarts"
            )
        case Waiting(memo, retry_s):
            return replace(entry, memo=dict(memo), wait_s=max(retry_s, 0.0))


def fail(entry: Entry, reason: OperationReason, message: str) -> Entry:
    """It was not done."""
    return entry if entry.is_final else _end(entry, reason, message)


def refuse(entry: Entry, message: str) -> Entry:
    """It is not begun."""
    return fail(entry, "refused", message)


def take_back(entry: Entry) -> Entry:
    """The requester wants it no more; one that runs is told so, and says itself what becomes of it."""
    if entry.state == "received":
        return fail(entry, "cancelled", "taken back before it was begun")
    return entry if entry.is_final else replace(entry, taken_back=True)


def take_up(entry: Entry) -> Entry:
    """A process begins and finds it open."""
    if entry.state == "restarting":
        return replace(entry, state="running", left=False, text="")
    if entry.state != "running":
        return entry
    starts = entry.starts + (0 if entry.left else 1)
    if starts > MAX_STARTS:
        return fail(entry, "failed", f"the agent ended {starts} times while it ran")
    return replace(entry, starts=starts, left=False, wait_s=0.0)


def leave(entry: Entry) -> Entry:
    """The process ends in order while it runs."""
    return entry if entry.is_final else replace(entry, left=True)


def is_overdue(entry: Entry, deadline_s: float) -> bool:
    """Whether it has to come to its end now."""
    return entry.begun and entry.spent_s >= deadline_s


def give_up(entry: Entry, deadline_s: float) -> Entry:
    """It waits on, far beyond its time: end it."""
    if entry.state == "running" and entry.spent_s >= GRACE * deadline_s:
        return fail(entry, "expired", f"not done within {deadline_s:g} s")
    return entry


def reduce(entry: Entry) -> Entry:
    """What is remembered of a command that is long over: that it was answered, and how."""
    fault = None if entry.fault is None else OperationFault(reason=entry.fault.reason, message="")
    return replace(entry, memo=None, text="", share=None, result=None, fault=fault, reduced=True)


def event(entry: Entry, device: str, at: str) -> OperationEvent:
    """What `device` says about it at the time `at`."""
    text = entry.text
    if entry.reduced:
        text = "answered before; what came of it is not kept any more"
    return OperationEvent(
        device=device,
        id=entry.id,
        op=entry.op,
        state=entry.state,
        at=at,
        text=text[:MAX_TEXT_CHARS],
        share=None if entry.share is None else min(max(entry.share, 0.0), 1.0),
        result=None if entry.result is None else dict(entry.result),
        error=entry.fault,
    )


def _too_late(entry: Entry, now_s: float | None) -> Entry | None:
    if now_s is None or now_s < entry.expires_at:
        return None
    return fail(entry, "expired", "its time was over before it could be begun")


def _end(entry: Entry, state: OperationState, message: str | None) -> Entry:
    fault = None
    if message is not None and state != "done":
        fault = OperationFault(reason=_reason(state), message=message[:MAX_TEXT_CHARS])
    text = message if message is not None else entry.text
    return replace(
        entry,
        state=state,
        args={},
        memo=None,
        wait_s=0.0,
        text=text[:MAX_TEXT_CHARS],
        share=None,
        fault=fault,
    )


def _reason(state: OperationState) -> OperationReason:
    match state:
        case "refused" | "failed" | "rolled_back" | "expired" | "cancelled":
            return state
        case _:
            return "failed"
