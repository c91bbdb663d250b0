"""How two releases are measured on a board: cool, in turns, undisturbed, for long enough."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest

from benchmarks.update_gate import Release, run_gate
from edgeslm.agent.ports import Activity
from edgeslm.agent.update.measuring import SWAP_ROUNDS, Bench, Measurement, right_answers
from edgeslm.agent.update.ports import EnergyCount
from edgeslm.errors import UpdateError, UpdateInterruptedError
from edgeslm.power.port import Throttling, Vitals
from edgeslm.schema.package import GoldenCase
from edgeslm.schema.update import CriterionVerdict, GatePolicy, Verdict

CASES = tuple(GoldenCase(prompt=f"prompt {number}", text="yes") for number in range(50))
POLICY = GatePolicy()


@dataclass
class Board:
    """As much of a device as measuring looks at; work takes exactly as long as it says.

    Attributes:
        temperature: by seconds.
        user_at: moments at which a prompt of a user begins.
    """

    temperature: Callable[[float], float | None] = lambda _: 40.0
    user_at: Sequence[float] = ()
    low_from_s: float = float("inf")
    period_s: float = 0.1
    power_w: float = 5.0
    has_meter: bool = True
    now_s: float = field(default=0.0, init=False)

    @property
    def energy(self) -> Board | None:
        return self if self.has_meter else None

    def count(self) -> EnergyCount:
        told_s = self.now_s - self.now_s % self.period_s
        return EnergyCount(told_s, told_s * self.power_w, "measured")

    def vitals(self) -> Vitals:
        low = self.now_s >= self.low_from_s
        return Vitals(self.now_s, self.temperature(self.now_s), throttling=Throttling(under_voltage=low))

    def monotonic(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds

    def any_activity(self) -> Activity:
        return Activity(sum(at <= self.now_s for at in self.user_at), 0, is_busy=False)


@dataclass
class Timed:
    text: str
    ttft_s: float | None
    decode_s: float
    tokens: int = 5
    data: None = None


class Subject:
    def __init__(self, board: Board, log: list[tuple[str, int]], name: str, prompt_s: float = 0.1) -> None:
        self.board, self.log, self.name, self.prompt_s = board, log, name, prompt_s
        self.peak_mb = 80.0

    def answer(self, prompts: Sequence[str], cancelled: Callable[[], bool]) -> list[Timed]:
        if cancelled():
            raise UpdateInterruptedError
        self.log.append((self.name, len(prompts)))
        self.board.now_s += self.prompt_s * len(prompts)
        return [Timed("yes", 0.4 * self.prompt_s, 0.6 * self.prompt_s) for _ in prompts]

    def close(self) -> None:
        self.log.append((self.name, 0))


def never() -> bool:
    return False


def compare(
    board: Board, policy: GatePolicy = POLICY, *, new_s: float = 0.1, cancelled: Callable[[], bool] = never
) -> tuple[Verdict, list[tuple[str, int]]]:
    log: list[tuple[str, int]] = []
    old, new = Subject(board, log, "old"), Subject(board, log, "new", new_s)
    right = (True,) * len(CASES)
    bench = Bench("beside", new, old, CASES, right, right, 0.1)
    return Measurement(board, board, policy, cancelled).compare(bench), log


def criterion(verdict: Verdict, name: str) -> CriterionVerdict:
    return next(item for item in verdict.criteria if item.name == name)


class TestBlocks:
    def test_releases_take_turns_so_that_what_drifts_cancels(self) -> None:
        _, log = compare(Board())
        names = "".join(name[0] for name, _ in log)
        assert names[:8] == "onno" + "noon"

    def test_a_block_lasts_as_long_as_the_policy_says(self) -> None:
        _, log = compare(Board())
        assert {count for _, count in log} == {20}  # 2 s of 0.1 s each

    def test_a_slow_meter_makes_blocks_longer_until_it_can_tell(self) -> None:
        _, log = compare(Board(period_s=1.0))
        assert {count for _, count in log} == {100}

    def test_a_meter_that_is_too_slow_is_left_out_and_the_verdict_says_so(self) -> None:
        verdict, log = compare(Board(period_s=10.0))
        assert {count for _, count in log} == {20}
        assert criterion(verdict, "energy").outcome == "not_measured"
        assert "the meter is too slow to tell releases apart" in verdict.notes

    def test_joules_are_of_the_whole_board_by_the_time_that_the_meter_told_of(self) -> None:
        verdict, _ = compare(Board(power_w=4.0, period_s=0.7), new_s=0.137)
        energy = criterion(verdict, "energy")
        assert energy.old == pytest.approx(4.0 * 0.1, rel=1e-3)
        assert energy.new == pytest.approx(4.0 * 0.137, rel=1e-3)
        assert verdict.outcome == "fail"

    def test_without_a_meter_there_is_a_verdict_all_the_same(self) -> None:
        verdict, _ = compare(Board(has_meter=False))
        assert (verdict.outcome, verdict.meter) == ("pass", None)


class TestUsersGoFirst:
    def test_a_block_in_which_a_prompt_was_answered_is_repeated(self) -> None:
        verdict, log = compare(Board(user_at=[15.0, 21.0]))
        assert verdict.disturbed == 2
        assert len(log) == verdict.rounds * 4 + 2
        assert verdict.outcome == "pass"

    def test_where_users_leave_no_quiet_time_the_verdict_is_inconclusive_and_says_so(self) -> None:
        verdict, _ = compare(Board(user_at=range(1000)))
        assert verdict.outcome == "inconclusive"
        assert "prompts of users left no quiet time to measure in" in verdict.notes


class TestConditions:
    def test_measuring_waits_until_the_processor_is_cool_and_steady(self) -> None:
        verdict, _ = compare(Board(temperature=lambda now_s: max(50.0, 90.0 - 0.5 * now_s)))
        assert verdict.temperature_c == 50.0
        assert verdict.seconds > 80.0

    def test_it_does_not_wait_for_ever_and_notes_how_warm_it_was(self) -> None:
        verdict, _ = compare(Board(temperature=lambda _: 78.0))
        assert verdict.temperature_c == 78.0
        assert any("78 C" in note for note in verdict.notes)
        assert verdict.outcome == "pass"

    def test_a_board_without_a_thermometer_is_measured_at_once(self) -> None:
        verdict, _ = compare(Board(temperature=lambda _: None))
        assert any("no thermometer" in note for note in verdict.notes)

    def test_a_supply_that_gives_way_meanwhile_ends_it(self) -> None:
        with pytest.raises(UpdateError) as caught:
            compare(Board(low_from_s=30.0))
        assert caught.value.cause == "under_voltage"

    def test_a_supply_that_was_low_before_is_not_held_against_the_candidate(self) -> None:
        assert compare(Board(low_from_s=-1.0))[0].outcome == "pass"

    @pytest.mark.parametrize("after_s", [5.0, 30.0])
    def test_it_is_given_up_when_it_is_no_longer_wanted(self, after_s: float) -> None:
        board = Board(temperature=lambda now_s: 90.0 if now_s < 20.0 else 40.0)
        with pytest.raises(UpdateInterruptedError):
            compare(board, cancelled=lambda: board.now_s > after_s)

    def test_wrong_answers_fail_before_anything_is_measured(self) -> None:
        board, log = Board(), []
        old, new = Subject(board, log, "old"), Subject(board, log, "new")
        bench = Bench("beside", new, old, CASES, (False,) * 50, (True,) * 50, 0.1)
        assert Measurement(board, board, POLICY, never).compare(bench).outcome == "fail"
        assert not log
        assert board.now_s == 0.0


class TestOneAfterTheOther:
    def test_blocks_before_the_swap_are_compared_with_blocks_after_it(self) -> None:
        board, log = Board(), []
        old = Subject(board, log, "old")
        before = Measurement(board, board, POLICY, never).before_swap(old, CASES, 0.1)
        assert len(before) == 2 * SWAP_ROUNDS
        new = Subject(board, log, "new", 0.115)
        new.peak_mb = None
        right = (True,) * 50
        bench = Bench("swap", new, None, CASES, right, right, 0.1, before)
        verdict = Measurement(board, board, POLICY, never).compare(bench)
        assert (verdict.outcome, verdict.mode, verdict.rounds) == ("fail", "swap", SWAP_ROUNDS)
        assert criterion(verdict, "ttft").change == pytest.approx(0.15, abs=0.01)
        assert criterion(verdict, "memory").outcome == "not_measured"
        assert any("one after the other" in note for note in verdict.notes)

    def test_users_that_leave_no_quiet_time_end_it_before_the_swap(self) -> None:
        board, log = Board(user_at=range(1000)), []
        with pytest.raises(UpdateError) as caught:
            Measurement(board, board, POLICY, never).before_swap(Subject(board, log, "old"), CASES, 0.1)
        assert caught.value.cause == "inconclusive"


def test_an_answer_is_right_by_its_text_or_by_its_object() -> None:
    class Answers:
        def answer(self, prompts: Sequence[str], cancelled: object) -> list[object]:
            return [
                Timed("yes", 0.1, 0.1),
                Timed("Yes", 0.1, 0.1),
                type("T", (), {"text": '{"a":1}', "data": {"a": 1}})(),
            ]

    cases = [*CASES[:2], GoldenCase.model_validate({"prompt": "p", "json": {"a": 1}})]
    assert right_answers(Answers(), cases, never) == (True, False, True)


class TestOnSimulatedBoards:
    """A few of the seeds of the benchmark, which takes them all."""

    @pytest.mark.parametrize("seed", [1, 4])
    def test_a_release_that_is_no_different_passes(self, seed: int) -> None:
        assert run_gate(seed, Release(), Release(), 64).outcome == "pass"

    @pytest.mark.parametrize(
        "new", [Release(work=1.1), Release(joules=1.1), Release(wrong=frozenset([3, 9]))]
    )
    def test_one_that_is_worse_fails(self, new: Release) -> None:
        assert run_gate(2, Release(), new, 64).outcome == "fail"
