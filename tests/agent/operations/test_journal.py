from __future__ import annotations

from pathlib import Path

import pytest

from edgeslm.agent.operations.journal import (
    KEPT,
    KEPT_LARGE,
    LARGE_BYTES,
    REMEMBERED,
    OperationJournal,
)
from edgeslm.agent.operations.machine import Entry
from edgeslm.errors import JournalError


def done(number: int, size: int = 1) -> Entry:
    return Entry(number, "work", f"id-{number}", 0.0, {}, state="done", begun=True, result={"x": "y" * size})


def test_outcomes_are_kept_for_the_latest_and_their_ids_for_far_more(tmp_path: Path) -> None:
    journal = OperationJournal(tmp_path / "operations.db", "boot")
    count = KEPT + 10
    for number in range(1, count + 1):
        journal.save(done(number), 0.0, synced=False)
    found = {number: journal.find("work", f"id-{number}") for number in range(1, count + 1)}
    whole = [number for number, entry in found.items() if entry is not None and entry.result]
    assert whole == list(range(11, count + 1))
    assert all(entry is not None and entry.state == "done" for entry in found.values())
    journal.close()


def test_of_large_outcomes_fewer_are_kept(tmp_path: Path) -> None:
    journal = OperationJournal(tmp_path / "operations.db", "boot")
    for number in range(1, 10):
        journal.save(done(number, LARGE_BYTES), 0.0, synced=False)
    whole = [entry.number for entry in journal.latest(100) if entry.result]
    assert whole == [9, 8, 7, 6][:KEPT_LARGE]
    journal.close()


def test_the_oldest_ids_are_forgotten_but_never_one_that_is_open(tmp_path: Path) -> None:
    journal = OperationJournal(tmp_path / "operations.db", "boot")
    journal.save(Entry(1, "work", "open", 0.0, {}), 0.0, synced=False)
    for number in range(2, REMEMBERED + 4):
        journal.save(done(number), 0.0, synced=False)
    assert journal.find("work", "open") is not None
    assert journal.find("work", "id-2") is None
    assert journal.find("work", "id-4") is not None
    assert journal.next_number() == REMEMBERED + 4
    journal.close()


def test_an_unreadable_row_is_an_error_by_name(tmp_path: Path) -> None:
    journal = OperationJournal(tmp_path / "operations.db", "boot")
    journal.save(done(1), 0.0)
    journal._database.db.execute("UPDATE operations SET body = '{\"number\": 1}'")
    with pytest.raises(JournalError, match="cannot be read"):
        journal.find("work", "id-1")
    journal.close()
