"""Processor time of the whole board and of this process, and the work that the board did between two looks.

``/proc/stat`` counts in hundredths of a second, too coarse for a short prompt; the process clock counts in
nanoseconds. So this process's share comes from its own clock, and ``/proc/stat`` only tells what the *others* did:
its total less our own time. That difference wobbles by a tick or so; taking each rise of it above its highest mark so
far, and nothing else, keeps the wobble from being counted as work again and again.

Sources: proc_stat(5) for the fields; time waiting for input or output (iowait) and time that a hypervisor took
(steal) draw no power here, and guest time is already part of user time.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from edgeslm.power.port import CpuTimes
from edgeslm.power.sysfs import ValueFile

Clock = Callable[[], float]

_BUSY_FIELDS = (0, 1, 2, 5, 6)
"""user, nice, system, irq, softirq."""


class CpuClock:
    """Reads :class:`CpuTimes`; keeps ``/proc/stat`` open."""

    def __init__(
        self,
        root: Path = Path("/"),
        clock: Clock = time.monotonic,
        process_clock: Clock = time.process_time,
    ) -> None:
        self._file = ValueFile(root / "proc/stat", max_bytes=256)
        self._clock = clock
        self._process_clock = process_clock
        self._total_s = 0.0
        self._others_s = 0.0
        self._offset_s = 0.0
        self._gap = False

    def read(self) -> CpuTimes:
        """Processor times now. While the board's total cannot be read the others count as idle."""
        process_s = self._process_clock()
        try:
            total_s = _busy_s(self._file.read())
        except (OSError, ValueError):
            self._gap = True
        else:
            if self._gap or total_s < self._total_s:
                # What the others did while nobody looked, or before the counters started over, belongs to no look.
                self._offset_s = total_s - process_s - self._others_s
            self._gap = False
            self._total_s = total_s
            self._others_s = total_s - process_s - self._offset_s
        return CpuTimes(at_s=self._clock(), busy_s=process_s + self._others_s, process_s=process_s)

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()


def read_cpu_times(root: Path = Path("/"), clock: Clock = time.monotonic) -> CpuTimes:
    """Processor times now, once; who asks again and again keeps a :class:`CpuClock`."""
    reader = CpuClock(root, clock)
    try:
        return reader.read()
    finally:
        reader.close()


def _busy_s(content: bytes) -> float:
    fields = content.split(b"\n", 1)[0].split()
    if len(fields) < 8 or fields[0] != b"cpu":
        raise ValueError("not the form of /proc/stat")
    return sum(int(fields[1 + index]) for index in _BUSY_FIELDS) / os.sysconf("SC_CLK_TCK")


class BusyCores:
    """Cores that were busy on average between two looks, this process and the others told apart."""

    def __init__(self, start: CpuTimes) -> None:
        self._last = start
        self._others_mark_s = start.busy_s - start.process_s

    def advance(self, now: CpuTimes) -> float:
        """Busy cores since the last call; 0 where no time passed."""
        elapsed_s = now.at_s - self._last.at_s
        if elapsed_s <= 0:
            return 0.0
        own_s = max(now.process_s - self._last.process_s, 0.0)
        others_s = now.busy_s - now.process_s
        rise_s = max(others_s - self._others_mark_s, 0.0)
        self._others_mark_s = max(self._others_mark_s, others_s)
        self._last = now
        return (own_s + rise_s) / elapsed_s
