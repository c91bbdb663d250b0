"""The queue between intake, which bounds it, and the inference worker: by priority, then by arrival, within budget."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from edgeslm.agent.job import Job
from edgeslm.power.governor_types import Refuse, Run
from edgeslm.schema.message import Priority

_PRIORITIES: tuple[Priority, ...] = ("high", "normal", "low")
_LONGEST_WAIT_S = 3600.0
_NEVER_S = float("inf")


@dataclass(frozen=True, slots=True)
class Turn:
    """A job that leaves the queue.

    Attributes:
        decision: what the budget says of it; ``None`` where there is no budget, or nothing to decide since the job
            is cancelled or too late.
    """

    job: Job
    decision: Run | Refuse | None = None


@dataclass(frozen=True, slots=True)
class Pick:
    """Which of the first in line leaves; without one, when to choose again (monotonic seconds)."""

    turn: Turn | None
    look_again_s: float


Choose = Callable[[Sequence[Job]], Pick]
"""Chooses among the first in line of each priority, highest first; there is at least one."""


def in_order(heads: Sequence[Job]) -> Pick:
    """The first of the highest priority, at once: how jobs leave where there is no budget."""
    return Pick(Turn(heads[0]), 0.0)


class JobQueue:
    """Thread-safe.

    Every job leaves through :meth:`pop`. One that is cancelled or expired keeps its place while the queue moves, and
    leaves at once while all others have to wait for energy.
    """

    def __init__(self, choose: Choose = in_order) -> None:
        """Start empty."""
        self._choose = choose
        self._lines: dict[Priority, deque[Job]] = {priority: deque() for priority in _PRIORITIES}
        self._changed = threading.Condition()
        self._closed = False

    def __len__(self) -> int:
        with self._changed:
            return sum(map(len, self._lines.values()))

    def push(self, job: Job) -> None:
        """Add `job`."""
        with self._changed:
            self._lines[job.request.options.priority].append(job)
            self._changed.notify_all()

    def put_back(self, job: Job) -> None:
        """`job`, which just left, is the first of its priority again."""
        with self._changed:
            self._lines[job.request.options.priority].appendleft(job)
            self._changed.notify_all()

    def pop(self) -> Turn | None:
        """The next job; waits for one. ``None`` once the queue is closed, whatever is left in it."""
        with self._changed:
            while not self._closed:
                heads = [line[0] for line in self._lines.values() if line]
                if not heads:
                    self._changed.wait()
                    continue
                pick = self._choose(heads)
                turn = pick.turn or self._next_gone()
                if turn is not None:
                    self._lines[turn.job.request.options.priority].remove(turn.job)
                    return turn
                self._changed.wait(self._wait_s(pick.look_again_s))
            return None

    def pop_urgent(self) -> Pick:
        """The high-priority job that waits longest, if it may leave now, while another is computed; never waits."""
        with self._changed:
            high = self._lines["high"]
            if self._closed or not high:
                return Pick(None, _NEVER_S)
            job = high[0]
            pick = self._choose([job])
            turn = pick.turn
            if turn is None and (job.cancelled.is_set() or job.expired(time.monotonic())):
                turn = Turn(job)
            if turn is not None:
                high.popleft()
            return Pick(turn, pick.look_again_s)

    def pause(self, job: Job, seconds: float, known: Job | None) -> None:
        """Wait so long; shorter if `job` is cancelled, or another than `known` becomes the :meth:`rival`."""
        with self._changed:
            self._changed.wait_for(lambda: job.cancelled.is_set() or self.rival() is not known, seconds)

    def rival(self) -> Job | None:
        """The high-priority job that waits longest, if one does."""
        high = self._lines["high"]
        try:
            return high[0]
        except IndexError:
            return None

    def waiting(self) -> list[Job]:
        """Jobs that wait, by priority."""
        with self._changed:
            return list(self._all())

    def wake(self) -> None:
        """Something changed that decides who leaves: a job was cancelled, the budget is another."""
        with self._changed:
            self._changed.notify_all()

    def close(self) -> None:
        """Let :meth:`pop` return ``None`` from now on. Jobs left are in the journal and run after a restart."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _all(self) -> Iterator[Job]:
        for line in self._lines.values():
            yield from line

    def _next_gone(self) -> Turn | None:
        now_s = time.monotonic()
        gone = (job for job in self._all() if job.cancelled.is_set() or job.expired(now_s))
        job = next(gone, None)
        return None if job is None else Turn(job)

    def _wait_s(self, look_again_s: float) -> float:
        """Until the budget looks again, or the next job is too late."""
        deadlines_s = (job.deadline_s for job in self._all() if job.deadline_s is not None)
        until_s = min(deadlines_s, default=look_again_s)
        return min(max(min(until_s, look_again_s) - time.monotonic(), 0.0), _LONGEST_WAIT_S)
