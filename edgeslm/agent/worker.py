"""The one inference worker: takes jobs, answers them, journals the answer, hands it to the outbox.

Every job that enters leaves with exactly one journalled result, be it an answer or an error, unless the process
dies: then the journal runs it again.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable

from edgeslm import codec, topics
from edgeslm.agent.answering import answer_request
from edgeslm.agent.intake import error_result
from edgeslm.agent.job import Job
from edgeslm.agent.journal import Journal
from edgeslm.agent.outbox import Outbox
from edgeslm.agent.ports import EnergyMeter, Link, Message, Model
from edgeslm.agent.precedence import Precedence
from edgeslm.agent.queue import JobQueue, Turn
from edgeslm.agent.serving import ServedModels
from edgeslm.errors import CancelledError, DeadlineError, EdgeslmError, InferenceError, JournalError
from edgeslm.power.governor_types import Go, Refuse, Run, Stop
from edgeslm.power.steward import CHUNK_TOKENS, Plan, Spent, Steward
from edgeslm.schema.message import FinishReason, Result, StreamDelta

log = logging.getLogger(__name__)

STREAM_INTERVAL_S = 0.01
"""Deltas are joined for this long: a small model makes thousands of tokens a second, nobody reads as fast, and
each message costs more than a token."""

_PAUSE_S = 0.5
"""Longest pause at a time: afterwards deadline and budget are looked at again."""


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


class _Pacing:
    """Asks the budget between tokens, and waits as long as it says."""

    def __init__(self, steward: Steward, queue: JobQueue, job: Job, beat: Callable[[], None]) -> None:
        self._beat = beat
        self._steward = steward
        self._queue = queue
        self._job = job
        self._go_until_s = float("-inf")
        self._rival: Job | None = None
        self._steps = 0
        self._prompt_steps = math.ceil((job.plan.ask.prompt_tokens - 1) / CHUNK_TOKENS) if job.plan else 0
        self.paused_s = 0.0

    def step(self) -> FinishReason | None:
        """Go on, or a reason to end the answer."""
        self._steps += 1
        rival = self._queue.rival()
        now_s = time.monotonic()
        if now_s < self._go_until_s and rival is self._rival:
            return None
        self._rival = rival
        while True:
            self._beat()
            plan = None if rival is None or rival is self._job else rival.plan
            step = self._steward.pace(decoding=self._steps > self._prompt_steps, rival=plan)
            if isinstance(step, Go):
                self._go_until_s = step.until_s
                return None
            if isinstance(step, Stop):
                return "budget"
            if self._job.cancelled.wait(min(step.seconds, _PAUSE_S)):
                return "cancelled"
            paused_until_s = time.monotonic()
            self.paused_s += paused_until_s - now_s
            now_s = paused_until_s
            if self._job.expired(now_s):
                return "deadline"
            rival = self._queue.rival()


class Worker:
    """Runs on one thread of its own: :meth:`run` returns when the queue is closed.

    Attributes:
        beats: signs of life so far: between tokens, chunks of a prompt, and while the budget pauses an answer.
        is_computing: an answer is being computed, so there have to be such signs.
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
        self.is_computing = False
        self.mean_job_s = 0.1
        """Running mean of a job's seconds, for `retry_after_s`."""

    def run(self) -> None:
        """Answer jobs until the queue is closed."""
        while (turn := self._queue.pop()) is not None:
            started = time.monotonic()
            job = turn.job
            is_urgent = job.request.options.priority == "high"
            if is_urgent:
                self._precedence.begin()
            result = self._result(turn)
            if self._gave_way(job, result):
                continue
            self.mean_job_s += 0.1 * (time.monotonic() - started - self.mean_job_s)
            self._file(job, result)
            if is_urgent:
                self._precedence.end()
            self._report(job, result)

    def _result(self, turn: Turn) -> Result:
        job, steward = turn.job, self._steward()
        try:
            if job.cancelled.is_set():
                raise CancelledError("cancelled before it ran")
            if job.expired(time.monotonic()):
                raise DeadlineError("the deadline passed in the queue")
            if steward is None or job.plan is None or turn.decision is None:
                with self._models.turn(job.request.model) as model:
                    return self._answer(model, job, None)
            if isinstance(turn.decision, Refuse):
                raise steward.refusal(job.plan, turn.decision)
            with self._models.turn(job.request.model) as model:
                return self._answer_within(steward, model, job, job.plan, turn.decision)
        except EdgeslmError as error:
            if steward is not None and job.plan is not None and not isinstance(turn.decision, Run):
                steward.file(job.plan, None)
            return error_result(job.id, self._device, error)
        except Exception as error:  # whatever a prompt provokes, the next one is served
            log.exception("prompt %s failed", job.id)
            return error_result(job.id, self._device, InferenceError(f"unexpected {type(error).__name__}"))

    def _answer_within(self, steward: Steward, model: Model, job: Job, plan: Plan, run: Run) -> Result:
        """Answer as the budget allows, and tell it what that took."""
        setting = steward.begin(plan, run)
        spent: Spent | None = None
        pacing = _Pacing(steward, self._queue, job, self._beat)
        try:
            model.set_threads(setting.threads)
            result = self._answer(model, job, run.max_tokens, pacing)
            receipt = result.receipt
            # What a model that generates takes for another task says nothing about its answers.
            is_telling = job.request.task == "generate" or "generate" not in model.tasks
            if receipt is not None and is_telling:
                spent = Spent(
                    max(receipt.completion_tokens, 1),
                    receipt.energy_net_j,
                    max((receipt.total_ms - receipt.queue_ms) / 1e3 - pacing.paused_s, 0.0),
                    complete=result.finish_reason in {"stop", "schema"},
                )
                if result.finish_reason == "length" and run.max_tokens < plan.ask.max_tokens:
                    plan.shortened = True
                    result = result.model_copy(update={"finish_reason": "budget"})
            return result
        finally:
            steward.end(spent)

    def _answer(
        self, model: Model, job: Job, max_tokens: int | None, pacing: _Pacing | None = None
    ) -> Result:
        request = job.request
        if max_tokens is not None:
            options = request.options.model_copy(update={"max_tokens": max_tokens})
            request = request.model_copy(update={"options": options})
        stream = None
        if request.options.stream:
            topic = topics.id_topic(self._fleet, self._device, "stream", request.id)
            stream = DeltaStream(self._link, topic, request.id)

        passed_over = self._queue.rival()

        def should_stop() -> FinishReason | None:
            self._beat()
            if job.cancelled.is_set():
                return "cancelled"
            if job.expired(time.monotonic()):
                return "deadline"
            if self._gives_way(job, passed_over):
                return "cancelled"
            return None if pacing is None else pacing.step()

        self._beat()
        self.is_computing = True
        try:
            result = answer_request(
                model,
                self._meter,
                request,
                self._device,
                accepted_s=job.accepted_s,
                rule=job.rule,
                on_text=stream.push if stream is not None else None,
                should_stop=should_stop,
                paused_s=lambda: 0.0 if pacing is None else pacing.paused_s,
            )
        finally:
            self.is_computing = False
        if stream is not None:
            stream.flush()
        return result

    def _beat(self) -> None:
        self.beats += 1

    def _gives_way(self, job: Job, passed_over: Job | None) -> bool:
        """Whether a prompt of this device's own makes room for one of high priority.

        Args:
            passed_over: one that waited already when `job` was chosen, for energy that `job` does not need.
        """
        if job.told is None or job.request.options.priority == "high":
            return False
        rival = self._queue.rival()
        return rival is not None and rival is not passed_over

    def _gave_way(self, job: Job, result: Result) -> bool:
        """Whether `job` was stopped for another's sake; it waits again then."""
        if result.finish_reason != "cancelled" or job.told is None or job.cancelled.is_set():
            return False
        self._queue.push(job)
        return True

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
