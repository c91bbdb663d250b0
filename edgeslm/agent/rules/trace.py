"""What rules leave behind, in SQLite: every firing with inputs, prompt, answer, actions and receipt, and how rules are.

What always holds: the file stays bounded, the oldest firings go first. Nothing is synced by itself: after a power cut
the last second may be missing, which an audit can bear and a card must. How the rules are is written when somebody
asks, by a file beside the database, and rarely otherwise: cards wear out.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from edgeslm import codec
from edgeslm.agent.database import Database
from edgeslm.errors import CodecError, JournalError
from edgeslm.schema.rule_trace import FiringTrace, RulesStatus

TRACE_NAME = "rules.db"
MAX_FIRINGS = 10_000
_PRUNE_EVERY = 256
_LOOK_S = 0.05

_SCHEMA_VERSION = 1
_SCHEMA = """
CREATE TABLE firings (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    rule TEXT NOT NULL,
    trace BLOB NOT NULL
);
CREATE INDEX firings_of ON firings (rule, number);
CREATE TABLE status (only INTEGER PRIMARY KEY CHECK (only = 1), body BLOB NOT NULL);
"""


def _ask_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.ask")


class TraceStore:
    """Written by whoever runs the rules."""

    def __init__(self, path: Path, max_firings: int = MAX_FIRINGS) -> None:
        """Open or create the file.

        Raises:
            JournalError: it cannot be opened.
        """
        self._database = Database(path, _SCHEMA, _SCHEMA_VERSION, cache_kib=128)
        self._ask = _ask_file(path)
        self._max_firings = max_firings
        self._since_prune = 0

    def add(self, traces: Sequence[FiringTrace]) -> None:
        """Keep `traces`.

        Raises:
            JournalError: the disk is full or broken; they are lost.
        """
        rows = [(trace.rule, codec.encode(trace)) for trace in traces]
        with self._database.transaction(synced=False) as db:
            db.executemany("INSERT INTO firings (rule, trace) VALUES (?, ?)", rows)
            self._since_prune += len(rows)
            if self._since_prune >= _PRUNE_EVERY:
                self._since_prune = 0
                db.execute(
                    "DELETE FROM firings WHERE number <= (SELECT max(number) FROM firings) - ?",
                    (self._max_firings,),
                )

    def is_asked(self) -> bool:
        """Whether somebody wants to know how the rules are; once for each time that it was asked."""
        try:
            self._ask.unlink()
        except OSError:
            return False
        return True

    def tell(self, status: RulesStatus) -> None:
        """How the rules are now.

        Raises:
            JournalError: the disk is full or broken.
        """
        with self._database.transaction(synced=False) as db:
            db.execute("INSERT OR REPLACE INTO status (only, body) VALUES (1, ?)", (codec.encode(status),))

    def close(self) -> None:
        """Close the file."""
        self._database.close()


class TraceReader:
    """Reads what another process writes."""

    def __init__(self, path: Path) -> None:
        """Open the file.

        Raises:
            JournalError: it is not there, or cannot be read.
        """
        self._path = path
        if not path.is_file():
            raise JournalError(
                f"there is no {path}", hint="Is this the state directory of an agent that has rules?"
            )
        try:
            self._db = sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=5)
        except sqlite3.Error as error:
            raise JournalError(f"cannot open {path}: {error}") from error

    def latest(self, limit: int, rule: str | None = None) -> list[tuple[int, FiringTrace]]:
        """The latest `limit` firings, oldest first, with their numbers.

        Raises:
            JournalError: the file cannot be read.
        """
        query = (
            "SELECT number, trace FROM firings WHERE ?1 IS NULL OR rule = ?1 ORDER BY number DESC LIMIT ?2"
        )
        return self._read(query, (rule, limit))[::-1]

    def after(self, number: int, rule: str | None = None, limit: int = 1000) -> list[tuple[int, FiringTrace]]:
        """Firings with higher numbers, oldest first; raises as :meth:`latest`."""
        query = (
            "SELECT number, trace FROM firings WHERE number > ?2 AND (?1 IS NULL OR rule = ?1) "
            "ORDER BY number LIMIT ?3"
        )
        return self._read(query, (rule, number, limit))

    def ask_status(self, timeout_s: float) -> RulesStatus | None:
        """How the rules are; as they last said where they do not answer within `timeout_s`.

        Raises:
            JournalError: as :meth:`latest`.
        """
        before = self.status()
        if before is not None and not before.running:
            return before
        ask = _ask_file(self._path)
        try:
            ask.touch()
        except OSError:
            return before  # whoever may only read gets what there is
        until_s = time.monotonic() + timeout_s
        while time.monotonic() < until_s:
            if not ask.exists() and (found := self.status()) != before:
                return found
            time.sleep(_LOOK_S)
        ask.unlink(missing_ok=True)
        return self.status()

    def status(self) -> RulesStatus | None:
        """How the rules were when they last said so; raises as :meth:`latest`."""
        try:
            row = self._db.execute("SELECT body FROM status").fetchone()
            return None if row is None else codec.decode(RulesStatus, row[0])
        except (sqlite3.Error, CodecError) as error:
            raise JournalError(f"cannot read {self._path}: {error}") from error

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def _read(self, query: str, values: tuple[object, ...]) -> list[tuple[int, FiringTrace]]:
        try:
            rows = self._db.execute(query, values).fetchall()
            return [(number, codec.decode(FiringTrace, body)) for number, body in rows]
        except (sqlite3.Error, CodecError, ValidationError) as error:
            raise JournalError(f"cannot read {self._path}: {error}") from error
