"""The same weights as a ``.litertlm`` file, for LiteRT-LM: ``python -m benchmarks.gemma.litertlm DIR``.

DIR is where `benchmarks.gemma.convert` left its results. Needs `litert-lm-builder`.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.gemma.convert import CONTEXTS, NAME, PLAIN_GRAPH, STOP_TOKENS

_BEGIN_TOKEN = 2


def build(folder: Path) -> Path:
    """Make the file in `folder`; returns its path."""
    path = folder / f"{NAME}.litertlm"
    write_bundle(
        path,
        folder / "tokenizer.model",
        folder / PLAIN_GRAPH,
        begin=_BEGIN_TOKEN,
        stops=STOP_TOKENS,
        context=max(CONTEXTS),
    )
    return path


def write_bundle(
    path: Path, tokenizer: Path, graph: Path, *, begin: int, stops: Sequence[int], context: int
) -> None:
    """Make the bundle at `path`, whose directory then holds its metadata as well.

    Args:
        tokenizer: a SentencePiece model.
        graph: with signatures for prefill and decode.
        begin: id of the token that begins a text.
        stops: ids of those that end an answer.
        context: most tokens.
    """
    builder_module: Any = importlib.import_module("litert_lm_builder.litertlm_builder")
    metadata_module: Any = importlib.import_module("litert_lm_builder.runtime.proto.llm_metadata_pb2")
    types_module: Any = importlib.import_module("litert_lm_builder.runtime.proto.llm_model_type_pb2")
    metadata = metadata_module.LlmMetadata()
    metadata.start_token.token_ids.ids.append(begin)
    for token in stops:
        metadata.stop_tokens.add().token_ids.ids.append(token)
    metadata.max_num_tokens = context
    metadata.llm_model_type.CopyFrom(types_module.LlmModelType(generic_model=types_module.GenericModel()))
    described = path.with_name("llm-metadata.pb")
    described.write_bytes(metadata.SerializeToString())
    builder = builder_module.LitertLmFileBuilder()
    builder.add_system_metadata(
        builder_module.Metadata(key="Authors", value="edgeslm", dtype=builder_module.DType.STRING)
    )
    builder.add_llm_metadata(str(described))
    builder.add_sentencepiece_tokenizer(str(tokenizer))
    builder.add_tflite_model(str(graph), builder_module.TfLiteModelType.PREFILL_DECODE)
    fresh = path.with_suffix(".partial")
    with fresh.open("wb") as stream:
        builder.build(stream)
    fresh.replace(path)


if __name__ == "__main__":
    print(build(Path(sys.argv[1])))
