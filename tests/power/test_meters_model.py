from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from edgeslm.power.meters.model import ModelMeter, Observer, Predictors, predict
from edgeslm.schema.board import PowerTable
from edgeslm.schema.calibration import ModelCalibration

TABLE = PowerTable(
    idle_w=2.0,
    core_load_w=1.0,
    max_mhz=1500,
    frequency_exponent=2.0,
    temperature_w_per_c=0.02,
    network_j_per_mb=0.5,
    error_share=0.25,
    source="made up for tests",
)


class Machine:
    """A tree with processor, network, frequency and heat, and the clocks beside it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.wall_s = 50.0
        self.process_s = 0.0
        self.write("proc/stat", "cpu  0 0 0 0 0 0 0 0 0 0\n")
        self.network(0)
        self.write("sys/devices/system/cpu/cpufreq/policy0/scaling_cur_freq", "1500000\n")
        self.write("sys/class/thermal/thermal_zone0/type", "gpu-thermal\n")
        self.write("sys/class/thermal/thermal_zone0/temp", "90000\n")
        self.write("sys/class/thermal/thermal_zone1/type", "cpu-thermal\n")
        self.write("sys/class/thermal/thermal_zone1/temp", "25000\n")
        (root / "sys/class/net/eth0/device").mkdir(parents=True)
        (root / "sys/class/net/docker0").mkdir()

    def write(self, path: str, text: str) -> None:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def network(self, megabytes: int) -> None:
        counts = " ".join([str(megabytes * 500_000), *["0"] * 7] * 2)
        self.write(
            "proc/net/dev",
            "Inter-|   Receive  |  Transmit\n face |bytes packets|bytes packets\n"
            f"  eth0: {counts}\ndocker0: {counts}\n    lo: {counts}\n",
        )

    def pass_s(self, seconds: float, own_cores: float = 0.0, other_cores: float = 0.0) -> None:
        self.wall_s += seconds
        self.process_s += own_cores * seconds
        ticks = int(100 * (self.process_s + other_cores * seconds) + 0.5)
        self.write("proc/stat", f"cpu  {ticks} 0 0 0 0 0 0 0 0 0\n")

    def meter(self, calibration: ModelCalibration | None = None) -> ModelMeter:
        return ModelMeter(
            TABLE,
            calibration=calibration,
            root=self.root,
            clock=lambda: self.wall_s,
            process_clock=lambda: self.process_s,
        )


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_the_formula_is_that_of_the_power_table() -> None:
    at = Predictors(busy_cores=2.0, frequency_mhz=750.0, temperature_c=75.0, network_mb_s=4.0)
    assert predict(TABLE, at) == pytest.approx(2.0 + 2.0 * 0.25 + 0.02 * 50 + 0.5 * 4)
    assert predict(TABLE, Predictors(busy_cores=2.0)) == pytest.approx(4.0)
    assert predict(TABLE, Predictors(busy_cores=0.0, temperature_c=-300.0)) == 0.0


def test_work_of_this_process_and_of_others_is_load(machine: Machine) -> None:
    meter = machine.meter()
    machine.pass_s(1.0)
    assert meter.read().power_w == pytest.approx(2.0)
    machine.pass_s(1.0, own_cores=1.0, other_cores=0.5)
    reading = meter.read()
    assert reading.power_w == pytest.approx(3.5)
    assert reading.at_s == 52.0
    assert meter.facts.meter_class == "estimated"
    assert meter.facts.error_share == 0.25


def test_frequency_and_heat_and_network_play_their_part(machine: Machine) -> None:
    meter = machine.meter()
    machine.write("sys/devices/system/cpu/cpufreq/policy0/scaling_cur_freq", "750000\n")
    machine.write("sys/class/thermal/thermal_zone1/temp", "75000\n")
    machine.network(6)
    machine.pass_s(2.0, own_cores=2.0)
    assert meter.read().power_w == pytest.approx(2.0 + 2.0 * 0.25 + 0.02 * 50 + 0.5 * 3)


def test_network_counters_that_start_over_are_no_traffic(machine: Machine) -> None:
    machine.network(100)
    meter = machine.meter()
    machine.network(1)
    machine.pass_s(2.0)
    assert meter.read().power_w == pytest.approx(2.0)


def test_reads_closer_than_two_ticks_give_the_last_value(machine: Machine) -> None:
    meter = machine.meter()
    machine.pass_s(1.0, own_cores=1.0)
    first = meter.read()
    machine.pass_s(0.01, own_cores=4.0)
    assert meter.read() is first


@pytest.mark.parametrize("text", ["", "garbage\n", "-1\n"])
def test_what_cannot_be_read_plays_no_part(machine: Machine, text: str) -> None:
    meter = machine.meter()
    for path in (
        "proc/stat",
        "proc/net/dev",
        "sys/devices/system/cpu/cpufreq/policy0/scaling_cur_freq",
        "sys/class/thermal/thermal_zone1/temp",
    ):
        (machine.root / path).write_text(text)
    machine.wall_s += 2.0
    machine.process_s += 2.0
    assert meter.read().power_w == pytest.approx(3.0, abs=0.6)


def test_a_machine_that_shows_nothing_still_has_a_model(tmp_path: Path) -> None:
    wall_s, process_s = 0.0, 0.0
    meter = ModelMeter(TABLE, root=tmp_path, clock=lambda: wall_s, process_clock=lambda: process_s)
    wall_s, process_s = 1.0, 0.5
    assert meter.read().power_w == pytest.approx(2.5)
    meter.close()


def test_figures_of_this_device_replace_the_tables(machine: Machine) -> None:
    own = ModelCalibration(
        against="plug",
        against_class="measured",
        made_at=datetime(2026, 3, 1, tzinfo=UTC),
        pairs=100,
        least_w=2.0,
        most_w=6.0,
        error_share=0.03,
        error_w=0.1,
        idle_w=2.4,
        core_load_w=0.8,
        frequency_exponent=1.0,
        temperature_w_per_c=0.0,
        network_j_per_mb=0.0,
    )
    meter = machine.meter(own)
    machine.pass_s(1.0, own_cores=1.0)
    assert meter.read().power_w == pytest.approx(3.2)
    assert meter.facts.meter_class == "calibrated"
    assert (meter.facts.error_share, meter.facts.error_w) == (0.03, 0.1)
    assert "plug, 2026-03-01" in meter.facts.source


def test_this_machine_can_be_looked_at() -> None:
    observer = Observer()
    seen = observer.look()
    assert seen.busy_cores >= 0
    assert seen.network_mb_s >= 0
    observer.close()
