"""The updater: follows assignments on a thread of its own, beside the one that answers prompts.

What always holds:

* every change of state is in the journal before its step is taken (:mod:`edgeslm.agent.update.machine` says which);
* :meth:`Updater.boot` says what to serve after whatever end of the last run, and that is a whole package;
* one change is under way at a time, so that trials never compete for the board;
* a step under way is given up when a newer assignment, an abort or the end comes, and taken again if still due.

Left to others: whether an assignment is to be trusted, and publishing reports.
"""

from __future__ import annotations

import logging
import queue
import random
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgeslm.agent.update.boot import Factory, boot
from edgeslm.agent.update.change import Abort, Change, Effect, Event, Offer, Reconnected, Supersede, Wanted
from edgeslm.agent.update.changes import Changes
from edgeslm.agent.update.child import Launch, TrialSettings, launch_trial
from edgeslm.agent.update.effects import Context, Effects
from edgeslm.agent.update.journal import PastChange, UpdateJournal
from edgeslm.agent.update.machine import committed, effect_of, serves
from edgeslm.agent.update.ports import Content, Delivery, Device, Releases, Serving
from edgeslm.agent.update.reporting import NameStatus, report_models
from edgeslm.agent.update.trials import Trials
from edgeslm.agent.update.watchdog import Watchdog
from edgeslm.errors import JournalError, PackageError, StoreError
from edgeslm.models.store import ModelStore
from edgeslm.schema.config import RuntimeChoice
from edgeslm.schema.installed import InstalledPackage
from edgeslm.schema.update import Reported, UpdatePolicy

log = logging.getLogger(__name__)

_NOTE_S = 15.0
"""Seconds between two notes of how long a state lasts already."""
_REPORT_BYTES_S = 5.0
_IDLE_S = 30.0
_FAILED_S = 10.0
"""Pause after a turn that failed, such as by a journal that refuses."""


@dataclass(frozen=True)
class _Follow:
    wanted: tuple[Wanted, ...]
    assignment: int


@dataclass(frozen=True)
class _Abort:
    """Stop the change of a name, or all of them."""

    name: str | None
    detail: str


@dataclass(frozen=True)
class _Retry:
    """Forget what failed under a name."""

    name: str


@dataclass(frozen=True)
class _Reconnected:
    """The network is back."""


@dataclass(frozen=True)
class _Wake:
    """Nothing but a reason to look."""


_Command = _Follow | _Abort | _Retry | _Reconnected | _Wake


class Updater:
    """See the module. In order: :meth:`boot`, :meth:`start`, anything, :meth:`stop`."""

    def __init__(
        self,
        journal: UpdateJournal,
        store: ModelStore,
        device: Device,
        policy: UpdatePolicy,
        factory: Sequence[Path],
        *,
        on_report: Callable[[Reported], None],
        boot_id: str,
        watchdog: Watchdog | None = None,
        content: Content | None = None,
    ) -> None:
        """Take the parts.

        Args:
            factory: package files that serve where no assignment says otherwise, and that are fallen back to.
            on_report: told on the updater's thread whenever there is something new to report.
            boot_id: see :func:`edgeslm.procfs.boot_id`; empty where the kernel does not say.
            watchdog: watches what serves from :meth:`boot` to :meth:`stop`, where something does.
            content: told from :meth:`boot` on which packages are committed.

        Raises:
            JournalError: the journal cannot be read.
        """
        self._journal = journal
        self._store = store
        self._device = device
        self._policy = policy
        self._factory_files = factory
        self._on_report = on_report
        self._boot_id = boot_id
        self._watchdog = watchdog
        self._content = content
        self._changes = Changes(journal, store, policy)
        self._wanted = {wanted.name: wanted for wanted in journal.wanted()}
        self._assignment = journal.assignment
        self._factory = Factory({}, {})
        self._effects: Effects | None = None
        self._inbox: queue.SimpleQueue[_Command] = queue.SimpleQueue()
        self._commands: deque[_Command] = deque()
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="edgeslm-update", daemon=True)
        self._started_s = self._seen_s = self._noted_s = device.monotonic()
        self._bytes: tuple[int, int] | None = None
        self._bytes_told_s = float("-inf")
        self._is_untidy = True
        self._has_news = True

    # --- starts ------------------------------------------------------------------------------------------------

    def boot(self) -> dict[str, InstalledPackage]:
        """What to serve, by name; the factory's names first, in their order. To be asked once, before anything serves.

        Raises:
            EdgeslmError: there is nothing to serve: why the first factory package is of no use.
        """
        self._factory, packages = boot(
            self._changes, self._journal, self._store, self._factory_files, self._boot_id
        )
        if self._watchdog is not None:
            self._watchdog.start()
        self._tell_committed()
        return packages

    def load_failed(self, installed: InstalledPackage, detail: str) -> InstalledPackage | None:
        """What to serve in place of a package that :meth:`boot` or this gave and that does not load."""
        name = installed.manifest.name
        self._changes.load_failed(name, detail)
        following = self._changes.package(name, self._factory.installed)
        self._tell_committed()
        return following if following is not None and following.sha256 != installed.sha256 else None

    def attach(
        self,
        releases: Releases,
        delivery: Delivery,
        serving: Serving,
        *,
        runtime: RuntimeChoice,
        cache_dir: Path | None,
        launch: Launch = launch_trial,
    ) -> None:
        """Take what needs a running agent, once what :meth:`boot` named serves.

        Args:
            runtime: that trials use,
            cache_dir: and where they keep packed weights: the same as in serving.
            launch: starts the processes of trials.
        """
        policy, threads = self._policy, self._device.facts.threads
        settings = TrialSettings(runtime, threads, cache_dir, policy.load_s, policy.answer_s)
        self._effects = Effects(
            store=self._store,
            releases=releases,
            delivery=delivery,
            serving=serving,
            device=self._device,
            policy=policy,
            trials=Trials(self._device, serving, settings, policy.spare_mb, launch),
            factory=self._factory.files,
            cache_dir=cache_dir,
            content=self._content,
        )

    def start(self) -> None:
        """Begin to follow, on a thread of its own."""
        self._thread.start()

    def stop(self) -> None:
        """End after the step under way, which is given up where that can be; a restart goes on from there.

        Whoever booted has to stop, even where nothing was started: a run without an end counts as a crash.
        """
        if self._watchdog is not None:
            self._watchdog.stop()
        self._ending.set()
        self._inbox.put(_Wake())
        if self._thread.is_alive():
            self._thread.join()
        if self._effects is not None:
            self._effects.close()
        try:
            self._changes.note_time(self._device.monotonic() - self._started_s)
            self._journal.end_run()
        except JournalError:
            log.exception("the end of this run cannot be noted; the next start takes it for a crash")
        self._journal.close()

    # --- commands, from any thread -----------------------------------------------------------------------------

    def follow(self, wanted: Sequence[Wanted], assignment: int) -> None:
        """Want what a trusted assignment wants, and nothing else any more.

        Args:
            wanted: at most one release of each name; other names stay as they are.
            assignment: its sequence number; an older one than is followed is ignored.
        """
        self._inbox.put(_Follow(tuple(wanted), assignment))

    def abort(self, name: str | None = None, detail: str = "on command") -> None:
        """Stop the change of `name`, or every one; its release is not tried again until it is told to."""
        self._inbox.put(_Abort(name, detail))

    def retry(self, name: str) -> None:
        """Forget what failed here under `name`, so that what is wanted is tried again."""
        self._inbox.put(_Retry(name))

    def reconnected(self) -> None:
        """The network is back: what waits for it goes on."""
        self._inbox.put(_Reconnected())

    def history(self, limit: int = 20) -> tuple[PastChange, ...]:
        """The latest changes with their steps and figures, newest first.

        Raises:
            JournalError: it cannot be read.
        """
        return self._journal.history(limit)

    # --- the updater's thread ----------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._ending.is_set():
            wait_s = self.turn()
            if wait_s > 0:
                self._listen(wait_s)

    def turn(self) -> float:
        """Do what is due; seconds after which there will be more, 0 for at once."""
        try:
            return self._turn()
        except JournalError:
            log.exception("the updater's journal refuses; nothing is done until it takes what is done")
        except Exception:  # an updater that stops is worse than a turn that fails
            log.exception("a turn of the updater failed")
        return _FAILED_S

    def _turn(self) -> float:
        self._obey()
        self._pass_time()
        self._offer_next()
        due = next(
            ((change, effect) for change in self._changes.unsettled if (effect := effect_of(change))), None
        )
        if due is not None:
            self._take_step(*due)
        elif self._is_untidy and not self._changes.unsettled:
            self._tidy()
        self._report()
        if due is not None:
            return 0.0
        return min([_IDLE_S, *(change.wait_s for change in self._changes.unsettled if change.wait_s > 0)])

    def _listen(self, timeout_s: float) -> None:
        try:
            self._commands.append(self._inbox.get(timeout=timeout_s))
        except queue.Empty:
            return

    def _obey(self) -> None:
        while not self._inbox.empty():
            self._commands.append(self._inbox.get())
        while self._commands:
            # A command that the journal refuses stays first in line.
            match self._commands[0]:
                case _Follow(wanted, assignment):
                    self._follow(wanted, assignment)
                case _Abort(name, detail):
                    for change in self._changes.unsettled:
                        if name in {None, change.name}:
                            self._apply(change.name, Abort(detail))
                case _Retry(name):
                    self._journal.forgive(name)
                case _Reconnected():
                    for change in self._changes.unsettled:
                        self._apply(change.name, Reconnected())
                case _Wake():
                    pass
            self._commands.popleft()

    def _follow(self, wanted: tuple[Wanted, ...], assignment: int) -> None:
        if assignment < self._assignment:
            log.warning("assignment %d is older than %d, which is followed", assignment, self._assignment)
            return
        self._journal.want(wanted, assignment)
        self._wanted, self._assignment = {item.name: item for item in wanted}, assignment
        self._has_news = True
        for change in self._changes.unsettled:
            item = self._wanted.get(change.name)
            if item is not None and item.is_same_release(change.wanted):
                self._apply(change.name, Offer(change.number, item, change.base))
            elif item is not None or change.state != "committed":
                self._apply(change.name, Supersede())

    def _pass_time(self) -> None:
        now_s = self._device.monotonic()
        elapsed_s, self._seen_s = now_s - self._seen_s, now_s
        if self._changes.pass_time(elapsed_s, online=self._device.is_online()):
            self._has_news = self._is_untidy = True
            self._tell_committed()
        if now_s - self._noted_s >= _NOTE_S:
            self._noted_s = now_s
            self._changes.note_time(now_s - self._started_s)

    def _offer_next(self) -> None:
        # Safe mode gets the first turn; where even the factory package fails, a newer release is the way out.
        if any(change.state != "safe_mode" or change.attempt == 1 for change in self._changes.unsettled):
            return
        for name, wanted in sorted(self._wanted.items()):
            base = self._serving_sha256(name)
            if wanted.sha256 != base and self._changes.offer(wanted, base, random.random()):  # noqa: S311
                self._has_news = True
                self._tidy()
                return

    def _serving_sha256(self, name: str) -> str | None:
        change = self._changes.get(name)
        sha256 = None if change is None else serves(change)
        if sha256 is None and name in self._factory.installed:
            return self._factory.installed[name].sha256
        return sha256

    def _take_step(self, change: Change, effect: Effect) -> None:
        effects = self._effects
        if effects is None:
            raise RuntimeError("the updater takes turns before it was attached")
        event = effects.run(effect, change, Context(lambda: self._is_cancelled(change), self._on_bytes))
        self._bytes = None
        # Time that passed meanwhile may have ended the state; then its outcome means nothing any more.
        if event is not None and self._is_current(change):
            self._apply(change.name, event)

    def _is_current(self, change: Change) -> bool:
        now = self._changes.get(change.name)
        return now is not None and (now.number, now.state, now.attempt) == (
            change.number,
            change.state,
            change.attempt,
        )

    def _is_cancelled(self, change: Change) -> bool:
        if self._device.monotonic() - self._noted_s >= _NOTE_S:
            try:
                self._pass_time()
            except JournalError:
                log.exception("the time that %s takes cannot be noted", change.state)
        return self._ending.is_set() or not self._inbox.empty() or not self._is_current(change)

    def _apply(self, name: str, event: Event) -> None:
        if self._changes.apply(name, event):
            self._has_news = self._is_untidy = True
            self._tell_committed()

    def _tell_committed(self) -> None:
        if self._content is None:
            return
        found: dict[str, InstalledPackage] = {}
        for name in {*self._factory.installed, *self._changes.names}:
            change = self._changes.get(name)
            sha256 = None if change is None else committed(change)
            try:
                package = self._factory.installed.get(name) if sha256 is None else self._store.get(sha256)
            except (PackageError, StoreError):
                log.exception("what %s brings along cannot be read", name)
                continue
            if package is not None:
                found[name] = package
        self._content.use(found)

    def _tidy(self) -> None:
        self._is_untidy = False
        if self._effects is None:
            return
        needed = {installed.sha256 for installed in self._factory.installed.values()}
        for name in self._changes.names:
            needed.add(self._serving_sha256(name) or "")
        for change in self._changes.unsettled:
            needed |= {change.base or "", change.wanted.sha256}
        self._effects.tidy(needed)

    # --- reports -----------------------------------------------------------------------------------------------

    def _on_bytes(self, done_bytes: int, total_bytes: int) -> None:
        self._bytes = (done_bytes, total_bytes)
        now_s = self._device.monotonic()
        if now_s - self._bytes_told_s >= _REPORT_BYTES_S:
            self._bytes_told_s = now_s
            self._has_news = True
            self._report()

    def _report(self) -> None:
        if not self._has_news:
            return
        try:
            report = self.reported()
            self._has_news = False
            self._on_report(report)
        except Exception:  # whoever listens must not stop the updater
            log.exception("a report failed")

    def reported(self) -> Reported:
        """What to report now; each call takes a sequence number.

        Raises:
            JournalError: the disk is full or broken.
        """
        names = {*self._factory.installed, *self._changes.names, *self._wanted}
        return Reported(
            device=self._device.facts.name,
            epoch=self._journal.epoch,
            seq=self._journal.next_seq(),
            assignment=self._assignment,
            models=report_models([self._status(name) for name in names]),
        )

    def _status(self, name: str) -> NameStatus:
        change = self._changes.get(name)
        is_fetching = change is not None and change.state == "fetching"
        return NameStatus(
            name=name,
            served=None if self._effects is None else self._effects.served(name),
            previous=self._previous(name),
            change=change,
            bytes_here=self._bytes if is_fetching else None,
        )

    def _previous(self, name: str) -> str | None:
        try:
            return self._store.digest("previous", name)
        except StoreError:
            return None  # a broken link is nothing to go back to
