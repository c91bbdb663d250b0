"""``edgeslm fleet release serve``: giving devices what they need."""

from __future__ import annotations

import logging
import secrets
from pathlib import Path
from typing import Any

import click

from edgeslm.cli.fleet_common import Fleet, fleet_options, open_fleet
from edgeslm.cli.fleet_release_common import keys_of, keys_option, open_repository
from edgeslm.cli.output import reporting_errors, stopped_by_signals

_WATCH_S = 0.2


@click.command()
@click.option("--host", default="0.0.0.0", show_default=True, help="Address to listen on.")  # noqa: S104
@click.option("--port", type=click.IntRange(0, 65_535), default=8080, show_default=True, help="0: any.")
@fleet_options
@keys_option
@reporting_errors
def serve(
    host: str, port: int, fleet_dir: Path | None, fleet_name: str | None, keys_dir: Path | None
) -> None:
    """Give devices releases until SIGTERM or Ctrl-C: over HTTP, and over the broker.

    It also writes down what devices report, and keeps snapshot and timestamp from expiring.
    """
    logging.getLogger("edgeslm.fleet").setLevel(logging.INFO)
    fleet = open_fleet(fleet_dir, fleet_name)
    with (
        stopped_by_signals() as stop,
        running_distribution(fleet, keys_of(fleet, keys_dir), host, port) as distribution,
    ):
        click.echo(f"releases of fleet {fleet.directory.name} at {distribution.url}", err=True)
        was_connected = False
        while not stop.wait(_WATCH_S):
            if distribution.wait_connected(0) and not was_connected:
                was_connected = True
                click.echo("connected to the broker: all of it is served there as well", err=True)


def running_distribution(fleet: Fleet, keys: Path, host: str, port: int, *, reports: bool = True) -> Any:
    """The service that gives out releases of `fleet`; a context in which it runs.

    Args:
        reports: it also writes down what devices report.

    Raises:
        ReleaseRepositoryError: there is no repository.
        ConfigError: the address cannot be had.
    """
    from edgeslm.fleet.distribution import Distribution  # noqa: PLC0415
    from edgeslm.fleet.release_setup import has_online_keys  # noqa: PLC0415

    repository, directory = open_repository(fleet), fleet.directory
    return Distribution(
        fleet.store,
        repository,
        directory.name,
        directory.operator_config(),
        f"edgeslm-releases-{secrets.token_hex(6)}",
        keys=keys if has_online_keys(keys) else None,
        reports=reports,
        host=host,
        port=port,
    )
