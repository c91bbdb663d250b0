"""The readings of the last while: mean, min, max, slope and count of a sliding window of time.

What always holds: adding a reading and asking for a figure take constant time on average; memory is bounded, whatever
the rate: readings that come closer together than a 256th of the window share a bucket, and a bucket leaves as a whole
once its first reading is older than the window. Nothing is ever subtracted, so that no error gathers: a queue made of
two stacks, whose parts are merged by the formulas of Chan, Golub and LeVeque (1979).
"""

from __future__ import annotations

from dataclasses import dataclass

BUCKETS = 256
"""Most buckets of a window, give or take one."""


@dataclass(slots=True)
class Summary:
    """What is known of some readings, `count` of them; times in seconds.

    Attributes:
        time_squares: sum of squared distances of the times from their mean.
        products: sum of products of the distances of times and of values from their means.
    """

    count: int
    mean: float
    low: float
    high: float
    mean_time_s: float
    time_squares: float
    products: float


def _one(time_s: float, value: float) -> Summary:
    return Summary(1, value, value, value, time_s, 0.0, 0.0)


def merge(a: Summary, b: Summary) -> Summary:
    """What is known of both."""
    count = a.count + b.count
    part = b.count / count
    time_apart_s, apart = b.mean_time_s - a.mean_time_s, b.mean - a.mean
    weight = a.count * part
    return Summary(
        count,
        a.mean + apart * part,
        min(a.low, b.low),
        max(a.high, b.high),
        a.mean_time_s + time_apart_s * part,
        a.time_squares + b.time_squares + time_apart_s * time_apart_s * weight,
        a.products + b.products + time_apart_s * apart * weight,
    )


@dataclass(slots=True)
class _Bucket:
    start_s: float
    summary: Summary


class Window:
    """Readings of the last `span_s` seconds."""

    def __init__(self, span_s: float) -> None:
        self._span_s = span_s
        self._grain_s = span_s / BUCKETS
        # `front` holds the older buckets, the oldest last, each merged with all that are younger in it;
        # `back` the younger ones as they are, and `back_sum` all of them but the last, which still grows.
        self._front: list[_Bucket] = []
        self._back: list[_Bucket] = []
        self._back_sum: Summary | None = None
        self._last_s = float("-inf")

    def add(self, time_s: float, value: float) -> None:
        """A reading at `time_s`, which is never before the last one."""
        time_s = max(time_s, self._last_s)
        self._last_s = time_s
        self._expire(time_s)
        if self._back and time_s - self._back[-1].start_s < self._grain_s:
            bucket = self._back[-1]
            bucket.summary = merge(bucket.summary, _one(time_s, value))
            return
        if self._back:
            closed = self._back[-1].summary
            self._back_sum = closed if self._back_sum is None else merge(self._back_sum, closed)
        self._back.append(_Bucket(time_s, _one(time_s, value)))

    def summary(self, now_s: float) -> Summary | None:
        """What is known of the readings that are not older than the window; ``None`` if there are none."""
        self._expire(now_s)
        parts = [self._front[-1].summary] if self._front else []
        if self._back_sum is not None:
            parts.append(self._back_sum)
        if self._back:
            parts.append(self._back[-1].summary)
        if not parts:
            return None
        whole = parts[0]
        for part in parts[1:]:
            whole = merge(whole, part)
        return whole

    def slope_per_min(self, now_s: float) -> float | None:
        """Change of the value a minute, by least squares; ``None`` for readings at fewer than two times."""
        whole = self.summary(now_s)
        if whole is None or whole.time_squares <= 0:
            return None
        return 60.0 * whole.products / whole.time_squares

    def __len__(self) -> int:
        """Buckets in memory."""
        return len(self._front) + len(self._back)

    def _expire(self, now_s: float) -> None:
        oldest_s = now_s - self._span_s
        while True:
            while self._front and self._front[-1].start_s < oldest_s:
                self._front.pop()
            if self._front or not self._back or self._back[0].start_s >= oldest_s:
                return
            if len(self._back) == 1:
                self._back.clear()
                return
            self._turn()

    def _turn(self) -> None:
        """The younger buckets become the older ones, but for the last, which still grows."""
        growing = self._back.pop()
        later: Summary | None = None
        for bucket in reversed(self._back):
            later = bucket.summary if later is None else merge(bucket.summary, later)
            self._front.append(_Bucket(bucket.start_s, later))
        self._back = [growing]
        self._back_sum = None
