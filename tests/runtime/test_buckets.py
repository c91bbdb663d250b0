"""Buckets, rings and chunk plans: decided without any array of a model."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeslm.runtime.buckets import HIDDEN, MaskInput, find_buckets, plan_chunks, read_signature

KV = {"kv_cache_k_0": (1, 1, 64, 8), "kv_cache_v_0": (1, 1, 8, 64)}


def signature(count, context, **more):
    return {"tokens": (1, count), "input_pos": (count,), "mask": (1, 1, count, context), **KV, **more}


def test_signatures_are_grouped_by_context_the_shortest_first():
    buckets = find_buckets(
        {
            "decode": signature(1, 64),
            "decode_16": signature(1, 16),
            "prefill_8": signature(8, 64),
            "prefill_4_16": signature(4, 16),
            "verify_4": signature(4, 64),
            "embed": {"tokens": (1, 4)},
        }
    )
    assert [bucket.context for bucket in buckets] == [16, 64]
    assert (list(buckets[0].prefill), list(buckets[1].prefill), list(buckets[1].verify)) == ([4], [8], [4])


def test_a_file_of_the_community_is_one_bucket():
    plain = {
        "tokens": (1, 1),
        "input_pos": (1,),
        "kv_cache_k_0": (1, 32, 1, 8),
        "kv_cache_v_0": (1, 32, 1, 8),
    }
    (bucket,) = find_buckets({"decode": plain, "prefill_8": {**plain, "tokens": (1, 8)}})
    assert (bucket.context, list(bucket.prefill), bucket.decode.masks) == (32, [8], ())


def test_a_name_of_another_kind_is_no_signature_of_ours():
    assert read_signature("decode_image", signature(1, 64)) is None
    assert read_signature("prefill_8_then_more", signature(8, 64)) is None


def seen_by_hand(position, count, places, window):
    """Write positions one by one into a ring, then look."""
    ring = {}
    for at in range(position + count):
        ring[at % places] = at
    mask = np.full((count, places), HIDDEN, np.float32)
    for row in range(count):
        at = position + row
        for place, held in ring.items():
            if held <= at and (window is None or held > at - window):
                mask[row, place] = 0
    return mask[None, None]


@given(st.integers(0, 200), st.integers(1, 8), st.integers(4, 16))
def test_a_mask_shows_just_the_window_wherever_the_ring_stands(position, count, window):
    places = window + 8
    mask = MaskInput("m", places, window, "p")
    np.testing.assert_array_equal(mask.values(position, count), seen_by_hand(position, count, places, window))


@given(st.integers(0, 56), st.integers(1, 8))
def test_a_mask_without_a_window_shows_all_that_came_before(position, count):
    values = MaskInput("mask", 64).values(position, count)
    for row in range(count):
        assert (values[0, 0, row] == 0).sum() == position + row + 1


@given(
    st.integers(0, 300), st.integers(0, 300), st.lists(st.integers(1, 64), max_size=3, unique=True),
    st.integers(64, 200),
)  # fmt: skip
def test_a_plan_never_writes_over_the_end_of_a_ring(count, position, sizes, ring):
    context = position + count
    plan = plan_chunks(count, position, context, sizes, [ring])
    assert sum(plan) == count
    for taken in plan:
        fitting = [n for n in sizes if taken <= n <= context - position and position % ring + n <= ring]
        assert fitting or taken == 1
        position += taken


@pytest.mark.parametrize(
    ("count", "plan"), [(128, [128]), (20, [16, 4]), (100, [100]), (150, [128, 16, 6]), (3, [3])]
)
def test_a_plan_computes_few_tokens_and_makes_few_calls(count, plan):
    assert plan_chunks(count, 0, 1024, [16, 128]) == plan
