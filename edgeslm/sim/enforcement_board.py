"""The board of the enforcement simulation: what it truly draws, and a meter that tells most of it.

Its idle draw is not quite that of its kind, swings over the day and wanders; its meter has a period, noise and a gain
of its own. Power and time only: a board with heat, supply and sysfs is :mod:`edgeslm.sim.board`.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class SimMeter:
    """How the simulated meter measures.

    Attributes:
        period_s: seconds between its values, each the mean since the one before.
        noise_share: deviation of a value.
        error_share: deviation of its gain from meter to meter; what it says of itself.
    """

    period_s: float = 0.1
    noise_share: float = 0.005
    error_share: float = 0.005


class EnforcedBoard:
    """True draw of the board, and the meter on it."""

    def __init__(
        self,
        idle_w: float,
        idle_swing: float,
        meter: SimMeter,
        length_s: float,
        rng: np.random.Generator,
        tell: Callable[[float, float, float], None],
    ) -> None:
        """Take what chance decides from `rng`.

        Args:
            idle_w: watts at rest that its kind draws by the table.
            idle_swing: rise and fall of that over a day, as a share.
            length_s: simulated seconds.
            tell: told of each value of the meter: begin, end and joules.
        """
        minutes = int(length_s / 60) + 2
        drift = np.zeros(minutes)
        steps = rng.normal(0.0, 0.001, minutes)
        for at in range(1, minutes):  # wanders, and is drawn back within an hour or so
            drift[at] = drift[at - 1] * (1 - 1 / 60) + steps[at]
        day = np.sin(2 * math.pi * (np.arange(minutes) / 1440 + rng.random()))
        unit = float(np.clip(rng.normal(1.0, 0.02), 0.95, 1.05))
        self._idle_w = idle_w * unit * (1 + idle_swing * day + drift)
        self._length_s = length_s
        self._gain = 1 + meter.error_share * float(np.clip(rng.normal(), -2.5, 2.5))
        self._meter = meter
        self._rng = rng
        self._tell = tell
        self._untold: deque[tuple[float, float, float]] = deque()
        self._told = 0  # values
        self.segments: list[tuple[float, float]] = []
        self.idle_j = 0.0
        self.now_s = 0.0

    def idle_w(self) -> float:
        """Watts of the idle board now."""
        return float(self._idle_w[int(self.now_s / 60)])

    def learned_idle_w(self) -> float:
        """The same as somebody would find who has only this meter."""
        return self.idle_w() * self._gain * (1 + 0.003 * float(self._rng.normal()))

    def spend(self, seconds: float, net_w: float) -> None:
        """Draw `net_w` above idle for `seconds`."""
        end_s = self.now_s + seconds
        while self.now_s < end_s - 1e-9:
            idle_w = self.idle_w()
            until_s = min(end_s, 60.0 * (math.floor(self.now_s / 60) + 1))
            self.segments.append((until_s, idle_w + net_w))
            self._untold.append((self.now_s, until_s, idle_w + net_w))
            self.idle_j += idle_w * max(0.0, min(until_s, self._length_s) - self.now_s)
            self.now_s = until_s
        self._sample()

    def _sample(self) -> None:
        """Tell each value that is due; those of one unchanging draw in one go, which comes to the same."""
        period_s = self._meter.period_s
        due = math.floor(self.now_s / period_s + 1e-9)
        while self._told < due:
            _, end_s, power_w = self._untold[0]
            whole = min(due, math.floor(end_s / period_s + 1e-9))
            if whole <= self._told:
                whole = self._told + 1
                power_w = self._take(whole * period_s) / period_s
            else:
                self._take(whole * period_s)
            count = whole - self._told
            noise = self._meter.noise_share * float(self._rng.normal()) / math.sqrt(count)
            energy_j = power_w * count * period_s * self._gain * (1 + noise)
            self._tell(self._told * period_s, whole * period_s, energy_j)
            self._told = whole

    def _take(self, until_s: float) -> float:
        """Joules drawn until then that were not told yet."""
        energy_j = 0.0
        while self._untold and self._untold[0][0] < until_s - 1e-9:
            start_s, end_s, power_w = self._untold.popleft()
            if end_s > until_s + 1e-9:
                self._untold.appendleft((until_s, end_s, power_w))
                end_s = until_s
            energy_j += (end_s - start_s) * power_w
        return energy_j
