"""What devices report, from the broker into the store: the newest of each, many in one transaction.

What always holds: of each device only the newest word is kept while it waits, as each says all of it; what is lost with
this process the broker sends again, as it keeps the newest of each. A report that changes nothing costs no write.

Left to others: what a report means (:mod:`edgeslm.fleet.assignments`), what follows
(:mod:`edgeslm.fleet.rollout.controller`).
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from edgeslm import topics
from edgeslm.errors import FleetError, TopicError
from edgeslm.fleet.assignments import reported_key, take_reported
from edgeslm.fleet.store.database import Store
from edgeslm.fleet.store.models import Base, DeviceRow, FactRow
from edgeslm.fleet.store.rollouts import ReportRow
from edgeslm.link.port import Message

_LOG = logging.getLogger(__name__)

BATCH = 256
_MAX_DEVICES = 100_000
"""Devices whose reports may wait; a broker lets nobody write for a device but that device."""


class ReportInbox:
    """Reports that wait; its methods may be called from any thread."""

    def __init__(self) -> None:
        self._waiting: dict[str, bytes] = {}
        self._changed = threading.Condition()

    def put(self, message: Message) -> bool:
        """Take a message that is a report; ``False`` if it is none."""
        try:
            topic = topics.parse(message.topic)
        except TopicError:
            return False
        if not isinstance(topic, topics.DeviceTopic) or topic.channel != "reported":
            return False
        with self._changed:
            if topic.device in self._waiting or len(self._waiting) < _MAX_DEVICES:
                self._waiting[topic.device] = message.payload
                self._changed.notify_all()
            else:
                _LOG.warning("a report of %s is dropped: %d wait already", topic.device, _MAX_DEVICES)
        return True

    def take(self, timeout_s: float, most: int = BATCH) -> list[tuple[str, bytes]]:
        """What waits, oldest first; waits for something up to `timeout_s`."""
        with self._changed:
            if not self._waiting:
                self._changed.wait(timeout_s)
            names = [name for name, _ in zip(self._waiting, range(most), strict=False)]
            return [(name, self._waiting.pop(name)) for name in names]

    def __len__(self) -> int:
        with self._changed:
            return len(self._waiting)


def take_reports(store: Store, reports: Sequence[tuple[str, bytes]], now: datetime) -> None:
    """Write reports down in one transaction; where one cannot be, each in its own.

    Raises:
        FleetError: the store refuses.
    """
    wanted = [(device, payload) for device, payload in reports if payload]
    try:
        _take(store, wanted, now)
    except FleetError:
        raise
    except Exception:  # what one device says must not cost others their reports
        _LOG.exception("reports are written down one by one")
        for one in wanted:
            try:
                _take(store, [one], now)
            except FleetError:
                raise
            except Exception:
                _LOG.exception("a report of %s is dropped", one[0])


def _take(store: Store, reports: Sequence[tuple[str, bytes]], now: datetime) -> None:
    with store.write() as session, session.no_autoflush:
        rows, _kept = _read_ahead(session, [device for device, _ in reports])
        for device, payload in reports:
            if device in rows:
                take_reported(session, device, payload, now, row=rows[device])


def _read_ahead(session: Session, devices: Sequence[str]) -> tuple[dict[str, DeviceRow], list[Base]]:
    """Read in one go what each report is compared with; the session knows it for as long as the caller keeps it."""
    rows = session.scalars(select(DeviceRow).where(DeviceRow.name.in_(devices))).all()
    ids = [row.id for row in rows]
    marks = session.scalars(select(ReportRow).where(ReportRow.device_id.in_(ids))).all()
    facts = session.scalars(select(FactRow).where(FactRow.key.in_(map(reported_key, ids)))).all()
    return {row.name: row for row in rows}, [*marks, *facts]
