from __future__ import annotations

import math
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from edgeslm.errors import ConfigError
from edgeslm.power.boards import load_boards
from edgeslm.schema.scenario import Scenario
from edgeslm.sim.board_driver import SimBoard
from edgeslm.sim.board_scenario import (
    MAX_FILE_BYTES,
    faults_at,
    inputs_at,
    load_scenario,
    next_change_s,
    time_of_day,
)

FILES = sorted(
    entry.name for entry in resources.files("edgeslm.sim").joinpath("scenarios").iterdir() if entry.is_file()
)
TIMES = st.floats(0, 200_000)
SEEDS = st.integers(0, 2**32)
LOADS = st.one_of(
    st.fixed_dictionaries({"shape": st.just("constant"), "busy_cores": st.floats(0, 4)}),
    st.fixed_dictionaries(
        {
            "shape": st.just("square"),
            "low_cores": st.floats(0, 1),
            "high_cores": st.floats(2, 4),
            "period_s": st.floats(0.02, 5000),
            "high_share": st.floats(0.01, 0.99),
        }
    ),
    st.fixed_dictionaries(
        {
            "shape": st.just("bursts"),
            "busy_cores": st.floats(1, 4),
            "every_s": st.floats(3, 5000),
            "length_s": st.floats(0.1, 2),
        }
    ),
)


def scenario(**fields: Any) -> Scenario:
    return Scenario.model_validate({"name": "test", "title": "test", **fields})


def cores(given: Scenario, seed: int, time_s: float) -> float:
    return inputs_at(given, seed, time_s, 15.0).busy_cores


# --- files --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file_name", FILES)
def test_every_shipped_scenario_is_named_after_its_file_and_lasts_two_days(file_name: str) -> None:
    shipped = load_scenario(file_name.removesuffix(".yaml"))
    board = SimBoard(load_boards()["pi-4b"], shipped, max_step_s=60.0)
    state = board.advance(2 * 86_400.0)
    assert f"{shipped.name}.yaml" == file_name
    assert state.time_s == pytest.approx(2 * 86_400.0)
    assert state.energy_j > 86_400.0


def test_shipped_scenarios_do_what_they_promise() -> None:
    def states(name: str, duration_s: float, dt_s: float) -> list[Any]:
        board = SimBoard(load_boards()["pi-4b"], load_scenario(name))
        return [board.advance(dt_s) for _ in range(round(duration_s / dt_s))]

    assert max(state.throttled_word for state in states("hot-afternoon", 3600, 10)) == 0x60006
    brown_out = states("brown-out", 240, 1)
    assert {state.flags_since_boot for state in brown_out} == {0, 0x5}
    assert brown_out[-1].boots == 2
    assert {state.alive for state in states("dark-days", 86_400, 600)} == {True, False}
    solar = states("solar-day", 86_400, 600)
    assert all(state.alive for state in solar)
    assert min(state.battery_w for state in solar) < -5 < 0 < max(state.battery_w for state in solar)
    assert states("desk", 60, 60)[0].flags_since_boot == 0


def test_a_scenario_of_ones_own_is_read_from_its_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({"name": "mine", "title": "My own", "seed": 7}))
    assert load_scenario(str(path)).seed == 7


@pytest.mark.parametrize(
    "content",
    [b"name: [unclosed", b"name: x\n", b"\xff\xfe", b"#" * (MAX_FILE_BYTES + 1), None],
    ids=["no YAML", "no scenario", "no UTF-8", "too large", "no file"],
)
def test_a_file_that_is_no_scenario_is_refused_by_name(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "broken.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load_scenario(str(path))
    assert caught.value.path == str(path)


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="solar-day"):
        load_scenario("lunar-night")


@pytest.mark.parametrize(
    "fields",
    [
        {"speed": 3},
        {"load": {"shape": "bursts", "busy_cores": 1, "every_s": 10, "length_s": 8}},
        {"load": {"shape": "square", "high_cores": 1, "period_s": 0}},
        {"load": {"shape": "zigzag"}},
        {"panel": {"peak_w": 5, "sunrise_h": 20, "sunset_h": 6}},
        {"battery": {"capacity_wh": 0}},
        {"meters": [{"kind": "ina226"}, {"kind": "ina226"}]},
        {"meters": [{"kind": "ina219", "update_interval_ms": 10}]},
        {"meters": [{"kind": "ina226", "counter_range_uj": 10_000_000}]},
        {"faults": [{"meter": "ina226", "fault": "gone", "at_s": 1}]},
        {"meters": [{"kind": "rapl"}], "faults": [{"meter": "rapl", "fault": "drifting", "at_s": 1}]},
        {"battery": {"capacity_wh": 1}, "faults": [{"meter": "battery", "fault": "negative", "at_s": 1}]},
        {"events": [{"at_s": 1}]},
        {"events": [{"at_s": -1, "sun": 0}]},
        {"events": [{"at_s": float("nan"), "sun": 0}]},
    ],
    ids=str,
)
def test_a_scenario_that_cannot_be_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        scenario(**fields)


# --- what acts on the board ---------------------------------------------------------------------------------


@given(LOADS, SEEDS, TIMES, st.floats(0.001, 0.999))
def test_work_stays_as_it_is_until_the_next_change(
    load: dict[str, Any], seed: int, time_s: float, between: float
) -> None:
    given_load = scenario(load=load)
    change_s = next_change_s(given_load, seed, time_s)
    assert change_s > time_s
    within_s = time_s + between * (min(change_s, time_s + 1e6) - time_s)
    if within_s < change_s:
        assert cores(given_load, seed, within_s) == cores(given_load, seed, time_s)


@given(LOADS, SEEDS, TIMES)
def test_going_from_change_to_change_gets_ahead(load: dict[str, Any], seed: int, time_s: float) -> None:
    given_load = scenario(load=load)
    levels = {cores(given_load, seed, time_s)}
    start_s = time_s
    for _ in range(6):
        time_s = next_change_s(given_load, seed, time_s)
        if math.isinf(time_s):
            return
        levels.add(cores(given_load, seed, time_s))
    assert len(levels) == 2
    assert time_s - start_s > load.get("period_s", load.get("every_s", 0.0)) * 0.99


def test_work_has_the_mean_that_its_shape_promises() -> None:
    square = scenario(load={"shape": "square", "high_cores": 4, "period_s": 0.02, "high_share": 0.25})
    assert sum(cores(square, 1, k * 0.0007) for k in range(10_000)) / 10_000 == pytest.approx(1.0, rel=0.01)
    bursts = scenario(load={"shape": "bursts", "busy_cores": 2, "every_s": 60, "length_s": 15})
    assert sum(cores(bursts, 1, k * 1.0) for k in range(60_000)) / 60_000 == pytest.approx(0.5, rel=0.02)


def test_the_sun_rises_sets_and_is_dimmed_by_clouds_that_follow_from_the_seed() -> None:
    def day(seed: int, clouds: float) -> list[float]:
        sunny = scenario(start_h=0, panel={"peak_w": 20, "sunrise_h": 6, "sunset_h": 18, "clouds": clouds})
        return [inputs_at(sunny, seed, hour * 3600.0, 15.0).solar_w for hour in range(48)]

    clear, cloudy = day(1, 0.0), day(1, 0.8)
    assert clear[12] == pytest.approx(20.0)
    assert clear[9] == pytest.approx(20 * math.sin(math.pi / 4))
    for hour in (0, 5, 6, 18, 23):
        assert clear[hour] == cloudy[hour] == 0.0
    for shaded, open_sky in zip(cloudy, clear, strict=True):
        assert 0.2 * open_sky <= shaded <= open_sky
    assert clear[:24] == pytest.approx(clear[24:])
    assert cloudy[:24] != pytest.approx(cloudy[24:])
    assert cloudy == day(1, 0.8)
    assert cloudy != day(2, 0.8)


def test_the_air_is_hottest_at_its_hour() -> None:
    warm = scenario(start_h=0, air={"mean_c": 20, "swing_c": 5, "hottest_h": 15})
    by_hour = [inputs_at(warm, 1, hour * 3600.0, 15.0).air_c for hour in range(24)]
    assert by_hour.index(max(by_hour)) == 15
    assert (max(by_hour), min(by_hour)) == (pytest.approx(25), pytest.approx(15))


def test_an_event_takes_the_place_of_what_would_be_and_passes() -> None:
    eventful = scenario(
        start_h=12,
        panel={"peak_w": 10},
        load={"shape": "constant", "busy_cores": 1},
        events=[{"at_s": 10, "for_s": 5, "supply_w": 3, "air_c": 50, "busy_cores": 4, "sun": 0.5}],
    )
    usual = inputs_at(eventful, 1, 9.99, 15.0)
    during = inputs_at(eventful, 1, 10.0, 15.0)
    assert (usual.supply_w, usual.busy_cores) == (15.0, 1)
    assert during == replace(
        usual, supply_w=3, air_c=50, busy_cores=4, solar_w=pytest.approx(usual.solar_w / 2, rel=1e-3)
    )
    assert inputs_at(eventful, 1, 15.0, 15.0).supply_w == 15.0
    assert [next_change_s(eventful, 1, at_s) for at_s in (0.0, 10.0, 15.0)] == [10.0, 15.0, math.inf]


def test_the_callers_work_takes_the_place_of_the_scenarios() -> None:
    eventful = scenario(events=[{"at_s": 0, "busy_cores": 4}])
    assert inputs_at(eventful, 1, 1.0, 15.0, busy_cores=0.5).busy_cores == 0.5


def test_a_fault_holds_from_its_time_for_its_length() -> None:
    faulty = scenario(
        meters=[{"kind": "ina226"}],
        faults=[
            {"meter": "ina226", "fault": "gone", "at_s": 10, "for_s": 5},
            {"meter": "ina226", "fault": "stuck", "at_s": 20},
        ],
    )
    seen = [faults_at(faulty, time_s).get("ina226") for time_s in (9.9, 10.0, 14.0, 15.0, 1e6)]
    assert seen == [None, ("gone", 0.0), ("gone", 4.0), None, ("stuck", 1e6 - 20)]


def test_the_simulated_clock_goes_round() -> None:
    late = scenario(start_h=23.5)
    assert [time_of_day(late, time_s) for time_s in (0.0, 1799.9, 3661.0)] == [
        "23:30:00",
        "00:00:00",
        "00:31:01",
    ]
