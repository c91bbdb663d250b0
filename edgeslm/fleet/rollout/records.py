"""Rollouts in the store: begun, read for a decision, and decisions written down.

What always holds: decisions, the assignments that follow from them and the audit log are one transaction, which the
caller commits; a device gives its place in an older rollout of the same name up in the transaction that begins the
newer; an assignment leaves only after the transaction that numbers it (the table of what is desired is the outbox).

Functions take a session of the store and commit nothing themselves.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVarTuple, cast

from sqlalchemy import Select, and_, bindparam, select, update
from sqlalchemy.orm import Session, aliased

from edgeslm.errors import DeviceStateError, DowngradeError, RolloutError, SecurityFloorError, UpdateError
from edgeslm.fleet.assignments import last_reported, reported_key
from edgeslm.fleet.registry import audit, need_device, note_event
from edgeslm.fleet.rollout.assigner import Assigner
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
from edgeslm.fleet.store.models import DeviceRow, FactRow
from edgeslm.fleet.store.rollouts import MemberRow, PinRow, ReportRow, RolloutRow
from edgeslm.schema.assignment import UpdateWindow
from edgeslm.schema.release import ReleaseInfo
from edgeslm.schema.rollout import FINISHED, UNSETTLED, Figure, MemberStatus, Phase, RolloutPlan

_Columns = TypeVarTuple("_Columns")

CONTROLLER = "controller"
_LIVE = ("asked", "silent", "failed", "passed", "unproven", "returning", "stuck")
_JUDGED = frozenset(("passed", "unproven", "failed"))
_MAX_REASON_CHARS = 2000
_BATCH = 500


@dataclass(frozen=True)
class NewMember:
    """A device that a rollout begins with.

    Attributes:
        wave: counted from 0.
        base_version: what it runs now, as far as that is known.
    """

    device: str
    board: str
    wave: int
    base_version: str | None = None
    base_sha256: str | None = None


@dataclass(frozen=True)
class Loaded:
    """A rollout, read for a decision.

    Attributes:
        ids: number of each device by its name.
    """

    row: RolloutRow
    plan: RolloutPlan
    state: RolloutState
    ids: Mapping[str, int]


def subject(rollout_id: int) -> str:
    """How the audit log and events name a rollout."""
    return f"rollout-{rollout_id}"


# --- begun --------------------------------------------------------------------------------------------------


def begin(
    session: Session,
    plan: RolloutPlan,
    release: ReleaseInfo,
    members: Sequence[NewMember],
    *,
    actor: str,
    now: datetime,
) -> int:
    """Write a rollout down; whoever holds the lease carries it out.

    Returns:
        Its number.

    Raises:
        RolloutError: there are no devices, or some of them take the same release by another rollout already.
        UnknownDeviceError: there is no such device.
    """
    if not members:
        raise RolloutError("no device is left that could take the release")
    ids = dict(session.execute(select(DeviceRow.name, DeviceRow.id)).all())
    missing = next((member.device for member in members if member.device not in ids), None)
    if missing is not None:
        need_device(session, missing)
    row = RolloutRow(
        name=release.name,
        version=release.version,
        sha256=release.sha256,
        plan=plan.model_dump(mode="json"),
        phase="running",
        created_at=now,
        created_by=actor,
        changed_at=now,
    )
    older = session.scalars(
        select(RolloutRow).where(RolloutRow.name == release.name, RolloutRow.phase.not_in(FINISHED))
    ).all()
    for other in older:
        if other.sha256 == release.sha256 and _shared(session, other, ids, members):
            raise RolloutError(
                f"rollout {other.id} brings {release.name}@{release.version} to some of these devices already",
                rollout=str(other.id), hint=f"See: edgeslm fleet rollout show {other.id}",
            )  # fmt: skip
    session.add(row)
    session.flush()
    session.execute(
        MemberRow.__table__.insert(),  # type: ignore[attr-defined]
        [
            {
                "rollout_id": row.id,
                "device_id": ids[member.device],
                "board": member.board,
                "wave": member.wave,
                "spare": False,
                "force": False,
                "status": "waiting",
                "detail": "",
                "seq": 0,
                "base_version": member.base_version,
                "base_sha256": member.base_sha256,
                "seen_stamp": 0,
            }
            for member in members
        ],
    )
    for other in older:
        _supersede(session, other, row.id, _shared(session, other, ids, members), now)
    audit(
        session, actor, "rollout-begin", subject(row.id), now,
        release=f"{release.name}@{release.version}", devices=len(members),
        waves=", ".join(str(wave) for wave in plan.waves), note=plan.note,
    )  # fmt: skip
    return row.id


def _shared(
    session: Session, other: RolloutRow, ids: Mapping[str, int], members: Sequence[NewMember]
) -> set[int]:
    mine = {ids[member.device] for member in members}
    theirs = session.scalars(
        select(MemberRow.device_id).where(
            MemberRow.rollout_id == other.id, MemberRow.status.not_in(("skipped", "superseded", "returned"))
        )
    )
    return mine & set(theirs)


def _supersede(session: Session, other: RolloutRow, by: int, devices: set[int], now: datetime) -> None:
    if not devices:
        return
    session.connection().execute(
        _member_update("status", "cause", "detail"),
        [
            {
                "b_rollout": other.id,
                "b_device": device_id,
                "b_status": "superseded",
                "b_cause": None,
                "b_detail": f"by rollout {by}",
            }
            for device_id in devices
        ],
    )
    left = session.scalars(
        select(MemberRow.device_id).where(
            MemberRow.rollout_id == other.id, MemberRow.status.not_in(("skipped", "superseded"))
        )
    ).first()
    if left is None:
        enter(session, other, Enter("superseded", f"by rollout {by}"), CONTROLLER, now)


# --- read ---------------------------------------------------------------------------------------------------

_COLUMNS = (
    DeviceRow.name, MemberRow.device_id, MemberRow.board, MemberRow.wave, MemberRow.status, MemberRow.seq,
    MemberRow.deadline_at, MemberRow.base_sha256, MemberRow.cause, MemberRow.detail, MemberRow.force,
    MemberRow.spare,
)  # fmt: skip


def need_rollout(session: Session, rollout_id: int) -> RolloutRow:
    """The rollout of that number.

    Raises:
        RolloutError: there is none.
    """
    row = session.get(RolloutRow, rollout_id)
    if row is None:
        raise RolloutError(
            f"no rollout {rollout_id}", rollout=str(rollout_id), hint="See: edgeslm fleet rollouts"
        )
    return row


def load(session: Session, rollout_id: int) -> Loaded:
    """A rollout with its devices, in the order in which they are to be asked.

    Raises:
        RolloutError: there is none.
    """
    row = need_rollout(session, rollout_id)
    found = session.execute(
        select(*_COLUMNS)
        .join(DeviceRow, DeviceRow.id == MemberRow.device_id)
        .where(MemberRow.rollout_id == rollout_id)
        .order_by(MemberRow.wave, DeviceRow.name)
    ).all()
    figures = _figures(session, row) if row.phase not in FINISHED else {}
    members, ids = [], {}
    for name, device_id, board, wave, status, seq, deadline_at, base, cause, detail, force, spare in found:
        ids[name] = device_id
        trials = figures.get(device_id, ())
        measured = status in _JUDGED and len(trials) > 0
        members.append(
            Member(
                name, board, wave, cast(MemberStatus, status), seq, deadline_at, base, cause, detail, force, spare,
                trials[-1] if measured else (), trials[:-1] if measured else trials,
            )
        )  # fmt: skip
    state = RolloutState(
        sha256=row.sha256,
        phase=cast(Phase, row.phase),
        wave=row.wave,
        members=tuple(members),
        reason=row.reason,
        approved=row.approved,
        accepted_wave=row.accepted_wave,
        accepted_failures=row.accepted_failures,
    )
    return Loaded(row, RolloutPlan.model_validate(row.plan), state, ids)


def _figures(session: Session, row: RolloutRow) -> dict[int, tuple[tuple[Figure, ...], ...]]:
    """What was measured in the present wave and those before, by number of the device; the newest trial last."""
    found = session.execute(
        select(MemberRow.device_id, MemberRow.figures).where(
            MemberRow.rollout_id == row.id, MemberRow.wave <= row.wave, MemberRow.figures.is_not(None)
        )
    )
    return {
        device_id: tuple(tuple(Figure(**one) for one in trial) for trial in kept["trials"])
        for device_id, kept in found
        if kept
    }


def pending(session: Session, now: datetime) -> list[int]:
    """Numbers of the rollouts about which there may be something to decide, the oldest first.

    Those that go on are; those that are over only where a device said something new, or should have.
    """
    going = set(session.scalars(select(RolloutRow.id).where(RolloutRow.phase.not_in(FINISHED))))
    overdue = select(MemberRow.rollout_id).where(
        MemberRow.status.in_(("asked", "returning")), MemberRow.deadline_at <= now
    )
    going |= set(session.scalars(overdue.distinct()))
    return sorted(going | set(session.scalars(_changed(select(MemberRow.rollout_id)).distinct())))


def _changed(query: Select[*_Columns]) -> Select[*_Columns]:
    return query.join(ReportRow, ReportRow.device_id == MemberRow.device_id).where(
        MemberRow.status.in_(_LIVE), ReportRow.stamp != MemberRow.seen_stamp
    )


def news(session: Session, loaded: Loaded) -> dict[str, tuple[Seen, int]]:
    """What devices of the rollout said since they were judged last, with the stamp of that."""
    query = _changed(select(DeviceRow, ReportRow.stamp).join(MemberRow, MemberRow.device_id == DeviceRow.id))
    changed = session.execute(query.where(MemberRow.rollout_id == loaded.row.id)).all()
    found = {}
    for first in range(0, len(changed), _BATCH):
        part = changed[first : first + _BATCH]
        keys = [reported_key(device.id) for device, _ in part]
        _kept = session.scalars(select(FactRow).where(FactRow.key.in_(keys))).all()
        for device, stamp in part:
            reported = last_reported(session, device)
            if reported is not None:
                found[device.name] = (Seen.of(reported, loaded.row.name), stamp)
    return found


def circumstances(session: Session, loaded: Loaded, quarantined: Mapping[str, str]) -> Circumstances:
    """What else matters for a rollout."""
    pinned = session.execute(
        select(DeviceRow.name, PinRow.reason)
        .select_from(PinRow)
        .join(DeviceRow, DeviceRow.id == PinRow.device_id)
    )
    mine, theirs = aliased(MemberRow), aliased(MemberRow)
    blocked = session.execute(
        select(DeviceRow.name, theirs.rollout_id)
        .select_from(DeviceRow)
        .join(mine, mine.device_id == DeviceRow.id)
        .join(theirs, theirs.device_id == mine.device_id)
        .join(RolloutRow, RolloutRow.id == theirs.rollout_id)
        .where(
            mine.rollout_id == loaded.row.id,
            mine.status == "waiting",
            theirs.rollout_id < loaded.row.id,
            theirs.status.in_(UNSETTLED),
            RolloutRow.phase.not_in(FINISHED),
        )
    )
    return Circumstances(
        pinned=dict(pinned.all()),
        quarantined=quarantined,
        blocked=dict(blocked.all()),
    )


def windows(session: Session, now: datetime) -> dict[str, UpdateWindow]:
    """When devices that were asked may begin, by name; those that may at once are left out."""
    found = session.execute(
        select(DeviceRow.name, RolloutRow.plan)
        .select_from(MemberRow)
        .join(DeviceRow, DeviceRow.id == MemberRow.device_id)
        .join(RolloutRow, RolloutRow.id == MemberRow.rollout_id)
        .where(MemberRow.status == "asked", RolloutRow.phase.not_in(FINISHED))
    )
    plans = ((name, RolloutPlan.model_validate(plan)) for name, plan in found if plan.get("window"))
    return {name: plan.window.next(now) for name, plan in plans if plan.window is not None}


# --- written down -------------------------------------------------------------------------------------------


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
    for decision in decisions:
        match decision:
            case Note():
                notes.append(decision)
            case Ask() | Return():
                if made >= most:
                    continue
                made += 1
                judged.pop(decision.device, None)
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
    except (UpdateError, SecurityFloorError, DowngradeError, DeviceStateError) as error:
        if isinstance(error, DeviceStateError):
            return Note(device, "skipped", None, error.message)
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
        if note.figures and note.status in _JUDGED:
            trials = (*by_device[note.device].trials, note.figures)
            kept = [[one.model_dump(exclude_none=True) for one in trial] for trial in trials]
            measured.append(values | {"b_figures": {"trials": kept}})
        else:
            plain.append(values)
    connection = session.connection()
    if plain:
        connection.execute(_member_update("status", "cause", "detail"), plain)
    if measured:
        connection.execute(_member_update("status", "cause", "detail", "figures"), measured)
    session.expire_all()


def _stamp(session: Session, loaded: Loaded, stamps: Mapping[str, int]) -> None:
    if stamps:
        session.connection().execute(
            _member_update("seen_stamp"),
            [
                {"b_rollout": loaded.row.id, "b_device": loaded.ids[device], "b_seen_stamp": stamp}
                for device, stamp in stamps.items()
            ],
        )


def _member_update(*columns: str) -> Any:
    return (
        update(MemberRow.__table__)  # type: ignore[arg-type]
        .where(
            and_(MemberRow.rollout_id == bindparam("b_rollout"), MemberRow.device_id == bindparam("b_device"))
        )
        .values({column: bindparam(f"b_{column}") for column in columns})
    )
