"""Before and after: what changed is seen, what did not is not, as often as 95 % promise."""

from __future__ import annotations

import random

import pytest

from edgeslm.fleet.metrics.compare import paired, unpaired


def pairs(chance: random.Random, count: int, change: float, noise: float = 0.05) -> list[tuple[float, float]]:
    found = []
    for _ in range(count):
        level = chance.uniform(1.0, 9.0)
        found.append(
            (level * chance.lognormvariate(0, noise), level * (1 + change) * chance.lognormvariate(0, noise))
        )
    return found


@pytest.mark.parametrize("count", [3, 8, 40])
def test_the_bounds_hold_the_true_change_in_ninety_five_of_a_hundred_cases(count: int) -> None:
    chance = random.Random(count)
    held = 0
    for _ in range(600):
        found = paired(pairs(chance, count, 0.1), better="lower", is_ratio=True)
        assert found.low is not None
        assert found.high is not None
        held += found.low <= 0.1 <= found.high
    assert 0.93 <= held / 600 <= 0.97


def test_a_change_is_seen_although_devices_differ_far_more() -> None:
    found = paired(pairs(random.Random(1), 20, 0.1), better="lower", is_ratio=True)
    assert found.verdict == "worse"
    assert found.change == pytest.approx(0.1, abs=0.03)
    assert paired(pairs(random.Random(1), 20, 0.1), better="higher", is_ratio=True).verdict == "better"
    assert paired(pairs(random.Random(1), 20, 0.0), better="higher", is_ratio=True).verdict == (
        "no difference shown"
    )


def test_one_device_is_held_against_itself_by_steps_of_time() -> None:
    chance = random.Random(1)
    before = [4.0 * chance.lognormvariate(0, 0.1) for _ in range(24)]
    after = [5.0 * chance.lognormvariate(0, 0.1) for _ in range(24)]
    found = unpaired(before, after, better="lower", is_ratio=True)
    assert (found.verdict, found.basis, found.count) == ("worse", "time", 48)
    assert found.change == pytest.approx(0.25, abs=0.08)


@pytest.mark.parametrize(("before", "after"), [([], []), ([1.0], [2.0]), ([0.0, 0.0], [1.0, 2.0])])
def test_too_little_is_said_to_be_too_little(before: list[float], after: list[float]) -> None:
    found = unpaired(before, after, better="lower", is_ratio=True)
    assert (found.verdict, found.low) == ("too little data", None)


def test_values_that_never_vary_give_bounds_of_no_width() -> None:
    found = paired([(2.0, 2.0), (3.0, 3.0)], better="lower", is_ratio=True)
    assert (found.low, found.high, found.verdict) == (0.0, 0.0, "no difference shown")
    assert unpaired([2.0, 2.0], [2.0, 2.0], better="lower", is_ratio=False).verdict == "no difference shown"


def test_a_figure_that_may_be_zero_is_told_in_its_unit() -> None:
    found = paired([(0.0, 2.0), (1.0, 3.0), (0.5, 2.6)], better="lower", is_ratio=False)
    assert found.change == pytest.approx(2.0333, abs=1e-3)
    assert found.verdict == "worse"
