"""Gathers what a device tells about itself between two reports; the reports themselves are ``schema.metrics``.

Values in, values out: no clock, no network. The sampling thread adds intervals, the worker adds outcomes, whoever
reports takes what has gathered and begins anew. Thread-safe.
"""

from __future__ import annotations

import statistics
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from edgeslm.power.attribution import EnergySum, Interval
from edgeslm.power.steward import Plan
from edgeslm.schema.message import Result
from edgeslm.schema.metrics import EnergyShare, ModelMetrics, PowerPoint

POINT_S = 10.0
"""Seconds of draw that one point of a report stands for."""

_MOST_POINTS = 360
_MOST_VALUES = 512
"""Speeds kept for a median: the latest count."""

Fate = Literal["answered", "refused", "failed"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a prompt.

    Attributes:
        model: name and version.
        deferred: it had to wait for energy.
        shortened: the budget cut its answer, before or while it ran.
        net_j: joules above idle.
    """

    model: str
    fate: Fate
    deferred: bool = False
    shortened: bool = False
    prompt_tokens: int = 0
    completion_tokens: int = 0
    decode_tps: float | None = None
    ttft_ms: float | None = None
    energy_j: float = 0.0
    net_j: float = 0.0


@dataclass(slots=True)
class _Point:
    start_s: float
    end_s: float
    min_w: float
    max_w: float
    energy_j: float
    seconds: float


@dataclass(slots=True)
class _Model:
    fates: dict[Fate, int] = field(default_factory=lambda: {"answered": 0, "refused": 0, "failed": 0})
    deferred: int = 0
    shortened: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    energy_j: float = 0.0
    net_j: float = 0.0
    decode_tps: list[float] = field(default_factory=list)
    ttft_ms: list[float] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class EnergyReport:
    """Draw and energy since the last report; see ``schema.metrics.PowerMetrics``.

    Attributes:
        start_s: monotonic, of the first interval; ``None`` if there was none.
    """

    start_s: float | None
    end_s: float
    energy_j: float
    points: tuple[PowerPoint, ...]
    causes: tuple[EnergyShare, ...]


def outcome_of(result: Result, model: str, plan: Plan | None) -> Outcome:
    """What `result` says for the metrics."""
    deferred = plan is not None and plan.deferred
    receipt = result.receipt
    if receipt is None:
        refused = result.error is not None and result.error.code == "budget"
        return Outcome(model, "refused" if refused else "failed", deferred=deferred)
    return Outcome(
        model,
        "answered",
        deferred=deferred,
        shortened=plan is not None and plan.shortened,
        prompt_tokens=receipt.prompt_tokens,
        completion_tokens=receipt.completion_tokens,
        decode_tps=receipt.decode_tps,
        ttft_ms=receipt.ttft_ms,
        energy_j=receipt.energy_j,
        net_j=receipt.energy_net_j,
    )


class Gatherer:
    """What gathers between two reports; :meth:`take_energy` and :meth:`take_models` empty it."""

    def __init__(self) -> None:
        """Start empty."""
        self._lock = threading.Lock()
        self._points: list[_Point] = []
        self._causes: dict[tuple[str, str | None, str | None], EnergySum] = {}
        self._models: dict[str, _Model] = {}

    def add_interval(self, interval: Interval) -> None:
        """A look at the board."""
        seconds = interval.end_s - interval.start_s
        # What was drawn since the look before counts as well as what is drawn at this one: a busy board looks seldom.
        between_w = interval.energy_j / seconds if seconds > 0 else interval.power_w
        low_w, high_w = sorted((interval.power_w, between_w))
        with self._lock:
            last = self._points[-1] if self._points else None
            if last is None or interval.end_s - last.start_s > POINT_S:
                self._points.append(
                    _Point(interval.start_s, interval.end_s, low_w, high_w, interval.energy_j, seconds)
                )
                del self._points[:-_MOST_POINTS]
            else:
                last.end_s = interval.end_s
                last.min_w = min(last.min_w, low_w)
                last.max_w = max(last.max_w, high_w)
                last.energy_j += interval.energy_j
                # Between two looks there may be a gap that nobody saw; it has no part in the mean.
                last.seconds += seconds
            if interval.settlement is not None:
                for share in interval.settlement.shares:
                    key = (share.kind, share.model, share.rule)
                    self._causes.setdefault(key, EnergySum()).add(share.energy_j, share.net_j, share.seconds)

    def add_outcome(self, outcome: Outcome) -> None:
        """A prompt is done with."""
        with self._lock:
            model = self._models.setdefault(outcome.model, _Model())
            model.fates[outcome.fate] += 1
            model.deferred += outcome.deferred
            model.shortened += outcome.shortened
            model.prompt_tokens += outcome.prompt_tokens
            model.completion_tokens += outcome.completion_tokens
            model.energy_j += outcome.energy_j
            model.net_j += outcome.net_j
            for values, value in ((model.decode_tps, outcome.decode_tps), (model.ttft_ms, outcome.ttft_ms)):
                if value is not None:
                    values.append(value)
                    del values[:-_MOST_VALUES]

    def take_energy(self, now_s: float) -> EnergyReport:
        """Draw and causes since the last call."""
        with self._lock:
            points, self._points = self._points, []
            causes, self._causes = self._causes, {}
        return EnergyReport(
            points[0].start_s if points else None,
            points[-1].end_s if points else now_s,
            sum(point.energy_j for point in points),
            tuple(
                PowerPoint(
                    ago_s=round(now_s - point.end_s, 2),
                    min_w=round(point.min_w, 4),
                    mean_w=round(point.energy_j / max(point.seconds, 1e-6), 4),
                    max_w=round(point.max_w, 4),
                )
                for point in points
            ),
            tuple(
                EnergyShare(
                    cause=cause,
                    model=model,
                    rule=rule,
                    energy_j=round(total.energy_j, 4),
                    net_j=round(total.net_j, 4),
                )
                for (cause, model, rule), total in sorted(causes.items(), key=lambda item: -item[1].energy_j)
            ),
        )

    def take_models(self) -> tuple[ModelMetrics, ...]:
        """What the models did since the last call."""
        with self._lock:
            models, self._models = self._models, {}
        return tuple(_metrics(name, model) for name, model in sorted(models.items()))


def _metrics(name: str, model: _Model) -> ModelMetrics:
    return ModelMetrics(
        model=name,
        answered=model.fates["answered"],
        failed=model.fates["failed"],
        refused=model.fates["refused"],
        deferred=model.deferred,
        shortened=model.shortened,
        prompt_tokens=model.prompt_tokens,
        completion_tokens=model.completion_tokens,
        decode_tps=_median(model.decode_tps),
        ttft_ms=_median(model.ttft_ms),
        energy_j=round(model.energy_j, 4),
        net_j=round(model.net_j, 4),
        j_per_token=round(model.net_j / model.completion_tokens, 6) if model.completion_tokens else None,
    )


def _median(values: Sequence[float]) -> float | None:
    return round(statistics.median(values), 2) if values else None
