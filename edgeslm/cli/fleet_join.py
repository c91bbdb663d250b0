"""``edgeslm fleet claim|claims|pending|approve|reject``: how devices get in."""

from __future__ import annotations

import time
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgeslm.cli.fleet_common import (
    Fleet,
    ago,
    changing,
    dry_run_option,
    exit_for,
    fleet_options,
    for_each,
    note,
    open_fleet,
    passphrase_option,
    print_table,
)
from edgeslm.cli.output import json_option, print_json, reporting_errors
from edgeslm.cli.times import duration
from edgeslm.clock import utc_now
from edgeslm.errors import UsageError

if TYPE_CHECKING:
    from edgeslm.fleet.claims import NewClaim

_WAIT_POLL_S = 0.5
_MAX_CLAIMS = 10_000


@click.command()
@click.option(
    "--device", help="Name that the device gets, and is approved for; without it the device proposes one."
)
@click.option(
    "--count", type=click.IntRange(1, _MAX_CLAIMS), default=1, show_default=True, help="How many claims."
)
@click.option(
    "--expires", "life", type=duration, default="24h", show_default=True, help="How long each is open."
)
@click.option("--profile", help="What the device is set up to do.")
@click.option("--replace", "replaces", is_flag=True, help="The device is there already, and gets a new key.")
@click.option(
    "--out",
    "-o",
    type=click.Path(path_type=Path),
    help="File for the claim, or a directory for several: all that a device needs, and a secret.",
)
@click.option(
    "--wait", "wait_for", type=duration, help="Answer devices here until all have joined, or this long."
)
@fleet_options
@passphrase_option
@dry_run_option
@json_option
@reporting_errors
def claim(
    device: str | None,
    count: int,
    life: timedelta,
    profile: str | None,
    replaces: bool,
    out: Path | None,
    wait_for: timedelta | None,
    fleet_dir: Path | None,
    fleet_name: str | None,
    passphrase_file: Path | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Make one-time claims, and print their tokens: this is the only time that they are shown."""
    if device is not None and count > 1:
        raise UsageError("one name is for one device", hint="Leave --device or --count out")
    if replaces and device is None:
        raise UsageError("which device is to be replaced?", hint="Name it with --device")
    fleet = open_fleet(fleet_dir, fleet_name, passphrase_file)
    from edgeslm.fleet.claims import MAX_LIFE, issue_claim  # noqa: PLC0415

    if life > MAX_LIFE:
        raise UsageError(f"a claim is open for {MAX_LIFE.days} days at most")
    directory, now = fleet.directory, utc_now()
    with changing(fleet, dry_run=dry_run) as session:
        made = [
            issue_claim(
                session,
                directory.config,
                directory.authority_pem(),
                device=device,
                profile=profile,
                replaces=replaces,
                life=life,
                actor=fleet.actor,
                now=now,
            )
            for _ in range(count)
        ]
        files = _write(made, out) if out is not None and not dry_run else []
    if dry_run:
        if as_json:
            print_json({"claims": len(made)})
        else:
            click.echo(f"{len(made)} claim{'s' if len(made) > 1 else ''} would be made")
        return
    fleet.sync_broker()
    _print(made, files, as_json=as_json)
    if wait_for is not None:
        _wait(fleet, made, wait_for)


def _write(made: list[NewClaim], out: Path) -> list[Path]:
    """Write the claims, each readable by its owner alone; existing files are refused."""
    import os  # noqa: PLC0415

    from edgeslm.codec import encode  # noqa: PLC0415
    from edgeslm.errors import FleetError  # noqa: PLC0415

    files = (
        [out] if len(made) == 1 and not out.is_dir() else [out / f"{new.claim.claim}.json" for new in made]
    )
    try:
        files[0].parent.mkdir(parents=True, exist_ok=True)
        for file, new in zip(files, made, strict=True):
            descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(encode(new.claim) + b"\n")
    except OSError as error:
        raise FleetError(f"{error.filename}: {error.strerror}", path=str(out)) from error
    return files


def _print(made: list[NewClaim], files: list[Path], *, as_json: bool) -> None:
    if as_json:
        for new in made:
            body = {"token": str(new.token), "claim": new.claim.model_dump(mode="json", exclude_none=True)}
            print_json(body)
        return
    for new in made:
        click.echo(str(new.token))
    for file in files:
        click.echo(f"wrote {file}: it holds a secret", err=True)
    first = made[0].claim
    source = str(files[0]) if files else f"--fleet {first.fleet} --host {first.host} --port {first.port}"
    click.echo(f"on the device: edgeslm agent enrol {source}", err=True)


def _wait(fleet: Fleet, made: list[NewClaim], wait_for: timedelta) -> None:
    """Answer devices until each claim is used."""
    from edgeslm.cli.fleet_setup import running_service  # noqa: PLC0415
    from edgeslm.fleet.claims import list_claims  # noqa: PLC0415
    from edgeslm.fleet.enrolment import list_pending  # noqa: PLC0415

    ours = {new.claim.claim for new in made}
    deadline_s, told, used = time.monotonic() + wait_for.total_seconds(), set[str](), set[str]()
    with running_service(fleet) as service:
        while time.monotonic() < deadline_s and used != ours:
            time.sleep(_WAIT_POLL_S)
            with fleet.store.read() as session:
                used = {one.claim for one in list_claims(session, utc_now()) if one.state == "used"} & ours
                waiting = [one for one in list_pending(session) if one.claim in ours - told]
            for one in waiting:
                told.add(one.claim)
                note(f"{one.device or one.claim} waits for approval: {one.reason}")
        if not service.wait_connected(0):
            note(f"no broker: {service.reason}")
    click.echo(f"{len(used)} of {len(ours)} joined", err=True)
    exit_for(sorted(used), sorted(ours))


@click.command()
@click.option("--all", "show_all", is_flag=True, help="Also those that are used, expired or taken back.")
@fleet_options
@json_option
@reporting_errors
def claims(show_all: bool, fleet_dir: Path | None, fleet_name: str | None, as_json: bool) -> None:
    """List the claims that can still be used; what they are worth is shown only when they are made."""
    fleet = open_fleet(fleet_dir, fleet_name)
    from edgeslm.fleet.claims import list_claims  # noqa: PLC0415

    now = utc_now()
    with fleet.store.read() as session:
        found = [one for one in list_claims(session, now) if show_all or one.state in {"open", "bound"}]
    if as_json:
        print_json([one.model_dump(mode="json") for one in found])
        return
    print_table(
        ["CLAIM", "STATE", "DEVICE", "PROFILE", "MADE", "BY", "EXPIRES"],
        [
            [
                one.claim,
                one.state,
                one.device,
                one.profile,
                ago(one.created_at, now),
                one.created_by,
                ago(one.expires_at, now),
            ]
            for one in found
        ],
        empty="no claims",
    )


@click.command()
@fleet_options
@json_option
@reporting_errors
def pending(fleet_dir: Path | None, fleet_name: str | None, as_json: bool) -> None:
    """List the devices that wait for approval, and why."""
    fleet = open_fleet(fleet_dir, fleet_name)
    from edgeslm.fleet.enrolment import list_pending  # noqa: PLC0415

    now = utc_now()
    with fleet.store.read() as session:
        found = list_pending(session)
    if as_json:
        print_json([one.model_dump(mode="json") for one in found])
        return
    print_table(
        ["DEVICE", "CLAIM", "BOARD", "SERIAL", "KEY", "ASKED", "WAITS BECAUSE"],
        [
            [
                one.device,
                one.claim,
                one.board,
                one.serial,
                one.key_sha256[:12],
                ago(one.requested_at, now),
                one.reason,
            ]
            for one in found
        ],
        empty="nothing waits for approval",
    )


@click.command()
@click.argument("names", nargs=-1, required=True, metavar="DEVICE...")
@click.option("--as", "name", help="Another name to give to it.")
@click.option(
    "--replace", "replaces", is_flag=True, help="It takes the place of a device in use, whose key is revoked."
)
@fleet_options
@dry_run_option
@json_option
@reporting_errors
def approve(
    names: tuple[str, ...],
    name: str | None,
    replaces: bool,
    fleet_dir: Path | None,
    fleet_name: str | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Let each DEVICE that waits join; it may also be named by its claim.

    For a device that has joined this accepts what `fleet show` says is odd about its machine.
    """
    if name is not None and len(names) > 1:
        raise UsageError("one name is for one device")
    fleet = open_fleet(fleet_dir, fleet_name)
    done = for_each(names, lambda which: _approve(fleet, which, name, replaces, dry_run=dry_run))
    if as_json:
        print_json({"approved": done})
    else:
        for which in done:
            click.echo(f"approved {which}")
    exit_for(done, names)


def _approve(fleet: Fleet, which: str, name: str | None, replaces: bool, *, dry_run: bool) -> None:
    from edgeslm.errors import UnknownDeviceError  # noqa: PLC0415
    from edgeslm.fleet import enrolment, registry  # noqa: PLC0415

    with changing(fleet, dry_run=dry_run) as session:
        try:
            enrolment.approve(
                session,
                fleet.directory.config,
                which,
                name=name,
                replaces=replaces,
                actor=fleet.actor,
                now=utc_now(),
            )
        except UnknownDeviceError:
            if registry.device_row(session, which) is None:
                raise
            registry.accept_finding(session, which, actor=fleet.actor, now=utc_now())


@click.command()
@click.argument("names", nargs=-1, required=True, metavar="DEVICE...")
@click.option(
    "--reason", default="rejected by the operator", show_default=True, help="What the device is told."
)
@fleet_options
@dry_run_option
@json_option
@reporting_errors
def reject(
    names: tuple[str, ...],
    reason: str,
    fleet_dir: Path | None,
    fleet_name: str | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Send each DEVICE that waits away; it may also be named by its claim, which is of no use afterwards."""
    fleet = open_fleet(fleet_dir, fleet_name)
    from edgeslm.fleet import enrolment  # noqa: PLC0415

    def do(which: str) -> None:
        with changing(fleet, dry_run=dry_run) as session:
            enrolment.reject(session, which, reason=reason, actor=fleet.actor, now=utc_now())

    done = for_each(names, do)
    if as_json:
        print_json({"rejected": done})
    else:
        for which in done:
            click.echo(f"rejected {which}")
    exit_for(done, names)
