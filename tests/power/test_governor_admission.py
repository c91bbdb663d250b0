from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeslm.power.governor_admission import PULSE_S, decide
from edgeslm.power.governor_types import (
    Conditions,
    Decision,
    Defer,
    Reason,
    Refuse,
    Run,
    Setting,
    Situation,
    Work,
    WorkEstimate,
)
from edgeslm.power.windows import Room, SlidingWindow
from edgeslm.schema.budget import Budget
from edgeslm.schema.message import Priority

IDLE_W = 2.0
NOW_S = 10_000.0
SETTINGS = (
    Setting(3, None, 3.0, 1.0),
    Setting(2, None, 2.0, 0.7),
    Setting(1, None, 1.0, 0.4),
    Setting(1, 600, 0.3, 0.2),
)
ESTIMATE = WorkEstimate(mean_j=9.0, p90_j=12.0, seconds=3.0, token_j=0.2, prefill_j=2.0, chunk_j=0.6)
DEMAND = ((0.0, 10.0),)


def room(name: str, over_s: float, limit_w: float, spent_j: float = 0.0, ago_s: float = 0.0) -> Room:
    """A window in which `spent_j` were spent within a second, `ago_s` before now."""
    window = SlidingWindow(over_s, IDLE_W)
    if spent_j:
        at_s = NOW_S - ago_s
        window.add(at_s - 1.0, at_s, IDLE_W + spent_j)
    return window.room(name, NOW_S, limit_w)


def situation(*rooms: Room, **more: object) -> Situation:
    return replace(Situation(now_s=NOW_S, minute=720, idle_w=IDLE_W, rooms=rooms), **more)


def work(
    priority: Priority = "normal",
    *,
    deadline_in_s: float | None = None,
    waited_s: float = 0.0,
    max_tokens: int = 50,
    ahead_j: float = 0.0,
    settings: tuple[Setting, ...] = SETTINGS,
    estimate: WorkEstimate = ESTIMATE,
) -> Work:
    deadline_s = None if deadline_in_s is None else NOW_S + deadline_in_s
    return Work("w", priority, NOW_S - waited_s, deadline_s, max_tokens, estimate, settings, ahead_j)


def budget(**more: object) -> Budget:
    return Budget.model_validate(more)


def codes(decision: Decision) -> list[str]:
    for reason in decision.reasons:
        assert reason.text
        json.dumps(dict(reason.figures), allow_nan=False)
    return [reason.code for reason in decision.reasons]


def test_without_windows_everything_runs_as_asked() -> None:
    decision = decide(budget(), situation(), work())
    assert isinstance(decision, Run)
    assert (decision.setting, decision.max_tokens) == (SETTINGS[0], 50)
    assert codes(decision) == ["unlimited"]


def test_what_fits_runs_as_asked_and_names_the_tightest_window() -> None:
    rooms = (room("hour", 3600, 2.5), room("heat", 60, 3.0))
    decision = decide(budget(), situation(*rooms), work())
    assert isinstance(decision, Run)
    assert (decision.setting, decision.max_tokens) == (SETTINGS[0], 50)
    assert decision.reasons[-1].subject == "heat"
    assert decision.reasons[-1].text == (
        "needs 12.0 J; window 'heat' has 60.0 J free, 0.0 J of it kept for high priority"
    )


def test_what_does_not_fit_waits_until_enough_has_left() -> None:
    full = room("heat", 60, 3.0, spent_j=55.0, ago_s=20.0)
    decision = decide(budget(), situation(full), work())
    assert isinstance(decision, Defer)
    assert decision.until_s == pytest.approx(NOW_S + 40, abs=1.3)
    assert decision.blocks
    assert codes(decision) == ["window_full"]
    assert decision.reasons[0].figures["free_j"] == pytest.approx(5.0)


def test_a_longer_wait_is_looked_at_again_after_a_minute() -> None:
    full = room("hour", 3600, 2.1, spent_j=355.0, ago_s=600.0)
    decision = decide(budget(), situation(full), work())
    assert isinstance(decision, Defer)
    assert decision.until_s == NOW_S + 60
    assert decision.reasons[0].figures["wait_s"] == pytest.approx(3000, abs=80)


@pytest.mark.parametrize("priority", ["normal", "low"])
def test_less_than_high_priority_leaves_the_reserve(priority: Priority) -> None:
    tight = room("heat", 60, 3.0, spent_j=40.0, ago_s=1.0)  # 20 J are free
    here = situation(tight, demand=DEMAND)
    decision = decide(budget(), here, work(priority))
    assert isinstance(decision, Defer)
    assert decision.reasons[0].figures["reserve_j"] == pytest.approx(10.0)
    assert isinstance(decide(budget(), here, work("high")), Run)


def test_high_priority_may_spend_what_is_kept_against_the_meter_s_error() -> None:
    tight = room("heat", 60, 3.0, spent_j=45.0, ago_s=1.0)  # 15 J are free
    here = situation(tight, guard_share=0.05)  # 9 J of them are kept
    assert isinstance(decide(budget(), here, work("high")), Run)
    assert isinstance(decide(budget(), here, work("normal")), Defer)


def test_a_reserve_can_be_a_fixed_share() -> None:
    tight = room("heat", 60, 3.0, spent_j=35.0, ago_s=1.0)  # 25 J are free of 60
    assert isinstance(decide(budget(reserve="20 %"), situation(tight), work()), Run)
    assert isinstance(decide(budget(reserve="25 %"), situation(tight), work()), Defer)


def test_reserve_is_counted_against_what_leaves_until_it_is_asked_for() -> None:
    """Of 40 J asked for within the time beyond half a minute, 30 leave by then."""
    tight = room("heat", 60, 3.0, spent_j=30.0, ago_s=35.0)  # 30 J are free
    assert isinstance(decide(budget(), situation(tight, demand=((0.0, 10.0), (30.0, 30.0))), work()), Run)
    assert isinstance(decide(budget(), situation(tight, demand=((0.0, 25.0), (30.0, 30.0))), work()), Defer)


def test_what_cannot_wait_for_its_deadline_is_capped() -> None:
    full = room("heat", 60, 3.0, spent_j=53.0, ago_s=5.0)  # 7 J are free, the rest in 55 s
    decision = decide(budget(), situation(full), work(deadline_in_s=30))
    assert isinstance(decision, Run)
    assert decision.setting == SETTINGS[0]
    assert decision.max_tokens == 25  # 2 J of prompt, 0.2 J a token
    assert codes(decision) == ["window_full", "tokens_capped"]
    assert decision.reasons[-1].figures["asked"] == 50


def test_where_capping_is_not_enough_threads_go_and_then_frequency() -> None:
    for free_j, expected, code in (
        (3.45, SETTINGS[1], "fewer_threads"),
        (2.9, SETTINGS[3], "frequency_capped"),
    ):
        full = room("heat", 60, 3.0, spent_j=60.0 - free_j, ago_s=5.0)
        decision = decide(budget(), situation(full), work(deadline_in_s=30))
        assert isinstance(decision, Run)
        assert decision.setting == expected
        assert 8 <= decision.max_tokens < 50
        assert code in codes(decision)


def test_a_gentler_setting_that_needs_no_cap_gives_the_whole_answer() -> None:
    frugal = (SETTINGS[0], Setting(1, None, 0.5, 0.9))
    full = room("heat", 60, 3.0, spent_j=57.5, ago_s=5.0)
    decision = decide(budget(), situation(full), work(deadline_in_s=30, settings=frugal))
    assert isinstance(decision, Run)
    assert (decision.setting, decision.max_tokens) == (frugal[1], 50)
    assert "tokens_capped" not in codes(decision)


def test_what_neither_waits_nor_fits_is_refused_with_the_time_to_come_back() -> None:
    full = room("heat", 60, 3.0, spent_j=59.5, ago_s=5.0)
    decision = decide(budget(), situation(full), work(deadline_in_s=30))
    assert isinstance(decision, Refuse)
    assert decision.retry_after_s == pytest.approx(56, abs=1)
    assert codes(decision) == ["window_full", "deadline"]


def test_without_a_deadline_the_longest_wait_counts() -> None:
    full = room("hour", 3600, 2.1, spent_j=359.0, ago_s=100.0)
    assert isinstance(decide(budget(max_wait="1h"), situation(full), work(waited_s=50)), Defer)
    decision = decide(budget(max_wait="1h"), situation(full), work(waited_s=500))
    assert isinstance(decision, Refuse)
    assert decision.retry_after_s == pytest.approx(3500, abs=40)
    assert codes(decision) == ["window_full", "max_wait"]


def test_what_never_fits_waits_for_half_and_is_then_capped() -> None:
    large = replace(ESTIMATE, mean_j=150.0, p90_j=200.0, seconds=100.0)
    small_hour = room("hour", 3600, 2.02)  # 72 J above idle
    decision = decide(budget(), situation(small_hour), work(estimate=large, max_tokens=900))
    assert isinstance(decision, Run)
    assert decision.max_tokens == 350
    assert "never_fits" in codes(decision)
    used = room("hour", 3600, 2.02, spent_j=50.0, ago_s=1000.0)
    assert isinstance(decide(budget(), situation(used), work(estimate=large, max_tokens=900)), Defer)


def test_what_never_fits_even_capped_is_refused_for_good() -> None:
    decision = decide(budget(min_tokens=40), situation(room("hour", 3600, 2.001)), work())
    assert isinstance(decision, Refuse)
    assert decision.retry_after_s is None
    assert codes(decision) == ["never_fits"]


def test_what_never_fits_but_could_be_capped_later_is_told_when() -> None:
    used = room("hour", 3600, 2.002, spent_j=7.0, ago_s=1000.0)  # 7.2 J an hour
    decision = decide(budget(), situation(used), work(deadline_in_s=30))
    assert isinstance(decision, Refuse)
    assert decision.retry_after_s == pytest.approx(2600, abs=40)


def test_work_longer_than_a_window_needs_only_what_lies_in_it() -> None:
    long = replace(ESTIMATE, mean_j=300.0, p90_j=400.0, seconds=400.0)
    slow = (Setting(1, None, 0.9, 1.0),)
    decision = decide(budget(), situation(room("heat", 60, 3.0)), work(estimate=long, settings=slow))
    assert isinstance(decision, Run)
    assert codes(decision) == ["fits"]
    assert decision.max_tokens == 50


def test_a_short_window_takes_threads_before_it_takes_pauses() -> None:
    for limit_w, expected, more in (
        (5.5, SETTINGS[0], []),
        (4.5, SETTINGS[1], ["fewer_threads"]),
        (3.5, SETTINGS[2], ["fewer_threads"]),
        (2.5, SETTINGS[3], ["fewer_threads", "frequency_capped"]),
        (2.2, SETTINGS[3], ["fewer_threads", "frequency_capped", "pauses"]),
    ):
        asked = work(estimate=replace(ESTIMATE, chunk_j=0.3))
        decision = decide(budget(), situation(room("supply", 1, limit_w)), asked)
        assert isinstance(decision, Run)
        assert decision.setting == expected
        assert codes(decision) == ["fits", *more]
        assert decision.max_tokens == 50


@pytest.mark.parametrize("priority", ["high", "low"])
def test_of_a_short_window_three_sigma_are_kept_free_whoever_runs(priority: Priority) -> None:
    supply = room("supply", 1, 5.0)  # just what three threads draw
    asked = work(priority, estimate=replace(ESTIMATE, chunk_j=0.3))
    exact = decide(budget(), situation(supply), asked)
    unsure = decide(budget(), situation(supply, guard_share=0.01), asked)
    assert isinstance(exact, Run)
    assert isinstance(unsure, Run)
    assert exact.setting == SETTINGS[0]
    assert unsure.setting == SETTINGS[1]
    assert unsure.line_j == {"supply": pytest.approx(0.15)}


def test_a_short_window_that_is_full_for_a_moment_is_no_reason_to_cap_or_refuse() -> None:
    full = room("supply", 1, 5.5, spent_j=3.4)
    for asked in (work(deadline_in_s=1.0), work("high", deadline_in_s=1.0), work(waited_s=4000)):
        decision = decide(budget(), situation(full), asked)
        assert isinstance(decision, Defer)
        assert NOW_S < decision.until_s <= NOW_S + 1.1
    longer = room("supply", 10, 5.5, spent_j=34.9, ago_s=2.0)
    assert isinstance(decide(budget(), situation(longer), work(deadline_in_s=1.0)), Refuse)


def test_a_chunk_that_no_setting_fits_into_a_short_window_is_refused() -> None:
    big = replace(ESTIMATE, chunk_j=5.0)
    decision = decide(budget(), situation(room("supply", 1, 2.2)), work(estimate=big))
    assert isinstance(decision, Refuse)
    assert codes(decision) == ["never_fits"]


def test_on_arrival_what_goes_before_counts_too() -> None:
    hour = room("hour", 3600, 2.1)  # 360 J an hour
    assert isinstance(decide(budget(), situation(hour), work(ahead_j=340)), Run)
    assert isinstance(decide(budget(), situation(hour), work(deadline_in_s=1000, ahead_j=300)), Run)
    behind_two_hours = decide(budget(), situation(hour), work(ahead_j=720))
    assert isinstance(behind_two_hours, Refuse)
    assert behind_two_hours.retry_after_s == pytest.approx(3600 * 366 / 360 * 2 - 3600, rel=0.05)
    with_deadline = decide(budget(max_wait="7d"), situation(hour), work(deadline_in_s=1000, ahead_j=720))
    assert isinstance(with_deadline, Refuse)
    assert codes(with_deadline) == ["window_full", "deadline"]


def test_an_alarm_is_never_refused_for_what_goes_before_it() -> None:
    full = room("heat", 60, 3.0, spent_j=58.0, ago_s=5.0)
    assert isinstance(decide(budget(), situation(full), work("high", deadline_in_s=20, ahead_j=50)), Defer)


def test_soft_limits_do_not_bind_high_priority() -> None:
    here = situation(soft_rooms=(room("battery", 600, 2.001),))
    assert isinstance(decide(budget(), here, work("high")), Run)
    assert not isinstance(decide(budget(), here, work("normal")), Run)


def test_a_battery_at_its_reserve_leaves_only_high_priority() -> None:
    charged = budget(battery={"reserve": "30 %"})
    low = situation(conditions=Conditions(battery_share=0.3))
    decision = decide(charged, low, work())
    assert isinstance(decision, Defer)
    assert not decision.blocks
    assert codes(decision) == ["battery_reserve"]
    assert isinstance(decide(charged, low, work("high")), Run)
    assert isinstance(decide(charged, situation(conditions=Conditions(battery_share=0.31)), work()), Run)
    assert isinstance(decide(charged, situation(), work()), Run)
    refused = decide(charged, low, work(deadline_in_s=60))
    assert isinstance(refused, Refuse)
    assert refused.retry_after_s == 900


def test_a_hot_board_runs_only_high_priority_and_that_gently() -> None:
    cool = budget(temperature={"ceiling": "70 C"})
    hot = situation(conditions=Conditions(hot=True))
    assert isinstance(decide(cool, hot, work()), Defer)
    decision = decide(cool, hot, work("high"))
    assert isinstance(decision, Run)
    assert decision.setting == SETTINGS[-1]
    assert codes(decision)[0] == "too_hot"


@pytest.mark.parametrize(
    ("setting", "conditions", "code"),
    [
        ("on_under_voltage", Conditions(under_voltage_until_s=NOW_S + 1), "under_voltage"),
        ("on_throttling", Conditions(throttled_until_s=NOW_S + 1), "throttled"),
    ],
)
def test_a_weak_board_is_eased_held_or_left_alone(setting: str, conditions: Conditions, code: str) -> None:
    here = situation(conditions=conditions)
    eased = decide(budget(**{setting: "ease"}), here, work())
    assert isinstance(eased, Run)
    assert eased.setting == SETTINGS[-1]
    assert codes(eased)[0] == code
    held = decide(budget(**{setting: "hold"}), here, work())
    assert isinstance(held, Defer)
    assert codes(held) == [code]
    assert isinstance(decide(budget(**{setting: "hold"}), here, work("high")), Run)
    ignored = decide(budget(**{setting: "ignore"}), here, work())
    assert isinstance(ignored, Run)
    assert ignored.setting == SETTINGS[0]
    later = decide(budget(**{setting: "hold"}), replace(here, now_s=NOW_S + 2), work())
    assert isinstance(later, Run)


def test_quiet_hours_let_only_their_priorities_run() -> None:
    quiet = budget(quiet_hours=[{"begins": "11:00", "ends": "13:00", "lowest_priority": "normal"}])
    assert isinstance(decide(quiet, situation(), work("normal")), Run)
    assert isinstance(decide(quiet, situation(), work("high")), Run)
    assert isinstance(decide(quiet, situation(minute=None), work("low")), Run)
    decision = decide(quiet, situation(), work("low"))
    assert isinstance(decision, Defer)
    assert codes(decision)[0] == "quiet_hours"
    refused = decide(
        budget(max_wait="30m", quiet_hours=quiet.model_dump()["quiet_hours"]), situation(), work("low")
    )
    assert isinstance(refused, Refuse)
    assert refused.retry_after_s == 3600


def test_low_priority_waits_for_a_cheap_period_as_long_as_allowed() -> None:
    cheap_at_two = {
        "price_per_kwh": 0.3,
        "periods": [{"begins": "14:00", "ends": "15:00", "price_per_kwh": 0.1}],
        "low_waits": {"by": "price_per_kwh", "at_most": 0.2, "max_wait": "3h"},
    }
    tariff = budget(tariff=cheap_at_two)
    decision = decide(tariff, situation(), work("low"))
    assert isinstance(decision, Defer)
    assert not decision.blocks
    assert decision.reasons[0].text == "price_per_kwh is 0.3; in 7200 s it falls to 0.2 or less"
    assert isinstance(decide(tariff, situation(), work("normal")), Run)
    assert isinstance(decide(tariff, situation(minute=14 * 60), work("low")), Run)
    assert isinstance(decide(tariff, situation(), work("low", waited_s=3601)), Run)
    assert isinstance(decide(tariff, situation(), work("low", deadline_in_s=7201)), Run)
    assert isinstance(decide(tariff, situation(minute=None), work("low")), Run)


rooms_of_all_kinds = st.lists(
    st.builds(
        room,
        st.sampled_from(["a", "b", "c"]),
        st.sampled_from([1.0, 60.0, 3600.0]),
        st.floats(2.0001, 6),
        st.floats(0, 200),
        st.floats(0, 70),
    ),
    max_size=3,
    unique_by=lambda one: one.name,
)


@given(
    rooms_of_all_kinds,
    st.sampled_from(["high", "normal", "low"]),
    st.none() | st.floats(0, 4000),
    st.floats(0, 4000),
    st.floats(0, 500),
    st.floats(0, 0.05),
    st.floats(0.2, 60),
)
def test_every_prompt_gets_a_turn_or_a_time_to_come_back(
    rooms: list[Room],
    priority: Priority,
    deadline_in_s: float | None,
    waited_s: float,
    ahead_j: float,
    guard_share: float,
    p90_j: float,
) -> None:
    estimate = replace(ESTIMATE, p90_j=p90_j, mean_j=p90_j / 1.3)
    here = situation(*rooms, guard_share=guard_share, demand=DEMAND)
    asked = work(priority, deadline_in_s=deadline_in_s, waited_s=waited_s, ahead_j=ahead_j, estimate=estimate)
    decision = decide(budget(), here, asked)
    assert decision.reasons
    assert all(isinstance(reason, Reason) for reason in decision.reasons)
    codes(decision)
    if isinstance(decision, Run):
        assert min(8, asked.max_tokens) <= decision.max_tokens <= asked.max_tokens
        cost = decision.setting.cost(SETTINGS[0])
        for one in rooms:
            least_j = 0.6 if one.over_s < 10 else min(p90_j, 2.0 + 0.2 * decision.max_tokens)
            # A short window may be full for a moment: the answer pauses until there is room.
            free_j = one.free_by(1.2) if one.over_s <= PULSE_S else one.free_j
            if ahead_j == 0:
                assert min(cost * least_j, decision.setting.net_w * one.over_s) <= free_j + 1e-6
    elif isinstance(decision, Defer):
        assert NOW_S <= decision.until_s <= NOW_S + 60
    else:
        assert decision.retry_after_s is None or decision.retry_after_s >= 1
