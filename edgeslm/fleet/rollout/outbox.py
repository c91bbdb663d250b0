"""Assignments on their way to the broker: what is written and perhaps not sent is sent, as often as it takes.

What always holds: an assignment counts as sent when the broker confirmed it and no newer one was made; sending one
twice does no harm, as it is the same bytes under the same number.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from sqlalchemy import select
from sqlalchemy.orm import Session

from edgeslm import topics
from edgeslm.errors import LinkError
from edgeslm.fleet.assignments import mark_published
from edgeslm.fleet.store.models import DeviceRow
from edgeslm.fleet.store.rollouts import DesiredRow
from edgeslm.link.port import Message

_LOG = logging.getLogger(__name__)
_BATCH = 500


class Outbox:
    """Sends what is desired and not published; used by the thread that holds the lease.

    ``confirmed`` and ``lost`` are for the link's thread.
    """

    def __init__(self, fleet: str, publish: Callable[[Message], int | None]) -> None:
        """Take the way out.

        Args:
            fleet: its name.
            publish: as of a link: a token, or ``None`` where it takes nothing now.
        """
        self._fleet = fleet
        self._publish = publish
        self._lock = threading.Lock()
        self._under_way: dict[int, tuple[int, int]] = {}
        self._confirmed: list[tuple[int, int]] = []
        self._early: set[int] = set()

    def confirmed(self, token: int) -> None:
        """The broker has the message of `token`."""
        with self._lock:
            sent = self._under_way.pop(token, None)
            if sent is not None:
                self._confirmed.append(sent)
            else:
                self._early.add(token)

    def lost(self) -> None:
        """The connection is gone: what was not confirmed is sent again."""
        with self._lock:
            self._under_way.clear()
            self._early.clear()

    def mark(self, session: Session) -> int:
        """Write down what was confirmed; how many that were."""
        with self._lock:
            confirmed, self._confirmed = self._confirmed, []
        for device_id, seq in confirmed:
            mark_published(session, device_id, seq)
        return len(confirmed)

    @property
    def has_news(self) -> bool:
        """Whether something was confirmed and is not written down."""
        with self._lock:
            return bool(self._confirmed)

    def send(self, session: Session) -> int:
        """Hand over what waits, as far as the link takes it; how many that were."""
        with self._lock:
            busy = {device_id for device_id, _ in (*self._under_way.values(), *self._confirmed)}
        waiting = session.execute(
            select(DesiredRow.device_id, DeviceRow.name, DesiredRow.seq, DesiredRow.body)
            .join(DeviceRow, DeviceRow.id == DesiredRow.device_id)
            .where(DesiredRow.published_seq != DesiredRow.seq, DeviceRow.standing == "active")
            .limit(_BATCH)
        )
        sent = 0
        for device_id, name, seq, body in waiting:
            if device_id in busy or not body:
                continue
            message = Message(topics.device_topic(self._fleet, name, "desired"), body, retain=True)
            try:
                token = self._publish(message)
            except LinkError as error:
                _LOG.error("%s cannot get its assignment: %s", name, error)
                continue
            if token is None:
                break
            sent += 1
            with self._lock:
                if token in self._early:
                    self._early.discard(token)
                    self._confirmed.append((device_id, seq))
                else:
                    self._under_way[token] = (device_id, seq)
        return sent
