"""What devices answer to one prompt that went to all of them, and how far they agree. Pure.

What always holds: every device is asked under an id that only it is told, so none can answer in the place of another;
a device has one answer, its first; one that is not there when the prompt leaves is not waited for.

Of other tasks than generating, labels are compared, whatever their scores, and numbers as they are.

Two answers are the same where both are JSON of the same value, however it is written, or else the same words, however
they are spaced.

Left to others: the broker (:mod:`edgeslm.fleet.asker`), and which devices are asked.
"""

from __future__ import annotations

import json
import secrets
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Any, Literal, NoReturn

from pydantic import JsonValue

from edgeslm.schema.fleet import Record
from edgeslm.schema.message import DeviceState, ErrorBody, FinishReason, Output, Receipt, Result
from edgeslm.schema.tensor import Tensors

AnswerState = Literal["asked", "answered", "failed", "absent", "silent"]
"""``failed`` says why itself; ``absent`` was not there and not asked; ``silent`` did not answer in time."""


class Answer(Record):
    """What became of the prompt on one device.

    Attributes:
        presence: what it says of itself at the broker; ``None`` if it was never there.
        text: of the answer; ``data`` is the same parsed, where JSON was asked for or the model promises it.
        took_s: seconds from asking to the answer, the network included.
        error: why it has no answer, as it says.
    """

    device: str
    state: AnswerState = "asked"
    presence: DeviceState | None = None
    text: str | None = None
    data: JsonValue = None
    label: str | None = None
    scores: dict[str, float] | None = None
    embedding: tuple[float, ...] | None = None
    tensor: Tensors | None = None
    outputs: tuple[Output, ...] | None = None
    finish_reason: FinishReason | None = None
    receipt: Receipt | None = None
    error: ErrorBody | None = None
    took_s: float | None = None

    @property
    def outcome(self) -> JsonValue:
        """What came of a task other than generating: the label, or numbers; ``None`` for an answer in text."""
        if self.label is not None:
            return self.label
        found = self.model_dump(
            mode="json", include={"embedding", "tensor", "outputs"}, exclude_none=True, by_alias=True
        )
        return next(iter(found.values()), None)

    @property
    def is_answered(self) -> bool:
        """Whether there is an answer."""
        return self.state == "answered"


class Gathering:
    """What devices answered to one prompt."""

    def __init__(self, devices: Iterable[str], presence: Mapping[str, DeviceState]) -> None:
        """Nobody has answered.

        Args:
            devices: that are meant.
            presence: what each says of itself; those that do not say that they are online are not asked.
        """
        self._answers = {
            name: Answer(
                device=name,
                presence=presence.get(name),
                state="asked" if presence.get(name) == "online" else "absent",
            )
            for name in devices
        }
        self.ids = {name: secrets.token_hex(16) for name in self.open}
        self._names = {request_id: name for name, request_id in self.ids.items()}

    @property
    def open(self) -> list[str]:
        """Devices that owe an answer."""
        return [name for name, answer in self._answers.items() if answer.state == "asked"]

    @property
    def reachable(self) -> list[str]:
        """Those of them that are there."""
        return [name for name in self.open if self._answers[name].presence == "online"]

    @property
    def answers(self) -> tuple[Answer, ...]:
        """What is known of each device, in the order in which they were named."""
        return tuple(self._answers.values())

    def take(self, result: Result, took_s: float) -> Answer | None:
        """A result that came; the answer that it is, or ``None`` if it is none that is waited for."""
        name = self._names.get(result.id)
        if name is None or result.device != name or self._answers[name].state != "asked":
            return None
        self._answers[name] = self._answers[name].model_copy(
            update={
                "state": "failed" if result.error is not None else "answered",
                "text": result.text,
                "data": result.data,
                "label": result.label,
                "scores": result.scores,
                "embedding": result.embedding,
                "tensor": result.tensor,
                "outputs": result.outputs,
                "finish_reason": result.finish_reason,
                "receipt": result.receipt,
                "error": result.error,
                "took_s": round(took_s, 3),
            }
        )
        return self._answers[name]

    def present(self, device: str, state: DeviceState | None) -> None:
        """What `device` says of its presence now."""
        before = self._answers.get(device)
        if before is not None and before.state == "asked":
            self._answers[device] = before.model_copy(update={"presence": state})

    def give_up(self) -> list[Answer]:
        """Nobody is waited for any more; those that owe an answer."""
        late = [self._answers[name].model_copy(update={"state": "silent"}) for name in self.open]
        self._answers.update({answer.device: answer for answer in late})
        return late


# --- agreement ----------------------------------------------------------------------------------------------


class SameAnswer(Record):
    """An answer, and the devices that gave it."""

    text: str
    devices: tuple[str, ...]


class Agreement(Record):
    """How far devices agree.

    Attributes:
        asked: devices that were meant,
        answered: and of those how many have an answer.
        same: of the answers, those that are the most frequent one.
        groups: each answer with its devices, the most frequent first.
    """

    asked: int
    answered: int
    same: int
    groups: tuple[SameAnswer, ...]

    def __str__(self) -> str:
        told = f"{self.answered} of {self.asked} answered"
        if self.answered < 2:
            return told
        if self.same == self.answered:
            return f"{told}, all the same"
        most = f"{self.same} of them the same" if self.same > 1 else "no two the same"
        return f"{told}, {most}, {len(self.groups)} different answers"


def agreement(answers: Iterable[Answer]) -> Agreement:
    """How far `answers` agree; the text of a group is that of its first device."""
    known = tuple(answers)
    groups: dict[tuple[str, str], list[Answer]] = {}
    for answer in known:
        if answer.is_answered:
            groups.setdefault(meaning(said(answer)), []).append(answer)
    ordered = sorted(groups.values(), key=lambda group: (-len(group), group[0].device))
    return Agreement(
        asked=len(known),
        answered=sum(map(len, ordered)),
        same=len(ordered[0]) if ordered else 0,
        groups=tuple(
            SameAnswer(text=said(group[0]), devices=tuple(one.device for one in group)) for group in ordered
        ),
    )


def said(answer: Answer) -> str:
    """An answer as text: of a classification its label, of numbers their JSON."""
    if answer.text is not None or answer.outcome is None:
        return answer.text or ""
    return answer.outcome if isinstance(answer.outcome, str) else json.dumps(answer.outcome)


def meaning(text: str) -> tuple[str, str]:
    """What two texts have in common that are the same answer."""
    try:
        value = json.loads(text, parse_constant=_refuse)
        return "json", json.dumps(_plain(value), sort_keys=True, separators=(",", ":"))
    except (ValueError, RecursionError):
        return "text", " ".join(unicodedata.normalize("NFC", text).split())


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")


def _plain(value: Any) -> Any:
    """`value` with 1.0 as 1: JSON has one kind of number."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value
