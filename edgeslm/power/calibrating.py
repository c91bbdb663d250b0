"""Records pairs for a calibration: what a meter says, and what an instrument that is known to be right says meanwhile.

A person, or nobody, stands beside; the board goes through loads from idle to all cores busy and back, more than once,
so that warmth, which follows the load slowly, does not pass for it. Each visit to a load waits until what both say has
settled and then takes pairs of means over the same span.

Time and load come from outside (:class:`Bench`); nothing here sleeps or starts a process.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Generic, Protocol, TypeVar, runtime_checkable

from edgeslm.errors import MeterError
from edgeslm.power.calibration import PAIRS_NEEDED
from edgeslm.power.meters.model import Observer, Predictors
from edgeslm.power.port import Meter, Reading
from edgeslm.schema.calibration import Calibration, LineCalibration, ModelCalibration

LOOK_S: Final = 0.1
"""Seconds between two looks at the meters."""
PAIRS_PER_VISIT: Final = 4
_LEAST_PASSES: Final = 2
_MOST_LEVELS: Final = 5
_WINDOWS_TRIED: Final = 3
"""How many times as many windows as pairs are waited for before an instrument counts as silent."""

SaidT = TypeVar("SaidT")
SaidT_co = TypeVar("SaidT_co", covariant=True)


@dataclass(frozen=True)
class Load:
    """What the board is made to do.

    Attributes:
        cores: cores that are kept busy.
        frequency_mhz: cap of the processor's frequency; ``None`` leaves it alone.
    """

    cores: int
    frequency_mhz: int | None = None

    def __str__(self) -> str:
        busy = "idle" if self.cores == 0 else "1 core busy" if self.cores == 1 else f"{self.cores} cores busy"
        return busy if self.frequency_mhz is None else f"{busy} at {self.frequency_mhz} MHz"


@runtime_checkable
class Bench(Protocol):
    """Time and load."""

    @property
    def cores(self) -> int:
        """How many cores can be kept busy."""

    @property
    def frequencies_mhz(self) -> tuple[int, ...]:
        """Lower frequencies that the processor may be held at."""

    def clock(self) -> float:
        """Monotonic seconds."""

    def pause(self, seconds: float) -> None:
        """Let time pass."""

    def hold(self, load: Load) -> None:
        """Keep the board at `load` from now on."""


class Source(Protocol[SaidT_co]):
    """What one of the two says over a span."""

    def begin(self) -> None:
        """A span begins."""

    def look(self) -> None:
        """Called some times within it."""

    def take(self) -> SaidT_co | None:
        """What it said over the span; ``None`` if it said nothing new."""


@dataclass(frozen=True)
class Pair(Generic[SaidT]):
    """What both said over one span of a load, the instrument in watts."""

    load: Load
    said: SaidT
    true_w: float


class MeanOf:
    """``Source`` over a meter: its mean over the span, of a counter where it counts."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self._fresh: list[Reading] = []
        self._last: Reading | None = None
        self._start: Reading | None = None
        self.error: MeterError | None = None
        """Why the last look failed."""

    def begin(self) -> None:
        """A span begins."""
        self.look()
        self._fresh.clear()
        self._start = self._last

    def look(self) -> None:
        """Ask the meter; that it fails now and then is the way of an I2C bus."""
        try:
            reading = self._meter.read()
        except MeterError as error:
            self.error = error
            return
        self.error = None
        if self._last is None or reading.at_s > self._last.at_s:
            self._fresh.append(reading)
            self._last = reading

    def take(self) -> float | None:
        """Mean watts of the span."""
        if not self._fresh:
            return None
        start, end = self._start, self._fresh[-1]
        if start is not None and start.counter_j is not None and end.counter_j is not None:
            return (end.counter_j - start.counter_j) / (end.at_s - start.at_s)
        return statistics.fmean(reading.power_w for reading in self._fresh)


class PredictorsOf:
    """``Source`` for the power model: what it goes by."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer

    def begin(self) -> None:
        """A span begins."""
        self._observer.look()

    def look(self) -> None:
        """Nothing to do: the observer sees whole spans."""

    def take(self) -> Predictors:
        """Predictors of the span."""
        return self._observer.look()


def loads(cores: int, frequencies_mhz: Sequence[int] = ()) -> tuple[Load, ...]:
    """From idle to all `cores` busy, then busy at each of the lower frequencies."""
    levels = min(cores, _MOST_LEVELS - 1)
    steps = [Load(round(cores * level / levels)) for level in range(levels + 1)]
    return (*steps, *(Load(cores, mhz) for mhz in frequencies_mhz))


def visits(steps: Sequence[Load], pairs_per_visit: int) -> tuple[Load, ...]:
    """`steps` forth and back, often enough for a fit with some pairs to spare."""
    passes = max(_LEAST_PASSES, math.ceil(PAIRS_NEEDED / (len(steps) * pairs_per_visit)))
    return tuple(step for number in range(passes) for step in (steps if number % 2 == 0 else reversed(steps)))


def record(
    bench: Bench,
    route: Sequence[Load],
    subject: Source[SaidT],
    instrument: Source[float],
    *,
    pairs_per_visit: int,
    settle_s: float,
    window_s: float,
    arrived: Callable[[int, Load], None],
) -> Iterator[Pair[SaidT]]:
    """Go through the loads of `route` and give the pairs as they are taken.

    Args:
        subject: what is calibrated, as it is without calibration.
        instrument: what is taken for true, in watts.
        settle_s: seconds at a load before the first pair.
        window_s: seconds of a pair.
        arrived: told of each visit, by its number from 1 on, when its load begins.

    Raises:
        MeterError: one of the two says nothing, or nothing new, for too long.
    """
    for number, load in enumerate(route, start=1):
        arrived(number, load)
        bench.hold(load)
        bench.pause(settle_s)
        found = 0
        for _ in range(_WINDOWS_TRIED * pairs_per_visit):
            pair = _pair(bench, load, subject, instrument, window_s)
            if pair is not None:
                found += 1
                yield pair
            if found == pairs_per_visit:
                break
        else:
            raise _silence(subject, instrument, _WINDOWS_TRIED * pairs_per_visit * window_s)


def _pair(
    bench: Bench, load: Load, subject: Source[SaidT], instrument: Source[float], window_s: float
) -> Pair[SaidT] | None:
    subject.begin()
    instrument.begin()
    until_s = bench.clock() + window_s
    while (left_s := until_s - bench.clock()) > 1e-6:
        bench.pause(min(left_s, LOOK_S))
        subject.look()
        instrument.look()
    said = subject.take()
    true_w = None if said is None else instrument.take()
    return None if said is None or true_w is None else Pair(load, said, true_w)


def _silence(subject: Source[SaidT], instrument: Source[float], waited_s: float) -> MeterError:
    for source in (subject, instrument):
        if isinstance(source, MeanOf) and source.error is not None:
            return source.error
    return MeterError(f"too few new values in {waited_s:.0f} s", meter="instrument", fault="stale")


@dataclass(frozen=True)
class Residual:
    """How well a fit does at one load, in watts."""

    load: Load
    true_w: float
    fitted_w: float


def residuals(pairs: Sequence[Pair[SaidT]], fitted: Callable[[SaidT], float]) -> tuple[Residual, ...]:
    """Means by load, from idle on."""
    by_load: dict[Load, list[Pair[SaidT]]] = {}
    for pair in pairs:
        by_load.setdefault(pair.load, []).append(pair)
    return tuple(
        Residual(
            load,
            statistics.fmean(pair.true_w for pair in group),
            statistics.fmean(fitted(pair.said) for pair in group),
        )
        for load, group in by_load.items()
    )


def with_entry(
    before: Calibration | None, board: str, entry: LineCalibration | ModelCalibration
) -> Calibration:
    """What the file holds once `entry` is in it; entries of another board go."""
    if before is None or before.board != board:
        before = Calibration(board=board)
    if isinstance(entry, ModelCalibration):
        return before.model_copy(update={"model": entry})
    others = tuple(line for line in before.lines if line.meter != entry.meter)
    return before.model_copy(update={"lines": (*others, entry)})
