"""``edgeslm fleet homeassistant``: let Home Assistant in at the fleet's broker, and out again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgeslm.cli.fleet_common import (
    Fleet,
    confirm,
    dry_run_option,
    fleet_options,
    note,
    open_fleet,
    passphrase_option,
    yes_option,
)
from edgeslm.cli.output import json_option, print_json, reporting_errors
from edgeslm.clock import utc_now
from edgeslm.errors import FleetError, LinkError, UsageError

if TYPE_CHECKING:
    from edgeslm.fleet.home_assistant import HomeAssistantIdentity

AUTHORITY, CERTIFICATE, KEY = "ca.crt", "home-assistant.crt", "home-assistant.key"
"""Names of the three files that Home Assistant is given."""


@click.command()
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="Directory to write the certificate, its key and the authority to.",
)
@click.option("--revoke", is_flag=True, help="Take the access away instead.")
@fleet_options
@passphrase_option
@yes_option
@dry_run_option
@json_option
@reporting_errors
def homeassistant(
    out: Path | None,
    revoke: bool,
    fleet_dir: Path | None,
    fleet_name: str | None,
    passphrase_file: Path | None,
    yes: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Make a certificate for Home Assistant, and say what to enter there.

    It sees the devices of the fleet and may send them prompts, and order self-tests, another try of an update and
    another default model. A new certificate takes the place of the one before, which is refused from then on.
    """
    if revoke == (out is not None):
        raise UsageError("either --out or --revoke is needed, and not both")
    fleet = open_fleet(fleet_dir, fleet_name, passphrase_file)
    from edgeslm.fleet.home_assistant import has_identity  # noqa: PLC0415

    with fleet.store.read() as session:
        had_one = has_identity(session, utc_now())
    if out is None:
        _take_away(fleet, had_one, yes=yes, dry_run=dry_run, as_json=as_json)
        return
    plan = [f"a certificate for Home Assistant, with its key, is written to {out}"]
    if had_one:
        plan.append("the one that it has is refused from now on, and it is put off the broker")
    # The first takes nothing away from anybody.
    if not confirm(plan, yes=yes or not had_one, dry_run=dry_run):
        return
    _let_in(fleet, out, had_one, as_json=as_json)


def _let_in(fleet: Fleet, out: Path, had_one: bool, *, as_json: bool) -> None:
    from edgeslm.fleet.home_assistant import issue_identity  # noqa: PLC0415

    now = utc_now()
    # Inside the transaction: what cannot be written does not replace what is in use.
    with fleet.store.write() as session:
        identity = issue_identity(session, fleet.authority, actor=fleet.actor, now=now)
        files = _write(out, fleet, identity)
    fleet.sync_broker()
    if had_one:
        _put_off(fleet)
    broker = fleet.directory.config.broker
    if as_json:
        print_json(
            {
                "host": broker.host,
                "port": broker.port,
                "authority": str(files[0]),
                "certificate": str(files[1]),
                "key": str(files[2]),
                "expires_at": identity.certificate.not_after.isoformat(),
            }
        )
        return
    click.echo(
        f"wrote {files[2]}: it is a secret\n"
        f"In Home Assistant: Settings, Devices & services, Add integration, MQTT; then\n"
        f"  Broker                         {broker.host}\n"
        f"  Port                           {broker.port}\n"
        f"  Username, Password             leave empty\n"
        f"  Advanced options               on, then Next\n"
        f"  Use a client certificate       on\n"
        f"  Broker certificate validation  Custom, then Next\n"
        f"  CA certificate file            {files[0]}\n"
        f"  Client certificate file        {files[1]}\n"
        f"  Private key file               {files[2]}\n"
        f"  MQTT protocol                  5\n"
        f"Valid until {identity.certificate.not_after:%Y-%m-%d}. "
        f"On each device: homeassistant: {{enabled: true}}"
    )


def _take_away(fleet: Fleet, had_one: bool, *, yes: bool, dry_run: bool, as_json: bool) -> None:
    from edgeslm.fleet.home_assistant import revoke_identity  # noqa: PLC0415

    if had_one and not confirm(
        ["Home Assistant's certificate is refused from now on, and it is put off the broker"],
        yes=yes,
        dry_run=dry_run,
    ):
        return
    if had_one:
        with fleet.store.write() as session:
            revoke_identity(session, actor=fleet.actor, now=utc_now())
        fleet.sync_broker()
        _put_off(fleet)
    if as_json:
        print_json({"revoked": had_one})
    else:
        click.echo("Home Assistant is refused" if had_one else "Home Assistant has no access")


def _put_off(fleet: Fleet) -> None:
    try:
        fleet.broker.disconnect_home_assistant(utc_now())
    except LinkError as error:
        note(f"Home Assistant is refused from its next connection on, but could not be put off now: {error}")


def _write(out: Path, fleet: Fleet, identity: HomeAssistantIdentity) -> tuple[Path, Path, Path]:
    """Write the three files, each whole; the key is readable by its owner alone."""
    from edgeslm.files import replace_file  # noqa: PLC0415

    try:
        out.mkdir(parents=True, exist_ok=True)
        replace_file(out / AUTHORITY, fleet.directory.authority_pem().encode())
        replace_file(out / KEY, identity.key_pem, mode=0o600)
        replace_file(out / CERTIFICATE, identity.certificate.pem.encode())
    except OSError as error:
        raise FleetError(f"{error.filename or out}: {error.strerror}", path=str(out)) from error
    return out / AUTHORITY, out / CERTIFICATE, out / KEY
