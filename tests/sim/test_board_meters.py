"""The real adapters read the simulated board and follow its truth within the error that they state."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edgeslm.errors import MeterError
from edgeslm.power.actuators import FrequencyCap
from edgeslm.power.boards import detect_board, load_boards
from edgeslm.power.cpu import CpuClock
from edgeslm.power.meters.hwmon import HwmonMeter, find_sensors
from edgeslm.power.meters.model import ModelMeter
from edgeslm.power.meters.pmic import PERIOD_S, PmicMeter, probe
from edgeslm.power.meters.rapl import RaplMeter, default_correction, find_zones
from edgeslm.power.meters.supply import SupplyMeter, read_battery
from edgeslm.power.port import Meter, Throttling
from edgeslm.power.vitals import VitalsReader
from edgeslm.schema.board import Board
from edgeslm.schema.scenario import Scenario
from edgeslm.sim.board_driver import SimBoard

BOARDS = load_boards()
HWMON_KINDS = ("ina219", "ina226", "ina260", "ina3221")
LEVELS = (0.0, 0.5, 1.0, 2.0, 4.0, 0.0, 3.0)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "board"


def sim(root: Path, board: str | Board = "pi-4b", seed: int | None = None, **fields: Any) -> SimBoard:
    scenario = Scenario.model_validate({"name": "test", "title": "test", **fields})
    return SimBoard(BOARDS[board] if isinstance(board, str) else board, scenario, root, seed=seed)


def hwmon_meter(board: SimBoard, root: Path, kind: str) -> HwmonMeter:
    (sensor,) = [sensor for sensor in find_sensors(root) if sensor.kind == kind]
    return HwmonMeter(sensor, root=root, clock=board.clock)


def rapl_meter(board: SimBoard, root: Path) -> RaplMeter:
    zones = find_zones(root)
    return RaplMeter(zones, default_correction(zones, idle_w=board.plant.idle_w), clock=board.clock)


def pmic_meter(board: SimBoard) -> PmicMeter:
    return PmicMeter((str(board.vcgencmd),), clock=board.clock)


def model_meter(board: SimBoard, root: Path, name: str) -> ModelMeter:
    return ModelMeter(
        BOARDS[name].power, root=root, clock=board.clock, process_clock=lambda: board.state.busy_core_s
    )


def levels(board: SimBoard, span_s: float) -> Iterator[float]:
    """Goes through levels of work, each for `span_s`, and gives the mean draw over it."""
    for cores in LEVELS:
        board.busy_cores = cores
        before_j = board.state.energy_j
        board.advance(span_s)
        yield (board.state.energy_j - before_j) / span_s


def within_its_error(meter: Meter, power_w: float, true_w: float) -> bool:
    return abs(power_w - true_w) <= 3 * math.hypot(meter.facts.error_share * true_w, meter.facts.error_w)


def fault_seen(meter: Meter) -> str | None:
    try:
        meter.read()
    except MeterError as error:
        return error.fault
    return None


# --- truth --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("kind", HWMON_KINDS)
def test_an_hwmon_meter_follows_the_truth_within_its_error(root: Path, kind: str, seed: int) -> None:
    with sim(root, seed=seed, meters=[{"kind": kind}]) as board:
        meter = hwmon_meter(board, root, kind)
        for _ in levels(board, 5.0):
            reading = meter.read()
            assert reading.at_s == board.clock()
            assert within_its_error(meter, reading.power_w, board.state.power_w)
        assert meter.facts.name == f"hwmon:{kind}@1-0040"
        meter.close()


def test_an_interval_that_was_set_is_the_meters_period(root: Path) -> None:
    with sim(root, meters=[{"kind": "ina226", "update_interval_ms": 140}]) as board:
        assert hwmon_meter(board, root, "ina226").facts.period_s == pytest.approx(0.14)


def test_all_meters_of_a_board_are_found_and_the_thermometer_is_none(root: Path) -> None:
    with sim(root, meters=[{"kind": kind} for kind in HWMON_KINDS]):
        assert sorted(sensor.name for sensor in find_sensors(root)) == [
            "ina219@1-0040",
            "ina226@1-0041",
            "ina260@1-0042",
            "ina3221@1-0043",
        ]


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_power_chip_of_a_raspberry_pi_5_follows_the_truth_within_its_error(root: Path, seed: int) -> None:
    with sim(root, "pi-5", seed=seed, meters=[{"kind": "pmic"}]) as board:
        meter = pmic_meter(board)
        for _ in levels(board, PERIOD_S):
            assert within_its_error(meter, meter.read().power_w, board.state.power_w)


def test_a_board_without_the_power_chip_says_so(root: Path) -> None:
    with sim(root) as board:
        assert probe((str(board.vcgencmd),)) is not None


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_an_energy_counter_follows_the_truth_within_its_error_and_across_wraps(root: Path, seed: int) -> None:
    with sim(root, "host", seed=seed, meters=[{"kind": "rapl", "counter_range_uj": 1_000_000_000}]) as board:
        meter = rapl_meter(board, root)
        start_j = board.state.energy_j
        for mean_w in levels(board, 5.0):
            reading = meter.read()
            assert within_its_error(meter, reading.power_w, mean_w)
        counted_j = reading.counter_j
        assert counted_j is not None
        assert counted_j == pytest.approx(board.state.energy_j - start_j, rel=0.011)
        assert board.state.energy_j > 1000


def test_a_battery_tells_the_draw_while_nothing_else_feeds_the_board(root: Path) -> None:
    with sim(root, supply_w=0, battery={"capacity_wh": 50}) as board:
        meter = SupplyMeter(root, clock=board.clock)
        for _ in levels(board, 6.0):
            assert within_its_error(meter, meter.read().power_w, board.state.power_w)
        assert read_battery(root) is not None
    with sim(root, battery={"capacity_wh": 50}) as board:
        board.advance(1.0)
        assert fault_seen(SupplyMeter(root, clock=board.clock)) == "gone"


@pytest.mark.parametrize("name", ["pi-3b", "pi-4b", "pi-5"])
def test_the_model_of_a_board_follows_the_truth_that_is_made_by_the_same_table(root: Path, name: str) -> None:
    with sim(root, name, network_mb_per_s=2.0) as board:
        meter = model_meter(board, root, name)
        for mean_w in levels(board, 5.0):
            assert meter.read().power_w == pytest.approx(mean_w, rel=0.01)
        meter.close()


def test_the_model_knows_frequency_temperature_and_network(root: Path) -> None:
    power = BOARDS["pi-4b"].power.model_copy(update={"temperature_w_per_c": 0.02, "network_j_per_mb": 0.3})
    board_type = BOARDS["pi-4b"].model_copy(update={"power": power})
    with sim(root, board_type, network_mb_per_s=3.0) as board:
        cap = FrequencyCap(root / "cap.json", root)
        assert cap.hold(900)
        meter = ModelMeter(power, root=root, clock=board.clock, process_clock=lambda: board.state.busy_core_s)
        for mean_w in levels(board, 20.0):
            assert meter.read().power_w == pytest.approx(mean_w, rel=0.02)
        assert board.state.network_mb == pytest.approx(3.0 * board.clock())


# --- vitals and cap -----------------------------------------------------------------------------------------


def vitals_reader(board: SimBoard, root: Path) -> VitalsReader:
    return VitalsReader(root, (str(board.vcgencmd),))


def test_vitals_follow_temperature_frequency_and_battery(root: Path) -> None:
    with sim(root, supply_w=0, panel={"peak_w": 8}, battery={"capacity_wh": 1, "start_share": 0.5}) as board:
        reader = vitals_reader(board, root)
        for _ in levels(board, 60.0):
            vitals = reader.read(board.clock())
            assert vitals.temperature_c == pytest.approx(board.state.temperature_c, abs=0.25)
            assert vitals.frequency_mhz == pytest.approx(board.state.frequency_mhz, abs=0.5)
            assert vitals.throttling == Throttling()
            assert vitals.battery is not None
            assert vitals.battery.share == pytest.approx(board.state.battery_j / 3600, abs=0.006)
            assert vitals.battery.discharge_w == pytest.approx(board.state.battery_w, abs=1e-5)
            assert vitals.battery.capacity_wh == 1
            assert vitals.battery.external
        reader.close()


def test_vitals_tell_heat_and_a_weak_supply(root: Path) -> None:
    events = [
        {"at_s": 0, "for_s": 2000, "air_c": 55},
        {"at_s": 3000, "for_s": 1, "supply_w": 5},
    ]
    with sim(root, load={"shape": "constant", "busy_cores": 4}, events=events) as board:
        reader = vitals_reader(board, root)
        board.advance(1500.0)
        assert reader.read(board.clock()).throttling == Throttling(
            frequency_capped=True,
            throttled=True,
            frequency_capped_since_boot=True,
            throttled_since_boot=True,
        )
        board.advance(1501.0)
        throttling = reader.read(board.clock()).throttling
        assert throttling is not None
        assert (throttling.under_voltage, throttling.throttled) == (True, True)
        board.advance(20.0)
        throttling = reader.read(board.clock()).throttling
        assert throttling is not None
        assert (throttling.under_voltage, throttling.under_voltage_since_boot) == (False, True)


def test_a_cap_of_the_real_actuator_lowers_the_draw_and_is_lifted(root: Path) -> None:
    with sim(root, load={"shape": "constant", "busy_cores": 4}) as board:
        full_w = board.advance(1.0).power_w
        cap = FrequencyCap(root / "cap.json", root)
        assert cap.range_mhz == (600, 1500)
        assert cap.hold(1000)
        state = board.advance(1.0)
        assert state.frequency_mhz == 1000
        assert state.power_w < full_w - 1
        cap.close()
        assert board.advance(1.0).power_w == pytest.approx(full_w)


def test_processor_time_is_the_boards(root: Path) -> None:
    with sim(root, load={"shape": "constant", "busy_cores": 1.5}) as board:
        clock = CpuClock(root, board.clock, lambda: 0.0)
        before = clock.read()
        board.advance(10.0)
        after = clock.read()
        assert after.busy_s - before.busy_s == pytest.approx(15.0, abs=0.02)
        assert after.at_s - before.at_s == pytest.approx(10.0)


@pytest.mark.parametrize("name", ["pi-3b", "pi-3b-plus", "pi-4b", "pi-5"])
def test_a_simulated_board_is_recognised_as_what_it_is(root: Path, name: str) -> None:
    with sim(root, name):
        assert detect_board(BOARDS, root / "proc/device-tree/model").name == name


# --- faults -------------------------------------------------------------------------------------------------


def faulty(root: Path, kind: str, fault: str, **fields: Any) -> SimBoard:
    faults = [{"meter": kind, "fault": fault, "at_s": 10, "for_s": 5}]
    return sim(root, meters=[{"kind": kind}], faults=faults, **fields)


OPEN: dict[str, Callable[[SimBoard, Path], Meter]] = {
    "ina226": lambda board, root: hwmon_meter(board, root, "ina226"),
    "ina3221": lambda board, root: hwmon_meter(board, root, "ina3221"),
    "pmic": lambda board, root: pmic_meter(board),
    "rapl": rapl_meter,
}


@pytest.mark.parametrize("kind", ["ina226", "ina3221", "pmic", "rapl"])
def test_a_meter_that_is_gone_is_named_and_found_again(root: Path, kind: str) -> None:
    with faulty(root, kind, "gone") as board:
        meter = OPEN[kind](board, root)
        board.advance(9.0)
        assert fault_seen(meter) is None
        board.advance(2.0)
        assert fault_seen(meter) == "gone"
        board.advance(5.0)
        assert fault_seen(meter) is None
        board.advance(2.0)
        assert within_its_error(meter, meter.read().power_w, board.state.power_w)


@pytest.mark.parametrize("kind", ["ina226", "ina3221", "pmic", "rapl"])
def test_rubbish_is_an_error_or_no_possible_power(root: Path, kind: str) -> None:
    with faulty(root, kind, "rubbish") as board:
        meter = OPEN[kind](board, root)
        board.advance(9.0)
        meter.read()
        board.advance(1.0)
        seen = set()
        for _ in range(20):
            board.advance(0.2)
            try:
                seen.add("impossible" if meter.read().power_w > 1e6 else "plausible")
            except MeterError as error:
                seen.add(error.fault)
        assert "rubbish" in seen
        assert seen <= {"rubbish", "impossible"}


@pytest.mark.parametrize("kind", ["ina226", "ina3221", "pmic"])
def test_a_negative_meter_reads_below_zero(root: Path, kind: str) -> None:
    with faulty(root, kind, "negative") as board:
        meter = OPEN[kind](board, root)
        board.advance(11.0)
        assert meter.read().power_w < 0


@pytest.mark.parametrize("kind", ["ina226", "ina3221"])
def test_a_stuck_meter_reads_the_same_for_ever(root: Path, kind: str) -> None:
    with faulty(
        root, kind, "stuck", load={"shape": "bursts", "busy_cores": 4, "every_s": 1, "length_s": 0.5}
    ) as board:
        meter = OPEN[kind](board, root)

        def values() -> set[float]:
            seen = set()
            for _ in range(40):
                board.advance(0.1)
                seen.add(meter.read().power_w)
            return seen

        board.advance(1.0)
        assert len(values()) > 3
        board.advance(6.0)
        assert len(values()) == 1


def test_a_counter_that_stalls_loses_no_energy(root: Path) -> None:
    with faulty(root, "rapl", "stalled", load={"shape": "constant", "busy_cores": 2}) as board:
        meter = rapl_meter(board, root)
        watts = []
        for _ in range(25):
            board.advance(1.0)
            reading = meter.read()
            watts.append(reading.power_w)
        assert watts[10:14] == [0.0] * 4
        assert reading.counter_j == pytest.approx(board.state.energy_j, rel=0.011)


def test_a_power_chip_that_stalls_is_given_up_on_after_a_second(root: Path) -> None:
    with faulty(root, "pmic", "stalled") as board:
        meter = pmic_meter(board)
        board.advance(11.0)
        began_s = time.monotonic()
        assert fault_seen(meter) == "gone"
        assert time.monotonic() - began_s < 3
        board.advance(5.0)
        assert fault_seen(meter) is None


# --- in real time -------------------------------------------------------------------------------------------


def test_a_reader_beside_a_running_board_never_meets_half_a_value(root: Path) -> None:
    load = {"shape": "square", "high_cores": 4, "period_s": 0.2}
    with sim(root, load=load, meters=[{"kind": "ina226"}]) as board:
        meter = hwmon_meter(board, root, "ina226")
        clock = CpuClock(root, board.clock, lambda: 0.0)
        stop = threading.Event()
        running = threading.Thread(target=board.run, args=(stop,), kwargs={"speed": 50.0})
        running.start()
        lowest, highest, count = math.inf, 0.0, 0
        busy_s = 0.0
        until_s = time.monotonic() + 1.0
        while (now_s := time.monotonic()) < until_s or (highest - lowest < 3 and now_s < until_s + 20):
            power_w = meter.read().power_w
            lowest, highest, count = min(lowest, power_w), max(highest, power_w), count + 1
            last_s, busy_s = busy_s, clock.read().busy_s
            assert busy_s >= last_s
        stop.set()
        running.join()
        assert count > 100
        assert lowest > 2.6
        assert highest < 6.6
        assert highest - lowest > 3
