"""Fits meters to an instrument: the line of one that sees a part, and the figures of a device's power model.

Least squares that outliers cannot pull (a message that came late, a fan that switched on). What the pairs do not tell
apart is not fitted: too little change of load is refused, a predictor that never moved keeps the table's figure.

Pure, but for :func:`read_calibration` and :func:`write_calibration` at the end.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal, TypedDict

import numpy as np
import yaml
from pydantic import ValidationError

from edgeslm.codec import describe
from edgeslm.errors import ConfigError
from edgeslm.power import robust
from edgeslm.power.meters.linear import Correction
from edgeslm.power.meters.model import MODEL_FIGURES, Predictors
from edgeslm.power.port import MeterFacts
from edgeslm.power.robust import Array
from edgeslm.schema.board import PowerTable
from edgeslm.schema.calibration import Calibration, LineCalibration, ModelCalibration
from edgeslm.schema.message import MeterClass

PAIRS_NEEDED = 20
_LEAST_SPAN_W = 0.3
_LEAST_SPAN_SHARE = 0.1
_LEAST_SPAN_CORES = 0.9
_LEAST_TEMPERATURE_SPAN_C = 8.0
_LEAST_NETWORK_SPAN_MB_S = 1.0
_SLOWER = 0.85
_SIGNIFICANT = 3.0
_MAX_FILE_BYTES = 65_536


@dataclass(frozen=True)
class Refusal:
    """Why pairs are not enough to fit anything.

    Attributes:
        found: how much of it there was.
        needed: how much of it there must be.
        unit: of both.
    """

    reason: str
    found: float
    needed: float
    unit: str


@dataclass(frozen=True)
class Observation:
    """What the model goes by over a span, and what the instrument said of it in watts."""

    predictors: Predictors
    power_w: float


@dataclass(frozen=True)
class Line:
    """A fitted line; ``error_w`` is what it leaves (one sigma)."""

    scale: float
    offset_w: float
    error_w: float


@dataclass(frozen=True)
class ModelFit:
    """A power table with this device's figures; ``error_w`` is what they leave (one sigma)."""

    table: PowerTable
    error_w: float


def fit_line(said_w: Sequence[float], true_w: Sequence[float]) -> Line | Refusal:
    """The line from what a meter says to what an instrument says, in watts, pair by pair."""
    said, true = np.array(said_w, dtype=np.float64), np.array(true_w, dtype=np.float64)
    finite = np.isfinite(said) & np.isfinite(true)
    said, true = said[finite], true[finite]
    if len(said) < PAIRS_NEEDED:
        return Refusal("too few pairs", float(len(said)), float(PAIRS_NEEDED), "pairs")
    needed_w = max(_LEAST_SPAN_W, _LEAST_SPAN_SHARE * float(np.median(said)))
    if (span_w := _span(said)) < needed_w:
        return Refusal("the load hardly changed", span_w, needed_w, "W")
    fitted = robust.fit(np.column_stack([said, np.ones_like(said)]), true)
    scale, offset_w = (float(value) for value in fitted.coefficients)
    if scale <= 0:
        return Refusal("one falls while the other rises", scale, 0.0, "W/W")
    return Line(scale=scale, offset_w=offset_w, error_w=fitted.sigma)


def fit_model(table: PowerTable, observations: Sequence[Observation]) -> ModelFit | Refusal:
    """`table` with the figures that `observations` of this device tell; the others stay as they are."""
    seen = [item for item in observations if math.isfinite(item.power_w)]
    if len(seen) < PAIRS_NEEDED:
        return Refusal("too few pairs", float(len(seen)), float(PAIRS_NEEDED), "pairs")
    busy = np.array([item.predictors.busy_cores for item in seen], dtype=np.float64)
    if (span := _span(busy)) < _LEAST_SPAN_CORES:
        return Refusal("the load hardly changed", span, _LEAST_SPAN_CORES, "busy cores")
    true_w = np.array([item.power_w for item in seen], dtype=np.float64)
    temperature = _column([item.predictors.temperature_c for item in seen], default=25.0) - 25.0
    network = np.array([item.predictors.network_mb_s for item in seen], dtype=np.float64)
    relative = _relative_frequency(table, seen)
    exponents = np.arange(0.0, 4.01, 0.1) if _frequency_tells(busy, relative) else [table.frequency_exponent]
    fits = []
    for exponent in exponents:
        figures, sigma_w, loss = _fit_figures(table, busy * relative**exponent, temperature, network, true_w)
        fits.append((loss, sigma_w, figures | {"frequency_exponent": round(float(exponent), 1)}))
    _, sigma_w, figures = min(fits, key=lambda fit: fit[0])
    if (least := min(figures["idle_w"], figures["core_load_w"])) <= 0:
        return Refusal("the draw does not rise with the load", least, 0.0, "W")
    return ModelFit(table=table.model_copy(update=figures), error_w=sigma_w)


def _relative_frequency(table: PowerTable, seen: Sequence[Observation]) -> Array:
    if table.max_mhz is None:
        return np.ones(len(seen))
    return _column([item.predictors.frequency_mhz for item in seen], default=table.max_mhz) / table.max_mhz


def _frequency_tells(busy: Array, relative: Array) -> bool:
    """Whether there was load both at full speed and well below it."""
    slow = float(np.mean(relative[busy > 0.5] < _SLOWER))
    return 0.1 <= slow <= 0.9


def _fit_figures(
    table: PowerTable, load: Array, temperature: Array, network: Array, true_w: Array
) -> tuple[dict[str, float], float, float]:
    """Figures of the linear part, the error that they leave, and how badly they fit (for comparing exponents)."""
    extras = {
        "temperature_w_per_c": (temperature, _LEAST_TEMPERATURE_SPAN_C),
        "network_j_per_mb": (network, _LEAST_NETWORK_SPAN_MB_S),
    }
    free = [name for name, (values, least) in extras.items() if _span(values) >= least]
    fixed = {name: float(getattr(table, name)) for name in extras if name not in free}
    while True:
        rest_w = true_w - sum(fixed[name] * extras[name][0] for name in fixed)
        matrix = np.column_stack([np.ones_like(load), load, *(extras[name][0] for name in free)])
        fitted = robust.fit(matrix, rest_w)
        weak = [
            (value / max(error, 1e-12), name)
            for name, value, error in zip(free, fitted.coefficients[2:], fitted.errors[2:], strict=True)
            if value < _SIGNIFICANT * error
        ]
        if not weak:
            figures = fixed | dict(
                zip(["idle_w", "core_load_w", *free], map(float, fitted.coefficients), strict=True)
            )
            calm = np.sort(np.abs(fitted.residuals))[: math.ceil(0.8 * len(load))]
            return figures, fitted.sigma, float(np.mean(calm**2))
        name = min(weak)[1]
        free.remove(name)
        # It moved and made no difference: that is known, other than of one that stood still.
        fixed[name] = 0.0


def _span(values: Array) -> float:
    """Distance between what 5 % lie below and 5 % lie above."""
    low, high = np.percentile(values, [5, 95])
    return float(high - low)


def _column(values: Sequence[float | None], default: float) -> Array:
    return np.array([default if value is None else value for value in values], dtype=np.float64)


def correction_of(line: LineCalibration) -> Correction:
    """The correction that a calibrated line stands for."""
    return Correction(
        scale=line.scale,
        offset_w=line.offset_w,
        error_share=line.error_share,
        error_w=line.error_w,
        source=f"calibrated on this device against {line.against}, {line.made_at:%Y-%m-%d}",
    )


def line_calibration(
    meter: Literal["pmic", "rapl"],
    line: Line,
    true_w: Sequence[float],
    against: MeterFacts,
    made_at: datetime,
) -> LineCalibration:
    """`line`, fitted to what the instrument `against` said (`true_w`), as it is kept in the file."""
    return LineCalibration(
        meter=meter,
        scale=line.scale,
        offset_w=line.offset_w,
        **_origin(true_w, line.error_w, against, made_at),
    )


def model_calibration(
    fit: ModelFit, true_w: Sequence[float], against: MeterFacts, made_at: datetime
) -> ModelCalibration:
    """`fit`, fitted to what the instrument `against` said (`true_w`), as it is kept in the file."""
    figures = {name: getattr(fit.table, name) for name in MODEL_FIGURES}
    return ModelCalibration(**figures, **_origin(true_w, fit.error_w, against, made_at))


class _Origin(TypedDict):
    against: str
    against_class: MeterClass
    made_at: datetime
    pairs: int
    least_w: float
    most_w: float
    error_share: float
    error_w: float


def _origin(true_w: Sequence[float], left_w: float, against: MeterFacts, made_at: datetime) -> _Origin:
    return _Origin(
        against=against.name,
        against_class=against.meter_class,
        made_at=made_at,
        pairs=len(true_w),
        least_w=min(true_w),
        most_w=max(true_w),
        error_share=against.error_share,
        error_w=math.hypot(against.error_w, left_w),
    )


def read_calibration(path: Path) -> Calibration | None:
    """The calibrations in the file `path`, or ``None`` where there is no such file.

    Raises:
        ConfigError: it cannot be read, or is no calibration file.
    """
    try:
        with path.open("rb") as file:
            content = yaml.safe_load(file.read(_MAX_FILE_BYTES))
        return Calibration.model_validate(content)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}", path=str(path)) from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is no YAML: {str(error)[:200]}", path=str(path)) from error
    except ValidationError as error:
        raise ConfigError(f"{path}: {describe(error)}", path=str(path)) from error


def write_calibration(path: Path, calibration: Calibration) -> None:
    """Put `calibration` in the place of the file `path` in one step.

    Raises:
        ConfigError: it cannot be written.
    """
    text = yaml.safe_dump(calibration.model_dump(mode="json", exclude_none=True), sort_keys=False)
    new = path.with_name(f"{path.name}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        new.write_text(text, "utf-8")
        new.replace(path)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}", path=str(path)) from error
