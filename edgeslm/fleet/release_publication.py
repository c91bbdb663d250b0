"""The next state of a release repository: its files, and whether devices would take it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path

from securesystemslib.signer import Signer
from tuf.api.metadata import Metadata, MetaFile, Root, Snapshot, Targets, Timestamp

from edgeslm.errors import MetadataFetchError, ReleaseRepositoryError, TrustError
from edgeslm.fleet.release_files import TARGETS, TIMESTAMP, Published
from edgeslm.fleet.release_metadata import next_version, sign_online, stamp
from edgeslm.schema.agent_release import AgentInfo
from edgeslm.schema.release import Lifetimes, ReleaseInfo
from edgeslm.trust.clock import Clock
from edgeslm.trust.fetch import DirectoryFetch, oversize
from edgeslm.trust.releases import TrustedReleases, enrol
from edgeslm.trust.storage import TrustStorage


def next_state(
    published: Published,
    root: Metadata[Root] | None,
    targets: Mapping[str, Metadata[Targets]],
    signers: Sequence[Signer],
    *,
    lifetimes: Lifetimes,
    now: datetime,
) -> dict[str, bytes]:
    """The metadata files of the next state, in the order in which they have to be written.

    Args:
        published: the state so far.
        root: the next root, signed enough; ``None`` if it stays.
        targets: the next targets of some roles, signed enough.
        signers: keys of snapshot and timestamp.
        lifetimes: of what is signed here.
        now: the present time.

    Raises:
        ReleaseRepositoryError: there would be no root or no targets.
        SigningKeyError: `signers` are not the keys of snapshot and timestamp.
    """
    judge = (root or published.require_root()).signed
    files: dict[str, bytes] = {}
    meta = dict(published.snapshot.signed.meta) if published.snapshot else {}
    for role, metadata in targets.items():
        data, version = metadata.to_bytes(), metadata.signed.version
        files[f"{version}.{role}.json"] = data
        meta[f"{role}.json"] = MetaFile.from_data(version, data, ["sha256"])
    if f"{TARGETS}.json" not in meta:
        raise ReleaseRepositoryError("the targets are not signed enough yet", role=TARGETS)
    snapshot = published.snapshot
    if snapshot is None or targets or not _lasting(snapshot, judge, now, lifetimes.snapshot_days):
        snapshot = next_version(snapshot) if snapshot else Metadata(Snapshot())
        snapshot.signed.meta = meta
        stamp(snapshot, now, lifetimes.snapshot_days)
        sign_online(snapshot, judge.roles["snapshot"], signers)
        files[f"{snapshot.signed.version}.snapshot.json"] = snapshot.to_bytes()
    timestamp = next_version(published.timestamp) if published.timestamp else Metadata(Timestamp())
    name = f"{snapshot.signed.version}.snapshot.json"
    if name in files:
        timestamp.signed.snapshot_meta = MetaFile.from_data(snapshot.signed.version, files[name], ["sha256"])
    if root:
        files[f"{root.signed.version}.root.json"] = root.to_bytes()
    stamp(timestamp, now, lifetimes.timestamp_days)
    sign_online(timestamp, judge.roles["timestamp"], signers)
    files[TIMESTAMP] = timestamp.to_bytes()
    return files


def try_out(
    root: bytes,
    public: Path,
    files: Mapping[str, bytes],
    releases: Iterable[ReleaseInfo],
    agents: Iterable[AgentInfo] = (),
    *,
    clock: Clock,
) -> None:
    """Offer the next state to a device's client that knows the published one.

    Args:
        root: the root that devices trust.
        public: the published files.
        files: metadata files that would be new.
        releases: what has to be found in the next state.
        agents: releases of the agent itself that have to be found in it.
        clock: of this machine.

    Raises:
        TrustError: the device refuses it.
        MetadataFetchError: a file is missing.
    """
    published = DirectoryFetch(public)
    with tempfile.TemporaryDirectory(prefix="edgeslm-try-out-") as directory:
        storage = TrustStorage(Path(directory))
        enrol(storage, root)
        with suppress(TrustError, MetadataFetchError):  # there is no state yet, or it has expired
            TrustedReleases(storage, published, clock=clock).refresh()
        device = TrustedReleases(storage, _Overlay(files, published), clock=clock)
        device.refresh()
        for info in releases:
            device.find(info.name, info.version)
        for agent in agents:
            device.find_agent(agent.version, agent.sha256)


class _Overlay:
    """A repository as it will be: some metadata files before those that are published."""

    def __init__(self, files: Mapping[str, bytes], published: DirectoryFetch) -> None:
        self._files = files
        self._published = published

    def __call__(self, path: str, max_bytes: int) -> bytes:
        """See :class:`edgeslm.trust.fetch.Fetch`."""
        data = self._files.get(path.removeprefix("metadata/"))
        if data is None:
            return self._published(path, max_bytes)
        if len(data) > max_bytes:
            raise oversize(path, max_bytes)
        return data


def _lasting(snapshot: Metadata[Snapshot], root: Root, now: datetime, lifetime_days: int) -> bool:
    """Whether a snapshot is still good for half of its lifetime, by the keys of `root`."""
    signed_enough = root.get_verification_result("snapshot", snapshot.signed_bytes, snapshot.signatures)
    return bool(signed_enough) and snapshot.signed.expires - now > timedelta(days=lifetime_days) / 2
