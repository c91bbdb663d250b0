"""``edgeslm fleet init|serve|backup|restore``: the fleet as a whole."""

from __future__ import annotations

import logging
import secrets
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click
from pydantic import ValidationError

from edgeslm.cli.fleet_common import (
    FLEET_DIR,
    Fleet,
    fleet_options,
    naming_the_extra,
    note,
    open_fleet,
    passphrase_option,
)
from edgeslm.cli.fleet_metrics import running_collector
from edgeslm.cli.fleet_release_common import keys_of, keys_option
from edgeslm.cli.fleet_release_serve import running_distribution
from edgeslm.cli.fleet_rollout_common import running_controller
from edgeslm.cli.output import json_option, print_json, reporting_errors, stopped_by_signals
from edgeslm.clock import utc_now
from edgeslm.codec import describe
from edgeslm.errors import UsageError

_DIRECTORY = click.Path(path_type=Path, file_okay=False)
_FILE = click.Path(path_type=Path, dir_okay=False)
_WATCH_S = 0.2


@click.command()
@click.argument("name")
@click.option(
    "--dir",
    "--fleet-dir",
    "fleet_dir",
    type=_DIRECTORY,
    envvar=FLEET_DIR,
    show_envvar=True,
    help="Where to put it; default: ~/.local/share/edgeslm/fleets/NAME.",
)
@click.option("--broker-host", required=True, help="Name or address by which devices will reach the broker.")
@click.option("--broker-port", type=int, default=8883, show_default=True, help="Its port for devices.")
@click.option("--claim-port", type=int, default=8884, show_default=True, help="Its port for claims.")
@click.option("--operator-port", type=int, default=8885, show_default=True, help="Its port for the operator.")
@click.option("--bind", help="Address that the broker listens on; default is all.")
@click.option(
    "--certificate-days", type=float, default=30, show_default=True, help="Life of a device's certificate."
)
@click.option(
    "--approve",
    "mode",
    type=click.Choice(["hand", "allow-list"]),
    default="allow-list",
    show_default=True,
    help="Who joins without being asked about: nobody, or whose claim names it.",
)
@click.option("--database", help="SQLAlchemy URL of the store; default: SQLite in the directory.")
@click.option("--encrypt-key", is_flag=True, help="Protect the authority's key by a passphrase.")
@passphrase_option
@json_option
@reporting_errors
def init(
    name: str,
    fleet_dir: Path | None,
    encrypt_key: bool,
    passphrase_file: Path | None,
    as_json: bool,
    **settings: Any,
) -> None:
    """Make the fleet NAME: certificate authority, store, and all that its broker needs.

    Run again it completes what was cut off, and changes nothing else.
    """
    with naming_the_extra():
        from edgeslm.fleet.directory import create_fleet, default_fleets_dir  # noqa: PLC0415
    config = _config(name, settings)
    root = fleet_dir or default_fleets_dir() / config.name
    passphrase = _new_passphrase(passphrase_file) if encrypt_key and not (root / "ca.key").exists() else None
    directory = create_fleet(root, config, passphrase=passphrase, now=utc_now())
    fleet = Fleet(directory, passphrase_file)
    fleet.broker.sync(fleet.store, utc_now())
    if as_json:
        print_json(
            {
                "fleet": directory.name,
                "directory": str(root),
                "authority": str(directory.authority_certificate),
                "broker_config": str(fleet.broker.config_files[0]),
                "door_config": str(fleet.broker.config_files[1]),
                "broker": config.broker.model_dump(mode="json"),
                "operator_certificate": str(directory.operator_certificate),
                "operator_key": str(directory.operator_key),
            }
        )
        return
    click.echo(f"fleet {directory.name} in {root}")
    click.echo(
        f"broker at {config.broker.host}: port {config.broker.port} for devices, "
        f"{config.broker.claim_port} for claims, {config.broker.operator_port} for you"
    )
    which = f" --fleet-dir {root}" if fleet_dir is not None else ""
    click.echo(
        f"\nNext:\n"
        f"  edgeslm fleet serve --broker{which}\n"
        f"      answers devices, and runs the broker and its door; or let the system run\n"
        f"      mosquitto -c {fleet.broker.config_files[0]}\n"
        f"      mosquitto -c {fleet.broker.config_files[1]}\n"
        f"  edgeslm fleet claim --device NAME --out claim.json{which}\n"
        f"      then on the device: edgeslm agent enrol claim.json\n"
        f"Keep {directory.authority_key} safe: who has it can make devices. Back it up with: edgeslm fleet backup FILE"
    )


def _config(name: str, settings: dict[str, Any]) -> Any:
    from edgeslm.schema.fleet import Approval, FleetBroker, FleetConfig  # noqa: PLC0415

    try:
        return FleetConfig(
            name=name,
            broker=FleetBroker(
                host=settings["broker_host"],
                port=settings["broker_port"],
                claim_port=settings["claim_port"],
                operator_port=settings["operator_port"],
                bind=settings["bind"],
            ),
            certificate_days=settings["certificate_days"],
            approval=Approval(mode=settings["mode"]),
            database=settings["database"],
        )
    except ValidationError as error:
        raise UsageError(describe(error)) from error


def _new_passphrase(file: Path | None) -> bytes:
    from edgeslm.fleet.signing import passphrase_source  # noqa: PLC0415

    def prompt(text: str) -> str:
        return str(click.prompt(text, hide_input=True, confirmation_prompt=True, err=True, prompt_suffix=""))

    return passphrase_source(file=file, prompt=prompt if sys.stdin.isatty() else None)(
        Path("the authority's new key")
    )


@click.command()
@click.option(
    "--broker",
    "with_broker",
    is_flag=True,
    help="Also run the broker and its door, if this fleet's do not run here.",
)
@click.option(
    "--releases-port",
    type=click.IntRange(0, 65_535),
    default=8080,
    show_default=True,
    help="Where to serve the fleet's releases, if it has any. 0: any port.",
)
@click.option("--no-releases", is_flag=True, help="Leave serving releases to others.")
@click.option("--no-metrics", is_flag=True, help="Leave collecting what devices report to others.")
@fleet_options
@keys_option
@passphrase_option
@reporting_errors
def serve(
    with_broker: bool,
    releases_port: int,
    no_releases: bool,
    no_metrics: bool,
    fleet_dir: Path | None,
    fleet_name: str | None,
    keys_dir: Path | None,
    passphrase_file: Path | None,
) -> None:
    """Answer devices until SIGTERM or Ctrl-C: first contact, renewal of certificates, presence, releases.

    What they report on themselves is collected (`fleet metrics`).

    While it does not run, devices that have joined work on; new ones wait.
    """
    logging.getLogger("edgeslm.fleet").setLevel(logging.INFO)
    fleet = open_fleet(fleet_dir, fleet_name, passphrase_file)
    broker = fleet.directory.config.broker
    with ExitStack() as stack:
        stop = stack.enter_context(stopped_by_signals())
        if fleet.broker.sync(fleet.store, utc_now()).needs_restart:
            note("settings of the broker changed: start it and its door anew, at a moment that suits")
        process = None
        if with_broker and not fleet.broker.is_running():
            from edgeslm.fleet.broker_process import BrokerProcess  # noqa: PLC0415

            log = fleet.directory.broker / "mosquitto.log"
            process = stack.enter_context(BrokerProcess(fleet.broker.config_files, broker, log))
            click.echo(
                f"mosquitto listens on ports {broker.port}, {broker.claim_port} and {broker.operator_port}",
                err=True,
            )
        service = stack.enter_context(running_service(fleet))
        if not no_metrics:
            stack.enter_context(running_collector(fleet))
        if not no_releases and (fleet.directory.releases / "public").is_dir():
            keys = keys_of(fleet, keys_dir)
            controls = (keys / "assignments.pem").exists()
            distribution = stack.enter_context(
                running_distribution(fleet, keys, "0.0.0.0", releases_port, reports=not controls)  # noqa: S104
            )
            click.echo(f"releases of fleet {fleet.directory.name} at {distribution.url}", err=True)
            if controls:
                stack.enter_context(running_controller(fleet, keys_dir))
            else:
                note(f"no key that signs assignments in {keys}: rollouts are left to others")
        was_connected = False
        while not stop.wait(_WATCH_S):
            if process is not None and not process.is_running:
                click.echo(f"started anew: {', '.join(process.revive())}", err=True)
            if service.wait_connected(0) and not was_connected:
                was_connected = True
                click.echo(f"fleet {fleet.directory.name}: answering devices", err=True)


def running_service(fleet: Fleet) -> Any:
    """The enrolment service of `fleet`, started; a context that stops it."""
    from contextlib import contextmanager  # noqa: PLC0415

    from edgeslm.fleet.certificates import Issuer  # noqa: PLC0415
    from edgeslm.fleet.service import EnrolmentService  # noqa: PLC0415
    from edgeslm.link.mqtt import MqttLink  # noqa: PLC0415

    @contextmanager
    def running() -> Any:
        directory = fleet.directory
        link = MqttLink(directory.operator_config(), f"edgeslm-fleet-{secrets.token_hex(6)}")
        issuer = Issuer(directory.config, fleet.authority, directory.trust_root)
        service = EnrolmentService(fleet.store, issuer, fleet.broker, link)
        service.start()
        try:
            yield service
        finally:
            service.stop()

    return running()


@click.command()
@click.argument("file", type=_FILE)
@fleet_options
@json_option
@reporting_errors
def backup(file: Path, fleet_dir: Path | None, fleet_name: str | None, as_json: bool) -> None:
    """Write the whole fleet into FILE: store, settings, releases and keys. Who has FILE has the fleet."""
    fleet = open_fleet(fleet_dir, fleet_name)
    from edgeslm.fleet.backup import write_backup  # noqa: PLC0415

    size_bytes = write_backup(fleet.directory, file, utc_now())
    if as_json:
        print_json({"file": str(file), "size_bytes": size_bytes})
        return
    click.echo(f"{file}: {size_bytes} bytes, readable by you alone; keep it so")


@click.command()
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False, exists=True))
@click.option(
    "--dir",
    "--fleet-dir",
    "fleet_dir",
    type=_DIRECTORY,
    required=True,
    envvar=FLEET_DIR,
    show_envvar=True,
    help="New directory to restore to.",
)
@click.option("--database", help="URL of an empty database for the store, instead of the one it had.")
@json_option
@reporting_errors
def restore(file: Path, fleet_dir: Path, database: str | None, as_json: bool) -> None:
    """Make the fleet in the backup FILE anew. Nothing that exists is written over.

    Devices that joined after the backup was made are unknown to it, and have to join again.
    """
    with naming_the_extra():
        from edgeslm.fleet.backup import restore_backup  # noqa: PLC0415
    directory = restore_backup(file, fleet_dir, database=database)
    if as_json:
        print_json({"fleet": directory.name, "directory": str(fleet_dir)})
        return
    click.echo(f"fleet {directory.name} in {fleet_dir}")
