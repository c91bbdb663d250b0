"""The state machine: total, and every way through it leads to an end."""

from __future__ import annotations

import itertools
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import get_args

import pytest

from edgeslm.agent.update.change import (
    BEFORE_TRIAL,
    Abort,
    Change,
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
from edgeslm.agent.update.machine import RELEASES_OWN, denial_of, effect_of, may_begin, serves, step
from edgeslm.errors import UpdateCause
from edgeslm.schema.assignment import AssignedRelease, Assignment, UpdateWindow
from edgeslm.schema.release import ReleaseInfo, ReleaseRequirements, ReleaseTarget
from edgeslm.schema.update import CriterionVerdict, UpdatePolicy, UpdateState, Verdict

STATES: tuple[UpdateState, ...] = get_args(UpdateState)
CAUSES: tuple[UpdateCause, ...] = get_args(UpdateCause)
POLICY = UpdatePolicy()
BASE, NEXT, OTHER = "b" * 64, "c" * 64, "d" * 64


def wanted(sha256: str = NEXT, version: str = "1.1.0", assignment: int = 7, **changes) -> Wanted:
    return Wanted("tiny", version, sha256, assignment, **changes)


def target(sha256: str = NEXT, version: str = "1.1.0") -> ReleaseTarget:
    requires = ReleaseRequirements(ram_mb=1, cpu_features=(), agent="0.1.0", runtimes=("litert",))
    info = ReleaseInfo(
        name="tiny", version=version, task="generate", sha256=sha256, size_bytes=1000, security_floor="0.0.0",
        requires=requires,
    )  # fmt: skip
    return ReleaseTarget(role="targets", info=info, floor="0.0.0")


def verdict(outcome: str, name: str = "energy") -> Verdict:
    found = CriterionVerdict.model_validate({"name": name, "outcome": outcome, "change": 0.12, "limit": 0.1})
    return Verdict.model_validate({"outcome": outcome, "mode": "beside", "criteria": (found,)})


def change(state: UpdateState = "offered", **changes) -> Change:
    found = Change(number=3, wanted=wanted(), base=BASE, state=state, target=target(), mode="beside")
    if state in {"rejected", "rolled_back"}:
        found = replace(found, settled=True, fault=Fault("gate_failed", "slow"))
    if state in {"rolling_back", "safe_mode"}:
        found = replace(found, fault=Fault("gate_failed", "slow"))
    return replace(found, **changes)


EVENTS: list[Event] = [
    Offer(4, wanted(), BASE),
    Offer(4, wanted(OTHER, "1.2.0", 8), BASE),
    Supersede(),
    Abort("stop"),
    *(
        Started(crashed, rebooted, ran_s)
        for crashed, rebooted, ran_s in itertools.product([False, True], [False, True], [3.0, 3e6])
    ),
    Tick(1.0, online=True),
    Tick(1e9, online=True),
    Tick(1e9, online=False),
    Reconnected(),
    Found(target()),
    Fits(),
    Fetched("file"),
    Installed(),
    Ready("beside"),
    Ready("swap"),
    NotYet(60.0, "the window"),
    Tried(),
    *(Judged(verdict(outcome)) for outcome in ("pass", "fail", "inconclusive")),
    Swapped(0.1),
    Healthy(),
    RolledBack(),
    FactoryServed(),
    *(Failed(Fault(cause, "why")) for cause in CAUSES),
]

VARIANTS = [
    change(state, swapped=swapped, mode=mode, attempt=attempt, crashes=crashes, wait_s=wait_s)
    for state, swapped, mode, attempt, crashes, wait_s in itertools.product(
        STATES, [False, True], ["beside", "swap"], [1, 99], [0, 99], [0.0, 30.0]
    )
]
VARIANTS += [replace(item, settled=True) for item in VARIANTS if item.state in {"committed", "safe_mode"}]

TO: dict[str, set[str]] = {
    **{state: {state, "rejected"} for state in BEFORE_TRIAL},
    "trial": {"trial", "gating", "rolling_back"},
    "gating": {"gating", "trial", "committed", "rolling_back"},
    "committed": {"committed", "rolling_back", "safe_mode", "offered"},
    "rejected": {"rejected", "offered", "safe_mode"},
    "rolling_back": {"rolling_back", "rolled_back", "safe_mode"},
    "rolled_back": {"rolled_back", "offered", "safe_mode"},
    "safe_mode": {"safe_mode", "offered"},
}
TO["offered"] |= {"preflight"}
TO["preflight"] |= {"fetching"}
TO["fetching"] |= {"verified"}
TO["verified"] |= {"staged", "fetching"}
TO["staged"] |= {"wait_window", "trial"}
TO["wait_window"] |= {"trial"}


class TestTotality:
    def test_every_event_in_every_state_gives_a_state_that_may_follow(self) -> None:
        for before, event in itertools.product(VARIANTS, EVENTS):
            after = step(before, event, POLICY)
            assert after is not None
            assert after.state in TO[before.state], (before.state, event)

    def test_a_name_that_never_changed_is_moved_by_an_offer_alone(self) -> None:
        for event in EVENTS:
            after = step(None, event, POLICY)
            assert (after is not None) == isinstance(event, Offer)

    def test_what_is_unsettled_and_does_not_wait_has_a_step_that_is_due(self) -> None:
        for item in VARIANTS:
            assert (effect_of(item) is None) == (item.settled or item.wait_s > 0)

    def test_a_settled_change_is_moved_only_by_an_offer_or_by_damage(self) -> None:
        settled = [item for item in VARIANTS if item.settled]
        for before, event in itertools.product(settled, EVENTS):
            damage = isinstance(event, Failed) and event.fault.cause == "damaged"
            if not damage and not isinstance(event, Offer):
                assert step(before, event, POLICY) == before

    def test_nothing_before_the_trial_lets_anything_but_the_base_serve(self) -> None:
        for before, event in itertools.product(VARIANTS, EVENTS):
            if before.state in BEFORE_TRIAL:
                after = step(before, event, POLICY)
                assert after is not None
                assert serves(after) == BASE


def run(begun: Change, *events: Event) -> Change:
    for event in events:
        after = step(begun, event, POLICY)
        assert after is not None
        begun = after
    return begun


GOOD: list[Event] = [
    Found(target()), Fits(), Fetched("file"), Installed(), Ready("beside"), Tried(), Judged(verdict("pass")),
    Swapped(0.02), Healthy(),
]  # fmt: skip


class TestTheGoodWay:
    def test_a_release_goes_through_all_states_and_settles(self) -> None:
        begun = step(None, Offer(1, wanted(), BASE), POLICY)
        assert begun is not None
        states = []
        for event in GOOD:
            states.append(begun.state)
            begun = run(begun, event)
        assert states == [
            "offered", "preflight", "fetching", "verified", "staged", "trial", "gating", "committed", "committed",
        ]  # fmt: skip
        assert begun.settled
        assert serves(begun) == NEXT
        assert denial_of(begun) is None

    def test_it_waits_for_its_window_and_goes_on_when_that_opens(self) -> None:
        waiting = run(change("staged"), NotYet(60.0, "the window"))
        assert (waiting.state, effect_of(waiting)) == ("wait_window", None)
        due = run(waiting, Tick(61.0, online=True))
        assert effect_of(due) == "check_window"
        assert run(due, Ready("beside")).state == "trial"

    def test_the_same_release_offered_again_only_renews_what_the_assignment_says(self) -> None:
        renewed = run(change("fetching"), Offer(9, wanted(assignment=12), BASE))
        assert (renewed.number, renewed.state, renewed.wanted.assignment) == (3, "fetching", 12)


class TestFailures:
    @pytest.mark.parametrize("state", BEFORE_TRIAL)
    @pytest.mark.parametrize("cause", CAUSES)
    def test_before_the_trial_a_step_that_always_fails_ends_in_rejection(self, state, cause) -> None:
        item = change(state)
        for _ in range(100_000):
            if item.settled:
                break
            item = run(item, Tick(60.0, online=True) if item.wait_s > 0 else Failed(Fault(cause, "why")))
        assert item.state == "rejected"

    @pytest.mark.parametrize("state", ["trial", "gating", "committed"])
    @pytest.mark.parametrize("mode", ["beside", "swap"])
    @pytest.mark.parametrize("cause", CAUSES)
    def test_from_the_trial_on_a_step_that_always_fails_ends_in_the_release_that_served(
        self, state, mode, cause
    ) -> None:
        item = change(state, mode=mode)
        for _ in range(1000):
            if item.state not in {"trial", "gating", "committed"}:
                break
            # The way to the step that fails works each time.
            if item.wait_s > 0:
                item = run(item, Tick(60.0, online=True))
            elif item.state == "trial" and state == "gating":
                item = run(item, Tried())
            else:
                item = run(item, Failed(Fault(cause, "why")))
        assert item.state == "rolling_back"
        assert serves(item) == BASE
        assert run(item, RolledBack()).state == "rolled_back"

    def test_going_back_that_always_fails_ends_in_safe_mode_which_never_gives_up(self) -> None:
        item = change("rolling_back")
        for _ in range(50):
            event = Tick(1e4, online=True) if item.wait_s > 0 else Failed(Fault("swap_failed", "why"))
            item = run(item, event)
        assert item.state == "safe_mode"
        assert serves(item) is None
        assert "going back failed too" in item.fault.detail
        assert run(item, FactoryServed()).settled

    def test_a_base_that_is_damaged_leads_to_the_factory_package_at_once(self) -> None:
        assert run(change("rolling_back"), Failed(Fault("damaged", "bits"))).state == "safe_mode"

    def test_what_rots_on_the_card_long_after_leads_to_the_factory_package_and_is_not_denied(self) -> None:
        item = run(change("committed", settled=True), Failed(Fault("damaged", "bits")))
        assert (item.state, item.settled, denial_of(item)) == ("safe_mode", False, None)

    def test_pauses_between_tries_grow_up_to_the_longest(self) -> None:
        item, pauses = change("fetching"), []
        for _ in range(12):
            item = run(item, Failed(Fault("unreachable", "no network")))
            pauses.append(item.wait_s)
            item = run(item, Tick(item.wait_s, online=False))
        assert pauses[:3] == [POLICY.retry_s, 2 * POLICY.retry_s, 4 * POLICY.retry_s]
        assert pauses[-1] == POLICY.max_retry_s

    def test_a_network_that_is_back_is_used_soon_but_not_by_all_at_once(self) -> None:
        waiting = run(change("fetching", attempt=9, jitter=0.5), Failed(Fault("unreachable", "no network")))
        assert waiting.wait_s > 1000
        assert run(waiting, Reconnected()).wait_s == 0.5 * POLICY.retry_s
        assert run(change("trial", wait_s=1000.0), Reconnected()).wait_s == 1000.0

    def test_a_source_that_says_when_to_come_back_is_heard_within_reason(self) -> None:
        assert run(change("fetching"), Failed(Fault("unreachable", "busy", 300.0))).wait_s == 300.0
        assert run(change("fetching"), Failed(Fault("unreachable", "busy", 1e9))).wait_s == POLICY.max_retry_s

    def test_what_was_fetched_and_turns_out_to_be_something_else_is_fetched_again(self) -> None:
        item = run(change("verified"), Failed(Fault("corrupt", "other bytes")))
        assert item.state == "fetching"
        for _ in range(POLICY.max_attempts - 1):
            item = run(
                item, Tick(1e4, online=False), Fetched("file"), Failed(Fault("corrupt", "other bytes"))
            )
        assert item.state == "rejected"


class TestDeadlines:
    @pytest.mark.parametrize("state", [*BEFORE_TRIAL, "trial", "gating", "committed", "rolling_back"])
    def test_every_state_on_the_way_has_one(self, state) -> None:
        item = run(change(state), Tick(1e8, online=True))
        expected = "rejected" if state in BEFORE_TRIAL else "rolling_back"
        assert item.state == ("safe_mode" if state == "rolling_back" else expected)

    def test_one_that_passed_is_not_held_against_the_release(self) -> None:
        assert not denial_of(run(change("gating"), Tick(1e8, online=True))).for_good

    @pytest.mark.parametrize("state", ["offered", "fetching"])
    def test_time_without_a_network_does_not_count_where_one_is_needed(self, state) -> None:
        assert run(change(state), *[Tick(1e6, online=False)] * 100).state == state

    def test_being_offline_never_takes_a_release_back(self) -> None:
        item = run(change("committed", swapped=True), *[Tick(1e6, online=False)] * 100)
        assert (item.state, item.settled) == ("committed", False)

    def test_probation_is_not_bound_by_the_deadline_of_the_swap(self) -> None:
        item = run(change("committed"), Swapped(0.1), Tick(POLICY.deadlines.commit_s * 2, online=True))
        item = run(item, Started(crashed=True, rebooted=True, ran_s=1e4), Tick(1.0, online=True))
        assert item.state == "committed"
        assert item.served_s >= POLICY.deadlines.commit_s * 2


class TestRestarts:
    def test_a_restart_takes_the_same_step_again_without_a_pause(self) -> None:
        for state in (*BEFORE_TRIAL, "committed", "rolling_back", "safe_mode"):
            item = run(change(state, wait_s=1000.0), Started(crashed=False, rebooted=True, ran_s=1e4))
            assert item.state == state
            assert effect_of(item) is not None

    def test_a_trial_that_was_cut_off_begins_anew(self) -> None:
        assert run(change("gating"), Started(crashed=True, rebooted=True, ran_s=9.0)).state == "trial"

    @pytest.mark.parametrize("state", ["trial", "gating"])
    def test_trials_that_end_the_agent_again_and_again_are_given_up(self, state) -> None:
        item = change(state)
        for number in range(POLICY.max_crashes):
            assert item.state in {"trial", "gating"}, number
            item = run(item, Started(crashed=True, rebooted=False, ran_s=9.0), Tried())
        assert (item.state, item.fault.cause) == ("rolling_back", "crash_loop")

    def test_going_back_that_ends_the_agent_again_and_again_leads_to_the_factory_package(self) -> None:
        item = change("rolling_back")
        for number in range(POLICY.max_attempts):
            assert item.state == "rolling_back", number
            item = run(item, Started(crashed=True, rebooted=False, ran_s=9.0))
        assert (item.state, effect_of(item)) == ("safe_mode", "serve_factory")

    def test_a_crash_of_the_agent_that_serves_the_candidate_is_the_candidates(self) -> None:
        crash = Started(crashed=True, rebooted=False, ran_s=9.0)
        assert run(change("trial", mode="swap"), crash).fault == Fault(
            "crashed", "the agent crashed while it served the candidate"
        )
        assert run(change("trial", mode="swap"), replace(crash, rebooted=True)).state == "trial"

    def test_a_crash_loop_after_the_commit_takes_the_release_back(self) -> None:
        item = run(change("committed"), Swapped(0.1))
        for number in range(POLICY.max_crashes):
            assert item.state == "committed", number
            item = run(item, Started(crashed=True, rebooted=False, ran_s=40.0), Swapped(0.0))
        assert (item.state, denial_of(item).for_good) == ("rolling_back", True)

    def test_power_cuts_count_only_soon_after_a_start_and_are_given_more_chances(self) -> None:
        soon, later = Started(True, True, 5.0), Started(True, True, POLICY.short_run_s + 1)
        item = run(change("committed"), Swapped(0.1), *[later, Swapped(0.0)] * 50)
        assert item.state == "committed"
        item = run(item, *[soon] * (POLICY.max_reboots - 1))
        assert item.state == "committed"
        assert run(item, soon).state == "rolling_back"

    def test_a_crash_begins_probation_anew_and_a_power_cut_does_not(self) -> None:
        item = run(change("committed"), Swapped(0.1), Tick(100.0, online=True))
        assert run(item, Started(True, False, 100.0)).served_s == 0.0
        assert run(item, Started(True, True, 100.0)).served_s == 100.0

    def test_crashes_long_before_a_trial_do_not_add_up(self) -> None:
        late, early = Started(True, False, 1e5), Started(True, False, 5.0)
        assert run(change("fetching"), *[early, early, late] * 20).state == "fetching"
        assert run(change("verified"), *[early] * POLICY.max_crashes).state == "rejected"

    def test_the_swap_that_a_restart_repeats_does_not_replace_the_figure(self) -> None:
        item = run(change("committed"), Swapped(0.4), Started(True, True, 1e4), Swapped(0.0))
        assert item.swap_s == 0.4


class TestTheGate:
    def test_a_verdict_decides_and_tells_why(self) -> None:
        assert run(change("gating"), Judged(verdict("pass"))).state == "committed"
        failed = run(change("gating"), Judged(verdict("fail")))
        assert (failed.state, failed.fault.cause) == ("rolling_back", "gate_failed")
        assert "energy +12.0% (limit 10%)" in failed.fault.detail
        assert denial_of(failed).for_good

    def test_what_is_inconclusive_goes_back_but_may_be_tried_again_by_a_newer_assignment(self) -> None:
        item = run(change("gating"), Judged(verdict("inconclusive")), RolledBack())
        assert item.state == "rolled_back"
        denial = denial_of(item)
        assert not may_begin(wanted(assignment=7), denial)
        assert may_begin(wanted(assignment=8), denial)

    def test_a_policy_may_commit_what_is_inconclusive(self) -> None:
        policy = UpdatePolicy.model_validate({"gate": {"inconclusive": "commit"}})
        assert step(change("gating"), Judged(verdict("inconclusive")), policy).state == "committed"


class TestSuperseding:
    def test_a_newer_wish_ends_a_change_wherever_it_is(self) -> None:
        for state in BEFORE_TRIAL:
            item = run(change(state), Supersede())
            assert (item.state, denial_of(item)) == ("rejected", None)
        for state in ("trial", "gating", "committed"):
            item = run(change(state), Supersede())
            assert (item.state, denial_of(item)) == ("rolling_back", None)
            assert run(item, RolledBack(), Offer(4, wanted(OTHER), BASE)).state == "offered"

    def test_an_aborted_release_is_not_tried_again_until_somebody_says_so(self) -> None:
        denial = denial_of(run(change("trial"), Abort("by hand")))
        assert not may_begin(wanted(assignment=99), denial)
        assert may_begin(wanted(assignment=99, force=True), denial)

    def test_safe_mode_can_be_left_by_a_newer_release_even_while_the_factory_package_does_not_serve(
        self,
    ) -> None:
        assert run(change("safe_mode"), Offer(4, wanted(OTHER), None)).state == "offered"


class TestDenial:
    def test_a_release_is_denied_for_good_by_its_own_faults_alone(self) -> None:
        for cause in CAUSES:
            item = change("rolled_back", fault=Fault(cause, "why"))
            denial = denial_of(item)
            assert (denial is not None and denial.for_good) == (cause in RELEASES_OWN)

    def test_force_works_once(self) -> None:
        first = denial_of(change("rolled_back"))
        assert may_begin(wanted(force=True), first)
        again = denial_of(change("rolled_back", wanted=wanted(force=True)))
        assert not may_begin(wanted(force=True, assignment=99), again)


def test_an_assignment_is_taken_apart_by_name() -> None:
    issued_at = datetime(2026, 12, 1, tzinfo=UTC)
    assignment = Assignment(
        fleet="home",
        device="dev1",
        device_key_sha256="e" * 64,
        seq=9,
        issued_at=issued_at,
        expires_at=issued_at + timedelta(days=7),
        releases={
            "tiny": AssignedRelease(version="1.0.0", sha256=NEXT, allow_downgrade=True),
            "other": AssignedRelease(version="2.0.0", sha256=OTHER),
        },
        window=UpdateWindow(opens_at=issued_at, closes_at=issued_at + timedelta(hours=1)),
    )
    other, tiny = wanted_by(assignment)
    assert (other.name, other.sha256, other.allow_downgrade) == ("other", OTHER, False)
    assert (tiny.version, tiny.assignment, tiny.allow_downgrade) == ("1.0.0", 9, True)
    assert tiny.closes_at == issued_at + timedelta(hours=1)
