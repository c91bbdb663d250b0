from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeslm.power.windows import BUCKETS, Room, SlidingWindow

IDLE_W = 2.0
spans = st.lists(st.tuples(st.floats(0.01, 30), st.floats(0, 5)), min_size=1, max_size=60)
"""Lengths in seconds and watts above idle."""
lengths_s = st.sampled_from([1.0, 7.0, 60.0, 333.0])


class Truth:
    """The plain sum over everything that was drawn."""

    def __init__(self) -> None:
        self.spans: list[tuple[float, float, float]] = []

    def add(self, start_s: float, end_s: float, power_w: float) -> None:
        self.spans.append((start_s, end_s, power_w))

    def energy_j(self, from_s: float, until_s: float) -> float:
        return sum(
            max(0.0, min(end_s, until_s) - max(start_s, from_s)) * power_w
            for start_s, end_s, power_w in self.spans
        )


def drawn(
    window: SlidingWindow, lengths: list[tuple[float, float]], start_s: float = 0.0
) -> tuple[Truth, float]:
    """Draw `lengths` into `window`, and tell what is true and what time it is then."""
    truth, now_s = Truth(), start_s
    for seconds, net_w in lengths:
        window.add(now_s, now_s + seconds, (IDLE_W + net_w) * seconds)
        truth.add(now_s, now_s + seconds, IDLE_W + net_w)
        now_s += seconds
    return truth, now_s


@given(lengths_s, spans, st.floats(0, 500))
def test_never_less_is_counted_than_the_window_holds(
    over_s: float, lengths: list[tuple[float, float]], later_s: float
) -> None:
    window = SlidingWindow(over_s, IDLE_W)
    truth, now_s = drawn(window, lengths)
    for at_s in (now_s, now_s + later_s):
        truth.add(now_s, at_s, IDLE_W)  # the board idles on
        held_j = truth.energy_j(at_s - over_s, at_s) - IDLE_W * min(over_s, at_s)
        assert window.net_j(at_s) >= held_j - 1e-6


@given(lengths_s, spans)
def test_at_most_a_bucket_too_much_is_counted(over_s: float, lengths: list[tuple[float, float]]) -> None:
    window = SlidingWindow(over_s, IDLE_W)
    truth, now_s = drawn(window, lengths)
    slack_s = over_s / BUCKETS
    held_j = truth.energy_j(now_s - over_s - slack_s, now_s) - IDLE_W * min(over_s + slack_s, now_s)
    assert window.net_j(now_s) <= held_j + 1e-6


@given(lengths_s, spans, st.floats(2.1, 6))
def test_who_spends_the_headroom_and_idles_on_never_exceeds_the_limit(
    over_s: float, lengths: list[tuple[float, float]], limit_w: float
) -> None:
    window = SlidingWindow(over_s, IDLE_W)
    truth, now_s = drawn(window, lengths)
    headroom_j = window.headroom_j(now_s, limit_w)
    if headroom_j > 0:
        truth.add(now_s, now_s + 1e-6, headroom_j / 1e-6)
        truth.add(now_s, now_s + 2 * over_s, IDLE_W)
        for step in range(1, 60):
            at_s = now_s + 1e-6 + step * over_s / 30
            assert truth.energy_j(at_s - over_s, at_s) <= limit_w * over_s + 1e-3


def test_a_day_is_not_burnt_so_that_idle_alone_exceeds_it_later() -> None:
    day = SlidingWindow(86_400.0, IDLE_W)
    assert day.headroom_j(0.0, 2.5) == pytest.approx(0.5 * 86_400)
    day.add(0.0, 3600.0, IDLE_W * 3600 + 20_000)
    for hour in range(1, 24):
        assert day.headroom_j(hour * 3600.0, 2.5) == pytest.approx(0.5 * 86_400 - 20_000)
    assert day.headroom_j(26 * 3600.0, 2.5) == pytest.approx(0.5 * 86_400)


def test_time_in_which_nobody_measured_counts_as_idle() -> None:
    window = SlidingWindow(60.0, IDLE_W)
    window.add(0.0, 1.0, 10.0)
    window.add(31.0, 32.0, 10.0)
    assert window.net_j(32.0) == pytest.approx(2 * (10 - IDLE_W))


def test_less_than_idle_cannot_be_saved_up() -> None:
    window = SlidingWindow(60.0, IDLE_W)
    window.add(0.0, 30.0, 0.0)
    assert window.headroom_j(30.0, 3.0) == pytest.approx(60.0)


def test_what_is_told_late_counts_where_it_belongs() -> None:
    prompt, late = SlidingWindow(10.0, IDLE_W), SlidingWindow(10.0, IDLE_W)
    late.net_j(5.0)
    for start_s in range(5):
        prompt.add(start_s, start_s + 1.0, 3.0 + start_s)
        late.add(start_s, start_s + 1.0, 3.0 + start_s)
    for at_s in (5.0, 11.05, 13.0, 16.0):
        assert late.net_j(at_s) == pytest.approx(prompt.net_j(at_s))
    late.add(2.0, 3.0, 1000.0)  # long out of the window
    late.add(15.0, 15.0, 0.0)
    assert late.net_j(16.0) == pytest.approx(prompt.net_j(16.0))


@given(spans, st.floats(0.5, 4))
def test_another_planned_idle_counts_as_if_it_had_always_been_planned(
    lengths: list[tuple[float, float]], idle_w: float
) -> None:
    changed, planned = SlidingWindow(60.0, IDLE_W), SlidingWindow(60.0, idle_w)
    _, now_s = drawn(changed, lengths)
    drawn(planned, lengths)
    changed.plan_idle(idle_w)
    assert changed.net_j(now_s) == pytest.approx(planned.net_j(now_s))


def test_rows_of_a_ledger_restore_a_window() -> None:
    before, after = SlidingWindow(3600.0, IDLE_W), SlidingWindow(3600.0, IDLE_W)
    for minute in range(60):
        net_j = 300.0 if minute % 7 == 0 else 0.0
        start_s = 60.0 * minute
        before.add(start_s, start_s + 60, IDLE_W * 60 + net_j)
        after.add(start_s - 10_000, start_s - 9_940, IDLE_W * 60 + net_j)  # another axis of time
    for later_s in (0.0, 900.0, 2000.0):
        assert after.net_j(-6400 + later_s) == pytest.approx(before.net_j(3600 + later_s), rel=0.05, abs=1)
    assert after.used_j(-6400) == pytest.approx(before.used_j(3600), rel=0.01)


def test_used_energy_is_what_was_drawn() -> None:
    window = SlidingWindow(60.0, IDLE_W)
    for second in range(200):
        window.add(second, second + 1.0, 3.0)
    assert window.used_j(200.0) == pytest.approx(180.0)
    assert window.used_j(230.0) == pytest.approx(90.0)


def test_a_longer_silence_than_the_window_empties_it() -> None:
    window = SlidingWindow(1.0, IDLE_W)
    window.add(0.0, 1.0, 50.0)
    assert window.net_j(1000.0) == 0.0
    assert window.net_j(1000.5) == 0.0


@given(lengths_s, spans, st.floats(0.1, 1.2))
def test_a_wait_ends_just_when_there_is_room(
    over_s: float, lengths: list[tuple[float, float]], share: float
) -> None:
    window = SlidingWindow(over_s, IDLE_W)
    _, now_s = drawn(window, lengths)
    room = window.room("w", now_s, 3.0)
    need_j = share * room.capacity_j
    wait_s = room.wait_s(need_j)
    assert (wait_s == math.inf) == (share > 1 + 1e-9)
    if wait_s < math.inf:
        tolerance_j = 1e-6 * room.capacity_j + 1e-6
        assert window.headroom_j(now_s + wait_s + 1e-6, 3.0) >= need_j - tolerance_j
        if wait_s > 0:
            early = SlidingWindow(over_s, IDLE_W)
            drawn(early, lengths)
            assert early.headroom_j(now_s + wait_s - 1.01 * over_s / BUCKETS, 3.0) < need_j + tolerance_j


@given(spans, st.floats(0.05, 0.9))
def test_the_room_ahead_is_the_room_that_there_will_be(
    lengths: list[tuple[float, float]], part: float
) -> None:
    window = SlidingWindow(60.0, IDLE_W)
    _, now_s = drawn(window, lengths)
    room = window.room("w", now_s, 3.0)
    ahead_s = part * 60.0
    expected_j = room.free_by(ahead_s)
    assert window.headroom_j(now_s + ahead_s, 3.0) == pytest.approx(expected_j, rel=1e-6, abs=1e-6)


def test_pending_energy_takes_room_and_leaves_last() -> None:
    window = SlidingWindow(10.0, IDLE_W)
    window.add(0.0, 1.0, IDLE_W + 4.0)
    room = window.room("w", 3.0, 3.0, pending_j=5.0)
    assert room.free_j == pytest.approx(10 - 4 - 5)
    assert room.wait_s(5.0) == pytest.approx(8.0, abs=0.11)
    assert room.wait_s(9.9) == pytest.approx(10.1, abs=0.11)


@settings(max_examples=60)
@given(spans, st.floats(0.05, 0.9), st.floats(0.5, 5), st.floats(0, 4))
def test_drawing_may_begin_after_the_lag_and_exceeds_nothing(
    lengths: list[tuple[float, float]], share: float, power_w: float, kept_j: float
) -> None:
    limit_w = 3.0
    window = SlidingWindow(20.0, IDLE_W)
    truth, now_s = drawn(window, lengths)
    room = window.room("w", now_s, limit_w)
    need_j = share * room.capacity_j
    lag_s = room.lag_s(need_j, power_w, kept_j)
    if need_j > room.capacity_j - kept_j:
        assert lag_s == math.inf
        return
    assert lag_s <= room.wait_s(need_j + kept_j) + 1e-6
    truth.add(now_s, now_s + 100, IDLE_W)
    truth.add(now_s + lag_s, now_s + lag_s + need_j / power_w, power_w)
    before_j = max(truth.energy_j(now_s - 20, now_s), limit_w * 20 - kept_j)
    for step in range(121):
        at_s = now_s + step / 4
        if at_s >= now_s + lag_s:
            assert truth.energy_j(at_s - 20, at_s) <= before_j + 1e-4


def test_steady_drawing_at_the_limit_needs_no_wait() -> None:
    """What leaves makes room for what comes."""
    window = SlidingWindow(1.0, IDLE_W)
    for step in range(100):
        window.add(step / 50, (step + 1) / 50, (IDLE_W + 0.99) / 50)
    room = window.room("w", 2.0, IDLE_W + 1.0)
    assert room.free_j < 0.05
    assert room.wait_s(0.3) > 0.2
    assert room.lag_s(0.3, 0.99, 0.0) < 0.03


def test_an_empty_room_that_is_too_small_is_told_from_a_full_one() -> None:
    room = Room("w", 60.0, 3.0, 0.0, 60.0, 60.0, (), (), 60.6)
    assert room.wait_s(60.0) == 0.0
    assert room.wait_s(60.1) == math.inf


def test_a_lag_counts_energy_only_after_it_has_left() -> None:
    room = Room("w", 10.0, 3.0, 100.0, 10.0, 0.0, (101.0, 102.0, 103.0), (1.0, 2.0, 3.0), 10.1)
    assert room.lag_s(3.0, 1.0, 0.0) == pytest.approx(1.0)
    assert room.lag_s(3.0, 0.5, 0.0) == pytest.approx(1.0)
    assert room.lag_s(3.0, 2.0, 0.0) == pytest.approx(2.0)
    assert room.lag_s(3.0, 1.0, 1.0) == pytest.approx(10.1 - 2.0)
