"""``edgeslm fleet logs``: the latest lines of a device's log, and those that follow."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from pydantic import ValidationError

from edgeslm.cli.fleet_common import Fleet, fleet_options, naming_the_extra, note, open_fleet
from edgeslm.cli.fleet_select import Selection
from edgeslm.cli.output import (
    StopEvent,
    json_option,
    print_json,
    printable,
    reporting_errors,
    stopped_by_signals,
)
from edgeslm.cli.times import duration
from edgeslm.clock import utc_now
from edgeslm.codec import describe
from edgeslm.errors import FleetError, LinkError, NoAnswerError
from edgeslm.schema.log_lines import MAX_LINES

if TYPE_CHECKING:
    from edgeslm.schema.log_lines import LogLines

OP = "logs"
_SKEW_S = 30.0
"""What a device's clock may be ahead of ours."""
_STAMP = re.compile(r"\d{4}-\d{2}-\d{2} \d{2}:\d{2}:\d{2},\d{3}")


@click.command()
@click.argument("device", metavar="DEVICE")
@click.option(
    "--lines",
    type=click.IntRange(1, MAX_LINES),
    default=100,
    show_default=True,
    help="The latest so many.",
)
@click.option(
    "--level",
    type=click.Choice(["info", "warning", "error"]),
    default="info",
    show_default=True,
    help="Nothing less grave.",
)
@click.option(
    "--since",
    "age",
    type=duration,
    metavar="AGE",
    help="Nothing older, such as 10min or 2h, by its own clock.",
)
@click.option("--follow", "-f", is_flag=True, help="Go on as lines are written, until Ctrl-C.")
@click.option(
    "--every",
    "every_s",
    type=click.FloatRange(1, 3600),
    default=5.0,
    show_default=True,
    help="With --follow: seconds between looks. Each is a command to the device.",
)
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(1, 3600),
    default=30.0,
    show_default=True,
    help="Seconds to wait for an answer.",
)
@fleet_options
@json_option
@reporting_errors
def logs(
    device: str,
    lines: int,
    level: str,
    age: timedelta | None,
    follow: bool,
    every_s: float,
    timeout_s: float,
    fleet_dir: Path | None,
    fleet_name: str | None,
    as_json: bool,
) -> None:
    """Show the latest lines of the log of DEVICE, without secrets, whatever its service's own log shows.

    Times are the device's own. It keeps the latest 400 lines of this run of its agent.

    With --json --follow every line is a document of its own.
    """
    fleet = open_fleet(fleet_dir, fleet_name)
    with naming_the_extra():
        from edgeslm.fleet import operations  # noqa: PLC0415

    command_id = operations.new_id()
    with fleet.store.write() as session:
        Selection((device,)).chosen(session)
        operations.note_request(session, OP, command_id, [device], actor=fleet.actor, now=utc_now())
    args: dict[str, Any] = {"lines": lines, "level": level}
    if age is not None:
        args["since_s"] = age.total_seconds()
    with stopped_by_signals() as stop:
        found = look(fleet, device, args, timeout_s, stop, command_id)
        if found is None:
            return
        if found.left_out:
            note(f"{found.left_out} older lines are left out; see --lines")
        if as_json and not follow:
            print_json({"device": device, **found.model_dump(mode="json")})
            return
        show(device, found.lines, as_json=as_json)
        if not follow and not found.lines:
            click.echo("no lines", err=True)
        if follow:
            _follow(fleet, device, args, found.lines, every_s, timeout_s, stop, as_json=as_json)


def _follow(
    fleet: Fleet,
    device: str,
    args: dict[str, Any],
    shown: Sequence[str],
    every_s: float,
    timeout_s: float,
    stop: StopEvent,
    *,
    as_json: bool,
) -> None:
    is_there = True
    while not stop.wait(every_s):
        last = last_stamp(shown)
        wanted = {"lines": MAX_LINES, "level": args["level"]} | ({} if last is None else {"after": last})
        try:
            found = look(fleet, device, wanted, timeout_s, stop)
        except LinkError as error:  # it may be off for a while, or the broker is
            if is_there:
                note(f"{error}; it is asked again")
            is_there = False
            continue
        if found is None:
            return
        is_there = True
        show(device, fresh(shown, found.lines), as_json=as_json)
        shown = found.lines or shown


def look(
    fleet: Fleet,
    device: str,
    args: dict[str, Any],
    timeout_s: float,
    stop: StopEvent,
    command_id: str | None = None,
) -> LogLines | None:
    """What a device has of its log; ``None`` if the waiting was stopped.

    Args:
        fleet: that it is in.
        device: its name.
        args: what of the log is wanted.
        timeout_s: seconds to wait.
        stop: ends the waiting.
        command_id: of the request; a new one if it is ``None``.

    Raises:
        NoAnswerError: it does not answer in time.
        LinkError: the broker cannot be reached.
        FleetError: it refuses, or answers with something else.
    """
    from edgeslm.fleet import operations  # noqa: PLC0415
    from edgeslm.schema.log_lines import LogLines  # noqa: PLC0415

    wishes = operations.Wishes(timeout_s=timeout_s, life=timedelta(seconds=timeout_s + _SKEW_S), stop=stop)
    (outcome,) = operations.request(
        fleet.directory.operator_config(),
        fleet.directory.name,
        OP,
        {device: args},
        wishes,
        command_id=command_id,
    )
    if stop.is_set() and not outcome.is_done:
        return None
    if outcome.open:
        where = f"it is {outcome.presence}" if outcome.presence else "it was never seen at the broker"
        raise NoAnswerError(
            f"'{device}' does not tell its log within {timeout_s:g} s: {where}",
            waited_s=timeout_s,
            hint="It keeps its log in memory and tells it when it is there",
        )
    if not outcome.is_done:
        raise FleetError(f"'{device}' does not tell its log: {printable(outcome.text)}")
    try:
        return LogLines.model_validate(outcome.result or {})
    except ValidationError as error:
        raise FleetError(f"what '{device}' answers is no log: {describe(error)}") from error


def show(device: str, lines: Sequence[str], *, as_json: bool) -> None:
    """Print lines as they were written, but for what could steer a terminal."""
    for line in lines:
        if as_json:
            print_json({"device": device, "line": line})
        else:
            click.echo(printable(line, keep="\t"))
    sys.stdout.flush()


def last_stamp(lines: Sequence[str]) -> str | None:
    """The time of the latest record; ``None`` if there is none."""
    heads = (_STAMP.match(line) for line in reversed(lines))
    return next((head[0] for head in heads if head is not None), None)


def fresh(shown: Sequence[str], lines: Sequence[str]) -> Sequence[str]:
    """Those of `lines` that come after what is shown: an answer begins with what the one before ended with."""
    longest = min(len(shown), len(lines))
    overlap = next((count for count in range(longest, 0, -1) if shown[-count:] == lines[:count]), 0)
    return lines[overlap:]
