"""Rehearsing on devices like those of a fleet."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path

import pytest

from edgeslm import topics
from edgeslm.clock import utc_now
from edgeslm.errors import ConfigError
from edgeslm.fleet.assignments import DeviceView, Running, Visit
from edgeslm.fleet.registry import list_devices
from edgeslm.link.broker import find_mosquitto
from edgeslm.power.boards import load_boards
from edgeslm.schema.assignment import AssignedRelease, Assignment
from edgeslm.schema.sim_fleet import FleetSummary, ReleaseEffect
from edgeslm.sim.fleet import make_devices, simulate_gate
from edgeslm.sim.fleet_trust import invented_digest
from edgeslm.sim.rehearsal import Copy, Stage, rehearse, scenario_of

NEEDS_MOSQUITTO = pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed")
WAIT_S = 60.0


def copies() -> list[Copy]:
    boards = load_boards()
    lamp = {"lamp": Running("1.0.0", "a" * 64)}
    views = [
        DeviceView("kitchen", boards["pi-4b"], running=lamp),
        DeviceView("cellar", boards["pi-3b"], running=lamp),
        DeviceView("attic", None, running=lamp),
        DeviceView("hall", boards["pi-4b"], running=lamp),
    ]
    return [Copy.of(view, tags=["home"]) for view in views]


def test_devices_that_are_alike_become_one_group_and_keep_their_names() -> None:
    scenario, names = scenario_of(copies(), [], seed=3, speed=10)
    assert {tuple(found) for found in names.values()} == {("kitchen", "hall"), ("cellar",), ("attic",)}
    assert {group.board for group in scenario.groups} == {"pi-4b", "pi-3b", "generic-arm64"}
    assert (scenario.seed, scenario.speed, scenario.groups[0].tags) == (3, 10, ("home",))


def test_refuses_to_rehearse_with_nobody() -> None:
    with pytest.raises(ConfigError, match="no devices"):
        scenario_of([], [], seed=1, speed=1)


def test_a_device_of_which_nothing_is_known_judges_a_release_by_its_answers_alone() -> None:
    scenario, names = scenario_of([Copy("kitchen", None)], [], seed=1, speed=1)
    (device,) = make_devices(scenario, "green", names=names)
    change = simulate_gate(device, "lamp", "1.0.0").models[0].change
    measured = [item.name for item in change.verdict.criteria if item.outcome != "not_measured"]
    assert (device.name, change.state, measured) == ("kitchen", "committed", ["answers"])


@NEEDS_MOSQUITTO
def test_a_rehearsal_is_a_fleet_in_which_all_devices_are_there_and_leaves_nothing_behind() -> None:
    places: list[Path] = []

    def run(stage: Stage) -> FleetSummary:
        places.append(stage.fleet.root)
        with stage.store.read() as session:
            assert {one.name for one in list_devices(session)} == {"kitchen", "cellar", "attic", "hall"}
        now = utc_now()
        with Visit(stage.fleet.operator_config(), "rehearses") as visit:
            for device in stage.devices.devices:
                release = AssignedRelease(version="1.1.0", sha256=invented_digest("lamp", "1.1.0"))
                wanted = Assignment(
                    fleet=device.fleet, device=device.name, device_key_sha256=device.credentials.key_sha256, seq=1,
                    issued_at=now, expires_at=now + timedelta(days=1), releases={"lamp": release},
                )  # fmt: skip
                body = {"signatures": [], "signed": wanted.model_dump(mode="json", exclude_none=True)}
                visit.publish(
                    topics.device_topic(device.fleet, device.name, "desired"), json.dumps(body).encode()
                )
        assert stage.devices.wait_until(lambda now: sum(now.changes.values()) == 4, WAIT_S)
        done = ("committed", "rolled_back")
        assert stage.devices.wait_until(lambda now: all(what.endswith(done) for what in now.changes), WAIT_S)
        return stage.devices.summary()

    bad_on_one = ReleaseEffect(release="lamp@1.1.0", boards=("pi-3b",), time=0.2)
    found = rehearse(copies(), [bad_on_one], run)
    assert found.running == {"lamp@1.0.0": 1, "lamp@1.1.0": 3}
    assert found.faults == {"gate_failed": 1}
    assert not places[0].exists()


@NEEDS_MOSQUITTO
def test_what_goes_wrong_in_a_rehearsal_comes_out_and_leaves_nothing_behind() -> None:
    places: list[Path] = []

    def run(stage: Stage) -> None:
        places.append(stage.fleet.root)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        rehearse(copies()[:1], [], run, plain=True)
    assert not places[0].exists()
