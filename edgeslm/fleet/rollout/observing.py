"""What a report says about a device of a rollout. Pure.

What always holds: only what a device did under the assignment that the rollout gave it counts, never an older change
of the same release; a report that says nothing new changes nothing, so one that comes twice, late or in another order
does no harm.
"""

from __future__ import annotations

from edgeslm.fleet.rollout.state import Member, Note, Seen
from edgeslm.schema.rollout import LARGEST_CHANGE, LEAST_CHANGE, MAX_PROMPTS, Figure
from edgeslm.schema.update import ReportedChange, Verdict

_ASKED = frozenset(("asked", "silent", "failed", "passed", "unproven"))
_SENT_BACK = frozenset(("returning", "stuck"))
_MAX_DETAIL_CHARS = 500
_MAX_CRITERIA = 16


def observe(member: Member, seen: Seen, sha256: str) -> Note | None:
    """What to write down about `member`; ``None`` if `seen` tells nothing new.

    Args:
        member: as the store has it.
        seen: its latest report.
        sha256: of the package that the rollout brings.
    """
    if member.seq == 0 or seen.assignment < member.seq:
        return None
    if member.status in _ASKED:
        note = _under_way(member, seen, sha256)
    elif member.status in _SENT_BACK:
        note = _on_the_way_back(member, seen, sha256)
    else:
        return None
    if note is None or _is_known(member, note):
        return None
    return note


def _is_known(member: Member, note: Note) -> bool:
    if member.status == "silent" and note.status == "asked":
        return True  # it is late, whatever it says meanwhile; only how it ends counts
    return (member.status, member.cause, member.detail) == (note.status, note.cause, note.detail)


def _under_way(member: Member, seen: Seen, sha256: str) -> Note | None:
    change = seen.change
    if change is None or change.sha256 != sha256 or change.assignment < member.seq:
        if seen.sha256 == sha256 and member.status in {"passed", "unproven"}:
            return None
        if seen.sha256 == sha256:
            return Note(member.device, "unproven", None, "it ran the release already", member.figures)
        if member.status in {"passed", "unproven"}:
            return Note(member.device, "superseded", None, f"it runs {seen.version or 'nothing'} by now")
        if change is not None and change.sha256 != sha256 and change.assignment > member.seq:
            return Note(member.device, "superseded", None, f"it was told to run {change.version} meanwhile")
        return None
    if not change.settled:
        # A new try after a failure that time may mend.
        return Note(member.device, "asked", None, _progress(change))
    figures = figures_of(change.verdict) if change.verdict is not None else ()
    if change.state == "committed":
        verdict = change.verdict
        if verdict is not None and verdict.outcome == "pass":
            return Note(member.device, "passed", None, "", figures)
        why = "no verdict" if verdict is None else f"the gate says {verdict.outcome}"
        return Note(member.device, "unproven", None, why, figures)
    if change.fault is not None and change.fault.cause == "superseded":
        return Note(member.device, "superseded", None, change.fault.detail)
    cause, detail = (
        ("internal", change.state) if change.fault is None else (change.fault.cause, change.fault.detail)
    )
    return Note(member.device, "failed", cause, f"{change.state}: {detail}"[:_MAX_DETAIL_CHARS], figures)


def _on_the_way_back(member: Member, seen: Seen, sha256: str) -> Note | None:
    change = seen.change
    if change is not None and not change.settled:
        return None
    if seen.sha256 == member.base_sha256:
        return Note(member.device, "returned", member.cause, member.detail, member.figures)
    if (
        change is not None
        and change.assignment >= member.seq
        and change.sha256 == member.base_sha256
        and change.fault is not None
    ):
        detail = f"{change.state}: {change.fault.detail}"[:_MAX_DETAIL_CHARS]
        return Note(member.device, "stuck", change.fault.cause, detail, member.figures)
    if member.base_sha256 is None and seen.sha256 == sha256:
        return Note(member.device, "stuck", None, "nothing ran there before", member.figures)
    return None


def figures_of(verdict: Verdict) -> tuple[Figure, ...]:
    """What of a verdict counts when several are taken together; what cannot be is left out, as if not measured."""
    return tuple(
        Figure(
            name=one.name,
            outcome=one.outcome,
            change=_sound(one.change),
            low=_sound(one.low),
            high=_sound(one.high),
            limit=_sound(one.limit),
            prompts=min(max(verdict.prompts, 0), MAX_PROMPTS),
        )
        for one in verdict.criteria[:_MAX_CRITERIA]
    )


def _sound(share: float | None) -> float | None:
    return share if share is not None and LEAST_CHANGE <= share <= LARGEST_CHANGE else None


def _progress(change: ReportedChange) -> str:
    """How far a device is, and what keeps it: nothing that changes with time alone, so that it is written seldom."""
    text = change.state.replace("_", " ")
    if change.state == "committed":
        # It swaps first; how long it then serves without a crash before it counts is the device's own policy.
        text = "committed, swapping" if change.swap_s is None else "committed, on probation"
    if change.attempt > 1:
        text += f", try {change.attempt}"
    if change.fault is not None:
        text += f" after {change.fault.cause}: {change.fault.detail}"
    if change.waits_for:
        text += f", waits for {change.waits_for}"
    return text[:_MAX_DETAIL_CHARS]
