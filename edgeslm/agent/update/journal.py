"""The updater's journal (SQLite): the truth about every change, synced before what follows from it is done.

What always holds: each call is one transaction, on the card when it returns (``synchronous=FULL``). Only the number of
seconds that a change has spent in its state is written without a sync of its own: losing a minute of it does no harm.

Left to others: prompts and answers, which have a journal of their own (:mod:`edgeslm.agent.journal`).
"""

from __future__ import annotations

import secrets
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from edgeslm.agent.database import Database
from edgeslm.agent.update.change import Change, Denial, Wanted
from edgeslm.agent.update.machine import denial_of
from edgeslm.errors import JournalError

MAX_CHANGES = 200
MAX_STEPS = 100
"""Changes that are remembered, and steps of each; the oldest go first."""

_SCHEMA_VERSION = 1
_SCHEMA = """
CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE wanted (name TEXT PRIMARY KEY, body TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE changes (
    number INTEGER PRIMARY KEY,
    name TEXT NOT NULL,
    body TEXT NOT NULL,
    begun_at REAL NOT NULL,
    changed_at REAL NOT NULL
);
CREATE INDEX changes_of ON changes (name, number);
CREATE TABLE steps (
    number INTEGER NOT NULL REFERENCES changes (number) ON DELETE CASCADE,
    at REAL NOT NULL,
    state TEXT NOT NULL,
    attempt INTEGER NOT NULL,
    detail TEXT NOT NULL
);
CREATE INDEX steps_of ON steps (number);
CREATE TABLE denied (
    name TEXT NOT NULL,
    sha256 TEXT NOT NULL,
    body TEXT NOT NULL,
    PRIMARY KEY (name, sha256)
) WITHOUT ROWID;
"""
_LATEST = """
SELECT body FROM changes WHERE number IN (SELECT max(number) FROM changes GROUP BY name) ORDER BY number
"""
_PRUNE = """
DELETE FROM changes WHERE number <= ? AND number NOT IN (SELECT max(number) FROM changes GROUP BY name)
"""

_PRUNE_STEPS = """
DELETE FROM steps WHERE number = ?1
AND rowid NOT IN (SELECT rowid FROM steps WHERE number = ?1 ORDER BY rowid DESC LIMIT ?2)
"""

T = TypeVar("T")

_CHANGE: TypeAdapter[Change] = TypeAdapter(Change)
_DENIAL: TypeAdapter[Denial] = TypeAdapter(Denial)
_WANTED: TypeAdapter[Wanted] = TypeAdapter(Wanted)


@dataclass(frozen=True)
class LastRun:
    """How the run before this one ended.

    Attributes:
        boot_id: of the kernel that it ran under; empty before the first run.
        clean: it said goodbye.
        ran_s: seconds that it lasted, as far as it got to say.
    """

    boot_id: str
    clean: bool
    ran_s: float


@dataclass(frozen=True)
class PastStep:
    """A state that a change went through.

    Attributes:
        at: Unix time, as the clock said.
        detail: the fault or what it waited for, if any.
    """

    at: float
    state: str
    attempt: int
    detail: str


@dataclass(frozen=True)
class PastChange:
    """A change of the past, or the one under way.

    Attributes:
        begun_at: Unix time, as the clock said.
        changed_at: the same of the latest step.
    """

    change: Change
    begun_at: float
    changed_at: float
    steps: tuple[PastStep, ...]


class UpdateJournal:
    """``update.db``. Thread-safe.

    Attributes:
        epoch: random name of this database: it changes when the journal is lost.
        is_new: there was none before.
    """

    def __init__(self, path: Path) -> None:
        """Open or create the database.

        Raises:
            JournalError: it cannot be opened, or was written by a newer release.
        """
        self._path = path
        self._database = Database(path, _SCHEMA, _SCHEMA_VERSION, cache_kib=256)
        self._db = self._database.db
        self.is_new = not self._fact("epoch", "")
        if self.is_new:
            with self._database.transaction(synced=True):
                self._set_facts(epoch=secrets.token_hex(8))
        self.epoch = self._fact("epoch", "")

    # --- runs --------------------------------------------------------------------------------------------------

    def begin_run(self, boot_id: str) -> LastRun:
        """Note that a run begins; how the one before it ended.

        Raises:
            JournalError: the disk is full or broken.
        """
        with self._database.transaction(synced=True):
            last = LastRun(
                boot_id=self._fact("boot_id", ""),
                clean=self._fact("clean", "1") == "1",
                ran_s=_number(self._fact("ran_s", "0")),
            )
            self._set_facts(boot_id=boot_id, clean="0", ran_s="0")
        return last

    def end_run(self) -> None:
        """Note that this run ends as it should.

        Raises:
            JournalError: the disk is full or broken.
        """
        with self._database.transaction(synced=True):
            self._set_facts(clean="1")

    # --- what is wanted ----------------------------------------------------------------------------------------

    def want(self, wanted: Sequence[Wanted], assignment: int) -> None:
        """Replace what is wanted by what `assignment` says.

        Raises:
            JournalError: the disk is full or broken.
        """
        rows = [(item.name, _WANTED.dump_json(item).decode()) for item in wanted]
        with self._database.transaction(synced=True) as db:
            db.execute("DELETE FROM wanted")
            db.executemany("INSERT INTO wanted VALUES (?, ?)", rows)
            self._set_facts(assignment=str(assignment))

    def wanted(self) -> tuple[Wanted, ...]:
        """What is wanted, by name.

        Raises:
            JournalError: it cannot be read.
        """
        return tuple(
            _parsed(_WANTED, body) for (body,) in self._rows("SELECT body FROM wanted ORDER BY name")
        )

    @property
    def assignment(self) -> int:
        """Sequence number of the assignment that is followed; 0 if none."""
        return int(self._fact("assignment", "0"))

    # --- changes -----------------------------------------------------------------------------------------------

    def next_number(self) -> int:
        """The number of the next change."""
        return int(self._rows("SELECT coalesce(max(number), 0) + 1 FROM changes")[0][0])

    def save(self, change: Change, now: float) -> None:
        """Write `change` as it stands, and the denial that follows from it.

        Args:
            change: as it is to be found after a restart.
            now: Unix time, for people.

        Raises:
            JournalError: the disk is full or broken; the change stands as it did.
        """
        body = _CHANGE.dump_json(change).decode()
        detail = change.fault.detail if change.fault is not None else change.waits_for
        denial = denial_of(change)
        with self._database.transaction(synced=True) as db:
            db.execute(
                "INSERT INTO changes VALUES (?, ?, ?, ?, ?) ON CONFLICT (number) "
                "DO UPDATE SET body = excluded.body, changed_at = excluded.changed_at",
                (change.number, change.name, body, now, now),
            )
            db.execute(
                "INSERT INTO steps VALUES (?, ?, ?, ?, ?)",
                (change.number, now, change.state, change.attempt, detail),
            )
            if denial is not None:
                db.execute(
                    "INSERT OR REPLACE INTO denied VALUES (?, ?, ?)",
                    (denial.name, denial.sha256, _DENIAL.dump_json(denial).decode()),
                )
            db.execute(_PRUNE, (change.number - MAX_CHANGES,))
            db.execute(_PRUNE_STEPS, (change.number, MAX_STEPS))

    def note_time(self, changes: Sequence[Change], ran_s: float) -> None:
        """Write how long this run lasts, and `changes` with the time that they spent; not worth a sync of its own.

        Raises:
            JournalError: the disk is full or broken.
        """
        with self._database.transaction(synced=False) as db:
            self._set_facts(ran_s=f"{ran_s:.1f}")
            rows = [(_CHANGE.dump_json(change).decode(), change.number) for change in changes]
            db.executemany("UPDATE changes SET body = ? WHERE number = ?", rows)

    def latest(self) -> dict[str, Change]:
        """The latest change of each name.

        Raises:
            JournalError: it cannot be read.
        """
        changes = [_parsed(_CHANGE, body) for (body,) in self._rows(_LATEST)]
        return {change.name: change for change in changes}

    def history(self, limit: int = 20) -> tuple[PastChange, ...]:
        """The latest changes, newest first.

        Raises:
            JournalError: it cannot be read.
        """
        rows = self._rows(
            "SELECT number, body, begun_at, changed_at FROM changes ORDER BY number DESC LIMIT ?", (limit,)
        )
        return tuple(
            PastChange(_parsed(_CHANGE, body), begun_at, changed_at, self._steps(number))
            for number, body, begun_at, changed_at in rows
        )

    def _steps(self, number: int) -> tuple[PastStep, ...]:
        rows = self._rows(
            "SELECT at, state, attempt, detail FROM steps WHERE number = ? ORDER BY rowid", (number,)
        )
        return tuple(PastStep(*row) for row in rows)

    # --- denied releases ---------------------------------------------------------------------------------------

    def denial(self, name: str, sha256: str) -> Denial | None:
        """What is remembered of a release that failed here.

        Raises:
            JournalError: it cannot be read.
        """
        rows = self._rows("SELECT body FROM denied WHERE name = ? AND sha256 = ?", (name, sha256))
        return _parsed(_DENIAL, rows[0][0]) if rows else None

    def forgive(self, name: str) -> int:
        """Forget what failed under `name`, so that it may be tried again; returns how many releases that were.

        Raises:
            JournalError: the disk is full or broken.
        """
        with self._database.transaction(synced=True) as db:
            return db.execute("DELETE FROM denied WHERE name = ?", (name,)).rowcount

    # --- reports -----------------------------------------------------------------------------------------------

    def next_seq(self) -> int:
        """The sequence number of the next report.

        Raises:
            JournalError: the disk is full or broken.
        """
        with self._database.transaction(synced=True):
            seq = int(self._fact("seq", "0")) + 1
            self._set_facts(seq=str(seq))
        return seq

    def close(self) -> None:
        """Close the database."""
        self._database.close()

    # --- parts -------------------------------------------------------------------------------------------------

    def _rows(self, query: str, values: tuple[object, ...] = ()) -> list[Any]:
        try:
            with self._database.lock:
                return self._db.execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise JournalError(f"{self._path}: {error}") from error

    def _fact(self, name: str, default: str) -> str:
        rows = self._rows("SELECT value FROM facts WHERE name = ?", (name,))
        return str(rows[0][0]) if rows else default

    def _set_facts(self, **facts: str) -> None:
        self._db.executemany("INSERT OR REPLACE INTO facts VALUES (?, ?)", list(facts.items()))


def _parsed(adapter: TypeAdapter[T], body: str) -> T:
    try:
        return adapter.validate_json(body)
    except ValidationError as error:
        raise JournalError(f"a journalled change cannot be read: {str(error)[:200]}") from error


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0
