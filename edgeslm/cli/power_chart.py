"""Draws power over time and energy by cause; needs matplotlib (extra ``charts``)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from matplotlib.axes import Axes
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure

from edgeslm.errors import UsageError
from edgeslm.power.ledger_reader import EnergyRow, PowerPoint
from edgeslm.schema.message import MeterClass

_COLOURS: Final = {
    "idle": "#9aa5b1",
    "agent": "#4c78a8",
    "prompt": "#f58518",
    "test": "#54a24b",
    "update": "#b279a2",
    "other": "#e0c35c",
}
"""By cause, in the order in which they are stacked."""


def draw_chart(
    path: Path, points: Sequence[PowerPoint], rows: Sequence[EnergyRow], meter: MeterClass, *, daily: bool
) -> None:
    """Draw into the file `path`, whose ending says how.

    Args:
        rows: energy by minute and cause.
        meter: how the figures are known.
        daily: one bar a day instead of one an hour.

    Raises:
        UsageError: the file cannot be written.
    """
    figure = Figure(figsize=(10, 6.5), layout="constrained")
    power, energy = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    _draw_power(power, points)
    _draw_energy(energy, rows, daily=daily)
    figure.suptitle(f"Draw of the board ({meter}) and what it was spent on")
    locator = AutoDateLocator()
    energy.xaxis.set_major_locator(locator)
    energy.xaxis.set_major_formatter(ConciseDateFormatter(locator))
    try:
        figure.savefig(path, dpi=150)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from error


def _draw_power(axes: Axes, points: Sequence[PowerPoint]) -> None:
    times: list[datetime] = []
    values: list[tuple[float, float, float]] = []
    for point in points:
        start = datetime.fromtimestamp(point.start_s)
        if times and start > times[-1]:
            # The board was off, or nobody looked: a line across the gap would tell what nobody knows.
            times.append(times[-1])
            values.append((math.nan, math.nan, math.nan))
        value = (point.min_w, point.mean_w, point.max_w)
        times += [start, start + timedelta(seconds=point.width_s)]
        values += [value, value]
    low, mean, high = zip(*values, strict=True)
    axes.fill_between(times, low, high, color="#4c78a8", alpha=0.2, linewidth=0, label="lowest to highest")
    axes.plot(times, mean, color="#4c78a8", linewidth=1.4, label="mean")
    axes.set_ylabel("power in W")
    axes.set_ylim(bottom=0, top=1.15 * max(point.max_w for point in points))
    axes.legend(loc="upper left", frameon=False, ncols=2)
    tidy(axes)


def _draw_energy(axes: Axes, rows: Sequence[EnergyRow], *, daily: bool) -> None:
    bars: dict[str, dict[datetime, float]] = {cause: {} for cause in _COLOURS}
    for row in rows:
        start = datetime.fromtimestamp(row.start_s or 0).replace(minute=0, second=0)
        start = start.replace(hour=0) if daily else start
        stack = bars.setdefault(row.cause or "other", {})
        stack[start] = stack.get(start, 0.0) + row.energy_j / 3600
    starts = sorted({start for stack in bars.values() for start in stack})
    base = [0.0] * len(starts)
    width = timedelta(days=1) if daily else timedelta(hours=1)
    for cause, stack in bars.items():
        heights = [stack.get(start, 0.0) for start in starts]
        if any(heights):
            axes.bar(
                [start + width / 2 for start in starts],
                heights,
                width=0.9 * width / timedelta(days=1),
                bottom=base,
                color=_COLOURS.get(cause),
                label=cause,
            )
            base = [low + height for low, height in zip(base, heights, strict=True)]
    axes.set_ylabel(f"energy in Wh {'a day' if daily else 'an hour'}")
    axes.legend(loc="upper left", frameon=False, ncols=6)
    axes.set_ylim(top=1.25 * max(base))
    tidy(axes)


def tidy(axes: Axes) -> None:
    """Lines across for reading values off, and no frame."""
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
