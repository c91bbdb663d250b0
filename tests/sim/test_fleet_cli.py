"""``edgeslm sim fleet`` and ``sim fleets``."""

from __future__ import annotations

import json
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.update_fleet_rig import HOST, FleetRig, fleet_rig, free_ports
from edgeslm.cli.sim import sim
from edgeslm.clock import utc_now
from edgeslm.fleet.certificates import take_presence
from edgeslm.fleet.directory import create_fleet
from edgeslm.fleet.registry import list_devices, retire_device, show_device
from edgeslm.link.broker import find_mosquitto
from edgeslm.schema.fleet import FleetBroker, FleetConfig
from edgeslm.sim.fleet_scenario import shipped_fleets

NEEDS_MOSQUITTO = pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed")


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(sim, arguments)


@pytest.fixture(scope="module")
def rig() -> Iterator[FleetRig]:
    with fleet_rig() as made:
        yield made


@contextmanager
def ended_by_ctrl_c(is_met: Callable[[], bool]) -> Iterator[None]:
    """Press Ctrl-C once something is so; at the latest after a minute."""
    over = threading.Event()

    def wait() -> None:
        deadline_s = time.monotonic() + 60
        while not over.is_set() and not is_met() and time.monotonic() < deadline_s:
            over.wait(0.05)
        if not over.is_set():
            signal.raise_signal(signal.SIGINT)

    thread = threading.Thread(target=wait)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def present(rig: FleetRig) -> int:
    with rig.store.read() as session:
        return sum(one.presence == "online" for one in list_devices(session))


def standings(rig: FleetRig) -> dict[str, str]:
    with rig.store.read() as session:
        return {one.name: one.standing for one in list_devices(session)}


def test_fleets_are_listed_with_their_titles() -> None:
    text = invoke("fleets").stdout
    for name, scenario in shipped_fleets().items():
        assert name in text
        assert scenario.title in text
    assert [one["name"] for one in json.loads(invoke("fleets", "--json").stdout)] == list(shipped_fleets())


@pytest.mark.parametrize("text", ["10", "0s", "-1s", "nan", ""])
def test_refuses_a_length_of_time_that_is_none(text: str) -> None:
    assert invoke("fleet", "quiet", "--for", text).exit_code == 2


def test_refuses_a_scenario_that_there_is_not_before_anything_is_started() -> None:
    done = invoke("fleet", "moonbase")
    assert (done.exit_code, "greenhouses" in done.stderr) == (2, True)


@NEEDS_MOSQUITTO
@pytest.mark.parametrize("as_json", [True, False], ids=["json", "text"])
def test_without_a_fleet_there_is_one_for_as_long_as_it_runs(as_json: bool) -> None:
    done = invoke(
        "fleet", "quiet", "--devices", "3", "--for", "2s", "--preset", *(["--json"] if as_json else [])
    )
    assert done.exit_code == 0, done.stderr
    root = Path(done.stderr.partition("fleet 'simulated' in ")[2].splitlines()[0])
    assert not root.exists()
    assert "3 devices: " in done.stderr
    if as_json:
        assert json.loads(done.stdout)["running"] == {"home-command@1.0.0": 3}
    else:
        assert ["running", "home-command@1.0.0", "3"] in [line.split() for line in done.stdout.splitlines()]


@NEEDS_MOSQUITTO
def test_joining_a_fleet_is_asked_about_and_a_dry_run_joins_nothing(rig: FleetRig) -> None:
    directory = str(rig.fleet.root)
    asked = invoke("fleet", "quiet", "--fleet-dir", directory)
    assert (asked.exit_code, "--yes" in asked.stderr) == (2, True)
    dry = invoke("fleet", "quiet", "--fleet-dir", directory, "--dry-run")
    assert (dry.exit_code, "100 simulated devices join" in dry.stderr) == (0, True)
    assert standings(rig) == {}


def test_refuses_a_fleet_whose_broker_does_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgeslm.cli.sim_fleet._CONNECT_TIMEOUT_S", 0.2)
    ports = free_ports(3)
    broker = FleetBroker(host=HOST, port=ports[0], claim_port=ports[1], operator_port=ports[2])
    create_fleet(tmp_path / "green", FleetConfig(name="green", broker=broker), passphrase=None, now=utc_now())
    done = invoke("fleet", "quiet", "--fleet-dir", str(tmp_path / "green"), "--yes")
    assert (done.exit_code, "edgeslm fleet serve --broker" in done.stderr) == (1, True)


@NEEDS_MOSQUITTO
def test_devices_join_a_fleet_come_back_the_next_time_and_are_retired_when_asked(rig: FleetRig) -> None:
    def run(*options: str) -> Result:
        common = ("--fleet-dir", str(rig.fleet.root), "--devices", "4", "--yes", "--json")
        with ended_by_ctrl_c(lambda: present(rig) == 4):
            return invoke("fleet", "quiet", *common, *options)

    first = run()
    assert first.exit_code == 0, first.stderr
    joined = json.loads(first.stdout)
    assert (joined["phases"], joined["counts"]["joined"]) == ({"online": 4}, 4)
    assert set(standings(rig).values()) == {"active"}
    with rig.store.write() as session:
        for name in standings(rig):
            take_presence(session, name, "offline", utc_now(), is_retained=False)
    again = run("--retire")
    assert again.exit_code == 0, again.stderr
    assert "4 of them joined before" in again.stderr
    assert json.loads(again.stdout)["counts"]["joined"] == 0
    assert set(standings(rig).values()) == {"retired"}


@NEEDS_MOSQUITTO
@pytest.mark.parametrize("way", [(), ("--preset",)], ids=["claims", "preset"])
def test_refuses_to_take_the_place_of_a_device_in_use(rig: FleetRig, way: tuple[str, ...]) -> None:
    with rig.service():
        key = rig.join("board-0002").facts.serial
    done = invoke("fleet", "quiet", "--fleet-dir", str(rig.fleet.root), "--devices", "3", "--yes", *way)
    assert (done.exit_code, "'board-0002' is a device of this fleet already" in done.stderr) == (1, True)
    with rig.store.write() as session:
        assert show_device(session, "board-0002").certificates[0].serial == key
        assert standings(rig).get("board-0001") != "active"
        retire_device(session, "board-0002", actor="test", now=utc_now())
