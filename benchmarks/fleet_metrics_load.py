"""Reports of a made-up fleet, as devices send them: for the benchmark and the tests of the collector."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from datetime import UTC, datetime

from edgeslm import codec, topics
from edgeslm.fleet.store.database import Store
from edgeslm.fleet.store.models import DeviceRow
from edgeslm.schema.metrics import (
    EnergyShare,
    InferenceMetrics,
    ModelMetrics,
    PowerMetrics,
    PowerPoint,
    SystemMetrics,
    WindowState,
)

FLEET = "green"
MODEL = "home-command@1.0.0"
_POINTS = 6
_DAY_LIMIT_J = 360_000.0


def add_devices(store: Store, names: list[str], now: datetime, board: str = "pi-4b") -> None:
    """Devices that are in use."""
    with store.write() as session:
        for name in names:
            session.add(
                DeviceRow(
                    name=name, standing="active", key_sha256="0" * 64, board=board, notes="", created_at=now
                )
            )


def power(device: str, seq: int, at: datetime, *, mean_w: float = 3.2, span_s: float = 60.0) -> PowerMetrics:
    """A report on power: `mean_w` with some swing, a sixth of the work on prompts."""
    energy_j = mean_w * span_s
    swing_w = 0.2 * mean_w
    step_s = span_s / _POINTS
    return PowerMetrics(
        device=device,
        seq=seq,
        at=at.isoformat(timespec="milliseconds"),
        span_s=span_s,
        meter="ina219",
        meter_class="measured",
        error_share=0.01,
        idle_w=2.7,
        energy_j=energy_j,
        today_j=energy_j * (seq % 1440 + 1),
        points=tuple(
            PowerPoint(ago_s=step_s * at, min_w=mean_w - swing_w, mean_w=mean_w, max_w=mean_w + swing_w)
            for at in reversed(range(_POINTS))
        ),
        causes=tuple(
            EnergyShare(
                cause=cause,
                model=MODEL if cause == "prompt" else None,
                energy_j=energy_j * share,
                net_j=energy_j * share / 2,
            )
            for cause, share in (("idle", 0.7), ("agent", 0.08), ("other", 0.05), ("prompt", 0.17))
        ),
        windows=tuple(
            WindowState(name=name, window_s=over_s, limit_j=limit_j, used_j=limit_j * 0.6, left_share=0.4)
            for name, over_s, limit_j in (("day", 86_400.0, _DAY_LIMIT_J), ("supply", 60.0, 300.0))
        ),
    )


def inference(
    device: str, seq: int, at: datetime, *, tps: float = 24.0, model: str = MODEL, answered: int = 3
) -> InferenceMetrics:
    """A report on what one model did."""
    tokens = answered * 26
    return InferenceMetrics(
        device=device,
        seq=seq,
        at=at.isoformat(timespec="milliseconds"),
        span_s=60.0,
        waiting=seq % 3,
        models=(
            ModelMetrics(
                model=model,
                answered=answered,
                failed=0,
                refused=0,
                deferred=0,
                shortened=0,
                prompt_tokens=tokens * 2,
                completion_tokens=tokens,
                decode_tps=tps,
                ttft_ms=310.0,
                energy_j=answered * 4.2,
                net_j=answered * 1.9,
                j_per_token=1.9 / 26,
            ),
        ),
    )


def system(device: str, seq: int, at: datetime, *, temperature_c: float = 51.5) -> SystemMetrics:
    """A report on the system."""
    return SystemMetrics(
        device=device,
        seq=seq,
        at=at.isoformat(timespec="milliseconds"),
        span_s=60.0,
        uptime_s=60.0 * seq,
        temperature_c=temperature_c,
        frequency_mhz=1500.0,
        busy_cores=0.4,
        rss_mb=182.5,
        memory_free_mb=2410.0,
        disk_free_mb=10_422.0,
    )


def reports(
    names: list[str], minute: int, at: datetime, chance: random.Random
) -> Iterator[tuple[str, bytes]]:
    """What all devices send in one minute, each with its topic; draw follows the time of day."""
    level_w = 3.0 + 0.6 * math.sin(minute / 229.0)
    for name in names:
        mean_w = level_w + chance.random() * 0.5
        yield (
            topics.device_topic(FLEET, name, "m/power"),
            codec.encode(power(name, minute, at, mean_w=mean_w)),
        )
        yield (
            topics.device_topic(FLEET, name, "m/inference"),
            codec.encode(inference(name, minute, at, tps=22.0 + 4.0 * chance.random())),
        )
        yield topics.device_topic(FLEET, name, "m/system"), codec.encode(system(name, minute, at))


def device_names(count: int) -> list[str]:
    """Names of `count` devices."""
    return [f"board-{number:05}" for number in range(count)]


def noon() -> datetime:
    """A moment to begin from."""
    return datetime(2026, 11, 24, 12, tzinfo=UTC)
