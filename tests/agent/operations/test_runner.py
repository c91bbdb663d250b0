from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgeslm import topics
from edgeslm.agent.operations.machine import MAX_STARTS, MAX_WAITING
from edgeslm.agent.operations.ports import Command, Done, Progress, Restart, Step, Waiting
from edgeslm.agent.operations.runner import JOURNAL_NAME, Operations
from edgeslm.errors import OperationError, StoreError
from edgeslm.link.port import Message
from edgeslm.schema.message import MAX_BODY_BYTES

from .conftest import DEVICE, FLEET, NOW, Board, KilledError, Scripted


def raising(error: BaseException) -> Callable[..., Step]:
    def act(*_: object) -> Step:
        raise error

    return act


# --- the way of a command -----------------------------------------------------------------------------------


def test_a_command_is_received_run_and_done(board: Board, work: Scripted) -> None:
    board.ask("a")
    assert board.states("a") == ["received"]
    board.turns()
    assert board.states("a") == ["received", "running", "done"]
    assert board.last("a")["result"] == {"n": 1}
    assert (board.last("a")["device"], board.last("a")["op"]) == (DEVICE, "work")
    assert work.calls == [("begin", "a", None)]


def test_nothing_is_on_the_card_before_the_first_command(board: Board) -> None:
    assert not (board.directory / JOURNAL_NAME).exists()
    board.ask("a")
    assert (board.directory / JOURNAL_NAME).exists()


def test_a_command_that_comes_again_gets_the_last_word_again_and_is_not_begun_again(
    board: Board, work: Scripted
) -> None:
    body = board.command("a")
    board.ask("a", body=body)
    board.turns()
    before = board.last("a")
    board.events.clear()
    for _ in range(3):
        board.ask("a", body=body)
        board.turns()
    assert [event["result"] for event in board.events] == [before["result"]] * 3
    board.kill()
    board.begin_process()
    board.ask("a", body=body)
    assert board.last("a")["state"] == "done"
    assert work.calls == [("begin", "a", None)]


def test_an_id_belongs_to_its_operation(board: Board) -> None:
    board.ask("a", "work")
    board.ask("a", "other")
    board.turns()
    assert [event["op"] for event in board.events if event["state"] == "done"] == ["work", "other"]


def test_commands_are_done_one_after_the_other_and_what_is_too_many_is_refused(
    board: Board, work: Scripted
) -> None:
    for number in range(MAX_WAITING + 1):
        board.ask(f"a{number}")
    assert board.last(f"a{MAX_WAITING}")["state"] == "refused"
    assert board.last("a3")["text"] == "waits for 3 others"
    board.turns(100)
    assert [name for _, name, _ in work.calls] == [f"a{number}" for number in range(MAX_WAITING)]


@pytest.mark.parametrize(
    ("op", "said"),
    [("nonsense", "knows no operation 'nonsense' (it knows: other, work)"), ("forbidden", "not on")],
)
def test_what_is_not_offered_is_refused_with_the_reason(board: Board, op: str, said: str) -> None:
    board.ask("a", op)
    assert board.states("a") == ["refused"]
    assert said in board.last("a")["error"]["message"]
    board.turns()


def test_an_expired_command_is_not_begun_where_the_clock_is_set(board: Board, work: Scripted) -> None:
    late, waits = board.command("late", life_s=10), board.command("waits", life_s=60)
    board.now_s += 11
    board.ask("late", body=late)
    assert board.states("late") == ["expired"]
    board.ask("waits", body=waits)
    board.now_s += 60
    board.turns()
    assert board.states("waits") == ["received", "expired"]
    assert work.calls == []


def test_a_board_without_a_clock_takes_what_the_broker_kept_for_it(board: Board, work: Scripted) -> None:
    body = board.command("a", life_s=10)
    board.now_s = 17.0
    board.ask("a", body=body)
    board.turns()
    assert board.last("a")["state"] == "done"
    assert board.last("a")["at"].startswith("1970-01-01")
    assert len(work.calls) == 1


@pytest.mark.parametrize(
    "body",
    [
        b"x",
        b"{}",
        b"[]",
        b"\xff" * 9,
        b'{"v":1,"id":"a","op":"work"}',
        b"[" * 100_000,
        b'{"id":"a","op":"work","issued_at":"2026-12-01T00:00:00Z","expires_at":"2026-11-01T00:00:00Z"}',
        b'{"id":"a","op":"work","issued_at":"2026-12-01T00:00:00Z","expires_at":"2036-12-01T00:00:00Z"}',
        b'{"id":"b","op":"work","issued_at":"2026-12-01T00:00:00Z","expires_at":"2026-12-02T00:00:00Z"}',
        b'{"id":"a","op":"other","issued_at":"2026-12-01T00:00:00Z","expires_at":"2026-12-02T00:00:00Z"}',
        b'{"id":"a","op":"work","issued_at":"2026-12-01T00:00:00","expires_at":"2026-12-02T00:00:00"}',
        b" " * (MAX_BODY_BYTES + 1),
    ],
)
def test_what_is_no_command_is_refused_and_not_remembered(board: Board, work: Scripted, body: bytes) -> None:
    board.ask("a", body=body)
    board.turns()
    assert board.states("a") == ["refused"]
    assert work.calls == []
    board.ask("a")
    board.turns()
    assert board.last("a")["state"] == "done"


@pytest.mark.parametrize("command_id", ["a b", "ü", "x" * 129, "a\nb"])
def test_an_id_that_is_none_is_not_answered(board: Board, command_id: str) -> None:
    board.ask(command_id, body=b"{}")
    assert board.events == []


# --- how an operation ends ------------------------------------------------------------------------------------


@pytest.mark.parametrize("reason", ["refused", "failed", "rolled_back", "expired", "cancelled"])
def test_an_operation_says_itself_what_it_came_to(board: Board, work: Scripted, reason: Any) -> None:
    work.on_begin = raising(OperationError("so it is", reason=reason, hint="Do that"))
    board.ask("a")
    board.turns()
    assert board.states("a") == ["received", "running", reason]
    assert board.last("a")["error"] == {"reason": reason, "message": "so it is. Do that"}


@pytest.mark.parametrize(
    "error", [StoreError("no room", path="/x"), ZeroDivisionError("secret"), ValueError()]
)
def test_whatever_one_operation_breaks_the_next_one_is_done(
    board: Board, work: Scripted, error: Exception
) -> None:
    work.on_begin = raising(error)
    board.ask("a")
    board.ask("b", "other")
    board.turns()
    assert (board.last("a")["state"], board.last("b")["state"]) == ("failed", "done")
    assert "secret" not in json.dumps(board.events)


@pytest.mark.parametrize(
    "result", [{"x": object()}, {"x": float("nan")}, {"x": {1, 2}}, {"x": "y" * MAX_BODY_BYTES}]
)
def test_what_cannot_be_told_is_a_failure(board: Board, work: Scripted, result: dict[str, Any]) -> None:
    work.on_begin = lambda _command, _progress: Done(result)
    board.ask("a")
    board.turns()
    assert board.states("a")[-1] == "failed"
    assert "result" not in board.last("a")


def test_what_is_too_long_for_the_broker_is_told_without_what_came_of_it(
    board: Board, work: Scripted
) -> None:
    board.takes_bytes = 2000
    work.on_begin = lambda _command, _progress: Done({"x": "y" * 3000})
    board.ask("a")
    board.turns()
    assert board.states("a")[-1] == "done"
    assert "result" not in board.last("a")
    assert "does not take" in board.last("a")["text"]
    board.confirm()
    board.events.clear()
    board.operations.connected()
    assert board.events == []


def test_progress_is_told_but_not_at_every_step(board: Board, work: Scripted) -> None:
    def act(_command: Command, progress: Progress) -> Step:
        for step in range(100):
            board.up_s += 0.1
            progress.tell(f"step {step}", step / 100)
        return Done()

    work.on_begin = act
    board.ask("a")
    board.turns()
    told = [event for event in board.events if event["state"] == "running" and "share" in event]
    assert 8 <= len(told) <= 12
    assert [event["share"] for event in told] == sorted(event["share"] for event in told)


# --- taking back, and time ------------------------------------------------------------------------------------


def test_a_command_that_waits_is_taken_back(board: Board, work: Scripted) -> None:
    board.ask("a")
    board.ask("b")
    board.take_back("b")
    board.take_back("unheard-of")
    board.turns()
    assert board.states("b") == ["received", "cancelled"]
    assert [name for _, name, _ in work.calls] == ["a"]


def test_one_that_runs_hears_that_it_is_taken_back(board: Board, work: Scripted) -> None:
    def act(_command: Command, progress: Progress) -> Step:
        assert not progress.is_cancelled()
        board.take_back("a")
        assert progress.is_cancelled()
        raise OperationError("stopped", reason="cancelled")

    work.on_begin = act
    board.ask("a")
    board.turns()
    assert board.states("a") == ["received", "running", "cancelled"]


def test_one_that_was_done_before_it_heard_of_it_is_done(board: Board, work: Scripted) -> None:
    def act(_command: Command, _progress: Progress) -> Step:
        board.take_back("a")
        return Done()

    work.on_begin = act
    board.ask("a")
    board.turns()
    board.take_back("a")
    assert board.states("a")[-1] == "done"


def test_one_that_takes_too_long_is_told_to_stop_and_expires(board: Board, work: Scripted) -> None:
    def act(_command: Command, progress: Progress) -> Step:
        board.up_s += 99
        assert not progress.is_cancelled()
        board.up_s += 2
        assert progress.is_cancelled()
        raise OperationError("too slow", reason="cancelled")

    work.on_begin = act
    board.ask("a")
    board.turns()
    assert board.states("a")[-1] == "expired"


def test_one_that_waits_is_resumed_when_it_said(board: Board, work: Scripted) -> None:
    work.on_begin = lambda _command, _progress: Waiting({"k": 1}, 30.0)
    board.ask("a")
    board.turns()
    assert board.states("a") == ["received", "running"]
    assert board.operations.turn() == pytest.approx(30.0)
    board.up_s += 30
    board.turns()
    assert work.calls[1:] == [("resume", "a", {"k": 1})]
    assert board.states("a") == ["received", "running", "done"]


def test_one_that_waits_hears_at_once_that_it_is_taken_back_and_may_wait_for_its_way_back(
    board: Board, work: Scripted
) -> None:
    heard: list[bool] = []

    def again(_command: Command, _memo: Any, progress: Progress) -> Step:
        heard.append(progress.is_cancelled())
        if len(heard) < 3:
            return Waiting({"k": 1}, 5.0)
        raise OperationError("back to what it was", reason="rolled_back")

    work.on_begin, work.on_resume = (lambda _command, _progress: Waiting({"k": 1}, 50.0)), again
    board.ask("a")
    board.turns()
    board.take_back("a")
    board.turns()
    assert heard == [True]
    board.turns()
    assert heard == [True]  # no hot loop
    for _ in range(2):
        board.up_s += 5
        board.turns()
    assert board.states("a")[-1] == "rolled_back"


def test_one_that_waits_for_ever_is_given_up(board: Board, work: Scripted) -> None:
    work.on_begin = lambda _command, _progress: Waiting({}, 10.0)
    work.on_resume = lambda _command, _memo, _progress: Waiting({}, 10.0)
    board.ask("a")
    for _ in range(30):
        board.turns()
        board.up_s += 10
    assert board.states("a")[-1] == "expired"
    assert 19 <= len(work.calls) <= 22


# --- over the end of the process ------------------------------------------------------------------------------


def test_a_restart_asks_for_a_new_process_which_resumes(board: Board, work: Scripted) -> None:
    work.on_begin = lambda _command, _progress: Restart({"k": [1, None]})
    board.ask("a")
    board.ask("b", "other")
    board.turns()
    assert board.restarts == 1
    assert board.states("a")[-1] == "restarting"
    assert not board.is_over("b")  # nothing else is begun by a process that ends
    board.end_process()
    board.begin_process()
    board.turns()
    assert work.calls == [("begin", "a", None), ("resume", "a", {"k": [1, None]})]
    assert board.states("a") == ["received", "running", "restarting", "done"]
    assert board.last("b")["state"] == "done"


def test_after_a_kill_it_is_resumed_without_a_memo_and_never_begun_again(
    board: Board, work: Scripted
) -> None:
    work.on_begin = raising(KilledError())
    board.ask("a")
    with pytest.raises(KilledError):
        board.turns()
    board.kill()
    board.begin_process()
    board.turns()
    assert work.calls == [("begin", "a", None), ("resume", "a", None)]
    assert board.last("a")["state"] == "done"


def test_a_command_that_comes_while_the_process_ends_is_left_to_the_next_one(
    board: Board, work: Scripted
) -> None:
    board.ask("a")
    board.end_process()
    acknowledged: list[int] = []
    topic = topics.command_topic(FLEET, DEVICE, "work", "b")
    message = Message(topic, board.command("b"), acknowledge=lambda: acknowledged.append(1))
    board.operations.receive(message)
    board.operations.connected()
    board.confirm()
    assert (board.states("b"), acknowledged) == ([], [])
    board.begin_process()
    board.operations.receive(message)
    board.turns()
    assert (board.last("b")["state"], acknowledged) == ("done", [1])


def test_one_that_ends_the_process_again_and_again_is_given_up(board: Board, work: Scripted) -> None:
    work.on_begin = work.on_resume = raising(KilledError())
    board.ask("a")
    for _ in range(MAX_STARTS + 3):
        try:
            board.turns()
        except KilledError:
            board.kill()
            board.begin_process()
    board.operations.connected()
    assert board.last("a")["state"] == "failed"
    assert f"ended {MAX_STARTS + 1} times" in board.last("a")["error"]["message"]
    assert len(work.calls) == MAX_STARTS + 1


def test_ends_in_order_do_not_count_against_it(board: Board, work: Scripted) -> None:
    work.on_begin = lambda _command, _progress: Waiting({}, 1.0)
    work.on_resume = lambda _command, _memo, _progress: Waiting({}, 1.0)
    board.ask("a")
    for _ in range(MAX_STARTS + 3):
        board.turns()
        board.end_process()
        board.begin_process()
    work.on_resume = lambda _command, _memo, _progress: Done()
    board.turns()
    assert board.last("a")["state"] == "done"


def test_one_that_hears_of_the_end_goes_on_in_the_next_process(board: Board, work: Scripted) -> None:
    def act(_command: Command, progress: Progress) -> Step:
        board.operations._ending = True
        assert progress.is_cancelled()
        raise OperationError("stopped", reason="cancelled")

    work.on_begin = act
    board.ask("a")
    board.turns()
    assert board.states("a") == ["received", "running"]
    board.end_process()
    board.begin_process()
    board.turns()
    assert board.states("a")[-1] == "done"


def test_time_counts_over_processes_of_one_boot(board: Board, work: Scripted) -> None:
    work.on_begin = lambda _command, _progress: Restart()
    heard: list[bool] = []

    def again(_command: Command, _memo: Any, progress: Progress) -> Step:
        heard.append(progress.is_cancelled())
        return Done()

    work.on_resume = again
    for boot, name in (("boot-1", "a"), ("boot-2", "b")):
        board.ask(name)
        board.turns()
        board.end_process()
        board.up_s += 200
        board.boot = boot
        board.begin_process()
        board.turns()
    assert heard == [True, False]


def test_the_last_word_is_told_until_the_broker_has_it(board: Board) -> None:
    board.is_connected = False
    board.ask("a")
    board.turns()
    assert board.events == []
    board.kill()
    board.begin_process()
    board.is_connected = True
    board.operations.connected()
    board.operations.connected()
    assert [event["state"] for event in board.events] == ["done", "done"]
    board.confirm()
    board.events.clear()
    board.operations.connected()
    assert board.events == []


def test_an_operation_that_a_newer_agent_knew_fails(board: Board, work: Scripted) -> None:
    work.on_begin = lambda _command, _progress: Restart()
    board.ask("a")
    board.turns()
    board.end_process()
    board.scripted = ()
    board.begin_process()
    board.turns()
    assert board.last("a")["state"] == "failed"
    assert "this version" in board.last("a")["text"]


def test_a_journal_that_cannot_be_opened_refuses_commands_and_keeps_nobody_from_starting(
    tmp_path: Path, work: Scripted
) -> None:
    (tmp_path / JOURNAL_NAME).write_bytes(b"rubbish" * 1000)
    board = Board(tmp_path, work)
    board.ask("a")
    assert board.states("a") == ["refused"]
    assert work.calls == []
    board.end_process()


# --- with its thread ------------------------------------------------------------------------------------------


class Threaded:
    """The same with its own thread, and a broker that confirms at once."""

    def __init__(self, directory: Path, work: Scripted) -> None:
        self.events: list[dict[str, Any]] = []
        self.changed = threading.Condition()
        self.operations = Operations(
            directory / JOURNAL_NAME, FLEET, DEVICE, self.publish, [work], wall_clock=lambda: NOW
        )
        self.operations.start()

    def publish(self, message: Any) -> int:
        with self.changed:
            self.events.append(json.loads(message.payload))
            self.changed.notify_all()
            token = len(self.events)
        threading.Thread(target=self.operations.published, args=(token,)).start()
        return token

    def wait(self, state: str) -> dict[str, Any]:
        with self.changed:
            assert self.changed.wait_for(lambda: any(e["state"] == state for e in self.events), 20)
            return next(e for e in self.events if e["state"] == state)


def test_there_is_no_thread_before_the_first_command_and_none_after_the_end(
    tmp_path: Path, work: Scripted, board: Board
) -> None:
    threaded = Threaded(tmp_path / "threaded", work)
    names = {thread.name for thread in threading.enumerate()}
    assert "edgeslm-operations" not in names

    def act(_command: Command, progress: Progress) -> Step:
        took_s = threaded.operations.round_trip(20.0)
        assert took_s is not None
        while not progress.is_cancelled():
            time.sleep(0.01)
        raise OperationError("ended", reason="cancelled")

    work.on_begin = act
    threaded.operations.receive(Message(topics.command_topic(FLEET, DEVICE, "work", "a"), board.command("a")))
    threaded.wait("running")
    threaded.operations.stop()
    assert "edgeslm-operations" not in {thread.name for thread in threading.enumerate()}
    again = Threaded(tmp_path / "threaded", work)
    assert again.wait("done")["result"] == {"n": 2}
    again.operations.stop()
