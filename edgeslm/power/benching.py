"""The protocol of ``edgeslm power bench``, after MLPerf Tiny: windows of at least ten seconds, the median of five.

Idle, warm-up, windows of prompts one after the other, idle again. The energy of a window is the integral of what the
whole board drew in it. What lies above the mean of both idle phases is net. It does not depend on how energy is
divided among causes, so it also checks that.

Pure: values with their times in, figures out.

Source: MLPerf Tiny rules (github.com/mlcommons/tiny): at least ten seconds a measurement, median of five.
"""

from __future__ import annotations

import math
import statistics
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from edgeslm.power.attribution import Interval
from edgeslm.power.integrate import weakest
from edgeslm.schema.bench import BenchFigures, BenchProtocol, BenchResult, BenchWindow, Spread
from edgeslm.schema.message import MeterClass

WINDOW_S: Final = 10.0
REPEATS: Final = 5

_IDLE_DRIFT: Final = 0.05
_BUSY_CORES: Final = 0.25
_SPREAD: Final = 0.1
_SIGMAS: Final = 2.0

Verdict = Literal["same", "differs"]


class Trace:
    """Energy of the board over time; spans are added in order, read from the same or another thread."""

    def __init__(self) -> None:
        """Start with nothing."""
        self._ends_s: list[float] = []
        self._sums_j: list[float] = []
        self._start_s = 0.0
        self._classes: dict[MeterClass, float] = {}

    def add(self, interval: Interval) -> None:
        """Take the energy since the last sample."""
        if not self._ends_s:
            self._start_s = interval.start_s
        sum_j = self._sums_j[-1] if self._sums_j else 0.0
        self._sums_j.append(sum_j + interval.energy_j)
        self._classes[interval.meter] = self._classes.get(interval.meter, 0.0) + interval.energy_j
        self._ends_s.append(interval.end_s)

    @property
    def until_s(self) -> float:
        """Monotonic time up to which the energy is known."""
        return self._ends_s[-1] if self._ends_s else -math.inf

    @property
    def meter_class(self) -> MeterClass:
        """The weakest class that a tenth of the energy or more rests on."""
        return weakest(self._classes.items())

    def energy_j(self, start_s: float, end_s: float) -> float:
        """Joules between two monotonic times; within a span its energy counts as even."""
        return self._sum_j(end_s) - self._sum_j(start_s)

    def _sum_j(self, at_s: float) -> float:
        at = bisect_left(self._ends_s, at_s)
        if at == len(self._ends_s):
            return self._sums_j[-1]
        before_s, before_j = (self._ends_s[at - 1], self._sums_j[at - 1]) if at else (self._start_s, 0.0)
        length_s = self._ends_s[at] - before_s
        share = min(max((at_s - before_s) / length_s, 0.0), 1.0) if length_s > 0 else 1.0
        return before_j + share * (self._sums_j[at] - before_j)


@dataclass(frozen=True)
class Phase:
    """A stretch of monotonic time in which one thing was done."""

    start_s: float
    end_s: float

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.end_s - self.start_s


def spread(values: Sequence[float]) -> Spread:
    """Median, least and most."""
    return Spread(median=statistics.median(values), least=min(values), most=max(values))


def figures(windows: Sequence[BenchWindow]) -> BenchFigures:
    """The result of `windows`; a model that generated no tokens has no energy a token, which counts as 0."""

    def over(value: Callable[[BenchWindow], float]) -> Spread:
        return spread([value(window) for window in windows])

    def per_token(window: BenchWindow, energy_j: float) -> float:
        return energy_j / window.completion_tokens if window.completion_tokens else 0.0

    return BenchFigures(
        tokens_per_s=over(lambda window: window.completion_tokens / window.seconds),
        prompts_per_s=over(lambda window: window.prompts / window.seconds),
        power_w=over(lambda window: window.energy_j / window.seconds),
        j_per_token=over(lambda window: per_token(window, window.energy_j)),
        net_j_per_token=over(lambda window: per_token(window, window.net_j)),
        j_per_prompt=over(lambda window: window.energy_j / window.prompts),
        net_j_per_prompt=over(lambda window: window.net_j / window.prompts),
    )


def notes(
    *,
    protocol: BenchProtocol,
    idle_w: tuple[float, float],
    busy_cores: float,
    windows: Sequence[BenchWindow],
    meter: MeterClass,
    golden: tuple[int, int],
    meters: Iterable[str],
) -> tuple[str, ...]:
    """What a reader should know before believing the figures.

    Args:
        idle_w: draw of the idle board before and after.
        busy_cores: cores that were busy while it was to be idle.
        golden: prompts that were asked and those that were answered rightly.
        meters: names of all that were used.
    """
    found = []
    if protocol.window_s < WINDOW_S or protocol.repeats < REPEATS:
        found.append(
            f"{protocol.repeats} windows of {protocol.window_s:g} s; comparable results have {REPEATS} of "
            f"{WINDOW_S:g} s or more"
        )
    if meter == "estimated":
        found.append("no meter: the energy is estimated from processor time and the board's power table")
    if len(names := sorted(set(meters))) > 1:
        found.append(f"the meter changed while it ran: {', '.join(names)}")
    before_w, after_w = idle_w
    if abs(after_w - before_w) > _IDLE_DRIFT * before_w:
        found.append(f"the idle draw changed from {before_w:.2f} W to {after_w:.2f} W")
    if busy_cores > _BUSY_CORES:
        found.append(f"other programs kept {busy_cores:.1f} cores busy while the board was to be idle")
    if any(window.throttled for window in windows):
        found.append("the firmware slowed the board down")
    power = spread([window.energy_j / window.seconds for window in windows])
    if power.most - power.least > _SPREAD * power.median:
        found.append(f"the windows differ: {power.least:.2f} to {power.most:.2f} W")
    asked, right = golden
    if right < asked:
        found.append(f"{asked - right} of {asked} golden prompts were answered wrongly")
    return tuple(found)


@dataclass(frozen=True)
class Comparison:
    """One figure of two results.

    Attributes:
        figure: its name in :class:`edgeslm.schema.bench.BenchFigures`.
        ratio: the second by the first; ``None`` where the first is 0.
        error_share: how far the ratio may be off (one sigma).
    """

    figure: str
    first: float
    second: float
    ratio: float | None
    error_share: float

    @property
    def verdict(self) -> Verdict:
        """Whether they differ by more than errors explain."""
        apart = self.ratio is None or abs(self.ratio - 1) > _SIGMAS * self.error_share
        return "differs" if apart else "same"


def compare(first: BenchResult, second: BenchResult) -> tuple[Comparison, ...]:
    """All figures side by side.

    How much the windows scatter counts as error. So does that of the meters, unless both runs used the same on the same
    board, which is wrong alike both times.
    """
    alike = (first.meter.name, first.system.board) == (second.meter.name, second.system.board)
    return tuple(_compare(name, first, second, alike=alike) for name in BenchFigures.model_fields)


def _compare(name: str, first: BenchResult, second: BenchResult, *, alike: bool) -> Comparison:
    values: list[Spread] = [getattr(result.figures, name) for result in (first, second)]
    errors = [_scatter(value) for value in values]
    net = name.startswith("net_")
    for result in (first, second):
        errors += [_baseline_error(result)] * net
        errors += [_meter_error(result, net=net)] * (not alike and not name.endswith("per_s"))
    one, other = (value.median for value in values)
    return Comparison(name, one, other, other / one if one else None, math.hypot(*errors))


def _scatter(value: Spread) -> float:
    """Half the range of the windows, as a share."""
    return (value.most - value.least) / 2 / abs(value.median) if value.median else 0.0


def _baseline_error(result: BenchResult) -> float:
    """Relative error of what lies above idle, by what the idle draw changed from before to after."""
    idle_w = (result.idle_before_w + result.idle_after_w) / 2
    net_w = result.figures.power_w.median - idle_w
    return abs(result.idle_after_w - result.idle_before_w) / 2 / net_w if net_w > 0 else 1.0


def _meter_error(result: BenchResult, *, net: bool) -> float:
    """Relative error of an energy by its meter, whose offset cancels in what lies above idle."""
    power_w = result.figures.power_w.median
    offset = result.meter.error_w / power_w if power_w > 0 and not net else 0.0
    return math.hypot(result.meter.error_share, offset)
