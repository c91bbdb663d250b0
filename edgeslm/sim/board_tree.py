"""A simulated board as files: what Linux shows under ``/sys`` and ``/proc``, and Raspberry Pi's ``vcgencmd``.

What always holds: a reader that keeps a file open sees each new value, whole. Values are therefore overwritten in
place, by one write of a length that never changes (padded with blanks, ended by a newline); a file that was replaced,
or cut and written anew, would be stale or half in the hands of such a reader. Texts of up to a cache line are copied
by the kernel at once: four million reads beside a writer at full speed met none that was mixed. Longer ones
(``/proc/stat`` beyond its first line, the answer of ``pmic_read_adc``) may mix two neighbouring moments, at places
where numbers of fixed length stand below each other.

One file is also read: the frequency cap that others write into ``scaling_max_freq``. As the kernel does, what is no
number is ignored and what is out of range is moved into it.

A meter that goes out of order by vanishing takes its directory with it, and comes back under the next number, as
hwmon devices do. A board that started again has another boot id and has forgotten its frequency cap.

Left to others: what the values are (:mod:`edgeslm.sim.board`, :mod:`edgeslm.sim.board_meters`).

Sources: kernel documentation of hwmon (sysfs-interface.rst), cpufreq (admin-guide/pm/cpufreq.rst), thermal, power
supply (ABI/testing/sysfs-class-power) and powercap; proc_stat(5); ``brcm,bcm2711-thermal`` for the steps of the
processor's temperature (410.04 degrees less 0.487 a step).
"""

from __future__ import annotations

import fcntl
import math
import os
import shlex
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final, Self

from edgeslm.errors import ConfigError
from edgeslm.schema.board import Board
from edgeslm.schema.scenario import BatteryPack, SimulatedMeter
from edgeslm.sim.board import UNDER_VOLTAGE, BoardState, Plant
from edgeslm.sim.board_meters import Texts, fixed_texts

VCGENCMD: Final = "usr/bin/vcgencmd"
_MARKER = ".simulated-board"
_OURS = ("sys", "proc", "usr", "run")
_HANG_MARKER = "run/vcgencmd/hangs"
_PMIC_WIDTH = 2048
_CPU_WIDTH = 64
_NETWORK_WIDTH = 512
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_FULL_SHARE = 0.999
_EMPTY_V, _FULL_V = 3.3, 4.15
_THERMAL_TOP_MC, _THERMAL_STEP_MC = 410_040, 487
_CPUFREQ = "sys/devices/system/cpu/cpufreq/policy0"
_FREQUENCY_STEP_KHZ = 100_000


class Attributes:
    """One directory of files with a value each."""

    def __init__(self, directory: Path, fixed: Texts, width: int = 24) -> None:
        """Make the directory with the files that do not change; the others are `width` bytes long."""
        self._directory = directory
        self._width = width
        self._fds: dict[str, int] = {}
        directory.mkdir(parents=True, exist_ok=True)
        for name, text in fixed.items():
            (directory / name).write_text(text + "\n", encoding="utf-8")

    def write(self, values: Texts) -> None:
        """Show `values`."""
        for name, text in values.items():
            if name not in self._fds:
                self._fds[name] = os.open(
                    self._directory / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644
                )
            os.pwrite(self._fds[name], text.encode().ljust(self._width - 1) + b"\n", 0)

    def read(self, name: str) -> bytes:
        """What the file says at the moment: someone else may have written it."""
        return os.pread(self._fds[name], self._width, 0)

    def remove(self) -> None:
        """Take the directory away."""
        self.close()
        shutil.rmtree(self._directory)

    def close(self) -> None:
        """Let go of the files."""
        for fd in self._fds.values():
            os.close(fd)
        self._fds.clear()


class BoardTree:
    """The files of one board."""

    def __init__(
        self,
        root: Path,
        board: Board,
        plant: Plant,
        meters: tuple[SimulatedMeter, ...] = (),
    ) -> None:
        """Make the tree under `root`, which is made too, and in which an earlier one is replaced.

        Raises:
            ConfigError: `root` cannot be written, holds something else, or another simulation writes there.
        """
        self.root = root
        self._plant = plant
        self._meters: Mapping[str, SimulatedMeter] = {meter.kind: meter for meter in meters}
        self._shown: dict[str, Attributes] = {}
        self._next_hwmon = 0
        self._hangs = False
        self._boots = 1
        self._cap_mhz = float(plant.max_mhz)
        self._lock_fd = _claim(root)
        try:
            self._cpufreq = self._make_cpufreq(board)
            self._thermal = self._attributes(
                "sys/class/thermal/thermal_zone0",
                {"type": "cpu-thermal" if board.arch == "aarch64" else "x86_pkg_temp"},
            )
            self._cpu_hwmon = Attributes(self._new_hwmon("thermal/thermal_zone0"), {"name": "cpu_thermal"})
            self._supply_hwmon = (
                Attributes(self._new_hwmon("soc:firmware/raspberrypi-hwmon"), {"name": "rpi_volt"})
                if _is_raspberry_pi(board)
                else None
            )
            self._ac = (
                self._attributes("sys/class/power_supply/ac", {"type": "Mains"}) if plant.battery else None
            )
            self._proc = Attributes(root / "proc", {}, width=_CPU_WIDTH * (plant.cores + 1))
            self._network = Attributes(root / "proc/net", {}, width=_NETWORK_WIDTH)
            self._random = Attributes(root / "proc/sys/kernel/random", {}, width=37)
            (root / "sys/class/net/eth0/device").mkdir(parents=True)
            self._firmware = self._make_firmware(board)
        except OSError as error:
            os.close(self._lock_fd)
            raise ConfigError(f"cannot write {root}: {error.strerror}", path=str(root)) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()

    # --- board to files ---

    def write(self, state: BoardState) -> None:
        """Show what the board itself says."""
        if state.boots != self._boots:
            self._cpufreq.write({"scaling_max_freq": str(self._plant.max_mhz * 1000)})
        self._boots = state.boots
        self._cpufreq.write({"scaling_cur_freq": str(round(state.frequency_mhz) * 1000)})
        step = round((_THERMAL_TOP_MC - state.temperature_c * 1000) / _THERMAL_STEP_MC)
        millidegrees = str(_THERMAL_TOP_MC - _THERMAL_STEP_MC * step)
        self._thermal.write({"temp": millidegrees})
        self._cpu_hwmon.write({"temp1_input": millidegrees})
        self._proc.write({"stat": _proc_stat(self._plant.cores, state)})
        self._network.write({"dev": _proc_net_dev(state)})
        self._random.write({"boot_id": str(uuid.UUID(int=state.boots))})
        if self._supply_hwmon is not None:
            self._supply_hwmon.write({"in0_lcrit_alarm": str(state.flags & UNDER_VOLTAGE)})
        if self._ac is not None:
            self._ac.write({"online": str(int(state.external))})
        if self._firmware is not None:
            self._firmware.write(
                {
                    "get_throttled": f"throttled={state.throttled_word:#x}",
                    "measure_temp": f"temp={state.temperature_c:.1f}'C",
                    "measure_volts": f"volt={_core_v(self._plant, state):.4f}V",
                }
            )

    def show(self, instrument: str, values: Texts | None) -> None:
        """Show what an instrument (a kind of meter, or ``battery``) says; ``None`` is that it is not there."""
        shown = self._shown.get(instrument)
        if values is None:
            if shown is not None:
                self._remove(instrument, shown)
        else:
            if shown is None:
                shown = self._shown[instrument] = self._make(instrument)
            shown.write(values)

    def hang_vcgencmd(self, hangs: bool) -> None:
        """Let ``vcgencmd pmic_read_adc`` wait before it answers, or no longer."""
        if hangs != self._hangs:
            self._hangs = hangs
            marker = self.root / _HANG_MARKER
            if hangs:
                marker.touch()
            else:
                marker.unlink()

    def close(self) -> None:
        """Let go of the files, which stay as they are."""
        parts = (
            self._cpufreq,
            self._thermal,
            self._cpu_hwmon,
            self._supply_hwmon,
            self._proc,
            self._network,
            self._random,
            self._ac,
            self._firmware,
        )
        for attributes in (*parts, *self._shown.values()):
            if attributes is not None:
                attributes.close()
        with suppress(OSError):
            os.close(self._lock_fd)

    # --- files to board ---

    def cap_mhz(self) -> float:
        """The frequency cap that stands in ``scaling_max_freq``."""
        content = self._cpufreq.read("scaling_max_freq")
        with suppress(ValueError):
            wanted_mhz = int(content) / 1000
            self._cap_mhz = min(max(wanted_mhz, self._plant.min_mhz), self._plant.max_mhz)
            if wanted_mhz == self._cap_mhz:
                return self._cap_mhz
        # An empty file is one that somebody is about to fill.
        if content.strip():
            self._cpufreq.write({"scaling_max_freq": str(round(self._cap_mhz * 1000))})
        return self._cap_mhz

    # --- making ---

    def _attributes(self, path: str, fixed: Texts) -> Attributes:
        return Attributes(self.root / path, fixed)

    def _make_cpufreq(self, board: Board) -> Attributes:
        plant = self._plant
        lowest, highest = plant.min_mhz * 1000, plant.max_mhz * 1000
        steps = [*range(lowest, highest, _FREQUENCY_STEP_KHZ), highest]
        attributes = self._attributes(
            _CPUFREQ,
            {
                "affected_cpus": " ".join(str(core) for core in range(plant.cores)),
                "cpuinfo_max_freq": str(highest),
                "cpuinfo_min_freq": str(lowest),
                "scaling_min_freq": str(lowest),
                "scaling_available_frequencies": " ".join(str(step) for step in steps),
                "scaling_governor": "ondemand",
                "scaling_driver": "cpufreq-dt" if board.arch == "aarch64" else "acpi-cpufreq",
            },
        )
        attributes.write({"scaling_max_freq": str(highest)})
        return attributes

    def _make_firmware(self, board: Board) -> Attributes | None:
        if board.recognised_by:
            device_tree = self.root / "proc/device-tree"
            device_tree.mkdir(parents=True, exist_ok=True)
            (device_tree / "model").write_bytes(board.recognised_by[0].encode() + b"\0")
        if not _is_raspberry_pi(board) and "pmic" not in self._meters:
            return None
        answers = self._attributes("run/vcgencmd", {})
        program = self.root / VCGENCMD
        program.parent.mkdir(parents=True, exist_ok=True)
        program.write_text(_VCGENCMD.format(answers=shlex.quote(str((self.root / "run/vcgencmd").resolve()))))
        program.chmod(0o755)
        return answers

    def _make(self, instrument: str) -> Attributes:
        if instrument == "battery" and self._plant.battery is not None:
            return self._attributes("sys/class/power_supply/battery", _battery_fixed(self._plant.battery))
        meter = self._meters[instrument]
        if instrument == "pmic":
            return Attributes(self.root / "run/vcgencmd/pmic", {}, width=_PMIC_WIDTH)
        if instrument == "rapl":
            return self._attributes("sys/class/powercap/intel-rapl:0", fixed_texts(meter))
        address = 0x40 + list(self._meters).index(instrument)
        return Attributes(self._new_hwmon(f"i2c-1/1-{address:04x}"), fixed_texts(meter))

    def _new_hwmon(self, device: str) -> Path:
        """A directory for the hwmon device of `device`, linked as the kernel does."""
        number = self._next_hwmon
        self._next_hwmon += 1
        directory = self.root / f"sys/devices/platform/soc/{device}/hwmon/hwmon{number}"
        directory.mkdir(parents=True)
        (directory / "device").symlink_to("../..")
        link = self.root / f"sys/class/hwmon/hwmon{number}"
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(directory, link.parent))
        return directory

    def _remove(self, instrument: str, shown: Attributes) -> None:
        del self._shown[instrument]
        shown.remove()
        for link in _dangling(self.root / "sys/class/hwmon"):
            link.unlink()


def _is_raspberry_pi(board: Board) -> bool:
    return any("Raspberry Pi" in text for text in board.recognised_by)


def _claim(root: Path) -> int:
    """Make `root` ours: locked against other simulations, and empty. Nothing that is not ours is touched."""
    marker = root / _MARKER
    try:
        root.mkdir(parents=True, exist_ok=True)
        if not marker.exists() and any(root.iterdir()):
            raise ConfigError(
                f"{root} is not empty and no simulated board", path=str(root), hint="Name a new directory"
            )
        lock_fd = os.open(marker, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise ConfigError(f"cannot write {root}: {error.strerror}", path=str(root)) from error
    try:
        fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(lock_fd)
        raise ConfigError(f"another simulation writes {root}", path=str(root)) from error
    for name in _OURS:
        shutil.rmtree(root / name, ignore_errors=True)
    return lock_fd


def _dangling(directory: Path) -> Iterator[Path]:
    return (link for link in directory.iterdir() if not link.exists())


# --- texts --------------------------------------------------------------------------------------------------


def _proc_stat(cores: int, state: BoardState) -> str:
    """``/proc/stat``: work is user time and spread over all cores; numbers keep their places."""
    busy = round(state.busy_core_s * _TICKS_PER_S)
    idle = round(state.time_s * cores * _TICKS_PER_S) - busy
    lines = [f"cpu  {busy:<10} 0 0 {idle:<10} 0 0 0 0 0 0"]
    for core in range(cores):
        lines.append(f"cpu{core} {busy // cores:<10} 0 0 {idle // cores:<10} 0 0 0 0 0 0")
    return "\n".join(lines)


def _proc_net_dev(state: BoardState) -> str:
    """``/proc/net/dev``: what moves over the network is received; as much stays on the board (lo)."""
    moved = round(state.network_mb * 1e6)
    lines = ["Inter-|   Receive                            |  Transmit"]
    lines.append(
        " face |bytes packets errs drop fifo frame compressed multicast|bytes packets errs drop fifo colls ..."
    )
    for name, sent in (("lo", moved), ("eth0", 0)):
        lines.append(f"{name:>6}: {moved:<18} 0 0 0 0 0 0 0 {sent:<18} 0 0 0 0 0 0 0")
    return "\n".join(lines)


def _core_v(plant: Plant, state: BoardState) -> float:
    """Core voltage: 0.80 V at the lowest frequency, 0.88 V at the highest, as a Raspberry Pi 4 shows them."""
    span_mhz = max(plant.max_mhz - plant.min_mhz, 1)
    return 0.80 + 0.08 * max(state.frequency_mhz - plant.min_mhz, 0.0) / span_mhz


def _battery_fixed(pack: BatteryPack) -> dict[str, str]:
    full_uwh = str(round(pack.capacity_wh * 1e6))
    return {
        "type": "Battery",
        "present": "1",
        "technology": "Li-ion",
        "energy_full": full_uwh,
        "energy_full_design": full_uwh,
    }


def battery_texts(pack: BatteryPack, state: BoardState) -> dict[str, str]:
    """What the battery's gauge says: uWh, uW, uV, uA."""
    charge = state.battery_j / (pack.capacity_wh * 3600.0)
    volts = _EMPTY_V + (_FULL_V - _EMPTY_V) * charge
    if state.battery_w > 0.0:
        status = "Discharging"
    elif charge >= _FULL_SHARE:
        status = "Full"
    else:
        status = "Charging" if state.battery_w < 0.0 else "Not charging"
    return {
        "status": status,
        "capacity": str(math.floor(charge * 100.0 + 0.5)),
        "energy_now": str(round(state.battery_j / 3600.0 * 1e6)),
        "power_now": str(round(abs(state.battery_w) * 1e6)),
        "voltage_now": str(round(volts * 1e6)),
        "current_now": str(round(abs(state.battery_w) / volts * 1e6)),
    }


_VCGENCMD = r"""#!/bin/sh
# Stands in for Raspberry Pi's vcgencmd: answers from a simulated board.
answers={answers}
case "$1" in
get_throttled | measure_temp | measure_volts) file="$answers/$1" ;;
pmic_read_adc)
    while [ -e "$answers/hangs" ]; do sleep 0.02; done
    file="$answers/pmic/$1"
    ;;
*) file= ;;
esac
if [ ! -f "$file" ]; then
    echo 'vc_gencmd_read_response returned -1'
    echo 'error=1 error_msg="Command not registered"'
    exit 255
fi
exec sed 's/ *$//' "$file"
"""
