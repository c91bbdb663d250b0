"""Groups of devices: some that are named, or those that a query finds whenever the group is used.

What always holds: a query that is kept can be read, and names groups that there are, in no circle; every change by a
person is in the audit log, in the same transaction; a change is done whole or not at all.

Functions take a session of the store and commit nothing themselves.

Left to others: the language (:mod:`edgeslm.fleet.query`), and what is selected from groups
(:mod:`edgeslm.fleet.selection`).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from edgeslm.errors import SelectionError
from edgeslm.fleet.query import Query, groups_in, matches, parse, renamed_group, text_of
from edgeslm.fleet.query_fields import Moment
from edgeslm.fleet.registry import audit, need_device
from edgeslm.fleet.store.models import DeviceRow
from edgeslm.fleet.store.registry import GroupMemberRow, GroupRow
from edgeslm.schema.base import is_identifier
from edgeslm.schema.fleet import DeviceFacts, GroupRecord

# --- looking ------------------------------------------------------------------------------------------------


def moment_for(
    session: Session,
    known: Sequence[DeviceFacts],
    queries: Iterable[Query],
    *,
    also: Iterable[str] = (),
    now: datetime,
) -> Moment:
    """What queries are asked in: the groups that they name, with the devices in them.

    Args:
        known: all devices.
        queries: they name groups, which may name others.
        also: groups that are of interest besides.
        now: the present time.

    Raises:
        SelectionError: there is no such group; the nearest names are in the error.
    """
    kept = {row.name: row for row in session.scalars(select(GroupRow))}
    static: dict[int, set[str]] = {}
    members = select(GroupMemberRow.group_id, DeviceRow.name).join(
        DeviceRow, DeviceRow.id == GroupMemberRow.device_id
    )
    for group_id, name in session.execute(members):
        static.setdefault(group_id, set()).add(name)
    found: dict[str, frozenset[str]] = {}

    def find(name: str, expression: str, position: int | None) -> None:
        if name in found:
            return
        row = kept.get(name)
        if row is None:
            raise unknown_group(name, kept, expression=expression, position=position)
        if row.query is None:
            found[name] = frozenset(static.get(row.id, ()))
            return
        query = parse(row.query)
        for inner, place in groups_in(query).items():
            find(inner, row.query, place)
        moment = Moment(now, found)
        found[name] = frozenset(one.name for one in known if matches(query, one, moment))

    for name in also:
        find(name, name, None)
    for query in queries:
        for name, place in groups_in(query).items():
            find(name, text_of(query), place)
    return Moment(now, found)


def list_groups(session: Session, known: Sequence[DeviceFacts], now: datetime) -> list[GroupRecord]:
    """All groups by name, with the devices that are in each now."""
    rows = session.scalars(select(GroupRow).order_by(GroupRow.name)).all()
    moment = moment_for(session, known, (), also=[row.name for row in rows], now=now)
    return [_record(row, known, moment) for row in rows]


def show_group(session: Session, known: Sequence[DeviceFacts], name: str, now: datetime) -> GroupRecord:
    """One group with the devices that are in it now.

    Raises:
        SelectionError: there is none of that name.
    """
    row = _need_group(session, name)
    return _record(row, known, moment_for(session, known, (), also=[name], now=now))


def group_names(session: Session) -> list[str]:
    """Names of all groups."""
    return list(session.scalars(select(GroupRow.name).order_by(GroupRow.name)))


def unknown_group(
    name: str, known: Iterable[str], *, expression: str | None = None, position: int | None = None
) -> SelectionError:
    """The error for a group that there is not."""
    near = tuple(difflib.get_close_matches(name, list(known), n=3))
    return SelectionError(
        f"no group '{name}'", expression=expression or name, position=position, nearest=near
    )


def check_queries(queries: Mapping[str, str | None], names: Iterable[str]) -> None:
    """Refuse queries that name groups which there are not, or each other in a circle.

    Args:
        queries: of all groups, ``None`` where devices are named.
        names: the groups whose queries are new.

    Raises:
        SelectionError: the first fault that is found.
    """
    done: set[str] = set()

    def follow(name: str, path: tuple[str, ...], origin: tuple[str, int | None] | None) -> None:
        expression = queries[name]
        if expression is None or name in done:
            return
        for inner, position in groups_in(parse(expression)).items():
            written, place = origin or (expression, position)
            if inner not in queries:
                raise unknown_group(inner, queries, expression=written, position=place)
            if inner in path:
                circle = " > ".join((*path[path.index(inner) :], inner))
                raise SelectionError(
                    f"a group cannot be part of itself: {circle}", expression=written, position=place
                )
            follow(inner, (*path, inner), (written, place))
        done.add(name)

    for name in names:
        follow(name, (name,), None)


# --- what an operator does ----------------------------------------------------------------------------------


def create_group(
    session: Session,
    name: str,
    *,
    query: str | None = None,
    devices: Sequence[str] = (),
    actor: str,
    now: datetime,
) -> None:
    """Make a group: of the devices that `query` finds whenever it is used, or of those named.

    Raises:
        SelectionError: the name is none or taken, the query cannot be read or names a group that there is not.
        UnknownDeviceError: there is no such device.
    """
    _refuse_name(session, name)
    kept = None if query is None else _checked(session, name, query)
    row = GroupRow(name=name, query=kept, created_at=now, created_by=actor)
    session.add(row)
    session.flush()
    _put_in(session, row, devices)
    detail = {"query": kept} if kept is not None else {"devices": " ".join(devices)}
    audit(session, actor, "group-create", name, now, **detail)


def change_query(session: Session, name: str, query: str, *, actor: str, now: datetime) -> None:
    """Let another query find the devices of a group.

    Raises:
        SelectionError: there is no such group, or its devices are named; the query cannot be read, or names a group
            that there is not, or that leads back to this one.
    """
    row = _need_group(session, name)
    if row.query is None:
        raise SelectionError(f"the devices of '{name}' are named, no query finds them", expression=name)
    row.query = _checked(session, name, query)
    audit(session, actor, "group-query", name, now, query=row.query)


def add_to_group(session: Session, name: str, devices: Sequence[str], *, actor: str, now: datetime) -> int:
    """Put devices into a group; returns how many were not in it before.

    Raises:
        SelectionError: there is no such group, or a query finds its devices.
        UnknownDeviceError: there is no such device.
    """
    row = _need_static(session, name)
    added = _put_in(session, row, devices)
    audit(session, actor, "group-add", name, now, devices=" ".join(devices))
    return added


def remove_from_group(
    session: Session, name: str, devices: Sequence[str], *, actor: str, now: datetime
) -> int:
    """Take devices out of a group; returns how many were in it.

    Raises:
        SelectionError: there is no such group, or a query finds its devices.
        UnknownDeviceError: there is no such device.
    """
    row = _need_static(session, name)
    numbers = [need_device(session, device).id for device in devices]
    gone = session.scalars(
        select(GroupMemberRow).where(GroupMemberRow.group_id == row.id, GroupMemberRow.device_id.in_(numbers))
    ).all()
    for member in gone:
        session.delete(member)
    audit(session, actor, "group-remove", name, now, devices=" ".join(devices))
    return len(gone)


def rename_group(session: Session, name: str, to: str, *, actor: str, now: datetime) -> None:
    """Give a group another name, in the queries of other groups as well.

    Raises:
        SelectionError: there is no such group; the new name is none or taken.
    """
    row = _need_group(session, name)
    _refuse_name(session, to)
    for other in _users(session, name):
        other.query = text_of(renamed_group(parse(other.query or ""), name, to))
    row.name = to
    audit(session, actor, "group-rename", name, now, to=to)


def delete_group(session: Session, name: str, *, actor: str, now: datetime) -> None:
    """Forget a group; its devices stay as they are.

    Raises:
        SelectionError: there is no such group, or the query of another one names it.
    """
    row = _need_group(session, name)
    users = ", ".join(other.name for other in _users(session, name))
    if users:
        raise SelectionError(f"the query of {users} names '{name}'", expression=name)
    session.execute(delete(GroupMemberRow).where(GroupMemberRow.group_id == row.id))
    session.delete(row)
    audit(session, actor, "group-delete", name, now)


# --- inside -------------------------------------------------------------------------------------------------


def _need_group(session: Session, name: str) -> GroupRow:
    row = session.scalars(select(GroupRow).where(GroupRow.name == name)).one_or_none()
    if row is None:
        raise unknown_group(name, group_names(session))
    return row


def _need_static(session: Session, name: str) -> GroupRow:
    row = _need_group(session, name)
    if row.query is not None:
        raise SelectionError(
            f"a query finds the devices of '{name}': {row.query}. Nobody is put in or taken out by name",
            expression=name,
        )
    return row


def _refuse_name(session: Session, name: str) -> None:
    if not is_identifier(name):
        raise SelectionError(f"'{name}' is no name of a group: 1 to 64 of a-z, 0-9 and -", expression=name)
    if name in group_names(session):
        raise SelectionError(f"there is a group '{name}' already", expression=name)


def _checked(session: Session, name: str, expression: str) -> str:
    """The query as it is kept.

    Raises:
        SelectionError: it cannot be read, or names a group that there is not, or that leads back to `name`.
    """
    query = parse(expression)
    kept = {row.name: row.query for row in session.scalars(select(GroupRow))}
    check_queries({**kept, name: expression}, [name])
    return text_of(query)


def _users(session: Session, name: str) -> list[GroupRow]:
    """Groups whose query names `name`."""
    rows = session.scalars(select(GroupRow).where(GroupRow.query.is_not(None)).order_by(GroupRow.name))
    return [row for row in rows if name in groups_in(parse(row.query or ""))]


def _put_in(session: Session, row: GroupRow, devices: Sequence[str]) -> int:
    there = set(session.scalars(select(GroupMemberRow.device_id).where(GroupMemberRow.group_id == row.id)))
    wanted = {need_device(session, device).id for device in devices} - there
    session.add_all(GroupMemberRow(group_id=row.id, device_id=number) for number in sorted(wanted))
    session.flush()
    return len(wanted)


def _record(row: GroupRow, known: Sequence[DeviceFacts], moment: Moment) -> GroupRecord:
    inside = [one for one in known if one.name in moment.groups[row.name]]
    return GroupRecord(
        name=row.name,
        query=row.query,
        devices=tuple(one.name for one in inside if one.standing == "active"),
        idle=tuple(one.name for one in inside if one.standing != "active"),
        created_at=row.created_at,
        created_by=row.created_by,
    )
