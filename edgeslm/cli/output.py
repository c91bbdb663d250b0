"""How results, errors and exit codes leave a command. Results on stdout, everything else on stderr."""

from __future__ import annotations

import _thread
import json
import logging
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from types import FrameType
from typing import Any, ParamSpec, TypeVar

import click
from pydantic import BaseModel

from edgeslm.errors import EdgeslmError

P = ParamSpec("P")
R = TypeVar("R")

BROKER_HOST = "EDGESLM_HOST"
BROKER_PORT = "EDGESLM_PORT"
FLEET = "EDGESLM_FLEET"
"""Environment variables that several commands share; a flag takes precedence."""

host_option = click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    envvar=BROKER_HOST,
    show_envvar=True,
    help="MQTT broker.",
)
port_option = click.option(
    "--port",
    type=int,
    default=1883,
    show_default=True,
    envvar=BROKER_PORT,
    show_envvar=True,
    help="Port of the broker.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")


class CommandGroup(click.Group):
    """A group that imports a subcommand's module only when it is called: `agent run` must start fast."""

    def __init__(self, *args: Any, lazy: dict[str, tuple[str, str]] | None = None, **kwargs: Any) -> None:
        """`lazy` maps a command to (``module:attribute``, short help)."""
        super().__init__(*args, **kwargs)
        self._lazy = lazy or {}

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All names, sorted."""
        return sorted({*super().list_commands(ctx), *self._lazy})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return the command."""
        if cmd_name not in self._lazy:
            return self._ready(ctx, super().get_command(ctx, cmd_name))
        module, _, attribute = self._lazy[cmd_name][0].partition(":")
        command: click.Command = getattr(__import__(module, fromlist=[attribute]), attribute)
        return self._ready(ctx, command)

    def _ready(self, ctx: click.Context, command: click.Command | None) -> click.Command | None:
        if command is not None and ctx.resilient_parsing:  # for the tab key
            from edgeslm.cli.completion import complete_names  # noqa: PLC0415

            complete_names(command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List commands without importing the lazy ones."""
        rows = []
        for name in self.list_commands(ctx):
            if name in self._lazy:
                rows.append((name, self._lazy[name][1]))
            elif (command := super().get_command(ctx, name)) is not None:
                rows.append((name, command.get_short_help_str(100)))
        with formatter.section("Commands"):
            formatter.write_dl(rows)


def print_json(value: BaseModel | dict[str, Any] | list[Any]) -> None:
    """One JSON document on one line of stdout."""
    if isinstance(value, BaseModel):
        text = value.model_dump_json(by_alias=True, exclude_none=True)
    else:
        text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    click.echo(text)


def printable(text: str, keep: str = "") -> str:
    """`text` without what could steer a terminal: answers, logs, and what devices say are not trusted."""
    return "".join(char if char.isprintable() or char in keep else "?" for char in text)


class StopEvent(threading.Event):
    """Set when a command is to end.

    Attributes:
        by_signal: somebody outside asked for it.
    """

    by_signal = False


@contextmanager
def stopped_by_signals() -> Iterator[StopEvent]:
    """An event that Ctrl-C and SIGTERM set."""
    stop = StopEvent()

    def on_signal(number: int, frame: FrameType | None) -> None:
        del number, frame
        stop.by_signal = True
        # The thread that runs this may hold the very lock that set() takes: it was about to wait, or to set it for
        # a signal before this one. Another thread can wait for that lock, and needs none to be started.
        _thread.start_new_thread(stop.set, ())

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def reporting_errors(command: Callable[P, R]) -> Callable[P, R]:
    """Turn an :class:`EdgeslmError` into one line on stderr and its exit code; a traceback with ``--debug``."""

    @wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except EdgeslmError as error:
            if debugging():
                traceback.print_exc()
            click.echo(f"edgeslm: {error}", err=True)
            sys.exit(error.exit_code)

    return wrapped


def debugging() -> bool:
    """Whether ``--debug`` was given."""
    context = click.get_current_context(silent=True)
    return bool(context is not None and context.find_root().params.get("debug"))


def configure_logging(verbosity: int) -> None:
    """Log to stderr: warnings, with 1 also information, with 2 everything."""
    level = (logging.WARNING, logging.INFO, logging.DEBUG)[min(verbosity, 2)]
    logging.basicConfig(
        level=level, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr
    )
