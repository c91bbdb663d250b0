"""What the gates of several devices say together. Pure.

Each device's gate is a single test, and errs in up to one case of twenty. So single verdicts are not counted; what the
devices measured is pooled. Speed and energy: the logarithms of the ratios new/old, weighted by the inverse of their
variance with the variance between devices added (DerSimonian and Laird, "Meta-analysis in clinical trials", Controlled
Clinical Trials 7, 1986). Answers: those that went wrong, of all that were asked. As on the device the middle decides,
half the limit: a release that is worse by the limit, and one that is no different, are then equally far from it.

What always holds: a criterion that no device measured has no pooled figure, so nothing follows from it silently; an
order of devices changes nothing.

Left to others: what follows (:mod:`edgeslm.fleet.rollout.engine`), and memory, which each device judges for itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from edgeslm.schema.rollout import Figure
from edgeslm.schema.update import Criterion

MEASURED: Final[tuple[Criterion, ...]] = ("ttft", "decode", "energy")
PooledVerdict = Literal["worse", "fine", "open"]

_GATE_REACH = 3.0
"""Standard errors from a gate's mean to its bounds. Where a gate decides after few rounds it goes further: the error is
then taken for larger than it is, and the device counts for less."""
_LEAST_ERROR = 0.002
_REACH = 1.645
"""Standard errors to the pooled bounds: each is missed in 5 of 100 cases."""
_FALSE_FAILS = 0.05
"""Share of gates that fail a release which is no different."""
_SURPRISE = 0.01


@dataclass(frozen=True)
class Pooled:
    """One criterion over several devices.

    Attributes:
        change: share by which the release is worse; between `low` and `high` in 90 of 100 cases.
        limit: at this change it fails; the middle, half of it, decides.
    """

    criterion: Criterion
    devices: int
    change: float
    low: float
    high: float
    limit: float
    verdict: PooledVerdict

    @property
    def leans_worse(self) -> bool:
        """Whether the change lies beyond the middle, however surely."""
        return math.log1p(self.change) > math.log1p(self.limit) / 2


def pool(devices: Iterable[Sequence[Figure]]) -> tuple[Pooled, ...]:
    """What the figures of `devices`, one sequence each, say together; criteria that nobody measured are left out."""
    by_name: dict[Criterion, list[Figure]] = {}
    for figures in devices:
        for figure in figures:
            if figure.change is not None and figure.limit is not None and figure.limit > 0:
                by_name.setdefault(figure.name, []).append(figure)
    found = []
    if "answers" in by_name:
        found.append(_pool_answers(by_name["answers"]))
    for name in MEASURED:
        usable = [one for one in by_name.get(name, ()) if _has_bounds(one)]
        if usable:
            found.append(_pool_ratios(name, usable))
    return tuple(found)


def is_worse(pooled: Iterable[Pooled]) -> Pooled | None:
    """The criterion by which the release is worse, as two devices or more agree; the clearest if there are several."""
    worse = [one for one in pooled if one.verdict == "worse" and one.devices >= 2]
    return max(worse, key=lambda one: one.low / one.limit, default=None)


def too_many_fails(failed: int, judged: int) -> bool:
    """Whether more gates failed than chance explains for a release that is no different."""
    expected = math.fsum(_binomial(count, judged) for count in range(failed, judged + 1))
    return failed >= 2 and expected < _SURPRISE


def would_decide(one: Pooled) -> str:
    """How many devices more would decide a criterion that is open."""
    middle = math.log1p(one.limit) / 2
    mean = math.log1p(one.change)
    reach = (math.log1p(one.high) - math.log1p(max(one.low, -0.99))) / 2
    distance = abs(mean - middle)
    if distance < 1e-4:
        return f"{one.criterion} is too close to half its limit for devices to decide"
    more = max(1, math.ceil(one.devices * (reach / distance) ** 2) - one.devices)
    if more > 1000:
        return f"{one.criterion} is too close to half its limit for devices to decide"
    return f"about {more} more device{'s' if more > 1 else ''} would decide {one.criterion}"


def _binomial(count: int, of: int) -> float:
    return math.comb(of, count) * _FALSE_FAILS**count * (1 - _FALSE_FAILS) ** (of - count)


def _has_bounds(figure: Figure) -> bool:
    values = (figure.change, figure.low, figure.high)
    return all(value is not None for value in values)


def _pool_answers(figures: Sequence[Figure]) -> Pooled:
    limit = max(one.limit or 0.0 for one in figures)
    asked = sum(max(one.prompts, 1) for one in figures)
    wrong = math.fsum((one.change or 0.0) * max(one.prompts, 1) for one in figures)
    share = min(max(wrong / asked, 0.0), 1.0)
    low, high = _wilson(share, asked)
    # The same prompts go wrong on devices that compute alike: more of them do not make the share surer than it looks.
    verdict: PooledVerdict = "worse" if share >= limit / 2 else "fine"
    return Pooled("answers", len(figures), share, low, high, limit, verdict)


def _wilson(share: float, count: int) -> tuple[float, float]:
    """Bounds of a share (Wilson, "Probable inference", Journal of the American Statistical Association 22, 1927)."""
    z2 = _REACH**2
    centre = (share + z2 / (2 * count)) / (1 + z2 / count)
    reach = _REACH * math.sqrt(share * (1 - share) / count + z2 / (4 * count**2)) / (1 + z2 / count)
    return max(0.0, centre - reach), min(1.0, centre + reach)


def _pool_ratios(name: Criterion, figures: Sequence[Figure]) -> Pooled:
    limit = max(one.limit or 0.0 for one in figures)
    means = [math.log1p(one.change or 0.0) for one in figures]
    errors = [_error(one) for one in figures]
    between = _between(means, errors)
    weights = [1.0 / (error**2 + between) for error in errors]
    total = math.fsum(weights)
    mean = math.fsum(weight * value for weight, value in zip(weights, means, strict=True)) / total
    reach = _REACH / math.sqrt(total)
    middle = math.log1p(limit) / 2
    verdict: PooledVerdict = "open"
    if mean - reach > middle:
        verdict = "worse"
    elif mean + reach < middle:
        verdict = "fine"
    return Pooled(
        name,
        len(figures),
        math.expm1(mean),
        math.expm1(mean - reach),
        math.expm1(mean + reach),
        limit,
        verdict,
    )


def _error(figure: Figure) -> float:
    low, high = math.log1p(figure.low or 0.0), math.log1p(figure.high or 0.0)
    return max(_LEAST_ERROR, abs(high - low) / 2 / _GATE_REACH)


def _between(means: Sequence[float], errors: Sequence[float]) -> float:
    """Variance between devices beyond what each one's own error explains."""
    if len(means) < 2:
        return 0.0
    weights = [1.0 / error**2 for error in errors]
    total = math.fsum(weights)
    mean = math.fsum(weight * value for weight, value in zip(weights, means, strict=True)) / total
    spread = math.fsum(weight * (value - mean) ** 2 for weight, value in zip(weights, means, strict=True))
    scale = total - math.fsum(weight**2 for weight in weights) / total
    return max(0.0, (spread - (len(means) - 1)) / scale) if scale > 0 else 0.0
