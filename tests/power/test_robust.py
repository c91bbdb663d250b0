from __future__ import annotations

import numpy as np
import pytest

from edgeslm.power.robust import Prior, fit


def rows(count: int = 200) -> tuple[np.ndarray, np.ndarray]:
    """A plane with a little noise: 2 + 3 x - y."""
    chance = np.random.default_rng(1)
    matrix = np.column_stack([np.ones(count), chance.uniform(0, 5, count), chance.uniform(0, 5, count)])
    return matrix, matrix @ np.array([2.0, 3.0, -1.0]) + chance.normal(0, 0.05, count)


def test_coefficients_their_errors_and_the_spread_are_found() -> None:
    matrix, target = rows()
    found = fit(matrix, target)
    assert found.coefficients == pytest.approx([2.0, 3.0, -1.0], abs=0.03)
    assert found.sigma == pytest.approx(0.05, rel=0.2)
    assert np.all(np.abs(found.coefficients - [2.0, 3.0, -1.0]) < 4 * found.errors)
    assert np.all(found.errors < 0.02)


@pytest.mark.parametrize("seed", range(20))
def test_three_of_ten_values_may_be_far_off_on_one_side(seed: int) -> None:
    chance = np.random.default_rng(seed)
    x = chance.uniform(1, 9, 100)
    target = 1.2 * x + 0.5 + chance.normal(0, 0.05, 100)
    target[:30] += chance.uniform(2, 20, 30)
    found = fit(np.column_stack([x, np.ones(100)]), target)
    assert found.coefficients == pytest.approx([1.2, 0.5], abs=0.15)
    assert found.sigma < 0.15


def test_a_prior_holds_until_there_is_evidence() -> None:
    prior = Prior(mean=np.array([0.0, 1.0]), sigma=np.array([0.5, 0.1]))
    same_x = np.column_stack([np.ones(4), np.full(4, 2.0)])
    few = fit(same_x, np.full(4, 2.6), prior=prior, least_sigma=0.05)
    assert few.coefficients @ [1.0, 2.0] == pytest.approx(2.6, abs=0.02)
    assert 1.0 <= few.coefficients[1] < 1.1
    x = np.linspace(0, 5, 200)
    many = fit(np.column_stack([np.ones(200), x]), 1.5 * x + 0.2, prior=prior, least_sigma=0.05)
    assert many.coefficients == pytest.approx([0.2, 1.5], abs=0.02)


def test_columns_that_say_the_same_are_no_error() -> None:
    x = np.linspace(0, 5, 50)
    found = fit(np.column_stack([x, x]), 2 * x)
    assert found.coefficients.sum() == pytest.approx(2.0, abs=0.01)
