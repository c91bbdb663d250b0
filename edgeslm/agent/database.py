"""A small SQLite database of the agent: opened with its schema, changed in transactions that say whether they sync.

What always holds: a failed transaction leaves nothing open behind, also where the card was full at its end; foreign
errors come out as :class:`JournalError`. Thread-safe.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgeslm.errors import JournalError


class Database:
    """One file.

    Attributes:
        db: the connection; use it under `lock`.
        lock: may be taken again by the thread that holds it.
    """

    def __init__(self, path: Path, schema: str, version: int, *, cache_kib: int) -> None:
        """Open or create the database.

        Args:
            schema: statements that make the tables of `version`.
            cache_kib: memory for pages; the default of 2 MB is much on a small board.

        Raises:
            JournalError: it cannot be opened, or was written by a newer release.
        """
        self._path = path
        self.lock = threading.RLock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=10)
            self.db.execute("PRAGMA journal_mode=WAL")
            self.db.execute("PRAGMA synchronous=FULL")
            self.db.execute("PRAGMA foreign_keys=ON")
            self.db.execute(f"PRAGMA cache_size=-{cache_kib}")
            found = int(self.db.execute("PRAGMA user_version").fetchone()[0])
            if found == 0:
                self.db.executescript(f"BEGIN IMMEDIATE;{schema}PRAGMA user_version={version};COMMIT;")
            elif found != version:
                raise JournalError(
                    f"{path} has schema {found}, this release knows {version}",
                    hint="Run the release that wrote it, or move the file away",
                )
        except (sqlite3.Error, OSError) as error:
            raise JournalError(f"cannot open {path}: {error}") from error

    @contextmanager
    def transaction(self, *, synced: bool) -> Iterator[sqlite3.Connection]:
        """All of the block or nothing of it; `synced`, it is on the card afterwards.

        Raises:
            JournalError: the disk is full or broken; nothing has changed.
        """
        with self.lock:
            try:
                self.db.execute(f"PRAGMA synchronous={'FULL' if synced else 'NORMAL'}")
                self.db.execute("BEGIN IMMEDIATE")
                try:
                    yield self.db
                    self.db.execute("COMMIT")
                except BaseException:
                    # A commit that failed for want of room leaves the transaction open.
                    if self.db.in_transaction:
                        self.db.execute("ROLLBACK")
                    raise
            except sqlite3.Error as error:
                raise JournalError(f"{self._path}: {error}") from error

    def close(self) -> None:
        """Close it; it cannot be used afterwards."""
        with self.lock:
            self.db.close()
