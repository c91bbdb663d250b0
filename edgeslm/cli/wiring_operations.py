"""Puts remote operations together: which ones a device has, and what each is given.

Each is made, and its module loaded, when it is asked for first: a device that is asked for nothing starts as fast and
stays as small as without them.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import edgeslm
from edgeslm.agent.operations.ports import Command, Operation, Progress, Step
from edgeslm.agent.operations.runner import JOURNAL_NAME, Operations
from edgeslm.procfs import boot_id, memory_kib

if TYPE_CHECKING:
    from edgeslm.agent.operations.diagnostics import Part
    from edgeslm.agent.operations.guest import Guest
    from edgeslm.agent.operations.redaction import Redactor
    from edgeslm.agent.operations.self_test import Lifetime
    from edgeslm.agent.power_side import PowerSide
    from edgeslm.agent.recent_log import RecentLog
    from edgeslm.agent.service import Agent
    from edgeslm.agent.serving import ServedModels
    from edgeslm.cli.wiring_config import Settings
    from edgeslm.cli.wiring_updates import Updates
    from edgeslm.link.port import Link
    from edgeslm.schema.config import AgentConfig
    from edgeslm.trust.identity import Identity

_NOT_A_MEMBER = (
    "this device belongs to no fleet, and on its broker anybody may ask: only bench and self-test are done"
)
_NO_UPDATES = "this device follows no releases"
_MAX_SECRET_BYTES = 65_536
_REPORT_DAYS = 7
_DISTRIBUTIONS = (
    "ai-edge-litert",
    "tflite-runtime",
    "numpy",
    "paho-mqtt",
    "pydantic",
    "tokenizers",
    "cryptography",
    "tuf",
    "securesystemslib",
    "PyYAML",
    "click",
)


@dataclass
class AgentParts:
    """What operations are made of.

    Attributes:
        log: the latest lines of the log, where somebody keeps them.
        settings: how `config` came about, where others may be set from afar.
        agent: taken once it is there; no operation runs before.
    """

    config: AgentConfig
    identity: Identity | None
    power: PowerSide
    served: ServedModels
    link: Link
    updates: Updates | None
    log: RecentLog | None = None
    settings: Settings | None = None
    agent: Agent | None = None
    operations: Operations | None = field(default=None, repr=False)

    @property
    def running(self) -> Agent:
        """The agent."""
        assert self.agent is not None  # noqa: S101 - taken before it starts
        return self.agent

    def round_trip(self, timeout_s: float) -> float | None:
        """See ``Operations``."""
        return None if self.operations is None else self.operations.round_trip(timeout_s)


class LazyOperation:
    """``Operation`` that is made when it is asked for first."""

    def __init__(self, op: str, deadline_s: float, make: Callable[[], Operation]) -> None:
        """Name it, with the longest that one may take."""
        self.op = op
        self.deadline_s = deadline_s
        self._make = make

    @cached_property
    def _made(self) -> Operation:
        return self._make()

    def begin(self, command: Command, progress: Progress) -> Step:
        """See ``Operation``."""
        return self._made.begin(command, progress)

    def resume(self, command: Command, memo: Mapping[str, Any] | None, progress: Progress) -> Step:
        """See ``Operation``."""
        return self._made.resume(command, memo, progress)


def build_operations(parts: AgentParts, on_restart: Callable[[], None]) -> Operations:
    """The operations of an agent; `parts` gets the agent before that starts.

    Args:
        parts: what they are made of.
        on_restart: told when the agent is to be stopped and begun anew.
    """
    config = parts.config
    operations, closed = _offered(parts)
    made = Operations(
        config.state_dir / JOURNAL_NAME,
        config.fleet,
        config.device,
        parts.link.publish,
        operations,
        closed=closed,
        boot=boot_id() or "",
    )
    made.on_restart = on_restart
    parts.operations = made
    return made


def _offered(parts: AgentParts) -> tuple[list[Operation], dict[str, str]]:
    """What this device does, and what it does not, each with the reason."""
    from edgeslm.cli.wiring_home import home_operations  # noqa: PLC0415

    operations: list[Operation] = [
        LazyOperation("self-test", 900.0, lambda: _self_test(parts)),
        LazyOperation("bench", 3600.0, lambda: _bench(parts)),
        *home_operations(parts.config, parts.served),
    ]
    members: list[Operation] = [
        LazyOperation("diagnostics", 120.0, lambda: _diagnostics(parts)),
        LazyOperation("logs", 30.0, lambda: _logs(parts)),
        LazyOperation("restart", 600.0, lambda: _restart(parts)),
    ]
    changes: list[Operation] = [
        LazyOperation("abort", 300.0, lambda: _abort(parts)),
        LazyOperation("retry", 60.0, lambda: _retry(parts)),
        LazyOperation("update-agent", 6 * 3600.0, lambda: _update_agent(parts)),
        LazyOperation("set-config", 2400.0, lambda: _set_config(parts)),
    ]
    closed: dict[str, str] = {}
    if parts.identity is None:
        closed |= {operation.op: _NOT_A_MEMBER for operation in (*members, *changes)}
    elif parts.updates is None:
        operations += members
        closed |= {operation.op: _NO_UPDATES for operation in changes}
    else:
        operations += members + changes
    return operations, closed


# --- each of them ---------------------------------------------------------------------------------------------


def _guest(parts: AgentParts) -> Guest:
    from edgeslm.agent.operations.guest import Guest  # noqa: PLC0415

    return Guest(parts.served, parts.power.monitor.meter, lambda: parts.running.waiting)


def _self_test(parts: AgentParts) -> Operation:
    from edgeslm.agent.operations.self_test import SelfTest, Subject  # noqa: PLC0415

    monitor = parts.power.monitor
    return SelfTest(
        Subject(
            guest=_guest(parts),
            state_dir=parts.config.state_dir,
            meter=lambda: monitor.facts,
            meter_age_s=lambda: (
                None if monitor.interval is None else time.monotonic() - monitor.interval.end_s
            ),
            vitals=lambda: monitor.vitals,
            certificate=lambda: _lifetime(parts),
            unsettled=lambda: _in_safe_mode(parts),
            round_trip=parts.round_trip,
        )
    )


def _lifetime(parts: AgentParts) -> Lifetime | None:
    from edgeslm.agent.operations.self_test import Lifetime  # noqa: PLC0415
    from edgeslm.cli.wiring import find_identity  # noqa: PLC0415

    # Read anew: it is renewed while the agent runs.
    identity = find_identity(parts.config.state_dir)
    return None if identity is None else Lifetime(identity.facts.not_before_s, identity.facts.not_after_s)


def _in_safe_mode(parts: AgentParts) -> Mapping[str, str]:
    if parts.updates is None:
        return {}
    found: dict[str, str] = {}
    seen: set[str] = set()
    for past in parts.updates.updater.history(1000):
        change = past.change
        if change.name not in seen and change.state == "safe_mode":
            found[change.name] = change.fault.detail if change.fault is not None else "no reason is known"
        seen.add(change.name)
    return found


def _bench(parts: AgentParts) -> Operation:
    from edgeslm.agent.operations.bench import Bench  # noqa: PLC0415

    def budget_left() -> float | None:
        steward = parts.power.steward
        shares = (
            ()
            if steward is None
            else [1 - use.used_j / use.limit_j for use in steward.usage() if use.limit_j > 0]
        )
        return min(shares, default=None)

    return Bench(_guest(parts), lambda: parts.power.monitor.vitals, budget_left)


def _restart(parts: AgentParts) -> Operation:
    from edgeslm.agent.operations.restart import RestartAgent  # noqa: PLC0415
    from edgeslm.cli.wiring import package_path  # noqa: PLC0415
    from edgeslm.cli.wiring_config import read_settings  # noqa: PLC0415

    settings = parts.settings

    def recheck() -> None:
        if settings is None:
            return
        path = None if settings.path is None else Path(settings.path)
        for reference in read_settings(path, settings.overrides).config.models:
            package_path(reference, (path or Path()).resolve().parent)

    return RestartAgent(recheck)


def _abort(parts: AgentParts) -> Operation:
    from edgeslm.agent.operations.model_change import AbortChange  # noqa: PLC0415

    assert parts.updates is not None  # noqa: S101 - offered only then
    return AbortChange(parts.updates.updater)


def _retry(parts: AgentParts) -> Operation:
    from edgeslm.agent.operations.model_change import RetryRelease  # noqa: PLC0415

    assert parts.updates is not None  # noqa: S101 - offered only then
    return RetryRelease(parts.updates.updater)


def _set_config(parts: AgentParts) -> Operation:
    from edgeslm.cli.wiring_config import build_set_config  # noqa: PLC0415
    from edgeslm.errors import OperationError  # noqa: PLC0415

    assert parts.updates is not None  # noqa: S101 - offered only then
    if parts.settings is None:
        raise OperationError("this agent was not started with settings of its own", reason="refused")
    return build_set_config(parts.settings, parts.updates)


def _update_agent(parts: AgentParts) -> Operation:
    from edgeslm.cli.wiring_agent_update import build_update_agent  # noqa: PLC0415

    return build_update_agent(parts)


# --- diagnostics ----------------------------------------------------------------------------------------------


def _diagnostics(parts: AgentParts) -> Operation:
    from edgeslm.agent.operations.diagnostics import Diagnostics  # noqa: PLC0415

    return Diagnostics(diagnostic_parts(parts), lambda: redactor(parts.config))


def _logs(parts: AgentParts) -> Operation:
    from edgeslm.agent.operations.logs import Logs  # noqa: PLC0415

    log = parts.log
    return Logs(lambda: log.lines() if log is not None else (), lambda: redactor(parts.config))


def diagnostic_parts(parts: AgentParts) -> dict[str, Part]:
    """What gives each file of the archive."""
    monitor, config = parts.power.monitor, parts.config
    return {
        "versions.json": _versions,
        "config.json": lambda: config.model_dump(mode="json"),
        "info.json": lambda: parts.running.info().model_dump(mode="json"),
        "board.json": lambda: {
            "vitals": asdict(monitor.vitals),
            "meter": None if monitor.facts is None else asdict(monitor.facts),
            "memory_free_kib": memory_kib("MemAvailable"),
            "memory_total_kib": memory_kib("MemTotal"),
            "load": os.getloadavg(),
            "disk": shutil.disk_usage(config.state_dir)._asdict(),
            "clock": datetime.now(UTC).isoformat(timespec="seconds"),
            "monotonic_s": time.monotonic(),
        },
        "power.json": lambda: _power(parts),
        "state.json": lambda: _state(config.state_dir),
        "prompts.json": lambda: {
            "waiting": parts.running.waiting,
            "activity": asdict(parts.served.any_activity()),
        },
        "operations.json": lambda: (
            []
            if parts.operations is None
            else [event.model_dump(mode="json", exclude_none=True) for event in parts.operations.latest(64)]
        ),
        "updates.json": lambda: [] if parts.updates is None else _updates(parts.updates),
        "log.txt": lambda: "\n".join(parts.log.lines()) if parts.log is not None else "no log is kept",
    }


def redactor(config: AgentConfig) -> Redactor:
    """Knows what may not leave this device: its password, and the private key of its identity."""
    from edgeslm.agent.operations.redaction import Redactor  # noqa: PLC0415
    from edgeslm.files import read_bounded  # noqa: PLC0415

    secrets = []
    for path in (config.broker.password_file, config.broker.key_file):
        if path is None:
            continue
        try:
            secrets.append(read_bounded(path.resolve(), _MAX_SECRET_BYTES).decode("utf-8", "replace"))
        except OSError:  # what cannot be read cannot have been told either
            continue
    return Redactor(secrets)


def _versions() -> dict[str, object]:
    found: dict[str, str | None] = {}
    for name in _DISTRIBUTIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return {
        "edgeslm": edgeslm.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "kernel": platform.release(),
        "cores": os.cpu_count(),
        "distributions": found,
    }


def _power(parts: AgentParts) -> dict[str, object]:
    monitor, steward = parts.power.monitor, parts.power.steward
    now_s = time.time()
    rows = monitor.ledger.energy(now_s - _REPORT_DAYS * 86_400, now_s, ["day", "cause"])
    return {
        "windows": [] if steward is None else [asdict(use) for use in steward.usage()],
        "idle_w": monitor.account.draw.idle.idle_w,
        "last_days": [asdict(row) for row in rows],
    }


def _state(state_dir: Path) -> dict[str, object]:
    """Names and sizes of what lies in the state directory; nothing of what is in it."""
    found: dict[str, object] = {}
    for path in sorted(state_dir.iterdir())[:200]:
        if path.is_file() and not path.is_symlink():
            found[path.name] = path.stat().st_size
        else:
            found[f"{path.name}/"] = sum(1 for _ in path.rglob("*")) if path.is_dir() else 0
    return found


def _updates(updates: Updates) -> list[dict[str, object]]:
    return [
        {
            "change": asdict(past.change),
            "begun_at": past.begun_at,
            "changed_at": past.changed_at,
            "steps": [asdict(step) for step in past.steps],
        }
        for past in updates.updater.history(10)
    ]
