"""Which devices an operator means: the way in for every command that does something to several.

What always holds: only devices in use are selected, each once, by name; a name, group or query that means nothing is an
error, never an empty selection; the same selection of the same store gives the same devices.

Functions take a session of the store and change nothing.

Left to others: the language of queries (:mod:`edgeslm.fleet.query`), groups (:mod:`edgeslm.fleet.groups`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import String, cast, func, literal
from sqlalchemy import select as rows_of
from sqlalchemy.orm import Session

from edgeslm.errors import DeviceStateError, UnknownDeviceError
from edgeslm.fleet.groups import group_names, moment_for
from edgeslm.fleet.quarantine import quarantined
from edgeslm.fleet.query import matches, parse
from edgeslm.fleet.registry import need_device
from edgeslm.fleet.store.models import CertificateRow, DeviceRow, FactRow, TagRow
from edgeslm.fleet.store.registry import DescriptionRow, RunRow
from edgeslm.fleet.store.rollouts import PinRow
from edgeslm.schema.fleet import DeviceFacts, DeviceRecord


def select(
    session: Session,
    *,
    groups: Sequence[str] = (),
    queries: Sequence[str] = (),
    devices: Sequence[str] = (),
    now: datetime | None = None,
) -> list[DeviceRecord]:
    """The devices in use that are meant, by name.

    Named devices and the members of groups are united; each query narrows that, or all devices where neither is given.
    Nothing given means all.

    Args:
        groups: names of groups.
        queries: in the language of :mod:`edgeslm.fleet.query`; a device has to match all.
        devices: names of devices.
        now: what ages in queries count from; the present time if it is ``None``.

    Raises:
        SelectionError: a query is none, or there is no such group; with the nearest.
        UnknownDeviceError: there is no such device; with the nearest names.
        DeviceStateError: a named device is not in use.
    """
    return list(select_facts(session, groups=groups, queries=queries, devices=devices, now=now))


def select_facts(
    session: Session,
    *,
    groups: Sequence[str] = (),
    queries: Sequence[str] = (),
    devices: Sequence[str] = (),
    now: datetime | None = None,
    standings: Sequence[str] = ("active",),
) -> list[DeviceFacts]:
    """As :func:`select`, with what each device runs; `standings` takes in devices that are not in use."""
    asked = [parse(query) for query in queries]
    for name in devices:
        row = _need(session, name)
        if row.standing not in standings:
            raise DeviceStateError(f"'{name}' is {row.standing}", name=name, state=row.standing)
    known = facts(session)
    moment = moment_for(session, known, asked, also=groups, now=now or datetime.now(UTC))
    named = {*devices, *(member for group in groups for member in moment.groups[group])}
    is_named = bool(devices or groups)
    return [
        one
        for one in known
        if one.standing in standings
        and (not is_named or one.name in named)
        and all(matches(query, one, moment) for query in asked)
    ]


def facts(session: Session) -> list[DeviceFacts]:
    """What is known of each device, whatever its standing, by name."""
    tags: dict[int, list[str]] = defaultdict(list)
    for device_id, tag in session.execute(rows_of(TagRow.device_id, TagRow.tag).order_by(TagRow.tag)):
        tags[device_id].append(tag)
    newest = rows_of(CertificateRow.device_id, func.max(CertificateRow.not_after)).group_by(
        CertificateRow.device_id
    )
    ends = {row[0]: row[1] for row in session.execute(newest)}
    said_columns = (
        DescriptionRow.device_id,
        DescriptionRow.meter,
        DescriptionRow.runtime,
        DescriptionRow.models,
    )
    described = {row[0]: row for row in session.execute(rows_of(*said_columns))}
    doubted = quarantined(session)
    pins = {row.device_id: row.reason for row in session.execute(rows_of(PinRow.device_id, PinRow.reason))}
    assigned = _assigned(session)
    running: dict[int, dict[str, str]] = defaultdict(dict)
    now_running = rows_of(RunRow.device_id, RunRow.name, RunRow.version).where(RunRow.until.is_(None))
    for device_id, name, version in session.execute(now_running):
        running[device_id][name] = version
    found = []
    for row in session.execute(rows_of(*_COLUMNS)).mappings():
        columns = dict(row)
        device_id = columns.pop("id")
        _, meter, runtime, models = described.get(device_id, (device_id, None, None, {}))
        wanted = assigned.get(device_id, {})
        found.append(
            DeviceFacts(
                **columns,
                tags=tuple(tags.get(device_id, ())),
                expires_at=ends.get(device_id),
                running=models | running.get(device_id, {}),
                assigned={name: one["version"] for name, one in wanted.get("releases", {}).items()},
                runtime=runtime,
                meter=meter,
                budget=wanted.get("budget"),
                quarantine=doubted.get(columns["name"]),
                pin=pins.get(device_id),
            )
        )
    return sorted(found, key=lambda one: one.name)


def _need(session: Session, name: str) -> DeviceRow:
    try:
        return need_device(session, name)
    except UnknownDeviceError as error:
        if name in group_names(session):
            raise UnknownDeviceError(
                f"'{name}' is a group, not a device: --group {name}", name=name
            ) from error
        raise


_COLUMNS = (
    DeviceRow.id,
    *(getattr(DeviceRow, name) for name in DeviceRecord.model_fields if name not in {"tags", "expires_at"}),
)


def _assigned(session: Session) -> dict[int, dict[str, Any]]:
    """What is assigned to each device, by its number."""
    # Each by its key: reading past the much longer facts beside them would take the most time.
    key = literal("assigned/") + cast(DeviceRow.id, String)
    rows = session.execute(rows_of(DeviceRow.id, FactRow.value).join(FactRow, FactRow.key == key))
    return {row[0]: row[1] for row in rows}
