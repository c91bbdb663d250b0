"""The agent's side of power: what measures, spends the budget, and tells of both, put together for one agent.

Without a budget every prompt runs at once; it is still measured, and its cost told.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

from edgeslm.agent.exposition import Exposition
from edgeslm.agent.job import Job
from edgeslm.agent.metrics import Outcome, outcome_of
from edgeslm.agent.queue import Choose, Pick, Turn, in_order
from edgeslm.agent.serving import ServedModels
from edgeslm.agent.telemetry import Telemetry
from edgeslm.errors import BudgetError, UnknownModelError
from edgeslm.power.ledger_reader import PromptNote
from edgeslm.power.monitor import PowerMonitor
from edgeslm.power.steward import Ask, Steward
from edgeslm.schema.message import Result

log = logging.getLogger(__name__)


class PowerSide:
    """One per agent, which starts and stops it.

    Attributes:
        steward: spends the budget; ``None`` where there is none.
    """

    def __init__(
        self,
        monitor: PowerMonitor,
        steward: Steward | None,
        telemetry: Telemetry,
        exposition: Exposition | None = None,
    ) -> None:
        """Take the parts."""
        self.monitor = monitor
        self.steward = steward
        self.telemetry = telemetry
        self._exposition = exposition

    def start(self, waiting: Callable[[], int]) -> None:
        """Begin to measure; `waiting` tells how many prompts wait.

        Raises:
            ConfigError: the port for Prometheus cannot be opened.
        """
        if self._exposition is not None:
            self._exposition.start()
            self.telemetry.on_report = self._exposition.report
        self.telemetry.attach(waiting)
        self.monitor.start()

    def stop(self) -> None:
        """Write what was learned, and end."""
        if self.steward is not None:
            self.steward.close()
        self.monitor.stop()
        if self._exposition is not None:
            self._exposition.stop()

    @property
    def chooser(self) -> Choose:
        """How jobs leave the queue."""
        return in_order if self.steward is None else self._choose

    def plan(self, job: Job, models: ServedModels) -> None:
        """Find out what `job` will take, where there is a budget to decide by.

        Raises:
            RequestError: its prompt cannot be answered.
            UnknownModelError: nor its model.
        """
        if self.steward is None:
            return
        request = job.request
        model = models.get(request.model)
        asked = request.options.max_tokens or model.max_answer_tokens
        prompt_tokens = model.count_tokens(request.prompt)
        job.plan = self.steward.plan(
            Ask(
                id=request.id,
                model=model.name,
                priority=request.options.priority,
                prompt_tokens=prompt_tokens,
                max_tokens=max(1, min(asked, model.context_tokens - prompt_tokens)),
                accepted_s=job.accepted_s,
                deadline_s=job.deadline_s,
            )
        )

    def admit(self, job: Job, models: ServedModels, waiting: Sequence[Job]) -> None:
        """Plan `job`, and refuse at once what the budget would refuse later.

        Raises:
            BudgetError: the energy is not there.
            RequestError: see :meth:`plan`.
        """
        self.plan(job, models)
        if self.steward is None or job.plan is None:
            return
        try:
            self.steward.admit(job.plan, [other.plan for other in waiting if other.plan is not None])
        except BudgetError:
            self.telemetry.add_outcome(Outcome(job.plan.ask.model, "refused"))
            raise

    def report(self, job: Job, models: ServedModels, result: Result) -> None:
        """What became of `job`, for metrics and ledger."""
        try:
            model = models.get(job.request.model).name
        except UnknownModelError as error:
            log.info("%s: %s", job.id, error)  # it is served no longer: nothing was spent on it
            return
        self.telemetry.add_outcome(outcome_of(result, model, job.plan))
        if job.plan is None and result.receipt is not None:
            self.monitor.ledger.note(
                PromptNote(
                    id=job.id,
                    at_s=time.time() - result.receipt.total_ms / 1e3,
                    model=model,
                    priority=job.request.options.priority,
                    prompt_tokens=result.receipt.prompt_tokens,
                    completion_tokens=result.receipt.completion_tokens,
                )
            )

    def _choose(self, heads: Sequence[Job]) -> Pick:
        """Which of the first in line runs now, by the budget; on the worker's thread."""
        plans = [job.plan for job in heads if job.plan is not None]
        if self.steward is None or len(plans) < len(heads):
            # One without a plan fails at once, and costs nothing.
            return in_order([job for job in heads if job.plan is None] or heads)
        plan, decision, look_again_s = self.steward.choose(plans)
        for job in heads:
            if plan is not None and job.plan is plan:
                return Pick(Turn(job, decision), look_again_s)
        return Pick(None, look_again_s)
