"""How a simulated device updates: the state machine of real devices, with steps that take time and do nothing else.

What always holds: no I/O, and no clock of its own: times are given, in simulated seconds. What becomes of a change, and
whether a release is tried again, is decided by :mod:`edgeslm.agent.update.machine`; verdicts are those of
:mod:`edgeslm.agent.update.gate`; reports have the form that :mod:`edgeslm.agent.update.reporting` gives them.

Left to others: whether an assignment is to be followed (:mod:`edgeslm.sim.fleet_trust`), and sending reports.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Protocol

from edgeslm.agent.update.change import (
    Abort,
    Change,
    Denial,
    Effect,
    Event,
    FactoryServed,
    Failed,
    Fault,
    Fetched,
    Fits,
    Found,
    Healthy,
    Installed,
    Judged,
    NotYet,
    Offer,
    Ready,
    Reconnected,
    RolledBack,
    Started,
    Supersede,
    Swapped,
    Tick,
    Tried,
    Wanted,
    wanted_by,
)
from edgeslm.agent.update.machine import denial_of, effect_of, may_begin, serves, step
from edgeslm.agent.update.reporting import NameStatus, report_models
from edgeslm.errors import DowngradeError, EdgeslmError, SecurityFloorError, UpdateCause, UpdateError
from edgeslm.schema.assignment import Assignment
from edgeslm.schema.release import ReleaseTarget
from edgeslm.schema.update import ReportedModel, UpdatePolicy, Verdict

_STEPS_S: Final[dict[Effect, float]] = {
    "find": 2.0,
    "check_fit": 0.5,
    "fetch": 1.0,
    "install": 3.0,
    "check_window": 0.1,
    "try": 4.0,
    "commit": 1.0,
    "roll_back": 2.0,
    "serve_factory": 2.0,
}
"""How long the steps take; what a package's size or the gate adds comes on top."""
_DONE: Final[dict[Effect, Event]] = {
    "check_fit": Fits(),
    "fetch": Fetched(""),
    "install": Installed(),
    "try": Tried(),
    "commit": Swapped(0.3),
    "watch": Healthy(),
    "roll_back": RolledBack(),
    "serve_factory": FactoryServed(),
}
"""What comes of steps that always succeed."""
_LOOK_AGAIN_S = 30.0
_CRASH_AFTER_S = 20.0
_MAX_STEPS = 64
"""Steps taken at one moment; more would be a machine that turns in a circle."""


@dataclass(frozen=True)
class Running:
    """A release under a name."""

    version: str
    sha256: str


class World(Protocol):
    """What a device's steps meet; times are simulated seconds."""

    @property
    def jitter(self) -> float:
        """From 0 to 1, of this device."""

    def find(self, wanted: Wanted, running: Running | None) -> ReleaseTarget:
        """What trusted metadata says of a release.

        Raises:
            TrustError: it does not vouch for it, or the version must not replace what runs.
        """

    def try_out(self, wanted: Wanted, running: Running | None, attempt: int) -> Verdict:
        """The gate's verdict on a candidate."""

    def crashes(self, name: str, version: str, *, serving: bool) -> bool:
        """Whether a release crashes here: when it serves, or else in its trial."""

    def fetch_s(self, size_bytes: int) -> float:
        """Seconds that a package of that size takes."""

    def utc(self) -> datetime | None:
        """The device's clock; ``None`` while it is not set."""


class Updates:
    """The changes of one device.

    Attributes:
        assignment: number of the assignment that is followed; 0 if none.
        due_s: when there is something to do next, in simulated seconds.
        hold_in: states in which no more time passes, however late it is, until they are taken out of here: the
            board goes out in them, and may not have left them by then.
        seen_s: until when time has passed for it.
    """

    __slots__ = (
        "_changes",
        "_denials",
        "_done_s",
        "_factory",
        "_number",
        "_policy",
        "_step",
        "_verdict",
        "_versions",
        "_wanted",
        "_world",
        "assignment",
        "due_s",
        "hold_in",
        "seen_s",
    )

    def __init__(self, running: Mapping[str, Running], policy: UpdatePolicy, world: World) -> None:
        """Begin with what runs, as if it were in the factory package."""
        self._factory = dict(running)
        self._policy = policy
        self._world = world
        self._changes: dict[str, Change] = {}
        self._denials: dict[tuple[str, str], Denial] = {}
        self._wanted: dict[str, Wanted] = {}
        self._versions = {one.sha256: one.version for one in running.values()}
        self._number = 0
        self.seen_s = 0.0
        self._step: tuple[int, str, int, bool] | None = None
        self._done_s = math.inf
        self._verdict: Verdict | None = None
        self.assignment = 0
        self.due_s = math.inf
        self.hold_in: frozenset[str] = frozenset()

    # --- what runs ---

    def serving(self, name: str) -> Running | None:
        """What answers prompts for `name`."""
        change = self._changes.get(name)
        sha256 = None if change is None else serves(change)
        if sha256 is None:
            return self._factory.get(name)
        return Running(self._versions[sha256], sha256)

    @property
    def names(self) -> tuple[str, ...]:
        """Names that something is known of."""
        return tuple(sorted({*self._factory, *self._changes, *self._wanted}))

    @property
    def states(self) -> frozenset[str]:
        """States that its changes are in."""
        return frozenset(change.state for change in self._changes.values())

    def get(self, name: str) -> Change | None:
        """The latest change of `name`."""
        return self._changes.get(name)

    @property
    def is_idle(self) -> bool:
        """Whether nothing is under way, or about to be."""
        return self._unsettled() is None and self.due_s == math.inf

    def models(self) -> tuple[ReportedModel, ...]:
        """The part of a report that tells of models."""
        found = report_models(
            [
                NameStatus(name, None, self._previous(name), self._changes.get(name), None)
                for name in self.names
            ]
        )
        return tuple(
            model if (now := self.serving(model.name)) is None
            else model.model_copy(update={"version": now.version, "sha256": now.sha256})
            for model in found
        )  # fmt: skip

    def _previous(self, name: str) -> str | None:
        change = self._changes.get(name)
        return change.base if change is not None and change.state == "committed" else None

    # --- what others do ---

    def follow(self, assignment: Assignment, now_s: float, *, online: bool) -> bool:
        """Want what a trusted assignment wants; whether there is something to report."""
        if assignment.seq < self.assignment:
            return False
        is_new = assignment.seq > self.assignment
        wanted = wanted_by(assignment)
        self._wanted, self.assignment = {item.name: item for item in wanted}, assignment.seq
        for change in [change for change in self._changes.values() if not change.settled]:
            item = self._wanted.get(change.name)
            if item is not None and item.is_same_release(change.wanted):
                self._apply(change.name, Offer(change.number, item, change.base))
            elif item is not None or change.state != "committed":
                self._apply(change.name, Supersede())
        return self.advance(now_s, online=online) or is_new

    def abort(self, detail: str) -> None:
        """Stop what is under way."""
        for change in list(self._changes.values()):
            if not change.settled:
                self._apply(change.name, Abort(detail))

    def reconnected(self) -> None:
        """The network is back."""
        for change in list(self._changes.values()):
            if not change.settled:
                self._apply(change.name, Reconnected())

    def restarted(self, now_s: float, ran_s: float) -> None:
        """The board went out, and runs again after a time that did not pass for it."""
        self.seen_s, self.due_s, self._step = now_s, now_s, None
        for change in list(self._changes.values()):
            if not change.settled:
                self._apply(change.name, Started(crashed=True, rebooted=True, ran_s=ran_s))

    # --- time ---

    def advance(self, now_s: float, *, online: bool) -> bool:
        """Let time pass until `now_s`; whether there is something to report."""
        has_news = False
        while self.due_s < now_s and not self._is_held():
            has_news |= self._advance_to(self.due_s, online=online)
        return has_news if self._is_held() else self._advance_to(now_s, online=online) or has_news

    def _is_held(self) -> bool:
        return not self.hold_in.isdisjoint(self.states)

    def _advance_to(self, now_s: float, *, online: bool) -> bool:
        """The same, where nothing is due before `now_s`."""
        has_news, elapsed_s, self.seen_s = False, now_s - self.seen_s, now_s
        if elapsed_s > 0.0:
            for change in list(self._changes.values()):
                if not change.settled:
                    has_news |= self._apply(change.name, Tick(elapsed_s, online))
        for _ in range(_MAX_STEPS):
            under_way = self._unsettled()
            if under_way is None:
                under_way = self._offer_next()
                has_news |= under_way is not None
            self.due_s = math.inf
            if under_way is not None:
                self.due_s = self._take_step(under_way, now_s, online=online)
            if self.due_s > now_s or self._is_held():
                return has_news
            has_news = True
        self.due_s = now_s + _LOOK_AGAIN_S
        return has_news

    def _take_step(self, change: Change, now_s: float, *, online: bool) -> float:
        """Take the step that is due; when there is more to do."""
        effect = effect_of(change)
        if effect is None:
            return now_s + max(change.wait_s, 1e-3)
        key = (change.number, change.state, change.attempt, change.swapped)
        if self._step != key:
            self._step, self._done_s = key, now_s + self._step_s(effect, change)
        if now_s < self._done_s:
            return self._done_s
        self._step = None
        self._apply(change.name, self._outcome(effect, change, online=online))
        return now_s

    def _unsettled(self) -> Change | None:
        found = [change for change in self._changes.values() if not change.settled]
        return min(found, key=lambda change: change.number, default=None)

    def _offer_next(self) -> Change | None:
        for name, wanted in sorted(self._wanted.items()):
            base = self.serving(name)
            if base is not None and base.sha256 == wanted.sha256:
                continue
            if may_begin(wanted, self._denials.get((name, wanted.sha256))):
                self._number += 1
                self._versions[wanted.sha256] = wanted.version
                offer = Offer(self._number, wanted, None if base is None else base.sha256, self._world.jitter)
                self._apply(name, offer)
                return self._changes[name]
        return None

    def _apply(self, name: str, event: Event) -> bool:
        before = self._changes.get(name)
        after = step(before, event, self._policy)
        if after is None or after is before:
            return False
        self._changes[name] = after
        denial = denial_of(after)
        if denial is not None:
            self._denials[name, denial.sha256] = denial
        elif after.settled and after.state == "committed":
            self._denials.pop((name, after.wanted.sha256), None)
        return before is None or (before.state, before.attempt, before.settled, before.swapped) != (
            after.state, after.attempt, after.settled, after.swapped,
        )  # fmt: skip

    # --- steps ---

    def _step_s(self, effect: Effect, change: Change) -> float:
        match effect:
            case "fetch":
                size_bytes = 0 if change.target is None else change.target.info.size_bytes
                return _STEPS_S["fetch"] + self._world.fetch_s(size_bytes)
            case "measure":
                self._verdict = self._world.try_out(change.wanted, self._base(change), change.attempt)
                return self._verdict.seconds
            case "watch":
                if self._world.crashes(change.name, change.wanted.version, serving=True):
                    return _CRASH_AFTER_S
                return max(0.0, self._policy.probation_s - change.served_s)
            case _:
                return _STEPS_S[effect]

    def _outcome(self, effect: Effect, change: Change, *, online: bool) -> Event:
        match effect:
            case "find" | "fetch" if not online:
                return Failed(Fault("unreachable", "the network is away"))
            case "find":
                return self._found(change)
            case "check_window":
                waits_for = self._closed(change.wanted)
                return Ready("beside") if waits_for is None else NotYet(_LOOK_AGAIN_S, waits_for)
            case "try" if self._world.crashes(change.name, change.wanted.version, serving=False):
                return Failed(Fault("crashed", "the candidate's process ended by signal 11"))
            case "watch" if self._world.crashes(change.name, change.wanted.version, serving=True):
                return Started(crashed=True, rebooted=False, ran_s=_CRASH_AFTER_S)
            case "measure":
                verdict, self._verdict = self._verdict, None
                # After a restart what was measured is gone, and the machine begins the trial anew.
                return Failed(Fault("internal", "not measured yet")) if verdict is None else Judged(verdict)
            case _:
                return _DONE[effect]

    def _base(self, change: Change) -> Running | None:
        return None if change.base is None else Running(self._versions[change.base], change.base)

    def _found(self, change: Change) -> Event:
        try:
            target = self._world.find(change.wanted, self._base(change))
        except EdgeslmError as error:
            return Failed(Fault(_cause_of(error), str(error)[:500]))
        if target.info.sha256 != change.wanted.sha256:
            return Failed(Fault("not_trusted", "the repository vouches for other bytes than assigned"))
        return Found(target)

    def _closed(self, wanted: Wanted) -> str | None:
        """What to wait for until the window is open; ``None`` if it is."""
        if wanted.opens_at is None and wanted.closes_at is None:
            return None
        now = self._world.utc()
        if now is None:
            return "a clock that is set, to tell when the window opens"
        if wanted.opens_at is not None and now < wanted.opens_at:
            return f"the window that opens at {wanted.opens_at:%Y-%m-%d %H:%M} UTC"
        if wanted.closes_at is not None and now > wanted.closes_at:
            return f"another window: the one assigned closed at {wanted.closes_at:%Y-%m-%d %H:%M} UTC"
        return None


def _cause_of(error: EdgeslmError) -> UpdateCause:
    if isinstance(error, UpdateError):
        return error.cause
    return "unsafe_version" if isinstance(error, SecurityFloorError | DowngradeError) else "not_trusted"
