"""Draws figures of a fleet over time, one panel for each; needs matplotlib (extra ``charts``)."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final

from matplotlib.axes import Axes
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure as Picture

from edgeslm.cli.output import printable
from edgeslm.cli.power_chart import tidy
from edgeslm.errors import UsageError

if TYPE_CHECKING:
    from edgeslm.fleet.metrics.figures import Figure
    from edgeslm.fleet.metrics.report import FiguresReport

_COLOURS: Final = ("#4c78a8", "#f58518", "#54a24b", "#b279a2", "#e45756", "#72b7b2", "#9d755d", "#e0c35c")
_MOST_PANELS: Final = 8
_PANEL_INCHES: Final = 2.1
_UNITS: Final = {"C": "°C", "share": "%", "1/s": "1/s"}

Line = tuple[list[datetime], list[float]]


def draw(found: FiguresReport, figures: Sequence[Figure], kind: str) -> bytes:
    """A picture of the kind ``png`` or ``svg``.

    Up to eight groups have a colour each; of more there is the middle one, with the range of the middle four fifths.

    Raises:
        UsageError: there is nothing to draw.
    """
    panels = [figure for figure in figures if any(figure.name in row.figures for row in found.rows)][
        :_MOST_PANELS
    ]
    if not panels or found.step_s is None:
        raise UsageError("nothing was reported in that time")
    height = _PANEL_INCHES * len(panels) + 0.9
    picture = Picture(figsize=(10, height), layout="constrained")
    axes = picture.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    groups = sorted({row.group for row in found.rows})
    is_many = len(groups) > len(_COLOURS)
    for panel, figure in zip(axes, panels, strict=True):
        if is_many:
            _draw_range(panel, found, figure)
        else:
            for group, colour in zip(groups, _COLOURS, strict=False):
                times, values = _line(found, figure, group)
                # A sum belongs to its whole step; all else is a level, which a line may connect.
                way = "steps-post" if figure.is_total else "default"
                panel.plot(times, values, color=colour, linewidth=1.4, drawstyle=way, label=printable(group))
        unit = _UNITS.get(figure.unit, figure.unit)
        panel.set_ylabel(f"{figure.title}\nin {unit}" if unit else figure.title, fontsize=9)
        if figure.is_ratio or figure.is_total:
            panel.set_ylim(bottom=0)
        tidy(panel)
    title = f"{len(groups)} {found.by}s" if is_many else f"Figures by {found.by}"
    if found.by == "fleet":
        title = "Figures of the fleet"
    picture.suptitle(f"{title}, {found.since.astimezone():%Y-%m-%d} to {found.until.astimezone():%Y-%m-%d}")
    picture.legend(
        *axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False, fontsize=9
    )
    locator = AutoDateLocator()
    axes[-1].xaxis.set_major_locator(locator)
    axes[-1].xaxis.set_major_formatter(ConciseDateFormatter(locator))
    sink = io.BytesIO()
    picture.savefig(sink, format=kind, dpi=150)
    return sink.getvalue()


def _line(found: FiguresReport, figure: Figure, group: str) -> Line:
    """Points of a group's line, with a gap where nothing was reported; a share as percent."""
    step = timedelta(seconds=found.step_s or 0)
    factor = 100.0 if figure.unit == "share" else 1.0
    times: list[datetime] = []
    values: list[float] = []
    for row in found.rows:
        if row.group != group or row.start is None or figure.name not in row.figures:
            continue
        start = row.start.astimezone().replace(tzinfo=None)
        if times and start - times[-1] > 1.5 * step:
            times.append(times[-1] + step)
            values.append(math.nan)
        times.append(start)
        values.append(row.figures[figure.name] * factor)
    return times, values


def _draw_range(axes: Axes, found: FiguresReport, figure: Figure) -> None:
    factor = 100.0 if figure.unit == "share" else 1.0
    by_time: dict[datetime, list[float]] = {}
    for row in found.rows:
        if row.start is not None and figure.name in row.figures:
            start = row.start.astimezone().replace(tzinfo=None)
            by_time.setdefault(start, []).append(row.figures[figure.name] * factor)
    times = sorted(by_time)
    ranked = [sorted(by_time[time]) for time in times]
    low, middle, high = (
        [values[min(int(share * len(values)), len(values) - 1)] for values in ranked]
        for share in (0.1, 0.5, 0.9)
    )
    axes.fill_between(times, low, high, color=_COLOURS[0], alpha=0.2, linewidth=0, label="middle four fifths")
    axes.plot(times, middle, color=_COLOURS[0], linewidth=1.4, label="middle one")
