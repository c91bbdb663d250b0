"""The agent's side of power: what measures, spends the budget, and tells of both, put together for one agent.

Without a budget every prompt runs at once; it is still measured, and its cost told.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from pydantic import ValidationError

from edgeslm.agent.batch import count_tokens
from edgeslm.agent.exposition import Exposition
from edgeslm.agent.job import Job
from edgeslm.agent.metrics import Outcome, outcome_of
from edgeslm.agent.ports import Model
from edgeslm.agent.queue import Pick, Turn, in_order
from edgeslm.agent.serving import ServedModels
from edgeslm.agent.telemetry import Telemetry
from edgeslm.codec import describe
from edgeslm.errors import BudgetError, ConfigError, TooLargeError, UnknownModelError
from edgeslm.files import replace_file
from edgeslm.power.attribution import Interval
from edgeslm.power.ledger_reader import PromptNote
from edgeslm.power.monitor import PowerMonitor
from edgeslm.power.port import Vitals
from edgeslm.power.steward import Ask, Steward
from edgeslm.runtime.conversation import spoken
from edgeslm.schema.budget import Budget
from edgeslm.schema.message import PromptRequest, Result

log = logging.getLogger(__name__)


class PowerSide:
    """One per agent, which starts and stops it.

    Attributes:
        steward: spends the budget; ``None`` where there is none.
    """

    def __init__(
        self,
        monitor: PowerMonitor,
        make_steward: Callable[[Budget], Steward],
        telemetry: Telemetry,
        budget: Budget,
        budget_file: Path,
        exposition: Exposition | None = None,
    ) -> None:
        """Take the parts.

        Args:
            make_steward: who spends a budget.
            budget: of the settings.
            budget_file: where a budget of the fleet is kept, which goes before that of the settings.

        Raises:
            BudgetConfigError: the budget can never be kept on this board.
        """
        self.monitor = monitor
        self.telemetry = telemetry
        self.steward: Steward | None = None
        self._make_steward = make_steward
        self._own_budget = budget
        self._budget_file = budget_file
        self._done: deque[tuple[Job, ServedModels, Result]] = deque()
        self._use(self._kept() or budget)
        self._exposition = exposition

    def start(self, waiting: Callable[[], int]) -> None:
        """Begin to measure; `waiting` tells how many prompts wait.

        Raises:
            ConfigError: the port for Prometheus cannot be opened.
        """
        if self._exposition is not None:
            self._exposition.start()
            self.telemetry.on_report = self._exposition.report
        self.monitor.listen(on_interval=self._interval, on_vitals=self._vitals)
        self.telemetry.attach(waiting)
        self.monitor.start()

    def stop(self) -> None:
        """Write what was learned, and end. Idempotent."""
        self._settle()
        if self.steward is not None:
            self.steward.close()
        self.monitor.stop()
        if self._exposition is not None:
            self._exposition.stop()

    def follow_budget(self, text: str | None) -> None:
        """Keep to a budget of the fleet from the next prompt on, and after restarts; without one, to our own.

        Args:
            text: JSON of a budget, as an assignment carries it.

        Raises:
            ConfigError: it is no budget, or this board can never keep it; the former one stays.
            LedgerError: what was drawn before cannot be read.
        """
        budget = self._own_budget if text is None else parse_budget(text)
        if budget == self._budget:
            return
        self.monitor.ledger.flush(time.time())  # the new windows start from what the ledger has
        self._use(budget)
        if text is None:
            self._budget_file.unlink(missing_ok=True)
        else:
            replace_file(self._budget_file, text.encode())
        log.info("the budget is now that of the %s", "settings" if text is None else "fleet")

    def _use(self, budget: Budget) -> None:
        steward = self._make_steward(budget) if budget.restrains else None
        before, self.steward, self._budget = self.steward, steward, budget
        if before is not None:
            before.close()
        self.telemetry.use(budget, steward)

    def _kept(self) -> Budget | None:
        """The budget of the fleet that was followed last; an unreadable one is none."""
        try:
            return parse_budget(self._budget_file.read_text("utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError, ConfigError):
            log.exception("the budget of the fleet cannot be read; that of the settings holds")
            return None

    def _interval(self, interval: Interval) -> None:
        self._settle()
        if self.steward is not None:
            self.steward.note_interval(interval)

    def _vitals(self, vitals: Vitals) -> None:
        if self.steward is not None:
            self.steward.note_board(vitals, self.monitor.account.draw.idle.idle_w, self.monitor.facts)

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
        generates = request.task == "generate"
        asked = (request.options.max_tokens or model.max_answer_tokens) if generates else 1
        inputs = len(request.inputs or (None,))
        prompt_tokens = _prompt_tokens(model, request)
        job.plan = self.steward.plan(
            Ask(
                id=request.id,
                model=model.name,
                priority=request.options.priority,
                prompt_tokens=prompt_tokens,
                max_tokens=max(1, min(asked * inputs, model.context_tokens * inputs - prompt_tokens)),
                accepted_s=job.accepted_s,
                deadline_s=job.deadline_s,
                rule=job.rule,
            )
        )

    def admit(self, job: Job, models: ServedModels, waiting: Callable[[], Iterable[Job]]) -> None:
        """Plan `job`, and refuse at once what the budget would refuse later.

        Args:
            waiting: tells what waits already; asked only where there is a budget.

        Raises:
            BudgetError: the energy is not there.
            RequestError: see :meth:`plan`.
        """
        self.plan(job, models)
        if self.steward is None or job.plan is None:
            return
        try:
            self.steward.admit(job.plan, [other.plan for other in waiting() if other.plan is not None])
        except BudgetError:
            self.telemetry.add_outcome(Outcome(job.plan.ask.model, "refused"))
            raise

    def report(self, job: Job, models: ServedModels, result: Result) -> None:
        """What became of `job`, for metrics and ledger; costs nothing while the answer is on its way out."""
        self._done.append((job, models, result))

    def _settle(self) -> None:
        while self._done:
            self._tell(*self._done.popleft())

    def _tell(self, job: Job, models: ServedModels, result: Result) -> None:
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
                    rule=job.rule,
                    priority=job.request.options.priority,
                    prompt_tokens=result.receipt.prompt_tokens,
                    completion_tokens=result.receipt.completion_tokens,
                )
            )

    def choose(self, heads: Sequence[Job]) -> Pick:
        """Which of the first in line runs now, by the budget; on the worker's thread."""
        steward = self.steward
        plans = [job.plan for job in heads if job.plan is not None]
        if steward is None or len(plans) < len(heads):
            # One without a plan fails at once, and costs nothing.
            return in_order([job for job in heads if job.plan is None] or heads)
        plan, decision, look_again_s = steward.choose(plans)
        for job in heads:
            if plan is not None and job.plan is plan:
                return Pick(Turn(job, decision), look_again_s)
        return Pick(None, look_again_s)


def _prompt_tokens(model: Model, request: PromptRequest) -> int:
    """Tokens that `request` brings; what was said before in its session is mostly known, and takes little."""
    if request.tensor is not None:
        return 1
    if request.inputs is not None:
        return count_tokens(model, request)
    said = spoken(request)
    try:
        return model.count_tokens(said.prompt, turns=said.turns, system=said.system)
    except TooLargeError:
        if request.options.overflow != "slide":
            raise
        return model.context_tokens - 1


def parse_budget(text: str) -> Budget:
    """The budget in `text`, JSON.

    Raises:
        ConfigError: it is none.
    """
    try:
        return Budget.model_validate_json(text)
    except ValidationError as error:
        raise ConfigError(f"the fleet's budget: {describe(error)}", key="budget") from error
