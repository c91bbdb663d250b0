"""A model that learns from an instrument: slow but true, the instrument tells the level; fast, the model the shape.

A smart plug says every ten seconds what a prompt of two seconds costs too late; the model says it at once but may be
a fifth off. Over matched windows the two are put side by side, and a line ``scale * model + offset`` is fitted to the
latest of them, held near the identity until there is evidence, deaf to single outliers. The result is ``calibrated``:
as true as the instrument on average, as fast as the model.

The same goes for a fast instrument, over windows of ten seconds; then the line is what remains when it fails.

Pure: values come in with their times, nothing is read here.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgeslm.power import robust
from edgeslm.power.meters.linear import Correction
from edgeslm.power.port import MeterFacts, Reading

WINDOW_S = 10.0
POINT_WINDOW_S = 1.0
"""A plug's single value is itself a mean over about a second."""
PAIRS_NEEDED = 5
_PAIRS_KEPT = 48
_MANY_PAIRS = 24
_SCALE_BOUNDS = (0.3, 3.0)
_PRIOR_SCALE_SIGMA = 0.3
_PRIOR_OFFSET_SHARE = 0.5
_LEAST_NOISE_SHARE = 0.02
_TRACE_S = 4.0
_MAX_TRACE = 256


@dataclass(frozen=True)
class _Mark:
    """Both energies at one moment."""

    at_s: float
    model_j: float
    reference_j: float


class OnlineCorrection:
    """Learns the line from a model to one reference after another."""

    def __init__(self, model: MeterFacts) -> None:
        self._model = model
        self._reference: MeterFacts | None = None
        self._trace: deque[tuple[float, float]] = deque(maxlen=_MAX_TRACE)
        self._last: Reading | None = None
        self._mark: _Mark | None = None
        self._reference_j = 0.0
        self._pairs: deque[tuple[float, float]] = deque(maxlen=_PAIRS_KEPT)
        self._new_pairs = 0
        self.correction: Correction | None = None
        """The line so far; ``None`` before there is enough to draw one."""

    def model_says(self, reading: Reading) -> None:
        """The model's mean over the span since its last reading."""
        at_s, energy_j = self._trace[-1] if self._trace else (reading.at_s, 0.0)
        if reading.at_s > at_s or not self._trace:
            self._trace.append((reading.at_s, energy_j + reading.power_w * (reading.at_s - at_s)))
            while len(self._trace) > 2 and self._trace[1][0] < reading.at_s - _TRACE_S:
                self._trace.popleft()

    def reference_says(self, facts: MeterFacts, reading: Reading) -> None:
        """A value of the instrument to learn from; called after the model spoke of the same moment."""
        if self._reference is None or facts.name != self._reference.name:
            # Another instrument may see another part of the board; what was learned stands until it has its own say.
            self._reference = facts
            self._last = self._mark = None
            self._pairs.clear()
        if self._last is not None and reading.at_s <= self._last.at_s:
            return
        pair = self._match(facts, reading)
        self._last = reading
        if pair is not None:
            self._pairs.append(pair)
            self._new_pairs += 1
            # A line that rests on many pairs moves slowly, and drawing it costs a millisecond.
            if self._new_pairs >= (1 if len(self._pairs) < _MANY_PAIRS else _MANY_PAIRS // 4):
                self._new_pairs = 0
                if len(self._pairs) >= PAIRS_NEEDED:
                    self.correction = fit(self._pairs, facts)

    def _match(self, facts: MeterFacts, reading: Reading) -> tuple[float, float] | None:
        """Means of model and instrument over the window that `reading` ends, if it ends one."""
        end_j = self._model_j(reading.at_s)
        if end_j is None:
            self._mark = None
            return None
        if reading.counter_j is None and facts.period_s > 1.0 and not facts.averages:
            start_j = self._model_j(reading.at_s - POINT_WINDOW_S)
            return None if start_j is None else ((end_j - start_j) / POINT_WINDOW_S, reading.power_w)
        last = self._last
        if last is None or reading.at_s - last.at_s > 3 * facts.period_s + 1.0:
            self._mark = None
        elif reading.counter_j is not None and last.counter_j is not None:
            self._reference_j += reading.counter_j - last.counter_j
        elif facts.averages:
            self._reference_j += reading.power_w * (reading.at_s - last.at_s)
        else:
            self._reference_j += (reading.power_w + last.power_w) / 2 * (reading.at_s - last.at_s)
        here = _Mark(at_s=reading.at_s, model_j=end_j, reference_j=self._reference_j)
        if self._mark is None:
            self._mark = here
            return None
        span_s = here.at_s - self._mark.at_s
        if span_s < min(WINDOW_S, max(facts.period_s, WINDOW_S / 2)):
            return None
        mark, self._mark = self._mark, here
        return (here.model_j - mark.model_j) / span_s, (here.reference_j - mark.reference_j) / span_s

    def _model_j(self, at_s: float) -> float | None:
        """The model's energy at `at_s`, or ``None`` where that is out of reach."""
        if not self._trace or at_s < self._trace[0][0] or at_s > self._trace[-1][0] + 1.0:
            return None
        later = self._trace[-1]
        if at_s >= later[0]:
            earlier = self._trace[-2] if len(self._trace) > 1 else later
        else:
            for point in reversed(self._trace):
                if point[0] <= at_s:
                    earlier = point
                    break
                later = point
        span_s = later[0] - earlier[0]
        slope_w = (later[1] - earlier[1]) / span_s if span_s > 0 else 0.0
        return earlier[1] + slope_w * (at_s - earlier[0])

    def corrected(self, reading: Reading) -> Reading:
        """The model's `reading` on the line; as it is while there is none."""
        if self.correction is None:
            return reading
        return Reading(at_s=reading.at_s, power_w=max(self.correction.apply(reading.power_w), 0.0))

    def facts(self) -> MeterFacts:
        """What the corrected model says about itself."""
        if self.correction is None:
            return self._model
        return MeterFacts(
            name=self._model.name,
            meter_class="calibrated",
            period_s=self._model.period_s,
            error_share=self.correction.error_share,
            error_w=self.correction.error_w,
            averages=self._model.averages,
            source=self.correction.source,
        )


def fit(pairs: Sequence[tuple[float, float]], reference: MeterFacts) -> Correction:
    """The line from model to reference through `pairs` (model, reference) in watts."""
    model_w, reference_w = np.array(pairs, dtype=np.float64).T
    level_w = max(float(np.median(reference_w)), 1e-3)
    prior = robust.Prior(
        mean=np.array([1.0, 0.0]), sigma=np.array([_PRIOR_SCALE_SIGMA, _PRIOR_OFFSET_SHARE * level_w])
    )
    fitted = robust.fit(
        np.column_stack([model_w, np.ones_like(model_w)]),
        reference_w,
        prior=prior,
        least_sigma=_LEAST_NOISE_SHARE * level_w,
    )
    free, offset_w = (float(value) for value in fitted.coefficients)
    scale = min(max(free, _SCALE_BOUNDS[0]), _SCALE_BOUNDS[1])
    if scale != free:
        offset_w = float(np.median(reference_w - scale * model_w))
    return Correction(
        scale=scale,
        offset_w=offset_w,
        error_share=math.hypot(reference.error_share, fitted.sigma / level_w),
        error_w=reference.error_w,
        source=f"board's power table, corrected while running against {reference.name}",
    )
