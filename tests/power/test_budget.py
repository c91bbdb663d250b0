from __future__ import annotations

import pytest

from edgeslm.errors import BudgetConfigError, ConfigError
from edgeslm.power.boards import load_boards
from edgeslm.power.budget import check_budget
from edgeslm.power.governor_types import WorkEstimate
from edgeslm.schema.budget import Budget

PROMPT = WorkEstimate(mean_j=15.0, p90_j=20.0, seconds=5.0, token_j=0.3, prefill_j=2.0, chunk_j=0.6)


def budget(*windows: str, **more: object) -> Budget:
    """Windows as ``"name limit over"``, the limit in W or Wh."""
    parts = [text.split() for text in windows]
    named = [{"name": part[0], "limit": f"{part[1]} {part[2]}", "over": part[3]} for part in parts]
    return Budget.model_validate({"windows": named} | more)


def test_a_budget_below_the_idle_draw_is_refused_with_the_arithmetic() -> None:
    idle_w = load_boards()["pi-3b"].power.idle_w
    with pytest.raises(BudgetConfigError) as caught:
        check_budget(budget("heat 4 W 1m", "day 20 Wh 1d"), idle_w)
    error = caught.value
    assert isinstance(error, ConfigError)
    assert (error.window, error.limit_w, error.idle_w) == ("day", pytest.approx(20 / 24), 1.4)
    assert error.key == "budget.windows.day"
    assert error.exit_code == 2
    assert str(error) == (
        "window 'day' allows 0.83 W on average, 20.0 Wh in 1 d, but the idle board alone draws 1.40 W, 33.6 Wh in "
        "1 d: nothing is left for work. Allow more than 33.6 Wh, or make the idle board draw less"
    )


def test_a_budget_of_just_the_idle_draw_is_refused_too() -> None:
    with pytest.raises(BudgetConfigError, match=r"120\.0 J in 1 min"):
        check_budget(budget("heat 2 W 1m"), 2.0)


def test_a_budget_that_can_be_kept_passes_without_a_word() -> None:
    kept = budget("supply 6 W 1s", "heat 4 W 1m", "average 2.5 W 1h", "day 50 Wh 1d")
    assert check_budget(kept, 1.4, max_w=7.0, prompt=PROMPT) == ()


@pytest.mark.parametrize(
    ("windows", "says"),
    [
        (("heat 9 W 1m",), "window 'heat' never restrains: it allows 9.00 W, the board draws 7.00 W at most"),
        (
            ("heat 3 W 1m", "day 96 Wh 1d"),
            "window 'day' never restrains: window 'heat' is shorter and allows no more",
        ),
        (
            ("heat 1.5 W 1m",),
            "window 'heat' holds 6.0 J above idle (1.50 W less 1.40 W, for 1 min), and a usual prompt",
        ),
        (
            ("supply 1.7 W 1s",),
            "window 'supply' holds 0.3 J above idle (1.70 W less 1.40 W, for 1 s), and a single step",
        ),
    ],
)
def test_what_will_surprise_is_told(windows: tuple[str, ...], says: str) -> None:
    warnings = check_budget(budget(*windows), 1.4, max_w=7.0, prompt=PROMPT)
    assert len(warnings) == 1
    assert warnings[0].startswith(says)


def test_limits_beside_the_windows_that_stop_all_but_alarms_are_told() -> None:
    more = {
        "battery": {"curve": [{"at": "10 %", "limit": "1 W"}, {"at": "50 %", "limit": "3 W"}]},
        "quiet_hours": [{"begins": "22:00", "ends": "06:00", "limit": "1.2 W"}],
    }
    warnings = check_budget(budget(**more), 1.4)
    assert warnings == (
        "battery curve: at 10% it allows 1.00 W, the idle board draws 1.40 W: only high priority runs there",
        "quiet hours from 22:00: they allow 1.20 W, the idle board draws 1.40 W: only high priority runs in them",
    )


def test_an_empty_budget_is_fine() -> None:
    assert check_budget(Budget(), 5.0, max_w=7.0, prompt=PROMPT) == ()
