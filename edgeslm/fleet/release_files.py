"""A release repository on the operator's disk.

::

    <dir>/public/metadata/<n>.<role>.json   signed metadata; what was once named is never changed
    <dir>/public/metadata/timestamp.json    names the state that devices see
    <dir>/public/targets/packages/...       packages, chunk maps and deltas, named by their digests
    <dir>/pending/<role>.json               the next version of a role, on its way to enough signatures
    <dir>/settings.json                     lifetimes
    <dir>/.lock                             held while anything changes

``public`` is what is served; nothing in it is secret, and whoever serves it need not be trusted.

What always holds, however often the machine is cut off: ``timestamp.json`` names a state that is there as a whole.
A publication writes targets first, then the snapshot, the root and the timestamp, each synced before the next;
what was cut off half-way is named by nothing, and written anew by the next publication. Only a new root counts from
the moment that it is there, as TUF has it: should the machine be cut off right between it and the timestamp, devices
that no longer know the timestamp's keys wait until publishing once more has completed it.

Left to others: what is in the files (:mod:`edgeslm.fleet.release_metadata`) and when it changes
(:mod:`edgeslm.fleet.releases`).
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tuf.api.metadata import Metadata, Root, Snapshot, Targets, Timestamp

from edgeslm import codec
from edgeslm.errors import CodecError, ReleaseRepositoryError
from edgeslm.files import PARTIAL, clear_partial, locked, read_bounded, replace_file, sync_directory
from edgeslm.fleet.release_metadata import KindT, parse
from edgeslm.schema.base import is_identifier
from edgeslm.schema.release import Lifetimes
from edgeslm.trust.decisions import Limits

TARGETS = Targets.type
TIMESTAMP = "timestamp.json"
_SETTINGS, _LOCK = "settings.json", ".lock"
_MAX_SETTINGS_BYTES = 65_536


@dataclass(frozen=True)
class Published:
    """The state that devices see.

    Attributes:
        root: the newest; ``None`` before the first publication.
        timestamp: ``None`` before the first publication.
        snapshot: ``None`` before the first publication.
        targets: by role: the top-level targets, and those of the teams that they delegate to, as far as they signed.
    """

    root: Metadata[Root] | None
    timestamp: Metadata[Timestamp] | None
    snapshot: Metadata[Snapshot] | None
    targets: Mapping[str, Metadata[Targets]]

    def require_root(self) -> Metadata[Root]:
        """The newest root.

        Raises:
            ReleaseRepositoryError: nothing is published yet.
        """
        if self.root is None:
            raise ReleaseRepositoryError(
                "nothing is published yet", role="root", hint="Sign root and targets first"
            )
        return self.root

    def version(self, role: str) -> int:
        """The version of root or of targets that is published; 0 if none."""
        if role == Root.type:
            return self.root.signed.version if self.root else 0
        named = self.snapshot.signed.meta.get(f"{role}.json") if self.snapshot else None
        return named.version if named else 0


@dataclass(frozen=True)
class Superfluous:
    """A published file that nothing names any more.

    Attributes:
        path: in ``public``.
    """

    path: str
    size_bytes: int


def is_repository(directory: Path) -> bool:
    """Whether a release repository was made in `directory`."""
    return (directory / _SETTINGS).is_file()


class RepositoryFiles:
    """The files under one directory.

    Attributes:
        directory: of the repository.
        public: what is served.
        lifetimes: as settled when the repository was made.
    """

    def __init__(self, directory: Path, lifetimes: Lifetimes) -> None:
        self.directory = directory
        self.lifetimes = lifetimes
        self.public = directory / "public"
        self._metadata = self.public / "metadata"
        self._pending = directory / "pending"

    @classmethod
    def open(cls, directory: Path) -> RepositoryFiles:
        """The repository in `directory`.

        Raises:
            ReleaseRepositoryError: there is none, or it cannot be read.
        """
        path = directory / _SETTINGS
        try:
            settings = codec.decode(
                Lifetimes, read_bounded(path, _MAX_SETTINGS_BYTES), max_bytes=_MAX_SETTINGS_BYTES
            )
        except FileNotFoundError as error:
            raise ReleaseRepositoryError(
                f"{directory} is no release repository", path=str(directory), hint="Make one first"
            ) from error
        except (OSError, CodecError) as error:
            raise ReleaseRepositoryError(f"{path}: {error}", path=str(path)) from error
        return cls(directory, settings)

    @classmethod
    def create(
        cls, directory: Path, lifetimes: Lifetimes, pending: Mapping[str, Metadata[Root] | Metadata[Targets]]
    ) -> RepositoryFiles:
        """Make a repository with the first versions of its roles, not signed yet.

        Raises:
            ReleaseRepositoryError: there is one already, or the disk refuses.
        """
        files = cls(directory, lifetimes)
        with files._faults(directory):
            for path in (files._metadata, files.public / "targets", files._pending):
                path.mkdir(parents=True, exist_ok=True)
        with files.locked(), files._faults(directory):
            if is_repository(directory):
                raise ReleaseRepositoryError(f"{directory} is a repository already", path=str(directory))
            for role, metadata in pending.items():
                files.write_pending(role, metadata)
            # Last: it is what makes the directory a repository.
            replace_file(directory / _SETTINGS, codec.encode(lifetimes))
        return files

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Exclude every other process; leftovers of a killed one are cleared. Not reentrant.

        Raises:
            ReleaseRepositoryError: the lock cannot be had.
        """
        with ExitStack() as stack:
            with self._faults(self.directory):
                stack.enter_context(locked(self.directory / _LOCK))
                for path in (self._metadata, self._pending, self.public / "targets", self.directory):
                    clear_partial(path)
            yield

    # --- metadata ---

    def published(self) -> Published:
        """The state that devices see.

        Raises:
            ReleaseRepositoryError: the disk refuses, or a file is missing.
            MetadataError: a file is damaged.
        """
        limits = Limits()
        root = self._newest_root(limits)
        if not (self._metadata / TIMESTAMP).exists():
            return Published(root, None, None, {})
        timestamp = self._read(self._metadata / TIMESTAMP, Timestamp, "timestamp", limits.timestamp_bytes)
        name = f"{timestamp.signed.snapshot_meta.version}.snapshot.json"
        snapshot = self._read(self._metadata / name, Snapshot, "snapshot", limits.snapshot_bytes)
        read = {TARGETS: self._read_targets(TARGETS, snapshot.signed)}
        delegations = read[TARGETS].signed.delegations
        for role in (delegations.roles or {}) if delegations else ():
            if f"{role}.json" in snapshot.signed.meta:
                read[role] = self._read_targets(role, snapshot.signed)
        return Published(root, timestamp, snapshot, read)

    def _read_targets(self, role: str, snapshot: Snapshot) -> Metadata[Targets]:
        path = self._metadata / f"{snapshot.meta[f'{role}.json'].version}.{role}.json"
        return self._read(path, Targets, role, Limits().targets_bytes)

    def _newest_root(self, limits: Limits) -> Metadata[Root] | None:
        version = 0
        while (self._metadata / f"{version + 1}.root.json").exists():
            version += 1
        if version == 0:
            return None
        return self._read(self._metadata / f"{version}.root.json", Root, "root", limits.root_bytes)

    def published_bytes(self, name: str) -> bytes:
        """The bytes of a published metadata file.

        Raises:
            ReleaseRepositoryError: it is missing, or the disk refuses.
        """
        with self._faults(self._metadata / name):
            return read_bounded(self._metadata / name, Limits().targets_bytes)

    def publish(self, files: Mapping[str, bytes]) -> None:
        """Write metadata files in the given order, each synced before the next.

        Raises:
            ReleaseRepositoryError: the disk refuses.
        """
        for name, data in files.items():
            with self._faults(self._metadata / name):
                replace_file(self._metadata / name, data)

    def pending_root(self, published: Published) -> Metadata[Root] | None:
        """The root to come. One that is published already is the leftover of a publication, and removed.

        Raises:
            ReleaseRepositoryError: the disk refuses.
            MetadataError: the file is damaged.
        """
        return self._read_pending(Root.type, Root, Limits().root_bytes, published)

    def pending_targets(self, published: Published) -> dict[str, Metadata[Targets]]:
        """The targets to come, by role; otherwise as for the root.

        Raises:
            ReleaseRepositoryError: the disk refuses.
            MetadataError: a file is damaged.
        """
        with self._faults(self._pending):
            roles = sorted(path.stem for path in self._pending.glob("*.json"))
        limit = Limits().targets_bytes
        read = {
            role: self._read_pending(role, Targets, limit, published) for role in roles if role != Root.type
        }
        return {role: metadata for role, metadata in read.items() if metadata is not None}

    def _read_pending(
        self, role: str, kind: type[KindT], max_bytes: int, published: Published
    ) -> Metadata[KindT] | None:
        if not self.pending_path(role).exists():
            return None
        metadata = self._read(self.pending_path(role), kind, role, max_bytes)
        if metadata.signed.version > published.version(role):
            return metadata
        self.drop_pending(role)
        return None

    def pending_path(self, role: str) -> Path:
        """Where the next version of a role lies."""
        return self._pending / f"{role}.json"

    def write_pending(self, role: str, metadata: Metadata[Root] | Metadata[Targets]) -> None:
        """Keep the next version of a role.

        Raises:
            ReleaseRepositoryError: the disk refuses.
        """
        with self._faults(self.pending_path(role)):
            replace_file(self.pending_path(role), metadata.to_bytes())

    def drop_pending(self, role: str) -> None:
        """Forget the next version of a role, if there is one.

        Raises:
            ReleaseRepositoryError: the disk refuses.
        """
        with self._faults(self._pending):
            self.pending_path(role).unlink(missing_ok=True)
            sync_directory(self._pending)

    def _read(self, path: Path, kind: type[KindT], role: str, max_bytes: int) -> Metadata[KindT]:
        with self._faults(path):
            data = read_bounded(path, max_bytes)
        return parse(kind, data, role, max_bytes)

    # --- packages and what helps to deliver them ---

    @contextmanager
    def copied(self, source: Path) -> Iterator[Path]:
        """A synced copy of `source` on the repository's disk, which is gone in the end unless it was placed.

        Raises:
            ReleaseRepositoryError: it cannot be read or copied.
        """
        copy = self.public / "targets" / f"{PARTIAL}{secrets.token_hex(8)}"
        try:
            with self._faults(source), source.open("rb") as read, copy.open("xb") as write:
                shutil.copyfileobj(read, write, 2**20)
                write.flush()
                os.fsync(write.fileno())
            yield copy
        finally:
            copy.unlink(missing_ok=True)

    def place(self, copy: Path, path: str) -> None:
        """Give a copy its name in ``public``. A file of that name has the same content, and stays.

        Raises:
            ReleaseRepositoryError: the disk refuses.
        """
        final = self.public / path
        with self._faults(final):
            for parent in reversed(final.relative_to(self.public).parents[:-1]):
                if not (self.public / parent).is_dir():
                    (self.public / parent).mkdir()
                    sync_directory((self.public / parent).parent)
            if not final.exists():
                os.replace(copy, final)  # noqa: PTH105 - named so that a test can let it fail
                sync_directory(final.parent)

    def others(self, metadata: set[str], targets: set[str]) -> tuple[Superfluous, ...]:
        """Published files that are not named.

        Args:
            metadata: names of metadata files that are; roots and the timestamp are in any case.
            targets: paths in ``public`` of target files that are.

        Raises:
            ReleaseRepositoryError: the disk refuses.
        """
        gone = []
        with self._faults(self.public):
            for path in sorted(self._metadata.glob("*.json")):
                version, _, role = path.stem.partition(".")
                if (
                    version.isdigit()
                    and role != Root.type
                    and is_identifier(role)
                    and path.name not in metadata
                ):
                    gone.append(path)
            files = [path for path in sorted((self.public / "targets").rglob("*")) if path.is_file()]
            gone += [path for path in files if str(path.relative_to(self.public)) not in targets]
            return tuple(
                Superfluous(str(path.relative_to(self.public)), path.stat().st_size) for path in gone
            )

    def remove(self, paths: Iterable[str]) -> None:
        """Remove published files, and directories that become empty.

        Args:
            paths: in ``public``.

        Raises:
            ReleaseRepositoryError: the disk refuses.
        """
        with self._faults(self.public):
            for path in (self.public / name for name in paths):
                path.unlink()
                if path.parent != self._metadata:
                    with suppress(OSError):  # other versions are still in it
                        path.parent.rmdir()

    @contextmanager
    def _faults(self, path: Path) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise ReleaseRepositoryError(f"{path}: {error.strerror or error}", path=str(path)) from error
