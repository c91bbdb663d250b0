from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgeslm.errors import UsageError
from edgeslm.power.boards import load_boards
from edgeslm.schema.board import Board, PowerTable
from edgeslm.schema.scenario import Scenario
from edgeslm.sim.board_driver import TICK_S, ProcessLoad, SimBoard
from edgeslm.sim.board_meters import PMIC_OFFSET_W, PMIC_SLOPE

BOARD = load_boards()["pi-4b"]
FIFTY_HERTZ = {"shape": "square", "high_cores": 4, "period_s": 0.02}
EXACT = {"gain_error": 0.0, "noise_a": 0.0}


def plain_board() -> Board:
    """A board whose figures the tests can rely on, whatever its file says."""
    power = PowerTable(
        idle_w=2.7,
        core_load_w=0.93,
        max_mhz=1500,
        min_mhz=600,
        frequency_exponent=2.0,
        supply_w=15.0,
        source="round figures for tests",
    )
    return BOARD.model_copy(update={"power": power, "thermal": None})


def sim(root: Path | None, seed: int | None = None, **fields: Any) -> SimBoard:
    scenario = Scenario.model_validate({"name": "test", "title": "test", **fields})
    return SimBoard(plain_board(), scenario, root, seed=seed)


def content(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and not {"class", "usr"} & set(path.parts)
    }


def hwmon(root: Path, kind: str) -> Path:
    found = [
        path.parent for path in (root / "sys/class/hwmon").glob("*/name") if path.read_text().strip() == kind
    ]
    assert len(found) == 1
    return found[0]


def watts(root: Path, kind: str) -> float:
    return int((hwmon(root, kind) / "power1_input").read_text()) * 1e-6


def rails_w(text: str) -> float:
    amperes = dict(re.findall(r"^\s*(\w+)_A current\(\d+\)=(-?[\d.]+)A$", text, re.MULTILINE))
    volts = dict(re.findall(r"^\s*(\w+)_V volt\(\d+\)=([\d.]+)V$", text, re.MULTILINE))
    return sum(float(amperes[rail]) * float(volts[rail]) for rail in amperes)


# --- time ---------------------------------------------------------------------------------------------------


def test_what_is_shown_does_not_depend_on_how_often_the_board_was_advanced(tmp_path: Path) -> None:
    meters = [{"kind": kind} for kind in ("ina219", "ina226", "ina260", "ina3221", "pmic", "rapl")]
    fields: dict[str, Any] = {"load": FIFTY_HERTZ, "meters": meters}
    with sim(tmp_path / "one", **fields) as one, sim(tmp_path / "many", **fields) as many:
        one.advance(3.003)
        for _ in range(39):
            many.advance(0.077)
        assert many.state.energy_j == pytest.approx(one.state.energy_j, rel=1e-9)
        assert content(tmp_path / "many") == content(tmp_path / "one")


def test_a_seed_decides_everything(tmp_path: Path) -> None:
    seen = []
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        with sim(tmp_path / name, seed, load=FIFTY_HERTZ, meters=[{"kind": "ina219"}]) as board:
            board.advance(1.0)
            seen.append(content(tmp_path / name))
    assert seen[0] == seen[1] != seen[2]


def test_the_truth_is_exact_for_a_square_load_of_fifty_hertz() -> None:
    board = sim(None, load=FIFTY_HERTZ)
    board.advance(10.0)
    assert board.state.energy_j == pytest.approx(10 * (2.7 + 4 * 0.93 / 2), rel=1e-9)
    assert board.state.busy_core_s == pytest.approx(20.0)
    assert board.clock() == pytest.approx(10.0)


def test_the_caller_decides_the_work_from_the_next_advance_on() -> None:
    board = sim(None, load={"shape": "constant", "busy_cores": 4})
    board.busy_cores = 1.0
    assert board.advance(1.0).power_w == pytest.approx(2.7 + 0.93)
    board.busy_cores = None
    assert board.advance(1.0).power_w == pytest.approx(2.7 + 4 * 0.93)


def test_a_frequency_cap_in_the_files_is_obeyed(tmp_path: Path) -> None:
    with sim(tmp_path, load={"shape": "constant", "busy_cores": 4}) as board:
        assert board.advance(1.0).power_w == pytest.approx(2.7 + 4 * 0.93)
        cpufreq = tmp_path / "sys/devices/system/cpu/cpufreq/policy0"
        (cpufreq / "scaling_max_freq").write_text("750000\n")
        assert board.advance(1.0).power_w == pytest.approx(2.7 + 4 * 0.93 / 4)
        assert int((cpufreq / "scaling_cur_freq").read_text()) == 750_000


# --- meters -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "step_w"), [("ina219", 0.002), ("ina226", 0.00625), ("ina260", 0.01)])
def test_a_chip_shows_power_in_its_steps_and_within_its_limits(
    tmp_path: Path, kind: str, step_w: float
) -> None:
    with sim(tmp_path, load={"shape": "constant", "busy_cores": 2}, meters=[{"kind": kind}]) as board:
        true_w = board.advance(1.0).power_w
        shown = []
        for _ in range(200):
            board.advance(0.1)
            shown.append(watts(tmp_path, kind))
        assert all(round(value * 1e6) % round(step_w * 1e6) == 0 for value in shown)
        assert len(set(shown)) > 1
        assert sum(shown) / 200 == pytest.approx(true_w, rel=0.006, abs=step_w)
        volts = int((hwmon(tmp_path, kind) / "in1_input").read_text()) / 1000
        amperes = int((hwmon(tmp_path, kind) / "curr1_input").read_text()) / 1000
        assert volts == pytest.approx(board.state.supply_v, abs=0.002)
        assert volts * amperes == pytest.approx(shown[-1], abs=0.012)


def test_units_of_a_kind_differ_in_their_gain_by_seed(tmp_path: Path) -> None:
    def mean_w(seed: int) -> float:
        meters = [{"kind": "ina219", "noise_a": 0.0}]
        with sim(
            tmp_path / str(seed), seed, load={"busy_cores": 4, "shape": "constant"}, meters=meters
        ) as board:
            board.advance(1.0)
            return watts(tmp_path / str(seed), "ina219")

    unlike = {mean_w(seed) for seed in range(8)}
    assert len(unlike) > 3
    assert max(abs(value / 6.42 - 1) for value in unlike) < 0.006


def test_an_averaging_chip_shows_the_mean_and_a_fast_one_the_moment(tmp_path: Path) -> None:
    meters = [{"kind": "ina226", "update_interval_ms": 140, **EXACT}, {"kind": "ina219", **EXACT}]
    with sim(tmp_path, load=FIFTY_HERTZ, meters=meters) as board:
        averaged, fast = set(), set()
        for _ in range(100):
            board.advance(0.013)
            averaged.add(watts(tmp_path, "ina226"))
            fast.add(watts(tmp_path, "ina219"))
        assert (hwmon(tmp_path, "ina226") / "update_interval").read_text().strip() == "140"
    # Until its first conversion it shows what the idle board drew before.
    assert min(averaged) == pytest.approx(2.7, abs=0.01)
    averaged.remove(min(averaged))
    assert all(value == pytest.approx(4.56, abs=0.02) for value in averaged)
    assert min(fast) == pytest.approx(2.7, abs=0.01)
    assert max(fast) == pytest.approx(6.42, abs=0.01)


def test_the_three_channel_chip_shows_its_channels_apart_and_no_power(tmp_path: Path) -> None:
    with sim(tmp_path, meters=[{"kind": "ina3221", **EXACT}]) as board:
        board.advance(1.0)
        directory = hwmon(tmp_path, "ina3221")
        total_w = sum(
            int((directory / f"in{n}_input").read_text())
            * int((directory / f"curr{n}_input").read_text())
            * 1e-6
            for n in (1, 2, 3)
        )
        assert total_w == pytest.approx(2.7, abs=0.01)
        assert not (directory / "power1_input").exists()
        assert (directory / "in3_enable").read_text().strip() == "0"
        assert (directory / "shunt1_resistor").read_text().strip() == "50000"


def test_a_current_beyond_the_chip_saturates(tmp_path: Path) -> None:
    with sim(tmp_path, supply_w=100, meters=[{"kind": "ina219", "gain_error": 0.5}]) as board:
        board.plant = replace(board.plant, idle_w=14.0)
        board.advance(1.0)
        assert int((hwmon(tmp_path, "ina219") / "curr1_input").read_text()) == 3200


def test_the_rails_of_the_power_chip_sum_up_to_the_published_line(tmp_path: Path) -> None:
    with sim(
        tmp_path, load={"shape": "constant", "busy_cores": 4}, meters=[{"kind": "pmic", **EXACT}]
    ) as board:
        board.advance(1.0)
        answer = subprocess.run(
            [board.vcgencmd, "pmic_read_adc"], capture_output=True, text=True, timeout=10, check=True
        ).stdout
        assert PMIC_SLOPE * rails_w(answer) + PMIC_OFFSET_W == pytest.approx(6.42, rel=1e-5)
        assert len(answer.splitlines()) == 26


def test_an_energy_counter_counts_the_truth_across_its_wraps(tmp_path: Path) -> None:
    meters = [{"kind": "rapl", "counter_range_uj": 10_000_000, **EXACT}]
    with sim(tmp_path, load=FIFTY_HERTZ, meters=meters) as board:
        file = tmp_path / "sys/class/powercap/intel-rapl:0/energy_uj"
        last, total_uj, wraps, start_j = int(file.read_text()), 0, 0, board.state.energy_j
        for _ in range(300):
            board.advance(0.1)
            now = int(file.read_text())
            wraps += now < last
            total_uj += (now - last) % 10_000_000
            last = now
        assert wraps >= 10
        assert total_uj * 1e-6 == pytest.approx(board.state.energy_j - start_j, rel=1e-3)


def test_a_board_that_went_out_shows_no_draw(tmp_path: Path) -> None:
    with sim(tmp_path, supply_w=0, meters=[{"kind": "ina226"}]) as board:
        assert not board.advance(1.0).alive
        assert abs(watts(tmp_path, "ina226")) < 0.01


# --- faults -------------------------------------------------------------------------------------------------


def faulty(root: Path, fault: str, kind: str = "ina226", for_s: float = 5.0, **options: Any) -> SimBoard:
    faults = [{"meter": kind, "fault": fault, "at_s": 10, "for_s": for_s}]
    return sim(
        root, meters=[{"kind": kind, **options}], faults=faults, load={"shape": "constant", "busy_cores": 2}
    )


def test_a_stuck_meter_says_what_it_last_said(tmp_path: Path) -> None:
    for fault in ("stuck", "stalled"):
        with faulty(tmp_path / fault, fault) as board:
            board.advance(9.9)
            last_w = watts(tmp_path / fault, "ina226")
            seen = set()
            for _ in range(50):
                board.busy_cores = 4.0
                board.advance(0.1)
                seen.add(watts(tmp_path / fault, "ina226"))
            assert seen == {last_w}
            board.advance(0.2)
            assert watts(tmp_path / fault, "ina226") == pytest.approx(6.42, rel=0.01)


def test_a_meter_that_is_gone_has_no_files_until_it_is_back(tmp_path: Path) -> None:
    with faulty(tmp_path, "gone") as board:
        file = hwmon(tmp_path, "ina226") / "power1_input"
        board.advance(10.5)
        assert not file.exists()
        board.advance(5.0)
        assert watts(tmp_path, "ina226") == pytest.approx(4.56, rel=0.01)


def test_rubbish_is_no_plausible_number(tmp_path: Path) -> None:
    with faulty(tmp_path, "rubbish") as board:
        board.advance(10.0)
        seen = set()
        for _ in range(40):
            board.advance(0.1)
            text = (hwmon(tmp_path, "ina226") / "power1_input").read_bytes().strip()
            seen.add(text)
            assert not text.isdigit() or len(text) == 20
        assert len(seen) > 3
        board.advance(1.1)
        assert watts(tmp_path, "ina226") == pytest.approx(4.56, rel=0.01)


def test_a_meter_can_go_negative(tmp_path: Path) -> None:
    with faulty(tmp_path / "ina", "negative") as board:
        board.advance(11.0)
        assert watts(tmp_path / "ina", "ina226") == pytest.approx(-4.56, rel=0.01)
    with faulty(tmp_path / "rapl", "negative", kind="rapl") as board:
        board.advance(11.0)
        assert int((tmp_path / "rapl/sys/class/powercap/intel-rapl:0/energy_uj").read_text()) < 0
    with faulty(tmp_path / "pmic", "negative", kind="pmic") as board:
        board.advance(11.0)
        answer = subprocess.run(
            [board.vcgencmd, "pmic_read_adc"], capture_output=True, text=True, timeout=10, check=True
        )
        assert rails_w(answer.stdout) < -3


def test_a_drifting_meter_gains_a_tenth_in_a_minute(tmp_path: Path) -> None:
    with faulty(tmp_path, "drifting", for_s=1000.0, **EXACT) as board:
        board.advance(70.0)
        assert watts(tmp_path, "ina226") == pytest.approx(4.56 * 1.1, rel=0.003)


def test_a_stalled_power_chip_lets_its_command_hang(tmp_path: Path) -> None:
    with faulty(tmp_path, "stalled", kind="pmic") as board:
        board.advance(10.0)
        with pytest.raises(subprocess.TimeoutExpired):
            subprocess.run(
                [board.vcgencmd, "pmic_read_adc"], timeout=0.2, check=False, stdout=subprocess.DEVNULL
            )
        assert subprocess.run(
            [board.vcgencmd, "get_throttled"], timeout=10, check=True, stdout=subprocess.DEVNULL
        )
        board.advance(5.0)
        subprocess.run([board.vcgencmd, "pmic_read_adc"], timeout=10, check=True, stdout=subprocess.DEVNULL)


def test_the_gauge_of_a_battery_can_be_gone(tmp_path: Path) -> None:
    faults = [{"meter": "battery", "fault": "gone", "at_s": 10, "for_s": 5}]
    with sim(tmp_path, battery={"capacity_wh": 10, "start_share": 1}, faults=faults) as board:
        gauge = tmp_path / "sys/class/power_supply/battery/capacity"
        assert gauge.read_text().strip() == "100"
        board.advance(12.0)
        assert not gauge.exists()
        board.advance(5.0)
        assert gauge.read_text().strip() == "100"


# --- real time and real work --------------------------------------------------------------------------------


def test_running_follows_real_time_at_its_speed_and_ends_when_told() -> None:
    board = sim(None)
    began_s = time.monotonic()
    board.run(threading.Event(), speed=100.0, until_s=20.0)
    elapsed_s = time.monotonic() - began_s
    assert board.clock() == 20.0
    assert elapsed_s >= 0.2 - TICK_S
    stop = threading.Event()
    stop.set()
    board.run(stop, until_s=1e9)
    assert board.clock() == 20.0


def test_the_work_of_a_process_is_the_work_of_the_board() -> None:
    load = ProcessLoad(os.getpid())
    began_s, used_s = time.monotonic(), time.process_time()
    while time.process_time() - used_s < 0.1:
        pass
    cores = load.busy_cores()
    assert cores * (time.monotonic() - began_s) == pytest.approx(0.1, rel=0.1)
    assert cores <= 1.05


def test_a_process_that_ended_does_no_work_and_one_that_never_was_is_refused() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    load = ProcessLoad(child.pid)
    child.communicate(b"\n")
    assert load.busy_cores() == 0.0
    with pytest.raises(UsageError, match=str(child.pid)):
        ProcessLoad(child.pid)


def test_physics_alone_has_no_program() -> None:
    with pytest.raises(UsageError):
        _ = sim(None).vcgencmd
