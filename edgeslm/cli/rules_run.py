"""``edgeslm rules run``: rules and a model beside a broker, for a desk or a gateway without an agent."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from pydantic import ValidationError

from edgeslm.cli.output import (
    host_option,
    json_option,
    port_option,
    printable,
    reporting_errors,
    stopped_by_signals,
)
from edgeslm.cli.rules_common import answers_option, choose_answers, files_argument, model_option, show_trace
from edgeslm.codec import describe
from edgeslm.errors import UsageError
from edgeslm.schema.config import BrokerConfig
from edgeslm.schema.rule_trace import FiringTrace

_FILE = click.Path(path_type=Path, dir_okay=False, exists=True)


def broker_options(command: Any) -> Any:
    """How the broker is reached."""
    for option in (
        click.option("--key", "key_file", type=_FILE, help="Its private key."),
        click.option("--cert", "cert_file", type=_FILE, help="Client certificate."),
        click.option("--ca", "ca_file", type=_FILE, help="Certificate authority: switches TLS on."),
        click.option("--password-file", type=_FILE, help="File that holds the password."),
        click.option("--username", help="User name at the broker."),
        port_option,
        host_option,
    ):
        command = option(command)
    return command


def broker_config(flags: Mapping[str, Any]) -> BrokerConfig:
    """The broker that `flags` name, with a clean session.

    Raises:
        UsageError: they do not go together.
    """
    try:
        given = {name: value for name, value in flags.items() if value is not None}
        return BrokerConfig.model_validate({**given, "session_expiry_s": 0})
    except ValidationError as error:
        raise UsageError(describe(error).replace("_", "-")) from error


@click.command()
@files_argument
@broker_options
@model_option
@answers_option
@click.option("--dry-run", is_flag=True, help="Find out everything and publish nothing.")
@click.option(
    "--state-dir",
    type=click.Path(path_type=Path, file_okay=False),
    help="Keep the trace there, for rules trace and status.",
)
@json_option
@reporting_errors
def run(
    files: Sequence[Path],
    model: str | None,
    answers: Path | None,
    dry_run: bool,
    state_dir: Path | None,
    as_json: bool,
    **flags: Any,
) -> None:
    """Run rules against a broker until SIGTERM or Ctrl-C, and show every firing. Files that change are read anew."""
    from edgeslm.agent.rules.loading import load_rules  # noqa: PLC0415
    from edgeslm.agent.rules.runner import RuleRunner  # noqa: PLC0415
    from edgeslm.agent.rules.trace import TRACE_NAME, TraceStore  # noqa: PLC0415
    from edgeslm.cli.wiring_rules import BrokerHost  # noqa: PLC0415
    from edgeslm.link.mqtt import MqttLink  # noqa: PLC0415

    load_rules(files)  # for somebody at a terminal an error is an end, and not something to wait out
    config = broker_config(flags)

    def on_event(kind: str, detail: str, figures: Mapping[str, float | str]) -> None:
        name = f" {figures['rule']}" if "rule" in figures else ""
        click.echo(f"event {kind}{name}: {printable(detail)}", err=True)

    def on_trace(trace: FiringTrace) -> None:
        show_trace(trace, as_json=as_json)

    answer = choose_answers(model, answers)
    store = None if state_dir is None else TraceStore(state_dir / TRACE_NAME)
    runner = RuleRunner(files, store, on_event, on_trace=on_trace, dry_run=dry_run)
    host = BrokerHost(MqttLink(config, f"edgeslm-rules-{uuid.uuid4().hex[:12]}"), answer)
    with stopped_by_signals() as stop:
        host.start(runner)
        try:
            while not stop.wait(0.2) and not host.is_connected.is_set():
                pass
            if not stop.is_set():
                click.echo(f"rules run at {config.host}:{config.port}", err=True)
            stop.wait()
        finally:
            host.stop()
