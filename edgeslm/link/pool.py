"""Who of a pool gets a prompt, and who instead of whom: decided from what devices say, without clock or network.

What always holds: the first answer wins and each requester gets one; a device that is gone, refuses, or let half of the
time that was left go by is replaced while there is somebody else; an id that was answered is not asked again. Memory is
bounded, whatever is asked.

A device that is merely late goes on: it may still be the first.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter, OrderedDict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from edgeslm import codec, topics
from edgeslm.errors import WireCode
from edgeslm.schema.message import ErrorBody, Info, PromptRequest, Result
from edgeslm.schema.metrics import InferenceMetrics, PowerMetrics
from edgeslm.schema.pool import PoolReport

MOST_OPEN: Final = 1000
MOST_ANSWERED: Final = 10_000
MOST_ANSWERED_BYTES: Final = 32 * 2**20
ANSWERED_WINDOW_S: Final = 3600.0
MOST_MEMBERS: Final = 100_000
MOST_REPLIES: Final = 8

_LOW_SHARE: Final = 0.05
"""A window with less than this left has no energy for a prompt."""
_LOW_BATTERY_SHARE: Final = 0.15
_SHORTEST_PATIENCE_S: Final = 0.1
_COME_BACK_S: Final[dict[WireCode, float]] = {
    "busy": 1.0,
    "budget": 30.0,
    "internal": math.inf,
    "unknown_model": math.inf,
}
"""Errors that another device may not have, and when the same one may be asked again if it does not say itself."""


@dataclass(frozen=True, slots=True)
class Member:
    """What a device of the fleet says.

    Attributes:
        serves: it has the pool's model.
        waiting: prompts in its queue, by its last report.
        left_share: of the window of its budget that has least left; 1 without a budget.
        battery_share: 0 to 1 where a battery feeds it, else ``None``.
    """

    device: str
    is_online: bool = False
    serves: bool = False
    waiting: int = 0
    left_share: float = 1.0
    battery_share: float | None = None

    @property
    def has_energy(self) -> bool:
        """Whether it can be expected to take a prompt."""
        low = self.battery_share is not None and self.battery_share < _LOW_BATTERY_SHARE
        return self.left_share >= _LOW_SHARE and not low


@dataclass(frozen=True, slots=True)
class Requester:
    """Where an answer goes: `topic`, or the answering device's own where there is none.

    Attributes:
        serial: of the message that asked, which is acknowledged once the answer is out.
        packs: it takes a compressed answer.
    """

    topic: str | None
    correlation: bytes | None
    serial: int
    packs: bool = False


@dataclass(frozen=True, slots=True)
class Forward:
    """Ask `device`; the answer is worthless after `left_s`."""

    device: str
    request: PromptRequest
    left_s: float


@dataclass(frozen=True, slots=True)
class TakeBack:
    """`device` need not answer any more."""

    device: str
    request_id: str


@dataclass(frozen=True, slots=True)
class Reply:
    """Tell a requester; `device` is whose answer it is, ``None`` for an error of the pool itself."""

    requester: Requester
    request_id: str
    device: str | None
    body: bytes


@dataclass(frozen=True, slots=True)
class Drop:
    """The message of this serial needs no answer: a later one asked the same for the same requester."""

    serial: int


Action = Forward | TakeBack | Reply | Drop


def choose(
    members: Iterable[Member], held: Mapping[str, int], late: Mapping[str, int], excluded: Collection[str]
) -> str | None:
    """The device to ask, if there is one: alive, with energy if any has it, with the least to do.

    Args:
        members: whom to choose from.
        held: prompts that devices hold of us.
        late: prompts in a row that devices let half of their time go by with.
        excluded: who is out of the question.
    """
    found = [m for m in members if m.is_online and m.serves and m.device not in excluded]
    if not found:
        return None
    best = min(
        found,
        key=lambda m: (
            not m.has_energy,
            late.get(m.device, 0),
            max(held.get(m.device, 0), m.waiting),
            held.get(m.device, 0),
            -m.left_share,
            m.device,
        ),
    )
    return best.device


@dataclass(slots=True)
class _Open:
    """A prompt without an answer."""

    request: PromptRequest
    digest: bytes
    deadline_s: float
    requesters: list[Requester]
    asked: set[str] = field(default_factory=set)
    """Whoever may answer."""
    holders: set[str] = field(default_factory=set)
    """Who is alive and has it."""
    refused: dict[str, float] = field(default_factory=dict)
    """Until when not to ask whom."""
    switch_s: float = math.inf
    error: tuple[str, bytes] | None = None
    """What a device refused with last."""


@dataclass(frozen=True, slots=True)
class _Answered:
    digest: bytes
    device: str
    body: bytes
    at_s: float


class Pool:
    """The state of one pool. Not thread-safe. Times are monotonic seconds."""

    def __init__(self, fleet: str, model: str, *, patience_s: float) -> None:
        """Begin with nobody.

        Args:
            patience_s: how long prompts live that come without a deadline.
        """
        self._fleet, self._model, self._patience_s = fleet, model, patience_s
        self._members: dict[str, Member] = {}
        self._open: dict[str, _Open] = {}
        self._answered: OrderedDict[str, _Answered] = OrderedDict()
        self._answered_bytes = 0
        self._late: Counter[str] = Counter()
        self._counts: Counter[str] = Counter()

    @property
    def report(self) -> PoolReport:
        """What was done."""
        return PoolReport(fleet=self._fleet, model=self._model, **self._counts)

    @property
    def ready(self) -> list[str]:
        """Devices that can be asked, by name."""
        return sorted(m.device for m in self._members.values() if m.is_online and m.serves)

    def due_s(self) -> float:
        """When :meth:`tick` has something to do; infinite for never."""
        return min((self._due_s(entry) for entry in self._open.values()), default=math.inf)

    # --- what devices say ----------------------------------------------------------------------------------------

    def note_presence(self, device: str, now_s: float, *, is_online: bool) -> list[Action]:
        """`device` has come, or is gone."""
        before = self._members.get(device, Member(device))
        self._keep(replace(before, is_online=is_online))
        if is_online:
            return self._place_waiting(now_s)
        actions: list[Action] = []
        for entry in list(self._open.values()):
            if device in entry.holders:
                entry.holders.discard(device)
                actions += self._place(entry, now_s)
        return actions

    def note_info(self, device: str, info: Info | None, now_s: float) -> list[Action]:
        """`device` says what it serves; ``None``: it is no more."""
        before = self._members.get(device, Member(device))
        serves = info is not None and any(model.name == self._model for model in info.models)
        self._keep(replace(before, serves=serves))
        return self._place_waiting(now_s) if serves else []

    def note_power(self, device: str, report: PowerMetrics) -> None:
        """What `device` may still spend."""
        member = self._members.get(device)
        if member is None:
            return
        battery = report.battery
        left_share = min((window.left_share for window in report.windows), default=1.0)
        battery_share = None if battery is None or battery.external else battery.share
        self._keep(replace(member, left_share=left_share, battery_share=battery_share))

    def note_inference(self, device: str, report: InferenceMetrics) -> None:
        """How much `device` has to do."""
        member = self._members.get(device)
        if member is not None:
            self._keep(replace(member, waiting=max(0, report.waiting)))

    def serves(self, device: str) -> bool:
        """Whether what `device` reports is of interest."""
        member = self._members.get(device)
        return member is not None and member.serves

    # --- prompts -------------------------------------------------------------------------------------------------

    def take(
        self, request: PromptRequest, requester: Requester, left_s: float | None, now_s: float
    ) -> list[Action]:
        """A prompt came.

        Args:
            left_s: seconds until the message expires, if it does.
        """
        if request.model not in {None, self._model}:
            wrong = f"model '{request.model}' asked of the pool of '{self._model}'"
            return [self._refusal(requester, request.id, "bad_request", wrong)]
        request = request.model_copy(update={"model": self._model})
        asked = request.model_dump_json(include={"task", "prompt", "tensor"})
        digest = hashlib.sha256(asked.encode()).digest()
        known = self._answered.get(request.id)
        if known is not None and now_s - known.at_s > ANSWERED_WINDOW_S:
            known = None
        entry = self._open.get(request.id)
        first_digest = known.digest if known is not None else entry.digest if entry is not None else digest
        if first_digest != digest:
            told = f"id '{request.id}' was used for another prompt"
            return [self._refusal(requester, request.id, "bad_request", told)]
        if known is not None:
            self._counts["repeated"] += 1
            return [Reply(requester, request.id, known.device, known.body)]
        if entry is not None:
            self._counts["repeated"] += 1
            return self._join(entry, requester)
        if len(self._open) >= MOST_OPEN:
            return [self._refusal(requester, request.id, "busy", "too many prompts are open", 1.0)]
        deadline_ms = request.options.deadline_ms
        times_s = [] if deadline_ms is None else [deadline_ms / 1e3]
        if left_s is not None:
            times_s.append(left_s)
        entry = _Open(request, digest, now_s + min(times_s, default=self._patience_s), [requester])
        self._open[request.id] = entry
        return self._place(entry, now_s)

    def answered(self, result: Result, body: bytes, now_s: float) -> list[Action]:
        """A device answered; `body` is `result` as it came, unpacked."""
        entry = self._open.get(result.id)
        if entry is None:
            self._counts["surplus"] += result.id in self._answered
            return []
        if result.device not in entry.asked:
            return []
        error = result.error
        if error is not None and error.code in _COME_BACK_S:
            after_s = error.retry_after_s if error.retry_after_s is not None else _COME_BACK_S[error.code]
            entry.refused[result.device] = now_s + max(0.0, after_s)
            entry.error = (result.device, body)
            entry.holders.discard(result.device)
            return self._place(entry, now_s)
        self._late.pop(result.device, None)
        if error is None:
            self._remember(result.id, _Answered(entry.digest, result.device, body, now_s))
        return self._finish(entry, result.device, body, is_answer=error is None)

    def tick(self, now_s: float) -> list[Action]:
        """What time brings: deadlines, devices that are late, devices that may be asked again."""
        actions: list[Action] = []
        for entry in list(self._open.values()):
            if self._due_s(entry) > now_s:
                continue
            if entry.deadline_s <= now_s:
                actions += self._give_up(entry)
            elif entry.switch_s <= now_s:
                entry.switch_s = math.inf
                self._late.update(entry.holders)
                actions += self._place(entry, now_s, beside=True)
            else:
                actions += self._place(entry, now_s)
        return actions

    def again(self, now_s: float) -> list[Action]:
        """Answers may have been lost: whoever holds a prompt is asked once more, and answers effectively once."""
        return [
            Forward(device, self._cut(entry, now_s), entry.deadline_s - now_s)
            for entry in self._open.values()
            for device in sorted(entry.holders)
            if entry.deadline_s > now_s
        ]

    # --- inside --------------------------------------------------------------------------------------------------

    def _keep(self, member: Member) -> None:
        if member.device in self._members or len(self._members) < MOST_MEMBERS:
            self._members[member.device] = member

    def _place_waiting(self, now_s: float) -> list[Action]:
        found = [entry for entry in self._open.values() if not entry.holders]
        return [action for entry in found for action in self._place(entry, now_s)]

    def _place(self, entry: _Open, now_s: float, *, beside: bool = False) -> list[Action]:
        """Find a device for a prompt that no living one holds, or `beside` the one that does."""
        if entry.holders and not beside:
            return []
        left_s = entry.deadline_s - now_s
        if left_s <= 0:
            return []  # the next tick gives up
        held = Counter(device for other in self._open.values() for device in other.holders)
        excluded = entry.holders | {device for device, until_s in entry.refused.items() if until_s > now_s}
        device = choose(self._members.values(), held, self._late, excluded)
        if device is None:
            can_come = any(until_s < entry.deadline_s for until_s in entry.refused.values())
            if (
                entry.error is not None
                and not entry.holders
                and not can_come
                and self._has_all_refused(entry)
            ):
                return self._finish(entry, *entry.error, is_answer=False)
            return []
        self._counts["replaced"] += bool(entry.asked - {device})
        entry.refused.pop(device, None)
        entry.asked.add(device)
        entry.holders.add(device)
        entry.switch_s = now_s + left_s / 2 if left_s / 2 >= _SHORTEST_PATIENCE_S else math.inf
        return [Forward(device, self._cut(entry, now_s), left_s)]

    def _has_all_refused(self, entry: _Open) -> bool:
        return all(device in entry.refused for device in self.ready)

    def _due_s(self, entry: _Open) -> float:
        times_s = [entry.deadline_s, entry.switch_s]
        if not entry.holders:
            times_s += entry.refused.values()
        return min(times_s)

    def _cut(self, entry: _Open, now_s: float) -> PromptRequest:
        """The request with the time that is left of its deadline."""
        left_ms = max(1, min(86_400_000, math.floor((entry.deadline_s - now_s) * 1e3)))
        options = entry.request.options.model_copy(update={"deadline_ms": left_ms})
        return entry.request.model_copy(update={"options": options})

    def _join(self, entry: _Open, requester: Requester) -> list[Action]:
        """One more waits for the same answer, or the same one asks again."""
        for position, other in enumerate(entry.requesters):
            if (other.topic, other.correlation) == (requester.topic, requester.correlation):
                entry.requesters[position] = requester
                return [Drop(other.serial)]
        if len(entry.requesters) >= MOST_REPLIES:
            told = "too many requesters wait for this id"
            return [self._refusal(requester, entry.request.id, "busy", told, 1.0)]
        entry.requesters.append(requester)
        return []

    def _finish(self, entry: _Open, device: str | None, body: bytes, *, is_answer: bool) -> list[Action]:
        del self._open[entry.request.id]
        self._counts["answered" if is_answer else "failed"] += 1
        replies = [Reply(requester, entry.request.id, device, body) for requester in entry.requesters]
        losers = sorted(entry.asked - {device} - entry.refused.keys())
        return [*replies, *(TakeBack(loser, entry.request.id) for loser in losers)]

    def _give_up(self, entry: _Open) -> list[Action]:
        if entry.error is not None and not entry.holders:
            return self._finish(entry, *entry.error, is_answer=False)
        asked = ", ".join(sorted(entry.asked)[:5]) or "none was there"
        told = f"no device of the pool of '{self._model}' answered in time (asked: {asked})"
        body = codec.encode(_error(entry.request.id, "deadline", told))
        return self._finish(entry, None, body, is_answer=False)

    def _refusal(
        self,
        requester: Requester,
        request_id: str,
        code: WireCode,
        message: str,
        retry_after_s: float | None = None,
    ) -> Reply:
        self._counts["failed"] += 1
        body = codec.encode(_error(request_id, code, message, retry_after_s))
        return Reply(requester, request_id, None, body)

    def _remember(self, request_id: str, answer: _Answered) -> None:
        self._answered[request_id] = answer
        self._answered_bytes += len(answer.body)
        while len(self._answered) > MOST_ANSWERED or self._answered_bytes > MOST_ANSWERED_BYTES:
            _, oldest = self._answered.popitem(last=False)
            self._answered_bytes -= len(oldest.body)


def _error(request_id: str, code: WireCode, message: str, retry_after_s: float | None = None) -> Result:
    return Result(
        id=request_id,
        device=topics.POOL,
        error=ErrorBody(code=code, message=message, retry_after_s=retry_after_s),
    )


def error_body(request_id: str, code: WireCode, message: str) -> bytes:
    """An error of the pool itself, which no device can be called."""
    return codec.encode(_error(request_id, code, message))
