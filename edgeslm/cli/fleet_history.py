"""``edgeslm fleet history|events|audit``: looking back."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgeslm.cli.fleet_common import Fleet, fleet_options, note, open_fleet, print_table
from edgeslm.cli.fleet_select import Selection, select_arguments
from edgeslm.cli.output import json_option, print_json, printable, reporting_errors, stopped_by_signals
from edgeslm.cli.times import moment

if TYPE_CHECKING:
    from edgeslm.fleet.history import EventFilter
    from edgeslm.schema.fleet import EventRecord

_POLL_S = 1.0
_MAX_SHOWN = 100_000


since_option = click.option(
    "--since", type=moment, metavar="TIME", help="Nothing older: how long ago, such as 2h or 7d, or a date."
)
limit_option = click.option(
    "--limit", type=click.IntRange(1, _MAX_SHOWN), default=50, show_default=True, help="The newest so many."
)


def at_text(at: datetime) -> str:
    """A time as these tables show it, in UTC."""
    return f"{at:%Y-%m-%d %H:%M:%S}"


@click.command()
@click.argument("name", metavar="DEVICE")
@since_option
@click.option(
    "--limit", type=click.IntRange(1, _MAX_SHOWN), default=200, show_default=True, help="The newest so many."
)
@fleet_options
@json_option
@reporting_errors
def history(
    name: str,
    since: datetime | None,
    limit: int,
    fleet_dir: Path | None,
    fleet_name: str | None,
    as_json: bool,
) -> None:
    """Show the life of DEVICE in one line of time: what ran, who did what, events, certificates, boots."""
    fleet = open_fleet(fleet_dir, fleet_name)
    from edgeslm.fleet import history as looking_back  # noqa: PLC0415

    with fleet.store.read() as session:
        found = looking_back.history(session, name, since=since)
    if len(found) > limit and not as_json:
        note(f"{len(found) - limit} older entries are left out; see --limit")
    found = found[-limit:]
    if as_json:
        print_json([one.model_dump(mode="json") for one in found])
        return
    print_table(
        ["WHEN", "WHAT", "LEVEL", "BY", "TEXT"],
        [[at_text(one.at), one.kind, one.severity, one.by, one.text] for one in found],
        empty="nothing happened in that time",
    )


@click.command()
@click.option("--kind", "kinds", multiple=True, help="Only this kind of event; may be given again.")
@click.option(
    "--level",
    "severities",
    multiple=True,
    type=click.Choice(["info", "warning", "error"]),
    help="Only this level; may be given again.",
)
@since_option
@limit_option
@click.option("--follow", "-f", is_flag=True, help="Go on as events happen, until Ctrl-C.")
@select_arguments
@fleet_options
@json_option
@reporting_errors
def events(
    kinds: tuple[str, ...],
    severities: tuple[str, ...],
    since: datetime | None,
    limit: int,
    follow: bool,
    selection: Selection,
    fleet_dir: Path | None,
    fleet_name: str | None,
    as_json: bool,
) -> None:
    """Show what happened, newest last; to all devices and claims, or to those that are named or match.

    Devices that are not in use any more can be named as well.

    With --json --follow every event is a document on a line of its own.
    """
    fleet = open_fleet(fleet_dir, fleet_name)
    from edgeslm.fleet.history import EventFilter, event_kinds, find_events  # noqa: PLC0415

    with fleet.store.read() as session:
        devices = None if selection.is_all else [one.name for one in selection.ever(session)]
        wanted = EventFilter(devices, kinds, severities, since)
        _remark_unknown(kinds, event_kinds(session))
        found, last = find_events(session, wanted, limit=limit)
    if follow:
        _follow(fleet, wanted, found, last, as_json=as_json)
    elif as_json:
        print_json([one.model_dump(mode="json") for one in found])
    else:
        print_table(
            ["WHEN", "SUBJECT", "EVENT", "LEVEL", "TEXT"],
            [[at_text(one.at), one.subject, one.kind, one.severity, one.text] for one in found],
            empty="no events",
        )


def _follow(
    fleet: Fleet, wanted: EventFilter, found: Sequence[EventRecord], last: int, *, as_json: bool
) -> None:
    from edgeslm.fleet.history import find_events  # noqa: PLC0415

    with stopped_by_signals() as stop:
        while True:
            for one in found:
                if as_json:
                    print_json(one)
                else:
                    line = f"{at_text(one.at)}  {one.subject}  {one.kind}  {one.severity}  {one.text}"
                    click.echo(printable(line))
            if stop.wait(_POLL_S):
                return
            with fleet.store.read() as session:
                found, last = find_events(session, wanted, after=last, limit=_MAX_SHOWN)


def _remark_unknown(kinds: Sequence[str], known: Sequence[str]) -> None:
    """Say that a kind has not come about yet, which is no error: it may."""
    for kind in kinds:
        if kind not in known:
            near = difflib.get_close_matches(kind, known, n=3)
            note(
                f"there was no event '{kind}' yet" + (f"; did you mean {' or '.join(near)}?" if near else "")
            )


@click.command()
@click.argument("subject", required=False, metavar="[DEVICE]")
@click.option(
    "--by", "actor", metavar="WHO", help="Only what was done by WHO: a user, or part of user@machine."
)
@click.option("--action", metavar="WHAT", help="Only this, such as assign, tag, group or 'release add'.")
@since_option
@limit_option
@fleet_options
@json_option
@reporting_errors
def audit(
    subject: str | None,
    actor: str | None,
    action: str | None,
    since: datetime | None,
    limit: int,
    fleet_dir: Path | None,
    fleet_name: str | None,
    as_json: bool,
) -> None:
    """Show who did what, newest first; all of it, or what was done to DEVICE, a group, a claim or a release."""
    fleet = open_fleet(fleet_dir, fleet_name)
    from edgeslm.fleet.history import detail_text, find_actions  # noqa: PLC0415

    with fleet.store.read() as session:
        found = find_actions(session, subject=subject, actor=actor, action=action, since=since, limit=limit)
    if as_json:
        print_json([one.model_dump(mode="json") for one in found])
        return
    print_table(
        ["WHEN", "WHO", "DID", "TO", "DETAIL"],
        [[at_text(one.at), one.actor, one.action, one.subject, detail_text(one.detail)] for one in found],
        empty="nothing was done yet"
        if not (subject or actor or action or since)
        else "nothing like that was done",
    )
