"""Answers on their way to the broker: at most a window of them at once, each until the broker confirms it.

A link may be away for hours and a broker may take less than we have: what is not confirmed stays in the journal,
and is published again after a reconnect. Refusals (errors for messages that were never accepted) are not
journalled; they wait in memory, bounded, and are worth nothing after a restart.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from dataclasses import dataclass

from edgeslm import codec
from edgeslm.agent.intake import render
from edgeslm.agent.job import ReplyAddress
from edgeslm.agent.journal import Journal, PendingReply
from edgeslm.agent.ports import Link, Message
from edgeslm.errors import LinkError
from edgeslm.schema.message import Result

log = logging.getLogger(__name__)

WINDOW = 20
"""Messages handed over and not confirmed; brokers commonly take 20 or more (Receive Maximum)."""

_MAX_REFUSALS = 1000


@dataclass(frozen=True)
class _Parcel:
    """A message to publish, with the journal's number where it has one."""

    message: Message
    number: int | None


def _parcel(address: ReplyAddress, body: bytes, number: int | None) -> _Parcel:
    return _Parcel(Message(address.topic, body, correlation=address.correlation), number)


def _journalled_parcel(reply: PendingReply) -> _Parcel:
    body = reply.result
    if reply.address.form == "text":
        body = render(codec.decode(Result, body), "text")
    elif reply.address.form == "gzip":
        body = codec.compress(body)
    return _parcel(reply.address, body, reply.number)


class Outbox:
    """Thread-safe. The journal is asked for more whenever what is in memory has gone out."""

    def __init__(self, link: Link, journal: Journal) -> None:
        self._link = link
        self._journal = journal
        self._lock = threading.RLock()
        self._waiting: deque[_Parcel] = deque()
        self._flying: dict[int, _Parcel] = {}
        self._numbers: set[int] = set()
        """Journal numbers of parcels waiting or flying: each is in memory once."""
        self._refusals = 0
        self._backlog = True
        """Whether the journal may hold undelivered replies that are not in memory."""
        self._confirmed: list[int] = []

    def send(self, replies: list[PendingReply], *, again: bool = False) -> None:
        """Publish answers that were just journalled.

        Args:
            again: whoever waits for them asked once more, so that one on its way already does not count.
        """
        with self._lock:
            for reply in replies:
                if again:
                    self._numbers.discard(reply.number)
                self._enqueue(_journalled_parcel(reply))
            self._pump()

    def refuse(self, address: ReplyAddress, result: Result) -> bool:
        """Publish an error that is not journalled; ``False`` if too many wait already."""
        with self._lock:
            if self._refusals >= _MAX_REFUSALS:
                return False
            self._refusals += 1
            self._waiting.append(_parcel(address, render(result, "json"), None))
            self._pump()
            return True

    def connected(self) -> None:
        """The link is up: publish what waits, in order."""
        with self._lock:
            self._pump()

    def disconnected(self) -> None:
        """The link is gone: what it had not confirmed waits again, before everything else."""
        with self._lock:
            flying = [parcel for _, parcel in sorted(self._flying.items())]
            self._flying.clear()
            self._waiting.extendleft(reversed(flying))

    def published(self, token: int) -> None:
        """The broker confirmed the message of `token`."""
        with self._lock:
            parcel = self._flying.pop(token, None)
            if parcel is not None:
                self._done(parcel)
            self._pump()

    def confirmed(self) -> list[int]:
        """Journal numbers that the broker has; to be noted in the journal, then :meth:`settle` them."""
        with self._lock:
            return list(self._confirmed)

    def settle(self, numbers: list[int]) -> None:
        """The journal has noted these: they may be asked for, and published, anew."""
        with self._lock:
            self._confirmed = self._confirmed[len(numbers) :]
            self._numbers.difference_update(numbers)

    @property
    def waiting(self) -> int:
        """Parcels in memory that the broker has not confirmed."""
        with self._lock:
            return len(self._waiting) + len(self._flying)

    def _enqueue(self, parcel: _Parcel) -> None:
        if parcel.number is not None:
            if parcel.number in self._numbers:
                return
            if len(self._waiting) >= 2 * WINDOW:
                self._backlog = True  # it is in the journal; memory stays small while the broker is away
                return
            self._numbers.add(parcel.number)
        self._waiting.append(parcel)

    def _done(self, parcel: _Parcel) -> None:
        if parcel.number is None:
            self._refusals -= 1
        else:
            self._confirmed.append(parcel.number)

    def _pump(self) -> None:
        while len(self._flying) < WINDOW:
            if not self._waiting and not self._refill():
                return
            parcel = self._waiting[0]
            try:
                token = self._link.publish(parcel.message)
            except LinkError as error:
                # Trying again is futile, and it must not hold up the others.
                log.error("an answer to %s is given up: %s", parcel.message.topic, error)  # noqa: TRY400
                self._done(self._waiting.popleft())
                continue
            if token is None:
                return
            self._waiting.popleft()
            self._flying[token] = parcel

    def _refill(self) -> bool:
        if not self._backlog:
            return False
        replies = self._journal.undelivered(2 * WINDOW + len(self._numbers))
        self._backlog = len(replies) >= 2 * WINDOW + len(self._numbers)
        for reply in replies:
            self._enqueue(_journalled_parcel(reply))
        return bool(self._waiting)
