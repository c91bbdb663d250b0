"""Releases on their way: what helps to deliver a package, and the service that gives devices all of it.

Making: beside its package a release gets a chunk map, and deltas from the version before it and from what devices run,
where they are much smaller than the whole. All of it is made from the file before anything is changed, so a dry run
knows their sizes.

Serving: metadata and files of the repository over HTTP, the same in parts over MQTT, and what devices report is
written down. What is given out needs no secrecy, and no trust in who gives it.

What always holds: a path or digest from outside names files of the public directory, and no others; a message that is
wrong is dropped and ends nothing.

Left to others: what is released (:mod:`edgeslm.fleet.releases`), ranges and connections (:mod:`edgeslm.delivery`).
"""

from __future__ import annotations

import logging
import re
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Self

from edgeslm import topics
from edgeslm.clock import utc_now
from edgeslm.delivery.chunks import write_map
from edgeslm.delivery.files import FileBlob
from edgeslm.delivery.http_server import PackageServer
from edgeslm.delivery.mqtt_source import BlockService
from edgeslm.errors import EdgeslmError, LinkError, ReleaseRepositoryError, TopicError
from edgeslm.fleet.release_setup import online_signers
from edgeslm.fleet.releases import ReleaseRepository
from edgeslm.fleet.reports import ReportInbox, take_reports
from edgeslm.fleet.store.database import Store
from edgeslm.link.mqtt import MqttLink
from edgeslm.link.port import Message
from edgeslm.models.delta_making import make_delta
from edgeslm.models.package import check_package
from edgeslm.schema.base import version_key
from edgeslm.schema.config import BrokerConfig
from edgeslm.schema.release import ReleaseInfo
from edgeslm.trust.mqtt_fetch import MetadataService, is_metadata_name

_LOG = logging.getLogger(__name__)

WORTHWHILE_SHARE = 0.5
"""A delta that is larger than this share of the package is left out: the whole is surer, and hardly more."""
MAX_BASES = 4
"""Releases that deltas are made from at most: each takes seconds for a package of some megabytes."""
_TICK_S = 2.0
_FRESHNESS_S = 3600.0
_SEND_TIMEOUT_S = 5.0
_SEND_POLL_S = 0.01
_POLL_S = 0.2
_PUBLIC_PATH = re.compile(r"/((?:metadata|targets)(?:/[A-Za-z0-9-][A-Za-z0-9._-]{0,254}){1,4})")
_BLOCKS_PATH = re.compile(r"/blocks/([0-9a-f]{64})")
_SHA256 = re.compile(r"[0-9a-f]{64}")


# --- making -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MadeDelta:
    """A delta to a package.

    Attributes:
        base: the release that it starts from.
        path: the file; ``None`` where it is too large to be worth having.
    """

    base: ReleaseInfo
    size_bytes: int
    path: Path | None


@dataclass(frozen=True)
class Prepared:
    """A package with what helps to deliver it, before it is released.

    Attributes:
        package: the file.
        chunks: its chunk map.
        chunks_bytes: size of that.
        deltas: to it, the smallest first.
    """

    name: str
    version: str
    sha256: str
    size_bytes: int
    package: Path
    chunks: Path
    chunks_bytes: int
    deltas: tuple[MadeDelta, ...]


@contextmanager
def prepared(
    repository: ReleaseRepository,
    package: Path,
    *,
    with_deltas: bool = True,
    running: Collection[str] = (),
) -> Iterator[Prepared]:
    """Check a package and make chunk map and deltas, which are gone when the block ends.

    Args:
        repository: where it will be released.
        package: a ``.slm`` file.
        with_deltas: whether to make deltas.
        running: sha256 of packages that devices run, those that most run first.

    Raises:
        PackageError: what is wrong with the package.
        DeliveryDiskError: the chunk map cannot be written.
        DeltaError: a file changed while it was compared.
        StoreError: the delta cannot be written.
        ReleaseRepositoryError: the repository cannot be read.
        MetadataError: a file of the repository is damaged.
    """
    contents = check_package(package)
    name, version = contents.manifest.name, contents.manifest.version
    bases = _bases(repository, name, version, running) if with_deltas else []
    with tempfile.TemporaryDirectory(prefix="edgeslm-release-") as directory:
        # A link, since a chunk map is written beside its file.
        linked = Path(directory) / "package.slm"
        linked.symlink_to(package.resolve())
        mapped = write_map(linked)
        chunks = linked.with_name(f"{linked.name}.chunks")
        deltas = []
        for base in bases:
            path = Path(directory) / f"{base.sha256}.delta"
            report = make_delta(repository.public / base.file_path, package, path)
            is_worthwhile = report.share <= WORTHWHILE_SHARE
            deltas.append(MadeDelta(base, report.size_bytes, path if is_worthwhile else None))
            if report.header.target_sha256 != contents.sha256:
                raise _changed(package)
        if mapped.sha256 != contents.sha256:
            raise _changed(package)
        yield Prepared(
            name=name,
            version=version,
            sha256=contents.sha256,
            size_bytes=contents.size_bytes,
            package=package,
            chunks=chunks,
            chunks_bytes=chunks.stat().st_size,
            deltas=tuple(sorted(deltas, key=lambda delta: delta.size_bytes)),
        )


def release_prepared(repository: ReleaseRepository, made: Prepared) -> ReleaseInfo:
    """Release what was prepared; it lies pending until it is signed and published.

    Raises:
        PackageError: the package changed, and is none any more.
        ReleaseRepositoryError: another package has that name and version, it is below the security floor, it
            changed meanwhile, or the disk refuses.
        MetadataError: a file of the repository is damaged.
    """
    info = repository.add(made.package)
    if info.sha256 != made.sha256:
        raise _changed(made.package)
    deltas = {delta.base.sha256: delta.path for delta in made.deltas if delta.path is not None}
    return repository.attach(info.name, info.version, chunks=made.chunks, deltas=deltas)


def _bases(
    repository: ReleaseRepository, name: str, version: str, running: Collection[str]
) -> list[ReleaseInfo]:
    """The published releases to make deltas from: the one right before `version`, and what devices run."""
    others = {
        target.info.sha256: target.info
        for target in repository.releases()
        if target.info.name == name and target.info.version != version
    }
    older = [info for info in others.values() if version_key(info.version) < version_key(version)]
    before = [max(older, key=lambda info: version_key(info.version)).sha256] if older else []
    wanted = dict.fromkeys([*before, *(sha256 for sha256 in running if sha256 in others)])
    return [others[sha256] for sha256 in list(wanted)[:MAX_BASES]]


def _changed(package: Path) -> ReleaseRepositoryError:
    return ReleaseRepositoryError(f"{package} changed while it was read", path=str(package))


# --- serving ------------------------------------------------------------------------------------------------


def public_files(public: Path) -> Callable[[str], FileBlob | None]:
    """Finds files by the path of a URL: the repository's own, and ``/blocks/<sha256>``."""
    by_digest = files_by_sha256(public)

    def find(path: str) -> FileBlob | None:
        digest = _BLOCKS_PATH.fullmatch(path)
        if digest is not None:
            return by_digest(digest[1])
        named = _PUBLIC_PATH.fullmatch(path)
        if named is None or not (public / named[1]).is_file():
            return None
        return FileBlob(public / named[1])

    return find


def files_by_sha256(public: Path) -> Callable[[str], FileBlob | None]:
    """Finds packages, archives of the agent, chunk maps and deltas by their digest."""

    def find(sha256: str) -> FileBlob | None:
        if not _SHA256.fullmatch(sha256):
            return None
        found = (public.glob(f"targets/{where}/{sha256}.*") for where in ("packages/*/*", "agents/*"))
        path = next(chain.from_iterable(found), None)
        return FileBlob(path) if path is not None else None

    return find


class Distribution:
    """Serves a repository to the devices of one fleet; used as a context manager it is running inside.

    Attributes:
        url: where metadata and files are.
    """

    def __init__(
        self,
        store: Store,
        repository: ReleaseRepository,
        fleet: str,
        broker: BrokerConfig,
        client_id: str,
        *,
        keys: Path | None = None,
        reports: bool = True,
        host: str = "0.0.0.0",  # noqa: S104 - devices are elsewhere
        port: int = 0,
        clock: Callable[[], datetime] = utc_now,
    ) -> None:
        """Bind the port.

        Args:
            store: of the fleet.
            repository: what to serve.
            fleet: its name.
            broker: as the operator reaches it.
            client_id: at the broker.
            keys: directory of the keys of snapshot and timestamp, to keep those fresh; ``None`` leaves that to
                others.
            reports: write down what devices report; a controller of rollouts does so as well.
            host: address to listen on.
            port: 0 takes any that is free.
            clock: gives aware UTC time.

        Raises:
            ConfigError: the address cannot be had.
        """
        self._store = store
        self._repository = repository
        self._fleet = fleet
        self._keys = keys
        self._reports = reports
        self._clock = clock
        self._link = MqttLink(broker, client_id)
        self._blocks = BlockService(files_by_sha256(repository.public), self._send_block)
        self._metadata = MetadataService(repository.public / "metadata", self._send_block)
        self._server = PackageServer(public_files(repository.public), host=host, port=port)
        self.url = self._server.url
        self._inbox = ReportInbox()
        self._fresh_at_s = 0.0
        self._stopped = threading.Event()
        self._connected = threading.Event()
        self._threads = (
            threading.Thread(
                target=self._blocks.run, args=(self._stopped,), name="fleet-blocks", daemon=True
            ),
            threading.Thread(
                target=self._metadata.run, args=(self._stopped,), name="fleet-metadata", daemon=True
            ),
            threading.Thread(target=self._run, name="fleet-reports", daemon=True),
        )

    def __enter__(self) -> Self:
        self._server.start()
        filters = [(topics.fetch_filter(self._fleet), 0)]
        if self._reports:
            filters.append((topics.fleet_filter(self._fleet, "reported"), 1))
        self._link.start(self, filters)
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join()
        self._link.stop()
        self._server.stop()

    def wait_connected(self, timeout_s: float) -> bool:
        """Wait for the broker; ``False`` if it did not accept us in time."""
        return self._connected.wait(timeout_s)

    # --- the link's thread: enqueue only ---

    def on_message(self, message: Message) -> None:
        """Part of ``LinkEvents``."""
        try:
            topic = topics.parse(message.topic)
        except TopicError:
            message.acknowledge()
            return
        if isinstance(topic, topics.DeviceTopic):
            if topic.channel == "fetch" and topic.request_id is not None:
                service = self._metadata if is_metadata_name(topic.request_id) else self._blocks
                service.offer(topic.device, topic.request_id, message.payload)
            elif topic.channel == "reported":
                self._inbox.put(message)
        message.acknowledge()

    def on_connected(self, *, session_present: bool) -> None:
        """Part of ``LinkEvents``."""
        del session_present
        self._connected.set()

    def on_disconnected(self, reason: str) -> None:
        """Part of ``LinkEvents``."""
        self._connected.clear()
        _LOG.warning("broker lost: %s", reason)

    def on_published(self, token: int) -> None:
        """Part of ``LinkEvents``."""

    # --- threads of our own ---

    def _send_block(self, device: str, file: str, payload: bytes) -> None:
        """Publish a part of a file as soon as the link takes it; one that it does not take is asked for again."""
        message = Message(topics.id_topic(self._fleet, device, "blocks", file), payload, qos=0)
        deadline_s = time.monotonic() + _SEND_TIMEOUT_S
        try:
            while self._link.publish(message) is None and time.monotonic() < deadline_s:
                if self._stopped.wait(_SEND_POLL_S):
                    return
        except LinkError as error:
            _LOG.warning("a block for %s: %s", device, error)

    def _run(self) -> None:
        ticked_s = float("-inf")
        while not self._stopped.is_set():
            try:
                if time.monotonic() - ticked_s >= _TICK_S:
                    ticked_s = time.monotonic()
                    self._keep_fresh()
                reports = self._inbox.take(_POLL_S)
                if reports:
                    take_reports(self._store, reports, self._clock())
            except EdgeslmError as error:  # the store is locked, the disk full: the next turn may be better
                _LOG.error("releases: %s", error)
            except Exception:  # one message must not end the service
                _LOG.exception("releases: a turn failed")

    def _keep_fresh(self) -> None:
        if time.monotonic() < self._fresh_at_s:
            return
        self._fresh_at_s = time.monotonic() + _FRESHNESS_S
        due = [role for role in self._repository.expiries() if role.due]
        for role in due:
            if role.offline:
                _LOG.warning("%s expires at %s and has to be signed again", role.role, role.expires_at)
        if self._keys is not None and any(not role.offline for role in due):
            self._repository.refresh(online_signers(self._keys))
            _LOG.info("snapshot and timestamp are signed anew")
