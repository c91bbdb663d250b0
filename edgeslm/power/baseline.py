"""What the board draws at rest, and what a busy core adds: learned from its meter, with the power table as prior.

The whole is taken as ``idle_w + core_w * busy cores``. It divides measured energy among what caused it, and stands
in where no value of a meter is at hand: within a prompt shorter than a sample, and across a stall.

What always holds: the idle draw is never negative, and once the board was seen calm it is never above the highest
draw seen then. It falls within seconds when the board draws less, and rises only over minutes and only while the
board is calm (warmth, a disk plugged in), so that hours of work do not become "idle".

Values only, no clock and no I/O: each ``learn`` returns a new one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from edgeslm.schema.message import MeterClass

CALM_CORES = 0.25
"""Busy cores below which the board counts as calm."""

_FALL_S = 6.0
_NEAR_S = 60.0
_RISE_S = 600.0
_REMEMBERED_CALM_S = 30.0

_PRIOR_WEIGHT = 0.5
_MOST_WEIGHT = 120.0
_TRUSTED_WEIGHT = 10.0


def gain(seconds: float, time_constant_s: float) -> float:
    """How far a running mean with this time constant goes towards a value that held for `seconds`: 0 to 1."""
    return -math.expm1(-seconds / time_constant_s)


@dataclass(frozen=True, slots=True)
class IdleDraw:
    """Draw of the board with nothing to do.

    Attributes:
        idle_w: watts.
        calm_s: seconds of calm that it was learned from; 0 is the power table alone.
    """

    idle_w: float
    calm_s: float = 0.0

    def learn(self, seconds: float, power_w: float, error_w: float) -> IdleDraw:
        """After calm `seconds` with a mean draw of `power_w`, known to `error_w` (one sigma)."""
        apart_w = power_w - self.idle_w
        if abs(apart_w) <= 3 * error_w + 0.01 * self.idle_w:
            time_constant_s = _NEAR_S
        else:
            time_constant_s = _FALL_S if apart_w < 0 else _RISE_S
        # At first the plain mean of what was seen: a prior from a table may be far off.
        step = max(gain(seconds, time_constant_s), seconds / (self.calm_s + seconds))
        # Not idle + step * apart: that would leave the rounding error of a far larger prior.
        return IdleDraw((1.0 - step) * self.idle_w + step * power_w, self.calm_s + seconds)

    def bound(self, seconds: float, power_w: float, error_w: float) -> IdleDraw:
        """After `seconds` of anything with a mean draw of `power_w`: at rest it draws no more than that."""
        if power_w + 3 * error_w >= self.idle_w:
            return self
        return replace(self, idle_w=max(0.0, self.idle_w + gain(seconds, _FALL_S) * (power_w - self.idle_w)))

    def state(self) -> dict[str, object]:
        """What :meth:`restore` takes."""
        return {"idle_w": self.idle_w, "calm_s": self.calm_s}

    def restore(self, state: Mapping[str, object]) -> IdleDraw:
        """What was learned before a restart; itself where `state` holds nothing of use."""
        idle_w, calm_s = number(state, "idle_w"), number(state, "calm_s")
        if idle_w is None or calm_s is None:
            return self
        # The board may have changed while it was off: trusted, but not for long.
        return IdleDraw(idle_w, min(calm_s, _REMEMBERED_CALM_S))


@dataclass(frozen=True, slots=True)
class CoreDraw:
    """Draw that a fully busy core adds: a regression through the origin that forgets what is long past.

    Attributes:
        core_w: watts.
        weight: what it rests on, in seconds times busy cores squared; the power table counts as half a one.
        measured_weight: how much of that came from a meter that is not itself an estimate.
    """

    core_w: float
    weight: float = _PRIOR_WEIGHT
    measured_weight: float = 0.0

    @property
    def meter_class(self) -> MeterClass:
        """``calibrated`` once most of it was fitted against a meter."""
        return "calibrated" if self.measured_weight >= _TRUSTED_WEIGHT else "estimated"

    @property
    def error_share(self) -> float:
        """Relative error (one sigma) for one piece of work: kinds of work differ among each other."""
        return 0.3 if self.meter_class == "calibrated" else 0.6

    def learn(self, seconds: float, busy_s: float, net_j: float, meter: MeterClass) -> CoreDraw:
        """After `seconds` with `busy_s` core seconds of work that took `net_j` joules above idle."""
        if meter == "estimated" and self.measured_weight > 0:
            return self
        more = busy_s * busy_s / seconds
        if more <= 0:
            return self
        core_w = max(0.0, (self.weight * self.core_w + net_j * busy_s / seconds) / (self.weight + more))
        measured = self.measured_weight + (more if meter != "estimated" else 0.0)
        return CoreDraw(core_w, min(self.weight + more, _MOST_WEIGHT), min(measured, _MOST_WEIGHT))

    def state(self) -> dict[str, object]:
        """What :meth:`restore` takes."""
        return {"core_w": self.core_w, "weight": self.weight, "measured_weight": self.measured_weight}

    def restore(self, state: Mapping[str, object]) -> CoreDraw:
        """What was learned before a restart; itself where `state` holds nothing of use."""
        core_w, weight = number(state, "core_w"), number(state, "weight")
        measured = number(state, "measured_weight")
        if core_w is None or weight is None or measured is None:
            return self
        return CoreDraw(core_w, min(max(weight, _PRIOR_WEIGHT), _MOST_WEIGHT), min(measured, _MOST_WEIGHT))


def number(state: Mapping[str, object], key: str) -> float | None:
    """A finite number of 0 or more, or ``None``."""
    value = state.get(key)
    if isinstance(value, (int, float)) and math.isfinite(value) and value >= 0:
        return float(value)
    return None
