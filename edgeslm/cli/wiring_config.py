"""Puts the agent's settings together with those that its fleet gave from afar.

A setting comes from its flag, else its environment variable, else the fleet, else the file, else its default. Only a
device that has joined a fleet has settings from afar; what leads it to its broker is then the fleet's alone: its
identity, or a later configuration.

What always holds: a device without such settings pays nothing for them, not even the import of what reads them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from edgeslm.cli.wiring import (
    as_member,
    find_identity,
    load_settings,
    parse_agent_config,
    state_dir_of,
)
from edgeslm.errors import ConfigError, IdentityError
from edgeslm.schema.config import AgentConfig

if TYPE_CHECKING:
    from edgeslm.agent.config_trial import ConfigTrial
    from edgeslm.agent.operations.set_config import SetConfig
    from edgeslm.agent.service import Agent
    from edgeslm.cli.wiring_updates import Updates
    from edgeslm.trust.identity import Identity

log = logging.getLogger(__name__)

FILE_NAME = "remote-config.json"
"""As in :mod:`edgeslm.agent.remote_config`, which is imported only where there is such a file."""
_LEAD = ("host", "port")
_LOGIN = ("username", "password_file", "ca_file", "cert_file", "key_file")
Origin = Literal["flag", "environment", "fleet", "identity", "file", "default"]


@dataclass(frozen=True)
class Settings:
    """What an agent starts with.

    Attributes:
        config: everything put together.
        file: settings of the device's own file.
        overrides: from flags and environment.
        path: of the file.
        overlay: settings from the fleet.
        version: of the fleet's configuration that is in force; ``None`` if none is.
        trial: proves the overlay, where that is still to be proved.
    """

    config: AgentConfig
    file: Mapping[str, Any]
    overrides: Mapping[str, Any]
    path: str | None
    identity: Identity | None = None
    overlay: Mapping[str, Any] = field(default_factory=dict)
    version: int | None = None
    trial: ConfigTrial | None = None

    def changes(self, overlay: Mapping[str, Any]) -> bool:
        """See ``CheckSettings``.

        Raises:
            ConfigError: the device's own settings and `overlay` make no configuration.
        """
        return self._with(overlay) != self._with(self.overlay)

    def attach(self, agent: Agent, updates: Updates | None) -> None:
        """The agent is there: what is on trial can be proved, and what is in force is reported."""
        if updates is not None and self.version is not None:
            updates.reports.tell_config(self.version)
        if self.trial is not None:
            self.trial.attach(
                lambda: agent.wait_connected(0), None if updates is None else updates.reports.tell_config
            )

    def _with(self, overlay: Mapping[str, Any]) -> AgentConfig:
        return _whole(self.file, self.overrides, self.path, self.identity, overlay)


def read_settings(path: Path | None, overrides: Mapping[str, Any]) -> Settings:
    """The settings that are in force, to look at; nothing is tried or counted.

    Whoever may not read the device's identity sees the settings without it, and without those of the fleet.

    Raises:
        ConfigError: unreadable, no YAML, an unknown key or a wrong value, each named.
    """
    try:
        return _settings(path, overrides, None)
    except IdentityError as error:
        log.warning("without what the fleet set: %s", error)
        file: Mapping[str, Any] = {} if path is None else load_settings(path)
        name = None if path is None else str(path)
        return Settings(parse_agent_config(file, overrides, name), file, overrides, name)


def start_settings(
    path: Path | None,
    overrides: Mapping[str, Any],
    *,
    restart: Callable[[], None],
    replace: Callable[[], None],
) -> Settings:
    """The settings of the agent that starts now, those on trial included; see :class:`ConfigTrial` for the rest.

    Raises:
        ConfigError: the device's own settings cannot be used.
    """
    return _settings(path, overrides, (restart, replace))


def build_set_config(settings: Settings, updates: Updates) -> SetConfig:
    """The operation that takes up another configuration."""
    from edgeslm.agent.operations.set_config import SetConfig  # noqa: PLC0415
    from edgeslm.agent.remote_config import RemoteConfigFile  # noqa: PLC0415

    judge = updates.judge
    file = RemoteConfigFile(settings.config.state_dir, judge.device_key_sha256)
    return SetConfig(file, judge.judge_config, settings.changes, updates.reports.tell_config)


def origins(settings: Settings, source_of: Callable[[str], Origin]) -> dict[str, tuple[Any, Origin]]:
    """Each setting and where it comes from, by dotted key.

    Args:
        settings: as read.
        source_of: whether an override came from its flag or its environment variable, by its name.
    """
    from edgeslm.schema.remote_config import flattened  # noqa: PLC0415

    given = {
        key.replace("broker_", "broker.", 1) if key.startswith("broker_") else key: source_of(key)
        for key, value in settings.overrides.items()
        if value is not None
    }
    file, overlay = flattened(settings.file), flattened(settings.overlay)
    lead = ("fleet", "device", *(f"broker.{key}" for key in (*_LEAD, *_LOGIN)))

    def origin(key: str) -> Origin:
        if settings.identity is not None and key in lead:
            return "fleet" if key in overlay else "identity"
        if key in given:
            return given[key]
        if _names(overlay, key):
            return "fleet"
        return "file" if _names(file, key) else "default"

    whole = flattened(settings.config.model_dump(mode="json"))
    return {key: (value, origin(key)) for key, value in whole.items()}


def _names(settings: Mapping[str, Any], key: str) -> bool:
    """Whether `settings` say `key`, something in it, or what it is in as a whole."""
    return any(one == key or one.startswith(f"{key}.") or key.startswith(f"{one}.") for one in settings)


def _settings(
    path: Path | None,
    overrides: Mapping[str, Any],
    start: tuple[Callable[[], None], Callable[[], None]] | None,
) -> Settings:
    file: Mapping[str, Any] = {} if path is None else load_settings(path)
    name = None if path is None else str(path)
    state_dir = state_dir_of(file, overrides)
    identity = find_identity(state_dir)

    def whole(overlay: Mapping[str, Any]) -> AgentConfig:
        return _whole(file, overrides, name, identity, overlay)

    if identity is None or not (state_dir / FILE_NAME).exists():
        return Settings(whole({}), file, overrides, name, identity)
    from edgeslm.agent.config_trial import ConfigTrial  # noqa: PLC0415
    from edgeslm.agent.remote_config import RemoteConfigFile, start_with  # noqa: PLC0415
    from edgeslm.schema.remote_config import parse_settings  # noqa: PLC0415

    # The directory of an identity is called by the digest of its public key.
    remote = RemoteConfigFile(state_dir, identity.directory.name)
    state = remote.read() if start is None else start_with(remote)
    version = None if state.current is None else state.current.version
    if start is not None and state.trial is not None:
        trial = ConfigTrial(remote, state.trial, restart=start[0], replace=start[1])
        try:
            overlay = parse_settings(state.trial.settings)
            return Settings(whole(overlay), file, overrides, name, identity, overlay, version, trial)
        except ConfigError as error:
            trial.failed(str(error))
    if state.current is not None:
        # It was used before; if it cannot be any more, the device's own file has changed since then, or the agent.
        try:
            overlay = parse_settings(state.current.settings)
            return Settings(whole(overlay), file, overrides, name, identity, overlay, version)
        except ConfigError as error:
            log.error("configuration %d of the fleet cannot be used any more: %s", version, error)  # noqa: TRY400
    return Settings(whole({}), file, overrides, name, identity)


def _whole(
    file: Mapping[str, Any],
    overrides: Mapping[str, Any],
    path: str | None,
    identity: Identity | None,
    overlay: Mapping[str, Any],
) -> AgentConfig:
    if not overlay:
        return as_member(parse_agent_config(file, overrides, path), identity)
    from edgeslm.schema.remote_config import merged  # noqa: PLC0415

    config = parse_agent_config(merged(file, overlay), overrides, path)
    config = as_member(config, identity)
    # By itself: flags and environment say nothing about the broker of a fleet's device.
    given = parse_agent_config(
        {"device": config.device, "broker": overlay.get("broker", {})}, {}, None
    ).broker
    lead = {key: getattr(given, key) for key in given.model_fields_set & set(_LEAD)}
    return config.model_copy(update={"broker": config.broker.model_copy(update=lead)})
