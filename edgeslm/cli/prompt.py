"""``edgeslm prompt``: ask a device or a pool over MQTT."""

from __future__ import annotations

import sys
import uuid
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from pydantic import ValidationError

from edgeslm import topics
from edgeslm.cli.output import FLEET, host_option, port_option, reporting_errors
from edgeslm.cli.requests import Printer, parse_options, read_asked, request_options, together_option
from edgeslm.codec import describe
from edgeslm.errors import UsageError
from edgeslm.schema.config import BrokerConfig
from edgeslm.schema.message import PromptRequest, StreamDelta, Task

if TYPE_CHECKING:
    from edgeslm.link.client import RequestClient

_FILE = click.Path(path_type=Path, dir_okay=False, exists=True)


@click.command()
@request_options
@together_option
@click.option("--device", help="Device to ask; default: the only one that is online.")
@click.option("--pool", help="Model whose pool to ask: any device that serves it answers.")
@click.option(
    "--fleet", default="home", show_default=True, envvar=FLEET, show_envvar=True, help="Fleet of the device."
)
@click.option("--model", help="Model to ask, where the device serves several.")
@click.option("--priority", type=click.Choice(["high", "normal", "low"]), default="normal", show_default=True)
@click.option("--stream/--no-stream", default=True, help="Whether to show the answer while it grows.")
@click.option(
    "--gzip", "compresses", is_flag=True, help="Compress prompt and answer, where that makes them shorter."
)
@click.option(
    "--timeout", "timeout_s", type=click.FloatRange(0.1), default=60.0, show_default=True, help="Seconds."
)
@host_option
@port_option
@click.option(
    "--protocol", type=click.Choice(["5", "3.1.1"]), default="5", show_default=True, help="MQTT version."
)
@click.option("--username", help="User name at the broker.")
@click.option("--password-file", type=_FILE, help="File that holds the password.")
@click.option("--ca", "ca_file", type=_FILE, help="Certificate authority: switches TLS on.")
@click.option("--cert", "cert_file", type=_FILE, help="Client certificate.")
@click.option("--key", "key_file", type=_FILE, help="Its private key.")
@reporting_errors
def prompt(
    text: str | None,
    as_json: bool,
    batch: bool,
    together: bool,
    device: str | None,
    pool: str | None,
    fleet: str,
    model: str | None,
    priority: str,
    stream: bool,
    compresses: bool,
    timeout_s: float,
    task: Task | None,
    tensor_file: Path | None,
    messages: str | None,
    **flags: Any,
) -> None:
    """Send TEXT to a device and print its answer as it comes. ``-`` reads standard input.

    With --batch each line of the input is a prompt of its own; with --together many of them are one request. With
    --json each result is one line of JSON, receipt included. Exit code 1 if any prompt got an error.
    """
    from edgeslm.link.client import RequestClient  # noqa: PLC0415

    if device is not None and pool is not None:
        raise UsageError("--device and --pool exclude each other")
    if pool is not None and flags["session"] is not None:
        raise UsageError(
            "--session and --pool exclude each other", hint="A session stays on one device: name it"
        )
    broker = _broker({name: flags.pop(name) for name in BrokerConfig.model_fields if name in flags})
    options = parse_options({**flags, "priority": priority, "stream": stream and not as_json})
    asked = read_asked(
        text, batch=batch, together=together, task=task, tensor_file=tensor_file, messages=messages
    )
    printer = Printer(as_json=as_json)
    client = RequestClient(broker).connect(timeout_s)
    with closing(client):
        topic = _topic(client, fleet, device, pool)
        for fields in asked:
            try:
                request = PromptRequest(
                    **fields,
                    id=str(uuid.uuid4()),
                    model=model,
                    options=options.model_copy(update={"stream": False}) if "inputs" in fields else options,
                    accept_encoding=("gzip",) if compresses else (),
                )
            except ValidationError as error:
                raise UsageError(describe(error)) from error
            result = client.ask(topic, request, _shown_by(printer), timeout_s, compresses=compresses)
            printer.result(result)
    if printer.failures:
        sys.exit(1)


def _shown_by(printer: Printer) -> Any:
    def show(delta: StreamDelta) -> None:
        printer.delta(delta.text)

    return show


def _broker(settings: dict[str, Any]) -> BrokerConfig:
    try:
        return BrokerConfig.model_validate(
            {name: value for name, value in settings.items() if value is not None}
        )
    except ValidationError as error:
        raise UsageError(describe(error).replace("_", "-")) from error


def _topic(client: RequestClient, fleet: str, device: str | None, pool: str | None) -> str:
    if pool is not None:
        return topics.pool_topic(fleet, pool)
    if device is None:
        online = [view.device for view in client.list_devices(fleet) if view.state == "online"]
        if len(online) != 1:
            found = f"these are online: {', '.join(online)}" if online else "none is online"
            raise UsageError(f"which device of fleet '{fleet}'? {found}", hint="Name one with --device")
        device = online[0]
    return topics.device_topic(fleet, device, "prompt")
