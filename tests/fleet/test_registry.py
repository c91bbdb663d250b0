from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeslm.errors import DeviceStateError, FleetSetupError, TopicError, UnknownDeviceError
from edgeslm.fleet import registry
from edgeslm.fleet.machines import judge
from edgeslm.fleet.store.database import Store, sqlite_url
from edgeslm.fleet.store.models import CertificateRow, DeviceRow
from edgeslm.schema.enrol import Machine
from edgeslm.schema.fleet import DeviceDetail

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)


def board(serial: str | None, boot: str, boots: int = 1) -> Machine:
    return Machine(serial=serial, boot_id=boot, boots=boots)


# --- whose key it is ----------------------------------------------------------------------------------------


def findings(*reports: Machine) -> list[str | None]:
    """What is found at each report, one after the other."""
    known: list[Machine] = []
    found = []
    for report in reports:
        judgement = judge(known, report)
        found.append(None if judgement is None else judgement.finding)
        known = [one for one in known if (one.serial, one.boot_id) != (report.serial, report.boot_id)] + [
            report
        ]
    return found


@given(st.lists(st.integers(1, 5), min_size=1, max_size=20), st.sampled_from([None, "s1"]))
def test_a_board_that_reports_and_boots_as_often_as_it_likes_is_not_odd(
    starts: list[int], serial: str | None
) -> None:
    reports = [
        board(serial, f"boot-{boot}", boot + 1) for boot, times in enumerate(starts) for _ in range(times)
    ]
    assert set(findings(*reports)) == {None}


def test_two_boards_that_take_turns_are_a_clone() -> None:
    a, b = board("s1", "a", 5), board("s2", "b", 6)
    assert findings(a, b, a, b) == [None, "moved", "cloned", "cloned"]


def test_two_machines_without_serial_numbers_that_take_turns_are_a_clone() -> None:
    a, b = board(None, "a", 5), board(None, "b", 6)
    assert findings(a, b, a) == [None, None, "cloned"]


def test_a_copy_that_boots_each_time_it_takes_its_turn_is_a_clone() -> None:
    assert findings(board("s1", "a", 5), board("s2", "b", 6), board("s1", "c", 7)) == [
        None,
        "moved",
        "cloned",
    ]


def test_a_card_in_another_board_was_moved_and_stays_there() -> None:
    assert findings(board("s1", "a", 5), board("s2", "b", 6), board("s2", "c", 7)) == [None, "moved", None]


def test_an_old_image_of_a_card_was_restored() -> None:
    assert findings(board("s1", "a", 5), board("s1", "b", 6), board("s1", "c", 4)) == [None, None, "restored"]
    assert findings(board("s1", "a", 5), board("s1", "b", 5)) == [None, "restored"]


def test_what_a_board_does_not_tell_is_not_held_against_it() -> None:
    assert findings(Machine(), Machine(boots=3), Machine(boots=1)) == [None, None, None]
    assert findings(board("s1", "a", 5), board(None, "b", 6), board("s1", "c", 7)) == [None, None, None]
    assert findings(board("s1", "a", 5), board("s1", "b", 0)) == [None, None]


# --- the store ----------------------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(sqlite_url(tmp_path / "fleet.db"))
    with opened.write() as session:
        session.add_all([device("kitchen", "1"), device("cellar", "2")])
    yield opened
    opened.close()


def device(name: str, serial: str) -> DeviceRow:
    certificate = CertificateRow(
        name=name,
        serial=serial,
        key_sha256="0" * 64,
        pem="",
        not_before=NOW,
        not_after=NOW + timedelta(days=30),
    )
    return DeviceRow(
        name=name,
        standing="active",
        key_sha256=serial * 64,
        notes="",
        created_at=NOW,
        certificates=[certificate],
    )


def show(store: Store, name: str = "kitchen") -> DeviceDetail:
    with store.read() as session:
        return registry.show_device(session, name)


def note(store: Store, machine: Machine, now: datetime) -> None:
    with store.write() as session:
        registry.note_machine(session, registry.need_device(session, "kitchen"), machine, now)


def test_a_clone_is_named_with_the_reason_and_stays_named(store: Store) -> None:
    for minute, machine in enumerate(
        [board("s1", "a", 5), board("s2", "b", 6), board("s1", "a", 5), board("s1", "c", 9)]
    ):
        note(store, machine, NOW + timedelta(minutes=minute))
    detail = show(store)
    assert detail.device.finding == "cloned"
    assert "s1" in (detail.device.finding_text or "")
    assert [event.kind for event in detail.events] == ["cloned", "moved"]
    assert [event.severity for event in detail.events] == ["error", "warning"]


def test_a_clone_that_goes_on_does_not_fill_the_store(store: Store) -> None:
    for minute in range(300):
        note(store, board(f"s{minute % 2}", f"boot-{minute % 2}", 5), NOW + timedelta(minutes=minute))
    detail = show(store)
    assert len(detail.machines) == 2
    assert len(detail.events) == 2


def test_only_so_many_boots_are_remembered(store: Store) -> None:
    for boot in range(120):
        note(store, board("s1", f"boot-{boot}", boot + 1), NOW + timedelta(minutes=boot))
    detail = show(store)
    assert len(detail.machines) == 50
    assert detail.machines[0].boots == 120
    assert detail.device.finding is None


def test_what_is_odd_can_be_accepted_and_counts_no_more(store: Store) -> None:
    with pytest.raises(DeviceStateError), store.write() as session:
        registry.accept_finding(session, "kitchen", actor="anna", now=NOW)
    note(store, board("s1", "a", 5), NOW)
    note(store, board("s2", "b", 6), NOW + timedelta(minutes=1))
    assert show(store).device.finding == "moved"
    with store.write() as session:
        registry.accept_finding(session, "kitchen", actor="anna", now=NOW)
    assert show(store).device.finding is None
    assert show(store).device.serial == "s2"
    note(store, board("s2", "b", 6), NOW + timedelta(minutes=2))
    assert show(store).device.finding is None
    note(store, board("s1", "a", 5), NOW + timedelta(minutes=3))
    assert show(store).device.finding == "moved"


def test_a_revoked_device_has_no_certificate_left(store: Store) -> None:
    with store.write() as session:
        registry.revoke_device(session, "kitchen", reason="stolen", actor="anna", now=NOW)
    detail = show(store)
    assert detail.device.standing == "revoked"
    assert [(one.revoked_at, one.reason) for one in detail.certificates] == [(NOW, "stolen")]
    assert show(store, "cellar").device.standing == "active"
    with pytest.raises(DeviceStateError), store.write() as session:
        registry.revoke_device(session, "kitchen", reason="again", actor="anna", now=NOW)


def test_a_device_is_retired_once_whether_it_was_revoked_or_not(store: Store) -> None:
    with store.write() as session:
        registry.revoke_device(session, "kitchen", reason="stolen", actor="anna", now=NOW)
        registry.retire_device(session, "kitchen", actor="anna", now=NOW)
        registry.retire_device(session, "cellar", actor="anna", now=NOW)
    assert {show(store, name).device.standing for name in ("kitchen", "cellar")} == {"retired"}
    assert show(store).certificates[0].reason == "stolen"
    with pytest.raises(DeviceStateError), store.write() as session:
        registry.retire_device(session, "cellar", actor="anna", now=NOW)


@pytest.mark.parametrize(
    ("name", "to", "error"),
    [
        ("kitchen", "cellar", DeviceStateError),
        ("kitchen", "pool", TopicError),
        ("kitchen", "d" * 59, FleetSetupError),
        ("nobody", "somebody", UnknownDeviceError),
    ],
)
def test_a_device_does_not_get_a_name_that_it_cannot_have(
    store: Store, name: str, to: str, error: type[Exception]
) -> None:
    with pytest.raises(error), store.write() as session:
        registry.rename_device(session, "green", name, to, actor="anna", now=NOW)
    assert show(store).device.rename_to is None


def test_two_devices_do_not_get_one_name(store: Store) -> None:
    with store.write() as session:
        registry.rename_device(session, "green", "kitchen", "attic", actor="anna", now=NOW)
    with pytest.raises(DeviceStateError), store.write() as session:
        registry.rename_device(session, "green", "cellar", "attic", actor="anna", now=NOW)


def test_a_device_that_is_renamed_back_before_it_took_the_name_keeps_its_own(store: Store) -> None:
    with store.write() as session:
        registry.rename_device(session, "green", "kitchen", "attic", actor="anna", now=NOW)
        registry.rename_device(session, "green", "kitchen", "kitchen", actor="anna", now=NOW)
    assert show(store).device.rename_to is None


def test_a_misspelt_name_brings_the_nearest(store: Store) -> None:
    with pytest.raises(UnknownDeviceError) as caught:
        show(store, "kitchne")
    assert caught.value.nearest == ("kitchen",)


def test_every_change_by_a_person_is_on_record(store: Store) -> None:
    with store.write() as session:
        registry.rename_device(session, "green", "kitchen", "attic", actor="anna", now=NOW)
        registry.revoke_device(session, "kitchen", reason="stolen", actor="ben", now=NOW)
        registry.retire_device(session, "cellar", actor="anna", now=NOW)
    with store.read() as session:
        found = [(one.actor, one.action, one.subject) for one in registry.list_audit(session)]
        assert found == [
            ("anna", "retire", "cellar"),
            ("ben", "revoke", "kitchen"),
            ("anna", "rename", "kitchen"),
        ]
        assert len(registry.list_audit(session, subject="cellar")) == 1
        assert len(registry.list_audit(session, limit=1)) == 1


def test_a_fault_that_is_repeated_is_noted_once_an_hour(store: Store) -> None:
    with store.write() as session:
        for minute in range(180):
            registry.note_fault(session, "kitchen", "bad-report", "rubbish", NOW + timedelta(minutes=minute))
    assert len(show(store).events) == 3


def test_devices_are_listed_by_name_with_the_end_of_their_certificates(store: Store) -> None:
    with store.read() as session:
        found = registry.list_devices(session)
    assert [(one.name, one.expires_at) for one in found] == [
        ("cellar", NOW + timedelta(days=30)),
        ("kitchen", NOW + timedelta(days=30)),
    ]
