"""Between two tokens: go on, pause, or stop.

What always holds: before each token or chunk of the prompt there is room for it in every window, so that none is
exceeded by more than what a meter has not seen yet. Pure; costs a microsecond or two, and says how long it holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from edgeslm.power.governor_types import Go, Pause, Reason, Step, Stop
from edgeslm.schema.message import Priority

MAX_PAUSE_S: Final = 5.0
"""A prompt that would have to pause for longer ends instead: the worker has others to serve."""
MAX_HIGH_PAUSE_S: Final = 30.0
GO_S: Final = 1.0
"""Longest time without asking again."""
SLOW_S: Final = 0.25
"""Length of the computing and of the pausing half while the board is too hot or its supply too weak."""

_SHORTEST_PAUSE_S: Final = 0.01
_LATER_S: Final = 0.001
"""Rather a little after energy has left a window than a rounding error before."""


class Spendable(Protocol):
    """A window, as far as pacing needs it."""

    @property
    def name(self) -> str:
        """Of the window."""

    @property
    def spare_j(self) -> float:
        """Joules that the running prompt may spend now."""

    def lag_s(self, need_j: float, power_w: float) -> float:
        """Seconds until it may begin to draw `need_j` at `power_w`."""


@dataclass(frozen=True, slots=True)
class Progress:
    """A prompt under way.

    Attributes:
        next_j: joules until the next moment at which it can pause.
        net_w: watts above idle while it computes.
        yield_at_s: monotonic time at which a waiting high-priority prompt has to begin; ``None`` if none waits.
        slowed: the board needs rest.
        paused: the step before was a pause.
    """

    priority: Priority
    deadline_s: float | None
    next_j: float
    net_w: float
    yield_at_s: float | None = None
    slowed: bool = False
    paused: bool = False


def pace(now_s: float, windows: Sequence[Spendable], progress: Progress) -> Step:
    """How the running prompt goes on at `now_s`."""
    high = progress.priority == "high"
    need_j, net_w = progress.next_j, progress.net_w
    spare_j, pause_s, full = float("inf"), 0.0, ""
    for window in windows:
        window_spare_j = window.spare_j
        spare_j = min(spare_j, window_spare_j)
        if window_spare_j < need_j:
            lag_s = window.lag_s(need_j, net_w)
            if lag_s > pause_s:
                pause_s, full = lag_s, window.name
    if full:
        pause_s = max(pause_s + _LATER_S, _SHORTEST_PAUSE_S)
    elif progress.slowed and not high and not progress.paused:
        pause_s = SLOW_S
    if pause_s <= 0.0:
        go_s = min(SLOW_S if progress.slowed else GO_S, (spare_j - need_j) / net_w if net_w > 0 else GO_S)
        return Go(now_s + max(0.0, go_s))
    if high:
        left_s = MAX_HIGH_PAUSE_S if progress.deadline_s is None else progress.deadline_s - now_s
        bound_s = min(MAX_HIGH_PAUSE_S, left_s)
    else:
        bound_s = MAX_PAUSE_S
        if progress.yield_at_s is not None and now_s + pause_s > progress.yield_at_s:
            return Stop(Reason("gives_way"))
    if pause_s > bound_s:
        return Stop(Reason("cut_off", full, {"need_j": need_j, "spare_j": spare_j}))
    return Pause(pause_s)
