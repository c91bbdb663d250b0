"""``edgeslm fleet quarantine list|add|release``: devices whose figures are not believed."""

from __future__ import annotations

from pathlib import Path

import click

from edgeslm.cli.fleet_common import (
    ago,
    changing,
    confirm,
    dry_run_option,
    exit_for,
    fleet_options,
    for_each,
    open_fleet,
    print_table,
    yes_option,
)
from edgeslm.cli.output import json_option, print_json, reporting_errors
from edgeslm.clock import utc_now


@click.group()
def quarantine() -> None:
    """Devices that report what cannot be: their figures enter no sum and move no gate."""


@quarantine.command("list")
@click.option("--all", "past", is_flag=True, help="Also those that were released.")
@fleet_options
@json_option
@reporting_errors
def list_(past: bool, fleet_dir: Path | None, fleet_name: str | None, as_json: bool) -> None:
    """List devices in quarantine, with the reason."""
    fleet = open_fleet(fleet_dir, fleet_name)
    from edgeslm.fleet.quarantine import list_quarantine  # noqa: PLC0415

    with fleet.store.read() as session:
        found = list_quarantine(session, past=past)
    if as_json:
        print_json([one.model_dump(mode="json") for one in found])
        return
    now = utc_now()
    print_table(
        ["DEVICE", "SINCE", "IT", *(["RELEASED", "BY"] if past else [])],
        [
            [
                one.device,
                ago(one.at, now),
                one.reason,
                *([ago(one.released_at, now), one.released_by] if past else []),
            ]
            for one in found
        ],
        empty="no device is in quarantine",
    )


@quarantine.command()
@click.argument("device")
@click.option("--reason", required=True, help="For the record.")
@fleet_options
@dry_run_option
@json_option
@reporting_errors
def add(
    device: str,
    reason: str,
    fleet_dir: Path | None,
    fleet_name: str | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Put DEVICE into quarantine by hand: believe nothing of what it reports."""
    fleet = open_fleet(fleet_dir, fleet_name)
    from edgeslm.fleet.quarantine import quarantine as put_aside  # noqa: PLC0415
    from edgeslm.fleet.registry import audit  # noqa: PLC0415

    with changing(fleet, dry_run=dry_run) as session:
        put_aside(session, device, reason, utc_now())
        audit(session, fleet.actor, "quarantine", device, utc_now(), reason=reason)
    if as_json:
        print_json({"device": device, "reason": reason})
    else:
        click.echo(f"{device} is in quarantine")


@quarantine.command("release")
@click.argument("names", nargs=-1, required=True, metavar="DEVICE...")
@fleet_options
@yes_option
@dry_run_option
@json_option
@reporting_errors
def release_(
    names: tuple[str, ...],
    fleet_dir: Path | None,
    fleet_name: str | None,
    yes: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Believe each DEVICE again, from its next report on. One that goes on as before comes back here."""
    fleet = open_fleet(fleet_dir, fleet_name)
    from edgeslm.fleet.quarantine import quarantined, release  # noqa: PLC0415
    from edgeslm.fleet.registry import need_device  # noqa: PLC0415

    with fleet.store.read() as session:
        reasons = quarantined(session)
        plan = [
            f"{need_device(session, name).name}: believed again"
            + (f", although it {reasons[name]}" if name in reasons else "; it is not in quarantine")
            for name in names
        ]
    if not confirm(plan, yes=yes, dry_run=dry_run):
        return

    def do(name: str) -> None:
        with fleet.store.write() as session:
            release(session, name, fleet.actor, utc_now())

    done = for_each(names, do)
    if as_json:
        print_json({"released": done})
    else:
        for name in done:
            click.echo(f"released {name}")
    exit_for(done, names)
