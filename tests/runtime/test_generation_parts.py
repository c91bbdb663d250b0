"""The pure parts of the runtime: chunk plans, stop strings, sampling."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeslm.errors import InferenceError
from edgeslm.runtime.engine import plan_chunks
from edgeslm.runtime.generation import StopStrings
from edgeslm.runtime.sampling import SamplingSettings, TokenSampler

SIZES = st.lists(st.integers(1, 128), max_size=4, unique=True)


@given(st.integers(0, 300), st.integers(0, 300), st.integers(0, 50), SIZES)
def test_a_chunk_plan_covers_all_tokens_and_never_overruns_the_context(count, position, slack, sizes):
    context = position + count + slack
    plan = plan_chunks(count, position, context, sizes)
    assert sum(plan) == count
    for taken in plan:
        fitting = [size for size in sizes if taken <= size <= context - position]
        assert fitting or taken == 1
        position += taken


def test_a_plan_prefers_full_large_chunks_then_the_smallest_padded_one():
    assert plan_chunks(70, 0, 160, [16, 32, 64]) == [64, 6]


def test_a_plan_falls_back_to_single_steps_where_a_padded_chunk_would_overrun():
    assert plan_chunks(3, 157, 160, [16]) == [1, 1, 1]


@given(
    st.text(alphabet="ab\n", max_size=40),
    st.lists(st.text(alphabet="ab\n", min_size=1, max_size=4), max_size=3),
    st.data(),
)
def test_stop_strings_cut_where_the_first_one_begins_however_the_text_is_split(text, stop, data):
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    stops = StopStrings(stop)
    passed = ""
    for piece in pieces:
        passed += stops.push(piece)
        if stops.found:
            break
    passed += stops.finish()
    ends = [(text.index(s) + len(s), text.index(s)) for s in stop if s in text]
    if not ends:
        assert passed == text
    else:
        assert stops.found
        assert not any(s in passed for s in stop)
        assert text.startswith(passed)


def test_greedy_takes_the_largest_logit():
    assert TokenSampler(SamplingSettings()).choose(np.array([0.1, 3.0, -1.0], np.float32)) == 1


def test_top_k_one_and_tiny_top_p_are_greedy():
    logits = np.array([0.1, 3.0, -1.0, 2.9], np.float32)
    for settings in (SamplingSettings(5.0, top_k=1, seed=1), SamplingSettings(5.0, top_p=1e-6, seed=1)):
        sampler = TokenSampler(settings)
        assert {sampler.choose(logits) for _ in range(50)} == {1}


def test_sampling_follows_the_distribution_and_repeats_with_its_seed():
    logits = np.log(np.array([0.7, 0.2, 0.1], np.float32))
    first = [TokenSampler(SamplingSettings(1.0, seed=7)).choose(logits) for _ in range(3)]
    assert len(set(first)) == 1
    sampler = TokenSampler(SamplingSettings(1.0, seed=3))
    share = np.bincount([sampler.choose(logits) for _ in range(4000)], minlength=3) / 4000
    np.testing.assert_allclose(share, [0.7, 0.2, 0.1], atol=0.03)


def test_top_p_drops_the_tail():
    logits = np.log(np.array([0.5, 0.3, 0.2], np.float32))
    sampler = TokenSampler(SamplingSettings(1.0, top_p=0.75, seed=3))
    assert {sampler.choose(logits) for _ in range(300)} == {0, 1}


@given(st.integers(0, 2**32), st.sampled_from([0.3, 0.9, 0.999]))
def test_top_p_of_a_large_vocabulary_keeps_the_same_tokens_as_sorting_all_of_it(seed, top_p):
    logits = np.random.default_rng(seed).normal(0, 4, 9000).astype(np.float32)
    weights = np.exp(logits.astype(np.float64) - logits.max())
    order = np.argsort(-weights, kind="stable")
    kept = set(order[: np.searchsorted(np.cumsum(weights[order]) / weights.sum(), top_p) + 1].tolist())
    sampler = TokenSampler(SamplingSettings(1.0, top_p=top_p, seed=seed))
    assert {sampler.choose(logits) for _ in range(20)} <= kept


def test_only_what_is_allowed_is_chosen():
    logits = np.array([0.1, 3.0, -1.0, 2.9], np.float32)
    allowed = np.array([0, 2, 3, 7])
    assert TokenSampler(SamplingSettings()).choose(logits, allowed) == 3
    sampler = TokenSampler(SamplingSettings(5.0, seed=1))
    assert {sampler.choose(logits, allowed) for _ in range(100)} == {0, 2, 3}
    with pytest.raises(InferenceError):
        sampler.choose(logits, np.array([9]))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_logits_that_are_not_finite_are_an_error(bad):
    with pytest.raises(InferenceError):
        TokenSampler(SamplingSettings()).choose(np.array([0.0, bad], np.float32))
