"""Decisions about rollouts, written down.

What always holds: decisions, the assignments that follow from them and the audit log are one transaction, which the
caller commits; an assignment leaves only after the transaction that numbers it, as the table of what is desired is the
outbox (:mod:`edgeslm.fleet.rollout.outbox`).

Functions take a session of the store and commit nothing themselves.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import and_, bindparam, select, update
from sqlalchemy.orm import Session

from edgeslm.errors import (
    DeviceStateError,
    DowngradeError,
    SecurityFloorError,
    UpdateCause,
    UpdateError,
    UsageError,
)
from edgeslm.fleet.assignments import assigned_key, reported_key
from edgeslm.fleet.registry import audit, note_event
from edgeslm.fleet.rollout.assigner import Assigner
from edgeslm.fleet.rollout.records import CONTROLLER, JUDGED, Loaded, subject
from edgeslm.fleet.rollout.state import (
    Advance,
    Again,
    Ask,
    Decision,
    Draw,
    Enter,
    Note,
    Return,
)
from edgeslm.fleet.store.models import Base, FactRow
from edgeslm.fleet.store.rollouts import DesiredRow, MemberRow, RolloutRow
from edgeslm.schema.rollout import FINISHED

_MAX_REASON_CHARS = 2000


def write(
    session: Session,
    loaded: Loaded,
    decisions: Iterable[Decision],
    assigner: Assigner,
    now: datetime,
    *,
    stamps: Mapping[str, int],
    most: int,
) -> int:
    """Write decisions down, with the assignments that follow.

    Args:
        loaded: what they were made about.
        assigner: makes assignments.
        now: the present time.
        stamps: of the reports that were judged, by device.
        most: assignments to make at most; what is left over is decided again.

    Returns:
        How many assignments were made.

    Raises:
        AssignmentError: devices would not follow what this key signs.
    """
    made = 0
    judged = dict(stamps)
    notes: list[Note] = []
    decisions = list(decisions)
    asked = [one.device for one in decisions if isinstance(one, Ask | Return)][:most]
    _kept = _read_ahead(session, loaded, asked) if asked else []
    for decision in decisions:
        match decision:
            case Note():
                notes.append(decision)
            case Ask() | Return():
                if made >= most:
                    continue
                made += 1
                judged.pop(decision.device, None)
                with session.no_autoflush:
                    refused = _assign(session, loaded, decision, assigner, now)
                if refused is not None:
                    notes.append(refused)
            case Draw(device, wave):
                _set(session, loaded, device, wave=wave, spare=True)
            case Again(device):
                _set(session, loaded, device, status="waiting", force=True, cause=None, detail="once more")
            case Advance(wave):
                loaded.row.wave, loaded.row.changed_at = wave, now
                loaded.row.reason = ""
                text = f"wave {wave + 1} of {len(loaded.plan.waves)}"
                note_event(session, subject(loaded.row.id), "rollout", text, now)
            case Enter():
                enter(session, loaded.row, decision, CONTROLLER, now)
    _note(session, loaded, notes)
    _stamp(session, loaded, judged)
    return made


def _read_ahead(session: Session, loaded: Loaded, devices: Sequence[str]) -> list[Base]:
    """Read in one go what assignments of devices rest on; the session knows it for as long as the caller keeps it."""
    ids = [loaded.ids[device] for device in devices]
    keys = [key(number) for number in ids for key in (assigned_key, reported_key)]
    return [
        *session.scalars(
            select(MemberRow).where(MemberRow.rollout_id == loaded.row.id, MemberRow.device_id.in_(ids))
        ),
        *session.scalars(select(DesiredRow).where(DesiredRow.device_id.in_(ids))),
        *session.scalars(select(FactRow).where(FactRow.key.in_(keys))),
    ]


def enter(session: Session, row: RolloutRow, to: Enter, actor: str, now: datetime) -> None:
    """Bring a rollout to a phase; who did it and why is kept."""
    reason = to.reason[:_MAX_REASON_CHARS]
    row.phase, row.reason, row.changed_at = to.phase, reason, now
    row.paused_by = actor if to.phase == "paused" and actor != CONTROLLER else None
    row.finished_at = now if to.phase in FINISHED else None
    label = f"{row.name}@{row.version}"
    audit(session, actor, f"rollout-{to.phase}", subject(row.id), now, release=label, reason=reason)
    bad = to.phase in {"paused", "returning", "aborted"}
    text = f"{label} {to.phase}{f': {reason}' if reason else ''}"
    note_event(session, subject(row.id), "rollout", text, now, severity="warning" if bad else "info")


def _assign(
    session: Session, loaded: Loaded, decision: Ask | Return, assigner: Assigner, now: datetime
) -> Note | None:
    """Ask a device, or send it back; a note where that cannot be."""
    row, device = loaded.row, decision.device
    member = session.get_one(MemberRow, (row.id, loaded.ids[device]))
    try:
        if isinstance(decision, Ask):
            given = assigner.give(
                session, device, row.name, row.sha256, now,
                allow_downgrade=loaded.plan.allow_downgrade, force=decision.force, window=decision.window,
            )  # fmt: skip
            if given.is_known and given.base_sha256 != row.sha256:
                member.base_version, member.base_sha256 = given.base_version, given.base_sha256
            member.status, member.cause, member.detail = "asked", None, ""
        else:
            given = assigner.send_back(session, device, row.name, member.base_sha256, now)
            member.status, member.detail = "returning", given.doubt or member.detail
    except (UpdateError, SecurityFloorError, DowngradeError, DeviceStateError, UsageError) as error:
        if isinstance(error, DeviceStateError):
            return Note(device, "skipped", None, error.message)
        if isinstance(error, UsageError):  # a device that says impossible numbers gets no assignment
            cause: UpdateCause = "internal"
        else:
            cause = error.cause if isinstance(error, UpdateError) else "unsafe_version"
        return Note(device, "failed" if isinstance(decision, Ask) else "stuck", cause, error.message)
    member.seq, member.deadline_at = given.seq, decision.deadline_at
    # What is reported already may be all that there is to say.
    member.seen_stamp = -1
    return None


def _set(session: Session, loaded: Loaded, device: str, **values: Any) -> None:
    member = session.get_one(MemberRow, (loaded.row.id, loaded.ids[device]))
    for name, value in values.items():
        setattr(member, name, value)


def _note(session: Session, loaded: Loaded, notes: Sequence[Note]) -> None:
    session.flush()
    by_device = {member.device: member for member in loaded.state.members}
    plain, measured = [], []
    for note in notes:
        values: dict[str, Any] = {
            "b_rollout": loaded.row.id,
            "b_device": loaded.ids[note.device],
            "b_status": note.status,
            "b_cause": note.cause,
            "b_detail": note.detail,
        }
        if note.figures and note.status in JUDGED:
            trials = (*by_device[note.device].trials, note.figures)
            kept = [[one.model_dump(exclude_none=True) for one in trial] for trial in trials]
            measured.append(values | {"b_figures": {"trials": kept}})
        else:
            plain.append(values)
    connection = session.connection()
    if plain:
        connection.execute(update_members("status", "cause", "detail"), plain)
    if measured:
        connection.execute(update_members("status", "cause", "detail", "figures"), measured)
    session.expire_all()


def _stamp(session: Session, loaded: Loaded, stamps: Mapping[str, int]) -> None:
    if stamps:
        session.connection().execute(
            update_members("seen_stamp"),
            [
                {"b_rollout": loaded.row.id, "b_device": loaded.ids[device], "b_seen_stamp": stamp}
                for device, stamp in stamps.items()
            ],
        )


def update_members(*columns: str) -> Any:
    """A statement that sets columns of devices of rollouts: ``b_rollout``, ``b_device`` and ``b_<column>`` for each."""
    return (
        update(MemberRow.__table__)  # type: ignore[arg-type]
        .where(
            and_(MemberRow.rollout_id == bindparam("b_rollout"), MemberRow.device_id == bindparam("b_device"))
        )
        .values({column: bindparam(f"b_{column}") for column in columns})
    )
