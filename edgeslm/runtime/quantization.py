"""Between real numbers and the integers of a quantised tensor: real = scale * (integer - zero point).

Rounding is half away from zero, as the kernels of TFLite do it (``TfLiteRound``), where numpy rounds half to even.
Computed in float32, as there. Source: the quantisation specification of LiteRT (per-tensor and per-axis affine int8).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.integer[Any]]


@dataclass(frozen=True)
class Quantization:
    """How a tensor is quantised.

    Attributes:
        scales: one, or one for each slice along `axis`.
        zero_points: as many.
        axis: the dimension that the scales belong to, where there are several.
    """

    scales: tuple[float, ...]
    zero_points: tuple[int, ...]
    axis: int = 0

    def __post_init__(self) -> None:
        """Refuse what is no quantisation."""
        if not self.scales or len(self.scales) != len(self.zero_points):
            raise ValueError(f"{len(self.scales)} scales and {len(self.zero_points)} zero points")
        if not all(np.isfinite(scale) and scale > 0 for scale in self.scales):
            raise ValueError("a scale is not above zero")

    def along(self, rank: int) -> tuple[Floats, npt.NDArray[np.int64]]:
        """Scales and zero points in the form in which they spread over an array of `rank` dimensions."""
        scales = np.asarray(self.scales, np.float32)
        zeros = np.asarray(self.zero_points, np.int64)
        if len(self.scales) == 1:
            return scales[0], zeros[0]
        shape = [1] * rank
        shape[self.axis] = len(self.scales)
        return scales.reshape(shape), zeros.reshape(shape)


def round_half_away(values: Floats) -> Floats:
    """`values` rounded, halves away from zero; the same shape.

    ``floor(|x| + 0.5)`` would be wrong just below a half, where the sum rounds up: the fraction is compared instead.
    """
    whole = np.trunc(values)
    return np.asarray(whole + np.copysign(np.abs(values - whole) >= np.float32(0.5), values), np.float32)


def quantize(values: Floats, how: Quantization, dtype: np.dtype[Any]) -> Integers:
    """`values` as integers of `dtype`, what is beyond its range at the end of it.

    Raises:
        ValueError: a value is not finite: no integer stands for it.
    """
    if not np.isfinite(values).all():
        raise ValueError("a value is not finite")
    scales, zeros = how.along(values.ndim)
    limits = np.iinfo(dtype)
    # In float64 from here on: an int32 zero point does not fit into float32.
    steps = round_half_away(values / scales).astype(np.float64) + zeros
    return np.clip(steps, limits.min, limits.max).astype(dtype)


def dequantize(values: Integers, how: Quantization) -> Floats:
    """The real numbers that `values` stand for, float32 of the same shape."""
    scales, zeros = how.along(values.ndim)
    return np.asarray(scales * (values.astype(np.int64) - zeros).astype(np.float32), np.float32)
