"""Everything together: devices that join, a service that is a process of its own, releases that are pushed to them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[3]))

from benchmarks.fleet_rig import MODEL, Service, devices_at, home, push_here, scenario, wait_for_rest
from benchmarks.fleet_takeover import run_kills
from benchmarks.fleet_verdicts import runs
from edgeslm.link.broker import find_mosquitto
from edgeslm.schema.sim_fleet import Noise, ReleaseEffect

NEEDS_MOSQUITTO = pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed")
DEVICES = 20
WAIT_S = 90.0


@NEEDS_MOSQUITTO
def test_twenty_devices_join_take_a_good_release_and_are_spared_a_bad_one() -> None:
    wanted = scenario(
        DEVICES,
        boards=("pi-4b", "pi-3b"),
        effects=[ReleaseEffect(release=f"{MODEL}@1.2.0", time=0.3)],
        speed=3000.0,
        interval_s=None,
        noise=Noise(speed=0.005, energy=0.005),
    )
    with home(["1.0.0", "1.1.0", "1.2.0"]) as place, Service(place) as service:
        service.wait_ready()
        with devices_at(place, wanted, join=True) as fleet:
            assert fleet.wait_until(lambda now: now.online() == DEVICES, WAIT_S), fleet.summary()
            assert fleet.summary().counts["joined"] == DEVICES
            good = wait_for_rest(place, push_here(place, f"{MODEL}@1.1.0"), WAIT_S)
            assert (good.phase, good.passed) == ("completed", DEVICES), good.reason
            bad = wait_for_rest(place, push_here(place, f"{MODEL}@1.2.0"), WAIT_S)
            assert (bad.phase, bad.wave) == ("aborted", 1)
            assert "is worse by" in bad.reason
            assert fleet.summary().running == {f"{MODEL}@1.1.0": DEVICES}


def test_rollouts_in_virtual_time_stop_what_is_worse_and_complete_what_is_not() -> None:
    assert [end for end, _ in runs("slower", range(1))] != ["through"]
    assert [end for end, _ in runs("same", range(1))] == ["through"]


@NEEDS_MOSQUITTO
@pytest.mark.slow
def test_controllers_that_are_killed_lose_nothing_and_do_nothing_twice() -> None:
    count = run_kills(12)
    assert (count.kills, count.lost, count.doubled) == (12, [], [])
