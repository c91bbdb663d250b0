from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeslm.power.port import Throttling
from edgeslm.power.vitals import VitalsReader, decode_throttled, read_vitals

NO_TOOL = ("/no/such/vcgencmd",)
FIRMWARE_FILE = "sys/devices/platform/soc/soc:firmware/get_throttled"


def write(root: Path, path: str, text: str) -> None:
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"{text}\n")


class Tool:
    """A stand-in for ``vcgencmd`` that counts how often it is started."""

    def __init__(self, directory: Path) -> None:
        self.answer = directory / "answer"
        self.calls = directory / "calls"
        self.calls.write_text("")
        program = directory / "vcgencmd"
        program.write_text(f'#!/bin/sh\necho "$@" >> {self.calls}\ncat {self.answer}\n')
        program.chmod(0o755)
        self.command = (str(program),)

    def says(self, text: str) -> None:
        self.answer.write_text(f"{text}\n")


@pytest.mark.parametrize(
    ("bits", "expected"),
    [
        (0x0, Throttling()),
        (0x1, Throttling(under_voltage=True)),
        (0x2, Throttling(frequency_capped=True)),
        (0x4, Throttling(throttled=True)),
        (0x8, Throttling(soft_temperature_limit=True)),
        (0x10000, Throttling(under_voltage_since_boot=True)),
        (0x20000, Throttling(frequency_capped_since_boot=True)),
        (0x40000, Throttling(throttled_since_boot=True)),
        (0x80000, Throttling(soft_temperature_limit_since_boot=True)),
        (
            0x50005,
            Throttling(
                under_voltage=True, throttled=True, under_voltage_since_boot=True, throttled_since_boot=True
            ),
        ),
    ],
)
def test_each_bit_of_the_firmware_has_its_name(bits: int, expected: Throttling) -> None:
    assert decode_throttled(bits) == expected


@given(st.integers(0, 2**32 - 1))
def test_other_bits_mean_nothing(bits: int) -> None:
    assert decode_throttled(bits) == decode_throttled(bits & 0xF000F)


def test_temperature_is_that_of_the_processor_and_frequency_the_mean(tmp_path: Path) -> None:
    write(tmp_path, "sys/class/thermal/thermal_zone0/type", "gpu-thermal")
    write(tmp_path, "sys/class/thermal/thermal_zone0/temp", "91000")
    write(tmp_path, "sys/class/thermal/thermal_zone1/type", "cpu-thermal")
    write(tmp_path, "sys/class/thermal/thermal_zone1/temp", "51234")
    write(tmp_path, "sys/devices/system/cpu/cpufreq/policy0/scaling_cur_freq", "600000")
    write(tmp_path, "sys/devices/system/cpu/cpufreq/policy4/scaling_cur_freq", "1800000")
    vitals = read_vitals(tmp_path, NO_TOOL, 9.0)
    assert vitals.at_s == 9.0
    assert vitals.temperature_c == pytest.approx(51.234)
    assert vitals.frequency_mhz == pytest.approx(1200.0)
    assert vitals.throttling is None
    assert vitals.battery is None


def test_a_board_that_shows_nothing_tells_nothing(tmp_path: Path) -> None:
    vitals = read_vitals(tmp_path, NO_TOOL, 1.0)
    assert (vitals.temperature_c, vitals.frequency_mhz, vitals.throttling, vitals.battery) == (None,) * 4


@pytest.mark.parametrize("text", ["", "hot", "-300000", "999999"])
def test_a_broken_thermal_zone_is_no_temperature(tmp_path: Path, text: str) -> None:
    write(tmp_path, "sys/class/thermal/thermal_zone0/type", "cpu-thermal")
    write(tmp_path, "sys/class/thermal/thermal_zone0/temp", text)
    assert read_vitals(tmp_path, NO_TOOL, 1.0).temperature_c is None


def test_the_firmware_is_asked_every_five_seconds(tmp_path: Path) -> None:
    tool = Tool(tmp_path)
    tool.says("throttled=0x50005")
    reader = VitalsReader(tmp_path, tool.command)
    assert reader.read(0.0).throttling == decode_throttled(0x50005)
    tool.says("throttled=0x0")
    for second in range(1, 5):
        assert reader.read(float(second)).throttling == decode_throttled(0x50005)
    assert reader.read(5.0).throttling == Throttling()
    assert tool.calls.read_text() == "get_throttled\n" * 2


def test_a_tool_that_is_not_installed_is_not_looked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = []

    def fail(command: tuple[str, ...], timeout_s: float) -> str:
        started.append(command)
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr("edgeslm.power.vitals.run", fail)
    reader = VitalsReader(tmp_path, NO_TOOL)
    for second in range(20):
        reader.read(float(second))
    assert len(started) == 1


@pytest.mark.parametrize("answer", ["", "error=1", "throttled=0xzz", "throttled=0x123456789"])
def test_an_answer_that_is_none_leaves_the_old_kernels_file(tmp_path: Path, answer: str) -> None:
    tool = Tool(tmp_path)
    tool.says(answer)
    write(tmp_path, FIRMWARE_FILE, "80008")
    vitals = read_vitals(tmp_path, tool.command, 1.0)
    assert vitals.throttling == Throttling(
        soft_temperature_limit=True, soft_temperature_limit_since_boot=True
    )


def test_the_kernels_own_alarm_is_seen_at_once(tmp_path: Path) -> None:
    tool = Tool(tmp_path)
    tool.says("throttled=0x20000")
    write(tmp_path, "sys/class/hwmon/hwmon2/name", "rpi_volt")
    write(tmp_path, "sys/class/hwmon/hwmon2/in0_lcrit_alarm", "0")
    reader = VitalsReader(tmp_path, tool.command)
    assert reader.read(0.0).throttling == Throttling(frequency_capped_since_boot=True)
    write(tmp_path, "sys/class/hwmon/hwmon2/in0_lcrit_alarm", "1")
    assert reader.read(0.1).throttling == Throttling(
        under_voltage=True, under_voltage_since_boot=True, frequency_capped_since_boot=True
    )


def test_the_battery_is_among_the_vitals(tmp_path: Path) -> None:
    write(tmp_path, "sys/class/power_supply/ups/type", "Battery")
    write(tmp_path, "sys/class/power_supply/ups/status", "Discharging")
    write(tmp_path, "sys/class/power_supply/ups/capacity", "33")
    battery = read_vitals(tmp_path, NO_TOOL, 1.0).battery
    assert battery is not None
    assert battery.share == pytest.approx(0.33)
