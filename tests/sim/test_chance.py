from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeslm.sim.chance import bell, share


@given(st.integers(), st.lists(st.integers(), max_size=4))
def test_a_share_is_a_share_and_the_same_each_time(seed: int, place: list[int]) -> None:
    assert 0.0 <= share(seed, *place) < 1.0
    assert share(seed, *place) == share(seed, *place)


def test_shares_are_even_and_neighbours_have_nothing_in_common() -> None:
    shares = [share(7, 3, place) for place in range(20_000)]
    for tenth in range(10):
        assert sum(tenth / 10 <= value < (tenth + 1) / 10 for value in shares) == pytest.approx(2000, abs=200)
    products = [(a - 0.5) * (b - 0.5) for a, b in pairwise(shares)]
    assert sum(products) / len(products) == pytest.approx(0.0, abs=0.003)
    assert len({share(seed, place) for seed in range(50) for place in range(50)}) == 2500


def test_bells_are_around_zero_with_deviation_one() -> None:
    values = [bell(1, place) for place in range(20_000)]
    assert sum(values) / len(values) == pytest.approx(0.0, abs=0.03)
    assert sum(value**2 for value in values) / len(values) == pytest.approx(1.0, abs=0.05)
    assert sum(abs(value) < 1 for value in values) / len(values) == pytest.approx(0.683, abs=0.015)


def test_known_numbers_do_not_change_from_release_to_release() -> None:
    assert share(1, 2, 3) == 0.814259011529328
    assert bell(1, 2, 3) == pytest.approx(-0.2259398900740664)
