"""The picture that ``power watch`` draws: what is known at a moment, as lines for a terminal or as JSON.

Pure: a :class:`Frame` and a size in, lines out. A line is a row of pieces, each with its style, so that it can be cut
to the width of the terminal before it gets colours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import partial
from typing import Final, Literal

import click

from edgeslm.cli.output import printable
from edgeslm.cli.power_words import energy_text, error_text, power_text, time_text
from edgeslm.power.governor import WindowUse
from edgeslm.power.port import Battery, MeterFacts, Throttling, Vitals

Style = Literal["plain", "strong", "faint", "good", "warn", "bad"]
Piece = tuple[str, Style]
Line = tuple[Piece, ...]

_PAINTS: Final[dict[Style, Callable[[str], str]]] = {
    "plain": str,
    "strong": partial(click.style, bold=True),
    "faint": partial(click.style, dim=True),
    "good": partial(click.style, fg="green"),
    "warn": partial(click.style, fg="yellow"),
    "bad": partial(click.style, fg="red", bold=True),
}
_LEVELS: Final = " ▁▂▃▄▅▆▇█"
_LEVELS_ACROSS: Final = " ▏▎▍▌▋▊▉"
_BAR_CHARS: Final = 20
_LEAST_GRAPH_ROWS: Final = 3
_MOST_GRAPH_ROWS: Final = 10
_LABEL_CHARS: Final = 8
_SINCE_BOOT: Final = "_since_boot"


@dataclass(frozen=True)
class Point:
    """Draw of the board from one picture to the next."""

    seconds: float
    min_w: float
    mean_w: float
    max_w: float


@dataclass(frozen=True)
class Today:
    """What the ledger has of today: joules in all and by cause."""

    energy_j: float
    causes_j: dict[str, float]


@dataclass(frozen=True)
class Frame:
    """What is known at a moment.

    Attributes:
        at: local time.
        points: draw until now, oldest first; not empty.
        facts: of the meter in use.
        idle_w: learned draw of the idle board.
        busy_cores: cores that were busy since the picture before.
        seen_j: joules since the watching began.
        windows: of the budget.
        today: ``None`` where no agent keeps a ledger.
        event: what happened to a meter last.
    """

    at: datetime
    board: str
    points: tuple[Point, ...]
    facts: MeterFacts
    idle_w: float
    busy_cores: float
    seen_j: float
    vitals: Vitals
    windows: tuple[WindowUse, ...]
    today: Today | None
    event: str | None

    @property
    def now(self) -> Point:
        """The latest point."""
        return self.points[-1]


def flags(throttling: Throttling | None, *, since_boot: bool) -> tuple[str, ...]:
    """Names of the flags that are set now, or were since boot."""
    if throttling is None:
        return ()
    return tuple(
        name.removesuffix(_SINCE_BOOT)
        for name, on in asdict(throttling).items()
        if on and name.endswith(_SINCE_BOOT) == since_boot
    )


def as_json(frame: Frame) -> dict[str, object]:
    """The frame as one JSON object; min, mean and max are of the time since the object before."""
    vitals = frame.vitals
    return {
        "at": frame.at.isoformat(timespec="milliseconds"),
        "board": frame.board,
        "power_w": round(frame.now.mean_w, 4),
        "min_w": round(frame.now.min_w, 4),
        "max_w": round(frame.now.max_w, 4),
        "span_s": round(frame.now.seconds, 3),
        "meter": frame.facts.name,
        "meter_class": frame.facts.meter_class,
        "error_share": frame.facts.error_share,
        "error_w": frame.facts.error_w,
        "idle_w": round(frame.idle_w, 4),
        "busy_cores": round(frame.busy_cores, 3),
        "energy_j": round(frame.seen_j, 4),
        "temperature_c": vitals.temperature_c,
        "frequency_mhz": vitals.frequency_mhz,
        "throttling": list(flags(vitals.throttling, since_boot=False)),
        "throttled_before": list(flags(vitals.throttling, since_boot=True)),
        "battery": None if vitals.battery is None else asdict(vitals.battery),
        "windows": [
            {**asdict(use), "left_share": round(1 - use.used_j / use.limit_j, 4)} for use in frame.windows
        ],
        "today": None if frame.today is None else asdict(frame.today),
        "event": frame.event,
    }


def as_line(frame: Frame) -> str:
    """The frame on one plain line."""
    vitals, now = frame.vitals, frame.now
    parts = [
        f"{frame.at:%H:%M:%S}",
        f"{now.mean_w:7.2f} W ({now.min_w:.2f} to {now.max_w:.2f})",
        f"{frame.facts.meter_class} by {printable(frame.facts.name)}",
        f"idle {frame.idle_w:.2f} W",
    ]
    if vitals.temperature_c is not None:
        parts.append(f"{vitals.temperature_c:.1f} °C")
    if vitals.frequency_mhz is not None:
        parts.append(f"{vitals.frequency_mhz:.0f} MHz")
    if vitals.battery is not None:
        parts.append(f"battery {vitals.battery.share:.0%}")
    parts += [f"{use.name} {1 - use.used_j / use.limit_j:.0%} left" for use in frame.windows]
    if set_now := flags(vitals.throttling, since_boot=False):
        parts.append(" ".join(set_now))
    return "  ".join(parts)


def draw(frame: Frame, columns: int, rows: int) -> list[str]:
    """The frame as at most `rows` lines of at most `columns` characters, with colours."""
    head, foot = _head(frame), _foot(frame)
    height = min(max(rows - len(head) - len(foot) - 1, _LEAST_GRAPH_ROWS), _MOST_GRAPH_ROWS)
    lines = [*head, *graph([point.mean_w for point in frame.points], points_shown(columns), height), *foot]
    return [paint(line, columns) for line in lines[: max(rows - 1, 1)]]


def points_shown(columns: int) -> int:
    """How many points the graph of a terminal shows."""
    return max(columns - _LABEL_CHARS - 2, 8)


def paint(line: Line, columns: int) -> str:
    """`line`, cut to `columns` characters, with its colours."""
    painted, room = "", columns
    for text, style in line:
        shown = text[:room]
        room -= len(shown)
        painted += _PAINTS[style](shown) if shown else ""
    return painted


def graph(values: Sequence[float], width: int, height: int) -> list[Line]:
    """`values` as columns of blocks, the latest at the right edge, with the ends of the scale beside."""
    shown = values[-width:]
    floor_w, top_w = scale(min(shown), max(shown))
    step_w = (top_w - floor_w) / (height * 8)
    eighths = [round((value - floor_w) / step_w) for value in shown]
    lines: list[Line] = []
    for row in range(height - 1, -1, -1):
        blocks = "".join(_LEVELS[min(max(level - 8 * row, 0), 8)] for level in eighths)
        label = f"{top_w:.4g} W" if row == height - 1 else f"{floor_w:.4g} W" if row == 0 else ""
        lines.append(((label.rjust(_LABEL_CHARS), "faint"), (" │", "faint"), (blocks.rjust(width), "good")))
    return lines


def scale(low: float, high: float) -> tuple[float, float]:
    """Round ends of a scale that holds `low` to `high`; it begins at zero unless the values are far above."""
    floor = 0.0 if low < 0.7 * high else 0.9 * low
    step = 10 ** math.floor(math.log10(max(high - floor, 1e-3))) / 2
    floor = math.floor(floor / step) * step
    return floor, max(math.ceil(high / step) * step, floor + step)


def bar(share: float, chars: int = _BAR_CHARS) -> str:
    """A share of 0 to 1 as a bar."""
    eighths = round(min(max(share, 0.0), 1.0) * chars * 8)
    full, rest = divmod(eighths, 8)
    return ("█" * full + (_LEVELS_ACROSS[rest] if rest else "")).ljust(chars, "░")


def _head(frame: Frame) -> list[Line]:
    span_s = sum(point.seconds for point in frame.points)
    mean_w = sum(point.mean_w * point.seconds for point in frame.points) / max(span_s, 1e-9)
    low_w, high_w = min(p.min_w for p in frame.points), max(p.max_w for p in frame.points)
    facts = frame.facts
    return [
        ((f"{frame.board}  ", "strong"), (f"{frame.at:%H:%M:%S}", "faint")),
        (
            (f"{frame.now.mean_w:.2f} W", "strong"),
            (f"   {low_w:.2f} lowest   {mean_w:.2f} mean   {high_w:.2f} highest of {span_s:.0f} s", "plain"),
        ),
        (
            (facts.meter_class, "good" if facts.meter_class == "measured" else "warn"),
            (f" by {printable(facts.name)}, {error_text(facts.error_share, facts.error_w)}", "faint"),
        ),
    ]


def _foot(frame: Frame) -> list[Line]:
    vitals = frame.vitals
    state = [f"idle {power_text(frame.idle_w)}", f"{frame.busy_cores:.1f} cores busy"]
    state += [] if vitals.temperature_c is None else [f"{vitals.temperature_c:.1f} °C"]
    state += [] if vitals.frequency_mhz is None else [f"{vitals.frequency_mhz:.0f} MHz"]
    lines: list[Line] = [(("   ".join(state), "plain"),)]
    lines += _throttling(vitals.throttling)
    if vitals.battery is not None:
        lines.append(_battery(vitals.battery))
    lines += [_window(use, max(len(use.name) for use in frame.windows)) for use in frame.windows]
    lines.append(_spent(frame))
    if frame.event is not None:
        lines.append(((printable(frame.event), "warn"),))
    return lines


def _throttling(throttling: Throttling | None) -> list[Line]:
    now, before = flags(throttling, since_boot=False), flags(throttling, since_boot=True)
    lines: list[Line] = []
    if now:
        lines.append(((f"firmware, now: {_words(now)}", "bad"),))
    if before:
        lines.append(((f"firmware, since boot: {_words(before)}", "faint"),))
    return lines


def _words(names: Sequence[str]) -> str:
    return ", ".join(name.replace("_", " ") for name in names)


def _battery(battery: Battery) -> Line:
    flow = ""
    if battery.discharge_w is not None:
        flow = f", {power_text(abs(battery.discharge_w))} {'in' if battery.discharge_w < 0 else 'out'}"
    style: Style = "bad" if battery.share < 0.2 else "plain"
    return (("battery  ", "faint"), (bar(battery.share), style), (f" {battery.share:.0%}{flow}", "plain"))


def _window(use: WindowUse, chars: int) -> Line:
    left = 1 - use.used_j / use.limit_j
    style: Style = "bad" if left < 0.05 else "warn" if left < 0.2 else "good"
    return (
        (f"{use.name:<{chars}}  ", "faint"),
        (bar(left), style),
        (
            f" {left:.0%} left: {energy_text(use.used_j)} of {energy_text(use.limit_j)} used"
            f" in {time_text(use.over_s)}",
            "plain",
        ),
    )


def _spent(frame: Frame) -> Line:
    seen = f"{energy_text(frame.seen_j)} since watching"
    today = frame.today
    if today is None:
        return ((seen, "plain"),)
    parts = sorted(today.causes_j.items(), key=lambda part: -part[1])
    shares = ", ".join(f"{printable(cause)} {part / today.energy_j:.0%}" for cause, part in parts if part > 0)
    return (
        (f"{seen}   today {energy_text(today.energy_j)}", "plain"),
        (f"  {shares}" if today.energy_j > 0 else "", "faint"),
    )
