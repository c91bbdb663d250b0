"""The steps of an update as they are really taken. Each can be repeated: a step that was done is done again in no time.

What always holds: a step ends in an event, never in an exception.

Left to others: which step is due (:mod:`edgeslm.agent.update.machine`), and how a candidate is tried
(:mod:`edgeslm.agent.update.trials`).
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from edgeslm.agent.ports import Activity
from edgeslm.agent.update import preflight
from edgeslm.agent.update.change import (
    Change,
    Effect,
    Event,
    FactoryServed,
    Failed,
    Fault,
    Fetched,
    Fits,
    Found,
    Healthy,
    Installed,
    Judged,
    NotYet,
    Ready,
    RolledBack,
    Swapped,
    Tried,
)
from edgeslm.agent.update.gate import COMPARES_NOTHING
from edgeslm.agent.update.held import HeldSubject
from edgeslm.agent.update.measuring import right_answers, supply_is_low
from edgeslm.agent.update.ports import Cancelled, Content, Delivery, Device, OnBytes, Releases, Serving
from edgeslm.agent.update.trials import Trials, golden_cases
from edgeslm.errors import (
    EdgeslmError,
    PackageError,
    StoreError,
    UpdateCause,
    UpdateError,
    UpdateInterruptedError,
)
from edgeslm.models.archive import sha256_file
from edgeslm.models.store import SLOTS, ModelStore
from edgeslm.runtime.weight_cache import BUNDLE_SUFFIX
from edgeslm.schema.installed import InstalledPackage
from edgeslm.schema.release import HeldRelease, ReleaseTarget
from edgeslm.schema.update import GatePolicy, UpdatePolicy

log = logging.getLogger(__name__)

_LOOK_AGAIN_S = 60.0
_WATCH_S = 5.0
_CHECKED_PROMPTS = 5
"""Golden prompts that a release answers once it serves, before it counts as swapped."""
_MIN_FAILED = 3
_FAILED_SHARE = 0.2
"""Prompts that the runtime may fail at in probation."""


@dataclass(frozen=True)
class Context:
    """What a step may ask and tell while it runs."""

    cancelled: Cancelled
    on_bytes: OnBytes


@dataclass(frozen=True)
class _Baseline:
    """How things were when the release of the change `number` began to serve."""

    number: int
    activity: Activity
    supply_was_low: bool


class Effects:
    """Takes the steps; on the updater's thread."""

    def __init__(
        self,
        *,
        store: ModelStore,
        releases: Releases,
        delivery: Delivery,
        serving: Serving,
        device: Device,
        policy: UpdatePolicy,
        trials: Trials,
        factory: Mapping[str, Path],
        cache_dir: Path | None,
        content: Content | None = None,
    ) -> None:
        """Take the parts.

        Args:
            content: judges what packages bring along.
            factory: package files to fall back to, by name.
            cache_dir: where the runtime keeps packed weights.
        """
        self._store = store
        self._releases = releases
        self._delivery = delivery
        self._serving = serving
        self._device = device
        self._policy = policy
        self._trials = trials
        self._factory = factory
        self._cache_dir = cache_dir
        self._content = content
        self._baseline: _Baseline | None = None
        self._steps: dict[Effect, Callable[[Change, Context], Event]] = {
            "find": self._find,
            "check_fit": self._check_fit,
            "fetch": self._fetch,
            "install": self._install,
            "check_window": self._check_window,
            "try": self._try,
            "measure": self._measure,
            "commit": self._commit,
            "watch": self._watch,
            "roll_back": self._roll_back,
            "serve_factory": self._serve_factory,
        }

    def run(self, effect: Effect, change: Change, context: Context) -> Event | None:
        """Take the step; ``None`` if it was interrupted."""
        try:
            return self._steps[effect](change, context)
        except UpdateInterruptedError:
            return None
        except EdgeslmError as error:
            return Failed(_fault(error))
        except Exception as error:  # an updater that stops is worse than a step that fails
            log.exception("%s of %s failed", effect, change.name)
            return Failed(Fault("internal", f"unexpected {type(error).__name__}: {error}"[:500]))

    def tidy(self, needed: Collection[str]) -> None:
        """Remove packages that are neither linked nor `needed`, and what was fetched for others than `needed`."""
        try:
            self._delivery.keep_only(needed)
            linked = {self._store.digest(slot, name) for slot in SLOTS for name in self._store.names(slot)}
            for sha256 in set(self._store.digests()) - linked - set(needed):
                self._store.remove(sha256)
            self._tidy_cache()
        except (EdgeslmError, OSError) as error:
            log.warning("cannot tidy up: %s", error)

    def _tidy_cache(self) -> None:
        """Remove packed weights of graphs that are gone, and what trials that were cut off left half packed."""
        if self._cache_dir is None or not self._cache_dir.is_dir():
            return
        graphs = {
            item.manifest.files[graph.file].sha256
            for item in self._store.list()
            for graph in item.manifest.graphs
        }
        for path in self._cache_dir.iterdir():
            is_gone = not any(graph.startswith(path.name[:32]) for graph in graphs)
            if path.suffix == BUNDLE_SUFFIX and is_gone:
                shutil.rmtree(path, ignore_errors=True)
                continue
            packed = path.suffix == ".xnnpack" and is_gone
            if packed or (path.suffix == ".tmp" and not path.name.endswith(f".{os.getpid()}.tmp")):
                path.unlink(missing_ok=True)

    def served(self, name: str) -> InstalledPackage | None:
        """The package that answers prompts for `name`."""
        return self._serving.served(name)

    def close(self) -> None:
        """End what is on trial."""
        self._trials.close()

    # --- before the trial --------------------------------------------------------------------------------------

    def _find(self, change: Change, context: Context) -> Event:
        held = self._find_installed(change.base)
        running = None
        if held is not None:
            manifest = held.manifest
            running = HeldRelease(version=manifest.version, security_floor=manifest.security_floor)
        target = self._releases.find(change.wanted, running, context.cancelled)
        if target.info.sha256 != change.wanted.sha256:
            raise UpdateError("the repository vouches for other bytes than assigned", cause="not_trusted")
        return Found(target)

    def _check_fit(self, change: Change, _: Context) -> Event:
        info = _target(change).info
        preflight.check_device(info.requires, self._device.facts)
        if self._find_whole(info.sha256) is None:
            preflight.check_room(info.size_bytes, shutil.disk_usage(self._store.root).free)
        return Fits()

    def _fetch(self, change: Change, context: Context) -> Event:
        target = _target(change)
        if self._find_whole(target.info.sha256) is not None:
            return Fetched("")
        held = self._find_installed(change.base)
        return Fetched(str(self._delivery.fetch(target, held, context.on_bytes, context.cancelled)))

    def _install(self, change: Change, _: Context) -> Event:
        installed = self._find_whole(change.wanted.sha256) or self._unpack(change)
        preflight.check_manifest(installed.manifest, _target(change), self._device.facts)
        if self._content is not None:
            self._content.check(installed)
        self._delivery.keep_only(())
        return Installed()

    def _unpack(self, change: Change) -> InstalledPackage:
        path, sha256 = Path(change.file), change.wanted.sha256
        try:
            return self._store.install(path, expected_sha256=sha256, verify=True)
        except PackageError as error:
            cause: UpdateCause = "bad_package" if _has_sha256(path, sha256) else "corrupt"
            self._delivery.keep_only(())
            raise UpdateError(str(error), cause=cause) from error

    def _check_window(self, change: Change, _: Context) -> Event:
        waits_for = self._closed(change) or self._device.may_try()
        if waits_for is None and supply_is_low(self._device):
            waits_for = "a supply that keeps its voltage"
        if waits_for is not None:
            return NotYet(_LOOK_AGAIN_S, waits_for)
        held = self._find_installed(change.base)
        mode = preflight.choose_mode(
            self._store.get(change.wanted.sha256).manifest.requires.ram_mb,
            None if held is None else held.manifest.requires.ram_mb,
            self._device.available_mb(),
            self._policy.spare_mb,
        )
        return Ready(mode)

    def _closed(self, change: Change) -> str | None:
        """What to wait for until the window is open; ``None`` if it is."""
        opens_at, closes_at = change.wanted.opens_at, change.wanted.closes_at
        if opens_at is None and closes_at is None:
            return None
        now = self._device.utc()
        if now is None:
            return "a clock that is set, to tell when the window opens"
        if opens_at is not None and now < opens_at:
            return f"the window that opens at {_shown(opens_at)}"
        if closes_at is not None and now > closes_at:
            return f"another window: the one assigned closed at {_shown(closes_at)}"
        return None

    # --- trial and gate ----------------------------------------------------------------------------------------

    def _try(self, change: Change, context: Context) -> Event:
        held = self._find_installed(change.base)
        candidate = self._store.get(change.wanted.sha256)
        if change.mode == "swap":
            self._trials.begin_swapped(change.name, held, candidate, self._gate(change), context.cancelled)
        else:
            self._trials.begin_beside(held, candidate, context.cancelled)
        return Tried()

    def _measure(self, change: Change, context: Context) -> Event:
        return Judged(self._trials.measure(self._gate(change), context.cancelled))

    def _gate(self, change: Change) -> GatePolicy:
        return COMPARES_NOTHING if change.wanted.is_return else self._policy.gate

    # --- commit and probation ----------------------------------------------------------------------------------

    def _commit(self, change: Change, context: Context) -> Event:
        self._trials.close()
        installed = self._store.set_current(change.name, change.wanted.sha256)
        try:
            swap_s = self._serving.swap(change.name, installed, beside=change.mode == "beside")
            self._baseline = self._look(change)
            self._check_answers(change, installed, context)
        except UpdateError:
            raise
        except EdgeslmError as error:
            raise UpdateError(f"it cannot serve: {error}", cause="swap_failed") from error
        return Swapped(swap_s)

    def _check_answers(self, change: Change, installed: InstalledPackage, context: Context) -> None:
        """Make sure that what answered rightly in its trial does so in the agent as well."""
        criteria = change.verdict.criteria if change.verdict is not None else ()
        if not any(item.name == "answers" and item.new for item in criteria):
            return
        cases = golden_cases(installed)[:_CHECKED_PROMPTS]
        right = right_answers(HeldSubject(self._serving, change.name), cases, context.cancelled)
        if not any(right):
            raise UpdateError(f"none of {len(right)} golden prompts is right any more", cause="unhealthy")

    def _watch(self, change: Change, _: Context) -> Event:
        if self._baseline is None or self._baseline.number != change.number:
            self._baseline = self._look(change)
        before, now = self._baseline.activity, self._serving.activity(change.name)
        failed, begun = now.failed - before.failed, now.begun - before.begun
        if failed >= _MIN_FAILED and failed >= _FAILED_SHARE * begun:
            raise UpdateError(f"it failed at {failed} of {begun} prompts", cause="unhealthy")
        if supply_is_low(self._device) and not self._baseline.supply_was_low:
            raise UpdateError("the supply gives way since it serves", cause="under_voltage")
        return Healthy() if change.served_s >= self._policy.probation_s else NotYet(_WATCH_S, "")

    def _look(self, change: Change) -> _Baseline:
        return _Baseline(change.number, self._serving.activity(change.name), supply_is_low(self._device))

    # --- the way back ------------------------------------------------------------------------------------------

    def _roll_back(self, change: Change, _: Context) -> Event:
        self._trials.close()
        if change.base is None:
            self._serving.withdraw(change.name)
            self._store.drop_current(change.name)
            return RolledBack()
        try:
            base = self._store.get(change.base)
            if not self._is_served(base):
                self._store.verify(base)
        except (PackageError, StoreError) as error:
            raise UpdateError(str(error), cause="damaged") from error
        self._serve(base, beside=change.mode == "beside")
        if self._store.digest("previous", change.name) == change.wanted.sha256:
            self._store.drop_previous(change.name)
        return RolledBack()

    def _serve_factory(self, change: Change, _: Context) -> Event:
        path = self._factory.get(change.name)
        if path is None:
            self._serving.withdraw(change.name)
            self._store.drop_current(change.name)
        else:
            self._serve(self._store.install(path, verify=True), beside=False)
            self._store.drop_previous(change.name)  # whichever it is, it has failed
        return FactoryServed()

    def _serve(self, installed: InstalledPackage, *, beside: bool) -> None:
        name = installed.manifest.name
        self._serving.swap(name, installed, beside=beside)
        self._store.set_current(name, installed.sha256)

    # --- parts -------------------------------------------------------------------------------------------------

    def _is_served(self, installed: InstalledPackage) -> bool:
        served = self._serving.served(installed.manifest.name)
        return served is not None and served.sha256 == installed.sha256

    def _find_installed(self, sha256: str | None) -> InstalledPackage | None:
        if sha256 is None or not self._store.contains(sha256):
            return None
        try:
            return self._store.get(sha256)
        except PackageError:
            return None  # as good as none: it is fetched again

    def _find_whole(self, sha256: str) -> InstalledPackage | None:
        """An installed package of which every byte is right."""
        found = self._find_installed(sha256)
        try:
            if found is not None:
                self._store.verify(found)
        except PackageError:
            return None
        return found


def _target(change: Change) -> ReleaseTarget:
    if change.target is None:
        raise UpdateError("the release was not found yet", cause="internal")
    return change.target


def _has_sha256(path: Path, sha256: str) -> bool:
    try:
        return sha256_file(path) == sha256
    except PackageError:
        return False


def _shown(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%d %H:%M UTC")


def _fault(error: EdgeslmError) -> Fault:
    detail = str(error)[:500]
    if isinstance(error, UpdateError):
        return Fault(error.cause, detail, error.retry_after_s)
    if isinstance(error, StoreError):
        system = error.__cause__
        full = isinstance(system, OSError) and system.errno in {errno.ENOSPC, errno.EDQUOT}
        return Fault("no_room" if full or error.needed_bytes is not None else "internal", detail)
    return Fault("damaged" if isinstance(error, PackageError) else "internal", detail)
