"""The state machine as a device lives it: steps that work or fail, power cuts, newer wishes, in any order.

The world here is a card, a journal and a model that serves. Cuts come before a step, after it but before its outcome is
journalled, and after that. What always has to hold: whatever would be served after a cut is a whole package.
"""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from edgeslm.agent.update.change import (
    Abort,
    Change,
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
    RolledBack,
    Started,
    Supersede,
    Swapped,
    Tick,
    Tried,
    Wanted,
)
from edgeslm.agent.update.machine import denial_of, effect_of, may_begin, serves, step
from edgeslm.errors import UpdateCause
from edgeslm.schema.release import ReleaseInfo, ReleaseRequirements, ReleaseTarget
from edgeslm.schema.update import UpdatePolicy, Verdict

POLICY = UpdatePolicy()
FACTORY = "f" * 64
RELEASES = tuple(letter * 64 for letter in "abcd")
CAUSES = [cause for cause in get_args(UpdateCause) if cause != "damaged"]


def target(sha256: str) -> ReleaseTarget:
    requires = ReleaseRequirements(ram_mb=1, cpu_features=(), agent="0.1.0", runtimes=("litert",))
    info = ReleaseInfo(
        name="tiny", version="1.0.0", task="generate", sha256=sha256, size_bytes=1, security_floor="0.0.0",
        requires=requires,
    )  # fmt: skip
    return ReleaseTarget(role="targets", info=info, floor="0.0.0")


class Device(RuleBasedStateMachine):
    """One device and its updater."""

    @initialize()
    def begin(self) -> None:
        self.change: Change | None = None
        self.whole = {FACTORY}
        self.serving = FACTORY
        self.loaded = True
        self.denials = {}
        self.wish: Wanted | None = None
        self.assignment = 0

    # --- the world ---------------------------------------------------------------------------------------------

    def apply(self, event) -> None:
        """Journal first: memory never knows more than the card."""
        after = step(self.change, event, POLICY)
        if after is not None and (denial := denial_of(after)) is not None:
            self.denials[denial.sha256] = denial
        self.change = after
        if after is None or after.settled:
            self.tidy()

    def tidy(self) -> None:
        self.whole &= {FACTORY, self.to_serve()}

    def to_serve(self) -> str:
        """What would be served after a cut right now."""
        return (serves(self.change) if self.change is not None else None) or FACTORY

    def take(self, effect: str, change: Change):
        """The step itself, with what it does to card and model; the event that tells of it."""
        sha256 = change.wanted.sha256
        match effect:
            case "find":
                return Found(target(sha256))
            case "check_fit":
                return Fits()
            case "fetch":
                return Fetched("file")
            case "install":
                self.whole.add(sha256)
                return Installed()
            case "check_window":
                return Ready("swap" if int(sha256[0], 16) % 2 else "beside")
            case "try":
                assert sha256 in self.whole, "a package is tried that is not whole"
                if change.mode == "swap":
                    self.serving = sha256
                return Tried()
            case "measure":
                return Judged(Verdict(outcome="pass", mode="beside", criteria=()))
            case "commit":
                assert sha256 in self.whole, "a package is committed that is not whole"
                self.serving = sha256
                return Swapped(0.01)
            case "watch":
                return Healthy() if change.served_s > POLICY.probation_s else NotYet(5.0, "")
            case "roll_back":
                if (change.base or FACTORY) not in self.whole:
                    return Failed(Fault("damaged", "the base is gone"))
                self.serving = change.base or FACTORY
                return RolledBack()
            case "serve_factory":
                self.serving = FACTORY
                return FactoryServed()
        raise AssertionError(effect)

    def restart(self, *, crashed: bool, rebooted: bool, ran_s: float) -> None:
        self.apply(Started(crashed, rebooted, ran_s))
        assert self.to_serve() in self.whole
        self.serving = self.to_serve()

    # --- what happens ------------------------------------------------------------------------------------------

    @rule(sha256=st.sampled_from(RELEASES), force=st.booleans())
    def wish_for(self, sha256: str, force: bool) -> None:
        self.assignment += 1
        self.wish = Wanted("tiny", "1.0.0", sha256, self.assignment, force=force)
        if self.change is not None and not self.change.settled:
            same = self.wish.is_same_release(self.change.wanted)
            self.apply(Offer(self.change.number, self.wish, self.change.base) if same else Supersede())

    @precondition(lambda self: self.wish is not None and (self.change is None or self.change.settled))
    @rule(jitter=st.floats(0, 1))
    def begin_change(self, jitter: float) -> None:
        base = self.to_serve()
        if self.wish.sha256 != base and may_begin(self.wish, self.denials.get(self.wish.sha256)):
            number = 1 if self.change is None else self.change.number + 1
            self.apply(Offer(number, self.wish, base, jitter))

    @precondition(lambda self: self.change is not None and effect_of(self.change) is not None)
    @rule(
        outcome=st.sampled_from(["works", "works", "works", "fails", "cut before", "cut after"]),
        cause=st.sampled_from(CAUSES),
        rebooted=st.booleans(),
        ran_s=st.sampled_from([1.0, 1000.0]),
    )
    def take_step(self, outcome: str, cause: UpdateCause, rebooted: bool, ran_s: float) -> None:
        change, effect = self.change, effect_of(self.change)
        if outcome == "cut before":
            self.restart(crashed=True, rebooted=rebooted, ran_s=ran_s)
            return
        if outcome == "fails":
            self.apply(Failed(Fault(cause, "why")))
            return
        event = self.take(effect, change)
        if outcome == "cut after":
            self.restart(crashed=True, rebooted=rebooted, ran_s=ran_s)
        else:
            self.apply(event)

    @rule(elapsed_s=st.sampled_from([1.0, 60.0, 4000.0, 1e7]), online=st.booleans())
    def pass_time(self, elapsed_s: float, online: bool) -> None:
        if self.change is not None:
            self.apply(Tick(elapsed_s, online))

    @precondition(lambda self: self.change is not None)
    @rule()
    def abort(self) -> None:
        self.apply(Abort("by hand"))

    @rule(crashed=st.booleans(), rebooted=st.booleans(), ran_s=st.sampled_from([1.0, 1000.0]))
    def stop_and_start(self, crashed: bool, rebooted: bool, ran_s: float) -> None:
        self.restart(crashed=crashed, rebooted=rebooted, ran_s=ran_s)

    # --- what always holds -------------------------------------------------------------------------------------

    @invariant()
    def there_is_a_whole_package_to_serve(self) -> None:
        assert self.to_serve() in self.whole

    @invariant()
    def what_serves_is_whole(self) -> None:
        assert self.serving in self.whole

    @invariant()
    def a_settled_change_serves_what_it_says(self) -> None:
        if self.change is not None and self.change.settled:
            assert self.serving == self.to_serve()

    @invariant()
    def what_is_denied_for_good_does_not_serve_for_long(self) -> None:
        denial = self.denials.get(self.to_serve())
        if self.change is not None and self.change.settled and denial is not None and denial.for_good:
            # Only by force, or as the base of what came after it.
            assert self.change.wanted.force or self.change.base == self.to_serve()

    def teardown(self) -> None:
        """Left alone with steps that work, it comes to an end."""
        for _ in range(1000):
            if self.change is None or self.change.settled:
                break
            effect = effect_of(self.change)
            if effect is None:
                self.apply(Tick(self.change.wait_s + 1.0, online=True))
            else:
                self.apply(self.take(effect, self.change))
        assert self.change is None or self.change.settled
        assert self.serving == self.to_serve()


Device.TestCase.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)


class TestDevice(Device.TestCase):
    """Run by pytest."""


def test_the_world_of_this_test_can_break() -> None:
    """A machine that forgot the base would be caught."""
    device = Device()
    device.begin()
    device.wish_for(RELEASES[0], force=False)
    device.begin_change(0.0)
    device.change = replace(device.change, base=RELEASES[3])
    try:
        device.there_is_a_whole_package_to_serve()
    except AssertionError:
        return
    raise AssertionError("a base that is not on the card went unnoticed")
