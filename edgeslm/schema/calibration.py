"""The file that holds what one device's meters were calibrated to (``calibration.yaml`` in the state directory)."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import AwareDatetime, Field, StringConstraints, model_validator

from edgeslm.schema.base import FileModel, Identifier
from edgeslm.schema.message import MeterClass

MeterName = Annotated[str, StringConstraints(min_length=1, max_length=128)]
Error = Annotated[float, Field(ge=0, le=1000)]


class CalibrationEntry(FileModel):
    """What all calibrations tell of their origin.

    Attributes:
        against: name of the instrument that was taken for true.
        against_class: how that instrument knew.
        made_at: when the pairs had been recorded.
        pairs: how many pairs of values it rests on.
        least_w: lowest draw among them; below it the result is a guess.
        most_w: highest draw among them.
        error_share: relative error of the result (one sigma), the instrument's own included.
        error_w: absolute error of the result in watts (one sigma), what the fit left included.
    """

    against: MeterName
    against_class: MeterClass
    made_at: AwareDatetime
    pairs: Annotated[int, Field(ge=2, le=10_000_000)]
    least_w: Annotated[float, Field(ge=0, le=10_000)]
    most_w: Annotated[float, Field(ge=0, le=10_000)]
    error_share: Error
    error_w: Error


class LineCalibration(CalibrationEntry):
    """``scale * said + offset_w`` for an instrument that sees only a part of the draw."""

    meter: Literal["pmic", "rapl"]
    scale: Annotated[float, Field(gt=0, le=100)]
    offset_w: Annotated[float, Field(ge=-1000, le=10_000)]


class ModelCalibration(CalibrationEntry):
    """Figures of this device in the place of the board's power table (``PowerTable`` says what they mean)."""

    idle_w: Annotated[float, Field(ge=0, le=10_000)]
    core_load_w: Annotated[float, Field(ge=0, le=10_000)]
    frequency_exponent: Annotated[float, Field(ge=0, le=4)]
    temperature_w_per_c: Annotated[float, Field(ge=0, le=10)]
    network_j_per_mb: Annotated[float, Field(ge=0, le=1000)]


class Calibration(FileModel):
    """All calibrations of one device.

    Attributes:
        board: board type on which they were made; on another they are refused.
    """

    v: Literal[1] = 1
    board: Identifier
    lines: Annotated[tuple[LineCalibration, ...], Field(max_length=8)] = ()
    model: ModelCalibration | None = None

    @model_validator(mode="after")
    def _each_meter_once(self) -> Self:
        if len({line.meter for line in self.lines}) != len(self.lines):
            raise ValueError("a meter is calibrated twice")
        return self

    def line(self, meter: str) -> LineCalibration | None:
        """The calibration of `meter`, where there is one."""
        return next((line for line in self.lines if line.meter == meter), None)
