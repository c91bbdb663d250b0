"""Least squares that outliers cannot pull.

First with Huber's weights, which bound what a far value counts, then with Tukey's, which give far values up
altogether; Tukey's alone may settle on the wrong side of a bad start. Tuning constants are the usual ones for 95 %
efficiency under normal noise (Huber 1.345, Tukey 4.685). The spread is estimated from the median of what is left.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

_HUBER = 1.345
_TUKEY = 4.685
_TURNS = 12


@dataclass(frozen=True)
class Prior:
    """What is believed of the coefficients beforehand.

    Attributes:
        mean: (columns,) expected values.
        sigma: (columns,) how far they may be off.
    """

    mean: Array
    sigma: Array


@dataclass(frozen=True)
class Fit:
    """What came out.

    Attributes:
        coefficients: (columns,).
        errors: (columns,) their standard errors.
        sigma: spread of what is left, outliers aside.
        residuals: (rows,) what is left of each row.
    """

    coefficients: Array
    errors: Array
    sigma: float
    residuals: Array


def fit(
    matrix: Array,
    target: Array,
    *,
    prior: Prior | None = None,
    least_sigma: float = 1e-6,
) -> Fit:
    """Coefficients with which `matrix` comes nearest to `target`.

    Args:
        matrix: (rows, columns) float64.
        target: (rows,) float64.
        prior: held against the rows as if it were a measurement.
        least_sigma: spread that is assumed at least, however well the rows fit.
    """
    precision = np.zeros(matrix.shape[1]) if prior is None else prior.sigma**-2.0
    mean = np.zeros(matrix.shape[1]) if prior is None else prior.mean
    sigma = _spread(target - matrix @ mean if prior is not None else target - np.median(target), least_sigma)
    weights = np.ones_like(target)
    for turn in range(_TURNS):
        weighted = weights[:, None] * matrix
        normal = weighted.T @ matrix + sigma**2 * np.diag(precision)
        # Columns that say the same leave the matrix singular; a touch of weight on the diagonal shares between them.
        normal += 1e-9 * np.trace(normal) * np.eye(len(normal))
        solved = np.linalg.solve(normal, weighted.T @ target + sigma**2 * precision * mean)
        coefficients: Array = np.asarray(solved, dtype=np.float64)
        residuals = target - matrix @ coefficients
        sigma = _spread(residuals, least_sigma)
        apart = np.abs(residuals) / sigma
        if turn < _TURNS // 2:
            weights = np.minimum(1.0, _HUBER / np.maximum(apart, 1e-12))
        else:
            weights = np.maximum(1.0 - (apart / _TUKEY) ** 2, 0.0) ** 2
    errors: Array = sigma * np.sqrt(np.diag(np.linalg.inv(normal)))
    return Fit(coefficients=coefficients, errors=errors, sigma=sigma, residuals=residuals)


def _spread(residuals: Array, least: float) -> float:
    """Standard deviation by the median of the magnitudes, which half the values may spoil."""
    middle = len(residuals) // 2
    return max(1.4826 * float(np.partition(np.abs(residuals), middle)[middle]), least)
