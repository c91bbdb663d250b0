"""``edgeslm fleet push`` and its neighbours, with a real broker, real signatures, and devices on the real wire."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.update_fleet_rig import wait_for
from benchmarks.update_trust_rig import Rig, fast_directory
from edgeslm.cli.fleet import fleet
from edgeslm.fleet.assignments import last_assignment
from edgeslm.fleet.distribution import prepared, release_prepared
from edgeslm.fleet.registry import list_audit, need_device
from edgeslm.fleet.release_setup import online_signers, set_up
from edgeslm.fleet.signing import load_signer
from edgeslm.link.broker import find_mosquitto
from edgeslm.schema.sim_fleet import FleetScenario
from edgeslm.sim.rehearsal import Stage, populated, temporary_fleet

pytestmark = pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed")

SECRET = b"four words of mine"
DEVICES = ("four-0001", "four-0002", "four-0003", "three-0001", "three-0002")


@dataclass
class World:
    """A fleet of five simulated devices of two types of board, which run ``lamp`` 1.0.0."""

    stage: Stage

    def cli(self, *arguments: str) -> Result:
        clean: dict[str, str | None] = {name: None for name in os.environ if name.startswith("EDGESLM_")}
        where = ["--fleet-dir", str(self.stage.fleet.root)]
        return CliRunner(env=clean).invoke(fleet, [*arguments, *where])

    def push(self, *arguments: str, code: int = 0) -> Any:
        result = self.cli("push", *arguments, "--yes", "--json")
        assert result.exit_code == code, (result.stdout, result.stderr, result.exception)
        return json.loads(result.stdout)

    def running(self) -> dict[str, int]:
        return self.stage.devices.summary().running


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with fast_directory() as directory, temporary_fleet("green", directory=directory / "home") as empty:
        keys = empty.fleet.root / "keys"
        repository = set_up(empty.fleet.releases, keys, "green", lambda path: SECRET)
        made = Rig.__new__(Rig)
        made.directory, made.repository = directory, repository
        for version in ("1.0.0", "1.1.0", "1.2.0", "1.3.0", "1.4.0"):
            made.release(
                "lamp",
                version,
                **({"requires": {"ram_mb": 1, "agent": "9.0.0"}} if version == "1.4.0" else {}),
            )
            with prepared(repository, directory / f"lamp-{version}.slm", with_deltas=False) as ready:
                release_prepared(repository, ready)
        offline = load_signer(keys / "targets.pem", lambda path: SECRET)
        repository.sign_pending([offline])
        repository.publish(online_signers(keys))
        scenario = FleetScenario.model_validate(
            {
                "name": "push",
                "title": "Two types of board",
                "speed": 2000,
                "interval_s": None,
                "groups": [
                    {"name": "four", "count": 3, "board": "pi-4b", "models": {"lamp": "1.0.0"}},
                    {"name": "three", "count": 2, "board": "pi-3b", "models": {"lamp": "1.0.0"}},
                ],
                "releases": [{"release": "lamp@1.2.0", "time": 0.3}],
            }
        )
        with populated(empty, scenario) as stage:
            assert stage.devices.wait_until(lambda now: now.online() == 5, 60)
            yield World(stage)


def test_every_device_runs_a_good_release_and_one_that_is_worse_is_taken_back(world: World) -> None:
    told = world.push("lamp@1.1.0", "--waves", "1 per board, 100%")
    assert (told["phase"], told["passed"], told["failed"]) == ("completed", 5, 0)
    assert world.running() == {"lamp@1.1.0": 5}
    assert {one["base"] for one in told["members"]} == {"1.0.0"}
    assert {one["criterion"] for one in told["evidence"]} >= {"answers", "ttft", "energy"}

    told = world.push("lamp@1.2.0", "--waves", "1 per board, 100%", code=1)
    assert told["phase"] == "aborted"
    assert "is worse by" in told["reason"]
    assert world.running() == {"lamp@1.1.0": 5}
    assert {one["status"] for one in told["members"]} == {"returned", "skipped"}
    with world.stage.store.read() as session:
        assigned = last_assignment(session, need_device(session, told["members"][0]["device"]))
        done = [one.action for one in list_audit(session, subject=f"rollout-{told['id']}")]
    assert assigned is not None
    assert assigned.releases["lamp"].version == "1.1.0"
    assert done == ["rollout-aborted", "rollout-returning", "rollout-begin"]


def test_a_dry_run_and_a_refusal_send_nothing(world: World) -> None:
    before = world.cli("rollouts", "--json").stdout
    dry = world.cli("push", "lamp@1.3.0", "--dry-run", "--json")
    assert dry.exit_code == 0, dry.stderr
    planned = json.loads(dry.stdout)
    assert sorted(one["device"] for wave in planned["waves"] for one in wave) == sorted(DEVICES)
    assert planned["moves_bytes"] > 0
    assert "wave 1 (1 per board): " in dry.stderr
    refused = world.cli("push", "lamp@1.4.0", "--yes")
    assert refused.exit_code == 1
    assert "pi-3b: it needs edgeslm 9.0.0" in refused.stderr
    assert "pi-4b: " in refused.stderr
    assert world.cli("rollouts", "--json").stdout == before


@pytest.mark.parametrize(
    "arguments",
    [
        ["lamp@9.9.9"],
        ["lamp"],
        ["lamp@1.3.0", "nobody"],
        ["lamp@1.3.0", "--where", "color=red"],
        ["lamp@1.3.0", "--waves", "some"],
        ["lamp@1.3.0", "--waves", "group nobody"],
        ["lamp@1.3.0", "--max-failures", "many"],
        ["lamp@1.3.0", "--window", "at night"],
        ["lamp@1.3.0", "--suppose", "time=10%"],
        ["lamp@1.3.0", "--rehearse", "--suppose", "color=red"],
    ],
)
def test_what_cannot_be_is_a_usage_error_in_one_line(world: World, arguments: list[str]) -> None:
    result = world.cli("push", *arguments, "--yes")
    assert result.exit_code == 2, (result.stderr, result.exception)
    assert result.stderr.splitlines()[-1].startswith("edgeslm: ")


def test_pinned_devices_and_approval_and_what_is_shown(world: World) -> None:
    (before,) = world.running()
    assert world.cli("pin", "three-0001", "--reason", "shown to guests").exit_code == 0
    told = world.push("lamp@1.3.0", "--waves", "2, 100%", "--approve", "--max-failures", "2")
    assert (told["phase"], told["wave"], told["passed"]) == ("waiting", 1, 2)
    number = str(told["id"])
    shown = world.cli("rollout", "show", number)
    assert f"next: edgeslm fleet rollout approve {number}" in shown.stdout
    assert "wave 2 waits for approval" in world.cli("rollouts").stdout
    again = world.cli("push", "lamp@1.3.0", "--yes")
    assert again.exit_code == 1
    assert f"rollout {number} brings lamp@1.3.0" in again.stderr
    approved = world.cli("rollout", "approve", number)
    assert approved.exit_code == 0, approved.stderr
    assert "4 of 4 devices passed" in approved.stderr
    assert world.running() == {before: 1, "lamp@1.3.0": 4}
    for verb in ("pause", "resume", "approve", "retry"):
        refused = world.cli("rollout", verb, number)
        assert refused.exit_code == 1
        assert refused.stderr.startswith("edgeslm: rollout ")
    assert world.cli("unpin", "three-0001", "--json").exit_code == 0
    assert world.cli("unpin", "three-0001").exit_code == 1
    assert world.cli("rollout", "show", "999").exit_code == 1


def test_a_detached_rollout_is_left_to_whoever_serves(world: World) -> None:
    result = world.cli("push", "lamp@1.1.0", "four-0001", "--downgrade", "--yes", "--detach")
    assert result.exit_code == 0, result.stderr
    assert "nobody carries it out yet" in result.stderr
    number = result.stdout.split()[-1]
    assert world.cli("rollout", "pause", number, "--reason", "lunch").exit_code == 0
    assert "lunch" in world.cli("rollouts", "--going").stdout
    resumed = world.cli("rollout", "resume", number)
    assert resumed.exit_code == 0, resumed.stderr
    assert wait_for(lambda: world.running().get("lamp@1.1.0", 0) >= 1)
    assert world.cli("rollout", "abort", number, "--yes").exit_code == 1, "it is over"


@pytest.mark.parametrize(
    "how",
    [signal.SIGINT, pytest.param(signal.SIGKILL, marks=pytest.mark.slow, id="SIGKILL, waits for the lease")],
)
def test_a_command_that_is_stopped_leaves_a_rollout_that_goes_on(world: World, how: signal.Signals) -> None:
    before = world.running()
    version = "1.3.0" if before.get("lamp@1.1.0") else "1.1.0"
    command = Path(sys.executable).with_name("edgeslm")
    arguments = ["fleet", "push", f"lamp@{version}", "--fleet-dir", str(world.stage.fleet.root), "--yes"]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("EDGESLM_")}
    with subprocess.Popen(
        [command, *arguments, "--downgrade", "--waves", "1, 2, 100%"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=clean,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        number = process.stdout.readline().split()[-1]
        process.send_signal(how)
        _, told = process.communicate(timeout=60)
    if how == signal.SIGINT:
        assert f"edgeslm fleet rollout resume {number}" in told, told
        assert process.returncode == 1
    result = world.cli("rollout", "resume", number, "--json")
    assert result.exit_code == 0, (result.stdout, result.stderr, result.exception)
    assert json.loads(result.stdout)["phase"] == "completed"
    assert world.running() == {f"lamp@{version}": 5}


def test_a_rehearsal_touches_no_device(world: World) -> None:
    before = world.running()
    rollouts = world.cli("rollouts", "--json").stdout
    told = world.cli(
        "push",
        "lamp@1.2.0",
        "--rehearse",
        "--suppose",
        "time=+30%",
        "--downgrade",
        "--waves",
        "1 per board, 100%",
        "--json",
    )
    assert told.exit_code == 1, (told.stdout, told.stderr, told.exception)
    assert json.loads(told.stdout)["phase"] == "aborted"
    assert "no device was touched" in told.stderr
    assert world.running() == before
    assert world.cli("rollouts", "--json").stdout == rollouts


def test_a_newer_rollout_takes_over_devices_that_run_its_release_still(world: World) -> None:
    world.cli("push", "lamp@1.1.0", "--downgrade", "--yes")
    assert world.running() == {"lamp@1.1.0": 5}
    older = world.push("lamp@1.3.0", "three-0001", "four-0001", "--detach")
    number = str(older["id"])
    assert world.cli("rollout", "pause", number).exit_code == 0
    other = world.push("lamp@1.1.0", "three-0001", "--downgrade")
    assert (other["phase"], [one["device"] for one in other["members"]]) == ("completed", ["three-0001"])
    members = {
        one["device"]: one
        for one in json.loads(world.cli("rollout", "show", number, "--json").stdout)["members"]
    }
    assert members["three-0001"]["status"] == "superseded"
    assert world.cli("rollout", "abort", number, "--yes").exit_code == 0, "nobody was asked"


def test_stepping_in_tells_beforehand_which_devices_and_bytes_it_means(world: World) -> None:
    told = world.push("lamp@1.2.0", "--detach", "--waves", "1 per board, 100%", "--downgrade")
    number = str(told["id"])
    first = {one["device"] for one in told["members"] if one["wave"] == 1}
    dry = world.cli("rollout", "pause", number, "--dry-run")
    assert dry.exit_code == 0, dry.stderr
    assert len(dry.stdout.splitlines()) == 5
    assert "dry run: nothing was done" in dry.stderr
    assert world.cli("rollout", "pause", number).exit_code == 0
    planned = json.loads(world.cli("rollout", "resume", number, "--dry-run", "--json").stdout)
    assert {one["device"] for one in planned} == first
    assert all(one["moves_bytes"] > 0 for one in planned)
    assert world.cli("rollout", "approve", number, "--dry-run").exit_code == 1, "it waits for no approval"
    assert world.cli("pin", "four-0001", "--dry-run").stdout == "four-0001: pinned\n"
    assert world.cli("pin", "nobody", "--dry-run").exit_code == 2
    assert world.cli("unpin", "four-0001", "--dry-run").exit_code == 1, "it is not pinned"
    assert world.cli("pin", "--json").stdout.strip() == "[]"
    assert '"phase":"paused"' in world.cli("rollout", "show", number, "--json").stdout.replace(": ", ":")
    ended = world.cli("rollout", "abort", number, "--keep", "--yes")
    assert ended.exit_code == 0, ended.stderr


def test_an_empty_group_names_groups_that_are_not(world: World) -> None:
    assert world.cli("group", "create", "void").exit_code == 0
    assert world.cli("group", "create", "halls").exit_code == 0
    assert world.cli("group", "add", "halls", "four-0001").exit_code == 0
    refused = world.cli("push", "lamp@1.3.0", "--group", "void", "--yes")
    assert refused.exit_code == 2
    assert "no device in use is meant by --group void. Did you mean --group halls?" in refused.stderr
    assert "Did you mean halls?" in world.cli("push", "lamp@1.3.0", "--group", "hals", "--yes").stderr
    assert "Did you mean lamp?" in world.cli("push", "lmap@1.3.0", "--yes").stderr
