"""``edgeslm agent``: the device agent as a foreground process, for systemd or a terminal."""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any, NoReturn

import click
from click.core import ParameterSource

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


_COMMANDS = {
    "adopt": ("edgeslm.cli.agent_pack:adopt", "Install an archive so that the fleet can update the agent."),
    "enrol": ("edgeslm.cli.enrol:enrol", "Join a fleet with a claim."),
    "installed": ("edgeslm.cli.agent_pack:installed", "List the versions of the agent that are installed."),
    "pack": ("edgeslm.cli.agent_pack:pack", "Pack edgeslm and all that it needs into one archive."),
}


@click.group(cls=CommandGroup, lazy=_COMMANDS)
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
    from edgeslm.agent.recent_log import RecentLog  # noqa: PLC0415
    from edgeslm.cli.wiring_config import start_settings  # noqa: PLC0415

    recent_log = RecentLog()
    recent_log.install()
    share_one_heap()
    # The worker computes in short native calls that keep the interpreter, and asks for it again between them. At the
    # default of 5 ms the other threads would wait out whole answers, and their turns would delay it as much.
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    anew = threading.Event()
    with stopped_by_signals() as stop:

        def end_to_begin_anew() -> None:
            anew.set()
            stop.set()

        settings = start_settings(path, overrides, restart=end_to_begin_anew, replace=_begin_anew)
        config, trial = settings.config, settings.trial
        config_dir = (path or Path()).resolve().parent
        if trial is not None:
            trial.start()
        try:
            running = wiring.build_agent(
                config, config_dir, end_to_begin_anew, recent_log, settings, on_hang=_begin_anew
            )
            running.start()
        except Exception as error:
            if trial is not None and trial.failed(str(error)):
                _begin_anew()
            raise
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
        if trial is not None:
            trial.stop()
    if anew.is_set() and not stop.by_signal:
        _begin_anew()


def _begin_anew() -> NoReturn:
    """Become a new process under the same number and with the same arguments: who watches this one sees no end."""
    from edgeslm.agent.installation import restart_command  # noqa: PLC0415

    click.echo("beginning anew", err=True)
    sys.stdout.flush()
    sys.stderr.flush()
    # An alarm of the watchdog would go on counting in the next process.
    signal.setitimer(signal.ITIMER_REAL, 0)
    # By way of the launcher where there is one: another version may be meant to run by now.
    command = restart_command(os.environ, sys.argv[1:]) or [sys.executable, *sys.orig_argv[1:]]
    os.execv(command[0], command)  # noqa: S606 - no shell is wanted


@agent.command()
@_settings_options
@click.option("--origins", "with_origins", is_flag=True, help="Say of each setting where it comes from.")
@reporting_errors
def config(path: Path | None, with_origins: bool, **overrides: Any) -> None:
    """Check the configuration and print it as JSON, defaults filled in and what the fleet set included."""
    from edgeslm.cli.wiring_config import Origin, origins, read_settings  # noqa: PLC0415

    settings = read_settings(path, overrides)
    if not with_origins:
        print_json(settings.config)
        return
    context = click.get_current_context()

    def source_of(name: str) -> Origin:
        is_flag = context.get_parameter_source(name) is ParameterSource.COMMANDLINE
        return "flag" if is_flag else "environment"

    found = origins(settings, source_of)
    print_json({key: {"value": value, "from": origin} for key, (value, origin) in found.items()})
