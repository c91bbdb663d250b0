"""``edgeslm agent``: the device agent as a foreground process, for systemd or a terminal."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

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

if TYPE_CHECKING:
    from edgeslm.agent.joining import Joining
    from edgeslm.agent.notify import Heartbeat
    from edgeslm.agent.service import Agent
    from edgeslm.cli.output import StopEvent

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
@click.option(
    "--claim",
    "claim_file",
    envvar="EDGESLM_CLAIM",
    show_envvar=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="Claim to join a fleet with, on a device of none; default: the service's credential claim.json.",
)
@reporting_errors
def run(path: Path | None, claim_file: Path | None, **overrides: Any) -> None:
    """Connect to the broker and answer prompts until SIGTERM or Ctrl-C.

    A setting comes from its flag, else its environment variable, else the file, else its default.
    """
    from edgeslm.agent.memory import release_startup_pages, share_one_heap  # noqa: PLC0415
    from edgeslm.agent.notify import Heartbeat, Notifier, settle_files  # noqa: PLC0415
    from edgeslm.agent.recent_log import RecentLog  # noqa: PLC0415
    from edgeslm.cli.wiring_config import start_settings  # noqa: PLC0415

    heartbeat = Heartbeat(Notifier.from_environment(os.environ, os.getpid())).start()
    heartbeat.tell("starting")
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

        joining, given = _join(heartbeat, claim_file, path, overrides, stop, end_to_begin_anew)
        if stop.is_set():
            _end(heartbeat, joining, anew=anew, by_signal=stop.by_signal)
            return
        settings = start_settings(path, given, restart=end_to_begin_anew, replace=_begin_anew)
        config, trial = settings.config, settings.trial
        config_dir = (path or Path()).resolve().parent
        if trial is not None:
            trial.start()
        try:
            running = wiring.build_agent(
                config,
                config_dir,
                end_to_begin_anew,
                recent_log,
                settings,
                on_hang=_begin_anew,
                before_first_contact=settle_files if heartbeat.notifier.is_heard else None,
            )
            if heartbeat.notifier.is_heard:
                settle_files()
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
        where = f"{config.broker.host}:{config.broker.port}"
        heartbeat.prove(_ailment(running, joining), lambda: _status(running, joining, served, where))
        while not stop.wait(0.2) and not running.wait_connected(0):
            pass
        if not stop.is_set():
            click.echo("online", err=True)
            release_startup_pages()
        stop.wait()
        running.stop()
        if trial is not None:
            trial.stop()
    _end(heartbeat, joining, anew=anew, by_signal=stop.by_signal)


def _join(
    heartbeat: Heartbeat,
    claim_file: Path | None,
    path: Path | None,
    overrides: Mapping[str, Any],
    stop: StopEvent,
    on_joined: Callable[[], None],
) -> tuple[Joining | None, Mapping[str, Any]]:
    """Join a fleet, on a device with a claim and no fleet yet, and return when it goes on otherwise.

    Returns:
        What goes on joining beside a device that has duties meanwhile, and the settings that it runs with; `stop` is
        set where it has joined, or is to end.
    """
    from edgeslm.cli.wiring_joining import HEAD_START_S, find_claim, find_stranger  # noqa: PLC0415

    claim = find_claim(claim_file, os.environ)
    stranger = find_stranger(claim, path, overrides, on_joined=on_joined, on_state=heartbeat.tell)
    if stranger is None:
        return None, overrides
    from edgeslm.agent.notify import settle_files  # noqa: PLC0415

    if heartbeat.notifier.is_heard:
        settle_files()
    joining = stranger.joining
    joining.start()
    # The service is there, though it may wait for its network for days.
    heartbeat.prove(joining.ailment, lambda: joining.state)
    click.echo("joining its fleet", err=True)
    stop.wait(HEAD_START_S if stranger.has_duties else None)
    return joining, stranger.overrides


def _ailment(running: Agent, joining: Joining | None) -> Callable[[], str | None]:
    return lambda: running.ailment() or (None if joining is None else joining.ailment())


def _status(running: Agent, joining: Joining | None, served: str, broker: str) -> str:
    if joining is not None:
        return f"serves {served} as a stranger; {joining.state}"
    is_online = running.wait_connected(0)
    return f"serves {served}, {'online at' if is_online else 'waits for the broker'} {broker}"


def _end(heartbeat: Heartbeat, joining: Joining | None, *, anew: threading.Event, by_signal: bool) -> None:
    """Leave, or begin anew."""
    begins_anew = anew.is_set() and not by_signal
    heartbeat.stop(ends=not begins_anew)
    if joining is not None:
        joining.stop()
    if begins_anew:
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
