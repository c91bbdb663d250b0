"""Energy over the last so many seconds, and what may still be spent.

What always holds: the sum told is never below the true one by more than the idle draw varies within a bucket. Energy
counts until the last moment at which a part of it can lie in the window, so the error is on the safe side and at
most what one of the :data:`BUCKETS` holds.

Idle draw cannot be switched off, so the future is planned with it: every second ahead draws the planned idle, and
what lies above it, the net energy, is what work can spend. A second of the past that drew less than that (the board
was off, or nobody measured) counts as idle, since it will be replaced by one that draws it. With idle in every second
a window's load only falls as time passes, and the room that there is now is there for all times to come.

Times are seconds on one axis that never steps; energy is added in order. Pure values, no clock. Not thread-safe.
"""

from __future__ import annotations

import math
from array import array
from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from typing import Final

BUCKETS: Final = 100

_EMPTY: Final = array("d", [0.0]) * (BUCKETS + 1)


@dataclass(frozen=True, slots=True)
class Room:
    """What a window lets be spent above idle, now and as older energy leaves it.

    Attributes:
        name: of the window.
        over_s: its length.
        limit_w: mean watts that it allows.
        now_s: when this held.
        capacity_j: net joules that fit into it when it is empty; not above 0 where idle alone fills it.
        free_j: net joules that may be spent now; below 0 when more than allowed was spent.
        leaves_at_s: times at which spent energy leaves, rising; what was spent last is not among them.
        left_j: net joules that will have left by then, rising.
        last_leaves_s: seconds from now after which nothing of what was spent so far is left.
    """

    name: str
    over_s: float
    limit_w: float
    now_s: float
    capacity_j: float
    free_j: float
    leaves_at_s: tuple[float, ...]
    left_j: tuple[float, ...]
    last_leaves_s: float

    def free_by(self, ahead_s: float) -> float:
        """Net joules that may be spent in all until `ahead_s` seconds from now, less than the window is long."""
        at = bisect_right(self.leaves_at_s, self.now_s + ahead_s)
        return self.free_j + (self.left_j[at - 1] if at else 0.0)

    def wait_s(self, need_j: float) -> float:
        """Seconds until `need_j` net joules may be spent at once; infinite if that many never fit."""
        if need_j <= self.free_j:
            return 0.0
        if need_j > self.capacity_j * (1 + 1e-9):
            return math.inf
        at = bisect_left(self.left_j, need_j - self.free_j)
        return self.last_leaves_s if at == len(self.left_j) else self.leaves_at_s[at] - self.now_s

    def lag_s(self, need_j: float, power_w: float, kept_j: float) -> float:
        """Seconds until drawing `need_j` at `power_w` may begin, with `kept_j` left free all the time.

        Shorter than :meth:`wait_s`, since energy also leaves while it is drawn; infinite if it never fits.
        """
        free_j = self.free_j - kept_j
        if need_j <= free_j:
            return 0.0
        if need_j > self.capacity_j - kept_j:
            return math.inf
        lag_s = 0.0
        left_j = 0.0
        for leaves_at_s, next_left_j in zip(self.leaves_at_s, self.left_j, strict=True):
            # Until this leaves, only what is free by then may have been drawn.
            lag_s = max(lag_s, leaves_at_s - self.now_s - max(0.0, free_j + left_j) / power_w)
            left_j = next_left_j
            if free_j + left_j >= need_j:
                return lag_s
        return max(lag_s, self.last_leaves_s - max(0.0, free_j + left_j) / power_w)


class SlidingWindow:
    """Gross energy of the last `over_s` seconds in a ring of buckets, and the net energy above a planned idle."""

    __slots__ = ("_covered_s", "_energy_j", "_idle_w", "_leaving", "_net_j", "_newest", "_width_s", "over_s")

    def __init__(self, over_s: float, idle_w: float) -> None:
        self.over_s = over_s
        self._width_s = over_s / BUCKETS
        self._idle_w = idle_w
        # One more than the window is long: the oldest is still partly in it.
        self._energy_j = _EMPTY[:]
        self._covered_s = _EMPTY[:]
        self._newest: int | None = None
        self._net_j = 0.0  # of all buckets but the newest, which is still growing
        self._leaving: tuple[tuple[float, ...], tuple[float, ...]] | None = None

    @property
    def idle_w(self) -> float:
        """Watts of idle draw that the net energy lies above."""
        return self._idle_w

    def plan_idle(self, idle_w: float) -> None:
        """Count net energy from another idle draw on."""
        self._idle_w = idle_w
        self._leaving = None
        newest = None if self._newest is None else self._newest % (BUCKETS + 1)
        self._net_j = sum(self._net_of(slot) for slot in range(BUCKETS + 1) if slot != newest)

    def add(self, start_s: float, end_s: float, energy_j: float) -> None:
        """Between `start_s` and `end_s` `energy_j` joules were drawn, evenly as far as is known."""
        newest, width_s, idle_w = self.advance(end_s), self._width_s, self._idle_w
        energies_j, covered_s = self._energy_j, self._covered_s
        span_s = end_s - start_s
        bucket = int(start_s // width_s)
        if bucket >= newest or span_s <= 0.0:
            slot = newest % (BUCKETS + 1)
            energies_j[slot] += energy_j
            covered_s[slot] += span_s
            return
        power_w = energy_j / span_s
        at_s = start_s
        if bucket < newest - BUCKETS:
            bucket = newest - BUCKETS
            at_s = bucket * width_s
        self._leaving = None
        while at_s < end_s:
            until_s = min(end_s, (bucket + 1) * width_s)
            slot = bucket % (BUCKETS + 1)
            before_j = energies_j[slot] - idle_w * covered_s[slot]
            after_j = before_j + (power_w - idle_w) * (until_s - at_s)
            energies_j[slot] += power_w * (until_s - at_s)
            covered_s[slot] += until_s - at_s
            if bucket != newest:
                self._net_j += (after_j if after_j > 0.0 else 0.0) - (before_j if before_j > 0.0 else 0.0)
            at_s = until_s
            bucket += 1

    def advance(self, now_s: float) -> int:
        """Let go of what has left the window by `now_s`; the number of the newest bucket."""
        bucket = int(now_s // self._width_s)
        newest = self._newest
        if newest is None:
            self._newest = bucket
            return bucket
        if bucket <= newest:
            return newest
        self._leaving = None
        self._newest = bucket
        if bucket - newest > BUCKETS:
            self._energy_j[:] = self._covered_s[:] = _EMPTY
            self._net_j = 0.0
            return bucket
        self._net_j += self._net_of(newest % (BUCKETS + 1))
        energy_j, covered_s, idle_w = self._energy_j, self._covered_s, self._idle_w
        for entered in range(newest + 1, bucket + 1):
            slot = entered % (BUCKETS + 1)
            net_j = energy_j[slot] - idle_w * covered_s[slot]
            if net_j > 0.0:
                self._net_j -= net_j
            energy_j[slot] = covered_s[slot] = 0.0
        return bucket

    def net_j(self, now_s: float) -> float:
        """Net joules of the last `over_s` seconds."""
        newest = self.advance(now_s)
        return self._net_j + self._net_of(newest % (BUCKETS + 1))

    def used_j(self, now_s: float) -> float:
        """Gross joules measured in the last `over_s` seconds; to be told, not to be decided by."""
        newest = self.advance(now_s)
        gone_share = min(max(0.0, now_s / self._width_s - newest), 1.0)
        return sum(self._energy_j) - gone_share * self._energy_j[(newest + 1) % (BUCKETS + 1)]

    def headroom_j(self, now_s: float, limit_w: float) -> float:
        """Net joules that may be spent now, such that no later stretch exceeds `limit_w` by idle draw alone."""
        return (limit_w - self._idle_w) * self.over_s - self.net_j(now_s)

    def room(self, name: str, now_s: float, limit_w: float, pending_j: float = 0.0) -> Room:
        """What may be spent now and later; `pending_j` net joules were spent but not yet added."""
        spent_j = self.net_j(now_s)
        leaves_at_s, left_j = self._leaving or self._find_leaving(self.advance(now_s))
        capacity_j = (limit_w - self._idle_w) * self.over_s
        free_j = capacity_j - spent_j - pending_j
        last_s = self.over_s + self._width_s
        return Room(name, self.over_s, limit_w, now_s, capacity_j, free_j, leaves_at_s, left_j, last_s)

    def _find_leaving(self, newest: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """When the net energy of all buckets but the newest leaves, and how much will have left by then."""
        energy_j, covered_s, idle_w = self._energy_j, self._covered_s, self._idle_w
        leaves_at_s: list[float] = []
        left_j: list[float] = []
        total_j = 0.0
        for bucket in range(newest - BUCKETS, newest):
            slot = bucket % (BUCKETS + 1)
            net_j = energy_j[slot] - idle_w * covered_s[slot]
            if net_j > 0.0:
                total_j += net_j
                leaves_at_s.append((bucket + 1) * self._width_s + self.over_s)
                left_j.append(total_j)
        self._leaving = tuple(leaves_at_s), tuple(left_j)
        return self._leaving

    def _net_of(self, slot: int) -> float:
        net_j = self._energy_j[slot] - self._idle_w * self._covered_s[slot]
        return net_j if net_j > 0.0 else 0.0
