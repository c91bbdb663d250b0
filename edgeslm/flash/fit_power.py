"""Whether supply, budget and heat allow what a profile wants, with the arithmetic. Pure.

What is switched off is not counted as saved: published figures for that differ too much between units.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from edgeslm.errors import BudgetConfigError
from edgeslm.flash.fit_types import Check, FitRequest, total
from edgeslm.power.budget import check_budget

_AIR_C: Final = 25.0


def check_power(request: FitRequest) -> Iterator[Check]:
    """The supply, the budget's windows, and the temperature."""
    most_w, text = _most(request)
    yield _supply(request, most_w, text)
    yield from _budget(request, most_w)
    yield from _heat(request, most_w)


def _most(request: FitRequest) -> tuple[float | None, str]:
    """Watts with all used cores busy, and how they come about; ``None`` where the cores are not known."""
    power, cpu = request.board.power, request.profile.cpu
    cores = cpu.cores if cpu.cores is not None else request.board.cores
    if cores is None:
        return None, f"{power.idle_w:.2f} W idle + {power.core_load_w:.2f} W for each busy core"
    cap = cpu.cap_mhz(power.max_mhz, power.min_mhz)
    factor, slowed = 1.0, ""
    if cap is not None and power.max_mhz is not None and cap < power.max_mhz:
        factor = (cap / power.max_mhz) ** power.frequency_exponent
        slowed = f" x {factor:.2f} for {cap:,} of {power.max_mhz:,} MHz"
    work_w = cores * power.core_load_w * factor
    others_w = request.profile.other.power_w
    parts = [("idle", power.idle_w), (f"{cores} cores ({cores} x {power.core_load_w:.2f} W{slowed})", work_w)]
    return total([*parts, ("attached", others_w)], "W", 2)


def _supply(request: FitRequest, most_w: float | None, text: str) -> Check:
    power = request.board.power
    supply = request.board.supply
    supply_w = supply.volts * supply.amps if supply is not None else power.supply_w
    if supply_w is None or most_w is None:
        return Check(name="supply", status="unknown", detail=f"{text}; what the supply gives is not known")
    shown = f"{text}, the recommended supply gives {supply_w:.1f} W"
    if most_w > supply_w:
        return Check(
            name="supply",
            status="fail",
            detail=shown,
            hint="Cap the frequency (cpu.max_share), or feed what is attached from elsewhere",
        )
    worst_w = most_w * (1 + power.error_share)
    if worst_w > supply_w:
        return Check(
            name="supply",
            status="warning",
            detail=f"{shown}; with the figures' error of {power.error_share:.0%} it may take {worst_w:.2f} W",
        )
    return Check(name="supply", status="pass", detail=shown)


def _budget(request: FitRequest, most_w: float | None) -> Iterator[Check]:
    budget, power = request.profile.budget, request.board.power
    if not budget.restrains:
        return
    idle_w, idle = total([("idle", power.idle_w), ("attached", request.profile.other.power_w)], "W", 2)
    try:
        warnings = check_budget(budget, idle_w, max_w=most_w)
    except BudgetConfigError as error:
        yield Check(name="budget", status="fail", detail=f"{idle}: {error.message}", hint=error.hint)
        return
    left = "; ".join(
        f"'{window.name}' {window.limit_w:.2f} W - {idle_w:.2f} W = {window.limit_w - idle_w:.2f} W for work"
        for window in budget.windows
    )
    detail = f"{idle}: {left}" if left else f"{idle}; no window bounds the energy"
    yield Check(name="budget", status="pass", detail=detail)
    for warning in warnings:
        yield Check(name="budget", status="warning", detail=warning)
    worst_w = idle_w + power.idle_w * power.error_share
    for window in budget.windows:
        if window.limit_w <= worst_w:
            yield Check(
                name="budget",
                status="warning",
                detail=f"window '{window.name}' allows {window.limit_w:.2f} W; a unit that draws "
                f"{power.error_share:.0%} more when idle, as some do, takes {worst_w:.2f} W and gets nothing done",
                hint="Measure yours: edgeslm power watch",
            )
    if budget.battery is not None:
        meters = ", ".join(meter.chip for meter in request.board.meters) or "none of its own"
        yield Check(
            name="battery",
            status="unknown",
            detail=f"the state of charge has to be measured; this board has {meters}",
            hint="Connect a fuel gauge that the kernel knows: docs/power-meters.md",
        )


def _heat(request: FitRequest, most_w: float | None) -> Iterator[Check]:
    thermal, ceiling = request.board.thermal, request.profile.budget.temperature
    if thermal is None:
        return
    if ceiling is not None and ceiling.ceiling_c >= thermal.throttle_c:
        yield Check(
            name="heat",
            status="warning",
            detail=f"the budget's ceiling of {ceiling.ceiling_c:g} C is never reached: the board slows itself down "
            f"from {thermal.throttle_c:g} C",
            hint=f"Give a ceiling below {thermal.throttle_c:g} C",
        )
        return
    if most_w is None:
        return
    board_w = most_w - request.profile.other.power_w
    warm_c = _AIR_C + thermal.resistance_c_per_w * board_w
    text = (
        f"{_AIR_C:g} C air + {thermal.resistance_c_per_w:g} C/W x {board_w:.2f} W = {warm_c:.0f} C after long work, "
        f"slowed from {thermal.throttle_c:g} C"
    )
    if ceiling is not None:
        yield Check(
            name="heat", status="pass", detail=f"{text}; the budget keeps it below {ceiling.ceiling_c:g} C"
        )
    elif warm_c >= thermal.throttle_c:
        yield Check(
            name="heat",
            status="warning",
            detail=text,
            hint="Give it a cooler, or the budget a temperature ceiling",
        )
    else:
        yield Check(name="heat", status="pass", detail=text)
