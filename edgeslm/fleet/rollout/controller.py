"""Carries rollouts out: takes what devices report, decides, writes down, publishes, again and again.

What always holds:

- All that matters is in the store; a controller may be killed anywhere, and the next one goes on from there. Nothing is
  lost by that, and no step is taken twice.
- One controller works at a time, under a lease that is asked for in each transaction.
- Decisions, the assignments that follow and the audit log are one transaction; publishing comes after it.
- A turn costs what has changed, and a small constant for each rollout and device under way.

Assignments that near their end, or whose device has another key or name by now, are made anew here too, those of
devices in no rollout as well.

Left to others: deciding (:mod:`edgeslm.fleet.rollout.engine`), reading and writing the store
(:mod:`edgeslm.fleet.rollout.records`, :mod:`edgeslm.fleet.rollout.writing`).
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from types import TracebackType
from typing import Self

from sqlalchemy import and_, or_, select
from sqlalchemy.orm import Session

from edgeslm import topics
from edgeslm.clock import utc_now
from edgeslm.errors import EdgeslmError, UsageError
from edgeslm.fleet.quarantine import quarantined
from edgeslm.fleet.registry import need_device, note_event
from edgeslm.fleet.reports import ReportInbox, take_reports
from edgeslm.fleet.rollout import records
from edgeslm.fleet.rollout.assigner import Assigner
from edgeslm.fleet.rollout.engine import decide
from edgeslm.fleet.rollout.lease import Lease
from edgeslm.fleet.rollout.outbox import Outbox
from edgeslm.fleet.rollout.writing import write
from edgeslm.fleet.store.database import Store
from edgeslm.fleet.store.models import DeviceRow
from edgeslm.fleet.store.rollouts import DesiredRow
from edgeslm.link.port import Link, Message
from edgeslm.schema.assignment import UpdateWindow

_LOG = logging.getLogger(__name__)

LEASE = "rollouts"
TICK_S = 1.0
MAX_ASSIGNMENTS = 100
"""Made in one transaction at most: each takes two milliseconds, and others wait for the store meanwhile."""
_PART = 20
"""Of a large rollout a transaction makes up to this part, as each reads all of it."""
RENEW_SHARE = 0.5
"""An assignment is made anew when less than this share of its life is left."""
_RENEW_S = 60.0
_BUSY_SHARE = 0.5
"""A turn that took long is followed by a rest as long, so that a busy controller leaves half of a core to others."""


class Controller:
    """Carries out the rollouts of one fleet; used as a context manager it works inside.

    :meth:`turn` does one round by itself, for tests and for whoever has a loop of his own.
    """

    def __init__(
        self,
        store: Store,
        fleet: str,
        link: Link,
        assigner: Assigner,
        *,
        lease: Lease | None = None,
        clock: Callable[[], datetime] = utc_now,
        tick_s: float = TICK_S,
        quarantine: Callable[[Session], Mapping[str, str]] = quarantined,
    ) -> None:
        """Take the parts.

        Args:
            store: of the fleet.
            fleet: its name.
            link: as the operator, not started yet.
            assigner: makes assignments.
            lease: on being the controller; one of its own by default.
            clock: gives aware UTC time.
            tick_s: seconds from turn to turn.
            quarantine: why devices are not believed, by name.
        """
        self._store = store
        self._link = link
        self._fleet = fleet
        self._assigner = assigner
        self._lease = lease or Lease(LEASE)
        self._clock = clock
        self._tick_s = tick_s
        self._quarantine = quarantine
        self._inbox = ReportInbox()
        self._outbox = Outbox(fleet, link.publish)
        self._renewed_at_s = float("-inf")
        self._stopping = threading.Event()
        self._connected = threading.Event()
        self._thread = threading.Thread(target=self._run, name="fleet-rollouts", daemon=True)
        self.reason = "no answer yet"
        self.turns = 0

    def __enter__(self) -> Self:
        self._link.start(self, [(topics.fleet_filter(self._fleet, "reported"), 1)])
        self._thread.start()
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        self._thread.join()
        self._link.stop()

    def wait_connected(self, timeout_s: float) -> bool:
        """Wait for the broker; ``False`` if it did not accept us in time, and then :attr:`reason` says why."""
        return self._connected.wait(timeout_s)

    @property
    def leads(self) -> bool:
        """Whether this is the controller that works."""
        return self._lease.token is not None

    # --- the link's thread ----------------------------------------------------------------------------------

    def on_message(self, message: Message) -> None:
        """Part of ``LinkEvents``."""
        self._inbox.put(message)
        message.acknowledge()  # the broker keeps the newest of each device, and sends it again on connecting

    def on_connected(self, *, session_present: bool) -> None:
        """Part of ``LinkEvents``."""
        del session_present
        self._connected.set()

    def on_disconnected(self, reason: str) -> None:
        """Part of ``LinkEvents``."""
        self._connected.clear()
        self._outbox.lost()
        self.reason = reason
        _LOG.warning("broker lost: %s", reason)

    def on_published(self, token: int) -> None:
        """Part of ``LinkEvents``."""
        self._outbox.confirmed(token)

    # --- the controller's thread ----------------------------------------------------------------------------

    def _run(self) -> None:
        next_s = time.monotonic()
        while not self._stopping.is_set():
            try:
                self.take(max(0.0, min(0.2, next_s - time.monotonic())))
                if time.monotonic() >= next_s:
                    began_s = time.monotonic()
                    more = self.turn()
                    took_s = time.monotonic() - began_s
                    rest_s = took_s * (1 - _BUSY_SHARE) / _BUSY_SHARE
                    next_s = time.monotonic() + (rest_s if more else max(rest_s, self._tick_s))
            except EdgeslmError as error:  # the store is locked, the disk full: the next turn may be better
                _LOG.error("rollouts: %s", error)
                next_s = time.monotonic() + self._tick_s
            except Exception:  # one turn must not end the service
                _LOG.exception("rollouts: a turn failed")
                next_s = time.monotonic() + self._tick_s
        try:
            with self._store.write() as session:
                self._lease.give_back(session, self._clock())
        except EdgeslmError as error:
            _LOG.warning("the lease runs out by itself: %s", error)

    def take(self, timeout_s: float) -> None:
        """Write down what devices reported; waits up to `timeout_s` for something.

        Raises:
            FleetError: the store refuses.
        """
        reports = self._inbox.take(timeout_s)
        if reports:
            take_reports(self._store, reports, self._clock())

    def turn(self) -> bool:
        """One round: decide about each rollout, renew what nears its end, publish what waits.

        Returns:
            Whether there is more to do at once.

        Raises:
            FleetError: the store refuses.
            AssignmentError: devices would not follow what this key signs.
        """
        self.turns += 1
        with self._store.write() as session:
            if not self._lease.hold(session, self._clock()):
                return False
            self._outbox.mark(session)
            ids = records.pending(session, self._clock())
        more = False
        for rollout_id in ids:
            more = self.advance(rollout_id) or more
        if time.monotonic() - self._renewed_at_s >= _RENEW_S:
            renewed = self.renew()
            more = more or renewed
            if not renewed:
                self._renewed_at_s = time.monotonic()
        if self._connected.is_set():
            with self._store.read() as session:
                sent = self._outbox.send(session)
            more = more or sent > 0 or self._outbox.has_news
        return more

    def advance(self, rollout_id: int) -> bool:
        """Decide about one rollout and write it down; whether something was decided.

        Raises:
            FleetError: the store refuses.
            AssignmentError: devices would not follow what this key signs.
        """
        now = self._clock()
        with self._store.write() as session:
            if not self._lease.hold(session, now):
                return False
            loaded = records.load(session, rollout_id)
            news = records.news(session, loaded)
            around = records.circumstances(session, loaded, self._quarantine(session))
            seen = {device: report for device, (report, _) in news.items()}
            decisions = decide(loaded.plan, loaded.state, seen, now, around)
            stamps = {device: stamp for device, (_, stamp) in news.items()}
            most = max(MAX_ASSIGNMENTS, len(loaded.state.members) // _PART)
            write(session, loaded, decisions, self._assigner, now, stamps=stamps, most=most)
        return bool(decisions)

    def renew(self) -> bool:
        """Make assignments anew that near their end; whether there were as many as one transaction takes.

        Raises:
            FleetError: the store refuses.
            AssignmentError: devices would not follow what this key signs.
        """
        now = self._clock()
        life = self._assigner.life
        with self._store.write() as session:
            if not self._lease.hold(session, now):
                return False
            due = session.scalars(
                select(DeviceRow.name)
                .join(DesiredRow, DesiredRow.device_id == DeviceRow.id)
                .where(
                    DeviceRow.standing == "active",
                    or_(
                        and_(DesiredRow.renews.is_(True), DesiredRow.expires_at < now + life * RENEW_SHARE),
                        # Joined again with another key, or under another name: it follows no other's.
                        and_(
                            DesiredRow.expires_at > now,
                            or_(
                                DesiredRow.key_sha256 != DeviceRow.key_sha256,
                                DesiredRow.device != DeviceRow.name,
                            ),
                        ),
                    ),
                )
                .order_by(DesiredRow.expires_at)
                .limit(MAX_ASSIGNMENTS)
            ).all()
            windows = records.windows(session, now) if due else {}
            for name in due:
                self._renew_one(session, name, now, windows.get(name))
        if due:
            _LOG.info("%d assignments were made anew", len(due))
        return len(due) == MAX_ASSIGNMENTS

    def _renew_one(self, session: Session, name: str, now: datetime, window: UpdateWindow | None) -> None:
        try:
            self._assigner.renew(session, name, now, window=window)
        except UsageError as error:
            # It says impossible numbers. It must not keep others waiting, nor be tried again and again.
            device = need_device(session, name)
            desired = session.get_one(DesiredRow, device.id)
            desired.renews, desired.expires_at = False, min(desired.expires_at, now)
            text = f"its assignment is not made anew: {error.message}"
            note_event(session, name, "assign", text, now, severity="error", device=device)
