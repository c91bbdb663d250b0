"""The gate's arithmetic: what it decides from which figures, and what it says."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeslm.agent.update.gate import Block, Evidence, Round, judge, looks, needs_more, student_t
from edgeslm.schema.update import CriterionVerdict, GatePolicy, Verdict

POLICY = GatePolicy()


def rounds(
    count: int,
    *,
    slower: float = 1.0,
    hungrier: float = 1.0,
    noise: float = 0.01,
    meter: str | None = "measured",
) -> tuple[Round, ...]:
    rng = random.Random(7)

    def block(work: float, joules: float) -> Block:
        seconds = work * rng.lognormvariate(0.0, noise)
        energy_j = None if meter is None else work * joules * rng.lognormvariate(0.0, noise)
        return Block(ttft_s=0.1 * seconds, token_s=0.02 * seconds, energy_j=energy_j, meter=meter)

    def pair(work: float, joules: float) -> tuple[Block, Block]:
        return block(work, joules), block(work, joules)

    return tuple(Round(pair(1.0, 1.0), pair(slower, hungrier)) for _ in range(count))


def evidence(measured: tuple[Round, ...] = (), wrong: int = 0, prompts: int = 100, **changes) -> Evidence:
    right = tuple(number >= wrong for number in range(prompts))
    found = Evidence("beside", right, (True,) * prompts, measured, new_peak_mb=100.0, old_peak_mb=100.0)
    return replace(found, **changes)


def criterion(verdict: Verdict, name: str) -> CriterionVerdict:
    return next(item for item in verdict.criteria if item.name == name)


class TestWhatIsMeasured:
    def test_a_release_that_is_no_different_passes_after_few_rounds(self) -> None:
        verdict = judge(POLICY, evidence(rounds(9)))
        assert verdict.outcome == "pass"
        assert not needs_more(POLICY, verdict)

    @pytest.mark.parametrize(
        ("worse", "blamed"),
        [({"slower": 1.1}, {"ttft", "decode", "energy"}), ({"hungrier": 1.1}, {"energy"})],
    )
    def test_one_that_is_worse_by_its_limit_fails_and_the_verdict_names_what(self, worse, blamed) -> None:
        verdict = judge(POLICY, evidence(rounds(9, **worse)))
        assert verdict.outcome == "fail"
        assert {item.name for item in verdict.criteria if item.outcome == "fail"} == blamed
        energy = criterion(verdict, "energy")
        assert energy.low < 0.1 < energy.high
        assert energy.new > energy.old

    def test_one_that_is_better_passes(self) -> None:
        assert judge(POLICY, evidence(rounds(9, slower=0.7, hungrier=0.7))).outcome == "pass"

    def test_too_few_rounds_decide_nothing_and_more_are_asked_for(self) -> None:
        verdict = judge(POLICY, evidence(rounds(POLICY.min_rounds - 1)))
        assert verdict.outcome == "inconclusive"
        assert needs_more(POLICY, verdict)

    def test_noise_that_hides_the_difference_is_inconclusive_and_says_what_would_decide(self) -> None:
        verdict = judge(POLICY, evidence(rounds(POLICY.max_rounds, noise=0.5)))
        assert verdict.outcome == "inconclusive"
        assert not needs_more(POLICY, verdict)
        assert "rounds would decide" in criterion(verdict, "ttft").note

    def test_a_burst_in_a_few_rounds_does_not_decide(self) -> None:
        quiet = rounds(13)
        burst = replace(quiet[0], new=(Block(10.0, 2.0, 99.0, "measured"), quiet[0].new[1]))
        assert judge(POLICY, evidence((burst, *quiet[1:12], burst))).outcome == "pass"

    def test_what_was_decided_at_an_earlier_look_stays_decided(self) -> None:
        early = rounds(9)
        late = rounds(20, slower=1.5)
        assert criterion(judge(POLICY, evidence(early + late)), "ttft").outcome == "pass"

    def test_a_board_that_drifts_steadily_moves_no_verdict(self) -> None:
        def block(at: int) -> Block:
            return Block(0.1 * 1.03**at, 0.02 * 1.03**at, 1.03**at, "measured")

        drifting = tuple(
            Round((block(4 * n), block(4 * n + 3)), (block(4 * n + 1), block(4 * n + 2))) for n in range(9)
        )
        assert judge(POLICY, evidence(drifting)).outcome == "pass"

    def test_answers_of_one_token_have_no_speed_of_decoding_and_pass_without(self) -> None:
        single = tuple(
            Round(
                tuple(replace(block, token_s=None) for block in item.old),
                tuple(replace(block, token_s=None) for block in item.new),
            )
            for item in rounds(9)
        )
        verdict = judge(POLICY, evidence(single))
        assert verdict.outcome == "pass"
        assert criterion(verdict, "decode").outcome == "not_measured"


class TestEnergy:
    @pytest.mark.parametrize(
        ("meter", "note"), [("estimated", "the only meter is an estimate"), (None, "no meter")]
    )
    def test_without_a_true_meter_it_is_not_measured_and_the_verdict_says_so(self, meter, note) -> None:
        verdict = judge(POLICY, evidence(rounds(9, hungrier=2.0, meter=meter)))
        assert verdict.outcome == "pass"
        assert (criterion(verdict, "energy").outcome, criterion(verdict, "energy").note) == (
            "not_measured",
            note,
        )
        assert verdict.meter == meter

    def test_a_policy_that_requires_it_makes_that_inconclusive(self) -> None:
        policy = GatePolicy(required=("answers", "ttft", "energy"))
        verdict = judge(policy, evidence(rounds(9, meter="estimated")))
        assert verdict.outcome == "inconclusive"
        assert "energy has to be measured, and was not" in verdict.notes
        assert not needs_more(policy, verdict)

    def test_one_estimate_among_measured_values_makes_all_of_it_an_estimate(self) -> None:
        measured = rounds(9)
        mixed = replace(measured[3], old=(replace(measured[3].old[0], meter="estimated"), measured[3].old[1]))
        verdict = judge(POLICY, evidence((*measured[:3], mixed, *measured[4:])))
        assert criterion(verdict, "energy").outcome == "not_measured"

    def test_values_that_cannot_be_are_left_out(self) -> None:
        measured = rounds(9)
        broken = [
            replace(measured[0], new=(Block(0.1, 0.02, value, "measured"),) * 2) for value in (0.0, -5.0)
        ]
        assert judge(POLICY, evidence((*broken, *measured))).outcome == "pass"


class TestAnswers:
    @pytest.mark.parametrize(
        ("wrong", "prompts", "outcome"),
        [
            (0, 64, "pass"),
            (1, 64, "pass"),
            (2, 64, "fail"),
            (3, 100, "fail"),
            (2, 100, "pass"),
            (1, 10, "fail"),
        ],
    )
    def test_a_share_of_three_percent_gone_wrong_fails_whatever_else_is_good(
        self, wrong, prompts, outcome
    ) -> None:
        verdict = judge(POLICY, evidence(rounds(9), wrong, prompts))
        assert criterion(verdict, "answers").outcome == outcome
        assert verdict.outcome == outcome

    def test_what_the_running_release_gets_wrong_too_is_not_held_against_it(self) -> None:
        found = evidence(rounds(9), wrong=10)
        assert judge(POLICY, replace(found, old_right=found.new_right)).outcome == "pass"

    def test_what_got_better_does_not_make_up_for_what_got_worse(self) -> None:
        old = tuple(number < 50 for number in range(100))
        new = tuple(number >= 3 for number in range(100))
        assert judge(POLICY, evidence(rounds(9), old_right=old, new_right=new)).outcome == "fail"

    def test_where_nothing_ran_before_the_candidate_is_held_to_its_own_promises(self) -> None:
        verdict = judge(POLICY, evidence(wrong=0, old_right=None))
        assert verdict.outcome == "pass"
        assert criterion(verdict, "ttft").outcome == "not_measured"
        assert judge(POLICY, evidence(wrong=3, old_right=None)).outcome == "fail"

    def test_a_package_without_golden_prompts_is_inconclusive(self) -> None:
        verdict = judge(POLICY, Evidence("beside", (), None))
        assert verdict.outcome == "inconclusive"
        assert criterion(verdict, "answers").outcome == "not_measured"


class TestMemory:
    def test_a_peak_above_the_limit_fails_and_one_within_what_runs_differ_by_does_not(self) -> None:
        assert judge(POLICY, evidence(rounds(9), new_peak_mb=115.0)).outcome == "fail"
        assert judge(POLICY, evidence(rounds(9), new_peak_mb=113.0)).outcome == "pass"

    def test_what_has_no_process_of_its_own_is_not_compared(self) -> None:
        verdict = judge(POLICY, evidence(rounds(9), old_peak_mb=None))
        assert criterion(verdict, "memory").outcome == "not_measured"
        assert verdict.outcome == "pass"


def test_a_policy_can_leave_a_criterion_out() -> None:
    policy = GatePolicy(speed=None, energy=None, memory=None, answers=None, required=())
    worst = evidence(rounds(9, slower=9.0, hungrier=9.0), wrong=100, new_peak_mb=999.0)
    assert judge(policy, worst).outcome == "pass"


@given(st.integers(4, 100), st.integers(4, 200))
def test_looks_rise_from_the_least_to_the_most_rounds(least: int, most: int) -> None:
    found = looks(GatePolicy(min_rounds=least, max_rounds=most))
    assert found[0] == least
    assert found[-1] == max(least, most)
    assert list(found) == sorted(set(found))


@pytest.mark.parametrize(
    ("share", "freedom", "expected"),
    [(0.975, 5, 2.571), (0.99, 6, 3.143), (0.9986, 10, 3.906), (0.9986, 24, 3.334), (0.995, 30, 2.750)],
)
def test_quantiles_are_those_of_the_tables(share, freedom, expected) -> None:
    assert student_t(share, freedom) == pytest.approx(expected, rel=0.01)
