"""The journal: what is written is there after a restart, and nothing is lost by writing more."""

from __future__ import annotations

import sqlite3
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from edgeslm.agent.update.change import Change, Fault, Wanted
from edgeslm.agent.update.journal import LastRun, UpdateJournal
from edgeslm.errors import JournalError
from edgeslm.schema.release import ReleaseInfo, ReleaseRequirements, ReleaseTarget
from edgeslm.schema.update import Verdict

WANTED = Wanted("tiny", "1.1.0", "c" * 64, 7, opens_at=datetime(2026, 12, 1, 2, tzinfo=UTC))
TARGET = ReleaseTarget(
    role="targets",
    floor="0.0.0",
    info=ReleaseInfo(
        name="tiny",
        version="1.1.0",
        task="generate",
        sha256="c" * 64,
        size_bytes=1000,
        security_floor="0.0.0",
        requires=ReleaseRequirements(
            ram_mb=1, cpu_features=("dotprod",), agent="0.1.0", runtimes=("litert",)
        ),
    ),
)


def change(number: int = 1, name: str = "tiny", **changes) -> Change:
    return replace(Change(number, replace(WANTED, name=name), "b" * 64), **changes)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "update.db"


class TestChanges:
    def test_a_change_is_found_again_as_it_was_written(self, path: Path) -> None:
        verdict = Verdict(outcome="fail", mode="swap", criteria=())
        written = change(
            target=TARGET,
            state="rolled_back",
            fault=Fault("gate_failed", "slow"),
            verdict=verdict,
            settled=True,
        )
        UpdateJournal(path).save(written, 1e9)
        assert UpdateJournal(path).latest() == {"tiny": written}

    def test_the_latest_change_of_each_name_is_the_one_that_counts(self, path: Path) -> None:
        journal = UpdateJournal(path)
        for found in (change(1), change(2, "other"), change(3), change(3, state="preflight")):
            journal.save(found, 1e9)
        assert [(name, item.number, item.state) for name, item in sorted(journal.latest().items())] == [
            ("other", 2, "offered"),
            ("tiny", 3, "preflight"),
        ]

    def test_history_tells_every_step_newest_change_first(self, path: Path) -> None:
        journal = UpdateJournal(path)
        journal.save(change(1), 10.0)
        journal.save(change(1, state="wait_window", waits_for="the window"), 20.0)
        journal.save(change(2, "other"), 30.0)
        newest, oldest = journal.history()
        assert newest.change.name == "other"
        assert (oldest.begun_at, oldest.changed_at) == (10.0, 20.0)
        assert [(step.state, step.detail) for step in oldest.steps] == [
            ("offered", ""),
            ("wait_window", "the window"),
        ]

    def test_old_changes_are_forgotten_but_never_the_latest_of_a_name(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("edgeslm.agent.update.journal.MAX_CHANGES", 10)
        journal = UpdateJournal(path)
        journal.save(change(1, "rare"), 0.0)
        for number in range(2, 20):
            journal.save(change(number), 0.0)
        assert journal.latest().keys() == {"rare", "tiny"}
        assert len(journal.history(1000)) == 11
        assert journal.next_number() == 20

    def test_a_change_that_is_tried_for_months_keeps_its_latest_steps(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("edgeslm.agent.update.journal.MAX_STEPS", 5)
        journal = UpdateJournal(path)
        journal.save(change(2, "other"), 0.0)
        for attempt in range(1, 12):
            journal.save(change(1, attempt=attempt), float(attempt))
        other, found = journal.history()
        assert [step.attempt for step in found.steps] == [7, 8, 9, 10, 11]
        assert len(other.steps) == 1

    def test_time_is_noted_without_a_step_of_history(self, path: Path) -> None:
        journal = UpdateJournal(path)
        journal.save(change(), 0.0)
        journal.note_time([change(spent_s=60.0)], 77.0)
        assert journal.latest()["tiny"].spent_s == 60.0
        assert len(journal.history()[0].steps) == 1
        assert journal.begin_run("b").ran_s == 77.0


class TestRuns:
    def test_a_run_that_said_goodbye_was_clean_and_one_that_did_not_was_not(self, path: Path) -> None:
        journal = UpdateJournal(path)
        assert journal.begin_run("one") == LastRun("", clean=True, ran_s=0.0)
        journal.end_run()
        assert journal.begin_run("one").clean
        assert journal.begin_run("two") == LastRun("one", clean=False, ran_s=0.0)

    def test_reports_are_numbered_on_over_restarts(self, path: Path) -> None:
        first = UpdateJournal(path)
        assert [first.next_seq(), first.next_seq()] == [1, 2]
        assert UpdateJournal(path).next_seq() == 3

    def test_an_epoch_lasts_as_long_as_the_database(self, path: Path, tmp_path: Path) -> None:
        first = UpdateJournal(path)
        again = UpdateJournal(path)
        assert (first.epoch, first.is_new, again.is_new) == (again.epoch, True, False)
        assert UpdateJournal(tmp_path / "other.db").epoch != first.epoch


class TestWantedAndDenied:
    def test_what_is_wanted_is_replaced_as_a_whole(self, path: Path) -> None:
        journal = UpdateJournal(path)
        journal.want([WANTED, replace(WANTED, name="other")], 7)
        journal.want([replace(WANTED, version="2.0.0")], 8)
        again = UpdateJournal(path)
        assert again.wanted() == (replace(WANTED, version="2.0.0"),)
        assert again.assignment == 8

    def test_a_release_that_failed_is_denied_by_the_write_that_says_so(self, path: Path) -> None:
        journal = UpdateJournal(path)
        journal.save(change(state="rolling_back", fault=Fault("gate_failed", "slow")), 0.0)
        denial = UpdateJournal(path).denial("tiny", "c" * 64)
        assert denial is not None
        assert (denial.cause, denial.for_good, denial.assignment) == ("gate_failed", True, 7)
        assert journal.denial("tiny", "d" * 64) is None
        assert journal.forgive("tiny") == 1
        assert UpdateJournal(path).denial("tiny", "c" * 64) is None


class TestFaults:
    def test_a_journal_of_a_newer_release_is_refused(self, path: Path) -> None:
        UpdateJournal(path).close()
        with sqlite3.connect(path) as db:
            db.execute("PRAGMA user_version=99")
        with pytest.raises(JournalError, match="schema 99"):
            UpdateJournal(path)

    def test_a_change_that_cannot_be_read_is_an_error_and_not_a_guess(self, path: Path) -> None:
        journal = UpdateJournal(path)
        journal.save(change(), 0.0)
        with sqlite3.connect(path) as db:
            db.execute("UPDATE changes SET body = '{\"number\": 1}'")
        with pytest.raises(JournalError, match="cannot be read"):
            journal.latest()

    def test_a_write_that_fails_leaves_what_was_there(self, path: Path) -> None:
        journal = UpdateJournal(path)
        journal.save(change(), 0.0)
        pages = journal._db.execute("PRAGMA page_count").fetchone()[0]
        journal._db.execute(f"PRAGMA max_page_count={pages}")
        with pytest.raises(JournalError, match="full"):
            journal.save(change(state="preflight", fault=Fault("no_room", "x" * 50_000)), 0.0)
        assert journal.latest() == {"tiny": change()}
        journal._db.execute("PRAGMA max_page_count=100000")
        journal.save(change(state="preflight"), 0.0)
        assert journal.latest() == {"tiny": change(state="preflight")}

    def test_a_write_that_breaks_off_half_way_leaves_nothing_of_it(self, path: Path) -> None:
        journal = UpdateJournal(path)
        journal.save(change(), 0.0)
        fails = "CREATE TEMP TRIGGER fails BEFORE INSERT ON steps BEGIN SELECT RAISE(FAIL, 'broken'); END"
        journal._db.execute(fails)
        with pytest.raises(JournalError, match="broken"):
            journal.save(change(state="preflight"), 0.0)
        assert journal.latest() == {"tiny": change()}
        journal._db.execute("DROP TRIGGER fails")
        journal.save(change(state="preflight"), 0.0)
        assert UpdateJournal(path).latest() == {"tiny": change(state="preflight")}
