"""The queue between intake, which bounds it, and the inference worker: by priority, then by arrival."""

from __future__ import annotations

import heapq
import itertools
import threading

from edgeslm.agent.job import Job
from edgeslm.schema.message import Priority

_RANK: dict[Priority, int] = {"high": 0, "normal": 1, "low": 2}


class JobQueue:
    """Thread-safe. Jobs leave by priority, equal ones in order of arrival.

    A cancelled or expired job keeps its place: the worker finds out when it takes it, so that every job leaves
    through one door.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, Job]] = []
        self._numbers = itertools.count()
        self._changed = threading.Condition()
        self._closed = False

    def __len__(self) -> int:
        with self._changed:
            return len(self._heap)

    def push(self, job: Job) -> None:
        """Add `job`."""
        with self._changed:
            entry = (_RANK[job.request.options.priority], next(self._numbers), job)
            heapq.heappush(self._heap, entry)
            self._changed.notify()

    def pop(self) -> Job | None:
        """The next job; waits for one. ``None`` once the queue is closed, whatever is left in it."""
        with self._changed:
            while not self._heap and not self._closed:
                self._changed.wait()
            if self._closed:
                return None
            return heapq.heappop(self._heap)[2]

    def close(self) -> None:
        """Let :meth:`pop` return ``None`` from now on. Jobs left are in the journal and run after a restart."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
