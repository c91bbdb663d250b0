"""``edgeslm fleet show|revoke|rename|retire``: one device, and what is done to devices."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgeslm.cli.fleet_common import (
    Fleet,
    ago,
    confirm,
    dry_run_option,
    exit_for,
    fleet_options,
    for_each,
    note,
    open_fleet,
    passphrase_option,
    print_table,
    yes_option,
)
from edgeslm.cli.fleet_list import state
from edgeslm.cli.output import json_option, print_json, printable, reporting_errors
from edgeslm.clock import utc_now
from edgeslm.errors import LinkError, UsageError

if TYPE_CHECKING:
    from edgeslm.schema.fleet import FullDetail


@click.command()
@click.argument("name", metavar="DEVICE")
@fleet_options
@json_option
@reporting_errors
def show(name: str, fleet_dir: Path | None, fleet_name: str | None, as_json: bool) -> None:
    """Show all about one device: what is odd and why, what it runs, its certificates, machines and events."""
    fleet = open_fleet(fleet_dir, fleet_name)
    from edgeslm.fleet.history import full_detail  # noqa: PLC0415

    now = utc_now()
    with fleet.store.read() as session:
        detail = full_detail(session, name, now)
    if as_json:
        print_json(detail.model_dump(mode="json"))
        return
    _print_detail(detail, now)


def _print_detail(detail: FullDetail, now: datetime) -> None:
    one = detail.device
    facts = {
        "device": one.name,
        "state": state(one),
        "why": one.finding_text,
        "figures": f"in quarantine: {one.quarantine}" if one.quarantine else None,
        "pinned": one.pin,
        "next name": one.rename_to,
        "board": one.board,
        "serial": one.serial,
        "profile": one.profile,
        "agent": one.agent,
        "runtime": one.runtime,
        "meter": one.meter,
        "tags": ",".join(one.tags) or None,
        "groups": ",".join(detail.groups) or None,
        "notes": one.notes or None,
        "key": one.key_sha256,
        "joined": ago(one.created_at, now),
        "last seen": ago(one.last_seen_at, now),
    }
    for key, value in facts.items():
        if value is not None:
            click.echo(f"{key:<11}{printable(value)}")
    if one.running or one.assigned:
        _print_models(detail, now)
    click.echo()
    print_table(
        ["CERTIFICATE", "NAME", "FROM", "UNTIL", "REVOKED"],
        [
            [
                row.serial,
                row.name,
                f"{row.not_before:%Y-%m-%d %H:%M}",
                f"{row.not_after:%Y-%m-%d %H:%M}",
                row.reason,
            ]
            for row in detail.certificates
        ],
        empty="no certificates",
    )
    click.echo()
    print_table(
        ["MACHINE", "BOOT", "BOOTS", "FIRST SEEN", "LAST SEEN"],
        [
            [
                row.serial or (row.machine_id or "")[:12],
                row.boot_id,
                str(row.boots),
                ago(row.first_seen_at, now),
                ago(row.last_seen_at, now),
            ]
            for row in detail.machines
        ],
        empty="no machine has reported yet",
    )
    click.echo()
    print_table(
        ["WHEN", "EVENT", "LEVEL", "TEXT"],
        [[ago(row.at, now), row.kind, row.severity, row.text] for row in detail.events],
        empty="no events",
    )


def _print_models(detail: FullDetail, now: datetime) -> None:
    running, assigned = detail.device.running, detail.device.assigned
    since = {run.name: run.since for run in detail.runs if run.until is None}
    before = {run.name: run.version for run in reversed(detail.runs) if run.until is not None}
    click.echo()
    print_table(
        ["MODEL", "RUNS", "SINCE", "ASSIGNED", "BEFORE"],
        [
            [name, running.get(name), ago(since.get(name), now), assigned.get(name), before.get(name)]
            for name in sorted({*running, *assigned})
        ],
        empty="",
    )


# --- changes ------------------------------------------------------------------------------------------------


@click.command()
@click.argument("names", nargs=-1, metavar="DEVICE...")
@click.option("--claim", "claims", multiple=True, help="A claim to take back; may be given several times.")
@click.option("--reason", default="revoked by the operator", show_default=True, help="For the record.")
@fleet_options
@passphrase_option
@yes_option
@dry_run_option
@json_option
@reporting_errors
def revoke(
    names: tuple[str, ...],
    claims: tuple[str, ...],
    reason: str,
    fleet_dir: Path | None,
    fleet_name: str | None,
    passphrase_file: Path | None,
    yes: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Refuse each DEVICE from now on and put it off the broker, or take claims back.

    A claim for its name (`fleet claim --device DEVICE`) lets it, or another board, in again.
    """
    if not names and not claims:
        raise UsageError("which device?", hint="Name devices, or claims with --claim")
    fleet = open_fleet(fleet_dir, fleet_name, passphrase_file)
    from edgeslm.fleet import registry  # noqa: PLC0415
    from edgeslm.fleet.claims import revoke_claim  # noqa: PLC0415

    plan = _plan(fleet, names, "its certificates are refused, its session is ended")
    if not confirm(
        [*plan, *(f"claim {claim}: cannot be used any more" for claim in claims)], yes=yes, dry_run=dry_run
    ):
        return

    def do(name: str) -> None:
        with fleet.store.write() as session:
            if name in claims:
                revoke_claim(session, name, actor=fleet.actor, now=utc_now())
            else:
                registry.revoke_device(session, name, reason=reason, actor=fleet.actor, now=utc_now())

    asked = [*names, *claims]
    done = for_each(asked, do)
    _put_off(fleet, [name for name in done if name not in claims])
    if as_json:
        print_json({"revoked": done})
    else:
        for name in done:
            click.echo(f"revoked {name}")
    exit_for(done, asked)


@click.command()
@click.argument("names", nargs=-1, required=True, metavar="DEVICE...")
@fleet_options
@passphrase_option
@yes_option
@dry_run_option
@json_option
@reporting_errors
def retire(
    names: tuple[str, ...],
    fleet_dir: Path | None,
    fleet_name: str | None,
    passphrase_file: Path | None,
    yes: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Take each DEVICE out of use for good. Its history stays; a claim for its name brings the name back."""
    fleet = open_fleet(fleet_dir, fleet_name, passphrase_file)
    from edgeslm.fleet.registry import retire_device  # noqa: PLC0415

    if not confirm(
        _plan(fleet, names, "taken out of use, its certificates are refused"), yes=yes, dry_run=dry_run
    ):
        return

    def do(name: str) -> None:
        with fleet.store.write() as session:
            retire_device(session, name, actor=fleet.actor, now=utc_now())

    done = for_each(names, do)
    _put_off(fleet, done)
    if as_json:
        print_json({"retired": done})
    else:
        for name in done:
            click.echo(f"retired {name}")
    exit_for(done, names)


def _plan(fleet: Fleet, names: Sequence[str], what: str) -> list[str]:
    """A line for each device; an unknown name ends the command before anything is done."""
    from edgeslm.fleet.registry import need_device  # noqa: PLC0415

    with fleet.store.read() as session:
        return [f"{need_device(session, name).name}: {what}" for name in names]


def _put_off(fleet: Fleet, names: Sequence[str]) -> None:
    """Let the broker know, end the devices' sessions, and clear what it keeps of them."""
    fleet.sync_broker()
    for name in names:
        try:
            fleet.broker.disconnect(name, utc_now())
            fleet.broker.forget(name)
        except LinkError as error:
            note(f"{name} is refused from its next connection on, but could not be put off now: {error}")


@click.command()
@click.argument("name", metavar="DEVICE")
@click.argument("to", metavar="NEW_NAME")
@fleet_options
@yes_option
@dry_run_option
@json_option
@reporting_errors
def rename(
    name: str,
    to: str,
    fleet_dir: Path | None,
    fleet_name: str | None,
    yes: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Give DEVICE the name NEW_NAME: it gets a certificate of that name, and starts anew under it.

    The name changes once the device has taken it; `fleet show` says until then what it will be.
    """
    fleet = open_fleet(fleet_dir, fleet_name)
    from edgeslm.fleet.registry import rename_device  # noqa: PLC0415

    if not confirm(_plan(fleet, [name], f"gets the name {to}, its topics change"), yes=yes, dry_run=dry_run):
        return
    with fleet.store.write() as session:
        rename_device(session, fleet.directory.name, name, to, actor=fleet.actor, now=utc_now())
    if as_json:
        print_json({"device": name, "rename_to": to})
    else:
        click.echo(f"{name} will be {to} once it has taken the name")
