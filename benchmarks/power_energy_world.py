"""A board whose energy is known exactly: loads with a closed integral, meters that look at them, and what goes wrong.

Time is a number that the caller sets; hours take a second.
"""

from __future__ import annotations

import math
import random
from bisect import bisect_right
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from edgeslm.errors import MeterError
from edgeslm.power.account import PowerSample
from edgeslm.power.meters.linear import Correction
from edgeslm.power.meters.rapl import RaplMeter, find_zones
from edgeslm.power.port import CpuTimes, Meter, MeterFacts, Reading

IDLE_W = 2.7
CORE_W = 1.2
TICK_S = 0.01
_WRAP_UJ = 200_000_000


class Load(Protocol):
    """What the board does."""

    def energy_j(self, at_s: float) -> float:
        """Joules of the board since 0."""

    def power_w(self, at_s: float) -> float:
        """Watts at that moment."""

    def own_s(self, at_s: float) -> float:
        """Core seconds of our process since 0."""

    def other_s(self, at_s: float) -> float:
        """Core seconds of other processes since 0."""


class Constant:
    """One of four cores busy with somebody else's work, all the time."""

    def energy_j(self, at_s: float) -> float:
        """Joules of the board since 0."""
        return (IDLE_W + CORE_W) * at_s

    def power_w(self, at_s: float) -> float:
        """Watts at that moment."""
        return IDLE_W + CORE_W

    def own_s(self, at_s: float) -> float:
        """Core seconds of our process since 0."""
        return 0.0

    def other_s(self, at_s: float) -> float:
        """Core seconds of other processes since 0."""
        return at_s


class Square50Hz:
    """A load that the mains switches: 2 W more in the first half of each 20 ms, from no processor."""

    def energy_j(self, at_s: float) -> float:
        """Joules of the board since 0."""
        cycles = math.floor(at_s / 0.02)
        return IDLE_W * at_s + 2.0 * (0.01 * cycles + min(at_s - 0.02 * cycles, 0.01))

    def power_w(self, at_s: float) -> float:
        """Watts at that moment."""
        return IDLE_W + (2.0 if at_s % 0.02 < 0.01 else 0.0)

    def own_s(self, at_s: float) -> float:
        """Core seconds of our process since 0."""
        return 0.0

    def other_s(self, at_s: float) -> float:
        """Core seconds of other processes since 0."""
        return 0.0


@dataclass(frozen=True)
class Burst:
    """A piece of work on `cores` cores."""

    start_s: float
    end_s: float
    cores: float
    own: bool


class Bursts:
    """Prompts of 5 ms to 5 s and other programs' work, at random; neighbours do not overlap."""

    def __init__(self, length_s: float, seed: int) -> None:
        rng = random.Random(seed)
        self.bursts: list[Burst] = []
        at_s = 5.0
        while True:
            at_s += rng.expovariate(0.5)
            end_s = at_s + math.exp(rng.uniform(math.log(0.005), math.log(5.0)))
            if end_s >= length_s:
                break
            self.bursts.append(Burst(at_s, end_s, rng.choice((1.0, 2.0, 3.0)), rng.random() < 0.7))
            at_s = end_s
        self._starts = [burst.start_s for burst in self.bursts]
        self._sums = {True: [0.0], False: [0.0]}
        for burst in self.bursts:
            for own, sums in self._sums.items():
                done = burst.cores * (burst.end_s - burst.start_s) if burst.own is own else 0.0
                sums.append(sums[-1] + done)

    def _core_s(self, at_s: float, own: bool) -> float:
        index = bisect_right(self._starts, at_s)
        total = self._sums[own][index]
        if index:
            burst = self.bursts[index - 1]
            if burst.own is own and at_s < burst.end_s:
                total -= burst.cores * (burst.end_s - at_s)
        return total

    def own_s(self, at_s: float) -> float:
        """Core seconds of our process since 0."""
        return self._core_s(at_s, own=True)

    def other_s(self, at_s: float) -> float:
        """Core seconds of other processes since 0."""
        return self._core_s(at_s, own=False)

    def energy_j(self, at_s: float) -> float:
        """Joules of the board since 0."""
        return IDLE_W * at_s + CORE_W * (self.own_s(at_s) + self.other_s(at_s))

    def power_w(self, at_s: float) -> float:
        """Watts at that moment."""
        index = bisect_right(self._starts, at_s)
        busy = index and at_s < self.bursts[index - 1].end_s
        return IDLE_W + (CORE_W * self.bursts[index - 1].cores if busy else 0.0)


@dataclass
class World:
    """Load, clocks and processor times; `now_s` is monotonic time."""

    load: Load
    now_s: float = 0.0
    wall_offset_s: float = 1_790_000_000.0

    def clock(self) -> float:
        """Monotonic time."""
        return self.now_s

    def wall_s(self) -> float:
        """Unix time."""
        return self.now_s + self.wall_offset_s

    def own_s(self) -> float:
        """Core seconds of our process up to now."""
        return self.load.own_s(self.now_s)

    def cpu(self) -> CpuTimes:
        """As /proc tells it: the board in ticks, the process exactly."""
        own_s = self.own_s()
        busy_s = math.floor((own_s + self.load.other_s(self.now_s)) / TICK_S) * TICK_S
        return CpuTimes(self.now_s, busy_s, own_s)


def _facts(name: str, period_s: float, *, averages: bool) -> MeterFacts:
    return MeterFacts(name, "measured", period_s, 0.0, 0.02, averages, "made for this benchmark")


class InstantMeter:
    """Shows the draw of the moment, with noise."""

    def __init__(self, world: World, seed: int) -> None:
        self.facts = _facts("instant", 0.001, averages=False)
        self._world = world
        self._random = random.Random(seed)

    def read(self) -> Reading:
        """Its value now."""
        now_s = self._world.now_s
        return Reading(now_s, max(self._world.load.power_w(now_s) + self._random.gauss(0.0, 0.02), 0.0))

    def close(self) -> None:
        """There is nothing to let go of."""


class AveragingMeter:
    """Shows the mean of its last whole period."""

    def __init__(self, world: World, period_s: float) -> None:
        self.facts = _facts(f"averaging-{period_s:g}", period_s, averages=True)
        self._world = world

    def read(self) -> Reading:
        """Its value now."""
        period_s = self.facts.period_s
        end_s = math.floor(self._world.now_s / period_s + 1e-9) * period_s
        energy_j = self._world.load.energy_j
        start_s = max(end_s - period_s, 0.0)
        return Reading(end_s, (energy_j(end_s) - energy_j(start_s)) / period_s)

    def close(self) -> None:
        """There is nothing to let go of."""


class CountingMeter:
    """The project's own RAPL adapter over a powercap tree whose counter starts over every minute or so."""

    def __init__(self, world: World, directory: Path) -> None:
        zone = directory / "sys/class/powercap/intel-rapl:0"
        zone.mkdir(parents=True, exist_ok=True)
        (zone / "name").write_text("psys\n")
        (zone / "max_energy_range_uj").write_text(f"{_WRAP_UJ}\n")
        self._world = world
        self._counter = zone / "energy_uj"
        self._show()
        self._meter = RaplMeter(
            find_zones(directory), Correction(1.0, 0.0, 0.0, 0.0, "exact"), clock=world.clock
        )
        self.facts = self._meter.facts

    def _show(self) -> None:
        count_uj = int(self._world.load.energy_j(self._world.now_s) * 1e6 + 1e6) % _WRAP_UJ
        with self._counter.open("w") as file:
            file.write(f"{count_uj:>20}\n")

    def read(self) -> Reading:
        """Its value now."""
        self._show()
        return self._meter.read()

    def close(self) -> None:
        """Let go of the counter."""
        self._meter.close()


@dataclass
class Source:
    """``PowerSource`` over one meter that falls silent from time to time.

    Attributes:
        silences: monotonic spans in which it brings nothing new.
        raises: it says so; otherwise it repeats itself.
    """

    world: World
    meter: Meter
    silences: tuple[tuple[float, float], ...] = ()
    raises: bool = False
    _last: Reading | None = field(default=None, init=False)

    def read(self, now_s: float) -> PowerSample:
        """What the meter says, if it says anything."""
        if self._last is not None and any(start_s <= now_s < end_s for start_s, end_s in self.silences):
            if self.raises:
                raise MeterError("silent", meter=self.meter.facts.name, fault="stale")
        else:
            self._last = self.meter.read()
        assert self._last is not None
        return PowerSample(self._last, self.meter.facts, self.world.cpu())
