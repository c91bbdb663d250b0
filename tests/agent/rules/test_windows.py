"""Windows against a model that keeps every reading and adds up from the start each time."""

from __future__ import annotations

import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeslm.agent.rules.windows import BUCKETS, Window

VALUES = st.floats(-1e15, 1e15, allow_nan=False)
STEPS = st.lists(
    st.tuples(st.one_of(st.just(0.0), st.floats(0, 3), st.floats(0, 300)), VALUES), min_size=1, max_size=60
)


def kept(readings: list[tuple[float, float]], span_s: float, now_s: float) -> list[tuple[float, float]]:
    """Readings by buckets as the module promises: whole ones, no closer than a 256th of the window."""
    buckets: list[list[tuple[float, float]]] = []
    for time_s, value in readings:
        buckets = [bucket for bucket in buckets if bucket[0][0] >= time_s - span_s]
        if buckets and time_s - buckets[-1][0][0] < span_s / BUCKETS:
            buckets[-1].append((time_s, value))
        else:
            buckets.append([(time_s, value)])
    return [pair for bucket in buckets if bucket[0][0] >= now_s - span_s for pair in bucket]


def fitted(readings: list[tuple[float, float]]) -> float | None:
    times, values = [t for t, _ in readings], [v for _, v in readings]
    if len(set(times)) < 2:
        return None
    return 60.0 * statistics.linear_regression(times, values).slope


@given(STEPS, st.sampled_from([1.0, 10.0, 60.0]), st.floats(0, 120))
def test_figures_are_those_of_all_readings_in_the_window(steps, span_s, wait_s):
    window = Window(span_s)
    readings: list[tuple[float, float]] = []
    now_s = 1000.0
    for step_s, value in steps:
        now_s += step_s
        window.add(now_s, value)
        readings.append((now_s, value))
    now_s += wait_s
    expected = kept(readings, span_s, now_s)
    summary = window.summary(now_s)
    if not expected:
        assert summary is None
        assert window.slope_per_min(now_s) is None
        return
    values = [value for _, value in expected]
    scale = max(map(abs, values)) or 1.0
    assert summary is not None
    assert summary.count == len(values)
    assert (summary.low, summary.high) == (min(values), max(values))
    assert summary.mean == pytest.approx(math.fsum(values) / len(values), rel=1e-9, abs=1e-9 * scale)


@given(
    st.lists(st.floats(-1000, 1000), min_size=2, max_size=40),
    st.floats(0.05, 5),
    st.sampled_from([10.0, 60.0]),
)
def test_the_slope_is_that_of_least_squares(values, gap_s, span_s):
    window = Window(span_s)
    readings = [(n * gap_s, value) for n, value in enumerate(values)]
    for time_s, value in readings:
        window.add(time_s, value)
    now_s = readings[-1][0]
    expected = fitted(kept(readings, span_s, now_s))
    found = window.slope_per_min(now_s)
    if expected is None:
        assert found is None
    else:
        assert found == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_readings_far_enough_apart_leave_one_by_one():
    window = Window(10.0)
    for second in range(30):
        window.add(float(second), float(second))
    summary = window.summary(29.0)
    assert summary is not None
    assert (summary.low, summary.high, summary.count) == (19.0, 29.0, 11)


def test_memory_is_bounded_whatever_the_rate():
    window = Window(10.0)
    for number in range(50_000):
        window.add(number * 0.0007, 1.0)
        assert len(window) <= BUCKETS + 2
    summary = window.summary(50_000 * 0.0007)
    assert summary is not None
    assert summary.count == pytest.approx(10 / 0.0007, rel=0.01)


def test_old_giants_leave_no_error_behind():
    window = Window(10.0)
    for second in range(100):
        window.add(float(second), 1e15 if second < 50 else 0.1)
    summary = window.summary(99.0)
    assert summary is not None
    assert summary.mean == pytest.approx(0.1, rel=1e-12)


def test_a_reading_is_never_before_the_last_one():
    window = Window(10.0)
    window.add(5.0, 1.0)
    window.add(3.0, 2.0)
    summary = window.summary(5.0)
    assert summary is not None
    assert summary.count == 2
