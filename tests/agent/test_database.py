from __future__ import annotations

from pathlib import Path

import pytest

from edgeslm.agent.database import Database
from edgeslm.errors import JournalError

SCHEMA = """
CREATE TABLE boxes (number INTEGER PRIMARY KEY);
CREATE TABLE things (box INTEGER REFERENCES boxes (number) DEFERRABLE INITIALLY DEFERRED);
"""


def test_a_transaction_whose_end_fails_leaves_nothing_open_and_nothing_behind(tmp_path: Path) -> None:
    database = Database(tmp_path / "a.db", SCHEMA, 1, cache_kib=64)
    with pytest.raises(JournalError), database.transaction(synced=True) as db:
        db.execute("INSERT INTO things VALUES (7)")  # refused only by COMMIT
    with database.transaction(synced=False) as db:
        db.execute("INSERT INTO boxes VALUES (7)")
        db.execute("INSERT INTO things VALUES (7)")
    assert database.db.execute("SELECT count(*) FROM things").fetchone() == (1,)
    database.close()


def test_what_a_newer_release_wrote_is_refused(tmp_path: Path) -> None:
    Database(tmp_path / "a.db", SCHEMA, 2, cache_kib=64).close()
    with pytest.raises(JournalError, match="has schema 2, this release knows 1"):
        Database(tmp_path / "a.db", SCHEMA, 1, cache_kib=64)
