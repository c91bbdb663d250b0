"""Reports and events on the card while the broker is away: bounded, in order, the oldest of least worth dropped first.

What always holds: what is dropped is counted, in the same transaction; numbers rise, and give the order. Nothing here
is synced but what is left at the end: a power cut takes the latest minute of an outage, never more than the file.

Left to others: when something is written (:mod:`edgeslm.agent.spool`).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from edgeslm.agent.database import Database
from edgeslm.errors import JournalError

_VERSION: Final = 1
_CACHE_KIB: Final = 128
_TRIM_SHARE: Final = 0.95
"""What is left after making room, so that not each write has to."""
_TRIM_STEP: Final = 64

_SCHEMA: Final = """
CREATE TABLE items (
    number INTEGER PRIMARY KEY,
    topic TEXT NOT NULL,
    payload BLOB NOT NULL,
    is_event INTEGER NOT NULL,
    boot TEXT,
    since_boot_s REAL NOT NULL
);
CREATE INDEX items_by_worth ON items (is_event, number);
CREATE TABLE boots (boot TEXT PRIMARY KEY, began_s REAL NOT NULL);
CREATE TABLE dropped (one INTEGER PRIMARY KEY CHECK (one = 1), items INTEGER NOT NULL);
INSERT INTO dropped VALUES (1, 0);
"""


@dataclass(frozen=True, slots=True)
class Item:
    """A message that the broker has not confirmed.

    Attributes:
        number: its place in the order.
        boot: the kernel's id of the boot during which it was stamped by a clock that was not set; else ``None``.
        since_boot_s: seconds from the beginning of that boot to its stamp.
    """

    number: int
    topic: str
    payload: bytes
    is_event: bool
    boot: str | None
    since_boot_s: float


class SpoolStore:
    """One file. Thread-safe."""

    def __init__(self, path: Path, *, most_items: int, most_bytes: int) -> None:
        """Open or create it.

        Args:
            most_items: items that it holds at most.
            most_bytes: bytes of topics and payloads in all.

        Raises:
            JournalError: it cannot be opened, or was written by a newer release.
        """
        self._most_items, self._most_bytes = most_items, most_bytes
        self._database = Database(path, _SCHEMA, _VERSION, cache_kib=_CACHE_KIB)
        try:
            self.count, self._bytes, self.last = self._measure()
            self.dropped = self._number("SELECT items FROM dropped")
        except JournalError:
            self._database.close()
            raise

    def append(self, items: Sequence[Item], *, dropped: int, kept_to: int = 0, synced: bool = False) -> None:
        """Take `items`, and make room by dropping reports before events, the oldest first.

        Args:
            dropped: items that were dropped elsewhere, to be counted with ours.
            kept_to: what has a number up to this is on its way, and stays.
            synced: they are on the card afterwards.

        Raises:
            JournalError: the disk is full or broken; nothing has changed.
        """
        try:
            with self._database.transaction(synced=synced) as db:
                db.executemany(
                    "INSERT OR REPLACE INTO items VALUES (?, ?, ?, ?, ?, ?)",
                    [
                        (item.number, item.topic, item.payload, item.is_event, item.boot, item.since_boot_s)
                        for item in items
                    ],
                )
                self.count, self._bytes, self.last = self._measure()
                if self.count > self._most_items or self._bytes > self._most_bytes:
                    dropped += self._make_room(db, kept_to)
                if dropped:
                    db.execute("UPDATE dropped SET items = items + ?", (dropped,))
                self.dropped = self._number("SELECT items FROM dropped")
        except JournalError:
            self.count, self._bytes, self.last = self._measure()
            self.dropped = self._number("SELECT items FROM dropped")
            raise

    def read(self, after: int, most: int) -> list[Item]:
        """At most `most` items with numbers above `after`, in order.

        Raises:
            JournalError: the file is broken.
        """
        try:
            with self._database.lock:
                rows = self._database.db.execute(
                    "SELECT number, topic, payload, is_event, boot, since_boot_s FROM items "
                    "WHERE number > ? ORDER BY number LIMIT ?",
                    (after, most),
                ).fetchall()
        except sqlite3.Error as error:
            raise JournalError(f"spooled reports cannot be read: {error}") from error
        return [Item(row[0], row[1], row[2], bool(row[3]), row[4], row[5]) for row in rows]

    def remove(self, numbers: Collection[int]) -> None:
        """The broker has these.

        Raises:
            JournalError: the disk is full or broken; they are still there.
        """
        with self._database.transaction(synced=False) as db:
            sizes = [
                row[0]
                for number in numbers
                for row in db.execute(
                    "DELETE FROM items WHERE number = ? RETURNING length(topic) + length(payload)", (number,)
                ).fetchall()
            ]
            if self.count == len(sizes):
                db.execute("DELETE FROM boots")
        self.count, self._bytes = self.count - len(sizes), self._bytes - sum(sizes)
        self.last = self._number("SELECT coalesce(max(number), 0) FROM items")

    def note_boot(self, boot: str, began_s: float) -> None:
        """Boot `boot` is known to have begun at Unix time `began_s`; kept while items want to know.

        Raises:
            JournalError: the disk is full or broken.
        """
        with self._database.transaction(synced=False) as db:
            db.execute("INSERT OR REPLACE INTO boots VALUES (?, ?)", (boot, began_s))

    def boot_began_s(self, boot: str) -> float | None:
        """When `boot` began, if that ever became known.

        Raises:
            JournalError: the file is broken.
        """
        try:
            with self._database.lock:
                row = self._database.db.execute(
                    "SELECT began_s FROM boots WHERE boot = ?", (boot,)
                ).fetchone()
        except sqlite3.Error as error:
            raise JournalError(f"the times of boots cannot be read: {error}") from error
        return None if row is None else float(row[0])

    def close(self) -> None:
        """Close it."""
        self._database.close()

    def _make_room(self, db: sqlite3.Connection, kept_to: int) -> int:
        dropped = 0
        for is_event in (False, True):
            while self.count > self._most_items * _TRIM_SHARE or self._bytes > self._most_bytes * _TRIM_SHARE:
                found = db.execute(
                    "DELETE FROM items WHERE number IN (SELECT number FROM items "
                    "WHERE is_event = ? AND number > ? ORDER BY number LIMIT ?)",
                    (is_event, kept_to, min(_TRIM_STEP, max(1, self._most_items // 20))),
                ).rowcount
                if not found:
                    break
                dropped += found
                self.count, self._bytes, self.last = self._measure()
        return dropped

    def _measure(self) -> tuple[int, int, int]:
        try:
            with self._database.lock:
                row = self._database.db.execute(
                    "SELECT count(*), coalesce(sum(length(topic) + length(payload)), 0), "
                    "coalesce(max(number), 0) FROM items"
                ).fetchone()
        except sqlite3.Error as error:
            raise JournalError(f"spooled reports cannot be counted: {error}") from error
        return int(row[0]), int(row[1]), int(row[2])

    def _number(self, query: str) -> int:
        try:
            with self._database.lock:
                return int(self._database.db.execute(query).fetchone()[0])
        except (sqlite3.Error, TypeError) as error:
            raise JournalError(f"spooled reports cannot be counted: {error}") from error
