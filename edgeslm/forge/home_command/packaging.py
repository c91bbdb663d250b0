"""From the recipe's results to `home-command.slm`.

    python -m edgeslm.forge.home_command.packaging DIR --out home-command.slm

The golden vectors of both graphs are computed here, on this machine; every device computes them again before it
serves a graph.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from tokenizers import Tokenizer as HfTokenizer

import edgeslm
from edgeslm.forge.home_command.tokenizer import SPECIAL_TOKENS
from edgeslm.models.packing import pack
from edgeslm.runtime.backend import Runtime, choose_runtime
from edgeslm.runtime.engine import KvEngine
from edgeslm.runtime.executor import SignatureExecutor
from edgeslm.runtime.prompt import PromptEncoder
from edgeslm.runtime.tokenizer import JsonTokenizer
from edgeslm.schema.package import PromptForm

NAME: Final = "home-command"
VERSION: Final = "1.0.0"
PROMPT_FORM: Final = PromptForm(prefix="<s>", suffix="<sep>", lower=True, collapse_whitespace=True)
STOP_TOKEN: Final = 3
MAX_PROMPT_TOKENS: Final = 96
GOLDEN_PROMPTS: Final = 64
PROOF_PROMPT: Final = "turn the kitchen lights to 40 percent"
PROOF_LOGITS: Final = 16
PROOF_ATOL: Final = {"home-command.tflite": 0.05, "home-command-tflite.tflite": 0.3}
"""Int8 arithmetic is exact; what differs between processors is the rounding of float sums around it. The second graph
runs on two runtimes, which quantize activations differently: up to 0.09 apart here, of logits that span 20."""

GRAPHS: Final = (
    ("home-command.tflite", ("litert",), "int8 weights per channel, dynamic; no composites"),
    (
        "home-command-tflite.tflite",
        ("tflite-runtime", "litert"),
        "int8 weights per tensor, dynamic; no composites",
    ),
)


def prove_graph(path: Path, prompt_ids: list[int], runtime: Runtime) -> dict[str, Any]:
    """The golden vector of a graph: what it says to `prompt_ids`, and some logits of the first step."""
    engine = KvEngine(SignatureExecutor(path, runtime, threads=1))
    engine.prefill(prompt_ids[:-1])
    logits = engine.step(prompt_ids[-1])
    likeliest = [int(i) for i in logits.argsort()[::-1][: PROOF_LOGITS // 2]]
    spread = [int(i) for i in range(0, logits.size, logits.size // (PROOF_LOGITS // 2))][: PROOF_LOGITS // 2]
    ids = sorted({*likeliest, *spread})
    values = [round(float(logits[i]), 4) for i in ids]
    greedy = [int(logits.argmax())]
    while greedy[-1] != STOP_TOKEN and len(greedy) < 64:
        greedy.append(int(engine.step(greedy[-1]).argmax()))
    return {
        "tokens": prompt_ids,
        "greedy": greedy,
        "logit_ids": ids,
        "logits": values,
        "atol": PROOF_ATOL[path.name],
    }


def golden_cases(directory: Path) -> Iterator[dict[str, Any]]:
    """Held-out sentences with their answers; those that `evaluate` lists as missed are no golden cases."""
    report = json.loads((directory / "evaluation.json").read_text("utf-8"))
    missed = json.dumps(report["clean"])
    lines = (directory / "held_out_clean.jsonl").read_text("utf-8").splitlines()
    count = 0
    for line in lines[:: max(1, len(lines) // (2 * GOLDEN_PROMPTS))]:
        case = json.loads(line)
        answer = case["answer"]
        if json.dumps(case["text"])[1:-1] in missed or count >= GOLDEN_PROMPTS:
            continue
        count += 1
        yield {"prompt": case["text"], "json": json.loads(answer) if isinstance(answer, str) else answer}


def build(directory: Path, out: Path) -> str:
    """Pack the results in `directory` as `out`; returns the sha256."""
    scratch = Path(tempfile.mkdtemp())
    try:
        return _build(directory, out, scratch)
    finally:
        shutil.rmtree(scratch)


def _build(directory: Path, out: Path, scratch: Path) -> str:
    tokenizer_file = scratch / "tokenizer.json"
    _mark_special_tokens(directory / "tokenizer.json", tokenizer_file)
    tokenizer = JsonTokenizer(tokenizer_file)
    prompt_ids = PromptEncoder(PROMPT_FORM, tokenizer, MAX_PROMPT_TOKENS).encode(PROOF_PROMPT)
    runtime = choose_runtime("ai-edge-litert")
    draft = {
        "format": 1,
        "name": NAME,
        "version": VERSION,
        "task": "generate",
        "description": "Turns a spoken-style English command for home, building or sensor devices into a JSON intent.",
        "graphs": [
            {
                "file": file,
                "runtimes": list(runtimes),
                "quantization": quantization,
                "proof": prove_graph(directory / file, prompt_ids, runtime),
            }
            for file, runtimes, quantization in GRAPHS
        ],
        "tokenizer": {"kind": "tokenizers-json", "file": "tokenizer.json"},
        "context_tokens": 160,
        "max_prompt_tokens": MAX_PROMPT_TOKENS,
        "max_answer_tokens": 96,
        "stop_tokens": [STOP_TOKEN],
        "prompt": PROMPT_FORM.model_dump(),
        "json_answers": True,
        "golden": "golden.jsonl",
        "requires": {"ram_mb": 64, "agent": edgeslm.__version__},
        "licenses": [
            {
                "spdx": "Apache-2.0",
                "of": "home-command weights and tokenizer, the edgeslm authors",
                "file": "LICENSE",
            },
            {
                "spdx": "Apache-2.0",
                "of": "sentence templates of home-assistant-intents "
                + importlib.metadata.version("home-assistant-intents")
                + ", The Home Assistant Authors",
                "file": "LICENSE",
            },
        ],
    }
    golden = scratch / "golden.jsonl"
    lines = [json.dumps(case, ensure_ascii=False, separators=(",", ":")) for case in golden_cases(directory)]
    golden.write_text("\n".join(lines) + "\n", "utf-8")
    members = {file: directory / file for file, _, _ in GRAPHS}
    members |= {"tokenizer.json": tokenizer_file, "golden.jsonl": golden, "LICENSE": _license()}
    return pack(draft, members, out)


def _mark_special_tokens(source: Path, target: Path) -> None:
    """Copy a tokenizer, its special tokens marked as such: the prompt template spells them, prompts must not."""
    tokenizer = HfTokenizer.from_file(str(source))
    before = [tokenizer.token_to_id(token) for token in SPECIAL_TOKENS]
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    if [tokenizer.token_to_id(token) for token in SPECIAL_TOKENS] != before:
        raise ValueError("special tokens changed their ids")
    tokenizer.save(str(target))


def _license() -> Path:
    """The Apache licence text, as the installed home-assistant-intents carries it."""
    for file in importlib.metadata.files("home-assistant-intents") or ():
        if file.name.startswith("LICENSE"):
            return Path(str(file.locate()))
    raise FileNotFoundError("home-assistant-intents carries no licence file")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    print(f"{arguments.out}: sha256 {build(arguments.directory, arguments.out)}")


if __name__ == "__main__":
    main()
