"""What the power commands share: settings, the agent's ledger, and meters that are looked at."""

from __future__ import annotations

import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any, Final

import click

from edgeslm.cli import wiring
from edgeslm.cli.output import json_option, reporting_errors
from edgeslm.cli.power_words import DAY_S
from edgeslm.cli.wiring_config import read_settings
from edgeslm.errors import UsageError
from edgeslm.link.mqtt import MqttLink
from edgeslm.link.port import Message
from edgeslm.power.attribution import Interval
from edgeslm.power.bank import MeterEvent
from edgeslm.power.boards import choose_board
from edgeslm.power.governor import Governor
from edgeslm.power.ledger_reader import LedgerReader
from edgeslm.power.meters.discovery import Discovery
from edgeslm.power.meters.plug import PlugMeter
from edgeslm.power.monitor import LEDGER_NAME, PowerMonitor
from edgeslm.power.port import Vitals
from edgeslm.schema.board import Board
from edgeslm.schema.config import AgentConfig, BrokerConfig

_LEAST_IDLE_S: Final = 60.0
_ANY_DEVICE: Final = "local"
"""The settings name a device, which no power command needs."""


# --- settings -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Settings:
    """What a command works with.

    Attributes:
        directory: where relative paths of model packages start.
    """

    config: AgentConfig
    board: Board
    directory: Path

    @property
    def ledger_file(self) -> Path:
        """The agent's ledger."""
        return self.config.state_dir / LEDGER_NAME


def load_settings(path: Path | None, board: str | None, state_dir: Path | None) -> Settings:
    """The settings of the file `path`, if there is one, with what the fleet set and the flags on top.

    Raises:
        ConfigError: the file cannot be used, or there is no such board.
    """
    flags: dict[str, Any] = {"device": _ANY_DEVICE, "board": board, "state_dir": state_dir}
    config = read_settings(path, flags).config
    return Settings(config, choose_board(config.board), (path or Path()).resolve().parent)


def power_command(command: Callable[..., None]) -> Callable[..., None]:
    """Give `command` the options that all power commands have: it gets `settings` and `as_json`, errors are told."""

    @reporting_errors
    @wraps(command)
    def wrapped(*, path: Path | None, board: str | None, state_dir: Path | None, **rest: Any) -> None:
        command(settings=load_settings(path, board, state_dir), **rest)

    options = [
        click.option(
            "--config",
            "path",
            envvar="EDGESLM_CONFIG",
            show_envvar=True,
            type=click.Path(path_type=Path, dir_okay=False),
            help="agent.yaml.",
        ),
        click.option(
            "--board",
            envvar="EDGESLM_BOARD",
            show_envvar=True,
            help="Board to assume instead of the recognised one.",
        ),
        click.option(
            "--state-dir",
            envvar="EDGESLM_STATE_DIR",
            show_envvar=True,
            type=click.Path(path_type=Path),
            help="Where the agent keeps its ledger and calibration.",
        ),
        json_option,
    ]
    decorated: Callable[..., None] = wrapped
    for option in reversed(options):
        decorated = option(decorated)
    return decorated


@contextmanager
def naming_the_extra(extra: str, *modules: str) -> Iterator[None]:
    """Say what to install where a library of `extra` is missing.

    Raises:
        UsageError: one of `modules` is.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in modules:
            raise
        raise UsageError(f"{error.name} is not installed", hint=f"pip install 'edgeslm[{extra}]'") from error


# --- the ledger ---------------------------------------------------------------------------------------------


@contextmanager
def open_ledger(settings: Settings) -> Iterator[LedgerReader]:
    """The agent's ledger, for reading.

    Raises:
        LedgerError: there is none, or it cannot be read.
    """
    reader = LedgerReader.open(settings.ledger_file)
    try:
        yield reader
    finally:
        reader.close()


@contextmanager
def ledger_if_any(settings: Settings) -> Iterator[LedgerReader | None]:
    """The agent's ledger, or ``None`` where no agent ever kept one.

    Raises:
        LedgerError: it is there but cannot be read.
    """
    if not settings.ledger_file.exists():
        yield None
        return
    with open_ledger(settings) as reader:
        yield reader


def learned_idle_w(reader: LedgerReader | None, wall_s: float) -> float | None:
    """Watts of the idle board over the last day by the ledger; ``None`` where it has hardly seen it idle.

    Raises:
        LedgerError: the ledger cannot be read.
    """
    if reader is None:
        return None
    for row in reader.energy(wall_s - DAY_S, wall_s + 60, ["cause"]):
        if row.cause == "idle" and row.seconds >= _LEAST_IDLE_S:
            return row.energy_j / row.seconds
    return None


def governor_of(
    settings: Settings, idle_w: float, reader: LedgerReader | None, now_s: float, wall_s: float
) -> Governor:
    """A governor that knows what the ledger tells of the past, as the agent's does when it starts.

    Args:
        now_s: monotonic.
        wall_s: Unix time at `now_s`.

    Raises:
        LedgerError: the ledger cannot be read.
    """
    budget = settings.config.budget
    governor = Governor(budget, idle_w, now_s=now_s)
    longest_s = max((window.over_s for window in budget.windows), default=0.0)
    if reader is not None and longest_s > 0:
        governor.restore(reader.spans(longest_s, now_s, wall_s))
    return governor


# --- meters -------------------------------------------------------------------------------------------------


class _PlugFeed:
    """``LinkEvents`` that hand a plug its messages."""

    def __init__(self, plug: PlugMeter) -> None:
        self._plug = plug

    def on_message(self, message: Message) -> None:
        self._plug.on_message(message.topic, message.payload, time.monotonic(), retained=message.retain)
        message.acknowledge()

    def on_connected(self, *, session_present: bool) -> None:
        """Nothing to do: the link subscribes."""

    def on_disconnected(self, reason: str) -> None:
        """Nothing to do: the meter says that it is stale."""

    def on_published(self, token: int) -> None:
        """Nothing is published."""


@contextmanager
def _fed(plug: PlugMeter, broker: BrokerConfig) -> Iterator[None]:
    link = MqttLink(
        broker.model_copy(update={"session_expiry_s": 0}), f"edgeslm-power-{uuid.uuid4().hex[:12]}"
    )
    link.start(_PlugFeed(plug), [(topic, 0) for topic in plug.filters()])
    try:
        yield
    finally:
        link.stop()


@contextmanager
def open_meters(settings: Settings) -> Iterator[Discovery]:
    """The meters of this board; a plug gets its messages from the broker that the settings name.

    Raises:
        ConfigError: calibration, password or TLS files cannot be used.
    """
    discovery = wiring.discover_meters(settings.config, settings.board)
    with ExitStack() as stack:
        for meter in (*discovery.meters, discovery.model):
            stack.callback(meter.close)
        if discovery.plug is not None:
            stack.enter_context(_fed(discovery.plug, settings.config.broker))
        yield discovery


@contextmanager
def monitored(
    settings: Settings,
    *,
    on_interval: Callable[[Interval], None],
    on_vitals: Callable[[Vitals], None] | None = None,
    on_meter: Callable[[MeterEvent], None] | None = None,
) -> Iterator[PowerMonitor]:
    """Watch the board's power as the agent does, with a ledger that is thrown away: the agent's is its own."""
    with open_meters(settings) as discovery, tempfile.TemporaryDirectory(prefix="edgeslm-power-") as folder:
        monitor = PowerMonitor(settings.board, settings.config.power, discovery, Path(folder) / LEDGER_NAME)
        monitor.listen(on_interval=on_interval, on_vitals=on_vitals, on_meter=on_meter)
        monitor.start()
        try:
            yield monitor
        finally:
            monitor.stop()
