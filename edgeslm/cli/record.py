"""``edgeslm record``: messages of a broker with their times, as lines of JSON."""

from __future__ import annotations

import contextlib
import queue
import sys
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import click

from edgeslm import codec
from edgeslm.cli.output import printable, reporting_errors, stopped_by_signals
from edgeslm.cli.rules_run import broker_config, broker_options
from edgeslm.errors import NoAnswerError, UsageError
from edgeslm.link.port import Message
from edgeslm.schema.rule import check_filter
from edgeslm.schema.rule_trace import RecordedMessage

_CONNECT_S = 10.0
_LOOK_S = 0.2
_MAX_WAITING = 100_000


class _Ear:
    """Takes what comes; ``LinkEvents``."""

    def __init__(self) -> None:
        self.heard: queue.SimpleQueue[tuple[float, float, Message]] = queue.SimpleQueue()
        self.is_connected = False
        self.reason = "no answer yet"
        self.lost = 0

    def on_message(self, message: Message) -> None:
        """Part of ``LinkEvents``."""
        if self.heard.qsize() < _MAX_WAITING:
            self.heard.put((time.monotonic(), time.time(), message))
        else:
            self.lost += 1
        message.acknowledge()

    def on_connected(self, *, session_present: bool) -> None:
        """Part of ``LinkEvents``."""
        del session_present
        self.is_connected = True

    def on_disconnected(self, reason: str) -> None:
        """Part of ``LinkEvents``."""
        self.is_connected = False
        self.reason = reason

    def on_published(self, token: int) -> None:
        """Part of ``LinkEvents``."""


def _recorded(message: Message, at_s: float, wall_s: float) -> RecordedMessage:
    text: str | None = None
    with contextlib.suppress(UnicodeDecodeError):
        text = message.payload.decode("utf-8")
    return RecordedMessage(
        at_s=round(at_s, 6),
        wall_s=round(wall_s, 6),
        topic=message.topic,
        text=text,
        hex=message.payload.hex() if text is None else None,
        qos=1 if message.qos else 0,
        retain=message.retain,
    )


@click.command()
@click.argument("topics", nargs=-1, required=True, metavar="TOPIC...")
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    help="File to write, which must not be there; - is standard output.",
)
@click.option("--count", type=click.IntRange(1), help="End after so many messages.")
@click.option("--seconds", type=click.FloatRange(0.1), help="End after so many seconds.")
@broker_options
@reporting_errors
def record(topics: Sequence[str], out: Path, count: int | None, seconds: float | None, **flags: Any) -> None:
    """Record what is published on TOPIC (with + and #) until Ctrl-C, to replay it: edgeslm rules replay."""
    from edgeslm.link.mqtt import MqttLink  # noqa: PLC0415

    for name in topics:
        try:
            check_filter(name)
        except ValueError as error:
            raise UsageError(f"'{name[:80]}': {error}") from error
    config = broker_config(flags)
    ear = _Ear()
    link = MqttLink(config, f"edgeslm-record-{uuid.uuid4().hex[:12]}")
    with stopped_by_signals() as stop:
        try:
            link.start(ear, [(name, 0) for name in topics])
            until_s = time.monotonic() + _CONNECT_S
            while not ear.is_connected and not stop.wait(0.02):
                if time.monotonic() > until_s:
                    where = f"{config.host}:{config.port}"
                    raise NoAnswerError(f"no broker at {where}: {ear.reason}", waited_s=_CONNECT_S)
            with _opened(out) as file:
                click.echo(f"recording {', '.join(printable(name) for name in topics)}", err=True)
                written = _write(ear, file, stop, count, seconds)
        finally:
            link.stop()
    lost = f", {ear.lost} were lost" if ear.lost else ""
    click.echo(f"{written} messages in {out}{lost}", err=True)


def _opened(out: Path) -> IO[bytes]:
    if str(out) == "-":
        return open(sys.stdout.fileno(), "wb", closefd=False)
    try:
        return out.open("xb")
    except FileExistsError as error:
        raise UsageError(f"{out} is there already", hint="Name another file") from error
    except OSError as error:
        raise UsageError(f"{out}: {error.strerror}") from error


def _write(ear: _Ear, file: IO[bytes], stop: Any, count: int | None, seconds: float | None) -> int:
    written = 0
    began_s = time.monotonic()
    first_s: float | None = None
    while not stop.is_set():
        if seconds is not None and time.monotonic() - began_s >= seconds:
            break
        try:
            at_s, wall_s, message = ear.heard.get(timeout=_LOOK_S)
        except queue.Empty:
            file.flush()
            continue
        first_s = at_s if first_s is None else first_s
        file.write(codec.encode(_recorded(message, at_s - first_s, wall_s)) + b"\n")
        written += 1
        if count is not None and written >= count:
            break
    return written
