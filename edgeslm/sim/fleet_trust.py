"""What simulated devices believe: assignments and releases, judged for all of them in one process.

What always holds: with a repository an assignment is followed only where the check of real devices
(:func:`edgeslm.trust.assignment.verify_assignment`) accepts it, and a release is taken only where the repository
vouches for it. The metadata is fetched and judged once for the whole simulated fleet, and not by each device anew.

Without a repository, assignments are read and not checked, and every release exists.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Final, Protocol

from pydantic import ValidationError
from tuf.api.metadata import Targets

from edgeslm.agent.update.change import Wanted
from edgeslm.codec import describe
from edgeslm.errors import (
    AssignmentFormatError,
    AssignmentSignatureError,
    EdgeslmError,
    ReplayedAssignmentError,
)
from edgeslm.schema.assignment import MAX_ASSIGNMENT_BYTES, Assignment
from edgeslm.schema.release import NO_FLOOR, HeldRelease, ReleaseInfo, ReleaseRequirements, ReleaseTarget
from edgeslm.schema.sim_fleet import ReleaseEffect
from edgeslm.sim.fleet_update import Running
from edgeslm.trust.assignment import verify_assignment
from edgeslm.trust.clock import Remembered, trusted_time
from edgeslm.trust.decisions import parse_json
from edgeslm.trust.fetch import Fetch
from edgeslm.trust.releases import TrustedReleases, enrol
from edgeslm.trust.storage import TrustStorage
from edgeslm.trust.versions import check_version

_AGAIN_S: Final = 2.0
"""The repository is asked this often at most; all devices share what it said."""
_SIZE_MB: Final = 4.0


@dataclass(frozen=True)
class Recipient:
    """Who an assignment came to.

    Attributes:
        clock: its clock; where that is behind, the newest time that is known to have passed counts instead.
    """

    fleet: str
    device: str
    key_sha256: str
    clock: datetime


class Trust(Protocol):
    """What devices believe."""

    def judge(self, body: bytes, to: Recipient, last_seq: int) -> Assignment:
        """The assignment in `body`, if it may be followed.

        Args:
            body: as it came.
            to: who got it.
            last_seq: number of the assignment that is followed; 0 if none.

        Raises:
            AssignmentError: it may not.
            EdgeslmError: the repository cannot be had, or is not to be trusted.
        """

    def find(self, wanted: Wanted, running: Running | None) -> ReleaseTarget:
        """What trusted metadata says of a release that is to replace `running`.

        Raises:
            TrustError: nobody vouches for it, or the version must not replace what runs.
            EdgeslmError: the repository cannot be had.
        """

    def digest(self, name: str, version: str) -> str:
        """Sha256 of a package that devices begin with."""


class Credulous:
    """Believes everything that has the form of an assignment."""

    def __init__(self, effects: tuple[ReleaseEffect, ...] = ()) -> None:
        """Take the sizes of packages from `effects`."""
        self._sizes_mb: Mapping[str, float] = {effect.release: effect.size_mb for effect in effects}

    def judge(self, body: bytes, to: Recipient, last_seq: int) -> Assignment:
        """See :class:`Trust`."""
        if len(body) > MAX_ASSIGNMENT_BYTES:
            raise AssignmentFormatError("the assignment is longer than it may be", role="assignment")
        try:
            value = parse_json(body)
            signed = value.get("signed", value) if isinstance(value, dict) else value
            assignment = Assignment.model_validate(signed, strict=False)
        except ValidationError as error:
            raise AssignmentFormatError(f"the assignment: {describe(error)}", role="assignment") from error
        except ValueError as error:
            raise AssignmentFormatError(f"the assignment is not JSON: {error}", role="assignment") from error
        if (assignment.fleet, assignment.device) != (to.fleet, to.device):
            raise AssignmentFormatError("the assignment is for another device", role="assignment")
        if assignment.seq < last_seq:
            raise ReplayedAssignmentError(
                "the assignment is older than the one followed last", role="assignment"
            )
        return assignment

    def find(self, wanted: Wanted, running: Running | None) -> ReleaseTarget:
        """See :class:`Trust`."""
        size_mb = self._sizes_mb.get(f"{wanted.name}@{wanted.version}", _SIZE_MB)
        target = ReleaseTarget(
            role="targets",
            floor=NO_FLOOR,
            info=ReleaseInfo(
                name=wanted.name,
                version=wanted.version,
                task="generate",
                sha256=wanted.sha256,
                size_bytes=int(size_mb * 1e6),
                security_floor=NO_FLOOR,
                requires=ReleaseRequirements(
                    ram_mb=64, cpu_features=(), agent="0.0.0", runtimes=("litert", "tflite-runtime")
                ),
            ),
        )
        return _checked(target, wanted, running)

    def digest(self, name: str, version: str) -> str:
        """See :class:`Trust`."""
        return invented_digest(name, version)


@dataclass
class Verifying:
    """Believes what a release repository vouches for, and nothing else.

    Attributes:
        releases: the device's view of it, shared by all.
    """

    releases: TrustedReleases
    _authority: Targets | None = None
    _asked_s: float = float("-inf")
    _found: dict[tuple[str, str], ReleaseTarget] = field(default_factory=dict)

    @classmethod
    def open(cls, directory: Path, root: bytes, fetch: Fetch) -> Verifying:
        """Trust the repository of `root`.

        Args:
            directory: for its metadata; new.
            root: the root that devices begin with.
            fetch: gets files of the repository.

        Raises:
            MetadataError: what the repository says is not to be trusted.
            MetadataFetchError: it cannot be reached.
            TrustStateError: the disk refuses.
        """
        storage = TrustStorage(directory)
        enrol(storage, root)
        trust = cls(TrustedReleases(storage, fetch))
        trust.refresh()
        return trust

    def refresh(self) -> bool:
        """Ask for what is new, unless that was done a moment ago; whether it was asked.

        Raises:
            MetadataError: what the repository says is not to be trusted; what was trusted stays.
            MetadataFetchError: it cannot be reached.
            TrustStateError: the disk refuses.
        """
        if time.monotonic() - self._asked_s < _AGAIN_S:
            return False
        self._asked_s = time.monotonic()
        self.releases.refresh()
        self._authority = self.releases.targets
        self._found.clear()
        return True

    def judge(self, body: bytes, to: Recipient, last_seq: int) -> Assignment:
        """See :class:`Trust`."""
        try:
            return self._judge(body, to, last_seq)
        except AssignmentSignatureError:
            if not self.refresh():  # keys may have changed
                raise
            return self._judge(body, to, last_seq)

    def find(self, wanted: Wanted, running: Running | None) -> ReleaseTarget:
        """See :class:`Trust`."""
        return _checked(self._find(wanted.name, wanted.version), wanted, running)

    def digest(self, name: str, version: str) -> str:
        """See :class:`Trust`; releases that the repository does not know are invented ones."""
        try:
            return self._find(name, version).info.sha256
        except EdgeslmError:
            return invented_digest(name, version)

    def _judge(self, body: bytes, to: Recipient, last_seq: int) -> Assignment:
        authority = self._authority or self.releases.targets
        return verify_assignment(
            body,
            authority,
            fleet=to.fleet,
            device=to.device,
            device_key_sha256=to.key_sha256,
            last_seq=last_seq,
            now=trusted_time(to.clock, Remembered(), root_issued=None, signers=()).at,
        )

    def _find(self, name: str, version: str) -> ReleaseTarget:
        known = self._found.get((name, version))
        if known is not None:
            return known
        try:
            found = self.releases.find(name, version)
        except EdgeslmError:
            if not self.refresh():
                raise
            found = self.releases.find(name, version)
        self._found[name, version] = found
        return found


def invented_digest(name: str, version: str) -> str:
    """The sha256 that a package has which does not exist."""
    return hashlib.sha256(f"simulated {name}@{version}".encode()).hexdigest()


def _checked(target: ReleaseTarget, wanted: Wanted, running: Running | None) -> ReleaseTarget:
    held = None if running is None else HeldRelease(version=running.version, security_floor=NO_FLOOR)
    check_version(target, held=held, allow_downgrade=wanted.allow_downgrade)
    return target
