"""The energy ledger (SQLite, ``energy.db``): what was drawn, what for, and what each prompt cost.

What always holds:

* a joule is in one row: minutes are rolled up into hours after two days and hours into days after ninety, each in
  one transaction; days stay for ever;
* rows only grow. The wall clock is their label and nothing more: when it steps, energy goes to another minute, but
  none is lost, doubled or negative;
* recording never waits for the disk and never fails. It is written in batches; a crash loses at most one batch, and
  that is made up for at the next start by the draw of the time before it, for as long as the board was not off;
* a full disk keeps the batch in memory, coarser as it grows, until there is room again.

It is no journal: written without syncs of its own, in a file of its own, so that a broken one can be set aside
without a prompt being lost with it.
"""

from __future__ import annotations

import json
import logging
import math
import sqlite3
import threading
from collections.abc import Mapping
from pathlib import Path

from edgeslm.errors import LedgerError
from edgeslm.power.attribution import Interval, Settlement, Share
from edgeslm.power.baseline import number
from edgeslm.power.ledger_batch import Batch
from edgeslm.power.ledger_file import SEEN, connect, is_broken, set_aside, tidy, write
from edgeslm.power.ledger_reader import LedgerReader, PromptNote

log = logging.getLogger(__name__)

FLUSH_S = 10.0
"""Seconds between batches."""

RESTART_GAP_S = 600.0
"""Longest time without the agent that its draw is made up for: longer, and somebody switched it off."""

_TIDY_S = 3600.0


class Ledger(LedgerReader):
    """Writes and answers queries; what is not flushed yet is not in the answers. Thread-safe."""

    def __init__(self, path: Path, boot: str | None) -> None:
        """Open or create the database; one that is broken is set aside.

        Args:
            boot: see :func:`edgeslm.procfs.boot_id`; ``None`` where it is not known: then no restart is made up for.

        Raises:
            LedgerError: it cannot be opened, or was written by a newer release.
        """
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                db = connect(path)
            except sqlite3.DatabaseError as error:
                if not is_broken(error):
                    raise
                set_aside(path)
                db = connect(path)
        except (sqlite3.Error, OSError) as error:
            raise LedgerError(f"cannot open {path}: {error}") from error
        super().__init__(path, db)
        self._boot = boot
        self._lock = threading.Lock()
        self._batch = Batch()
        self._seen = self.state(SEEN)
        self._tidied_s = -math.inf
        self._failing = False
        self.failed_flushes = 0
        """Batches that could not be written at once."""

    def add(self, interval: Interval, now_s: float, wall_s: float) -> None:
        """Record an interval and what it settled.

        Args:
            now_s: monotonic time.
            wall_s: Unix time at `now_s`.
        """
        offset_s = wall_s - now_s
        with self._lock:
            self._batch.add(interval, offset_s)
            if interval.settlement is not None:
                if self._seen:
                    self._make_up(interval.settlement.start_s, offset_s)
                self._batch.settle(interval.settlement, offset_s)

    def note(self, prompt: PromptNote) -> None:
        """Record what is known of a prompt; a later note of the same id takes its place."""
        with self._lock:
            self._batch.notes[prompt.id] = prompt

    def set_state(self, key: str, value: Mapping[str, object]) -> None:
        """Record something that has to survive a restart; `value` is JSON."""
        with self._lock:
            self._batch.state[key] = json.dumps(dict(value))

    def state(self, key: str) -> dict[str, object]:
        """What :meth:`set_state` recorded; empty if there is nothing, or nothing of use.

        Raises:
            LedgerError: the database cannot be read.
        """
        with self._lock:
            text = self._batch.state.get(key)
        if text is None:
            with self._access() as db:
                row = db.execute("SELECT value FROM state WHERE key = ?", (key,)).fetchone()
            text = "{}" if row is None else row[0]
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            return {}
        return value if isinstance(value, dict) else {}

    def flush(self, wall_s: float) -> bool:
        """Write the batch, and once an hour roll up what has grown old.

        Returns:
            Whether it is on the disk; if not it is kept and written with the next.
        """
        with self._lock:
            batch, self._batch = self._batch, Batch()
        try:
            with self._access() as db:
                db.execute("BEGIN IMMEDIATE")
                try:
                    write(db, batch, self._boot)
                    if abs(wall_s - self._tidied_s) >= _TIDY_S:
                        tidy(db, wall_s)
                        self._tidied_s = wall_s
                    db.execute("COMMIT")
                except BaseException:
                    # A full disk may have ended the transaction by itself.
                    if db.in_transaction:
                        db.execute("ROLLBACK")
                    raise
        except LedgerError as error:
            self.failed_flushes += 1
            if not self._failing:
                log.warning("the energy ledger is kept in memory for now: %s", error)
            self._failing = True
            self._renew(error)
            with self._lock:
                batch.merge(self._batch)
                batch.bound()
                self._batch = batch
            return False
        self._failing = False
        return True

    def _renew(self, error: LedgerError) -> None:
        """Begin a new database if this one turned out to be broken."""
        if error.__cause__ is None or not is_broken(error.__cause__):
            return
        with self._db_lock:
            self._db.close()
            try:
                set_aside(self._path)
                self._db = connect(self._path)
            except (sqlite3.Error, OSError, LedgerError):
                log.exception("no new ledger in place of the broken one")

    def _make_up(self, start_s: float, offset_s: float) -> None:
        """Add what the board drew while the agent was away, and what the agent had not written before it went."""
        seen, self._seen = self._seen, {}
        at_s, power_w = number(seen, "at_s"), number(seen, "power_w")
        if self._boot is None or seen.get("boot") != self._boot or at_s is None or power_w is None:
            return
        seconds = start_s - at_s
        if 0 < seconds <= RESTART_GAP_S:
            energy_j = power_w * seconds
            share = Share("other", None, None, energy_j, 0.0, seconds)
            self._batch.settle(Settlement(at_s, start_s, energy_j, "estimated", (share,), ()), offset_s)
