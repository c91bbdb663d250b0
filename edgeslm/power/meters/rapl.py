"""Energy counters of PC processors (RAPL), through the kernel's powercap tree.

Where the platform counter (``psys``) is there and counts, it is the machine's draw. Otherwise the packages (with the
memory, where it is counted apart) are only a part of it: what the rest of the machine draws lies somewhere between
nothing and the table's idle draw, so the middle of that is added and the class stays ``estimated``. A calibration of
one's own puts a line in the place of that guess.

Files: Documentation/power/powercap/powercap.rst. ``energy_uj`` starts over at ``max_energy_range_uj``; on a server
under load that is every few minutes. It is readable by root alone since CVE-2020-8694.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgeslm.errors import MeterError
from edgeslm.power.cpu import Clock
from edgeslm.power.meters.faults import failed
from edgeslm.power.meters.linear import Correction
from edgeslm.power.port import MeterFacts, Reading
from edgeslm.power.sysfs import ValueFile, children, read_integer, read_text

NAME = "rapl"
MIN_WINDOW_S = 0.005
"""The counters move every millisecond or so; over less than a few of those the mean means nothing."""


@dataclass(frozen=True)
class Zone:
    """One energy counter.

    Attributes:
        kind: ``psys``, ``package-0``, ``dram`` ...
        range_uj: where the counter starts over.
    """

    kind: str
    directory: Path
    range_uj: int


def find_zones(root: Path = Path("/")) -> list[Zone]:
    """The counters that together are as much of the machine as can be known, none within another.

    The same packages appear a second time below ``intel-rapl-mmio``; those are left out.
    """
    zones = []
    for directory in children(root / "sys/class/powercap"):
        kind = read_text(directory / "name")
        range_uj = read_integer(directory / "max_energy_range_uj")
        if directory.name.startswith("intel-rapl:") and kind and range_uj:
            zones.append(Zone(kind=kind, directory=directory, range_uj=range_uj))
    # A platform that has the counter but nothing wired to it counts nothing.
    psys = [zone for zone in zones if zone.kind == "psys" and read_integer(zone.directory / "energy_uj")]
    return psys[:1] or [zone for zone in zones if zone.kind.startswith("package") or zone.kind == "dram"]


def is_platform(zones: Sequence[Zone]) -> bool:
    """Whether `zones` count the whole machine."""
    return any(zone.kind == "psys" for zone in zones)


def default_correction(zones: Sequence[Zone], idle_w: float) -> Correction:
    """From counters to the machine, where nothing was calibrated; `idle_w` is the machine's by its table."""
    if is_platform(zones):
        return Correction(
            scale=1.0,
            offset_w=0.0,
            error_share=0.1,
            error_w=0.0,
            source="RAPL platform domain; what is wired to it is the maker's choice: 10 % allowed",
        )
    return Correction(
        scale=1.0,
        offset_w=idle_w / 2,
        error_share=0.05,
        error_w=idle_w / math.sqrt(12),
        source="RAPL counts processor and memory only; the rest is taken as half the table's idle draw, equally likely "
        "anything from none to all of it",
    )


class RaplMeter:
    """``Meter`` over RAPL counters; counts energy across their wraps."""

    def __init__(
        self,
        zones: Sequence[Zone],
        correction: Correction,
        *,
        calibrated: bool = False,
        clock: Clock = time.monotonic,
    ) -> None:
        """Count from now on.

        Args:
            zones: from :func:`find_zones`.
            correction: from counted watts to the machine's.
            calibrated: the correction was fitted to an instrument.
            clock: monotonic seconds.

        Raises:
            MeterError: a counter may not or cannot be read.
        """
        self._zones = tuple(zones)
        self._files = tuple(ValueFile(zone.directory / "energy_uj") for zone in zones)
        self._correction = correction
        self._clock = clock
        self._counter_j = 0.0
        self._last: Reading | None = None
        self.facts = MeterFacts(
            name=NAME,
            meter_class="calibrated" if calibrated else "measured" if is_platform(zones) else "estimated",
            period_s=0.001,
            error_share=correction.error_share,
            error_w=correction.error_w,
            averages=True,
            source=correction.source,
        )
        self._counts_uj = self._read_counts()
        self._at_s = self._clock()

    def read(self) -> Reading:
        """Mean watts since the last read, and joules since the meter was opened.

        Raises:
            MeterError: a counter is gone, or started over from nothing (after sleep), which cannot be told from a
                wrap; counting goes on from there.
        """
        elapsed_s = self._clock() - self._at_s
        if elapsed_s < MIN_WINDOW_S:
            if self._last is not None:
                return self._last
            time.sleep(MIN_WINDOW_S)
        counts_uj = self._read_counts()
        at_s = self._clock()
        elapsed_s = at_s - self._at_s
        if elapsed_s <= 0:
            raise MeterError("no time passed since it was opened", meter=NAME, fault="stale")
        grown_uj = 0
        restarted = False
        for zone, last, now in zip(self._zones, self._counts_uj, counts_uj, strict=True):
            grown = (now - last) % zone.range_uj
            restarted = restarted or (now < last and grown > zone.range_uj // 2)
            grown_uj += grown
        self._counts_uj = counts_uj
        self._at_s = at_s
        if restarted:
            raise MeterError("a counter started over", meter=NAME, fault="rubbish")
        power_w = self._correction.apply(grown_uj * 1e-6 / elapsed_s)
        self._counter_j += max(power_w, 0.0) * elapsed_s
        self._last = Reading(at_s=at_s, power_w=power_w, counter_j=self._counter_j)
        return self._last

    def close(self) -> None:
        """Let go of the counters."""
        for file in self._files:
            file.close()

    def _read_counts(self) -> tuple[int, ...]:
        try:
            counts = tuple(file.integer() for file in self._files)
        except PermissionError as error:
            raise MeterError(
                "energy_uj is readable by root alone",
                meter=NAME,
                fault="gone",
                hint="See docs/power-meters.md, Energy counters of a PC",
            ) from error
        except (OSError, ValueError) as error:
            raise failed(NAME, error) from error
        for zone, count in zip(self._zones, counts, strict=True):
            if not 0 <= count <= zone.range_uj:
                raise MeterError(f"{zone.kind} counts {count}, out of its range", meter=NAME, fault="rubbish")
        return counts
