"""Whose joules: one stretch of measured energy divided among what caused it, all of it and nothing twice.

A stretch has three parts. What busy cores took goes to whoever kept them busy, by core seconds. What neither the
idle board nor its cores explain goes to ``other``. The rest is the idle board; it goes to the work that was open, by
time, and to ``idle`` while none was.

How much the busy cores took is both measured (the draw above idle) and known beforehand (core seconds times the
learned draw of a core). The two are weighed by their errors: over a long answer the meter decides; for the 7 ms of a
short one within a sample of 100 ms the noise of the meter would drown it, and the learned draw decides.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from edgeslm.power.baseline import CALM_CORES, CoreDraw, IdleDraw, gain
from edgeslm.power.port import Cause
from edgeslm.schema.message import MeterClass

CauseKind = Literal["idle", "agent", "other", "prompt", "test", "update"]
"""What energy goes to: ``idle`` the board at rest, ``agent`` this process outside any span, ``other`` all that is
not ours; the rest are the kinds of :class:`edgeslm.power.port.Cause`."""

_CALM_S = 5.0
_NOISE_S = 20.0


@dataclass(frozen=True, slots=True)
class Share:
    """What one cause took of a settlement.

    Attributes:
        energy_j: joules, its part of the idle draw included.
        net_j: joules above the idle draw.
        seconds: wall time that is its own; over all causes they sum to the length of the settlement.
    """

    kind: CauseKind
    model: str | None
    rule: str | None
    energy_j: float
    net_j: float
    seconds: float


@dataclass(slots=True)
class EnergySum:
    """Joules, joules above idle, and seconds, as they add up."""

    energy_j: float = 0.0
    net_j: float = 0.0
    seconds: float = 0.0

    def add(self, energy_j: float, net_j: float, seconds: float) -> None:
        """Add more."""
        self.energy_j += energy_j
        self.net_j += net_j
        self.seconds += seconds


@dataclass(frozen=True, slots=True)
class EndedSpan:
    """The final account of a piece of work.

    Attributes:
        seconds: wall time from begin to end.
        energy_j: joules it is charged with.
        net_j: joules above the idle draw.
        meter: the weakest class that a tenth of the energy or more rests on.
    """

    cause: Cause
    seconds: float
    energy_j: float
    net_j: float
    meter: MeterClass


@dataclass(frozen=True, slots=True)
class Settlement:
    """A stretch of time whose energy is known and divided; settlements are contiguous.

    Attributes:
        start_s: monotonic.
        end_s: monotonic.
        energy_j: what the meter says; the shares sum to it.
        meter: class of that.
        shares: one for each cause.
        ended: spans that ended in it, or before it in time not settled until now.
    """

    start_s: float
    end_s: float
    energy_j: float
    meter: MeterClass
    shares: tuple[Share, ...]
    ended: tuple[EndedSpan, ...]


@dataclass(frozen=True, slots=True)
class Interval:
    """Energy of the whole board since the last sample: what budget windows count.

    Where the meter has spoken it is measured; where it speaks less often than it is asked, what the board should
    have drawn meanwhile, made up for in the next interval once the meter has spoken. So the intervals sum to the
    meter's total, are never negative, and follow each other without a gap.

    Attributes:
        start_s: monotonic.
        end_s: monotonic.
        energy_j: joules to count now.
        power_w: latest draw in watts.
        meter: class of the energy.
        settlement: the stretch that this sample settled, if it settled one.
    """

    start_s: float
    end_s: float
    energy_j: float
    power_w: float
    meter: MeterClass
    settlement: Settlement | None


@dataclass(frozen=True, slots=True)
class Division:
    """A stretch divided: ``busy_j + unexplained_j + idle_j`` is its energy.

    Attributes:
        busy_j: taken by busy cores.
        unexplained_j: taken by neither cores nor the idle board.
        idle_j: taken by the idle board.
    """

    busy_j: float
    unexplained_j: float
    idle_j: float


@dataclass(frozen=True, slots=True)
class Draw:
    """What is known of the board's draw beside its meter.

    Attributes:
        calm_w: draw of the board while calm, without its cores, over the last seconds.
        calm_error_w: how far noise alone takes that (two sigma).
        last_w: the last of the values that went into it.
        noise_w: how much such values scatter (one sigma).
    """

    idle: IdleDraw
    core: CoreDraw
    calm_w: float
    calm_error_w: float = 0.0
    last_w: float | None = None
    noise_w: float = 0.0

    @property
    def excess_w(self) -> float:
        """Watts that neither idle board nor cores explain: a screen, a disk, a transfer."""
        return max(self.calm_w - self.calm_error_w - self.idle.idle_w, 0.0)

    def expected_j(self, seconds: float, busy_s: float) -> float:
        """Joules over `seconds` with `busy_s` core seconds of work."""
        return (self.idle.idle_w + self.excess_w) * seconds + self.core.core_w * busy_s

    def divide(self, seconds: float, energy_j: float, step_j: float, busy_s: float) -> Division:
        """Divide the energy of `seconds` with `busy_s` core seconds of work.

        Args:
            step_j: see :class:`edgeslm.power.integrate.Piece`.
        """
        excess_j = self.excess_w * seconds
        expected_j = self.core.core_w * busy_s
        apart_j = energy_j - self.idle.idle_w * seconds - excess_j - expected_j
        own_variance = (self.core.error_share * expected_j) ** 2
        # Where between two values a step fell is not known at all, and the work may lie before or after it.
        meter_variance = (self.noise_w * seconds) ** 2 + (3 * step_j) ** 2
        trust = own_variance / (own_variance + meter_variance) if own_variance > 0 else 0.0
        busy_j = min(max(expected_j + trust * apart_j, 0.0), energy_j)
        unexplained_j = min(excess_j, energy_j - busy_j)
        return Division(busy_j, unexplained_j, energy_j - busy_j - unexplained_j)

    def observe(self, seconds: float, energy_j: float, busy_s: float) -> Draw:
        """After a stretch that a meter spoke for: what the calm board draws just now, and how its values scatter."""
        if busy_s > CALM_CORES * seconds:
            return self
        value_w = (energy_j - self.core.core_w * busy_s) / seconds
        variance = self.noise_w**2
        if self.last_w is not None:
            # From one value to the next: what changes slowly is no noise.
            variance += gain(seconds, _NOISE_S) * ((value_w - self.last_w) ** 2 / 2 - variance)
        noise_w = math.sqrt(variance)
        step = gain(seconds, _CALM_S)
        return replace(
            self,
            calm_w=self.calm_w + step * (value_w - self.calm_w),
            calm_error_w=2 * noise_w * math.sqrt(step / 2),
            last_w=value_w,
            noise_w=noise_w,
        )
