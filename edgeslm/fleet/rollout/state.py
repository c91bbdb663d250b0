"""What a rollout is while decisions about it are made, and the decisions. Pure values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from edgeslm.schema.assignment import UpdateWindow
from edgeslm.schema.rollout import Figure, MemberStatus, Phase
from edgeslm.schema.update import Reported, ReportedChange

UNKNOWN_BOARD = "unknown"


@dataclass(frozen=True, slots=True)
class Member:
    """One device of a rollout.

    Attributes:
        device: its name.
        board: its type of board, the class within which devices are compared.
        wave: counted from 0.
        seq: number of the assignment that the rollout gave it last; 0 while none.
        deadline_at: when it has to be done with that.
        base_sha256: package that it ran when it was asked; ``None`` if none.
        force: it is to try the release although that failed on it before.
        spare: a later wave gave it to this one.
        figures: what its gate measured;
        trials: and in earlier tries.
    """

    device: str
    board: str
    wave: int
    status: MemberStatus = "waiting"
    seq: int = 0
    deadline_at: datetime | None = None
    base_sha256: str | None = None
    cause: str | None = None
    detail: str = ""
    force: bool = False
    spare: bool = False
    figures: tuple[Figure, ...] = ()
    trials: tuple[tuple[Figure, ...], ...] = ()


@dataclass(frozen=True)
class RolloutState:
    """A rollout as the store has it; see :class:`edgeslm.fleet.store.rollouts.RolloutRow`."""

    sha256: str
    phase: Phase
    wave: int
    members: tuple[Member, ...]
    reason: str = ""
    approved: int = 0
    accepted_wave: int = -1
    accepted_failures: int = 0


@dataclass(frozen=True, slots=True)
class Seen:
    """What a device last said about the name of the release.

    Attributes:
        assignment: number of the one that it follows.
        sha256: of the package that runs.
    """

    assignment: int
    sha256: str | None
    version: str | None
    change: ReportedChange | None

    @classmethod
    def of(cls, reported: Reported, name: str) -> Seen:
        """The part of a report that is about `name`."""
        model = next((model for model in reported.models if model.name == name), None)
        if model is None:
            return cls(reported.assignment, None, None, None)
        return cls(reported.assignment, model.sha256, model.version, model.change)


@dataclass(frozen=True)
class Circumstances:
    """What else matters for a rollout at the moment.

    Attributes:
        pinned: why rollouts leave devices alone, by device.
        quarantined: why devices are not believed, by device.
        blocked: older rollout that has to be done with a device first, by device.
    """

    pinned: Mapping[str, str] = field(default_factory=dict)
    quarantined: Mapping[str, str] = field(default_factory=dict)
    blocked: Mapping[str, int] = field(default_factory=dict)


# --- decisions ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Note:
    """Write down what became of a device."""

    device: str
    status: MemberStatus
    cause: str | None = None
    detail: str = ""
    figures: tuple[Figure, ...] = ()


@dataclass(frozen=True)
class Ask:
    """Assign the release to a device."""

    device: str
    deadline_at: datetime
    window: UpdateWindow | None
    force: bool


@dataclass(frozen=True)
class Return:
    """Assign a device back to what it ran."""

    device: str
    deadline_at: datetime


@dataclass(frozen=True)
class Draw:
    """Let a device of a later wave join the present one."""

    device: str
    wave: int


@dataclass(frozen=True)
class Again:
    """Let a device whose gate failed try once more: there is no other of its type to ask."""

    device: str


@dataclass(frozen=True)
class Advance:
    """Begin a wave."""

    wave: int


@dataclass(frozen=True)
class Enter:
    """Go to another phase."""

    phase: Phase
    reason: str


Decision = Note | Ask | Return | Draw | Again | Advance | Enter
