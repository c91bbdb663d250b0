"""Chooses concrete classes and puts them together; nothing else in edgeslm does.

Imports are inside the functions: each command loads what it needs, and the agent starts fast.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import ValidationError

from edgeslm.codec import describe
from edgeslm.errors import ConfigError, PackageError
from edgeslm.schema.config import AgentConfig, RuntimeChoice

if TYPE_CHECKING:
    from edgeslm.agent.service import Agent
    from edgeslm.runtime.model import LoadedModel
    from edgeslm.schema.installed import InstalledPackage

BUILTIN = "builtin:"
CACHE_NAME = "cache"


def builtin_packages() -> list[str]:
    """Names of the packages that ship with edgeslm."""
    entries = resources.files("edgeslm._packages").iterdir()
    return sorted(entry.name.removesuffix(".slm") for entry in entries if entry.name.endswith(".slm"))


def package_path(reference: str, relative_to: Path | None = None) -> Path:
    """The ``.slm`` file that `reference` (``builtin:NAME``, a shipped name, or a path) stands for.

    Raises:
        PackageError: there is none.
    """
    name = reference.removeprefix(BUILTIN)
    builtin = builtin_packages()
    if name in builtin and (reference.startswith(BUILTIN) or not Path(reference).is_file()):
        return Path(str(resources.files("edgeslm._packages") / f"{name}.slm"))
    path = Path(reference).expanduser()
    if relative_to is not None and not path.is_absolute():
        path = relative_to / path
    if reference.startswith(BUILTIN) or not path.is_file():
        raise PackageError(
            f"no model package '{reference}'",
            path=reference,
            hint=f"A path to a .slm file, or one of: {', '.join(builtin) or 'none ships with this build'}",
        )
    return path


def default_store_dir() -> Path:
    """Where commands outside an agent unpack packages: the user's cache folder."""
    import os  # noqa: PLC0415

    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "edgeslm" / "models"


def install_package(reference: str, store_dir: Path, relative_to: Path | None = None) -> InstalledPackage:
    """Verify and unpack a package into the content-addressed store at `store_dir`.

    Raises:
        PackageError: there is none, or it is unusable.
        StoreError: the store cannot be written.
    """
    from edgeslm.models.store import ModelStore  # noqa: PLC0415

    return ModelStore(store_dir).install(package_path(reference, relative_to))


def open_model(
    reference: str,
    *,
    runtime: RuntimeChoice = "auto",
    threads: int | None = None,
    store_dir: Path | None = None,
) -> LoadedModel:
    """A model ready to run in this process."""
    from edgeslm.power.boards import choose_board  # noqa: PLC0415
    from edgeslm.runtime.model import load_model  # noqa: PLC0415

    store_dir = store_dir or default_store_dir()
    installed = install_package(reference, store_dir)
    return load_model(installed, runtime, threads or choose_board(None).threads, store_dir / CACHE_NAME)


def read_agent_config(path: Path, overrides: dict[str, Any]) -> AgentConfig:
    """The configuration file at `path` with `overrides` (from flags and environment) on top.

    Raises:
        ConfigError: unreadable, no YAML, an unknown key or a wrong value, each named.
    """
    try:
        data = yaml.safe_load(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}", path=str(path)) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path} is no YAML: {' '.join(str(error).split())[:300]}", path=str(path)
        ) from error
    return parse_agent_config(data if data is not None else {}, overrides, str(path))


def parse_agent_config(data: Any, overrides: dict[str, Any], path: str | None) -> AgentConfig:
    """`data` with `overrides` on top as a configuration.

    Raises:
        ConfigError: an unknown key or a wrong value, each named.
    """
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: a mapping of settings is expected", path=path)
    merged = {**data}
    for key, value in overrides.items():
        if value is None:
            continue
        if key.startswith("broker_"):
            broker = merged.get("broker", {})
            merged["broker"] = {
                **(broker if isinstance(broker, dict) else {}),
                key.removeprefix("broker_"): value,
            }
        else:
            merged[key] = value
    try:
        return AgentConfig.model_validate(merged)
    except ValidationError as error:
        raise ConfigError(
            f"{path or 'settings'}: {describe(error)}",
            path=path,
            hint="See docs/agent.md for every setting",
        ) from error


def build_agent(config: AgentConfig, config_dir: Path) -> Agent:
    """An agent over MQTT, its models loaded and proved.

    Raises:
        EdgeslmError: whatever keeps it from running, each with its own class.
    """
    from edgeslm.agent.journal import Journal  # noqa: PLC0415
    from edgeslm.agent.service import Agent, AgentIdentity, AgentLimits, availability  # noqa: PLC0415
    from edgeslm.link.mqtt import MqttLink  # noqa: PLC0415
    from edgeslm.power.boards import choose_board  # noqa: PLC0415
    from edgeslm.power.meter import EstimatedMeter  # noqa: PLC0415
    from edgeslm.runtime.model import load_model  # noqa: PLC0415

    board = choose_board(config.board)
    models = {}
    for reference in config.models:
        installed = install_package(reference, config.state_dir / "models", config_dir)
        name = installed.manifest.name
        if name in models:
            raise ConfigError(f"two packages are called '{name}'", key="models")
        threads = config.threads or board.threads
        models[name] = load_model(installed, config.runtime, threads, config.state_dir / CACHE_NAME)
    will = availability(config.fleet, config.device, "offline")
    limits = config.limits
    return Agent(
        identity=AgentIdentity(config.fleet, config.device, board.name, config.pool),
        models=models,
        link=MqttLink(config.broker, f"edgeslm-{config.fleet}-{config.device}", will),
        meter=EstimatedMeter(board.power),
        journal=Journal(config.state_dir / "agent.db"),
        limits=AgentLimits(
            max_queue=limits.max_queue,
            max_body_bytes=limits.max_body_bytes,
            answered_window_s=limits.answered_window_s,
            max_answered=limits.max_answered,
        ),
    )
