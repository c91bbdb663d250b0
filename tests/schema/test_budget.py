from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from edgeslm import codec
from edgeslm.codec import describe
from edgeslm.schema import budget as budget_schema
from edgeslm.schema.budget import Budget, QuietHours, Tariff, Window, quantity

EVERYTHING = """
windows:
  - {name: supply, limit: 6 W, over: 1s}
  - {name: heat, limit: 4000 mW, over: 1m}
  - {name: average, limit: 2.5 W, over: 1h}
  - {name: day, limit: 50 Wh, over: 1d}
  - {name: week, limit_w: 2, over_s: 604800}
reserve: 5 %
max_wait: 30m
min_tokens: 12
cap_frequency: true
battery: {reserve: 30 %, curve: [{at: 20 %, limit: 1.5 W}, {at: 80 %, limit: 4 W}]}
temperature: {ceiling: 75 C, hysteresis: 4 C}
on_under_voltage: hold
on_throttling: ignore
quiet_hours:
  - {begins: "22:00", ends: "06:30", lowest_priority: normal, limit: 2 W}
tariff:
  price_per_kwh: 0.3
  periods: [{begins: "01:00", ends: "05:00", price_per_kwh: 0.1, co2_g_per_kwh: 90}]
  low_waits: {by: price_per_kwh, at_most: 0.15, max_wait: 6h}
"""


def budget(text: str) -> Budget:
    return Budget.model_validate(yaml.safe_load(text))


def fault(data: object) -> str:
    with pytest.raises(ValidationError) as caught:
        Budget.model_validate(data)
    return describe(caught.value)


def window(**fields: object) -> dict[str, object]:
    return {"windows": [{"name": "day", **fields}]}


def test_quantities_are_read_with_their_units() -> None:
    read = budget(EVERYTHING)
    assert [(one.limit_w, one.over_s) for one in read.windows] == [
        (6.0, 1.0),
        (4.0, 60.0),
        (2.5, 3600.0),
        (pytest.approx(50 / 24), 86_400.0),
        (2.0, 604_800.0),
    ]
    assert read.windows[3].limit_j == pytest.approx(180_000)
    assert read.reserve_share == 0.05
    assert read.max_wait_s == 1800
    assert read.battery is not None
    assert [(point.at_share, point.limit_w) for point in read.battery.curve] == [(0.2, 1.5), (0.8, 4.0)]
    assert read.temperature is not None
    assert (read.temperature.ceiling_c, read.temperature.hysteresis_c) == (75, 4)
    assert read.tariff is not None
    assert read.tariff.low_waits is not None
    assert read.tariff.low_waits.max_wait_s == 21_600


@pytest.mark.parametrize("text", [EVERYTHING, "{}", "{reserve: auto}"])
def test_a_budget_survives_the_way_through_a_message(text: str) -> None:
    once = budget(text)
    assert codec.decode(Budget, codec.encode(once)) == once
    assert Budget.model_validate(json.loads(once.model_dump_json())) == once


def test_an_empty_budget_restrains_nothing_and_learns_its_reserve() -> None:
    empty = budget("{}")
    assert empty.windows == ()
    assert empty.reserve_share is None
    assert budget("{reserve: auto}") == empty


@pytest.mark.parametrize(
    ("text", "ending", "expected"),
    [
        ("500 mW", "w", 0.5),
        ("2W", "w", 2.0),
        ("1.5 kW", "w", 1500.0),
        ("90s", "s", 90.0),
        ("5 min", "s", 300.0),
        ("5m", "s", 300.0),
        ("7d", "s", 604_800.0),
        ("12.5 %", "share", 0.125),
        ("75 °C", "c", 75.0),
    ],
)
def test_units(text: str, ending: str, expected: float) -> None:
    assert quantity(text, ending) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("limit", "joules"),
    [("20 Wh", 72_000), ("72 kJ", 72_000), ("0.02 kWh", 72_000), ("72000 J", 72_000), ("20000 mWh", 72_000)],
)
def test_a_limit_may_be_an_energy(limit: str, joules: float) -> None:
    read = Budget.model_validate(window(limit=limit, over="1d"))
    assert read.windows[0].limit_j == pytest.approx(joules)


@given(st.floats(0.001, 10_000, allow_nan=False), st.floats(1, 604_800, allow_nan=False))
def test_stored_numbers_come_back_as_they_were(limit_w: float, over_s: float) -> None:
    one = Window(name="w", limit_w=limit_w, over_s=over_s)
    assert Window.model_validate_json(one.model_dump_json()) == one


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (
            window(limit="20 Wx", over="1d"),
            "limit: '20 Wx' is not a power or an energy, such as '2 W' or '20 Wh'",
        ),
        (window(limit="20", over="1d"), "'20' is not a power or an energy"),
        (window(limit=20, over="1d"), "'20' is not a power or an energy"),
        (window(limit="-2 W", over="1d"), "'-2 W' is not a power"),
        (window(limit="0 W", over="1d"), "greater than 0"),
        (window(limit="2 W", over="1 week"), "over: '1 week' is not a time, such as '30s', '5m' or '1d'"),
        (window(limit="2 W", over=60), "'60' is not a time"),
        (window(limit="2 W", over="500d"), "less than or equal to 604800"),
        (window(limit="2 W", over_s=0.5), "greater than or equal to 1"),
        (window(limit="20 Wh"), "an energy needs 'over'"),
        (window(over="1d"), "limit_w: Field required"),
        (window(limit="2 W", limit_w=2, over="1d"), "'limit' and 'limit_w' are the same setting"),
        (window(limit_w=float("nan"), over="1d"), "finite number"),
        (window(limit_w=float("inf"), over="1d"), "finite number"),
        (window(limit="2 W", over="1d", powr=1), "powr: Extra inputs"),
        ({"windows": [{"name": "Day", "limit": "2 W", "over": "1d"}]}, "name: String should match"),
        ({"windows": [{"name": "battery", "limit": "2 W", "over": "1d"}]}, "cannot be called 'battery'"),
        ({"windows": [{"name": "a", "limit": "2 W", "over": "1d"}] * 2}, "window 'a' is named twice"),
        (
            {"windows": [{"name": f"w{n}", "limit": "2 W", "over": "1d"} for n in range(17)]},
            "at most 16 items",
        ),
        ({"reserve": "much"}, "reserve: 'much' is not a share, such as '20 %'"),
        ({"reserve": "60 %"}, "less than or equal to 0.5"),
        ({"max_wait": "soon"}, "max_wait: 'soon' is not a time"),
        ({"max_wait_s": -1}, "greater than or equal to 0"),
        ({"temperature": {"ceiling": "75 F"}}, "ceiling: '75 F' is not a temperature, such as '75 C'"),
        ({"temperature": {"ceiling": "300 C"}}, "less than or equal to 110"),
        (
            {"battery": {"curve": [{"at": "80 %", "limit": "4 W"}, {"at": "20 %", "limit": "1 W"}]}},
            "in order",
        ),
        ({"battery": {"reserve": "120 %"}}, "less than or equal to 1"),
        ({"on_throttling": "panic"}, "'ease', 'hold' or 'ignore'"),
        ({"quiet_hours": [{"begins": "22:00", "ends": "22:00"}]}, "ends at another time"),
        ({"quiet_hours": [{"begins": "24:00", "ends": "00:00"}]}, "ends at another time"),
        ({"quiet_hours": [{"begins": "9 pm", "ends": "22:00"}]}, "begins: String should match"),
        ({"quiet_hours": [{"begins": "25:00", "ends": "22:00"}]}, "begins: String should match"),
        (
            {
                "tariff": {
                    "periods": [{"begins": "22:00", "ends": "06:00"}, {"begins": "05:00", "ends": "08:00"}]
                }
            },
            "22:00 to 06:00 and 05:00 to 08:00 overlap",
        ),
        ({"tariff": {"low_waits": {"by": "price_per_kwh", "at_most": 1}}}, "low_waits needs price_per_kwh"),
        (
            {"tariff": {"price_per_kwh": 0.3, "low_waits": {"by": "price_per_kwh", "at_most": 0.1}}},
            "price_per_kwh is never 0.1 or less; the least is 0.3",
        ),
        ("20 Wh", "valid dictionary"),
        ({"windows": "day"}, "windows: Input should be a valid tuple"),
    ],
)
def test_every_wrong_value_is_named(data: object, says: str) -> None:
    assert says in fault(data)


def test_huge_and_hostile_texts_are_refused_in_few_words() -> None:
    for limit in ("9" * 100_000 + " W", "1 W" + "h" * 100_000, "٣ W", "1e9 W", "\x00"):
        assert len(fault(window(limit=limit, over="1d"))) < 300


def test_a_period_past_midnight_covers_both_ends_of_the_day() -> None:
    night = QuietHours(begins="22:00", ends="06:30")
    assert [night.covers(minute) for minute in (1319, 1320, 1439, 0, 389, 390)] == [
        False,
        True,
        True,
        True,
        True,
        False,
    ]
    day = QuietHours(begins="00:00", ends="24:00")
    assert all(day.covers(minute) for minute in range(1440))


def test_a_tariff_tells_the_value_of_every_minute() -> None:
    tariff = Tariff.model_validate(
        {
            "price_per_kwh": 0.3,
            "periods": [
                {"begins": "23:00", "ends": "05:00", "price_per_kwh": 0.1},
                {"begins": "12:00", "ends": "14:00", "co2_g_per_kwh": 50},
            ],
        }
    )
    assert tariff.value("price_per_kwh", 0) == 0.1
    assert tariff.value("price_per_kwh", 5 * 60) == 0.3
    assert tariff.value("price_per_kwh", 13 * 60) == 0.3
    assert tariff.value("co2_g_per_kwh", 13 * 60) == 50
    assert tariff.value("co2_g_per_kwh", 0) is None


def test_adjacent_periods_do_not_overlap() -> None:
    periods = [
        {"begins": "00:00", "ends": "12:00"},
        {"begins": "12:00", "ends": "24:00"},
    ]
    assert len(Tariff.model_validate({"periods": periods}).periods) == 2


def test_every_setting_is_documented_under_the_name_that_takes_a_unit() -> None:
    page = (Path(__file__).parents[2] / "docs" / "power-budget.md").read_text("utf-8")
    table = page.split("## Settings")[1].split("\n## ")[0]
    rows = "\n".join(line.split("|")[1] for line in table.splitlines() if line.startswith("| `"))
    documented = set(re.findall(r"`([a-z_.0-9]+)`", rows))
    assert set(settings_of(Budget)) - documented == {
        "windows",
        "battery",
        "temperature",
        "quiet_hours",
        "tariff",
        "tariff.low_waits",
    }


def settings_of(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        stem, _, ending = name.rpartition("_")
        shown = prefix + (stem if ending in {"s", "w", "c", "share"} else name)
        yield shown
        for inner in re.findall(r"edgeslm\.schema\.budget\.(\w+)", str(field.annotation)):
            yield from settings_of(getattr(budget_schema, inner), f"{shown}.")
