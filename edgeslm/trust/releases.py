"""The device's view of a release repository.

A refresh follows the TUF client workflow: roots one by one, then timestamp, snapshot and targets. Then and only then
the whole new state is written down at once; whatever fails on the way leaves the old state as it was. Roots are kept
as they are accepted, for a key that was revoked must not come back.

What always holds:

* Nothing is believed that :mod:`edgeslm.trust.decisions` did not accept, by a time that
  :mod:`edgeslm.trust.clock` gives.
* Being offline changes nothing: what was trusted last is looked at again, as long as it has not expired. Expired
  metadata stops new updates, never a model that runs.
* A release comes with a security floor: the highest that any role asked for its name states.

Left to others: transport and its bounds (:mod:`edgeslm.trust.fetch`), files (:mod:`edgeslm.trust.storage`), and the
bytes of a release, which :func:`check_bytes` compares once they are there.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from pydantic import TypeAdapter, ValidationError
from tuf.api.metadata import MetaFile, Root, Snapshot, TargetFile, Targets, Timestamp

from edgeslm.clock import utc_now
from edgeslm.codec import describe
from edgeslm.errors import (
    MetadataError,
    MetadataFormatError,
    MetadataLimitError,
    MetadataMissingError,
    NoMetadataError,
    ReleaseBytesError,
    ReleaseNotFoundError,
    TrustStateError,
)
from edgeslm.schema.agent_release import (
    AGENT_FLOOR_FIELD,
    NO_AGENT_FLOOR,
    AgentInfo,
    AgentTarget,
    agent_target_path,
)
from edgeslm.schema.base import SemanticVersion, is_identifier
from edgeslm.schema.release import FLOORS, FLOORS_FIELD, NO_FLOOR, ReleaseInfo, ReleaseTarget, target_path
from edgeslm.trust.clock import Clock, Remembered, TrustedTime, issued_time, trusted_time
from edgeslm.trust.decisions import Decisions, Limits
from edgeslm.trust.fetch import Fetch
from edgeslm.trust.storage import ENROLLED, ROOT, TIMESTAMP, TrustStorage
from edgeslm.trust.versions import highest

_VERSION: TypeAdapter[str] = TypeAdapter(SemanticVersion)


@dataclass(frozen=True)
class TrustedState:
    """The repository state that is in use.

    Attributes:
        root: version of the root.
        timestamp: version of the timestamp.
        snapshot: version of the snapshot.
        targets: version of the top-level targets.
        expires_at: when the first of them expires.
        time: what was used as the present time.
    """

    root: int
    timestamp: int
    snapshot: int
    targets: int
    expires_at: datetime
    time: TrustedTime


def enrol(storage: TrustStorage, root: bytes, *, replace: bool = False, limits: Limits | None = None) -> bool:
    """Give a device the root that it shall trust; returns whether anything changed.

    Doing it again with the same root changes nothing, also when the trusted root has moved on since.

    Args:
        storage: the device's trusted metadata.
        root: bytes of a root, from where it can be believed.
        replace: forget what was trusted before and begin anew with another root.

    Raises:
        MetadataError: `root` is no root that its own keys signed.
        TrustStateError: another root is trusted already, or the disk refuses.
    """
    limits = limits or Limits()
    Decisions(root, now=utc_now(), limits=limits)
    with storage.locked():
        before = storage.read(ENROLLED, limits.root_bytes)
        if before == root:
            return False
        if before is not None and not replace:
            raise TrustStateError(
                f"{storage.directory}: another root is trusted here",
                path=str(storage.directory),
                hint="Replace it only if the device is to follow another repository",
            )
        # A root without what it signed is a good state, what it did not sign is none: so in this order.
        storage.keep_only(())
        storage.remove(TIMESTAMP, ROOT)
        storage.write(ENROLLED, root)
        storage.remember(Remembered())
        return True


class TrustedReleases:
    """The releases that a device may run, by the repository that it was enrolled with.

    Attributes:
        time: the present time as judged at the last load or refresh.
    """

    time: TrustedTime

    def __init__(
        self, storage: TrustStorage, fetch: Fetch, *, clock: Clock = utc_now, limits: Limits | None = None
    ) -> None:
        """Open what is trusted; nothing is fetched yet.

        Args:
            storage: the device's trusted metadata, where a root was enrolled.
            fetch: gets files of the repository.
            clock: the wall clock, right or wrong.

        Raises:
            NoMetadataError: no root was enrolled.
            TrustStateError: the disk refuses.
            MetadataError: the enrolled root is damaged.
        """
        self._storage = storage
        self._fetch = fetch
        self._clock = clock
        self._limits = limits or Limits()
        self._remembered = storage.remembered()
        self._decisions = self._open()
        self._judge_time()
        self._loaded = False

    def refresh(self) -> TrustedState:
        """Fetch, judge and keep the newest state of the repository.

        Raises:
            MetadataFetchError: it cannot be reached; what was trusted stays usable.
            MetadataError: what it offers is not to be trusted; what was trusted stays as it was.
            TrustStateError: the disk refuses.
        """
        with self._storage.locked():
            self._loaded = False
            self._decisions = self._open()
            self._follow_roots()
            self._judge_time()
            staged = self._fetch_state()
            self._keep(staged)
            self._loaded = True
            return self.state()

    def state(self) -> TrustedState:
        """What is in use, from the disk if nothing was fetched.

        Raises:
            NoMetadataError: no state was ever accepted.
            MetadataError: it has expired, or is damaged.
            TrustStateError: the disk refuses.
        """
        self._load()
        known = self._decisions
        root, timestamp, snapshot, targets = known.root, known.timestamp, known.snapshot, known.targets
        return TrustedState(
            root=root.version,
            timestamp=timestamp.version,
            snapshot=snapshot.version,
            targets=targets.version,
            expires_at=min(item.expires for item in (root, timestamp, snapshot, targets)),
            time=self.time,
        )

    @property
    def targets(self) -> Targets:
        """The top-level targets in use; they delegate the signing of assignments.

        Raises:
            NoMetadataError: no state was ever accepted.
            MetadataError: it has expired, or is damaged.
            TrustStateError: the disk refuses.
        """
        self._load()
        return self._decisions.targets

    def find(self, name: str, version: str) -> ReleaseTarget:
        """The release `name` in `version`, as the first role that vouches for it describes it.

        Metadata of the teams on the way is fetched where the disk does not have it.

        Raises:
            ReleaseNotFoundError: no trusted role vouches for it.
            NoMetadataError: no state was ever accepted.
            MetadataError: metadata is expired, or not to be trusted.
            MetadataFetchError: metadata of a team cannot be had.
            TrustStateError: the disk refuses.
        """
        self._load()
        path = target_path(name, version)
        floor = NO_FLOOR
        for role, targets in self._roles_for(path):
            floor = highest(floor, security_floor(role, targets, name))
            found = targets.targets.get(path)
            if found is not None:
                return ReleaseTarget(role=role, info=release_info(role, found), floor=floor)
        raise ReleaseNotFoundError(
            f"no trusted role vouches for {name} {version}",
            role="targets",
            hint="It was never released, or has been withdrawn",
        )

    def find_agent(self, version: str, sha256: str) -> AgentTarget:
        """The archive `sha256` of the agent itself in `version`. Only the top-level targets can vouch for code.

        Raises:
            ReleaseNotFoundError: they do not.
            NoMetadataError: no state was ever accepted.
            MetadataError: metadata is expired, or not to be trusted.
            TrustStateError: the disk refuses.
        """
        found = self.targets.targets.get(agent_target_path(version, sha256))
        if found is None:
            raise ReleaseNotFoundError(
                f"the release repository does not vouch for edgeslm {version} with sha256 {sha256}",
                role="targets",
                hint="It was never released, or has been withdrawn",
            )
        return AgentTarget(info=agent_info(found), floor=agent_floor(self.targets))

    # --- a refresh ---

    def _open(self) -> Decisions:
        """Begin with the newest root that is on the disk."""
        enrolled = self._storage.read(ENROLLED, self._limits.root_bytes)
        if enrolled is None:
            raise NoMetadataError(
                f"{self._storage.directory}: no root was enrolled here", hint="Enrol the device first"
            )
        decisions = None
        newest = self._storage.read(ROOT, self._limits.root_bytes)
        if newest is not None:
            # A damaged one is no loss: the way from the enrolled one leads to the newest again.
            with contextlib.suppress(MetadataError):
                decisions = Decisions(newest, now=self._clock(), limits=self._limits)
        return decisions or Decisions(enrolled, now=self._clock(), limits=self._limits)

    def _judge_time(self) -> None:
        root = self._decisions.root
        self.time = trusted_time(
            self._clock(),
            self._remembered,
            root_issued=issued_time(root.unrecognized_fields),
            signers=_timestamp_signers(root),
        )
        self._decisions.set_time(self.time.at)

    def _follow_roots(self) -> None:
        last = self._decisions.root.version + self._limits.roots
        while True:
            name = f"{self._decisions.root.version + 1}.root.json"
            try:
                data = self._fetch_metadata(name, self._limits.root_bytes)
            except MetadataMissingError:
                return
            if self._decisions.root.version == last:
                raise MetadataLimitError(
                    f"more than {self._limits.roots} new roots",
                    role="root", expected=f"at most {self._limits.roots} at a time", actual="more",
                    hint="The next refresh goes on from here",
                )  # fmt: skip
            self._decisions.add_root(data)
            self._storage.write(ROOT, data)

    def _fetch_state(self) -> dict[str, bytes]:
        """Add timestamp, snapshot and targets; returns what came from outside, with the timestamp last."""
        known, staged = self._decisions, dict[str, bytes]()
        with contextlib.suppress(MetadataError):
            self._add_stored_timestamp()
        before = known.timestamp if known.has_timestamp else None
        timestamp = self._fetch_metadata(TIMESTAMP, self._limits.timestamp_bytes)
        newer = known.add_timestamp(timestamp)
        stored = False
        if before is not None:
            # An older one counts as well: the new one is compared with it.
            with contextlib.suppress(MetadataError):
                self._add_stored_snapshot(before)
                stored = True
        if not stored:
            meta = known.timestamp.snapshot_meta
            name = f"{meta.version}.snapshot.json"
            staged[name] = self._fetch_metadata(name, _length(meta, self._limits.snapshot_bytes))
            known.add_snapshot(staged[name])
        _, fetched = self._add_role("targets", "root")
        return staged | fetched | ({TIMESTAMP: timestamp} if newer else {})

    def _keep(self, staged: dict[str, bytes]) -> None:
        for name, data in staged.items():
            self._storage.write(name, data)
        timestamp, snapshot = self._decisions.timestamp, self._decisions.snapshot
        roles = {f"{meta.version}.{name}" for name, meta in snapshot.meta.items()}
        self._storage.keep_only(roles | {f"{snapshot.version}.snapshot.json"})
        signers = _timestamp_signers(self._decisions.root)
        before = self._remembered
        self._remembered = Remembered(
            wall=_latest(before.wall, self._clock()),
            signed=_latest(
                before.signed if before.signers == signers else None,
                issued_time(timestamp.unrecognized_fields),
            ),
            signers=signers,
        )
        self._storage.remember(self._remembered)

    # --- from the disk, or else from outside ---

    def _load(self) -> None:
        if self._loaded:
            return
        with self._storage.locked():
            self._decisions = self._open()
            self._judge_time()
            self._add_stored_timestamp()
            self._add_stored_snapshot(self._decisions.timestamp)
            name = f"{_meta(self._decisions.snapshot, 'targets').version}.targets.json"
            self._decisions.add_targets(self._stored(name, self._limits.targets_bytes))
            self._loaded = True

    def _add_stored_timestamp(self) -> None:
        self._decisions.add_timestamp(self._stored(TIMESTAMP, self._limits.timestamp_bytes))

    def _add_stored_snapshot(self, timestamp: Timestamp) -> None:
        name = f"{timestamp.snapshot_meta.version}.snapshot.json"
        self._decisions.add_snapshot(self._stored(name, self._limits.snapshot_bytes), from_disk=True)

    def _stored(self, name: str, max_bytes: int) -> bytes:
        data = self._storage.read(name, max_bytes)
        if data is None:
            raise NoMetadataError(
                f"{self._storage.directory}: no whole state of the repository was accepted yet",
                role=name, hint="Refresh while the repository can be reached",
            )  # fmt: skip
        return data

    def _add_role(self, role: str, delegator: str) -> tuple[Targets, dict[str, bytes]]:
        """Add the targets of a role; returns them, and the file if it came from outside."""
        meta = _meta(self._decisions.snapshot, role)
        name = f"{meta.version}.{role}.json"
        with contextlib.suppress(MetadataError):
            return self._decisions.add_targets(
                self._stored(name, self._limits.targets_bytes), role, delegator
            ), {}
        data = self._fetch_metadata(name, _length(meta, self._limits.targets_bytes))
        return self._decisions.add_targets(data, role, delegator), {name: data}

    def _fetch_metadata(self, name: str, max_bytes: int) -> bytes:
        return self._fetch(f"metadata/{name}", max_bytes)

    def _roles_for(self, path: str) -> Iterator[tuple[str, Targets]]:
        """The roles that may vouch for `path`, the most trusted first (TUF specification, 5.6.7)."""
        seen: set[str] = set()
        waiting = [("targets", "root")]
        while waiting:
            role, delegator = waiting.pop()
            if role in seen:
                continue
            if len(seen) >= self._limits.delegations:
                raise MetadataLimitError(
                    f"more than {self._limits.delegations} roles could vouch for {path}",
                    role=role, expected=f"at most {self._limits.delegations}", actual="more",
                )  # fmt: skip
            seen.add(role)
            targets = self._decisions.targets if role == "targets" else self._team(role, delegator)
            if targets is None:
                continue
            yield role, targets
            delegations = targets.delegations
            children = []
            for child, terminating in delegations.get_roles_for_target(path) if delegations else ():
                children.append((child, role))
                if terminating:
                    waiting.clear()
                    break
            waiting.extend(reversed(children))

    def _team(self, role: str, delegator: str) -> Targets | None:
        """The targets of a delegated role; ``None`` while it has not signed any."""
        if not is_identifier(role):  # it becomes part of a file name
            raise MetadataFormatError(f"{ascii(role)[:80]} cannot be the name of a role", role=delegator)
        if f"{role}.json" not in self._decisions.snapshot.meta:
            return None
        targets, fetched = self._add_role(role, delegator)
        with self._storage.locked():
            for name, data in fetched.items():
                self._storage.write(name, data)
        return targets


def check_bytes(target: ReleaseTarget, path: Path) -> None:
    """Compare the file at `path`, to its last byte, with what the trusted metadata names.

    Raises:
        ReleaseBytesError: it is another file, or cannot be read.
    """
    info = target.info
    try:
        with path.open("rb") as stream:
            size_bytes = stream.seek(0, io.SEEK_END)
            stream.seek(0)
            sha256 = (
                hashlib.file_digest(stream, "sha256").hexdigest() if size_bytes == info.size_bytes else "-"
            )
    except OSError as error:
        raise ReleaseBytesError(f"{path}: {error.strerror}", role=target.role) from error
    if sha256 != info.sha256:
        raise ReleaseBytesError(
            f"{path} is not {info.name} {info.version}",
            role=target.role,
            expected=f"{info.size_bytes} bytes, sha256 {info.sha256}",
            actual=f"{size_bytes} bytes, sha256 {sha256}",
            hint="Fetch it again",
        )


def release_info(role: str, target: TargetFile) -> ReleaseInfo:
    """What the signer of `target` says about it.

    Raises:
        MetadataFormatError: it is no release, or contradicts itself.
    """
    try:
        info = ReleaseInfo.model_validate_json(json.dumps(target.custom))
    except ValidationError as error:
        raise MetadataFormatError(f"{role}: {target.path}: {describe(error)}", role=role) from error
    said = (target_path(info.name, info.version), info.sha256, info.size_bytes)
    signed = (target.path, target.hashes.get("sha256"), target.length)
    if said != signed:
        raise MetadataFormatError(
            f"{role}: {target.path} contradicts itself", role=role, expected=str(signed), actual=str(said)
        )
    return info


def agent_info(target: TargetFile) -> AgentInfo:
    """What the signer of `target` says about a release of the agent itself.

    Raises:
        MetadataFormatError: it is none, or contradicts itself.
    """
    try:
        info = AgentInfo.model_validate_json(json.dumps(target.custom))
    except ValidationError as error:
        raise MetadataFormatError(f"targets: {target.path}: {describe(error)}", role="targets") from error
    said = (agent_target_path(info.version, info.sha256), info.sha256, info.size_bytes)
    signed = (target.path, target.hashes.get("sha256"), target.length)
    if said != signed:
        raise MetadataFormatError(
            f"targets: {target.path} contradicts itself",
            role="targets", expected=str(signed), actual=str(said),
        )  # fmt: skip
    return info


def agent_floor(targets: Targets) -> str:
    """The lowest version of the agent that the top-level targets call safe.

    Raises:
        MetadataFormatError: what they state is no version.
    """
    try:
        return _VERSION.validate_python(targets.unrecognized_fields.get(AGENT_FLOOR_FIELD, NO_AGENT_FLOOR))
    except ValidationError as error:
        raise MetadataFormatError(
            f"targets: {AGENT_FLOOR_FIELD}: {describe(error)}", role="targets"
        ) from error


def security_floor(role: str, targets: Targets, name: str) -> str:
    """The lowest version of `name` that `role` calls safe.

    Raises:
        MetadataFormatError: what the role states is no version.
    """
    try:
        floors = FLOORS.validate_python(targets.unrecognized_fields.get(FLOORS_FIELD, {}))
    except ValidationError as error:
        raise MetadataFormatError(f"{role}: {FLOORS_FIELD}: {describe(error)}", role=role) from error
    return floors.get(name, NO_FLOOR)


def _meta(snapshot: Snapshot, role: str) -> MetaFile:
    meta = snapshot.meta.get(f"{role}.json")
    if meta is None:
        raise MetadataError(f"snapshot {snapshot.version} does not name {role}", role="snapshot")
    return meta


def _length(meta: MetaFile, limit: int) -> int:
    return limit if meta.length is None else min(meta.length, limit)


def _timestamp_signers(root: Root) -> tuple[str, ...]:
    return tuple(sorted(root.roles["timestamp"].keyids))


def _latest(*times: datetime | None) -> datetime | None:
    return max((at for at in times if at is not None), default=None)
