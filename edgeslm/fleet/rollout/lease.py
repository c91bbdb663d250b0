"""A lease on a job that only one process may do at a time: controllers come and go, one of them works.

What always holds: a lease has one holder; it goes to another only after it has expired or was given back, and its token
rises then. Whoever works under it asks for it in the transaction that writes (:meth:`Lease.hold`), so a controller that
was asleep while another took over writes nothing, however its clock goes.

The time is that of the store's users, who have to agree on it to within the length of a lease; where they do not, a
lease changes hands too early or too late, and still only one token is right.
"""

from __future__ import annotations

import os
import secrets
import socket
from datetime import datetime, timedelta

from sqlalchemy import select
from sqlalchemy.orm import Session

from edgeslm.fleet.store.rollouts import LeaseRow

LENGTH = timedelta(seconds=15)


def new_holder() -> str:
    """A name that no other process has."""
    return f"{socket.gethostname()[:64]}:{os.getpid()}:{secrets.token_hex(4)}"


class Lease:
    """One job, as one process sees it."""

    def __init__(self, name: str, holder: str | None = None, length: timedelta = LENGTH) -> None:
        """Ask for nothing yet.

        Args:
            name: of the job.
            holder: who asks; a new name by default.
            length: how long it lasts without being renewed.
        """
        self.name = name
        self.holder = holder or new_holder()
        self.token: int | None = None
        self._length = length

    def hold(self, session: Session, now: datetime) -> bool:
        """Take the lease, or renew it; ``False`` if it is another's.

        In PostgreSQL its row stays locked until the transaction ends, as the whole store does in SQLite.
        """
        row = session.scalars(
            select(LeaseRow).where(LeaseRow.name == self.name).with_for_update()
        ).one_or_none()
        if row is None:
            row = LeaseRow(name=self.name, holder=self.holder, token=1, expires_at=now + self._length)
            session.add(row)
            session.flush()
        elif row.holder == self.holder and row.token == self.token:
            # A renewal writes, and a write costs a sync: often enough is enough.
            if row.expires_at - now < self._length / 2 or row.expires_at - now > self._length:
                row.expires_at = now + self._length
        elif row.expires_at <= now or row.expires_at - now > self._length * 4:
            # Far beyond its length it can only have been written by a clock that was ahead.
            row.holder, row.token, row.expires_at = self.holder, row.token + 1, now + self._length
        else:
            self.token = None
            return False
        self.token = row.token
        return True

    def give_back(self, session: Session, now: datetime) -> None:
        """Let others have it at once. Idempotent."""
        row = session.get(LeaseRow, self.name)
        if row is not None and row.holder == self.holder and row.token == self.token:
            row.expires_at = now
        self.token = None


def holder_of(session: Session, name: str, now: datetime) -> str | None:
    """Who holds a lease; ``None`` if nobody does."""
    row = session.get(LeaseRow, name)
    return row.holder if row is not None and row.expires_at > now else None
