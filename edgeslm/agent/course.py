"""One answer under way: between two tokens it ends, pauses for the budget, or lets a prompt of high priority go first.

An alarm that finds a longer answer being computed is answered at once, between two of its tokens or chunks of its
prompt; then that one goes on where it was. The alarm is computed on a thread of its own, while the thread of the other
waits in the midst of its computation: so nothing of it has to be taken apart and put together again, and it can still
end in time when it is cancelled or its deadline passes.

What always holds: one computes at a time; high priority interrupts the others, and is never interrupted; what an answer
took, in time and energy, is without what it waited for.
"""

from __future__ import annotations

import contextlib
import logging
import math
import threading
import time
from collections.abc import Callable

from edgeslm.agent.job import Job
from edgeslm.agent.ports import EnergyMeter, Model
from edgeslm.agent.queue import JobQueue, Turn
from edgeslm.agent.serving import ServedModels
from edgeslm.errors import InferenceError, UnknownModelError
from edgeslm.power.governor_types import Go, Stop
from edgeslm.power.port import Cause, EnergySpan
from edgeslm.power.steward import CHUNK_TOKENS, SetAside, Steward
from edgeslm.schema.message import FinishReason, MeterClass

log = logging.getLogger(__name__)

_PAUSE_S = 0.5
"""Longest pause at a time: afterwards deadline and budget are looked at again."""


class _Charged:
    """``EnergyMeter`` that keeps hold of the span that is begun."""

    def __init__(self, meter: EnergyMeter) -> None:
        self._meter = meter
        self.span: EnergySpan | None = None

    @property
    def meter_class(self) -> MeterClass:
        """See ``EnergyMeter``."""
        return self._meter.meter_class

    def begin(self, cause: Cause) -> EnergySpan:
        """See ``EnergyMeter``."""
        self.span = self._meter.begin(cause)
        return self.span


class Course:
    """What is asked between two tokens of one answer; and who is let go first.

    Attributes:
        meter: what the answer is charged by.
        model: that computes it, once it is known.
        steward: who spends the budget for it, where there is one, once it is begun.
        aside: its place in the budget, while another has that; kept where it ended meanwhile.
        paused_s: seconds that it did not compute: the budget paused it, or another was let go first.
        given_s: of these, those of others.
    """

    def __init__(
        self,
        job: Job,
        within: Course | None,
        *,
        queue: JobQueue,
        models: ServedModels,
        meter: EnergyMeter,
        beat: Callable[[], None],
        serve: Callable[[Turn, Course], None],
    ) -> None:
        """Begin.

        Args:
            within: the answer that this one interrupts.
            beat: told that it moves.
            serve: answers a prompt in the midst of this one.
        """
        self.job = job
        self.meter = _Charged(meter)
        self.model: Model | None = None
        self.steward: Steward | None = None
        self.aside: SetAside | None = None
        self.paused_s = self.given_s = 0.0
        self._within = within
        self._queue = queue
        self._models = models
        self._beat = beat
        self._serve = serve
        self._gives_way = within is None and job.request.options.priority != "high"
        self._refused: Job | None = None
        self._look_again_s = float("-inf")
        self._go_until_s = float("-inf")
        self._rival: Job | None = None
        self._steps = 0
        self._prompt_steps = math.ceil((job.plan.ask.prompt_tokens - 1) / CHUNK_TOKENS) if job.plan else 0
        self._thread: threading.Thread | None = None
        self._free = threading.Event()
        self._is_over = False

    @property
    def shares_model(self) -> bool:
        """Whether the answer that it interrupts is of the same model, which has to stay as it is."""
        return self._within is not None and self._within.model is self.model

    def step(self) -> FinishReason | None:
        """Go on, or a reason to end the answer; returns when it is its turn again."""
        self._beat()
        self._steps += 1
        if self._within is not None:
            self._within.look()
        return self._ended() or self._give_way() or self._pace()

    def look(self) -> None:
        """Let it end, if it has to, though another is computed; on the thread of that one."""
        if self._ended() is not None:
            self._free.set()

    def join(self) -> None:
        """Wait until the one that was let go first is answered."""
        if self._thread is not None:
            self._thread.join()

    def _ended(self) -> FinishReason | None:
        if self.job.cancelled.is_set():
            return "cancelled"
        return "deadline" if self.job.expired(time.monotonic()) else None

    # --- another goes first ------------------------------------------------------------------------------------

    def _give_way(self) -> FinishReason | None:
        """Let a prompt of high priority be answered, if one waits that may; a reason if this one ended meanwhile."""
        rival = self._queue.rival()
        if rival is None or not self._gives_way:
            return None
        if rival is self._refused and time.monotonic() < self._look_again_s:
            return None
        self._refused, self._look_again_s = rival, float("inf")
        try:
            model = self._models.get(rival.request.model)
        except UnknownModelError:
            return None  # it waits for its turn to be told
        if model is not self.model and not self._models.fits_beside(model):
            log.info("%s waits: there is no memory for its model beside that of %s", rival.id, self.job.id)
            return None
        pick = self._queue.pop_urgent()
        self._look_again_s = pick.look_again_s
        if pick.turn is None:
            return None
        self._refused = None
        return self._interrupt(pick.turn, is_same=model is self.model)

    def _interrupt(self, turn: Turn, *, is_same: bool) -> FinishReason | None:
        began_s = time.monotonic()
        kept = contextlib.ExitStack()
        thread = threading.Thread(target=self._run, args=(turn, kept), name="edgeslm-urgent", daemon=True)
        self._free.clear()
        self._is_over = False
        try:
            if is_same and self.model is not None:
                kept.enter_context(self.model.set_aside())
            self._rest()
            thread.start()
        except (InferenceError, RuntimeError) as error:
            kept.close()
            self._take_up()
            self._gives_way = False
            self._queue.put_back(turn.job)
            log.warning("%s waits for the end of %s: %s", turn.job.id, self.job.id, error)
            return None
        self._thread = thread
        self._free.wait()
        given_s = time.monotonic() - began_s
        self.given_s += given_s
        self.paused_s += given_s
        reason = self._ended()
        if self._is_over:
            self.join()
            self._take_up()
        return reason

    def _run(self, turn: Turn, kept: contextlib.ExitStack) -> None:
        """On a thread of its own."""
        try:
            with kept:
                self._serve(turn, self)
        finally:
            self._is_over = True
            self._free.set()

    def _rest(self) -> None:
        if self.meter.span is not None:
            self.meter.span.pause()
        if self.steward is not None:
            self.aside = self.steward.set_aside()

    def _take_up(self) -> None:
        self._go_until_s = float("-inf")
        if self.meter.span is not None:
            self.meter.span.go_on()
        if self.steward is not None and self.aside is not None:
            self.steward.take_up(self.aside)
            self.aside = None

    # --- the budget --------------------------------------------------------------------------------------------

    def _pace(self) -> FinishReason | None:
        """Wait as long as the budget says."""
        steward = self.steward
        if steward is None:
            return None
        rival = self._queue.rival()
        now_s = time.monotonic()
        if now_s < self._go_until_s and rival is self._rival:
            return None
        self._rival = rival
        while True:
            self._beat()
            plan = None if rival is None or rival is self.job else rival.plan
            step = steward.pace(decoding=self._steps > self._prompt_steps, rival=plan)
            if isinstance(step, Go):
                self._go_until_s = step.until_s
                return None
            if isinstance(step, Stop):
                return "budget"
            self._queue.pause(self.job, min(step.seconds, _PAUSE_S), rival)
            self.paused_s += time.monotonic() - now_s
            if self._within is not None:
                self._within.look()
            reason = self._ended() or self._give_way()
            if reason is not None:
                return reason
            now_s = time.monotonic()
            rival = self._queue.rival()
