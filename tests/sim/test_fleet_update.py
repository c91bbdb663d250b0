"""Updates of simulated devices: the real machine, with steps that only take time."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from edgeslm.agent.update.change import Wanted
from edgeslm.agent.update.gate import Evidence, judge
from edgeslm.schema.assignment import Assignment
from edgeslm.schema.release import ReleaseTarget
from edgeslm.schema.update import UpdatePolicy, Verdict
from edgeslm.sim.fleet_trust import Credulous, invented_digest
from edgeslm.sim.fleet_update import Running, Updates

NOW = datetime(2026, 12, 1, 12, tzinfo=UTC)
POLICY = UpdatePolicy()


class World:
    """Everything works, unless told otherwise."""

    def __init__(self) -> None:
        self.jitter = 0.5
        self.now: datetime | None = NOW
        self.worse: set[str] = set()
        self.crashing: set[tuple[str, bool]] = set()
        self._trust = Credulous()

    def find(self, wanted: Any, running: Running | None) -> ReleaseTarget:
        return self._trust.find(wanted, running)

    def try_out(self, wanted: Wanted, running: Running | None, attempt: int) -> Verdict:
        right = (True,) * 100
        new = (False,) * 50 + (True,) * 50 if wanted.version in self.worse else right
        policy = POLICY.gate.model_copy(update={"speed": None, "energy": None, "required": ()})
        return judge(policy, Evidence("beside", new, right, seconds=120.0))

    def crashes(self, name: str, version: str, *, serving: bool) -> bool:
        return (version, serving) in self.crashing

    def fetch_s(self, size_bytes: int) -> float:
        return 10.0

    def utc(self) -> datetime | None:
        return self.now


def assignment(seq: int, version: str, **fields: Any) -> Assignment:
    window = fields.pop("window", None)
    release = {"version": version, "sha256": invented_digest("m", version)} | fields
    return Assignment.model_validate(
        {
            "fleet": "green", "device": "d", "device_key_sha256": "0" * 64, "seq": seq, "issued_at": NOW,
            "expires_at": NOW + timedelta(days=7), "releases": {"m": release}, "window": window,
        },
        strict=False,
    )  # fmt: skip


def updates(world: World, version: str = "1.0.0") -> Updates:
    return Updates({"m": Running(version, invented_digest("m", version))}, POLICY, world)


def states(made: Updates, *, online: bool = True, limit: int = 200) -> list[str]:
    """Let time pass until nothing is left to do; the states on the way."""
    seen: list[str] = []
    for _ in range(limit):
        change = made.get("m")
        if change is not None and (not seen or seen[-1] != change.state):
            seen.append(change.state)
        if made.due_s == float("inf"):
            break
        made.advance(made.due_s, online=online)
    return seen


def test_a_good_release_takes_the_way_of_real_devices_and_serves() -> None:
    made = updates(World())
    assert made.follow(assignment(5, "1.1.0"), 0.0, online=True)
    assert states(made) == [
        "offered", "preflight", "fetching", "verified", "staged", "trial", "gating", "committed",
    ]  # fmt: skip
    (model,) = made.models()
    assert (model.version, model.change.settled, model.change.assignment) == ("1.1.0", True, 5)
    assert model.previous == invented_digest("m", "1.0.0")
    assert 1200 > made.seen_s > POLICY.probation_s + 120
    assert made.is_idle


def test_a_worse_release_goes_back_and_is_not_tried_again_until_it_is_forced() -> None:
    world = World()
    world.worse.add("1.1.0")
    made = updates(world)
    made.follow(assignment(1, "1.1.0"), 0.0, online=True)
    assert states(made)[-2:] == ["rolling_back", "rolled_back"]
    assert made.models()[0].version == "1.0.0"
    assert made.models()[0].change.fault.denied
    made.follow(assignment(2, "1.1.0"), made.seen_s, online=True)
    assert made.get("m").number == 1
    made.follow(assignment(3, "1.1.0", force=True), made.seen_s, online=True)
    assert made.get("m").number == 2


@pytest.mark.parametrize(("serving", "cause"), [(False, "crashed"), (True, "crash_loop")])
def test_a_release_that_crashes_goes_back(serving: bool, cause: str) -> None:
    world = World()
    world.crashing.add(("1.1.0", serving))
    made = updates(world)
    made.follow(assignment(1, "1.1.0"), 0.0, online=True)
    states(made)
    change = made.models()[0].change
    assert (made.models()[0].version, change.state, change.fault.cause) == ("1.0.0", "rolled_back", cause)


def test_an_older_release_is_refused_unless_it_is_meant() -> None:
    made = updates(World(), "2.0.0")
    made.follow(assignment(1, "1.0.0"), 0.0, online=True)
    states(made)
    assert (made.get("m").state, made.get("m").fault.cause) == ("rejected", "unsafe_version")
    made.follow(assignment(2, "1.0.0", allow_downgrade=True), made.seen_s, online=True)
    states(made)
    assert made.models()[0].version == "1.0.0"


def test_an_older_assignment_changes_nothing_and_the_same_one_is_no_news() -> None:
    made = updates(World())
    made.follow(assignment(5, "1.1.0"), 0.0, online=True)
    assert not made.follow(assignment(4, "1.2.0"), 0.0, online=True)
    assert not made.follow(assignment(5, "1.1.0"), 0.0, online=True)
    states(made)
    assert made.models()[0].version == "1.1.0"


def test_a_newer_assignment_supersedes_a_change_under_way() -> None:
    made = updates(World())
    made.follow(assignment(1, "1.1.0"), 0.0, online=True)
    made.advance(20.0, online=True)
    made.follow(assignment(2, "1.2.0"), 20.0, online=True)
    states(made)
    assert (made.models()[0].version, made.get("m").number) == ("1.2.0", 2)


def test_without_a_network_it_waits_and_goes_on_when_that_is_back() -> None:
    made = updates(World())
    made.follow(assignment(1, "1.1.0"), 0.0, online=False)
    for _ in range(50):
        made.advance(made.due_s, online=False)
    assert (made.get("m").state, made.get("m").fault.cause) == ("offered", "unreachable")
    made.reconnected()
    made.advance(made.seen_s, online=True)
    assert states(made)[-1] == "committed"


def test_it_waits_for_its_window_and_for_a_clock_that_tells_when_that_is() -> None:
    world = World()
    world.now = None
    made = updates(world)
    window = {"opens_at": NOW + timedelta(hours=1), "closes_at": NOW + timedelta(hours=2)}
    made.follow(assignment(1, "1.1.0", window=window), 0.0, online=True)
    for moment, waits_for in (
        (None, "clock"),
        (NOW, "window that opens"),
        (NOW + timedelta(hours=3), "another window"),
    ):
        world.now = moment
        made.advance(made.seen_s + 100.0, online=True)
        assert made.get("m").state == "wait_window"
        assert waits_for in made.models()[0].change.waits_for
    world.now = NOW + timedelta(hours=1, minutes=1)
    made.advance(made.seen_s + 100.0, online=True)
    assert states(made)[-1] == "committed"


def test_one_long_step_in_time_equals_many_short_ones() -> None:
    long, short = updates(World()), updates(World())
    for made in (long, short):
        made.follow(assignment(1, "1.1.0"), 0.0, online=True)
    long.advance(745.0, online=True)
    for second in range(1, 746):
        short.advance(float(second), online=True)
    assert long.get("m").state == short.get("m").state == "committed"
    assert long.due_s == pytest.approx(short.due_s)


def test_a_board_that_goes_out_in_a_state_does_not_leave_it_however_late_it_is_looked_after() -> None:
    made = updates(World())
    made.hold_in = frozenset({"trial"})
    made.follow(assignment(1, "1.1.0"), 0.0, online=True)
    made.advance(745.0, online=True)
    assert made.get("m").state == "trial"
    made.hold_in = frozenset()
    made.advance(1490.0, online=True)
    assert made.get("m").state == "committed"


def test_a_board_that_goes_out_in_its_trial_begins_it_anew_and_gives_up_when_that_repeats() -> None:
    made = updates(World())
    made.follow(assignment(1, "1.1.0"), 0.0, online=True)
    for crashes in (1, 2):
        while made.get("m").state != "gating":
            made.advance(made.due_s, online=True)
        made.restarted(made.seen_s + 500.0, 60.0)
        assert (made.get("m").state, made.get("m").crashes) == ("trial", crashes)
        made.advance(made.seen_s, online=True)
    while made.get("m").state != "gating":
        made.advance(made.due_s, online=True)
    made.restarted(made.seen_s, 60.0)
    made.advance(made.seen_s, online=True)
    assert states(made)[-1] == "rolled_back"
    assert made.get("m").fault.cause == "crash_loop"


class Life(RuleBasedStateMachine):
    """Whatever happens, a device runs the factory version or one that passed, and comes to rest."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self.world.worse.add("1.3.0")
        self.world.crashing |= {("1.4.0", True), ("1.5.0", False)}
        self.made = updates(self.world)
        self.seq = 0

    @rule(minor=st.integers(0, 5), online=st.booleans(), downgrade=st.booleans(), force=st.booleans())
    def assign(self, minor: int, online: bool, downgrade: bool, force: bool) -> None:
        self.seq += 1
        wanted = assignment(self.seq, f"1.{minor}.0", allow_downgrade=downgrade, force=force)
        self.made.follow(wanted, self.made.seen_s, online=online)

    @rule(seconds=st.floats(0, 5000), online=st.booleans())
    def pass_time(self, seconds: float, online: bool) -> None:
        self.made.advance(self.made.seen_s + seconds, online=online)

    @rule(ran_s=st.floats(0, 1000))
    def go_out(self, ran_s: float) -> None:
        self.made.restarted(self.made.seen_s + 10.0, ran_s)

    @rule()
    def reconnect(self) -> None:
        self.made.reconnected()

    @rule()
    def abort(self) -> None:
        self.made.abort("on command")

    @invariant()
    def never_runs_what_is_worse_or_crashes_at_once(self) -> None:
        assert self.made.serving("m").version not in {"1.3.0", "1.5.0"}

    @invariant()
    def can_be_reported(self) -> None:
        assert [model.name for model in self.made.models()] == ["m"]

    def teardown(self) -> None:
        states(self.made, limit=2000)
        assert self.made.is_idle
        change = self.made.get("m")
        assert change is None or change.settled
        assert self.made.serving("m").version not in {"1.3.0", "1.4.0", "1.5.0"}


TestLife = Life.TestCase
TestLife.settings = settings(max_examples=60, stateful_step_count=15, deadline=None)
