"""Does the governor keep a budget, and use it? Days of an agent's queue and worker in virtual time.

The governor is the one that ships, asked as the agent asks it: on arrival, for the next prompt, and between pieces of
an answer. Around it are a board that draws what it draws (its idle drifts, it is not quite like others of its kind), a
meter with a period, noise and an error of its own, and prompts that take more or less than was foreseen. The true draw
is kept and judged by :mod:`edgeslm.sim.enforcement_check`.

Beside it, the plain alternative: a fixed duty cycle, which rests after each answer in proportion to its length.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np

from edgeslm.power.governor import Governor
from edgeslm.power.governor_choice import ahead_of, must_begin_s
from edgeslm.power.governor_settings import ways_to_run
from edgeslm.power.governor_types import Go, Refuse, Run, Stop, Work
from edgeslm.schema.board import PowerTable
from edgeslm.schema.budget import Budget
from edgeslm.schema.message import Priority
from edgeslm.sim.enforcement_board import EnforcedBoard, SimMeter
from edgeslm.sim.enforcement_check import Draw, Kept, check
from edgeslm.sim.enforcement_duty import Caution, FixedDuty, Policy
from edgeslm.sim.enforcement_work import Load, SimPrompt, make_prompts

_TICK_S: Final = 60.0
_PREFILL_CHUNKS: Final = 4
_MOST_WAITING: Final = 256
_PRIORITIES: Final[tuple[Priority, ...]] = ("high", "normal", "low")


@dataclass(frozen=True)
class Trial:
    """A board, a budget and what is asked of it.

    Attributes:
        idle_swing: rise and fall of the idle draw over a day, as a share.
        hours: simulated time, a multiple of every window.
    """

    name: str
    table: PowerTable
    threads: int
    budget: Budget
    meter: SimMeter = field(default_factory=SimMeter)
    load: Load = field(default_factory=Load)
    idle_swing: float = 0.015
    hours: int = 48


@dataclass(frozen=True)
class Outcome:
    """What came of a trial.

    Attributes:
        kept: how the budget was kept.
        alarms: prompts of high priority.
        late: those not answered whole before their deadline.
        alarms_in_need: those that came while others waited, so that energy or time was short.
        late_in_need: those of them that were late.
        counts: other prompts by what became of them, and work in between.
        waiting_share: part of the time in which other prompts waited or ran.
        longest_wait_s: longest time that one without a deadline waited and was answered.
    """

    kept: Kept
    alarms: int
    late: int
    alarms_in_need: int
    late_in_need: int
    counts: Counter[str]
    waiting_share: float
    longest_wait_s: float


class _Queue:
    """Prompts that come, and those that wait: first come first served within a priority."""

    def __init__(self, prompts: Sequence[SimPrompt]) -> None:
        self._coming = deque(prompts)
        self._waiting: dict[Priority, deque[SimPrompt]] = {one: deque() for one in _PRIORITIES}

    @property
    def next_s(self) -> float:
        """When the next one comes."""
        return self._coming[0].work.accepted_s if self._coming else math.inf

    @property
    def waiting(self) -> list[Work]:
        """All that wait."""
        return [prompt.work for line in self._waiting.values() for prompt in line]

    def arrive(self) -> SimPrompt:
        """The next one comes."""
        return self._coming.popleft()

    def push(self, prompt: SimPrompt) -> None:
        """It waits."""
        self._waiting[prompt.work.priority].append(prompt)

    def head(self, priority: Priority) -> SimPrompt | None:
        """First in line."""
        line = self._waiting[priority]
        return line[0] if line else None

    def pop(self, priority: Priority) -> SimPrompt:
        """Take the first in line."""
        return self._waiting[priority].popleft()

    def others_wait(self) -> bool:
        """Whether anything but high priority waits."""
        return bool(self._waiting["normal"] or self._waiting["low"])


class _Days:
    """One trial: queue and worker in virtual time."""

    def __init__(
        self, trial: Trial, policy: Policy, board: EnforcedBoard, prompts: Sequence[SimPrompt]
    ) -> None:
        self._policy = policy
        self._board = board
        self._queue = _Queue(prompts)
        self._end_s = 3600.0 * trial.hours
        self._idle_noted_s = -_TICK_S
        self.alarms = 0
        self.late = 0
        self.late_in_need = 0
        self.in_need: set[str] = set()
        self.counts: Counter[str] = Counter()
        self.without_work_s = 0.0
        self.longest_wait_s = 0.0

    def run(self) -> None:
        """To the end."""
        board = self._board
        while board.now_s < self._end_s:
            self._take_arrivals()
            choice = self._policy.choose(board.now_s, self._minute(), [one.work for one in self._heads()])
            if choice.work is None:
                self._wait(choice.look_again_s)
                continue
            prompt = self._queue.pop(choice.work.priority)
            if isinstance(choice.decision, Run):
                self._answer(prompt, choice.decision)
            elif choice.decision is not None:
                self._refused(prompt, choice.decision)
        while self._queue.head("high") is not None:  # never answered
            self._note_late(self._queue.pop("high").work)

    def _minute(self) -> int:
        return int(self._board.now_s / 60) % 1440

    def _heads(self) -> list[SimPrompt]:
        heads = []
        for priority in _PRIORITIES:
            while (prompt := self._queue.head(priority)) is not None:
                if prompt.work.deadline_s is None or self._board.now_s < prompt.work.deadline_s:
                    heads.append(prompt)
                    break
                self._queue.pop(priority)
                self._count(prompt, "expired")
        return heads

    def _wait(self, until_s: float) -> None:
        now_s = self._board.now_s
        until_s = max(min(until_s, self._queue.next_s, now_s + _TICK_S, self._end_s), now_s + 0.001)
        if not self._queue.others_wait():
            self.without_work_s += until_s - now_s
        self._spend(until_s - now_s, 0.0)

    def _spend(self, seconds: float, net_w: float) -> None:
        self._board.spend(seconds, net_w)
        if self._board.now_s - self._idle_noted_s >= _TICK_S:
            self._idle_noted_s = self._board.now_s
            self._policy.note_idle(self._board.now_s, self._board.learned_idle_w())

    def _take_arrivals(self) -> None:
        now_s = self._board.now_s
        while self._queue.next_s <= now_s:
            prompt = self._queue.arrive()
            work = prompt.work
            if work.priority == "high":
                self.alarms += 1
                if self._queue.others_wait():
                    self.in_need.add(work.id)
            waiting = self._queue.waiting
            if len(waiting) >= _MOST_WAITING and work.priority != "high":
                self._count(prompt, "busy")
                continue
            self._policy.note_accepted(now_s, work)
            asked = replace(work, ahead_j=ahead_of(work, waiting))
            decision = self._policy.decide(now_s, self._minute(), asked)
            if isinstance(decision, Refuse):
                self._refused(prompt, decision)
            else:
                self._queue.push(prompt)

    def _refused(self, prompt: SimPrompt, refusal: Refuse) -> None:
        self._count(prompt, "refused" if refusal.retry_after_s is not None else "refused_for_good")

    def _count(self, prompt: SimPrompt, what: str) -> None:
        if prompt.work.priority == "high":
            self._note_late(prompt.work)
        else:
            self.counts[what] += 1

    def _note_late(self, alarm: Work) -> None:
        self.late += 1
        self.late_in_need += alarm.id in self.in_need

    def _answer(self, prompt: SimPrompt, run: Run) -> None:
        board, work, setting = self._board, prompt.work, run.setting
        net_w = setting.net_w * prompt.draw
        begun_s = board.now_s
        self._policy.begin(begun_s, work, run)
        tokens = min(prompt.tokens, run.max_tokens)
        chunk_s = prompt.prefill_s / _PREFILL_CHUNKS / setting.speed
        token_s = prompt.token_s / setting.speed
        # As the generation loop does it: the first chunk unasked, then asked before each piece that is still to come.
        pieces = deque([(chunk_s, False)] * _PREFILL_CHUNKS + [(token_s, True)] * tokens)
        free_until_s, cut = begun_s, False
        while pieces and not cut:
            seconds = 0.0
            while pieces and (seconds == 0.0 or board.now_s + seconds < free_until_s):
                seconds += pieces.popleft()[0]
            self._spend(seconds, net_w)
            self._take_arrivals()
            if pieces:
                cut, free_until_s = self._ask(decoding=pieces[0][1])
        self._policy.end(board.now_s)
        self._tell(prompt, begun_s, whole=not cut and tokens == prompt.tokens)

    def _ask(self, *, decoding: bool) -> tuple[bool, float]:
        """Between two pieces: whether to stop, and until when not to ask again."""
        while True:
            first = self._queue.head("high")
            yield_at_s = None if first is None else must_begin_s(first.work)
            step = self._policy.pace(self._board.now_s, decoding=decoding, yield_at_s=yield_at_s)
            if isinstance(step, Go):
                return False, step.until_s
            if isinstance(step, Stop):
                self.counts[step.reason.code] += 1
                return True, 0.0
            self.counts["pauses"] += 1
            self._spend(step.seconds, 0.0)
            self._take_arrivals()

    def _tell(self, prompt: SimPrompt, begun_s: float, *, whole: bool) -> None:
        work = prompt.work
        if work.priority == "high":
            if not whole or (work.deadline_s is not None and self._board.now_s > work.deadline_s):
                self._note_late(work)
            return
        self._count(prompt, "answered" if whole else "shortened")
        if work.deadline_s is None:
            self.longest_wait_s = max(self.longest_wait_s, begun_s - work.accepted_s)


def simulate(trial: Trial, seed: int, *, fixed_duty: Caution | None = None) -> Outcome:
    """Run `trial` with everything that chance decides taken from `seed`.

    Args:
        fixed_duty: take the plain alternative instead of the governor.
    """
    length_s = 3600.0 * trial.hours
    rng = np.random.default_rng([seed, 0])
    settings = ways_to_run(trial.table, trial.threads)
    limit_w = min(window.limit_w for window in trial.budget.windows)
    prompts = make_prompts(trial.load, settings, limit_w - trial.table.idle_w, length_s, rng)
    policy: Policy
    if fixed_duty is not None:
        policy = FixedDuty(trial.budget, trial.table, settings, fixed_duty)
    else:
        policy = Governor(trial.budget, trial.table.idle_w, now_s=0.0, error_share=trial.meter.error_share)
    board = EnforcedBoard(
        trial.table.idle_w,
        trial.idle_swing,
        trial.meter,
        length_s,
        np.random.default_rng([seed, 1]),
        policy.note_energy,
    )
    days = _Days(trial, policy, board, prompts)
    days.run()
    # The last answer may run past the end; it is cut off where the time is up.
    segments = [(min(end_s, length_s), power_w) for end_s, power_w in board.segments]
    kept = check(trial.budget, Draw.of(segments), board.idle_j)
    return Outcome(
        kept=kept,
        alarms=days.alarms,
        late=days.late,
        alarms_in_need=len(days.in_need),
        late_in_need=days.late_in_need,
        counts=days.counts,
        waiting_share=1 - days.without_work_s / length_s,
        longest_wait_s=days.longest_wait_s,
    )
