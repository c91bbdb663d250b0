"""The governor: keeps a device within its budget. The worker asks it, the sampler feeds it.

Decisions are pure functions (:mod:`~edgeslm.power.governor_admission`, :mod:`~edgeslm.power.governor_choice`,
:mod:`~edgeslm.power.governor_pacing`); here is what they need to know, kept behind a lock: the windows, the learned
demand of high priority, the state of the board, and what the running prompt drew that no meter has told yet.

Left to others: carrying decisions out, telling time (monotonic seconds and the local minute are passed in), and
persistence: the ledger gives back what was drawn before a restart, :meth:`Governor.state` what was learned.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from edgeslm.power import governor_reserve as reserve
from edgeslm.power.governor_admission import decide
from edgeslm.power.governor_choice import Choice, choose, must_begin_s
from edgeslm.power.governor_conditions import battery_limit_w, gentle, note_vitals, quiet_limit_w
from edgeslm.power.governor_pacing import Progress, pace
from edgeslm.power.governor_types import Conditions, Decision, Go, Pause, Run, Situation, Step, Work
from edgeslm.power.governor_unmetered import Unmetered
from edgeslm.power.port import Vitals
from edgeslm.power.windows import Room, SlidingWindow
from edgeslm.schema.budget import BATTERY_WINDOW, QUIET_WINDOW, Budget

MOST_GUARD_SHARE: Final = 0.05
"""Most of a limit that is kept free against the error of the meter."""

_BATTERY_OVER_S: Final = 600.0
_QUIET_OVER_S: Final = 60.0
_IDLE_BAND: Final = 0.05
"""What a window plans as idle draw follows slowly, yet stays this near to the latest."""
_IDLE_STEP: Final = 0.001
_DRAW_MORE: Final = 1.15
"""What runs may draw so much more than expected until the meter has told."""


@dataclass(frozen=True, slots=True)
class WindowUse:
    """How full a window is.

    Attributes:
        limit_j: joules allowed in any `over_s` seconds.
        used_j: joules drawn in the last `over_s` seconds.
    """

    name: str
    over_s: float
    limit_j: float
    used_j: float


class _Account:
    """A window with its limit; ``Spendable`` for the running prompt once it was looked at.

    Attributes:
        limit_w: mean watts allowed; infinite while the limit does not apply.
        spare_j: joules that the running prompt may spend.
    """

    __slots__ = ("_line_j", "_mean_w", "_now_s", "_pending_j", "limit_w", "name", "spare_j", "window")

    def __init__(self, name: str, over_s: float, limit_w: float, idle_w: float) -> None:
        self.name = name
        self.limit_w = limit_w
        self.window = SlidingWindow(over_s, idle_w)
        self.spare_j = self._now_s = self._pending_j = self._line_j = 0.0
        self._mean_w = idle_w

    def plan_idle(self, idle_w: float, passed_s: float) -> None:
        """Plan with the mean idle draw of a time as long as the window: a warm hour does not make a warm week."""
        mean_w = self._mean_w - math.expm1(-passed_s / self.window.over_s) * (idle_w - self._mean_w)
        self._mean_w = min(max(mean_w, idle_w * (1 - _IDLE_BAND)), idle_w * (1 + _IDLE_BAND))
        if abs(self._mean_w - self.window.idle_w) > _IDLE_STEP * self.window.idle_w:
            self.window.plan_idle(self._mean_w)

    def look(self, now_s: float, pending_j: float, line_j: float) -> None:
        """Set :attr:`spare_j` for a prompt that has to leave `line_j` free."""
        self._now_s, self._pending_j, self._line_j = now_s, pending_j, line_j
        self.spare_j = self.window.headroom_j(now_s, self.limit_w) - pending_j - line_j

    def lag_s(self, need_j: float, power_w: float) -> float:
        """Seconds until the prompt may begin to draw `need_j` at `power_w`."""
        room = self.window.room(self.name, self._now_s, self.limit_w, self._pending_j)
        return room.lag_s(need_j, power_w, self._line_j)


@dataclass(slots=True)
class Running:
    """The prompt under way."""

    work: Work
    run: Run
    net_w: float
    token_j: float
    chunk_j: float
    paused: bool = False


class Governor:
    """Thread-safe. One prompt runs at a time: :meth:`begin`, :meth:`pace` between tokens, :meth:`end`."""

    def __init__(
        self,
        budget: Budget,
        idle_w: float,
        *,
        now_s: float,
        error_share: float = 0.0,
        state: Mapping[str, object] | None = None,
    ) -> None:
        """Start with empty windows.

        Args:
            idle_w: watts of the idle board as far as known.
            now_s: monotonic seconds.
            error_share: relative error (one sigma) of the meter; that much of each limit is kept free.
            state: what :meth:`state` gave before a restart.
        """
        self._lock = threading.Lock()
        self._budget = budget
        self._idle_w, self._idle_noted_s = idle_w, now_s
        self._guard_share = min(error_share, MOST_GUARD_SHARE)
        self._hard = [_Account(one.name, one.over_s, one.limit_w, idle_w) for one in budget.windows]
        self._soft: list[_Account] = []
        if budget.battery is not None and budget.battery.curve:
            self._soft.append(_Account(BATTERY_WINDOW, _BATTERY_OVER_S, math.inf, idle_w))
        if any(quiet.limit_w is not None for quiet in budget.quiet_hours):
            self._soft.append(_Account(QUIET_WINDOW, _QUIET_OVER_S, math.inf, idle_w))
        self._demand = reserve.restore(state or {}, now_s)
        self._conditions = Conditions()
        self._unmetered = Unmetered(now_s)
        self._running: Running | None = None

    # --- what it is told ---------------------------------------------------------------------------------------

    def note_energy(self, start_s: float, end_s: float, energy_j: float) -> None:
        """The meter says that the board drew `energy_j` between the two times. Comes in order, without overlap."""
        with self._lock:
            self._unmetered.metered(start_s, end_s, energy_j - self._idle_w * (end_s - start_s))
            self._add(start_s, end_s, energy_j)

    def restore(self, spans: Iterable[tuple[float, float, float]]) -> None:
        """Take what was drawn before a restart: start and end on the axis of today, and joules; oldest first."""
        with self._lock:
            for start_s, end_s, energy_j in spans:
                self._add(start_s, end_s, energy_j)

    def note_idle(self, now_s: float, idle_w: float) -> None:
        """The board's idle draw as learned by now."""
        with self._lock:
            passed_s = max(0.0, now_s - self._idle_noted_s)
            self._idle_w, self._idle_noted_s = idle_w, now_s
            for account in (*self._hard, *self._soft):
                account.plan_idle(idle_w, passed_s)

    def note_meter(self, error_share: float) -> None:
        """Another meter is in use, with that relative error (one sigma)."""
        with self._lock:
            self._guard_share = min(error_share, MOST_GUARD_SHARE)

    def note_vitals(self, vitals: Vitals) -> None:
        """A look at temperature, supply and battery."""
        with self._lock:
            self._conditions = note_vitals(self._conditions, self._budget, vitals)

    def note_accepted(self, now_s: float, work: Work) -> None:
        """A prompt was accepted; teaches how much high priority asks for."""
        with self._lock:
            high, begin_s = work.priority == "high", must_begin_s(work)
            slack_s = 0.0 if begin_s is None else begin_s - now_s
            self._demand = reserve.note(self._demand, now_s, work.estimate.p90_j, high=high, slack_s=slack_s)

    # --- what it is asked --------------------------------------------------------------------------------------

    def decide(self, now_s: float, minute: int | None, work: Work) -> Decision:
        """What would happen to `work` now. Asked on arrival, with ``ahead_j`` set, a refusal comes early."""
        with self._lock:
            return decide(self._budget, self._situation(now_s, minute), work)

    def choose(self, now_s: float, minute: int | None, heads: Sequence[Work]) -> Choice:
        """Which of the first in line of each priority runs now, and when to ask again.

        Args:
            minute: of the local day, 0 to 1439; ``None`` where the clock is not set.
        """
        with self._lock:
            return choose(self._budget, self._situation(now_s, minute), heads)

    def begin(self, now_s: float, work: Work, run: Run) -> None:
        """`work` starts to compute as decided."""
        setting, estimate = run.setting, work.estimate
        cost = setting.cost(work.settings[0])
        with self._lock:
            self._running = Running(
                work, run, setting.net_w, cost * estimate.token_j, cost * estimate.chunk_j
            )
            self._unmetered.compute(now_s, setting.net_w)

    def pace(self, now_s: float, *, decoding: bool, yield_at_s: float | None = None) -> Step:
        """Between two tokens or chunks of the prompt: go on, pause, or stop.

        Args:
            decoding: the next piece is a token, not a chunk of the prompt.
            yield_at_s: monotonic time at which a waiting high-priority prompt has to begin, if one waits.
        """
        with self._lock:
            running = self._running
            if running is None:
                raise RuntimeError("asked how a prompt goes on while none runs")
            high = running.work.priority == "high"
            accounts = self._hard if high else [*self._hard, *self._soft]
            for account in accounts:
                line_j = running.run.line_j.get(account.name, 0.0)
                account.look(now_s, self._unmetered.pending_j(now_s, account.window.over_s), line_j)
            more = _DRAW_MORE * self._unmetered.ratio
            step = pace(
                now_s,
                accounts,
                Progress(
                    priority=running.work.priority,
                    deadline_s=running.work.deadline_s,
                    next_j=more * (running.token_j if decoding else running.chunk_j),
                    net_w=more * running.net_w,
                    yield_at_s=yield_at_s,
                    slowed=bool(gentle(self._budget, self._conditions, now_s)),
                    paused=running.paused,
                ),
            )
            running.paused = isinstance(step, Pause)
            if isinstance(step, Go):
                self._unmetered.compute(now_s, running.net_w)
            else:
                self._unmetered.rest(now_s)
            return step

    def end(self, now_s: float) -> None:
        """The running prompt has computed its last."""
        with self._lock:
            self._unmetered.rest(now_s)
            self._running = None

    def set_aside(self, now_s: float) -> Running | None:
        """The running prompt waits for another, which may begin; it goes on by :meth:`take_up`, if at all."""
        with self._lock:
            self._unmetered.rest(now_s)
            running, self._running = self._running, None
            return running

    def take_up(self, now_s: float, running: Running | None) -> None:
        """What was set aside computes again."""
        with self._lock:
            self._running = running
            if running is not None:
                self._unmetered.compute(now_s, running.net_w)

    def usage(self, now_s: float) -> tuple[WindowUse, ...]:
        """How full each window of the budget is."""
        with self._lock:
            return tuple(
                WindowUse(
                    account.name,
                    account.window.over_s,
                    account.limit_w * account.window.over_s,
                    account.window.used_j(now_s) + self._unmetered.pending_j(now_s, account.window.over_s),
                )
                for account in self._hard
            )

    def state(self) -> dict[str, object]:
        """What was learned, for the next start."""
        with self._lock:
            return self._demand.state()

    # --- behind the lock ---------------------------------------------------------------------------------------

    def _add(self, start_s: float, end_s: float, energy_j: float) -> None:
        for account in (*self._hard, *self._soft):
            account.window.add(start_s, end_s, energy_j)

    def _situation(self, now_s: float, minute: int | None) -> Situation:
        conditions, battery = self._conditions, self._budget.battery
        for account in self._soft:
            limit_w = quiet_limit_w(self._budget, minute)
            if account.name == BATTERY_WINDOW and battery is not None:
                share = conditions.battery_share
                limit_w = None if share is None else battery_limit_w(battery, share)
            account.limit_w = math.inf if limit_w is None else limit_w
        return Situation(
            now_s=now_s,
            minute=minute,
            idle_w=self._idle_w,
            rooms=tuple(self._room(account, now_s) for account in self._hard),
            soft_rooms=tuple(
                self._room(account, now_s) for account in self._soft if account.limit_w < math.inf
            ),
            guard_share=self._guard_share,
            demand=reserve.expected_demand(self._demand, now_s),
            conditions=conditions,
        )

    def _room(self, account: _Account, now_s: float) -> Room:
        pending_j = self._unmetered.pending_j(now_s, account.window.over_s)
        return account.window.room(account.name, now_s, account.limit_w, pending_j)
