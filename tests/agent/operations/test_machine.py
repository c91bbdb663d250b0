"""The states of operations over a real journal, whatever commands, ends of processes and answers come."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from edgeslm.agent.operations import machine
from edgeslm.agent.operations.ports import Command, Done, Progress, Restart, Step, Waiting
from edgeslm.errors import OperationError
from edgeslm.schema.operation import FINAL

from .conftest import Board, KilledError, Scripted

IDS = st.sampled_from(["a", "b", "c", "d"])
ACTS = st.sampled_from(["done", "restart", "wait", "fail", "roll back", "stop", "break", "die"])


class OperationStates(RuleBasedStateMachine):
    """A device whose operation does what comes to hand."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory(prefix="edgeslm-operations-")
        self.work = Scripted(deadline_s=50.0)
        self.work.on_begin = self.act
        self.work.on_resume = lambda command, memo, progress: self.act(command, progress, memo)
        self.next_act = "done"
        self.board = Board(Path(self.directory.name), self.work)
        self.asked: dict[str, bytes] = {}
        self.over: dict[str, str] = {}

    def act(self, command: Command, progress: Progress, memo: Mapping[str, Any] | None = None) -> Step:
        assert memo is None or memo == {"id": command.id}
        assert command.args == {"of": command.id}
        if self.next_act == "die":
            raise KilledError
        if self.next_act == "break":
            raise ZeroDivisionError
        if self.next_act == "restart":
            return Restart({"id": command.id})
        if self.next_act == "wait":
            return Waiting({"id": command.id}, 10.0)
        reasons = {"fail": "failed", "roll back": "rolled_back", "stop": "cancelled"}
        if self.next_act in reasons:
            raise OperationError("as told", reason=reasons[self.next_act])  # type: ignore[arg-type]
        return Done({"id": command.id})

    @rule(command_id=IDS)
    def ask(self, command_id: str) -> None:
        body = self.asked.setdefault(command_id, self.board.command(command_id, life_s=100.0, of=command_id))
        self.board.ask(command_id, body=body)

    @rule(command_id=IDS)
    def take_back(self, command_id: str) -> None:
        self.board.take_back(command_id)

    @rule(act=ACTS, count=st.integers(1, 3))
    def turn(self, act: str, count: int) -> None:
        self.next_act = act
        try:
            for _ in range(count):
                self.board.operations.turn()
        except KilledError:
            self.board.kill()
            self.board.begin_process()

    @rule(seconds=st.sampled_from([1.0, 10.0, 60.0]))
    def pass_time(self, seconds: float) -> None:
        self.board.now_s += seconds
        self.board.up_s += seconds

    @rule(clean=st.booleans(), reboots=st.booleans())
    def begin_anew(self, clean: bool, reboots: bool) -> None:
        if clean:
            self.board.end_process()
        else:
            self.board.kill()
        if reboots:
            self.board.boot += "+"
        self.board.begin_process()

    @rule(is_connected=st.booleans())
    def connection(self, is_connected: bool) -> None:
        self.board.is_connected = is_connected
        if is_connected:
            self.board.operations.connected()

    @precondition(lambda self: self.board.is_connected)
    @rule()
    def confirm(self) -> None:
        self.board.confirm()

    @invariant()
    def each_is_begun_once_at_most(self) -> None:
        begun = Counter(name for method, name, _ in self.work.calls if method == "begin")
        assert all(count == 1 for count in begun.values())

    @invariant()
    def nothing_is_resumed_that_was_not_begun(self) -> None:
        seen: set[str] = set()
        for method, name, _ in self.work.calls:
            assert method == "begin" or name in seen
            seen.add(name)

    @invariant()
    def states_follow_one_another_and_the_last_word_stands(self) -> None:
        for command_id in self.asked:
            states = self.board.states(command_id)
            for index, state in enumerate(states):
                if state in FINAL:
                    assert set(states[index:]) == {state}
                    assert self.over.setdefault(command_id, state) == state

    @invariant()
    def at_most_one_is_under_way(self) -> None:
        assert sum(entry.begun for entry in self.board.operations._open) <= 1

    def teardown(self) -> None:
        """In the end every command that is asked for once more gets a last word."""
        self.board.is_connected = True
        self.next_act = "done"
        for _ in range(3):
            self.board.end_process()
            self.board.begin_process()
            self.board.turns(50)
        for command_id, body in self.asked.items():
            self.board.ask(command_id, body=body)
        self.board.turns(50)
        for command_id, body in self.asked.items():
            self.board.ask(command_id, body=body)
            assert self.board.is_over(command_id)
        self.states_follow_one_another_and_the_last_word_stands()
        self.each_is_begun_once_at_most()
        self.board.end_process()
        self.directory.cleanup()


OperationStates.TestCase.settings = settings(max_examples=150, stateful_step_count=40)
TestOperationStates = OperationStates.TestCase


def test_a_final_state_is_never_left() -> None:
    for state in FINAL:
        entry = machine.Entry(1, "work", "a", 0.0, {}, state=state)
        assert machine.begin(entry, 0.0) is entry
        assert machine.step(entry, Done({"x": 1})) is entry
        assert machine.step(entry, Restart()) is entry
        assert machine.fail(entry, "failed", "x") is entry
        assert machine.take_back(entry) is entry
        assert machine.take_up(entry) is entry
        assert machine.leave(entry) is entry
        assert machine.give_up(entry, 0.0) is entry


def test_what_is_remembered_of_an_old_command_says_so_and_holds_nothing_more() -> None:
    entry = machine.Entry(1, "work", "a", 0.0, {})
    done = machine.step(machine.begin(entry, None), Done({"secret": 1}))
    told = machine.event(machine.reduce(done), "dev1", "2026-12-01T00:00:00+00:00")
    assert (told.state, told.result) == ("done", None)
    assert "not kept" in told.text
