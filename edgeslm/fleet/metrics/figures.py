"""What can be asked of collected reports: each figure with its unit, and how it follows from sums. Pure.

A figure is a quotient of sums, a sum, a least or a greatest, so that a figure of a group is made from the group's sums
and never from its members' figures: a device that answered a thousand prompts weighs a thousand times one that
answered one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from edgeslm.fleet.store.metrics import SORTS, Sort

Sums = Mapping[str, float]
"""By ``<sort>.<column>``; what nobody reported is missing."""
Better = Literal["lower", "higher"]


@dataclass(frozen=True)
class Figure:
    """One figure.

    Attributes:
        name: to ask for it by.
        sort: the reports that it comes from.
        title: for people.
        unit: of :attr:`value`.
        value: from sums; ``None`` where nothing of it was reported.
        better: which way is good, where one is.
        is_ratio: a change is told as a share of what was before.
        by_model: it can be told for one model.
        is_total: it grows with the time that is looked at.
    """

    name: str
    sort: Sort
    title: str
    unit: str
    value: Callable[[Sums], float | None]
    better: Better | None = None
    is_ratio: bool = True
    by_model: bool = False
    is_total: bool = False


def _sum(name: str) -> Callable[[Sums], float | None]:
    return lambda sums: sums.get(name)


def _quotient(over: str, under: str) -> Callable[[Sums], float | None]:
    def value(sums: Sums) -> float | None:
        divisor = sums.get(under)
        return sums[over] / divisor if divisor and over in sums else None

    return value


def _above_idle(sums: Sums) -> float | None:
    energy_j, idle_j = sums.get("power.energy_j"), sums.get("power.idle_j")
    return None if energy_j is None or idle_j is None else max(0.0, energy_j - idle_j)


_ALL: Final = (
    Figure("power", "power", "mean draw", "W", _quotient("power.energy_j", "power.span_s"), "lower"),
    Figure("peak", "power", "highest draw", "W", _sum("power.max_w"), "lower"),
    Figure("energy", "power", "energy", "J", _sum("power.energy_j"), "lower", is_total=True),
    Figure("net", "power", "energy above idle", "J", _above_idle, "lower", is_total=True),
    Figure(
        "j-prompt",
        "model",
        "energy of an answer",
        "J",
        _quotient("model.energy_j", "model.answered"),
        "lower",
        by_model=True,
    ),
    Figure(
        "j-token",
        "model",
        "energy of a token above idle",
        "J",
        _quotient("model.net_j", "model.completion_tokens"),
        "lower",
        by_model=True,
    ),
    Figure(
        "tps",
        "model",
        "tokens a second",
        "1/s",
        _quotient("model.tps_sum", "model.tps_tokens"),
        "higher",
        by_model=True,
    ),
    Figure(
        "ttft",
        "model",
        "time to first token",
        "ms",
        _quotient("model.ttft_sum_ms", "model.ttft_prompts"),
        "lower",
        by_model=True,
    ),
    Figure("prompts", "model", "prompts answered", "", _sum("model.answered"), by_model=True, is_total=True),
    Figure(
        "failed",
        "model",
        "prompts failed",
        "",
        _sum("model.failed"),
        "lower",
        is_ratio=False,
        by_model=True,
        is_total=True,
    ),
    Figure(
        "refused",
        "model",
        "prompts refused",
        "",
        _sum("model.refused"),
        "lower",
        is_ratio=False,
        by_model=True,
        is_total=True,
    ),
    Figure(
        "deferred",
        "model",
        "prompts deferred",
        "",
        _sum("model.deferred"),
        "lower",
        is_ratio=False,
        by_model=True,
        is_total=True,
    ),
    Figure(
        "shortened",
        "model",
        "answers shortened",
        "",
        _sum("model.shortened"),
        "lower",
        is_ratio=False,
        by_model=True,
        is_total=True,
    ),
    Figure(
        "waiting",
        "inference",
        "prompts waiting",
        "",
        _quotient("inference.waiting_sum", "inference.reports"),
        "lower",
        is_ratio=False,
    ),
    Figure(
        "temperature",
        "system",
        "mean temperature",
        "C",
        _quotient("system.temperature_sum", "system.temperature_s"),
        "lower",
        is_ratio=False,
    ),
    Figure(
        "hottest",
        "system",
        "highest temperature",
        "C",
        _sum("system.temperature_most_c"),
        "lower",
        is_ratio=False,
    ),
    Figure(
        "throttled",
        "system",
        "time throttled",
        "share",
        _quotient("system.throttled_s", "system.span_s"),
        "lower",
        is_ratio=False,
    ),
    Figure(
        "budget",
        "power",
        "least left of the budget",
        "share",
        _sum("power.left_share"),
        "higher",
        is_ratio=False,
    ),
    Figure(
        "exceeded",
        "power",
        "reports over budget",
        "",
        _sum("power.exceeded"),
        "lower",
        is_ratio=False,
        is_total=True,
    ),
    Figure(
        "battery", "power", "lowest battery", "share", _sum("power.battery_share"), "higher", is_ratio=False
    ),
    Figure("co2", "power", "CO2e", "g", _sum("power.co2_g"), "lower", is_total=True),
    Figure("cost", "power", "cost", "", _sum("power.cost"), "lower", is_total=True),
)

FIGURES: Final[Mapping[str, Figure]] = {figure.name: figure for figure in _ALL}
USUAL: Final = ("power", "energy", "j-prompt", "j-token", "tps", "waiting", "temperature", "budget")
"""What is shown where nothing is asked for."""
USUAL_BY_MODEL: Final = ("prompts", "j-prompt", "j-token", "tps", "ttft", "failed", "refused")
COMPARED: Final = ("power", "j-prompt", "j-token", "tps", "ttft")

_HOW: Final = {f"{sort}.{name}": way for sort, one in SORTS.items() for name, way in one.columns.items()}


def combined(parts: Iterable[Sums]) -> dict[str, float]:
    """Sums of several devices or times, put together."""
    found: dict[str, float] = {}
    for part in parts:
        for name, value in part.items():
            before = found.get(name)
            if before is None:
                found[name] = value
            elif (how := _HOW[name]) == "sum":
                found[name] = before + value
            else:
                found[name] = min(before, value) if how == "min" else max(before, value)
    return found


def columns_of(sort: Sort) -> Sequence[str]:
    """Names in :data:`Sums` of what a sort of report holds."""
    return [f"{sort}.{name}" for name in SORTS[sort].columns]
