"""The changes of all names, journalled: every one is on the card before anybody acts on it.

Left to others: what becomes of a change (:mod:`edgeslm.agent.update.machine`), and acting on it
(:mod:`edgeslm.agent.update.updater`).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import replace

from edgeslm.agent.update.change import Change, Event, Failed, Fault, Offer, Started, Tick, Wanted
from edgeslm.agent.update.journal import UpdateJournal
from edgeslm.agent.update.machine import may_begin, serves, step
from edgeslm.errors import JournalError, PackageError, StoreError
from edgeslm.models.store import ModelStore
from edgeslm.schema.installed import InstalledPackage
from edgeslm.schema.update import UpdatePolicy

log = logging.getLogger(__name__)


class Changes:
    """The latest change of each name. For the updater's thread, and before that thread runs."""

    def __init__(self, journal: UpdateJournal, store: ModelStore, policy: UpdatePolicy) -> None:
        """Read the journal.

        Raises:
            JournalError: it cannot be read.
        """
        self._journal = journal
        self._store = store
        self._policy = policy
        self._latest = journal.latest()

    def get(self, name: str) -> Change | None:
        """The latest change of `name`."""
        return self._latest.get(name)

    @property
    def names(self) -> tuple[str, ...]:
        """Names that ever changed."""
        return tuple(sorted(self._latest))

    @property
    def unsettled(self) -> tuple[Change, ...]:
        """Changes under way, oldest first."""
        found = [change for change in self._latest.values() if not change.settled]
        return tuple(sorted(found, key=lambda change: change.number))

    def apply(self, name: str, event: Event) -> bool:
        """Let `event` happen to the change of `name`; whether it made a difference that others should hear of.

        Raises:
            JournalError: the disk is full or broken; the change stands as it did.
        """
        before = self._latest.get(name)
        after = step(before, event, self._policy)
        if after is None or after == before:
            return False
        if before is not None and _timeless(after) == _timeless(before):
            self._latest[name] = after
            return False
        self._journal.save(after, time.time())
        self._latest[name] = after
        if before is None or (before.state, before.attempt) != (after.state, after.attempt) or after.settled:
            _tell(after)
        return True

    def pass_time(self, elapsed_s: float, *, online: bool) -> bool:
        """Let time pass for all changes under way; whether that made a difference.

        Raises:
            JournalError: the disk is full or broken.
        """
        changed = [self.apply(change.name, Tick(elapsed_s, online)) for change in self.unsettled]
        return any(changed)

    def note_time(self, ran_s: float) -> None:
        """Write how long this run and the states of changes last.

        Raises:
            JournalError: the disk is full or broken.
        """
        self._journal.note_time(self.unsettled, ran_s)

    def offer(self, wanted: Wanted, base: str | None, jitter: float) -> bool:
        """Begin a change to `wanted`, unless it failed here before; whether it begins.

        Raises:
            JournalError: the disk is full or broken.
        """
        if not may_begin(wanted, self._journal.denial(wanted.name, wanted.sha256)):
            return False
        return self.apply(wanted.name, Offer(self._journal.next_number(), wanted, base, jitter))

    # --- starts ------------------------------------------------------------------------------------------------

    def start(self, boot_id: str) -> None:
        """A run begins: take into account how the last one ended. A journal that refuses is no reason not to serve."""
        try:
            last = self._journal.begin_run(boot_id)
        except JournalError:
            log.exception("the start of this run cannot be noted")
            return
        event = Started(crashed=not last.clean, rebooted=last.boot_id != boot_id, ran_s=last.ran_s)
        for change in self.unsettled:
            self._force(change.name, event)

    def adopt(self, installed: InstalledPackage) -> None:
        """Take note that a package serves though no journal tells how it came to that: the journal was lost."""
        name, version = installed.manifest.name, installed.manifest.version
        wanted = Wanted(name, version, installed.sha256, assignment=0)
        found = Change(self._journal.next_number(), wanted, base=None, state="committed", settled=True)
        self._latest[name] = found
        self._journal.save(found, time.time())

    def package(self, name: str, factory: Mapping[str, InstalledPackage]) -> InstalledPackage | None:
        """The package that has to serve `name`: whole, or the next best one that is; ``None`` where there is none."""
        while (change := self._latest.get(name)) is not None and (sha256 := serves(change)) is not None:
            try:
                return self._store.get(sha256)
            except (PackageError, StoreError) as error:
                # Each time this leads further back: to what served before, then to the factory package.
                self._force(name, Failed(Fault("damaged", str(error)[:500])))
        return factory.get(name)

    def load_failed(self, name: str, detail: str) -> None:
        """The package that has to serve `name` does not load."""
        change = self._latest.get(name)
        if change is not None:
            probation = change.state == "committed" and not change.settled
            self._force(name, Failed(Fault("load_failed" if probation else "damaged", detail[:500])))

    def _force(self, name: str, event: Event) -> None:
        """As :meth:`apply`, whether or not the journal takes it: something has to serve."""
        try:
            self.apply(name, event)
        except JournalError:
            log.exception("the state of %s cannot be journalled", name)
            after = step(self._latest.get(name), event, self._policy)
            if after is not None:
                self._latest[name] = after


def _timeless(change: Change) -> Change:
    return replace(change, spent_s=0.0, served_s=0.0, wait_s=0.0)


def _tell(change: Change) -> None:
    fault = f": {change.fault.cause}, {change.fault.detail}" if change.fault is not None else ""
    log.info("%s %s is %s%s", change.name, change.wanted.version, change.state, fault)
