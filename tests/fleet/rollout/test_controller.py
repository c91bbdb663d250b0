"""The controller over a real store: nothing lost, nothing twice, renewals, rollouts that meet."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[3]))

from benchmarks.rollout_rig import FLEET, PaperFleet, many, paper_fleet
from edgeslm import topics
from edgeslm.errors import DeviceStateError, RolloutError
from edgeslm.fleet.assignments import last_assignment, last_reported, mark_published
from edgeslm.fleet.registry import need_device, retire_device
from edgeslm.fleet.reports import ReportInbox, take_reports
from edgeslm.fleet.rollout import operate
from edgeslm.fleet.rollout.views import held_up_by
from edgeslm.fleet.store.rollouts import DesiredRow
from edgeslm.link.port import Message
from edgeslm.schema.assignment import DEFAULT_LIFETIME, Assignment
from edgeslm.schema.rollout import parse_window


@pytest.fixture
def fleet() -> Iterator[PaperFleet]:
    with paper_fleet(many(4)) as made:
        yield made


def desired(fleet: PaperFleet, device: str) -> list[Assignment]:
    """All that was published to a device."""
    bodies = fleet.broker.sent.get(topics.device_topic(FLEET, device, "desired"), [])
    return [Assignment.model_validate_json(json.dumps(json.loads(body)["signed"])) for body in bodies]


# --- nothing lost, nothing twice ----------------------------------------------------------------------------


def test_what_was_written_and_not_confirmed_is_sent_by_the_next_controller(fleet: PaperFleet) -> None:
    fleet.begin()
    fleet.hear()
    fleet.controller.turn()
    first = desired(fleet, "d0000")
    assert len(first) == 1
    fleet.broker.retained.clear()  # the broker lost it, and the controller is killed
    fleet.now += timedelta(minutes=1)
    fleet.new_controller().turn()
    assert desired(fleet, "d0000") == first * 2, "the same bytes again"
    fleet.confirm()
    fleet.controller.turn()
    fleet.now += timedelta(minutes=1)
    fleet.new_controller().turn()
    assert len(desired(fleet, "d0000")) == 2


def test_an_older_assignment_that_may_have_come_last_is_followed_by_the_newer(fleet: PaperFleet) -> None:
    fleet.begin()
    fleet.hear()
    fleet.controller.turn()
    with fleet.store.write() as session:
        row = session.get_one(DesiredRow, need_device(session, "d0000").id)
        mark_published(session, row.device_id, row.seq - 1)
        session.flush()
        assert row.published_seq == 0


def test_a_device_that_is_gone_is_skipped_and_the_others_go_on(fleet: PaperFleet) -> None:
    rollout_id = fleet.begin()
    with fleet.store.write() as session:
        retire_device(session, "d0001", actor="me", now=fleet.now)
    view = fleet.settle(rollout_id)
    assert view.phase == "completed"
    assert fleet.statuses(rollout_id)["d0001"] == "skipped"
    assert view.passed == 3


def test_a_rollout_of_many_is_asked_in_parts_that_leave_room_for_others() -> None:
    with paper_fleet(many(250)) as fleet:
        fleet.begin()
        fleet.hear()
        counts = []
        for _ in range(3):
            assert fleet.controller.turn()
            counts.append(list(fleet.statuses(1).values()).count("asked"))
        assert counts == [100, 200, 250]


# --- reports ------------------------------------------------------------------------------------------------


def test_only_the_newest_report_of_each_device_waits() -> None:
    inbox = ReportInbox()
    for number in range(1000):
        topic = topics.device_topic(FLEET, f"d{number % 3}", "reported")
        assert inbox.put(Message(topic, str(number).encode()))
    assert not inbox.put(Message("elsewhere/reported", b""))
    assert not inbox.put(Message(topics.device_topic(FLEET, "d1", "info"), b""))
    assert len(inbox) == 3
    assert dict(inbox.take(0)) == {"d0": b"999", "d1": b"997", "d2": b"998"}
    assert inbox.take(0) == []


def test_a_report_that_is_none_hurts_no_other(fleet: PaperFleet) -> None:
    device = fleet.devices["d0001"]
    bad = [("d0000", b"\xff" * 100), ("nobody", b"{}"), ("d0002", b"[" * 10_000), ("d0001", device.report())]
    take_reports(fleet.store, bad, fleet.now)
    with fleet.store.read() as session:
        kept = last_reported(session, need_device(session, "d0001"))
    assert kept is not None
    assert kept.seq == device.seq


def test_a_device_with_impossible_numbers_stops_neither_a_rollout_nor_renewals(fleet: PaperFleet) -> None:
    fleet.settle(fleet.begin())
    liar = fleet.devices["d0000"]
    liar.follows, liar.seq = 2**60, 2**80
    fleet.say(liar)
    rollout_id = fleet.begin("1.2.0", max_failures=1)
    view = fleet.settle(rollout_id)
    assert (view.phase, view.passed) == ("completed", 3)
    assert fleet.statuses(rollout_id)["d0000"] == "failed"
    fleet.now += DEFAULT_LIFETIME * 0.6
    fleet.new_controller()
    fleet.round()
    assert len(desired(fleet, "d0001")) == 3
    assert len(desired(fleet, "d0000")) == 1
    assert not fleet.controller.renew()


# --- renewal ------------------------------------------------------------------------------------------------


def test_assignments_are_made_anew_before_they_expire_also_without_a_rollout(fleet: PaperFleet) -> None:
    fleet.settle(fleet.begin())
    first = desired(fleet, "d0000")[-1]
    fleet.now += DEFAULT_LIFETIME * 0.6
    fleet.new_controller()
    for _ in range(3):
        fleet.round()
    renewed = desired(fleet, "d0000")[-1]
    assert renewed.seq > first.seq
    assert renewed.releases == first.releases
    assert renewed.expires_at == fleet.now + DEFAULT_LIFETIME
    assert fleet.devices["d0000"].history == [("lamp", "1.1.0", first.seq)], "the device changes nothing"


def test_a_board_that_was_replaced_gets_what_was_meant_for_the_one_before(fleet: PaperFleet) -> None:
    fleet.settle(fleet.begin())
    first = desired(fleet, "d0000")[-1]
    with fleet.store.write() as session:
        need_device(session, "d0000").key_sha256 = "e" * 64
    fleet.new_controller()
    fleet.now += timedelta(minutes=2)
    for _ in range(3):
        fleet.round()
    assert desired(fleet, "d0000")[-1].device_key_sha256 == "e" * 64
    assert desired(fleet, "d0000")[-1].releases == first.releases
    assert len(desired(fleet, "d0000")) == 2
    assert len(desired(fleet, "d0001")) == 1


def test_what_was_meant_to_be_short_is_not_made_anew(fleet: PaperFleet) -> None:
    fleet.settle(fleet.begin())
    with fleet.store.write() as session:
        session.get_one(DesiredRow, need_device(session, "d0000").id).renews = False
    fleet.now += DEFAULT_LIFETIME
    fleet.new_controller()
    fleet.round()
    assert len(desired(fleet, "d0000")) == 1
    assert len(desired(fleet, "d0001")) == 2


def test_a_device_that_waits_for_its_hours_keeps_them_when_its_assignment_is_renewed(
    fleet: PaperFleet,
) -> None:
    for device in fleet.devices.values():
        device.behaviours = {"1.1.0": "deaf"}
    fleet.begin(window=parse_window("22:00-05:00"), deadline_s=20 * 86_400)
    fleet.round()
    assert desired(fleet, "d0000")[-1].window is not None
    fleet.now += DEFAULT_LIFETIME * 0.6
    fleet.new_controller()
    fleet.round()
    last = desired(fleet, "d0000")
    assert len(last) == 2
    window = last[-1].window
    assert window is not None
    assert window.closes_at > fleet.now


# --- rollouts that meet -------------------------------------------------------------------------------------


def test_a_rollout_of_another_model_waits_for_each_device_in_turn(fleet: PaperFleet) -> None:
    first, second = fleet.begin(waves="2, 100%"), fleet.begin(name="fern", waves="100%")
    fleet.hear()
    fleet.controller.turn()
    assert list(fleet.statuses(second).values()) == ["waiting"] * 4
    waits = {one.waits_for for one in fleet.show(second).members}
    assert waits == {f"rollout {first}"}
    with fleet.store.read() as session:
        assert held_up_by(session, second) == (first,)
        assert held_up_by(session, first) == ()
    assert fleet.settle(second).phase == "completed"
    assert fleet.show(first).phase == "completed"
    for device in fleet.devices.values():
        assert [name for name, _, _ in device.history] == ["lamp", "fern"]
        assert device.running == {"lamp": "1.1.0", "fern": "1.1.0"}


def test_a_newer_rollout_of_the_same_model_takes_devices_over(fleet: PaperFleet) -> None:
    older = fleet.begin("1.1.0", waves="1, 100%")
    fleet.hear()
    fleet.controller.turn()
    newer = fleet.begin("1.2.0")
    assert fleet.show(older).phase == "superseded"
    assert fleet.settle(newer).phase == "completed"
    assert {device.running["lamp"] for device in fleet.devices.values()} == {"1.2.0"}
    with pytest.raises(RolloutError), fleet.store.write() as session:
        operate.retry(session, older, [], actor="me", now=fleet.now)


def test_the_same_release_is_not_brought_to_a_device_by_two_rollouts(fleet: PaperFleet) -> None:
    fleet.begin()
    with pytest.raises(RolloutError, match="rollout 1 brings"):
        fleet.begin()


# --- the operator -------------------------------------------------------------------------------------------


def test_devices_that_failed_try_again_when_they_are_told_to(fleet: PaperFleet) -> None:
    fleet.devices["d0001"].behaviours = {"1.1.0": "crash"}
    rollout_id = fleet.begin(max_failures=1)
    assert fleet.settle(rollout_id).phase == "completed"
    assert fleet.statuses(rollout_id)["d0001"] == "failed"
    fleet.devices["d0001"].behaviours = {}
    with fleet.store.write() as session:
        assert operate.retry(session, rollout_id, [], actor="me", now=fleet.now) == ["d0001"]
    assert fleet.settle(rollout_id).phase == "completed"
    assert fleet.statuses(rollout_id)["d0001"] == "passed"


def test_what_is_aborted_goes_back_to_what_each_device_ran(fleet: PaperFleet) -> None:
    rollout_id = fleet.begin(waves="2, 100%", approve=True)
    assert fleet.settle(rollout_id).phase == "waiting"
    with fleet.store.write() as session:
        operate.abort(session, rollout_id, keep=False, reason="no need", actor="me", now=fleet.now)
    view = fleet.settle(rollout_id)
    assert (view.phase, view.reason) == ("aborted", "by me: no need")
    assert {device.running["lamp"] for device in fleet.devices.values()} == {"1.0.0"}
    assert sorted(fleet.statuses(rollout_id).values()) == ["returned", "returned", "skipped", "skipped"]


def test_what_it_ran_before_but_is_not_published_is_said_and_not_asked_for_any_more(
    fleet: PaperFleet,
) -> None:
    device = fleet.devices["d0001"]
    device.shas = {**device.shas, ("lamp", "0.9.0"): "f" * 64}
    device.running["lamp"] = "0.9.0"
    fleet.say(device)
    rollout_id = fleet.begin()
    for _ in range(2):
        fleet.round()
    with fleet.store.write() as session:
        operate.abort(session, rollout_id, keep=False, reason="", actor="me", now=fleet.now)
    view = fleet.settle(rollout_id, rounds=80, step=timedelta(minutes=5))
    member = {one.device: one for one in view.members}["d0001"]
    assert (member.status, view.phase) == ("stuck", "aborted")
    assert "no published release" in member.detail
    assert "1 could not be taken back" in view.reason
    with fleet.store.read() as session:
        assigned = last_assignment(session, need_device(session, "d0001"))
    assert assigned is not None
    assert "lamp" not in assigned.releases


def test_a_pin_has_a_reason_and_an_end(fleet: PaperFleet) -> None:
    with fleet.store.write() as session:
        operate.pin(session, "d0000", reason="a demonstration", actor="me", now=fleet.now)
        operate.pin(session, "d0000", reason="another", actor="me", now=fleet.now)
    with fleet.store.read() as session:
        assert [(one.device, one.reason) for one in operate.list_pins(session)] == [("d0000", "another")]
    rollout_id = fleet.begin()
    fleet.settle(rollout_id)
    assert fleet.devices["d0000"].history == []
    with fleet.store.write() as session:
        operate.unpin(session, "d0000", actor="me", now=fleet.now)
        with pytest.raises(DeviceStateError):
            operate.unpin(session, "d0000", actor="me", now=fleet.now)


def test_a_device_that_is_waited_for_says_that_it_is_in_quarantine(fleet: PaperFleet) -> None:
    fleet.quarantined = {"d0000": "negative watts"}
    rollout_id = fleet.begin()
    told = {one.device: one.detail for one in fleet.show(rollout_id).members}
    assert told["d0000"] == "in quarantine: negative watts"
    assert not any(text for name, text in told.items() if name != "d0000")


def test_a_device_that_is_not_believed_is_updated_and_decides_nothing(fleet: PaperFleet) -> None:
    fleet.quarantined = {"d0000": "negative watts"}
    fleet.devices["d0000"].behaviours = {"1.1.0": "crash"}
    rollout_id = fleet.begin()
    view = fleet.settle(rollout_id)
    assert view.phase == "completed"
    assert {one.device for one in view.members if one.quarantined} == {"d0000"}
    assert fleet.statuses(rollout_id)["d0000"] == "failed"
