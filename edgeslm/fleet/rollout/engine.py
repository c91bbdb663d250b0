"""Decides what happens next to a rollout, from what the store and the devices say. Pure, and without a memory.

::

    running > (wave done) > [waiting for approval] > running ... > completed
    running > paused (too many failures, nothing decided, or by hand) > running
    running | paused | waiting > returning (the release is at fault, or by hand) > aborted

What always holds:

* The same state and reports give the same decisions, and what is written down is not decided again.
* A wave begins only after `k` devices of each type of board passed their gate, as far as there are that many; a device
  that is in quarantine counts neither way, and one that stays silent counts as failed.
* Whether the release is worse is decided on what the gates of several devices measured together
  (:mod:`edgeslm.fleet.rollout.evidence`); one gate that fails alone asks for another device of its type, or where
  there is none for another try, and stops nothing.
* A device that is pinned is neither asked nor sent back.

Left to others: writing decisions down (:mod:`edgeslm.fleet.rollout.writing`), and when to ask
(:mod:`edgeslm.fleet.rollout.controller`).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

from edgeslm.fleet.rollout.evidence import Pooled, is_worse, pool, too_many_fails, would_decide
from edgeslm.fleet.rollout.observing import observe
from edgeslm.fleet.rollout.state import (
    Advance,
    Again,
    Ask,
    Circumstances,
    Decision,
    Draw,
    Enter,
    Member,
    Note,
    Return,
    RolloutState,
    Seen,
)
from edgeslm.schema.rollout import FAILURES, FINISHED, Figure, RolloutPlan

RELEASE_FAULTS: Final = frozenset(
    (
        "bad_package",
        "load_failed",
        "crashed",
        "hung",
        "out_of_memory",
        "under_voltage",
        "unhealthy",
        "crash_loop",
    )
)
"""Causes that speak against the release; all others speak against the device, its place or its network."""
GATE_CAUSES: Final = frozenset(("gate_failed", "inconclusive"))
_OVER: Final = frozenset(("skipped", "superseded"))
_WENT_ALONG: Final = frozenset(("asked", "passed", "unproven", "failed", "silent"))
_NOTHING = Circumstances()


def decide(
    plan: RolloutPlan,
    state: RolloutState,
    seen: Mapping[str, Seen],
    now: datetime,
    around: Circumstances = _NOTHING,
) -> list[Decision]:
    """What to do now.

    Args:
        plan: what the operator asked for.
        state: the rollout as the store has it.
        seen: reports of devices that may say something new; others may be left out.
        now: the present time.
        around: what else matters.
    """
    decisions: list[Decision] = []
    members = []
    for member in state.members:
        note = _note(state, member, seen, now, around)
        if note is not None:
            decisions.append(note)
            member = _noted(member, note)  # noqa: PLW2901 - what is decided below rests on it
        members.append(member)
    if state.phase == "returning":
        decisions += _send_back(plan, replace(state, members=tuple(members)), now, around)
    elif state.phase == "running":
        decisions += _go_on(plan, replace(state, members=tuple(members)), now, around)
    return decisions


# --- devices ------------------------------------------------------------------------------------------------


def _note(
    state: RolloutState, member: Member, seen: Mapping[str, Seen], now: datetime, around: Circumstances
) -> Note | None:
    report = seen.get(member.device)
    note = observe(member, report, state.sha256) if report is not None else None
    if note is not None and note.status == "superseded" and state.phase in FINISHED:
        return None  # what runs there later takes nothing from what the rollout came to
    if note is not None:
        return note
    pinned = around.pinned.get(member.device)
    if member.status == "waiting" and state.phase not in FINISHED and pinned is not None:
        return Note(member.device, "skipped", None, f"pinned: {pinned}")
    if (
        member.status in {"asked", "returning"}
        and member.deadline_at is not None
        and now >= member.deadline_at
    ):
        if member.status == "asked":
            at = f", last seen in {member.detail}" if member.detail else ""
            return Note(member.device, "silent", None, f"not done in time{at}", member.figures)
        return Note(member.device, "stuck", member.cause, member.detail or "not back in time", member.figures)
    return None


def _noted(member: Member, note: Note) -> Member:
    return replace(
        member,
        status=note.status,
        cause=note.cause,
        detail=note.detail,
        figures=note.figures or member.figures,
    )


def _send_back(
    plan: RolloutPlan, state: RolloutState, now: datetime, around: Circumstances
) -> list[Decision]:
    """Each device that was asked runs again what it ran before; the others are let alone."""
    decisions: list[Decision] = []
    under_way = False
    for member in state.members:
        if member.status == "waiting":
            decisions.append(Note(member.device, "skipped", None, "the rollout was taken back before"))
        elif member.status in _WENT_ALONG and member.device in around.pinned:
            decisions.append(Note(member.device, "stuck", None, f"pinned: {around.pinned[member.device]}"))
        elif member.status in _WENT_ALONG:
            decisions.append(Return(member.device, now + timedelta(seconds=plan.deadline_s)))
            under_way = True
        elif member.status == "returning":
            under_way = True
    if not under_way:
        stuck = sum(member.status == "stuck" for member in state.members)
        left = [f"{stuck} could not be taken back"] if stuck else []
        decisions.append(Enter("aborted", "; ".join([state.reason, *left] if state.reason else left)))
    return decisions


# --- waves --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Wave:
    """What of a rollout counts for its present wave.

    Attributes:
        present: devices of this wave that count.
        so_far: of all waves up to this one.
        ahead: devices of later waves.
    """

    present: tuple[Member, ...]
    so_far: tuple[Member, ...]
    ahead: tuple[Member, ...]


def _go_on(plan: RolloutPlan, state: RolloutState, now: datetime, around: Circumstances) -> list[Decision]:
    decisions: list[Decision] = []
    for member in state.members:
        if member.wave <= state.wave and member.status == "waiting" and member.device not in around.blocked:
            decisions.append(_ask(plan, member, now))
    believed = [
        member
        for member in state.members
        if member.status not in _OVER and member.device not in around.quarantined
    ]
    wave = _Wave(
        tuple(one for one in believed if one.wave == state.wave),
        tuple(one for one in believed if one.wave <= state.wave),
        tuple(one for one in believed if one.wave > state.wave and one.status == "waiting"),
    )
    verdict = _stop(plan, state, wave)
    if verdict is not None:
        # Who was about to be asked is not, and nothing else is to be undone.
        return [verdict]
    return decisions + _promote(plan, state, wave, around)


def _ask(plan: RolloutPlan, member: Member, now: datetime) -> Ask:
    window = plan.window.next(now) if plan.window is not None else None
    deadline_at = (now if window is None else max(now, window.opens_at)) + timedelta(seconds=plan.deadline_s)
    if window is not None:
        deadline_at = max(deadline_at, window.closes_at)
    return Ask(member.device, deadline_at, window, force=plan.force or member.force)


def _stop(plan: RolloutPlan, state: RolloutState, wave: _Wave) -> Enter | None:
    """Why the rollout cannot go on, if it cannot."""
    accepted = state.accepted_wave == state.wave
    if not (accepted and plan.on_failure == "pause"):
        found = _at_fault(wave)
        if found is not None:
            return _blame(plan, found)
        answers = _slips(wave)
        if answers is not None and not accepted:
            return Enter("paused", answers)
    failed = [member for member in wave.present if member.status in FAILURES]
    hard = [member for member in failed if member.cause not in GATE_CAUSES]
    allowed = _allowed(plan, len(wave.present)) + (state.accepted_failures if accepted else 0)
    own = [member for member in hard if member.cause in RELEASE_FAULTS]
    if len(own) > allowed:
        return _blame(plan, f"{len(own)} of {len(wave.present)} devices failed: {_causes(own)}")
    if len(hard) > allowed:
        return Enter("paused", f"{len(hard)} of {len(wave.present)} devices failed: {_causes(hard)}")
    return None


def _at_fault(wave: _Wave) -> str | None:
    """How the gates together say that the release is worse."""
    judged = [member for member in wave.so_far if member.figures or member.trials]
    gates = [member for member in judged if member.cause == "gate_failed" and member.status in FAILURES]
    if not gates:
        return None
    for board, group in [(None, judged), *sorted(_by_board(judged).items())]:
        worse = is_worse(pool(_trials(group)))
        if worse is not None:
            return _worse(worse, board)
        failed = sum(member in gates for member in group)
        if too_many_fails(failed, len(group)):
            return f"{failed} of {len(group)} gates failed{_on(board)}, more than chance explains"
    return None


def _promote(plan: RolloutPlan, state: RolloutState, wave: _Wave, around: Circumstances) -> list[Decision]:
    """What follows for the wave as a whole: more devices, a pause, the next wave, the end."""
    is_last = not any(one.wave > state.wave and one.status == "waiting" for one in state.members)
    pending = [one for one in wave.present if one.status in {"waiting", "asked"}]
    passed = [one for one in wave.present if one.status == "passed"]
    early = not is_last and len(passed) >= plan.success * len(wave.present) and len(passed) > 0
    lacking = _lacking(plan, wave)
    missing = _missing(plan, wave)
    accepted = state.accepted_wave == state.wave
    contested = set() if accepted else _contested(wave)
    if pending and not (early and not lacking and not missing):
        # Others take the place of devices whose gate failed while the rest of the wave is still under way.
        return _draw(plan, state, wave, {}, contested, around)
    if not accepted:
        drawn = _draw(plan, state, wave, lacking, contested, around)
        if drawn:
            return drawn
        if lacking or missing or contested:
            return [Enter("paused", _undecided(wave, lacking, contested, missing))]
    if is_last:
        failed = sum(member.status in FAILURES for member in state.members)
        left = f"{failed} of {len(state.members)} devices failed" if failed else ""
        return [] if _still_under_way(state) else [Enter("completed", left)]
    if plan.approve and state.approved <= state.wave:
        return [Enter("waiting", f"wave {state.wave + 2} waits for approval")]
    return [Advance(state.wave + 1)]


def _still_under_way(state: RolloutState) -> bool:
    """Whether somebody who does not count is under way: quarantined, or asked in an earlier wave."""
    return any(member.status in {"waiting", "asked"} for member in state.members)


def _lacking(plan: RolloutPlan, wave: _Wave) -> dict[str, int]:
    """Passed gates that are still needed, by type of board."""
    everywhere = Counter(member.board for member in (*wave.so_far, *wave.ahead))
    passed = Counter(member.board for member in wave.so_far if member.status == "passed")
    proofless = Counter(
        member.board for member in wave.so_far if member.status == "unproven" and not member.figures
    )
    # What ran the release before it was asked cannot prove it, and need not.
    needed = {board: min(plan.k, count - proofless[board]) for board, count in everywhere.items()}
    return {board: need - passed[board] for board, need in needed.items() if passed[board] < need}


def _contested(wave: _Wave) -> set[str]:
    """Types of board of which a gate failed, or nearly did, and nothing that was measured confirms or refutes it."""
    found = set()
    for board, members in _by_board(wave.so_far).items():
        if any(one.status in {"waiting", "asked"} for one in members):
            continue
        failed = any(one.status == "failed" and one.cause == "gate_failed" for one in members)
        trials = _trials(members)
        pooled = pool(trials)
        leans = any(one.verdict == "open" and one.leans_worse for one in pooled)
        slips = any(one.criterion == "answers" and one.verdict == "worse" for one in pooled)
        if (failed and (leans or len(trials) < 2)) or (slips and len(trials) < 2):
            found.add(board)
    return found


def _slips(wave: _Wave) -> str | None:
    """Answers that went wrong on every device, too few for each gate to fail and many together."""
    judged = [member for member in wave.so_far if member.figures and member.status == "passed"]
    worse = is_worse(one for one in pool(_trials(judged)) if one.criterion == "answers")
    if worse is None:
        return None
    return f"{_worse(worse, None)}: no device fails by that, but it is more than half the limit"


def _draw(
    plan: RolloutPlan,
    state: RolloutState,
    wave: _Wave,
    lacking: Mapping[str, int],
    contested: set[str],
    around: Circumstances,
) -> list[Decision]:
    """Devices of later waves that are to join, or else to try once more, so that something can be decided."""
    wanted = {**dict.fromkeys(sorted(contested), 1), **lacking}
    drawn = Counter(member.board for member in state.members if member.spare)
    asked = {member.board for member in wave.so_far}
    decisions: list[Decision] = []
    for member in wave.ahead:
        limit = plan.spares + (0 if member.board in asked else plan.k)
        free = member.device not in around.blocked and member.device not in around.pinned
        if free and wanted.get(member.board, 0) > 0 and drawn[member.board] < limit:
            wanted[member.board] -= 1
            drawn[member.board] += 1
            decisions.append(Draw(member.device, state.wave))
    taken = {member.board for member in wave.ahead}
    for member in wave.so_far:
        can_try = member.status == "failed" and member.cause == "gate_failed" and member.figures
        alone = member.board in contested and member.board not in taken and wanted.get(member.board, 0) > 0
        if can_try and alone and len(member.trials) < plan.spares and member.device not in around.pinned:
            wanted[member.board] -= 1
            decisions.append(Again(member.device))
    return decisions


# --- words --------------------------------------------------------------------------------------------------


def _missing(plan: RolloutPlan, wave: _Wave) -> tuple[str, ...]:
    """What has to be measured, and was on no device."""
    measured = {
        figure.name for member in wave.so_far for figure in member.figures if figure.outcome != "not_measured"
    }
    if not any(member.figures for member in wave.so_far):
        return ()
    return tuple(name for name in plan.require if name not in measured)


def _undecided(wave: _Wave, lacking: Mapping[str, int], contested: set[str], missing: Sequence[str]) -> str:
    parts = [
        f"{count} more {board} has to pass its gate"
        if count == 1
        else f"{count} more {board} have to pass their gates"
        for board, count in sorted(lacking.items())
    ]
    parts += [
        f"{name} was measured on no device: a device with a meter that measures would decide"
        if name == "energy"
        else f"{name} was measured on no device"
        for name in missing
    ]
    for board in sorted({*lacking, *contested}):
        group = [member for member in wave.so_far if member.board == board]
        opens = [one for one in pool(_trials(group)) if one.verdict == "open"]
        parts += [f"{board}: {would_decide(one)}" for one in opens]
        parts += [f"{one.device}: {one.detail}" for one in group if one.status in FAILURES][:1]
    return "nothing is decided: " + "; ".join(parts)


def _worse(worse: Pooled, board: str | None) -> str:
    return (
        f"{worse.criterion} is worse by {worse.change:.1%} ({worse.low:.1%} to {worse.high:.1%}, limit "
        f"{worse.limit:.0%}) on {worse.devices} devices{_on(board)}"
    )


def _on(board: str | None) -> str:
    return f" of type {board}" if board is not None else ""


def _blame(plan: RolloutPlan, why: str) -> Enter:
    return Enter("returning" if plan.on_failure == "return" else "paused", why)


def _allowed(plan: RolloutPlan, devices: int) -> int:
    return plan.max_failures if plan.max_failures is not None else int(plan.max_failures_share * devices)


def _causes(members: Sequence[Member]) -> str:
    found = Counter(member.cause or member.status for member in members)
    return ", ".join(f"{count} {cause}" for cause, count in found.most_common())


def _trials(members: Iterable[Member]) -> list[tuple[Figure, ...]]:
    """What was measured, one after another: a device that tried again counts once for each try."""
    found: list[tuple[Figure, ...]] = []
    for member in members:
        found += member.trials
        if member.figures:
            found.append(member.figures)
    return found


def _by_board(members: Iterable[Member]) -> dict[str, list[Member]]:
    found: dict[str, list[Member]] = defaultdict(list)
    for member in members:
        found[member.board].append(member)
    return found
