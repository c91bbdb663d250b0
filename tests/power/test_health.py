from __future__ import annotations

import itertools
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeslm.errors import MeterError
from edgeslm.power.boards import load_boards
from edgeslm.power.health import MeterHealth, implausible, limits_of
from edgeslm.power.port import MeterFacts, Reading

BOARD = load_boards()["pi-4b"]
LIMITS = limits_of(BOARD.power, BOARD.cores)
FACTS = MeterFacts("hwmon:ina226@1-0040", "measured", 0.035, 0.006, 0.003, averages=True, source="test")
IDLE_W = BOARD.power.idle_w
CORE_W = BOARD.power.core_load_w


class Stream:
    """A meter that speaks ten times a second."""

    def __init__(self, facts: MeterFacts = FACTS, seed: int = 1) -> None:
        self.health = MeterHealth(facts, LIMITS)
        self.now_s = 0.0
        self.chance = random.Random(seed)

    def says(self, power_w: float, cores: float = 0.0) -> None:
        self.now_s += 0.1
        self.health.observe(self.now_s, Reading(self.now_s, power_w), IDLE_W + CORE_W * cores)

    def fails(self, fault: str = "gone") -> None:
        self.now_s += 0.1
        error = MeterError("it does not answer", meter="hwmon:ina226@1-0040", fault=fault)
        self.health.observe(self.now_s, error, IDLE_W)

    def runs_well(self, samples: int = 200) -> None:
        for _ in range(samples):
            self.says(2.5 + self.chance.gauss(0, 0.05))

    def samples_until_demoted(self, power_w: float, cores: float = 0.0, most: int = 100) -> int:
        for sample in range(1, most + 1):
            self.says(power_w, cores)
            if not self.health.sound:
                return sample
        return most + 1

    @property
    def fault(self) -> str | None:
        return self.health.verdict.fault


@pytest.mark.parametrize("fault", ["gone", "rubbish", "stale"])
def test_a_meter_that_fails_is_demoted_within_five_samples(fault: str) -> None:
    stream = Stream()
    stream.runs_well()
    for _ in range(5):
        stream.fails(fault)
    assert stream.fault == fault


@pytest.mark.parametrize(
    ("power_w", "fault"),
    [
        (float("nan"), "rubbish"),
        (float("inf"), "rubbish"),
        (1e6, "rubbish"),
        (0.0, "rubbish"),
        (0.01, "rubbish"),
        (-2.5, "negative"),
    ],
)
def test_a_value_that_cannot_be_is_named_within_five_samples(power_w: float, fault: str) -> None:
    stream = Stream()
    stream.runs_well()
    assert stream.samples_until_demoted(power_w) <= 5
    assert stream.fault == fault
    assert implausible(power_w, LIMITS).fault == fault


@given(st.floats(0.3, 90.0))
def test_what_a_board_can_draw_is_never_implausible(power_w: float) -> None:
    assert implausible(power_w, LIMITS).fault is None


def test_a_slow_meter_fails_once_a_period_however_often_it_is_asked() -> None:
    plug = MeterFacts("plug", "measured", 10.0, 0.03, 0.5, averages=False, source="test")
    stream = Stream(plug)
    while stream.health.sound and stream.now_s < 100:
        stream.fails("stale")
    assert stream.now_s == pytest.approx(18.1, abs=2)


def test_one_failure_now_and_then_is_only_skipped() -> None:
    stream = Stream()
    for _ in range(50):
        stream.runs_well(9)
        stream.fails()
    assert stream.health.sound


def test_a_noisy_meter_that_freezes_is_seen_within_five_samples_at_a_steady_load() -> None:
    stream = Stream()
    stream.runs_well(300)
    assert stream.samples_until_demoted(2.5) <= 5
    assert stream.fault == "stuck"


def test_a_coarse_meter_that_freezes_is_seen_within_five_samples_of_the_load_moving() -> None:
    stream = Stream()
    for _ in range(300):
        stream.says(2.5)
    assert stream.health.sound
    assert stream.samples_until_demoted(2.5, cores=2.0) <= 5
    assert stream.fault == "stuck"
    assert "2.70 to 4.56 W" in stream.health.verdict.detail


def test_a_meter_frozen_from_the_start_is_seen_when_the_load_moves() -> None:
    stream = Stream()
    stream.says(2.5)
    stream.says(2.5)
    assert stream.samples_until_demoted(2.5, cores=2.0) <= 5


def test_a_change_that_the_meter_cannot_show_is_not_held_against_it() -> None:
    plug = MeterFacts("plug", "measured", 10.0, 0.03, 0.5, averages=False, source="test")
    stream = Stream(plug)
    for step in range(400):
        stream.now_s += 9.9
        stream.says(5.0, cores=1.5 * (step % 20 >= 10))
    assert stream.health.sound


@given(
    step_w=st.sampled_from([0.001, 0.00625, 0.025, 0.1, 0.5, 1.0]),
    noise_w=st.floats(0.0, 0.1),
    calm=st.floats(0.1, 1.0),
    seed=st.integers(0, 10_000),
)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_a_meter_on_a_steady_board_is_never_called_stuck(
    step_w: float, noise_w: float, calm: float, seed: int
) -> None:
    stream = Stream(seed=seed)
    chance = random.Random(seed)
    cores = 0.0
    for sample in range(1500):
        if chance.random() < 0.01:
            cores = chance.choice((0.0, 0.0, 0.5, 1.0, 3.0))
        # A board grows calm for a while: most of the noise that the meter showed so far is gone.
        noise = noise_w * (calm if 600 < sample < 700 else 1.0)
        busy = max(cores + chance.gauss(0, 0.02), 0.0)
        power_w = round((2.4 + 1.05 * busy + chance.gauss(0, noise)) / step_w) * step_w
        if power_w > 0.3:
            stream.says(power_w, busy)
        assert stream.health.sound, stream.health.verdict.detail


def test_a_meter_that_creeps_while_the_board_warms_up_is_not_stuck_when_it_settles() -> None:
    stream = Stream()
    for sample in range(3000):
        warm_w = 0.4 * (1.0 - math.exp(-sample / 500))
        stream.says(round((5.0 + warm_w + stream.chance.gauss(0, 0.0025)) / 0.00625) * 0.00625, cores=3.0)
        assert stream.health.sound, stream.health.verdict.detail


def test_a_meter_that_only_ever_crept_is_not_stuck_when_it_stops() -> None:
    stream = Stream()
    for sample in range(600):
        stream.says(5.0 + 0.001 * min(sample, 400), cores=3.0)
        assert stream.health.sound, stream.health.verdict.detail


@given(seed=st.integers(0, 10_000), offset_s=st.floats(0.0, 0.099))
@settings(max_examples=30, deadline=None)
def test_a_load_that_changes_within_a_sample_makes_no_meter_stuck(seed: int, offset_s: float) -> None:
    """The meter shows the end of the span, the model its mean, and both are steady from then on."""
    stream = Stream(seed=seed)
    chance = random.Random(seed)
    level = 0.0
    for _ in range(60):
        before, level = level, chance.choice((0.0, 1.0, 2.0, 4.0))
        mixed = before + (level - before) * (0.1 - offset_s) / 0.1
        true_w = 2.5 + level
        stream.says(true_w, mixed)
        for _ in range(chance.randrange(1, 20)):
            stream.says(true_w, level)
        assert stream.health.sound, stream.health.verdict.detail


def test_the_same_reading_given_again_is_no_new_evidence() -> None:
    health = MeterHealth(FACTS, LIMITS)
    reading = Reading(0.0, 2.5)
    for step in range(10):
        health.observe(step / 10, reading, IDLE_W + step * CORE_W)
    assert health.sound


def test_a_value_that_grows_old_is_stale() -> None:
    health = MeterHealth(FACTS, LIMITS)
    reading = Reading(0.0, 2.5)
    step = 0
    while health.sound and step < 100:
        step += 1
        health.observe(step / 10, reading, IDLE_W)
    assert health.verdict.fault == "stale"
    assert 1.0 < step / 10 < 2.0


def test_a_meter_that_is_well_again_comes_back_after_a_clean_run() -> None:
    stream = Stream()
    stream.runs_well()
    for _ in range(5):
        stream.fails()
    stream.runs_well(19)
    assert not stream.health.sound
    stream.runs_well(1)
    assert stream.health.sound


def test_a_failure_in_between_starts_the_clean_run_anew() -> None:
    stream = Stream()
    for _ in range(5):
        stream.fails()
    stream.runs_well(19)
    stream.fails()
    stream.runs_well(19)
    assert not stream.health.sound


def test_every_relapse_makes_the_way_back_longer() -> None:
    stream = Stream()
    runs = []
    for _ in range(4):
        for _ in range(5):
            stream.fails()
        run = 0
        while not stream.health.sound:
            stream.runs_well(1)
            run += 1
        runs.append(run)
    assert runs == [20, 40, 80, 160]


def test_a_frozen_meter_does_not_come_back_by_being_frozen_on() -> None:
    stream = Stream()
    for _ in range(50):
        stream.says(2.5)
    stream.samples_until_demoted(2.5, cores=3.0)
    for cores in (3.0, 0.0):
        for _ in range(200):
            stream.says(2.5, cores)
    assert stream.fault == "stuck"
    for step in range(25):
        stream.says(5.5 + 0.01 * (step % 3), cores=3.0)
    assert stream.health.sound


def test_a_meter_that_keeps_failing_is_asked_less_and_less_often() -> None:
    stream = Stream()
    asked = []
    while stream.now_s < 200:
        if stream.health.due(stream.now_s):
            asked.append(stream.now_s)
            stream.fails()
        else:
            stream.now_s += 0.1
    gaps = [later - earlier for earlier, later in itertools.pairwise(asked)]
    assert len(asked) < 20
    assert max(gaps) == pytest.approx(30.0, abs=0.5)


def test_a_meter_that_answers_again_is_asked_every_time() -> None:
    stream = Stream()
    for _ in range(10):
        stream.fails()
    assert not stream.health.due(stream.now_s + 0.1)
    stream.now_s += 60
    stream.runs_well(1)
    assert stream.health.due(stream.now_s)


def test_a_fault_that_nobody_knows_counts_as_rubbish() -> None:
    stream = Stream()
    for _ in range(5):
        stream.fails("on fire")
    assert stream.fault == "rubbish"


def test_a_board_whose_supply_is_not_known_has_bounds_too() -> None:
    host = load_boards()["host"]
    limits = limits_of(host.power, host.cores)
    assert limits.unseen_w is None
    assert implausible(1500.0, limits).fault is None
    assert implausible(1e5, limits).fault == "rubbish"
