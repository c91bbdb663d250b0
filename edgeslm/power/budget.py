"""Whether a board can keep a budget at all, with the arithmetic shown."""

from __future__ import annotations

from typing import Final

from edgeslm.errors import BudgetConfigError
from edgeslm.power.governor_admission import PULSE_S
from edgeslm.power.governor_types import WorkEstimate
from edgeslm.schema.budget import Budget, Window

_UNITS: Final = ((86_400.0, "d"), (3600.0, "h"), (60.0, "min"))


def check_budget(
    budget: Budget, idle_w: float, *, max_w: float | None = None, prompt: WorkEstimate | None = None
) -> tuple[str, ...]:
    """Warnings about what will not work as its author may expect; empty if nothing stands out.

    Args:
        idle_w: watts of the idle board.
        max_w: watts of the board with all cores busy.
        prompt: what a usual prompt takes.

    Raises:
        BudgetConfigError: the idle board alone draws what a window allows, or more.
    """
    for window in budget.windows:
        if window.limit_w <= idle_w:
            raise BudgetConfigError(
                f"window '{window.name}' allows {_allowed(window)}, but the idle board alone draws {idle_w:.2f} W, "
                f"{_energy(idle_w * window.over_s)} in {_time(window.over_s)}: nothing is left for work",
                window=window.name,
                limit_w=window.limit_w,
                idle_w=idle_w,
                hint=f"Allow more than {_energy(idle_w * window.over_s)}, or make the idle board draw less",
            )
    warnings = []
    for window in budget.windows:
        stricter = [
            other
            for other in budget.windows
            if other.over_s < window.over_s and other.limit_w <= window.limit_w
        ]
        if max_w is not None and window.limit_w >= max_w:
            warnings.append(
                f"window '{window.name}' never restrains: it allows {window.limit_w:.2f} W, the board draws "
                f"{max_w:.2f} W at most"
            )
        elif stricter:
            warnings.append(
                f"window '{window.name}' never restrains: window '{stricter[0].name}' is shorter and allows no "
                f"more ({stricter[0].limit_w:.2f} W against {window.limit_w:.2f} W)"
            )
        if prompt is not None:
            warnings += _unfit(window, idle_w, prompt)
    if budget.battery is not None:
        for point in budget.battery.curve:
            if point.limit_w <= idle_w:
                warnings.append(
                    f"battery curve: at {point.at_share:.0%} it allows {point.limit_w:.2f} W, the idle board draws "
                    f"{idle_w:.2f} W: only high priority runs there"
                )
    for quiet in budget.quiet_hours:
        if quiet.limit_w is not None and quiet.limit_w <= idle_w:
            warnings.append(
                f"quiet hours from {quiet.begins}: they allow {quiet.limit_w:.2f} W, the idle board draws "
                f"{idle_w:.2f} W: only high priority runs in them"
            )
    return tuple(warnings)


def _unfit(window: Window, idle_w: float, prompt: WorkEstimate) -> list[str]:
    net_w = prompt.mean_j / prompt.seconds if prompt.seconds > 0 else 0.0
    room_j = (window.limit_w - idle_w) * window.over_s
    if window.over_s <= PULSE_S:
        if min(prompt.chunk_j, net_w * window.over_s) <= room_j:
            return []
        what = f"a single step of a usual prompt takes {prompt.chunk_j:.1f} J"
    else:
        if min(prompt.p90_j, net_w * window.over_s) <= room_j:
            return []
        what = f"a usual prompt takes up to {prompt.p90_j:.1f} J"
    return [
        f"window '{window.name}' holds {room_j:.1f} J above idle ({window.limit_w:.2f} W less {idle_w:.2f} W, for "
        f"{_time(window.over_s)}), and {what}: answers will be shortened or slowed"
    ]


def _allowed(window: Window) -> str:
    return f"{window.limit_w:.2f} W on average, {_energy(window.limit_j)} in {_time(window.over_s)}"


def _energy(energy_j: float) -> str:
    return f"{energy_j / 3600:.1f} Wh" if energy_j >= 3600 else f"{energy_j:.1f} J"


def _time(seconds: float) -> str:
    for unit_s, name in _UNITS:
        if seconds >= unit_s and seconds % unit_s == 0:
            return f"{seconds / unit_s:.0f} {name}"
    return f"{seconds:g} s"
