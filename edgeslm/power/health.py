"""Whether a meter can be believed: a judgement over the stream of what it says, what the load did, and other meters.

A meter is judged over its own fresh values; the same value given again is no new evidence. What is looked for:

- *gone*, *rubbish*, *negative*, *stale*: three of the last five attempts failed or said what cannot be. One failure
  now and then is the way of an I2C bus and only skipped.
- *stuck*: five values exactly alike, although the load moved in a way that this meter must show, or although this
  meter never repeats itself at such a load. A steady board on a coarse meter repeats itself all the time; that is
  learned per level of load and never held against it. So a coarse meter that freezes on a steady board is found out
  when the load next moves, and until then what it says is still right.
- *drifting*: it differs from other meters by more than their errors for a while; that is found elsewhere
  (``power.agreement``) and told to :meth:`MeterHealth.contradicted`.

A demoted meter is tried again, less and less often while it fails, and believed again after a clean run that grows
with every relapse.

Pure: time comes in as an argument, nothing is read here.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

from edgeslm.errors import MeterError
from edgeslm.power.port import Fault, MeterFacts, Reading
from edgeslm.schema.board import PowerTable

ATTEMPTS = 5
BAD_OF_ATTEMPTS = 3
SAME_VALUES = 5
STALE_PERIODS = 3.0
_SOONEST_PERIODS = 0.9

_BLOCK = 64
_BLOCKS_NEEDED = 2
_MOST_REPEATS = 2
_LIVELY_STEPS = 8.0
_STRIKES = 2
_LEAST_CHANGE_CORES = 0.3
_UNKNOWN_STEP_CORES = 1.5
_LEVEL_EDGES_CORES = (0.25, 0.7, 1.5, 2.5)

_CLEAN_RUN = 20
_SLOW_CLEAN_RUN = 5
_RELAPSE_WITHIN_S = 600.0
_MAX_RELAPSES = 5
_FIRST_PROBE_S = 1.0
_LAST_PROBE_S = 30.0

_FAULTS: Mapping[str, Fault] = {
    fault: fault for fault in ("gone", "rubbish", "negative", "stuck", "drifting", "stale")
}


@dataclass(frozen=True)
class Limits:
    """What is possible on a board.

    Attributes:
        least_w: a running board draws more than this.
        most_w: nothing that the board is fed by can give this.
        unseen_w: most that its ports can feed beside the processor; ``None`` is not known.
        idle_w: draw with nothing to do.
        core_load_w: watts that one busy core adds.
    """

    least_w: float
    most_w: float
    unseen_w: float | None
    idle_w: float
    core_load_w: float


def limits_of(table: PowerTable, cores: int | None) -> Limits:
    """What is possible on a board with this power table.

    The ports of a Raspberry Pi may feed 1.2 A of the 3 A of its supply (Raspberry Pi documentation, Power supply): 0.4
    of it. Ten times the supply is beyond what any wiring error or load step explains.
    """
    full_w = table.idle_w + (cores or 64) * table.core_load_w
    return Limits(
        least_w=0.05 * table.idle_w,
        most_w=10 * max(table.supply_w or 0.0, full_w),
        unseen_w=None if table.supply_w is None else 0.4 * table.supply_w,
        idle_w=table.idle_w,
        core_load_w=table.core_load_w,
    )


@dataclass(frozen=True)
class Verdict:
    """What is wrong with a meter; ``fault`` is ``None`` while nothing is."""

    fault: Fault | None = None
    detail: str = ""


SOUND = Verdict()


def implausible(power_w: float, limits: Limits) -> Verdict:
    """What is wrong with a value on its own."""
    if not math.isfinite(power_w):
        return Verdict("rubbish", f"{power_w} is no draw")
    if power_w < 0:
        return Verdict("negative", f"{power_w:.3f} W; a shunt that is wired backwards shows such values")
    if power_w > limits.most_w:
        return Verdict(
            "rubbish", f"{power_w:.0f} W, ten times what can feed this board is {limits.most_w:.0f} W"
        )
    if power_w < limits.least_w:
        return Verdict("rubbish", f"{power_w:.3f} W cannot keep this board running")
    return SOUND


class Liveliness:
    """Whether a meter is one that never says the same twice, by level of load, in its calmest minute so far."""

    def __init__(self) -> None:
        self._blocks: dict[int, int] = {}
        self._most_repeats: dict[int, int] = {}
        self._least_jump_w: dict[int, float] = {}
        self._open: dict[int, tuple[int, int, float]] = {}
        self._strikes: dict[int, int] = {}

    def add(self, level: int, jump_w: float) -> None:
        """Two values that followed each other at `level` were `jump_w` apart."""
        pairs, repeats, sum_w = self._open.get(level, (0, 0, 0.0))
        pairs, repeats, sum_w = pairs + 1, repeats + (jump_w == 0), sum_w + jump_w
        if pairs == _BLOCK:
            self._blocks[level] = self._blocks.get(level, 0) + 1
            self._most_repeats[level] = max(self._most_repeats.get(level, 0), repeats)
            self._least_jump_w[level] = min(self._least_jump_w.get(level, math.inf), sum_w / pairs)
            pairs, repeats, sum_w = 0, 0, 0.0
        self._open[level] = (pairs, repeats, sum_w)

    def forget_open(self, level: int) -> None:
        """Leave out what was counted since the last full block, for the meter was frozen in it."""
        self._open.pop(level, None)

    def strike(self, level: int) -> None:
        """A run that was called stuck came to an end by itself."""
        self._strikes[level] = self._strikes.get(level, 0) + 1

    def never_repeats(self, level: int, step_w: float) -> bool:
        """Whether five values alike cannot be chance at `level`, where `step_w` is the meter's smallest change.

        Its noise must span several of its steps: one whose noise is smaller, or that only crept from step to step
        while the board warmed up, says the same over and over once the draw lies between two steps.
        """
        return (
            self._blocks.get(level, 0) >= _BLOCKS_NEEDED
            and self._strikes.get(level, 0) < _STRIKES
            and self._most_repeats[level] <= _MOST_REPEATS
            and self._least_jump_w[level] >= _LIVELY_STEPS * step_w
        )


class Stillness:
    """Finds a meter that says the same value over and over although it should not."""

    def __init__(self, facts: MeterFacts, limits: Limits) -> None:
        self._facts = facts
        self._limits = limits
        self._liveliness = Liveliness()
        self._value_w: float | None = None
        self._run = 0
        self._before_w = 0.0
        self._baseline_w: float | None = None
        self._moved: deque[bool] = deque(maxlen=SAME_VALUES)
        self._step_w = math.inf
        self._level = -1
        self._at_level = 0
        self._alarm_level: int | None = None

    def observe(self, power_w: float, expected_w: float) -> Verdict:
        """Judge the next fresh value; `expected_w` is what the board's model expects of the load."""
        level = self._level_of(expected_w)
        # A pair with a change of load between its values tells nothing of what the meter does at either level.
        self._at_level = self._at_level + 1 if level == self._level else 0
        self._level = level
        if self._at_level and self._value_w is not None:
            self._liveliness.add(level, abs(power_w - self._value_w))
        if power_w != self._value_w:
            self._change(power_w, expected_w)
            return SOUND
        self._run += 1
        self._before_w = expected_w
        if self._baseline_w is None:
            self._baseline_w = expected_w
        self._moved.append(abs(expected_w - self._baseline_w) > self._visible_w())
        if self._run < SAME_VALUES:
            return SOUND
        if sum(self._moved) >= SAME_VALUES - 1:
            return Verdict(
                "stuck",
                f"{power_w:.3f} W {self._run} times, although by its load the board went from {self._baseline_w:.2f} "
                f"to {expected_w:.2f} W",
            )
        if self._at_level >= SAME_VALUES - 1 and self._liveliness.never_repeats(level, self._step_w):
            self._liveliness.forget_open(level)
            self._alarm_level = level
            return Verdict("stuck", f"{power_w:.3f} W {self._run} times, which it never did at this load")
        return SOUND

    def _change(self, power_w: float, expected_w: float) -> None:
        if self._alarm_level is not None:
            self._liveliness.strike(self._alarm_level)
            self._alarm_level = None
        # In a span in which the load changed, the meter may have seen the end of it and the model the mean of it:
        # then what belongs to this value is only known at the next.
        jump_w = 0.0
        if self._value_w is not None:
            jump_w = abs(power_w - self._value_w)
            self._step_w = min(self._step_w, jump_w)
        settled = max(jump_w, abs(expected_w - self._before_w)) <= self._visible_w() / 2
        self._baseline_w = expected_w if settled else None
        self._value_w, self._run, self._before_w = power_w, 1, expected_w
        self._moved.clear()

    def _level_of(self, expected_w: float) -> int:
        cores = (expected_w - self._limits.idle_w) / max(self._limits.core_load_w, 1e-6)
        return sum(cores > edge for edge in _LEVEL_EDGES_CORES)

    def _visible_w(self) -> float:
        """A change of load that no resolution or error of this meter can hide."""
        if math.isinf(self._step_w):
            step_w = _UNKNOWN_STEP_CORES * self._limits.core_load_w
        else:
            step_w = max(3 * self._step_w, _LEAST_CHANGE_CORES * self._limits.core_load_w)
        return max(step_w, 4 * self._facts.error_w)


class MeterHealth:
    """The judgement on one meter, sample by sample."""

    def __init__(self, facts: MeterFacts, limits: Limits) -> None:
        self.verdict = SOUND
        self._facts = facts
        self._limits = limits
        self._stillness = Stillness(facts, limits)
        self._attempts: deque[Verdict] = deque(maxlen=ATTEMPTS)
        self._fresh_at_s = -math.inf
        self._failed_at_s = -math.inf
        self._clean = 0
        self._probe_s = _FIRST_PROBE_S
        self._next_at_s = -math.inf
        self._relapses = 0
        self._restored_at_s = -math.inf
        self._frozen_w: float | None = None

    @property
    def sound(self) -> bool:
        """Whether the meter is believed."""
        return self.verdict.fault is None

    def due(self, now_s: float) -> bool:
        """Whether the meter is to be read now; one that keeps failing is left alone for a while."""
        return now_s >= self._next_at_s

    def observe(self, now_s: float, outcome: Reading | MeterError, expected_w: float) -> Verdict:
        """Judge one attempt to read the meter.

        Args:
            outcome: what it said.
            expected_w: what the board's model expects by the load.

        Returns:
            What is wrong with this very outcome; the standing judgement is in ``verdict``.
        """
        if isinstance(outcome, MeterError):
            found = Verdict(_FAULTS.get(outcome.fault, "rubbish"), outcome.message)
            # Asked again before it could have anything new, a meter fails no second time.
            if now_s - self._failed_at_s < _SOONEST_PERIODS * self._facts.period_s:
                return found
            self._failed_at_s = now_s
            return self._count(now_s, found)
        age_s = now_s - outcome.at_s
        if age_s > STALE_PERIODS * self._facts.period_s + 1.0:
            return self._count(now_s, Verdict("stale", f"its last value is {age_s:.1f} s old"))
        if outcome.at_s <= self._fresh_at_s:
            return implausible(outcome.power_w, self._limits)
        self._fresh_at_s = outcome.at_s
        found = implausible(outcome.power_w, self._limits)
        if found.fault is None and outcome.power_w == self._frozen_w:
            found = self.verdict
        elif found.fault is None:
            self._frozen_w = None
            found = self._stillness.observe(outcome.power_w, expected_w)
            if found.fault is not None:
                self._frozen_w = outcome.power_w
                self._demote(now_s, found)
        return self._count(now_s, found)

    def contradicted(self, now_s: float, detail: str) -> None:
        """Other meters show that this one drifts."""
        self._demote(now_s, Verdict("drifting", detail))

    def _count(self, now_s: float, found: Verdict) -> Verdict:
        self._attempts.append(found)
        if found.fault is None:
            self._clean += 1
            self._next_at_s = -math.inf
            if not self.sound and self._clean >= self._clean_needed():
                self.verdict = SOUND
                self._attempts.clear()
                self._probe_s = _FIRST_PROBE_S
                self._restored_at_s = now_s
            return found
        self._clean = 0
        bad = sum(attempt.fault is not None for attempt in self._attempts)
        if self.sound and bad >= BAD_OF_ATTEMPTS:
            self._demote(now_s, found)
        elif not self.sound:
            self._next_at_s = now_s + self._probe_s
            self._probe_s = min(2 * self._probe_s, _LAST_PROBE_S)
        return found

    def _demote(self, now_s: float, verdict: Verdict) -> None:
        self._clean = 0
        if not self.sound:
            return
        if now_s - self._restored_at_s < _RELAPSE_WITHIN_S:
            self._relapses = min(self._relapses + 1, _MAX_RELAPSES)
        else:
            self._relapses = 0
        self.verdict = verdict

    def _clean_needed(self) -> int:
        run = _CLEAN_RUN if self._facts.period_s <= 1.0 else _SLOW_CLEAN_RUN
        return run << self._relapses
