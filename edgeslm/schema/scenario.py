"""What happens to a simulated board (``edgeslm/sim/scenarios/*.yaml``): supply, sun, air, work, and faults of meters.

Times are seconds since the scenario began; hours are hours of the day, the first of which is `start_h`.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from edgeslm.schema.base import FileModel, Identifier

MeterKind = Literal["ina219", "ina226", "ina260", "ina3221", "pmic", "rapl"]
MeterFault = Literal["gone", "rubbish", "negative", "stuck", "drifting", "stalled"]
"""What a meter does wrong: `stuck` says one value for ever; `stalled` too, and a command that asks it hangs until it
is over; `drifting` gains a tenth of its value each minute."""

Seconds = Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)]
Length = Annotated[float, Field(gt=0, le=1e9, allow_inf_nan=False)]
Watts = Annotated[float, Field(ge=0, le=10_000)]
Hour = Annotated[float, Field(ge=0, lt=24)]
Celsius = Annotated[float, Field(ge=-60, le=100)]
Share = Annotated[float, Field(ge=0, le=1)]
Cores = Annotated[float, Field(ge=0, le=1024)]


class Air(FileModel):
    """The air around the board over the day.

    Attributes:
        mean_c: degrees Celsius on average.
        swing_c: degrees by which the hottest hour is above the mean, and the coolest below.
    """

    mean_c: Celsius = 22.0
    swing_c: Annotated[float, Field(ge=0, le=50)] = 0.0
    hottest_h: Hour = 15.0


class Panel(FileModel):
    """A solar panel.

    Attributes:
        peak_w: watts that reach the board's charger at noon under a clear sky.
        clouds: share of the light that the thickest clouds take.
    """

    peak_w: Watts
    sunrise_h: Hour = 6.0
    sunset_h: Hour = 20.0
    clouds: Share = 0.0

    @model_validator(mode="after")
    def _is_a_day(self) -> Self:
        if self.sunset_h <= self.sunrise_h:
            raise ValueError("the sun has to set after it rises")
        return self


class BatteryPack(FileModel):
    """A battery with its charger, which takes what supply and panel leave over and gives what they lack.

    Attributes:
        start_share: state of charge at the start.
        charge_efficiency: share of the energy put in that can be taken out again.
        restart_share: state of charge from which a board that went out on an empty battery starts again.
    """

    capacity_wh: Annotated[float, Field(gt=0, le=100_000)]
    start_share: Share = 0.8
    charge_efficiency: Annotated[float, Field(gt=0, le=1)] = 0.92
    max_charge_w: Watts = 20.0
    max_discharge_w: Watts = 20.0
    restart_share: Share = 0.1


class Constant(FileModel):
    """The same work all the time."""

    shape: Literal["constant"] = "constant"
    busy_cores: Cores = 0.0


class Square(FileModel):
    """Work that switches between two levels.

    Attributes:
        high_share: share of each period at the high level, with which it begins.
    """

    shape: Literal["square"]
    low_cores: Cores = 0.0
    high_cores: Cores
    period_s: Annotated[float, Field(ge=0.001, le=1e6)]
    high_share: Annotated[float, Field(gt=0, lt=1)] = 0.5


class Bursts(FileModel):
    """One burst of work in each stretch of `every_s` seconds, at a moment left to chance.

    Attributes:
        length_s: mean length of a burst; each has between half and one and a half of it.
        low_cores: work between bursts.
    """

    shape: Literal["bursts"]
    low_cores: Cores = 0.0
    busy_cores: Cores
    every_s: Annotated[float, Field(ge=0.01, le=1e6)]
    length_s: Annotated[float, Field(gt=0, le=1e6)]

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if 1.5 * self.length_s > self.every_s:
            raise ValueError("the longest burst (1.5 * length_s) has to fit into every_s")
        return self


Load = Annotated[Constant | Square | Bursts, Field(discriminator="shape")]


class Spell(FileModel):
    """A stretch of time.

    Attributes:
        for_s: how long; ``None`` is for good.
    """

    at_s: Seconds
    for_s: Length | None = None

    def holds(self, time_s: float) -> bool:
        """Whether `time_s` lies in it."""
        return self.at_s <= time_s and (self.for_s is None or time_s < self.at_s + self.for_s)


class Event(Spell):
    """Something that holds for a while; what it names takes the place of what would be.

    Attributes:
        supply_w: watts that the supply can give; 0 is a power cut, less than the board draws a brown-out.
        sun: share of the panel's light that is left.
    """

    supply_w: Watts | None = None
    air_c: Celsius | None = None
    busy_cores: Cores | None = None
    sun: Share | None = None

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if self.supply_w is self.air_c is self.busy_cores is self.sun is None:
            raise ValueError("an event names at least one of supply_w, air_c, busy_cores, sun")
        return self


class SimulatedMeter(FileModel):
    """A meter on the board; what is not given is drawn from the chip's data sheet.

    Attributes:
        gain_error: share by which all its values are too high. ``None`` draws one from the seed, within the limits
            of the data sheet.
        noise_a: deviation of a single current value in amperes.
        update_interval_ms: time over which a value is averaged, for chips that let it be set.
        counter_range_uj: where a counter wraps.
    """

    kind: MeterKind
    gain_error: Annotated[float, Field(gt=-0.5, le=0.5)] | None = None
    noise_a: Annotated[float, Field(ge=0, le=10)] | None = None
    update_interval_ms: Annotated[int, Field(ge=2, le=10_000)] | None = None
    counter_range_uj: Annotated[int, Field(ge=1_000_000, lt=2**63)] | None = None

    @model_validator(mode="after")
    def _fits_the_kind(self) -> Self:
        if self.update_interval_ms is not None and self.kind not in {"ina226", "ina260", "ina3221"}:
            raise ValueError(f"the interval of {self.kind} cannot be set")
        if self.counter_range_uj is not None and self.kind != "rapl":
            raise ValueError(f"{self.kind} does not count")
        return self


class Fault(Spell):
    """A meter or the battery's gauge does something wrong for a while."""

    meter: MeterKind | Literal["battery"]
    fault: MeterFault

    @model_validator(mode="after")
    def _can_be(self) -> Self:
        if self.meter in {"rapl", "battery"} and self.fault == "drifting":
            raise ValueError(f"{self.meter} counts, and does not drift")
        if self.meter == "battery" and self.fault == "negative":
            raise ValueError("what leaves a battery is negative while it charges, which is no fault")
        return self


class Scenario(FileModel):
    """What happens to a board.

    Attributes:
        title: one line for a list.
        seed: decides clouds, bursts, and the errors of meters.
        start_h: hour of the day at the start.
        supply_w: watts that the mains supply can give; ``None`` is what the board's own supply gives, 0 is no mains.
        network_mb_per_s: megabytes a second that the board's network moves.
    """

    name: Identifier
    title: Annotated[str, StringConstraints(min_length=1, max_length=128)]
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 1
    start_h: Hour = 12.0
    air: Air = Air()
    supply_w: Watts | None = None
    panel: Panel | None = None
    battery: BatteryPack | None = None
    load: Load = Constant()
    network_mb_per_s: Annotated[float, Field(ge=0, le=10_000)] = 0.0
    meters: Annotated[tuple[SimulatedMeter, ...], Field(max_length=6)] = ()
    events: Annotated[tuple[Event, ...], Field(max_length=1000)] = ()
    faults: Annotated[tuple[Fault, ...], Field(max_length=1000)] = ()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        kinds = [meter.kind for meter in self.meters]
        if len(set(kinds)) != len(kinds):
            raise ValueError("a board has one meter of a kind at most")
        present = {*kinds, *(["battery"] if self.battery is not None else [])}
        for fault in self.faults:
            if fault.meter not in present:
                raise ValueError(f"a fault names '{fault.meter}', which the board does not have")
        return self
