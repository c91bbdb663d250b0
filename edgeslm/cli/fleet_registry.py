"""``edgeslm fleet tag|note|search|diff|export|import``: what operators say about devices, and finding it again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeslm.cli.fleet_common import (
    changing,
    confirm,
    dry_run_option,
    fleet_options,
    note,
    open_fleet,
    print_table,
    yes_option,
)
from edgeslm.cli.fleet_select import Selection
from edgeslm.cli.output import json_option, print_json, printable, reporting_errors
from edgeslm.clock import utc_now
from edgeslm.errors import FleetError, InventoryError, UsageError

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from edgeslm.fleet.inventory import Plan
    from edgeslm.schema.fleet import DeviceFacts, DifferenceRecord

_STDIO = "-"


class _TagCommand(click.Command):
    """Takes ``-TAG`` as a word; so the command must have no short option, and no ``-h``."""

    def make_parser(self, ctx: click.Context) -> Any:
        """A parser that leaves words alone which begin with a dash."""
        parser = super().make_parser(ctx)
        parser.ignore_unknown_options = True
        return parser


@click.command(cls=_TagCommand, context_settings={"help_option_names": ["--help"]})
@click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="[DEVICE]... +TAG... -TAG...")
@click.option("--group", "groups", multiple=True, help="Devices of a group; may be given again.")
@click.option("--where", "queries", multiple=True, metavar="QUERY", help="Only devices that match.")
@fleet_options
@dry_run_option
@json_option
@reporting_errors
def tag(
    words: tuple[str, ...],
    groups: tuple[str, ...],
    queries: tuple[str, ...],
    fleet_dir: Path | None,
    fleet_name: str | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Put tags on devices (+TAG) and take tags off them (-TAG)."""
    devices = tuple(word for word in words if not word.startswith(("+", "-")))
    if strange := next((word for word in words if word.startswith("--")), None):
        raise UsageError(f"no option {strange}", hint="See edgeslm fleet tag --help")
    selection = Selection(devices, groups, queries)
    selection.need()
    fleet = open_fleet(fleet_dir, fleet_name)
    from edgeslm.fleet.labels import parse_tags, tag_device  # noqa: PLC0415

    change = parse_tags([word for word in words if word not in devices])
    if not (change.add or change.remove):
        raise UsageError("which tags?", hint="Put one on with +TAG, take one off with -TAG")
    now = utc_now()
    with changing(fleet, dry_run=dry_run) as session:
        chosen = selection.chosen(session)
        after = {
            one.name: tag_device(session, one.name, change, actor=fleet.actor, now=now) for one in chosen
        }
    if as_json:
        print_json([{"device": name, "tags": tags} for name, tags in after.items()])
        return
    before = {one.name: one.tags for one in chosen}
    for name, tags in after.items():
        same = ", as before" if tuple(tags) == before[name] else ""
        click.echo(f"{name}: {' '.join(tags) or 'no tags'}{same}")


@click.command("note")
@click.argument("name", metavar="DEVICE")
@click.argument("text", required=False)
@click.option("--clear", is_flag=True, help="Remove the note.")
@fleet_options
@dry_run_option
@json_option
@reporting_errors
def note_(
    name: str,
    text: str | None,
    clear: bool,
    fleet_dir: Path | None,
    fleet_name: str | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Keep a note about DEVICE; without TEXT, print it."""
    if text is not None and clear:
        raise UsageError("a text, or --clear?")
    fleet = open_fleet(fleet_dir, fleet_name)
    from edgeslm.fleet.labels import note_device  # noqa: PLC0415
    from edgeslm.fleet.registry import need_device  # noqa: PLC0415

    if text is None and not clear:
        with fleet.store.read() as session:
            kept = need_device(session, name).notes
    else:
        with changing(fleet, dry_run=dry_run) as session:
            note_device(session, name, text or "", actor=fleet.actor, now=utc_now())
            kept = need_device(session, name).notes
    if as_json:
        print_json({"device": name, "note": kept})
    elif text is None and not clear:
        click.echo(kept or "no note", err=not kept)
    else:
        click.echo(f"{name}: {kept or 'no note'}")


@click.command()
@click.argument("text")
@fleet_options
@json_option
@reporting_errors
def search(text: str, fleet_dir: Path | None, fleet_name: str | None, as_json: bool) -> None:
    """Find TEXT in devices (names, serials, boards, tags, notes, models), groups, claims, and the newest events."""
    if not text.strip():
        raise UsageError("what to search for?")
    fleet = open_fleet(fleet_dir, fleet_name)
    from edgeslm.fleet import history  # noqa: PLC0415
    from edgeslm.fleet.selection import facts  # noqa: PLC0415

    with fleet.store.read() as session:
        found = history.search(session, facts(session), text.strip())
    if as_json:
        print_json([one.model_dump(mode="json") for one in found])
        return
    print_table(
        ["WHAT", "NAME", "WHERE", "TEXT"],
        [[one.kind, one.name, one.where, one.text] for one in found],
        empty="nothing has that in it",
    )


@click.command()
@click.argument("one", metavar="DEVICE")
@click.argument("other", metavar="[OTHER]", required=False)
@click.option("--all", "equal_too", is_flag=True, help="Show also what is the same.")
@fleet_options
@json_option
@reporting_errors
def diff(
    one: str,
    other: str | None,
    equal_too: bool,
    fleet_dir: Path | None,
    fleet_name: str | None,
    as_json: bool,
) -> None:
    """Show in what two devices differ; with one, in what it differs from what is assigned to it."""
    fleet = open_fleet(fleet_dir, fleet_name)
    from edgeslm.fleet.differences import difference_from_assigned, differences  # noqa: PLC0415
    from edgeslm.fleet.groups import group_names, moment_for  # noqa: PLC0415
    from edgeslm.fleet.registry import need_device  # noqa: PLC0415
    from edgeslm.fleet.selection import facts  # noqa: PLC0415

    found: list[DifferenceRecord]
    with fleet.store.read() as session:
        for name in filter(None, (one, other)):
            need_device(session, name)
        by_name = {each.name: each for each in facts(session)}
        if other is None:
            settings, wanted = _settings(session, one)
            found = difference_from_assigned(
                by_name[one],
                settings=(settings, wanted),
                numbers=_assignment_numbers(session, one),
                equal_too=equal_too,
            )
        else:
            names = group_names(session)
            groups = moment_for(session, list(by_name.values()), (), also=names, now=utc_now()).groups
            found = differences(
                by_name[one],
                by_name[other],
                groups=groups,
                settings={name: _settings(session, name)[0] for name in (one, other)},
                equal_too=equal_too,
            )
    if as_json:
        print_json([each.model_dump(mode="json") for each in found])
        return
    heads = ["", "RUNS", "ASSIGNED"] if other is None else ["", one, other]
    print_table(
        heads, [[each.what, each.one, each.other] for each in found], empty=_alike(by_name[one], other)
    )


def _settings(session: Session, name: str) -> tuple[str, str]:
    """JSON of what is set on a device from afar, and of what it was sent last and may still take up."""
    from edgeslm.fleet import remote_config  # noqa: PLC0415

    used = remote_config.in_force(session, name)
    newest = next(iter(remote_config.history(session, name, limit=1)), None)
    wanted = newest if newest is not None and newest.state == "sent" else used
    is_set, is_wanted = (json.dumps(one.settings) if one is not None else "{}" for one in (used, wanted))
    return is_set, is_wanted


def _assignment_numbers(session: Session, name: str) -> tuple[int | None, int | None]:
    """The number of the assignment that a device follows, and of its newest."""
    from edgeslm.fleet.assignments import last_assignment, last_reported  # noqa: PLC0415
    from edgeslm.fleet.registry import need_device  # noqa: PLC0415

    row = need_device(session, name)
    assigned, reported = last_assignment(session, row), last_reported(session, row)
    return reported.assignment if reported else None, assigned.seq if assigned else None


def _alike(one: DeviceFacts, other: str | None) -> str:
    if other is not None:
        return f"{one.name} and {other} do not differ"
    return f"{one.name} runs what is assigned to it" if one.assigned else f"nothing is assigned to {one.name}"


# --- carrying it elsewhere ----------------------------------------------------------------------------------


@click.command()
@click.argument("file", metavar="FILE", type=click.Path(path_type=Path, dir_okay=False, allow_dash=True))
@click.option("--csv", "as_csv", is_flag=True, help="A table, whatever the file is called.")
@click.option("--force", is_flag=True, help="Write over a file that is there.")
@fleet_options
@reporting_errors
def export(file: Path, as_csv: bool, force: bool, fleet_dir: Path | None, fleet_name: str | None) -> None:
    """Write devices with tags, notes and groups into FILE: a table if it ends in .csv, else JSON; - is stdout."""
    fleet = open_fleet(fleet_dir, fleet_name)
    from edgeslm.fleet.inventory import take_inventory  # noqa: PLC0415
    from edgeslm.fleet.inventory_files import to_csv, to_json  # noqa: PLC0415
    from edgeslm.fleet.selection import facts  # noqa: PLC0415

    with fleet.store.read() as session:
        inventory = take_inventory(session, fleet.directory.name, facts(session))
    is_table = as_csv or file.suffix.lower() == ".csv"
    text = to_csv(inventory) if is_table else to_json(inventory)
    if str(file) == _STDIO:
        click.echo(text, nl=False)
        return
    try:
        with file.open("w" if force else "x", encoding="utf-8", newline="") as out:
            out.write(text)
    except FileExistsError as error:
        raise UsageError(f"{file} is there already", hint="Write over it with --force") from error
    except OSError as error:
        raise FleetError(f"{file} cannot be written: {error.strerror}", path=str(file)) from error
    click.echo(f"{file}: {len(inventory.devices)} devices, {len(inventory.groups)} groups", err=True)
    if is_table and any(one.query is not None for one in inventory.groups):
        note("groups that a query makes have no place in a table; write JSON to keep them")


@click.command("import")
@click.argument("file", metavar="FILE", type=click.Path(path_type=Path, dir_okay=False, exists=True))
@click.option("--skip-unknown", is_flag=True, help="Leave out devices that this fleet has not.")
@fleet_options
@yes_option
@dry_run_option
@json_option
@reporting_errors
def import_(
    file: Path,
    skip_unknown: bool,
    fleet_dir: Path | None,
    fleet_name: str | None,
    yes: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Bring in tags, notes and groups from FILE, as `fleet export` writes it.

    The file is checked whole before anything changes. What it does not mention stays as it is.
    """
    fleet = open_fleet(fleet_dir, fleet_name)
    from edgeslm.fleet.inventory import carry_out, plan_import  # noqa: PLC0415
    from edgeslm.fleet.inventory_files import read  # noqa: PLC0415
    from edgeslm.fleet.selection import facts  # noqa: PLC0415

    inventory = read(_bytes_of(file), str(file))
    with fleet.store.read() as session:
        plan = plan_import(session, inventory, facts(session), skip_unknown=skip_unknown)
    for remark in plan.remarks:
        note(printable(remark))
    if plan.unknown:
        note(f"left out, as this fleet has not: {', '.join(plan.unknown)}")
    changed = bool(plan.changes) and confirm(_lines(plan), yes=yes, dry_run=dry_run)
    if changed:
        with fleet.store.write() as session:
            again = plan_import(session, inventory, facts(session), skip_unknown=skip_unknown)
            if again.changes != plan.changes:
                raise InventoryError("the fleet changed meanwhile", hint="Import the file again")
            carry_out(session, again, source=file.name, actor=fleet.actor, now=utc_now())
    if as_json:
        print_json(
            {
                "changed": changed,
                "changes": [vars(change) for change in plan.changes],
                "unknown": list(plan.unknown),
            }
        )
    elif not plan.changes:
        click.echo("nothing to change")
    elif changed:
        click.echo(f"{len(plan.changes)} changes made")


def _bytes_of(file: Path) -> bytes:
    from edgeslm.schema.inventory import MAX_INVENTORY_BYTES  # noqa: PLC0415

    try:
        with file.open("rb") as source:
            return source.read(MAX_INVENTORY_BYTES + 1)
    except OSError as error:
        raise InventoryError(f"{file} cannot be read: {error.strerror}", path=str(file)) from error


def _lines(plan: Plan) -> list[str]:
    found = []
    for change in plan.changes:
        if change.what == "group":
            found.append(f"group {change.subject}: made, {change.after or 'of named devices'}")
        else:
            before, after = change.before or "nothing", change.after or "nothing"
            found.append(f"{change.subject}: {change.what} {before} > {after}")
    return found
