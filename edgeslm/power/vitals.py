"""The state of the board beside its draw: temperature, frequency, battery, and what the firmware does to protect it.

Cheap enough for once a second: what is in sysfs is read each time, the firmware's tool (a program of its own) every
few seconds, and not again where it is not installed.

Sources: ``vcgencmd get_throttled`` (Raspberry Pi documentation, OS: vcgencmd), bits 0 to 3 now, 16 to 19 since boot;
``rpi_volt`` of the kernel (drivers/hwmon/raspberrypi-hwmon.c), whose ``in0_lcrit_alarm`` says that the voltage was too
low within the last two seconds; ``get_throttled`` below the firmware node, which older kernels have.
"""

from __future__ import annotations

import re
from pathlib import Path

from edgeslm.power.meters.model import (
    frequency_files,
    processor_zone,
    read_frequency_mhz,
    read_temperature_c,
)
from edgeslm.power.meters.supply import read_battery
from edgeslm.power.port import Battery, Throttling, Vitals
from edgeslm.power.sysfs import Command, children, read_integer, read_text, run

FIRMWARE_PERIOD_S = 5.0
BATTERY_PERIOD_S = 5.0
_TIMEOUT_S = 1.0
_FIRMWARE_FILE = "sys/devices/platform/soc/soc:firmware/get_throttled"
_ANSWER = re.compile(r"^throttled=0x([0-9a-fA-F]{1,8})\s*$")
_FILE = re.compile(r"^(?:0x)?([0-9a-fA-F]{1,8})$")


def decode_throttled(bits: int) -> Throttling:
    """The firmware's bits as names."""
    return Throttling(
        under_voltage=bool(bits & 1 << 0),
        frequency_capped=bool(bits & 1 << 1),
        throttled=bool(bits & 1 << 2),
        soft_temperature_limit=bool(bits & 1 << 3),
        under_voltage_since_boot=bool(bits & 1 << 16),
        frequency_capped_since_boot=bool(bits & 1 << 17),
        throttled_since_boot=bool(bits & 1 << 18),
        soft_temperature_limit_since_boot=bool(bits & 1 << 19),
    )


class VitalsReader:
    """Reads :class:`Vitals`; what is slow to ask for is asked for less often."""

    def __init__(self, root: Path = Path("/"), vcgencmd: Command = ("vcgencmd",)) -> None:
        self._root = root
        self._command = (*vcgencmd, "get_throttled")
        self._has_tool = True
        self._zone = processor_zone(root)
        self._frequency = frequency_files(root)
        self._alarm = next(
            (
                directory / "in0_lcrit_alarm"
                for directory in children(root / "sys/class/hwmon")
                if read_text(directory / "name") == "rpi_volt"
            ),
            None,
        )
        self._bits: int | None = None
        self._bits_at_s: float | None = None
        self._battery: Battery | None = None
        self._battery_at_s: float | None = None

    def read(self, now_s: float) -> Vitals:
        """The state at monotonic `now_s`; never raises, what cannot be read is ``None``."""
        if self._bits_at_s is None or now_s - self._bits_at_s >= FIRMWARE_PERIOD_S:
            self._bits, self._bits_at_s = self._ask_firmware(), now_s
        if self._battery_at_s is None or now_s - self._battery_at_s >= BATTERY_PERIOD_S:
            self._battery, self._battery_at_s = read_battery(self._root), now_s
        bits = self._bits
        alarm = None if self._alarm is None else read_integer(self._alarm)
        if alarm is not None:
            bits = (bits or 0) | (1 | 1 << 16 if alarm else 0)
        return Vitals(
            at_s=now_s,
            temperature_c=read_temperature_c(self._zone),
            frequency_mhz=read_frequency_mhz(self._frequency),
            throttling=None if bits is None else decode_throttled(bits),
            battery=self._battery,
        )

    def close(self) -> None:
        """Let go of all files."""
        for file in (*self._frequency, *((self._zone,) if self._zone else ())):
            file.close()

    def _ask_firmware(self) -> int | None:
        answer: re.Match[str] | None = None
        if self._has_tool:
            try:
                answer = _ANSWER.match(run(self._command, _TIMEOUT_S))
            except FileNotFoundError:
                self._has_tool = False
            except OSError:
                pass
        if answer is None:
            answer = _FILE.match(read_text(self._root / _FIRMWARE_FILE) or "")
        return int(answer.group(1), 16) if answer else None


def read_vitals(root: Path, vcgencmd: Command, now_s: float) -> Vitals:
    """The state of the board, once; who asks again and again keeps a :class:`VitalsReader`."""
    reader = VitalsReader(root, vcgencmd)
    try:
        return reader.read(now_s)
    finally:
        reader.close()
