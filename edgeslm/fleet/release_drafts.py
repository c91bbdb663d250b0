"""What lies pending in a release repository, and whether enough of the right keys have signed it.

A version is judged by who delegates to its role: a root by the root before it and by itself, the top-level targets by
the root, a team's by the top-level targets. Where the delegator's own next version is signed enough, that one judges,
because both would be published together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from securesystemslib.signer import Signer
from tuf.api.metadata import Delegations, Metadata, Root, Targets, VerificationResult

from edgeslm.errors import ReleaseRepositoryError, SigningKeyError
from edgeslm.files import read_bounded
from edgeslm.fleet.release_files import TARGETS, RepositoryFiles
from edgeslm.fleet.release_metadata import changes, next_version, parse, stamp
from edgeslm.trust.decisions import Limits


@dataclass(frozen=True)
class PendingRole:
    """The next version of a role, on its way to enough signatures.

    Attributes:
        path: the file, which may be carried to who signs it.
        signed_by: ids of the keys that signed.
        may_sign: ids of the keys that still could.
        missing: signatures that are still needed.
        changes: what it says that the published version does not, and the other way round.
    """

    role: str
    version: int
    path: Path
    expires_at: datetime
    signed_by: tuple[str, ...]
    may_sign: tuple[str, ...]
    missing: int
    changes: tuple[str, ...]


class Drafts:
    """Published and pending state, while the repository is locked.

    Attributes:
        published: the state that devices see.
        root: the root to come, if there is one.
        targets: the targets to come, by role.
    """

    def __init__(self, files: RepositoryFiles, now: datetime) -> None:
        """Read the state.

        Raises:
            ReleaseRepositoryError: the disk refuses.
            MetadataError: a file is damaged.
        """
        self._files = files
        self._now = now
        self.published = files.published()
        self.root = files.pending_root(self.published)
        self.targets = files.pending_targets(self.published)

    # --- changing ---

    def edit_root(self) -> Root:
        """The root to come, to be changed and saved."""
        if self.root is None:
            self.root = next_version(self.published.require_root())
        return self.root.signed

    def edit_targets(self, role: str = TARGETS) -> Targets:
        """The targets to come of a role, to be changed and saved; empty ones for a team that has none yet."""
        if role not in self.targets:
            before = self.published.targets.get(role)
            version = self.published.version(role) + 1
            self.targets[role] = next_version(before) if before else Metadata(Targets(version=version))
        return self.targets[role].signed

    def save(self, role: str) -> None:
        """Keep the version to come of a role. Signatures on what it said before are dropped.

        Raises:
            ReleaseRepositoryError: the disk refuses.
        """
        lifetimes = self._files.lifetimes
        if role == Root.type and self.root is not None:
            stamp(self.root, self._now, lifetimes.root_days)
            self._files.write_pending(role, self.root)
            return
        days = lifetimes.targets_days if role == TARGETS else lifetimes.team_days
        stamp(self.targets[role], self._now, days)
        self._files.write_pending(role, self.targets[role])

    def drop(self, *roles: str) -> None:
        """Forget the versions to come of some roles.

        Raises:
            ReleaseRepositoryError: the disk refuses.
        """
        for role in roles:
            if role == Root.type:
                self.root = None
            else:
                self.targets.pop(role, None)
            self._files.drop_pending(role)

    def latest_targets(self, role: str = TARGETS) -> Targets | None:
        """The targets of a role as they will be, or else are; not to be changed."""
        metadata = self.targets.get(role) or self.published.targets.get(role)
        return metadata.signed if metadata else None

    def latest_delegations(self) -> Delegations | None:
        """To whom the top-level targets delegate; not to be changed."""
        targets = self.latest_targets()
        return targets.delegations if targets else None

    # --- signing ---

    def sign(self, signers: Sequence[Signer]) -> None:
        """Let each signer sign whatever it may.

        Raises:
            SigningKeyError: one of them may sign nothing of what is pending.
            ReleaseRepositoryError: the disk refuses.
        """
        for signer in signers:
            keyid, used = signer.public_key.keyid, False
            for role, metadata in self._pending().items():
                if any(keyid in {*found.signed, *found.unsigned} for found in self._results(role, metadata)):
                    metadata.sign(signer, append=True)
                    self._files.write_pending(role, metadata)
                    used = True
            if not used:
                raise SigningKeyError(
                    f"key {keyid[:8]} may sign nothing of what is pending",
                    hint=f"Pending: {', '.join(self._pending()) or 'nothing'}",
                )

    def collect(self, role: str, path: Path) -> None:
        """Take over the signatures in a copy of a pending file.

        Raises:
            ReleaseRepositoryError: it is not what is pending, or cannot be read.
            MetadataError: it is not metadata.
        """
        metadata = self._pending().get(role)
        if metadata is None:
            raise ReleaseRepositoryError(f"nothing is pending for {role[:80]}", role=role)
        limits = Limits()
        limit = limits.root_bytes if role == Root.type else limits.targets_bytes
        try:
            data = read_bounded(path, limit)
        except OSError as error:
            raise ReleaseRepositoryError(f"{path}: {error.strerror}", path=str(path)) from error
        copy: Metadata[Root] | Metadata[Targets]
        copy = parse(Root, data, role, limit) if role == Root.type else parse(Targets, data, role, limit)
        if copy.signed_bytes != metadata.signed_bytes:
            raise ReleaseRepositoryError(
                f"{path} is not the {role} that is pending",
                role=role, path=str(path), hint="It was changed since, and has to be signed anew",
            )  # fmt: skip
        metadata.signatures.update(copy.signatures)
        self._files.write_pending(role, metadata)

    def status(self) -> tuple[PendingRole, ...]:
        """How far each pending version is."""
        return tuple(self._status(role, metadata) for role, metadata in self._pending().items())

    def ready_root(self) -> Metadata[Root] | None:
        """The root to come, if it is signed enough."""
        return self.root if self.root and all(self._results(Root.type, self.root)) else None

    def ready_targets(self) -> dict[str, Metadata[Targets]]:
        """The targets to come that are signed enough, by role."""
        return {role: metadata for role, metadata in self.targets.items() if self._enough(role, metadata)}

    def _pending(self) -> dict[str, Metadata[Root] | Metadata[Targets]]:
        found: dict[str, Metadata[Root] | Metadata[Targets]] = {Root.type: self.root} if self.root else {}
        return found | self.targets

    def _status(self, role: str, metadata: Metadata[Root] | Metadata[Targets]) -> PendingRole:
        results = self._results(role, metadata)
        judging = results if role == Root.type else results[:1]
        before = self.published.root if role == Root.type else self.published.targets.get(role)
        return PendingRole(
            role=role,
            version=metadata.signed.version,
            path=self._files.pending_path(role),
            expires_at=metadata.signed.expires,
            signed_by=tuple(sorted({keyid for result in results for keyid in result.signed})),
            may_sign=tuple(sorted({keyid for result in results for keyid in result.unsigned})),
            missing=max((result.missing for result in judging), default=1),
            changes=changes(before.signed if before else None, metadata.signed),
        )

    def _enough(self, role: str, metadata: Metadata[Targets]) -> bool:
        results = self._results(role, metadata)
        return bool(results and results[0])

    def _results(self, role: str, metadata: Metadata[Root] | Metadata[Targets]) -> list[VerificationResult]:
        """The signatures as each delegator sees them. Of a root all count; else the first, which is the one to be."""
        data, signatures = metadata.signed_bytes, metadata.signatures
        return [
            judge.get_verification_result(role, data, signatures)
            for judge in self._judges(role)
            if _delegates(judge, role)
        ]

    def _judges(self, role: str) -> list[Root | Targets]:
        published, pending = self.published.root, self.root
        if role == Root.type:
            return [metadata.signed for metadata in (published, pending) if metadata]
        if role == TARGETS:
            return [metadata.signed for metadata in (self.ready_root(), published, pending) if metadata]
        above, coming = self.published.targets.get(TARGETS), self.targets.get(TARGETS)
        ready = coming if coming and self._enough(TARGETS, coming) else None
        return [metadata.signed for metadata in (ready, above, coming) if metadata]


def _delegates(judge: Root | Targets, role: str) -> bool:
    try:
        judge.get_delegated_role(role)
    except ValueError:
        return False
    return True
