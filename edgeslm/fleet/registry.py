"""The devices of a fleet: what is known of each, and what an operator does to them.

What always holds: every change by a person is in the audit log, in the same transaction; a device that is revoked
or retired has no certificate left that is not revoked; nothing is deleted.

Functions take a session of the store and commit nothing themselves.

Left to others: how devices join (:mod:`edgeslm.fleet.enrolment`), and telling the broker
(:mod:`edgeslm.fleet.broker`).
"""

from __future__ import annotations

import difflib
import getpass
import logging
import socket
from datetime import datetime, timedelta
from typing import Any, Literal, cast

from sqlalchemy import func, or_, select
from sqlalchemy.orm import Session, selectinload

from edgeslm.errors import DeviceStateError, UnknownDeviceError
from edgeslm.fleet.ca import common_name
from edgeslm.fleet.machines import is_same_boot, judge, worse
from edgeslm.fleet.store.models import AuditRow, CertificateRow, DeviceRow, EventRow, MachineRow
from edgeslm.schema.enrol import Machine
from edgeslm.schema.fleet import (
    AuditRecord,
    CertificateRecord,
    DeviceDetail,
    DeviceRecord,
    DeviceStanding,
    EventRecord,
    Finding,
    MachineRecord,
)
from edgeslm.schema.message import DeviceState

_LOG = logging.getLogger(__name__)

Severity = Literal["info", "warning", "error"]
_QUIET = timedelta(hours=1)
_SHOWN = 50
_MAX_MACHINES = 50
"""Boots remembered of one device."""


def current_actor() -> str:
    """Who calls: user and machine, for the audit log."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):
        user = "unknown"
    return f"{user}@{socket.gethostname()}"[:128]


# --- looking ------------------------------------------------------------------------------------------------


def device_row(session: Session, name: str) -> DeviceRow | None:
    """The device called `name`."""
    return session.scalars(select(DeviceRow).where(DeviceRow.name == name)).one_or_none()


def need_device(session: Session, name: str) -> DeviceRow:
    """The device called `name`.

    Raises:
        UnknownDeviceError: there is none; the nearest names are in the error.
    """
    row = device_row(session, name)
    if row is None:
        names = session.scalars(select(DeviceRow.name)).all()
        near = tuple(difflib.get_close_matches(name, names, n=3))
        raise UnknownDeviceError(f"no device '{name}'", name=name, nearest=near)
    return row


def list_devices(session: Session) -> list[DeviceRecord]:
    """All devices by name."""
    newest = select(CertificateRow.device_id, func.max(CertificateRow.not_after)).group_by(
        CertificateRow.device_id
    )
    ends = {row[0]: row[1] for row in session.execute(newest)}
    query = select(DeviceRow).options(selectinload(DeviceRow.tags)).order_by(DeviceRow.name)
    return [_device_record(row, ends.get(row.id)) for row in session.scalars(query)]


def show_device(session: Session, name: str) -> DeviceDetail:
    """All about one device.

    Raises:
        UnknownDeviceError: there is none of that name.
    """
    row = need_device(session, name)
    certificates = list(reversed(row.certificates))
    machines = session.scalars(_machines(row).order_by(MachineRow.id.desc()).limit(_SHOWN))
    events = session.scalars(
        select(EventRow)
        .where(or_(EventRow.device_id == row.id, EventRow.subject == name))
        .order_by(EventRow.id.desc())
        .limit(_SHOWN)
    )
    return DeviceDetail(
        device=_device_record(row, certificates[0].not_after if certificates else None),
        certificates=tuple(_certificate_record(certificate) for certificate in certificates[:_SHOWN]),
        machines=tuple(_machine_record(machine) for machine in machines),
        events=tuple(event_record(event) for event in events),
    )


def list_audit(session: Session, *, subject: str | None = None, limit: int = _SHOWN) -> list[AuditRecord]:
    """Who did what, newest first."""
    query = select(AuditRow).order_by(AuditRow.id.desc()).limit(limit)
    if subject is not None:
        query = query.where(AuditRow.subject == subject)
    return [
        AuditRecord(at=row.at, actor=row.actor, action=row.action, subject=row.subject, detail=row.detail)
        for row in session.scalars(query)
    ]


# --- writing down -------------------------------------------------------------------------------------------


def audit(session: Session, actor: str, action: str, subject: str, now: datetime, **detail: Any) -> None:
    """Note who did what."""
    session.add(AuditRow(at=now, actor=actor, action=action, subject=subject, detail=detail))


def note_event(
    session: Session,
    subject: str,
    kind: str,
    text: str,
    now: datetime,
    *,
    severity: Severity = "info",
    device: DeviceRow | None = None,
) -> None:
    """Note that something happened."""
    _LOG.info("%s: %s: %s", subject, kind, text)
    device_id = None if device is None else device.id
    session.add(
        EventRow(at=now, subject=subject, kind=kind, severity=severity, text=text, device_id=device_id)
    )


def note_fault(session: Session, subject: str, kind: str, text: str, now: datetime) -> None:
    """Note a fault, unless it was noted within the last hour: who repeats it cannot fill the store."""
    query = select(EventRow.id).where(
        EventRow.subject == subject, EventRow.kind == kind, EventRow.at > now - _QUIET
    )
    if session.scalars(query.limit(1)).first() is None:
        note_event(session, subject, kind, text, now, severity="warning", device=device_row(session, subject))


def note_machine(session: Session, device: DeviceRow, machine: Machine, now: datetime) -> None:
    """Note on which machine a device's key is in use, and what is odd about that."""
    rows = session.scalars(_machines(device).order_by(MachineRow.last_seen_at, MachineRow.id)).all()
    known = [_machine(row) for row in rows]
    judgement = judge(known, machine)
    row = next((row for row in rows if is_same_boot(_machine(row), machine)), None)
    if row is None:
        row = MachineRow(
            device_id=device.id,
            serial=machine.serial,
            machine_id=machine.machine_id,
            boot_id=machine.boot_id,
            boots=machine.boots,
            first_seen_at=now,
            last_seen_at=now,
        )
        session.add(row)
        for old in rows[: max(0, len(rows) + 1 - _MAX_MACHINES)]:
            session.delete(old)
    row.last_seen_at = now
    if judgement is None:
        device.board, device.serial = machine.board or device.board, machine.serial or device.serial
    elif worse(cast("Finding | None", device.finding), judgement.finding):
        device.finding, device.finding_text = judgement.finding, judgement.text
        severity: Severity = "error" if judgement.finding == "cloned" else "warning"
        note_event(
            session, device.name, judgement.finding, judgement.text, now, severity=severity, device=device
        )


def forget_machines(session: Session, device: DeviceRow) -> None:
    """Begin anew with what is known of a device's machines: its key is another one."""
    for row in session.scalars(_machines(device)):
        session.delete(row)


# --- what an operator does ----------------------------------------------------------------------------------


def revoke_device(session: Session, name: str, *, reason: str, actor: str, now: datetime) -> None:
    """Refuse a device from now on; a claim for its name lets it, or another board, back in.

    Raises:
        UnknownDeviceError: there is none of that name.
        DeviceStateError: it is not in use.
    """
    row = _need_active(session, name)
    _end(row, "revoked", reason, now)
    audit(session, actor, "revoke", name, now, reason=reason)
    note_event(session, name, "revoked", reason, now, severity="warning", device=row)


def retire_device(session: Session, name: str, *, actor: str, now: datetime) -> None:
    """Take a device out of use for good; it may have been revoked before.

    Raises:
        UnknownDeviceError: there is none of that name.
        DeviceStateError: it is retired already.
    """
    row = need_device(session, name)
    if row.standing == "retired":
        raise DeviceStateError(f"'{name}' is retired already", name=name, state=row.standing)
    _end(row, "retired", "retired", now)
    audit(session, actor, "retire", name, now)
    note_event(session, name, "retired", "taken out of use", now, device=row)


def rename_device(session: Session, fleet: str, name: str, to: str, *, actor: str, now: datetime) -> None:
    """Give a device another name: it gets a certificate of that name, and reports under it once it has it.

    Raises:
        UnknownDeviceError: there is none of that name.
        DeviceStateError: it is not in use, or the new name is another device's.
        FleetSetupError: the new name is too long for a certificate.
        TopicError: the new name is none.
    """
    row = _need_active(session, name)
    common_name(fleet, to)
    taken = session.scalars(
        select(DeviceRow).where(or_(DeviceRow.name == to, DeviceRow.rename_to == to))
    ).first()
    if taken is not None and taken is not row:
        raise DeviceStateError(f"'{to}' is taken by '{taken.name}'", name=to, state=taken.standing)
    row.rename_to = None if to == name else to
    audit(session, actor, "rename", name, now, to=to)


def accept_finding(session: Session, name: str, *, actor: str, now: datetime) -> None:
    """Say that what is odd about a device's machine is meant, such as a card that was moved to a new board.

    Raises:
        UnknownDeviceError: there is none of that name.
        DeviceStateError: nothing is odd about it.
    """
    row = need_device(session, name)
    if row.finding is None:
        raise DeviceStateError(f"'{name}' does not wait for approval", name=name, state=row.standing)
    audit(session, actor, "accept", name, now, finding=row.finding, text=row.finding_text)
    newest = session.scalars(
        _machines(row).order_by(MachineRow.last_seen_at.desc(), MachineRow.id.desc())
    ).all()
    for old in newest[1:]:  # the one in use now is the only one that counts from here
        session.delete(old)
    if newest:
        row.serial = newest[0].serial or row.serial
    row.finding = row.finding_text = None


def revoke_certificates(
    row: DeviceRow, reason: str, now: datetime, *, but: CertificateRow | None = None
) -> None:
    """Refuse every certificate of a device but one."""
    for certificate in row.certificates:
        if certificate.revoked_at is None and certificate is not but:
            certificate.revoked_at, certificate.reason = now, reason


# --- inside -------------------------------------------------------------------------------------------------


def _end(row: DeviceRow, standing: DeviceStanding, reason: str, now: datetime) -> None:
    row.standing, row.presence, row.rename_to = standing, None, None
    revoke_certificates(row, reason, now)


def _need_active(session: Session, name: str) -> DeviceRow:
    row = need_device(session, name)
    if row.standing != "active":
        raise DeviceStateError(f"'{name}' is {row.standing}", name=name, state=row.standing)
    return row


def _machines(row: DeviceRow) -> Any:
    return select(MachineRow).where(MachineRow.device_id == row.id)


def _machine(row: MachineRow) -> Machine:
    return Machine(serial=row.serial, machine_id=row.machine_id, boot_id=row.boot_id, boots=row.boots)


def _device_record(row: DeviceRow, expires_at: datetime | None) -> DeviceRecord:
    return DeviceRecord(
        name=row.name,
        standing=cast(DeviceStanding, row.standing),
        presence=cast("DeviceState | None", row.presence),
        finding=cast("Finding | None", row.finding),
        finding_text=row.finding_text,
        board=row.board,
        serial=row.serial,
        profile=row.profile,
        agent=row.agent,
        tags=tuple(tag.tag for tag in row.tags),
        notes=row.notes,
        key_sha256=row.key_sha256,
        rename_to=row.rename_to,
        created_at=row.created_at,
        first_seen_at=row.first_seen_at,
        last_seen_at=row.last_seen_at,
        expires_at=expires_at,
    )


def _certificate_record(row: CertificateRow) -> CertificateRecord:
    return CertificateRecord(
        serial=row.serial,
        name=row.name,
        key_sha256=row.key_sha256,
        not_before=row.not_before,
        not_after=row.not_after,
        revoked_at=row.revoked_at,
        reason=row.reason,
    )


def _machine_record(row: MachineRow) -> MachineRecord:
    return MachineRecord(
        serial=row.serial,
        machine_id=row.machine_id,
        boot_id=row.boot_id,
        boots=row.boots,
        first_seen_at=row.first_seen_at,
        last_seen_at=row.last_seen_at,
    )


def event_record(row: EventRow) -> EventRecord:
    """An event as commands print it."""
    return EventRecord(
        at=row.at, subject=row.subject, kind=row.kind, severity=cast(Severity, row.severity), text=row.text
    )
