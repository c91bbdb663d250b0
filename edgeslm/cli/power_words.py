"""How the power commands write figures for people: watts, joules, times, errors, tables. Pure, but for one ``echo``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import click

from edgeslm.cli.output import printable
from edgeslm.schema.message import MeterClass

DAY_S: Final = 86_400.0


def power_text(power_w: float) -> str:
    """Watts for people."""
    return f"{power_w * 1e3:.0f} mW" if abs(power_w) < 0.1 else f"{power_w:.2f} W"


def energy_text(energy_j: float) -> str:
    """Joules for people, in the unit that fits."""
    size_j = abs(energy_j)
    if size_j == 0:
        return "0 J"
    if size_j < 1:
        return f"{energy_j * 1e3:.3g} mJ"
    if size_j < 3600:
        return f"{energy_j:.2f} J" if size_j < 100 else f"{energy_j:.0f} J"
    return f"{energy_j / 3600:.2f} Wh" if size_j < 3.6e6 else f"{energy_j / 3.6e6:.2f} kWh"


def time_text(seconds: float) -> str:
    """Seconds for people, in the unit that fits."""
    for unit_s, name in ((DAY_S, "d"), (3600.0, "h"), (60.0, "min")):
        if abs(seconds) >= unit_s:
            return f"{seconds / unit_s:.3g} {name}"
    return f"{seconds:.3g} s"


def error_text(error_share: float, error_w: float) -> str:
    """The error of a meter for people (one sigma)."""
    parts = [f"{error_share:.1%}"] * (error_share > 0) + [power_text(error_w)] * (error_w > 0)
    return "±" + (" and ".join(parts) or "0")


def class_text(meter: MeterClass | None) -> str:
    """How a figure is known."""
    return meter or "-"


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table; a column whose name begins with ``>`` stands to the right."""
    names = [column.removeprefix(">") for column in columns]
    cells = [names, *([printable(cell) for cell in row] for row in rows)]
    widths = [max(len(row[at]) for row in cells) for at in range(len(columns))]
    lines = []
    for row in cells:
        padded = [
            cell.rjust(width) if column.startswith(">") else cell.ljust(width)
            for cell, width, column in zip(row, widths, columns, strict=True)
        ]
        lines.append("  ".join(padded).rstrip())
    return lines


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table on stdout, its head bold on a terminal."""
    head, *body = table(columns, rows)
    click.echo(click.style(head, bold=True))
    for line in body:
        click.echo(line)
