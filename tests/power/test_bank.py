from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from edgeslm.errors import MeterError
from edgeslm.power.bank import BankReading, Demoted, MeterBank, MeterEvent, Restored
from edgeslm.power.boards import load_boards
from edgeslm.power.health import limits_of
from edgeslm.power.meters.hwmon import HwmonMeter, find_sensors
from edgeslm.power.meters.plug import PlugMeter
from edgeslm.power.port import MeterFacts, Reading
from edgeslm.schema.message import MeterClass
from edgeslm.schema.power import PlugConfig

BOARD = load_boards()["pi-4b"]
LIMITS = limits_of(BOARD.power, BOARD.cores)
IDLE_W, CORE_W = BOARD.power.idle_w, BOARD.power.core_load_w


class Scripted:
    """A meter whose values a test writes."""

    def __init__(
        self,
        name: str,
        value: Callable[[], float],
        clock: Callable[[], float],
        meter_class: MeterClass = "measured",
        *,
        period_s: float = 0.035,
        error_share: float = 0.006,
        error_w: float = 0.003,
    ) -> None:
        self.facts = MeterFacts(
            name, meter_class, period_s, error_share, error_w, averages=True, source="test"
        )
        self.value = value
        self.error: MeterError | None = None
        self.frozen: Reading | None = None
        self.asked = 0
        self.closed = False
        self._clock = clock

    def read(self) -> Reading:
        self.asked += 1
        if self.error is not None:
            raise self.error
        return self.frozen or Reading(self._clock(), self.value())

    def fail(self, fault: str = "gone") -> None:
        self.error = MeterError("broken", meter=self.facts.name, fault=fault)

    def close(self) -> None:
        self.closed = True


class Bench:
    """A board with a load that moves now and then, and meters around it."""

    def __init__(self, seed: int = 1) -> None:
        self.now_s = 1000.0
        self.cores = 0.0
        self.extra_w = 0.0
        self.chance = random.Random(seed)
        self.model = Scripted("model", self.expected_w, self.clock, "estimated", error_share=0.2, error_w=0.0)
        self.events: list[MeterEvent] = []

    def clock(self) -> float:
        return self.now_s

    def expected_w(self) -> float:
        return IDLE_W + CORE_W * self.cores

    def true_w(self) -> float:
        return 2.4 + 1.05 * self.cores + self.extra_w

    def meter(
        self, name: str, meter_class: MeterClass = "measured", *, noise_w: float = 0.02, **facts: float
    ) -> Scripted:
        return Scripted(
            name, lambda: self.true_w() + self.chance.gauss(0, noise_w), self.clock, meter_class, **facts
        )

    def bank(self, *meters: Scripted | HwmonMeter | PlugMeter) -> MeterBank:
        return MeterBank(meters, self.model, LIMITS)

    def run(self, bank: MeterBank, seconds: float, until: Callable[[], bool] = lambda: False) -> BankReading:
        """Samples ten times a second under bursts of work."""
        for _ in range(round(seconds * 10)):
            self.now_s += 0.1
            if self.chance.random() < 0.05:
                self.cores = self.chance.choice((0.0, 0.0, 1.0, 3.0))
            reading = bank.read(self.now_s)
            self.events += reading.events
            if until():
                break
        return reading


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_without_instruments_the_model_speaks(bench: Bench) -> None:
    reading = bench.bank().read(bench.now_s)
    assert reading.facts.name == "model"
    assert reading.facts.meter_class == "estimated"
    assert reading.reading.power_w == pytest.approx(IDLE_W)
    assert [name for name, _ in reading.readings] == ["model"]


def test_class_goes_before_error_and_instruments_before_the_model(bench: Bench) -> None:
    rough = bench.meter("rough", error_share=0.05)
    fine = bench.meter("fine", error_share=0.004)
    calibrated = bench.meter("pmic", "calibrated", error_share=0.001)
    guess = bench.meter("rapl", "estimated", error_share=0.5)
    order = []
    bank = bench.bank(guess, calibrated, rough, fine)
    for meter in (None, fine, rough, calibrated, guess):
        if meter is not None:
            meter.fail()
        order.append(bench.run(bank, 1.0).facts.name)
    assert order == ["fine", "rough", "pmic", "rapl", "model"]


def test_a_model_that_was_corrected_goes_before_an_instrument_that_guesses(bench: Bench) -> None:
    guess = bench.meter("rapl", "estimated", error_share=0.05)
    true = bench.meter("ina", period_s=2.0)
    bank = bench.bank(guess, true)
    assert bench.run(bank, 1).facts.name == "rapl"
    assert bench.run(bank, 200).facts.name == "model"


def test_every_meter_is_told_with_what_it_said(bench: Bench) -> None:
    sound, broken = bench.meter("a"), bench.meter("b")
    broken.fail()
    reading = bench.bank(sound, broken).read(bench.now_s)
    said = dict(reading.readings)
    assert isinstance(said["a"], Reading)
    assert isinstance(said["b"], MeterError)
    assert isinstance(said["model"], Reading)


def test_a_single_failure_is_bridged_by_the_next_best_without_an_event(bench: Bench) -> None:
    best, next_best = bench.meter("best"), bench.meter("next", error_share=0.02)
    bank = bench.bank(best, next_best)
    bench.run(bank, 5)
    best.fail()
    bench.now_s += 0.1
    reading = bank.read(bench.now_s)
    assert reading.facts.name == "next"
    best.error = None
    assert bench.run(bank, 1).facts.name == "best"
    assert bench.events == []


@pytest.mark.parametrize("fault", ["gone", "rubbish", "negative", "stuck"])
def test_a_broken_meter_is_named_within_five_samples_and_replaced_by_the_next_best(
    bench: Bench, fault: str
) -> None:
    best, next_best = bench.meter("best"), bench.meter("next", error_share=0.02)
    bank = bench.bank(best, next_best)
    bench.run(bank, 60)
    before = best.asked
    if fault == "gone":
        best.fail()
    else:
        value = {"rubbish": 1e9, "negative": -3.0, "stuck": bench.true_w()}[fault]
        best.value = lambda: value
    bench.run(bank, 10, until=lambda: bool(bench.events))
    (event,) = bench.events
    assert isinstance(event, Demoted)
    assert (event.meter, event.fault, event.replaced_by) == ("best", fault, "next")
    assert event.detail
    assert best.asked - before <= 5
    assert bench.run(bank, 2).facts.name == "next"


def test_a_meter_that_recovers_is_restored_and_used_again(bench: Bench) -> None:
    best, next_best = bench.meter("best"), bench.meter("next", error_share=0.02)
    bank = bench.bank(best, next_best)
    bench.run(bank, 30)
    best.fail()
    bench.run(bank, 5)
    best.error = None
    reading = bench.run(bank, 60)
    assert reading.facts.name == "best"
    assert [type(event) for event in bench.events] == [Demoted, Restored]
    restored = bench.events[-1]
    assert isinstance(restored, Restored)
    assert (restored.meter, restored.used) == ("best", True)


def test_when_all_fail_there_still_is_a_reading(bench: Bench) -> None:
    meters = [bench.meter(name) for name in "abc"]
    bank = bench.bank(*meters)
    bench.run(bank, 20)
    for meter in meters:
        meter.fail()
    reading = bench.run(bank, 20)
    assert reading.facts.name == "model"
    assert reading.reading.power_w > 0
    assert {event.meter for event in bench.events} == {"a", "b", "c"}


@pytest.mark.parametrize("drifter", ["fine", "rough"])
def test_the_meter_that_drifts_is_demoted_and_not_the_other(bench: Bench, drifter: str) -> None:
    fine, rough = bench.meter("fine"), bench.meter("rough", error_share=0.008)
    bank = bench.bank(fine, rough)
    bench.run(bank, 300)
    wrong = fine if drifter == "fine" else rough
    began_s, true = bench.now_s, wrong.value
    wrong.value = lambda: true() * (1.0 + 0.1 * (bench.now_s - began_s) / 60)
    bench.run(bank, 120, until=lambda: bool(bench.events))
    (event,) = bench.events
    assert isinstance(event, Demoted)
    assert (event.meter, event.fault) == (drifter, "drifting")
    assert "says" in event.detail


def test_a_drift_that_ends_is_forgiven_soon_after_it_agrees(bench: Bench) -> None:
    fine, rough = bench.meter("fine"), bench.meter("rough", error_share=0.008)
    bank = bench.bank(fine, rough)
    bench.run(bank, 300)
    true = fine.value
    fine.value = lambda: true() * 1.3
    bench.run(bank, 250)
    fine.value = true
    ended_s = bench.now_s
    bench.run(bank, 100)
    assert [type(event) for event in bench.events] == [Demoted, Restored]
    assert bench.events[-1].at_s - ended_s < 60
    assert bench.run(bank, 1).facts.name == "fine"


def test_the_odd_one_out_of_three_is_demoted(bench: Bench) -> None:
    meters = [bench.meter(name) for name in ("a", "b", "c")]
    true = meters[1].value
    meters[1].value = lambda: true() + 0.5
    bank = bench.bank(*meters)
    bench.run(bank, 60)
    assert [(event.meter, isinstance(event, Demoted)) for event in bench.events] == [("b", True)]


def test_a_disk_that_is_plugged_in_demotes_nobody(bench: Bench) -> None:
    bank = bench.bank(bench.meter("a"), bench.meter("b", error_share=0.02))
    bench.run(bank, 200)
    bench.extra_w = 4.0
    bench.run(bank, 200)
    assert bench.events == []


def test_an_instrument_alone_that_shows_what_cannot_be_is_demoted(bench: Bench) -> None:
    alone = bench.meter("alone")
    bank = bench.bank(alone)
    alone.value = lambda: 0.3 + 0.01 * bench.chance.random()
    reading = bench.run(bank, 60)
    (event,) = bench.events
    assert isinstance(event, Demoted)
    assert (event.fault, event.replaced_by) == ("drifting", "model")
    assert reading.facts.name == "model"


def test_sound_meters_are_left_in_peace_for_half_an_hour(bench: Bench) -> None:
    bank = bench.bank(
        bench.meter("a"),
        bench.meter("b", error_share=0.02, noise_w=0.05),
        bench.meter("c", "calibrated", error_share=0.05, error_w=0.3, period_s=1.0),
    )
    bench.run(bank, 1800)
    assert bench.events == []


def test_a_slow_true_meter_corrects_the_model_and_does_not_speak_for_itself(bench: Bench) -> None:
    plug = PlugMeter(PlugConfig(dialect="number", topic="plug", period_s=10.0), clock=bench.clock)
    bank = bench.bank(plug)
    for step in range(60):
        bench.run(bank, 8.0)
        bench.cores = (0.0, 1.0, 3.0)[step % 3]
        for _ in range(20):
            bench.now_s += 0.1
            bank.read(bench.now_s)
        plug.on_message("plug", f"{bench.true_w():.2f}".encode(), bench.now_s)
    reading = bench.run(bank, 2.0)
    assert reading.facts.name == "model"
    assert reading.facts.meter_class == "calibrated"
    assert "plug" in reading.facts.source
    for cores in (0.0, 1.0, 3.0):
        bench.cores = cores
        bench.now_s += 0.1
        assert bank.read(bench.now_s).reading.power_w == pytest.approx(bench.true_w(), rel=0.05)
    assert bench.events == []


def test_what_a_lost_instrument_taught_the_model_stays(bench: Bench) -> None:
    ina = bench.meter("ina")
    bank = bench.bank(ina)
    bench.run(bank, 300)
    ina.fail()
    reading = bench.run(bank, 5)
    assert reading.facts.name == "model"
    assert reading.facts.meter_class == "calibrated"
    assert reading.reading.power_w == pytest.approx(bench.true_w(), rel=0.05)


def test_a_plug_that_falls_silent_is_told(bench: Bench) -> None:
    plug = PlugMeter(PlugConfig(dialect="number", topic="plug", period_s=5.0), clock=bench.clock)
    bank = bench.bank(plug)
    plug.on_message("plug", b"2.5", bench.now_s)
    bench.run(bank, 60)
    (event,) = bench.events
    assert isinstance(event, Demoted)
    assert (event.meter, event.fault, event.replaced_by) == ("plug", "stale", "model")


def test_a_meter_that_keeps_failing_is_left_alone(bench: Bench) -> None:
    broken = bench.meter("broken")
    broken.fail()
    bench.run(bench.bank(broken), 300)
    assert broken.asked < 30


def test_a_real_sensor_that_is_pulled_and_plugged_again(bench: Bench, tmp_path: Path) -> None:
    def plug_in(number: int) -> Path:
        directory = tmp_path / f"sys/class/hwmon/hwmon{number}"
        directory.mkdir(parents=True)
        (directory / "name").write_text("ina226\n")
        device = tmp_path / "sys/devices/1-0040"
        device.mkdir(parents=True, exist_ok=True)
        (directory / "device").symlink_to(device)
        show(directory)
        return directory

    def show(directory: Path) -> None:
        (directory / "power1_input").write_text(
            f"{round(bench.true_w() * 1e6 + bench.chance.gauss(0, 5e3))}\n"
        )

    directory = plug_in(0)
    bank = bench.bank(HwmonMeter(find_sensors(tmp_path)[0], root=tmp_path, clock=bench.clock))
    for _ in range(50):
        show(directory)
        assert bench.run(bank, 0.1).facts.name == "hwmon:ina226@1-0040"
    shutil.rmtree(directory)
    reading = bench.run(bank, 0.4)
    assert reading.facts.name == "model"
    assert [(event.meter, isinstance(event, Demoted)) for event in bench.events] == [
        ("hwmon:ina226@1-0040", True)
    ]
    directory = plug_in(4)
    for _ in range(200):
        show(directory)
        reading = bench.run(bank, 0.1)
    assert reading.facts.name == "hwmon:ina226@1-0040"
    assert isinstance(bench.events[-1], Restored)


def test_closing_closes_all(bench: Bench) -> None:
    meters = [bench.meter("a"), bench.meter("b")]
    bench.bank(*meters).close()
    assert all(meter.closed for meter in (*meters, bench.model))
