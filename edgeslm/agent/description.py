"""Who an agent is, what it accepts, and how it says so on the wire."""

from __future__ import annotations

import platform
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache

import edgeslm
from edgeslm import codec, topics
from edgeslm.agent.ports import Message, Model
from edgeslm.procfs import cpu_flags, memory_kib
from edgeslm.runtime.constraint import forms_here
from edgeslm.schema.message import MAX_CPU_FEATURES, Availability, Info, MeterClass, ModelInfo


@dataclass(frozen=True)
class AgentIdentity:
    """Who this agent is on the wire."""

    fleet: str
    device: str
    board: str
    pool: bool = True


@dataclass(frozen=True)
class AgentLimits:
    """What it accepts; see ``schema.config.LimitsConfig``."""

    max_queue: int = 256
    max_body_bytes: int = 262_144
    answered_window_s: int = 86_400
    max_answered: int = 10_000


def describe(
    identity: AgentIdentity,
    limits: AgentLimits,
    served: Sequence[Model],
    meter_class: MeterClass,
    started_at: datetime,
    resting: Collection[str] = (),
) -> Info:
    """The retained self-description of an agent that serves `served`, of which `resting`, by name, are not loaded."""
    models = tuple(_model_info(model, resting) for model in served)
    return Info(
        device=identity.device,
        agent=edgeslm.__version__,
        python=platform.python_version(),
        runtime=served[0].runtime_name if served else "none",
        board=identity.board,
        tasks=tuple(sorted({task for model in served for task in model.tasks})),
        models=models,
        meter=meter_class,
        max_queue=limits.max_queue,
        max_body_bytes=limits.max_body_bytes,
        started_at=started_at.isoformat(timespec="seconds"),
        pool=identity.pool,
        ram_mb=_ram_mb(),
        cpu_features=_cpu_features(),
        forms=forms_here(),
    )


def availability(fleet: str, device: str, state: str) -> Message:
    """The retained presence message; with state ``offline`` it is the will that a link is made with."""
    body = codec.encode(Availability.model_validate({"state": state}))
    return Message(topics.device_topic(fleet, device, "availability"), body, retain=True)


@cache
def _ram_mb() -> int | None:
    kib = memory_kib("MemTotal")
    return None if not kib else max(1, kib // 1024)


@cache
def _cpu_features() -> tuple[str, ...] | None:
    flags = cpu_flags()
    return tuple(sorted(flags)[:MAX_CPU_FEATURES]) if flags else None


def _model_info(model: Model, resting: Collection[str]) -> ModelInfo:
    manifest = model.installed.manifest
    return ModelInfo(
        name=manifest.name,
        version=manifest.version,
        sha256=model.installed.sha256,
        task=manifest.task,
        context_tokens=model.context_tokens,
        graph=model.graph_file,
        loaded=manifest.name not in resting,
        messages=manifest.takes_messages,
    )
