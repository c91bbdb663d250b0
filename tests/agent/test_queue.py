from __future__ import annotations

import math
import threading
import time
from collections.abc import Sequence

from edgeslm.agent.job import Job
from edgeslm.agent.queue import JobQueue, Pick, Turn
from edgeslm.schema.message import Options, Priority, PromptRequest


def job(name: str, priority: Priority = "normal", deadline_s: float | None = None) -> Job:
    request = PromptRequest(id=name, prompt="x", options=Options(priority=priority))
    return Job(request, [], time.monotonic(), deadline_s)


def hold_all(heads: Sequence[Job]) -> Pick:
    return Pick(None, math.inf)


def names(queue: JobQueue, count: int) -> list[str]:
    turns = [queue.pop() for _ in range(count)]
    return [turn.job.id for turn in turns if turn is not None]


def test_jobs_leave_by_priority_and_equal_ones_by_arrival() -> None:
    queue = JobQueue()
    for name, priority in (("a", "low"), ("b", "normal"), ("c", "high"), ("d", "normal"), ("e", "high")):
        queue.push(job(name, priority))
    assert names(queue, 5) == ["c", "e", "b", "d", "a"]


def test_the_budget_chooses_among_the_first_of_each_priority() -> None:
    seen: list[list[str]] = []

    def choose(heads: Sequence[Job]) -> Pick:
        seen.append([head.id for head in heads])
        return Pick(Turn(heads[-1]), 0.0)

    queue = JobQueue(choose)
    for name, priority in (("a", "low"), ("b", "normal"), ("c", "normal"), ("d", "high")):
        queue.push(job(name, priority))
    assert names(queue, 4) == ["a", "b", "c", "d"]
    assert seen == [["d", "b", "a"], ["d", "b"], ["d", "c"], ["d"]]


def test_a_job_that_is_held_back_leaves_when_its_deadline_has_passed() -> None:
    queue = JobQueue(hold_all)
    queue.push(job("first"))
    queue.push(job("late", deadline_s=time.monotonic() + 0.05))
    began_s = time.monotonic()
    assert names(queue, 1) == ["late"]
    assert time.monotonic() - began_s >= 0.05


def test_a_job_that_is_held_back_leaves_when_it_is_cancelled() -> None:
    queue = JobQueue(hold_all)
    held = job("held")
    queue.push(held)
    found: list[str] = []
    thread = threading.Thread(target=lambda: found.extend(names(queue, 1)))
    thread.start()
    held.cancelled.set()
    queue.wake()
    thread.join(5)
    assert found == ["held"]


def test_looks_again_when_the_budget_said_to() -> None:
    asked_s: list[float] = []

    def choose(heads: Sequence[Job]) -> Pick:
        asked_s.append(time.monotonic())
        if len(asked_s) < 2:
            return Pick(None, asked_s[0] + 0.05)
        return Pick(Turn(heads[0]), 0.0)

    queue = JobQueue(choose)
    queue.push(job("a"))
    assert names(queue, 1) == ["a"]
    assert asked_s[1] - asked_s[0] >= 0.05


def test_a_new_job_is_chosen_among_those_that_wait() -> None:
    queue = JobQueue(lambda heads: Pick(Turn(heads[0]) if heads[0].id == "alarm" else None, math.inf))
    queue.push(job("held"))
    found: list[str] = []
    thread = threading.Thread(target=lambda: found.extend(names(queue, 1)))
    thread.start()
    queue.push(job("alarm", "high"))
    thread.join(5)
    assert found == ["alarm"]


def test_a_closed_queue_lets_go_of_the_worker_whatever_waits() -> None:
    queue = JobQueue(hold_all)
    queue.push(job("held"))
    found: list[object] = []
    thread = threading.Thread(target=lambda: found.append(queue.pop()))
    thread.start()
    queue.close()
    thread.join(5)
    assert found == [None]
    assert len(queue) == 1


def test_tells_what_waits_and_who_is_in_a_hurry() -> None:
    queue = JobQueue(hold_all)
    for name, priority in (("a", "low"), ("b", "normal"), ("c", "high")):
        queue.push(job(name, priority))
    assert [other.id for other in queue.waiting()] == ["c", "b", "a"]
    rival = queue.rival()
    assert rival is not None
    assert rival.id == "c"
