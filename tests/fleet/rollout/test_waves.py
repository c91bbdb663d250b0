"""Waves: written, divided, and what a rollout would do."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from edgeslm.errors import RolloutError
from edgeslm.fleet.assignments import DeviceView, Running
from edgeslm.fleet.rollout.preflight import Facts, preflight
from edgeslm.fleet.rollout.waves import Candidate, divide
from edgeslm.power.boards import load_boards
from edgeslm.schema.release import ReleaseInfo, ReleaseRequirements, ReleaseTarget, SideFile
from edgeslm.schema.rollout import DailyWindow, RolloutPlan, Wave, parse_waves, parse_window

OLD, NEW = "a" * 64, "b" * 64
BOARDS = load_boards()


def plan(waves: str, **changes: Any) -> RolloutPlan:
    return RolloutPlan.model_validate({"waves": parse_waves(waves), **changes})


WAVES = st.one_of(
    st.builds(Wave, kind=st.just("per_board"), amount=st.integers(1, 999)),
    st.builds(Wave, kind=st.just("count"), amount=st.integers(1, 999_999)),
    st.builds(Wave, kind=st.just("percent"), amount=st.integers(1, 100)),
    st.builds(Wave, kind=st.just("group"), group=st.from_regex(r"[a-z0-9-]{1,64}", fullmatch=True)),
)


@given(st.lists(WAVES, min_size=1, max_size=20))
def test_writing_and_reading_waves_are_inverse(waves: list[Wave]) -> None:
    assert parse_waves(", ".join(map(str, waves))) == tuple(waves)


@pytest.mark.parametrize(
    "text", ["", "ten", "0%", "101%", "1 per", "10%,", "group", "group Green", "-1", ", ".join("1" * 21)]
)
def test_refuses_what_is_no_wave_and_says_which_part(text: str) -> None:
    with pytest.raises(ValueError):
        parse_waves(text)


CANDIDATES = st.lists(
    st.builds(
        Candidate,
        st.from_regex(r"d[0-9]{4}", fullmatch=True),
        st.sampled_from(["pi-4b", "pi-3b", "pi-5"]),
        st.sampled_from([None, "litert", "tflite-runtime"]),
        st.sampled_from([None, "1.0.0", "1.1.0"]),
        st.booleans(),
        st.booleans(),
    ),
    min_size=1,
    max_size=60,
    unique_by=lambda one: one.device,
)


@given(CANDIDATES, st.lists(WAVES, max_size=4), st.integers(1, 3))
def test_each_device_is_in_one_wave_and_the_first_has_every_board(
    candidates: list[Candidate], waves: list[Wave], k: int
) -> None:
    whole = RolloutPlan(waves=(Wave(kind="per_board"), *waves, Wave(kind="percent", amount=100)), k=k)
    found = divide(whole, NEW, candidates, {})
    placed = [one.device for wave in found for one in wave]
    assert sorted(placed) == sorted(one.device for one in candidates)
    for board in {one.board for one in candidates}:
        there = [one for one in candidates if one.board == board]
        first = [one for one in found[0] if one.board == board]
        assert len(first) >= min(k, len(there))
    assert divide(whole, NEW, list(reversed(candidates)), {}) == found, "whatever order they come in"


def test_kinds_of_a_board_take_turns_and_those_that_say_most_come_first() -> None:
    same = [Candidate(f"a{number}", "pi-4b", "litert", "1.0.0") for number in range(20)]
    rare = Candidate("rare", "pi-4b", "tflite-runtime", "1.0.0")
    metered = Candidate("metered", "pi-4b", "litert", "1.0.0", has_meter=True)
    off = Candidate("off", "pi-4b", "litert", "0.9.0", is_late=True)
    first, rest = divide(plan("2, 100%"), NEW, [off, *same, metered, rare], {})
    assert {one.device for one in first} == {"rare", "metered"}
    assert rest[-1].device == "off"


def test_it_is_not_always_the_same_devices_that_bear_the_risk() -> None:
    candidates = [Candidate(f"d{number}", "pi-4b") for number in range(50)]
    canaries = {divide(plan("1, 100%"), str(digit) * 64, candidates, {})[0][0].device for digit in range(10)}
    assert len(canaries) > 3


def test_a_group_goes_first_where_it_is_told_to() -> None:
    candidates = [Candidate(f"d{number}", "pi-4b") for number in range(4)]
    found = divide(plan("group brave, 100%"), NEW, candidates, {"brave": frozenset({"d2"})})
    assert [one.device for one in found[0]] == ["d2"]


# --- windows ------------------------------------------------------------------------------------------------


@given(
    st.datetimes(datetime(2025, 1, 1), datetime(2028, 1, 1)),
    st.sampled_from(["UTC", "Europe/Berlin", "America/New_York"]),
)
def test_the_next_window_is_open_or_ahead_within_a_day(moment: datetime, zone: str) -> None:
    now = moment.replace(tzinfo=UTC, microsecond=0)
    window = DailyWindow(opens="22:00", closes="05:00", zone=zone).next(now)
    assert window.closes_at > now
    assert window.opens_at - now < timedelta(hours=18)
    assert timedelta(hours=6) <= window.closes_at - window.opens_at <= timedelta(hours=8), "clocks change"


@pytest.mark.parametrize(
    "text", ["22-5", "22:00-22:00", "25:00-05:00", "22:00-05:00 Nowhere/Town", "22:00-05:00 ../x"]
)
def test_refuses_hours_that_are_none(text: str) -> None:
    with pytest.raises((ValueError, ValidationError)):
        parse_window(text)


# --- preflight ----------------------------------------------------------------------------------------------


def target(**requires: Any) -> ReleaseTarget:
    needs = {"ram_mb": 64, "cpu_features": (), "agent": "0.1.0", "runtimes": ("litert",), **requires}
    info = ReleaseInfo(
        name="lamp",
        version="1.1.0",
        task="generate",
        sha256=NEW,
        size_bytes=1000,
        security_floor="0.0.0",
        requires=ReleaseRequirements.model_validate(needs),
        deltas={OLD: SideFile(sha256="d" * 64, size_bytes=30)},
    )
    return ReleaseTarget(role="targets", info=info, floor="0.0.0")


def facts(name: str, board: str = "pi-4b", **changes: Any) -> Facts:
    fields = {"runtime": "litert", "running": {"lamp": Running("1.0.0", OLD)}, "agent": "0.1.0", **changes}
    return Facts(DeviceView(name, BOARDS[board], **fields), board=board)


def check(devices: list[Facts], waves: str = "100%", *, to: ReleaseTarget | None = None, **more: Any) -> Any:
    around: dict[str, Any] = {"published": {OLD, NEW}, "pinned": {}, "quarantined": set(), "groups": {}}
    return preflight(to or target(), plan(waves), devices, **{**around, **more})


def test_a_release_that_no_device_can_run_is_refused_with_the_reason_for_each_board() -> None:
    devices = [facts("a", "pi-3b"), facts("b", "pi-3b"), facts("c", runtime="tflite-runtime")]
    with pytest.raises(RolloutError) as caught:
        check(devices, to=target(ram_mb=2048))
    message = str(caught.value)
    assert "pi-3b: it needs 2048 MB of memory" in message
    assert "(2)" in message
    assert "pi-4b: it needs the runtime litert, there is tflite-runtime (1)" in message


def test_who_cannot_take_it_is_left_out_by_name_and_the_bytes_are_known() -> None:
    found = check(
        [
            facts("a"),
            facts("b", running={}),
            facts("c", runtime="tflite-runtime"),
            facts("d"),
            facts("e", running={"lamp": Running("1.1.0", NEW)}),
        ],
        pinned={"d": "a show"},
    )
    assert {one.device: one.step.way for one in found.devices} == {"a": "delta", "b": "full"}
    assert found.moves_bytes == 1030
    reasons = {one.device: one.reason for one in found.left_out}
    assert reasons["d"] == "pinned: a show"
    assert reasons["e"] == "it runs it already"
    assert "tflite-runtime" in reasons["c"]


def test_who_could_not_be_taken_back_is_named_before() -> None:
    odd = facts("b", running={"lamp": Running("0.5.0", "e" * 64)})
    found = check([facts("a"), odd, facts("c", running={})])
    assert found.returnless == {
        "b": "it runs 0.5.0, which is no published release",
        "c": "nothing of that name runs there",
    }


def test_devices_that_are_off_or_not_believed_are_no_canaries() -> None:
    off = Facts(facts("off").view, board="pi-4b", is_online=False)
    found = check([off, facts("liar"), facts("a"), facts("b")], "2, 100%", quarantined={"liar"})
    assert {one.device for one in found.waves[0]} == {"a", "b"}


def test_what_no_wave_takes_is_left_out() -> None:
    found = check([facts(f"d{number}") for number in range(10)], "10%, 50%")
    assert len(found.devices) == 5
    assert {one.reason for one in found.left_out} == {"no wave takes it"}
    with pytest.raises(RolloutError):
        check([facts("a")], "group empty", groups={"empty": frozenset()})
