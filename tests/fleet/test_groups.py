from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy.orm import Session

from edgeslm.errors import DeviceStateError, SelectionError, UnknownDeviceError, UsageError
from edgeslm.fleet import groups, labels, registry
from edgeslm.fleet.labels import TagChange, parse_tags
from edgeslm.fleet.selection import facts, select
from edgeslm.fleet.store.database import Store, sqlite_url
from edgeslm.fleet.store.models import DeviceRow, TagRow
from edgeslm.schema.fleet import MAX_NOTE_CHARS, MAX_TAGS, GroupRecord

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
WHO = {"actor": "anna", "now": NOW}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(sqlite_url(tmp_path / "fleet.db"))
    with opened.write() as session:
        for name in ("attic", "cellar", "kitchen"):
            tags = [TagRow(tag="house")] if name != "attic" else []
            session.add(
                DeviceRow(
                    name=name, standing="active", key_sha256="0" * 64, notes="", created_at=NOW, tags=tags
                )
            )
    yield opened
    opened.close()


@pytest.fixture
def session(store: Store) -> Iterator[Session]:
    with store.write() as opened:
        yield opened


def show(session: Session, name: str) -> GroupRecord:
    return groups.show_group(session, facts(session), name, NOW)


def actions(session: Session) -> list[str]:
    session.flush()
    return [one.action for one in registry.list_audit(session)]


# --- groups -------------------------------------------------------------------------------------------------


def test_a_group_of_named_devices_has_those_that_were_put_in(session: Session) -> None:
    groups.create_group(session, "upper", devices=["attic"], **WHO)
    assert groups.add_to_group(session, "upper", ["attic", "kitchen"], **WHO) == 1
    assert show(session, "upper").devices == ("attic", "kitchen")
    assert groups.remove_from_group(session, "upper", ["attic", "cellar"], **WHO) == 1
    assert show(session, "upper").devices == ("kitchen",)
    assert actions(session) == ["group-remove", "group-add", "group-create"]


def test_a_group_of_a_query_has_whoever_matches_when_it_is_used(session: Session) -> None:
    groups.create_group(session, "inside", query="tag:house", **WHO)
    assert show(session, "inside").devices == ("cellar", "kitchen")
    labels.tag_device(session, "attic", TagChange(add=frozenset({"house"})), **WHO)
    session.flush()
    assert show(session, "inside").devices == ("attic", "cellar", "kitchen")
    groups.change_query(session, "inside", "name=attic", **WHO)
    assert show(session, "inside").query == "name = attic"


def test_a_device_stays_in_its_groups_when_it_is_renamed(session: Session) -> None:
    groups.create_group(session, "upper", devices=["attic"], **WHO)
    registry.need_device(session, "attic").name = "loft"
    session.flush()
    assert show(session, "upper").devices == ("loft",)


def test_devices_that_are_not_in_use_are_told_apart(session: Session) -> None:
    groups.create_group(session, "all", query="not name=nobody", **WHO)
    groups.create_group(session, "upper", devices=["attic", "kitchen"], **WHO)
    registry.retire_device(session, "attic", **WHO)
    session.flush()
    assert (show(session, "upper").devices, show(session, "upper").idle) == (("kitchen",), ("attic",))
    assert show(session, "all").idle == ("attic",)


def test_groups_are_built_of_groups(session: Session) -> None:
    groups.create_group(session, "upper", devices=["attic"], **WHO)
    groups.create_group(session, "inside", query="tag:house", **WHO)
    groups.create_group(session, "both", query="group:upper or group:inside and not name=cellar", **WHO)
    assert show(session, "both").devices == ("attic", "kitchen")
    assert [one.name for one in select(session, groups=["both"])] == ["attic", "kitchen"]


def test_a_circle_is_refused_and_named(session: Session) -> None:
    groups.create_group(session, "a", query="tag:house", **WHO)
    groups.create_group(session, "b", query="group:a", **WHO)
    groups.create_group(session, "c", query="group:b or group:a", **WHO)
    with pytest.raises(SelectionError, match="a > c > b > a") as caught:
        groups.change_query(session, "a", "tag:x or group:c", **WHO)
    assert (caught.value.expression, caught.value.position) == ("tag:x or group:c", 15)
    with pytest.raises(SelectionError, match="d > d"):
        groups.create_group(session, "d", query="not group:d", **WHO)
    assert show(session, "a").query == "tag:house"


def test_a_group_that_another_names_is_renamed_with_it_and_not_forgotten(session: Session) -> None:
    groups.create_group(session, "a", query="tag:house", **WHO)
    groups.create_group(session, "b", query="group:a and name != cellar", **WHO)
    with pytest.raises(SelectionError, match="b"):
        groups.delete_group(session, "a", **WHO)
    groups.rename_group(session, "a", "inside", **WHO)
    assert show(session, "b").query == "group:inside and name != cellar"
    assert show(session, "b").devices == ("kitchen",)
    groups.delete_group(session, "b", **WHO)
    groups.delete_group(session, "inside", **WHO)
    assert groups.group_names(session) == []


def test_a_group_is_of_one_kind(session: Session) -> None:
    groups.create_group(session, "named", devices=["attic"], **WHO)
    groups.create_group(session, "found", query="tag:house", **WHO)
    for change in (groups.add_to_group, groups.remove_from_group):
        with pytest.raises(SelectionError, match="tag:house"):
            change(session, "found", ["attic"], **WHO)
    with pytest.raises(SelectionError, match="named"):
        groups.change_query(session, "named", "tag:house", **WHO)


@pytest.mark.parametrize("name", ["", "Upper", "a b", "x" * 65, "taken", "a/b"])
def test_a_name_that_is_none_or_taken_is_refused(session: Session, name: str) -> None:
    groups.create_group(session, "taken", devices=["attic"], **WHO)
    with pytest.raises(SelectionError):
        groups.create_group(session, name, devices=["kitchen"], **WHO)
    with pytest.raises(SelectionError):
        groups.rename_group(session, "taken", name, **WHO)


def test_what_there_is_not_brings_the_nearest_and_changes_nothing(store: Store) -> None:
    with store.write() as session:
        groups.create_group(session, "upper", devices=["attic"], **WHO)
    with pytest.raises(UnknownDeviceError) as unknown, store.write() as session:
        groups.add_to_group(session, "upper", ["kitchen", "celar"], **WHO)
    assert unknown.value.nearest == ("cellar",)
    with pytest.raises(SelectionError) as caught, store.write() as session:
        groups.create_group(session, "more", query="tag:house or group:uper", **WHO)
    assert (caught.value.nearest, caught.value.position) == (("upper",), 19)
    with store.read() as session:
        assert groups.group_names(session) == ["upper"]
        assert show(session, "upper").devices == ("attic",)


# --- tags and notes -----------------------------------------------------------------------------------------


def test_tags_are_put_on_and_taken_off(session: Session) -> None:
    change = parse_tags(["+north", "+site.3", "-house", "-nothing"])
    assert labels.tag_device(session, "kitchen", change, **WHO) == ["north", "site.3"]
    assert labels.tag_device(session, "kitchen", change, **WHO) == ["north", "site.3"]
    assert actions(session) == ["tag"], "what changes nothing leaves no entry"
    assert labels.tags_in_use(session) == ["house", "north", "site.3"]


@pytest.mark.parametrize("word", ["+", "-", "+Upper", "+a b", "+" + "x" * 65, "+-x", "+\x1b[2J"])
def test_a_tag_that_is_none_is_refused(word: str) -> None:
    with pytest.raises(UsageError):
        parse_tags([word])


def test_a_tag_cannot_come_and_go_at_once() -> None:
    with pytest.raises(UsageError, match="north"):
        parse_tags(["+north", "-north"])


def test_a_device_has_so_many_tags_and_no_more(session: Session) -> None:
    change = TagChange(add=frozenset(f"t{number}" for number in range(MAX_TAGS)))
    with pytest.raises(UsageError, match=str(MAX_TAGS)):
        labels.tag_device(session, "kitchen", change, **WHO)


def test_a_note_is_kept_and_removed(session: Session) -> None:
    labels.note_device(session, "kitchen", "  über der Tür ", **WHO)
    assert registry.need_device(session, "kitchen").notes == "über der Tür"
    labels.note_device(session, "kitchen", "", **WHO)
    assert registry.need_device(session, "kitchen").notes == ""
    assert actions(session) == ["note", "note"]


@pytest.mark.parametrize("text", ["x" * (MAX_NOTE_CHARS + 1), "red \x1b[31m", "two\nlines", "c1 \x9b"])
def test_a_note_that_cannot_be_shown_is_refused(session: Session, text: str) -> None:
    with pytest.raises(UsageError):
        labels.note_device(session, "kitchen", text, **WHO)


# --- selecting: see also test_selection ---------------------------------------------------------------------


def test_a_named_device_that_is_not_in_use_is_an_error(session: Session) -> None:
    registry.retire_device(session, "attic", **WHO)
    session.flush()
    with pytest.raises(DeviceStateError, match="retired"):
        select(session, devices=["attic"])
