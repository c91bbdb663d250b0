"""``edgeslm power watch``: the draw of the board as it is, drawn on a terminal or as lines for others."""

from __future__ import annotations

import logging
import shutil
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from datetime import datetime
from typing import Final

import click

from edgeslm.cli.output import print_json, stopped_by_signals
from edgeslm.cli.power_common import (
    Settings,
    governor_of,
    learned_idle_w,
    ledger_if_any,
    monitored,
    power_command,
)
from edgeslm.cli.power_screen import Frame, Point, Today, as_json, as_line, draw, points_shown
from edgeslm.cli.power_words import DAY_S
from edgeslm.errors import LedgerError
from edgeslm.power.attribution import Interval
from edgeslm.power.bank import Demoted, MeterEvent
from edgeslm.power.cpu import BusyCores, CpuClock
from edgeslm.power.governor import Governor
from edgeslm.power.ledger_reader import LedgerReader
from edgeslm.power.monitor import PowerMonitor

_SCREEN_INTERVAL_S: Final = 0.5
_LINES_INTERVAL_S: Final = 1.0
_LEDGER_PERIOD_S: Final = 5.0
_HIDE, _SHOW = "\x1b[?25l", "\x1b[?25h"
_CLEAR, _HOME, _END_OF_LINE, _BELOW = "\x1b[2J", "\x1b[H", "\x1b[K", "\x1b[J"


class _Tally:
    """What was drawn since the last picture; filled on the sampling thread, emptied on the drawing one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._intervals: list[Interval] = []
        self._last: Point | None = None
        self.event: str | None = None
        self.seen_j = 0.0

    def add(self, interval: Interval) -> None:
        with self._lock:
            self._intervals.append(interval)
            self.seen_j += interval.energy_j

    def note(self, event: MeterEvent) -> None:
        if isinstance(event, Demoted):
            what = f"{event.meter} is {event.fault}: {event.detail}; {event.replaced_by} is used"
        else:
            what = f"{event.meter} is believed again"
        self.event = f"{datetime.now():%H:%M:%S} {what}"

    def take(self) -> Point | None:
        """Draw since the last call; what it was then if there was no look in between."""
        with self._lock:
            intervals, self._intervals = self._intervals, []
        if intervals:
            seconds = sum(one.end_s - one.start_s for one in intervals)
            self._last = Point(
                seconds,
                min(one.power_w for one in intervals),
                sum(one.energy_j for one in intervals) / max(seconds, 1e-9),
                max(one.power_w for one in intervals),
            )
        return self._last


class _Watch:
    """Makes pictures of what is known."""

    def __init__(self, settings: Settings, tally: _Tally, monitor: PowerMonitor, governor: Governor) -> None:
        self._settings, self._tally, self._monitor, self._governor = settings, tally, monitor, governor
        self._points: deque[Point] = deque(maxlen=2000)
        self._cpu = CpuClock(settings.config.power.root)
        self._busy = BusyCores(self._cpu.read())
        self._today: Today | None = None
        self._learned_w: float | None = None
        self._ledger_due_s = 0.0

    def look(self, reader: LedgerReader | None, shown: int) -> Frame | None:
        """The picture now, with `shown` points at most; ``None`` before the first look at the meters."""
        point, facts, now_s = self._tally.take(), self._monitor.facts, time.monotonic()
        if point is None or facts is None:
            return None
        self._points.append(point)
        if now_s >= self._ledger_due_s:
            self._ledger_due_s = now_s + _LEDGER_PERIOD_S
            self._read(reader)
        idle_w = self._monitor.account.draw.idle.idle_w
        return Frame(
            at=datetime.now().astimezone(),
            board=self._settings.board.name,
            points=tuple(self._points)[-shown:],
            facts=facts,
            idle_w=idle_w if self._learned_w is None else self._learned_w,
            busy_cores=self._busy.advance(self._cpu.read()),
            seen_j=self._tally.seen_j,
            vitals=self._monitor.vitals,
            windows=self._governor.usage(now_s),
            today=self._today,
            event=self._tally.event,
        )

    def _read(self, reader: LedgerReader | None) -> None:
        """What the ledger says; while it cannot be read, what it said before stands."""
        if reader is None:
            return
        wall_s = time.time()
        midnight = datetime.now().astimezone().replace(hour=0, minute=0, second=0, microsecond=0)
        try:
            rows = reader.energy(midnight.timestamp(), wall_s + 60, ["cause"])
            self._learned_w = learned_idle_w(reader, wall_s)
        except LedgerError:
            return
        self._today = Today(
            sum(row.energy_j for row in rows), {row.cause or "other": row.energy_j for row in rows}
        )


@contextmanager
def _screen() -> Iterator[None]:
    """An empty terminal without cursor, and without log lines in the picture."""
    logging.disable(logging.WARNING)
    click.echo(_HIDE + _CLEAR, nl=False)
    try:
        yield
    finally:
        click.echo(_SHOW)
        logging.disable(logging.NOTSET)


@click.command()
@click.option("--count", type=click.IntRange(1), help="End after so many pictures; default is at Ctrl-C.")
@click.option(
    "--interval",
    "interval_s",
    type=click.FloatRange(0.1, DAY_S),
    help="Seconds between them; default is 0.5 on a terminal, else 1.",
)
@power_command
def watch(settings: Settings, count: int | None, interval_s: float | None, as_json: bool) -> None:
    """Show the draw of the board as it is, with what is left of the budget; one line each if not on a terminal.

    The meters are read by this command itself. Beside them stands what the agent's ledger knows of today.
    """
    on_screen = sys.stdout.isatty() and not as_json
    interval_s = interval_s or (_SCREEN_INTERVAL_S if on_screen else _LINES_INTERVAL_S)
    tally = _Tally()
    now_s, wall_s = time.monotonic(), time.time()
    with ledger_if_any(settings) as reader, stopped_by_signals() as stop:
        idle_w = learned_idle_w(reader, wall_s) or settings.board.power.idle_w
        governor = governor_of(settings, idle_w, reader, now_s, wall_s)

        def on_interval(interval: Interval) -> None:
            tally.add(interval)
            governor.note_energy(interval.start_s, interval.end_s, interval.energy_j)

        with (
            _screen() if on_screen else nullcontext(),
            monitored(settings, on_interval=on_interval, on_meter=tally.note) as monitor,
        ):
            pictures = _Watch(settings, tally, monitor, governor)
            shown = 0
            while shown != count and not stop.wait(interval_s):
                size = shutil.get_terminal_size()
                frame = pictures.look(reader, points_shown(size.columns))
                if frame is not None:
                    shown += 1
                    _show(frame, size.columns, size.lines, on_screen=on_screen, as_json_lines=as_json)


def _show(frame: Frame, columns: int, rows: int, *, on_screen: bool, as_json_lines: bool) -> None:
    if as_json_lines:
        print_json(as_json(frame))
    elif on_screen:
        lines = draw(frame, columns, rows)
        click.echo(_HOME + "".join(f"{line}{_END_OF_LINE}\n" for line in lines) + _BELOW, nl=False)
    else:
        click.echo(as_line(frame))
    sys.stdout.flush()
