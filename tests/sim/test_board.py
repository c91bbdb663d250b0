from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeslm.errors import ConfigError
from edgeslm.power.boards import load_boards
from edgeslm.schema.board import Board
from edgeslm.schema.scenario import BatteryPack
from edgeslm.sim.board import BoardState, Inputs, Plant, initial, plant_of, step

PLANT = Plant(
    cores=4,
    idle_w=2.7,
    core_load_w=0.93,
    max_mhz=1500,
    min_mhz=600,
    frequency_exponent=2.0,
    temperature_w_per_c=0.01,
    network_j_per_mb=0.2,
    supply_w=15.0,
    throttle_c=80.0,
    resistance_c_per_w=9.0,
    time_constant_s=100.0,
)
UNLEAKING = replace(PLANT, temperature_w_per_c=0.0)
PACK = BatteryPack(capacity_wh=10, start_share=0.5, charge_efficiency=0.9, max_charge_w=8, max_discharge_w=10)
IDLE = Inputs(busy_cores=0.0, air_c=22.0, supply_w=15.0)
BUSY = replace(IDLE, busy_cores=4.0)
DARK = replace(IDLE, supply_w=0.0)


def after(plant: Plant, *spells: tuple[Inputs, float], state: BoardState | None = None) -> BoardState:
    """The board after each spell of inputs, in steps of at most a second."""
    state = state or initial(plant, spells[0][0])
    for inputs, duration_s in spells:
        steps = math.ceil(duration_s)
        for _ in range(steps):
            state = step(plant, state, inputs, duration_s / steps)
    return state


# --- power and heat -----------------------------------------------------------------------------------------


@given(
    busy=st.floats(0, 4),
    air_c=st.floats(-20, 5),
    cap_mhz=st.none() | st.floats(300, 2000),
    megabytes=st.floats(0, 5),
)
def test_the_draw_is_what_the_power_table_says(
    busy: float, air_c: float, cap_mhz: float | None, megabytes: float
) -> None:
    inputs = Inputs(busy, air_c, 15.0, network_mb_per_s=megabytes, cap_mhz=cap_mhz)
    settled = after(PLANT, (inputs, 3000.0))
    mhz = min(max(1500.0 if cap_mhz is None else cap_mhz, 600.0), 1500.0)
    by_table = 2.7 + busy * 0.93 * (mhz / 1500) ** 2 + 0.01 * (settled.temperature_c - 25) + 0.2 * megabytes
    assert settled.power_w == pytest.approx(by_table, rel=1e-6)
    assert settled.temperature_c == pytest.approx(air_c + 9.0 * by_table, abs=1e-3)
    assert settled.frequency_mhz == (pytest.approx(mhz) if busy > 0 else 600)


@given(st.floats(0, 4), st.floats(0.05, 300), st.integers(1, 40))
def test_one_long_step_equals_many_short_ones(busy: float, duration_s: float, count: int) -> None:
    inputs = Inputs(busy, 10.0, 15.0)
    start = initial(PLANT, inputs)
    whole, parts = step(PLANT, start, inputs, duration_s), start
    for _ in range(count):
        parts = step(PLANT, parts, inputs, duration_s / count)
    assert parts.energy_j == pytest.approx(whole.energy_j, rel=1e-9)
    assert parts.temperature_c == pytest.approx(whole.temperature_c, abs=1e-9)
    assert parts.busy_core_s == pytest.approx(whole.busy_core_s)


def test_energy_is_the_integral_of_the_power() -> None:
    start = initial(PLANT, BUSY)
    # The same law, integrated by Euler's method in steps of a millisecond.
    temperature_c, energy_j, dt_s = start.temperature_c, 0.0, 0.001
    for _ in range(60_000):
        power_w = 2.7 + 4 * 0.93 + 0.01 * (temperature_c - 25)
        energy_j += power_w * dt_s
        temperature_c += (22.0 + 9.0 * power_w - temperature_c) / 100.0 * dt_s
    state = step(PLANT, start, BUSY, 60.0)
    assert state.energy_j == pytest.approx(energy_j, rel=1e-6)
    assert state.temperature_c == pytest.approx(temperature_c, abs=1e-3)


def test_a_board_without_leakage_is_63_percent_warm_after_its_time_constant() -> None:
    start = initial(UNLEAKING, IDLE)
    state = step(UNLEAKING, start, BUSY, 100.0)
    final_c = 22.0 + 9.0 * (2.7 + 4 * 0.93)
    assert (state.temperature_c - start.temperature_c) / (final_c - start.temperature_c) == pytest.approx(
        1 - math.exp(-1)
    )


def test_a_board_begins_as_warm_as_idling_keeps_it() -> None:
    assert after(PLANT, (IDLE, 500.0)).temperature_c == pytest.approx(initial(PLANT, IDLE).temperature_c)


def test_no_more_cores_work_than_there_are() -> None:
    assert after(PLANT, (replace(BUSY, busy_cores=40.0), 10.0)) == after(PLANT, (BUSY, 10.0))


def test_the_frequency_stays_up_for_a_moment_after_work() -> None:
    state = after(PLANT, (BUSY, 5.0))
    assert step(PLANT, state, IDLE, 0.5).frequency_mhz == 1500
    assert step(PLANT, state, IDLE, 1.5).frequency_mhz == 600


# --- what the firmware does ---------------------------------------------------------------------------------


def test_a_hot_board_is_slowed_until_it_stays_within_the_band() -> None:
    hot = replace(BUSY, air_c=45.0)
    state = after(PLANT, (hot, 2000.0))
    assert 80.0 < state.temperature_c < 85.0
    assert 600 < state.frequency_mhz < 1500
    assert state.throttled_word == 0x60006
    later = after(PLANT, (hot, 100.0), state=state)
    assert later.temperature_c == pytest.approx(state.temperature_c, abs=1e-3)


def test_a_board_that_cooled_down_remembers_that_it_was_slowed() -> None:
    state = after(PLANT, (replace(BUSY, air_c=45.0), 2000.0), (IDLE, 300.0))
    assert state.throttled_word == 0x60000
    assert after(PLANT, (BUSY, 1.0), state=state).frequency_mhz == 1500


def test_a_weak_supply_slows_the_board_until_it_is_better() -> None:
    weak = replace(BUSY, supply_w=5.0)
    state = after(PLANT, (BUSY, 2.0), (weak, 1.0))
    assert state.throttled_word == 0x50005
    state = after(PLANT, (weak, 1.0), state=state)
    assert state.throttled_word == 0x50004
    assert state.frequency_mhz == 600
    assert after(PLANT, (BUSY, 1.0), state=state).frequency_mhz == 600
    recovered = after(PLANT, (BUSY, 6.0), state=state)
    assert recovered.frequency_mhz == 1500
    assert recovered.throttled_word == 0x50000


def test_the_voltage_reaches_its_limit_where_the_supply_gives_all_it_can() -> None:
    all_w = UNLEAKING.idle_w + 4 * UNLEAKING.core_load_w
    for share, is_low in ((1.01, False), (0.99, True)):
        state = step(UNLEAKING, initial(UNLEAKING, IDLE), replace(BUSY, supply_w=share * all_w), 0.1)
        assert bool(state.flags & 1) == is_low
    assert initial(UNLEAKING, IDLE).supply_v == 5.1


@pytest.mark.parametrize("supply_w", [0.0, 1.0])
def test_a_supply_that_breaks_down_takes_the_board_with_it(supply_w: float) -> None:
    running = after(PLANT, (BUSY, 10.0))
    off = after(PLANT, (replace(BUSY, supply_w=supply_w), 400.0), state=running)
    assert (off.alive, off.power_w, off.supply_v, off.frequency_mhz) == (False, 0.0, 0.0, 0)
    assert off.energy_j == running.energy_j
    assert off.busy_core_s == running.busy_core_s
    assert off.temperature_c == pytest.approx(22.0, abs=1.5)
    again = after(PLANT, (BUSY, 1.0), state=off)
    assert (again.alive, again.boots, again.throttled_word) == (True, 2, 0)


# --- battery ------------------------------------------------------------------------------------------------

WITH_BATTERY = replace(PLANT, battery=PACK)


def test_what_sun_and_supply_lack_comes_from_the_battery() -> None:
    start = initial(WITH_BATTERY, DARK)
    state = after(WITH_BATTERY, (replace(DARK, solar_w=1.0), 600.0))
    assert state.battery_w == pytest.approx(state.power_w - 1.0)
    assert start.battery_j - state.battery_j == pytest.approx(state.energy_j - 600.0)
    assert not start.external
    assert state.external


@pytest.mark.parametrize(("solar_w", "charging_w"), [(5.0, 5.0 - 2.7), (50.0, 8.0)])
def test_what_is_left_over_charges_the_battery_within_its_limit(solar_w: float, charging_w: float) -> None:
    plant = replace(UNLEAKING, battery=PACK)
    start = initial(plant, DARK)
    state = after(plant, (replace(DARK, solar_w=solar_w), 100.0))
    assert state.battery_w == pytest.approx(-charging_w)
    assert state.battery_j - start.battery_j == pytest.approx(100.0 * charging_w * 0.9)


@given(
    st.lists(st.tuples(st.floats(0, 4), st.floats(0, 12), st.floats(0, 12), st.floats(1, 7200)), max_size=12)
)
def test_a_battery_never_holds_less_than_nothing_or_more_than_all(
    spells: list[tuple[float, float, float, float]],
) -> None:
    state = initial(WITH_BATTERY, DARK)
    for busy, supply_w, solar_w, duration_s in spells:
        before = state
        inputs = Inputs(busy, 22.0, supply_w, solar_w)
        state = step(WITH_BATTERY, state, inputs, duration_s)
        assert -1e-6 <= state.battery_j <= 36_000.0 + 1e-6
        assert state.energy_j >= before.energy_j
        stored = 0.9 if state.battery_w < 0 else 1.0
        gained_j = state.battery_j - before.battery_j
        assert gained_j == pytest.approx(-state.battery_w * duration_s * stored, abs=1e-6)


def test_a_board_goes_out_on_an_empty_battery_and_waits_until_it_is_worth_starting() -> None:
    off = after(WITH_BATTERY, (DARK, 4 * 3600.0))
    assert (off.alive, off.battery_j) == (False, 0.0)
    some_sun = replace(DARK, solar_w=4.0)
    waiting = after(WITH_BATTERY, (some_sun, 800.0), state=off)
    assert not waiting.alive
    assert 0 < waiting.battery_j < PACK.restart_share * 36_000
    assert after(WITH_BATTERY, (some_sun, 400.0), state=waiting).alive
    assert after(WITH_BATTERY, (IDLE, 1.0), state=waiting).alive


# --- boards -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("board", load_boards().values(), ids=lambda board: board.name)
def test_every_board_idles_at_its_own_figure_on_its_own_supply(board: Board) -> None:
    plant = plant_of(board)
    state = after(plant, (Inputs(0.0, 22.0, plant.supply_w), 10.0))
    assert state.alive
    assert state.flags == 0
    leaked_w = board.power.temperature_w_per_c * (state.temperature_c - 25.0)
    assert state.power_w == pytest.approx(board.power.idle_w + leaked_w)


def test_a_board_that_would_heat_up_without_end_is_refused() -> None:
    board = load_boards()["pi-4b"]
    runaway = board.model_copy(
        update={"thermal": None, "power": board.power.model_copy(update={"temperature_w_per_c": 0.2})}
    )
    with pytest.raises(ConfigError, match="without end"):
        plant_of(runaway)
