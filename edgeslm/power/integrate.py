"""From readings of meters to joules, piece by piece.

What always holds:

* pieces are contiguous: each begins where the one before ended, so no joule is dropped or counted twice;
* time is monotonic time alone; what the wall clock does cannot matter;
* a counter is differenced, so what it counts is right however long nobody looked. Power is integrated by the
  trapezoidal rule, and where the meter averages, by its mean over the time it averages;
* what no value speaks for (a gap longer than three periods) is filled with the draw that the caller expects, and
  the piece says how many of its joules those are;
* joules of two meters are never subtracted from each other: where one takes over, the gap between their values is
  integrated like any other.

Nothing here samples, waits or decides which meter to believe.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from edgeslm.power.port import MeterFacts, Reading
from edgeslm.schema.message import MeterClass

STALL_PERIODS = 3
"""A gap of more than this many periods is a stall: the load may have done anything in it."""

_MATTERS_SHARE = 0.1
_STRENGTH: dict[MeterClass, int] = {"measured": 0, "calibrated": 1, "estimated": 2}


def weaker(first: MeterClass, second: MeterClass) -> MeterClass:
    """The one of two classes that promises less."""
    return max(first, second, key=_STRENGTH.__getitem__)


def weakest(parts: Iterable[tuple[MeterClass, float]]) -> MeterClass:
    """The weakest class that a tenth of the energy or more rests on; `parts` are classes with their joules."""
    parts = list(parts)
    enough_j = _MATTERS_SHARE * sum(energy_j for _, energy_j in parts)
    return max((meter for meter, energy_j in parts if energy_j >= enough_j), key=_STRENGTH.__getitem__)


@dataclass(frozen=True, slots=True)
class Piece:
    """Energy of the whole board over one stretch of time.

    Attributes:
        start_s: monotonic; where the piece before ended.
        end_s: monotonic.
        energy_j: joules drawn.
        bridged_j: how many of them no value of a meter speaks for.
        step_j: how many more or fewer they would be, had all of a step between two values come right after the
            first or right before the second.
        meter: class of the meter (of two, the weaker) that speaks for the others.
    """

    start_s: float
    end_s: float
    energy_j: float
    bridged_j: float
    step_j: float
    meter: MeterClass


@dataclass(frozen=True, slots=True)
class _Anchor:
    """What is known of the moment up to which all is integrated."""

    meter: str
    meter_class: MeterClass
    power_w: float | None
    counter_j: float | None
    stall_s: float


class Integrator:
    """Joules from readings in the order in which they came; not thread-safe."""

    def __init__(self, period_s: float) -> None:
        """Start with nothing.

        Args:
            period_s: seconds between two readings as planned.
        """
        self._period_s = period_s
        self._anchor: _Anchor | None = None
        self._until_s = 0.0

    @property
    def until_s(self) -> float | None:
        """Monotonic time up to which all is integrated; ``None`` before the first reading."""
        return None if self._anchor is None else self._until_s

    @property
    def stall_s(self) -> float:
        """Seconds without a new value that are a stall of the meter last heard."""
        return STALL_PERIODS * self._period_s if self._anchor is None else self._anchor.stall_s

    def advance(self, reading: Reading, facts: MeterFacts, now_s: float, expected_w: float) -> Piece | None:
        """Integrate up to `reading`.

        Args:
            facts: of the meter that gave it.
            now_s: monotonic; what was before the first call is not integrated.
            expected_w: mean draw since :attr:`until_s` as far as anybody can tell without a meter.

        Returns:
            The next piece, or ``None`` if the reading brings nothing new: it is the first, or not younger than what
            is integrated already.
        """
        before = self._anchor
        stall_s = STALL_PERIODS * max(self._period_s, facts.period_s)
        if before is None:
            fresh = now_s - reading.at_s <= self._period_s
            self._until_s = reading.at_s if fresh else now_s
            self._anchor = _Anchor(
                facts.name, facts.meter_class, reading.power_w, reading.counter_j if fresh else None, stall_s
            )
            return None
        if reading.at_s <= self._until_s:
            if facts.name != before.meter:
                self._anchor = _Anchor(facts.name, facts.meter_class, None, None, stall_s)
            return None
        self._anchor = _Anchor(facts.name, facts.meter_class, reading.power_w, reading.counter_j, stall_s)
        return self._piece(before, reading, facts, expected_w, stall_s)

    def bridge(self, until_s: float, expected_w: float) -> Piece | None:
        """Fill the time up to monotonic `until_s` without a reading.

        Whatever comes next is integrated from there: a counter starts anew, since part of what it counted is filled.
        """
        before = self._anchor
        if before is None or until_s <= self._until_s:
            return None
        energy_j = expected_w * (until_s - self._until_s)
        piece = Piece(self._until_s, until_s, energy_j, energy_j, 0.0, before.meter_class)
        self._until_s = until_s
        self._anchor = _Anchor(before.meter, before.meter_class, None, None, before.stall_s)
        return piece

    def _piece(
        self, before: _Anchor, reading: Reading, facts: MeterFacts, expected_w: float, stall_s: float
    ) -> Piece:
        start_s, self._until_s = self._until_s, reading.at_s
        same = facts.name == before.meter
        meter = facts.meter_class if same else weaker(facts.meter_class, before.meter_class)
        if (
            same
            and before.counter_j is not None
            and reading.counter_j is not None
            and reading.counter_j >= before.counter_j
        ):
            return Piece(start_s, reading.at_s, reading.counter_j - before.counter_j, 0.0, 0.0, meter)
        length_s = reading.at_s - start_s
        covered_s = min(length_s, facts.period_s) if facts.averages else 0.0
        rest_s = length_s - covered_s
        covered_j = covered_s * reading.power_w
        if length_s > stall_s:
            bridged_j = rest_s * expected_w
            return Piece(start_s, reading.at_s, covered_j + bridged_j, bridged_j, 0.0, meter)
        first_w = reading.power_w if before.power_w is None else before.power_w
        energy_j = covered_j + rest_s * (first_w + reading.power_w) / 2
        step_j = rest_s * abs(reading.power_w - first_w) / 2
        return Piece(start_s, reading.at_s, energy_j, 0.0, step_j, meter)
