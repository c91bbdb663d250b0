"""Packages of arrays, labels and embeddings: packed, installed, proved and asked, all with small graphs of our own."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as fb
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from edgeslm.errors import (
    BadRequestError,
    CancelledError,
    DeadlineError,
    InferenceError,
    ModelLoadError,
    PackageError,
    ProofError,
    TooLargeError,
)
from edgeslm.forge.graph_package import draft_package
from edgeslm.models.packing import pack
from edgeslm.models.store import ModelStore
from edgeslm.runtime.graph_model import GraphModel, pool
from edgeslm.runtime.loading import load_served
from edgeslm.schema.installed import InstalledPackage
from edgeslm.schema.message import Options, PromptRequest
from edgeslm.schema.tensor import TensorBytes

from .graphs import Graph, Op, Tensor, dense_int8

WEIGHTS = np.array([[4, 0, -4], [1, 2, 3]])
"""In real numbers a quarter of it."""
TABLE = np.float32([[9, 9, 9], [1, 0, 0], [0, 1, 0], [0, 0, 2]])
"""What the padding and the words red, green and blue mean."""


def installed(directory: Path, draft: dict[str, Any], *members: Path) -> InstalledPackage:
    out = directory / "packed.slm"
    pack(draft, {path.name: path for path in members}, out)
    return ModelStore(directory / "store").install(out)


def dense_package(directory: Path, **options: Any) -> InstalledPackage:
    graph = dense_int8(WEIGHTS, directory / "dense.tflite")
    draft = draft_package(graph, name="dense", version="1.0.0", license_name="Apache-2.0", **options)
    return installed(directory, draft, graph)


def request(**fields: Any) -> PromptRequest:
    return PromptRequest.model_validate_json(json.dumps({"id": "a", "task": "tensor", **fields}))


@pytest.fixture
def dense(tmp_path: Path) -> GraphModel:
    return loaded(dense_package(tmp_path))


def loaded(package: InstalledPackage) -> GraphModel:
    model = load_served(package)
    assert isinstance(model, GraphModel)
    return model


def encoder(directory: Path, length: int, *, task: str = "embed", **changes: Any) -> InstalledPackage:
    """Looks up a vector for each of `length` tokens."""
    graph = Graph(
        [
            Tensor("input_ids", (1, length), "int32"),
            Tensor("table", TABLE.shape, data=TABLE),
            Tensor("hidden", (1, length, 3)),
        ],
        [
            Op(
                fb.BuiltinOperator.GATHER,
                (1, 0),
                (2,),
                fb.BuiltinOptions.GatherOptions,
                fb.GatherOptionsT(),
            )
        ],
        (0,),
        (2,),
        {"serving_default": ({"input_ids": 0}, {"hidden": 2})},
    ).write(directory / "encoder.tflite")
    words = Tokenizer(WordLevel({"[PAD]": 0, "red": 1, "green": 2, "blue": 3}, "[PAD]"))
    words.pre_tokenizer = Whitespace()
    words.save(str(directory / "tokenizer.json"))
    draft = {
        "format": 1,
        "name": "colours",
        "version": "1.0.0",
        "task": task,
        "description": "",
        "graphs": [
            {
                "file": "encoder.tflite",
                "runtimes": ["litert", "tflite-runtime"],
                "quantization": "none",
                "proof": {
                    "inputs": {"input_ids": [[1, 2, 3, 0][:length]]},
                    "outputs": {"hidden": [TABLE[[1, 2, 3, 0][:length]].tolist()]},
                    "atol": 1e-6,
                },
            }
        ],
        "tokenizer": {"kind": "tokenizers-json", "file": "tokenizer.json"},
        "context_tokens": 16,
        "max_prompt_tokens": 16,
        "requires": {"ram_mb": 1, "agent": "0.1.0"},
        "licenses": [{"spdx": "Apache-2.0", "of": "all"}],
        **changes,
    }
    return installed(directory, draft, graph, directory / "tokenizer.json")


def test_arrays_in_arrays_out_in_the_form_of_the_request(dense: GraphModel) -> None:
    assert dense.tasks == ("tensor",)
    as_lists = dense.infer(request(tensor={"x": [[1, 2, 3]]})).tensor
    assert as_lists == {"y": [[-2.0, 4.0]]}
    given = {"dtype": "int8", "shape": [1, 3], "data": "AQID"}
    as_bytes = dense.infer(request(tensor={"x": given})).tensor
    assert as_bytes is not None
    value = as_bytes["y"]
    assert isinstance(value, TensorBytes)
    assert (value.dtype, value.shape) == ("float32", (1, 2))


def test_a_batch_is_answered_row_by_row(dense: GraphModel) -> None:
    found = dense.infer(request(tensor={"x": [[1, 2, 3], [4, 2, 0]]})).tensor
    assert found == {"y": [[-2.0, 4.0], [4.0, 2.0]]}


def test_a_classifier_of_arrays_names_the_likeliest_and_gives_the_plain_scores_too(tmp_path: Path) -> None:
    model = loaded(dense_package(tmp_path, labels=["falls", "rises"]))
    assert model.tasks == ("classify", "tensor")
    scores = model.infer(request(task="classify", tensor={"x": [[1, 2, 3]]})).scores
    assert scores is not None
    assert list(scores) == ["rises", "falls"]
    assert sum(scores.values()) == pytest.approx(1)
    assert model.infer(request(tensor={"x": [[1, 2, 3]]})).tensor == {"y": [[-2.0, 4.0]]}
    with pytest.raises(BadRequestError, match="one row"):
        model.infer(request(task="classify", tensor={"x": [[1, 2, 3], [3, 2, 1]]}))


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"task": "generate", "prompt": "hi"}, "task 'generate' is not served"),
        ({"task": "embed", "prompt": "hi"}, "it serves: tensor"),
        ({"tensor": {"z": [1]}}, "unknown: z"),
        ({"tensor": {"x": [["a"]]}}, "other than numbers"),
    ],
)
def test_what_it_does_not_do_is_refused_and_harms_nothing(
    dense: GraphModel, fields: dict[str, Any], told: str
) -> None:
    with pytest.raises(BadRequestError, match=told):
        dense.infer(request(**fields))
    with pytest.raises(BadRequestError, match="not served"):
        dense.answer("hi", Options())
    assert dense.infer(request(tensor={"x": [[1, 2, 3]]})).tensor == {"y": [[-2.0, 4.0]]}


def test_a_request_whose_time_is_over_is_not_computed(dense: GraphModel) -> None:
    with pytest.raises(DeadlineError):
        dense.infer(request(tensor={"x": [[1, 2, 3]]}), should_stop=lambda: "deadline")
    with pytest.raises(CancelledError):
        dense.infer(request(tensor={"x": [[1, 2, 3]]}), should_stop=lambda: "cancelled")


def test_threads_can_be_changed_between_requests(dense: GraphModel) -> None:
    dense.set_threads(2)
    assert dense.threads == 2
    assert dense.infer(request(tensor={"x": [[1, 2, 3]]})).tensor == {"y": [[-2.0, 4.0]]}


@pytest.mark.parametrize(
    ("proof", "told"),
    [
        ({"outputs": {"y": [[-2.0, 40.0]]}}, "differs by"),
        ({"outputs": {"z": [[-2.0, 4.0]]}}, "no output z"),
        ({"outputs": {"y": [[-2.0]]}}, "shape"),
        ({"inputs": {"z": [[1, 2, 3]]}}, "unknown: z"),
    ],
)
def test_a_graph_that_computes_something_else_is_not_served(
    tmp_path: Path, proof: dict[str, Any], told: str
) -> None:
    package = dense_package(tmp_path)
    graphs = tuple(
        graph.model_copy(
            update={
                "proof": graph.proof.model_copy(
                    update={"inputs": {"x": [[1, 2, 3]]}, "outputs": {"y": [[-2.0, 4.0]]}, **proof}
                )
            }
        )
        for graph in package.manifest.graphs
    )
    broken = replace(package, manifest=package.manifest.model_copy(update={"graphs": graphs}))
    with pytest.raises(ProofError, match=told):
        load_served(broken)


@pytest.mark.parametrize("length", [3, 4])
def test_an_embedding_is_the_mean_over_the_tokens_and_has_length_one(tmp_path: Path, length: int) -> None:
    model = loaded(encoder(tmp_path, length))
    assert model.tasks == ("embed",)
    found = model.infer(request(task="embed", prompt="red green"))
    assert found.prompt_tokens == 2
    assert found.embedding == pytest.approx([0.5**0.5, 0.5**0.5, 0])
    assert model.infer(request(task="embed", prompt="blue")).embedding == (0.0, 0.0, 1.0)


def test_a_text_beyond_the_graph_is_refused(tmp_path: Path) -> None:
    model = loaded(encoder(tmp_path, 3))
    with pytest.raises(TooLargeError, match="4 tokens, the graph takes 3"):
        model.infer(request(task="embed", prompt="red green blue red"))
    with pytest.raises(BadRequestError, match="takes text"):
        model.infer(request(task="embed", tensor={"input_ids": [[1, 2, 3]]}))
    with pytest.raises(BadRequestError, match="empty"):
        model.infer(request(task="embed", prompt="   "))


def test_a_classifier_of_text_needs_as_many_scores_as_labels(tmp_path: Path) -> None:
    right = loaded(encoder(tmp_path, 1, task="classify", labels=["warm", "fresh", "cold"]))
    scores = right.infer(request(task="classify", prompt="blue")).scores
    assert scores is not None
    assert next(iter(scores)) == "cold"
    with pytest.raises(BadRequestError, match="labels of its own"):
        right.infer(request(task="classify", prompt="blue", choices=["a", "b"]))
    wrong = encoder(tmp_path, 1, task="classify", labels=["warm", "cold"])
    with pytest.raises(ModelLoadError, match="3 scores, the package has 2 labels"):
        load_served(wrong)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"labels": ["a"]}, "classify"),
        ({"tokenizer": None}, "needs a tokenizer"),
        ({"task": "generate"}, "tokens and logits"),
        ({"task": "classify"}, "has labels"),
        ({"task": "classify", "labels": ["a", "a"]}, "twice"),
        ({"context_tokens": 0}, "missing"),
        ({"golden": "tokenizer.json"}, "golden prompts go with"),
    ],
)
def test_a_manifest_that_does_not_fit_its_task_is_refused(
    tmp_path: Path, changes: dict[str, Any], told: str
) -> None:
    with pytest.raises(PackageError, match=told):
        encoder(tmp_path, 3, **changes)


@pytest.mark.parametrize(
    "output", [np.zeros((1, 2, 3)), np.full((1, 3), np.nan), np.ones((1, 1, 1, 3)), np.ones((2, 3))]
)
def test_what_is_no_embedding_is_told(output: np.ndarray) -> None:
    with pytest.raises(InferenceError):
        pool(output.astype(np.float32), 2)
