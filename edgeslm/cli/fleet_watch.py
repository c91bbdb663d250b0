"""``edgeslm fleet watch``: devices as they are at this moment, from what they say at the broker."""

from __future__ import annotations

import math
import secrets
import sys
import time
from collections import deque
from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from edgeslm.cli.fleet_common import (
    Fleet,
    ago,
    fleet_options,
    naming_the_extra,
    note,
    open_fleet,
    print_table,
)
from edgeslm.cli.fleet_figures import value_text
from edgeslm.cli.fleet_select import Selection, select_arguments
from edgeslm.cli.output import (
    StopEvent,
    json_option,
    print_json,
    printable,
    reporting_errors,
    stopped_by_signals,
)
from edgeslm.clock import utc_now

if TYPE_CHECKING:
    from rich.console import Group

    from edgeslm.fleet.broker_line import BrokerLine
    from edgeslm.fleet.watching import News, Seen, Watching

COLUMNS: Final = (
    "DEVICE",
    "STATE",
    "RUNS",
    "UPDATE",
    "POWER",
    "ANSWERS",
    "LAST",
    "TOKENS/S",
    "TEMP",
    "NOTES",
)
_NUMBERS: Final = frozenset({"POWER", "ANSWERS", "TOKENS/S", "TEMP"})
_QUIET_S: Final = 0.5
_REFRESH_S: Final = 0.5
_RETAINED_TIMEOUT_S: Final = 10.0
_HEAD_ROWS: Final = 4
_NEWS_ROWS: Final = 8
_PAINTS: Final = {"info": None, "warning": "yellow", "error": "red"}


@click.command()
@click.option("--once", is_flag=True, help="Show how devices are, and end.")
@click.option(
    "--wait",
    "wait_s",
    type=click.FloatRange(0, 3600),
    default=0.0,
    show_default=True,
    help="With --once: listen for so many seconds before. Watts and answers come with reports, about one a minute.",
)
@select_arguments
@fleet_options
@json_option
@reporting_errors
def watch(
    once: bool,
    wait_s: float,
    selection: Selection,
    fleet_dir: Path | None,
    fleet_name: str | None,
    as_json: bool,
) -> None:
    """Watch devices at the broker: who is there, what runs, updates, watts, events, until Ctrl-C.

    On a terminal it is a screen; elsewhere what changes comes as lines. Needs no `fleet serve`.

    With --json every change is a document on a line of its own; with --once it is one list of devices.
    """
    fleet = open_fleet(fleet_dir, fleet_name)
    with naming_the_extra():
        from edgeslm.fleet.broker_line import BrokerLine  # noqa: PLC0415
        from edgeslm.fleet.watching import Watching, filters  # noqa: PLC0415

    names = [device.name for device in selection.of(fleet)]
    watching = Watching(names)
    line = BrokerLine(
        fleet.directory.operator_config(),
        f"edgeslm-watch-{secrets.token_hex(6)}",
        filters(fleet.directory.name, names),
    )
    with stopped_by_signals() as stop, line:
        _hear_retained(line, watching, stop)
        if once:
            _listen(line, watching, time.monotonic() + wait_s, stop)
            _show(watching, as_json=as_json)
        elif sys.stdout.isatty() and not as_json:
            _screen(fleet, line, watching, stop)
        else:
            _lines(line, watching, stop, as_json=as_json)


def _hear_retained(line: BrokerLine, watching: Watching, stop: StopEvent) -> None:
    until_s = time.monotonic() + _RETAINED_TIMEOUT_S
    while time.monotonic() < until_s and not stop.is_set():
        heard = line.hear(_QUIET_S).messages
        if not heard:
            return
        for message in heard:
            watching.take(message, utc_now())


def _listen(line: BrokerLine, watching: Watching, until_s: float, stop: StopEvent) -> list[News]:
    """What is new until a moment, after at least one look."""
    news: list[News] = []
    while True:
        left_s = until_s - time.monotonic()
        heard = line.hear(max(0.0, min(left_s, _REFRESH_S)))
        for message in heard.messages:
            news += watching.take(message, utc_now())
        if heard.was_away:
            note("the broker was away; what was said meanwhile is lost")
        if left_s <= 0 or stop.is_set():
            return news


# --- plain --------------------------------------------------------------------------------------------------


def _show(watching: Watching, *, as_json: bool) -> None:
    now = utc_now()
    if as_json:
        print_json([one.model_dump(mode="json", exclude_none=True) for one in watching.seen])
    else:
        print_table(COLUMNS, [cells(one, now) for one in watching.seen], empty="no devices")
        click.echo(summary(watching.seen), err=True)


def _lines(line: BrokerLine, watching: Watching, stop: StopEvent, *, as_json: bool) -> None:
    if not as_json:
        _show(watching, as_json=False)
    while not stop.is_set():
        for one in _listen(line, watching, time.monotonic() + _REFRESH_S, stop):
            if as_json:
                print_json(one)
            else:
                click.echo(news_text(one))
        sys.stdout.flush()


def news_text(one: News) -> str:
    """A change on one line, with the time here."""
    return f"{one.at.astimezone():%H:%M:%S}  {one.device}  {one.kind}  {printable(one.text)}"


def summary(seen: Sequence[Seen]) -> str:
    """The fleet on one line."""
    online = [one for one in seen if one.presence == "online"]
    drawn = [one.power_w for one in online if one.power_w is not None]
    told = f", {value_text('W', math.fsum(drawn))} by {len(drawn)} that report" if drawn else ""
    changing = sum(bool(one.updates) for one in seen)
    return f"{len(online)} of {len(seen)} online{told}, {changing} with an update that is not over or failed"


def cells(one: Seen, now: datetime) -> list[str | None]:
    """A device as a row."""
    return [
        one.device,
        one.presence or "never seen",
        _joined(f"{name} {version}" for name, version in sorted(one.running.items())),
        _joined(f"{name} {text}" for name, text in sorted(one.updates.items())),
        None if one.power_w is None else value_text("W", one.power_w),
        str(one.answered) if one.answered else None,
        ago(one.answered_at, now),
        None if one.tps is None else f"{one.tps:,.0f}",
        None if one.temperature_c is None else f"{one.temperature_c:.0f} C",
        _joined([*(flag.replace("_", " ") for flag in one.troubles), *([one.event] if one.event else [])]),
    ]


def _joined(texts: Iterable[str]) -> str | None:
    return ", ".join(texts) or None


# --- the screen ---------------------------------------------------------------------------------------------


def _screen(fleet: Fleet, line: BrokerLine, watching: Watching, stop: StopEvent) -> None:
    from rich.console import Console  # noqa: PLC0415
    from rich.live import Live  # noqa: PLC0415

    console = Console()
    news: deque[News] = deque(maxlen=_NEWS_ROWS)
    with Live(console=console, screen=True, auto_refresh=False) as live:
        while not stop.is_set():
            rows = max(1, console.height - _HEAD_ROWS - _NEWS_ROWS)
            live.update(
                picture(fleet.directory.name, watching.seen, tuple(news), utc_now(), rows), refresh=True
            )
            news.extend(_listen(line, watching, time.monotonic() + _REFRESH_S, stop))


def urgency(one: Seen) -> tuple[int, str]:
    """Sorts those first that something is the matter with, then those that change."""
    if one.presence != "online":
        return (0, one.device)
    if one.troubles or any(":" in text for text in one.updates.values()):
        return (1, one.device)
    return (2 if one.updates else 3, one.device)


def picture(fleet: str, seen: Sequence[Seen], news: Sequence[News], now: datetime, rows: int) -> Group:
    """The screen: a head, at most `rows` devices, and what happened last."""
    from rich.console import Group  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in COLUMNS:
        table.add_column(column, justify="right" if column in _NUMBERS else "left", no_wrap=True)
    shown = sorted(seen, key=urgency)[:rows]
    for one in shown:
        style = ("red", "yellow", "cyan", None)[urgency(one)[0]]
        table.add_row(*(Text(printable(cell or "-")) for cell in cells(one, now)), style=style)
    left = len(seen) - len(shown)
    more = f"; {left} more do not fit" if left else ""
    return Group(
        Text(f"{fleet}: {summary(seen)}{more}", style="bold"),
        table,
        Text("Ctrl-C ends", style="dim"),
        *(Text(news_text(one), style=_PAINTS[one.severity] or "") for one in news),
    )
