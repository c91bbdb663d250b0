from __future__ import annotations

import json
import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeslm.power.governor_reserve import (
    SPANS_S,
    Demand,
    expected_demand,
    held_steps,
    kept_j,
    note,
    restore,
    wait_s,
)
from edgeslm.power.windows import Room, SlidingWindow

IDLE_W = 2.0
DAY_S = 86_400.0


def day_of(alarms: list[tuple[float, float]], slack_s: float = 0.0) -> Demand:
    demand = Demand()
    for at_s, energy_j in sorted(alarms):
        demand = note(demand, at_s, energy_j, high=True, slack_s=slack_s)
    return demand


def spent(*stretches: tuple[float, float], now_s: float, over_s: float = 60.0, limit_w: float = 3.0) -> Room:
    """A window in which so many joules were spent in the second before each time."""
    window = SlidingWindow(over_s, IDLE_W)
    for at_s, net_j in stretches:
        window.add(at_s - 1, at_s, IDLE_W + net_j)
    return window.room("w", now_s, limit_w)


def test_before_the_first_alarm_two_usual_prompts_are_kept_for_it() -> None:
    demand = note(note(Demand(), 0.0, 10.0, high=False), 1.0, 10.0, high=False)
    assert expected_demand(demand, 2.0) == ((0.0, 20.0),)
    assert expected_demand(Demand(), 0.0) == ((0.0, 0.0),)


def test_once_there_were_alarms_only_they_count() -> None:
    demand = note(Demand(), 0.0, 50.0, high=False)
    demand = note(demand, 1.0, 4.0, high=True)
    assert note(demand, 2.0, 500.0, high=False) == demand
    assert all(energy_j == pytest.approx(1.25 * 4 + 4) for _, energy_j in expected_demand(demand, 2.0))


@given(st.lists(st.tuples(st.floats(0, 3 * DAY_S), st.floats(0.1, 50)), min_size=1, max_size=80))
def test_more_is_expected_of_a_span_than_ever_came_in_one(alarms: list[tuple[float, float]]) -> None:
    demand = day_of(alarms)
    last_s = max(at_s for at_s, _ in alarms)
    steps = expected_demand(demand, last_s)
    faded = 0.5 ** (last_s / (7 * DAY_S))
    for span_s, (_, expected_j) in zip(SPANS_S, steps, strict=True):
        most_j = max(
            sum(energy_j for at_s, energy_j in alarms if begin_s <= at_s < begin_s + span_s)
            for begin_s, _ in alarms
        )
        assert expected_j > 1.25 * most_j * faded - 1e-6
    amounts = [energy_j for _, energy_j in steps]
    assert all(shorter <= longer + 1e-9 for shorter, longer in pairwise(amounts))


def test_what_is_long_past_fades() -> None:
    demand = day_of([(0.0, 40.0)])
    assert expected_demand(demand, 0.0)[0][1] == pytest.approx(90.0)
    assert expected_demand(demand, 7 * DAY_S)[0][1] == pytest.approx(65.0)


def test_a_quiet_device_keeps_less_than_a_busy_one_and_never_a_fixed_share() -> None:
    rng = random.Random(1)
    quiet = day_of([(rng.uniform(0, DAY_S), 5.0) for _ in range(3)])
    busy = day_of([(rng.uniform(0, DAY_S), 5.0) for _ in range(300)])
    room = spent(now_s=0.0, over_s=DAY_S, limit_w=2.5)  # 43,200 J above idle
    kept = [kept_j(room, held_steps(room, expected_demand(demand, DAY_S))) for demand in (quiet, busy)]
    assert kept[0] < 0.001 * room.capacity_j
    assert kept[1] == pytest.approx(300 * 5 * 1.25, rel=0.2)


def test_less_is_kept_where_alarms_can_wait_for_energy() -> None:
    room = spent((80.0, 50.0), now_s=100.0)  # all of it leaves in 40 s
    urgent = expected_demand(day_of([(0.0, 10.0)]), 0.0)
    patient = expected_demand(day_of([(0.0, 10.0)], slack_s=100.0), 0.0)
    assert kept_j(room, held_steps(room, urgent)) == pytest.approx(22.5)
    assert kept_j(room, held_steps(room, patient)) == 0.0


def test_the_least_patient_alarm_counts() -> None:
    demand = day_of([(0.0, 10.0)], slack_s=100.0)
    demand = note(demand, 10.0, 10.0, high=True, slack_s=20.0)
    assert demand.slack_s == 20.0
    assert note(demand, 20.0, 10.0, high=True, slack_s=100.0).slack_s < 25.0
    assert note(demand, 20.0, 10.0, high=True, slack_s=-5.0).slack_s == 0.0


def test_however_much_alarms_ask_for_half_of_a_window_is_left_to_the_rest() -> None:
    room = spent(now_s=0.0)
    steps = held_steps(room, ((0.0, 1e9), (30.0, 1e9), (60.0, 1e9)))
    assert steps == ((0.0, 30.0), (30.0, 30.0))
    assert kept_j(room, steps) == 30.0


steps_of = st.lists(st.tuples(st.floats(0, 59), st.floats(0, 30)), min_size=1, max_size=4).map(
    lambda steps: tuple(sorted(steps))
)


@given(st.lists(st.tuples(st.floats(41, 99), st.floats(0, 20)), max_size=6), steps_of, st.floats(0, 29))
def test_after_the_wait_the_work_fits_beside_the_reserve(
    stretches: list[tuple[float, float]], steps: tuple[tuple[float, float], ...], need_j: float
) -> None:
    room = spent(*sorted(stretches), now_s=100.0)
    delay_s = wait_s(room, need_j, steps)
    later = spent(*sorted(stretches), now_s=100.0 + delay_s + 1e-6)
    assert kept_j(later, steps) + need_j <= later.free_j + 1e-6
    assert (delay_s == 0) == (need_j <= room.free_j and kept_j(room, steps) + need_j <= room.free_j + 1e-9)


def test_what_was_learned_survives_a_restart() -> None:
    demand = day_of([(0.0, 10.0), (50.0, 20.0)], slack_s=15.0)
    again = restore(json.loads(json.dumps(demand.state())), 500.0)
    for found, expected in zip(expected_demand(again, 500.0), expected_demand(demand, 50.0), strict=True):
        assert found == pytest.approx(expected)


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"peaks_j": [1.0], "typical_j": 1.0, "slack_s": 0.0},
        {"peaks_j": ["x"] * len(SPANS_S), "typical_j": 1.0, "slack_s": 0.0},
        {"peaks_j": [1.0] * len(SPANS_S), "typical_j": float("nan"), "slack_s": 0.0},
        {"peaks_j": [1.0] * len(SPANS_S), "typical_j": 1.0, "slack_s": -1.0},
        {"peaks_j": None, "typical_j": None},
    ],
)
def test_a_state_that_is_none_is_as_good_as_nothing(state: dict[str, object]) -> None:
    assert restore(state, 7.0) == Demand(noted_s=7.0)


def test_an_old_peak_fades_and_is_not_added_to_a_new_one() -> None:
    demand = day_of([(0.0, 40.0), (7 * DAY_S, 2.0)])
    typical_j = 40.0 - 0.1 * 38.0
    found = [energy_j - typical_j for _, energy_j in expected_demand(demand, 7 * DAY_S)]
    assert found[:-1] == pytest.approx([1.25 * 20.0] * (len(SPANS_S) - 1))


def test_alarms_far_apart_are_no_burst() -> None:
    found = expected_demand(day_of([(0.0, 10.0), (100.0, 10.0), (7300.0, 10.0)]), 7300.0)
    peaks_j = [(energy_j - 10.0) / 1.25 for _, energy_j in found]
    assert peaks_j == pytest.approx([10.0, 10.0, 20.0, 20.0, 30.0, 30.0, 30.0], rel=0.01)
