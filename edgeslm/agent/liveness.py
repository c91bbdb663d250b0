"""Whether everything in an agent that has to move still moves.

A sign is a count that goes up while something works. One that rests, such as a worker without a prompt, gives ``None``
and is not judged. What stands still for longer than its limit is an ailment.

What always holds: nothing here waits for what it judges. Time in which this process did not run, as on a laptop that
slept, is seen as one long look and forgiven once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

LONGEST_LOOK_S = 30.0
"""Time between two looks that counts at most."""


@dataclass
class Sign:
    """Something that has to move.

    Attributes:
        what: moves, for people.
        count: how far it is; ``None`` while it rests.
        limit_s: it may stand still for so long.
        seen: the count at the last look,
        still_s: and the seconds since it was another one.
    """

    what: str
    count: Callable[[], int | None]
    limit_s: float
    seen: int | None = field(default=None, init=False)
    still_s: float = field(default=0.0, init=False)


class Liveness:
    """Looks at signs, every few seconds and from one thread."""

    def __init__(self, signs: Sequence[Sign], clock: Callable[[], float] = time.monotonic) -> None:
        """Judge `signs`."""
        self._signs = tuple(signs)
        self._clock = clock
        self._looked_s = clock()

    def ailment(self) -> str | None:
        """What stands still for too long, as a sentence."""
        now_s = self._clock()
        elapsed_s = min(now_s - self._looked_s, LONGEST_LOOK_S)
        self._looked_s = now_s
        for sign in self._signs:
            count = sign.count()
            if count is None or count != sign.seen:
                sign.seen, sign.still_s = count, 0.0
            else:
                sign.still_s += elapsed_s
        stuck = next((sign for sign in self._signs if sign.still_s > sign.limit_s), None)
        return None if stuck is None else f"{stuck.what} has not moved for {stuck.still_s:.0f} s"
