"""Which meters a board has: looks for every kind, opens what is there, and says why the rest was left alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgeslm.errors import MeterError
from edgeslm.power.calibration import correction_of
from edgeslm.power.cpu import Clock
from edgeslm.power.meters import pmic, rapl, supply
from edgeslm.power.meters.hwmon import HwmonMeter, Sensor, find_sensors
from edgeslm.power.meters.model import ModelMeter
from edgeslm.power.meters.plug import PlugMeter, topic_of
from edgeslm.power.meters.pmic import PmicMeter
from edgeslm.power.meters.rapl import RaplMeter
from edgeslm.power.meters.supply import SupplyMeter
from edgeslm.power.port import Meter, MeterFacts
from edgeslm.schema.board import Board
from edgeslm.schema.calibration import Calibration
from edgeslm.schema.power import MeterKind, MetersConfig


@dataclass(frozen=True)
class Finding:
    """What became of one kind of meter, or of one sensor.

    Attributes:
        name: the meter's name, or what was looked for.
        facts: what it says about itself, where it is used.
        reason: why it is used or not, as a sentence.
    """

    name: str
    facts: MeterFacts | None
    reason: str


@dataclass(frozen=True)
class Discovery:
    """The meters of a board.

    Attributes:
        meters: instruments, opened; their owner closes them.
        model: what is left when they fail.
        plug: the one of `meters` that must be handed its messages, where there is one.
        findings: what was found and what was not, for people.
    """

    meters: tuple[Meter, ...]
    model: ModelMeter
    plug: PlugMeter | None
    findings: tuple[Finding, ...]


def discover(
    board: Board,
    config: MetersConfig,
    *,
    calibration: Calibration | None = None,
    root: Path = Path("/"),
    clock: Clock = time.monotonic,
    process_clock: Clock = time.process_time,
) -> Discovery:
    """Look for every kind of meter that `config` does not disable.

    Args:
        calibration: what was fitted on this device; one of another board type is left alone and reported.
        root: what stands for ``/``.
        clock: monotonic seconds.
        process_clock: core seconds of this process.
    """
    findings: list[Finding] = []
    if calibration is not None and calibration.board != board.name:
        findings.append(
            Finding("calibration", None, f"made on {calibration.board}, this is {board.name}: not used")
        )
        calibration = None
    plug = None if config.plug is None or "plug" in config.disabled else PlugMeter(config.plug, clock)
    looks: tuple[tuple[MeterKind, Callable[[], tuple[list[Meter], list[Finding]]]], ...] = (
        ("hwmon", lambda: _hwmon(config, root, clock)),
        ("pmic", lambda: _pmic(config, calibration, clock)),
        ("supply", lambda: _supply(root, clock)),
        ("rapl", lambda: _rapl(board, calibration, root, clock)),
        ("plug", lambda: _plug(config, plug)),
    )
    meters: list[Meter] = []
    for kind, look in looks:
        if kind in config.disabled:
            findings.append(Finding(kind, None, "disabled in the settings"))
            continue
        found, said = look()
        meters += found
        findings += said
    model = ModelMeter(
        board.power,
        calibration=calibration.model if calibration else None,
        root=root,
        clock=clock,
        process_clock=process_clock,
    )
    findings.append(Finding(model.facts.name, model.facts, "always there: power table and processor time"))
    return Discovery(meters=tuple(meters), model=model, plug=plug, findings=tuple(findings))


def _used(meter: Meter, reason: str) -> tuple[list[Meter], list[Finding]]:
    return [meter], [Finding(meter.facts.name, meter.facts, reason)]


def _absent(name: str, reason: str) -> tuple[list[Meter], list[Finding]]:
    return [], [Finding(name, None, reason)]


def _hwmon(config: MetersConfig, root: Path, clock: Clock) -> tuple[list[Meter], list[Finding]]:
    sensors = find_sensors(root)
    meters: list[Meter] = []
    findings: list[Finding] = []
    for sensor, wanted, reason in _choose_sensors(sensors, config):
        if wanted is None:
            findings.append(Finding(f"hwmon:{sensor.name}", None, reason))
            continue
        try:
            meter = HwmonMeter(sensor, wanted=wanted, root=root, clock=clock)
        except MeterError as error:
            findings.append(Finding(f"hwmon:{sensor.name}", None, error.message))
        else:
            meters.append(meter)
            findings.append(Finding(meter.facts.name, meter.facts, reason))
    for choice in config.hwmon:
        if not any(sensor.is_called(choice.sensor) for sensor in sensors):
            findings.append(Finding(f"hwmon:{choice.sensor}", None, "named in the settings, but not there"))
    if not sensors and not findings:
        return _absent("hwmon", "no power monitor chip")
    return meters, findings


def _choose_sensors(
    sensors: Sequence[Sensor], config: MetersConfig
) -> list[tuple[Sensor, Sequence[str] | None, str]]:
    """Each sensor with its wanted channels (``None`` leaves it alone) and the reason."""
    chosen: list[tuple[Sensor, Sequence[str] | None, str]] = []
    for sensor in sensors:
        named = next((choice for choice in config.hwmon if sensor.is_called(choice.sensor)), None)
        if named is not None:
            chosen.append((sensor, named.channels, "named in the settings"))
        elif config.hwmon:
            chosen.append((sensor, None, "others are named in the settings"))
        elif sensor.chip is not None:
            chosen.append((sensor, (), "power monitor of a known kind"))
        else:
            # Graphics and network cards, drives and processors have such sensors too: none is the whole board.
            reason = (
                f"nobody knows what it measures; if it is the whole board, name {sensor.name} in power.hwmon"
            )
            chosen.append((sensor, None, reason))
    return chosen


def _pmic(
    config: MetersConfig, calibration: Calibration | None, clock: Clock
) -> tuple[list[Meter], list[Finding]]:
    if (error := pmic.probe(config.vcgencmd)) is not None:
        return _absent(pmic.NAME, f"no Raspberry Pi 5: {error.message}")
    line = calibration.line(pmic.NAME) if calibration else None
    correction = pmic.PUBLISHED if line is None else correction_of(line)
    reason = "power chip of the Raspberry Pi 5, " + (
        "published correction" if line is None else "calibrated on this device"
    )
    return _used(PmicMeter(config.vcgencmd, correction, clock), reason)


def _supply(root: Path, clock: Clock) -> tuple[list[Meter], list[Finding]]:
    battery = supply.read_battery(root)
    if battery is None:
        return _absent(supply.NAME, "no battery")
    if battery.discharge_w is None:
        return _absent(supply.NAME, "the battery does not tell what leaves it")
    return _used(SupplyMeter(root, clock), "battery; tells the draw while nothing else feeds the board")


def _rapl(
    board: Board, calibration: Calibration | None, root: Path, clock: Clock
) -> tuple[list[Meter], list[Finding]]:
    zones = rapl.find_zones(root)
    if not zones:
        return _absent(rapl.NAME, "no energy counters in this processor")
    line = calibration.line(rapl.NAME) if calibration else None
    correction = rapl.default_correction(zones, board.power.idle_w) if line is None else correction_of(line)
    try:
        meter = RaplMeter(zones, correction, calibrated=line is not None, clock=clock)
    except MeterError as error:
        return _absent(rapl.NAME, str(error))
    return _used(meter, f"energy counters of the processor ({', '.join(zone.kind for zone in zones)})")


def _plug(config: MetersConfig, plug: PlugMeter | None) -> tuple[list[Meter], list[Finding]]:
    if plug is None or config.plug is None:
        return _absent("plug", "none in the settings")
    return _used(plug, f"listens on {topic_of(config.plug)}")
