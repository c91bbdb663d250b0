"""What the journal promises, over real files."""

import sqlite3
import time

import pytest

from edgeslm.agent.job import ReplyAddress
from edgeslm.agent.journal import Journal
from edgeslm.errors import JournalError
from edgeslm.schema.message import PromptRequest

HERE = ReplyAddress("reply/a", b"c")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "state" / "agent.db"


def accept(journal, *names, at_s=1000.0):
    journal.accept([(PromptRequest(id=name, prompt=f"prompt of {name}"), HERE) for name in names], at_s)


def test_an_accepted_prompt_survives_and_waits_for_its_answer(path):
    journal = Journal(path)
    accept(journal, "a", "b")
    journal.close()
    journal = Journal(path)
    found = journal.unanswered()
    assert [prompt.request.id for prompt, _ in found] == ["a", "b"]
    assert found[0][1] == [HERE]
    assert journal.find("a").request.prompt == "prompt of a"
    assert journal.find("nobody") is None


def test_the_first_answer_stands(path):
    journal = Journal(path)
    accept(journal, "a")
    assert [reply.result for reply in journal.finish("a", b"first", 1001)] == [b"first"]
    assert [reply.result for reply in journal.finish("a", b"second", 1002)] == [b"first"]
    assert journal.find("a").result == b"first"
    assert journal.unanswered() == []


def test_an_answer_stays_until_it_is_delivered_to_everybody(path):
    journal = Journal(path)
    accept(journal, "a")
    journal.add_reply("a", ReplyAddress("reply/other", form="text"))
    replies = journal.finish("a", b"x", 1001)
    assert [reply.address.topic for reply in replies] == ["reply/a", "reply/other"]
    journal.delivered([replies[0].number])
    assert [reply.address.topic for reply in journal.undelivered(10)] == ["reply/other"]
    assert journal.prune(before_s=5000, max_answered=0) == 0
    journal.delivered([replies[1].number])
    assert journal.undelivered(10) == []
    assert journal.prune(before_s=5000, max_answered=100) == 1
    assert journal.find("a") is None


def test_asking_again_from_the_same_place_delivers_again(path):
    journal = Journal(path)
    accept(journal, "a")
    (reply,) = journal.finish("a", b"x", 1001)
    journal.delivered([reply.number])
    assert journal.pending("a") == []
    journal.add_reply("a", HERE)
    assert journal.pending("a") == [reply]


def test_pruning_keeps_the_newest_and_what_is_open(path):
    journal = Journal(path)
    for number in range(10):
        accept(journal, f"n{number}")
        replies = journal.finish(f"n{number}", b"x", 1000 + number)
        journal.delivered([reply.number for reply in replies])
    accept(journal, "open")
    assert journal.prune(before_s=0, max_answered=4) == 6
    assert [journal.find(f"n{number}") is not None for number in range(10)] == [False] * 6 + [True] * 4
    assert journal.find("open") is not None


def test_one_bad_prompt_of_a_batch_records_none(path):
    journal = Journal(path)
    accept(journal, "a")
    with pytest.raises(JournalError):
        accept(journal, "b", "a")
    assert journal.find("b") is None
    accept(journal, "b")


@pytest.mark.parametrize("content", [b"rubbish" * 1000, b"SQLite format 3\x00" + bytes(4000)])
def test_a_file_that_is_no_database_is_an_error_and_stays(path, content):
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(JournalError):
        Journal(path)
    assert path.read_bytes() == content


def test_a_database_of_a_newer_release_is_refused(path):
    Journal(path).close()
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version=99")
    with pytest.raises(JournalError, match="schema 99"):
        Journal(path)


def test_a_directory_that_cannot_be_made_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(JournalError):
        Journal(tmp_path / "file" / "agent.db")


def test_ten_thousand_answers_are_found_at_once(path):
    journal = Journal(path)
    names = [f"n{number}" for number in range(10_000)]
    accept(journal, *names)
    started = time.perf_counter()
    for name in names[:200]:
        assert len(journal.finish(name, b"x", 1001)) == 1
    assert time.perf_counter() - started < 5
