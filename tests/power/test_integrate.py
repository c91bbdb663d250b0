from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeslm.power.integrate import Integrator, Piece, weaker, weakest
from edgeslm.power.port import MeterFacts, Reading
from edgeslm.schema.message import MeterClass

PERIOD_S = 0.1
EXPECTED_W = 4.0


def facts(
    name: str = "a", period_s: float = 0.001, *, averages: bool = False, meter_class: MeterClass = "measured"
) -> MeterFacts:
    return MeterFacts(name, meter_class, period_s, 0.01, 0.01, averages, "made up for the tests")


INSTANT = facts()
AVERAGING = facts("mean", PERIOD_S, averages=True)

watts = st.floats(0, 100)
steps_s = st.floats(0.01, 0.25)


def integrate(readings: list[Reading], of: MeterFacts = INSTANT) -> list[Piece]:
    integrator = Integrator(PERIOD_S)
    pieces = [integrator.advance(reading, of, reading.at_s, EXPECTED_W) for reading in readings]
    return [piece for piece in pieces if piece is not None]


def total_j(pieces: list[Piece]) -> float:
    return sum(piece.energy_j for piece in pieces)


@given(watts, watts, st.lists(steps_s, min_size=1, max_size=50))
def test_a_draw_that_rises_evenly_is_integrated_exactly(
    first_w: float, slope_w_per_s: float, steps: list[float]
) -> None:
    times = [100.0, *itertools.accumulate(steps, initial=100.0)][1:]
    readings = [Reading(at_s, first_w + slope_w_per_s * (at_s - 100.0)) for at_s in times]
    length_s = times[-1] - times[0]
    assert total_j(integrate(readings)) == pytest.approx(
        first_w * length_s + slope_w_per_s * length_s**2 / 2, abs=1e-6
    )


@given(st.lists(st.tuples(st.floats(0.001, 1000), watts, watts), min_size=1, max_size=50))
def test_a_counter_is_right_however_seldom_it_is_read(samples: list[tuple[float, float, float]]) -> None:
    at_s, counter_j = 7.0, 3.0
    readings = [Reading(at_s, 1.0, counter_j)]
    for step_s, grown_j, power_w in samples:
        at_s += step_s
        counter_j += grown_j
        readings.append(Reading(at_s, power_w, counter_j))
    pieces = integrate(readings)
    assert total_j(pieces) == pytest.approx(counter_j - 3.0)
    assert all(piece.bridged_j == 0 for piece in pieces)


@given(st.lists(st.tuples(st.floats(0.001, 2.0), watts, st.sampled_from("ab")), min_size=1, max_size=50))
def test_pieces_follow_each_other_without_gap_and_are_never_negative(
    samples: list[tuple[float, float, str]],
) -> None:
    integrator = Integrator(PERIOD_S)
    at_s = 0.0
    pieces = []
    for step_s, power_w, name in samples:
        at_s += step_s
        piece = integrator.advance(Reading(at_s, power_w), facts(name), at_s, EXPECTED_W)
        if piece is not None:
            pieces.append(piece)
    for before, after in itertools.pairwise(pieces):
        assert after.start_s == before.end_s
    assert all(piece.energy_j >= piece.bridged_j >= 0 for piece in pieces)
    assert sum(piece.end_s - piece.start_s for piece in pieces) == pytest.approx(at_s - samples[0][0])


def test_a_meter_that_averages_is_right_about_steps_it_saw() -> None:
    # 2 W until 0.25, 10 W after: the mean over 0.2..0.3 is 6 W.
    readings = [Reading(0.1, 2.0), Reading(0.2, 2.0), Reading(0.3, 6.0), Reading(0.4, 10.0)]
    assert total_j(integrate(readings, AVERAGING)) == pytest.approx(0.15 * 2 + 0.15 * 10)


def test_a_mean_speaks_only_for_the_time_it_was_taken_over() -> None:
    short = facts("short", 0.02, averages=True)
    (piece,) = integrate([Reading(0.0, 2.0), Reading(0.1, 6.0)], short)
    assert piece.energy_j == pytest.approx(0.02 * 6 + 0.08 * (2 + 6) / 2)


@pytest.mark.parametrize("gap_s", [0.31, 5.0, 500.0])
def test_a_gap_is_filled_with_the_expected_draw_and_says_so(gap_s: float) -> None:
    (piece,) = integrate([Reading(1.0, 9.0), Reading(1.0 + gap_s, 9.0)])
    assert piece.energy_j == pytest.approx(EXPECTED_W * gap_s)
    assert piece.bridged_j == piece.energy_j


def test_a_gap_of_up_to_three_periods_of_the_meter_is_none() -> None:
    assert integrate([Reading(1.0, 9.0), Reading(1.29, 9.0)])[0].bridged_j == 0
    slow = facts("slow", 10.0)
    assert integrate([Reading(1.0, 9.0), Reading(29.0, 9.0)], slow)[0].bridged_j == 0


def test_after_a_gap_the_last_mean_counts_for_its_own_period() -> None:
    (piece,) = integrate([Reading(0.0, 9.0), Reading(5.0, 9.0)], AVERAGING)
    assert piece.energy_j == pytest.approx(EXPECTED_W * 4.9 + 9.0 * 0.1)
    assert piece.bridged_j == pytest.approx(EXPECTED_W * 4.9)


def test_the_same_reading_again_brings_nothing_and_costs_nothing() -> None:
    readings = [
        Reading(0.0, 5.0),
        Reading(0.1, 5.0),
        Reading(0.1, 5.0),
        Reading(0.05, 5.0),
        Reading(0.2, 5.0),
    ]
    assert [piece.energy_j for piece in integrate(readings)] == pytest.approx([0.5, 0.5])


def test_where_one_meter_takes_over_from_another_there_is_no_jump() -> None:
    integrator = Integrator(PERIOD_S)
    integrator.advance(Reading(0.0, 4.0, 1000.0), facts("a"), 0.0, EXPECTED_W)
    weak = facts("b", meter_class="estimated")
    piece = integrator.advance(Reading(0.1, 6.0, 5.0), weak, 0.1, EXPECTED_W)
    assert piece == Piece(0.0, 0.1, pytest.approx(0.5), 0.0, pytest.approx(0.1), "estimated")
    back = integrator.advance(Reading(0.2, 4.0, 1010.0), facts("a"), 0.2, EXPECTED_W)
    assert back is not None
    assert back.energy_j == pytest.approx(0.5)
    assert back.meter == "estimated"


def test_an_old_value_of_the_meter_that_takes_over_is_not_counted_again() -> None:
    integrator = Integrator(PERIOD_S)
    slow = facts("slow", 10.0, averages=True)
    integrator.advance(Reading(0.0, 4.0), INSTANT, 0.0, EXPECTED_W)
    integrator.advance(Reading(0.1, 4.0), INSTANT, 0.1, EXPECTED_W)
    assert integrator.advance(Reading(-8.0, 50.0, 70.0), slow, 0.2, EXPECTED_W) is None
    piece = integrator.advance(Reading(2.0, 5.0, 90.0), slow, 2.0, EXPECTED_W)
    assert piece is not None
    assert (piece.start_s, piece.energy_j) == (0.1, pytest.approx(5.0 * 1.9))


def test_a_counter_that_falls_is_not_differenced() -> None:
    pieces = integrate([Reading(0.0, 4.0, 100.0), Reading(0.1, 4.0, 1.0), Reading(0.2, 4.0, 2.0)])
    assert [piece.energy_j for piece in pieces] == pytest.approx([0.4, 1.0])


def test_what_was_filled_without_a_reading_is_not_counted_again_by_the_counter() -> None:
    integrator = Integrator(PERIOD_S)
    integrator.advance(Reading(0.0, 4.0, 100.0), INSTANT, 0.0, EXPECTED_W)
    filled = integrator.bridge(70.0, 3.0)
    assert filled is not None
    assert filled.energy_j == filled.bridged_j == pytest.approx(210.0)
    piece = integrator.advance(Reading(70.1, 5.0, 400.0), INSTANT, 70.1, EXPECTED_W)
    assert piece is not None
    assert piece.energy_j == pytest.approx(0.5)
    assert integrator.bridge(70.1, 3.0) is None


def test_what_was_before_the_first_call_is_not_integrated() -> None:
    integrator = Integrator(PERIOD_S)
    slow = facts("slow", 10.0, averages=True)
    assert integrator.advance(Reading(92.0, 5.0, 20.0), slow, 100.0, EXPECTED_W) is None
    piece = integrator.advance(Reading(102.0, 5.0, 70.0), slow, 102.0, EXPECTED_W)
    assert piece is not None
    assert (piece.start_s, piece.energy_j) == (100.0, pytest.approx(10.0))


def test_the_weakest_class_is_told_once_a_tenth_rests_on_it() -> None:
    assert weakest([("measured", 91.0), ("estimated", 9.0)]) == "measured"
    assert weakest([("measured", 89.0), ("estimated", 11.0)]) == "estimated"
    assert weakest([("estimated", 1.0), ("measured", 50.0), ("calibrated", 49.0)]) == "calibrated"
    assert weaker("calibrated", "measured") == "calibrated"
