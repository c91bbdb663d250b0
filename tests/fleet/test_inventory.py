from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.orm import Session

from edgeslm.errors import EdgeslmError, InventoryError, SelectionError
from edgeslm.fleet import groups, registry
from edgeslm.fleet.inventory import carry_out, plan_import, take_inventory
from edgeslm.fleet.inventory_files import read, to_csv, to_json
from edgeslm.fleet.selection import facts
from edgeslm.fleet.store.database import Store, sqlite_url
from edgeslm.fleet.store.models import DeviceRow, TagRow
from edgeslm.schema.inventory import MAX_INVENTORY_BYTES, Inventory

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
WHO = {"actor": "anna", "now": NOW}


def make_store(path: Path, *names: str) -> Store:
    opened = Store(sqlite_url(path))
    with opened.write() as session:
        for name in names:
            row = DeviceRow(name=name, standing="active", key_sha256="0" * 64, notes="", created_at=NOW)
            row.board = "pi-4b"
            session.add(row)
    return opened


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = make_store(tmp_path / "fleet.db", "attic", "cellar", "kitchen")
    with opened.write() as session:
        row = registry.need_device(session, "kitchen")
        row.tags, row.notes = [TagRow(tag="house"), TagRow(tag="a")], '=2+3, "quoted"; ü'
        groups.create_group(session, "upper", devices=["attic", "kitchen"], **WHO)
        groups.create_group(session, "inside", query="tag:house or group:upper", **WHO)
    yield opened
    opened.close()


def taken(session: Session) -> Inventory:
    return take_inventory(session, "green", facts(session))


def bring_in(store: Store, inventory: Inventory, *, skip_unknown: bool = False) -> list[tuple[str, str]]:
    with store.write() as session:
        plan = plan_import(session, inventory, facts(session), skip_unknown=skip_unknown)
        carry_out(session, plan, source="x.json", **WHO)
        return [(change.subject, change.what) for change in plan.changes]


def inventory(**parts: object) -> Inventory:
    return Inventory.model_validate_json(json.dumps(parts))


# --- out and in ---------------------------------------------------------------------------------------------


def test_what_went_out_comes_in_the_same(store: Store, tmp_path: Path) -> None:
    with store.read() as session:
        out = taken(session)
    other = make_store(tmp_path / "other.db", "attic", "cellar", "kitchen")
    changes = bring_in(other, read(to_json(out).encode(), "x.json"))
    assert ("inside", "group") in changes
    with other.read() as session:
        assert taken(session) == out
    assert bring_in(other, out) == [], "once more it changes nothing"
    other.close()


def test_a_table_carries_all_but_groups_of_a_query(store: Store, tmp_path: Path) -> None:
    with store.read() as session:
        out = taken(session)
    back = read(to_csv(out).encode(), "x.csv")
    assert back.devices == out.devices
    assert "'=2+3" in to_csv(out), "a spreadsheet must not take a note for a formula"


TEXTS = st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=30)
INVENTORIES = st.builds(
    lambda devices: Inventory(devices=tuple(devices)),
    st.lists(
        st.fixed_dictionaries(
            {
                "name": st.from_regex(r"[a-z0-9-]{1,8}", fullmatch=True),
                "tags": st.lists(st.from_regex(r"[a-z0-9][a-z0-9._-]{0,5}", fullmatch=True)).map(tuple),
                "note": TEXTS,
                "groups": st.lists(st.from_regex(r"[a-z0-9-]{1,8}", fullmatch=True)).map(tuple),
                "board": st.none() | TEXTS.filter(bool),
                "serial": st.none() | TEXTS.filter(bool),
            }
        ),
        max_size=5,
        unique_by=lambda one: one["name"],
    ),
)


@given(INVENTORIES)
def test_writing_and_reading_are_inverses(out: Inventory) -> None:
    assert read(to_json(out).encode(), "x.json") == out
    assert read(to_csv(out).encode(), "x.csv") == out


def test_what_a_file_does_not_mention_stays(store: Store) -> None:
    changes = bring_in(store, read(b"name,tags\nkitchen,sunny a\n", "X.CSV"))
    assert changes == [("kitchen", "tags")]
    with store.read() as session:
        one = next(each for each in facts(session) if each.name == "kitchen")
        assert (one.tags, one.notes) == (("a", "sunny"), '=2+3, "quoted"; ü')
        assert groups.show_group(session, facts(session), "upper", NOW).devices == ("attic", "kitchen")
        (first, *_) = registry.list_audit(session)
        assert (first.action, first.subject, first.detail["source"]) == ("import", "kitchen", "x.json")


def test_devices_change_groups(store: Store) -> None:
    parts = inventory(
        groups=[{"name": "lower"}],
        devices=[{"name": "kitchen", "groups": []}, {"name": "cellar", "groups": ["lower", "upper"]}],
    )
    bring_in(store, parts)
    with store.read() as session:
        found = {
            name: groups.show_group(session, facts(session), name, NOW).devices for name in ("upper", "lower")
        }
    assert found == {"upper": ("attic", "cellar"), "lower": ("cellar",)}


def test_new_queries_may_name_each_other_in_any_order(store: Store) -> None:
    parts = inventory(
        groups=[
            {"name": "a", "query": "group:b"},
            {"name": "b", "query": "group:inside"},
            {"name": "inside", "query": "tag:x"},
        ]
    )
    assert bring_in(store, parts) == [("a", "group"), ("b", "group"), ("inside", "query")]


def test_what_a_device_tells_is_not_taken_from_a_file(store: Store) -> None:
    with store.read() as session:
        plan = plan_import(session, inventory(devices=[{"name": "kitchen", "board": "pi-5"}]), facts(session))
    assert plan.changes == ()
    assert "pi-4b" in plan.remarks[0]


# --- refused whole ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parts", "error", "says"),
    [
        (
            {"devices": [{"name": "kitchen", "tags": ["z"]}, {"name": "atic"}]},
            InventoryError,
            "nearest: attic",
        ),
        ({"devices": [{"name": "kitchen", "groups": ["uper"]}]}, InventoryError, "nearest: upper"),
        ({"devices": [{"name": "kitchen", "groups": ["inside"]}]}, InventoryError, "inside"),
        ({"groups": [{"name": "upper", "query": "tag:x"}]}, InventoryError, "other kind"),
        ({"groups": [{"name": "inside"}]}, InventoryError, "other kind"),
        ({"groups": [{"name": "new", "query": "bord=x"}]}, SelectionError, "bord"),
        ({"groups": [{"name": "new", "query": "group:none-such"}]}, SelectionError, "none-such"),
        (
            {"groups": [{"name": "a", "query": "group:b"}, {"name": "b", "query": "group:a"}]},
            SelectionError,
            "a > b > a",
        ),
    ],
)
def test_what_does_not_fit_changes_nothing(
    store: Store, parts: dict[str, object], error: type[EdgeslmError], says: str
) -> None:
    with store.read() as session:
        before = taken(session)
    with pytest.raises(error, match=says):
        bring_in(store, inventory(**parts))
    with store.read() as session:
        assert taken(session) == before


def test_devices_that_the_fleet_has_not_can_be_left_out(store: Store) -> None:
    parts = inventory(devices=[{"name": "nobody", "tags": ["x"]}, {"name": "attic", "tags": ["x"]}])
    assert bring_in(store, parts, skip_unknown=True) == [("attic", "tags")]


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("x.json", b"", "JSON"),
        ("x.json", b"name,tags\n", "called .csv"),
        ("x.json", b"[]", "object"),
        ("x.json", b'{"devices":[{"name":"UPPER"}]}', "devices.0.name"),
        ("x.json", b'{"devices":[{"name":"a"},{"name":"a"}]}', "twice"),
        ("x.json", b'{"devices":[{"name":"a","board2":"x"}]}', "board2"),
        ("x.json", b'{"devices":[{"name":"a","note":"\\u001b"}]}', "note"),
        ("x.json", b'{"devices":[{"name":"a","note":"\\ud800"}]}', "JSON"),
        ("x.json", b'{"v":2}', "v"),
        ("x.json", b"[" * 100_000, "JSON"),
        ("x.json", b"\xff", "UTF-8"),
        ("x.json", b" " * (MAX_INVENTORY_BYTES + 1), "bytes"),
        ("x.csv", b"", "'name'"),
        ("x.csv", b"tags\nx\n", "'name'"),
        ("x.csv", b"name,owner\na,b\n", "owner"),
        ("x.csv", b"name,name\na,b\n", "once"),
        ("x.csv", b"name,tags\na\n", "line 2"),
        ("x.csv", b"name,tags\na,X\n", "tags"),
        ("x.csv", b'name,tags\na,"x\n', "line"),
        ("x.csv", b"name,note\na," + b"x" * 200_000 + b"\n", "line 2"),
        ("x.csv", b"name,note\na,\x00\n", "x.csv"),
    ],
)
def test_a_file_that_is_none_is_named(name: str, data: bytes, says: str) -> None:
    with pytest.raises(InventoryError, match=says) as caught:
        read(data, name)
    assert caught.value.path == name
    assert name in str(caught.value)


@given(st.binary(max_size=200), st.sampled_from(["x.csv", "x.json"]))
def test_whatever_is_in_a_file_is_an_inventory_or_a_named_fault(data: bytes, name: str) -> None:
    try:
        found = read(data, name)
    except InventoryError:
        return
    assert isinstance(found, Inventory)
