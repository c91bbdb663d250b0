from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from edgeslm.errors import MeterError
from edgeslm.power.meters.chips import CHIPS
from edgeslm.power.meters.hwmon import HwmonMeter, find_sensors


def add_sensor(root: Path, number: int, place: str | None = None, **files: str) -> Path:
    """A hwmon directory as the kernel lays it out, with its device behind it."""
    directory = root / f"sys/class/hwmon/hwmon{number}"
    directory.mkdir(parents=True)
    for name, text in files.items():
        (directory / name).write_text(f"{text}\n")
    if place is not None:
        device = root / "sys/bus/i2c/devices" / place
        device.mkdir(parents=True, exist_ok=True)
        (directory / "device").symlink_to(device)
    return directory


def ina226(root: Path, number: int = 3, **more: str) -> Path:
    files = {"name": "ina226", "in0_input": "6", "in1_input": "5050", "curr1_input": "600"}
    return add_sensor(root, number, "1-0040", **(files | {"power1_input": "3025000"} | more))


def ina3221(root: Path, **more: str) -> Path:
    files = {"name": "ina3221", "curr4_input": "700", "in4_input": "2000", "in7_input": "9000"}
    for channel, (label, millivolts, milliamperes) in enumerate(
        (("VDD_CPU", "5000", "400"), ("VDD_IN", "5000", "1000"), ("VDD_SOC", "5000", "200")), 1
    ):
        files |= {f"in{channel}_label": label, f"in{channel}_enable": "1"}
        files |= {f"in{channel}_input": millivolts, f"curr{channel}_input": milliamperes}
    return add_sensor(root, 1, "0-0041", **(files | more))


def meter(root: Path, *wanted: str, clock: float = 7.0) -> HwmonMeter:
    (sensor,) = find_sensors(root)
    return HwmonMeter(sensor, wanted=wanted, root=root, clock=lambda: clock)


def test_an_ina226_tells_the_watts_of_its_power_file(tmp_path: Path) -> None:
    ina226(tmp_path, update_interval="140")
    found = meter(tmp_path)
    reading = found.read()
    assert reading.power_w == pytest.approx(3.025)
    assert reading.at_s == 7.0
    assert reading.counter_j is None
    assert found.facts.name == "hwmon:ina226@1-0040"
    assert found.facts.meter_class == "measured"
    assert found.facts.period_s == pytest.approx(0.14)
    assert found.facts.averages
    found.close()


def test_a_chip_without_a_power_file_is_voltage_times_current(tmp_path: Path) -> None:
    add_sensor(tmp_path, 0, "1-0045", name="ina219", in1_input="5000", curr1_input="500")
    assert meter(tmp_path).read().power_w == pytest.approx(2.5)


@pytest.mark.parametrize("kind", sorted(CHIPS))
def test_every_known_chip_states_error_period_and_source(tmp_path: Path, kind: str) -> None:
    add_sensor(tmp_path, 0, "1-0040", name=kind, in1_input="5000", curr1_input="500")
    facts = meter(tmp_path).facts
    assert 0 < facts.error_share < 0.02
    assert 0 < facts.error_w < 0.1
    assert 0 < facts.period_s < 0.2
    assert "TI" in facts.source


def test_a_small_shunt_makes_the_offset_count_for_more(tmp_path: Path) -> None:
    add_sensor(tmp_path, 0, "1-0040", name="ina226", power1_input="1", shunt_resistor="2000")
    small = meter(tmp_path).facts.error_w
    shutil.rmtree(tmp_path / "sys")
    add_sensor(tmp_path, 0, "1-0040", name="ina226", power1_input="1", shunt_resistor="100000")
    assert small == pytest.approx(50 * meter(tmp_path).facts.error_w)


def test_the_input_channel_stands_for_those_behind_it(tmp_path: Path) -> None:
    ina3221(tmp_path)
    assert meter(tmp_path).read().power_w == pytest.approx(5.0)


def test_channels_without_an_input_among_them_are_added_up(tmp_path: Path) -> None:
    ina3221(tmp_path, in2_label="VDD_GPU")
    assert meter(tmp_path).read().power_w == pytest.approx(8.0)


def test_a_disabled_channel_is_left_out(tmp_path: Path) -> None:
    ina3221(tmp_path, in2_label="VDD_GPU", in3_enable="0")
    assert meter(tmp_path).read().power_w == pytest.approx(7.0)


def test_voltages_over_shunts_and_sums_of_an_ina3221_are_no_channels(tmp_path: Path) -> None:
    ina3221(tmp_path)
    with pytest.raises(MeterError, match="no channel 4"):
        meter(tmp_path, "4")


@pytest.mark.parametrize(("wanted", "watts"), [(("VDD_SOC",), 1.0), (("1", "VDD_SOC"), 3.0), (("2",), 5.0)])
def test_channels_are_chosen_by_label_or_number(
    tmp_path: Path, wanted: tuple[str, ...], watts: float
) -> None:
    ina3221(tmp_path)
    assert meter(tmp_path, *wanted).read().power_w == pytest.approx(watts)


def test_an_average_is_read_where_there_is_no_instant(tmp_path: Path) -> None:
    add_sensor(
        tmp_path,
        0,
        "ACPI000D:00",
        name="power_meter",
        power1_average="61000000",
        power1_average_interval="1000",
    )
    found = meter(tmp_path)
    assert found.read().power_w == pytest.approx(61.0)
    assert found.facts.period_s == 1.0
    assert found.facts.averages


def test_sensors_without_power_are_not_found(tmp_path: Path) -> None:
    add_sensor(tmp_path, 0, name="cpu_thermal", temp1_input="50000")
    add_sensor(tmp_path, 1, name="rpi_volt", in0_lcrit_alarm="0")
    (tmp_path / "sys/class/hwmon/hwmon2").mkdir()
    assert find_sensors(tmp_path) == []
    assert find_sensors(tmp_path / "elsewhere") == []


def test_a_sensor_that_vanishes_is_gone_and_found_again_under_another_number(tmp_path: Path) -> None:
    directory = ina226(tmp_path, 3)
    found = meter(tmp_path)
    found.read()
    shutil.rmtree(directory)
    for _ in range(3):
        with pytest.raises(MeterError) as caught:
            found.read()
        assert caught.value.fault == "gone"
        assert caught.value.meter == "hwmon:ina226@1-0040"
    ina226(tmp_path, 7, power1_input="2000000")
    assert found.read().power_w == pytest.approx(2.0)


def test_another_chip_under_the_old_number_is_not_taken_for_the_lost_one(tmp_path: Path) -> None:
    directory = ina226(tmp_path, 3)
    found = meter(tmp_path)
    found.read()
    shutil.rmtree(directory)
    add_sensor(tmp_path, 3, "1-0041", name="ina226", power1_input="9000000")
    for _ in range(3):
        with pytest.raises(MeterError):
            found.read()


@pytest.mark.parametrize("text", ["", "n/a", "1.5", "9" * 40])
def test_what_is_no_number_is_rubbish(tmp_path: Path, text: str) -> None:
    directory = ina226(tmp_path)
    found = meter(tmp_path)
    (directory / "power1_input").write_text(text)
    with pytest.raises(MeterError) as caught:
        found.read()
    assert caught.value.fault == "rubbish"
    (directory / "power1_input").write_text("1000000\n")
    assert found.read().power_w == pytest.approx(1.0)


def test_a_value_below_zero_is_told_as_it_is(tmp_path: Path) -> None:
    ina226(tmp_path, power1_input="-3025000")
    assert meter(tmp_path).read().power_w == pytest.approx(-3.025)
