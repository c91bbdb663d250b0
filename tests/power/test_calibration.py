from __future__ import annotations

import random
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeslm.errors import ConfigError
from edgeslm.power.calibration import (
    Line,
    ModelFit,
    Observation,
    Refusal,
    correction_of,
    fit_line,
    fit_model,
    line_calibration,
    model_calibration,
    read_calibration,
    write_calibration,
)
from edgeslm.power.meters.model import Predictors, calibrated_table, predict
from edgeslm.power.port import MeterFacts
from edgeslm.schema.board import PowerTable
from edgeslm.schema.calibration import Calibration

PLUG = MeterFacts("plug", "measured", 10.0, 0.03, 0.5, averages=False, source="test")
WHEN = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
TABLE = PowerTable(
    idle_w=3.0, core_load_w=1.5, max_mhz=1500, frequency_exponent=1.3, source="made up for tests"
)


def line_of(said: list[float], true: list[float]) -> Line:
    line = fit_line(said, true)
    assert isinstance(line, Line), line
    return line


def fit_of(observations: list[Observation], table: PowerTable = TABLE) -> ModelFit:
    fit = fit_model(table, observations)
    assert isinstance(fit, ModelFit), fit
    return fit


@given(
    scale=st.floats(0.5, 2.0),
    offset_w=st.floats(-0.5, 3.0),
    outliers=st.integers(0, 15),
    seed=st.integers(0, 1000),
)
@settings(max_examples=40, deadline=None)
def test_a_line_is_found_through_noise_and_outliers(
    scale: float, offset_w: float, outliers: int, seed: int
) -> None:
    chance = random.Random(seed)
    said = [1.0 + 8.0 * index / 99 for index in range(100)]
    true = [scale * value + offset_w + chance.gauss(0, 0.03) for value in said]
    for index in chance.sample(range(100), outliers):
        true[index] += chance.choice((-1, 1)) * chance.uniform(2.0, 20.0)
    line = line_of(said, true)
    assert line.scale == pytest.approx(scale, abs=0.02)
    assert line.offset_w == pytest.approx(offset_w, abs=0.08)
    assert 0.015 < line.error_w < 0.06


def test_values_that_are_no_numbers_are_left_out() -> None:
    said = [1.0 + 0.1 * index for index in range(60)]
    true = [2.0 * value for value in said]
    true[3], said[9] = float("nan"), float("inf")
    assert line_of(said, true).scale == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("said", "unit"),
    [
        ([2.0 + 0.1 * index for index in range(19)], "pairs"),
        ([2.0 + 0.001 * index for index in range(100)], "W"),
    ],
)
def test_pairs_that_tell_too_little_are_refused_with_the_figures(said: list[float], unit: str) -> None:
    refused = fit_line(said, said)
    assert isinstance(refused, Refusal)
    assert refused.unit == unit
    assert refused.found < refused.needed


def test_a_meter_that_falls_as_the_draw_rises_is_refused() -> None:
    said = [1.0 + 0.1 * index for index in range(60)]
    assert isinstance(fit_line(said, [10.0 - value for value in said]), Refusal)


def observations(
    truth: PowerTable,
    seed: int = 1,
    *,
    slow: bool = False,
    warm: bool = False,
    network: bool = False,
    noise_w: float = 0.02,
    count: int = 300,
) -> list[Observation]:
    """What an instrument says of a board whose figures are `truth`, under loads of all kinds."""
    chance = random.Random(seed)
    seen = []
    for _ in range(count):
        predictors = Predictors(
            busy_cores=chance.choice((0.0, 0.05, 1.0, 2.0, 3.9)),
            frequency_mhz=chance.choice((600.0, 1000.0, 1500.0)) if slow else 1500.0,
            temperature_c=chance.uniform(35, 75) if warm else 50.0,
            network_mb_s=chance.choice((0.0, 0.0, 5.0, 10.0)) if network else 0.0,
        )
        seen.append(Observation(predictors, predict(truth, predictors) + chance.gauss(0, noise_w)))
    return seen


def truth(**figures: float) -> PowerTable:
    return TABLE.model_copy(update={"idle_w": 2.2, "core_load_w": 0.9} | figures)


@given(st.integers(0, 50), st.floats(0.8, 3.0), st.floats(0.3, 2.0))
@settings(max_examples=15, deadline=None)
def test_idle_and_load_of_this_device_are_found(seed: int, idle_w: float, core_load_w: float) -> None:
    fit = fit_of(observations(truth(idle_w=idle_w, core_load_w=core_load_w), seed))
    assert fit.table.idle_w == pytest.approx(idle_w, rel=0.02)
    assert fit.table.core_load_w == pytest.approx(core_load_w, rel=0.02)
    assert 0.01 < fit.error_w < 0.04


@pytest.mark.parametrize("exponent", [1.0, 1.7, 2.8])
def test_the_exponent_of_the_frequency_is_found_where_it_changed(exponent: float) -> None:
    fit = fit_of(observations(truth(frequency_exponent=exponent), slow=True))
    assert fit.table.frequency_exponent == pytest.approx(exponent, abs=0.15)


def test_heat_and_network_are_found_where_they_changed() -> None:
    fit = fit_of(
        observations(truth(temperature_w_per_c=0.02, network_j_per_mb=0.08), warm=True, network=True)
    )
    assert fit.table.temperature_w_per_c == pytest.approx(0.02, rel=0.1)
    assert fit.table.network_j_per_mb == pytest.approx(0.08, rel=0.1)


def test_what_stood_still_keeps_the_tables_figure() -> None:
    table = TABLE.model_copy(update={"temperature_w_per_c": 0.02, "network_j_per_mb": 0.1})
    fit = fit_of(observations(truth(temperature_w_per_c=0.02, network_j_per_mb=0.1)), table)
    assert fit.table.temperature_w_per_c == 0.02
    assert fit.table.network_j_per_mb == 0.1
    assert fit.table.frequency_exponent == 1.3
    assert fit.table.idle_w == pytest.approx(2.2, rel=0.02)


def test_what_moved_and_made_no_difference_is_nothing() -> None:
    table = TABLE.model_copy(update={"temperature_w_per_c": 0.02, "network_j_per_mb": 0.1})
    fit = fit_of(observations(truth(), warm=True, network=True), table)
    assert fit.table.temperature_w_per_c == 0.0
    assert fit.table.network_j_per_mb == 0.0


def test_outliers_do_not_pull_the_model() -> None:
    seen = observations(truth())
    seen = [
        Observation(item.predictors, item.power_w + 6.0) if index % 8 == 0 else item
        for index, item in enumerate(seen)
    ]
    assert fit_of(seen).table.idle_w == pytest.approx(2.2, rel=0.02)


@pytest.mark.parametrize(("count", "unit"), [(10, "pairs"), (200, "busy cores")])
def test_a_board_that_was_not_put_to_work_is_refused(count: int, unit: str) -> None:
    idle = [Observation(Predictors(busy_cores=0.01 * (index % 9)), 2.0) for index in range(count)]
    refused = fit_model(TABLE, idle)
    assert isinstance(refused, Refusal)
    assert refused.unit == unit


def test_a_draw_that_does_not_rise_with_load_is_refused() -> None:
    seen = [Observation(Predictors(busy_cores=float(index % 4)), 5.0 - index % 4) for index in range(100)]
    assert isinstance(fit_model(TABLE, seen), Refusal)


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    line = Line(scale=1.2, offset_w=0.3, error_w=0.05)
    fit = ModelFit(table=truth(frequency_exponent=1.7), error_w=0.04)
    calibration = Calibration(
        board="pi-4b",
        lines=(line_calibration("pmic", line, [2.0, 5.5], PLUG, WHEN),),
        model=model_calibration(fit, [2.0, 5.5], PLUG, WHEN),
    )
    path = tmp_path / "state" / "calibration.yaml"
    write_calibration(path, calibration)
    assert read_calibration(path) == calibration
    assert [entry.name for entry in path.parent.iterdir()] == ["calibration.yaml"]
    found = calibration.line("pmic")
    assert found is not None
    correction = correction_of(found)
    assert correction.apply(2.0) == pytest.approx(2.7)
    assert correction.error_share == 0.03
    assert correction.error_w == pytest.approx(0.5025, abs=0.001)
    assert calibration.line("rapl") is None
    assert calibration.model is not None
    assert calibrated_table(TABLE, calibration.model).frequency_exponent == 1.7


def test_no_file_is_no_calibration(tmp_path: Path) -> None:
    assert read_calibration(tmp_path / "none.yaml") is None


@pytest.mark.parametrize(
    "text", ["", "[", "board: pi-4b\nlines: 5\n", "board: pi-4b\nextra: 1\n", "v: 2\nboard: x\n"]
)
def test_a_file_that_is_no_calibration_is_an_error_that_names_it(tmp_path: Path, text: str) -> None:
    path = tmp_path / "calibration.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_calibration(path)
    assert caught.value.path == str(path)


def test_a_meter_that_is_calibrated_twice_is_refused(tmp_path: Path) -> None:
    entry = line_calibration("pmic", Line(1.0, 0.0, 0.1), [1.0, 2.0], PLUG, WHEN).model_dump(mode="json")
    path = tmp_path / "calibration.yaml"
    path.write_text(yaml.safe_dump({"board": "pi-5", "lines": [entry, entry]}))
    with pytest.raises(ConfigError, match="twice"):
        read_calibration(path)


def test_a_place_that_cannot_be_written_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError):
        write_calibration(tmp_path / "file" / "calibration.yaml", Calibration(board="pi-5"))
