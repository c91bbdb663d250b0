"""Facts about a type of board (``devices/<board>.yaml``), each with its source."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from edgeslm.schema.base import FileModel, Identifier

Watts = Annotated[float, Field(ge=0, le=10_000)]


class PowerTable(FileModel):
    """What the board draws, for estimates where no meter is.

    Attributes:
        idle_w: watts of the running board with nothing to do.
        core_load_w: watts that one fully busy core adds.
        source: where the figures come from.
    """

    idle_w: Watts
    core_load_w: Watts
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
    sources: Annotated[tuple[str, ...], Field(min_length=1, max_length=16)]
