"""What running prompts drew since the meter last told anything: expected from what they draw as a rule.

A meter tells the past, by a tenth of a second or by ten seconds. What was computed since counts as drawn, at the
draw that is expected of it, corrected by how far meter and expectation lay apart before. Not thread-safe.
"""

from __future__ import annotations

from typing import Final

_LEARNING: Final = 0.2
_LEAST_RATIO: Final = 0.5
_MOST_RATIO: Final = 2.0
_TELLING_SHARE: Final = 0.5
"""A value tells of computing if that filled at least this part of its time."""
_MOST_SPANS: Final = 512


class Unmetered:
    """Stretches of computing that no meter has told of."""

    def __init__(self, now_s: float) -> None:
        self.metered_s = now_s
        self.ratio = 1.0
        self._spans: list[tuple[float, float, float]] = []  # start, end, expected net watts
        self._since_s: float | None = None
        self._net_w = 0.0

    def compute(self, now_s: float, net_w: float) -> None:
        """Computing goes on, or begins, with an expected draw of `net_w` above idle."""
        if self._since_s is None:
            self._since_s, self._net_w = now_s, net_w

    def rest(self, now_s: float) -> None:
        """Computing stops."""
        if self._since_s is None:
            return
        self._spans.append((self._since_s, now_s, self._net_w))
        self._since_s = None
        if len(self._spans) > _MOST_SPANS:  # the meter is silent for long: memory stays small, the sum right
            (start_s, _, first_w), (begin_s, end_s, second_w) = self._spans[:2]
            energy_j = first_w * (self._spans[0][1] - start_s) + second_w * (end_s - begin_s)
            self._spans[:2] = [(start_s, end_s, energy_j / max(end_s - start_s, 1e-9))]

    def metered(self, start_s: float, end_s: float, net_j: float) -> None:
        """The meter says that `net_j` above idle were drawn between the two times."""
        computed_s = expected_j = 0.0
        for begin_s, until_s, net_w in self._all(end_s):
            part_s = min(until_s, end_s) - max(begin_s, start_s)
            if part_s > 0:
                computed_s += part_s
                expected_j += part_s * net_w
        if expected_j > 0 and computed_s >= _TELLING_SHARE * (end_s - start_s):
            ratio = min(max(net_j / expected_j, _LEAST_RATIO), _MOST_RATIO)
            self.ratio += _LEARNING * (ratio - self.ratio)
        self.metered_s = end_s
        self._spans = [span for span in self._spans if span[1] > end_s]

    def pending_j(self, now_s: float, over_s: float) -> float:
        """Joules of the last `over_s` seconds that are expected and not yet told."""
        from_s = max(self.metered_s, now_s - over_s)
        total_j = 0.0
        for start_s, end_s, net_w in self._all(now_s):
            if end_s > from_s:
                total_j += (end_s - max(start_s, from_s)) * net_w
        return total_j * self.ratio

    def _all(self, now_s: float) -> list[tuple[float, float, float]]:
        if self._since_s is None:
            return self._spans
        return [*self._spans, (self._since_s, now_s, self._net_w)]
