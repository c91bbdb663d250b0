from __future__ import annotations

import pytest

from edgeslm.power.governor_unmetered import Unmetered


def test_what_was_computed_since_the_last_value_counts_as_drawn() -> None:
    unmetered = Unmetered(0.0)
    unmetered.compute(1.0, 2.0)
    assert unmetered.pending_j(3.0, 60.0) == pytest.approx(4.0)
    unmetered.rest(4.0)
    unmetered.compute(6.0, 1.0)
    assert unmetered.pending_j(7.0, 60.0) == pytest.approx(6.0 + 1.0)


def test_what_the_meter_told_counts_no_more() -> None:
    unmetered = Unmetered(0.0)
    unmetered.compute(0.0, 2.0)
    unmetered.metered(0.0, 2.5, 5.0)
    assert unmetered.pending_j(3.0, 60.0) == pytest.approx(1.0)
    unmetered.rest(3.0)
    unmetered.metered(2.5, 3.5, 1.0)
    assert unmetered.pending_j(9.0, 60.0) == 0.0
    assert unmetered._spans == []


def test_only_what_lies_in_the_window_counts() -> None:
    unmetered = Unmetered(0.0)
    unmetered.compute(0.0, 2.0)
    assert unmetered.pending_j(10.0, 1.0) == pytest.approx(2.0)
    unmetered.rest(10.0)
    assert unmetered.pending_j(10.4, 1.0) == pytest.approx(1.2)


def test_going_on_twice_is_going_on() -> None:
    unmetered = Unmetered(0.0)
    unmetered.compute(0.0, 2.0)
    unmetered.compute(1.0, 2.0)
    unmetered.rest(2.0)
    unmetered.rest(3.0)
    assert unmetered.pending_j(3.0, 60.0) == pytest.approx(4.0)


def test_a_board_that_draws_more_than_expected_is_learned() -> None:
    unmetered = Unmetered(0.0)
    unmetered.compute(0.0, 2.0)
    for tenth in range(100):
        unmetered.metered(tenth / 10, (tenth + 1) / 10, 0.24)
    assert unmetered.ratio == pytest.approx(1.2, abs=0.01)
    assert unmetered.pending_j(11.0, 60.0) == pytest.approx(2.4, abs=0.03)


def test_a_value_across_a_pause_is_compared_with_what_was_computed_in_it() -> None:
    unmetered = Unmetered(0.0)
    unmetered.compute(0.0, 2.0)
    unmetered.rest(0.6)
    unmetered.metered(0.0, 1.0, 1.2)
    assert unmetered.ratio == pytest.approx(1.0)


def test_values_of_rest_and_rubbish_teach_nothing_or_little() -> None:
    unmetered = Unmetered(0.0)
    unmetered.metered(0.0, 1.0, 0.5)
    unmetered.compute(1.9, 2.0)
    unmetered.metered(1.0, 2.0, 5.0)
    assert unmetered.ratio == 1.0
    unmetered.metered(2.0, 3.0, 1e9)
    assert unmetered.ratio <= 1.2


def test_a_silent_meter_costs_no_memory_and_no_energy() -> None:
    unmetered = Unmetered(0.0)
    for second in range(0, 10_000, 2):
        unmetered.compute(float(second), 2.0)
        unmetered.rest(second + 1.0)
    assert len(unmetered._spans) <= 512
    assert unmetered.pending_j(10_000.0, 86_400.0) == pytest.approx(10_000.0)
