"""Times of reports and events that were stamped before the clock was set. Pure."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

from edgeslm import codec, topics
from edgeslm.errors import CodecError, TopicError
from edgeslm.schema.metrics import Event, InferenceMetrics, Metrics, PowerMetrics, SystemMetrics

_REPORTS: Final[dict[str, type[Metrics]]] = {
    "m/power": PowerMetrics,
    "m/inference": InferenceMetrics,
    "m/system": SystemMetrics,
}


def iso_time(wall_s: float) -> str:
    """Unix time `wall_s` as it stands on the wire."""
    return datetime.fromtimestamp(wall_s, UTC).isoformat(timespec="milliseconds")


def restamp(topic: str, payload: bytes, wall_s: float) -> bytes:
    """A report or event as it would be, had the clock been set: stamped with Unix time `wall_s`.

    What is neither, or unreadable, stays as it is.
    """
    try:
        address = topics.parse(topic)
        if not isinstance(address, topics.DeviceTopic):
            return payload
        if address.channel == "e":
            event = codec.decode(Event, payload)
            return codec.encode(event.model_copy(update={"at": iso_time(wall_s)}))
        kind = _REPORTS.get(address.channel)
        if kind is None:
            return payload
        report = codec.decode(kind, payload)
        return codec.encode(report.model_copy(update={"at": iso_time(wall_s), "clock_set": True}))
    except (CodecError, TopicError, OverflowError, ValueError, OSError):
        return payload
