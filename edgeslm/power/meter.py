"""What a piece of work cost in energy.

The only meter of this release estimates: the board's power table (watts at idle, watts a busy core adds) and the
processor time of this process. It is right to perhaps a factor of two and says so by its class, ``estimated``;
it is the same for equal work on equal boards, so it compares prompts and models well.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Protocol

from edgeslm.schema.board import PowerTable
from edgeslm.schema.message import MeterClass


@dataclass(frozen=True)
class EnergyReading:
    """Energy of the whole board over a span.

    Attributes:
        energy_j: joules drawn.
        net_j: joules above what the idle board would have drawn.
        power_w: mean draw in watts.
        meter: how this is known.
    """

    energy_j: float
    net_j: float
    power_w: float
    meter: MeterClass


@dataclass(frozen=True)
class MeterMark:
    """The start of a span: wall and processor seconds of clocks that only run forward."""

    wall_s: float
    cpu_s: float


class EnergyMeter(Protocol):
    """Tells the energy between a mark and now. Spans may overlap; marks are cheap."""

    @property
    def meter_class(self) -> MeterClass:
        """How the readings are known."""

    def mark(self) -> MeterMark:
        """Begin a span."""

    def since(self, mark: MeterMark) -> EnergyReading:
        """Energy since `mark`."""


class EstimatedMeter:
    """`EnergyMeter` from a power table and the processor time of this process."""

    meter_class: MeterClass = "estimated"

    def __init__(self, table: PowerTable) -> None:
        self._table = table

    def mark(self) -> MeterMark:
        """Begin a span."""
        return MeterMark(time.monotonic(), time.process_time())

    def since(self, mark: MeterMark) -> EnergyReading:
        """Energy since `mark`."""
        wall_s = max(time.monotonic() - mark.wall_s, 1e-6)
        return estimate(self._table, wall_s, time.process_time() - mark.cpu_s)


def estimate(table: PowerTable, wall_s: float, cpu_s: float) -> EnergyReading:
    """Energy of a board over `wall_s` seconds in which `cpu_s` core seconds were busy."""
    net_j = table.core_load_w * cpu_s
    energy_j = table.idle_w * wall_s + net_j
    return EnergyReading(energy_j=energy_j, net_j=net_j, power_w=energy_j / wall_s, meter="estimated")
