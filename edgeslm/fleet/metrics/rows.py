"""From reports to rows of the tables. Pure.

A row is a tuple in the order of the columns in :mod:`edgeslm.fleet.store.metrics`: device, time, sequence, model where
there is one, the figures, what only single reports have.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

from edgeslm.schema.metrics import InferenceMetrics, ModelMetrics, PowerMetrics, PowerPoint, SystemMetrics

Row = tuple[object, ...]

EXCEEDED_SHARE: Final = -0.02
"""A window with less left than this is exceeded; as the device counts it (``budget_exceeded``)."""
_POINT: Final = struct.Struct("<4f")


def power_row(device_id: int, at_ms: int, report: PowerMetrics) -> Row:
    """Row of a report on power."""
    span_s, points, windows = report.span_s, report.points, report.windows
    left_share = min((window.left_share for window in windows), default=None)
    return (
        device_id,
        at_ms,
        report.seq,
        1,
        span_s,
        report.energy_j,
        min((point.min_w for point in points), default=None),
        max((point.max_w for point in points), default=None),
        report.idle_w * span_s,
        sum(share.energy_j for share in report.causes if share.cause == "prompt"),
        span_s if report.meter_class == "estimated" else 0.0,
        left_share,
        1 if left_share is not None and left_share < EXCEEDED_SHARE else 0,
        None if report.battery is None else report.battery.share,
        report.co2_g,
        report.cost,
        b"".join(_POINT.pack(point.ago_s, point.min_w, point.mean_w, point.max_w) for point in points),
    )


def points_of(packed: bytes) -> Iterator[PowerPoint]:
    """The points of a report, as they were packed into its row."""
    for ago_s, min_w, mean_w, max_w in _POINT.iter_unpack(packed):
        yield PowerPoint(ago_s=ago_s, min_w=min_w, mean_w=mean_w, max_w=max_w)


def inference_row(device_id: int, at_ms: int, report: InferenceMetrics) -> Row:
    """Row of a report on inference; its models have rows of their own."""
    return (device_id, at_ms, report.seq, 1, report.span_s, report.waiting, report.waiting)


def model_row(device_id: int, at_ms: int, report: InferenceMetrics, model: ModelMetrics) -> Row:
    """Row of what one model did."""
    tokens, answered = model.completion_tokens, model.answered
    tps, ttft_ms = model.decode_tps, model.ttft_ms
    return (
        device_id,
        at_ms,
        report.seq,
        model.model,
        report.span_s,
        answered,
        model.failed,
        model.refused,
        model.deferred,
        model.shortened,
        model.prompt_tokens,
        tokens,
        model.energy_j,
        model.net_j,
        0.0 if tps is None else tps * tokens,
        0 if tps is None else tokens,
        0.0 if ttft_ms is None else ttft_ms * answered,
        0 if ttft_ms is None else answered,
    )


def system_row(device_id: int, at_ms: int, report: SystemMetrics) -> Row:
    """Row of a report on the system."""
    span_s, temperature_c = report.span_s, report.temperature_c
    return (
        device_id,
        at_ms,
        report.seq,
        1,
        span_s,
        temperature_c,
        0.0 if temperature_c is None else temperature_c * span_s,
        0.0 if temperature_c is None else span_s,
        span_s if report.throttling else 0.0,
        0.0 if report.busy_cores is None else report.busy_cores * span_s,
        report.rss_mb,
        report.memory_free_mb,
        report.disk_free_mb,
    )
