"""The one inference worker: takes jobs, answers them, journals the answer, hands it to the outbox.

Every job that enters leaves with exactly one journalled result, be it an answer or an error, unless the process
dies: then the journal runs it again. One of high priority is answered in the midst of another
(:mod:`edgeslm.agent.course`).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace

from edgeslm import codec, topics
from edgeslm.agent.answering import answer_request
from edgeslm.agent.course import Course
from edgeslm.agent.intake import error_result
from edgeslm.agent.job import Job
from edgeslm.agent.journal import Journal
from edgeslm.agent.outbox import Outbox
from edgeslm.agent.ports import EnergyMeter, Link, Message, Model
from edgeslm.agent.precedence import Precedence
from edgeslm.agent.queue import JobQueue, Turn
from edgeslm.agent.serving import ServedModels
from edgeslm.errors import CancelledError, DeadlineError, EdgeslmError, InferenceError, JournalError
from edgeslm.power.governor_types import Refuse, Run
from edgeslm.power.steward import Plan, Spent, Steward
from edgeslm.schema.message import Result, StreamDelta

log = logging.getLogger(__name__)

STREAM_INTERVAL_S = 0.01
"""Deltas are joined for this long: a small model makes thousands of tokens a second, nobody reads as fast, and
each message costs more than a token."""


class DeltaStream:
    """Publishes an answer piece by piece: the first at once, later ones joined."""

    def __init__(self, link: Link, topic: str, request_id: str) -> None:
        self._link = link
        self._topic = topic
        self._id = request_id
        self._pending = ""
        self._seq = 0
        self._last_s = float("-inf")

    def push(self, text: str) -> None:
        """More of the answer."""
        self._pending += text
        if time.monotonic() - self._last_s >= STREAM_INTERVAL_S:
            self.flush()

    def flush(self) -> None:
        """Publish what has gathered."""
        if not self._pending:
            return
        delta = StreamDelta(id=self._id, seq=self._seq, text=self._pending)
        self._link.publish(Message(self._topic, codec.encode(delta), qos=0))
        self._pending = ""
        self._seq += 1
        self._last_s = time.monotonic()


class Worker:
    """Runs on one thread of its own: :meth:`run` returns when the queue is closed.

    Attributes:
        beats: signs of life so far: between tokens, chunks of a prompt, and while the budget pauses an answer.
    """

    def __init__(
        self,
        *,
        fleet: str,
        device: str,
        models: ServedModels,
        meter: EnergyMeter,
        queue: JobQueue,
        journal: Journal,
        outbox: Outbox,
        link: Link,
        steward: Callable[[], Steward | None],
        precedence: Precedence,
        forget: Callable[[Job], None],
        report: Callable[[Job, Result], None],
    ) -> None:
        """Take the parts.

        Args:
            steward: who spends the budget just now, where there is one.
            precedence: told while a prompt of high priority is computed.
            forget: told of each job once its result is journalled.
            report: told what became of each job.
        """
        self._fleet = fleet
        self._device = device
        self._models = models
        self._meter = meter
        self._queue = queue
        self._journal = journal
        self._outbox = outbox
        self._link = link
        self._steward = steward
        self._precedence = precedence
        self._forget = forget
        self._report = report
        self.beats = 0
        self._computing: list[Course] = []
        self.mean_job_s = 0.1
        """Running mean of a job's seconds, for `retry_after_s`."""

    @property
    def is_computing(self) -> bool:
        """Whether an answer is being computed, so that there have to be beats."""
        return bool(self._computing)

    def run(self) -> None:
        """Answer jobs until the queue is closed."""
        while (turn := self._queue.pop()) is not None:
            self._serve(turn)

    def _serve(self, turn: Turn, within: Course | None = None) -> None:
        """Answer `turn`, in the midst of another answer where it interrupts one."""
        started = time.monotonic()
        job = turn.job
        is_urgent = job.request.options.priority == "high"
        if is_urgent:
            self._precedence.begin()
        course = Course(
            job,
            within,
            queue=self._queue,
            models=self._models,
            meter=self._meter,
            beat=self._beat,
            serve=self._serve,
        )
        result = self._result(turn, course, within is not None)
        self.mean_job_s += 0.1 * (time.monotonic() - started - course.given_s - self.mean_job_s)
        self._file(job, result)
        if is_urgent:
            self._precedence.end()
        self._report(job, result)
        course.join()

    def _result(self, turn: Turn, course: Course, is_within: bool) -> Result:
        job, steward = turn.job, self._steward()
        try:
            if job.cancelled.is_set():
                raise CancelledError("cancelled before it ran")
            if job.expired(time.monotonic()):
                raise DeadlineError("the deadline passed in the queue")
            if steward is None or job.plan is None or turn.decision is None:
                with self._models.turn(job.request.model, within=is_within) as course.model:
                    return self._answer(course.model, course, None)
            if isinstance(turn.decision, Refuse):
                raise steward.refusal(job.plan, turn.decision)
            with self._models.turn(job.request.model, within=is_within) as course.model:
                return self._answer_within(steward, course.model, course, job.plan, turn.decision)
        except EdgeslmError as error:
            if steward is not None and job.plan is not None and not isinstance(turn.decision, Run):
                steward.file(job.plan, None)
            return error_result(job.id, self._device, error)
        except Exception as error:  # whatever a prompt provokes, the next one is served
            log.exception("prompt %s failed", job.id)
            return error_result(job.id, self._device, InferenceError(f"unexpected {type(error).__name__}"))

    def _answer_within(self, steward: Steward, model: Model, course: Course, plan: Plan, run: Run) -> Result:
        """Answer as the budget allows, and tell it what that took."""
        if course.shares_model:
            run = _with_threads(run, plan, model.threads)
        setting = steward.begin(plan, run)
        spent: Spent | None = None
        course.steward = steward
        try:
            if not course.shares_model:
                model.set_threads(setting.threads)
            result = self._answer(model, course, run.max_tokens)
            receipt = result.receipt
            # What a model that generates takes for another task says nothing about its answers.
            is_telling = course.job.request.task == "generate" or "generate" not in model.tasks
            if receipt is not None and is_telling:
                spent = Spent(
                    max(receipt.completion_tokens, 1),
                    receipt.energy_net_j,
                    max((receipt.total_ms - receipt.queue_ms) / 1e3 - course.paused_s, 0.0),
                    complete=result.finish_reason in {"stop", "schema"},
                )
                if result.finish_reason == "length" and run.max_tokens < plan.ask.max_tokens:
                    plan.shortened = True
                    result = result.model_copy(update={"finish_reason": "budget"})
            return result
        finally:
            steward.end(spent, course.aside)

    def _answer(self, model: Model, course: Course, max_tokens: int | None) -> Result:
        job = course.job
        request = job.request
        if max_tokens is not None:
            each = max(1, max_tokens // len(request.inputs or (None,)))
            options = request.options.model_copy(update={"max_tokens": each})
            request = request.model_copy(update={"options": options})
        stream = None
        if request.options.stream:
            topic = topics.id_topic(self._fleet, self._device, "stream", request.id)
            stream = DeltaStream(self._link, topic, request.id)
        self._beat()
        self._computing.append(course)
        try:
            result = answer_request(
                model,
                course.meter,
                request,
                self._device,
                accepted_s=job.accepted_s,
                sessions=self._models.sessions,
                rule=job.rule,
                on_text=stream.push if stream is not None else None,
                should_stop=course.step,
                paused_s=lambda: course.paused_s,
            )
        finally:
            self._computing.remove(course)
        if stream is not None:
            stream.flush()
        return result

    def _beat(self) -> None:
        self.beats += 1

    def _file(self, job: Job, result: Result) -> None:
        # The prompt's own record is synced while the model computes; an answer must not overtake it.
        job.settled.wait()
        if job.told is not None:
            self._forget(job)
            job.told(result)
            return
        if job.dropped:
            self._forget(job)
            return
        try:
            replies = self._journal.finish(job.id, codec.encode(result), time.time())
        except JournalError:
            log.exception("the answer to %s cannot be journalled; it runs again after a restart", job.id)
            return
        self._forget(job)
        self._outbox.send(replies)


def _with_threads(run: Run, plan: Plan, threads: int) -> Run:
    """`run`, with as many threads as are in use, where that is one of the ways to run it."""
    wanted = run.setting
    same = (one for one in plan.work.settings if one.threads == threads)
    setting = min(same, key=lambda one: one.frequency_mhz != wanted.frequency_mhz, default=wanted)
    return run if wanted.threads == threads else replace(run, setting=setting)
