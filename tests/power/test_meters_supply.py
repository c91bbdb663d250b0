from __future__ import annotations

from pathlib import Path

import pytest

from edgeslm.errors import MeterError
from edgeslm.power.meters.supply import SupplyMeter, read_battery


def supply(root: Path, name: str, **files: str) -> Path:
    directory = root / "sys/class/power_supply" / name
    directory.mkdir(parents=True, exist_ok=True)
    for file, text in files.items():
        (directory / file).write_text(f"{text}\n")
    return directory


def ups(root: Path, **more: str) -> Path:
    """A UPS HAT with a fuel gauge that tells voltage and current."""
    files = {"type": "Battery", "present": "1", "status": "Discharging", "capacity": "62"}
    files |= {"voltage_now": "3700000", "current_now": "-1000000", "charge_full": "5000000"}
    return supply(root, "bq27441-0", **(files | more))


def test_a_discharging_battery_tells_the_draw(tmp_path: Path) -> None:
    ups(tmp_path)
    battery = read_battery(tmp_path)
    assert battery is not None
    assert battery.share == pytest.approx(0.62)
    assert battery.discharge_w == pytest.approx(3.7)
    assert battery.capacity_wh == pytest.approx(18.5)
    assert battery.external is False
    meter = SupplyMeter(tmp_path, clock=lambda: 4.0)
    assert meter.read().power_w == pytest.approx(3.7)
    assert meter.facts.meter_class == "measured"


def test_drivers_that_give_magnitudes_and_those_that_give_signs_mean_the_same(tmp_path: Path) -> None:
    for current in ("-1000000", "1000000"):
        ups(tmp_path, current_now=current)
        battery = read_battery(tmp_path)
        assert battery is not None
        assert battery.discharge_w == pytest.approx(3.7)


def test_power_and_energy_are_preferred_where_they_are_told(tmp_path: Path) -> None:
    ups(tmp_path, power_now="4200000", energy_full="20000000")
    battery = read_battery(tmp_path)
    assert battery is not None
    assert battery.discharge_w == pytest.approx(4.2)
    assert battery.capacity_wh == pytest.approx(20.0)


def test_a_charging_battery_discharges_less_than_nothing_and_is_no_meter(tmp_path: Path) -> None:
    ups(tmp_path, status="Charging", current_now="500000")
    battery = read_battery(tmp_path)
    assert battery is not None
    assert battery.discharge_w == pytest.approx(-1.85)
    assert battery.external is True
    with pytest.raises(MeterError) as caught:
        SupplyMeter(tmp_path).read()
    assert caught.value.fault == "gone"


def test_an_outside_supply_makes_the_battery_no_meter(tmp_path: Path) -> None:
    ups(tmp_path)
    supply(tmp_path, "AC", type="Mains", online="1")
    with pytest.raises(MeterError, match="outside supply"):
        SupplyMeter(tmp_path).read()
    supply(tmp_path, "AC", type="Mains", online="0")
    assert SupplyMeter(tmp_path).read().power_w == pytest.approx(3.7)


def test_one_supply_that_is_on_is_enough(tmp_path: Path) -> None:
    ups(tmp_path)
    supply(tmp_path, "ADP0", type="Mains", online="1")
    supply(tmp_path, "ucsi-source", type="USB", online="0")
    battery = read_battery(tmp_path)
    assert battery is not None
    assert battery.external is True


def test_the_battery_of_a_mouse_is_not_ours(tmp_path: Path) -> None:
    ups(tmp_path, scope="Device")
    assert read_battery(tmp_path) is None


def test_a_battery_that_is_not_present_is_none(tmp_path: Path) -> None:
    ups(tmp_path, present="0")
    assert read_battery(tmp_path) is None


def test_two_batteries_are_one_by_their_sizes(tmp_path: Path) -> None:
    common = {"type": "Battery", "status": "Discharging", "power_now": "5000000"}
    supply(tmp_path, "BAT0", **common, capacity="100", energy_full="10000000")
    supply(tmp_path, "BAT1", **common, capacity="0", energy_full="30000000")
    battery = read_battery(tmp_path)
    assert battery is not None
    assert battery.share == pytest.approx(0.25)
    assert battery.discharge_w == pytest.approx(10.0)
    assert battery.capacity_wh == pytest.approx(40.0)


def test_a_battery_without_percent_is_what_is_left_of_what_fits(tmp_path: Path) -> None:
    directory = ups(tmp_path, charge_now="1250000")
    (directory / "capacity").unlink()
    battery = read_battery(tmp_path)
    assert battery is not None
    assert battery.share == pytest.approx(0.25)


def test_a_gauge_that_tells_no_current_tells_no_draw(tmp_path: Path) -> None:
    directory = ups(tmp_path)
    (directory / "current_now").unlink()
    battery = read_battery(tmp_path)
    assert battery is not None
    assert battery.discharge_w is None
    with pytest.raises(MeterError):
        SupplyMeter(tmp_path).read()


@pytest.mark.parametrize("text", ["", "full", "-5", "700"])
def test_nonsense_in_the_files_stays_within_bounds(tmp_path: Path, text: str) -> None:
    ups(tmp_path, capacity=text, voltage_now=text, current_now=text)
    battery = read_battery(tmp_path)
    assert battery is None or 0.0 <= battery.share <= 1.0


def test_the_gauge_is_asked_every_five_seconds(tmp_path: Path) -> None:
    ups(tmp_path)
    now_s = 0.0
    meter = SupplyMeter(tmp_path, clock=lambda: now_s)
    first = meter.read()
    ups(tmp_path, current_now="-2000000")
    now_s = 4.9
    assert meter.read() is first
    now_s = 5.0
    assert meter.read().power_w == pytest.approx(7.4)
