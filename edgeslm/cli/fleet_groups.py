"""``edgeslm fleet group ...``: groups of devices, by name or by query."""

from __future__ import annotations

from pathlib import Path

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
from edgeslm.cli.fleet_select import Selection, select_arguments
from edgeslm.cli.output import CommandGroup, json_option, print_json, reporting_errors
from edgeslm.clock import utc_now
from edgeslm.errors import UsageError

_SHOWN_DEVICES = 5


@click.group(cls=CommandGroup)
def group() -> None:
    """Name sets of devices: --group NAME then stands for them in every command."""


@group.command()
@click.argument("name", metavar="GROUP")
@click.option("--where", "query", metavar="QUERY", help="What finds its devices, whenever the group is used.")
@click.option("--device", "devices", multiple=True, help="A device of it; may be given again.")
@fleet_options
@dry_run_option
@json_option
@reporting_errors
def create(
    name: str,
    query: str | None,
    devices: tuple[str, ...],
    fleet_dir: Path | None,
    fleet_name: str | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Make GROUP, of devices that are named, or of those that a query finds.

    With --where every device that matches is in it from the moment it does; without, devices are put in by name, now
    or with `fleet group add`.
    """
    if query is not None and devices:
        raise UsageError(
            "a group has a query or named devices, not both",
            hint="Name devices in the query, such as: name=kitchen or tag:north",
        )
    fleet = open_fleet(fleet_dir, fleet_name)
    from edgeslm.fleet.groups import create_group, show_group  # noqa: PLC0415
    from edgeslm.fleet.selection import facts  # noqa: PLC0415

    now = utc_now()
    with changing(fleet, dry_run=dry_run) as session:
        create_group(session, name, query=query, devices=devices, actor=fleet.actor, now=now)
        made = show_group(session, facts(session), name, now)
    if as_json:
        print_json(made.model_dump(mode="json"))
    else:
        click.echo(f"{'would make' if dry_run else 'made'} group {name}: {_count(made.devices)}")


@group.command("list")
@fleet_options
@json_option
@reporting_errors
def list_(fleet_dir: Path | None, fleet_name: str | None, as_json: bool) -> None:
    """List the groups, with how many devices are in each now."""
    fleet = open_fleet(fleet_dir, fleet_name)
    from edgeslm.fleet.groups import list_groups  # noqa: PLC0415
    from edgeslm.fleet.selection import facts  # noqa: PLC0415

    with fleet.store.read() as session:
        found = list_groups(session, facts(session), utc_now())
    if as_json:
        print_json([one.model_dump(mode="json") for one in found])
        return
    print_table(
        ["GROUP", "DEVICES", "QUERY", "WHO"],
        [[one.name, str(len(one.devices)), one.query or "(named)", _some(one.devices)] for one in found],
        empty="no groups",
    )


@group.command()
@click.argument("name", metavar="GROUP")
@fleet_options
@json_option
@reporting_errors
def show(name: str, fleet_dir: Path | None, fleet_name: str | None, as_json: bool) -> None:
    """Show a group, and the devices that are in it now."""
    fleet = open_fleet(fleet_dir, fleet_name)
    from edgeslm.fleet.groups import show_group  # noqa: PLC0415
    from edgeslm.fleet.selection import facts  # noqa: PLC0415

    with fleet.store.read() as session:
        found = show_group(session, facts(session), name, utc_now())
    if as_json:
        print_json(found.model_dump(mode="json"))
        return
    click.echo(f"group    {found.name}")
    click.echo(f"query    {found.query}" if found.query is not None else "devices  are named")
    click.echo(f"made     {found.created_at:%Y-%m-%d %H:%M} by {found.created_by}")
    click.echo()
    for device in found.devices:
        click.echo(device)
    if not found.devices:
        click.echo("no device in use is in it", err=True)
    if found.idle:
        note(f"not in use, and so left out: {' '.join(found.idle)}")


@group.command()
@click.argument("name", metavar="GROUP")
@select_arguments
@fleet_options
@dry_run_option
@json_option
@reporting_errors
def add(
    name: str,
    selection: Selection,
    fleet_dir: Path | None,
    fleet_name: str | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Put devices into GROUP: those that are named, or match now."""
    _change(name, selection, fleet_dir, fleet_name, dry_run=dry_run, as_json=as_json, is_added=True)


@group.command()
@click.argument("name", metavar="GROUP")
@select_arguments
@fleet_options
@dry_run_option
@json_option
@reporting_errors
def remove(
    name: str,
    selection: Selection,
    fleet_dir: Path | None,
    fleet_name: str | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Take devices out of GROUP: those that are named, or match now."""
    _change(name, selection, fleet_dir, fleet_name, dry_run=dry_run, as_json=as_json, is_added=False)


def _change(
    name: str,
    selection: Selection,
    fleet_dir: Path | None,
    fleet_name: str | None,
    *,
    dry_run: bool,
    as_json: bool,
    is_added: bool,
) -> None:
    selection.need()
    fleet = open_fleet(fleet_dir, fleet_name)
    from edgeslm.fleet.groups import add_to_group, remove_from_group  # noqa: PLC0415

    change = add_to_group if is_added else remove_from_group
    with changing(fleet, dry_run=dry_run) as session:
        devices = [one.name for one in selection.chosen(session)]
        count = change(session, name, devices, actor=fleet.actor, now=utc_now())
    done = (
        ("added" if is_added else "removed") if not dry_run else ("would add" if is_added else "would remove")
    )
    if as_json:
        print_json({"group": name, "devices": devices, "changed": count})
    else:
        rest = len(devices) - count
        already = (
            f"; {rest} {'were' if rest > 1 else 'was'} {'in' if is_added else 'not in'} it before"
            if rest
            else ""
        )
        click.echo(f"{done} {_plural(count)} {'to' if is_added else 'from'} {name}{already}")


@group.command()
@click.argument("name", metavar="GROUP")
@click.argument("to", metavar="NEW_NAME")
@fleet_options
@dry_run_option
@json_option
@reporting_errors
def rename(
    name: str, to: str, fleet_dir: Path | None, fleet_name: str | None, dry_run: bool, as_json: bool
) -> None:
    """Give GROUP another name, in the queries of other groups as well."""
    fleet = open_fleet(fleet_dir, fleet_name)
    from edgeslm.fleet.groups import rename_group  # noqa: PLC0415

    with changing(fleet, dry_run=dry_run) as session:
        rename_group(session, name, to, actor=fleet.actor, now=utc_now())
    if as_json:
        print_json({"group": name, "name": to})
    else:
        click.echo(f"{name} is {to} now")


@group.command()
@click.argument("name", metavar="GROUP")
@click.argument("query")
@fleet_options
@dry_run_option
@json_option
@reporting_errors
def query(
    name: str, query: str, fleet_dir: Path | None, fleet_name: str | None, dry_run: bool, as_json: bool
) -> None:
    """Let QUERY find the devices of GROUP from now on."""
    fleet = open_fleet(fleet_dir, fleet_name)
    from edgeslm.fleet.groups import change_query, show_group  # noqa: PLC0415
    from edgeslm.fleet.selection import facts  # noqa: PLC0415

    now = utc_now()
    with changing(fleet, dry_run=dry_run) as session:
        known = facts(session)
        before = set(show_group(session, known, name, now).devices)
        change_query(session, name, query, actor=fleet.actor, now=now)
        after = show_group(session, known, name, now)
    joined, left = sorted(set(after.devices) - before), sorted(before - set(after.devices))
    if as_json:
        print_json({"group": after.model_dump(mode="json"), "joined": joined, "left": left})
        return
    click.echo(f"{name}: {after.query}")
    for word, devices in (("joined", joined), ("left", left)):
        if devices:
            click.echo(f"{word:<7}{_some(devices)}")


@group.command()
@click.argument("name", metavar="GROUP")
@fleet_options
@yes_option
@dry_run_option
@json_option
@reporting_errors
def delete(
    name: str, fleet_dir: Path | None, fleet_name: str | None, yes: bool, dry_run: bool, as_json: bool
) -> None:
    """Forget GROUP; its devices stay as they are."""
    fleet = open_fleet(fleet_dir, fleet_name)
    from edgeslm.fleet.groups import delete_group, show_group  # noqa: PLC0415
    from edgeslm.fleet.selection import facts  # noqa: PLC0415

    with fleet.store.read() as session:
        found = show_group(session, facts(session), name, utc_now())
    plan = f"{name}: is forgotten; {_count(found.devices)}, which stay as they are"
    if not confirm([plan], yes=yes, dry_run=dry_run):
        return
    with fleet.store.write() as session:
        delete_group(session, name, actor=fleet.actor, now=utc_now())
    if as_json:
        print_json({"deleted": name})
    else:
        click.echo(f"deleted group {name}")


def _plural(count: int) -> str:
    return f"{count} device{'' if count == 1 else 's'}"


def _some(devices: tuple[str, ...] | list[str]) -> str:
    rest = len(devices) - _SHOWN_DEVICES
    return " ".join(devices[:_SHOWN_DEVICES]) + (f" and {rest} more" if rest > 0 else "")


def _count(devices: tuple[str, ...]) -> str:
    return f"{_plural(len(devices))}{': ' + _some(devices) if devices else ''}"
