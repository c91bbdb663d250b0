from __future__ import annotations

from typing import Any

import pytest

from edgeslm.errors import MeterError
from edgeslm.power.calibrating import Load, MeanOf, Pair, loads, record, residuals, visits, with_entry
from edgeslm.power.port import MeterFacts, Reading
from edgeslm.schema.calibration import Calibration, LineCalibration

FACTS = MeterFacts("meter", "measured", 0.1, 0.01, 0.0, averages=False, source="tests")


def test_a_board_with_many_cores_is_loaded_in_few_steps():
    assert [load.cores for load in loads(64)] == [0, 16, 32, 48, 64]
    assert [load.cores for load in loads(1)] == [0, 1]
    assert loads(2, (600,))[-1] == Load(2, 600)


@pytest.mark.parametrize("cores", [1, 2, 3, 4, 64])
@pytest.mark.parametrize("per_visit", [1, 4])
def test_the_route_gives_enough_pairs_and_comes_back(cores, per_visit):
    route = visits(loads(cores), per_visit)
    assert len(route) * per_visit >= 20
    assert route[: len(loads(cores))] == loads(cores)
    assert route[len(loads(cores))] == loads(cores)[-1]


class Script:
    """A meter that says what it is told to."""

    def __init__(self, *said: Reading | MeterError) -> None:
        self.facts = FACTS
        self.said = list(said)

    def read(self) -> Reading:
        one = self.said.pop(0) if len(self.said) > 1 else self.said[0]
        if isinstance(one, MeterError):
            raise one
        return one

    def close(self) -> None:
        pass


def test_a_value_that_is_given_again_is_no_new_value():
    mean = MeanOf(Script(Reading(1.0, 2.0), Reading(1.0, 2.0)))
    mean.begin()
    mean.look()
    assert mean.take() is None


def test_what_was_said_before_the_span_is_no_part_of_its_mean():
    mean = MeanOf(Script(Reading(1.0, 9.0), Reading(2.0, 3.0), Reading(3.0, 4.0)))
    mean.begin()
    mean.look()
    mean.look()
    assert mean.take() == 3.5


def test_a_counter_is_differenced():
    mean = MeanOf(Script(Reading(1.0, 9.0, counter_j=10.0), Reading(3.0, 9.0, counter_j=16.0)))
    mean.begin()
    mean.look()
    assert mean.take() == 3.0


class StillBench:
    """Time passes, nothing else happens."""

    cores, frequencies_mhz = 1, ()

    def __init__(self) -> None:
        self.now_s = 0.0

    def clock(self) -> float:
        return self.now_s

    def pause(self, seconds: float) -> None:
        self.now_s += seconds

    def hold(self, load: Load) -> None:
        pass


def take(*said: Reading | MeterError) -> list[Pair[float]]:
    return list(
        record(
            StillBench(),
            [Load(0)],
            MeanOf(Script(Reading(0.0, 1.0), *[Reading(float(n), 1.0) for n in range(1, 500)])),
            MeanOf(Script(*said)),
            pairs_per_visit=2,
            settle_s=1.0,
            window_s=1.0,
            arrived=lambda number, load: None,
        )
    )


class Settling(StillBench):
    """Its meters show rubbish for the first two seconds of each load."""

    held_s = 0.0

    def hold(self, load: Load) -> None:
        self.held_s, self.load = self.now_s, load

    @property
    def facts(self) -> MeterFacts:
        return FACTS

    def read(self) -> Reading:
        settled = self.now_s - self.held_s >= 2.0
        return Reading(self.now_s, float(self.load.cores) if settled else 99.0)

    def close(self) -> None:
        pass


def test_nothing_counts_before_a_load_has_settled():
    bench = Settling()
    pairs = record(
        bench,
        [Load(1), Load(3)],
        MeanOf(bench),
        MeanOf(bench),
        pairs_per_visit=2,
        settle_s=2.0,
        window_s=1.0,
        arrived=lambda number, load: None,
    )
    assert [pair.true_w for pair in pairs] == [1.0, 1.0, 3.0, 3.0]
    assert bench.now_s == pytest.approx(8.0)


def test_single_failures_of_an_instrument_are_skipped():
    gone = MeterError("gone", meter="x", fault="gone")
    said = [one for n in range(100) for one in (Reading(float(n), 2.0), gone)]
    assert [pair.true_w for pair in take(*said)] == [2.0, 2.0]


def test_an_instrument_that_only_fails_ends_it_with_its_own_error():
    with pytest.raises(MeterError) as caught:
        take(MeterError("the wire is off", meter="x", fault="gone"))
    assert caught.value.fault == "gone"


def test_an_instrument_that_repeats_itself_ends_it():
    with pytest.raises(MeterError) as caught:
        take(Reading(1.0, 2.0))
    assert caught.value.fault == "stale"


def line(meter: str) -> LineCalibration:
    fields: dict[str, Any] = {
        "meter": meter,
        "scale": 1.0,
        "offset_w": 0.0,
        "against": "plug",
        "against_class": "measured",
        "made_at": "2026-01-01T00:00:00Z",
        "pairs": 20,
        "least_w": 1.0,
        "most_w": 2.0,
        "error_share": 0.1,
        "error_w": 0.0,
    }
    return LineCalibration.model_validate(fields)


def test_a_new_entry_leaves_those_of_other_meters_alone():
    before = Calibration(board="pi-5", lines=(line("pmic"), line("rapl")))
    after = with_entry(before, "pi-5", line("pmic").model_copy(update={"scale": 2.0}))
    assert {entry.meter: entry.scale for entry in after.lines} == {"rapl": 1.0, "pmic": 2.0}


def test_entries_of_another_board_go():
    before = Calibration(board="pi-5", lines=(line("pmic"),))
    after = with_entry(before, "pi-4b", line("rapl"))
    assert (after.board, [entry.meter for entry in after.lines]) == ("pi-4b", ["rapl"])


def test_residuals_are_means_by_load():
    pairs = [Pair(Load(0), 1.0, 2.0), Pair(Load(1), 2.0, 4.0), Pair(Load(0), 1.0, 3.0)]
    idle, busy = residuals(pairs, lambda said: 2 * said)
    assert (idle.load, idle.true_w, idle.fitted_w) == (Load(0), 2.5, 2.0)
    assert (busy.true_w, busy.fitted_w) == (4.0, 4.0)


def test_a_load_is_told_in_words():
    assert [str(Load(0)), str(Load(1)), str(Load(4, 600))] == [
        "idle",
        "1 core busy",
        "4 cores busy at 600 MHz",
    ]
