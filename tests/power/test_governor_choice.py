from __future__ import annotations

from collections import deque
from dataclasses import replace

import pytest

from edgeslm.power.governor_choice import LOW_LATER_S, ahead_of, choose, must_begin_s
from edgeslm.power.governor_types import Conditions, Refuse, Run, Setting, Situation, Work, WorkEstimate
from edgeslm.power.windows import SlidingWindow
from edgeslm.schema.budget import Budget
from edgeslm.schema.message import Priority

IDLE_W = 2.0
NOW_S = 5000.0
SETTINGS = (Setting(1, None, 2.0, 1.0),)


def work(
    name: str,
    priority: Priority,
    *,
    ago_s: float = 0.0,
    need_j: float = 4.0,
    deadline_in_s: float | None = None,
) -> Work:
    estimate = WorkEstimate(need_j, need_j, need_j / 2, 0.2, 0.2, 0.2)
    deadline_s = None if deadline_in_s is None else NOW_S + deadline_in_s
    return Work(name, priority, NOW_S - ago_s, deadline_s, 20, estimate, SETTINGS)


def situation(free_j: float, **more: object) -> Situation:
    """A minute with 60 J above idle, of which `free_j` are left; the rest leaves in half a minute."""
    window = SlidingWindow(60.0, IDLE_W)
    if free_j < 60:
        window.add(NOW_S - 31, NOW_S - 30, IDLE_W + 60 - free_j)
    return replace(
        Situation(now_s=NOW_S, minute=0, idle_w=IDLE_W, rooms=(window.room("heat", NOW_S, 3.0),)), **more
    )


def names(waiting: tuple[tuple[Work, object], ...]) -> list[str]:
    return [one.id for one, _ in waiting]


def test_with_nothing_to_do_it_need_not_be_asked_again() -> None:
    assert choose(Budget(), situation(60), []).look_again_s == float("inf")


def test_high_priority_goes_first_whenever_it_came() -> None:
    heads = [work("low", "low", ago_s=900), work("normal", "normal", ago_s=800), work("high", "high")]
    choice = choose(Budget(), situation(60), heads)
    assert choice.work is heads[2]
    assert isinstance(choice.decision, Run)


@pytest.mark.parametrize(("low_ago_s", "first"), [(LOW_LATER_S - 1, "normal"), (LOW_LATER_S + 1, "low")])
def test_low_priority_is_overtaken_only_by_what_came_soon_after(low_ago_s: float, first: str) -> None:
    heads = [work("normal", "normal"), work("low", "low", ago_s=low_ago_s)]
    choice = choose(Budget(), situation(60), heads)
    assert choice.work is not None
    assert choice.work.id == first


def test_who_waits_for_energy_is_not_overtaken_by_smaller_work() -> None:
    heads = [work("large", "normal", ago_s=10, need_j=20), work("small", "low", need_j=1)]
    choice = choose(Budget(), situation(8), heads)
    assert choice.work is None
    assert names(choice.waiting) == ["large", "small"]
    assert choice.waiting[1][1].reasons[0].text == "waits behind large"
    assert choice.look_again_s == pytest.approx(NOW_S + 30, abs=1)


def test_an_alarm_that_waits_for_energy_keeps_the_rest_from_it() -> None:
    heads = [work("alarm", "high", need_j=20), work("small", "normal", ago_s=100, need_j=1)]
    choice = choose(Budget(), situation(8), heads)
    assert choice.work is None
    assert names(choice.waiting) == ["alarm", "small"]


def test_who_waits_for_something_else_is_passed() -> None:
    budget = Budget.model_validate(
        {"quiet_hours": [{"begins": "00:00", "ends": "00:30", "lowest_priority": "normal"}]}
    )
    heads = [work("low", "low", ago_s=2 * LOW_LATER_S), work("normal", "normal")]
    choice = choose(budget, situation(60), heads)
    assert choice.work is heads[1]
    assert names(choice.waiting) == ["low"]
    assert choice.waiting[0][1].reasons[0].code == "quiet_hours"


def test_what_cannot_wait_behind_another_is_refused_at_once() -> None:
    heads = [work("large", "normal", ago_s=10, need_j=50), work("urgent", "low", need_j=2, deadline_in_s=5)]
    choice = choose(Budget(), situation(8), heads)
    assert choice.work is heads[1]
    assert isinstance(choice.decision, Refuse)
    assert choice.decision.retry_after_s is not None
    assert names(choice.waiting) == ["large"]


def test_it_is_never_asked_again_at_once() -> None:
    budget = Budget(on_throttling="hold")
    here = situation(60, conditions=Conditions(throttled_until_s=NOW_S + 1e-6))
    assert choose(budget, here, [work("normal", "normal")]).look_again_s >= NOW_S + 0.02


def test_low_priority_gets_its_turn_among_endless_normal_work() -> None:
    """Normal work that asks for twice what there is, and one low prompt among it."""
    window = SlidingWindow(60.0, IDLE_W)
    normal: deque[Work] = deque()
    low = replace(work("low", "low"), accepted_s=0.0)
    now_s, served = 0.0, 0
    budget = Budget(max_wait_s=86_400)
    while now_s < 4000:
        while 2.0 * (len(normal) + served) <= now_s:
            normal.append(replace(work("normal", "normal"), accepted_s=now_s))
        here = Situation(now_s=now_s, minute=0, idle_w=IDLE_W, rooms=(window.room("heat", now_s, 3.0),))
        choice = choose(budget, here, [*list(normal)[:1], low])
        if choice.work is None:
            window.add(now_s, now_s + 1, IDLE_W)
            now_s += 1
            continue
        if choice.work is low:
            break
        normal.popleft()
        served += 1
        window.add(now_s, now_s + 2, (IDLE_W + 2) * 2)
        now_s += 2
    assert served > 100
    assert len(normal) > 100
    assert LOW_LATER_S <= now_s < 3 * LOW_LATER_S


def test_what_goes_before_is_summed_by_turn() -> None:
    waiting = [
        work("alarm", "high", need_j=1),
        work("normal", "normal", ago_s=5, need_j=10),
        work("later", "normal", ago_s=-5, need_j=100),
        work("old", "low", ago_s=2 * LOW_LATER_S, need_j=1000),
        work("new", "low", ago_s=5, need_j=10_000),
    ]
    assert ahead_of(work("mine", "normal"), waiting) == 1 + 10 + 1000
    assert ahead_of(work("mine", "high"), waiting) == 1
    assert ahead_of(work("mine", "low"), waiting) == 1 + 10 + 100 + 1000 + 10_000


def test_an_alarm_has_to_begin_with_time_to_spare() -> None:
    assert must_begin_s(work("a", "high")) is None
    begin_s = must_begin_s(work("a", "high", need_j=4.0, deadline_in_s=30))
    assert begin_s is not None
    assert NOW_S + 20 < begin_s < NOW_S + 28
