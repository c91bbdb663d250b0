"""Ends an agent that hangs in a release on probation, so that what served before serves again.

A model that hangs in native code cannot be interrupted, and it keeps the turn of whoever comes after it: nothing in
this process leads back. So the way back is written down, and the process is replaced by a new one. Native code may
keep the interpreter as well, and then nobody here can do even that: an alarm of the kernel's, put off at every look,
ends the process, which the next one finds in the journal as a crash.

What always holds:

* Only a release that is not settled yet is judged: one that has nothing before it would hang again.
* The time that the budget lets an answer pause does not count, nor does time in which this process did not run.
* Where the journal refuses, the process is replaced all the same: its end counts as a crash of the release.

Left to others: hanging in a trial of its own process (:mod:`edgeslm.agent.update.child`).
"""

from __future__ import annotations

import itertools
import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Final

from edgeslm.agent.ports import Model
from edgeslm.agent.update.change import Change, Failed, Fault
from edgeslm.agent.update.journal import UpdateJournal
from edgeslm.agent.update.machine import step
from edgeslm.errors import JournalError
from edgeslm.runtime.conversation import Turn
from edgeslm.runtime.generation import OnText, ShouldStop
from edgeslm.runtime.model import Answer
from edgeslm.runtime.outcome import Outcome
from edgeslm.schema.installed import InstalledPackage
from edgeslm.schema.message import FinishReason, Options, PromptRequest, Task
from edgeslm.schema.update import UpdatePolicy

log = logging.getLogger(__name__)

LOOK_S: Final = 2.0

Load = Callable[[InstalledPackage], Model]
"""Loads a package; see :data:`edgeslm.agent.serving.Load`."""

Alarm = Callable[[float], None]
"""Ends the process after so many seconds, and not at all at 0; each call replaces the one before."""


def kernel_alarm(seconds: float) -> None:
    """``Alarm`` by the signal SIGALRM, whose default ends the process; no step of the clock moves it (setitimer(2))."""
    signal.setitimer(signal.ITIMER_REAL, seconds)


def _no_alarm(_: float) -> None:
    """Nothing ends the process from outside."""


@dataclass
class Work:
    """Something that computes with a package.

    Attributes:
        sha256: of the package.
        doing: what it does, for people.
        limit_s: longest that it may give no sign of life.
        beats: signs of life so far.
        rests: it waits for something else than the model.
        seen: `beats` when it was looked at last,
        silent_s: and the seconds since they became others; both for who looks.
    """

    sha256: str
    doing: str
    limit_s: float
    beats: int = 0
    rests: bool = False
    seen: int = -1
    silent_s: float = 0.0


class Pulse:
    """What computes in this process just now. From any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._numbers = itertools.count()
        self._works: dict[int, Work] = {}

    @contextmanager
    def of(self, work: Work) -> Iterator[Work]:
        """`work` goes on until the block ends."""
        number = next(self._numbers)
        with self._lock:
            self._works[number] = work
        try:
            yield work
        finally:
            with self._lock:
                del self._works[number]

    def silent(self, elapsed_s: float) -> Work | None:
        """Work that gave no sign of life for longer than it may.

        Args:
            elapsed_s: since this was asked before; one thread asks.
        """
        with self._lock:
            works = tuple(self._works.values())
        for work in works:
            if work.rests or work.beats != work.seen:
                work.seen, work.silent_s = work.beats, 0.0
            else:
                work.silent_s += elapsed_s
        return next((work for work in works if work.silent_s > work.limit_s), None)


class WatchedModel:
    """``Model`` that gives a sign of life whenever it asks whether to go on: between tokens, and chunks of a prompt."""

    def __init__(self, model: Model, pulse: Pulse, limit_s: float) -> None:
        """Take the model.

        Args:
            limit_s: longest that it may compute without asking.
        """
        self._model = model
        self._pulse = pulse
        self._limit_s = limit_s

    @property
    def installed(self) -> InstalledPackage:
        """See ``Model``."""
        return self._model.installed

    @property
    def name(self) -> str:
        """See ``Model``."""
        return self._model.name

    @property
    def graph_file(self) -> str:
        """See ``Model``."""
        return self._model.graph_file

    @property
    def runtime_name(self) -> str:
        """See ``Model``."""
        return self._model.runtime_name

    @property
    def context_tokens(self) -> int:
        """See ``Model``."""
        return self._model.context_tokens

    @property
    def max_answer_tokens(self) -> int:
        """See ``Model``."""
        return self._model.max_answer_tokens

    @property
    def threads(self) -> int:
        """See ``Model``."""
        return self._model.threads

    def set_threads(self, threads: int) -> None:
        """See ``Model``."""
        self._model.set_threads(threads)

    def set_aside(self) -> AbstractContextManager[None]:
        """See ``Model``."""
        return self._model.set_aside()

    @property
    def tasks(self) -> tuple[Task, ...]:
        """See ``Model``."""
        return self._model.tasks

    @property
    def takes_arrays(self) -> bool:
        """See ``Model``."""
        return self._model.takes_arrays

    def count_tokens(self, prompt: str, *, turns: Sequence[Turn] = (), system: str | None = None) -> int:
        """See ``Model``."""
        return self._model.count_tokens(prompt, turns=turns, system=system)

    def infer(self, request: PromptRequest, *, should_stop: ShouldStop | None = None) -> Outcome:
        """See ``Model``."""
        with self._watched(should_stop) as asked:
            return self._model.infer(request, should_stop=asked)

    def answer(
        self,
        prompt: str,
        options: Options,
        *,
        on_text: OnText | None = None,
        should_stop: ShouldStop | None = None,
        turns: Sequence[Turn] = (),
        system: str | None = None,
    ) -> Answer:
        """See ``Model``."""
        with self._watched(should_stop) as asked:
            return self._model.answer(
                prompt, options, on_text=on_text, should_stop=asked, turns=turns, system=system
            )

    @contextmanager
    def _watched(self, should_stop: ShouldStop | None) -> Iterator[ShouldStop]:
        with self._pulse.of(Work(self.installed.sha256, "an answer", self._limit_s)) as work:

            def asked() -> FinishReason | None:
                work.beats += 1
                if should_stop is None:
                    return None
                work.rests = True  # it may pause for the budget, as long as that wants
                reason = should_stop()
                work.rests = False
                return reason

            yield asked


class Watchdog:
    """Looks at the pulse of this process on a thread of its own."""

    def __init__(
        self,
        journal: UpdateJournal,
        policy: UpdatePolicy,
        replace: Callable[[], None],
        alarm: Alarm = _no_alarm,
        look_s: float = LOOK_S,
    ) -> None:
        """Take the parts; nothing is watched yet.

        Args:
            policy: says how long a model may be silent.
            replace: replaces this process by a new one, whatever it is doing; it does not return.
            alarm: for when even that cannot be called.
            look_s: seconds between two looks.
        """
        self._journal = journal
        self._policy = policy
        self._replace = replace
        self._alarm = alarm
        self._alarm_s = max(policy.load_s, policy.answer_s)
        self._look_s = look_s
        self._pulse = Pulse()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="edgeslm-watchdog", daemon=True)

    def watched(self, load: Load) -> Load:
        """As `load`, with an eye on the loading and on whatever the model answers."""

        def load_watched(installed: InstalledPackage) -> Model:
            with self._pulse.of(Work(installed.sha256, "loading", self._policy.load_s)):
                model = load(installed)
            return WatchedModel(model, self._pulse, self._policy.answer_s)

        return load_watched

    def start(self) -> None:
        """Begin to look."""
        self._alarm(self._alarm_s)
        self._thread.start()

    def stop(self) -> None:
        """Look no longer: what hangs now is the business of who wants this process to end. Idempotent."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()
            self._alarm(0.0)

    def _run(self) -> None:
        looked_s = time.monotonic()
        while not self._ended.wait(self._look_s):
            self._alarm(self._alarm_s)
            now_s = time.monotonic()
            # A process that was stopped for an hour did not hang for an hour.
            work = self._pulse.silent(min(now_s - looked_s, 2.0 * self._look_s))
            looked_s = now_s
            if work is not None and self._is_on_probation(work):
                log.critical("%s said nothing for %.0f s: the agent begins anew", work.doing, work.silent_s)
                self._replace()
                return

    def _is_on_probation(self, work: Work) -> bool:
        """Whether a new process would serve something else than what hangs; that is in the journal then."""
        try:
            changes = [change for change in self._journal.latest().values() if _tries(change, work.sha256)]
            for change in changes:
                self._give_up(change, work)
        except JournalError:
            log.exception("that a release hangs cannot be written down")
            return True
        return bool(changes)

    def _give_up(self, change: Change, work: Work) -> None:
        fault = Fault("hung", f"{work.doing} gave no sign of life for {work.limit_s:g} s in the agent")
        after = step(change, Failed(fault), self._policy)
        # A change that is on its way back already goes on with that: what it waits for is the turn of what hangs.
        if after is not None and change.state != "rolling_back":
            self._journal.save(after, time.time())


def _tries(change: Change, sha256: str) -> bool:
    serves = change.state in {"trial", "gating", "committed", "rolling_back"}
    return serves and not change.settled and change.wanted.sha256 == sha256
