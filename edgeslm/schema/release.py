"""Releases: what a signed repository says about a package, and what a device makes of it.

Paths of a release's files follow from its name, version and digests alone; none is ever read from metadata. They
carry the digest of their content, so that a file once published never changes (TUF calls that consistent
snapshots).
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AwareDatetime, Field, StringConstraints, TypeAdapter

from edgeslm.schema.agent_release import MAX_BUILDS, AgentTarget
from edgeslm.schema.assignment import Assignment
from edgeslm.schema.base import FileModel, Identifier, SemanticVersion, Sha256, WireModel
from edgeslm.schema.message import Task
from edgeslm.schema.package import RuntimeKind
from edgeslm.schema.remote_config import RemoteConfig

MAX_DELTAS = 32
MAX_RELEASE_BYTES = 2**40

NO_FLOOR = "0.0.0"
FLOORS_FIELD = "x-edgeslm-floors"
"""Signed field of targets metadata: security floor by name. It outlives the releases that raised it."""
FLOORS: TypeAdapter[dict[str, str]] = TypeAdapter(dict[Identifier, SemanticVersion])

SideKind = Literal["slm.chunks", "delta"]
LifetimeDays = Annotated[int, Field(ge=1, le=3650)]
SizeBytes = Annotated[int, Field(ge=0, le=MAX_RELEASE_BYTES)]


def target_path(name: str, version: str) -> str:
    """The TUF target path of a release."""
    return f"packages/{name}/{version}/{name}-{version}.slm"


class SideFile(WireModel):
    """A file that helps to deliver a release: its chunk map, or a delta to it."""

    sha256: Sha256
    size_bytes: SizeBytes


class ReleaseRequirements(WireModel):
    """What a device must have to run the release.

    Attributes:
        agent: least version of the agent.
        runtimes: of which the device needs one.
    """

    ram_mb: Annotated[int, Field(ge=0, le=1_048_576)]
    cpu_features: Annotated[
        tuple[Annotated[str, StringConstraints(max_length=64)], ...], Field(max_length=32)
    ]
    agent: SemanticVersion
    runtimes: Annotated[tuple[RuntimeKind, ...], Field(max_length=8)]


class ReleaseInfo(WireModel):
    """What the signer of a release says about it (``custom`` of its TUF target).

    Attributes:
        sha256: of the package file.
        size_bytes: of the package file.
        security_floor: lowest version of this name that is still safe.
        chunks: its chunk map.
        deltas: by the sha256 of the package that each starts from.
    """

    v: Literal[1] = 1
    name: Identifier
    version: SemanticVersion
    task: Task
    sha256: Sha256
    size_bytes: SizeBytes
    security_floor: SemanticVersion
    requires: ReleaseRequirements
    chunks: SideFile | None = None
    deltas: dict[Sha256, SideFile] = Field(default_factory=dict, max_length=MAX_DELTAS)

    @property
    def file_path(self) -> str:
        """Where the package lies in the repository."""
        return self._path(self.sha256, "slm")

    @property
    def chunks_path(self) -> str | None:
        """Where its chunk map lies, if it has one."""
        return self.side_path(self.chunks, "slm.chunks") if self.chunks else None

    def delta_path(self, from_sha256: str) -> str | None:
        """Where the delta from the package `from_sha256` lies, if there is one."""
        delta = self.deltas.get(from_sha256)
        return self.side_path(delta, "delta") if delta else None

    def side_path(self, side: SideFile, kind: SideKind) -> str:
        """Where a file beside the package lies."""
        return self._path(side.sha256, kind)

    @property
    def paths(self) -> tuple[str, ...]:
        """Where all its files lie."""
        sides = (self.chunks_path, *(self.delta_path(sha256) for sha256 in self.deltas))
        return (self.file_path, *(path for path in sides if path is not None))

    def _path(self, sha256: str, kind: str) -> str:
        return f"targets/packages/{self.name}/{self.version}/{sha256}.{self.name}-{self.version}.{kind}"


class ReleaseTarget(WireModel):
    """A release that trusted metadata vouches for.

    Attributes:
        role: the TUF role that does.
        floor: lowest version of this name that any role asked for it calls safe.
    """

    role: str
    info: ReleaseInfo
    floor: SemanticVersion


class Lifetimes(FileModel):
    """How long what each role signs is good for, in days.

    What is signed offline lives long, since people have to meet to sign it again; what is signed by a machine lives
    short, since that is how long somebody can hold a device at an old state without its noticing.
    """

    root_days: LifetimeDays = 365
    targets_days: LifetimeDays = 365
    team_days: LifetimeDays = 180
    snapshot_days: LifetimeDays = 30
    timestamp_days: LifetimeDays = 7


# --- a check in a child process -----------------------------------------------------------------------------


class HeldRelease(FileModel):
    """What a device runs under a name.

    Attributes:
        security_floor: as stated by the package that it runs.
    """

    version: SemanticVersion
    security_floor: SemanticVersion


class WantedAgent(FileModel):
    """A version of the agent itself, by one of its archives.

    Attributes:
        running: version that asks; ``allow_downgrade`` is what makes an older one than that acceptable.
    """

    version: SemanticVersion
    sha256: Sha256
    running: SemanticVersion
    allow_downgrade: bool = False


class CheckRequest(FileModel):
    """What the agent asks of a trust check.

    Attributes:
        state_dir: directory of the trusted metadata.
        device_key_sha256: digest of the device's public key (DER, SubjectPublicKeyInfo).
        assignment: body of the assignment, where there is one to follow.
        last_seq: sequence number of the assignment followed last; 0 if none.
        held: what runs, by name.
        configuration: a signed configuration to judge, where there is one.
        last_config: version of the configuration taken up last; 0 if none.
        agents: archives of the agent itself to find.
    """

    state_dir: str
    fleet: Identifier
    device: Identifier
    device_key_sha256: Sha256
    assignment: str | None = None
    last_seq: Annotated[int, Field(ge=0)] = 0
    held: dict[Identifier, HeldRelease] = Field(default_factory=dict)
    configuration: str | None = None
    last_config: Annotated[int, Field(ge=0)] = 0
    agents: Annotated[tuple[WantedAgent, ...], Field(max_length=MAX_BUILDS)] = ()


class Refusal(FileModel):
    """Why something was not accepted.

    Attributes:
        error: name of the class in :mod:`edgeslm.errors`.
    """

    error: str
    message: str
    role: str | None = None
    expected: str | None = None
    actual: str | None = None


class CheckedRelease(FileModel):
    """One release of the assignment: the target to fetch, or why it is refused."""

    name: Identifier
    version: SemanticVersion
    target: ReleaseTarget | None = None
    refused: Refusal | None = None


class CheckedAgent(FileModel):
    """One archive of the agent: the target to fetch, or why it is refused."""

    version: SemanticVersion
    sha256: Sha256
    target: AgentTarget | None = None
    refused: Refusal | None = None


class CheckResult(FileModel):
    """What a trust check found.

    Attributes:
        now: the time that was used.
        clock: where that time came from; anything but ``wall`` means that the wall clock is behind.
        expires_at: when the first of the metadata in use expires; ``None`` while none can be used.
        refresh_refused: why newer metadata could not be had or was not accepted.
        assignment: the assignment, if it was accepted.
        assignment_refused: why it was not.
        releases: what it assigns, one by one.
        configuration: the configuration, if it was accepted.
        configuration_refused: why it was not.
        agents: the archives of the agent that were asked for, one by one.
    """

    now: AwareDatetime
    clock: Literal["wall", "built", "signed", "remembered"]
    expires_at: AwareDatetime | None = None
    refresh_refused: Refusal | None = None
    assignment: Assignment | None = None
    assignment_refused: Refusal | None = None
    releases: tuple[CheckedRelease, ...] = ()
    configuration: RemoteConfig | None = None
    configuration_refused: Refusal | None = None
    agents: tuple[CheckedAgent, ...] = ()
