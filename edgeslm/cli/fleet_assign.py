"""``edgeslm fleet assign|assignments``: what each device should run, and what it runs."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeslm.cli.fleet_common import (
    Fleet,
    ago,
    confirm,
    dry_run_option,
    fleet_options,
    note,
    open_fleet,
    print_table,
    yes_option,
)
from edgeslm.cli.fleet_release_common import (
    find_release,
    keys_of,
    keys_option,
    open_repository,
    parse_release,
)
from edgeslm.cli.output import json_option, print_json, reporting_errors
from edgeslm.cli.times import duration
from edgeslm.clock import utc_now
from edgeslm.errors import LinkError, UsageError

if TYPE_CHECKING:
    from edgeslm.fleet.assignments import Step, Visit
    from edgeslm.schema.assignment import Assignment
    from edgeslm.schema.update import Reported


@click.command()
@click.argument("device")
@click.argument("releases", nargs=-1, required=True, metavar="NAME@VERSION...")
@click.option(
    "--downgrade", is_flag=True, help="Also where it is older than what runs; never below the security floor."
)
@click.option("--force", is_flag=True, help="Also where it failed on this device before.")
@click.option(
    "--expires", "life", type=duration, default="7d", show_default=True, help="How long it can be followed."
)
@fleet_options
@keys_option
@yes_option
@dry_run_option
@json_option
@reporting_errors
def assign(
    device: str,
    releases: tuple[str, ...],
    downgrade: bool,
    force: bool,
    life: timedelta,
    fleet_dir: Path | None,
    fleet_name: str | None,
    keys_dir: Path | None,
    yes: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Let DEVICE run published releases. Other names that were assigned to it stay as they are.

    What it cannot run is refused before anything is sent. The broker keeps the assignment for a device that is off.
    """
    names = [parse_release(text)[0] for text in releases]
    if len(set(names)) < len(names):
        raise UsageError("one name has one version")
    fleet = open_fleet(fleet_dir, fleet_name)
    repository = open_repository(fleet)
    from edgeslm.fleet import assignments  # noqa: PLC0415
    from edgeslm.fleet.registry import need_device  # noqa: PLC0415
    from edgeslm.fleet.release_files import RepositoryFiles  # noqa: PLC0415
    from edgeslm.fleet.release_setup import assignment_signer  # noqa: PLC0415
    from edgeslm.power.boards import load_boards  # noqa: PLC0415
    from edgeslm.schema.assignment import DEFAULT_LIFETIME, MAX_LIFETIME  # noqa: PLC0415

    if life > MAX_LIFETIME:
        raise UsageError(f"an assignment can be followed for {MAX_LIFETIME.days} days at most")
    known = repository.releases()
    targets = [find_release(known, text) for text in releases]
    signer = assignment_signer(keys_of(fleet, keys_dir))
    with fleet.store.read() as session:
        row = need_device(session, device)
    with _visit(fleet, [device]) as visit:
        info, reported = _heard(fleet, visit, device)
        view = assignments.view_device(row, info, reported, load_boards())
        steps = [
            assignments.plan_step(target, view, allow_downgrade=downgrade, force=force) for target in targets
        ]
        if not confirm([_line(device, step) for step in steps], yes=yes, dry_run=dry_run):
            if as_json:
                print_json(_record(device, steps, None))
            return
        authority = RepositoryFiles.open(fleet.directory.releases).published().targets["targets"].signed
        with fleet.store.write() as session:
            assignment, body = assignments.assign(
                session,
                fleet.directory.name,
                device,
                steps,
                [signer],
                authority,
                known=known,
                followed=reported.assignment if reported is not None else 0,
                life=life,
                actor=fleet.actor,
                now=utc_now(),
                renews=life >= DEFAULT_LIFETIME,
            )
        visit.publish(_topic(fleet, device, "desired"), body)
        with fleet.store.write() as session:
            row = need_device(session, device)
            assignments.mark_published(session, row.id, assignment.seq)
    if as_json:
        print_json(_record(device, steps, assignment))
        return
    click.echo(
        f"assigned to {device} as number {assignment.seq}, until {assignment.expires_at:%Y-%m-%d %H:%M}"
    )


def _line(device: str, step: Step) -> str:
    running = f"runs {step.running.version}" if step.running is not None else "runs none of that name"
    moves = {"nothing": "nothing moves", "delta": f"a delta of {step.moves_bytes} bytes moves"}.get(
        step.way, f"{step.moves_bytes} bytes move"
    )
    unchecked = f"; not checked, as it has not told: {', '.join(step.unchecked)}" if step.unchecked else ""
    return f"{device}: {step.label}: {running}, {moves}{unchecked}"


def _record(device: str, steps: Sequence[Step], assignment: Assignment | None) -> dict[str, Any]:
    return {
        "device": device,
        "seq": assignment.seq if assignment is not None else None,
        "expires_at": assignment.expires_at.isoformat() if assignment is not None else None,
        "moves_bytes": sum(step.moves_bytes for step in steps),
        "releases": [
            {
                "release": step.label,
                "sha256": step.target.info.sha256,
                "runs": step.running.version if step.running is not None else None,
                "way": step.way,
                "moves_bytes": step.moves_bytes,
                "unchecked": list(step.unchecked),
            }
            for step in steps
        ],
    }


@click.command("assignments")
@click.argument("devices", nargs=-1, metavar="[DEVICE...]")
@fleet_options
@json_option
@reporting_errors
def assignments_(
    devices: tuple[str, ...], fleet_dir: Path | None, fleet_name: str | None, as_json: bool
) -> None:
    """Show what is assigned to devices, and what they report; all devices in use, or those named."""
    fleet = open_fleet(fleet_dir, fleet_name)
    from edgeslm.fleet.assignments import last_assignment, last_reported  # noqa: PLC0415
    from edgeslm.fleet.registry import list_devices, need_device  # noqa: PLC0415

    with fleet.store.read() as session:
        names = [need_device(session, name).name for name in devices] or [
            one.name for one in list_devices(session) if one.standing == "active"
        ]
    try:
        with _visit(fleet, names) as visit:
            for name in names:
                _heard(fleet, visit, name)
    except LinkError as error:
        note(f"this is what was reported before: {error}")
    with fleet.store.read() as session:
        rows = {name: need_device(session, name) for name in names}
        found = {
            name: (last_assignment(session, row), last_reported(session, row)) for name, row in rows.items()
        }
    if as_json:
        print_json(
            [
                {
                    "device": name,
                    "assigned": assigned.model_dump(mode="json", exclude_none=True) if assigned else None,
                    "reported": reported.model_dump(mode="json", exclude_none=True) if reported else None,
                }
                for name, (assigned, reported) in found.items()
            ]
        )
        return
    now = utc_now()
    lines = [line for name, pair in found.items() for line in _lines(name, *pair, now)]
    print_table(
        ["DEVICE", "NAME", "ASSIGNED", "RUNS", "STATE", "EXPIRES"],
        lines,
        empty="nothing is assigned or reported",
    )


def _lines(
    device: str, assigned: Assignment | None, reported: Reported | None, now: datetime
) -> list[list[str | None]]:
    models = {model.name: model for model in reported.models} if reported is not None else {}
    wanted = assigned.releases if assigned is not None else {}
    lines: list[list[str | None]] = []
    for name in sorted({*models, *wanted}):
        model, release = models.get(name), wanted.get(name)
        state: str | None = None
        if assigned is not None and (reported is None or reported.assignment < assigned.seq):
            state = "not taken up yet"
        elif model is not None and model.change is not None:
            state = str(model.change.state)
            if model.change.fault is not None:
                state += f": {model.change.fault.cause}, {model.change.fault.detail}"
            elif model.change.waits_for is not None:
                state += f", waits for {model.change.waits_for}"
            elif model.change.total_bytes and not model.change.settled:
                state += f", {model.change.done_bytes or 0} of {model.change.total_bytes} bytes"
        lines.append(
            [
                device,
                name,
                release.version if release is not None else None,
                model.version if model is not None else None,
                state,
                ago(assigned.expires_at, now) if assigned is not None and release is not None else None,
            ]
        )
    return lines


# --- at the broker ------------------------------------------------------------------------------------------


def _topic(fleet: Fleet, device: str, channel: Any) -> str:
    from edgeslm.topics import device_topic  # noqa: PLC0415

    return device_topic(fleet.directory.name, device, channel)


def _visit(fleet: Fleet, devices: Sequence[str]) -> Visit:
    from edgeslm.fleet.assignments import Visit  # noqa: PLC0415

    wanted = [_topic(fleet, device, channel) for device in devices for channel in ("info", "reported")]
    return Visit(fleet.directory.operator_config(), f"edgeslm-assign-{secrets.token_hex(6)}", wanted)


def _heard(fleet: Fleet, visit: Visit, device: str) -> tuple[Any, Reported | None]:
    """What the device says of itself, and what it reports, which is written down."""
    from edgeslm import codec  # noqa: PLC0415
    from edgeslm.errors import CodecError  # noqa: PLC0415
    from edgeslm.fleet.assignments import last_reported, take_reported  # noqa: PLC0415
    from edgeslm.fleet.registry import need_device  # noqa: PLC0415
    from edgeslm.schema.message import MAX_BODY_BYTES, Info  # noqa: PLC0415

    retained = visit.retained()
    info = None
    payload = retained.get(_topic(fleet, device, "info"))
    if payload is not None:
        try:
            info = codec.decode(Info, payload, max_bytes=MAX_BODY_BYTES)
        except CodecError as error:
            note(f"what {device} says of itself cannot be read: {error}")
    payload = retained.get(_topic(fleet, device, "reported"))
    with fleet.store.write() as session:
        if payload is not None:
            take_reported(session, device, payload, utc_now())
        return info, last_reported(session, need_device(session, device))
