"""What a piece of work cost where nothing samples in the background: an estimate.

Processor time of this process and the board's power table give it. It is right to perhaps a factor of two and says
so by its class, ``estimated``; it is the same for equal work on equal boards, so it compares prompts and models well.
"""

from __future__ import annotations

import time

from edgeslm.power.port import Cause, EnergyReading
from edgeslm.schema.board import PowerTable
from edgeslm.schema.message import MeterClass


class EstimatedMeter:
    """``EnergyMeter`` from a power table and the processor time of this process."""

    meter_class: MeterClass = "estimated"

    def __init__(self, table: PowerTable) -> None:
        self._table = table

    def begin(self, cause: Cause) -> EstimatedSpan:
        """Work begins."""
        return EstimatedSpan(self._table)


class EstimatedSpan:
    """``EnergySpan`` of an :class:`EstimatedMeter`."""

    def __init__(self, table: PowerTable) -> None:
        self._table = table
        self._wall_s = time.monotonic()
        self._cpu_s = time.process_time()
        self._paused: tuple[float, float] | None = None

    def so_far(self) -> EnergyReading:
        """Energy since it began."""
        now_s, now_cpu_s = self._paused or (time.monotonic(), time.process_time())
        return estimate(self._table, max(now_s - self._wall_s, 1e-6), now_cpu_s - self._cpu_s)

    def pause(self) -> None:
        """See ``EnergySpan``."""
        self._paused = self._paused or (time.monotonic(), time.process_time())

    def go_on(self) -> None:
        """See ``EnergySpan``."""
        if self._paused is not None:
            self._wall_s += time.monotonic() - self._paused[0]
            self._cpu_s += time.process_time() - self._paused[1]
            self._paused = None

    def end(self) -> EnergyReading:
        """Energy from begin to now."""
        return self.so_far()


def estimate(table: PowerTable, wall_s: float, cpu_s: float) -> EnergyReading:
    """Energy of a board over `wall_s` seconds in which `cpu_s` core seconds were busy, at its highest frequency."""
    net_j = table.core_load_w * cpu_s
    energy_j = table.idle_w * wall_s + net_j
    return EnergyReading(energy_j=energy_j, net_j=net_j, power_w=energy_j / wall_s, meter="estimated")
