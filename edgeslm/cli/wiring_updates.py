"""Puts the updater of an agent together: what it needs of trust, delivery and board, by the parts that provide it.

What always holds: an error that leaves one of these adapters is an ``UpdateError`` with its cause.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import edgeslm
from edgeslm import topics
from edgeslm.agent.following import Assigned, Following, Judge, Reports
from edgeslm.agent.ports import Message
from edgeslm.agent.update.change import Wanted
from edgeslm.agent.update.journal import UpdateJournal
from edgeslm.agent.update.ports import Cancelled, Content, DeviceFacts, EnergyCount, OnBytes
from edgeslm.agent.update.updater import Updater
from edgeslm.agent.update.watchdog import Watchdog, kernel_alarm
from edgeslm.cli.wiring import CACHE_NAME
from edgeslm.clock import clock_is_set
from edgeslm.delivery.deliver import deliver
from edgeslm.delivery.fetcher import Fetcher
from edgeslm.delivery.file_source import FileSource
from edgeslm.delivery.http_source import HttpSource, blob_path
from edgeslm.delivery.mqtt_source import MqttSource
from edgeslm.delivery.policy import Conditions
from edgeslm.delivery.port import BlockSource, Polled, Progress
from edgeslm.errors import (
    DeliveryCancelledError,
    DeliveryDiskError,
    DeliveryError,
    DeliveryRoomError,
    DeltaError,
    EdgeslmError,
    LinkError,
    LyingSourceError,
    MetadataFetchError,
    PackageError,
    StoreError,
    TrustStateError,
    UpdateCause,
    UpdateError,
    UpdateInterruptedError,
)
from edgeslm.models.delta import apply_delta
from edgeslm.models.store import ModelStore
from edgeslm.power.attribution import Interval
from edgeslm.power.port import Vitals
from edgeslm.procfs import boot_id, cpu_flags, memory_kib
from edgeslm.runtime.backend import installed_kinds
from edgeslm.schema.budget import BatteryBudget
from edgeslm.schema.config import BROKER_RELEASES, AgentConfig, UpdatesConfig
from edgeslm.schema.delivery import BlobRef, DeliveryTarget, DeltaRef
from edgeslm.schema.installed import InstalledPackage
from edgeslm.schema.release import CheckResult, HeldRelease, Refusal, ReleaseInfo, ReleaseTarget
from edgeslm.trust.fetch import DirectoryFetch, Fetch, HttpFetch
from edgeslm.trust.identity import Identity
from edgeslm.trust.mqtt_fetch import MqttFetch
from edgeslm.trust.storage import ENROLLED, TrustStorage

if TYPE_CHECKING:
    from edgeslm.agent.ports import Model
    from edgeslm.agent.power_side import PowerSide
    from edgeslm.agent.service import Agent
    from edgeslm.agent.serving import ServedModels
    from edgeslm.power.monitor import PowerMonitor
    from edgeslm.schema.board import Board

log = logging.getLogger(__name__)

JOURNAL_NAME = "update.db"
_ASSIGNED_NAME, _TRUST_NAME, _FETCHED_NAME = "assigned.json", "trust", "fetched"
_MAX_ROOT_BYTES = 65_536
_UNREACHABLE = frozenset({"MetadataFetchError", "MetadataMissingError", "SlowRetrievalError"})
_UNSAFE = frozenset({"SecurityFloorError", "DowngradeError"})


def is_address(where: str) -> bool:
    """Whether a repository is reached over HTTP."""
    return where.startswith(("http://", "https://"))


def fetch_from(releases: str) -> Fetch:
    """Gets files of the repository at an address or in a directory.

    Raises:
        UsageError: `releases` is no address that can be.
    """
    return HttpFetch(releases) if is_address(releases) else DirectoryFetch(Path(releases))


# --- trust --------------------------------------------------------------------------------------------------


class CheckedReleases:
    """``Releases`` of the updater: what the repository says about the assignment that is followed."""

    def __init__(self, judge: Judge, assigned: Assigned) -> None:
        self._judge = judge
        self._assigned = assigned

    def find(self, wanted: Wanted, held: HeldRelease | None, cancelled: Cancelled) -> ReleaseTarget:
        """See ``Releases``."""
        if not self._assigned.body:
            raise UpdateError("the assignment has yet to come again", cause="unreachable")
        running = {} if held is None else {wanted.name: held}
        try:
            result = self._judge.judge(self._assigned.body, wanted.assignment, running, cancelled)
        except TrustStateError as error:
            raise UpdateError(str(error), cause="internal") from error
        return _vouched(result, wanted)


def _vouched(result: CheckResult, wanted: Wanted) -> ReleaseTarget:
    """The release in `result`, or why nobody vouches for it."""
    found = next((item for item in result.releases if item.name == wanted.name), None)
    if found is not None and found.target is not None and found.target.info.sha256 == wanted.sha256:
        return found.target
    refusals = [result.assignment_refused if found is None else found.refused, result.refresh_refused]
    named = [refusal for refusal in refusals if refusal is not None]
    detail = "; ".join(refusal.message for refusal in named) or "the assignment says otherwise by now"
    raise UpdateError(detail, cause=_cause(named))


def _cause(refusals: Sequence[Refusal]) -> UpdateCause:
    names = {refusal.error for refusal in refusals}
    if names & _UNSAFE:
        return "unsafe_version"
    return "unreachable" if names & _UNREACHABLE else "not_trusted"


def prepare_trust(directory: Path, root: Path) -> None:
    """Let the trusted metadata in `directory` begin with the root that came with the identity.

    Raises:
        MetadataError: that is no root.
        TrustStateError: the disk refuses.
    """
    storage = TrustStorage(directory)
    try:
        data = root.read_bytes()
    except OSError as error:
        raise TrustStateError(f"{root}: {error.strerror}", path=str(root)) from error
    if storage.read(ENROLLED, _MAX_ROOT_BYTES) != data:
        # Loads the libraries that judge signatures, so only once in the life of an identity.
        from edgeslm.trust.releases import enrol  # noqa: PLC0415

        enrol(storage, data, replace=True)


class BrokerFetch(MqttFetch):
    """Metadata from the fleet over the broker that the agent is connected to anyway."""

    def __init__(self, fleet: str, device: str) -> None:
        super().__init__(self._publish)
        self._names = (fleet, device)
        self._agent: Agent | None = None
        self._heard: set[str] = set()

    def attach(self, agent: Agent) -> None:
        """Take the agent, without which nothing can be had."""
        self._agent = agent

    def __call__(self, path: str, max_bytes: int) -> bytes:
        """See ``Fetch``."""
        try:
            return super().__call__(path, max_bytes)
        finally:
            for name in self._heard:
                if self._agent is not None:
                    self._agent.unlisten(topics.id_topic(*self._names, "blocks", name))
            self._heard.clear()

    def _publish(self, name: str, payload: bytes) -> None:
        agent = self._agent
        if agent is None or not agent.wait_connected(0):
            raise MetadataFetchError("the broker cannot be reached", path=name)
        try:
            if name not in self._heard:
                self._heard.add(name)
                topic = topics.id_topic(*self._names, "blocks", name)
                agent.listen(topic, lambda message: self.offer(name, message.payload))
            agent.publish(Message(topics.id_topic(*self._names, "fetch", name), payload, qos=0))
        except LinkError as error:
            raise MetadataFetchError(f"the broker: {error.message}", path=name) from error


# --- delivery -----------------------------------------------------------------------------------------------


class BrokerSource(MqttSource):
    """Blocks from the fleet over the broker that the agent is connected to anyway."""

    def __init__(self, agent: Agent, fleet: str, device: str) -> None:
        super().__init__(self._publish, name="the broker")
        self._agent = agent
        self._names = (fleet, device)
        self._heard: set[str] = set()

    def close(self) -> None:
        """See ``BlockSource``."""
        for sha256 in self._heard:
            self._agent.unlisten(topics.id_topic(*self._names, "blocks", sha256))
        self._heard.clear()
        super().close()

    def _publish(self, sha256: str, payload: bytes) -> None:
        if sha256 not in self._heard:
            self._heard.add(sha256)
            topic = topics.id_topic(*self._names, "blocks", sha256)
            self._agent.listen(topic, lambda message: self.offer(sha256, message.payload))
        self._agent.publish(Message(topics.id_topic(*self._names, "fetch", sha256), payload, qos=0))


class FetchedDelivery:
    """``Delivery`` of the updater: from caches, repository or broker, as a delta where that moves less."""

    def __init__(
        self,
        fetcher: Fetcher,
        store: ModelStore,
        config: UpdatesConfig,
        releases: str,
        broker: Callable[[], BlockSource] | None = None,
    ) -> None:
        """Take the parts.

        Args:
            releases: address or directory of the repository, or ``mqtt:``.
            broker: makes the source that is asked last.
        """
        self._broker = broker
        self._fetcher = fetcher
        self._store = store
        self._config = config
        self._releases = releases

    def fetch(
        self, target: ReleaseTarget, held: InstalledPackage | None, on_bytes: OnBytes, cancelled: Cancelled
    ) -> Path:
        """See ``Delivery``."""

        def told(progress: Progress) -> None:
            on_bytes(progress.done_bytes, progress.blob.size_bytes)

        try:
            with ExitStack() as stack:
                sources = self._sources(target.info)
                for source in sources:
                    stack.callback(source.close)
                return deliver(
                    delivery_target(target.info),
                    sources,
                    self._config.delivery,
                    self._fetcher,
                    have=() if held is None else (held.sha256,),
                    rebuild=self._rebuild,
                    conditions=self._conditions,
                    progress=told,
                    cancelled=Polled(cancelled),
                )
        except DeliveryCancelledError as error:
            raise UpdateInterruptedError from error
        except DeliveryError as error:
            raise _not_delivered(error) from error

    def keep_only(self, sha256s: Collection[str]) -> None:
        """See ``Delivery``."""
        try:
            self._fetcher.keep_only(sha256s)
        except DeliveryError as error:
            raise UpdateError(str(error), cause="internal") from error

    def _sources(self, info: ReleaseInfo) -> list[BlockSource]:
        near: list[BlockSource] = [
            HttpSource(where, reach="lan") if is_address(where) else FileSource(Path(where))
            for where in self._config.sources
        ]
        return [*near, *self._repository(info), *([] if self._broker is None else [self._broker()])]

    def _repository(self, info: ReleaseInfo) -> list[BlockSource]:
        if self._releases == BROKER_RELEASES:
            return []
        if not is_address(self._releases):
            # One that is not there would be waited for, while others may have the file.
            directory = (Path(self._releases) / info.file_path).parent
            return [FileSource(directory)] if directory.is_dir() else []
        paths = _paths(info)
        return [HttpSource(self._releases, path=lambda blob: paths.get(blob.sha256) or blob_path(blob))]

    def _conditions(self) -> Conditions:
        return Conditions(self._config.is_metered, datetime.now().astimezone())

    def _rebuild(self, delta: Path, base_sha256: str, out: Path, package: BlobRef) -> None:
        try:
            base = self._store.get(base_sha256)
            apply_delta(delta, base, out, sha256=package.sha256, size_bytes=package.size_bytes)
        except (PackageError, StoreError) as error:
            raise DeltaError(f"{delta.name}: {error}", path=str(delta), sha256=package.sha256) from error


def delivery_target(info: ReleaseInfo) -> DeliveryTarget:
    """What is to be brought here for a release."""
    chunks_sha256 = None if info.chunks is None else info.chunks.sha256
    return DeliveryTarget(
        package=BlobRef(sha256=info.sha256, size_bytes=info.size_bytes, chunks_sha256=chunks_sha256),
        deltas=tuple(
            DeltaRef(base_sha256=base, blob=BlobRef(sha256=side.sha256, size_bytes=side.size_bytes))
            for base, side in info.deltas.items()
        ),
    )


def _paths(info: ReleaseInfo) -> dict[str, str]:
    """Where the files of a release lie in the repository, by digest."""
    paths = {side.sha256: info.side_path(side, "delta") for side in info.deltas.values()}
    if info.chunks is not None:
        paths[info.chunks.sha256] = info.side_path(info.chunks, "slm.chunks")
    return {**paths, info.sha256: info.file_path}


def _not_delivered(error: DeliveryError) -> UpdateError:
    cause: UpdateCause = "unreachable"
    if isinstance(error, DeliveryRoomError):
        cause = "no_room"
    elif isinstance(error, DeliveryDiskError):
        cause = "internal"
    elif isinstance(error, LyingSourceError):
        cause = "corrupt"
    return UpdateError(str(error), cause=cause, retry_after_s=error.retry_after_s)


# --- the device ---------------------------------------------------------------------------------------------


class CountedEnergy:
    """``BoardEnergy`` over the monitor of the board, which has not been started yet."""

    def __init__(self, monitor: PowerMonitor) -> None:
        self._monitor = monitor
        self._count: EnergyCount | None = None
        monitor.listen(on_interval=self._add)

    @property
    def period_s(self) -> float:
        """See ``BoardEnergy``."""
        facts = self._monitor.facts
        return 0.0 if facts is None else facts.period_s

    def count(self) -> EnergyCount | None:
        """See ``BoardEnergy``."""
        return self._count

    def _add(self, interval: Interval) -> None:
        before_j = 0.0 if self._count is None else self._count.total_j
        self._count = EnergyCount(interval.end_s, before_j + interval.energy_j, interval.meter)


class BoardDevice:
    """``Device`` of the updater.

    Attributes:
        facts: what does not change.
        energy: the meter.
        online: whether the broker is connected.
    """

    def __init__(
        self, name: str, board: Board, monitor: PowerMonitor, threads: int, reserve_share: float
    ) -> None:
        """Describe the board.

        Args:
            name: of the device.
            threads: that a model computes with.
            reserve_share: of the battery, below which nothing is tried.
        """
        self._monitor = monitor
        self._reserve_share = reserve_share
        self.online: Callable[[], bool] = lambda: False
        self.energy = CountedEnergy(monitor)
        self.facts = DeviceFacts(
            name=name,
            agent=edgeslm.__version__,
            cpu_features=frozenset(board.cpu_features) | (cpu_flags() or frozenset()),
            runtimes=installed_kinds(),
            ram_mb=_memory_mb("MemTotal") or 0,
            threads=threads,
        )

    def vitals(self) -> Vitals:
        """See ``Device``."""
        return self._monitor.vitals

    def available_mb(self) -> int | None:
        """See ``Device``."""
        return _memory_mb("MemAvailable")

    def is_online(self) -> bool:
        """See ``Device``."""
        return self.online()

    def utc(self) -> datetime | None:
        """See ``Device``."""
        now = datetime.now(UTC)
        return now if clock_is_set(now.timestamp()) else None

    def monotonic(self) -> float:
        """See ``Device``."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        """See ``Device``."""
        time.sleep(seconds)

    def may_try(self) -> str | None:
        """See ``Device``."""
        battery = self.vitals().battery
        if battery is None or battery.external or battery.share > self._reserve_share:
            return None
        return f"a battery above {self._reserve_share:.0%}"


def _memory_mb(row: str) -> int | None:
    kib = memory_kib(row)
    return None if kib is None else kib // 1024


# --- all together -------------------------------------------------------------------------------------------


class Updates:
    """The updater of an agent with all that belongs to it: :meth:`boot`, :meth:`attach`, then the agent has it.

    Attributes:
        following: to be started and stopped with the agent. It has to be stopped whatever happens after :meth:`boot`.
        where: address or directory of that, or ``mqtt:``.
        judge: says what is to be trusted.
        reports: what the device reports.
    """

    def __init__(
        self,
        config: AgentConfig,
        identity: Identity,
        releases: str,
        files: Sequence[Path],
        device: BoardDevice,
        publish: Callable[[Message], int | None],
        follow_budget: Callable[[str | None], None],
        on_hang: Callable[[], None] | None = None,
        content: Content | None = None,
    ) -> None:
        """Put it together.

        Args:
            releases: address or directory of the repository, or ``mqtt:``.
            files: the packages of the factory.
            publish: over the agent's link.
            follow_budget: takes the budget of an assignment.
            on_hang: replaces this process when a release on probation hangs; ``None`` watches nothing.
            content: judges and takes what packages bring along.

        Raises:
            UsageError: `releases` is none of them.
            EdgeslmError: journal, store or trusted metadata cannot be used.
        """
        state_dir = config.state_dir
        facts = identity.facts
        self._broker_fetch = BrokerFetch(facts.fleet, facts.device) if releases == BROKER_RELEASES else None
        fetch = self._broker_fetch or fetch_from(releases)
        prepare_trust(state_dir / _TRUST_NAME, identity.trust_root)
        # The directory of an identity is called by the digest of its public key.
        self.judge = judge = Judge(
            state_dir / _TRUST_NAME,
            facts.fleet,
            facts.device,
            identity.directory.name,
            fetch,
            self._broker_fetch.close if self._broker_fetch is not None else lambda: None,
        )
        assigned = Assigned(state_dir / _ASSIGNED_NAME)
        store = ModelStore(state_dir / "models")
        journal = UpdateJournal(state_dir / JOURNAL_NAME)
        self.reports = reports = Reports(topics.device_topic(facts.fleet, facts.device, "reported"), publish)
        self._device = device
        self._config = config
        policy = config.updates.policy
        self._watchdog = None if on_hang is None else Watchdog(journal, policy, on_hang, kernel_alarm)
        self._updater = Updater(
            journal,
            store,
            device,
            policy,
            files,
            on_report=reports.report,
            boot_id=boot_id() or "",
            watchdog=self._watchdog,
            content=content,
        )
        self.following = Following(self._updater, judge, assigned, reports, journal.assignment, follow_budget)
        self._releases = CheckedReleases(judge, assigned)
        self.where = releases
        self._store = store

    @property
    def updater(self) -> Updater:
        """What follows the assignments."""
        return self._updater

    def watched(self, load: Callable[[InstalledPackage], Model]) -> Callable[[InstalledPackage], Model]:
        """As `load`, by which models of the agent are to be loaded, by :meth:`boot` as well."""
        return load if self._watchdog is None else self._watchdog.watched(load)

    def boot(self, load: Callable[[InstalledPackage], Model]) -> dict[str, Model]:
        """The models to serve, loaded; where one does not load, what served before it.

        Args:
            load: one of :meth:`watched`.

        Raises:
            EdgeslmError: none can be served: why the first one cannot.
        """
        models: dict[str, Model] = {}
        first: EdgeslmError | None = None
        for name, installed in self._updater.boot().items():
            following: InstalledPackage | None = installed
            while following is not None:
                try:
                    models[name] = load(following)
                    break
                except EdgeslmError as error:
                    log.exception("%s %s does not load", name, following.manifest.version)
                    first = first or error
                    following = self._updater.load_failed(following, str(error))
        if not models and first is not None:
            raise first
        return models

    def attach(self, agent: Agent, served: ServedModels) -> None:
        """Take the agent and what serves in it."""
        config = self._config
        delivery = FetchedDelivery(
            Fetcher(config.state_dir / _FETCHED_NAME),
            self._store,
            config.updates,
            self.where,
            lambda: BrokerSource(agent, config.fleet, config.device),
        )
        self._device.online = lambda: agent.wait_connected(0)
        if self._broker_fetch is not None:
            self._broker_fetch.attach(agent)
        self._updater.attach(
            self._releases,
            delivery,
            served,
            runtime=config.runtime,
            cache_dir=config.state_dir / CACHE_NAME,
        )


def build_updates(
    config: AgentConfig,
    identity: Identity,
    releases: str,
    files: Sequence[Path],
    board: Board,
    power: PowerSide,
    threads: int,
    publish: Callable[[Message], int | None],
    on_hang: Callable[[], None] | None = None,
    content: Content | None = None,
) -> Updates | None:
    """What updates the models of an agent; ``None`` where its fleet has no releases.

    Args:
        identity: of the device.
        releases: address or directory of the release repository, or ``mqtt:``.
        files: the packages of the factory.
        power: measures the board, and takes the fleet's budget; not started yet.
        threads: that a model computes with.
        publish: over the agent's link.
        on_hang: replaces this process when a release on probation hangs.
        content: judges and takes what packages bring along.

    Raises:
        EdgeslmError: it cannot be put together.
    """
    if not identity.trust_root.is_file():
        log.warning("no updates: the fleet gave this device no root of its release repository")
        return None
    battery = config.budget.battery or BatteryBudget()
    device = BoardDevice(identity.facts.device, board, power.monitor, threads, battery.reserve_share)
    return Updates(config, identity, releases, files, device, publish, power.follow_budget, on_hang, content)
