"""Releases of the agent itself in the release repository.

They go the way of packages: pending, signed with offline keys, published. Unlike those they are never a team's: only
the top-level targets can vouch for code, and only for an archive that was read to its last byte here.

What always holds: an archive, once added, keeps its bytes, for its digest is part of its name; a floor only rises.

Left to others: the state of roles and their signing (:mod:`edgeslm.fleet.releases`).
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tuf.api.metadata import TargetFile, Targets

from edgeslm.clock import utc_now
from edgeslm.delivery.chunks import write_map
from edgeslm.errors import ReleaseRepositoryError
from edgeslm.fleet.release_drafts import Drafts
from edgeslm.fleet.release_files import TARGETS, RepositoryFiles
from edgeslm.schema.agent_release import (
    AGENT_FLOOR_FIELD,
    NO_AGENT_FLOOR,
    AgentInfo,
    AgentTarget,
    agent_target_path,
    is_agent_path,
)
from edgeslm.schema.base import version_key
from edgeslm.trust.clock import Clock
from edgeslm.trust.releases import agent_floor, agent_info
from edgeslm.trust.versions import highest
from edgeslm.wheelhouse import Wheelhouse, check_archive


class AgentReleases:
    """The releases of the agent in a repository."""

    def __init__(self, directory: Path, *, clock: Clock = utc_now) -> None:
        """Open a repository.

        Raises:
            ReleaseRepositoryError: there is none, or it cannot be read.
        """
        self._files = RepositoryFiles.open(directory)
        self._clock = clock

    def published(self) -> tuple[AgentTarget, ...]:
        """What devices can be sent to, by version and kind of board.

        Raises:
            ReleaseRepositoryError: the disk refuses.
            MetadataError: a file is damaged.
        """
        with self._drafts() as drafts:
            metadata = drafts.published.targets.get(TARGETS)
        return agents_of(metadata.signed) if metadata else ()

    def add(self, archive: Path, *, floor: str | None = None) -> AgentInfo:
        """Release an archive; it lies pending until it is signed and published. Adding it again changes nothing.

        Args:
            archive: made by ``edgeslm agent pack``.
            floor: from here on no version below this one is safe; ``None`` leaves the floor as it is.

        Raises:
            AgentArchiveError: it is none.
            ReleaseRepositoryError: it is below the floor, or for the same boards as another archive of its version;
                or the disk refuses.
            MetadataError: a file of the repository is damaged.
        """
        with self._drafts() as drafts, self._files.copied(archive) as copy:
            found = check_archive(copy, shown_as=archive)
            latest = drafts.latest_targets()
            stated = agent_floor(latest) if latest else NO_AGENT_FLOOR
            above = highest(stated, floor or NO_AGENT_FLOOR)
            info = _described(found, above)
            path = agent_target_path(info.version, info.sha256)
            if version_key(info.version) < version_key(above):
                raise ReleaseRepositoryError(
                    f"edgeslm {info.version} is below the security floor {above}: no device would take it",
                    role=TARGETS, path=str(archive),
                )  # fmt: skip
            known = latest.targets.get(path) if latest else None
            if known is None:
                _refuse_twin(agents_of(latest) if latest else (), info, archive)
            elif floor is None or above == stated:
                return agent_info(known)
            targets = drafts.edit_targets()
            if above != NO_AGENT_FLOOR:
                targets.unrecognized_fields[AGENT_FLOOR_FIELD] = above
            info = info.model_copy(update={"chunks_sha256": self._place_chunks(copy, info)})
            self._files.place(copy, info.file_path)
            custom = info.model_dump(mode="json", exclude_none=True)
            targets.targets[path] = TargetFile(
                info.size_bytes, {"sha256": info.sha256}, path, {"custom": custom}
            )
            drafts.save(TARGETS)
            return info

    def withdraw(self, version: str) -> int:
        """Take all archives of a version back; returns how many there were. The floor stays.

        Raises:
            ReleaseRepositoryError: there is none, or the disk refuses.
            MetadataError: a file of the repository is damaged.
        """
        with self._drafts() as drafts:
            latest = drafts.latest_targets()
            gone = [one.info for one in (agents_of(latest) if latest else ()) if one.info.version == version]
            if not gone:
                raise ReleaseRepositoryError(f"edgeslm {version[:80]} is not released", role=TARGETS)
            targets = drafts.edit_targets()
            for info in gone:
                del targets.targets[agent_target_path(info.version, info.sha256)]
            drafts.save(TARGETS)
            return len(gone)

    def _place_chunks(self, copy: Path, info: AgentInfo) -> str | None:
        with tempfile.TemporaryDirectory(prefix="edgeslm-release-") as directory:
            # A link, since a chunk map is written beside its file.
            linked = Path(directory) / "agent.tar"
            linked.symlink_to(copy.resolve())
            mapped = write_map(linked)
            described = info.model_copy(update={"chunks_sha256": mapped.chunks_sha256})
            with self._files.copied(linked.with_name(f"{linked.name}.chunks")) as chunks:
                if described.chunks_path is not None:
                    self._files.place(chunks, described.chunks_path)
        return mapped.chunks_sha256

    @contextmanager
    def _drafts(self) -> Iterator[Drafts]:
        with self._files.locked():
            yield Drafts(self._files, self._clock())


def agents_of(targets: Targets) -> tuple[AgentTarget, ...]:
    """The releases of the agent that top-level targets state, by version and kind of board.

    Raises:
        MetadataFormatError: one of them is none.
    """
    floor = agent_floor(targets)
    found = [
        AgentTarget(info=agent_info(target), floor=floor)
        for path, target in targets.targets.items()
        if is_agent_path(path)
    ]
    return tuple(sorted(found, key=lambda one: (version_key(one.info.version), one.info.requires.machine)))


def _described(found: Wheelhouse, floor: str) -> AgentInfo:
    manifest = found.manifest
    return AgentInfo(
        version=manifest.version,
        sha256=found.sha256,
        size_bytes=found.size_bytes,
        installed_bytes=manifest.installed_bytes,
        security_floor=floor,
        requires=manifest.requires,
    )


def _refuse_twin(known: Sequence[AgentTarget], info: AgentInfo, archive: Path) -> None:
    """Refuse a second archive of a version for boards that have one: which of them a device took would be chance."""
    for one in known:
        theirs, ours = one.info.requires, info.requires
        same_boards = theirs.machine == ours.machine and set(theirs.pythons) & set(ours.pythons)
        if one.info.version == info.version and same_boards:
            raise ReleaseRepositoryError(
                f"edgeslm {info.version} for {ours.machine} and Python {', '.join(ours.pythons)} is released "
                "with other content",
                role=TARGETS, path=str(archive), hint="A release keeps its bytes: give the new one a new version",
            )  # fmt: skip
