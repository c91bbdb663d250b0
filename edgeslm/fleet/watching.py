"""What devices say of themselves, as it comes: how each is now, and what changed. Pure.

What always holds: only devices that are watched are listened to; what cannot be read changes nothing; what a broker
retained is how things are, not that they happened. Prompts and answers are not among what is watched: they are for
those who asked.

Left to others: the broker, and the screen.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, Final, Literal, TypeVar, get_args

from pydantic import BaseModel, Field

from edgeslm import codec, topics
from edgeslm.errors import CodecError, TopicError
from edgeslm.link.port import Message
from edgeslm.schema.fleet import Record
from edgeslm.schema.message import MAX_BODY_BYTES, Availability, DeviceState, Info, MeterClass
from edgeslm.schema.metrics import Event, EventType, InferenceMetrics, PowerMetrics, SystemMetrics
from edgeslm.schema.operation import OperationEvent
from edgeslm.schema.update import Reported, ReportedChange, ReportedModel

_LOG = logging.getLogger(__name__)

MAX_ONE_BY_ONE: Final = 20
"""Devices that are listened to one by one; of more than that the whole fleet is heard."""
MAX_TEXT_CHARS: Final = 300
MAX_NAME_CHARS: Final = 96
MAX_MODELS: Final = 32
"""Of one device."""
_GOOD: Final[frozenset[EventType]] = frozenset({"meter_restored", "budget_available"})
_BAD_STATES: Final = frozenset({"rejected", "rolling_back", "rolled_back", "safe_mode"})
_TALK: Final = frozenset({"running", "restarting"})

Severity = Literal["info", "warning", "error"]
ModelT = TypeVar("ModelT", bound=BaseModel)


class Seen(Record):
    """How a device is, as it says itself; what it did not say is missing.

    Attributes:
        running: version by name of what it runs,
        reported: and of that what its reports say, which are newer than its description.
        updates: by name, how far a change that is not over is, or what the last one failed of.
        power_w: mean of its last report, known by `meter`.
        waiting: prompts in its queue.
        answered: prompts since the watching began,
        answered_at: the last report that told of any,
        tps: and the generated tokens a second of that,
        j_per_answer: and its joules an answer.
        troubles: what the firmware does against heat or a weak supply now.
        event: what happened last.
    """

    device: str
    presence: DeviceState | None = None
    board: str | None = None
    agent: str | None = None
    running: dict[str, str] = Field(default_factory=dict)
    reported: dict[str, str] = Field(default_factory=dict, exclude=True)
    updates: dict[str, str] = Field(default_factory=dict)
    power_w: float | None = None
    meter: MeterClass | None = None
    waiting: int | None = None
    answered: int = 0
    answered_at: datetime | None = None
    tps: float | None = None
    j_per_answer: float | None = None
    temperature_c: float | None = None
    troubles: tuple[str, ...] = ()
    event: str | None = None


class News(Record):
    """Something that changed.

    Attributes:
        at: when it was heard here.
    """

    at: datetime
    device: str
    kind: Literal["presence", "runs", "update", "event", "operation"]
    severity: Severity
    text: str


def filters(fleet: str, devices: Iterable[str]) -> list[str]:
    """What to subscribe to for `devices`.

    Raises:
        TopicError: a name cannot be in a topic.
    """
    names = list(devices)
    if len(names) > MAX_ONE_BY_ONE:
        kept = (topics.fleet_filter(fleet, channel) for channel in ("availability", "info", "reported"))
        return [*kept, *topics.metrics_filters(fleet)]
    channels: tuple[topics.DeviceChannel, ...] = (
        "availability", "info", "reported", "m/power", "m/inference", "m/system",
    )  # fmt: skip
    found = [topics.device_topic(fleet, name, channel) for name in names for channel in channels]
    kinds = (*get_args(EventType), topics.OPERATION_EVENT)
    return found + [topics.id_topic(fleet, name, "e", kind) for name in names for kind in kinds]


class Watching:
    """What is known of some devices."""

    def __init__(self, devices: Iterable[str]) -> None:
        """Nobody has said anything."""
        self._seen = {name: Seen(device=name) for name in devices}

    @property
    def seen(self) -> tuple[Seen, ...]:
        """Every device, in the order in which they were named."""
        return tuple(self._seen.values())

    @property
    def unheard(self) -> int:
        """How many have not even said whether they are there."""
        return sum(one.presence is None for one in self._seen.values())

    def take(self, message: Message, now: datetime) -> list[News]:
        """A message that came; what is new by it."""
        try:
            topic = topics.parse(message.topic)
        except TopicError:
            return []
        if not isinstance(topic, topics.DeviceTopic) or topic.device not in self._seen:
            return []
        before = self._seen[topic.device]
        try:
            changes, told = _changes(before, topic, message.payload, now)
        except CodecError as error:
            _LOG.warning("a message on %s is dropped: %s", message.topic[:120], error)
            return []
        self._seen[topic.device] = before.model_copy(update=changes)
        if message.retain:
            return []
        return [
            News(at=now, device=topic.device, kind=kind, severity=severity, text=text[:MAX_TEXT_CHARS])
            for kind, severity, text in told
        ]


# --- what a message changes ---------------------------------------------------------------------------------

_Told = list[tuple[Literal["presence", "runs", "update", "event", "operation"], Severity, str]]


def _changes(
    before: Seen, topic: topics.DeviceTopic, payload: bytes, now: datetime
) -> tuple[Mapping[str, Any], _Told]:
    """What of a device is otherwise after a message, and what of that is news.

    Raises:
        CodecError: it cannot be read.
    """
    if topic.channel == "availability":
        state = _read(Availability, payload).state if payload else None
        if state == before.presence:
            return {}, []
        return {"presence": state}, [
            ("presence", "info" if state == "online" else "warning", state or "forgotten")
        ]
    if not payload:
        return {}, []
    if topic.channel == "info":
        info = _read(Info, payload)
        described = {
            model.name[:MAX_NAME_CHARS]: model.version[:MAX_NAME_CHARS] for model in info.models[:MAX_MODELS]
        }
        return {
            "board": info.board[:MAX_NAME_CHARS],
            "agent": info.agent[:MAX_NAME_CHARS],
            "running": described | before.reported,
            "meter": info.meter,
        }, []
    if topic.channel == "reported":
        return _reported(before, _read(Reported, payload))
    if topic.channel == "m/power":
        power = _read(PowerMetrics, payload)
        mean_w = power.energy_j / power.span_s if power.span_s > 0 else None
        return {"power_w": mean_w, "meter": power.meter_class}, []
    if topic.channel == "m/inference":
        return _inference(before, _read(InferenceMetrics, payload), now), []
    if topic.channel == "m/system":
        system = _read(SystemMetrics, payload)
        return {
            "temperature_c": system.temperature_c,
            "troubles": tuple(flag[:MAX_NAME_CHARS] for flag in system.throttling[:8]),
        }, []
    if topic.channel == "e":
        return _event(topic, payload)
    return {}, []


def _reported(before: Seen, reported: Reported) -> tuple[Mapping[str, Any], _Told]:
    models = reported.models[:MAX_MODELS]
    running = {model.name: model.version for model in models if model.version is not None}
    told: _Told = [
        ("runs", "info", f"{name} {version}" + (f" after {was}" if (was := before.running.get(name)) else ""))
        for name, version in running.items()
        if before.running.get(name) != version
    ]
    updates = {model.name: text for model in models if (text := update_text(model)) is not None}
    for model in models:
        text = updates.get(model.name)
        if text is not None and before.updates.get(model.name) != text:
            is_bad = model.change is not None and model.change.state in _BAD_STATES
            told.append(("update", "warning" if is_bad else "info", f"{model.name} {text}"))
    return {"running": _latest(before.running | running), "reported": running, "updates": updates}, told


def _latest(running: Mapping[str, str]) -> dict[str, str]:
    """The names that came last: who reports others each time must not fill the memory."""
    return dict(list(running.items())[-MAX_MODELS:])


def update_text(model: ReportedModel) -> str | None:
    """How far the change of a model is; ``None`` for one that went well, or none."""
    change = model.change
    if change is None or (change.settled and change.state not in _BAD_STATES):
        return None
    text = f"{change.version} {change.state.replace('_', ' ')}"
    share = _share(change)
    if share is not None:
        text += f" {share:.0%}"
    if change.fault is not None:
        text += f": {change.fault.cause}, {change.fault.detail}"
    elif change.waits_for is not None:
        text += f", waits for {change.waits_for}"
    return text[:MAX_TEXT_CHARS]


def _share(change: ReportedChange) -> float | None:
    if change.state != "fetching" or not change.total_bytes or change.total_bytes < 0:
        return None
    return min(1.0, max(0.0, (change.done_bytes or 0) / change.total_bytes))


def _inference(before: Seen, report: InferenceMetrics, now: datetime) -> Mapping[str, Any]:
    answered = sum(max(0, model.answered) for model in report.models)
    if not answered:
        return {"waiting": report.waiting}
    rates = [model.decode_tps for model in report.models if model.decode_tps is not None]
    return {
        "waiting": report.waiting,
        "answered": before.answered + answered,
        "answered_at": now,
        "tps": max(rates, default=None),
        "j_per_answer": sum(model.energy_j for model in report.models) / answered,
    }


def _event(topic: topics.DeviceTopic, payload: bytes) -> tuple[Mapping[str, Any], _Told]:
    if topic.request_id == topics.OPERATION_EVENT:
        said = _read(OperationEvent, payload)
        if said.state in _TALK:
            return {}, []
        is_bad = said.is_final and said.state != "done"
        return {}, [
            ("operation", "warning" if is_bad else "info", f"{said.op}: {said.state} {said.text}".rstrip())
        ]
    event = _read(Event, payload)
    text = f"{event.type.replace('_', ' ')}: {event.detail}"[:MAX_TEXT_CHARS]
    return {"event": text}, [("event", "info" if event.type in _GOOD else "warning", text)]


def _read(kind: type[ModelT], payload: bytes) -> ModelT:
    return codec.decode(kind, payload, max_bytes=MAX_BODY_BYTES)
