from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.orm import Session

from edgeslm.errors import UnknownDeviceError
from edgeslm.fleet import groups, history, labels, registry
from edgeslm.fleet.assignments import take_reported
from edgeslm.fleet.differences import difference_from_assigned, differences
from edgeslm.fleet.history import EventFilter, find_actions, find_events
from edgeslm.fleet.runs import MAX_ENDED, list_runs
from edgeslm.fleet.selection import facts
from edgeslm.fleet.store.database import Store, sqlite_url, upgrade
from edgeslm.fleet.store.models import CertificateRow, DeviceRow
from edgeslm.fleet.store.rollouts import MemberRow, RolloutRow
from edgeslm.schema.fleet import DeviceFacts

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
DAY = timedelta(days=1)


@pytest.fixture
def session(tmp_path: Path) -> Iterator[Session]:
    opened = Store(sqlite_url(tmp_path / "fleet.db"))
    with opened.write() as session:
        for number, name in enumerate(("kitchen", "cellar")):
            session.add(
                DeviceRow(
                    name=name,
                    standing="active",
                    key_sha256=str(number) * 64,
                    notes="",
                    serial=f"SN-00{number}",
                    created_at=NOW,
                    certificates=[certificate(name, f"{number}", NOW)],
                )
            )
        session.flush()
        yield session
    opened.close()


def certificate(name: str, serial: str, at: datetime) -> CertificateRow:
    return CertificateRow(
        name=name, serial=serial, key_sha256="0" * 64, pem="", not_before=at, not_after=at + 30 * DAY
    )


def report(session: Session, seq: int, at: datetime, **versions: str | None) -> None:
    models = [{"name": name, "version": version, "sha256": "a" * 64} for name, version in versions.items()]
    body = {"v": 1, "device": "kitchen", "epoch": "e", "seq": seq, "assignment": 1, "models": models}
    assert take_reported(session, "kitchen", json.dumps(body).encode(), at) is not None
    session.flush()


def told(session: Session, name: str = "kitchen", **asked: Any) -> list[str]:
    session.flush()
    return [f"{one.kind} {one.text}".strip() for one in history.history(session, name, **asked)]


# --- what ran -----------------------------------------------------------------------------------------------


def test_what_ran_is_kept_from_when_until_when(session: Session) -> None:
    report(session, 1, NOW, lamp="1.0.0", door="1.0.0")
    report(session, 2, NOW + DAY, lamp="1.0.0", door="1.0.0")
    report(session, 3, NOW + 2 * DAY, lamp="1.1.0", door="1.0.0")
    report(session, 4, NOW + 3 * DAY, lamp="1.0.0")
    report(session, 5, NOW + 4 * DAY, lamp=None)
    row = registry.need_device(session, "kitchen")
    assert [(one.name, one.version, one.since, one.until) for one in reversed(list_runs(session, row))] == [
        ("lamp", "1.0.0", NOW, NOW + 2 * DAY),
        ("door", "1.0.0", NOW, NOW + 3 * DAY),
        ("lamp", "1.1.0", NOW + 2 * DAY, NOW + 3 * DAY),
        ("lamp", "1.0.0", NOW + 3 * DAY, NOW + 4 * DAY),
    ]


def test_a_device_that_reports_something_else_each_time_does_not_fill_the_store(session: Session) -> None:
    for number in range(MAX_ENDED + 5):
        report(session, number + 1, NOW + timedelta(minutes=number), lamp=f"1.{number}.0")
    runs = list_runs(session, registry.need_device(session, "kitchen"))
    assert len(runs) <= MAX_ENDED + 2
    assert (runs[0].version, runs[0].until) == (f"1.{MAX_ENDED + 4}.0", None)


def test_history_says_what_ran_and_what_no_longer_does(session: Session) -> None:
    report(session, 1, NOW, lamp="1.0.0")
    report(session, 2, NOW + DAY, lamp="1.1.0")
    report(session, 3, NOW + 2 * DAY)
    runs = [line for line in told(session) if line.startswith("runs")]
    assert runs == ["runs lamp 1.0.0", "runs lamp 1.1.0", "runs-no-more lamp 1.1.0"]


def test_what_ran_before_this_release_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "old.db"
    engine = create_engine(sqlite_url(path))
    with engine.begin() as connection:
        upgrade(connection, "0001")
        connection.execute(
            text(
                "INSERT INTO devices (id, name, standing, key_sha256, notes, created_at)"
                " VALUES (7, 'kitchen', 'active', 'k', '', '2026-11-24 12:00:00')"
            )
        )
        value = json.dumps(
            {"models": [{"name": "lamp", "version": "1.0.0", "sha256": "s"}, {"name": "door"}]}
        )
        for number in (7, 8):  # one is of a device that there is not
            connection.execute(
                text("INSERT INTO facts (key, value) VALUES (:key, :value)"),
                {"key": f"reported/{number}", "value": value},
            )
    engine.dispose()
    opened = Store(sqlite_url(path))
    with opened.read() as session:
        runs = list_runs(session, registry.need_device(session, "kitchen"))
        assert [(run.name, run.version, run.sha256, run.until) for run in runs] == [
            ("lamp", "1.0.0", "s", None)
        ]
        assert [one.running for one in facts(session)] == [{"lamp": "1.0.0"}]
    opened.close()


# --- one line of time ---------------------------------------------------------------------------------------


def test_history_is_of_one_device_in_the_order_of_time(session: Session) -> None:
    row = registry.need_device(session, "kitchen")
    registry.note_event(session, "kitchen", "joined", "joined under claim x", NOW, device=row)
    labels.note_device(session, "kitchen", "left shelf", actor="anna", now=NOW + DAY)
    labels.note_device(session, "cellar", "right shelf", actor="anna", now=NOW + DAY)
    registry.revoke_device(session, "kitchen", reason="stolen", actor="ben", now=NOW + 2 * DAY)
    assert told(session) == [
        "joined joined under claim x",
        "issued 0 for 'kitchen' until 2026-12-24",
        "note text=left shelf",
        "revoked stolen",
        "revoke reason=stolen",
        "refused 0 for 'kitchen': stolen",
    ]
    assert told(session, since=NOW + 2 * DAY)[0] == "revoked stolen"
    who = [one.by for one in history.history(session, "kitchen") if one.source == "action"]
    assert who == ["anna", "ben"]
    with pytest.raises(UnknownDeviceError):
        told(session, "kitchne")


def test_history_goes_on_through_a_rename_and_leaves_others_alone(session: Session) -> None:
    labels.note_device(session, "kitchen", "first", actor="anna", now=NOW + DAY)
    row = registry.need_device(session, "kitchen")
    row.name = "galley"
    row.certificates[0].revoked_at, row.certificates[0].reason = NOW + 2 * DAY, "renamed to galley"
    row.certificates.append(certificate("galley", "10", NOW + 2 * DAY))
    registry.note_event(session, "galley", "renamed", "was 'kitchen' before", NOW + 2 * DAY, device=row)
    heir = DeviceRow(
        name="kitchen",
        standing="active",
        key_sha256="9" * 64,
        notes="",
        created_at=NOW + 3 * DAY,
        certificates=[certificate("kitchen", "20", NOW + 3 * DAY)],
    )
    session.add(heir)
    session.flush()
    labels.note_device(session, "kitchen", "second", actor="anna", now=NOW + 4 * DAY)
    labels.note_device(session, "galley", "third", actor="anna", now=NOW + 5 * DAY)
    notes = {name: [line for line in told(session, name) if "note" in line] for name in ("galley", "kitchen")}
    assert notes == {"galley": ["note text=first", "note text=third"], "kitchen": ["note text=second"]}


def test_history_tells_of_rollouts(session: Session) -> None:
    rollout = RolloutRow(
        name="lamp",
        version="1.1.0",
        sha256="a" * 64,
        plan={},
        phase="done",
        created_at=NOW,
        created_by="anna",
        changed_at=NOW,
    )
    session.add(rollout)
    session.flush()
    row = registry.need_device(session, "kitchen")
    session.add(
        MemberRow(
            rollout_id=rollout.id, device_id=row.id, board="pi-4b", wave=0, status="failed", detail="slower"
        )
    )
    assert f"rollout rollout {rollout.id} of lamp 1.1.0, failed here: slower" in told(session)


def test_all_about_a_device_is_its_groups_and_runs_too(session: Session) -> None:
    report(session, 1, NOW, lamp="1.0.0")
    groups.create_group(session, "b", query="name ~ kit*", actor="anna", now=NOW)
    groups.create_group(session, "a", query="group:b", actor="anna", now=NOW)
    groups.create_group(session, "c", devices=["cellar"], actor="anna", now=NOW)
    detail = history.full_detail(session, "kitchen", NOW)
    assert (detail.groups, detail.device.running) == (("a", "b"), {"lamp": "1.0.0"})
    assert [run.version for run in detail.runs] == ["1.0.0"]


# --- events and actions -------------------------------------------------------------------------------------


def test_events_are_filtered_and_followed(session: Session) -> None:
    row = registry.need_device(session, "kitchen")
    for number in range(5):
        kind = "update" if number % 2 else "renewed"
        registry.note_event(session, "kitchen", kind, f"n{number}", NOW + number * DAY, device=row)
    registry.note_event(session, "abc", "waits", "n5", NOW, severity="warning")
    session.flush()

    def texts(wanted: EventFilter, **more: int) -> list[str]:
        return [one.text for one in find_events(session, wanted, **more)[0]]

    assert texts(EventFilter()) == ["n0", "n1", "n2", "n3", "n4", "n5"]
    assert texts(EventFilter(), limit=2) == ["n4", "n5"]
    assert texts(EventFilter(kinds=("update",))) == ["n1", "n3"]
    assert texts(EventFilter(severities=("warning",))) == ["n5"]
    assert texts(EventFilter(devices=("kitchen",), since=NOW + 3 * DAY)) == ["n3", "n4"]
    assert texts(EventFilter(devices=("cellar",))) == []
    _, last = find_events(session, EventFilter(kinds=("nothing",)))
    registry.note_event(session, "kitchen", "update", "n6", NOW, device=row)
    session.flush()
    assert texts(EventFilter(), after=last) == ["n6"]
    assert history.event_kinds(session) == ["renewed", "update", "waits"]


def test_actions_are_filtered(session: Session) -> None:
    registry.audit(session, "anna@desk", "group-add", "upper", NOW)
    registry.audit(session, "anna@desk", "release add", "lamp@1.0.0", NOW + DAY)
    registry.audit(session, "ben%@desk", "release-x", "lamp@1.0.0", NOW + 2 * DAY)
    session.flush()

    def found(**asked: Any) -> list[str]:
        return [one.action for one in find_actions(session, **asked)]

    assert found() == ["release-x", "release add", "group-add"]
    assert found(actor="anna") == ["release add", "group-add"]
    assert found(actor="%") == ["release-x"]
    assert found(action="release") == ["release-x", "release add"]
    assert found(action="group", subject="upper") == ["group-add"]
    assert found(since=NOW + DAY, limit=1) == ["release-x"]
    assert found(action="rel") == []


# --- search -------------------------------------------------------------------------------------------------


def test_search_finds_a_word_wherever_it_is(session: Session) -> None:
    labels.tag_device(session, "kitchen", labels.parse_tags(["+north"]), actor="anna", now=NOW)
    labels.note_device(session, "cellar", "North_wall 100%", actor="anna", now=NOW)
    groups.create_group(session, "upper", query="tag:north", actor="anna", now=NOW)
    registry.note_event(session, "kitchen", "moved", "to the north side", NOW)
    session.flush()

    def found(text: str) -> list[tuple[str, str, str]]:
        return [(one.kind, one.name, one.where) for one in history.search(session, facts(session), text)]

    assert found("NORTH") == [
        ("device", "cellar", "note"),
        ("device", "kitchen", "tag"),
        ("group", "upper", "query"),
        ("event", "kitchen", "moved 2026-11-24 12:00"),
    ]
    assert found("sn-001") == [("device", "cellar", "serial")]
    assert found("100%") == [("device", "cellar", "note")]
    assert found("h_w") == [("device", "cellar", "note")]
    assert found("%") == [("device", "cellar", "note")]
    assert found("nothing of that kind") == []


# --- differences --------------------------------------------------------------------------------------------


def device(name: str, **facts: Any) -> DeviceFacts:
    return DeviceFacts.model_validate(
        {"name": name, "standing": "active", "key_sha256": "0" * 64, "created_at": NOW, **facts}
    )


def test_two_devices_differ_in_what_one_has_and_the_other_has_not() -> None:
    one = device("a", board="pi-4b", tags=("x", "y"), running={"lamp": "1.0.0"}, budget='{"day": {"wh": 5}}')
    other = device("b", board="pi-5", tags=("y",), running={"lamp": "1.1.0"}, budget='{"day": {"wh": 6}}')
    settings = {"a": '{"limits": {"max_queue": 4}}', "b": "{}"}
    found = differences(one, other, groups={"g": ["b"], "h": ["a", "b"]}, settings=settings)
    assert [(each.what, each.one, each.other) for each in found] == [
        ("board", "pi-4b", "pi-5"),
        ("tag x", "yes", None),
        ("model lamp", "1.0.0", "1.1.0"),
        ("budget day.wh", "5", "6"),
        ("setting limits.max_queue", "4", None),
        ("group g", None, "yes"),
    ]
    assert differences(one, one, groups={}) == []
    assert any(each.what == "tag y" for each in differences(one, other, groups={}, equal_too=True))


def test_a_device_differs_from_what_is_assigned_to_it() -> None:
    one = device("a", running={"lamp": "1.0.0", "own": "1.0.0"}, assigned={"lamp": "1.1.0", "door": "1.0.0"})
    found = difference_from_assigned(one)
    assert [(each.what, each.one, each.other) for each in found] == [
        ("model lamp", "1.0.0", "1.1.0"),
        ("model door", None, "1.0.0"),
    ]
    found = difference_from_assigned(
        one, settings=('{"threads": 2}', '{"threads": 4, "pool": true}'), numbers=(None, 7)
    )
    assert [(each.what, each.one, each.other) for each in found if "model" not in each.what] == [
        ("assignment", None, "7"),
        ("setting threads", "2", "4"),
        ("setting pool", None, "true"),
    ]
    assert difference_from_assigned(device("a", running={"lamp": "1.0.0"}, assigned={"lamp": "1.0.0"})) == []
