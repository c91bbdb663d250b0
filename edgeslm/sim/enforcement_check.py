"""Looks at a simulated board's true draw and tells whether a budget was kept, and how well it was used.

Knows nothing of how the governor counts. The draw is constant between the times at which it changes, so the energy of
a sliding window is piecewise linear in time, and its highest value lies where an end of the window meets a change:
looking there is exact, and finer than any grid.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgeslm.schema.budget import Budget


@dataclass(frozen=True)
class Draw:
    """What a board drew.

    Attributes:
        times_s: (n + 1,) float64, rising; the draw is constant between neighbours.
        energy_j: (n + 1,) float64, joules since the first of `times_s`.
    """

    times_s: NDArray[np.float64]
    energy_j: NDArray[np.float64]

    @classmethod
    def of(cls, segments: Iterable[tuple[float, float]]) -> Draw:
        """From pairs of end time and watts, in order, beginning at 0."""
        table = np.array([(0.0, 0.0), *segments])
        times_s, power_w = table[:, 0], table[1:, 1]
        energy_j = np.concatenate(([0.0], np.cumsum(np.diff(times_s) * power_w)))
        return cls(times_s, energy_j)

    def most_j(self, over_s: float) -> float:
        """Most joules of any stretch of `over_s` seconds."""
        ends_s = np.concatenate((self.times_s, self.times_s + over_s))
        ends_s = ends_s[ends_s <= self.times_s[-1]]
        last_j = np.interp(ends_s, self.times_s, self.energy_j)
        first_j = np.interp(ends_s - over_s, self.times_s, self.energy_j)
        return float(np.max(last_j - first_j))


@dataclass(frozen=True)
class Kept:
    """How a budget was kept.

    Attributes:
        overshoot: by window, how far its fullest stretch went above the limit, as a share of it; 0 if it did not.
        used: share of the allowed energy that was drawn.
        used_net: the same above idle.
    """

    overshoot: dict[str, float]
    used: float
    used_net: float


def check(budget: Budget, draw: Draw, idle_j: float) -> Kept:
    """Compare `draw`, of which the idle board would have drawn `idle_j`, with what `budget` allows.

    The allowed energy is the least of what each window for itself allows over the whole time, which has to be a
    multiple of its length: no scheduler in the world could draw more.

    Raises:
        ValueError: the time is no multiple of a window's length, or the budget has no window.
    """
    length_s = float(draw.times_s[-1])
    for window in budget.windows:
        if abs(length_s / window.over_s - round(length_s / window.over_s)) > 1e-9:
            raise ValueError(f"{length_s} s are no multiple of window '{window.name}'")
    if not budget.windows:
        raise ValueError("without windows everything is allowed")
    overshoot = {
        window.name: max(0.0, draw.most_j(window.over_s) / window.limit_j - 1.0) for window in budget.windows
    }
    allowed_j = min(window.limit_w for window in budget.windows) * length_s
    total_j = float(draw.energy_j[-1])
    return Kept(overshoot, total_j / allowed_j, (total_j - idle_j) / (allowed_j - idle_j))
