"""The power goes at a write of an update: the device serves a whole version and comes to an end by itself.

A few cuts of each kind run always, all of them with the slow tests; see ``benchmarks/update_cuts.py``.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.update_cuts import SCENARIOS, Cutter, check_end, check_trace, measure_cuts

Trace = list[tuple[str, str]]


@pytest.fixture(scope="module")
def cutter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cutter]:
    return Cutter(tmp_path_factory.mktemp("cuts"))


@pytest.fixture(scope="module")
def trace(cutter: Cutter) -> Trace:
    found, faults = cutter.trace("commits")
    assert faults == []
    return found


def at(trace: Trace, kind: str, path: str = "", *, last: bool = False) -> int:
    """The number of a point of this kind."""
    numbers = [number for number, found in enumerate(trace, start=1) if found[0] == kind and path in found[1]]
    return numbers[-1 if last else 0]


class TestCuts:
    @pytest.mark.parametrize(
        ("kind", "path"),
        [
            ("write", ".part"),
            ("chunk", ""),
            ("before rename", "/models/sha256-"),
            ("rename", "/models/sha256-"),
            ("rename", "/models/previous/"),
            ("rename", "/models/current/"),
        ],
    )
    def test_the_device_comes_back_whole(self, cutter: Cutter, trace: Trace, kind: str, path: str) -> None:
        assert cutter.cut("commits", at(trace, kind, path)) == ""

    def test_two_in_a_row_change_nothing_about_that(self, cutter: Cutter, trace: Trace) -> None:
        assert cutter.cut("commits", at(trace, "chunk"), again_at=3, rebooted=False) == ""

    def test_the_way_back_can_be_cut_as_well(self, cutter: Cutter) -> None:
        found, faults = cutter.trace("taken back")
        assert faults == []
        assert cutter.cut("taken back", at(found, "rename", "/models/current/", last=True)) == ""


class TestTheYardstick:
    """What finds nothing wrong has to be able to."""

    def test_a_device_that_ends_up_wrong_is_told(self) -> None:
        good = {
            "booted": "1.0.1", "served": "1.1.0", "state": "committed", "settled": True, "linked": True,
            "installed": ["1.0.1", "1.1.0"], "leftovers": [],
        }  # fmt: skip
        assert check_end(good, "commits") == ""
        for key, value in {"served": "1.0.1", "linked": False, "leftovers": ["x"], "booted": "?"}.items():
            assert key in check_end({**good, key: value}, "commits")
        assert "served" in check_end(good, "fails the gate")

    def test_a_write_that_was_not_synced_before_it_was_relied_on_is_told(
        self, trace: Trace, tmp_path: Path
    ) -> None:
        state = next(path for kind, path in trace if "/models/sha256-" in path).split("/models/")[0]
        for skipped in ("package/tokenizer.json", "/models/current", ".part"):
            number = at(trace, "sync", skipped, last=True)
            without = trace[: number - 1] + trace[number:]
            if skipped == ".part":
                without = [item for item in trace if item[0] != "sync" or not item[1].endswith(".part")]
            assert check_trace(without, Path(state)), skipped


@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("every", "least"),
    [
        pytest.param(5, 50, marks=pytest.mark.slow, id="at each fifth moment"),
        pytest.param(1, 250, marks=pytest.mark.nightly, id="at all moments"),
    ],
)
def test_a_cut_is_survived(every: int, least: int) -> None:
    found = measure_cuts(every)
    assert found["power_cut_detail"]["failures"] == {}
    assert found["power_cut_survived"] == 1.0
    assert found["power_cut_points"] > least
    assert found["power_cut_detail"]["points"].keys() == set(SCENARIOS)
