"""The state machine of an update: what becomes of a change by an event, and which step is due then. Pure and total.

::

    idle > OFFERED > PREFLIGHT > FETCHING > VERIFIED > STAGED > [WAIT_WINDOW] > TRIAL > GATING > COMMITTED
           any of these: > REJECTED                                             any of these: > ROLLING_BACK
    ROLLING_BACK > ROLLED_BACK, or if that fails: > SAFE_MODE

What always holds:

* Before TRIAL nothing is done to the running release. From TRIAL on a failure takes the way back.
* COMMITTED settles only after a time of probation without a crash; until then it too can be taken back.
* Which step is due follows from the change alone (:func:`effect_of`), and each can be repeated: after a restart or an
  interruption it is simply taken again.
* A failure that is not the release's own is tried again, with growing pauses, until a deadline or a number of tries.
  Missing network only ever waits: its time does not count.
* An event that does not belong to the state changes nothing.

Left to others: which release to offer, journalling each change before the step that follows from it
(:mod:`edgeslm.agent.update.updater`), and the steps themselves (:mod:`edgeslm.agent.update.effects`).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from edgeslm.agent.update.change import (
    BEFORE_TRIAL,
    NEEDS_NETWORK,
    Abort,
    Change,
    Denial,
    Effect,
    Event,
    FactoryServed,
    Failed,
    Fault,
    Fetched,
    Fits,
    Found,
    Healthy,
    Installed,
    Judged,
    NotYet,
    Offer,
    Ready,
    Reconnected,
    RolledBack,
    Started,
    Supersede,
    Swapped,
    Tick,
    Tried,
    Wanted,
)
from edgeslm.errors import UpdateCause
from edgeslm.schema.update import Deadlines, UpdatePolicy, UpdateState, Verdict

_EFFECTS: Final[dict[UpdateState, Effect]] = {
    "offered": "find",
    "preflight": "check_fit",
    "fetching": "fetch",
    "verified": "install",
    "staged": "check_window",
    "wait_window": "check_window",
    "trial": "try",
    "gating": "measure",
    "committed": "commit",
    "rolling_back": "roll_back",
    "safe_mode": "serve_factory",
}

RELEASES_OWN: Final[frozenset[UpdateCause]] = frozenset(
    (
        "bad_package", "load_failed", "crashed", "hung", "out_of_memory", "under_voltage", "gate_failed",
        "unhealthy", "crash_loop", "aborted",
    )
)  # fmt: skip
"""Causes after which a release is not tried again: its own faults, and the wish of whoever aborted it."""

_MENDED_BY_TIME: Final[frozenset[UpdateCause]] = frozenset(
    ("no_room", "no_memory", "unreachable", "not_trusted")
)
_MENDED_BY_LUCK: Final[frozenset[UpdateCause]] = frozenset(("corrupt", "internal"))
"""Tried again a few times; :data:`_MENDED_BY_TIME` until the deadline; everything else not at all."""

_DEADLINES: Final[dict[UpdateState, str]] = {
    state: f"{state}_s" for state in (*BEFORE_TRIAL, "trial", "gating", "rolling_back")
} | {"committed": "commit_s"}


def effect_of(change: Change) -> Effect | None:
    """The step that is due; ``None`` while it waits, or where nothing is left to do."""
    if change.settled or change.wait_s > 0:
        return None
    if change.state == "committed" and change.swapped:
        return "watch"
    return _EFFECTS.get(change.state)


def serves(change: Change) -> str | None:
    """sha256 of the package that has to answer prompts in the state that `change` is in.

    ``None`` is the factory package, or nothing where the name is new.
    """
    if change.state == "committed":
        return change.wanted.sha256
    return None if change.state == "safe_mode" else change.base


def committed(change: Change) -> str | None:
    """As :func:`serves`, but of the package that is in force: a release that did not begin to serve yet is not."""
    if change.state == "committed" and not (change.swapped or change.settled):
        return change.base
    return serves(change)


def denial_of(change: Change) -> Denial | None:
    """What has to be remembered of a change that did not succeed."""
    if change.state not in {"rejected", "rolling_back", "rolled_back", "safe_mode"} or change.fault is None:
        return None
    cause = change.fault.cause
    # A package that rots on the card is none the worse for it.
    if cause == "superseded" or (cause == "damaged" and change.state == "safe_mode"):
        return None
    return Denial(
        name=change.name,
        sha256=change.wanted.sha256,
        version=change.wanted.version,
        cause=cause,
        assignment=change.wanted.assignment,
        for_good=cause in RELEASES_OWN,
        forced=change.wanted.force,
    )


def may_begin(wanted: Wanted, denial: Denial | None) -> bool:
    """Whether a release may be offered, given what is remembered of it."""
    if denial is None or (wanted.force and not denial.forced):
        return True
    return not denial.for_good and wanted.assignment > denial.assignment


def step(change: Change | None, event: Event, policy: UpdatePolicy) -> Change | None:
    """What becomes of `change` by `event`; ``None`` is a name that never changed."""
    if isinstance(event, Offer):
        return _offer(change, event)
    if change is None:
        return None
    if change.settled:
        return _disturb(change, event)
    match event:
        case Supersede():
            return _give_up(change, Fault("superseded", "a newer assignment wants something else"))
        case Abort(detail):
            return _give_up(change, Fault("aborted", detail))
        case Tick():
            return _tick(change, event, policy)
        case Reconnected() if change.state in NEEDS_NETWORK:
            # Spread over the first pause: all devices of a fleet may have been cut off by the same thing.
            return replace(change, wait_s=min(change.wait_s, policy.retry_s * change.jitter))
        case Started():
            return _start(replace(change, wait_s=0.0), event, policy)
        case Failed(fault):
            return _fail(change, fault, policy)
        case _:
            return _advance(change, event, policy)


# --- on the way ---------------------------------------------------------------------------------------------


def _offer(change: Change | None, event: Offer) -> Change:
    if change is None or change.settled or change.state == "safe_mode":
        return Change(number=event.number, wanted=event.wanted, base=event.base, jitter=event.jitter)
    # The same release may come with another window, and does come with every renewed assignment.
    return replace(change, wanted=event.wanted) if change.wanted.is_same_release(event.wanted) else change


def _enter(change: Change, state: UpdateState) -> Change:
    return replace(
        change, state=state, attempt=1, spent_s=0.0, wait_s=0.0, waits_for="", fault=None, settled=False
    )


def _advance(change: Change, event: Event, policy: UpdatePolicy) -> Change:
    if change.state in BEFORE_TRIAL:
        return _advance_before_trial(change, event)
    match change.state, event:
        case "trial", Tried():
            # Tries of trial and gate count together: each try at the gate needs a trial of its own.
            return replace(_enter(change, "gating"), attempt=change.attempt)
        case "gating", Judged(verdict):
            return _judged(replace(change, verdict=verdict), verdict, policy)
        case "committed", Swapped(swap_s) if not change.swapped:
            # After a restart the swap is repeated and takes no time; the first one is the figure.
            first_s = change.swap_s if change.swap_s is not None else swap_s
            return replace(change, swapped=True, swap_s=first_s, attempt=1)
        case "committed", NotYet(wait_s, _) if change.swapped:
            return replace(change, wait_s=wait_s)
        case "committed", Healthy() if change.swapped:
            return replace(change, settled=True, wait_s=0.0)
        case "rolling_back", RolledBack():
            return replace(change, state="rolled_back", settled=True, wait_s=0.0)
        case "safe_mode", FactoryServed():
            return replace(change, settled=True, wait_s=0.0)
        case _:
            return change


def _advance_before_trial(change: Change, event: Event) -> Change:
    match change.state, event:
        case "offered", Found(target):
            return replace(_enter(change, "preflight"), target=target)
        case "preflight", Fits():
            return _enter(change, "fetching")
        case "fetching", Fetched(file):
            return replace(_enter(change, "verified"), file=file)
        case "verified", Installed():
            return _enter(change, "staged")
        case "staged" | "wait_window", Ready(mode):
            return replace(_enter(change, "trial"), mode=mode, crashes=0)
        case "staged", NotYet(wait_s, detail):
            return replace(_enter(change, "wait_window"), wait_s=wait_s, waits_for=detail)
        case "wait_window", NotYet(wait_s, detail):
            return replace(change, wait_s=wait_s, waits_for=detail)
        case _:
            return change


def _judged(change: Change, verdict: Verdict, policy: UpdatePolicy) -> Change:
    if verdict.outcome == "fail":
        return _roll_back(change, Fault("gate_failed", _summary(verdict)))
    if verdict.outcome == "inconclusive" and policy.gate.inconclusive == "roll_back":
        return _roll_back(change, Fault("inconclusive", _summary(verdict)))
    return replace(_enter(change, "committed"), crashes=0)


def _summary(verdict: Verdict) -> str:
    blamed = [item for item in verdict.criteria if item.outcome == verdict.outcome]
    parts = []
    for item in blamed:
        change = "" if item.change is None else f" {item.change:+.1%}"
        limit = "" if item.limit is None else f" (limit {item.limit:.0%})"
        parts.append(f"{item.name}{change}{limit}" + (f": {item.note}" if item.note else ""))
    return "; ".join([*parts, *verdict.notes])[:500]


def _tick(change: Change, event: Tick, policy: UpdatePolicy) -> Change:
    counts = event.online or change.state not in NEEDS_NETWORK
    change = replace(
        change,
        spent_s=change.spent_s + (event.elapsed_s if counts else 0.0),
        served_s=change.served_s + (event.elapsed_s if change.swapped else 0.0),
        wait_s=max(0.0, change.wait_s - event.elapsed_s),
    )
    deadline_s = deadline_of(change, policy.deadlines)
    if deadline_s is None or change.spent_s <= deadline_s:
        return change
    waits = f"; waited for {change.waits_for}" if change.waits_for else ""
    last = f"; last: {change.fault.detail}" if change.fault is not None else ""
    fault = Fault("deadline", f"more than {deadline_s:g} s in {change.state}{waits}{last}"[:500])
    return _fail(change, fault, policy)


def deadline_of(change: Change, deadlines: Deadlines) -> float | None:
    """Most seconds that `change` may spend in its state; ``None`` is without end."""
    if change.state == "committed" and change.swapped:
        return None
    name = _DEADLINES.get(change.state)
    return None if name is None else float(getattr(deadlines, name))


# --- failures -----------------------------------------------------------------------------------------------


def _disturb(change: Change, event: Event) -> Change:
    """A change that was settled: what served well for long can still rot on the card."""
    if isinstance(event, Failed) and event.fault.cause == "damaged":
        return replace(_enter(change, "safe_mode"), fault=event.fault)
    return change


def _give_up(change: Change, fault: Fault) -> Change:
    if change.state in {"rolling_back", "safe_mode"}:
        return change
    return _reject(change, fault) if change.state in BEFORE_TRIAL else _roll_back(change, fault)


def _reject(change: Change, fault: Fault) -> Change:
    return replace(change, state="rejected", settled=True, wait_s=0.0, waits_for="", fault=fault)


def _roll_back(change: Change, fault: Fault) -> Change:
    return replace(_enter(change, "rolling_back"), swapped=False, fault=fault)


def _fail(change: Change, fault: Fault, policy: UpdatePolicy) -> Change:
    if change.state in BEFORE_TRIAL:
        return _fail_before_trial(change, fault, policy)
    if change.state == "rolling_back":
        if fault.cause in {"damaged", "deadline"} or change.attempt >= policy.max_attempts:
            return replace(_enter(change, "safe_mode"), fault=_also(change.fault, fault))
        return _again(change, change.fault or fault, policy)
    if change.state == "safe_mode":
        return _again(change, change.fault or fault, policy)
    luck = fault.cause in _MENDED_BY_LUCK | _MENDED_BY_TIME and change.attempt < policy.max_attempts
    if luck and change.state == "committed":
        return _again(change, fault, policy)
    if luck and change.mode != "swap":
        return _again(replace(change, state="trial"), fault, policy)
    return _roll_back(change, fault)


def _fail_before_trial(change: Change, fault: Fault, policy: UpdatePolicy) -> Change:
    if fault.cause == "corrupt":
        change = replace(change, corruptions=change.corruptions + 1)
        if change.corruptions >= policy.max_attempts:
            return _reject(change, fault)
        if change.state == "verified":
            change = replace(change, state="fetching", spent_s=0.0)
        return _again(change, fault, policy)
    few = fault.cause in _MENDED_BY_LUCK and change.attempt < policy.max_attempts
    return _again(change, fault, policy) if few or fault.cause in _MENDED_BY_TIME else _reject(change, fault)


def _again(change: Change, fault: Fault, policy: UpdatePolicy) -> Change:
    """The same step once more, after a pause."""
    pause_s = min(policy.retry_s * 2.0 ** min(change.attempt - 1, 30), policy.max_retry_s)
    pause_s *= 1.0 + 0.5 * change.jitter
    if fault.retry_after_s is not None:
        pause_s = min(max(pause_s, fault.retry_after_s), policy.max_retry_s)
    return replace(change, attempt=change.attempt + 1, wait_s=pause_s, fault=fault)


def _also(first: Fault | None, then: Fault) -> Fault:
    """The fault that began it, with what went wrong on the way back."""
    if first is None:
        return then
    return Fault(first.cause, f"{first.detail[:240]}; going back failed too: {then.detail[:240]}")


# --- restarts -----------------------------------------------------------------------------------------------


def _start(change: Change, event: Started, policy: UpdatePolicy) -> Change:
    own_crash = event.crashed and not event.rebooted
    short = event.ran_s < policy.short_run_s
    if change.state in BEFORE_TRIAL:
        crashes = change.crashes + 1 if own_crash and short else 0
        if crashes >= policy.max_crashes:
            return _reject(change, Fault("internal", f"the agent crashed {crashes} times in {change.state}"))
        return replace(change, crashes=crashes)
    if change.state in {"trial", "gating"}:
        return _start_in_trial(change, event, policy)
    if change.state == "committed":
        return _start_in_probation(change, own_crash, event.crashed and event.rebooted and short, policy)
    if not event.crashed:
        return change
    if change.state == "rolling_back" and change.attempt >= policy.max_attempts:
        fault = Fault("crash_loop", f"{change.attempt} crashes while going back")
        return replace(_enter(change, "safe_mode"), fault=_also(change.fault, fault))
    return replace(change, attempt=change.attempt + 1)


def _start_in_trial(change: Change, event: Started, policy: UpdatePolicy) -> Change:
    crashes = change.crashes + event.crashed
    if change.mode == "swap" and event.crashed and not event.rebooted:
        return _roll_back(change, Fault("crashed", "the agent crashed while it served the candidate"))
    if crashes >= policy.max_crashes:
        return _roll_back(change, Fault("crash_loop", f"{crashes} trials ended by a crash or a power cut"))
    # What was measured is gone with the process: the trial begins anew.
    return replace(change, state="trial", spent_s=0.0, crashes=crashes)


def _start_in_probation(change: Change, crashed: bool, cut_short: bool, policy: UpdatePolicy) -> Change:
    crashes, reboots = change.crashes + crashed, change.reboots + cut_short
    if crashes >= policy.max_crashes or reboots >= policy.max_reboots:
        what = f"{crashes} crashes and {reboots} power cuts soon after a start"
        return _roll_back(change, Fault("crash_loop", f"{what} since the commit"))
    served_s = 0.0 if crashed else change.served_s
    return replace(change, swapped=False, crashes=crashes, reboots=reboots, spent_s=0.0, served_s=served_s)
