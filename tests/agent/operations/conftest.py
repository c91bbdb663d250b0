"""Operations of one device over a real journal, without a thread and with a clock of its own."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from edgeslm import topics
from edgeslm.agent.operations.ports import Command, Done, Progress, Step
from edgeslm.agent.operations.runner import JOURNAL_NAME, Operations
from edgeslm.errors import LinkError
from edgeslm.link.port import Message
from edgeslm.schema.operation import FINAL

FLEET, DEVICE = "home", "dev1"
NOW = datetime(2026, 12, 1, tzinfo=UTC).timestamp()

Act = Callable[[Command, Progress], Step]
Again = Callable[[Command, Mapping[str, Any] | None, Progress], Step]


class KilledError(BaseException):
    """The process ends here, without a chance to do anything."""


class Scripted:
    """``Operation`` that does what a test says, and counts.

    Attributes:
        calls: what was called, in order: the method, the id, the memo.
    """

    def __init__(self, op: str = "work", deadline_s: float = 100.0) -> None:
        self.op = op
        self.deadline_s = deadline_s
        self.calls: list[tuple[str, str, Mapping[str, Any] | None]] = []
        self.on_begin: Act = lambda _command, _progress: Done({"n": 1})
        self.on_resume: Again = lambda _command, _memo, _progress: Done({"n": 2})

    def begin(self, command: Command, progress: Progress) -> Step:
        self.calls.append(("begin", command.id, None))
        return self.on_begin(command, progress)

    def resume(self, command: Command, memo: Mapping[str, Any] | None, progress: Progress) -> Step:
        self.calls.append(("resume", command.id, memo))
        return self.on_resume(command, memo, progress)


class Board:
    """A device that is asked; its processes come and go over one state directory.

    Attributes:
        events: what it said, in order.
        restarts: how often it asked to be begun anew.
        now_s: its wall clock, and `up_s` monotonic time, which goes on over processes.
        takes_bytes: of the longest message that its broker takes.
        pending_tokens: messages that the broker has and has not confirmed.
    """

    def __init__(
        self, directory: Path, *operations: Scripted, closed: Mapping[str, str] | None = None
    ) -> None:
        self.directory = directory
        self.scripted = operations
        self.closed = closed
        self.events: list[dict[str, Any]] = []
        self.restarts = 0
        self.now_s, self.up_s = NOW, 1000.0
        self.boot = "boot-1"
        self.is_connected = True
        self.takes_bytes = 1_000_000
        self.pending_tokens: list[int] = []
        self._tokens = itertools.count(1)
        self.operations = self.begin_process()

    def begin_process(self) -> Operations:
        """The next process."""
        made = Operations(
            self.directory / JOURNAL_NAME,
            FLEET,
            DEVICE,
            self._publish,
            self.scripted,
            closed=self.closed,
            boot=self.boot,
            wall_clock=lambda: self.now_s,
            monotonic=lambda: self.up_s,
        )
        made._wake = lambda: None  # type: ignore[method-assign]  # turns are taken by the test
        made.on_restart = self._on_restart
        made.start()
        self.operations = made
        return made

    def end_process(self) -> None:
        """It ends in order."""
        self.operations.stop()

    def kill(self) -> None:
        """It ends, just so: what is open is not written down."""
        journal = self.operations._journal
        if journal is not None:
            journal.close()

    def command(self, command_id: str, op: str = "work", *, life_s: float = 3600.0, **args: Any) -> bytes:
        """The body of a command."""
        issued = datetime.fromtimestamp(self.now_s, UTC)
        ends = datetime.fromtimestamp(self.now_s + life_s, UTC)
        return json.dumps(
            {
                "v": 1,
                "id": command_id,
                "op": op,
                "issued_at": issued.isoformat(),
                "expires_at": ends.isoformat(),
                "args": args,
            }
        ).encode()

    def ask(self, command_id: str, op: str = "work", body: bytes | None = None, **more: Any) -> None:
        """A command comes."""
        payload = self.command(command_id, op, **more) if body is None else body
        acknowledged: list[int] = []
        topic = topics.command_topic(FLEET, DEVICE, op, command_id)
        assert self.operations.takes(topic)
        self.operations.receive(
            Message(topic, payload, retain=True, acknowledge=lambda: acknowledged.append(1))
        )
        assert acknowledged == [1]

    def take_back(self, command_id: str, op: str = "work") -> None:
        """A command is cleared."""
        self.ask(command_id, op, b"")

    def turns(self, count: int = 20) -> None:
        """Do what is due."""
        for _ in range(count):
            if self.operations.turn() > 0:
                return

    def states(self, command_id: str) -> list[str]:
        """What was said of a command, without what was said twice in a row."""
        said = [event["state"] for event in self.events if event["id"] == command_id]
        return [state for state, _ in itertools.groupby(said)]

    def last(self, command_id: str) -> dict[str, Any]:
        """The latest event of a command."""
        return next(event for event in reversed(self.events) if event["id"] == command_id)

    def is_over(self, command_id: str) -> bool:
        """Whether the last word was said."""
        return any(event["id"] == command_id and event["state"] in FINAL for event in self.events)

    def _publish(self, message: Message) -> int | None:
        assert message.topic == topics.id_topic(FLEET, DEVICE, "e", "operation")
        if not self.is_connected:
            return None
        if len(message.payload) > self.takes_bytes:
            raise LinkError("longer than what the broker takes")
        self.events.append(json.loads(message.payload))
        self.pending_tokens.append(next(self._tokens))
        return self.pending_tokens[-1]

    def confirm(self) -> None:
        """The broker confirms what it has."""
        while self.pending_tokens:
            self.operations.published(self.pending_tokens.pop())

    def _on_restart(self) -> None:
        self.restarts += 1


@pytest.fixture
def work() -> Scripted:
    return Scripted()


@pytest.fixture
def board(tmp_path: Path, work: Scripted) -> Iterator[Board]:
    made = Board(tmp_path, work, Scripted("other"), closed={"forbidden": "not on this device"})
    yield made
    made.end_process()
