"""Batteries and UPS HATs that the kernel knows as power supplies.

What leaves the battery is what the board draws, as long as no outside supply feeds it; then this is a meter too.

Files and units: Documentation/ABI/testing/sysfs-class-power (uV, uA, uW, uWh, uAh, percent). By that document currents
are negative while discharging, yet many drivers (ACPI among them) give magnitudes, so the sign is taken from
``status``. A supply whose ``scope`` is ``Device`` is the battery of a mouse or headset and none of ours.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from edgeslm.errors import MeterError
from edgeslm.power.cpu import Clock
from edgeslm.power.port import Battery, MeterFacts, Reading
from edgeslm.power.sysfs import children, read_integer, read_text

NAME = "supply"
PERIOD_S = 5.0
_BATTERIES = ("Battery", "UPS")
_MAX_SUPPLIES = 16


@dataclass(frozen=True)
class Pack:
    """One battery.

    Attributes:
        share: state of charge, 0 to 1.
        flow_w: watts in or out, a magnitude; ``None`` where it does not tell.
        capacity_wh: energy when full; ``None`` where it does not tell.
        status: ``Charging``, ``Discharging``, ``Not charging``, ``Full`` or ``Unknown``.
    """

    share: float
    flow_w: float | None
    capacity_wh: float | None
    status: str


def read_battery(root: Path = Path("/")) -> Battery | None:
    """All batteries of the board as one, or ``None`` where there is none."""
    packs: list[Pack] = []
    external: bool | None = None
    for directory in children(root / "sys/class/power_supply")[:_MAX_SUPPLIES]:
        if read_text(directory / "scope") == "Device":
            continue
        if read_text(directory / "type") in _BATTERIES:
            pack = _read_pack(directory)
            if pack is not None:
                packs.append(pack)
        else:
            online = read_integer(directory / "online")
            if online is not None:
                external = bool(online) or bool(external)
    return _together(packs, external) if packs else None


def _read_pack(directory: Path) -> Pack | None:
    if read_integer(directory / "present") == 0:
        return None
    volts = _positive(directory / "voltage_now", 1e-6)
    flow_w = _positive(directory / "power_now", 1e-6)
    amperes = _positive(directory / "current_now", 1e-6)
    if flow_w is None and volts is not None and amperes is not None:
        flow_w = volts * amperes
    full_wh = _positive(directory / "energy_full", 1e-6)
    full_ah = _positive(directory / "charge_full", 1e-6)
    design_v = _positive(directory / "voltage_min_design", 1e-6) or volts
    if full_wh is None and full_ah is not None and design_v is not None:
        full_wh = full_ah * design_v
    percent = read_integer(directory / "capacity")
    if percent is None:
        now = _positive(directory / "energy_now", 1e-6) or _positive(directory / "charge_now", 1e-6)
        full = _positive(directory / "energy_full", 1e-6) or full_ah
        if now is None or not full:
            return None
        percent = round(100 * now / full)
    return Pack(
        share=min(max(percent / 100, 0.0), 1.0),
        flow_w=flow_w,
        capacity_wh=full_wh or None,
        status=read_text(directory / "status") or "Unknown",
    )


def _positive(path: Path, unit: float) -> float | None:
    value = read_integer(path)
    return None if value is None else abs(value) * unit


def _together(packs: list[Pack], external: bool | None) -> Battery:
    weights = [pack.capacity_wh or 0.0 for pack in packs]
    known = all(weights)
    if not known:
        weights = [1.0] * len(packs)
    flows = [_outward_w(pack) for pack in packs]
    if external is None:
        # UPS HATs often have no supply of their own to ask; one that discharges is not being fed.
        statuses = {pack.status for pack in packs}
        external = False if "Discharging" in statuses else True if statuses & {"Charging", "Full"} else None
    return Battery(
        share=sum(pack.share * weight for pack, weight in zip(packs, weights, strict=True)) / sum(weights),
        discharge_w=sum(flow for flow in flows if flow is not None) if None not in flows else None,
        capacity_wh=sum(weights) if known else None,
        external=external,
    )


def _outward_w(pack: Pack) -> float | None:
    if pack.status in ("Full", "Not charging"):
        return 0.0
    if pack.flow_w is None or pack.status == "Unknown":
        return None
    return pack.flow_w if pack.status == "Discharging" else -pack.flow_w


class SupplyMeter:
    """``Meter`` over what leaves the battery; of use only while no outside supply feeds the board."""

    facts = MeterFacts(
        name=NAME,
        meter_class="measured",
        period_s=PERIOD_S,
        error_share=0.03,
        error_w=0.1,
        averages=False,
        source="fuel gauges state 1 to 3 % of current; drivers ask them every 1 to 5 s (bq27xxx_battery.c); "
        "loss of the converter behind the battery is part of the draw",
    )

    def __init__(self, root: Path = Path("/"), clock: Clock = time.monotonic) -> None:
        self._root = root
        self._clock = clock
        self._last: Reading | None = None

    def read(self) -> Reading:
        """Watts that leave the battery, at most five seconds old.

        Raises:
            MeterError: there is no battery, it does not tell its flow, or an outside supply feeds the board.
        """
        if self._last is not None and self._clock() - self._last.at_s < PERIOD_S:
            return self._last
        self._last = None
        battery = read_battery(self._root)
        if battery is None or battery.discharge_w is None:
            raise MeterError("no battery tells what leaves it", meter=NAME, fault="gone")
        if battery.external is not False:
            raise MeterError(
                "an outside supply feeds the board, so the battery cannot tell the draw",
                meter=NAME,
                fault="gone",
            )
        self._last = Reading(at_s=self._clock(), power_w=battery.discharge_w)
        return self._last

    def close(self) -> None:
        """Nothing to let go of."""
