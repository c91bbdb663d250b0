"""``edgeslm fleet list``: the devices that have joined, as a table of any columns."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeslm.cli.fleet_common import ago, fleet_options, open_fleet, print_table
from edgeslm.cli.fleet_select import Selection, select_arguments
from edgeslm.cli.output import json_option, print_json, reporting_errors
from edgeslm.clock import utc_now
from edgeslm.errors import UsageError

if TYPE_CHECKING:
    from edgeslm.schema.fleet import DeviceFacts

_LONG_AGO = datetime.min.replace(tzinfo=UTC)


def state(one: DeviceFacts) -> str:
    """A device's state in a word or two, the worst first."""
    standing: str = one.presence or ("joined" if one.first_seen_at else "never seen")
    if one.standing != "active":
        standing = one.standing
    odd = [one.finding, one.quarantine and "quarantined", one.pin and "pinned"]
    return ", ".join([*(word for word in odd if word), standing])


def _ends(one: DeviceFacts, now: datetime) -> str | None:
    if one.expires_at is None or one.standing != "active":
        return None
    return f"until {one.expires_at:%Y-%m-%d}" if one.expires_at > now else "EXPIRED"


def _pairs(versions: dict[str, str]) -> str | None:
    return " ".join(f"{name}@{version}" for name, version in sorted(versions.items())) or None


@dataclass(frozen=True)
class Column:
    """A column: what it shows of a device, and what it is sorted by where that is another thing."""

    show: Callable[[DeviceFacts, datetime], str | None]
    key: Callable[[DeviceFacts], Any] | None = None


COLUMNS: dict[str, Column] = {
    "device": Column(lambda one, _now: one.name),
    "state": Column(lambda one, _now: state(one)),
    "board": Column(lambda one, _now: one.board),
    "serial": Column(lambda one, _now: one.serial),
    "profile": Column(lambda one, _now: one.profile),
    "tags": Column(lambda one, _now: ",".join(one.tags) or None),
    "note": Column(lambda one, _now: one.notes or None),
    "agent": Column(lambda one, _now: one.agent),
    "runtime": Column(lambda one, _now: one.runtime),
    "meter": Column(lambda one, _now: one.meter),
    "runs": Column(lambda one, _now: _pairs(one.running)),
    "assigned": Column(lambda one, _now: _pairs(one.assigned)),
    "joined": Column(lambda one, now: ago(one.created_at, now), lambda one: one.created_at),
    "seen": Column(lambda one, now: ago(one.last_seen_at, now), lambda one: one.last_seen_at or _LONG_AGO),
    "certificate": Column(_ends, lambda one: one.expires_at or _LONG_AGO),
    "key": Column(lambda one, _now: one.key_sha256[:12]),
}
_DEFAULT = ("device", "state", "board", "serial", "tags", "seen", "certificate")


def parse_columns(text: str) -> tuple[str, ...]:
    """Names of columns from a list with commas between them; one that begins with ``+`` adds to those that are usual.

    Raises:
        UsageError: there is no such column; all are named.
    """
    is_more = text.startswith("+")
    words = (word.strip() for word in text.removeprefix("+").split(","))
    names = [check_column(word) for word in words if word]
    return tuple(dict.fromkeys([*(_DEFAULT if is_more else ()), *names])) or _DEFAULT


def check_column(name: str) -> str:
    """`name`, if there is a column of that name.

    Raises:
        UsageError: there is none; all are named.
    """
    if name not in COLUMNS:
        near = difflib.get_close_matches(name, COLUMNS, n=1)
        meant = f"Did you mean {near[0]}? " if near else ""
        raise UsageError(f"no column '{name}'", hint=f"{meant}There are {', '.join(COLUMNS)}")
    return name


def sorted_by(
    found: Sequence[DeviceFacts], name: str, now: datetime, *, descending: bool
) -> list[DeviceFacts]:
    """Devices in the order of a column; those that have nothing in it come last."""
    column = COLUMNS[check_column(name)]

    def key(one: DeviceFacts) -> Any:
        return column.key(one) if column.key is not None else column.show(one, now)

    having = [one for one in found if key(one) is not None]
    return [
        *sorted(having, key=key, reverse=descending),
        *(one for one in found if key(one) is None),
    ]


@click.command("list")
@click.option("--all", "show_all", is_flag=True, help="Also devices that are retired.")
@click.option("--tag", "tags", multiple=True, help="Only devices that have this tag; several: all of them.")
@click.option("--online", is_flag=True, help="Only devices that are online.")
@click.option("--sort", metavar="COLUMN", default="device", show_default=True, help="What to sort by.")
@click.option("--reverse", is_flag=True, help="Sort the other way round.")
@click.option(
    "--columns", metavar="NAME,...", default="", help="Which columns; +NAME,... adds to the usual ones."
)
@select_arguments
@fleet_options
@json_option
@reporting_errors
def list_(
    show_all: bool,
    tags: tuple[str, ...],
    online: bool,
    sort: str,
    reverse: bool,
    columns: str,
    selection: Selection,
    fleet_dir: Path | None,
    fleet_name: str | None,
    as_json: bool,
) -> None:
    """List the devices, with what is odd about them; all, or those that are named or match."""
    names, sort = parse_columns(columns), check_column(sort)
    fleet = open_fleet(fleet_dir, fleet_name)
    from edgeslm.fleet.selection import select_facts  # noqa: PLC0415

    now = utc_now()
    with fleet.store.read() as session:
        found = select_facts(
            session,
            groups=selection.groups,
            queries=(*selection.queries, *(["presence = online"] if online else [])),
            devices=selection.devices,
            standings=("active", "revoked", "retired") if show_all else ("active", "revoked"),
            now=now,
        )
    found = sorted_by([one for one in found if set(tags) <= set(one.tags)], sort, now, descending=reverse)
    if as_json:
        print_json([one.model_dump(mode="json") for one in found])
        return
    print_table(
        [name.upper() for name in names],
        [[COLUMNS[name].show(one, now) for name in names] for one in found],
        empty="no devices" if selection.is_all and not tags and not online else "no such devices",
    )
