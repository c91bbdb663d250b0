"""Facts about a type of board (``devices/<board>.yaml``), each with its source."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from edgeslm.schema.base import FileModel, Identifier

Watts = Annotated[float, Field(ge=0, le=10_000)]


class PowerTable(FileModel):
    """What the board draws, for estimates where no meter is.

    The whole: ``idle_w + busy_cores * core_load_w * (mhz / max_mhz) ** frequency_exponent
    + temperature_w_per_c * (temperature - 25) + network_j_per_mb * megabytes / s``.

    Attributes:
        idle_w: watts of the running board with nothing to do, at 25 degrees.
        core_load_w: watts that one fully busy core adds at the highest frequency.
        max_mhz: the highest frequency; ``None`` where it is not known: then frequency plays no part.
        min_mhz: the lowest frequency that the board can be held at.
        frequency_exponent: how load power grows with frequency; 1 with voltage fixed, up to 3 where voltage follows.
        temperature_w_per_c: watts of leakage that a degree of the processor adds.
        network_j_per_mb: joules to move a megabyte over the board's network.
        supply_w: watts that the recommended power supply can give.
        error_share: how far a device of this type may be off these figures (one sigma).
        source: where the figures come from.
    """

    idle_w: Watts
    core_load_w: Watts
    max_mhz: Annotated[int, Field(ge=1, le=100_000)] | None = None
    min_mhz: Annotated[int, Field(ge=1, le=100_000)] | None = None
    frequency_exponent: Annotated[float, Field(ge=0, le=4)] = 2.0
    temperature_w_per_c: Annotated[float, Field(ge=0, le=10)] = 0.0
    network_j_per_mb: Annotated[float, Field(ge=0, le=1000)] = 0.0
    supply_w: Watts | None = None
    error_share: Annotated[float, Field(gt=0, le=2)] = 0.3
    source: Annotated[str, StringConstraints(min_length=8, max_length=500)]


class ThermalTable(FileModel):
    """How the board warms up and where it protects itself.

    Attributes:
        throttle_c: processor temperature from which the firmware lowers the frequency.
        resistance_c_per_w: degrees above the air that a watt of draw brings in the end, in its usual case.
        time_constant_s: seconds to 63 % of that.
        source: where the figures come from.
    """

    throttle_c: Annotated[float, Field(ge=30, le=150)]
    resistance_c_per_w: Annotated[float, Field(gt=0, le=100)]
    time_constant_s: Annotated[float, Field(gt=0, le=36_000)]
    source: Annotated[str, StringConstraints(min_length=8, max_length=500)]


class Board(FileModel):
    """One hardware type.

    Attributes:
        recognised_by: texts of which one is part of the device tree's ``model``; empty for boards that are
            chosen by hand or by being the last resort of their architecture.
        threads: worker threads recommended for one model.
    """

    name: Identifier
    title: Annotated[str, StringConstraints(min_length=1, max_length=128)]
    arch: Literal["aarch64", "x86_64", "any"]
    soc: Annotated[str, StringConstraints(max_length=128)]
    cores: Annotated[int, Field(ge=1, le=1024)] | None
    ram_mb: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(max_length=16)]
    cpu_features: Annotated[tuple[str, ...], Field(max_length=32)]
    recognised_by: Annotated[tuple[str, ...], Field(max_length=16)]
    threads: Annotated[int, Field(ge=1, le=64)]
    power: PowerTable
    thermal: ThermalTable | None = None
    sources: Annotated[tuple[str, ...], Field(min_length=1, max_length=16)]
