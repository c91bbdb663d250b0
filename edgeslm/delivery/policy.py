"""What is fetched, from whom, when and how fast: decisions without a clock, a disk or a network.

Times come in as arguments: `now_s` from a monotonic clock, `now` as local time of day.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime, time, timedelta
from typing import Literal

from edgeslm.delivery.port import Reach
from edgeslm.errors import DeliveryPolicyError
from edgeslm.schema.delivery import BlobRef, DeliveryPolicy, DeliveryTarget

Kind = Literal["full", "delta"]

METERED_CHECK_S = 600.0
"""When to look again whether a link is still metered: nothing tells."""
MAX_RETRY_AFTER_S = 3600.0
"""No source may keep us away for longer, whatever it says."""


# --- rates --------------------------------------------------------------------------------------------------


class TokenBucket:
    """Bytes that may pass: at most `bytes_per_s`, and a second's worth at once."""

    def __init__(self, bytes_per_s: float, now_s: float) -> None:
        self._bytes_per_s = bytes_per_s
        self._left = bytes_per_s
        self._at_s = now_s

    def take(self, size_bytes: int, now_s: float) -> float:
        """Let `size_bytes` pass; seconds to wait before more do."""
        refilled = self._left + (now_s - self._at_s) * self._bytes_per_s
        self._left = min(refilled, self._bytes_per_s) - size_bytes
        self._at_s = now_s
        return max(0.0, -self._left / self._bytes_per_s)


class RateFloor:
    """Tells a source that gives less than the least rate, by the time that was spent waiting for it."""

    def __init__(self, bytes_per_s: float, window_s: float) -> None:
        self._bytes_per_s = bytes_per_s
        self._window_s = window_s
        self._waited_s = 0.0
        self._came_bytes = 0

    def too_slow(self, waited_s: float, came_bytes: int) -> bool:
        """Count a wait of `waited_s` that brought `came_bytes`; whether the window is over and was too slow."""
        self._waited_s += waited_s
        self._came_bytes += came_bytes
        if self._waited_s < self._window_s:
            return False
        slow = self._came_bytes < self._bytes_per_s * self._waited_s
        self._waited_s, self._came_bytes = 0.0, 0
        return slow


class RateMeter:
    """The rate of late: a mean that forgets within some seconds."""

    _FORGET_S = 5.0

    def __init__(self, now_s: float) -> None:
        self._rate = 0.0
        self._came_bytes = 0
        self._at_s = now_s

    def add(self, size_bytes: int, now_s: float) -> float:
        """Count what came; bytes a second."""
        self._came_bytes += size_bytes
        passed_s = now_s - self._at_s
        if passed_s >= 0.25:
            share = min(1.0, passed_s / self._FORGET_S) if self._rate else 1.0
            self._rate += share * (self._came_bytes / passed_s - self._rate)
            self._came_bytes, self._at_s = 0, now_s
        return self._rate


def backoff_s(failures: int, policy: DeliveryPolicy, chance: float) -> float:
    """Seconds to leave a source alone after so many failures in a row.

    Args:
        failures: at least 1.
        policy: states the first wait and the longest.
        chance: from 0 to 1; spreads many devices that failed at once over half of the time.
    """
    longest = min(policy.max_retry_s, policy.retry_s * 2.0 ** min(failures - 1, 32))
    return longest * (0.5 + chance / 2)


# --- sources ------------------------------------------------------------------------------------------------


MAX_LIES = 3
"""Wrong blocks or answers after which a source is left for good: a bit may flip once, on any link."""


@dataclass(frozen=True)
class SourceState:
    """What is known of a source during one delivery.

    Attributes:
        failures: in a row, without anything gained.
        lies: in all.
        ready_at_s: when it may be asked again.
        dropped: why it is not asked again.
        problem: what it failed with last.
    """

    failures: int = 0
    lies: int = 0
    ready_at_s: float = 0.0
    dropped: str | None = None
    problem: str | None = None

    def failed(
        self, problem: str, now_s: float, policy: DeliveryPolicy, chance: float, retry_after_s: float | None
    ) -> SourceState:
        """After a failure that gained nothing."""
        wait_s = max(
            backoff_s(self.failures + 1, policy, chance), min(retry_after_s or 0.0, MAX_RETRY_AFTER_S)
        )
        return SourceState(self.failures + 1, self.lies, now_s + wait_s, None, problem)

    def broke_off(self, problem: str) -> SourceState:
        """After a failure before which blocks came: links break, and it may go on at once."""
        return SourceState(0, self.lies, 0.0, None, problem)

    def lied(self, problem: str, now_s: float, policy: DeliveryPolicy, chance: float) -> SourceState:
        """After it said or sent what cannot be."""
        if self.lies + 1 >= MAX_LIES:
            return SourceState(self.failures, self.lies + 1, 0.0, problem, problem)
        after = self.failed(problem, now_s, policy, chance, None)
        return SourceState(after.failures, self.lies + 1, after.ready_at_s, None, problem)

    def exposed(self, problem: str) -> SourceState:
        """After all that it gave turned out to be another file."""
        return SourceState(self.failures, MAX_LIES, 0.0, problem, problem)

    def without(self, problem: str) -> SourceState:
        """After it said that it does not have the file."""
        return SourceState(self.failures, self.lies, 0.0, problem, problem)


def choose(states: Collection[SourceState], now_s: float) -> int | None:
    """The first source, in order of preference, that may be asked now."""
    for index, state in enumerate(states):
        if state.dropped is None and state.ready_at_s <= now_s:
            return index
    return None


# --- what is allowed ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Conditions:
    """What the policy is measured against.

    Attributes:
        metered: bytes over the wide-area link cost.
        now: local time.
    """

    metered: bool
    now: datetime


def opens_in_s(policy: DeliveryPolicy, now: datetime) -> float:
    """Seconds until the hours of `policy` begin; 0 within them, and where there are none."""
    if policy.hours is None:
        return 0.0
    opens, closes, at = policy.opens, policy.closes, now.time()
    inside = opens <= at < closes if opens < closes else at >= opens or at < closes
    if inside:
        return 0.0
    return (_on_day(now, opens) - _on_day(now, at)).total_seconds() % timedelta(days=1).total_seconds()


def _on_day(day: datetime, at: time) -> datetime:
    return datetime.combine(day.date(), at.replace(tzinfo=None))


def check_wan(policy: DeliveryPolicy, conditions: Conditions, kind: Kind, moves_bytes: int) -> None:
    """Whether a file may come over the wide-area link now.

    Args:
        policy: what is allowed.
        conditions: as they are.
        kind: of the file.
        moves_bytes: that are still to come.

    Raises:
        DeliveryPolicyError: it may not; when to ask again.
    """
    wait_s = opens_in_s(policy, conditions.now)
    if wait_s:
        raise DeliveryPolicyError(f"outside of the hours {policy.hours}", retry_after_s=wait_s)
    if not conditions.metered:
        return
    if policy.metered == "refuse" or (policy.metered == "delta" and kind != "delta"):
        what = "nothing" if policy.metered == "refuse" else "deltas only"
        raise DeliveryPolicyError(
            f"the link is metered, and the policy allows {what}", retry_after_s=METERED_CHECK_S
        )
    if policy.metered_max_bytes is not None and moves_bytes > policy.metered_max_bytes:
        raise DeliveryPolicyError(
            f"the link is metered, and {moves_bytes / 2**20:.1f} MiB are more than the allowed "
            f"{policy.metered_max_bytes / 2**20:.1f} MiB",
            retry_after_s=METERED_CHECK_S,
        )


# --- plans --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Step:
    """One way to the package.

    Attributes:
        blob: what to fetch.
        base_sha256: what to apply it to, if it is a delta.
        reaches: the sources to take.
        moves_bytes: predicted, over any network.
    """

    blob: BlobRef
    base_sha256: str | None
    reaches: frozenset[Reach]
    moves_bytes: int

    @property
    def kind(self) -> Kind:
        """Of its blob."""
        return "full" if self.base_sha256 is None else "delta"


def plan_delivery(
    target: DeliveryTarget,
    *,
    have: Collection[str],
    arrived_bytes: Mapping[str, int],
    reaches: Collection[Reach],
    policy: DeliveryPolicy,
    conditions: Conditions,
) -> tuple[Step, ...]:
    """The ways to `target`, the one that moves least first; over a metered link only its bytes count.

    Args:
        target: what to bring here.
        have: sha256 of the packages that are installed.
        arrived_bytes: by sha256, what is here already of files that were begun.
        reaches: of the sources that there are.
        policy: what is allowed.
        conditions: as they are.

    Raises:
        DeliveryPolicyError: there are sources, and the policy allows none of them now.
    """
    refusal: DeliveryPolicyError | None = None
    ranked: list[tuple[int, int, Step]] = []
    files: list[tuple[BlobRef, str | None]] = [(target.package, None)]
    files += [(delta.blob, delta.base_sha256) for delta in target.deltas if delta.base_sha256 in have]
    there = frozenset(reaches)
    for blob, base_sha256 in files:
        left_bytes = max(0, blob.size_bytes - arrived_bytes.get(blob.sha256, 0))
        wan = "wan" in there
        try:
            if wan:
                check_wan(policy, conditions, "full" if base_sha256 is None else "delta", left_bytes)
        except DeliveryPolicyError as error:
            wan, refusal = False, error
        groups = [there & {"local"}]
        if conditions.metered or not wan:
            groups.append(there - {"wan"})
        if wan:
            groups.append(there)
        for group in filter(None, dict.fromkeys(groups)):
            moves_bytes = 0 if group == {"local"} else left_bytes
            counted_bytes = 0 if conditions.metered and "wan" not in group else moves_bytes
            ranked.append((counted_bytes, moves_bytes, Step(blob, base_sha256, group, moves_bytes)))
    if not ranked and refusal is not None:
        raise refusal
    ranked.sort(key=lambda row: row[:2])
    return tuple(step for *_, step in ranked)
