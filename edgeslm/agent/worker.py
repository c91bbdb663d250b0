"""The one inference worker: takes jobs, answers them, journals the answer, hands it to the outbox.

Every job that enters leaves with exactly one journalled result, be it an answer or an error, unless the process
dies: then the journal runs it again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping

from edgeslm import codec, topics
from edgeslm.agent.answering import answer_request
from edgeslm.agent.intake import error_result
from edgeslm.agent.job import Job
from edgeslm.agent.journal import Journal
from edgeslm.agent.outbox import Outbox
from edgeslm.agent.ports import EnergyMeter, Link, Message, Model
from edgeslm.agent.queue import JobQueue
from edgeslm.errors import CancelledError, DeadlineError, EdgeslmError, InferenceError, JournalError
from edgeslm.schema.message import FinishReason, Result, StreamDelta

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
    """Runs on one thread of its own: :meth:`run` returns when the queue is closed."""

    def __init__(
        self,
        *,
        fleet: str,
        device: str,
        models: Mapping[str, Model],
        meter: EnergyMeter,
        queue: JobQueue,
        journal: Journal,
        outbox: Outbox,
        link: Link,
        forget: Callable[[Job], None],
    ) -> None:
        """Take the parts.

        Args:
            forget: told of each job once its result is journalled.
        """
        self._fleet = fleet
        self._device = device
        self._models = models
        self._meter = meter
        self._queue = queue
        self._journal = journal
        self._outbox = outbox
        self._link = link
        self._forget = forget
        self.mean_job_s = 0.1
        """Running mean of a job's seconds, for `retry_after_s`."""

    def run(self) -> None:
        """Answer jobs until the queue is closed."""
        while (job := self._queue.pop()) is not None:
            started = time.monotonic()
            result = self._result(job)
            self.mean_job_s += 0.1 * (time.monotonic() - started - self.mean_job_s)
            self._file(job, result)

    def _result(self, job: Job) -> Result:
        try:
            if job.cancelled.is_set():
                raise CancelledError("cancelled before it ran")
            if job.expired(time.monotonic()):
                raise DeadlineError("the deadline passed in the queue")
            return self._answer(job)
        except EdgeslmError as error:
            return error_result(job.id, self._device, error)
        except Exception as error:  # whatever a prompt provokes, the next one is served
            log.exception("prompt %s failed", job.id)
            return error_result(job.id, self._device, InferenceError(f"unexpected {type(error).__name__}"))

    def _answer(self, job: Job) -> Result:
        request = job.request
        model = self._models[request.model or next(iter(self._models))]
        stream = None
        if request.options.stream:
            topic = topics.id_topic(self._fleet, self._device, "stream", request.id)
            stream = DeltaStream(self._link, topic, request.id)

        def should_stop() -> FinishReason | None:
            if job.cancelled.is_set():
                return "cancelled"
            return "deadline" if job.expired(time.monotonic()) else None

        result = answer_request(
            model,
            self._meter,
            request,
            self._device,
            accepted_s=job.accepted_s,
            on_text=stream.push if stream is not None else None,
            should_stop=should_stop,
        )
        if stream is not None:
            stream.flush()
        return result

    def _file(self, job: Job, result: Result) -> None:
        # The prompt's own record is synced while the model computes; an answer must not overtake it.
        job.settled.wait()
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
