from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as fb
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgeslm.errors import BadRequestError, InferenceError, ModelLoadError, TooLargeError
from edgeslm.runtime.backend import choose_runtime
from edgeslm.runtime.quantization import Quantization, dequantize, quantize, round_half_away
from edgeslm.runtime.tensor import TensorGraph, to_labels

from .graphs import Graph, Op, Tensor, add_floats, dense_int8

WEIGHTS = np.array([[4, 0, -4], [1, 2, 3]])
"""In real numbers a quarter of it."""


def opened(path: Path, **options: object) -> TensorGraph:
    return TensorGraph(path, choose_runtime("ai-edge-litert"), **options)  # type: ignore[arg-type]


@pytest.fixture
def dense(tmp_path: Path) -> TensorGraph:
    return opened(dense_int8(WEIGHTS, tmp_path / "dense.tflite"))


@pytest.mark.parametrize(
    ("value", "whole"),
    [(0.5, 1), (-0.5, -1), (1.5, 2), (2.5, 3), (-2.5, -3), (0.49999997, 0), (8388609.0, 8388609), (0.0, 0)],
)
def test_halves_are_rounded_away_from_zero(value: float, whole: int) -> None:
    assert round_half_away(np.float32([value]))[0] == whole


def test_what_is_beyond_the_range_ends_at_it() -> None:
    how = Quantization((0.5,), (3,))
    assert quantize(np.float32([1e9, -1e9, 0.25]), how, np.dtype(np.int8)).tolist() == [127, -128, 4]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_no_integer_stands_for_what_is_not_finite(value: float) -> None:
    with pytest.raises(ValueError, match="not finite"):
        quantize(np.float32([value]), Quantization((0.5,), (0,)), np.dtype(np.int8))


@given(
    values=hnp.arrays(np.int8, hnp.array_shapes(max_dims=3)),
    scale=st.floats(2**-10, 2**10, width=32),
    zero=st.integers(-128, 127),
)
def test_integers_survive_the_way_out_and_in(values: np.ndarray, scale: float, zero: int) -> None:
    how = Quantization((scale,), (zero,))
    assert (quantize(dequantize(values, how), how, values.dtype) == values).all()


def test_each_slice_has_its_own_scale() -> None:
    how = Quantization((1.0, 2.0), (0, 1), axis=1)
    assert dequantize(np.int8([[5, 5], [1, 1]]), how).tolist() == [[5, 8], [1, 0]]


def test_numbers_go_in_and_out_as_they_are_meant(dense: TensorGraph) -> None:
    assert str(dense.inputs["x"]) == "x (1 x 3, float32)"
    assert dense.run({"x": np.array([[1.0, 2.0, 3.0]])})["y"].tolist() == [[-2.0, 4.0]]


def test_a_graph_without_signatures_is_called_by_its_tensors(tmp_path: Path) -> None:
    graph = opened(dense_int8(WEIGHTS, tmp_path / "plain.tflite", signatures=False))
    assert graph.run({"x": np.array([[1.0, 2.0, 3.0]])})["y"].tolist() == [[-2.0, 4.0]]


def test_inputs_are_told_apart_by_name(tmp_path: Path) -> None:
    graph = opened(add_floats(tmp_path / "add.tflite"))
    found = graph.run({"b": np.array([[1, 2, 3]]), "a": np.array([[0.5, 0.5, 0.5]])})
    assert found["sum"].tolist() == [[1.5, 2.5, 3.5]]


@pytest.mark.parametrize("is_open", [False, True])
@pytest.mark.parametrize("signatures", [False, True])
def test_a_batch_gives_what_its_rows_give(tmp_path: Path, *, is_open: bool, signatures: bool) -> None:
    graph = opened(dense_int8(WEIGHTS, tmp_path / "g.tflite", is_open=is_open, signatures=signatures))
    rows = np.random.default_rng(7).uniform(-20, 20, (5, 3))
    alone = [graph.run({"x": row[None]})["y"][0].tolist() for row in rows]
    assert graph.run({"x": rows})["y"].tolist() == alone
    assert graph.run({"x": rows[:, None]})["y"].tolist() == alone
    assert graph.run({"x": rows[0]})["y"].tolist() == alone[:1]


@pytest.mark.parametrize(
    ("arrays", "told"),
    [
        ({"z": np.zeros((1, 3))}, "unknown: z; lacking: x"),
        ({}, "lacking: x"),
        ({"x": np.zeros((1, 4))}, "1x4"),
        ({"x": np.zeros(())}, "of one number"),
        ({"x": np.array([["a", "b", "c"]])}, "not numbers"),
        ({"x": np.array([[1, np.nan, 3]])}, "not finite"),
        ({"x": np.zeros((0, 3))}, "0 rows"),
        ({"x": np.zeros((300, 3))}, "300 rows"),
    ],
)
def test_what_the_graph_does_not_take_is_refused_and_harms_nothing(
    dense: TensorGraph, arrays: dict[str, np.ndarray], told: str
) -> None:
    with pytest.raises((BadRequestError, TooLargeError), match=told):
        dense.run(arrays)
    assert dense.run({"x": np.array([[1.0, 2.0, 3.0]])})["y"].tolist() == [[-2.0, 4.0]]


def test_integers_are_taken_only_where_they_are_exact(tmp_path: Path) -> None:
    graph = opened(
        Graph(
            [Tensor("ids", (1, 2), "int32"), Tensor("same", (1, 2), "int32")],
            [Op(fb.BuiltinOperator.RESHAPE, (0,), (1,), fb.BuiltinOptions.ReshapeOptions, _reshape([1, 2]))],
            (0,),
            (1,),
        ).write(tmp_path / "ids.tflite")
    )
    assert graph.run({"ids": np.array([[7.0, 2.0]])})["same"].tolist() == [[7, 2]]
    for wrong in ([[0.5, 1.0]], [[2.0**40, 1.0]]):
        with pytest.raises(BadRequestError, match="no int32"):
            graph.run({"ids": np.array(wrong)})


def _reshape(shape: list[int]) -> object:
    options = fb.ReshapeOptionsT()
    options.newShape = shape
    return options


def test_text_tensors_are_refused_at_the_door(tmp_path: Path) -> None:
    path = Graph([Tensor("words", (1,), "string")], [], (0,), (0,)).write(tmp_path / "words.tflite")
    with pytest.raises(ModelLoadError, match="holds string"):
        opened(path)


def test_an_unknown_signature_names_those_there_are(tmp_path: Path) -> None:
    path = dense_int8(WEIGHTS, tmp_path / "dense.tflite")
    with pytest.raises(ModelLoadError, match="no signature 'other'") as told:
        opened(path, signature="other")
    assert "serving_default" in str(told.value.hint)


def test_scores_become_probabilities_by_label() -> None:
    found = to_labels(np.float32([[1.0, 3.0, 2.0]]), ("low", "high", "middle"))
    assert list(found) == ["high", "middle", "low"]
    assert sum(found.values()) == pytest.approx(1)
    assert to_labels(np.float32([0.25, 0.75]), ("no", "yes")) == {"yes": 0.75, "no": 0.25}
    with pytest.raises(InferenceError, match="3 scores for 2 labels"):
        to_labels(np.float32([1, 2, 3]), ("no", "yes"))
