from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeslm.power.governor import Governor
from edgeslm.power.governor_settings import ways_to_run
from edgeslm.schema.board import PowerTable
from edgeslm.schema.budget import Budget
from edgeslm.sim.enforcement import Outcome, Trial, simulate
from edgeslm.sim.enforcement_board import EnforcedBoard, SimMeter
from edgeslm.sim.enforcement_check import Draw, check
from edgeslm.sim.enforcement_duty import Caution, FixedDuty
from edgeslm.sim.enforcement_work import Load, make_prompts

TABLE = PowerTable(idle_w=1.4, core_load_w=0.58, source="as a Raspberry Pi 3 B")


def budget(**windows: str) -> Budget:
    """From ``name="limit over"``."""
    pairs = {name: text.rsplit(" ", 1) for name, text in windows.items()}
    return Budget.model_validate(
        {"windows": [{"name": name, "limit": limit, "over": over} for name, (limit, over) in pairs.items()]}
    )


HARD = Trial(
    "hard",
    TABLE,
    3,
    budget(heat="3 W 1m", hour="2.2 W 1h", day="45 Wh 1d"),
    load=Load(alarm_seconds=(1.0, 3.0), alarms_per_h=20.0, alarm_bursts_per_day=12.0, alarm_burst=(3, 8)),
    hours=24,
)
SHORT = replace(HARD, name="short", budget=budget(supply="3.4 W 1s", hour="2.2 W 1h"), hours=2)
"""A supply that all three threads of some boards exceed."""


@pytest.fixture(scope="module")
def governed() -> Outcome:
    return simulate(HARD, seed=3)


def test_no_window_is_exceeded_by_more_than_a_fiftieth(governed: Outcome) -> None:
    assert set(governed.kept.overshoot) == {"heat", "hour", "day"}
    assert max(governed.kept.overshoot.values()) <= 0.02


def test_the_budget_is_used(governed: Outcome) -> None:
    assert governed.kept.used >= 0.95
    assert governed.kept.used_net >= 0.9
    assert governed.counts["answered"] > 1000


def test_alarms_are_on_time_while_the_budget_is_short(governed: Outcome) -> None:
    assert governed.alarms_in_need > 300
    assert governed.late == 0


def test_the_rest_gets_its_turn_or_a_time_to_come_back(governed: Outcome) -> None:
    assert governed.counts["refused"] > 0
    assert governed.counts["refused_for_good"] == 0
    assert governed.counts["shortened"] < 0.02 * governed.counts["answered"]
    assert governed.longest_wait_s <= HARD.budget.max_wait_s + 60


@pytest.mark.parametrize("seed", [3, 4])
def test_a_supply_is_not_exceeded_either(seed: int) -> None:
    kept = simulate(SHORT, seed).kept
    assert max(kept.overshoot.values()) <= 0.02
    assert kept.used >= 0.95


def test_a_trial_repeats_with_its_seed() -> None:
    trial = replace(SHORT, budget=budget(hour="2.2 W 1h"))
    assert simulate(trial, seed=3) == simulate(trial, seed=3)
    assert simulate(trial, seed=3) != simulate(trial, seed=4)


def test_the_trial_is_one_that_can_fail() -> None:
    """A governor that is told of wider limits exceeds the narrow ones."""
    loose = budget(supply="9 W 1s", hour="2.9 W 1h")
    kept = simulate(replace(SHORT, budget=loose), seed=3).kept
    assert kept.used * loose.windows[1].limit_w > 1.1 * SHORT.budget.windows[1].limit_w


def test_a_fixed_duty_cycle_does_neither() -> None:
    duty = simulate(HARD, seed=3, fixed_duty=Caution(idle=1.05, draw=1.1))
    assert duty.kept.used < 0.97
    assert duty.late > 5


# --- the judge ---------------------------------------------------------------------------------------------------

segments = st.lists(st.tuples(st.floats(0.1, 20), st.floats(0, 6)), min_size=1, max_size=30)


def drawn(lengths: list[tuple[float, float]]) -> Draw:
    ends_s = np.cumsum([seconds for seconds, _ in lengths])
    return Draw.of([(float(end_s), watts) for end_s, (_, watts) in zip(ends_s, lengths, strict=True)])


@settings(max_examples=50)
@given(segments, st.floats(0.5, 30))
def test_the_fullest_stretch_is_found(lengths: list[tuple[float, float]], over_s: float) -> None:
    draw = drawn(lengths)
    most_j = draw.most_j(over_s)
    ends_s = np.arange(0.0, draw.times_s[-1], 0.01)
    grid_j = np.interp(ends_s, draw.times_s, draw.energy_j) - np.interp(
        ends_s - over_s, draw.times_s, draw.energy_j
    )
    assert most_j >= grid_j.max() - 1e-9
    assert most_j <= grid_j.max() + 6 * 0.02


def test_overshoot_and_use_are_shares_of_what_is_allowed() -> None:
    kept = check(
        budget(heat="3 W 1m", hour="2.5 W 1h"), drawn([(1800.0, 2.0), (90.0, 6.0), (1710.0, 2.0)]), 7200.0
    )
    assert kept.overshoot == {"heat": pytest.approx(1.0), "hour": 0.0}
    assert kept.used == pytest.approx((2.0 * 3510 + 540) / 9000)
    assert kept.used_net == pytest.approx((2.0 * 3510 + 540 - 7200) / 1800)


def test_the_allowed_energy_is_only_told_for_whole_windows() -> None:
    with pytest.raises(ValueError, match="no multiple of window 'hour'"):
        check(budget(hour="2 W 1h"), drawn([(5000.0, 2.0)]), 0.0)
    with pytest.raises(ValueError, match="without windows"):
        check(Budget(), drawn([(5000.0, 2.0)]), 0.0)


# --- board, meter and prompts --------------------------------------------------------------------------------------


@pytest.mark.parametrize("period_s", [0.1, 1.0, 7.0])
def test_the_meter_tells_all_that_was_drawn_a_value_at_a_time(period_s: float) -> None:
    told: list[tuple[float, float, float]] = []
    meter = SimMeter(period_s=period_s, noise_share=0.0, error_share=0.0)
    board = EnforcedBoard(
        2.0, 0.015, meter, 4000.0, np.random.default_rng(1), lambda *value: told.append(value)
    )
    rng = np.random.default_rng(2)
    while board.now_s < 3000:
        board.spend(float(rng.uniform(0.01, 20)), float(rng.choice([0.0, 3.0])))
    assert all(before[1] == pytest.approx(after[0]) for before, after in pairwise(told))
    ends_s, energy_j = np.array([value[1] for value in told]), np.cumsum([value[2] for value in told])
    draw = Draw.of(board.segments)
    assert energy_j == pytest.approx(np.interp(ends_s, draw.times_s, draw.energy_j), rel=1e-9)
    assert 0 <= board.now_s - ends_s[-1] <= period_s


def test_a_meter_s_gain_and_noise_are_as_stated() -> None:
    found = []
    for seed in range(60):
        told: list[float] = []
        meter = SimMeter(period_s=1.0, noise_share=0.0, error_share=0.01)
        board = EnforcedBoard(
            2.0,
            0.0,
            meter,
            100.0,
            np.random.default_rng(seed),
            lambda *value, told=told: told.append(value[2]),
        )
        board.spend(60.0, 1.0)
        found.append(sum(told) / Draw.of(board.segments).energy_j[-1] - 1)
    assert 0.006 < np.std(found) < 0.014
    assert max(map(abs, found)) <= 0.025


def test_more_is_always_asked_for_than_the_budget_allows() -> None:
    load = Load()
    prompts = make_prompts(load, ways_to_run(TABLE, 3), 0.5, 86_400.0, np.random.default_rng(5))
    asked_j = sum(prompt.work.estimate.mean_j for prompt in prompts)
    assert asked_j > 1.5 * 0.5 * 86_400
    arrivals = [prompt.work.accepted_s for prompt in prompts]
    assert arrivals == sorted(arrivals)
    lengths = [(prompt.prefill_s + prompt.tokens * prompt.token_s) for prompt in prompts]
    assert min(lengths) > 0.7
    assert max(lengths) < 11


def test_both_policies_have_the_same_face() -> None:
    names = {name for name in dir(FixedDuty) if not name.startswith("_")}
    assert names <= set(dir(Governor))


def test_a_duty_cycle_that_is_never_on_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing to do"):
        FixedDuty(HARD.budget, TABLE, ways_to_run(TABLE, 3), Caution(idle=1.5))
