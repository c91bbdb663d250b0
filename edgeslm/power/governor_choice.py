"""Which of the waiting prompts runs next.

High priority first. Normal and low share one order, that of arrival, in which low counts as having come
:data:`LOW_LATER_S` later: so normal goes first as a rule, and yet a low one is overtaken only by what came soon after
it. Who waits for energy blocks those behind, or small prompts would for ever take what a large one waits for; who
waits for something else (quiet hours, a battery, a price) is passed. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from edgeslm.power.governor_admission import decide
from edgeslm.power.governor_types import Defer, Reason, Refuse, Run, Situation, Work
from edgeslm.schema.budget import Budget

LOW_LATER_S: Final = 600.0

_SOONEST_S: Final = 0.02
_SLACK: Final = 1.5
_SLACK_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class Choice:
    """What to do now.

    Attributes:
        work: what to run or refuse; ``None`` if all wait.
        decision: for `work`.
        look_again_s: monotonic time at which to choose again if nothing else happens; infinite if nothing waits.
        waiting: those that wait, and why.
    """

    work: Work | None
    decision: Run | Refuse | None
    look_again_s: float
    waiting: tuple[tuple[Work, Defer], ...] = ()


def turn(work: Work) -> tuple[int, float]:
    """Sorts by who is next."""
    if work.priority == "high":
        return 0, work.accepted_s
    return 1, work.accepted_s + (LOW_LATER_S if work.priority == "low" else 0.0)


def ahead_of(work: Work, waiting: Iterable[Work]) -> float:
    """Joules that go before `work` if it joins those that wait, for :attr:`Work.ahead_j`."""
    own_turn = turn(work)
    return sum(other.estimate.mean_j for other in waiting if turn(other) <= own_turn)


def must_begin_s(work: Work) -> float | None:
    """When `work` has to begin to be in time, with some slack; ``None`` without a deadline."""
    if work.deadline_s is None:
        return None
    return work.deadline_s - _SLACK * work.estimate.seconds - _SLACK_S


def choose(budget: Budget, situation: Situation, heads: Sequence[Work]) -> Choice:
    """The next step, given the first in line of each priority."""
    waiting: list[tuple[Work, Defer]] = []
    look_again_s = float("inf")
    blocker: Work | None = None
    for work in sorted(heads, key=turn):
        if blocker is None:
            decision = decide(budget, situation, work)
        else:
            decision = _behind(budget, situation, work, blocker, look_again_s)
        if not isinstance(decision, Defer):
            return Choice(work, decision, situation.now_s, tuple(waiting))
        waiting.append((work, decision))
        look_again_s = min(look_again_s, max(decision.until_s, situation.now_s + _SOONEST_S))
        if blocker is None and decision.blocks:
            blocker = work
    return Choice(None, None, look_again_s, tuple(waiting))


def _behind(
    budget: Budget, situation: Situation, work: Work, blocker: Work, look_again_s: float
) -> Defer | Refuse:
    """What happens to `work` while the one before it waits for energy: it waits too, unless that is too long."""
    decision = decide(budget, situation, replace(work, ahead_j=blocker.estimate.p90_j))
    if isinstance(decision, Run) or (isinstance(decision, Defer) and decision.blocks):
        return Defer(look_again_s, blocks=True, reasons=(Reason("behind", blocker.id),))
    return decision
