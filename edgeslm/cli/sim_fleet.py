"""``edgeslm sim fleet|fleets``: simulated fleets at a real broker."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgeslm.cli.fleet_common import (
    PARTLY,
    Fleet,
    confirm,
    dry_run_option,
    naming_the_extra,
    open_fleet,
    passphrase_option,
    print_table,
    yes_option,
)
from edgeslm.cli.output import json_option, print_json, printable, reporting_errors, stopped_by_signals
from edgeslm.cli.times import duration
from edgeslm.clock import utc_now

if TYPE_CHECKING:
    import threading

    from edgeslm.schema.sim_fleet import FleetScenario, FleetSummary
    from edgeslm.sim.fleet import SimFleet, Site
    from edgeslm.sim.fleet_device import SimulatedDevice
    from edgeslm.sim.rehearsal import Stage

_SHOW_S = 2.0
_POLL_S = 0.2
_CONNECT_TIMEOUT_S = 10.0
_KEPT = "simulated"


@click.command()
@json_option
@reporting_errors
def fleets(as_json: bool) -> None:
    """List the simulated fleets that ship."""
    from edgeslm.sim.fleet_scenario import shipped_fleets  # noqa: PLC0415

    known = shipped_fleets().values()
    if as_json:
        print_json([scenario.model_dump(mode="json", exclude_none=True) for scenario in known])
        return
    print_table(
        ["FLEET", "DEVICES", "TITLE"],
        [
            [one.name, str(sum(group.count for group in one.groups)), one.title]
            for one in known
        ],
        empty="no simulated fleets",
    )  # fmt: skip


@click.command()
@click.argument("scenario_name", metavar="SCENARIO")
@click.option(
    "--fleet-dir",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="Directory of a fleet that the devices join; default: a new fleet, gone at the end.",
)
@click.option(
    "--devices", type=click.IntRange(1), help="How many, in the place of the scenario's own number."
)
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), help="In the place of the scenario's own.")
@click.option(
    "--speed",
    type=click.FloatRange(0, 1e5, min_open=True),
    help="Simulated seconds in a real one, in the place of the scenario's own.",
)
@click.option(
    "--for", "lasting", type=duration, metavar="TIME", help="How long, such as 10m; default is until Ctrl-C."
)
@click.option(
    "--preset",
    is_flag=True,
    help="Write the devices into the store as if they had joined; thousands take seconds.",
)
@click.option("--retire", is_flag=True, help="Take the devices out of use at the end.")
@yes_option
@dry_run_option
@passphrase_option
@json_option
@reporting_errors
def fleet(
    scenario_name: str,
    fleet_dir: Path | None,
    devices: int | None,
    seed: int | None,
    speed: float | None,
    lasting: timedelta | None,
    preset: bool,
    retire: bool,
    yes: bool,
    dry_run: bool,
    passphrase_file: Path | None,
    as_json: bool,
) -> None:
    """Run simulated devices at a fleet's broker, until Ctrl-C, and say how they ended.

    SCENARIO is a name that `sim fleets` lists, or a file. The devices make keys, join with claims made on the spot,
    report, and follow what is assigned to them from another terminal.
    """
    with naming_the_extra():
        from edgeslm.sim.fleet_scenario import changed, load_fleet  # noqa: PLC0415
    scenario = changed(load_fleet(scenario_name), devices=devices, seed=seed, speed=speed)
    count = sum(group.count for group in scenario.groups)
    where = "a new fleet that is removed at the end" if fleet_dir is None else f"the fleet in {fleet_dir}"
    first = scenario.groups[0].name
    plan = [f"{count} simulated devices join {where}, called like '{first}-0001'"]
    if fleet_dir is not None and not retire:
        plan.append("they stay in its list of devices afterwards; --retire takes them out of use")
    if not confirm(plan, yes=yes or fleet_dir is None, dry_run=dry_run):
        return
    with ExitStack() as stack:
        stop = stack.enter_context(stopped_by_signals())
        if fleet_dir is None:
            running = stack.enter_context(_in_new_fleet(scenario, preset=preset))
        else:
            opened = open_fleet(fleet_dir, None, passphrase_file)
            running = stack.enter_context(_in_fleet(opened, scenario, preset=preset, retire=retire))
        summary = _watch(running, stop, None if lasting is None else lasting.total_seconds())
    _print(summary, as_json=as_json)
    if summary.phases.get("rejected", 0) or summary.phases.get("joining", 0):
        sys.exit(PARTLY)


# --- where devices are --------------------------------------------------------------------------------------


@contextmanager
def _in_new_fleet(scenario: FleetScenario, *, preset: bool) -> Iterator[SimFleet]:
    from edgeslm.sim.rehearsal import populated, temporary_fleet  # noqa: PLC0415

    with temporary_fleet("simulated") as empty:
        click.echo(f"fleet 'simulated' in {empty.fleet.root}", err=True)
        with populated(empty, scenario, join=not preset) as stage:
            yield stage.devices


@contextmanager
def _in_fleet(fleet: Fleet, scenario: FleetScenario, *, preset: bool, retire: bool) -> Iterator[SimFleet]:
    from edgeslm.cli.fleet_setup import running_service  # noqa: PLC0415
    from edgeslm.errors import FleetError, LinkError  # noqa: PLC0415
    from edgeslm.fleet.certificates import Issuer  # noqa: PLC0415
    from edgeslm.sim import fleet_joining as joining  # noqa: PLC0415
    from edgeslm.sim.fleet import SimFleet, make_devices  # noqa: PLC0415
    from edgeslm.sim.rehearsal import Stage, trust_of  # noqa: PLC0415

    directory = fleet.directory.root / _KEPT
    try:
        directory.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise FleetError(f"{directory}: {error.strerror}", path=str(directory)) from error
    issuer = Issuer(fleet.directory.config, fleet.authority, fleet.directory.trust_root)
    with tempfile.TemporaryDirectory(prefix="edgeslm-sim-") as scratch, running_service(fleet) as service:
        if not service.wait_connected(_CONNECT_TIMEOUT_S):
            raise LinkError(
                f"the fleet's broker cannot be reached: {service.reason}",
                hint="Run it with: edgeslm fleet serve --broker",
            )
        trust = trust_of(fleet.directory, scenario, Path(scratch) / "trust")
        devices = make_devices(scenario, fleet.directory.name, trust)
        stage = Stage(fleet.directory, fleet.store, issuer, fleet.broker, service)
        site = _site(stage, devices, directory, preset=preset)
        try:
            with SimFleet(scenario, devices, site) as running:
                yield running
        finally:
            if retire:
                with fleet.store.write() as session:
                    names = [device.name for device in devices]
                    joining.retire(session, names, actor=fleet.actor, now=utc_now())
                fleet.sync_broker()


def _site(stage: Stage, devices: tuple[SimulatedDevice, ...], directory: Path, *, preset: bool) -> Site:
    """Where the devices are: those that joined in an earlier run belong to the fleet already."""
    from dataclasses import replace  # noqa: PLC0415

    from edgeslm.sim.fleet_joining import kept_members  # noqa: PLC0415
    from edgeslm.sim.rehearsal import claiming_site, preset_site  # noqa: PLC0415

    with stage.store.read() as session:
        kept = kept_members(session, directory, devices)
    others = [device for device in devices if device.name not in kept]
    if kept:
        click.echo(f"{len(kept)} of them joined before", err=True)
    site = (preset_site if preset else claiming_site)(stage, others, directory)
    return replace(site, members={**site.members, **kept})


# --- showing ------------------------------------------------------------------------------------------------


def _watch(running: SimFleet, stop: threading.Event, for_s: float | None) -> FleetSummary:
    """Show counts until the end; how the devices are then."""
    began_s = time.monotonic()
    shown_s, is_terminal, told = 0.0, sys.stderr.isatty(), ""
    while not stop.wait(_POLL_S) and (for_s is None or time.monotonic() - began_s < for_s):
        if time.monotonic() - shown_s < _SHOW_S:
            continue
        shown_s = time.monotonic()
        line = _line(running.summary())
        if is_terminal:
            click.echo(f"\r\x1b[K{line}", err=True, nl=False)
        elif line != told:
            click.echo(line, err=True)
        told = line
    if is_terminal:
        click.echo("", err=True)
    return running.summary()


def _line(now: FleetSummary) -> str:
    phases = ", ".join(f"{count} {phase}" for phase, count in sorted(now.phases.items()))
    parts = [f"{now.devices} devices: {phases}", *(f"{count} {what}" for what, count in now.changes.items())]
    if now.counts["lost"]:
        parts.append(f"{now.counts['lost']} connections lost")
    return printable("; ".join(parts))


def _print(now: FleetSummary, *, as_json: bool) -> None:
    if as_json:
        print_json(now)
        return
    rows = [
        *(("devices", phase, count) for phase, count in sorted(now.phases.items())),
        *(("running", what, count) for what, count in now.running.items()),
        *(("change", what, count) for what, count in now.changes.items()),
        *(("fault", what, count) for what, count in now.faults.items()),
        *(
            ("messages", what, now.counts[what])
            for what in ("sent", "received", "denied")
            if now.counts[what]
        ),
        *(("connection", what, count) for what, count in now.reasons.items()),
    ]
    if now.refused:
        rows.append(("refused", now.why_refused, now.refused))
    print_table(
        ["", "WHAT", "NUMBER"], [[kind, what, str(count)] for kind, what, count in rows], empty="nothing"
    )
