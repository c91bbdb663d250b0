"""Measures a candidate against the running release on this board, as the gate wants it.

Beside: both in processes of their own, confined in the same way, in turns. Swap, where memory holds only one: both in
the agent itself, the running release first, the candidate after the swap; what drifts meanwhile does not cancel then.

What always holds: prompts of users go first. A block in which one was answered is thrown away and repeated.

Left to others: what follows from the figures (:mod:`edgeslm.agent.update.gate`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from edgeslm.agent.update.gate import Block, Evidence, Round, judge, needs_more
from edgeslm.agent.update.ports import Cancelled, Device, EnergyCount, Serving, Subject, Timed
from edgeslm.errors import UpdateError, UpdateInterruptedError
from edgeslm.schema.package import GoldenCase
from edgeslm.schema.trial import MAX_BLOCK_PROMPTS
from edgeslm.schema.update import GatePolicy, TrialMode, Verdict

SWAP_ROUNDS = 12
"""Rounds with the running release before a swap: how many will be needed cannot be known by then."""

_BLOCKS_A_ROUND = 4
_VALUES_PER_BLOCK = 10
"""Values of the meter that a block should hold."""
_LONGEST_BLOCK_S = 30.0
_LEAST_COVERED = 0.3
"""Share of a block that the meter has to have told of."""
_STEADY_C = 1.0
_STEADY_S = 10.0
_LOOK_S = 2.0


@dataclass(frozen=True)
class Bench:
    """A candidate on trial, with what it is compared to.

    Attributes:
        candidate: the process of its own that it has, or the agent once it serves there.
        reference: the running release in a process of its own; ``None`` where it has none.
        cases: golden prompts of the candidate's package.
        new_right: by golden prompt, whether the candidate answered it rightly.
        old_right: the same of the running release; ``None`` where nothing runs under the name.
        prompt_s: seconds that a prompt takes.
        before: blocks of the running release, measured before a swap.
    """

    mode: TrialMode
    candidate: Subject
    reference: Subject | None
    cases: tuple[GoldenCase, ...]
    new_right: tuple[bool, ...]
    old_right: tuple[bool, ...] | None
    prompt_s: float
    before: tuple[Block, ...] = ()

    def close(self) -> None:
        """End the processes of both."""
        self.candidate.close()
        if self.reference is not None:
            self.reference.close()


def right_answers(subject: Subject, cases: Sequence[GoldenCase], cancelled: Cancelled) -> tuple[bool, ...]:
    """By golden prompt, whether `subject` gives the answer that the package promises.

    Raises:
        TrialError: it cannot go on.
        UpdateInterruptedError: it was cancelled.
    """
    answers = subject.answer([case.prompt for case in cases], cancelled)
    return tuple(_is_right(case, answer) for case, answer in zip(cases, answers, strict=True))


def _is_right(case: GoldenCase, answer: Timed) -> bool:
    return answer.text == case.text if case.text is not None else answer.data == case.json_answer


class Measurement:
    """Runs blocks on this board; for one verdict."""

    def __init__(self, device: Device, serving: Serving, policy: GatePolicy, cancelled: Cancelled) -> None:
        self._device = device
        self._serving = serving
        self._policy = policy
        self._cancelled = cancelled
        self._began_s = device.monotonic()
        self._disturbed = 0
        self._notes: list[str] = []
        self._was_low = supply_is_low(device)
        period_s = device.energy.period_s if device.energy is not None else 0.0
        self._slow_meter = period_s * _VALUES_PER_BLOCK > _LONGEST_BLOCK_S
        self._block_s = max(policy.block_s, 0.0 if self._slow_meter else period_s * _VALUES_PER_BLOCK)

    def compare(self, bench: Bench) -> Verdict:
        """Let both run until the gate can decide.

        Raises:
            TrialError: one of them cannot go on.
            UpdateError: ``under_voltage``: the supply gives way.
            UpdateInterruptedError: it was cancelled.
        """
        rounds: list[Round] = []
        verdict = judge(self._policy, self._evidence(bench, rounds, None))
        if bench.old_right is None or not bench.cases or verdict.outcome == "fail":
            return verdict  # nothing to compare with, or wrong answers, which no measurement makes right
        temperature_c = self._cool()
        if self._slow_meter:
            self._notes.append("the meter is too slow to tell releases apart")
        if bench.reference is None:
            self._notes.append("measured one after the other: memory holds only one release")
            after = self._alone(bench.candidate, bench.cases, bench.prompt_s)
            quads = zip(bench.before[::2], bench.before[1::2], after[::2], after[1::2], strict=True)
            rounds = [Round((old1, old2), (new1, new2)) for old1, old2, new1, new2 in quads]
            return judge(self._policy, self._evidence(bench, rounds, temperature_c))
        prompts = self._slices(bench.cases, bench.prompt_s)
        while True:
            verdict = judge(self._policy, self._evidence(bench, rounds, temperature_c))
            if not needs_more(self._policy, verdict) or self._is_hopeless:
                return verdict
            found = self._round(bench.reference, bench.candidate, next(prompts), turned=len(rounds) % 2 == 1)
            if found is None:
                self._notes.append("prompts of users left no quiet time to measure in")
            else:
                rounds.append(found)

    def before_swap(
        self, subject: Subject, cases: Sequence[GoldenCase], prompt_s: float
    ) -> tuple[Block, ...]:
        """Blocks of the running release, to be compared with those of the candidate after the swap.

        Raises:
            TrialError: it cannot go on.
            UpdateError: ``under_voltage``: the supply gives way; ``inconclusive``: there was no quiet time.
            UpdateInterruptedError: it was cancelled.
        """
        self._cool()
        return self._alone(subject, cases, prompt_s)

    # --- parts -------------------------------------------------------------------------------------------------

    def _slices(self, cases: Sequence[GoldenCase], prompt_s: float) -> Iterator[tuple[str, ...]]:
        """Prompts of one block after the other, in turn through all of them, for ever."""
        count = min(max(math.ceil(self._block_s / max(prompt_s, 1e-6)), 1), MAX_BLOCK_PROMPTS)
        endless = itertools.cycle(case.prompt for case in cases)
        while True:
            yield tuple(itertools.islice(endless, count))

    def _round(self, old: Subject, new: Subject, prompts: Sequence[str], *, turned: bool) -> Round | None:
        """Old, new, new, old, or `turned` inside out; ``None`` where no quiet time is left."""
        outer, inner = (new, old) if turned else (old, new)
        blocks = []
        for subject in (outer, inner, inner, outer):
            block = self._quiet_block(subject, prompts)
            if block is None:
                return None
            blocks.append(block)
        sides = (blocks[0], blocks[3]), (blocks[1], blocks[2])
        return Round(*reversed(sides)) if turned else Round(*sides)

    def _alone(self, subject: Subject, cases: Sequence[GoldenCase], prompt_s: float) -> tuple[Block, ...]:
        """Two blocks for each of :data:`SWAP_ROUNDS` rounds, of one release."""
        slices = itertools.islice(self._slices(cases, prompt_s), SWAP_ROUNDS)
        blocks = [self._quiet_block(subject, prompts) for prompts in slices for _ in range(2)]
        if None in blocks:
            raise UpdateError("prompts of users left no quiet time to measure in", cause="inconclusive")
        return tuple(block for block in blocks if block is not None)

    @property
    def _is_hopeless(self) -> bool:
        """Whether more was disturbed than could ever be needed."""
        return self._disturbed > _BLOCKS_A_ROUND * self._policy.max_rounds

    def _quiet_block(self, subject: Subject, prompts: Sequence[str]) -> Block | None:
        while not self._is_hopeless:
            block = self._block(subject, prompts)
            if block is not None:
                return block
            self._disturbed += 1
        return None

    def _block(self, subject: Subject, prompts: Sequence[str]) -> Block | None:
        activity = self._serving.any_activity()
        count, began_s = self._count(), self._device.monotonic()
        answers = subject.answer(prompts, self._cancelled)
        seconds = self._device.monotonic() - began_s
        energy = _energy(count, self._count(), seconds)
        if not self._was_low and supply_is_low(self._device):
            raise UpdateError("the supply gave way while it was measured", cause="under_voltage")
        after = self._serving.any_activity()
        if activity.is_busy or after.is_busy or after.begun != activity.begun:
            return None
        firsts = [answer.ttft_s for answer in answers if answer.ttft_s is not None]
        tokens = sum(answer.tokens - 1 for answer in answers if answer.tokens > 1)
        decode_s = math.fsum(answer.decode_s for answer in answers if answer.tokens > 1)
        return Block(
            ttft_s=math.fsum(firsts) / len(firsts) if firsts else None,
            token_s=decode_s / tokens if tokens else None,
            energy_j=None if energy is None else energy.total_j / len(prompts),
            meter=None if energy is None else energy.meter,
        )

    def _count(self) -> EnergyCount | None:
        if self._device.energy is None or self._slow_meter:
            return None
        return self._device.energy.count()

    def _evidence(self, bench: Bench, rounds: Sequence[Round], temperature_c: float | None) -> Evidence:
        return Evidence(
            mode=bench.mode,
            new_right=bench.new_right,
            old_right=bench.old_right,
            rounds=tuple(rounds),
            new_peak_mb=bench.candidate.peak_mb,
            old_peak_mb=None if bench.reference is None else bench.reference.peak_mb,
            disturbed=self._disturbed,
            seconds=self._device.monotonic() - self._began_s,
            temperature_c=temperature_c,
            notes=tuple(self._notes),
        )

    def _cool(self) -> float | None:
        """Wait until the processor is cool and its temperature steady; the temperature, where it is known."""
        started_s = self._device.monotonic()
        seen: list[tuple[float, float]] = []
        while True:
            now_s = self._device.monotonic()
            temperature_c = self._device.vitals().temperature_c
            if temperature_c is None:
                self._notes.append("no thermometer: measured without waiting for the board to cool")
                return None
            seen = [(at_s, c) for at_s, c in seen if now_s - at_s <= _STEADY_S] + [(now_s, temperature_c)]
            values = [c for _, c in seen]
            steady = now_s - seen[0][0] >= _STEADY_S - _LOOK_S and max(values) - min(values) < _STEADY_C
            if steady and temperature_c < self._policy.start_below_c:
                return temperature_c
            if now_s - started_s >= self._policy.cool_s:
                self._notes.append(
                    f"the board did not get cool and steady: measured from {temperature_c:.0f} C on"
                )
                return temperature_c
            if self._cancelled():
                raise UpdateInterruptedError
            self._device.sleep(_LOOK_S)


def supply_is_low(device: Device) -> bool:
    """Whether the firmware says that the supply gives too little, now."""
    throttling = device.vitals().throttling
    return throttling is not None and throttling.under_voltage


def _energy(before: EnergyCount | None, after: EnergyCount | None, seconds: float) -> EnergyCount | None:
    """Joules of a block: the meter's mean power over the part of it that it told of, for all of it."""
    if before is None or after is None:
        return None
    told_s = after.at_s - before.at_s
    if told_s < _LEAST_COVERED * seconds:
        return None
    return EnergyCount(after.at_s, (after.total_j - before.total_j) / told_s * seconds, after.meter)
