"""Takes commands, runs their operations one at a time on a thread of its own, and answers with events.

What always holds:

* a command is on the card before it is begun, and what came of it before that is told;
* the last word on a command is told until the broker has it, and again whenever the command comes again;
* the thread, and the database, come with the first command: a device that is asked for nothing pays nothing.

Left to others: what an operation does (:class:`~edgeslm.agent.operations.ports.Operation`), what becomes of it
(:mod:`edgeslm.agent.operations.machine`), and beginning anew after :attr:`Operations.on_restart`.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from edgeslm import codec, topics
from edgeslm.agent.operations import machine
from edgeslm.agent.operations.journal import OperationJournal
from edgeslm.agent.operations.machine import Entry, Offered
from edgeslm.agent.operations.ports import Command, Done, Operation, Step, Waiting
from edgeslm.agent.operations.telling import Publish, Teller
from edgeslm.agent.ports import Message
from edgeslm.clock import clock_is_set
from edgeslm.errors import CodecError, EdgeslmError, JournalError, OperationError, TopicError
from edgeslm.schema.message import MAX_BODY_BYTES
from edgeslm.schema.operation import (
    MAX_TEXT_CHARS,
    OperationCommand,
    OperationEvent,
    OperationFault,
    OperationReason,
)

log = logging.getLogger(__name__)

JOURNAL_NAME = "operations.db"
_RETRY_S = 10.0
"""Pause after the journal refused."""
_LONGEST_WAIT_S = 3600.0
_LOOK_S = 0.1
_STOP_S = 20.0
"""An operation that hears of the end has this long to come to its own."""


def _nobody() -> None:
    """Nobody begins this process anew; the next one that starts goes on."""


class _Progress:
    """``Progress`` of one call of an operation."""

    def __init__(self, owner: Operations, deadline_s: float) -> None:
        self._owner = owner
        self._deadline_s = deadline_s

    def tell(self, text: str, share: float | None = None) -> None:
        """See ``Progress``."""
        self._owner.note_progress(text, share)

    def is_cancelled(self) -> bool:
        """See ``Progress``."""
        return self._owner.is_cancelled(self._deadline_s)


class Operations:
    """The operations of one agent. In order: :meth:`start`, anything, :meth:`stop`.

    Attributes:
        on_restart: told, on the operations' thread, that this process has to end in order and begin anew.
    """

    def __init__(
        self,
        path: Path,
        fleet: str,
        device: str,
        publish: Publish,
        operations: Sequence[Operation] = (),
        *,
        closed: Mapping[str, str] | None = None,
        boot: str = "",
        wall_clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take the parts.

        Args:
            path: of the journal.
            publish: over the agent's link.
            operations: what can be done here.
            closed: operations that exist but cannot be had on this device, each with the reason.
            boot: what tells this boot of the kernel from others.
            wall_clock: gives Unix time, right or wrong.
        """
        self._path = path
        self._teller = Teller(fleet, device, publish, wall_clock, monotonic)
        self._operations = {operation.op: operation for operation in operations}
        self._offered = Offered(frozenset(self._operations), dict(closed or {}))
        self._boot = boot
        self._wall_clock = wall_clock
        self._monotonic = monotonic
        self.on_restart: Callable[[], None] = _nobody
        self._filter = topics.command_filter(fleet, device)
        self._prefix = self._filter.removesuffix("+/+")
        self._journal: OperationJournal | None = None
        self._changed = threading.Condition(threading.RLock())
        self._open: list[Entry] = []
        self._since_s = float("-inf")
        self._due_s = 0.0
        self._hurried = 0
        self._ending = False
        self._thread: threading.Thread | None = None

    # --- the agent ---------------------------------------------------------------------------------------------

    @property
    def filter(self) -> str:
        """The filter to subscribe to, with QoS 1."""
        return self._filter

    def takes(self, topic: str) -> bool:
        """Whether a message on `topic` is for :meth:`receive`."""
        return topic.startswith(self._prefix)

    def start(self) -> None:
        """Go on with what the last process left."""
        try:
            if self._path.exists():
                self._take_up()
        except JournalError:
            log.exception("no remote operation can be done")

    def stop(self) -> None:
        """Let the operation that runs hear of it; it goes on in the next process."""
        with self._changed:
            self._ending = True
            self._changed.notify_all()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(_STOP_S)
            if self._thread.is_alive():
                log.warning("an operation does not end; the next process takes it for cut off")
                return  # it still has the journal
        with self._changed:
            if self._open and self._open[0].state == "running":
                self._keep(machine.leave(self._timed()))
            if self._journal is not None:
                self._journal.close()
                self._journal = None

    def receive(self, message: Message) -> None:
        """A command came, or was taken back; on the dispatcher's thread, which it keeps for a sync of the card."""
        if self._ending:
            return  # not acknowledged, it comes to the next process
        try:
            self._receive(message)
        except TopicError as error:
            log.warning("a command is ignored: %s", error)
        finally:
            message.acknowledge()

    def connected(self) -> None:
        """The broker is there: say again what it may not have."""
        with self._changed:
            self._teller.reconnected()
            if self._journal is None:
                return
            try:
                untold = self._journal.untold()
            except JournalError:
                log.exception("what came of operations cannot be told")
                untold = []
            for entry in [*untold, *self._open]:
                self._teller.tell(entry)

    def published(self, token: int) -> None:
        """The broker has the message of `token`."""
        with self._changed:
            number = self._teller.published(token)
            if number is None or self._journal is None:
                return
            try:
                self._journal.told([number])
            except JournalError:
                log.exception("an operation is told of once more after a restart")

    # --- operations --------------------------------------------------------------------------------------------

    def round_trip(self, timeout_s: float) -> float | None:
        """Seconds that a message takes to the broker and its receipt back; ``None`` if there is none in time."""
        answered = threading.Event()
        until_s = time.monotonic() + timeout_s
        while (token := self._ping(answered)) is None:
            if time.monotonic() >= until_s or self._ending:
                return None
            time.sleep(_LOOK_S)
        began_s = time.monotonic()
        came = answered.wait(max(0.0, until_s - began_s))
        with self._changed:
            self._teller.forget_ping(token)
        return time.monotonic() - began_s if came else None

    def _ping(self, answered: threading.Event) -> int | None:
        with self._changed:
            return self._teller.ping(self._open[0], answered) if self._open else None

    def latest(self, limit: int) -> list[OperationEvent]:
        """The last word on the latest commands, newest first.

        Raises:
            JournalError: it cannot be read.
        """
        with self._changed:
            found = [] if self._journal is None else self._journal.latest(limit)
        return [self._teller.event(replace(entry, result=None)) for entry in found]

    def note_progress(self, text: str, share: float | None) -> None:
        """How far the operation that runs is; told at most every :data:`TELL_S`."""
        with self._changed:
            if not self._open:
                return
            self._open[0] = entry = replace(self._open[0], text=text[:MAX_TEXT_CHARS], share=share)
            self._teller.tell_progress(entry)

    def is_cancelled(self, deadline_s: float) -> bool:
        """Whether the operation that runs is to stop."""
        with self._changed:
            if self._ending or not self._open:
                return True
            entry = self._timed()
            return entry.taken_back or machine.is_overdue(entry, deadline_s)

    # --- commands come -----------------------------------------------------------------------------------------

    def _receive(self, message: Message) -> None:
        topic = topics.parse(message.topic)
        if not isinstance(topic, topics.CommandTopic):
            return
        with self._changed:
            if not message.payload:
                self._take_back(topic)
                return
            try:
                self._take(topic, message.payload)
            except (CodecError, JournalError) as error:
                log.warning("command %s/%r is refused: %s", topic.op, topic.command_id[:80], error)
                self._teller.refuse(topic, str(error))

    def _take(self, topic: topics.CommandTopic, payload: bytes) -> None:
        journal = self._opened()
        known = self._current(topic) or journal.find(topic.op, topic.command_id)
        if known is not None:
            self._teller.tell(known)
            return
        command = codec.decode(OperationCommand, payload, max_bytes=MAX_BODY_BYTES)
        if (command.op, command.id) != (topic.op, topic.command_id):
            raise CodecError("the command is for another topic: its op and id are those of the topic")
        entry = machine.receive(
            journal.next_number(), command, self._offered, waiting=len(self._open), now_s=self._now_s()
        )
        journal.save(entry, self._monotonic(), synced=not entry.is_final)
        log.info("command %s/%s: %s", entry.op, entry.id, entry.state)
        self._teller.tell(entry)
        if not entry.is_final:
            self._open.append(entry)
            self._wake()

    def _take_back(self, topic: topics.CommandTopic) -> None:
        entry = self._current(topic)
        if entry is None:
            return
        after = machine.take_back(entry)
        if after == entry or not self._keep(after):
            return
        log.info("command %s/%s is taken back", entry.op, entry.id)
        if after.is_final:
            self._teller.tell(after)
        self._changed.notify_all()

    def _current(self, topic: topics.CommandTopic) -> Entry | None:
        wanted = (topic.op, topic.command_id)
        return next((entry for entry in self._open if (entry.op, entry.id) == wanted), None)

    # --- the operations' thread --------------------------------------------------------------------------------

    def _take_up(self) -> None:
        with self._changed:
            journal = self._opened()
            for entry in journal.open(self._monotonic()):
                after = machine.take_up(entry)
                if after != entry:
                    journal.save(after, self._monotonic())
                if not after.is_final:
                    self._open.append(after)
            self._since_s = self._monotonic()
            if self._open:
                log.info("%d remote operations of the last run are taken up", len(self._open))
                self._wake()

    def _wake(self) -> None:
        if self._thread is None and not self._ending:
            self._thread = threading.Thread(target=self._run, name="edgeslm-operations", daemon=True)
            self._thread.start()
        self._changed.notify_all()

    def _run(self) -> None:
        while True:
            try:
                wait_s = self.turn()
            except JournalError:
                log.exception(
                    "the journal of operations refuses; nothing is done until it takes what is done"
                )
                wait_s = _RETRY_S
            except Exception:  # operations that are done no more are worse than a turn that fails
                log.exception("a turn of the operations failed")
                wait_s = _RETRY_S
            with self._changed:
                if self._ending:
                    return
                if wait_s > 0:
                    self._changed.wait(wait_s)

    def turn(self) -> float:
        """Do what is due; seconds after which there may be more.

        Raises:
            JournalError: the disk is full or broken; nothing was done.
        """
        with self._changed:
            if self._ending or not self._open or self._open[0].state == "restarting":
                return _LONGEST_WAIT_S
            entry = self._timed()
            operation = self._operations.get(entry.op)
            if operation is None:
                after = machine.fail(entry, "failed", "this version of the agent knows no such operation")
                self._settle(after)
                return 0.0
            is_first = entry.state == "received"
            if is_first:
                entry = machine.begin(entry, self._now_s())
                self._since_s = self._monotonic()
                if not self._settle(entry) or entry.is_final:
                    return 0.0
                log.info("operation %s/%s begins", entry.op, entry.id)
            elif (wait_s := self._wait_s(entry, operation)) > 0:
                return wait_s
        step = self._call(entry, operation, is_first=is_first)
        with self._changed:
            self._conclude(operation, step)
        return 0.0

    def _wait_s(self, entry: Entry, operation: Operation) -> float:
        """Seconds until one that waits is resumed; at once where it has to hear that it is to end."""
        left_s = operation.deadline_s - entry.spent_s
        wait_s = self._due_s - self._monotonic()
        if self._hurried == entry.number:
            return wait_s
        if entry.taken_back or left_s <= 0:
            self._hurried = entry.number
            return 0.0
        return min(wait_s, left_s)

    def _call(self, entry: Entry, operation: Operation, *, is_first: bool) -> Step | OperationError:
        progress = _Progress(self, operation.deadline_s)
        command = Command(entry.id, entry.op, entry.args)
        try:
            step = (
                operation.begin(command, progress)
                if is_first
                else operation.resume(command, entry.memo, progress)
            )
            json.dumps(step.result if isinstance(step, Done) else dict(step.memo), allow_nan=False)
        except OperationError as error:
            return error
        except EdgeslmError as error:
            return OperationError(error.message, reason="failed", hint=error.hint)
        except Exception as error:  # whatever one operation does, the next one is done
            log.exception("operation %s/%s failed", entry.op, entry.id)
            return OperationError(f"unexpected {type(error).__name__}", reason="failed")
        return step

    def _conclude(self, operation: Operation, step: Step | OperationError) -> None:
        entry = self._timed()
        if isinstance(step, OperationError):
            if self._ending and step.reason == "cancelled" and not entry.taken_back:
                return  # it goes on in the next process
            self._settle(machine.fail(entry, self._reason(entry, operation, step), str(step)))
            return
        after = machine.step(entry, step)
        self._due_s = self._monotonic() + after.wait_s
        if isinstance(step, Waiting):
            after = machine.give_up(after, operation.deadline_s)
            if not after.is_final and after.memo == entry.memo:
                self._put(after)  # nothing that the next process has to know: no wear on the card
                return
        self._settle(self._fitting(after))

    def _reason(self, entry: Entry, operation: Operation, error: OperationError) -> OperationReason:
        if error.reason != "cancelled" or entry.taken_back:
            return error.reason
        return "expired" if machine.is_overdue(entry, operation.deadline_s) else "cancelled"

    def _fitting(self, entry: Entry) -> Entry:
        """`entry`, failed if what came of it is too large to be told."""
        size = len(codec.encode(self._teller.event(entry)))
        if size <= MAX_BODY_BYTES:
            return entry
        reason = f"what came of it has {size} bytes, at most {MAX_BODY_BYTES} can be told"
        return replace(
            entry,
            state="failed",
            result=None,
            text=reason,
            fault=OperationFault(reason="failed", message=reason),
        )

    def _settle(self, after: Entry) -> bool:
        """Write down what became of the first in line, then tell it; ``False`` if the end comes before it could be."""
        while not self._keep(after):
            self._changed.wait(_RETRY_S)
            if self._ending:
                return False
        self._teller.tell(after)
        if after.is_final:
            log.info("operation %s/%s: %s %s", after.op, after.id, after.state, after.text)
        elif after.state == "restarting":
            log.info("operation %s/%s: the agent begins anew", after.op, after.id)
            self.on_restart()
        return True

    # --- parts; all under the lock -----------------------------------------------------------------------------

    def _opened(self) -> OperationJournal:
        if self._journal is None:
            self._journal = OperationJournal(self._path, self._boot)
        return self._journal

    def _keep(self, after: Entry) -> bool:
        """Write `after` and put it in its place, or out of line; ``False`` if the journal refuses."""
        try:
            self._opened().save(after, self._monotonic())
        except JournalError:
            log.exception("what becomes of %s/%s cannot be written down", after.op, after.id)
            return False
        self._put(after)
        return True

    def _put(self, after: Entry) -> None:
        """Put `after` in the place of what it was, or out of line."""
        self._open = [
            after if entry.number == after.number else entry
            for entry in self._open
            if entry.number != after.number or not after.is_final
        ]

    def _timed(self) -> Entry:
        """The first in line, with the time that it has taken so far."""
        entry, now_s = self._open[0], self._monotonic()
        if entry.begun:
            self._open[0] = entry = replace(entry, spent_s=entry.spent_s + now_s - self._since_s)
        self._since_s = now_s
        return entry

    def _now_s(self) -> float | None:
        now_s = self._wall_clock()
        return now_s if clock_is_set(now_s) else None
