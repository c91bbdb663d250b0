"""Reading a sentence encoder, and judging vectors; the network and graph where torch is there."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeslm.errors import ModelLoadError
from edgeslm.forge.sentence_encoder.evaluate import compare, embed_all, neighbours_right, read_groups

CONFIG: dict[str, Any] = {
    "model_type": "bert",
    "hidden_act": "gelu",
    "vocab_size": 8,
    "hidden_size": 4,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 6,
    "max_position_embeddings": 5,
    "layer_norm_eps": 1e-12,
}
POOLING = {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}
TOKENIZER = {
    "padding": {"strategy": {"Fixed": 5}},
    "truncation": {"max_length": 5},
    "post_processor": {
        "single": [
            {"SpecialToken": {"id": "[CLS]", "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
            {"SpecialToken": {"id": "[SEP]", "type_id": 0}},
        ]
    },
}


def folder(directory: Path, **changes: Any) -> Path:
    steps = [
        {"type": f"sentence_transformers.models.{kind}", "path": path}
        for kind, path in (("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize"))
    ]
    (directory / "1_Pooling").mkdir()
    for name, value in {
        "modules.json": steps,
        "config.json": CONFIG | changes.pop("config", {}),
        "sentence_bert_config.json": {"max_seq_length": 3},
        "tokenizer.json": TOKENIZER,
        "1_Pooling/config.json": changes.pop("pooling", POOLING),
    }.items():
        (directory / name).write_text(json.dumps(value), "utf-8")
    return directory


def weights() -> dict[str, np.ndarray]:
    chance = np.random.default_rng(1)
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (8, 4),
        "embeddings.position_embeddings.weight": (5, 4),
        "embeddings.token_type_embeddings.weight": (2, 4),
        "embeddings.LayerNorm.weight": (4,),
        "embeddings.LayerNorm.bias": (4,),
    }
    sizes = {"intermediate.dense": (6, 4), "output.dense": (4, 6)}
    for part in (
        "attention.self.query",
        "attention.self.key",
        "attention.self.value",
        "attention.output.dense",
    ):
        sizes[part] = (4, 4)
    for part, size in sizes.items():
        shapes[f"encoder.layer.0.{part}.weight"] = size
        shapes[f"encoder.layer.0.{part}.bias"] = size[:1]
    for part in ("attention.output.LayerNorm", "output.LayerNorm"):
        shapes[f"encoder.layer.0.{part}.weight"] = shapes[f"encoder.layer.0.{part}.bias"] = (4,)
    return {name: chance.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def read(path: Path) -> Any:
    pytest.importorskip("safetensors")
    from edgeslm.forge.sentence_encoder.source import read_source  # noqa: PLC0415

    return read_source(path)


def saved(directory: Path, found: dict[str, np.ndarray]) -> Path:
    pytest.importorskip("safetensors")
    from safetensors.numpy import save_file  # noqa: PLC0415

    save_file(found, str(directory / "model.safetensors"))
    return directory


def test_a_folder_and_a_wheel_with_it_are_the_same_encoder(tmp_path: Path) -> None:
    given = weights()
    path = saved(folder(tmp_path), given)
    wheel = tmp_path / "some-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as packed:
        for file in path.rglob("*.*"):
            if file.is_file() and file != wheel:
                packed.write(file, f"some/model/{file.relative_to(path)}")
    first, second = read(path), read(wheel)
    assert first.shape == second.shape
    assert first.shape.max_tokens == 3
    assert (first.prefix, first.suffix) == ("[CLS]", "[SEP]")
    assert json.loads(first.tokenizer)["padding"] is None
    assert first.weights.keys() == second.weights.keys()
    expected = given["embeddings.position_embeddings.weight"][:3]
    expected = expected + given["embeddings.token_type_embeddings.weight"][0]
    np.testing.assert_array_equal(first.weights["positions"], expected)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"config": {"model_type": "mpnet"}}, "model_type is 'mpnet'"),
        ({"config": {"hidden_act": "relu"}}, "hidden_act is 'relu'"),
        ({"pooling": {"pooling_mode_cls_token": True}}, "pools by pooling_mode_cls_token"),
        ({}, "lacks model.safetensors"),
    ],
)
def test_an_encoder_that_would_come_out_otherwise_is_refused(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(ModelLoadError, match=words):
        read(folder(tmp_path, **changes))


def test_what_lacks_a_weight_is_refused_by_name(tmp_path: Path) -> None:
    given = weights()
    del given["encoder.layer.0.output.dense.bias"]
    with pytest.raises(ModelLoadError, match=r"encoder\.layer\.0\.output\.dense\.bias"):
        read(saved(folder(tmp_path), given))


def test_neither_a_folder_nor_a_wheel_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"nothing")
    pytest.importorskip("safetensors")
    with pytest.raises(ModelLoadError, match="neither a folder nor a wheel"):
        read(tmp_path / "x")


def test_vectors_are_compared_and_neighbours_counted() -> None:
    vectors = {"a": [1, 0], "b": [2, 0.1], "c": [0, 1], "d": [0.1, 3]}
    rows = embed_all(vectors.__getitem__, list(vectors))
    assert np.linalg.norm(rows, axis=1) == pytest.approx(1)
    assert compare(rows, rows) == {"cosine_min": 1.0, "cosine_mean": 1.0}
    assert neighbours_right(rows, [0, 0, 1, 1]) == 1.0
    assert neighbours_right(rows, [0, 1, 0, 1]) == 0.0


def test_the_sentences_are_groups_of_three_and_none_is_there_twice() -> None:
    groups = read_groups()
    assert {len(group) for group in groups} == {3}
    assert len({text for group in groups for text in group}) == 3 * len(groups) >= 100


def test_padding_changes_no_vector(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from edgeslm.forge.sentence_encoder.network import build_network  # noqa: PLC0415

    source = read(saved(folder(tmp_path), weights()))
    network = build_network(source.shape, source.weights)
    with torch.inference_mode():
        bare = network(torch.tensor([[1, 5]]), torch.ones(1, 2))
        padded = network(torch.tensor([[1, 5, 0]]), torch.tensor([[1, 1, 0]]))
    torch.testing.assert_close(bare, padded)
