"""Whether a prompt runs now, waits, or is refused; and with how many tokens and threads.

The measures stand in a fixed order, each tried when those before it do not help: run as asked, wait, cap the tokens,
take fewer threads, cap the frequency, pause between tokens, refuse. Windows of up to :data:`PULSE_S` hold no whole
answer: they are kept while one runs, by threads, frequency and pauses. Longer ones decide whether it starts.

High priority is bound by the windows alone, and may spend what is kept for it. Pure: budget and situation in,
decision out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from edgeslm.power.governor_conditions import gentle, held_back
from edgeslm.power.governor_reserve import Steps, held_steps, kept_j, wait_s
from edgeslm.power.governor_types import (
    Decision,
    Defer,
    Reason,
    ReasonCode,
    Refuse,
    Run,
    Setting,
    Situation,
    Work,
)
from edgeslm.power.windows import Room
from edgeslm.schema.budget import Budget

PULSE_S: Final = 10.0
"""Windows up to this length are kept while an answer runs."""

_LOOK_AGAIN_S: Final = 60.0
_LEAST_DUTY: Final = 0.01
_MOMENT_S: Final = 1.2
_PULSE_GUARD: Final = 3.0
"""A supply forgives nothing: three sigma are kept free of a short window, whoever runs; one of a longer."""
_RESERVE_CLOSED: Final = 0.5
"""Share of the reserve that running work has to leave: beyond what it needed by estimate it is cut off only there."""
_WORTH_WAITING: Final = 0.5
"""Work that never fits as a whole waits until this share of the most that it can get is there."""


@dataclass(frozen=True, slots=True)
class _Space:
    """A window as one piece of work may use it.

    Attributes:
        steps: what it leaves to high priority; empty for high priority itself.
        held_j: joules that have to stay free now.
    """

    room: Room
    guard_j: float
    steps: Steps
    held_j: float

    @property
    def pulse(self) -> bool:
        return self.room.over_s <= PULSE_S

    @property
    def most_j(self) -> float:
        """Joules that the work can get at best."""
        return (
            self.room.capacity_j - self.guard_j - max((demand_j for _, demand_j in self.steps), default=0.0)
        )

    @property
    def line_j(self) -> float:
        """Joules that have to stay free while the work runs."""
        return self.guard_j + _RESERVE_CLOSED * (self.held_j - self.guard_j)

    def wait_s(self, need_j: float) -> float:
        """Seconds until `need_j` may be spent."""
        if need_j + self.held_j <= self.room.free_j:
            return 0.0
        if not self.steps:
            return self.room.wait_s(need_j + self.guard_j)
        return wait_s(self.room, need_j + self.guard_j, self.steps)

    def reason(self, code: ReasonCode, need_j: float, **more: float) -> Reason:
        """That this window counts, with its figures."""
        figures = {"need_j": need_j, "free_j": self.room.free_j, "reserve_j": self.held_j, **more}
        return Reason(code, self.room.name, figures)


def decide(budget: Budget, situation: Situation, work: Work) -> Decision:
    """What happens to `work`."""
    held = held_back(budget, situation, work)
    if held is not None:
        reason, delay_s = held
        late = _too_late(budget, situation, work, delay_s, work.estimate.seconds)
        if late is not None:
            return Refuse(_retry_after(delay_s), (reason, late))
        return Defer(situation.now_s + min(delay_s, _LOOK_AGAIN_S), blocks=False, reasons=(reason,))
    why_gentle = gentle(budget, situation.conditions, situation.now_s)
    settings = work.settings[-1:] if why_gentle else work.settings
    spaces = _spaces(budget, situation, work)
    at = next((at for at, one in enumerate(settings) if _duty(spaces, one) >= 1.0), len(settings) - 1)
    delay_s, tight = _wait(work, spaces, settings[at])
    if delay_s <= 0.0:
        return _run(situation, work, spaces, settings[at], work.max_tokens, (*why_gentle, tight))
    if delay_s <= _MOMENT_S and _wait(work, [one for one in spaces if not one.pulse], settings[at])[0] <= 0.0:
        # Only a supply has to recover for a moment: for that nothing is capped or refused.
        return Defer(situation.now_s + delay_s, blocks=True, reasons=(tight,))
    seconds = work.estimate.seconds / (settings[at].speed * _duty(spaces, settings[at]))
    late = _too_late(budget, situation, work, delay_s, seconds)
    if late is None:
        return Defer(situation.now_s + min(delay_s, _LOOK_AGAIN_S), blocks=True, reasons=(tight,))
    if work.ahead_j == 0:
        part_delay_s = _wait_for_part(budget, work, spaces, settings[at])
        if part_delay_s > 0 and _too_late(budget, situation, work, part_delay_s, seconds) is None:
            until_s = situation.now_s + min(part_delay_s, _LOOK_AGAIN_S)
            return Defer(until_s, blocks=True, reasons=(tight,))
        for setting in settings[at:]:
            tokens, capped = _tokens(work, spaces, setting)
            if tokens >= min(budget.min_tokens, work.max_tokens):
                return _run(situation, work, spaces, setting, tokens, (*why_gentle, tight, *capped))
    elif work.priority == "high":  # when it is next in line, shorter or gentler may do
        return Defer(situation.now_s, blocks=True, reasons=(tight,))
    if math.isfinite(delay_s):
        return Refuse(_retry_after(delay_s), (tight, late))
    part_delay_s = _wait_for_part(budget, work, spaces, settings[at])
    return Refuse(_retry_after(part_delay_s) if part_delay_s > 0 else None, (tight,))


def _spaces(budget: Budget, situation: Situation, work: Work) -> list[_Space]:
    high = work.priority == "high"
    spaces = []
    for room in situation.rooms if high else (*situation.rooms, *situation.soft_rooms):
        guard_j = situation.guard_share * room.limit_w * room.over_s
        if room.over_s <= PULSE_S:
            guard_j *= _PULSE_GUARD
            spaces.append(_Space(room, guard_j, (), guard_j))
        elif high:
            spaces.append(_Space(room, 0.0, (), 0.0))
        else:
            share = budget.reserve_share
            steps = situation.demand if share is None else ((0.0, share * room.capacity_j),)
            steps = held_steps(room, steps)
            spaces.append(_Space(room, guard_j, steps, guard_j + kept_j(room, steps)))
    return spaces


def _duty(spaces: list[_Space], setting: Setting) -> float:
    """Share of the time that short windows let `setting` compute."""
    duty = 1.0
    for space in spaces:
        room = space.room
        if space.pulse and setting.net_w > 0:
            duty = min(duty, (room.capacity_j - space.guard_j) / (setting.net_w * room.over_s))
    return max(duty, _LEAST_DUTY)


def _need_j(work: Work, space: _Space, setting: Setting) -> float:
    """Most joules of the work that can lie in the window at once; in a short one, those that cannot be split."""
    cost = setting.cost(work.settings[0])
    estimate = work.estimate
    energy_j = estimate.chunk_j if space.pulse else estimate.p90_j
    return min(cost * energy_j, setting.net_w * space.room.over_s)


def _wait(work: Work, spaces: list[_Space], setting: Setting) -> tuple[float, Reason]:
    """Seconds until the work fits everywhere, and the window that says so or is nearest to."""
    delay_s, least_j = 0.0, math.inf
    tight = Reason("unlimited")
    for space in spaces:
        need_j = _need_j(work, space, setting)
        wait = space.wait_s(need_j) if work.ahead_j == 0 else _wait_behind(space, need_j, work.ahead_j)
        over_j = space.room.free_j - space.held_j - need_j
        if wait > delay_s:
            delay_s = wait
            if math.isfinite(wait):
                tight = space.reason("window_full", need_j, wait_s=wait)
            else:
                tight = space.reason("never_fits", need_j, capacity_j=max(0.0, space.room.capacity_j))
        elif delay_s == 0.0 and over_j < least_j:
            least_j = over_j
            tight = space.reason("fits", need_j)
    return delay_s, tight


def _wait_behind(space: _Space, need_j: float, ahead_j: float) -> float:
    """Seconds until work fits that `ahead_j` go before: as for both at once, by cycles of the window if need be."""
    most_j = space.most_j
    if most_j <= 0:
        return math.inf
    if space.pulse:
        return 0.0
    total_j = min(need_j, _WORTH_WAITING * most_j) + ahead_j
    return space.wait_s(min(total_j, most_j)) + max(0.0, total_j / most_j - 1.0) * space.room.over_s


def _wait_for_part(budget: Budget, work: Work, spaces: list[_Space], setting: Setting) -> float:
    """Seconds until as much of the work fits as is worth waiting for."""
    estimate = work.estimate
    least_j = setting.cost(work.settings[0]) * (estimate.prefill_j + budget.min_tokens * estimate.token_j)
    longest_s = 0.0
    for space in spaces:
        part_j = max(least_j, _WORTH_WAITING * space.most_j)
        longest_s = max(longest_s, space.wait_s(min(_need_j(work, space, setting), part_j)))
    return longest_s


def _tokens(work: Work, spaces: list[_Space], setting: Setting) -> tuple[int, tuple[Reason, ...]]:
    """How many tokens fit now at `setting`, and why not all."""
    cost = setting.cost(work.settings[0])
    prefill_j, token_j = cost * work.estimate.prefill_j, cost * work.estimate.token_j
    tokens = work.max_tokens
    reasons: tuple[Reason, ...] = ()
    for space in spaces:
        need_j = _need_j(work, space, setting)
        free_j = space.room.free_j - space.held_j
        if need_j <= free_j:
            continue
        if space.pulse or token_j <= 0:
            return 0, ()
        fitting = int((free_j - prefill_j) / token_j)
        if fitting < tokens:
            tokens = fitting
            asked = float(work.max_tokens)
            reasons = (space.reason("tokens_capped", need_j, tokens=float(tokens), asked=asked),)
    return max(0, tokens), reasons


def _run(
    situation: Situation,
    work: Work,
    spaces: list[_Space],
    setting: Setting,
    tokens: int,
    reasons: tuple[Reason, ...],
) -> Run:
    first = work.settings[0]
    figures = {"net_w": setting.net_w, "most_w": first.net_w}
    if setting.threads < first.threads:
        figures |= {"threads": float(setting.threads), "most": float(first.threads)}
        reasons = (*reasons, Reason("fewer_threads", "", figures))
    if setting.frequency_mhz is not None and setting.frequency_mhz != first.frequency_mhz:
        reasons = (*reasons, Reason("frequency_capped", "", {**figures, "mhz": float(setting.frequency_mhz)}))
    if _duty(spaces, setting) < 1.0:
        room = min((space.room for space in spaces if space.pulse), key=lambda room: room.limit_w)
        drawn = {"draw_w": situation.idle_w + setting.net_w, "limit_w": room.limit_w}
        reasons = (*reasons, Reason("pauses", room.name, drawn))
    return Run(setting, tokens, {space.room.name: space.line_j for space in spaces}, reasons)


def _too_late(
    budget: Budget, situation: Situation, work: Work, delay_s: float, seconds: float
) -> Reason | None:
    """Why `work` cannot wait for `delay_s` and then compute for `seconds`."""
    now_s = situation.now_s
    if work.deadline_s is not None:
        if now_s + delay_s + seconds <= work.deadline_s:
            return None
        left_s = work.deadline_s - now_s
        return Reason("deadline", "", {"left_s": left_s, "wait_s": delay_s, "seconds": seconds})
    waited_s, max_wait_s = now_s - work.accepted_s, budget.max_wait_s
    if work.priority == "low" and budget.tariff is not None and budget.tariff.low_waits is not None:
        max_wait_s += budget.tariff.low_waits.max_wait_s
    if waited_s + delay_s <= max_wait_s:
        return None
    return Reason("max_wait", "", {"waited_s": waited_s, "wait_s": delay_s, "max_wait_s": max_wait_s})


def _retry_after(delay_s: float) -> float | None:
    return max(1.0, math.ceil(delay_s)) if math.isfinite(delay_s) else None
