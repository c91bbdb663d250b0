"""Spends the budget: between the agent, which has prompts, and the governor, which has rules.

Turns a prompt into the work that the governor decides about (what it will probably take, and the ways to run it),
carries decisions out on the board (frequency), and teaches the predictor what a prompt did take. Keeps what was
decided about each prompt, for ``edgeslm power explain``.

Without a budget there is no governor: nothing is predicted or decided, all work runs at once.
"""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Final

from edgeslm.clock import clock_is_set
from edgeslm.errors import BudgetError
from edgeslm.power.actuators import FrequencyCap
from edgeslm.power.attribution import Interval
from edgeslm.power.budget import check_budget
from edgeslm.power.governor import Governor, Running, WindowUse
from edgeslm.power.governor_choice import Choice, ahead_of, must_begin_s
from edgeslm.power.governor_settings import ways_to_run
from edgeslm.power.governor_types import (
    Reason,
    Refuse,
    Run,
    Setting,
    Step,
    Stop,
    Work,
    WorkEstimate,
)
from edgeslm.power.ledger import Ledger
from edgeslm.power.ledger_reader import PromptNote
from edgeslm.power.port import MeterFacts, Vitals
from edgeslm.power.predictor import Prediction, Predictor
from edgeslm.power.predictor import Setting as LearnedSetting
from edgeslm.schema.board import Board
from edgeslm.schema.budget import Budget
from edgeslm.schema.message import Priority

GOVERNOR_STATE: Final = "governor"
PREDICTOR_STATE: Final = "predictor"
CHUNK_TOKENS: Final = 32
"""Prompt tokens between two moments at which a prompt can pause."""


@dataclass(frozen=True, slots=True)
class Ask:
    """What is known of a prompt when it arrives.

    Attributes:
        model: name and version.
        accepted_s: monotonic.
        deadline_s: monotonic, or ``None``.
        max_tokens: most tokens of the answer.
        rule: the rule that asks, where one does.
    """

    id: str
    model: str
    priority: Priority
    prompt_tokens: int
    max_tokens: int
    accepted_s: float
    deadline_s: float | None
    rule: str | None = None


@dataclass(slots=True)
class Plan:
    """A prompt with its work, and what was decided about it so far.

    Attributes:
        deferred: it had to wait for energy at least once.
        shortened: its answer was cut by the budget.
    """

    ask: Ask
    work: Work
    prediction: Prediction
    history: list[tuple[float, str, tuple[Reason, ...]]] = field(default_factory=list)
    deferred: bool = False
    shortened: bool = False

    def note(self, now_s: float, what: str, reasons: tuple[Reason, ...]) -> None:
        """Add to the history; the same thing again only moves its time."""
        if self.history:
            at_s, last, before = self.history[-1]
            if last == what and [reason.code for reason in before] == [reason.code for reason in reasons]:
                self.history[-1] = (at_s, what, reasons)
                return
        self.history.append((now_s, what, reasons))
        del self.history[:-_MOST_HISTORY]


_MOST_HISTORY: Final = 16


@dataclass(frozen=True, slots=True)
class Spent:
    """What a prompt took.

    Attributes:
        seconds: computing time, pauses left out.
        complete: the answer ended by itself.
    """

    completion_tokens: int
    net_j: float
    seconds: float
    complete: bool


@dataclass(frozen=True, slots=True)
class SetAside:
    """A prompt that waits between two tokens for another one."""

    plan: Plan | None
    run: Run | None
    running: Running | None


class Steward:
    """Thread-safe; one prompt runs at a time, as for :class:`Governor`."""

    def __init__(
        self,
        board: Board,
        budget: Budget,
        ledger: Ledger,
        cap: FrequencyCap,
        *,
        threads: int,
        sizes_bytes: Mapping[str, int],
        idle_w: float,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        """Take up what was drawn and learned before a restart.

        Args:
            threads: inference threads that are configured, the most that are used.
            sizes_bytes: size of each model's graph, by name and version.
            idle_w: draw of the idle board as far as known.

        Raises:
            BudgetConfigError: the budget can never be kept on this board.
            LedgerError: the ledger cannot be read.
        """
        now_s = clock()
        self._clock, self._wall_clock = clock, wall_clock
        self._table = board.power
        self._threads = threads
        self._ledger = ledger
        self._cap = cap
        most_w = None if board.cores is None else idle_w + board.cores * board.power.core_load_w
        self.warnings = check_budget(budget, idle_w, max_w=most_w)
        self._budget = budget
        self._predictor = Predictor(board.power, sizes_bytes, ledger.state(PREDICTOR_STATE))
        self.governor = Governor(budget, idle_w, now_s=now_s, state=ledger.state(GOVERNOR_STATE))
        longest_s = max((window.over_s for window in budget.windows), default=0.0)
        self.governor.restore(ledger.spans(longest_s, now_s, wall_clock()))
        steps = board.power
        self._frequencies_mhz: tuple[int, ...] = ()
        if budget.cap_frequency and cap.permitted and steps.max_mhz and steps.min_mhz:
            middle = (steps.min_mhz + steps.max_mhz) // 2
            self._frequencies_mhz = (middle, steps.min_mhz)
        self._lock = threading.Lock()
        self._running: Plan | None = None
        self._run: Run | None = None

    def note_interval(self, interval: Interval) -> None:
        """What the board drew; comes in order."""
        self.governor.note_energy(interval.start_s, interval.end_s, interval.energy_j)

    def note_board(self, vitals: Vitals, idle_w: float, facts: MeterFacts | None) -> None:
        """How the board is: its vitals, its idle draw as learned by now, and the meter in use."""
        self.governor.note_vitals(vitals)
        self.governor.note_idle(vitals.at_s, idle_w)
        if facts is not None:
            self.governor.note_meter(facts.error_share)

    # --- what the dispatcher asks --------------------------------------------------------------------------------

    def plan(self, ask: Ask) -> Plan:
        """What `ask` will probably take, and the ways to run it."""
        first = LearnedSetting(ask.model, self._threads)
        prediction = self._predictor.predict(first, ask.prompt_tokens, ask.max_tokens)
        net_w = prediction.net_j / prediction.seconds if prediction.seconds > 0 else None
        settings = ways_to_run(self._table, self._threads, net_w=net_w, frequencies_mhz=self._frequencies_mhz)
        answer_j = prediction.j_per_token * prediction.completion_tokens
        prefill_j = max(prediction.net_j - answer_j, 0.0)
        chunk_j = prefill_j * min(1.0, CHUNK_TOKENS / max(ask.prompt_tokens, 1))
        work = Work(
            id=ask.id,
            priority=ask.priority,
            accepted_s=ask.accepted_s,
            deadline_s=ask.deadline_s,
            max_tokens=ask.max_tokens,
            estimate=WorkEstimate(
                mean_j=prediction.net_j,
                p90_j=prediction.net_j_p90,
                seconds=prediction.seconds,
                token_j=prediction.j_per_token,
                prefill_j=prefill_j,
                chunk_j=max(chunk_j, prediction.j_per_token),
            ),
            settings=settings,
        )
        return Plan(ask, work, prediction)

    def admit(self, plan: Plan, waiting: Iterable[Plan]) -> None:
        """Refuse at once what would be refused later.

        Args:
            waiting: what waits already.

        Raises:
            BudgetError: the energy is not there, with the reasons and when to ask again.
        """
        now_s = self._clock()
        ahead_j = ahead_of(plan.work, (other.work for other in waiting))
        decision = self.governor.decide(now_s, self._minute(), replace(plan.work, ahead_j=ahead_j))
        if isinstance(decision, Refuse):
            error = self.refusal(plan, decision)
            self.file(plan, None)
            raise error
        self.governor.note_accepted(now_s, plan.work)

    def knows(self, model: str) -> bool:
        """Whether a prompt of `model` ever ran here, now or before a restart."""
        return self._predictor.predict(LearnedSetting(model, self._threads), 1, 1).samples > 0

    def learn(self, model: str, prompt_tokens: int, spent: Spent) -> None:
        """Take in what a prompt took that ran with all threads, beside the queue."""
        setting = LearnedSetting(model, self._threads)
        self._learn(setting, prompt_tokens, spent)

    def _learn(self, setting: LearnedSetting, prompt_tokens: int, spent: Spent) -> None:
        self._predictor.learn(
            setting,
            prompt_tokens,
            spent.completion_tokens,
            spent.net_j,
            spent.seconds,
            complete=spent.complete,
        )

    # --- what the worker asks ------------------------------------------------------------------------------------

    def choose(self, plans: Sequence[Plan]) -> tuple[Plan | None, Run | Refuse | None, float]:
        """Which of the first in line of each priority runs or is refused now, and when to ask again (monotonic)."""
        now_s = self._clock()
        by_id = {plan.work.id: plan for plan in plans}
        choice: Choice = self.governor.choose(now_s, self._minute(), [plan.work for plan in plans])
        for work, defer in choice.waiting:
            waiting = by_id[work.id]
            waiting.deferred = True
            waiting.note(now_s, "waits", defer.reasons)
        chosen = None if choice.work is None else by_id[choice.work.id]
        return chosen, choice.decision, choice.look_again_s

    def refusal(self, plan: Plan, decision: Refuse) -> BudgetError:
        """The error that `plan` is answered with."""
        plan.note(self._clock(), "refused", decision.reasons)
        text = "; ".join(reason.text for reason in decision.reasons)
        wait_s = decision.retry_after_s
        return BudgetError(
            f"not enough energy: {text}", retry_after_s=None if wait_s is None else round(max(wait_s, 0.1), 1)
        )

    def begin(self, plan: Plan, run: Run) -> Setting:
        """`plan` starts to compute; the frequency is set, threads are the caller's business."""
        now_s = self._clock()
        plan.note(now_s, "runs", run.reasons)
        self._set_frequency(run)
        self._running, self._run = plan, run
        self.governor.begin(now_s, plan.work, run)
        return run.setting

    def _set_frequency(self, run: Run) -> None:
        if run.setting.frequency_mhz is not None:
            self._cap.hold(run.setting.frequency_mhz)
        elif self._cap.holds:
            self._cap.lift()

    def set_aside(self) -> SetAside:
        """What runs waits for another prompt, which may :meth:`begin`."""
        running = self.governor.set_aside(self._clock())
        aside = SetAside(self._running, self._run, running)
        self._running = self._run = None
        return aside

    def take_up(self, aside: SetAside) -> None:
        """What was set aside computes again, as it was decided for it."""
        if aside.run is not None:
            self._set_frequency(aside.run)
        self._running, self._run = aside.plan, aside.run
        self.governor.take_up(self._clock(), aside.running)

    def pace(self, *, decoding: bool, rival: Plan | None) -> Step:
        """Between two tokens or chunks: go on, pause or stop.

        Args:
            rival: a high-priority prompt that waits, if there is one.
        """
        now_s = self._clock()
        yield_at_s = None if rival is None else must_begin_s(rival.work)
        step = self.governor.pace(now_s, decoding=decoding, yield_at_s=yield_at_s)
        if isinstance(step, Stop) and self._running is not None:
            self._running.shortened = True
            self._running.note(now_s, "stopped", (step.reason,))
        return step

    def end(self, spent: Spent | None, aside: SetAside | None = None) -> None:
        """The running prompt has computed its last; `spent` is ``None`` if it failed.

        Args:
            aside: it is not what runs that ended, but this.
        """
        if aside is None:
            self.governor.end(self._clock())
            plan, run = self._running, self._run
            self._running = self._run = None
        else:
            plan, run = aside.plan, aside.run
        if plan is None or run is None:
            return
        if spent is not None:
            setting = LearnedSetting(plan.ask.model, run.setting.threads, run.setting.frequency_mhz)
            self._learn(setting, plan.ask.prompt_tokens, spent)
        self.file(plan, spent)

    def file(self, plan: Plan, spent: Spent | None) -> None:
        """Put what was decided about `plan` into the ledger."""
        now_s, wall_s = self._clock(), self._wall_clock()
        steps = [
            {
                "after_s": round(at_s - plan.ask.accepted_s, 3),
                "what": what,
                "reasons": [
                    {
                        "code": reason.code,
                        "text": reason.text,
                        "subject": reason.subject,
                        **{name: value for name, value in reason.figures.items() if math.isfinite(value)},
                    }
                    for reason in reasons
                ],
            }
            for at_s, what, reasons in plan.history
        ]
        self._ledger.note(
            PromptNote(
                id=plan.ask.id,
                at_s=wall_s - (now_s - plan.ask.accepted_s),
                model=plan.ask.model,
                rule=plan.ask.rule,
                priority=plan.ask.priority,
                prompt_tokens=plan.ask.prompt_tokens,
                completion_tokens=None if spent is None else spent.completion_tokens,
                predicted_j=round(plan.prediction.net_j, 6),
                decision=json.dumps(steps, separators=(",", ":")),
            )
        )

    # --- life ----------------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Hand what was learned to the ledger, which writes it with its next batch."""
        self._ledger.set_state(PREDICTOR_STATE, self._predictor.state())
        self._ledger.set_state(GOVERNOR_STATE, self.governor.state())

    def close(self) -> None:
        """Save, and put the processor's frequency back."""
        self.save()
        self._cap.close()

    def usage(self) -> tuple[WindowUse, ...]:
        """How full each window is."""
        return self.governor.usage(self._clock())

    def _minute(self) -> int | None:
        wall_s = self._wall_clock()
        if not clock_is_set(wall_s):
            return None
        local = datetime.fromtimestamp(wall_s).astimezone()
        return local.hour * 60 + local.minute
