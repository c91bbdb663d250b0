"""A change of one name from one release to another, as values: what the state machine works on.

What always holds: everything here is frozen and can be journalled as JSON. Times are spans of seconds that the device
ran, never clock times, so a clock that says 1970 moves no deadline.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal

from edgeslm.errors import UpdateCause
from edgeslm.schema.assignment import Assignment
from edgeslm.schema.release import ReleaseTarget
from edgeslm.schema.update import TrialMode, UpdateState, Verdict

Effect = Literal[
    "find",
    "check_fit",
    "fetch",
    "install",
    "check_window",
    "try",
    "measure",
    "commit",
    "watch",
    "roll_back",
    "serve_factory",
]
"""A step that the outside world has to take; each can be repeated at any time."""

BEFORE_TRIAL: Final[tuple[UpdateState, ...]] = (
    "offered",
    "preflight",
    "fetching",
    "verified",
    "staged",
    "wait_window",
)
"""The running release has not been touched in these."""
NEEDS_NETWORK: Final[tuple[UpdateState, ...]] = ("offered", "fetching")


@dataclass(frozen=True)
class Wanted:
    """What an assignment wants of one name.

    Attributes:
        sha256: of the package.
        assignment: sequence number of the assignment.
        force: try it although it failed here before.
        is_return: it ran here before, and is compared with nothing.
        opens_at: not before this time (UTC),
        closes_at: nor after this.
    """

    name: str
    version: str
    sha256: str
    assignment: int
    allow_downgrade: bool = False
    force: bool = False
    is_return: bool = False
    opens_at: datetime | None = None
    closes_at: datetime | None = None

    def is_same_release(self, other: Wanted) -> bool:
        """Whether both want the same bytes."""
        return (self.name, self.sha256) == (other.name, other.sha256)


def wanted_by(assignment: Assignment) -> tuple[Wanted, ...]:
    """What an assignment wants, name by name."""
    window = assignment.window
    return tuple(
        Wanted(
            name=name,
            version=release.version,
            sha256=release.sha256,
            assignment=assignment.seq,
            allow_downgrade=release.allow_downgrade,
            force=release.force,
            is_return=release.is_return,
            opens_at=None if window is None else window.opens_at,
            closes_at=None if window is None else window.closes_at,
        )
        for name, release in sorted(assignment.releases.items())
    )


@dataclass(frozen=True)
class Fault:
    """Why a step failed.

    Attributes:
        detail: for people.
        retry_after_s: when trying again makes sense, where somebody said so.
    """

    cause: UpdateCause
    detail: str
    retry_after_s: float | None = None


@dataclass(frozen=True)
class Change:
    """One change, from the offer to its end.

    Attributes:
        number: rises with every change on this device.
        base: sha256 of the package that served when it began; ``None`` where none did.
        jitter: from 0 to 1, keeps the devices of a fleet from trying again all at once.
        target: what trusted metadata says about the release, once it was found.
        file: path of what was fetched; empty where nothing had to be.
        attempt: which try at this state's step it is.
        corruptions: how often what was fetched turned out to be something else.
        spent_s: seconds in this state so far, as far as they count.
        wait_s: seconds until the next step is due,
        waits_for: and what for, where it is not a failure.
        mode: how it is or was tried.
        swapped: the candidate answers prompts.
        served_s: seconds in which it has done so.
        crashes: unexpected ends of the agent, in a row before the trial, in the trial, or since the commit,
        reboots: and of the board soon after a start, since the commit.
        swap_s: seconds in which no prompt could begin while releases were swapped.
        settled: nothing more will happen.
        fault: why it failed, or what the last try failed of.
    """

    number: int
    wanted: Wanted
    base: str | None
    jitter: float = 0.0
    state: UpdateState = "offered"
    target: ReleaseTarget | None = None
    file: str = ""
    attempt: int = 1
    corruptions: int = 0
    spent_s: float = 0.0
    wait_s: float = 0.0
    waits_for: str = ""
    mode: TrialMode | None = None
    swapped: bool = False
    served_s: float = 0.0
    crashes: int = 0
    reboots: int = 0
    swap_s: float | None = None
    settled: bool = False
    fault: Fault | None = None
    verdict: Verdict | None = None

    @property
    def name(self) -> str:
        """Of the model."""
        return self.wanted.name


@dataclass(frozen=True)
class Denial:
    """A release that is not tried again for now.

    Attributes:
        assignment: sequence number of the assignment under which it failed.
        for_good: it failed by its own fault; otherwise a newer assignment is enough to try it again.
        forced: it was tried by force when it failed.
    """

    name: str
    sha256: str
    version: str
    cause: UpdateCause
    assignment: int
    for_good: bool
    forced: bool


# --- events -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Offer:
    """A release that should run and does not."""

    number: int
    wanted: Wanted
    base: str | None
    jitter: float = 0.0


@dataclass(frozen=True)
class Supersede:
    """The change under way is no longer wanted."""


@dataclass(frozen=True)
class Abort:
    """Somebody stops the change."""

    detail: str


@dataclass(frozen=True)
class Started:
    """The agent starts.

    Attributes:
        crashed: the last run ended without saying so.
        rebooted: the board started anew since then.
        ran_s: seconds that the last run lasted, as far as is known.
    """

    crashed: bool
    rebooted: bool
    ran_s: float


@dataclass(frozen=True)
class Tick:
    """Time passed."""

    elapsed_s: float
    online: bool


@dataclass(frozen=True)
class Reconnected:
    """The network is back."""


@dataclass(frozen=True)
class Found:
    """Trusted metadata vouches for the release."""

    target: ReleaseTarget


@dataclass(frozen=True)
class Fits:
    """This device can run it and has room for it."""


@dataclass(frozen=True)
class Fetched:
    """Its file is here and is the right one.

    Attributes:
        file: its path; empty where the store has the package already.
    """

    file: str


@dataclass(frozen=True)
class Installed:
    """It lies unpacked in the store."""


@dataclass(frozen=True)
class Ready:
    """The release may be tried now, in this way."""

    mode: TrialMode


@dataclass(frozen=True)
class NotYet:
    """The step has to be taken again later.

    Attributes:
        wait_s: seconds until then.
        detail: what it waits for.
    """

    wait_s: float
    detail: str


@dataclass(frozen=True)
class Tried:
    """It loads and answers."""


@dataclass(frozen=True)
class Judged:
    """The gate has decided."""

    verdict: Verdict


@dataclass(frozen=True)
class Swapped:
    """It answers prompts."""

    swap_s: float


@dataclass(frozen=True)
class Healthy:
    """It has served long enough without trouble."""


@dataclass(frozen=True)
class RolledBack:
    """What served before serves again."""


@dataclass(frozen=True)
class FactoryServed:
    """The factory package serves."""


@dataclass(frozen=True)
class Failed:
    """A step failed."""

    fault: Fault


Event = (
    Offer | Supersede | Abort | Started | Tick | Reconnected | Found | Fits | Fetched | Installed | Ready | NotYet
    | Tried | Judged | Swapped | Healthy | RolledBack | FactoryServed | Failed
)  # fmt: skip
