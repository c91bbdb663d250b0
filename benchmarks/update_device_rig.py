"""A device without a broker, for tests and benchmarks of its updater: real packages, store, delivery, trials, models.

Left out are the network (files come from a directory, through the real fetcher) and signatures (:class:`Vouching`
vouches for what the test says). The clock is simulated: waiting takes no time, computing does.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
import zipfile
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import Any

import edgeslm
from edgeslm.agent.ports import Activity, Model
from edgeslm.agent.update.change import Wanted
from edgeslm.agent.update.child import Launch, launch_trial
from edgeslm.agent.update.journal import UpdateJournal
from edgeslm.agent.update.ports import (
    BoardEnergy,
    Cancelled,
    Content,
    DeviceFacts,
    OnBytes,
    Serving,
)
from edgeslm.agent.update.updater import Updater
from edgeslm.delivery.chunks import write_map
from edgeslm.delivery.fetcher import Fetcher
from edgeslm.delivery.file_source import FileSource
from edgeslm.errors import (
    DeliveryCancelledError,
    DeliveryError,
    DeliveryRoomError,
    EdgeslmError,
    LyingSourceError,
    UnknownModelError,
    UpdateCause,
    UpdateError,
    UpdateInterruptedError,
)
from edgeslm.models.packing import pack
from edgeslm.models.store import ModelStore
from edgeslm.power.port import Vitals
from edgeslm.runtime.backend import installed_runtimes
from edgeslm.runtime.model import LoadedModel, load_model
from edgeslm.schema.base import version_key
from edgeslm.schema.delivery import BlobRef, DeliveryPolicy
from edgeslm.schema.installed import InstalledPackage
from edgeslm.schema.release import HeldRelease, ReleaseInfo, ReleaseRequirements, ReleaseTarget, SideFile
from edgeslm.schema.update import Reported, UpdatePolicy

NAME = "home-command"
GRAPH = "home-command-tflite.tflite"
"""The graph that every runtime loads."""
RULES_FILE = "rules.home.yaml"
FAST = UpdatePolicy.model_validate(
    {
        "gate": {
            "speed": 10.0,
            "energy": None,
            "memory": 10.0,
            "min_rounds": 4,
            "max_rounds": 4,
            "block_s": 0.005,
            "cool_s": 0.0,
            "inconclusive": "commit",
        },
        "probation_s": 20.0,
        "retry_s": 1.0,
        "max_retry_s": 4.0,
        "load_s": 30.0,
        "answer_s": 10.0,
    }
)
"""So that a gate takes a second: nothing but answers is really judged."""


@dataclass(frozen=True)
class Release:
    """A package file with what a repository says about it."""

    path: Path
    target: ReleaseTarget
    blob: BlobRef

    def wanted(self, assignment: int, **changes: Any) -> Wanted:
        """An assignment of it."""
        info = self.target.info
        return replace(Wanted(info.name, info.version, info.sha256, assignment), **changes)


def make_release(
    directory: Path,
    version: str,
    *,
    golden: int = 8,
    change: Callable[[dict[str, Any]], None] | None = None,
    rules: str | None = None,
) -> Release:
    """The model that ships, with one graph and few golden prompts, under another version, with its chunk map.

    Args:
        directory: where files come from.
        version: of the release.
        golden: number of golden prompts.
        change: may change the draft of the manifest.
        rules: a file of rules that it brings.
    """
    directory.mkdir(parents=True, exist_ok=True)
    sources = directory / f".{version}"
    sources.mkdir()
    with zipfile.ZipFile(str(resources.files("edgeslm._packages") / f"{NAME}.slm")) as archive:
        draft = json.loads(archive.read("manifest.json"))
        archive.extractall(sources)
    draft["version"] = version
    draft["graphs"] = [graph for graph in draft["graphs"] if graph["file"] == GRAPH]
    members = {"LICENSE", "golden.jsonl", GRAPH, "tokenizer.json"} & draft.pop("files").keys()
    lines = (sources / "golden.jsonl").read_text("utf-8").splitlines()
    (sources / "golden.jsonl").write_text("\n".join(lines[:golden]) + "\n", "utf-8")
    if rules is not None:
        (sources / RULES_FILE).write_text(rules)
        members |= {RULES_FILE}
        draft["rules"] = [RULES_FILE]
    if change is not None:
        change(draft)
    path = directory / f"{NAME}-{version}.slm"
    sha256 = pack(draft, {name: sources / name for name in members}, path)
    blob = write_map(path)
    chunks = path.with_name(f"{path.name}.chunks")
    requires = ReleaseRequirements(
        ram_mb=draft["requires"]["ram_mb"],
        cpu_features=(),
        agent=draft["requires"]["agent"],
        runtimes=tuple(draft["graphs"][0]["runtimes"]),
    )
    info = ReleaseInfo(
        name=NAME,
        version=version,
        task="generate",
        sha256=sha256,
        size_bytes=path.stat().st_size,
        security_floor="0.0.0",
        requires=requires,
        chunks=SideFile(
            sha256=hashlib.sha256(chunks.read_bytes()).hexdigest(), size_bytes=chunks.stat().st_size
        ),
    )
    return Release(path, ReleaseTarget(role="targets", info=info, floor="0.0.0"), blob)


class Vouching:
    """``Releases`` of what it is given; `refuses` stands for what real metadata may be refused for."""

    def __init__(self, *releases: Release) -> None:
        self.releases = {(r.target.info.name, r.target.info.version): r for r in releases}
        self.refuses: UpdateError | None = None

    def find(self, wanted: Wanted, held: HeldRelease | None, cancelled: Cancelled) -> ReleaseTarget:
        """See ``Releases``."""
        del cancelled
        if self.refuses is not None:
            raise self.refuses
        found = self.releases.get((wanted.name, wanted.version))
        if found is None:
            raise UpdateError(f"nobody vouches for {wanted.name} {wanted.version}", cause="not_trusted")
        older = held is not None and version_key(wanted.version) < version_key(held.version)
        if older and not wanted.allow_downgrade:
            raise UpdateError("older than what runs", cause="unsafe_version")
        return found.target


class _Flag:
    """A ``Cancel`` that asks."""

    def __init__(self, cancelled: Cancelled) -> None:
        self._cancelled = cancelled

    def is_set(self) -> bool:
        return self._cancelled()

    def wait(self, timeout: float | None = None) -> bool:
        time.sleep(min(timeout or 0.0, 0.01))
        return self._cancelled()


class RigDelivery:
    """``Delivery`` by the real fetcher from a directory."""

    def __init__(self, directory: Path, source: Path, releases: Vouching) -> None:
        self.fetcher = Fetcher(directory)
        self._source = source
        self._releases = releases
        self.fetched = 0

    def fetch(
        self, target: ReleaseTarget, held: InstalledPackage | None, on_bytes: OnBytes, cancelled: Cancelled
    ) -> Path:
        """See ``Delivery``."""
        del held
        self.fetched += 1
        blob = self._releases.releases[target.info.name, target.info.version].blob
        policy = DeliveryPolicy(retry_s=0.01, max_retry_s=0.02, deadline_s=0.5)
        try:
            return self.fetcher.fetch(
                blob,
                [FileSource(self._source)],
                policy,
                lambda progress: on_bytes(progress.done_bytes, progress.blob.size_bytes),
                _Flag(cancelled),
            )
        except DeliveryCancelledError as error:
            raise UpdateInterruptedError from error
        except DeliveryError as error:
            cause: UpdateCause = "unreachable"
            if isinstance(error, DeliveryRoomError):
                cause = "no_room"
            elif isinstance(error, LyingSourceError):
                cause = "corrupt"
            raise UpdateError(str(error), cause=cause) from error

    def keep_only(self, sha256s: Collection[str]) -> None:
        """See ``Delivery``."""
        try:
            self.fetcher.keep_only(sha256s)
        except DeliveryError as error:
            raise UpdateError(str(error), cause="internal") from error


class RigServing:
    """``Serving`` of real models in this process, without a queue."""

    def __init__(self, cache_dir: Path) -> None:
        self._cache_dir = cache_dir
        self._lock = threading.Lock()
        self.models: dict[str, LoadedModel] = {}
        self.failed = self.begun = 0
        self.swaps: list[tuple[str, float]] = []
        self.refuses: EdgeslmError | None = None

    def load(self, installed: InstalledPackage) -> None:
        """Serve `installed`, as the agent does when it starts."""
        self.models[installed.manifest.name] = load_model(installed, cache_dir=self._cache_dir)

    def served(self, name: str) -> InstalledPackage | None:
        """See ``Serving``."""
        model = self.models.get(name)
        return None if model is None else model.installed

    def swap(self, name: str, installed: InstalledPackage, *, beside: bool) -> float:
        """See ``Serving``."""
        old = self.models.get(name)
        if old is not None and old.installed.sha256 == installed.sha256:
            return 0.0
        if self.refuses is not None:
            raise self.refuses
        began_s = time.perf_counter()
        if not beside:
            self.models.pop(name, None)
        try:
            new = load_model(installed, cache_dir=self._cache_dir)
        except EdgeslmError:
            if old is not None:
                self.models[name] = old
            raise
        loaded_s = time.perf_counter()
        with self._lock:
            self.models[name] = new
        swap_s = time.perf_counter() - (loaded_s if beside else began_s)
        self.swaps.append((installed.sha256, swap_s))
        return swap_s

    def withdraw(self, name: str) -> None:
        """See ``Serving``."""
        self.models.pop(name, None)

    @contextmanager
    def hold(self, name: str) -> Iterator[Model]:
        """See ``Serving``."""
        with self._lock:
            if name not in self.models:
                raise UnknownModelError(f"{name} is not served")
            yield self.models[name]

    def activity(self, name: str) -> Activity:
        """See ``Serving``."""
        del name
        return self.any_activity()

    def any_activity(self) -> Activity:
        """See ``Serving``."""
        return Activity(self.begun, self.failed, is_busy=False)


@dataclass
class RigDevice:
    """``Device`` of this machine, with what a test wants to be otherwise."""

    energy: BoardEnergy | None = None
    memory_mb: int | None = None
    online: bool = True
    now: datetime | None = datetime(2026, 12, 1, 12, 0, tzinfo=UTC)
    shown: Vitals = field(default_factory=lambda: Vitals(0.0))
    forbids: str | None = None
    facts: DeviceFacts = field(
        default_factory=lambda: DeviceFacts(
            "dev1",
            edgeslm.__version__,
            frozenset(),
            tuple(runtime.kind for runtime in installed_runtimes()),
            0,
            1,
        )
    )
    skipped_s: float = field(default=0.0, init=False)

    def vitals(self) -> Vitals:
        """See ``Device``."""
        return self.shown

    def available_mb(self) -> int | None:
        """See ``Device``."""
        return self.memory_mb

    def is_online(self) -> bool:
        """See ``Device``."""
        return self.online

    def utc(self) -> datetime | None:
        """See ``Device``."""
        return self.now

    def may_try(self) -> str | None:
        """See ``Device``."""
        return self.forbids

    def monotonic(self) -> float:
        """See ``Device``."""
        return time.monotonic() + self.skipped_s

    def sleep(self, seconds: float) -> None:
        """See ``Device``; takes no time."""
        self.skipped_s += seconds


class Run:
    """One run of the agent on a state directory, from start to stop, or to a cut.

    Attributes:
        packages: what was served at the start.
        reports: what was reported, in order.
    """

    def __init__(
        self,
        state_dir: Path,
        factory: Sequence[Path],
        source: Path,
        releases: Vouching,
        *,
        policy: UpdatePolicy = FAST,
        device: RigDevice | None = None,
        boot: str = "boot-1",
        launch: Launch = launch_trial,
        content: Content | None = None,
    ) -> None:
        self._stopped = False
        self.device = device or RigDevice()
        self.store = ModelStore(state_dir / "models")
        self.reports: list[Reported] = []
        self.updater = Updater(
            UpdateJournal(state_dir / "update.db"),
            self.store,
            self.device,
            policy,
            factory,
            on_report=self.reports.append,
            boot_id=boot,
            content=content,
        )
        self.serving = RigServing(state_dir / "cache")
        self.packages = self.updater.boot()
        for installed in self.packages.values():
            following: InstalledPackage | None = installed
            while following is not None:
                try:
                    self.serving.load(following)
                    break
                except EdgeslmError as error:
                    following = self.updater.load_failed(following, str(error))
        self.delivery = RigDelivery(state_dir / "fetched", source, releases)
        self.updater.attach(
            releases,
            self.delivery,
            self.serving,
            runtime="auto",
            cache_dir=state_dir / "cache",
            launch=launch,
        )

    def turn(self, most: int = 1000, until: Callable[[], bool] = lambda: False) -> None:
        """Take turns until there is nothing left to do, or `until`; waiting takes no time."""
        idle = 0
        for _ in range(most):
            if until():
                return
            wait_s = self.updater.turn()
            self.device.sleep(wait_s)
            settled = all(item.change is None or item.change.settled for item in self.report().models)
            idle = idle + 1 if wait_s > 0 and settled else 0
            if idle > 1:
                return
        raise AssertionError(f"no end after {most} turns: {self.report()}")

    def report(self) -> Reported:
        """The latest report."""
        return self.reports[-1] if self.reports else self.updater.reported()

    def state(self, name: str = NAME) -> str:
        """State of the latest change of `name`; empty if it never changed."""
        change = next(item.change for item in self.report().models if item.name == name)
        return "" if change is None else change.state

    def serves(self, name: str = NAME) -> str | None:
        """sha256 of what serves `name`."""
        installed = self.serving.served(name)
        return None if installed is None else installed.sha256

    def stop(self) -> None:
        """End as it should. Idempotent."""
        if not self._stopped:
            self._stopped = True
            self.updater.stop()


def measure_swap(serving: Serving, one: InstalledPackage, other: InstalledPackage, times: int = 10) -> float:
    """The longest time in which no prompt could begin, in seconds, over swaps there and back.

    Args:
        serving: serves `one`, and does so again in the end.
        one: installed package,
        other: and another of the same name.
        times: there and back.
    """
    name = one.manifest.name
    return max(
        serving.swap(name, installed, beside=beside)
        for beside in (True, False)
        for _ in range(times)
        for installed in (other, one)
    )
