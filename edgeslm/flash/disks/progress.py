"""How far a long piece of work is, how fast it goes, and when it will be done. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Phase = Literal["unpacking", "checking", "probing", "comparing", "writing", "syncing", "verifying", "sealing"]
_WINDOW_S = 10.0
_FEWEST_S = 1.0


@dataclass(frozen=True)
class Progress:
    """Where it stands.

    Attributes:
        rate_bytes_s: of the last seconds; ``None`` while too little was seen.
        left_s: until this phase is done, at that rate; ``None`` for unknown.
    """

    phase: Phase
    done_bytes: int
    total_bytes: int
    rate_bytes_s: float | None = None
    left_s: float | None = None


Tell = Callable[[Progress], None]


class Pace:
    """The rate over the last seconds, so that a card that becomes slow shows."""

    def __init__(
        self, phase: Phase, total_bytes: int, clock: Callable[[], float], *, done_bytes: int = 0
    ) -> None:
        """Begin now.

        Args:
            clock: monotonic seconds.
            done_bytes: what an earlier phase has done of it.
        """
        self._phase = phase
        self._total_bytes = total_bytes
        self._clock = clock
        self._seen: deque[tuple[float, int]] = deque([(clock(), done_bytes)])

    def at(self, done_bytes: int) -> Progress:
        """That much is done now."""
        now_s = self._clock()
        self._seen.append((now_s, done_bytes))
        while len(self._seen) > 2 and now_s - self._seen[1][0] >= _WINDOW_S:
            self._seen.popleft()
        since_s, before = self._seen[0]
        if now_s - since_s < _FEWEST_S or done_bytes <= before:
            return Progress(self._phase, done_bytes, self._total_bytes)
        rate = (done_bytes - before) / (now_s - since_s)
        return Progress(
            self._phase, done_bytes, self._total_bytes, rate, max(0, self._total_bytes - done_bytes) / rate
        )
