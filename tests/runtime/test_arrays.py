from __future__ import annotations

import base64

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgeslm.errors import BadRequestError, TooLargeError
from edgeslm.runtime.arrays import MAX_LISTED, MAX_OUTPUT_BYTES, to_arrays, to_wire
from edgeslm.schema.tensor import TensorBytes

KINDS = st.sampled_from(
    [
        np.dtype(name)
        for name in ("bool", "int8", "uint8", "int16", "uint16", "int32", "int64", "float16", "float32")
    ]
)


@given(hnp.arrays(KINDS, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0)))
def test_an_array_survives_the_way_as_bytes(array: np.ndarray) -> None:
    found = to_arrays(to_wire({"x": array}, as_bytes=True))["x"]
    assert found.dtype == array.dtype
    assert found.shape == array.shape
    assert found.tobytes() == array.tobytes()


@given(
    hnp.arrays(
        np.float32, hnp.array_shapes(), elements=st.floats(allow_nan=False, allow_infinity=False, width=32)
    )
)
def test_numbers_survive_the_way_as_lists(array: np.ndarray) -> None:
    value = to_wire({"x": array}, as_bytes=False)["x"]
    assert isinstance(value, list)
    assert (to_arrays({"x": value})["x"].astype(np.float32) == array).all()


def test_lists_are_as_short_as_a_person_would_write_them() -> None:
    assert to_wire({"x": np.float32([0.1, 2])}, as_bytes=False) == {"x": [0.1, 2.0]}


def test_bytes_lie_with_the_lowest_first() -> None:
    value = to_wire({"x": np.array([1, 258], ">i4")}, as_bytes=True)["x"]
    assert isinstance(value, TensorBytes)
    assert base64.b64decode(value.data) == bytes([1, 0, 0, 0, 2, 1, 0, 0])


@pytest.mark.parametrize(
    "array", [np.float32([1, np.nan]), np.float32([np.inf]), np.zeros(MAX_LISTED + 1, np.int8), np.float32(1)]
)
def test_what_lists_cannot_hold_comes_as_bytes(array: np.ndarray) -> None:
    assert isinstance(to_wire({"x": array}, as_bytes=False)["x"], TensorBytes)


def test_an_answer_has_a_largest_size() -> None:
    with pytest.raises(TooLargeError, match="outputs are"):
        to_wire({"x": np.zeros(MAX_OUTPUT_BYTES + 1, np.int8)}, as_bytes=True)


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ([[1, 2], [3]], "differ in length"),
        ([1, "a"], "other than numbers"),
        ([1, None], "other than numbers"),
        ([{"a": 1}], "other than numbers"),
        ([10**30], "other than numbers"),
        ([[[[[[[[[1]]]]]]]]], "9 dimensions"),
        (TensorBytes(dtype="int8", shape=(2,), data="AA=="), "has 1 bytes; 2 int8 take 2"),
        (TensorBytes(dtype="int8", shape=(1,), data="A*=="), "no base64"),
        (TensorBytes(dtype="int8", shape=(0, *(2**31 - 1,) * 7), data=""), "no array can have"),
        (TensorBytes(dtype="float32", shape=(2**31 - 1,) * 8, data=""), "has 0 bytes"),
    ],
)
def test_what_is_no_array_is_refused_by_name(value: object, told: str) -> None:
    with pytest.raises(BadRequestError, match=told) as caught:
        to_arrays({"x": value})  # type: ignore[dict-item]
    assert "input x" in str(caught.value)
