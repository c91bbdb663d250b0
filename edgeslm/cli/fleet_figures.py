"""How figures of a fleet are written for people: values with units, lines of blocks. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from edgeslm.cli.power_words import energy_text, power_text

if TYPE_CHECKING:
    from edgeslm.fleet.metrics.figures import Figure

_LEVELS: Final = "▁▂▃▄▅▆▇█"
_GAP: Final = " "


def value_text(unit: str, value: float | None) -> str:
    """A value of a figure in its unit; ``-`` for none."""
    if value is None:
        return "-"
    if unit == "W":
        return power_text(value)
    if unit == "J":
        return energy_text(value)
    if unit == "share":
        return f"{value:.1%}"
    if unit == "C":
        return f"{value:.1f} C"
    if unit == "ms":
        return f"{value:.0f} ms"
    if unit == "1/s":
        return f"{value:.1f}/s"
    return f"{value:.0f}" if value == round(value) or abs(value) >= 100 else f"{value:.2f}"


def column_title(figure: Figure) -> str:
    """Head of a figure's column."""
    return figure.name.upper()


def change_text(change: float | None, unit: str, *, is_share: bool) -> str:
    """A change with its sign."""
    if change is None:
        return "-"
    if is_share:
        return f"{change:+.1%}"
    sign = "-" if change < 0 else "+"
    return f"{sign}{value_text(unit, abs(change))}"


def blocks(values: Sequence[float | None], low: float, high: float, width: int) -> str:
    """`values` as one line of `width` blocks at most, each the mean of some; a blank where there is none."""
    if not values:
        return ""
    count = min(width, len(values))
    line = ""
    for at in range(count):
        part = values[at * len(values) // count : (at + 1) * len(values) // count]
        known = [value for value in part if value is not None]
        if not known:
            line += _GAP
            continue
        share = (sum(known) / len(known) - low) / (high - low) if high > low else 0.5
        line += _LEVELS[min(max(int(share * len(_LEVELS)), 0), len(_LEVELS) - 1)]
    return line
