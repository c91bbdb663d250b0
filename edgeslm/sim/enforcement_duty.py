"""Who decides in the enforcement simulation: the governor's face as a protocol, and the plain alternative to it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from edgeslm.power.governor_admission import PULSE_S
from edgeslm.power.governor_choice import Choice, turn
from edgeslm.power.governor_types import Decision, Go, Run, Setting, Step, Work
from edgeslm.schema.board import PowerTable
from edgeslm.schema.budget import Budget


class Policy(Protocol):
    """Who decides; :class:`~edgeslm.power.governor.Governor` is one."""

    def note_energy(self, start_s: float, end_s: float, energy_j: float) -> None:
        """The meter tells."""

    def note_idle(self, now_s: float, idle_w: float) -> None:
        """The learned idle draw."""

    def note_accepted(self, now_s: float, work: Work) -> None:
        """A prompt came."""

    def decide(self, now_s: float, minute: int | None, work: Work) -> Decision:
        """What would become of it."""

    def choose(self, now_s: float, minute: int | None, heads: Sequence[Work]) -> Choice:
        """What runs next."""

    def begin(self, now_s: float, work: Work, run: Run) -> None:
        """It runs."""

    def pace(self, now_s: float, *, decoding: bool, yield_at_s: float | None = None) -> Step:
        """How it goes on."""

    def end(self, now_s: float) -> None:
        """It is done."""


@dataclass(frozen=True)
class Caution:
    """How much more than its table a board may draw, as somebody reckons who does not measure: as factors."""

    idle: float = 1.0
    draw: float = 1.0


class FixedDuty:
    """The plain alternative: each answer is followed by a rest in proportion to its length, and nothing is measured.

    The proportion keeps the strictest window by the board's power table; threads are those with which the draw stays
    below every short window, as far as there are any.
    """

    def __init__(
        self, budget: Budget, table: PowerTable, settings: Sequence[Setting], caution: Caution
    ) -> None:
        """Work the cycle out, for a board that draws as much more than its table as `caution` says."""
        idle_w = table.idle_w * caution.idle
        pulses_w = [window.limit_w for window in budget.windows if window.over_s <= PULSE_S]
        peak_w = min(pulses_w, default=math.inf)
        fitting = [setting for setting in settings if idle_w + caution.draw * setting.net_w <= peak_w]
        self._setting = fitting[0] if fitting else settings[-1]
        limit_w = min(window.limit_w for window in budget.windows)
        self._duty = min(1.0, (limit_w - idle_w) / (caution.draw * self._setting.net_w))
        if self._duty <= 0:
            raise ValueError(
                f"a limit of {limit_w} W leaves a board that draws {idle_w} W at rest nothing to do"
            )
        self._began_s = 0.0
        self._rest_until_s = 0.0

    def note_energy(self, start_s: float, end_s: float, energy_j: float) -> None:
        """It does not measure."""

    def note_idle(self, now_s: float, idle_w: float) -> None:
        """It does not learn."""

    def note_accepted(self, now_s: float, work: Work) -> None:
        """It does not learn."""

    def decide(self, now_s: float, minute: int | None, work: Work) -> Decision:
        """Everything is taken."""
        return Run(self._setting, work.max_tokens, {}, ())

    def choose(self, now_s: float, minute: int | None, heads: Sequence[Work]) -> Choice:
        """The first by the same order as the governor's, once rested."""
        if not heads:
            return Choice(None, None, math.inf)
        if now_s < self._rest_until_s:
            return Choice(None, None, self._rest_until_s)
        first = min(heads, key=turn)
        return Choice(first, Run(self._setting, first.max_tokens, {}, ()), now_s)

    def begin(self, now_s: float, work: Work, run: Run) -> None:
        """It runs."""
        self._began_s = now_s

    def pace(self, now_s: float, *, decoding: bool, yield_at_s: float | None = None) -> Step:
        """On and on."""
        return Go(math.inf)

    def end(self, now_s: float) -> None:
        """Rest begins."""
        self._rest_until_s = now_s + (now_s - self._began_s) * (1 / self._duty - 1)
