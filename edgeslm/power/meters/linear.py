"""A straight line from what an instrument says to what the board draws."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Correction:
    """``scale * said + offset_w``, and how far it is off.

    Attributes:
        error_share: relative error of the result (one sigma).
        error_w: absolute error of the result in watts (one sigma).
        source: where it comes from.
    """

    scale: float
    offset_w: float
    error_share: float
    error_w: float
    source: str

    def apply(self, said_w: float) -> float:
        """Watts of the board."""
        return self.scale * said_w + self.offset_w
