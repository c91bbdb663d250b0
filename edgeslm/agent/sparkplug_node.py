"""A device as a Sparkplug B edge node: what is born, reported and ordered (Eclipse Sparkplug 3.0.0, chapter 5).

What always holds: a birth names every metric that will ever be reported, with its type; numbers of messages rise by one
from 0 at each birth; a report holds what changed and nothing else; a death carries the number of the birth that it
ends. Pure: the clock is injected, and what is made here is sent by :mod:`edgeslm.agent.sparkplug_bridge`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias

from pydantic import ValidationError

from edgeslm.agent import sparkplug
from edgeslm.agent.sparkplug import DataType, Metric, Payload, Value
from edgeslm.codec import describe
from edgeslm.errors import BadRequestError
from edgeslm.link.port import Message
from edgeslm.schema.message import Info, PromptRequest, Result
from edgeslm.schema.metrics import InferenceMetrics, PowerMetrics, SystemMetrics

BD_SEQ: Final = "bdSeq"
REBIRTH: Final = "Node Control/Rebirth"
PROMPT_TEXT: Final = "Prompt/Text"
PROMPT_ID: Final = "Prompt/Id"
ANSWER_ID: Final = "Answer/Id"
ANSWER_TEXT: Final = "Answer/Text"
ANSWER_ERROR: Final = "Answer/Error"

CATALOGUE: Final[Mapping[str, DataType]] = {
    "Properties/Agent": DataType.STRING,
    "Properties/Board": DataType.STRING,
    "Properties/Runtime": DataType.STRING,
    "Properties/Models": DataType.STRING,
    "Power/Mean W": DataType.DOUBLE,
    "Power/Today J": DataType.DOUBLE,
    "Power/Meter": DataType.STRING,
    "System/Temperature C": DataType.DOUBLE,
    "System/Memory Free MB": DataType.DOUBLE,
    "System/Disk Free MB": DataType.DOUBLE,
    "System/Uptime s": DataType.DOUBLE,
    "Inference/Waiting": DataType.INT64,
    "Inference/Answered": DataType.INT64,
    "Inference/Failed": DataType.INT64,
    PROMPT_TEXT: DataType.STRING,
    PROMPT_ID: DataType.STRING,
    ANSWER_ID: DataType.STRING,
    ANSWER_TEXT: DataType.STRING,
    ANSWER_ERROR: DataType.STRING,
    "Answer/Finish Reason": DataType.STRING,
    "Answer/Total ms": DataType.DOUBLE,
    "Answer/Energy J": DataType.DOUBLE,
}
"""Everything that is ever reported; null until it is known."""

NUMBERS: Final = 256
"""Numbers of messages and of births begin again after 255."""


@dataclass(frozen=True)
class Rebirth:
    """Somebody missed the birth, and asks for it."""


@dataclass(frozen=True)
class Ask:
    """A prompt for the device."""

    request: PromptRequest


@dataclass(frozen=True)
class Refuse:
    """A prompt that cannot be one, and why."""

    request_id: str
    message: str


Order: TypeAlias = Rebirth | Ask | Refuse


class EdgeNode:
    """One device. Not safe for threads."""

    def __init__(self, group: str, node: str, now_ms: Callable[[], int], new_id: Callable[[], str]) -> None:
        """Begin, unborn.

        Args:
            group: Sparkplug group.
            node: Sparkplug edge node.
            now_ms: milliseconds since 1970, UTC.
            new_id: names a prompt that came without a name.

        Raises:
            TopicError: a name cannot stand in a topic.
        """
        self._group = group
        self._node = node
        self._now_ms = now_ms
        self._new_id = new_id
        self._values: dict[str, Value] = dict.fromkeys(CATALOGUE)
        self._seq: int | None = None
        self.command_topic = sparkplug.topic(group, "NCMD", node)

    @property
    def is_born(self) -> bool:
        """Whether a birth was made that no death ended."""
        return self._seq is not None

    def death(self, bd_seq: int) -> Message:
        """The will of a connection, and its farewell; afterwards nothing is reported before the next birth."""
        self._seq = None
        body = Payload(self._now_ms(), (Metric(BD_SEQ, bd_seq, DataType.INT64, None, self._now_ms()),))
        return Message(sparkplug.topic(self._group, "NDEATH", self._node), sparkplug.encode(body))

    def birth(self, bd_seq: int) -> Message:
        """All metrics, as they are now.

        Args:
            bd_seq: of the will that the connection was made with.
        """
        now_ms = self._now_ms()
        control = (
            Metric(BD_SEQ, bd_seq, DataType.INT64, None, now_ms),
            Metric(REBIRTH, False, DataType.BOOLEAN, None, now_ms),
        )
        self._seq = 0
        return self._message("NBIRTH", (*control, *self._metrics(self._values, now_ms)), now_ms)

    def report(self, values: Mapping[str, Value]) -> Message | None:
        """What changed with `values`; ``None`` where nothing did, or while the node is not born.

        Args:
            values: by name, of :data:`CATALOGUE`.
        """
        changed = {name: value for name, value in values.items() if self._values[name] != value}
        self._values |= changed
        if self._seq is None or not changed:
            return None
        self._seq = (self._seq + 1) % NUMBERS
        now_ms = self._now_ms()
        return self._message("NDATA", self._metrics(changed, now_ms), now_ms)

    def orders(self, body: bytes) -> tuple[Order, ...]:
        """What a command asks for. What it names beside that is ignored.

        Raises:
            CodecError: it is no Sparkplug payload.
        """
        metrics = sparkplug.decode(body).metrics
        found: list[Order] = []
        rebirth = sparkplug.find(metrics, REBIRTH)
        if rebirth is not None and rebirth.value is True:
            found.append(Rebirth())
        text = sparkplug.find(metrics, PROMPT_TEXT)
        if text is not None:
            found.append(self._prompt(text.value, sparkplug.find(metrics, PROMPT_ID)))
        return tuple(found)

    def _prompt(self, text: Value, named: Metric | None) -> Order:
        name = named.value if named is not None else None
        request_id = name if isinstance(name, str) and name else self._new_id()
        try:
            return Ask(PromptRequest(id=request_id, prompt=text if isinstance(text, str) else ""))
        except ValidationError as error:
            return Refuse(request_id[:128], f"{BadRequestError.code}: {describe(error)}")

    def _metrics(self, values: Mapping[str, Value], now_ms: int) -> tuple[Metric, ...]:
        return tuple(Metric(name, value, CATALOGUE[name], None, now_ms) for name, value in values.items())

    def _message(self, verb: sparkplug.Verb, metrics: tuple[Metric, ...], now_ms: int) -> Message:
        body = sparkplug.encode(Payload(now_ms, metrics, self._seq))
        return Message(sparkplug.topic(self._group, verb, self._node), body, qos=0)


# --- what the device says, as values ------------------------------------------------------------------------


def described(info: Info) -> dict[str, Value]:
    """Of the device's description."""
    return {
        "Properties/Agent": info.agent,
        "Properties/Board": info.board,
        "Properties/Runtime": info.runtime,
        "Properties/Models": ", ".join(f"{model.name}@{model.version}" for model in info.models),
    }


def powered(report: PowerMetrics) -> dict[str, Value]:
    """Of a report of power; the draw is the mean over its span."""
    mean_w = report.energy_j / report.span_s if report.span_s > 0 else None
    return {"Power/Mean W": mean_w, "Power/Today J": report.today_j, "Power/Meter": report.meter_class}


def inferred(report: InferenceMetrics) -> dict[str, Value]:
    """Of a report of inference; counts are those of its span."""
    return {
        "Inference/Waiting": report.waiting,
        "Inference/Answered": sum(model.answered for model in report.models),
        "Inference/Failed": sum(model.failed + model.refused for model in report.models),
    }


def observed(report: SystemMetrics) -> dict[str, Value]:
    """Of a report of the system."""
    return {
        "System/Temperature C": report.temperature_c,
        "System/Memory Free MB": report.memory_free_mb,
        "System/Disk Free MB": report.disk_free_mb,
        "System/Uptime s": report.uptime_s,
    }


def answered(result: Result) -> dict[str, Value]:
    """Of an answer, or of the error in its place."""
    receipt, error = result.receipt, result.error
    return {
        ANSWER_ID: result.id,
        ANSWER_TEXT: result.text,
        ANSWER_ERROR: f"{error.code}: {error.message}" if error is not None else None,
        "Answer/Finish Reason": result.finish_reason,
        "Answer/Total ms": receipt.total_ms if receipt is not None else None,
        "Answer/Energy J": receipt.energy_j if receipt is not None else None,
    }


def refused(order: Refuse) -> dict[str, Value]:
    """Of a prompt that never went to the device."""
    nothing: dict[str, Value] = {name: None for name in CATALOGUE if name.startswith("Answer/")}
    return {**nothing, ANSWER_ID: order.request_id, ANSWER_ERROR: order.message}
