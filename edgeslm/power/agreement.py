"""Whether the meters of one board agree, and which of them is wrong if they do not.

Two instruments are compared value by value at the pace of the slower one. What counts is the mean difference over some
tens of seconds against the error that both state together with the scatter of the difference itself: two meters that
look at different moments scatter under a bursty load without either being wrong.

Each instrument is also set beside the board's model. The model may be wrong about the level by a fifth and knows
nothing of what hangs on the ports, but how an instrument goes with it does not change by itself. So it serves as a
witness: of two instruments that part, the one that parted from the model too is the one that drifts.

Pure: time comes in as an argument.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edgeslm.power.health import Limits
from edgeslm.power.port import MeterFacts

DISAGREE_SIGMAS = 3.0
AGREE_SIGMAS = 2.0
_PLAIN_SIGMAS = 6.0
_PAIR_TAU_S = 20.0
_LATELY_TAU_S = 30.0
_LONG_TAU_S = 3600.0
_LONG_START_S = 120.0
_CLEARLY_MORE = 1.5
_SHIFT_NOISE = 0.01
_FACTOR_APART = 1.5
_GAIN_FACTOR = 2.0
_LEAST_MODEL_ERROR = 0.2
_PLAIN_MODEL_ERROR = 0.3
_LEAST_SPREAD_CORES = 0.3


def error_of(facts: MeterFacts, power_w: float) -> float:
    """Standard error in watts of a value of a meter."""
    return math.hypot(facts.error_share * power_w, facts.error_w)


class Moments:
    """Smoothed means and spreads of two quantities that come in pairs."""

    def __init__(self, tau_s: float, start_s: float) -> None:
        """Smooth over `tau_s`; what comes in the first `start_s` counts evenly."""
        self.x = self.y = 0.0
        self.var_x = self.var_y = self.cov = 0.0
        self.elapsed_s = 0.0
        self.gap_s = 0.0
        self._tau_s = tau_s
        self._start_s = start_s
        self._at_s: float | None = None

    def add(self, at_s: float, x: float, y: float) -> None:
        """One more pair, at monotonic `at_s`."""
        if self._at_s is None:
            self._at_s, self.x, self.y = at_s, x, y
            return
        gap_s = at_s - self._at_s
        if gap_s <= 0:
            return
        self._at_s = at_s
        self.elapsed_s += gap_s
        share = -math.expm1(-gap_s / self._tau_s)
        if self.elapsed_s < self._start_s:
            share = max(share, gap_s / (self.elapsed_s + gap_s))
        apart_x, apart_y, rest = x - self.x, y - self.y, 1.0 - share
        self.x += share * apart_x
        self.y += share * apart_y
        self.var_x = rest * (self.var_x + share * apart_x**2)
        self.var_y = rest * (self.var_y + share * apart_y**2)
        self.cov = rest * (self.cov + share * apart_x * apart_y)
        self.gap_s += share * (gap_s - self.gap_s) if self.gap_s else gap_s

    @property
    def established(self) -> bool:
        """Whether as much time went by as its first values are to have."""
        return self.elapsed_s >= self._start_s


class Difference:
    """Two instruments side by side."""

    def __init__(self, one: MeterFacts, other: MeterFacts) -> None:
        self._one = one
        self._other = other
        self._tau_s = max(_PAIR_TAU_S, 5 * max(one.period_s, other.period_s))
        self._moments = Moments(self._tau_s, self._tau_s)

    def add(self, at_s: float, one_w: float, other_w: float) -> None:
        """One more pair of values of the same moment."""
        self._moments.add(at_s, one_w, other_w)

    def sigmas(self) -> float | None:
        """How many standard errors the two are apart, or ``None`` before that can be said."""
        pair = self._moments
        if not pair.established:
            return None
        stated = math.hypot(error_of(self._one, pair.x), error_of(self._other, pair.y))
        scatter = (pair.var_x + pair.var_y - 2 * pair.cov) * pair.gap_s / self._tau_s
        return abs(pair.x - pair.y) / max(math.sqrt(stated**2 + max(scatter, 0.0)), 1e-6)

    @property
    def means_w(self) -> tuple[float, float]:
        """Smoothed values of both."""
        return self._moments.x, self._moments.y


class Relation:
    """How an instrument goes with the board's model, lately and in the long run."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._lately = Moments(_LATELY_TAU_S, _LATELY_TAU_S)
        self._long = Moments(_LONG_TAU_S, _LONG_START_S)

    def add(self, at_s: float, expected_w: float, power_w: float) -> None:
        """What the model expects, and what the instrument says of the same moment."""
        self._lately.add(at_s, expected_w, power_w)
        self._long.add(at_s, expected_w, power_w)

    @property
    def expected_w(self) -> float:
        """What the model expected lately."""
        return self._lately.x

    def shift(self) -> float | None:
        """By how much (logarithm) the instrument left its relation to the model, or ``None`` before there is one."""
        if not self._long.established:
            return None
        return math.log(_ratio(self._lately)) - math.log(_ratio(self._long))

    def impossible(self, model: MeterFacts) -> str | None:
        """What the instrument shows and cannot be, as a sentence.

        Less than the processor needs cannot be, nor more than it needs beside all that the ports can feed, nor a
        response to load that became twice or half of what it was. The model's own error is granted three times over
        and never counted below 20 %, for boards lose peripherals too. Of a model that is a guess (a PC, where one core
        may draw what four draw together) the response is not believed.
        """
        lately = self._lately
        if not lately.established:
            return None
        slack = 3 * max(model.error_share, _LEAST_MODEL_ERROR)
        most_w = math.inf
        if self._limits.unseen_w is not None:
            most_w = lately.x * (1.0 + slack) + self._limits.unseen_w
        if not lately.x * (1.0 - slack) <= lately.y <= most_w:
            return f"{lately.y:.2f} W, while the processor alone explains {lately.x:.2f} W"
        if not self._long.established or model.error_share > _PLAIN_MODEL_ERROR:
            return None
        gain, usual = self._gain(lately), self._gain(self._long)
        if gain is not None and usual is not None and not 1 / _GAIN_FACTOR <= gain / usual <= _GAIN_FACTOR:
            return f"it answers load {gain / usual:.1f} times as strongly as it used to"
        return None

    def _gain(self, moments: Moments) -> float | None:
        """Watts shown for a watt expected, where the load changed enough to tell."""
        least_w = _LEAST_SPREAD_CORES * self._limits.core_load_w
        if moments.var_x < least_w**2:
            return None
        gain = moments.cov / moments.var_x
        left = max(moments.var_y - gain * moments.cov, 0.0)
        # Unless the model explains most of what the instrument shows, the slope means nothing.
        return gain if gain > 0 and left < 0.5 * moments.var_y else None


def _ratio(moments: Moments) -> float:
    return max(moments.y, 1e-3) / max(moments.x, 1e-3)


@dataclass(frozen=True)
class Contradiction:
    """Two instruments that are further apart than their errors allow."""

    one: str
    other: str
    one_w: float
    other_w: float
    sigmas: float


def blame(
    contradictions: Sequence[Contradiction],
    agreements: Sequence[tuple[str, str]],
    relations: Mapping[str, Relation],
    worst: str,
) -> str | None:
    """Which of several instruments is wrong, or ``None`` while that cannot be said.

    One that contradicts more others than it agrees with stands alone. Between two, it is the one that left its
    relation to the model, else the one that is far from the model. Where neither tells, `worst` (the least exact by
    its own account) goes, but only once they are far apart: a drift that goes on tells in time.

    Args:
        contradictions: pairs of instruments that disagree.
        agreements: pairs that agree.
        relations: each instrument's relation to the model.
        worst: of all instruments in the contradictions.
    """
    if not contradictions:
        return None
    against: dict[str, int] = {}
    values_w: dict[str, float] = {}
    for found in contradictions:
        for name, value_w in ((found.one, found.one_w), (found.other, found.other_w)):
            against[name] = against.get(name, 0) + 1
            values_w[name] = value_w
    suspects = [name for name in against if against[name] > sum(name in pair for pair in agreements)]
    if len(suspects) == 1:
        return suspects[0]
    suspects = suspects or list(against)
    shifts = [(abs(shift), name) for name in suspects if (shift := relations[name].shift()) is not None]
    if len(shifts) == len(suspects):
        (second, _), (most, name) = sorted(shifts)[-2:]
        if most > _CLEARLY_MORE * second + _SHIFT_NOISE:
            return name
    factors = sorted((_factor(values_w[name], relations[name].expected_w), name) for name in suspects)
    if factors[-1][0] > _FACTOR_APART * factors[-2][0]:
        return factors[-1][1]
    far = max(found.sigmas for found in contradictions) > _PLAIN_SIGMAS
    return worst if far and worst in suspects else None


def _factor(power_w: float, expected_w: float) -> float:
    low, high = sorted((max(power_w, 1e-3), max(expected_w, 1e-3)))
    return high / low


def worst_of(facts: Mapping[str, MeterFacts], names: Sequence[str], power_w: float) -> str:
    """The one of `names` that is least exact by its own account at `power_w`; slow ones before fast."""
    return max(names, key=lambda name: (facts[name].period_s > 1.0, error_of(facts[name], power_w), name))
