"""Budgets of a fleet: made, checked, and looked after."""

from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.fleet_metrics_load import power
from edgeslm.agent.power_side import parse_budget
from edgeslm.errors import BudgetConfigError, UsageError
from edgeslm.fleet.budgets import BudgetRow, budget_row, budget_text, check_for, make_budget, read_budget
from edgeslm.fleet.metrics.query import Newest
from edgeslm.power.boards import load_boards
from edgeslm.schema.budget import Budget
from edgeslm.schema.metrics import WindowState

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
BOARDS = load_boards()
DAY_J = 80 * 3600.0
SUMS = {"power.span_s": 3600.0, "power.energy_j": 3.0 * 3600, "model.refused": 4.0}


# --- making -------------------------------------------------------------------------------------------------


def test_limits_given_by_themselves_are_windows() -> None:
    made = make_budget(day="20Wh", sustained="2W")
    assert [(one.name, one.over_s, round(one.limit_w, 4)) for one in made.windows] == [
        ("day", 86_400, 0.8333),
        ("sustained", 600, 2.0),
    ]


def test_limits_replace_the_windows_of_that_name_in_a_file_and_leave_the_rest(tmp_path: Path) -> None:
    file = tmp_path / "budget.yaml"
    file.write_text(
        "windows:\n  - {name: day, limit: 50 Wh, over: 1d}\n  - {name: supply, limit: 9 W, over: 1s}\n"
        "max_wait: 30m\n"
    )
    made = make_budget(day="80Wh", file=file)
    assert {one.name: round(one.limit_j) for one in made.windows} == {"day": 288_000, "supply": 9}
    assert made.max_wait_s == 1800
    file.write_text("budget:\n  battery: {reserve: 30 %}\n")
    assert make_budget(file=file).battery is not None


def test_what_is_assigned_is_read_by_the_device_as_it_was_meant(tmp_path: Path) -> None:
    file = tmp_path / "budget.yaml"
    file.write_text("temperature: {ceiling: 75 C}\nquiet_hours: [{begins: '22:00', ends: '06:00'}]\n")
    made = make_budget(day="80Wh", sustained="5W", file=file)
    text = budget_text(made)
    assert text.isascii()
    assert parse_budget(text) == made
    assert read_budget(text) == made


@pytest.mark.parametrize(
    "text", ["", "- 1\n", "windows: 3\n", "volts: 5\n", "{", "a: &a [*a]\n", "windows: [{name: day}]\n"]
)
def test_a_file_that_holds_no_budget_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "budget.yaml"
    file.write_text(text)
    with pytest.raises(UsageError):
        make_budget(file=file)


@pytest.mark.parametrize(("day", "sustained"), [(None, None), ("20", None), ("-5Wh", None), (None, "2 Wh x")])
def test_what_is_no_limit_is_refused(day: str | None, sustained: str | None) -> None:
    with pytest.raises(UsageError):
        make_budget(day=day, sustained=sustained)


def test_a_budget_that_a_board_can_never_keep_is_refused_with_its_arithmetic() -> None:
    with pytest.raises(BudgetConfigError, match=r"kitchen: window 'day' allows .* 2\.70 W"):
        check_for("kitchen", make_budget(day="20Wh"), BOARDS["pi-4b"], None)
    assert check_for("kitchen", make_budget(day="20Wh"), BOARDS["pi-4b"], 0.5) == ()
    assert "never restrains" in check_for("kitchen", make_budget(day="2kWh"), BOARDS["pi-4b"], None)[0]
    assert "not known" in check_for("kitchen", make_budget(day="20Wh"), None, None)[0]


# --- who keeps it -------------------------------------------------------------------------------------------


def newest(*windows: WindowState, age: timedelta = timedelta(0)) -> Newest:
    said = power("kitchen", 0, NOW).model_copy(update={"windows": windows})
    return Newest(round((NOW - age).timestamp() * 1000), said)


def window(left: float, limit_j: float = DAY_J) -> WindowState:
    return WindowState(
        name="day", window_s=86_400.0, limit_j=limit_j, used_j=limit_j * (1 - left), left_share=left
    )


def row(
    assigned: Budget | None,
    said: Newest | None,
    sums: dict[str, float] | None = None,
    exceeded: int = 0,
    distrust: str | None = None,
) -> BudgetRow:
    return budget_row("kitchen", assigned, said, sums or SUMS, exceeded, distrust=distrust, now=NOW)


BUDGET = make_budget(day="80Wh")


def test_a_device_within_its_budget_keeps_it() -> None:
    found = row(BUDGET, newest(window(0.4)))
    assert (found.verdict, found.origin, found.refused) == ("kept", "fleet", 4)
    assert found.day_j == pytest.approx(72 * 3600)
    assert found.day_limit_j == pytest.approx(DAY_J)
    assert row(None, newest(window(0.4))).origin == "device"


def test_who_does_not_keep_it_is_told_apart_by_why() -> None:
    sums = {**SUMS, "power.exceeded": 3.0}
    assert row(BUDGET, newest(window(-0.3)), sums).verdict == "exceeded"
    assert row(BUDGET, newest(window(0.2)), exceeded=1).verdict == "exceeded"
    fast = {**SUMS, "power.energy_j": 4.0 * 3600}
    assert row(BUDGET, newest(window(0.2)), fast).verdict == "will exceed"
    assert row(BUDGET, newest(window(0.9, limit_j=1.0))).verdict == "not taken up"
    assert row(BUDGET, newest()).verdict == "not taken up"
    assert row(BUDGET, newest(window(0.4), age=timedelta(hours=1))).verdict == "silent"
    assert row(BUDGET, None).verdict == "silent"
    assert row(None, newest()).verdict == "none"
    assert row(BUDGET, newest(window(0.4)), distrust="draws -1 W").verdict == "not believed"


def test_a_limit_that_was_rounded_on_the_way_is_the_same() -> None:
    assert row(make_budget(day="80.001Wh"), newest(window(0.4, limit_j=288_003.6))).verdict == "kept"
