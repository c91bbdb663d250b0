"""``edgeslm sparkplug``: devices among Sparkplug B's."""

from __future__ import annotations

import time
import uuid
from pathlib import Path
from typing import Any

import click
from pydantic import ValidationError

from edgeslm.cli.output import FLEET, host_option, port_option, reporting_errors, stopped_by_signals
from edgeslm.codec import describe
from edgeslm.errors import UsageError
from edgeslm.schema.config import BrokerConfig

_FILE = click.Path(path_type=Path, dir_okay=False, exists=True)
_DIRECTORY = click.Path(path_type=Path, file_okay=False)
_STATE_DIR = Path("~/.local/share/edgeslm/sparkplug")


@click.group()
def sparkplug() -> None:
    """Show devices to SCADA systems and other hosts that speak Sparkplug B."""


@sparkplug.command()
@click.option(
    "--fleet", default="home", show_default=True, envvar=FLEET, show_envvar=True, help="Fleet of the device."
)
@click.option("--device", required=True, help="Device to show.")
@click.option("--group", required=True, help="Sparkplug group that it appears in.")
@click.option("--node", help="Sparkplug edge node that it appears as; default: the device's name.")
@click.option(
    "--state-dir",
    type=_DIRECTORY,
    default=str(_STATE_DIR),
    show_default=True,
    help="Where the number of births is kept.",
)
@host_option
@port_option
@click.option("--username", help="User name at the broker.")
@click.option("--password-file", type=_FILE, help="File that holds the password.")
@click.option("--ca", "ca_file", type=_FILE, help="Certificate authority: switches TLS on.")
@click.option("--cert", "cert_file", type=_FILE, help="Client certificate.")
@click.option("--key", "key_file", type=_FILE, help="Its private key.")
@click.option(
    "--to-host", help="Broker of the Sparkplug hosts; default: the device's, with the same options."
)
@click.option("--to-port", type=int, default=1883, show_default=True, help="Its port.")
@click.option(
    "--to-protocol", type=click.Choice(["5", "3.1.1"]), default="5", show_default=True, help="MQTT version."
)
@click.option("--to-username", help="User name there.")
@click.option("--to-password-file", type=_FILE, help="File that holds the password there.")
@click.option("--to-ca", "to_ca_file", type=_FILE, help="Certificate authority there: switches TLS on.")
@click.option("--to-cert", "to_cert_file", type=_FILE, help="Client certificate there.")
@click.option("--to-key", "to_key_file", type=_FILE, help="Its private key.")
@reporting_errors
def run(fleet: str, device: str, group: str, node: str | None, state_dir: Path, **settings: Any) -> None:
    """Show one device as a Sparkplug edge node, until it is stopped.

    The node is born while the device is online, reports what the device reports, and takes prompts: write the metric
    Prompt/Text, and Answer/Text changes.
    """
    from edgeslm.agent.sparkplug_bridge import BirthNumbers, SparkplugBridge, mqtt_links  # noqa: PLC0415
    from edgeslm.agent.sparkplug_node import EdgeNode  # noqa: PLC0415

    own = {key: value for key, value in settings.items() if not key.startswith("to_")}
    others = {key.removeprefix("to_"): value for key, value in settings.items() if key.startswith("to_")}
    links = mqtt_links(_broker(own))
    node_links = mqtt_links(_broker(others)) if others["host"] is not None else None
    name = node or device
    edge = EdgeNode(group, name, lambda: time.time_ns() // 1_000_000, lambda: str(uuid.uuid4()))
    numbers = BirthNumbers(state_dir.expanduser(), group, name)
    with stopped_by_signals() as stopped:
        click.echo(f"showing {fleet}/{device} as {group}/{name}", err=True)
        SparkplugBridge(fleet, device, edge, numbers, links, node_links).run(stopped)


def _broker(settings: dict[str, Any]) -> BrokerConfig:
    try:
        return BrokerConfig.model_validate(
            {name: value for name, value in settings.items() if value is not None}
        )
    except ValidationError as error:
        raise UsageError(describe(error).replace("_", "-")) from error
