"""Power monitors that the kernel knows as hwmon devices: INA2xx and relatives, and any other power sensor.

A sensor is found by the ``name`` file of its directory, for the numbers of ``hwmonN`` change from boot to boot; its
own name is the kind and the place of the device behind it (``ina226@1-0040``: bus 1, address 0x40). A sensor that
went away is looked for again at the next read, under whatever number it comes back.

Files and units: Documentation/hwmon/sysfs-interface.rst (mV, mA, uW); ina2xx.rst (``power1_input``); ina3221.rst
(``inN_input`` times ``currN_input``, channels with ``inN_enable`` and ``inN_label``). Where a sensor gives its power,
that one file is read; two files read one after the other would belong to different moments.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgeslm.errors import MeterError
from edgeslm.power.cpu import Clock
from edgeslm.power.meters.chips import (
    CHIPS,
    DEFAULT_SHUNT_OHM,
    UNKNOWN,
    WHOLE_MACHINE,
    Chip,
    error_share,
    error_w,
)
from edgeslm.power.meters.faults import failed
from edgeslm.power.port import MeterFacts, Reading
from edgeslm.power.sysfs import ValueFile, children, read_integer, read_text

_INPUT_LABELS = frozenset({"VDD_IN", "POM_5V_IN"})
"""Channels that carry all that the others carry too (NVIDIA Jetson carrier boards)."""
_MAX_CHANNELS = 8


@dataclass(frozen=True)
class Sensor:
    """A hwmon device that can tell watts.

    Attributes:
        kind: content of its ``name`` file.
        place: name of the device behind it (``1-0040``), or of the hwmon directory where there is none.
        directory: where its files are at the moment.
    """

    kind: str
    place: str
    directory: Path

    @property
    def name(self) -> str:
        """Kind and place."""
        return f"{self.kind}@{self.place}"

    @property
    def chip(self) -> Chip | None:
        """What is known of its kind."""
        return CHIPS.get(self.kind) or WHOLE_MACHINE.get(self.kind)

    def is_called(self, text: str) -> bool:
        """Whether `text` names this sensor or its kind."""
        return text in (self.name, self.kind)


@dataclass(frozen=True)
class Channel:
    """One place that a sensor measures at.

    Attributes:
        files: one file with microwatts, or millivolts and milliamperes.
    """

    number: int
    label: str
    files: tuple[str, ...]


def find_sensors(root: Path = Path("/")) -> list[Sensor]:
    """All hwmon devices that have a power or a voltage and current channel."""
    sensors = []
    for directory in children(root / "sys/class/hwmon"):
        device = directory / "device"
        place = device.resolve().name if device.is_symlink() else directory.name
        sensor = Sensor(kind=(read_text(directory / "name") or "")[:64], place=place, directory=directory)
        if sensor.kind and channels_of(sensor):
            sensors.append(sensor)
    return sensors


def channels_of(sensor: Sensor) -> tuple[Channel, ...]:
    """The channels of `sensor` that tell power and are enabled.

    Of a known chip only as many as it has: an INA3221 has further files with voltages over its shunts and with sums.
    """
    directory = sensor.directory
    channels = []
    for number in range(1, (sensor.chip.channels if sensor.chip else _MAX_CHANNELS) + 1):
        for files in (
            (f"power{number}_input",),
            (f"power{number}_average",),
            (f"in{number}_input", f"curr{number}_input"),
        ):
            if all((directory / file).exists() for file in files):
                break
        else:
            continue
        if read_integer(directory / f"in{number}_enable") == 0:
            continue
        label = (
            read_text(directory / f"power{number}_label") or read_text(directory / f"in{number}_label") or ""
        )
        channels.append(Channel(number=number, label=label[:64], files=files))
    return tuple(channels)


def choose_channels(channels: Sequence[Channel], wanted: Sequence[str]) -> tuple[Channel, ...]:
    """Those of `channels` that are `wanted` by label or number; unasked, those that together are the whole board.

    Raises:
        ValueError: one that is wanted is not there.
    """
    if wanted:
        chosen = [channel for channel in channels if {channel.label, str(channel.number)} & set(wanted)]
        missing = set(wanted) - {name for channel in chosen for name in (channel.label, str(channel.number))}
        if missing:
            raise ValueError(f"no channel {', '.join(sorted(missing))}")
        return tuple(chosen)
    return tuple(channel for channel in channels if channel.label in _INPUT_LABELS) or tuple(channels)


class HwmonMeter:
    """``Meter`` over one hwmon sensor."""

    def __init__(
        self,
        sensor: Sensor,
        *,
        wanted: Sequence[str] = (),
        root: Path = Path("/"),
        clock: Clock = time.monotonic,
    ) -> None:
        """Take `sensor`, which :func:`find_sensors` found.

        Args:
            wanted: its channels to add up, by label or number; empty chooses.
            root: what stands for ``/``.
            clock: monotonic seconds.

        Raises:
            MeterError: it has none of the channels.
        """
        self._sensor = sensor
        self._wanted = tuple(wanted)
        self._root = root
        self._clock = clock
        self._name = f"hwmon:{sensor.name}"
        self._channels: tuple[tuple[ValueFile, ...], ...] = ()
        chosen = self._open(sensor)
        self.facts = _facts(self._name, sensor, chosen)

    def read(self) -> Reading:
        """Watts of the chosen channels together.

        Raises:
            MeterError: the sensor is gone (it is looked for again next time), or its files hold no numbers.
        """
        try:
            if not self._channels:
                self._find()
            power_w = sum(
                file[0].integer() * 1e-6 if len(file) == 1 else file[0].integer() * file[1].integer() * 1e-6
                for file in self._channels
            )
        except (OSError, ValueError) as error:
            self.close()
            raise failed(self._name, error) from error
        return Reading(at_s=self._clock(), power_w=power_w)

    def close(self) -> None:
        """Let go of its files."""
        for files in self._channels:
            for file in files:
                file.close()
        self._channels = ()

    def _find(self) -> None:
        for sensor in find_sensors(self._root):
            if sensor.name == self._sensor.name:
                self._open(sensor)
                return
        raise FileNotFoundError("no such sensor any more")

    def _open(self, sensor: Sensor) -> tuple[Channel, ...]:
        try:
            chosen = choose_channels(channels_of(sensor), self._wanted)
        except ValueError as error:
            raise MeterError(f"{self._name} has {error}", meter=self._name, fault="gone") from error
        if not chosen:
            raise MeterError(f"{self._name} has no channels", meter=self._name, fault="gone")
        self._channels = tuple(
            tuple(ValueFile(sensor.directory / file) for file in channel.files) for channel in chosen
        )
        return chosen


def _facts(name: str, sensor: Sensor, chosen: Sequence[Channel]) -> MeterFacts:
    chip = sensor.chip or UNKNOWN
    directory = sensor.directory
    interval_ms = read_integer(directory / "update_interval") or read_integer(
        directory / "power1_average_interval"
    )
    shunt_uohm = read_integer(directory / "shunt_resistor") or read_integer(directory / "shunt1_resistor")
    millivolts = read_integer(directory / f"in{chosen[0].number}_input")
    return MeterFacts(
        name=name,
        meter_class="measured",
        period_s=interval_ms / 1000 if interval_ms else chip.period_s,
        error_share=error_share(chip),
        error_w=error_w(
            chip,
            volts=millivolts / 1000 if millivolts else 5.0,
            shunt_ohm=shunt_uohm * 1e-6 if shunt_uohm else DEFAULT_SHUNT_OHM,
            channels=len(chosen),
        ),
        averages=chip.averages or chosen[0].files[0].endswith("_average"),
        source=chip.source,
    )
