"""Rollouts: what an operator asks for (the plan), the states that devices and rollouts go through, and what is shown.

A plan is kept in the store as it was given, so that whoever carries it on knows what was meant.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, time, timedelta
from typing import Annotated, Final, Literal, Self
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import Field, StringConstraints, model_validator

from edgeslm.schema.assignment import UpdateWindow
from edgeslm.schema.base import FileModel, Identifier
from edgeslm.schema.fleet import Record
from edgeslm.schema.update import Criterion

Phase = Literal["running", "waiting", "paused", "returning", "completed", "aborted", "superseded"]
"""``waiting`` is for an operator's approval of the next wave; ``returning`` takes devices back to what they ran."""
FINISHED: Final[frozenset[Phase]] = frozenset(("completed", "aborted", "superseded"))

MemberStatus = Literal[
    "waiting", "asked", "passed", "unproven", "failed", "silent", "skipped", "returning", "returned", "stuck",
    "superseded",
]  # fmt: skip
"""What became of one device.

``unproven`` runs the release without a verdict that says pass; ``silent`` did not say in time what became of it;
``stuck`` could not be taken back.
"""
UNSETTLED: Final[frozenset[MemberStatus]] = frozenset(("waiting", "asked", "returning"))
FAILURES: Final[frozenset[MemberStatus]] = frozenset(("failed", "silent", "stuck"))

DEFAULT_WAVES = "1 per board, 10%, 50%, 100%"
MAX_WAVES = 20
LEAST_CHANGE, LARGEST_CHANGE, MAX_PROMPTS = -0.99, 10.0, 1_000_000

_WAVE = re.compile(
    r"(?:(?P<per>\d{1,3}) per board|(?P<percent>\d{1,3}) ?%|(?P<count>\d{1,6})|group (?P<group>\S{1,64}))"
)
_WINDOW = re.compile(r"(\d{2}:\d{2})-(\d{2}:\d{2})(?: (\S{1,64}))?")

Text = Annotated[str, StringConstraints(max_length=500)]
_Believable = Annotated[float, Field(ge=LEAST_CHANGE, le=LARGEST_CHANGE, allow_inf_nan=False)]


class Wave(FileModel):
    """How many devices one wave brings.

    Attributes:
        kind: ``per_board`` takes `amount` devices of each type of board; ``count`` takes `amount` more; ``percent``
            goes on until `amount` percent of all have been asked; ``group`` takes those of `group`.
    """

    kind: Literal["per_board", "count", "percent", "group"]
    amount: Annotated[int, Field(ge=1, le=1_000_000)] = 1
    group: Identifier | None = None

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if (self.kind == "group") != (self.group is not None):
            raise ValueError("a wave of a group names it, and no other does")
        if self.kind == "percent" and self.amount > 100:
            raise ValueError("more than 100 percent")
        return self

    def __str__(self) -> str:
        texts = {
            "per_board": f"{self.amount} per board",
            "count": str(self.amount),
            "percent": f"{self.amount}%",
            "group": f"group {self.group}",
        }
        return texts[self.kind]


def parse_waves(text: str) -> tuple[Wave, ...]:
    """The waves in a text such as ``1 per board, 10%, 50%, 100%``.

    Raises:
        ValueError: it is none; the message says which part.
    """
    waves = []
    for part in text.split(","):
        match = _WAVE.fullmatch(" ".join(part.split()))
        if match is None:
            raise ValueError(
                f"'{part.strip()[:40]}' is no wave; write '1 per board', '5', '10%' or 'group NAME'"
            )
        per, percent, count, group = match.group("per", "percent", "count", "group")
        if group is not None:
            waves.append(Wave(kind="group", group=group))
        elif percent is not None:
            waves.append(Wave(kind="percent", amount=int(percent)))
        elif per is not None:
            waves.append(Wave(kind="per_board", amount=int(per)))
        else:
            waves.append(Wave(kind="count", amount=int(count)))
    if len(waves) > MAX_WAVES:
        raise ValueError(f"more than {MAX_WAVES} waves")
    return tuple(waves)


class DailyWindow(FileModel):
    """Hours of each day in which devices may begin to change; past midnight where it closes before it opens.

    Attributes:
        zone: name of the time zone that the hours are told in.
    """

    opens: Annotated[str, StringConstraints(pattern=r"^([01]\d|2[0-3]):[0-5]\d$")]
    closes: Annotated[str, StringConstraints(pattern=r"^([01]\d|2[0-3]):[0-5]\d$")]
    zone: Annotated[str, StringConstraints(max_length=64)] = "UTC"

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        if self.opens == self.closes:
            raise ValueError("the window closes when it opens")
        try:
            ZoneInfo(self.zone)
        except (ZoneInfoNotFoundError, ValueError, OSError) as error:
            raise ValueError(f"no time zone '{self.zone}'") from error
        return self

    def __str__(self) -> str:
        return f"{self.opens}-{self.closes}" + ("" if self.zone == "UTC" else f" {self.zone}")

    def next(self, now: datetime) -> UpdateWindow:
        """The window that is open at `now`, or else the next one."""
        zone = ZoneInfo(self.zone)
        today = now.astimezone(zone).date()
        opens, closes = time.fromisoformat(self.opens), time.fromisoformat(self.closes)
        for offset in (-1, 0, 1, 2):
            day = today + timedelta(days=offset)
            opens_at = datetime.combine(day, opens, zone).astimezone(UTC)
            end = day + timedelta(days=1) if closes <= opens else day
            closes_at = datetime.combine(end, closes, zone).astimezone(UTC)
            if now < closes_at and opens_at < closes_at:
                return UpdateWindow(opens_at=opens_at, closes_at=closes_at)
        raise AssertionError("a day has a window")


def parse_window(text: str) -> DailyWindow:
    """The window in a text such as ``22:00-05:00`` or ``22:00-05:00 Europe/Berlin``.

    Raises:
        ValueError: it is none.
    """
    match = _WINDOW.fullmatch(" ".join(text.split()))
    if match is None:
        raise ValueError(f"'{text[:60]}' is no window; write 22:00-05:00, or 22:00-05:00 Europe/Berlin")
    return DailyWindow(opens=match[1], closes=match[2], zone=match[3] or "UTC")


class RolloutPlan(FileModel):
    """How a release goes through its devices.

    Attributes:
        k: devices of each type of board that have to pass their gate before the next wave, as far as there are that
            many.
        approve: each wave after the first waits for an operator's word.
        deadline_s: seconds after which a device that was asked counts as failed, unless it is done; from the opening
            of the window where there is one.
        success: share of a wave that has to pass before the next one begins without waiting for the others.
        max_failures_share: share of a wave that may fail for other reasons than the gate;
        max_failures: or a number of devices, which takes its place.
        spares: devices of each type of board that a wave may draw from later ones where it needs more to decide.
        on_failure: what follows when the release is at fault: take it back everywhere, or wait for the operator.
        require: what has to have been measured, on one device of the wave at least, before the next wave.
        allow_downgrade: it may be older than what runs.
        force: also devices on which it failed before try it.
    """

    waves: Annotated[tuple[Wave, ...], Field(min_length=1, max_length=MAX_WAVES)]
    k: Annotated[int, Field(ge=1, le=1000)] = 1
    approve: bool = False
    deadline_s: Annotated[float, Field(gt=0, le=30 * 86_400)] = 7200.0
    success: Annotated[float, Field(gt=0, le=1)] = 0.9
    max_failures_share: Annotated[float, Field(ge=0, le=1)] = 0.1
    max_failures: Annotated[int, Field(ge=0, le=1_000_000)] | None = None
    spares: Annotated[int, Field(ge=0, le=100)] = 2
    window: DailyWindow | None = None
    on_failure: Literal["return", "pause"] = "return"
    require: Annotated[tuple[Criterion, ...], Field(max_length=5)] = ()
    allow_downgrade: bool = False
    force: bool = False
    note: Text = ""


class Figure(FileModel):
    """What one device measured of one criterion, as far as a rollout uses it; see ``CriterionVerdict``.

    Bounded, as devices say it: what is beyond is not believed.
    """

    name: Criterion
    outcome: Literal["pass", "fail", "inconclusive", "not_measured"]
    change: _Believable | None = None
    low: _Believable | None = None
    high: _Believable | None = None
    limit: _Believable | None = None
    prompts: Annotated[int, Field(ge=0, le=MAX_PROMPTS)] = 0


# --- what is shown ------------------------------------------------------------------------------------------


class PooledView(Record):
    """What the gates of several devices say together about one criterion.

    Attributes:
        board: type of board; ``None`` is all together.
        change: share by which the release is worse; it lies between `low` and `high` in 90 of 100 cases.
        verdict: ``worse``, ``fine`` or ``open``.
    """

    board: str | None
    criterion: Criterion
    devices: int
    change: float
    low: float
    high: float
    limit: float
    verdict: Literal["worse", "fine", "open"]


class MemberView(Record):
    """One device of a rollout.

    Attributes:
        wave: counted from 1.
        waits_for: what keeps it from being asked.
        base: version that it ran before.
        seq: number of the assignment that it was given last; 0 while none.
    """

    device: str
    board: str
    wave: int
    status: MemberStatus
    cause: str | None = None
    detail: str = ""
    waits_for: str | None = None
    base: str | None = None
    seq: int = 0
    spare: bool = False
    quarantined: bool = False
    deadline_at: datetime | None = None


class WaveView(Record):
    """One wave; counts by status."""

    number: int
    text: str
    devices: int
    counts: dict[MemberStatus, int]


class RolloutView(Record):
    """One rollout.

    Attributes:
        wave: the present one, counted from 1.
        reason: why it is in its phase.
        next: what the operator can do about it.
        supersedes: older rollouts that gave devices up to this one.
    """

    id: int
    release: str
    sha256: str
    phase: Phase
    reason: str = ""
    next: str = ""
    wave: int
    waves: tuple[WaveView, ...]
    devices: int
    passed: int
    failed: int
    plan: RolloutPlan
    created_at: datetime
    created_by: str
    changed_at: datetime
    finished_at: datetime | None = None
    evidence: tuple[PooledView, ...] = ()
    members: tuple[MemberView, ...] = ()


class PinRecord(Record):
    """A device that rollouts leave alone."""

    device: str
    reason: str
    actor: str
    at: datetime


class PlannedView(Record):
    """One device that is to take the release.

    Attributes:
        runs: version of that name that it runs.
        way: how the release comes there.
        unchecked: what could not be checked, as the device has not told.
        returnless: why it could not be taken back.
    """

    device: str
    board: str
    runs: str | None
    way: Literal["nothing", "delta", "full"]
    moves_bytes: int
    unchecked: tuple[str, ...] = ()
    returnless: str | None = None


class LeftOutView(Record):
    """One device that does not take part."""

    device: str
    board: str
    reason: str


class PreflightView(Record):
    """What a rollout would do; devices by wave."""

    release: str
    sha256: str
    moves_bytes: int
    waves: tuple[tuple[PlannedView, ...], ...]
    left_out: tuple[LeftOutView, ...]
    plan: RolloutPlan
