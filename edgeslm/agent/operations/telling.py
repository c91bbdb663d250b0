"""Says what becomes of commands, as events (``e/operation``), and hears which of them the broker has.

What always holds: a last word that is longer than what the broker takes is told without what came of the operation,
rather than not at all. Not thread-safe: its owner has a lock.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable
from datetime import UTC, datetime

from pydantic import ValidationError

from edgeslm import codec, topics
from edgeslm.agent.operations import machine
from edgeslm.agent.operations.machine import Entry
from edgeslm.agent.ports import Message
from edgeslm.errors import LinkError
from edgeslm.schema.operation import MAX_TEXT_CHARS, OperationEvent, OperationFault

log = logging.getLogger(__name__)

TELL_S = 1.0
"""Least seconds between two events that only say how far an operation is."""

Publish = Callable[[Message], int | None]


class Teller:
    """One device's word on operations."""

    def __init__(
        self,
        fleet: str,
        device: str,
        publish: Publish,
        wall_clock: Callable[[], float],
        monotonic: Callable[[], float],
    ) -> None:
        """Take the parts; see ``Operations``."""
        self._device = device
        self._topic = topics.id_topic(fleet, device, "e", topics.OPERATION_EVENT)
        self._publish = publish
        self._wall_clock = wall_clock
        self._monotonic = monotonic
        self._told_s = float("-inf")
        self._tokens: dict[int, int] = {}
        self._pings: dict[int, threading.Event] = {}

    def event(self, entry: Entry) -> OperationEvent:
        """What there is to say of `entry`."""
        return machine.event(entry, self._device, self._at())

    def tell(self, entry: Entry) -> None:
        """Say it; a last word is followed until the broker has it."""
        token = self._send(self.event(entry))
        if token is not None and entry.is_final:
            self._tokens[token] = entry.number

    def tell_progress(self, entry: Entry) -> None:
        """Say it, unless something like it was said a moment ago."""
        if self._monotonic() - self._told_s >= TELL_S:
            self._told_s = self._monotonic()
            self._send(self.event(entry))

    def refuse(self, topic: topics.CommandTopic, message: str) -> None:
        """Refuse what is not remembered. An id that is none cannot be answered."""
        text = message[:MAX_TEXT_CHARS]
        with contextlib.suppress(ValidationError):
            event = OperationEvent(
                device=self._device,
                id=topic.command_id,
                op=topic.op,
                state="refused",
                at=self._at(),
                text=text,
                error=OperationFault(reason="refused", message=text),
            )
            self._send(event)

    def ping(self, entry: Entry, answered: threading.Event) -> int | None:
        """Say it once more, and let `answered` be set when the broker has it; a token, unless it was not taken."""
        token = self._send(self.event(entry))
        if token is not None:
            self._pings[token] = answered
        return token

    def forget_ping(self, token: int) -> None:
        """Nobody waits for it any more."""
        self._pings.pop(token, None)

    def reconnected(self) -> None:
        """What an earlier connection had under way is not confirmed any more."""
        self._tokens.clear()

    def published(self, token: int) -> int | None:
        """The broker has a message: the number of the command whose last word that was, if it was one."""
        if (answered := self._pings.pop(token, None)) is not None:
            answered.set()
        return self._tokens.pop(token, None)

    def _at(self) -> str:
        return datetime.fromtimestamp(self._wall_clock(), UTC).isoformat(timespec="milliseconds")

    def _send(self, event: OperationEvent) -> int | None:
        try:
            return self._publish(Message(self._topic, codec.encode(event)))
        except LinkError as error:
            log.error("what became of %s/%s cannot be told: %s", event.op, event.id, error)  # noqa: TRY400
        if event.result is None:
            return None
        text = f"{event.text}; the broker does not take what came of it"[-MAX_TEXT_CHARS:]
        return self._send(event.model_copy(update={"result": None, "text": text}))
