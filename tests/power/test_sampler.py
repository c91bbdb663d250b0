from __future__ import annotations

import itertools
import logging
import math
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from edgeslm.errors import MeterError
from edgeslm.power.account import EnergyAccount, PowerSample
from edgeslm.power.attribution import Interval
from edgeslm.power.bank import Demoted, MeterBank, MeterEvent
from edgeslm.power.cpu import CpuClock
from edgeslm.power.health import limits_of
from edgeslm.power.ledger import Ledger
from edgeslm.power.meters.hwmon import HwmonMeter, find_sensors
from edgeslm.power.meters.model import ModelMeter
from edgeslm.power.port import MeterFacts, Reading
from edgeslm.power.sampler import ACCOUNT_STATE, BankSource, Sampler, Schedule, shows_instants
from edgeslm.schema.board import PowerTable

TABLE = PowerTable(idle_w=2.0, core_load_w=0.5, source="made up for the tests")
NOON = 1_790_000_000.0


def facts(period_s: float, *, averages: bool) -> MeterFacts:
    return MeterFacts("m", "measured", period_s, 0.01, 0.01, averages, "made up for the tests")


@dataclass
class Steady:
    """A source that shows 4 W, or fails."""

    facts: MeterFacts = field(default_factory=lambda: facts(0.1, averages=True))
    error: Exception | None = None
    reads: int = 0

    def read(self, now_s: float) -> PowerSample:
        self.reads += 1
        if self.error is not None:
            raise self.error
        return PowerSample(Reading(now_s, 4.0), self.facts, None)


@dataclass
class Clock:
    """Time that the test sets."""

    now_s: float = 100.0

    def account(self) -> EnergyAccount:
        return EnergyAccount(TABLE, clock=lambda: self.now_s, cpu_clock=lambda: 0.0)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    ledger = Ledger(tmp_path / "energy.db", None)
    yield ledger
    ledger.close()


def moments(schedule: Schedule, count: int, late_s: float = 0.0, *, scattered: bool) -> list[float]:
    now_s, found = 10.0, []
    for _ in range(count):
        now_s = max(schedule.next_s(now_s, scattered=scattered), now_s) + late_s
        found.append(now_s)
    return found


def square_mean(times: list[float], hertz: float) -> float:
    """Mean of a load that switches between 2 and 6 W, by the trapezoidal rule over samples at `times`."""
    watts = [6.0 if (at_s * hertz) % 1.0 < 0.5 else 2.0 for at_s in times]
    energy_j = sum(
        (after_s - before_s) * (first + second) / 2
        for (before_s, after_s), (first, second) in zip(
            itertools.pairwise(times), itertools.pairwise(watts), strict=True
        )
    )
    return energy_j / (times[-1] - times[0])


def test_even_samples_do_not_drift_however_late_each_is() -> None:
    times = moments(Schedule(10.0, 0.1), 1000, late_s=0.003, scattered=False)
    assert times[-1] == pytest.approx(10.0 + 999 * 0.1 + 0.003)
    assert all(after - before == pytest.approx(0.1) for before, after in itertools.pairwise(times))


def test_samples_that_were_missed_are_left_out_and_the_schedule_kept() -> None:
    schedule = Schedule(10.0, 0.1)
    assert schedule.next_s(10.0, scattered=False) == pytest.approx(10.0)
    assert schedule.next_s(15.234, scattered=False) == pytest.approx(15.2)
    assert schedule.next_s(15.234, scattered=False) == pytest.approx(15.3)


def test_scattered_samples_come_once_in_each_period() -> None:
    times = moments(Schedule(10.0, 0.1, seed=1), 1000, scattered=True)
    assert [math.floor((at_s - 10.0) / 0.1 + 1e-9) for at_s in times] == list(range(1000))


@pytest.mark.parametrize("hertz", [49.97, 50.0, 60.0])
@pytest.mark.parametrize("seed", range(10))
def test_scattered_samples_see_a_load_that_pulses_as_it_is(seed: int, hertz: float) -> None:
    times = moments(Schedule(10.0, 0.1, seed), 15 * 60 * 10, scattered=True)
    assert square_mean(times, hertz) == pytest.approx(4.0, rel=0.01)


def test_even_samples_would_meet_a_pulsing_load_at_the_same_point_always() -> None:
    times = [at_s + 0.005 for at_s in moments(Schedule(10.0, 0.1), 10 * 60 * 20, scattered=False)]
    assert abs(square_mean(times, 50.0) - 4.0) > 0.5


def test_only_meters_that_leave_time_unseen_are_looked_at_in_random_moments() -> None:
    assert shows_instants(facts(0.001, averages=False), 0.1)
    assert shows_instants(facts(0.035, averages=True), 0.1)
    assert not shows_instants(facts(0.1, averages=True), 0.1)
    assert not shows_instants(facts(1.0, averages=True), 0.1)


def test_a_sample_goes_to_the_ledger_and_to_every_listener(ledger: Ledger) -> None:
    clock, told = Clock(), list[Interval]()
    sampler = Sampler(
        Steady(), clock.account(), ledger, listeners=[told.append, told.append], wall_clock=lambda: NOON
    )
    for _ in range(11):
        sampler.sample(clock.now_s)
        clock.now_s += 0.1
    sampler.flush()
    assert len(told) == 20
    (total,) = ledger.energy(0, 1e12)
    assert total.energy_j == pytest.approx(4.0)
    assert total.energy_j == pytest.approx(sum(interval.energy_j for interval in told) / 2)
    assert set(ledger.state(ACCOUNT_STATE)) >= {"idle_w", "core_w"}


def test_a_listener_that_fails_stops_neither_the_others_nor_the_next_sample(
    ledger: Ledger, caplog: pytest.LogCaptureFixture
) -> None:
    clock, told = Clock(), list[Interval]()

    def broken(interval: Interval) -> None:
        raise ValueError("broken")

    sampler = Sampler(Steady(), clock.account(), ledger, listeners=[broken, told.append])
    for _ in range(11):
        sampler.sample(clock.now_s)
        clock.now_s += 0.1
    assert len(told) == 10
    assert len([record for record in caplog.records if "listener" in record.message]) == 1


def test_a_meter_that_is_gone_is_logged_once_and_accounting_goes_on(
    ledger: Ledger, caplog: pytest.LogCaptureFixture
) -> None:
    clock, told, source = Clock(), list[Interval](), Steady()
    sampler = Sampler(source, clock.account(), ledger, listeners=[told.append])
    for step in range(21):
        source.error = MeterError("gone", meter="m", fault="gone") if 5 <= step < 15 else None
        sampler.sample(clock.now_s)
        clock.now_s += 0.1
    assert sum(interval.energy_j for interval in told) == pytest.approx(8.0, rel=0.5)
    assert told[-1].end_s - told[0].start_s == pytest.approx(2.0)
    assert len([record for record in caplog.records if record.levelno == logging.WARNING]) == 1


def test_the_end_settles_what_is_open_and_writes_it(ledger: Ledger) -> None:
    clock = Clock()
    sampler = Sampler(Steady(), clock.account(), ledger, wall_clock=lambda: NOON)
    sampler.sample(clock.now_s)
    clock.now_s += 0.1
    sampler.sample(clock.now_s)
    clock.now_s += 0.05
    sampler.finish(clock.now_s)
    assert ledger.energy(0, 1e12)[0].seconds == pytest.approx(0.15)


def test_the_thread_samples_until_it_is_stopped_whatever_happens(ledger: Ledger) -> None:
    source = Steady()
    enough = threading.Event()

    def on_interval(interval: Interval) -> None:
        if source.reads == 5:
            source.error = RuntimeError("a bug in a meter")
        if source.reads > 20:
            enough.set()
        raise ValueError("a bug in a listener")

    class Moody(Steady):
        def read(self, now_s: float) -> PowerSample:
            if source.reads % 3 == 0:
                source.reads += 1
                raise RuntimeError("a bug in a meter")
            source.error = None
            return source.read(now_s)

    sampler = Sampler(Moody(), EnergyAccount(TABLE), ledger, listeners=[on_interval], period_s=0.002)
    source.reads = 1
    sampler.start()
    assert enough.wait(10)
    started_s = time.monotonic()
    sampler.stop()
    assert time.monotonic() - started_s < 1
    reads = source.reads
    time.sleep(0.02)
    assert source.reads == reads
    assert ledger.energy(0, 1e12)[0].energy_j > 0


def sensor(root: Path, power_uw: int) -> None:
    directory = root / "sys/class/hwmon/hwmon0"
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "name").write_text("ina260\n")
    (directory / "power1_input").write_text(f"{power_uw}\n")


def test_the_boards_meters_are_a_source_and_tell_when_one_is_demoted(tmp_path: Path, ledger: Ledger) -> None:
    clock = Clock()
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/stat").write_text("cpu  100 0 0 900 0 0 0 0 0 0\n")
    sensor(tmp_path, 2_500_000)
    now = lambda: clock.now_s  # noqa: E731
    meter = HwmonMeter(find_sensors(tmp_path)[0], root=tmp_path, clock=now)
    model = ModelMeter(TABLE, root=tmp_path, clock=now, process_clock=lambda: 0.0)
    bank = MeterBank([meter], model, limits_of(TABLE, 4))
    events, told = list[MeterEvent](), list[Interval]()
    cpu = CpuClock(tmp_path, now, lambda: 0.0)
    sampler = Sampler(BankSource(bank, cpu, events.append), clock.account(), ledger, listeners=[told.append])
    for step in range(30):
        if step == 15:
            sensor(tmp_path, -7)
        sampler.sample(clock.now_s)
        clock.now_s += 0.1
    assert [(type(event), event.meter) for event in events] == [(Demoted, meter.facts.name)]
    assert told[5].power_w == pytest.approx(2.5)
    assert told[5].meter == "measured"
    assert told[-1].meter != "measured"
    assert len(told) == 29
    bank.close()
    cpu.close()
