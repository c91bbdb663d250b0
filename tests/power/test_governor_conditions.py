from __future__ import annotations

import pytest

from edgeslm.power.governor_conditions import HOLD_S, battery_limit_w, note_vitals, quiet_limit_w
from edgeslm.power.governor_types import Conditions
from edgeslm.power.port import Battery, Throttling, Vitals
from edgeslm.schema.budget import BatteryBudget, Budget


def test_the_ceiling_holds_until_the_board_is_well_below() -> None:
    budget = Budget.model_validate({"temperature": {"ceiling": "75 C", "hysteresis": "5 C"}})
    conditions, hot = Conditions(), []
    for temperature_c in (74.9, 75.0, 72.0, 70.0, 69.9, 74.9):
        conditions = note_vitals(conditions, budget, Vitals(0.0, temperature_c=temperature_c))
        hot.append(conditions.hot)
    assert hot == [False, True, True, True, False, False]


def test_without_a_ceiling_nothing_is_too_hot() -> None:
    assert not note_vitals(Conditions(), Budget(), Vitals(0.0, temperature_c=200.0)).hot


def test_what_is_not_known_this_time_stays_as_it_was() -> None:
    budget = Budget.model_validate({"temperature": {"ceiling": "75 C"}})
    battery = Battery(share=0.4, discharge_w=None, capacity_wh=None, external=None)
    seen = note_vitals(Conditions(), budget, Vitals(0.0, temperature_c=80.0, battery=battery))
    assert note_vitals(seen, budget, Vitals(1.0)) == seen
    assert seen.battery_share == 0.4


@pytest.mark.parametrize(
    ("flags", "under_voltage", "throttled"),
    [
        (Throttling(), False, False),
        (Throttling(under_voltage=True), True, False),
        (Throttling(frequency_capped=True), False, True),
        (Throttling(throttled=True), False, True),
        (Throttling(soft_temperature_limit=True), False, True),
        (Throttling(under_voltage_since_boot=True, throttled_since_boot=True), False, False),
    ],
)
def test_flags_of_now_count_for_a_while_and_those_since_boot_do_not(
    flags: Throttling, under_voltage: bool, throttled: bool
) -> None:
    seen = note_vitals(Conditions(), Budget(), Vitals(100.0, throttling=flags))
    later = note_vitals(seen, Budget(), Vitals(110.0, throttling=Throttling()))
    assert (later.under_voltage_until_s == 100.0 + HOLD_S) == under_voltage
    assert (later.throttled_until_s == 100.0 + HOLD_S) == throttled


def test_the_battery_curve_is_interpolated_and_flat_beyond_its_ends() -> None:
    battery = BatteryBudget.model_validate(
        {
            "curve": [
                {"at": "20 %", "limit": "1 W"},
                {"at": "60 %", "limit": "3 W"},
                {"at": "80 %", "limit": "4 W"},
            ]
        }
    )
    found = [battery_limit_w(battery, share) for share in (0.0, 0.2, 0.4, 0.6, 0.7, 0.8, 1.0)]
    assert found == pytest.approx([1.0, 1.0, 2.0, 3.0, 3.5, 4.0, 4.0])
    assert battery_limit_w(BatteryBudget(), 0.5) is None


def test_of_overlapping_quiet_hours_the_strictest_limit_holds() -> None:
    budget = Budget.model_validate(
        {
            "quiet_hours": [
                {"begins": "22:00", "ends": "06:00", "limit": "3 W"},
                {"begins": "00:00", "ends": "02:00", "limit": "2 W"},
                {"begins": "12:00", "ends": "13:00"},
            ]
        }
    )
    assert [quiet_limit_w(budget, minute) for minute in (23 * 60, 60, 12 * 60, 9 * 60)] == [
        3.0,
        2.0,
        None,
        None,
    ]
    assert quiet_limit_w(budget, None) is None
