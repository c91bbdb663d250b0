"""What an operator does to rollouts, and to devices that they are to leave alone.

What always holds: who did what is in the audit log, in the same transaction; what follows for devices is decided by
whoever carries the rollout out, so that a word here is enough and nothing is half done.

Functions take a session of the store and commit nothing themselves.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from edgeslm.errors import DeviceStateError, RolloutError
from edgeslm.fleet.registry import audit, need_device
from edgeslm.fleet.rollout.records import need_rollout, subject
from edgeslm.fleet.rollout.state import Enter
from edgeslm.fleet.rollout.writing import enter
from edgeslm.fleet.store.models import DeviceRow
from edgeslm.fleet.store.rollouts import MemberRow, PinRow, RolloutRow
from edgeslm.schema.rollout import FAILURES, FINISHED, PinRecord, RolloutPlan

_MAX_REASON_CHARS = 500


def pause(session: Session, rollout_id: int, *, reason: str, actor: str, now: datetime) -> None:
    """Ask no more devices for now; those that were asked go on.

    Raises:
        RolloutError: there is no such rollout, or it does not run.
    """
    row = _need(session, rollout_id, ("running", "waiting"))
    enter(session, row, Enter("paused", _by(actor, reason)), actor, now)


def resume(session: Session, rollout_id: int, *, actor: str, now: datetime) -> None:
    """Go on. Where the rollout paused by itself, the state of its present wave is accepted as it is.

    Raises:
        RolloutError: there is no such rollout, or it is not paused.
    """
    row = _need(session, rollout_id, ("paused",))
    if row.paused_by is None:
        row.accepted_wave = row.wave
        row.accepted_failures = len(
            session.scalars(
                select(MemberRow.device_id).where(
                    MemberRow.rollout_id == row.id,
                    MemberRow.wave == row.wave,
                    MemberRow.status.in_(FAILURES),
                )
            ).all()
        )
    enter(session, row, Enter("running", ""), actor, now)


def abort(session: Session, rollout_id: int, *, keep: bool, reason: str, actor: str, now: datetime) -> None:
    """End a rollout: devices that were asked go back to what they ran, or stay as they are.

    Args:
        keep: they stay as they are.

    Raises:
        RolloutError: there is no such rollout, or it is over.
    """
    row = need_rollout(session, rollout_id)
    if row.phase in FINISHED:
        raise _wrong_state(row, "it is over")
    if not keep:
        enter(session, row, Enter("returning", _by(actor, reason)), actor, now)
        return
    for member in session.scalars(
        select(MemberRow).where(MemberRow.rollout_id == row.id, MemberRow.status == "waiting")
    ):
        member.status, member.detail = "skipped", "the rollout was ended before"
    enter(session, row, Enter("aborted", _by(actor, reason)), actor, now)


def approve(session: Session, rollout_id: int, *, every: bool, actor: str, now: datetime) -> int:
    """Let the next wave begin, or with `every` all that follow; the number of the wave that begins, from 1.

    Raises:
        RolloutError: there is no such rollout, or it does not wait for approval.
    """
    row = _need(session, rollout_id, ("waiting",))
    row.approved = len(RolloutPlan.model_validate(row.plan).waves) if every else row.wave + 1
    enter(session, row, Enter("running", ""), actor, now)
    audit(session, actor, "rollout-approve", subject(row.id), now, wave=row.wave + 2, every=every)
    return row.wave + 2


def retry(
    session: Session, rollout_id: int, devices: Collection[str], *, actor: str, now: datetime
) -> list[str]:
    """Let devices that failed try again, also those that would not by themselves; the devices.

    Args:
        devices: which; all that failed if none are named.

    Raises:
        RolloutError: there is no such rollout, it was taken back, a newer one took its place, or nothing failed.
        UnknownDeviceError: there is no such device.
    """
    row = _need(session, rollout_id, ("running", "waiting", "paused", "completed"))
    newer = session.scalars(
        select(RolloutRow.id).where(
            RolloutRow.name == row.name, RolloutRow.id > row.id, RolloutRow.phase.not_in(("aborted",))
        )
    ).first()
    if newer is not None:
        raise _wrong_state(row, f"rollout {newer} is newer")
    named = {need_device(session, name).id for name in devices}
    failed = session.execute(
        select(MemberRow, DeviceRow.name)
        .join(DeviceRow, DeviceRow.id == MemberRow.device_id)
        .where(MemberRow.rollout_id == row.id, MemberRow.status.in_(FAILURES))
        .order_by(DeviceRow.name)
    ).all()
    chosen = [(member, name) for member, name in failed if not named or member.device_id in named]
    if not chosen:
        raise _wrong_state(row, "none of these devices failed" if named else "no device failed")
    for member, _ in chosen:
        member.status, member.cause, member.detail = "waiting", None, "once more"
        member.force, member.deadline_at = True, None
    names = [name for _, name in chosen]
    audit(session, actor, "rollout-retry", subject(row.id), now, devices=" ".join(names)[:2000])
    if row.phase != "waiting":
        enter(session, row, Enter("running", ""), actor, now)
    return names


def pin(session: Session, device: str, *, reason: str, actor: str, now: datetime) -> None:
    """Let rollouts leave a device alone; pinned again it keeps the new reason.

    Raises:
        UnknownDeviceError: there is no such device.
        DeviceStateError: it is not in use.
    """
    row = need_device(session, device)
    if row.standing != "active":
        raise DeviceStateError(f"'{device}' is {row.standing}", name=device, state=row.standing)
    session.merge(PinRow(device_id=row.id, reason=reason[:_MAX_REASON_CHARS], actor=actor, at=now))
    audit(session, actor, "pin", device, now, reason=reason[:_MAX_REASON_CHARS])


def unpin(session: Session, device: str, *, actor: str, now: datetime) -> None:
    """Let rollouts bring releases to a device again.

    Raises:
        UnknownDeviceError: there is no such device.
        DeviceStateError: it is not pinned.
    """
    row = need_device(session, device)
    pinned = session.get(PinRow, row.id)
    if pinned is None:
        raise DeviceStateError(f"'{device}' is not pinned", name=device, state=row.standing)
    session.delete(pinned)
    audit(session, actor, "unpin", device, now, reason=pinned.reason)


def list_pins(session: Session) -> list[PinRecord]:
    """Devices that rollouts leave alone, by name."""
    found = session.execute(
        select(DeviceRow.name, PinRow)
        .select_from(PinRow)
        .join(DeviceRow, DeviceRow.id == PinRow.device_id)
        .order_by(DeviceRow.name)
    )
    return [PinRecord(device=name, reason=row.reason, actor=row.actor, at=row.at) for name, row in found]


def _need(session: Session, rollout_id: int, phases: Sequence[str]) -> RolloutRow:
    row = need_rollout(session, rollout_id)
    if row.phase not in phases:
        raise _wrong_state(row, f"it is {row.phase}")
    return row


def _wrong_state(row: RolloutRow, why: str) -> RolloutError:
    return RolloutError(
        f"rollout {row.id} cannot do that: {why}",
        rollout=str(row.id), hint=f"See: edgeslm fleet rollout show {row.id}",
    )  # fmt: skip


def _by(actor: str, reason: str) -> str:
    return f"by {actor}{f': {reason}' if reason else ''}"
