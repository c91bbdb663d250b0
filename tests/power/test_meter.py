from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeslm.power.boards import load_boards
from edgeslm.power.meter import EstimatedMeter, estimate
from edgeslm.power.port import Cause
from edgeslm.schema.board import PowerTable

CAUSE = Cause("prompt")
TABLE = PowerTable(idle_w=2.0, core_load_w=0.5, source="made up for the tests")

watts = st.floats(0, 1000)
spans_s = st.floats(1e-6, 1e6)
cores = st.floats(0, 64)


def test_an_estimate_is_idle_draw_over_the_span_and_load_over_core_seconds() -> None:
    reading = estimate(TABLE, wall_s=10.0, cpu_s=4.0)
    assert reading.net_j == pytest.approx(2.0)
    assert reading.energy_j == pytest.approx(22.0)
    assert reading.power_w == pytest.approx(2.2)
    assert reading.meter == "estimated"


@given(watts, watts, spans_s, cores)
def test_draw_lies_between_the_idle_board_and_its_busy_cores(
    idle_w: float, core_load_w: float, wall_s: float, busy_cores: float
) -> None:
    table = PowerTable(idle_w=idle_w, core_load_w=core_load_w, source="made up for the tests")
    reading = estimate(table, wall_s, busy_cores * wall_s)
    assert reading.power_w == pytest.approx(idle_w + busy_cores * core_load_w)
    assert reading.energy_j == pytest.approx(reading.power_w * wall_s)
    assert reading.energy_j - reading.net_j == pytest.approx(idle_w * wall_s, abs=1e-6 * reading.energy_j)
    assert reading.energy_j >= reading.net_j >= 0


@given(spans_s, spans_s, cores, cores)
def test_the_parts_of_a_span_add_up(
    first_s: float, second_s: float, first_cpu_s: float, second_cpu_s: float
) -> None:
    parts = [estimate(TABLE, first_s, first_cpu_s), estimate(TABLE, second_s, second_cpu_s)]
    whole = estimate(TABLE, first_s + second_s, first_cpu_s + second_cpu_s)
    assert sum(part.energy_j for part in parts) == pytest.approx(whole.energy_j)
    assert sum(part.net_j for part in parts) == pytest.approx(whole.net_j)


def test_the_meter_reads_wall_and_processor_time_between_begin_and_now(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wall_s, cpu_s = 100.0, 7.0
    monkeypatch.setattr(time, "monotonic", lambda: wall_s)
    monkeypatch.setattr(time, "process_time", lambda: cpu_s)
    meter = EstimatedMeter(TABLE)
    span = meter.begin(CAUSE)
    wall_s, cpu_s = 110.0, 11.0
    reading = span.so_far()
    assert span.end() == reading == estimate(TABLE, 10.0, 4.0)
    assert meter.meter_class == reading.meter


def test_spans_may_overlap(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now_s)
    monkeypatch.setattr(time, "process_time", lambda: now_s / 2)
    meter = EstimatedMeter(TABLE)
    outer = meter.begin(CAUSE)
    now_s = 2.0
    inner = meter.begin(CAUSE)
    now_s = 6.0
    assert inner.end().energy_j == pytest.approx(4 * 2.0 + 2 * 0.5)
    assert outer.end().energy_j == pytest.approx(6 * 2.0 + 3 * 0.5)


def test_a_span_of_no_time_at_all_has_a_finite_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "monotonic", lambda: 1.0)
    monkeypatch.setattr(time, "process_time", lambda: 1.0)
    meter = EstimatedMeter(TABLE)
    assert meter.begin(CAUSE).end().power_w == pytest.approx(TABLE.idle_w)


@pytest.mark.parametrize("board", load_boards().values(), ids=lambda board: board.name)
def test_work_costs_something_on_every_board(board: object) -> None:
    table = load_boards()[board.name].power  # type: ignore[attr-defined]
    assert estimate(table, 1.0, 1.0).net_j > 0
    assert estimate(table, 1.0, 0.0).energy_j > 0
