from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from edgeslm.cli.sim import sim
from edgeslm.sim.board_scenario import shipped_scenarios


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(sim, arguments)


def test_scenarios_are_listed_with_their_titles() -> None:
    text = invoke("scenarios").stdout
    for name, scenario in shipped_scenarios().items():
        assert f"{name} " in text
        assert scenario.title in text
    listed = json.loads(invoke("scenarios", "--json").stdout)
    assert [scenario["name"] for scenario in listed] == list(shipped_scenarios())


def test_a_board_runs_for_its_time_and_says_how_it_is(tmp_path: Path) -> None:
    done = invoke(
        "board",
        "--dir",
        str(tmp_path),
        "--scenario",
        "solar-day",
        "--speed",
        "10000",
        "--for",
        "3000",
        "--json",
    )
    assert done.exit_code == 0
    first, *_, last = [json.loads(line) for line in done.stdout.splitlines()]
    assert (first["clock"], first["time_s"]) == ("06:00:00", 0)
    assert (last["clock"], last["time_s"]) == ("06:50:00", 3000)
    assert last["energy_j"] == pytest.approx(3000 * 2.7, rel=0.25)
    assert 0 < last["battery_share"] < first["battery_share"]
    assert int((tmp_path / "sys/class/power_supply/battery/capacity").read_text()) == round(
        100 * last["battery_share"]
    )


def test_the_text_tells_battery_throttling_and_being_off(tmp_path: Path) -> None:
    scenario = tmp_path / "mine.yaml"
    scenario.write_text(
        "{name: mine, title: Mine, supply_w: 5, load: {shape: constant, busy_cores: 4},"
        " events: [{at_s: 90, supply_w: 0}]}"
    )
    done = invoke(
        "board", "--dir", str(tmp_path / "b"), "--scenario", str(scenario), "--speed", "85", "--for", "100"
    )
    lines = done.stdout.splitlines()
    assert "Mine" in done.stderr
    assert any("throttled 0x5000" in line for line in lines)
    assert lines[-1].endswith("off")
    assert "battery" not in done.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--board", "pi-9"], "pi-4b"),
        (["--scenario", "lunar-night"], "solar-day"),
        (["--dir", "/proc"], "/proc"),
        (["--pid", "4194303"], "no process 4194303"),
        (["--speed", "0"], "--speed"),
        (["--for", "-1"], "--for"),
    ],
)
def test_what_cannot_be_is_refused_with_status_2(tmp_path: Path, arguments: list[str], said: str) -> None:
    done = invoke("board", "--dir", str(tmp_path), "--for", "1", *arguments)
    assert done.exit_code == 2
    assert said in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_a_run_cleanly(tmp_path: Path, number: int) -> None:
    program = "from edgeslm.cli.sim import sim; sim()"
    with subprocess.Popen(
        [sys.executable, "-c", program, "board", "--dir", str(tmp_path), "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        time.sleep(0.1)
        process.send_signal(number)
        rest = process.stdout.read()
        errors = process.stderr.read()
        assert (process.wait(timeout=10), "Traceback" in errors) == (0, False), errors
    assert json.loads(rest.splitlines()[-1])["alive"]
