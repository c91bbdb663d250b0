"""Devices whose figures are not believed: named, with the reason, until an operator releases them.

A device is put here when it reports what cannot be (:mod:`edgeslm.fleet.metrics.judge` says what that is). It works
on, and is updated like any other; what it says of itself enters no sum and moves no gate.

What always holds: a device is in quarantine once at a time; going in is an event of the device, coming out is in the
audit log; what was is kept.

Functions take a session of the store and commit nothing themselves.
"""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from edgeslm.errors import DeviceStateError
from edgeslm.fleet.registry import audit, need_device, note_event
from edgeslm.fleet.store.metrics import QuarantineRow
from edgeslm.fleet.store.models import DeviceRow
from edgeslm.schema.fleet import Record

MAX_REASON_CHARS = 500


class QuarantineRecord(Record):
    """One stay in quarantine; it lasts while there is no `released_at`."""

    device: str
    reason: str
    at: datetime
    released_at: datetime | None = None
    released_by: str | None = None


def quarantined(session: Session) -> dict[str, str]:
    """Why devices are in quarantine, by name."""
    found = session.execute(
        select(DeviceRow.name, QuarantineRow.reason)
        .join(QuarantineRow, QuarantineRow.device_id == DeviceRow.id)
        .where(QuarantineRow.released_at.is_(None))
        .order_by(DeviceRow.name)
    )
    return {row[0]: row[1] for row in found}


def quarantine(session: Session, device: str, reason: str, now: datetime) -> None:
    """Believe nothing of what `device` reports from now on; one that is in quarantine stays there as it is.

    Raises:
        UnknownDeviceError: there is no such device.
    """
    row = need_device(session, device)
    if _open(session, row) is not None:
        return
    reason = reason[:MAX_REASON_CHARS]
    session.add(QuarantineRow(device_id=row.id, reason=reason, at=now))
    session.flush()
    note_event(session, device, "quarantined", reason, now, severity="error", device=row)


def release(session: Session, device: str, actor: str, now: datetime) -> None:
    """Believe `device` again.

    Raises:
        UnknownDeviceError: there is no such device.
        DeviceStateError: it is not in quarantine.
    """
    row = need_device(session, device)
    stay = _open(session, row)
    if stay is None:
        raise DeviceStateError(f"'{device}' is not in quarantine", name=device, state=row.standing)
    stay.released_at, stay.released_by = now, actor
    audit(session, actor, "release", device, now, reason=stay.reason)
    note_event(
        session, device, "released", f"out of quarantine, where it was as {stay.reason}", now, device=row
    )


def list_quarantine(session: Session, *, past: bool = False) -> list[QuarantineRecord]:
    """Who is in quarantine, the newest first; with `past` also who was."""
    query = (
        select(DeviceRow.name, QuarantineRow)
        .join(QuarantineRow, QuarantineRow.device_id == DeviceRow.id)
        .order_by(QuarantineRow.id.desc())
    )
    if not past:
        query = query.where(QuarantineRow.released_at.is_(None))
    return [
        QuarantineRecord(
            device=name,
            reason=row.reason,
            at=row.at,
            released_at=row.released_at,
            released_by=row.released_by,
        )
        for name, row in session.execute(query)
    ]


def _open(session: Session, row: DeviceRow) -> QuarantineRow | None:
    return session.scalars(
        select(QuarantineRow).where(QuarantineRow.device_id == row.id, QuarantineRow.released_at.is_(None))
    ).first()
