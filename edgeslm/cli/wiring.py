"""Chooses concrete classes and puts them together; nothing else in edgeslm does.

Imports are inside the functions: each command loads what it needs, and the agent starts fast.
"""

from __future__ import annotations

import logging
import shutil
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import yaml
from pydantic import ValidationError

import edgeslm
from edgeslm.codec import describe
from edgeslm.errors import ConfigError, PackageError
from edgeslm.schema.config import BROKER_RELEASES, NO_RELEASES, AgentConfig, RuntimeChoice

if TYPE_CHECKING:
    from edgeslm.agent.ports import Model
    from edgeslm.agent.power_side import PowerSide
    from edgeslm.agent.recent_log import RecentLog
    from edgeslm.agent.renewal import Renewal
    from edgeslm.agent.residency import Residency
    from edgeslm.agent.rules.brought import BroughtRules
    from edgeslm.agent.rules.runner import RuleRunner
    from edgeslm.agent.service import Agent, RuleSide
    from edgeslm.agent.serving import ServedModels
    from edgeslm.agent.update.ports import Content
    from edgeslm.cli.wiring_config import Settings
    from edgeslm.cli.wiring_updates import Updates
    from edgeslm.link.port import Link, Message
    from edgeslm.power.meters.discovery import Discovery
    from edgeslm.power.steward import Steward
    from edgeslm.runtime.loading import ServedModel
    from edgeslm.runtime.model import GraphCheck, LoadedModel
    from edgeslm.runtime.prefix_cache import PrefixPlace
    from edgeslm.runtime.trial import Proved
    from edgeslm.schema.board import Board
    from edgeslm.schema.budget import Budget
    from edgeslm.schema.installed import InstalledPackage
    from edgeslm.trust.identity import Identity

log = logging.getLogger(__name__)

OpenedT = TypeVar("OpenedT")

BUILTIN = "builtin:"
CACHE_NAME = "cache"
PREFIXES_NAME = "prefixes"
IDENTITY_NAME = "identity"
RULES_NAME = "rules"
SPOOL_NAME = "spool.db"
_PREFIX_SHARE = 16
_TRIAL_PROMPTS = 3
_TRIAL_TOKENS = 24


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
    """A model that generates, ready to run in this process."""
    from edgeslm.runtime.model import load_model  # noqa: PLC0415

    return _open(load_model, reference, runtime, threads, store_dir)


def open_served(
    reference: str,
    *,
    runtime: RuntimeChoice = "auto",
    threads: int | None = None,
    store_dir: Path | None = None,
) -> ServedModel:
    """A model of whatever task, ready to run in this process."""
    from edgeslm.runtime.loading import load_served  # noqa: PLC0415

    return _open(load_served, reference, runtime, threads, store_dir)


def _open(
    load: Callable[[InstalledPackage, RuntimeChoice, int, Path, GraphCheck], OpenedT],
    reference: str,
    runtime: RuntimeChoice,
    threads: int | None,
    store_dir: Path | None,
) -> OpenedT:
    from edgeslm.power.boards import choose_board  # noqa: PLC0415
    from edgeslm.runtime.trial import GraphTrial  # noqa: PLC0415

    store_dir = store_dir or default_store_dir()
    installed = install_package(reference, store_dir)
    threads = threads or choose_board(None).threads
    cache_dir = store_dir / CACHE_NAME
    return load(installed, runtime, threads, cache_dir, GraphTrial(cache_dir, threads, runtime).check)


def memory_of(loaded: ServedModel, store_dir: Path | None = None) -> Proved | None:
    """What is remembered of the graph of a model that :func:`open_served` opened; ``None`` where nothing could be."""
    from edgeslm.runtime.trial import GraphTrial  # noqa: PLC0415

    trial = GraphTrial((store_dir or default_store_dir()) / CACHE_NAME, loaded.threads)
    return trial.recall(loaded.installed, loaded.graph, loaded.runtime)


def load_settings(path: Path) -> dict[str, Any]:
    """What stands in the configuration file at `path`.

    Raises:
        ConfigError: unreadable, no YAML, or no mapping.
    """
    try:
        data = yaml.safe_load(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}", path=str(path)) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path} is no YAML: {' '.join(str(error).split())[:300]}", path=str(path)
        ) from error
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: a mapping of settings is expected", path=str(path))
    return data


def state_dir_of(data: Mapping[str, Any], overrides: Mapping[str, Any]) -> Path:
    """The state directory that `data` with `overrides` on top names."""
    found = overrides.get("state_dir") or data.get("state_dir")
    return Path(str(found or AgentConfig.model_fields["state_dir"].default))


def parse_agent_config(
    data: Mapping[str, Any], overrides: Mapping[str, Any], path: str | None
) -> AgentConfig:
    """`data` with `overrides` on top as a configuration.

    Raises:
        ConfigError: an unknown key or a wrong value, each named.
    """
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
    if "device" not in merged:
        identity = find_identity(state_dir_of(merged, {}))
        if identity is not None:
            merged["device"] = identity.facts.device
    try:
        return AgentConfig.model_validate(merged)
    except ValidationError as error:
        raise ConfigError(
            f"{path or 'settings'}: {describe(error)}",
            path=path,
            hint="See docs/agent.md for every setting",
        ) from error


def find_identity(state_dir: Path) -> Identity | None:
    """Who this device is, if it has joined a fleet (``edgeslm agent enrol``).

    Raises:
        IdentityError: it cannot be read.
        CertificateError: its certificate is not what it was.
    """
    directory = state_dir / IDENTITY_NAME
    if not directory.is_dir():
        return None
    from edgeslm.trust.identity import IdentityStore  # noqa: PLC0415

    return IdentityStore(directory).current()


def as_member(config: AgentConfig, identity: Identity | None) -> AgentConfig:
    """`config` with the names and the broker that the fleet gave to this device, which come before all settings."""
    if identity is None:
        return config
    names = {"fleet": identity.facts.fleet, "device": identity.facts.device}
    return config.model_copy(update={**names, "broker": identity.broker_config(config.broker)})


def _stay() -> None:
    """Nobody begins this process anew."""


def build_agent(
    config: AgentConfig,
    config_dir: Path,
    on_restart: Callable[[], None] = _stay,
    recent_log: RecentLog | None = None,
    settings: Settings | None = None,
    on_hang: Callable[[], None] | None = None,
    before_first_contact: Callable[[], None] | None = None,
) -> Agent:
    """An agent over MQTT, its models loaded and proved.

    Args:
        config: settings.
        config_dir: what paths in them are relative to.
        on_restart: told, on a thread of the agent, when the agent is to be stopped and begun anew.
        recent_log: the latest lines of the log, for diagnostics.
        settings: how `config` came about; without them nothing can be set from afar.
        on_hang: replaces this process when a release on probation hangs; ``None`` watches nothing.
        before_first_contact: called once, when the broker is there and before it is told anything.

    Raises:
        EdgeslmError: whatever keeps it from running, each with its own class.
    """
    from edgeslm.agent.description import AgentIdentity, AgentLimits, availability  # noqa: PLC0415
    from edgeslm.agent.journal import Journal  # noqa: PLC0415
    from edgeslm.agent.service import Agent  # noqa: PLC0415
    from edgeslm.cli.wiring_home import build_home  # noqa: PLC0415
    from edgeslm.cli.wiring_operations import AgentParts, build_operations  # noqa: PLC0415
    from edgeslm.link.mqtt import MqttLink  # noqa: PLC0415
    from edgeslm.power.boards import choose_board  # noqa: PLC0415

    if settings is None:
        identity = find_identity(config.state_dir)
        config = as_member(config, identity)
    else:
        identity = settings.identity
    board = choose_board(config.board)
    threads = config.threads or board.threads
    files = _package_files(config, config_dir)
    link = MqttLink(
        config.broker,
        f"edgeslm-{config.fleet}-{config.device}",
        availability(config.fleet, config.device, "offline"),
    )
    sizes_bytes: dict[str, int] = {}
    power, listeners = build_power(config, board, link, threads, sizes_bytes)
    steward = power.steward

    load = _loader(config, threads, sizes_bytes)

    def warm(model: Model) -> None:
        if steward is not None and not steward.knows(model.name):
            try_out(model, board, steward)

    brought = _brought_rules(config, config_dir, has_file=bool(settings and settings.path))
    updates = _build_updates(config, identity, files, board, power, threads, link, on_hang, brought)
    try:
        served = _load_models(config, files, threads, updates, load, warm)
        parts = AgentParts(config, identity, power, served, link, updates, log=recent_log, settings=settings)
        limits = config.limits
        agent = Agent(
            identity=AgentIdentity(config.fleet, config.device, board.name, config.pool),
            models=served,
            link=link,
            meter=power.monitor.meter,
            journal=Journal(config.state_dir / "agent.db"),
            limits=AgentLimits(
                max_queue=limits.max_queue,
                max_body_bytes=limits.max_body_bytes,
                answered_window_s=limits.answered_window_s,
                max_answered=limits.max_answered,
            ),
            power=power,
            listeners=listeners,
            updates=None if updates is None else updates.following,
            renewal=None if identity is None else build_renewal(config, identity, board, link, on_restart),
            operations=build_operations(parts, on_restart),
            rules=_build_rules(config, brought, power, served.all() if updates is None else None),
            home=build_home(parts, config_dir, board, listeners),
            link_beats=lambda: link.beats,
            before_first_contact=before_first_contact,
        )
        parts.agent = agent
        if updates is not None:
            updates.attach(agent, served)
        if settings is not None:
            settings.attach(agent, updates)
    except BaseException:
        if updates is not None:
            updates.following.stop()
        raise
    return agent


def _loader(
    config: AgentConfig, threads: int, sizes_bytes: dict[str, int]
) -> Callable[[InstalledPackage], Model]:
    """What loads a package for an agent, each graph tried in a process of its own before.

    Args:
        sizes_bytes: gets the size of each graph that is loaded, by the model's name.
    """
    from edgeslm.runtime.loading import load_served  # noqa: PLC0415
    from edgeslm.runtime.trial import GraphTrial  # noqa: PLC0415

    cache_dir = config.state_dir / CACHE_NAME
    trial = GraphTrial(cache_dir, threads, config.runtime)
    prefixes = prefix_place(config)

    def load(installed: InstalledPackage) -> Model:
        model = load_served(installed, config.runtime, threads, cache_dir, trial.check, prefixes)
        sizes_bytes[model.name] = installed.manifest.files[model.graph_file].size_bytes
        return model

    return load


def _load_models(
    config: AgentConfig,
    files: Mapping[str, Path],
    threads: int,
    updates: Updates | None,
    load: Callable[[InstalledPackage], Model],
    warm: Callable[[Model], None],
) -> ServedModels:
    """The models of an agent, each loaded and proved once, as many as fit still loaded afterwards.

    Args:
        files: their packages, by name; where `updates` change them, what to fall back to.
    """
    from edgeslm.agent.serving import ServedModels  # noqa: PLC0415
    from edgeslm.agent.sessions import Sessions  # noqa: PLC0415

    if updates is not None:
        load = updates.watched(load)
    residency = build_residency(config, threads, load)
    if residency is not None:
        load = residency.load
    if updates is None:
        store_dir = config.state_dir / "models"
        models = {name: load(install_package(str(file), store_dir)) for name, file in files.items()}
    else:
        models = updates.boot(load)
    served = ServedModels(models, load, warm, Sessions(config.sessions), residency)
    for name in reversed(served.names()):
        # The default comes last, so that it is loaded where others had to make room.
        with served.hold(name) as model:
            warm(model)
    return served


def build_residency(
    config: AgentConfig, threads: int, load: Callable[[InstalledPackage], Model]
) -> Residency | None:
    """What keeps the loaded models within the memory that the settings leave to them; ``None`` without a limit.

    Args:
        load: loads a package.
    """
    if config.models_memory_mb is None:
        return None
    from edgeslm.agent.residency import Residency  # noqa: PLC0415
    from edgeslm.runtime.trial import GraphTrial  # noqa: PLC0415

    trial = GraphTrial(config.state_dir / CACHE_NAME, threads, config.runtime)
    return Residency(config.models_memory_mb << 20, trial.model_bytes, load)


def prefix_place(config: AgentConfig) -> PrefixPlace:
    """Where states of prompts that begin alike are kept; what is on disk goes where the settings want none there."""
    from edgeslm.procfs import memory_kib  # noqa: PLC0415
    from edgeslm.runtime.prefix_cache import DEFAULT_LIMIT_BYTES, KeptStates, PrefixPlace  # noqa: PLC0415

    settings = config.prefixes
    limit_bytes = DEFAULT_LIMIT_BYTES
    if settings.memory_mb is not None:
        limit_bytes = settings.memory_mb << 20
    elif (board_kib := memory_kib("MemTotal")) is not None:
        limit_bytes = min(limit_bytes, (board_kib << 10) // _PREFIX_SHARE)
    directory = config.state_dir / CACHE_NAME / PREFIXES_NAME
    if not settings.on_disk:
        shutil.rmtree(directory, ignore_errors=True)
    return PrefixPlace(
        KeptStates(limit_bytes), directory if settings.on_disk else None, settings.disk_mb << 20
    )


def build_renewal(
    config: AgentConfig, identity: Identity, board: Board, link: Link, on_restart: Callable[[], None] = _stay
) -> Renewal:
    """What keeps the certificate of a device fresh, over the agent's own `link`.

    Args:
        on_restart: as for :func:`build_agent`; told when the device has another name, or a root to trust at last.

    Raises:
        IdentityError: the state directory refuses.
    """
    from edgeslm.agent.renewal import Renewal  # noqa: PLC0415
    from edgeslm.link.mqtt import MqttLink  # noqa: PLC0415
    from edgeslm.trust.identity import IdentityStore  # noqa: PLC0415
    from edgeslm.trust.machine import read_machine  # noqa: PLC0415

    def begin_anew(why: str) -> None:
        log.warning("%s: the agent begins anew", why)
        on_restart()

    store = IdentityStore(config.state_dir / IDENTITY_NAME)
    return Renewal(
        store,
        identity,
        read_machine(board.name, store.boots_file),
        edgeslm.__version__,
        config=config.broker,
        open_link=MqttLink,
        publish=link.publish,
        on_changed=begin_anew,
    )


def _package_files(config: AgentConfig, config_dir: Path) -> dict[str, Path]:
    """The packages that `config` names, by the names that they serve.

    Raises:
        PackageError: there is none, or it is unusable.
        ConfigError: two of them have one name.
    """
    from edgeslm.models.package import read_manifest  # noqa: PLC0415

    files: dict[str, Path] = {}
    for reference in config.models:
        file = package_path(reference, config_dir)
        name = read_manifest(file).name
        if name in files:
            raise ConfigError(f"two packages are called '{name}'", key="models")
        files[name] = file
    return files


def _brought_rules(config: AgentConfig, config_dir: Path, *, has_file: bool) -> BroughtRules:
    """What knows of rules that packages bring, beside the device's own.

    Args:
        has_file: `config` comes from a file, beside which there may be rules.
    """
    from edgeslm.agent.rules.brought import BroughtRules  # noqa: PLC0415

    paths = [path if path.is_absolute() else config_dir / path for path in config.rules]
    if not paths:
        places = [config_dir / RULES_NAME] if has_file else []
        paths = [path for path in (*places, config.state_dir / RULES_NAME) if path.is_dir()]
    return BroughtRules(paths)


def _build_rules(
    config: AgentConfig, brought: BroughtRules, power: PowerSide, fixed: Sequence[Model] | None
) -> RuleSide | None:
    """What runs the device's rules; its code is loaded only where there are any.

    Args:
        fixed: the models, where they stay; ``None`` where updates bring others, perhaps with rules.

    Raises:
        JournalError: their trace cannot be kept.
    """
    if fixed is not None:
        brought.use({model.installed.manifest.name: model.installed for model in fixed})

    def make() -> RuleRunner:
        from edgeslm.cli.wiring_rules import build_runner  # noqa: PLC0415

        return build_runner(brought, config.state_dir, power.telemetry)

    if brought.own or brought:
        return make()
    if fixed is not None:
        return None
    from edgeslm.agent.rules.late import LateRules  # noqa: PLC0415

    return LateRules(brought, make)


def _build_updates(
    config: AgentConfig,
    identity: Identity | None,
    files: Mapping[str, Path],
    board: Board,
    power: PowerSide,
    threads: int,
    link: Link,
    on_hang: Callable[[], None] | None,
    content: Content,
) -> Updates | None:
    """What updates the models; its code is loaded only where something does."""
    if identity is None or config.updates.releases == NO_RELEASES:
        return None
    if config.updates.releases is None and not identity.trust_root.is_file():
        return None
    from edgeslm.cli.wiring_updates import build_updates  # noqa: PLC0415

    return build_updates(
        config,
        identity,
        config.updates.releases or BROKER_RELEASES,
        list(files.values()),
        board,
        power,
        threads,
        link.publish,
        on_hang,
        content,
    )


def build_power(
    config: AgentConfig, board: Board, link: Link, threads: int, sizes_bytes: Mapping[str, int]
) -> tuple[PowerSide, dict[str, Callable[[Message], None]]]:
    """Meters, budget and telemetry of an agent, and who listens to which foreign topic.

    Raises:
        BudgetConfigError: the budget can never be kept on this board.
        ConfigError: the calibration cannot be used.
        LedgerError: the energy ledger cannot be opened.
    """
    from edgeslm.agent.exposition import Exposition  # noqa: PLC0415
    from edgeslm.agent.power_side import PowerSide  # noqa: PLC0415
    from edgeslm.agent.spool import Spool  # noqa: PLC0415
    from edgeslm.agent.telemetry import Telemetry  # noqa: PLC0415
    from edgeslm.power.actuators import FrequencyCap  # noqa: PLC0415
    from edgeslm.power.monitor import LEDGER_NAME, PowerMonitor  # noqa: PLC0415
    from edgeslm.power.steward import Steward  # noqa: PLC0415
    from edgeslm.procfs import boot_id  # noqa: PLC0415

    discovery = discover_meters(config, board)
    monitor = PowerMonitor(board, config.power, discovery, config.state_dir / LEDGER_NAME)

    def make_steward(budget: Budget) -> Steward:
        return Steward(
            board,
            budget,
            monitor.ledger,
            FrequencyCap(config.state_dir / "frequency.json", config.power.root),
            threads=threads,
            sizes_bytes=sizes_bytes,
            idle_w=monitor.account.draw.idle.idle_w,
        )

    telemetry = Telemetry(
        config.fleet,
        config.device,
        Spool(
            link,
            config.state_dir / SPOOL_NAME,
            boot_id() or uuid.uuid4().hex,
            compresses=config.metrics.encoding == "gzip",
        ),
        monitor,
        interval_s=config.metrics.interval_s,
        state_dir=config.state_dir,
        hot_c=None if board.thermal is None else board.thermal.throttle_c,
    )
    listeners: dict[str, Callable[[Message], None]] = {}
    plug = discovery.plug
    if plug is not None:

        def on_plug(message: Message) -> None:
            plug.on_message(message.topic, message.payload, time.monotonic(), retained=message.retain)

        listeners = dict.fromkeys(plug.filters(), on_plug)
    exposition = None
    if config.metrics.prometheus_port is not None:
        exposition = Exposition(config.metrics.prometheus_host, config.metrics.prometheus_port)
    budget_file = config.state_dir / "budget.json"
    side = PowerSide(monitor, make_steward, telemetry, config.budget, budget_file, exposition)
    return side, listeners


def try_out(model: Model, board: Board, steward: Steward) -> None:
    """Run a few golden prompts, so that the budget has more to go by than a guess from power table and size."""
    from edgeslm.models.package import parse_golden  # noqa: PLC0415
    from edgeslm.power.meter import EstimatedMeter  # noqa: PLC0415
    from edgeslm.power.port import Cause  # noqa: PLC0415
    from edgeslm.power.steward import Spent  # noqa: PLC0415
    from edgeslm.schema.message import Options  # noqa: PLC0415

    name = model.installed.manifest.golden
    if name is None:
        return
    file = model.installed.file(name)
    cases = islice(parse_golden(file.read_bytes(), file, name), _TRIAL_PROMPTS)
    meter = EstimatedMeter(board.power)
    for case in cases:
        span = meter.begin(Cause("test", model=model.name))
        made = model.answer(case.prompt, Options(max_tokens=_TRIAL_TOKENS)).generation
        spent = Spent(
            len(made.token_ids),
            span.end().net_j,
            made.total_s,
            complete=made.finish_reason in {"stop", "schema"},
        )
        steward.learn(model.name, made.prompt_tokens, spent)


def discover_meters(config: AgentConfig, board: Board) -> Discovery:
    """The meters of the board that `config` is for, opened.

    Raises:
        ConfigError: the calibration cannot be used.
    """
    from edgeslm.power.calibration import read_calibration  # noqa: PLC0415
    from edgeslm.power.meters.discovery import discover  # noqa: PLC0415

    calibration = read_calibration(config.state_dir / config.power.calibration_file)
    return discover(board, config.power, calibration=calibration, root=config.power.root)
