"""What a board draws by its power table and what its processor does: the meter that every board has.

Its class is ``estimated``, or ``calibrated`` where the table's figures were fitted to an instrument on this board. It
never fails: what cannot be read plays no part.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from edgeslm.power.cpu import BusyCores, Clock, CpuClock
from edgeslm.power.port import MeterFacts, Reading
from edgeslm.power.sysfs import ValueFile, children, parse_integer, read_text
from edgeslm.schema.board import PowerTable
from edgeslm.schema.calibration import ModelCalibration

NAME = "model"
MODEL_FIGURES = (
    "idle_w",
    "core_load_w",
    "frequency_exponent",
    "temperature_w_per_c",
    "network_j_per_mb",
)
"""What of a power table can be fitted on a device."""
MIN_WINDOW_S = 0.02
"""``/proc/stat`` counts in steps of 10 ms."""
SLOW_PERIOD_S = 1.0
"""How often temperature and network are looked at; both move slowly or matter little."""


@dataclass(frozen=True)
class Predictors:
    """What a board's draw depends on, over a span.

    Attributes:
        busy_cores: cores that were busy, on average.
        frequency_mhz: of the processor; ``None`` where it is not known.
        temperature_c: of the processor; ``None`` where it is not known.
        network_mb_s: megabytes per second over the board's network, both ways.
    """

    busy_cores: float
    frequency_mhz: float | None = None
    temperature_c: float | None = None
    network_mb_s: float = 0.0


def predict(table: PowerTable, at: Predictors) -> float:
    """Watts of the board by its table; what is not known plays no part."""
    load_w = table.core_load_w * at.busy_cores
    if table.max_mhz is not None and at.frequency_mhz is not None:
        load_w *= (at.frequency_mhz / table.max_mhz) ** table.frequency_exponent
    power_w = table.idle_w + load_w + table.network_j_per_mb * at.network_mb_s
    if at.temperature_c is not None:
        power_w += table.temperature_w_per_c * (at.temperature_c - 25.0)
    return max(power_w, 0.0)


def calibrated_table(table: PowerTable, calibration: ModelCalibration) -> PowerTable:
    """`table` with the figures that were fitted on this device."""
    figures: dict[str, object] = {name: getattr(calibration, name) for name in MODEL_FIGURES}
    source = f"calibrated on this device against {calibration.against}, {calibration.made_at:%Y-%m-%d}"
    return table.model_copy(update=figures | {"source": source})


def frequency_files(root: Path) -> tuple[ValueFile, ...]:
    """Files with the present frequency of each group of cores in kHz; reading them asks no firmware."""
    return tuple(
        ValueFile(policy / "scaling_cur_freq", max_bytes=32)
        for policy in children(root / "sys/devices/system/cpu/cpufreq")
        if policy.name.startswith("policy")
    )


def read_frequency_mhz(files: tuple[ValueFile, ...]) -> float | None:
    """Mean frequency over the groups of cores, or ``None`` where none tells."""
    values = [value for value in map(_integer, files) if value is not None and value > 0]
    return sum(values) / len(values) / 1000 if values else None


def processor_zone(root: Path) -> ValueFile | None:
    """The thermal zone of the processor by its type, else the first there is."""
    zones = [zone for zone in children(root / "sys/class/thermal") if zone.name.startswith("thermal_zone")]
    for hint in ("cpu", "x86_pkg", "soc"):
        for zone in zones:
            if hint in (read_text(zone / "type") or "").lower():
                return ValueFile(zone / "temp", max_bytes=32)
    return ValueFile(zones[0] / "temp", max_bytes=32) if zones else None


def read_temperature_c(zone: ValueFile | None) -> float | None:
    """Degrees, or ``None`` where they are not known (thermal zones tell thousandths; a broken one tells nonsense)."""
    value = None if zone is None else _integer(zone)
    return value / 1000 if value is not None and -60_000 < value < 200_000 else None


def _integer(file: ValueFile) -> int | None:
    try:
        return file.integer()
    except (OSError, ValueError):
        return None


class Network:
    """Megabytes over the board's own interfaces; what stays inside (lo, bridges, containers) costs nothing."""

    def __init__(self, root: Path) -> None:
        self._file = ValueFile(root / "proc/net/dev", max_bytes=16_384)
        self._net = root / "sys/class/net"
        self._own: dict[bytes, bool] = {}

    def total_mb(self) -> float | None:
        """Megabytes since the interfaces came up, or ``None`` where they are not known."""
        try:
            lines = self._file.read().splitlines()[2:]
            return sum(self._line_bytes(line) for line in lines) / 1e6
        except (OSError, ValueError, IndexError):
            return None

    def _line_bytes(self, line: bytes) -> int:
        name, _, counts = line.strip().partition(b":")
        if name not in self._own:
            # An interface with a device behind it is a piece of hardware.
            self._own[name] = (self._net / name.decode("ascii", "replace") / "device").exists()
        if not self._own[name]:
            return 0
        fields = counts.split()
        return parse_integer(fields[0]) + parse_integer(fields[8])

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()


class Observer:
    """Reads :class:`Predictors` over the span since the last look."""

    def __init__(
        self,
        root: Path = Path("/"),
        clock: Clock = time.monotonic,
        process_clock: Clock = time.process_time,
    ) -> None:
        self._cpu = CpuClock(root, clock, process_clock)
        self._frequency = frequency_files(root)
        self._zone = processor_zone(root)
        self._network = Network(root)
        start = self._cpu.read()
        self._busy = BusyCores(start)
        self.at_s = start.at_s
        self._slow_at_s = start.at_s
        self._temperature_c = read_temperature_c(self._zone)
        self._total_mb = self._network.total_mb()
        self._network_mb_s = 0.0

    def look(self) -> Predictors:
        """What there was since the last look; ``at_s`` is when it ended."""
        times = self._cpu.read()
        busy_cores = self._busy.advance(times)
        self.at_s = times.at_s
        if times.at_s - self._slow_at_s >= SLOW_PERIOD_S:
            self._look_slowly(times.at_s)
        return Predictors(
            busy_cores=busy_cores,
            frequency_mhz=read_frequency_mhz(self._frequency),
            temperature_c=self._temperature_c,
            network_mb_s=self._network_mb_s,
        )

    def _look_slowly(self, now_s: float) -> None:
        self._temperature_c = read_temperature_c(self._zone)
        total_mb = self._network.total_mb()
        if total_mb is not None and self._total_mb is not None:
            # Counters of some drivers start over; a fall says nothing.
            self._network_mb_s = max(total_mb - self._total_mb, 0.0) / (now_s - self._slow_at_s)
        self._total_mb = total_mb
        self._slow_at_s = now_s

    def close(self) -> None:
        """Let go of all files."""
        self._cpu.close()
        self._network.close()
        for file in (*self._frequency, *((self._zone,) if self._zone else ())):
            file.close()


class ModelMeter:
    """``Meter`` by power table; mean over the span since the last read."""

    def __init__(
        self,
        table: PowerTable,
        *,
        calibration: ModelCalibration | None = None,
        root: Path = Path("/"),
        clock: Clock = time.monotonic,
        process_clock: Clock = time.process_time,
    ) -> None:
        """Predict by `table`.

        Args:
            calibration: figures of this very device, in the place of the table's.
            root: what stands for ``/``.
            clock: monotonic seconds.
            process_clock: core seconds of this process.
        """
        self._table = table if calibration is None else calibrated_table(table, calibration)
        self._clock = clock
        self._observer = Observer(root, clock, process_clock)
        self._last: Reading | None = None
        self.facts = MeterFacts(
            name=NAME,
            meter_class="estimated" if calibration is None else "calibrated",
            period_s=MIN_WINDOW_S,
            error_share=table.error_share if calibration is None else calibration.error_share,
            error_w=0.0 if calibration is None else calibration.error_w,
            averages=True,
            source=self._table.source,
        )

    def read(self) -> Reading:
        """Predicted mean watts since the last read; reads closer than 20 ms to the last get its value again."""
        if self._last is None or self._clock() - self._last.at_s >= MIN_WINDOW_S:
            power_w = predict(self._table, self._observer.look())
            self._last = Reading(at_s=self._observer.at_s, power_w=power_w)
        return self._last

    def close(self) -> None:
        """Let go of its files."""
        self._observer.close()
