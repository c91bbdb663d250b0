from __future__ import annotations

import json
import random
import statistics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeslm.power.predictor import MOST_SETTINGS, Predictor, Setting
from edgeslm.schema.board import PowerTable

TABLE = PowerTable(
    idle_w=2.7,
    core_load_w=0.9,
    max_mhz=1800,
    min_mhz=600,
    frequency_exponent=2.0,
    source="made up for the tests",
)
ONE = Setting("m@1", 1)
MAX_TOKENS = 128


def cost_j(prompt_tokens: int, completion_tokens: int, scale: float = 1.0) -> float:
    return scale * (0.005 + 0.0004 * prompt_tokens + 0.0015 * completion_tokens)


def train(
    predictor: Predictor,
    count: int,
    *,
    setting: Setting = ONE,
    scale: float = 1.0,
    seed: int = 0,
    noise: float = 0.05,
) -> Predictor:
    rng = random.Random(seed)
    for _ in range(count):
        prompt = rng.randint(5, 30)
        answer = max(1, round(0.6 * prompt + rng.gauss(2, 2)))
        net_j = cost_j(prompt, answer, scale) * rng.lognormvariate(0, noise)
        predictor.learn(setting, prompt, answer, net_j, net_j / 1.2, complete=True)
    return predictor


@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0])
def test_after_fifty_prompts_a_cost_is_known_well_on_boards_unlike_the_table(scale: float) -> None:
    predictor = train(Predictor(TABLE, {}), 50, scale=scale)
    said = predictor.predict(ONE, 20, MAX_TOKENS)
    assert said.completion_tokens == pytest.approx(14, abs=2)
    assert said.net_j == pytest.approx(cost_j(20, 14, scale), rel=0.1)
    assert said.seconds == pytest.approx(cost_j(20, 14, scale) / 1.2, rel=0.1)
    assert said.j_per_token == pytest.approx(0.0015 * scale, rel=0.5)
    assert said.samples == 50


def test_the_first_prompt_sets_the_scale() -> None:
    predictor = Predictor(TABLE, {"m@1": 1_000_000})
    before = predictor.predict(ONE, 20, MAX_TOKENS)
    assert before.samples == 0
    assert before.net_j > 0
    net_j = 8 * before.net_j
    predictor.learn(ONE, 20, int(before.completion_tokens), net_j, 1.0, complete=True)
    assert predictor.predict(ONE, 20, MAX_TOKENS).net_j == pytest.approx(net_j, rel=0.25)


def test_a_larger_model_is_expected_to_cost_more() -> None:
    predictor = Predictor(TABLE, {"small": 1_000_000, "large": 500_000_000})
    small, large = (predictor.predict(Setting(name, 1), 20, 64) for name in ("small", "large"))
    assert large.net_j > 50 * small.net_j
    assert large.seconds > 50 * small.seconds


@pytest.mark.parametrize(("noise", "seed"), [(0.02, 1), (0.1, 2), (0.3, 3)])
def test_nine_of_ten_prompts_cost_no_more_than_the_p90(noise: float, seed: int) -> None:
    predictor = train(Predictor(TABLE, {}), 100, noise=noise, seed=seed)
    rng = random.Random(seed + 100)
    below = []
    for _ in range(400):
        prompt = rng.randint(5, 30)
        answer = max(1, round(0.6 * prompt + rng.gauss(2, 2)))
        net_j = cost_j(prompt, answer) * rng.lognormvariate(0, noise)
        below.append(net_j <= predictor.predict(ONE, prompt, MAX_TOKENS).net_j_p90)
    assert 0.8 <= statistics.fmean(below) <= 0.98


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(1, 5000),
            st.integers(0, 5000),
            st.floats(1e-9, 1e9),
            st.floats(1e-9, 1e9),
            st.booleans(),
        ),
        max_size=30,
    ),
    st.integers(1, 10_000),
    st.integers(1, 8192),
)
def test_a_prediction_is_never_negative_and_its_p90_never_below_it(
    prompts: list[tuple[int, int, float, float, bool]], prompt_tokens: int, max_tokens: int
) -> None:
    predictor = Predictor(TABLE, {})
    for prompt, answer, net_j, seconds, complete in prompts:
        predictor.learn(ONE, prompt, answer, net_j, seconds, complete=complete)
    said = predictor.predict(ONE, prompt_tokens, max_tokens)
    assert 0 <= said.net_j <= said.net_j_p90 < float("inf")
    assert 0 <= said.seconds <= said.seconds_p90 < float("inf")
    assert 1 <= said.completion_tokens <= max_tokens
    assert said.completion_tokens_p90 <= max_tokens
    assert said.j_per_token >= 0


def test_an_answer_is_never_expected_to_be_longer_than_it_may() -> None:
    predictor = train(Predictor(TABLE, {}), 50)
    short = predictor.predict(ONE, 30, 5)
    assert short.completion_tokens == short.completion_tokens_p90 == 5
    assert short.net_j < predictor.predict(ONE, 30, MAX_TOKENS).net_j


def test_answers_that_were_cut_off_do_not_make_answers_look_short() -> None:
    predictor = train(Predictor(TABLE, {}), 50)
    before = predictor.predict(ONE, 20, MAX_TOKENS).completion_tokens
    for _ in range(50):
        predictor.learn(ONE, 20, 2, cost_j(20, 2), 0.01, complete=False)
    assert predictor.predict(ONE, 20, MAX_TOKENS).completion_tokens == pytest.approx(before)
    for _ in range(64):
        predictor.learn(ONE, 20, 100, cost_j(20, 100), 0.1, complete=False)
    assert predictor.predict(ONE, 20, MAX_TOKENS).completion_tokens == pytest.approx(100)


@pytest.mark.parametrize("scale", [0.5, 1.4, 3.0])
def test_a_board_that_changes_is_followed(scale: float) -> None:
    predictor = train(Predictor(TABLE, {}), 300)
    train(predictor, 20, scale=scale, seed=1)
    assert predictor.predict(ONE, 20, MAX_TOKENS).net_j == pytest.approx(cost_j(20, 14, scale), rel=0.1)


def test_another_setting_starts_from_what_is_known_of_the_model() -> None:
    predictor = train(Predictor(TABLE, {}), 50)
    known = predictor.predict(Setting("m@1", 1, 1800), 20, MAX_TOKENS)
    slower = predictor.predict(Setting("m@1", 1, 900), 20, MAX_TOKENS)
    assert known.net_j == pytest.approx(predictor.predict(ONE, 20, MAX_TOKENS).net_j)
    assert slower.samples == 0
    assert slower.seconds == pytest.approx(2 * known.seconds)
    assert slower.net_j == pytest.approx(0.5 * known.net_j)
    train(predictor, 20, setting=Setting("m@1", 1, 900), scale=3.0)
    assert predictor.predict(Setting("m@1", 1, 900), 20, MAX_TOKENS).net_j == pytest.approx(
        cost_j(20, 14, 3.0), rel=0.1
    )
    assert predictor.predict(ONE, 20, MAX_TOKENS).j_per_token == known.j_per_token


def test_the_setting_not_used_for_longest_is_forgotten() -> None:
    predictor = train(Predictor(TABLE, {}), 3)
    for number in range(MOST_SETTINGS - 1):
        predictor.learn(Setting(f"m{number}", 1), 10, 5, 0.1, 0.1, complete=True)
    predictor.learn(ONE, 10, 5, 0.1, 0.1, complete=True)
    predictor.learn(Setting("one more", 1), 10, 5, 0.1, 0.1, complete=True)
    assert predictor.predict(ONE, 10, 64).samples == 4
    assert predictor.predict(Setting("m0", 1), 10, 64).samples == 0
    assert predictor.predict(Setting("m1", 1), 10, 64).samples == 1


@pytest.mark.parametrize(
    ("net_j", "seconds"), [(0.0, 1.0), (-1.0, 1.0), (1.0, 0.0), (float("nan"), 1.0), (1.0, float("inf"))]
)
def test_what_cannot_be_a_cost_teaches_nothing(net_j: float, seconds: float) -> None:
    predictor = train(Predictor(TABLE, {}), 20)
    before = predictor.predict(ONE, 20, MAX_TOKENS)
    predictor.learn(ONE, 20, 14, net_j, seconds, complete=True)
    assert predictor.predict(ONE, 20, MAX_TOKENS) == before


def test_what_was_learned_survives_a_restart_as_json() -> None:
    predictor = train(Predictor(TABLE, {}), 50)
    train(predictor, 5, setting=Setting("m@1", 2, 900))
    text = json.dumps(predictor.state())
    again = Predictor(TABLE, {}, json.loads(text))
    for setting in (ONE, Setting("m@1", 2, 900)):
        assert again.predict(setting, 20, MAX_TOKENS) == predictor.predict(setting, 20, MAX_TOKENS)
    assert len(text) < 4000


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=13) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=20,
)


@given(
    st.fixed_dictionaries(
        {
            "settings": st.lists(
                st.fixed_dictionaries(
                    {
                        "model": json_values,
                        "threads": json_values,
                        "frequency_mhz": json_values,
                        "joules": json_values | st.lists(st.floats(), min_size=13, max_size=13),
                        "seconds": json_values | st.lists(st.floats(), min_size=13, max_size=13),
                        "samples": json_values,
                    }
                )
                | json_values,
                max_size=3,
            )
            | json_values,
            "answers": json_values | st.dictionaries(st.text(max_size=3), json_values, max_size=3),
        }
    )
)
def test_a_state_of_no_use_leaves_the_prior(state: dict[str, object]) -> None:
    predictor = Predictor(TABLE, {}, state)
    said = predictor.predict(ONE, 20, MAX_TOKENS)
    assert 0 < said.net_j < float("inf")
