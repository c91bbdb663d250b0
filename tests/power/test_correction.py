from __future__ import annotations

import math
import random
from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeslm.power.correction import OnlineCorrection, fit
from edgeslm.power.port import MeterFacts, Reading

MODEL = MeterFacts("model", "estimated", 0.02, 0.2, 0.0, averages=True, source="table")
PLUG = MeterFacts("plug", "measured", 10.0, 0.03, 0.1, averages=False, source="test")
SHELLY = MeterFacts("plug", "measured", 10.0, 0.03, 0.1, averages=False, source="test")
GAUGE = MeterFacts("gauge", "measured", 5.0, 0.03, 0.1, averages=True, source="test")
INA = MeterFacts("hwmon:ina226@1-0040", "measured", 0.035, 0.006, 0.003, averages=True, source="test")


def truth(model_w: float) -> float:
    """What a board draws whose model is off by scale and level."""
    return 1.25 * model_w + 0.4


def load_w(at_s: float) -> float:
    """A bursty load as the model sees it, sometimes denser and sometimes thinner."""
    density = 0.4 + 0.35 * math.sin(at_s / 40.0)
    return 5.0 if (at_s * 0.37) % 1.0 < density else 2.5


def teach(
    correction: OnlineCorrection,
    facts: MeterFacts,
    seconds: float,
    *,
    counter: bool = False,
    start_s: float = 0.0,
    extra_w: float = 0.0,
) -> None:
    """Ten model values a second, and an instrument that speaks once in its period."""
    energy_j = true_j = since_j = 0.0
    last_report_s = start_s
    for step in range(1, int(seconds * 10)):
        now_s = start_s + step / 10
        expected_w = load_w(now_s)
        energy_j += expected_w * 0.1
        true_j += (truth(expected_w) + extra_w) * 0.1
        since_j += (truth(expected_w) + extra_w) * 0.1
        correction.model_says(Reading(now_s, expected_w))
        if now_s - last_report_s >= facts.period_s - 1e-9:
            mean_w = since_j / (now_s - last_report_s)
            # A single value of a plug is itself the mean over a second.
            point_w = sum(truth(load_w(now_s - back / 10)) for back in range(10)) / 10
            power_w = (
                mean_w if facts.averages else point_w if facts.period_s > 1 else truth(expected_w) + extra_w
            )
            correction.reference_says(facts, Reading(now_s, power_w, true_j if counter else None))
            last_report_s, since_j = now_s, 0.0


@pytest.mark.parametrize(
    ("facts", "counter"),
    [(PLUG, False), (SHELLY, True), (GAUGE, False), (INA, False)],
    ids=lambda value: str(value)[:20],
)
def test_the_model_becomes_as_true_as_the_instrument(facts: MeterFacts, counter: bool) -> None:
    correction = OnlineCorrection(MODEL)
    teach(correction, facts, 900.0, counter=counter)
    for model_w in (2.5, 3.5, 5.0):
        corrected = correction.corrected(Reading(1000.0, model_w))
        assert corrected.power_w == pytest.approx(truth(model_w), rel=0.02)
        assert corrected.at_s == 1000.0
    said = correction.facts()
    assert said.meter_class == "calibrated"
    assert said.name == "model"
    assert said.error_share < 0.06
    assert facts.name in said.source


def test_before_there_is_enough_evidence_nothing_is_corrected() -> None:
    correction = OnlineCorrection(MODEL)
    teach(correction, PLUG, 45.0)
    assert correction.correction is None
    reading = Reading(1.0, 3.0)
    assert correction.corrected(reading) is reading
    assert correction.facts() is MODEL


def test_under_a_steady_load_the_level_is_learned_and_the_shape_is_kept() -> None:
    pairs = deque([(2.5, 3.5)] * 20)
    line = fit(pairs, PLUG)
    assert line.apply(2.5) == pytest.approx(3.5, rel=0.02)
    assert 0.7 < line.scale < 1.4


@given(
    scale=st.floats(0.6, 1.8),
    offset_w=st.floats(-1.0, 2.0),
    outliers=st.integers(0, 8),
    seed=st.integers(0, 500),
)
@settings(max_examples=60, deadline=None)
def test_single_outliers_do_not_pull_the_line(
    scale: float, offset_w: float, outliers: int, seed: int
) -> None:
    chance = random.Random(seed)
    pairs = []
    for index in range(64):
        model_w = 2.5 + 3.0 * chance.random()
        noise_w = chance.uniform(3.0, 9.0) if index in range(0, 8 * outliers, 8) else chance.gauss(0, 0.02)
        pairs.append((model_w, scale * model_w + offset_w + noise_w))
    line = fit(deque(pairs), PLUG)
    for model_w in (3.0, 4.0, 5.0):
        assert line.apply(model_w) == pytest.approx(scale * model_w + offset_w, abs=0.15)


@given(st.lists(st.tuples(st.floats(0, 50), st.floats(-10, 500)), min_size=5, max_size=64))
def test_whatever_comes_in_the_line_stays_within_bounds(pairs: list[tuple[float, float]]) -> None:
    line = fit(deque(pairs), PLUG)
    assert 0.3 <= line.scale <= 3.0
    assert math.isfinite(line.offset_w)
    assert math.isfinite(line.error_share)


def test_what_hangs_on_the_board_later_is_learned_too() -> None:
    correction = OnlineCorrection(MODEL)
    teach(correction, INA, 600.0)
    teach(correction, INA, 600.0, start_s=700.0, extra_w=3.0)
    assert correction.corrected(Reading(1400.0, 3.5)).power_w == pytest.approx(truth(3.5) + 3.0, rel=0.03)


def test_values_from_before_the_model_spoke_are_left_out() -> None:
    correction = OnlineCorrection(MODEL)
    for step in range(100):
        correction.model_says(Reading(1000.0 + step / 10, 3.0))
        correction.reference_says(PLUG, Reading(5.0 + step, 50.0))
    assert correction.correction is None


def test_a_gap_in_the_instrument_starts_a_new_window() -> None:
    correction = OnlineCorrection(MODEL)
    teach(correction, INA, 100.0)
    line = correction.correction
    assert line is not None
    correction.model_says(Reading(5000.0, 2.5))
    correction.reference_says(INA, Reading(5000.0, 400.0))
    assert correction.correction is line


def test_an_instrument_that_is_lost_leaves_what_was_learned() -> None:
    correction = OnlineCorrection(MODEL)
    teach(correction, INA, 200.0)
    line = correction.correction
    correction.reference_says(PLUG, Reading(201.0, 9.0))
    assert correction.correction is line
