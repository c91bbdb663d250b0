"""Evidence: what gates say together, and how seldom that is wrong."""

from __future__ import annotations

import random
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeslm.agent.update.gate import Block, Evidence, Round, judge, needs_more
from edgeslm.fleet.rollout.engine import decide
from edgeslm.fleet.rollout.evidence import is_worse, pool, too_many_fails, would_decide
from edgeslm.fleet.rollout.observing import figures_of
from edgeslm.fleet.rollout.state import Advance, Again, Ask, Draw, Enter, Member, Note, RolloutState, Seen
from edgeslm.schema.rollout import Figure, RolloutPlan, parse_waves
from edgeslm.schema.update import CriterionVerdict, GatePolicy, ReportedChange, ReportedFault, Verdict

NOW = datetime(2026, 12, 1, tzinfo=UTC)
SHA = "b" * 64


def ratio(change: float, reach: float = 0.02, name: str = "decode") -> Figure:
    fields = {
        "name": name,
        "outcome": "pass",
        "change": change,
        "low": change - reach,
        "high": change + reach,
    }
    return Figure.model_validate({**fields, "limit": 0.1})


def answers(share: float, prompts: int = 100) -> Figure:
    return Figure(name="answers", outcome="pass", change=share, limit=0.03, prompts=prompts)


def test_one_false_fail_among_good_devices_is_outvoted() -> None:
    (found,) = pool([[ratio(0.06)], [ratio(0.0)], [ratio(0.005)]])
    assert not found.leans_worse
    assert is_worse([found]) is None
    (sure,) = pool([[ratio(0.06)], *[[ratio(0.0)]] * 5])
    assert sure.verdict == "fine"


def test_devices_that_agree_find_a_release_that_is_worse() -> None:
    (found,) = pool([[ratio(0.09)], [ratio(0.11)]])
    assert (found.verdict, found.devices) == ("worse", 2)
    assert 0.09 < found.change < 0.11
    assert found.low < found.change < found.high


def test_one_device_alone_condemns_nothing() -> None:
    (found,) = pool([[ratio(0.3)]])
    assert found.verdict == "worse"
    assert is_worse([found]) is None


def test_devices_that_differ_leave_it_open_and_tell_how_many_more_would_decide() -> None:
    (found,) = pool([[ratio(0.12, 0.03)], [ratio(0.0, 0.03)]])
    assert found.verdict == "open"
    assert found.leans_worse
    assert "more device" in would_decide(found)


def test_what_was_not_measured_counts_for_nothing() -> None:
    nothing = Figure(name="energy", outcome="not_measured", limit=0.1)
    odd = Figure(name="ttft", outcome="pass", change=0.5, limit=0.1)
    assert pool([[nothing], [odd]]) == ()


def test_answers_that_go_wrong_everywhere_add_up() -> None:
    (found,) = pool([[answers(0.02)], [answers(0.02)]])
    assert (found.criterion, found.verdict) == ("answers", "worse")
    (fine,) = pool([[answers(0.01)], [answers(0.0)]])
    assert fine.verdict == "fine"


@given(
    st.lists(st.tuples(st.floats(-0.3, 0.5), st.floats(0.001, 0.2)), min_size=1, max_size=12), st.randoms()
)
def test_the_order_of_devices_changes_nothing(
    values: list[tuple[float, float]], chance: random.Random
) -> None:
    devices = [[ratio(change, reach)] for change, reach in values]
    shuffled = list(devices)
    chance.shuffle(shuffled)
    (one,), (other,) = pool(devices), pool(shuffled)
    assert (one.verdict, one.devices) == (other.verdict, other.devices)
    assert one.change == pytest.approx(other.change, abs=1e-9)
    assert one.low <= one.change <= one.high


SAID = st.none() | st.floats()


@given(
    st.lists(
        st.builds(
            CriterionVerdict,
            name=st.sampled_from(["answers", "ttft", "decode", "energy", "memory"]),
            outcome=st.sampled_from(["pass", "fail", "inconclusive", "not_measured"]),
            change=SAID,
            low=SAID,
            high=SAID,
            limit=SAID,
        ),
        max_size=20,
    ),
    st.integers(-(10**400), 10**400),
)
def test_whatever_a_device_says_it_measured_ends_nothing(said: list[CriterionVerdict], prompts: int) -> None:
    found = Verdict(outcome="pass", mode="beside", criteria=tuple(said), prompts=prompts)
    figures = figures_of(found)
    for one in pool([figures, figures, [ratio(0.0)], [answers(0.0)]]):
        assert one.low <= one.change <= one.high or one.criterion == "answers"
        assert would_decide(one)
    is_worse(pool([figures, figures]))


def test_more_gates_fail_than_chance_explains_only_where_they_do() -> None:
    assert not too_many_fails(1, 1)
    assert not too_many_fails(2, 10)
    assert too_many_fails(2, 2)
    assert too_many_fails(4, 10)
    assert not too_many_fails(60, 1000)


# --- a canary wave, simulated with the gate that devices have -------------------------------------------------


def gate(chance: random.Random, *, time: float = 0.0, energy: float = 0.0, wrong: float = 0.0) -> Verdict:
    """What one device's own gate says about a release that is slower, hungrier or wronger by so much."""
    policy = GatePolicy(answers=0.03, min_rounds=6, max_rounds=40)
    noise, own = 0.02, chance.gauss(0.0, 0.01)

    def block(slower: float, hungrier: float) -> Block:
        return Block(
            0.4 * (1 + slower) * chance.lognormvariate(0, noise),
            0.05 * (1 + slower) * chance.lognormvariate(0, noise),
            1.0 * (1 + hungrier) * chance.lognormvariate(0, noise),
            "measured",
        )

    rounds: list[Round] = []
    right = tuple(True for _ in range(100))
    # Answers are greedy: what goes wrong goes wrong on every device.
    new_right = tuple(prompt >= round(wrong * 100) for prompt in range(100))
    while True:
        old = (block(0, 0), block(0, 0))
        rounds.append(Round(old, (block(time + own, energy + own), block(time + own, energy + own))))
        if len(rounds) < policy.min_rounds:
            continue
        found = judge(policy, Evidence("beside", new_right, right, tuple(rounds)))
        if not needs_more(policy, found):
            return found


def canaries(seed: int, **worse: float) -> str:
    """How a rollout to 40 devices of two types leaves its canary wave: ``next``, or the phase that it went to."""
    chance = random.Random(seed)
    boards = {f"d{number}": ("pi-4b", "pi-3b")[number % 2] for number in range(40)}
    plan = RolloutPlan(waves=parse_waves("2 per board, 100%"))
    members = {
        name: Member(name, board, 0 if number < 4 else 1)
        for number, (name, board) in enumerate(boards.items())
    }
    state = RolloutState(SHA, "running", 0, tuple(members.values()))
    seen: dict[str, Seen] = {}
    for turn in range(1, 40):
        for decision in decide(plan, state, seen, NOW + timedelta(seconds=turn)):
            match decision:
                case Ask(device):
                    found = gate(chance, **worse)
                    members[device] = _with(members[device], status="asked", seq=turn)
                    seen[device] = _report(found, turn)
                case Note(device, status, cause, _, figures):
                    members[device] = _with(members[device], status=status, cause=cause, figures=figures)
                case Draw(device, wave):
                    members[device] = _with(members[device], wave=wave, spare=True)
                case Again(device):
                    one = members[device]
                    members[device] = _with(
                        one, status="waiting", trials=(*one.trials, one.figures), figures=()
                    )
                case Advance():
                    return "next"
                case Enter(phase, _):
                    return phase
        state = RolloutState(SHA, "running", 0, tuple(members.values()))
    raise AssertionError("nothing was decided")


def _with(member: Member, **changes: object) -> Member:
    return replace(member, **changes)  # type: ignore[arg-type]


def _report(found: Verdict, assignment: int) -> Seen:
    passed = found.outcome == "pass"
    cause = "gate_failed" if found.outcome == "fail" else "inconclusive"
    change = ReportedChange(
        number=1,
        version="1.1.0",
        sha256=SHA,
        state="committed" if passed else "rolled_back",
        assignment=assignment,
        settled=True,
        verdict=found,
        fault=None if passed else ReportedFault(cause=cause, detail="", denied=True),  # type: ignore[arg-type]
    )
    return Seen(assignment, SHA if passed else None, "1.1.0", change)


CASES = 100


@pytest.mark.parametrize("worse", [{"time": 0.1}, {"energy": 0.1}, {"wrong": 0.03}, {"wrong": 0.02}])
def test_canaries_catch_a_release_that_is_worse_by_the_limit(worse: dict[str, float]) -> None:
    ends = [canaries(seed, **worse) for seed in range(CASES)]
    assert ends.count("next") <= 0.05 * CASES, ends.count("next")


def test_canaries_hardly_ever_stop_a_release_that_is_no_different() -> None:
    ends = [canaries(1000 + seed) for seed in range(CASES)]
    assert CASES - ends.count("next") <= 0.05 * CASES, CASES - ends.count("next")


def test_figures_keep_what_several_gates_are_compared_by() -> None:
    found = gate(random.Random(1))
    kept = {one.name: one for one in figures_of(found)}
    assert set(kept) == {"answers", "ttft", "decode", "energy", "memory"}
    assert kept["answers"].prompts == 100
    assert kept["decode"].low is not None
