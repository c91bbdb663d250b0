"""Looking back: what happened to a device, events, who did what, and finding things by a word.

What always holds: what hangs on a device hangs on its number, so that its history goes on through its names; what
another device did under a name that it had before, or later, is not among it.

Functions take a session of the store and change nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, and_, or_, select
from sqlalchemy.orm import Session

from edgeslm.fleet.groups import group_names, moment_for
from edgeslm.fleet.registry import event_record, need_device, show_device
from edgeslm.fleet.runs import list_runs
from edgeslm.fleet.selection import facts
from edgeslm.fleet.store.models import AuditRow, CertificateRow, ClaimRow, DeviceRow, EventRow, MachineRow
from edgeslm.fleet.store.registry import GroupRow
from edgeslm.fleet.store.rollouts import MemberRow, RolloutRow
from edgeslm.schema.fleet import (
    AuditRecord,
    DeviceFacts,
    EventRecord,
    FoundRecord,
    FullDetail,
    HistoryRecord,
    RunRecord,
)

MAX_FOUND = 50
"""Events that a search shows at most."""
_READ_ROWS = 10_000
_RENEWED = "renewed"
"""Such events say less than the certificate that came of it."""


# --- one device ---------------------------------------------------------------------------------------------


def full_detail(session: Session, name: str, now: datetime) -> FullDetail:
    """All about one device, newest first.

    Raises:
        UnknownDeviceError: there is none of that name.
    """
    detail = show_device(session, name)
    known = facts(session)
    moment = moment_for(session, known, (), also=group_names(session), now=now)
    return FullDetail(
        device=next(one for one in known if one.name == name),
        certificates=detail.certificates,
        machines=detail.machines,
        events=detail.events,
        groups=tuple(sorted(group for group, members in moment.groups.items() if name in members)),
        runs=tuple(list_runs(session, need_device(session, name))),
    )


def history(session: Session, name: str, *, since: datetime | None = None) -> list[HistoryRecord]:
    """All that is known of the life of a device in one line of time, oldest first.

    Args:
        name: its present name.
        since: nothing before this.

    Raises:
        UnknownDeviceError: there is none of that name.
    """
    row = need_device(session, name)
    found = [
        *_events_of(session, row),
        *_actions_of(session, row),
        *_runs_of(list_runs(session, row)),
        *_certificates_of(row),
        *_machines_of(session, row),
        *_rollouts_of(session, row),
    ]
    return sorted((one for one in found if since is None or one.at >= since), key=lambda one: one.at)


def _events_of(session: Session, row: DeviceRow) -> list[HistoryRecord]:
    query = (
        select(EventRow)
        .where(or_(EventRow.device_id == row.id, _under_its_names(session, row, EventRow)))
        .where(EventRow.kind != _RENEWED)
        .order_by(EventRow.id.desc())
        .limit(_READ_ROWS)
    )
    return [
        HistoryRecord(at=event.at, source="event", kind=event.kind, severity=event.severity, text=event.text)
        for event in (event_record(one) for one in session.scalars(query))
    ]


def _actions_of(session: Session, row: DeviceRow) -> list[HistoryRecord]:
    query = (
        select(AuditRow)
        .where(_under_its_names(session, row, AuditRow))
        .order_by(AuditRow.id.desc())
        .limit(_READ_ROWS)
    )
    return [
        HistoryRecord(at=one.at, source="action", kind=one.action, by=one.actor, text=detail_text(one.detail))
        for one in session.scalars(query)
    ]


def _under_its_names(
    session: Session, row: DeviceRow, table: type[EventRow] | type[AuditRow]
) -> ColumnElement[bool]:
    """What was noted under a name of the device while that was its name, or before anybody else's."""
    spans: list[ColumnElement[bool]] = []
    for name in dict.fromkeys([row.name, *(one.name for one in row.certificates)]):
        own = [one for one in row.certificates if one.name == name]
        of_name: list[ColumnElement[bool]] = [table.subject == name]
        if name != row.name:
            of_name.append(table.at <= max(one.revoked_at or one.not_after for one in own))
        strangers = session.scalars(
            select(CertificateRow).where(CertificateRow.name == name, CertificateRow.device_id != row.id)
        ).all()
        begin = min((one.not_before for one in own), default=row.created_at)
        before = [one.revoked_at or one.not_after for one in strangers if one.not_before < begin]
        if before:
            of_name.append(table.at > min(max(before), begin))
        spans.append(and_(*of_name))
    if table is EventRow:
        return and_(EventRow.device_id.is_(None), or_(*spans))
    return or_(*spans)


def _runs_of(runs: Sequence[RunRecord]) -> list[HistoryRecord]:
    found = []
    begins = {(run.name, run.since) for run in runs}
    for run in runs:
        label = f"{run.name} {run.version}"
        found.append(HistoryRecord(at=run.since, source="run", kind="runs", text=label))
        if run.until is not None and (run.name, run.until) not in begins:
            found.append(HistoryRecord(at=run.until, source="run", kind="runs-no-more", text=label))
    return found


def _certificates_of(row: DeviceRow) -> list[HistoryRecord]:
    found = []
    for one in row.certificates:
        text = f"{one.serial[:12]} for '{one.name}' until {one.not_after:%Y-%m-%d}"
        found.append(HistoryRecord(at=one.not_before, source="certificate", kind="issued", text=text))
        if one.revoked_at is not None:
            text = f"{one.serial[:12]} for '{one.name}': {one.reason}"
            found.append(HistoryRecord(at=one.revoked_at, source="certificate", kind="refused", text=text))
    return found


def _machines_of(session: Session, row: DeviceRow) -> list[HistoryRecord]:
    machines = session.scalars(select(MachineRow).where(MachineRow.device_id == row.id))
    return [
        HistoryRecord(
            at=one.first_seen_at,
            source="machine",
            kind="booted",
            text=f"boot {one.boots}" + (f" of {one.serial}" if one.serial else ""),
        )
        for one in machines
    ]


def _rollouts_of(session: Session, row: DeviceRow) -> list[HistoryRecord]:
    query = (
        select(RolloutRow, MemberRow)
        .join(MemberRow, MemberRow.rollout_id == RolloutRow.id)
        .where(MemberRow.device_id == row.id)
    )
    found = []
    for rollout, member in session.execute(query):
        why = f": {member.detail}" if member.detail else ""
        text = f"rollout {rollout.id} of {rollout.name} {rollout.version}, {member.status} here{why}"
        found.append(
            HistoryRecord(
                at=rollout.created_at, source="rollout", kind="rollout", by=rollout.created_by, text=text
            )
        )
    return found


def detail_text(detail: dict[str, Any]) -> str:
    """Details of an action in one line."""
    return ", ".join(f"{key}={value}" for key, value in detail.items())


# --- events and actions -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class EventFilter:
    """Which events are of interest.

    Attributes:
        devices: of these alone; ``None`` is all, and what belongs to no device.
        kinds: of these alone, unless empty.
        severities: of these alone, unless empty.
        since: nothing before this.
    """

    devices: Collection[str] | None = None
    kinds: Collection[str] = ()
    severities: Collection[str] = ()
    since: datetime | None = None


def find_events(
    session: Session, wanted: EventFilter, *, after: int = 0, limit: int = 50
) -> tuple[list[EventRecord], int]:
    """The newest events, oldest of them first.

    Args:
        wanted: which.
        after: number of the last event that was seen.
        limit: the most.

    Returns:
        The events, and the number to go on from.
    """
    query = select(EventRow).where(EventRow.id > after).order_by(EventRow.id.desc())
    if wanted.since is not None:
        query = query.where(EventRow.at >= wanted.since)
    if wanted.kinds:
        query = query.where(EventRow.kind.in_(wanted.kinds))
    if wanted.severities:
        query = query.where(EventRow.severity.in_(wanted.severities))
    if wanted.devices is not None:
        numbers = select(DeviceRow.id).where(DeviceRow.name.in_(wanted.devices))
        query = query.where(or_(EventRow.device_id.in_(numbers), EventRow.subject.in_(wanted.devices)))
    last = session.scalars(select(EventRow.id).order_by(EventRow.id.desc()).limit(1)).first() or after
    rows = session.scalars(query.limit(limit)).all()
    return [event_record(row) for row in reversed(rows)], last


def event_kinds(session: Session) -> list[str]:
    """Kinds of events that there have been."""
    return list(session.scalars(select(EventRow.kind).distinct().order_by(EventRow.kind)))


def find_actions(
    session: Session,
    *,
    subject: str | None = None,
    actor: str | None = None,
    action: str | None = None,
    since: datetime | None = None,
    limit: int = 50,
) -> list[AuditRecord]:
    """Who did what, newest first.

    Args:
        subject: to what it was done.
        actor: part of who did it.
        action: what was done; the first word of it is enough.
        since: nothing before this.
        limit: the most.
    """
    query = select(AuditRow).order_by(AuditRow.id.desc()).limit(limit)
    if subject is not None:
        query = query.where(AuditRow.subject == subject)
    if actor is not None:
        query = query.where(AuditRow.actor.icontains(actor, autoescape=True))
    if action is not None:
        query = query.where(
            or_(
                AuditRow.action == action,
                AuditRow.action.startswith(f"{action} ", autoescape=True),
                AuditRow.action.startswith(f"{action}-", autoescape=True),
            )
        )
    if since is not None:
        query = query.where(AuditRow.at >= since)
    return [
        AuditRecord(at=row.at, actor=row.actor, action=row.action, subject=row.subject, detail=row.detail)
        for row in session.scalars(query)
    ]


# --- search -------------------------------------------------------------------------------------------------


def search(session: Session, known: Sequence[DeviceFacts], text: str) -> list[FoundRecord]:
    """Everything that has `text` in it, whatever the case: devices, groups, claims, and the newest events.

    Args:
        known: all devices.
        text: a part of a word.
    """
    wanted = text.casefold()
    found = [
        FoundRecord(kind="device", name=one.name, where=where, text=said)
        for one in known
        for where, said in _said_of(one)
        if wanted in said.casefold()
    ]
    former = (
        select(DeviceRow.name, CertificateRow.name)
        .join(CertificateRow, CertificateRow.device_id == DeviceRow.id)
        .where(CertificateRow.name != DeviceRow.name, CertificateRow.name.icontains(text, autoescape=True))
        .distinct()
        .order_by(DeviceRow.name)
    )
    found += [
        FoundRecord(kind="device", name=name, where="former name", text=was)
        for name, was in session.execute(former)
    ]
    for group in session.scalars(select(GroupRow).order_by(GroupRow.name)):
        for where, said in (("name", group.name), ("query", group.query or "")):
            if wanted in said.casefold():
                found.append(FoundRecord(kind="group", name=group.name, where=where, text=said))
    claims = select(ClaimRow).where(
        or_(ClaimRow.claim.icontains(text, autoescape=True), ClaimRow.device.icontains(text, autoescape=True))
    )
    for claim in session.scalars(claims.order_by(ClaimRow.claim).limit(MAX_FOUND)):
        said = f"for {claim.device}" if claim.device else "for any device"
        found.append(FoundRecord(kind="claim", name=claim.claim, where=claim.state, text=said))
    events = (
        select(EventRow)
        .where(or_(EventRow.text.icontains(text, autoescape=True), EventRow.kind == text))
        .order_by(EventRow.id.desc())
        .limit(MAX_FOUND)
    )
    for event in session.scalars(events):
        where = f"{event.kind} {event.at:%Y-%m-%d %H:%M}"
        found.append(FoundRecord(kind="event", name=event.subject, where=where, text=event.text))
    return found


def _said_of(one: DeviceFacts) -> list[tuple[str, str]]:
    texts = {
        "name": one.name,
        "next name": one.rename_to,
        "serial": one.serial,
        "board": one.board,
        "profile": one.profile,
        "agent": one.agent,
        "note": one.notes,
        "key": one.key_sha256,
        "finding": one.finding_text,
        "quarantine": one.quarantine,
    }
    found = [(where, text) for where, text in texts.items() if text]
    found += [("tag", tag) for tag in one.tags]
    return found + [("runs", f"{name} {version}") for name, version in one.running.items()]
