"""The device's own record of prompts and answers (SQLite): the truth that survives a kill or a power cut.

What always holds:

* a prompt is on disk, synced, before the broker hears that we have it;
* an answer is in the database before it is published, and stays until every requester's broker has confirmed it;
* an id in the database is never run again once it has an answer.

Acceptance is synced to the card (``synchronous=FULL``); answers and confirmations are written without a sync of
their own: they survive a killed process, and after a power cut the prompt runs again with the seed that was
journalled with it, which gives the same text. See docs/adr/0003-journal-durability.md.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from edgeslm.agent.database import Database
from edgeslm.agent.job import ReplyAddress, ReplyForm
from edgeslm.errors import JournalError
from edgeslm.schema.message import PromptRequest

_SCHEMA_VERSION = 1
_SCHEMA = """
CREATE TABLE prompts (
    id TEXT PRIMARY KEY,
    request TEXT NOT NULL,
    accepted_at REAL NOT NULL,
    result BLOB,
    answered_at REAL
) WITHOUT ROWID;
CREATE INDEX prompts_open ON prompts (accepted_at) WHERE result IS NULL;
CREATE INDEX prompts_answered ON prompts (answered_at) WHERE result IS NOT NULL;
CREATE TABLE replies (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL REFERENCES prompts (id) ON DELETE CASCADE,
    topic TEXT NOT NULL,
    correlation BLOB,
    form TEXT NOT NULL,
    delivered INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX replies_of ON replies (id);
CREATE INDEX replies_open ON replies (number) WHERE delivered = 0;
"""

_PENDING_OF = """
SELECT number, topic, correlation, form, result FROM replies JOIN prompts ON prompts.id = replies.id
WHERE delivered = 0 AND result IS NOT NULL AND replies.id = ? ORDER BY number
"""
_PENDING_OLDEST = """
SELECT number, topic, correlation, form, result FROM replies JOIN prompts ON prompts.id = replies.id
WHERE delivered = 0 AND result IS NOT NULL ORDER BY number LIMIT ?
"""
_PRUNE_OLD = """
DELETE FROM prompts WHERE answered_at < ? AND result IS NOT NULL
AND NOT EXISTS (SELECT 1 FROM replies WHERE replies.id = prompts.id AND delivered = 0)
"""
_PRUNE_MANY = """
DELETE FROM prompts WHERE result IS NOT NULL
AND NOT EXISTS (SELECT 1 FROM replies WHERE replies.id = prompts.id AND delivered = 0)
AND id IN (SELECT id FROM prompts WHERE result IS NOT NULL ORDER BY answered_at DESC LIMIT -1 OFFSET ?)
"""


@dataclass(frozen=True)
class JournalledPrompt:
    """A prompt as it stands in the journal.

    Attributes:
        accepted_at: Unix time of acceptance.
        result: the answer as published, or ``None`` while there is none.
    """

    request: PromptRequest
    accepted_at: float
    result: bytes | None


@dataclass(frozen=True)
class PendingReply:
    """An answer that a requester's broker has not confirmed yet."""

    number: int
    address: ReplyAddress
    result: bytes


class Journal:
    """Thread-safe; each call is one transaction."""

    def __init__(self, path: Path) -> None:
        """Open or create the database.

        Raises:
            JournalError: it cannot be opened, or was written by a newer release.
        """
        self._database = Database(path, _SCHEMA, _SCHEMA_VERSION, cache_kib=512)
        self._db, self._lock = self._database.db, self._database.lock

    def accept(
        self,
        prompts: Sequence[tuple[PromptRequest, ReplyAddress]],
        now_s: float,
        before_sync: Callable[[], None] = lambda: None,
    ) -> None:
        """Record prompts, synced: once this returns they will be answered whatever happens.

        Args:
            before_sync: called when all is written but the sync, which takes milliseconds and no processor.

        Raises:
            JournalError: the disk is full or broken; nothing was recorded.
        """
        with self._database.transaction(synced=True) as db:
            for request, address in prompts:
                db.execute(
                    "INSERT INTO prompts (id, request, accepted_at) VALUES (?, ?, ?)",
                    (request.id, request.model_dump_json(exclude_none=True), now_s),
                )
                _insert_reply(db, request.id, address)
            before_sync()

    def find(self, request_id: str) -> JournalledPrompt | None:
        """The prompt of this id, if it came within the window."""
        with self._lock:
            row = self._db.execute(
                "SELECT request, accepted_at, result FROM prompts WHERE id = ?", (request_id,)
            ).fetchone()
        return None if row is None else _prompt(row)

    def add_reply(self, request_id: str, address: ReplyAddress) -> None:
        """Send the answer of this id to `address` too (again, if it went there already).

        Raises:
            JournalError: the disk is full or broken.
        """
        with self._database.transaction(synced=True) as db:
            same = db.execute(
                "SELECT number FROM replies WHERE id = ? AND topic = ? AND correlation IS ? AND form = ?",
                (request_id, address.topic, address.correlation, address.form),
            ).fetchone()
            if same is None:
                _insert_reply(db, request_id, address)
            else:
                db.execute("UPDATE replies SET delivered = 0 WHERE number = ?", same)

    def finish(self, request_id: str, result: bytes, now_s: float) -> list[PendingReply]:
        """Record the answer, before it is published; returns where it has to go.

        The first answer stands: were one there already, that one is returned.

        Raises:
            JournalError: the disk is full or broken; the prompt runs again after a restart.
        """
        with self._database.transaction(synced=False) as db:
            db.execute(
                "UPDATE prompts SET result = ?, answered_at = ? WHERE id = ? AND result IS NULL",
                (result, now_s, request_id),
            )
            return _pending(db.execute(_PENDING_OF, (request_id,)))

    def delivered(self, numbers: Sequence[int]) -> None:
        """Note that the broker has these replies.

        Raises:
            JournalError: the disk is full or broken; they are published again after a restart.
        """
        with self._database.transaction(synced=False) as db:
            db.executemany("UPDATE replies SET delivered = 1 WHERE number = ?", [(n,) for n in numbers])

    def pending(self, request_id: str) -> list[PendingReply]:
        """Where the answer of this id still has to go; empty while there is none."""
        with self._lock:
            return _pending(self._db.execute(_PENDING_OF, (request_id,)))

    def undelivered(self, limit: int) -> list[PendingReply]:
        """The oldest answers not confirmed yet."""
        with self._lock:
            return _pending(self._db.execute(_PENDING_OLDEST, (limit,)))

    def unanswered(self) -> list[tuple[JournalledPrompt, list[ReplyAddress]]]:
        """Accepted prompts without an answer, oldest first: what a restart has to run."""
        with self._lock:
            rows = self._db.execute(
                "SELECT request, accepted_at, result FROM prompts WHERE result IS NULL ORDER BY accepted_at"
            ).fetchall()
            prompts = [_prompt(row) for row in rows]
            return [(prompt, self._addresses(prompt.request.id)) for prompt in prompts]

    def _addresses(self, request_id: str) -> list[ReplyAddress]:
        rows = self._db.execute("SELECT topic, correlation, form FROM replies WHERE id = ?", (request_id,))
        return [ReplyAddress(*row) for row in rows]

    def prune(self, before_s: float, max_answered: int) -> int:
        """Forget delivered answers older than Unix time `before_s`, and the oldest beyond `max_answered`.

        Returns:
            How many were forgotten. What is not delivered stays.
        """
        with self._database.transaction(synced=False) as db:
            old = db.execute(_PRUNE_OLD, (before_s,))
            many = db.execute(_PRUNE_MANY, (max_answered,))
            return old.rowcount + many.rowcount

    def close(self) -> None:
        """Close the database; the journal cannot be used afterwards."""
        self._database.close()


def _insert_reply(db: sqlite3.Connection, request_id: str, address: ReplyAddress) -> None:
    db.execute(
        "INSERT INTO replies (id, topic, correlation, form) VALUES (?, ?, ?, ?)",
        (request_id, address.topic, address.correlation, address.form),
    )


def _pending(rows: Iterable[tuple[int, str, bytes | None, ReplyForm, bytes]]) -> list[PendingReply]:
    return [
        PendingReply(number, ReplyAddress(topic, correlation, form), result)
        for number, topic, correlation, form, result in rows
    ]


def _prompt(row: tuple[str, float, bytes | None]) -> JournalledPrompt:
    try:
        request = PromptRequest.model_validate(json.loads(row[0]))
    except (ValueError, ValidationError) as error:
        raise JournalError(f"a journalled prompt cannot be read: {str(error)[:200]}") from error
    return JournalledPrompt(request, row[1], row[2])
