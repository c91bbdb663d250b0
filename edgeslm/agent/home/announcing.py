"""Announces a device to Home Assistant, again whenever that is needed, and takes it out where it is switched off.

What always holds: what was ever announced is written down first, so that a later process of the agent can take it
back; nothing is published on the link's thread. Everything is sent on the sampling thread (:meth:`Announcer.tick`),
which also sends reports a moment after Home Assistant has started: until the next one its sensors would know nothing.

Left to others: what is announced (:mod:`edgeslm.agent.discovery`).
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Final

from pydantic import Field, StringConstraints, ValidationError

from edgeslm import topics
from edgeslm.agent.discovery import (
    ORDER_LIFE,
    Facts,
    birth_topic,
    discovery_payload,
    discovery_topic,
    is_birth,
)
from edgeslm.agent.ports import Message
from edgeslm.errors import LinkError, TopicError
from edgeslm.files import read_bounded, replace_file
from edgeslm.schema.base import FileModel

log = logging.getLogger(__name__)

_REPORT_AFTER_S: Final = (1.0, 3.0, 7.0)
"""Home Assistant subscribes to a new entity's topics within this time, on a busy machine late in it."""
_RETRY_S: Final = 2.0
_RENEW_S: Final = ORDER_LIFE.total_seconds() / 2
_MAX_MARK_BYTES: Final = 65_536

Publish = Callable[[Message], int | None]


class _Announced(FileModel):
    """What may be with the broker: the topics of discovery messages."""

    topics: Annotated[
        tuple[Annotated[str, StringConstraints(min_length=1, max_length=1000)], ...], Field(max_length=64)
    ] = ()


class Announcer:
    """One device's word to Home Assistant. From any thread, but :meth:`tick` from one alone."""

    def __init__(
        self,
        fleet: str,
        device: str,
        prefix: str | None,
        mark: Path,
        publish: Publish,
        facts: Callable[[str], Facts],
        report: Callable[[float], None],
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take the parts.

        Args:
            prefix: of the discovery topics; ``None`` takes back what was announced.
            mark: file that remembers what was announced.
            facts: what there is to say, with the id of the next order.
            report: publishes the device's metrics, at a monotonic time.
        """
        self._prefix = prefix
        self._topic = None if prefix is None else discovery_topic(prefix, fleet, device)
        self._mark = mark
        self._publish = publish
        self._facts = facts
        self._report = report
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._due_s = float("inf")
        self._order_id = ""
        self._reports_s: list[float] = []
        self._clearing: dict[int, str] = {}
        self._cleared: list[str] = []

    @property
    def birth_topic(self) -> str | None:
        """Where Home Assistant says that it has started; ``None`` where nobody needs to know."""
        return None if self._prefix is None else birth_topic(self._prefix)

    def on_birth(self, message: Message) -> None:
        """Home Assistant said something on :attr:`birth_topic`; on the link's thread."""
        if is_birth(message.payload) and not message.retain:
            log.info("Home Assistant has started")
            self._announce_soon()

    def connected(self) -> None:
        """The broker is there, perhaps another one."""
        self._announce_soon()

    def changed(self) -> None:
        """What there is to say is no longer the same."""
        with self._lock:
            self._due_s = 0.0

    def commanded(self, topic: str) -> None:
        """A command came on `topic`: if it had the announced id, the next one needs another."""
        try:
            command = topics.parse(topic)
        except TopicError:
            return
        if not isinstance(command, topics.CommandTopic):
            return
        with self._lock:
            if command.command_id.partition(".")[0] == self._order_id:
                self._due_s = 0.0

    def published(self, token: int) -> None:
        """The broker has a message: what it took back need not be remembered any more."""
        with self._lock:
            gone = self._clearing.pop(token, None)
            if gone is not None:
                self._cleared.append(gone)

    def tick(self, now_s: float) -> None:
        """Send what is due; on the sampling thread, at monotonic `now_s`."""
        with self._lock:
            is_due = now_s >= self._due_s
            if is_due:
                self._due_s = now_s + (_RENEW_S if self._topic is not None else float("inf"))
            reports = [at_s for at_s in self._reports_s if at_s <= now_s]
            self._reports_s = [at_s for at_s in self._reports_s if at_s > now_s]
            cleared, self._cleared = self._cleared, []
        if cleared:
            self._forget(cleared)
        if is_due and not self._announce():
            with self._lock:
                self._due_s = min(self._due_s, now_s + _RETRY_S)
        if reports:
            self._report(now_s)

    def _announce_soon(self) -> None:
        now_s = self._monotonic()
        with self._lock:
            self._due_s = 0.0
            if self._topic is not None:
                self._reports_s = [now_s + after_s for after_s in _REPORT_AFTER_S]

    def _announce(self) -> bool:
        """Whether everything is off our hands."""
        try:
            before = self._remembered()
            if self._topic is not None and self._topic not in before:
                self._remember((*before, self._topic))
            taken_back = [self._take_back(topic) for topic in before if topic != self._topic]
            return (self._topic is None or self._send(self._topic)) and all(taken_back)
        except LinkError as error:
            log.warning("the broker takes no discovery message: %s", error)
        except OSError as error:
            log.warning("%s cannot be written, so nothing is announced: %s", self._mark, error.strerror)
        return True  # trying again at once is futile; the next connection does

    def _send(self, topic: str) -> bool:
        order_id = f"ha-{secrets.token_hex(8)}"
        with self._lock:
            self._order_id = order_id
        payload = discovery_payload(self._facts(order_id))
        return self._publish(Message(topic, payload, retain=True)) is not None

    def _take_back(self, topic: str) -> bool:
        token = self._publish(Message(topic, b"", retain=True))
        if token is None:
            return False
        with self._lock:
            self._clearing[token] = topic
        return True

    def _forget(self, cleared: list[str]) -> None:
        try:
            self._remember(tuple(topic for topic in self._remembered() if topic not in cleared))
        except OSError as error:
            log.warning("%s cannot be written: %s", self._mark, error.strerror)  # it is taken back once more

    def _remembered(self) -> tuple[str, ...]:
        try:
            return _Announced.model_validate_json(read_bounded(self._mark, _MAX_MARK_BYTES)).topics
        except FileNotFoundError:
            return ()
        except (OSError, ValidationError) as error:
            log.warning("%s cannot be read; what was announced before may stay: %s", self._mark, error)
            return ()

    def _remember(self, announced: tuple[str, ...]) -> None:
        if announced:
            replace_file(self._mark, _Announced(topics=announced).model_dump_json().encode())
        else:
            self._mark.unlink(missing_ok=True)


def was_announced(mark: Path) -> bool:
    """Whether something has to be taken back where nothing is to be announced."""
    return mark.exists()
