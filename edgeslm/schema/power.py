"""The part of the agent's configuration that says how its draw is measured."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, field_validator, model_validator

from edgeslm.schema.base import FileModel

Topic = Annotated[str, StringConstraints(pattern=r"^[^\x00#+]{1,512}$")]
"""An MQTT topic to subscribe to; a plug is one device, so without wildcards."""
JsonPath = Annotated[
    str, StringConstraints(pattern=r"^[A-Za-z0-9_:-]{1,64}((\.[A-Za-z0-9_:-]{1,64})|(\[\d{1,3}\])){0,8}$")
]
"""Where a number is within a JSON body: names with dots between and indexes in brackets, ``a.b[0].c``."""

PlugDialect = Literal["tasmota", "shelly", "number", "json"]
PowerUnit = Literal["mW", "W", "kW"]


class PlugConfig(FileModel):
    """A smart plug, or any other meter that tells its watts over MQTT.

    Attributes:
        dialect: ``tasmota``, ``shelly`` (second generation or later), ``number`` (the body is the number, as a Home
            Assistant sensor has it) or ``json`` (a number within a JSON body).
        topic: for ``tasmota`` the plug's own topic (its ``%topic%``), for ``shelly`` its topic prefix, for the
            others the whole topic.
        channel: which outlet, for plugs with several.
        power_path: where the number is, for ``json``.
        unit: of the number, for ``number`` and ``json``.
        period_s: seconds between its messages; after three without one it counts as silent.
        supply_efficiency: share of the plug's watts that reaches the board; 1 counts what the wall gives.
    """

    dialect: PlugDialect
    topic: Topic
    channel: Annotated[int, Field(ge=0, le=15)] = 0
    power_path: JsonPath | None = None
    unit: PowerUnit = "W"
    period_s: Annotated[float, Field(ge=0.1, le=3600)] = 10.0
    supply_efficiency: Annotated[float, Field(gt=0.2, le=1)] = 1.0

    @model_validator(mode="after")
    def _path_where_needed(self) -> Self:
        if (self.power_path is not None) != (self.dialect == "json"):
            raise ValueError("power_path belongs to the dialect json, and json needs it")
        if self.unit != "W" and self.dialect in ("tasmota", "shelly"):
            raise ValueError(f"{self.dialect} tells watts; leave unit away")
        return self


class HwmonConfig(FileModel):
    """A hwmon sensor that measures what the board draws.

    Attributes:
        sensor: its kind (``ina226``) or kind and place (``ina226@1-0040``), as ``edgeslm power meters`` lists it.
        channels: which of its channels are added up, by label or number; empty takes the one whose label says that
            it is the input of the whole board, else all that are enabled.
    """

    sensor: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.:@-]{1,128}$")]
    channels: Annotated[
        tuple[Annotated[str, StringConstraints(min_length=1, max_length=64)], ...], Field(max_length=8)
    ] = ()


MeterKind = Literal["hwmon", "pmic", "supply", "rapl", "plug"]


class MetersConfig(FileModel):
    """How the board's draw is known.

    Attributes:
        sample_hz: how often the meters are read.
        hwmon: sensors to use; empty takes all power monitor chips of known kinds.
        plug: a meter that tells its watts over MQTT.
        vcgencmd: the Raspberry Pi's firmware tool, and arguments that go before the command.
        disabled: kinds of meters that are left alone.
        root: what stands for ``/`` where meters and vitals are looked for: a simulated board's directory, say.
        calibration_file: what ``edgeslm power calibrate`` wrote; relative paths start from the state directory.
    """

    sample_hz: Annotated[float, Field(ge=0.2, le=50)] = 10.0
    hwmon: Annotated[tuple[HwmonConfig, ...], Field(max_length=8)] = ()
    plug: PlugConfig | None = None
    vcgencmd: Annotated[
        tuple[Annotated[str, StringConstraints(min_length=1, max_length=4096)], ...],
        Field(min_length=1, max_length=8),
    ] = ("vcgencmd",)
    disabled: Annotated[tuple[MeterKind, ...], Field(max_length=5)] = ()
    root: Path = Path("/")
    calibration_file: Path = Path("calibration.yaml")

    @field_validator("hwmon")
    @classmethod
    def _each_once(cls, hwmon: tuple[HwmonConfig, ...]) -> tuple[HwmonConfig, ...]:
        if len({choice.sensor for choice in hwmon}) != len(hwmon):
            raise ValueError("a sensor is named twice")
        return hwmon
