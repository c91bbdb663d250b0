from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeslm.power.governor_pacing import GO_S, MAX_HIGH_PAUSE_S, MAX_PAUSE_S, SLOW_S, Progress, pace
from edgeslm.power.governor_types import Go, Pause, Stop

NOW_S = 100.0
RUNNING = Progress(priority="normal", deadline_s=None, next_j=0.2, net_w=2.0)


@dataclass(frozen=True)
class Window:
    """One with so much to spare now, and the rest after so many seconds."""

    spare_j: float
    rest_after_s: float = 1.0
    name: str = "w"

    def lag_s(self, need_j: float, power_w: float) -> float:
        return 0.0 if need_j <= self.spare_j else self.rest_after_s


def test_with_room_it_goes_on_for_a_while_without_being_asked() -> None:
    assert pace(NOW_S, [Window(100.0)], RUNNING) == Go(NOW_S + GO_S)
    assert pace(NOW_S, [], RUNNING) == Go(NOW_S + GO_S)


def test_it_goes_on_no_longer_than_there_is_room_in_every_window() -> None:
    step = pace(NOW_S, [Window(100.0), Window(1.0), Window(50.0)], RUNNING)
    assert isinstance(step, Go)
    assert step.until_s == pytest.approx(NOW_S + 0.4)  # and a piece of 0.2 J after that


def test_without_room_it_pauses_for_the_slowest_window() -> None:
    step = pace(NOW_S, [Window(0.1, 0.5), Window(0.0, 2.0), Window(5.0)], RUNNING)
    assert isinstance(step, Pause)
    assert step.seconds == pytest.approx(2.0, abs=0.01)


def test_room_that_comes_up_while_it_computes_needs_no_pause() -> None:
    assert pace(NOW_S, [Window(0.1, rest_after_s=0.0)], RUNNING) == Go(NOW_S)


@pytest.mark.parametrize("wait_s", [MAX_PAUSE_S + 0.1, float("inf")])
def test_a_pause_that_would_be_too_long_ends_the_answer(wait_s: float) -> None:
    step = pace(NOW_S, [Window(0.1, wait_s, name="day")], RUNNING)
    assert isinstance(step, Stop)
    assert step.reason.text == (
        "the next token needs 0.20 J; window 'day' has 0.10 J to spare, and not enough soon"
    )


def test_high_priority_pauses_longer_but_not_past_its_deadline() -> None:
    alarm = replace(RUNNING, priority="high")
    assert isinstance(pace(NOW_S, [Window(0.0, 20.0)], alarm), Pause)
    assert isinstance(pace(NOW_S, [Window(0.0, MAX_HIGH_PAUSE_S + 1)], alarm), Stop)
    assert isinstance(pace(NOW_S, [Window(0.0, 20.0)], replace(alarm, deadline_s=NOW_S + 10)), Stop)
    assert isinstance(pace(NOW_S, [Window(0.0, 20.0)], replace(alarm, deadline_s=NOW_S + 25)), Pause)


def test_a_pausing_prompt_gives_way_to_an_alarm_that_has_to_begin() -> None:
    full = [Window(0.0, 2.0)]
    step = pace(NOW_S, full, replace(RUNNING, yield_at_s=NOW_S + 1.0))
    assert isinstance(step, Stop)
    assert step.reason.code == "gives_way"
    assert isinstance(pace(NOW_S, full, replace(RUNNING, yield_at_s=NOW_S + 3.0)), Pause)
    assert isinstance(pace(NOW_S, [Window(9.0)], replace(RUNNING, yield_at_s=NOW_S - 1.0)), Go)
    alarm = replace(RUNNING, priority="high", yield_at_s=NOW_S + 1.0)
    assert isinstance(pace(NOW_S, full, alarm), Pause)


def test_on_a_weak_board_it_computes_half_of_the_time() -> None:
    slowed = replace(RUNNING, slowed=True)
    assert pace(NOW_S, [Window(100.0)], slowed) == Pause(SLOW_S)
    assert pace(NOW_S, [Window(100.0)], replace(slowed, paused=True)) == Go(NOW_S + SLOW_S)
    assert isinstance(pace(NOW_S, [Window(100.0)], replace(slowed, priority="high")), Go)


@given(
    st.lists(st.builds(Window, st.floats(-10, 10), st.floats(0, 40)), max_size=4),
    st.sampled_from(["high", "normal", "low"]),
    st.floats(0.001, 3),
    st.floats(0, 10),
    st.booleans(),
)
def test_it_never_goes_on_without_room_for_the_next_piece(
    windows: list[Window], priority: str, next_j: float, net_w: float, paused: bool
) -> None:
    progress = Progress(priority, None, next_j, net_w, paused=paused)  # type: ignore[arg-type]
    step = pace(NOW_S, windows, progress)
    if isinstance(step, Go):
        assert all(window.lag_s(next_j, net_w) == 0 for window in windows)
        until_j = (step.until_s - NOW_S) * net_w
        assert until_j == 0 or all(until_j + next_j <= window.spare_j + 1e-9 for window in windows)
    elif isinstance(step, Pause):
        assert 0 < step.seconds <= MAX_HIGH_PAUSE_S
