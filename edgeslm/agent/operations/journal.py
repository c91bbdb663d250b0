"""The device's record of commands (``operations.db``): what was begun, and the last word on each.

What always holds: what is saved as `synced` is on the card when the call returns; a command is remembered long after
what came of it was let go of, since its message may still be with the broker and come again.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from edgeslm.agent.database import Database
from edgeslm.agent.operations.machine import Entry, reduce
from edgeslm.errors import JournalError

KEPT = 64
"""Commands of which the outcome is kept."""
KEPT_LARGE = 4
LARGE_BYTES = 8192
"""Of the outcomes longer than this fewer are kept."""
REMEMBERED = 1024
"""Commands that are known not to be new."""

_SCHEMA_VERSION = 1
_SCHEMA = """
CREATE TABLE operations (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    op TEXT NOT NULL,
    id TEXT NOT NULL,
    body TEXT NOT NULL,
    boot TEXT NOT NULL,
    at_s REAL NOT NULL,
    open INTEGER NOT NULL,
    told INTEGER NOT NULL,
    reduced INTEGER NOT NULL,
    UNIQUE (op, id)
);
CREATE INDEX operations_open ON operations (number) WHERE open;
CREATE INDEX operations_untold ON operations (number) WHERE NOT told;
"""
_OVER = (
    "SELECT number, length(body), body FROM operations WHERE NOT open AND NOT reduced ORDER BY number DESC"
)
_FORGET = """
DELETE FROM operations WHERE NOT open AND number IN
(SELECT number FROM operations WHERE NOT open ORDER BY number DESC LIMIT -1 OFFSET ?)
"""

_ENTRY: TypeAdapter[Entry] = TypeAdapter(Entry)


class OperationJournal:
    """Thread-safe; each call is one transaction."""

    def __init__(self, path: Path, boot: str) -> None:
        """Open or create the database.

        Args:
            boot: what tells this boot of the kernel from others; monotonic times can be compared within one.

        Raises:
            JournalError: it cannot be opened, or was written by a newer release.
        """
        self._path = path
        self._boot = boot
        self._database = Database(path, _SCHEMA, _SCHEMA_VERSION, cache_kib=64)

    def next_number(self) -> int:
        """The number of the next command.

        Raises:
            JournalError: it cannot be read.
        """
        return int(self._rows("SELECT coalesce(max(number), 0) + 1 FROM operations")[0][0])

    def find(self, op: str, command_id: str) -> Entry | None:
        """The command of this name and id, if it is remembered.

        Raises:
            JournalError: it cannot be read.
        """
        rows = self._rows("SELECT body FROM operations WHERE op = ? AND id = ?", (op, command_id))
        return _parsed(rows[0][0]) if rows else None

    def open(self, now_s: float) -> list[Entry]:
        """The commands that are not over, oldest first, with the time that passed under this kernel.

        Args:
            now_s: monotonic time.

        Raises:
            JournalError: it cannot be read.
        """
        found = []
        for body, boot, at_s in self._rows(
            "SELECT body, boot, at_s FROM operations WHERE open ORDER BY number"
        ):
            entry = _parsed(body)
            if boot == self._boot and entry.begun:
                entry = replace(entry, spent_s=entry.spent_s + max(0.0, now_s - at_s))
            found.append(entry)
        return found

    def untold(self) -> list[Entry]:
        """Commands whose last word is not with the broker, oldest first.

        Raises:
            JournalError: it cannot be read.
        """
        rows = self._rows("SELECT body FROM operations WHERE NOT open AND NOT told ORDER BY number")
        return [_parsed(body) for (body,) in rows]

    def latest(self, limit: int) -> list[Entry]:
        """The latest commands, newest first.

        Raises:
            JournalError: it cannot be read.
        """
        rows = self._rows("SELECT body FROM operations ORDER BY number DESC LIMIT ?", (limit,))
        return [_parsed(body) for (body,) in rows]

    def save(self, entry: Entry, now_s: float, *, synced: bool = True) -> None:
        """Write `entry` as it stands; its last word has yet to be told.

        Args:
            now_s: monotonic time.

        Raises:
            JournalError: the disk is full or broken; it stands as it did.
        """
        try:
            body = _ENTRY.dump_json(entry).decode()
        except (ValueError, TypeError) as error:  # what an operation gives may be anything
            raise JournalError(f"{entry.op} gave what is no JSON: {str(error)[:200]}") from error
        with self._database.transaction(synced=synced) as db:
            db.execute(
                "INSERT INTO operations VALUES (?, ?, ?, ?, ?, ?, ?, ?, 0) ON CONFLICT (number) DO UPDATE SET "
                "body = excluded.body, boot = excluded.boot, at_s = excluded.at_s, open = excluded.open, told = 0",
                (
                    entry.number,
                    entry.op,
                    entry.id,
                    body,
                    self._boot,
                    now_s,
                    int(not entry.is_final),
                    0,
                ),
            )
            if entry.is_final:
                _let_go(db)

    def told(self, numbers: Iterable[int]) -> None:
        """Note that the broker has the last word on these; not worth a sync of its own.

        Raises:
            JournalError: the disk is full or broken; they are told again.
        """
        with self._database.transaction(synced=False) as db:
            db.executemany(
                "UPDATE operations SET told = 1 WHERE number = ? AND NOT open", [(n,) for n in numbers]
            )

    def close(self) -> None:
        """Close the database."""
        self._database.close()

    def _rows(self, query: str, values: tuple[object, ...] = ()) -> list[Any]:
        try:
            with self._database.lock:
                return self._database.db.execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise JournalError(f"{self._path}: {error}") from error


def _let_go(db: sqlite3.Connection) -> None:
    """Reduce what is beyond the numbers that are kept, and forget the oldest."""
    large = 0
    for place, (number, size, body) in enumerate(db.execute(_OVER).fetchall()):
        large += size > LARGE_BYTES
        if place >= KEPT or (size > LARGE_BYTES and large > KEPT_LARGE):
            reduced = _ENTRY.dump_json(reduce(_parsed(body))).decode()
            db.execute("UPDATE operations SET body = ?, reduced = 1 WHERE number = ?", (reduced, number))
    db.execute(_FORGET, (REMEMBERED,))


def _parsed(body: str) -> Entry:
    try:
        return _ENTRY.validate_python(json.loads(body))
    except (ValueError, ValidationError) as error:
        raise JournalError(f"a journalled command cannot be read: {str(error)[:200]}") from error
