"""``edgeslm pool``: several devices that serve one model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from pydantic import ValidationError

from edgeslm.cli.output import (
    FLEET,
    host_option,
    port_option,
    print_json,
    printable,
    reporting_errors,
    stopped_by_signals,
)
from edgeslm.codec import describe
from edgeslm.errors import UsageError
from edgeslm.schema.config import BrokerConfig

_FILE = click.Path(path_type=Path, dir_okay=False, exists=True)
_NAMES_SHOWN = 8


@click.group()
def pool() -> None:
    """Share prompts among the devices that serve a model."""


@pool.command()
@click.option("--model", required=True, help="Model whose pool to serve.")
@click.option(
    "--fleet", default="home", show_default=True, envvar=FLEET, show_envvar=True, help="Fleet of the devices."
)
@click.option(
    "--patience",
    "patience_s",
    type=click.FloatRange(1.0, 86_400.0),
    default=120.0,
    show_default=True,
    help="Seconds that a prompt lives which comes without a deadline.",
)
@host_option
@port_option
@click.option("--username", help="User name at the broker.")
@click.option("--password-file", type=_FILE, help="File that holds the password.")
@click.option("--ca", "ca_file", type=_FILE, help="Certificate authority: switches TLS on.")
@click.option("--cert", "cert_file", type=_FILE, help="Client certificate.")
@click.option("--key", "key_file", type=_FILE, help="Its private key.")
@click.option("--json", "as_json", is_flag=True, help="Print what was done as JSON.")
@reporting_errors
def serve(model: str, fleet: str, patience_s: float, as_json: bool, **settings: Any) -> None:
    """Deal the prompts of a pool to its devices, until stopped; then say what was done.

    Each prompt goes to a device that is online and has energy; one that dies with it, refuses it, or is late is
    replaced before the deadline. The devices must not take the pool's prompts themselves: set `pool: false` for them.
    """
    from edgeslm.link.pool_gateway import open_gateway  # noqa: PLC0415

    gateway = open_gateway(fleet, model, _broker(settings), patience_s=patience_s)

    def tell(ready: list[str]) -> None:
        names = ", ".join(printable(name) for name in ready[:_NAMES_SHOWN])
        more = f" and {len(ready) - _NAMES_SHOWN} more" if len(ready) > _NAMES_SHOWN else ""
        click.echo(f"{len(ready)} ready: {names}{more}" if ready else "no device is ready", err=True)

    with stopped_by_signals() as stopped:
        click.echo(f"serving the pool of {model} in fleet {fleet}", err=True)
        report = gateway.run(stopped, tell)
    if as_json:
        print_json(report)
        return
    click.echo(
        f"{report.answered} answered, {report.failed} failed, {report.replaced} times a device was replaced, "
        f"{report.repeated} asked again, {report.surplus} answers came too late"
    )


def _broker(settings: dict[str, Any]) -> BrokerConfig:
    try:
        return BrokerConfig.model_validate(
            {name: value for name, value in settings.items() if value is not None}
        )
    except ValidationError as error:
        raise UsageError(describe(error).replace("_", "-")) from error
