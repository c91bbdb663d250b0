from __future__ import annotations

import random

import pytest

from edgeslm.power.agreement import Contradiction, Difference, Relation, blame, worst_of
from edgeslm.power.boards import load_boards
from edgeslm.power.health import limits_of
from edgeslm.power.port import MeterFacts

BOARD = load_boards()["pi-4b"]
LIMITS = limits_of(BOARD.power, BOARD.cores)
MODEL = MeterFacts("model", "estimated", 0.02, 0.2, 0.0, averages=True, source="table")


def facts(name: str, share: float = 0.01, watts: float = 0.01, period_s: float = 0.05) -> MeterFacts:
    return MeterFacts(name, "measured", period_s, share, watts, averages=True, source="test")


def side_by_side(
    one: MeterFacts, other: MeterFacts, apart_w: float, scatter_w: float, seconds: float, seed: int = 5
) -> Difference:
    chance = random.Random(seed)
    difference = Difference(one, other)
    step_s = max(0.1, one.period_s, other.period_s)
    for step in range(int(seconds / step_s)):
        level_w = 4.0 + chance.choice((0.0, 2.0))
        difference.add(step * step_s, level_w, level_w + apart_w + chance.gauss(0, scatter_w))
    return difference


def test_two_meters_within_their_errors_agree() -> None:
    sigmas = side_by_side(facts("a"), facts("b"), apart_w=0.05, scatter_w=0.02, seconds=60).sigmas()
    assert sigmas is not None
    assert sigmas < 2


def test_two_meters_beyond_their_errors_disagree() -> None:
    sigmas = side_by_side(facts("a"), facts("b"), apart_w=0.5, scatter_w=0.02, seconds=60).sigmas()
    assert sigmas is not None
    assert sigmas > 3


def test_a_moment_of_difference_is_no_disagreement() -> None:
    assert side_by_side(facts("a"), facts("b"), apart_w=5.0, scatter_w=0.0, seconds=10).sigmas() is None


@pytest.mark.parametrize("seed", range(20))
def test_meters_that_look_at_different_moments_scatter_without_disagreeing(seed: int) -> None:
    plug = facts("plug", share=0.03, watts=0.1, period_s=10.0)
    for apart_w, disagree in ((0.0, False), (5.0, True)):
        sigmas = side_by_side(facts("a"), plug, apart_w, scatter_w=1.5, seconds=1200, seed=seed).sigmas()
        assert sigmas is not None
        assert (sigmas > 3) == disagree


def relation(*phases: tuple[float, float, float], bursts_w: float = 2.0, seconds: float = 300.0) -> Relation:
    """Phases of `seconds` each, in which an instrument shows gain times the model's load plus what is added."""
    chance = random.Random(3)
    made = Relation(LIMITS)
    at_s = 0.0
    for gain, added_w, model_w in phases:
        for _ in range(int(seconds * 10)):
            at_s += 0.1
            load_w = bursts_w * (chance.random() < 0.4)
            made.add(at_s, model_w + load_w, model_w + gain * load_w + added_w + chance.gauss(0, 0.02))
    return made


def test_an_instrument_that_goes_with_the_model_did_not_shift() -> None:
    shift = relation((1.3, 0.4, 2.7)).shift()
    assert shift is not None
    assert abs(shift) < 0.02


def test_an_instrument_that_left_the_model_shifted() -> None:
    shift = relation((1.0, 0.0, 2.7), (1.0, 1.0, 2.7)).shift()
    assert shift is not None
    assert shift > 0.15


@pytest.mark.parametrize(
    ("phases", "possible"),
    [
        ([(1.0, 0.0, 2.7)], True),
        ([(1.0, 3.5, 2.7)], True),
        ([(1.0, -0.9, 2.7)], True),
        ([(1.0, 12.0, 2.7)], False),
        ([(0.3, -2.2, 2.7)], False),
        ([(1.0, 0.0, 2.7), (1.0, 4.0, 2.7)], True),
        ([(1.0, 0.0, 2.7), (1.6, 0.0, 2.7)], True),
        ([(1.0, 0.0, 2.7), (3.0, 0.0, 2.7)], False),
    ],
    ids=[
        "as expected",
        "a disk hangs on it",
        "newer firmware",
        "more than its ports can feed",
        "less than the processor needs",
        "a disk was plugged in",
        "heavier instructions",
        "thrice the response to load",
    ],
)
def test_an_instrument_alone_is_held_against_what_is_possible(
    phases: list[tuple[float, float, float]], possible: bool
) -> None:
    assert (relation(*phases).impossible(MODEL) is None) == possible


def test_a_steady_load_says_nothing_of_the_response_to_load() -> None:
    assert relation((1.0, 0.0, 2.7), (9.0, 0.0, 2.7), bursts_w=0.0).impossible(MODEL) is None


def test_a_model_that_is_a_guess_is_no_witness_of_the_response_to_load() -> None:
    guess = MeterFacts("model", "estimated", 0.02, 1.0, 0.0, averages=True, source="table")
    assert relation((1.0, 0.0, 2.7), (3.0, 0.0, 2.7)).impossible(guess) is None


def apart(one: str, other: str, one_w: float, other_w: float, sigmas: float = 4.0) -> Contradiction:
    return Contradiction(one, other, one_w, other_w, sigmas)


SOUND = relation((1.0, 0.0, 2.7))
SHIFTED = relation((1.0, 0.0, 2.7), (1.0, 0.6, 2.7))
NEW = relation((1.0, 0.0, 2.7), seconds=40.0)


def test_the_odd_one_out_of_three_is_wrong() -> None:
    found = [apart("a", "b", 3.0, 5.0), apart("b", "c", 5.0, 3.1)]
    relations = {"a": NEW, "b": NEW, "c": NEW}
    assert blame(found, [("a", "c")], relations, worst="a") == "b"


def test_of_two_the_one_that_left_the_model_is_wrong() -> None:
    found = [apart("a", "b", 4.2, 3.6)]
    assert blame(found, [], {"a": SHIFTED, "b": SOUND}, worst="b") == "a"
    assert blame(found, [], {"a": SOUND, "b": SHIFTED}, worst="a") == "b"


def test_of_two_the_one_that_is_far_from_the_model_is_wrong() -> None:
    found = [apart("a", "b", 3.6, 9.0)]
    assert blame(found, [], {"a": NEW, "b": NEW}, worst="a") == "b"


def test_where_nothing_tells_nobody_is_blamed_until_they_are_far_apart() -> None:
    relations = {"a": NEW, "b": NEW}
    assert blame([apart("a", "b", 3.4, 3.7)], [], relations, worst="b") is None
    assert blame([apart("a", "b", 3.4, 3.7, sigmas=7.0)], [], relations, worst="b") == "b"


def test_where_all_agree_nobody_is_blamed() -> None:
    assert blame([], [("a", "b")], {}, worst="a") is None


def test_the_slow_and_the_inexact_are_the_worst() -> None:
    known = {"ina": facts("ina"), "pmic": facts("pmic", share=0.05), "plug": facts("plug", period_s=10.0)}
    assert worst_of(known, ["ina", "pmic"], 4.0) == "pmic"
    assert worst_of(known, ["ina", "pmic", "plug"], 4.0) == "plug"
