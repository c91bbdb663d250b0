"""Carrying tags, notes and groups out of a fleet, and into it.

What always holds: a file is checked whole before anything changes, and then changes everything or nothing; what it does
not mention stays as it is; what devices tell of themselves is never taken from a file.

Functions take a session of the store and commit nothing themselves.

Left to others: the files (:mod:`edgeslm.fleet.inventory_files`).
"""

from __future__ import annotations

import difflib
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from edgeslm.errors import InventoryError
from edgeslm.fleet.groups import add_to_group, check_queries, remove_from_group
from edgeslm.fleet.labels import set_tags
from edgeslm.fleet.query import parse, text_of
from edgeslm.fleet.registry import audit, need_device
from edgeslm.fleet.store.models import DeviceRow
from edgeslm.fleet.store.registry import GroupMemberRow, GroupRow
from edgeslm.schema.fleet import DeviceFacts
from edgeslm.schema.inventory import Inventory, InventoryDevice, InventoryGroup

_TOLD = ("board", "serial", "profile", "standing")
_NAMED = 5
"""Unknown names that an error lists."""


@dataclass(frozen=True)
class Change:
    """One thing that an import changes.

    Attributes:
        subject: device or group.
        what: ``tags``, ``note``, ``groups``, ``group`` (it is made) or ``query``.
        before: as it is,
        after: as it will be; lists are sorted and joined by spaces.
    """

    subject: str
    what: str
    before: str
    after: str


@dataclass(frozen=True)
class Plan:
    """What an import will do.

    Attributes:
        changes: in the order in which they are made.
        unknown: devices of the file that the fleet has not; they are left out.
        remarks: what stands in the file and is not taken from it.
    """

    changes: tuple[Change, ...]
    unknown: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()


def take_inventory(session: Session, fleet: str, known: Sequence[DeviceFacts]) -> Inventory:
    """What is worth carrying elsewhere: of devices that are not retired, and of all groups."""
    groups, members = _groups(session)
    mine: dict[str, list[str]] = defaultdict(list)
    for name in sorted(members):
        for device in members[name]:
            mine[device].append(name)
    devices = tuple(
        InventoryDevice(
            name=one.name,
            tags=one.tags,
            note=one.notes,
            groups=tuple(mine.get(one.name, ())),
            **{key: getattr(one, key) for key in _TOLD},
        )
        for one in known
        if one.standing != "retired"
    )
    return Inventory(
        fleet=fleet,
        groups=tuple(InventoryGroup(name=name, query=query) for name, query in sorted(groups.items())),
        devices=devices,
    )


def plan_import(
    session: Session, inventory: Inventory, known: Sequence[DeviceFacts], *, skip_unknown: bool = False
) -> Plan:
    """What bringing `inventory` in changes.

    Args:
        inventory: as read.
        known: all devices.
        skip_unknown: devices that the fleet has not are left out.

    Raises:
        InventoryError: it names devices or groups that there are not, or a group of one kind as the other.
        SelectionError: the query of a group cannot be read, or names groups that there are not, or in a circle.
    """
    groups, members = _groups(session)
    facts = {one.name: one for one in known}
    unknown = tuple(one.name for one in inventory.devices if one.name not in facts)
    if unknown and not skip_unknown:
        raise _unknown("devices", unknown, facts, "Leave them out with --skip-unknown")
    changes = []
    queries = {**groups, **{group.name: group.query for group in inventory.groups}}
    check_queries(queries, [group.name for group in inventory.groups])
    for group in inventory.groups:
        query = None if group.query is None else text_of(parse(group.query))
        if group.name not in groups:
            changes.append(Change(group.name, "group", "", query or ""))
        elif (query is None) != (groups[group.name] is None):
            kind = "finds its devices by a query" if query is None else "has devices that are named"
            raise InventoryError(f"the group '{group.name}' {kind}, in the file it is the other kind")
        elif query is not None and query != groups[group.name]:
            changes.append(Change(group.name, "query", groups[group.name] or "", query))
    static = {name for name, query in groups.items() if query is None}
    static |= {group.name for group in inventory.groups if group.query is None}
    named = {name for one in inventory.devices for name in one.groups or ()}
    if strange := tuple(sorted(named - static)):
        raise _unknown(
            "groups of named devices", strange, static, "Make them first with: edgeslm fleet group create"
        )
    remarks = []
    for wanted in inventory.devices:
        one = facts.get(wanted.name)
        if one is None:
            continue
        changes += _device_changes(wanted, one, {name for name in members if one.name in members[name]})
        for key in _TOLD:
            told, has = getattr(wanted, key), getattr(one, key)
            if told is not None and told != has:
                remarks.append(f"{one.name}: {key} stays {has or 'unknown'}, {told} is not taken from a file")
    return Plan(tuple(changes), unknown, tuple(remarks))


def carry_out(session: Session, plan: Plan, *, source: str, actor: str, now: datetime) -> None:
    """Change what a plan says.

    Args:
        plan: made in the same transaction.
        source: what it came from, for the audit log.
        actor: who.
        now: the present time.
    """
    rows = {row.name: row for row in session.scalars(select(GroupRow))}
    for change in plan.changes:
        if change.what == "group":
            query = change.after or None
            session.add(GroupRow(name=change.subject, query=query, created_at=now, created_by=actor))
            audit(session, actor, "group-create", change.subject, now, source=source, query=query)
        elif change.what == "query":
            rows[change.subject].query = change.after
            audit(session, actor, "group-query", change.subject, now, source=source, query=change.after)
    session.flush()
    joins: dict[str, list[str]] = defaultdict(list)
    leaves: dict[str, list[str]] = defaultdict(list)
    for change in plan.changes:
        if change.what == "groups":
            before, after = set(change.before.split()), set(change.after.split())
            for name in after - before:
                joins[name].append(change.subject)
            for name in before - after:
                leaves[name].append(change.subject)
        elif change.what in {"tags", "note"}:
            row = need_device(session, change.subject)
            if change.what == "tags":
                set_tags(row, set(change.after.split()))
            else:
                row.notes = change.after
            audit(session, actor, "import", change.subject, now, source=source, **{change.what: change.after})
    for name in sorted(joins):
        add_to_group(session, name, joins[name], actor=actor, now=now)
    for name in sorted(leaves):
        remove_from_group(session, name, leaves[name], actor=actor, now=now)


# --- inside -------------------------------------------------------------------------------------------------


def _groups(session: Session) -> tuple[dict[str, str | None], dict[str, set[str]]]:
    """The query of each group, and the devices of those that are named."""
    rows = {row.id: row for row in session.scalars(select(GroupRow))}
    members: dict[str, set[str]] = {row.name: set() for row in rows.values() if row.query is None}
    query = select(GroupMemberRow.group_id, DeviceRow.name).join(
        DeviceRow, DeviceRow.id == GroupMemberRow.device_id
    )
    for group_id, device in session.execute(query):
        members[rows[group_id].name].add(device)
    return {row.name: row.query for row in rows.values()}, members


def _device_changes(wanted: InventoryDevice, one: DeviceFacts, groups: Collection[str]) -> list[Change]:
    pairs = {
        "tags": (one.tags, wanted.tags),
        "groups": (groups, wanted.groups),
    }
    found = [
        Change(one.name, what, " ".join(sorted(has)), " ".join(sorted(set(gets))))
        for what, (has, gets) in pairs.items()
        if gets is not None and set(gets) != set(has)
    ]
    if wanted.note is not None and wanted.note != one.notes:
        found.append(Change(one.name, "note", one.notes, wanted.note))
    return found


def _unknown(what: str, names: Sequence[str], known: Collection[str], hint: str) -> InventoryError:
    told = []
    for name in names[:_NAMED]:
        near = difflib.get_close_matches(name, list(known), n=1)
        told.append(f"{name} (nearest: {near[0]})" if near else name)
    rest = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return InventoryError(f"no {what} {', '.join(told)}{rest}", hint=hint)
