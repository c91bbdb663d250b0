"""What a device tells about itself: reports (``m/power``, ``m/inference``, ``m/system``) and events (``e/<type>``).

Every message carries the device's own time, a sequence number that rises by one from message to message of a kind
(a gap is a loss, a fall to zero a restart), and the span that it covers. ``None`` and absent is not known here.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from edgeslm.schema.base import WireModel
from edgeslm.schema.message import MeterClass

EventType = Literal[
    "meter_demoted",
    "meter_restored",
    "throttled",
    "under_voltage",
    "too_hot",
    "battery_low",
    "budget_exhausted",
    "budget_available",
    "budget_exceeded",
    "rule",
    "rules",
]


class Metrics(WireModel):
    """What all three have in common.

    Attributes:
        at: device time at the end of the span, ISO 8601 in UTC.
        clock_set: whether the device trusts its clock; `at` means nothing where it does not.
        span_s: seconds that the figures cover.
    """

    v: Literal[1] = 1
    device: str
    seq: Annotated[int, Field(ge=0)]
    at: str
    clock_set: bool = True
    span_s: Annotated[float, Field(ge=0)]


class PowerPoint(WireModel):
    """Draw over a part of the span.

    Attributes:
        ago_s: seconds from the end of this part to `at`.
    """

    ago_s: float
    min_w: float
    mean_w: float
    max_w: float


class EnergyShare(WireModel):
    """Joules that one cause took.

    Attributes:
        cause: ``idle``, ``agent``, ``other``, or a sort of work (``prompt``, ``test``, ``update``).
    """

    cause: str
    model: str | None = None
    rule: str | None = None
    energy_j: float
    net_j: float


class WindowState(WireModel):
    """One window of the budget.

    Attributes:
        limit_j: joules allowed in any `window_s` seconds.
        used_j: joules drawn in the last `window_s` seconds.
        left_share: what is left, 0 to 1; below 0 when exceeded.
    """

    name: str
    window_s: float
    limit_j: float
    used_j: float
    left_share: float


class BatteryMetrics(WireModel):
    """State of charge 0 to 1, and watts that leave the battery (negative while it charges)."""

    share: float
    discharge_w: float | None = None
    external: bool | None = None


class PowerMetrics(Metrics):
    """Topic ``m/power``.

    Attributes:
        meter: name of the meter in use.
        meter_class: how the figures are known.
        error_share: relative error (one sigma) of that meter.
        idle_w: learned draw of the idle board.
        energy_j: joules in the span.
        today_j: joules since local midnight.
        co2_g: grams of CO2e of the span; with the intensity that the configuration names.
        cost: of the span, in the currency of the configured price.
    """

    meter: str
    meter_class: MeterClass
    error_share: float
    idle_w: float
    energy_j: float
    today_j: float
    points: tuple[PowerPoint, ...] = Field(strict=False)
    causes: tuple[EnergyShare, ...] = Field(strict=False)
    windows: tuple[WindowState, ...] = Field(default=(), strict=False)
    battery: BatteryMetrics | None = None
    co2_g: float | None = None
    cost: float | None = None


class ModelMetrics(WireModel):
    """What one model did in the span.

    Attributes:
        answered: prompts answered; `refused` for lack of energy and `failed` for any other reason come on top.
        deferred: prompts that had to wait for energy.
        shortened: answers that the budget made shorter.
        decode_tps: median generated tokens a second.
        ttft_ms: median time to first token.
        energy_j: joules of its answers; `net_j` above idle.
    """

    model: str
    answered: int
    failed: int
    refused: int
    deferred: int
    shortened: int
    prompt_tokens: int
    completion_tokens: int
    decode_tps: float | None = None
    ttft_ms: float | None = None
    energy_j: float
    net_j: float
    j_per_token: float | None = None


class InferenceMetrics(Metrics):
    """Topic ``m/inference``; `waiting` prompts in the queue at the end of the span."""

    waiting: int
    models: tuple[ModelMetrics, ...] = Field(strict=False)


class SystemMetrics(Metrics):
    """Topic ``m/system``.

    Attributes:
        throttling: flags of the firmware that are set now.
        throttled_before: flags that were set since boot.
        busy_cores: mean number of busy cores of the whole board.
        rss_mb: resident memory of the agent, MB of 2^20 bytes.
        disk_free_mb: room on the file system of the state directory.
        spool_waiting: reports and events that the broker has not confirmed yet, these ones not counted.
        spool_dropped: reports and events that were given up for want of room, since the spool's file was made.
    """

    uptime_s: float
    temperature_c: float | None = None
    frequency_mhz: float | None = None
    throttling: tuple[str, ...] = Field(default=(), strict=False)
    throttled_before: tuple[str, ...] = Field(default=(), strict=False)
    busy_cores: float | None = None
    rss_mb: float | None = None
    memory_free_mb: float | None = None
    disk_free_mb: float | None = None
    spool_waiting: Annotated[int, Field(ge=0)] | None = None
    spool_dropped: Annotated[int, Field(ge=0)] | None = None


class Event(WireModel):
    """Something that happened once (``e/<type>``)."""

    v: Literal[1] = 1
    device: str
    type: EventType
    at: str
    detail: str
    figures: dict[str, float | str] = Field(default_factory=dict)
