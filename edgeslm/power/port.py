"""What the power layer needs of the world and gives to it: meters, vitals, spans of energy.

A meter says what the whole board draws. Whoever knows something about the board beside its draw (temperature,
battery, processor time) tells it in :class:`Vitals` and :class:`CpuTimes`. All times are monotonic seconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from edgeslm.schema.message import MeterClass

Fault = Literal["gone", "rubbish", "negative", "stuck", "drifting", "stale"]
"""What can be wrong with a meter."""


@dataclass(frozen=True)
class MeterFacts:
    """What a meter says about itself.

    Attributes:
        name: unique on the device and stable over restarts, such as ``hwmon:ina226@1-0040``.
        meter_class: ``measured`` by an instrument, ``calibrated`` against one, or ``estimated``.
        period_s: seconds between values that differ; reading more often gives the same value again.
        error_share: relative error of a value (one sigma).
        error_w: absolute error of a value in watts (one sigma).
        averages: a value is the mean over the last period (averaging converters, counters), not an instant.
        source: where the error figures come from.
    """

    name: str
    meter_class: MeterClass
    period_s: float
    error_share: float
    error_w: float
    averages: bool
    source: str


@dataclass(frozen=True)
class Reading:
    """One value of a meter.

    Attributes:
        at_s: monotonic seconds at which it held, not at which it was asked for.
        power_w: draw of the whole board in watts.
        counter_j: joules since the meter was opened, never falling, where the meter counts energy; what lies
            between two counts needs no integration.
    """

    at_s: float
    power_w: float
    counter_j: float | None = None


class Meter(Protocol):
    """One instrument, or a model in its place."""

    @property
    def facts(self) -> MeterFacts:
        """What it says about itself."""

    def read(self) -> Reading:
        """The latest value; returns within milliseconds.

        Raises:
            MeterError: it is gone, or what it says cannot be a value. Nothing else is raised.
        """

    def close(self) -> None:
        """Let go of files and connections."""


@dataclass(frozen=True)
class CpuTimes:
    """Processor time of the whole board and of this process, in core seconds since some start.

    Attributes:
        busy_s: core seconds that all processes together were busy, this one included.
        process_s: core seconds of this process, all its threads.
    """

    at_s: float
    busy_s: float
    process_s: float


@dataclass(frozen=True)
class Battery:
    """State of a battery or UPS.

    Attributes:
        share: state of charge, 0 to 1.
        discharge_w: watts that leave it; negative while it charges; ``None`` where it does not tell.
        capacity_wh: energy when full, where known.
        external: whether an outside supply feeds the board.
    """

    share: float
    discharge_w: float | None
    capacity_wh: float | None
    external: bool | None


@dataclass(frozen=True)
class Throttling:
    """What the firmware does to protect the board (``vcgencmd get_throttled``), now and since boot."""

    under_voltage: bool = False
    frequency_capped: bool = False
    throttled: bool = False
    soft_temperature_limit: bool = False
    under_voltage_since_boot: bool = False
    frequency_capped_since_boot: bool = False
    throttled_since_boot: bool = False
    soft_temperature_limit_since_boot: bool = False


@dataclass(frozen=True)
class Vitals:
    """State of the board beside its draw; ``None`` is not known here."""

    at_s: float
    temperature_c: float | None = None
    frequency_mhz: float | None = None
    throttling: Throttling | None = None
    battery: Battery | None = None


@dataclass(frozen=True)
class Cause:
    """What energy was spent on.

    Attributes:
        kind: what sort of work.
        model: name and version of the model, where one computed.
        id: the request's id.
        rule: the rule that asked, where one did.
    """

    kind: Literal["prompt", "test", "update"]
    model: str | None = None
    id: str | None = None
    rule: str | None = None


@dataclass(frozen=True)
class EnergyReading:
    """Energy that a span is charged with: the idle board while it ran, and what its own work took on top.

    Attributes:
        energy_j: joules charged.
        net_j: joules above what the idle board would have drawn.
        power_w: mean draw in watts.
        meter: how this is known; the weakest class that any part of it rests on.
    """

    energy_j: float
    net_j: float
    power_w: float
    meter: MeterClass


class EnergySpan(Protocol):
    """A piece of work under way."""

    def so_far(self) -> EnergyReading:
        """Energy since it began; cheap enough to ask between tokens."""

    def pause(self) -> None:
        """Charge nothing until :meth:`go_on`: something else is computed meanwhile."""

    def go_on(self) -> None:
        """Charge again after :meth:`pause`."""

    def end(self) -> EnergyReading:
        """Energy from begin to now; closes the span."""


class EnergyMeter(Protocol):
    """Tells what a piece of work cost. Spans may overlap; beginning and ending one costs microseconds."""

    @property
    def meter_class(self) -> MeterClass:
        """How the readings are known at the moment."""

    def begin(self, cause: Cause) -> EnergySpan:
        """Work begins."""
