"""Puts together what shows a device in a home and lets it act there; its code is loaded only where something does.

Announcing is done on the sampling thread, sentences are heard on threads of their own; the agent sees neither.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

import edgeslm
from edgeslm.clock import clock_is_set, utc_now
from edgeslm.errors import AssistError, ConfigError

if TYPE_CHECKING:
    from edgeslm.agent.discovery import Facts
    from edgeslm.agent.home.acting import Home
    from edgeslm.agent.home.announcing import Announcer
    from edgeslm.agent.home.assist import AssistServer
    from edgeslm.agent.operations.ports import Operation
    from edgeslm.agent.service import Agent
    from edgeslm.agent.serving import ServedModels
    from edgeslm.cli.wiring_operations import AgentParts
    from edgeslm.link.port import Link, Message
    from edgeslm.schema.board import Board
    from edgeslm.schema.config import AgentConfig

MARK_NAME: Final = "home-assistant.json"
"""Remembers what was announced."""
CHOICE_NAME: Final = "default-model"
_OP_DEADLINE_S: Final = 30.0


@dataclass
class HomeParts:
    """``HomeSide`` of an agent."""

    announcer: Announcer | None
    open_assist: Callable[[Agent], AssistServer] | None
    assist: AssistServer | None = None

    def connected(self) -> None:
        """See ``HomeSide``."""
        if self.announcer is not None:
            self.announcer.connected()

    def published(self, token: int) -> None:
        """See ``HomeSide``."""
        if self.announcer is not None:
            self.announcer.published(token)

    def commanded(self, topic: str) -> None:
        """See ``HomeSide``."""
        if self.announcer is not None:
            self.announcer.commanded(topic)

    def changed(self) -> None:
        """See ``HomeSide``."""
        if self.announcer is not None:
            self.announcer.changed()

    def start(self, agent: Agent) -> None:
        """See ``HomeSide``."""
        if self.open_assist is not None:
            self.assist = self.open_assist(agent)
            self.assist.start()

    def stop(self) -> None:
        """See ``HomeSide``."""
        if self.assist is not None:
            self.assist.stop()


def build_home(
    parts: AgentParts, config_dir: Path, board: Board, listeners: dict[str, Callable[[Message], None]]
) -> HomeParts | None:
    """What shows the device in a home; ``None`` where nothing does, and nothing has to be taken back.

    Args:
        parts: of the agent.
        config_dir: what paths in the configuration are relative to.
        listeners: gets who listens to Home Assistant.

    Raises:
        ConfigError: the map of the home is wrong.
        AssistError: sentences are to be taken, and the package for it is missing.
    """
    config = parts.config
    wanted = config.homeassistant
    mark = config.state_dir / MARK_NAME
    if not wanted.enabled and wanted.wyoming_port is None and not mark.exists():
        return None
    home = _home(config, config_dir, parts.link)
    announcer = None
    if wanted.enabled or mark.exists():
        announcer = _announcer(parts, board, mark)
        parts.power.monitor.listen(on_interval=lambda interval: announcer.tick(interval.end_s))
        if announcer.birth_topic is not None:
            listeners[announcer.birth_topic] = announcer.on_birth
    if wanted.enabled:
        from edgeslm.agent.home.choosing import take_up_choice  # noqa: PLC0415

        take_up_choice(parts.served, config.state_dir / CHOICE_NAME)
    return HomeParts(announcer, _assist(config, parts.served, home))


def home_operations(config: AgentConfig, served: ServedModels) -> list[Operation]:
    """Remote operations that only a device in a home has."""
    if not config.homeassistant.enabled:
        return []
    from edgeslm.agent.discovery import CHOOSE_MODEL  # noqa: PLC0415
    from edgeslm.cli.wiring_operations import LazyOperation  # noqa: PLC0415

    def choose_model() -> Operation:
        from edgeslm.agent.home.choosing import ChooseModel  # noqa: PLC0415

        return ChooseModel(served, config.state_dir / CHOICE_NAME)

    return [LazyOperation(CHOOSE_MODEL, _OP_DEADLINE_S, choose_model)]


def _home(config: AgentConfig, config_dir: Path, link: Link) -> Home | None:
    path = config.homeassistant.home
    if path is None:
        return None
    if config.homeassistant.wyoming_port is None:
        raise ConfigError(
            "homeassistant.home is set and homeassistant.wyoming_port is not: nothing would be carried out",
            key="homeassistant.home",
        )
    from edgeslm.agent.home.acting import Home, read_home  # noqa: PLC0415

    def now() -> datetime | None:
        return utc_now().astimezone() if clock_is_set(time.time()) else None

    return Home(read_home(config_dir / path), link.publish, now)


def _announcer(parts: AgentParts, board: Board, mark: Path) -> Announcer:
    from edgeslm.agent.discovery import Facts, ShownModel  # noqa: PLC0415
    from edgeslm.agent.home.announcing import Announcer  # noqa: PLC0415

    config, power, served = parts.config, parts.power, parts.served

    def facts(order_id: str) -> Facts:
        manifests = [model.installed.manifest for model in served.all()]
        return Facts(
            fleet=config.fleet,
            device=config.device,
            board=board.title,
            board_id=board.name,
            agent=edgeslm.__version__,
            models=[ShownModel(manifest.name, manifest.version) for manifest in manifests],
            order_id=order_id,
            now=utc_now(),
            updates=sorted(manifest.name for manifest in manifests) if parts.updates is not None else (),
            budget=power.steward is not None,
            battery=power.monitor.vitals.battery is not None,
        )

    prefix = config.homeassistant.prefix if config.homeassistant.enabled else None
    return Announcer(
        config.fleet, config.device, prefix, mark, parts.link.publish, facts, power.telemetry.report
    )


def _assist(
    config: AgentConfig, served: ServedModels, home: Home | None
) -> Callable[[Agent], AssistServer] | None:
    wanted = config.homeassistant
    port = wanted.wyoming_port
    if port is None:
        return None
    try:
        from edgeslm.agent.home.assist import AssistServer  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise AssistError(
            "homeassistant.wyoming_port needs the package wyoming, which is not installed",
            hint="pip install 'edgeslm[wyoming]'",
        ) from error
    from edgeslm.agent.home.acting import Listener  # noqa: PLC0415

    def opened(agent: Agent) -> AssistServer:
        hear = Listener(agent, home).hear
        return AssistServer(wanted.wyoming_host, port, config.device, served.names, hear)

    return opened
