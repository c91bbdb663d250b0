"""``edgeslm agent``: the device agent as a foreground process, for systemd or a terminal."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from edgeslm.cli import wiring
from edgeslm.cli.output import (
    BROKER_HOST,
    BROKER_PORT,
    FLEET,
    CommandGroup,
    print_json,
    reporting_errors,
    stopped_by_signals,
)

_SWITCH_INTERVAL_S = 0.0001


@click.group(cls=CommandGroup, lazy={"enrol": ("edgeslm.cli.enrol:enrol", "Join a fleet with a claim.")})
def agent() -> None:
    """Run the device agent."""


def _setting(flag: str, name: str, variable: str, text: str, kind: Any = str) -> Any:
    return click.option(flag, name, envvar=variable, show_envvar=True, type=kind, help=text)


def _settings_options(command: Any) -> Any:
    options = [
        _setting(
            "--config", "path", "EDGESLM_CONFIG", "agent.yaml.", click.Path(path_type=Path, dir_okay=False)
        ),
        _setting("--device", "device", "EDGESLM_DEVICE", "Name of this device on the wire."),
        _setting("--fleet", "fleet", FLEET, "Fleet that it belongs to."),
        _setting("--board", "board", "EDGESLM_BOARD", "Board to assume instead of the recognised one."),
        _setting("--host", "broker_host", BROKER_HOST, "MQTT broker."),
        _setting("--port", "broker_port", BROKER_PORT, "Port of the broker.", int),
        _setting(
            "--state-dir", "state_dir", "EDGESLM_STATE_DIR", "Journal and models.", click.Path(path_type=Path)
        ),
        _setting("--threads", "threads", "EDGESLM_THREADS", "Inference threads.", int),
    ]
    for option in reversed(options):
        command = option(command)
    return command


@agent.command()
@_settings_options
@reporting_errors
def run(path: Path | None, **overrides: Any) -> None:
    """Connect to the broker and answer prompts until SIGTERM or Ctrl-C.

    A setting comes from its flag, else its environment variable, else the file, else its default.
    """
    from edgeslm.agent.memory import release_startup_pages, share_one_heap  # noqa: PLC0415

    config = _config(path, overrides)
    config = wiring.as_member(config, wiring.find_identity(config.state_dir))
    share_one_heap()
    # The worker computes in short native calls that keep the interpreter, and asks for it again between them. At the
    # default of 5 ms the other threads would wait out whole answers, and their turns would delay it as much.
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    with stopped_by_signals() as stop:
        running = wiring.build_agent(config, (path or Path()).resolve().parent)
        running.start()
        info = running.info()
        served = ", ".join(f"{model.name}@{model.version} ({model.graph})" for model in info.models)
        click.echo(
            f"edgeslm {info.agent} on {info.board}: {config.fleet}/{config.device} serves {served}", err=True
        )
        click.echo(f"runtime {info.runtime}, broker {config.broker.host}:{config.broker.port}", err=True)
        while not stop.wait(0.2) and not running.wait_connected(0):
            pass
        if not stop.is_set():
            click.echo("online", err=True)
            release_startup_pages()
        stop.wait()
        running.stop()


@agent.command()
@_settings_options
@reporting_errors
def config(path: Path | None, **overrides: Any) -> None:
    """Check the configuration and print it as JSON, defaults filled in."""
    print_json(_config(path, overrides))


def _config(path: Path | None, overrides: dict[str, Any]) -> Any:
    if path is None:
        return wiring.parse_agent_config({}, overrides, None)
    return wiring.read_agent_config(path, overrides)
