"""Which reports can be true, when they were, and whether they were here before."""

from __future__ import annotations

import math
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[3]))

from benchmarks.fleet_metrics_load import inference, power, system
from edgeslm.errors import CodecError
from edgeslm.fleet.metrics.judge import (
    MOST_W,
    Counted,
    ImpossibleFigure,
    Last,
    ceiling_w,
    check_inference,
    check_power,
    check_system,
    judge,
    stamp_ms,
)
from edgeslm.power.boards import load_boards
from edgeslm.schema.metrics import Metrics, PowerMetrics, PowerPoint

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
NOW_MS = round(NOW.timestamp() * 1000)
OLDEST_MS = NOW_MS - 2 * 86_400_000
BOARDS = load_boards()
MINUTE = timedelta(minutes=1)


def at(report: Metrics, last: Last | None = None) -> Counted | None:
    return judge(report, "kitchen", last, now_ms=NOW_MS, oldest_ms=OLDEST_MS)


def changed(report: PowerMetrics, **values: Any) -> PowerMetrics:
    return report.model_copy(update=values)


# --- figures ------------------------------------------------------------------------------------------------


@given(
    st.floats(0, 22.4),
    st.floats(1, 3600),
    st.lists(st.floats(0, 1), min_size=1, max_size=12),
)
def test_what_a_board_can_draw_is_always_possible(most_w: float, span_s: float, shares: list[float]) -> None:
    step_s = span_s / len(shares)
    points = [
        PowerPoint(
            ago_s=(len(shares) - 1 - place) * step_s,
            min_w=round(most_w * share / 2, 4),
            mean_w=round(most_w * share * 0.75, 4),
            max_w=round(most_w * share, 4),
        )
        for place, share in enumerate(shares)
    ]
    energy_j = sum(point.mean_w * step_s for point in points)
    report = changed(power("kitchen", 0, NOW), span_s=span_s, energy_j=energy_j, points=tuple(points))
    check_power(report, ceiling_w(BOARDS["pi-4b"]))


def test_every_board_that_ships_may_draw_all_that_its_cores_can() -> None:
    for board in BOARDS.values():
        most_w = board.power.idle_w + (board.cores or 1) * board.power.core_load_w
        assert most_w < ceiling_w(board), board.name
    assert ceiling_w(None) == MOST_W


LIES: dict[str, tuple[dict[str, Any], str]] = {
    "negative draw": ({"points": (PowerPoint(ago_s=0, min_w=-1.0, mean_w=2.0, max_w=3.0),)}, "-1 W"),
    "order": ({"points": (PowerPoint(ago_s=0, min_w=3.0, mean_w=2.0, max_w=1.0),)}, "between 3 and 1 W"),
    "no number": ({"points": (PowerPoint(ago_s=0, min_w=math.nan, mean_w=2.0, max_w=3.0),)}, "nan"),
    "more than the supply": ({"points": (PowerPoint(ago_s=0, min_w=1.0, mean_w=9.0, max_w=99.0),)}, "99 W"),
    "negative energy": ({"energy_j": -1.0}, "energy_j -1"),
    "endless energy": ({"energy_j": math.inf}, "inf"),
    "more energy than watts": ({"energy_j": 600.0}, "600 J in 60 s"),
    "less energy than watts": ({"energy_j": 1.0}, "1 J in 50 s"),
    "energy without points": ({"energy_j": 1e6, "points": ()}, "1e\\+06 J"),
    "idle": ({"idle_w": -0.1}, "idle_w"),
}


@pytest.mark.parametrize("lie", LIES)
def test_refuses_figures_that_cannot_be(lie: str) -> None:
    values, told = LIES[lie]
    with pytest.raises(ImpossibleFigure, match=told):
        check_power(changed(power("kitchen", 0, NOW), **values), ceiling_w(BOARDS["pi-4b"]))


def test_refuses_counts_below_zero_and_heat_beyond_silicon() -> None:
    said = inference("kitchen", 0, NOW)
    model = said.models[0].model_copy(update={"answered": -3})
    with pytest.raises(ImpossibleFigure, match="answered -3"):
        check_inference(said.model_copy(update={"models": (model,)}))
    with pytest.raises(ImpossibleFigure, match="at 999 C"):
        check_system(system("kitchen", 0, NOW, temperature_c=999.0))
    check_inference(said)
    check_system(system("kitchen", 0, NOW))


@pytest.mark.parametrize(
    ("min_w", "mean_w", "max_w"),
    [(2.7061, 2.7276, 2.7072), (4.5197, 4.5098, 4.5694), (0.0, 0.02, 0.01), (5.0, 5.0, 5.0)],
)
def test_a_mean_that_lies_a_little_outside_what_was_looked_at_is_no_lie(
    min_w: float, mean_w: float, max_w: float
) -> None:
    said = power("kitchen", 0, NOW)
    point = PowerPoint(ago_s=0, min_w=min_w, mean_w=mean_w, max_w=max_w)
    check_power(changed(said, energy_j=mean_w * said.span_s, points=(point,)), MOST_W)


@pytest.mark.parametrize("mean_w", [1.0, 4.0, -0.01, math.inf, math.nan])
def test_a_mean_far_from_what_was_looked_at_is_one(mean_w: float) -> None:
    point = PowerPoint(ago_s=0, min_w=2.0, mean_w=mean_w, max_w=3.0)
    with pytest.raises(ImpossibleFigure):
        check_power(changed(power("kitchen", 0, NOW), points=(point,)), MOST_W)


def test_a_minute_that_was_measured_in_part_is_no_lie() -> None:
    said = power("kitchen", 0, NOW)
    check_power(changed(said, energy_j=said.energy_j * 0.6), MOST_W)


# --- time and sequence --------------------------------------------------------------------------------------


def test_refuses_another_device_s_name() -> None:
    with pytest.raises(ImpossibleFigure, match="reports as 'cellar'"):
        at(power("cellar", 0, NOW))


@pytest.mark.parametrize(
    "text", ["", "yesterday", "2026-11-24T12:00:00", "0001-01-01T00:00:00+00:00", "9" * 99]
)
def test_a_time_that_is_none_cannot_be_read(text: str) -> None:
    with pytest.raises(CodecError, match="no time with a zone"):
        stamp_ms(text)


def test_a_clock_that_is_a_little_ahead_counts_as_it_arrived_and_a_lot_is_a_lie() -> None:
    counted = at(power("kitchen", 0, NOW + timedelta(minutes=30)))
    assert counted is not None
    assert (counted.at_ms, counted.is_dated_here) == (NOW_MS, True)
    with pytest.raises(ImpossibleFigure, match="2 h ahead"):
        at(power("kitchen", 0, NOW + timedelta(hours=2)))


def test_a_clock_that_is_not_set_counts_as_it_arrived_whether_it_says_so_or_not() -> None:
    for said in (
        power("kitchen", 0, datetime(1970, 1, 1, 0, 5, tzinfo=UTC)),
        power("kitchen", 0, NOW + timedelta(days=900)).model_copy(update={"clock_set": False}),
    ):
        counted = at(said)
        assert counted is not None
        assert (counted.at_ms, counted.is_dated_here) == (NOW_MS, True)


def test_what_was_here_before_or_is_too_old_does_not_count() -> None:
    own_ms = NOW_MS - 60_000
    said = power("kitchen", 7, NOW - MINUTE)
    assert at(said, Last(7, own_ms)) is None
    assert at(power("kitchen", 0, NOW - timedelta(days=3))) is None


def test_what_comes_late_counts_where_it_was_and_is_not_the_newest() -> None:
    counted = at(power("kitchen", 5, NOW - 3 * MINUTE), Last(7, NOW_MS - 60_000))
    assert counted is not None
    assert (counted.at_ms, counted.is_newest, counted.lost) == (NOW_MS - 180_000, False, 0)


def test_a_gap_tells_what_was_lost() -> None:
    counted = at(power("kitchen", 9, NOW), Last(5, NOW_MS - 240_000))
    assert counted is not None
    assert counted.lost == 3


@given(seq=st.integers(0, 200), extra_s=st.integers(0, 3600), before=st.integers(1, 10**6))
def test_a_restart_is_believed_however_many_reports_it_already_made(
    seq: int, extra_s: int, before: int
) -> None:
    last = Last(before, NOW_MS - (seq * 60 + 60 + extra_s) * 1000)
    counted = at(power("kitchen", seq, NOW), last)
    assert counted is not None
    assert counted.is_newest


def test_counting_backwards_in_less_time_than_it_takes_is_a_lie() -> None:
    with pytest.raises(ImpossibleFigure, match="counts backwards, 500 after 800"):
        at(power("kitchen", 500, NOW), Last(800, NOW_MS - 60_000))


def test_a_board_whose_clock_begins_anew_with_each_boot_may_restart() -> None:
    boot = datetime(1970, 1, 1, 0, 1, tzinfo=UTC)
    last = Last(900, round(boot.timestamp() * 1000) + 900 * 60_000)
    said = power("kitchen", 0, boot).model_copy(update={"clock_set": False})
    counted = at(said, last)
    assert counted is not None
    assert counted.is_newest
    again = at(said, Last(0, stamp_ms(said.at)))
    assert again is None
