"""Before and after: by how much a figure changed over many devices, and how sure that is. Pure.

Each device is its own comparison: what one board draws more than another is the same before and after, and drops out.
Of several devices the mean of their changes is told with the bounds of Student's t (95 %); a change in proportion is
the mean of logarithms, so that half and double weigh the same. Of one device the steps of time before are held
against those after (Welch), which takes the hours of a day for independent: a weaker statement, and called so.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from edgeslm.fleet.metrics.figures import Better

CONFIDENCE: Final = 0.95
_NOTHING: Final = 1e-9
"""A change that is smaller comes from adding up in another order."""
Verdict = Literal["better", "worse", "changed", "no difference shown", "too little data"]
Basis = Literal["devices", "time"]


@dataclass(frozen=True)
class Change:
    """How a figure changed.

    Attributes:
        before: mean of the devices, after likewise.
        change: as a share of `before` for a change in proportion, else in the figure's unit.
        low: of `change`, with 95 % confidence; `high` likewise.
        count: devices, or steps of time of the one device.
        basis: what was compared.
    """

    before: float | None
    after: float | None
    change: float | None
    low: float | None
    high: float | None
    count: int
    basis: Basis
    verdict: Verdict


def paired(pairs: Sequence[tuple[float, float]], *, better: Better | None, is_ratio: bool) -> Change:
    """The change over devices, from what each had before and after."""
    used = [pair for pair in pairs if not is_ratio or min(pair) > 0]
    changes = [math.log(after / before) if is_ratio else after - before for before, after in used]
    before = statistics.fmean(pair[0] for pair in used) if used else None
    after = statistics.fmean(pair[1] for pair in used) if used else None
    if not used:
        return Change(before, after, None, None, None, 0, "devices", "too little data")
    mean = statistics.fmean(changes)
    if len(changes) < 2:
        return Change(before, after, _told(mean, is_ratio), None, None, 1, "devices", "too little data")
    margin = _t(len(changes) - 1) * statistics.stdev(changes) / math.sqrt(len(changes))
    return _change(before, after, mean, margin, len(changes), "devices", better, is_ratio)


def unpaired(
    before: Sequence[float], after: Sequence[float], *, better: Better | None, is_ratio: bool
) -> Change:
    """The change of one device, from its steps of time before and after (Welch's t)."""
    if is_ratio:
        before, after = [one for one in before if one > 0], [one for one in after if one > 0]
    count = len(before) + len(after)
    means = (
        statistics.fmean(before) if before else None,
        statistics.fmean(after) if after else None,
    )
    if len(before) < 2 or len(after) < 2:
        return Change(*means, None, None, None, count, "time", "too little data")
    first, second = (
        ([math.log(one) for one in before], [math.log(one) for one in after]) if is_ratio else (before, after)
    )
    parts = [statistics.variance(one) / len(one) for one in (first, second)]
    total = sum(parts)
    freedom = (
        total**2 / sum(part**2 / (len(one) - 1) for part, one in zip(parts, (first, second), strict=True))
        if total > 0
        else float(count - 2)
    )
    mean = statistics.fmean(second) - statistics.fmean(first)
    return _change(*means, mean, _t(freedom) * math.sqrt(total), count, "time", better, is_ratio)


def _change(
    before: float | None,
    after: float | None,
    mean: float,
    margin: float,
    count: int,
    basis: Basis,
    better: Better | None,
    is_ratio: bool,
) -> Change:
    low, high = mean - margin, mean + margin
    verdict: Verdict = "no difference shown"
    if low > _NOTHING or high < -_NOTHING:
        verdict = "changed" if better is None else "better" if (low > 0) == (better == "higher") else "worse"
    told = [_told(one, is_ratio) for one in (mean, low, high)]
    return Change(before, after, told[0], told[1], told[2], count, basis, verdict)


def _told(change: float, is_ratio: bool) -> float:
    return math.expm1(change) if is_ratio else change


def _t(freedom: float) -> float:
    """Two-sided quantile of Student's t at :data:`CONFIDENCE`.

    Abramowitz and Stegun 26.7.5, an expansion that is good to three digits from three degrees on; the quantiles of one
    and two have closed forms.
    """
    share = (1 + CONFIDENCE) / 2
    if freedom < 1.5:
        return math.tan(math.pi * (share - 0.5))
    if freedom < 2.5:
        return (2 * share - 1) * math.sqrt(2 / (4 * share * (1 - share)))
    z = statistics.NormalDist().inv_cdf(share)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92_160,
    )
    return z + sum(term / freedom ** (at + 1) for at, term in enumerate(terms))
