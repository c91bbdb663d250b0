from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeslm.power.baseline import CoreDraw, IdleDraw

watts = st.floats(0, 100)
blocks = st.lists(st.tuples(st.floats(0.1, 20.0), watts, st.floats(0, 1)), min_size=1, max_size=40)


def calm(idle: IdleDraw, seconds: float, power_w: float, error_w: float = 0.01) -> IdleDraw:
    for _ in range(int(seconds / 2)):
        idle = idle.learn(2.0, power_w, error_w)
    return idle


@given(watts, blocks)
def test_the_idle_draw_is_never_negative_nor_above_what_was_seen_calm(
    prior_w: float, seen: list[tuple[float, float, float]]
) -> None:
    idle = IdleDraw(prior_w)
    for seconds, power_w, error_w in seen:
        idle = idle.learn(seconds, power_w, error_w)
    assert 0 <= idle.idle_w <= max(power_w for _, power_w, _ in seen) * (1 + 1e-9)


@given(watts, watts)
def test_what_is_seen_first_replaces_the_power_table(prior_w: float, power_w: float) -> None:
    assert IdleDraw(prior_w).learn(2.0, power_w, 0.01).idle_w == pytest.approx(power_w)


def test_a_board_that_draws_less_is_believed_within_seconds() -> None:
    idle = calm(IdleDraw(3.0), 600, 3.0)
    assert calm(idle, 20, 2.5).idle_w == pytest.approx(2.5, abs=0.05)


def test_a_board_that_draws_more_is_believed_only_over_minutes() -> None:
    idle = calm(IdleDraw(3.0), 600, 3.0)
    assert calm(idle, 20, 4.0).idle_w == pytest.approx(3.0, abs=0.05)
    assert calm(idle, 3600, 4.0).idle_w == pytest.approx(4.0, abs=0.05)


def test_warmth_is_followed() -> None:
    idle = calm(IdleDraw(3.0), 600, 3.0)
    for step in range(60):
        idle = calm(idle, 60, 3.0 + 0.005 * step)
    assert idle.idle_w == pytest.approx(3.3, abs=0.03)


def test_work_that_draws_less_than_idle_shows_idle_to_be_less() -> None:
    idle = IdleDraw(5.0)
    for _ in range(30):
        idle = idle.bound(1.0, 3.0, 0.01)
    assert idle.idle_w == pytest.approx(3.0, abs=0.1)
    assert idle.bound(1.0, 4.0, 0.01) == idle


def test_noise_below_idle_does_not_lower_it() -> None:
    assert IdleDraw(3.0).bound(1.0, 2.9, 0.05).idle_w == 3.0


def test_the_draw_of_a_core_is_learned_whatever_the_table_says() -> None:
    core = CoreDraw(0.5)
    for _ in range(60):
        core = core.learn(1.0, 1.5, 1.5 * 1.2, "measured")
    assert core.core_w == pytest.approx(1.2, rel=0.02)
    assert core.meter_class == "calibrated"


def test_a_new_frequency_is_learned_within_minutes_of_work() -> None:
    core = CoreDraw(1.0)
    for _ in range(1000):
        core = core.learn(1.0, 1.0, 1.0, "measured")
    for _ in range(240):
        core = core.learn(1.0, 1.0, 0.4, "measured")
    assert core.core_w == pytest.approx(0.4, abs=0.1)


def test_a_fit_to_an_estimate_stays_an_estimate() -> None:
    core = CoreDraw(0.5)
    for _ in range(60):
        core = core.learn(1.0, 1.0, 1.0, "estimated")
    assert core.core_w == pytest.approx(1.0, rel=0.05)
    assert core.meter_class == "estimated"


def test_an_estimate_does_not_spoil_what_was_measured() -> None:
    core = CoreDraw(0.5)
    for _ in range(60):
        core = core.learn(1.0, 1.0, 1.2, "measured")
    assert core.learn(1.0, 1.0, 9.0, "estimated") == core


def test_idle_seconds_teach_nothing_about_cores() -> None:
    assert CoreDraw(0.5).learn(1.0, 0.0, 3.0, "measured") == CoreDraw(0.5)


@given(st.lists(st.tuples(st.floats(0.5, 5), st.floats(0, 20), st.floats(-50, 50)), max_size=20))
def test_the_draw_of_a_core_is_never_negative(blocks: list[tuple[float, float, float]]) -> None:
    core = CoreDraw(0.5)
    for seconds, busy_s, net_j in blocks:
        core = core.learn(seconds, busy_s, net_j, "measured")
        assert core.core_w >= 0


def test_what_was_learned_survives_a_restart() -> None:
    idle = calm(IdleDraw(3.0), 10, 2.5)
    core = CoreDraw(0.5).learn(5.0, 10.0, 12.0, "measured")
    assert IdleDraw(3.0).restore(idle.state()) == idle
    assert CoreDraw(0.5).restore(core.state()) == core


def test_after_a_restart_a_changed_board_is_believed_soon() -> None:
    idle = IdleDraw(3.0).restore(calm(IdleDraw(3.0), 36_000, 2.5).state())
    assert calm(idle, 120, 3.5).idle_w > 3.2


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"idle_w": "much", "calm_s": 1.0},
        {"idle_w": float("nan"), "calm_s": 1.0},
        {"idle_w": -1, "calm_s": 1},
    ],
)
def test_a_state_of_no_use_leaves_the_prior(state: dict[str, object]) -> None:
    assert IdleDraw(3.0).restore(state) == IdleDraw(3.0)
    assert CoreDraw(0.5).restore({"core_w": 1.0, "weight": state.get("idle_w")}) == CoreDraw(0.5)
