"""``edgeslm fleet top``: what devices draw and do right now, on a screen that keeps up."""

from __future__ import annotations

import os
import select
import sys
import termios
import tty
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from edgeslm.cli.fleet_common import Fleet, fleet_options, open_fleet, print_table
from edgeslm.cli.fleet_figures import value_text
from edgeslm.cli.fleet_metrics import opened_metrics
from edgeslm.cli.fleet_select import Selection, select_arguments
from edgeslm.cli.output import json_option, print_json, printable, reporting_errors
from edgeslm.cli.power_words import time_text
from edgeslm.clock import utc_now

if TYPE_CHECKING:
    from rich.console import Group

    from edgeslm.fleet.metrics.query import Newest
    from edgeslm.fleet.metrics.store import MetricsStore
    from edgeslm.schema.fleet import DeviceRecord

SILENT_AFTER_S: Final = 180.0
_LEAST_EVERY_S: Final = 0.5
_HEAD_ROWS: Final = 4


@dataclass(frozen=True)
class Line:
    """One device at this moment; what it did not tell is missing.

    Attributes:
        age_s: seconds since it reported.
        power_w: mean of its last report.
        j_per_prompt: energy of an answer, over those of its last report.
        waiting: prompts in its queue.
        budget_share: least that is left of a window.
        notes: what is wrong.
    """

    device: str
    board: str | None
    age_s: float | None
    power_w: float | None
    j_per_prompt: float | None
    tps: float | None
    waiting: int | None
    temperature_c: float | None
    budget_share: float | None
    notes: tuple[str, ...]


@dataclass(frozen=True)
class SortKey:
    """What lines can be sorted by: the key to press, whether the greatest comes first, and the value."""

    key: str
    descending: bool
    value: Callable[[Line], Any]


SORTS: Final[dict[str, SortKey]] = {
    "watts": SortKey("w", True, lambda line: line.power_w),
    "j-prompt": SortKey("j", True, lambda line: line.j_per_prompt),
    "tps": SortKey("s", False, lambda line: line.tps),
    "waiting": SortKey("p", True, lambda line: line.waiting),
    "temperature": SortKey("t", True, lambda line: line.temperature_c),
    "budget": SortKey("b", False, lambda line: line.budget_share),
    "age": SortKey("a", True, lambda line: line.age_s),
    "device": SortKey("d", False, lambda line: line.device),
}
_COLUMNS: Final = (
    "DEVICE",
    "BOARD",
    "WATTS",
    "J/PROMPT",
    "TOKENS/S",
    "WAITING",
    "TEMP",
    "BUDGET LEFT",
    "SEEN",
    "NOTES",
)


@click.command()
@select_arguments
@click.option(
    "--sort",
    type=click.Choice(list(SORTS)),
    default="watts",
    show_default=True,
    help="What comes first; on the screen a key changes it.",
)
@click.option("--reverse", is_flag=True, help="Sort the other way round.")
@click.option("--limit", type=click.IntRange(1), help="How many devices; default: what fits on the screen.")
@click.option(
    "--every",
    "every_s",
    type=click.FloatRange(_LEAST_EVERY_S),
    default=2.0,
    show_default=True,
    help="Seconds between two looks.",
)
@click.option("--once", is_flag=True, help="Show it once, as a table.")
@fleet_options
@json_option
@reporting_errors
def top(
    selection: Selection,
    sort: str,
    reverse: bool,
    limit: int | None,
    every_s: float,
    once: bool,
    fleet_dir: Path | None,
    fleet_name: str | None,
    as_json: bool,
) -> None:
    """Show what devices draw and do now, the greatest first; all in use, or those named.

    What is shown is what `fleet serve` collects. On a terminal it keeps up until q or Ctrl-C; elsewhere it is a table.
    """
    fleet = open_fleet(fleet_dir, fleet_name)
    with opened_metrics(fleet) as metrics:
        if as_json or once or not (sys.stdout.isatty() and sys.stdin.isatty()):
            lines = ordered(look(fleet, metrics, selection), sort, reverse=reverse)[:limit]
            if as_json:
                print_json([asdict(line) for line in lines])
            else:
                print_table(_COLUMNS, [cells(line) for line in lines], empty="no devices")
            return
        _watch(fleet, metrics, selection, sort, reverse, limit, every_s)


def look(fleet: Fleet, metrics: MetricsStore, selection: Selection) -> list[Line]:
    """The devices that are meant, as they are now."""
    from edgeslm.fleet.metrics.query import newest  # noqa: PLC0415
    from edgeslm.fleet.metrics.report import device_ids  # noqa: PLC0415
    from edgeslm.fleet.quarantine import quarantined  # noqa: PLC0415

    devices = selection.of(fleet)
    with fleet.store.read() as session:
        ids, aside = device_ids(session, devices), quarantined(session)
    said = newest(metrics, set(ids))
    now_s = utc_now().timestamp()
    return [line_of(one, said.get(id_), aside.get(one.name), now_s) for id_, one in ids.items()]


def line_of(one: DeviceRecord, said: Newest | None, distrust: str | None, now_s: float) -> Line:
    """A device's line."""
    notes = [] if distrust is None else ["in quarantine"]
    if one.presence not in (None, "online"):
        notes.append(str(one.presence))
    if said is None or distrust is not None:
        return Line(one.name, one.board, None, None, None, None, None, None, None, tuple(notes))
    age_s = max(0.0, now_s - said.at_ms / 1000)
    power, inference, system = said.power, said.inference, said.system
    if age_s > SILENT_AFTER_S:
        notes.append("silent")
    if system is not None:
        notes += [flag.replace("_", " ") for flag in system.throttling]
    left = None if power is None else min((window.left_share for window in power.windows), default=None)
    if left is not None and left < 0:
        notes.append("over budget")
    models = () if inference is None else inference.models
    answered, tokens = (
        sum(one.answered for one in models),
        sum(one.completion_tokens for one in models if one.decode_tps is not None),
    )
    return Line(
        device=one.name,
        board=one.board,
        age_s=round(age_s, 1),
        power_w=power.energy_j / power.span_s if power is not None and power.span_s > 0 else None,
        j_per_prompt=sum(one.energy_j for one in models) / answered if answered else None,
        tps=sum((one.decode_tps or 0.0) * one.completion_tokens for one in models) / tokens
        if tokens
        else None,
        waiting=None if inference is None else inference.waiting,
        temperature_c=None if system is None else system.temperature_c,
        budget_share=left,
        notes=tuple(notes),
    )


def ordered(lines: Sequence[Line], by: str, *, reverse: bool = False) -> list[Line]:
    """Lines in the order of one of :data:`SORTS`; those that have nothing of it come last."""
    sort = SORTS[by]
    having = sorted((line for line in lines if sort.value(line) is not None), key=lambda line: line.device)
    having.sort(key=sort.value, reverse=sort.descending != reverse)
    return [*having, *(line for line in lines if sort.value(line) is None)]


def cells(line: Line) -> list[str]:
    """A line as text."""
    return [
        line.device,
        line.board or "-",
        value_text("W", line.power_w),
        value_text("J", line.j_per_prompt),
        value_text("1/s", line.tps),
        "-" if line.waiting is None else str(line.waiting),
        value_text("C", line.temperature_c),
        value_text("share", line.budget_share),
        "-" if line.age_s is None else time_text(line.age_s),
        ", ".join(line.notes) or "-",
    ]


# --- the screen ---------------------------------------------------------------------------------------------


def _watch(
    fleet: Fleet,
    metrics: MetricsStore,
    selection: Selection,
    sort: str,
    reverse: bool,
    limit: int | None,
    every_s: float,
) -> None:
    """Show the screen until q or Ctrl-C."""
    from rich.console import Console  # noqa: PLC0415
    from rich.live import Live  # noqa: PLC0415

    console = Console()
    keys = {one.key: name for name, one in SORTS.items()}
    lines = look(fleet, metrics, selection)
    with _keys() as pressed, Live(console=console, screen=True, auto_refresh=False) as live:
        try:
            while True:
                rows = limit or max(1, console.height - _HEAD_ROWS)
                live.update(
                    picture(ordered(lines, sort, reverse=reverse), sort, rows, reverse=reverse), refresh=True
                )
                key = pressed(every_s)
                if key == "q":
                    return
                if key == "r":
                    reverse = not reverse
                elif key in keys:
                    sort, reverse = keys[key], False
                else:
                    lines = look(fleet, metrics, selection)
        except KeyboardInterrupt:
            return


def picture(lines: Sequence[Line], sort: str, rows: int, *, reverse: bool) -> Group:
    """The screen: a head, at most `rows` devices, and the keys."""
    from rich.console import Group  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    seen = [line for line in lines if line.age_s is not None and line.age_s <= SILENT_AFTER_S]
    total_w = sum(line.power_w or 0.0 for line in seen)
    waiting = sum(line.waiting or 0 for line in seen)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in _COLUMNS:
        is_number = column not in {"DEVICE", "BOARD", "NOTES"}
        table.add_column(column, justify="right" if is_number else "left", no_wrap=True)
    for line in lines[:rows]:
        style = "yellow" if line.notes else None
        table.add_row(*(Text(printable(cell)) for cell in cells(line)), style=style)
    keys = "  ".join(f"{one.key} {name}" for name, one in SORTS.items())
    way = ", reversed" if reverse else ""
    return Group(
        Text(
            f"{len(seen)} of {len(lines)} devices report, {value_text('W', total_w)}, {waiting} prompts wait; "
            f"by {sort}{way}",
            style="bold",
        ),
        table,
        Text(f"{keys}  r reverse  q quit", style="dim"),
    )


@contextmanager
def _keys() -> Iterator[Callable[[float], str]]:
    """Reads single keys from the terminal, which is as before afterwards; waits for one at most so long."""
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)

    def pressed(timeout_s: float) -> str:
        ready, _, _ = select.select([descriptor], [], [], timeout_s)
        return os.read(descriptor, 1).decode("ascii", "replace") if ready else ""

    tty.setcbreak(descriptor)
    try:
        yield pressed
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
