"""The engine: waves, thresholds, spares, ways back; pure."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from edgeslm.fleet.rollout.engine import decide
from edgeslm.fleet.rollout.state import (
    Advance,
    Again,
    Ask,
    Circumstances,
    Draw,
    Enter,
    Member,
    Note,
    Return,
    RolloutState,
    Seen,
)
from edgeslm.schema.rollout import Figure, RolloutPlan, parse_waves, parse_window
from edgeslm.schema.update import ReportedChange, ReportedFault, Verdict

NOW = datetime(2026, 12, 1, 12, tzinfo=UTC)
LATER = NOW + timedelta(hours=2)
OLD, NEW = "a" * 64, "b" * 64


def plan(waves: str = "1 per board, 100%", **changes: Any) -> RolloutPlan:
    return RolloutPlan.model_validate({"waves": parse_waves(waves), **changes})


def member(
    device: str, wave: int = 0, status: str = "waiting", board: str = "pi-4b", **changes: Any
) -> Member:
    asked = status != "waiting"
    fields = {
        "seq": 7 if asked else 0,
        "deadline_at": LATER if asked else None,
        "base_sha256": OLD,
        **changes,
    }
    return Member(device, board, wave, status, **fields)  # type: ignore[arg-type]


def state(*members: Member, phase: str = "running", **changes: Any) -> RolloutState:
    return RolloutState(NEW, phase, changes.pop("wave", 0), members, **changes)  # type: ignore[arg-type]


def change(state_: str, *, assignment: int = 7, sha256: str = NEW, **more: Any) -> ReportedChange:
    settled = (
        state_ in {"committed", "rejected", "rolled_back"} if "settled" not in more else more.pop("settled")
    )
    fields = {"number": 1, "version": "1.1.0", "sha256": sha256, "state": state_, "assignment": assignment}
    return ReportedChange.model_validate({**fields, "settled": settled, **more})


def verdict(outcome: str = "pass") -> Verdict:
    return Verdict.model_validate({"outcome": outcome, "mode": "beside", "criteria": []})


def seen(change_: ReportedChange | None, *, assignment: int = 7, sha256: str = OLD) -> Seen:
    return Seen(assignment, sha256, "1.0.0", change_)


def decode(change_: float) -> tuple[Figure, ...]:
    fields = {"name": "decode", "outcome": "pass", "limit": 0.1, "change": change_}
    return (Figure.model_validate({**fields, "low": change_ - 0.02, "high": change_ + 0.02}),)


# --- asking -------------------------------------------------------------------------------------------------


def test_only_the_present_wave_is_asked() -> None:
    found = decide(plan(), state(member("a"), member("b", 1)), {}, NOW)
    assert found == [Ask("a", LATER, None, force=False)]


def test_a_pinned_device_is_left_out_and_says_why() -> None:
    found = decide(plan(), state(member("a")), {}, NOW, Circumstances(pinned={"a": "a demonstration"}))
    assert found[0] == Note("a", "skipped", None, "pinned: a demonstration")
    assert not any(isinstance(one, Ask) for one in found)


def test_a_device_of_an_older_rollout_is_waited_for() -> None:
    found = decide(plan("100%"), state(member("a")), {}, NOW, Circumstances(blocked={"a": 3}))
    assert found == []


def test_devices_are_told_the_hours_and_have_until_they_end() -> None:
    night = plan(window=parse_window("22:00-05:00"))
    (ask,) = decide(night, state(member("a")), {}, NOW)
    assert isinstance(ask, Ask)
    assert ask.window is not None
    assert (ask.window.opens_at.hour, ask.window.closes_at.hour) == (22, 5)
    assert ask.deadline_at == ask.window.closes_at


# --- what reports mean --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("report", "status"),
    [
        (seen(change("fetching")), "asked"),
        (seen(change("committed", settled=False), sha256=NEW), "asked"),
        (seen(change("committed", verdict=verdict()), sha256=NEW), "passed"),
        (seen(change("committed", verdict=verdict("inconclusive")), sha256=NEW), "unproven"),
        (seen(change("committed"), sha256=NEW), "unproven"),
        (seen(None, sha256=NEW), "unproven"),
        (seen(change("rejected", fault=ReportedFault(cause="no_room", detail="full"))), "failed"),
        (seen(change("committed", verdict=verdict()), assignment=6, sha256=NEW), None),
        (seen(change("rolled_back", assignment=6)), None),
    ],
)
def test_only_what_was_done_under_this_assignment_counts(report: Seen, status: str | None) -> None:
    notes = [
        one
        for one in decide(plan("100%"), state(member("a", status="asked")), {"a": report}, NOW)
        if isinstance(one, Note)
    ]
    assert [one.status for one in notes] == ([status] if status else [])


@pytest.mark.parametrize(
    ("report", "why"),
    [
        (change("fetching"), "fetching"),
        (
            change("fetching", attempt=2, fault=ReportedFault(cause="unreachable", detail="gateway is off")),
            "fetching, try 2 after unreachable: gateway is off",
        ),
        (change("wait_window", waits_for="its hours"), "wait window, waits for its hours"),
        (change("committed", settled=False), "committed, swapping"),
        (change("committed", settled=False, swap_s=0.2), "committed, on probation"),
    ],
)
def test_why_a_device_is_not_done_yet_is_told(report: ReportedChange, why: str) -> None:
    found = decide(plan("100%"), state(member("a", status="asked")), {"a": seen(report)}, NOW)
    assert [(one.status, one.detail) for one in found if isinstance(one, Note)] == [("asked", why)]


def test_silence_past_the_deadline_is_a_failure_until_the_device_says_otherwise() -> None:
    asked = member("a", status="asked")
    assert decide(plan("100%"), state(asked), {}, LATER - timedelta(seconds=1)) == []
    found = decide(plan("100%"), state(asked), {}, LATER)
    assert isinstance(found[0], Note)
    assert found[0].status == "silent"
    assert found[1] == Enter("paused", "1 of 1 devices failed: 1 silent")
    late = decide(
        plan("100%"),
        state(replace(asked, status="silent"), phase="paused"),
        {"a": seen(change("committed", verdict=verdict()), sha256=NEW)},
        LATER,
    )
    assert late == [Note("a", "passed", None, "", ())]


# --- waves --------------------------------------------------------------------------------------------------


def test_the_next_wave_begins_when_each_board_has_passed() -> None:
    waiting = (member("c", 1), member("d", 1, board="pi-3b"))
    half = state(member("a", status="passed"), member("b", status="asked", board="pi-3b"), *waiting)
    assert decide(plan(), half, {}, NOW) == []
    whole = state(member("a", status="passed"), member("b", status="passed", board="pi-3b"), *waiting)
    assert decide(plan(), whole, {}, NOW) == [Advance(1)]


def test_k_devices_of_each_board_have_to_pass_and_spares_are_drawn_for_them() -> None:
    now = state(member("a", status="passed"), member("b", 1), member("c", 1))
    assert decide(plan(k=2), now, {}, NOW) == [Draw("b", 0)]
    few = state(member("a", status="passed"), member("x", 1, board="pi-3b"))
    assert decide(plan(k=2), few, {}, NOW) == [Draw("x", 0)]


def test_a_release_that_proves_nothing_does_not_go_on() -> None:
    figures = decode(0.0)
    now = state(
        member("a", status="unproven", figures=figures), member("b", status="unproven", figures=figures)
    )
    (found,) = decide(plan("50%, 100%"), state(*now.members, member("c", 1)), {}, NOW)
    assert found == Draw("c", 0)
    (end,) = decide(plan("50%, 100%", spares=0), state(*now.members, member("c", 1)), {}, NOW)
    assert isinstance(end, Enter)
    assert end.phase == "paused"
    assert "has to pass its gate" in end.reason


def test_most_of_a_wave_is_enough_while_the_rest_goes_on() -> None:
    done = [member(f"d{number}", status="passed") for number in range(9)]
    now = state(*done, member("slow", status="asked"), member("next", 1))
    assert decide(plan("10, 100%"), now, {}, NOW) == [Advance(1)]
    assert decide(plan("10, 100%", success=1.0), now, {}, NOW) == []


def test_waves_wait_for_approval_where_that_was_asked_for() -> None:
    now = state(member("a", status="passed"), member("b", 1))
    asking = plan(approve=True)
    assert decide(asking, now, {}, NOW) == [Enter("waiting", "wave 2 waits for approval")]
    assert decide(asking, replace(now, approved=1), {}, NOW) == [Advance(1)]


def test_the_end_says_what_failed() -> None:
    done = [member(f"d{number:02}", status="passed") for number in range(19)]
    failed = member("z", status="failed", cause="no_room")
    assert decide(plan("100%"), state(*done, failed), {}, NOW) == [
        Enter("completed", "1 of 20 devices failed")
    ]


def test_what_has_to_be_measured_is_asked_for_by_name() -> None:
    now = state(member("a", status="passed", figures=decode(0.0)), member("b", 1))
    (found,) = decide(plan(require=("energy",)), now, {}, NOW)
    assert isinstance(found, Enter)
    assert found.phase == "paused"
    assert "a device with a meter that measures would decide" in found.reason


# --- failures -----------------------------------------------------------------------------------------------


def crashed(device: str, wave: int = 0) -> Member:
    return member(device, wave, "failed", cause="crashed", detail="it died")


def test_a_release_that_crashes_is_taken_back() -> None:
    now = state(crashed("a"), member("b", status="asked"), member("c", 1))
    assert decide(plan("2, 100%"), now, {}, NOW) == [Enter("returning", "1 of 2 devices failed: 1 crashed")]
    assert decide(plan("2, 100%", on_failure="pause"), now, {}, NOW)[0] == Enter(
        "paused", "1 of 2 devices failed: 1 crashed"
    )
    assert decide(plan("2, 100%", max_failures=1), now, {}, NOW) == []


def test_what_is_not_the_fault_of_the_release_only_pauses() -> None:
    now = state(member("a", status="failed", cause="no_room"), member("b", 1))
    assert decide(plan(), now, {}, NOW) == [Enter("paused", "1 of 1 devices failed: 1 no_room")]


def test_a_gate_that_fails_alone_asks_another_device() -> None:
    failed = member("a", status="failed", cause="gate_failed", figures=decode(0.07))
    now = state(failed, member("b", 1), member("c", 1))
    assert decide(plan(), now, {}, NOW) == [Draw("b", 0)]
    fine = member("b", 0, "passed", figures=decode(0.0), spare=True)
    assert decide(plan(), state(failed, fine, member("c", 1)), {}, NOW) == [Advance(1)]
    worse = replace(failed, device="b", figures=decode(0.1))
    (found,) = decide(plan(), state(failed, worse, member("c", 1)), {}, NOW)
    assert isinstance(found, Enter)
    assert found.phase == "returning"
    assert "decode is worse by" in found.reason


def test_where_there_is_no_other_device_the_same_one_tries_again() -> None:
    failed = member("a", status="failed", cause="gate_failed", figures=decode(0.07))
    other = member("b", 0, "passed", board="pi-3b", figures=decode(0.0))
    now = state(failed, other, member("c", 1, board="pi-3b"))
    assert decide(plan(), now, {}, NOW) == [Again("a")]
    again = replace(failed, status="passed", cause=None, figures=decode(0.0), trials=(decode(0.07),))
    assert decide(plan(), state(again, *now.members[1:]), {}, NOW) == [Advance(1)]
    twice = replace(failed, figures=decode(0.1), trials=(decode(0.1),))
    (found,) = decide(plan(), state(twice, *now.members[1:]), {}, NOW)
    assert isinstance(found, Enter)
    assert found.phase == "returning"


def test_answers_that_go_wrong_on_all_ask_the_operator() -> None:
    slips = (Figure(name="answers", outcome="pass", change=0.02, limit=0.03, prompts=100),)
    now = state(
        *(member(name, status="passed", figures=slips) for name in "ab"),
        member("c", 1),
    )
    (found,) = decide(plan("2, 100%"), now, {}, NOW)
    assert isinstance(found, Enter)
    assert found.phase == "paused"
    assert "more than half the limit" in found.reason
    assert decide(plan("2, 100%"), replace(now, accepted_wave=0), {}, NOW) == [Advance(1)]


def test_what_the_operator_accepted_is_not_asked_again_and_what_is_new_is() -> None:
    failed = [member(name, status="failed", cause="no_room") for name in "ab"]
    accepted = state(*failed, member("c", 1), accepted_wave=0, accepted_failures=2)
    assert decide(plan("2, 100%"), accepted, {}, NOW) == [Advance(1)]
    more = replace(accepted, members=(*failed, member("x", status="failed", cause="no_room"), member("c", 1)))
    assert isinstance(decide(plan("3, 100%"), more, {}, NOW)[0], Enter)


def test_a_device_that_is_not_believed_counts_neither_way() -> None:
    liar = Circumstances(quarantined={"liar": "negative watts"})
    lies = member("liar", status="failed", cause="crashed")
    assert (
        decide(plan("2, 100%"), state(lies, member("a", status="asked"), member("c", 1)), {}, NOW, liar) == []
    )
    praise = state(member("liar", status="passed"), member("a", status="failed", cause="inconclusive"))
    (found,) = decide(plan("100%"), praise, {}, NOW, liar)
    assert isinstance(found, Enter)
    assert found.phase == "paused"


# --- the way back -------------------------------------------------------------------------------------------


def test_all_that_were_asked_go_back_and_the_others_are_left_alone() -> None:
    members = (
        member("a", status="passed"),
        member("b", status="asked"),
        member("c", status="failed"),
        member("d", status="silent"),
        member("e"),
        member("pinned", status="passed"),
    )
    found = decide(
        plan(), state(*members, phase="returning"), {}, NOW, Circumstances(pinned={"pinned": "a show"})
    )
    assert found == [
        *(Return(name, LATER) for name in "abcd"),
        Note("e", "skipped", None, "the rollout was taken back before"),
        Note("pinned", "stuck", None, "pinned: a show"),
    ]


def test_a_device_is_back_when_it_runs_what_it_ran() -> None:
    going = state(member("a", status="returning"), phase="returning", reason="it crashed")
    back = seen(change("committed", sha256=OLD, verdict=verdict()))
    assert decide(plan(), going, {"a": back}, NOW) == [
        Note("a", "returned", None, "", ()),
        Enter("aborted", "it crashed"),
    ]
    under_way = seen(change("trial", sha256=OLD), sha256=NEW)
    assert decide(plan(), going, {"a": under_way}, NOW) == []
    fault = ReportedFault(cause="no_room", detail="full")
    refused = seen(change("rejected", sha256=OLD, fault=fault), sha256=NEW)
    stuck, end = decide(plan(), going, {"a": refused}, NOW)
    assert isinstance(stuck, Note)
    assert (stuck.status, stuck.cause) == ("stuck", "no_room")
    assert end == Enter("aborted", "it crashed; 1 could not be taken back")


def test_what_is_over_is_only_noted() -> None:
    for phase in ("completed", "aborted", "superseded"):
        late = {"a": seen(change("committed", verdict=verdict()), sha256=NEW)}
        found = decide(plan(), state(member("a", status="silent"), member("b"), phase=phase), late, NOW)
        assert found == [Note("a", "passed", None, "", ())]


def test_what_runs_later_takes_nothing_from_a_rollout_that_is_over() -> None:
    newer = {"a": seen(change("committed", sha256=OLD, verdict=verdict()), sha256=OLD)}
    going = state(member("a", status="passed"), member("b"))
    (found, *_) = decide(plan(), going, newer, NOW)
    assert isinstance(found, Note)
    assert found.status == "superseded"
    for phase in ("completed", "aborted", "superseded"):
        assert decide(plan(), state(member("a", status="passed"), phase=phase), newer, NOW) == []
