"""How long a fleet keeps what its devices report: part of ``fleet.yaml``."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from edgeslm.schema.base import FileModel


class MetricsSettings(FileModel):
    """How long figures are kept, by how fine they are.

    Attributes:
        reports_days: single reports, and the latest hour of which they may come late.
        minutes_days: sums of a minute.
        hours_days: sums of an hour.
    """

    reports_days: Annotated[float, Field(ge=0.5, le=60, allow_inf_nan=False)] = 2.0
    minutes_days: Annotated[float, Field(ge=1, le=366, allow_inf_nan=False)] = 30.0
    hours_days: Annotated[float, Field(ge=1, le=36_600, allow_inf_nan=False)] = 730.0

    @model_validator(mode="after")
    def _coarser_is_longer(self) -> Self:
        if not self.reports_days <= self.minutes_days <= self.hours_days:
            raise ValueError("reports are kept no longer than minutes, and minutes no longer than hours")
        return self
