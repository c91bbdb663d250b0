"""Evaluation of `home-command`: how often the answer is right, before and after int8.

An answer counts as **exact** when it parses to the same JSON object as the expected one, and as a right
**intent** when that field agrees. Three candidates answer the same prompts greedily, with no grammar to help:
the float network, the LiteRT graph under ai-edge-litert, and the tflite graph under tflite-runtime 2.14.

tflite-runtime needs another Python (3.11, numpy<2). This file is therefore also a script that imports nothing
but the standard library, numpy and the interpreter (`python -I evaluate.py GRAPH`): token ids of prompts come
in as JSON lines, those of answers go out. Both graphs are driven through that script, by the same loop. This
is also why the imports from this package stand inside functions.

The loop here is the reference, plain and slow (the KV cache is copied in each step); the fast one is
`edgeslm.runtime`.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from edgeslm.forge.home_command.network import HomeCommandNetwork

END_ID = 3
MASKED = -1e9
MAX_ANSWER_TOKENS = 96


@dataclasses.dataclass(frozen=True)
class Case:
    """One sentence with the answer expected for it."""

    text: str
    answer: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Answers:
    """What one candidate said to all cases, and how fast it was on one thread."""

    texts: list[str]
    decode_tokens_per_s: float | None = None
    prefill_tokens_per_s: float | None = None


class GraphRunner:
    """Greedy decoding over one graph, through any interpreter with signature runners."""

    def __init__(self, graph: Path, threads: int = 1) -> None:
        interpreter = _interpreter_class()(model_path=str(graph), num_threads=threads)
        self._runners = {
            name: interpreter.get_signature_runner(name) for name in interpreter.get_signature_list()
        }
        # A runner does not keep its interpreter alive.
        self._interpreter = interpreter
        inputs = self._runners["decode"].get_input_details()
        self.context_tokens = int(inputs["mask"]["shape"][-1])
        self._cache_shapes = {n: tuple(d["shape"]) for n, d in inputs.items() if n.startswith("kv_cache")}
        self._chunk_lengths = sorted(int(n.split("_")[1]) for n in self._runners if n.startswith("prefill_"))
        self.prefill_tokens = self.decode_tokens = 0
        self.prefill_s = self.decode_s = 0.0

    def answer(self, prompt: Sequence[int], max_tokens: int = MAX_ANSWER_TOKENS) -> list[int]:
        """Return the answer's token ids, without the end token; `prompt` ends with `<sep>`."""
        cache = {name: np.zeros(shape, np.float32) for name, shape in self._cache_shapes.items()}
        cache, position = self._prefill(prompt[:-1], cache)
        token, answer = prompt[-1], list[int]()
        started = time.perf_counter()
        while position < self.context_tokens and len(answer) < max_tokens:
            outputs = self._run("decode", [token], position, cache)
            token = int(outputs.pop("logits").argmax())
            cache, position = outputs, position + 1
            self.decode_tokens += 1
            if token == END_ID:
                break
            answer.append(token)
        self.decode_s += time.perf_counter() - started
        return answer

    def _prefill(self, tokens: Sequence[int], cache: dict[str, Any]) -> tuple[dict[str, Any], int]:
        """Feed tokens in the fewest chunks whose padding still fits into the context."""
        position = 0
        started = time.perf_counter()
        while position < len(tokens):
            rest = len(tokens) - position
            fitting = [n for n in self._chunk_lengths if position + n <= self.context_tokens]
            length = next((n for n in fitting if n >= rest), fitting[-1] if fitting else 1)
            chunk = list(tokens[position : position + length])
            name = f"prefill_{length}" if fitting else "decode"
            outputs = self._run(name, chunk + [0] * (length - len(chunk)), position, cache)
            outputs.pop("logits", None)
            cache, position = outputs, position + len(chunk)
        self.prefill_s += time.perf_counter() - started
        self.prefill_tokens += len(tokens)
        return cache, position

    def _run(self, signature: str, tokens: list[int], position: int, cache: dict[str, Any]) -> dict[str, Any]:
        positions = np.arange(position, position + len(tokens), dtype=np.int32)
        visible = np.arange(self.context_tokens)[None, :] <= positions[:, None]
        mask = np.where(visible, 0.0, MASKED).astype(np.float32)[None, None]
        result: dict[str, Any] = self._runners[signature](
            tokens=np.array([tokens], np.int32), input_pos=positions, mask=mask, **cache
        )
        return result


def answer_with_network(network: HomeCommandNetwork, tokenizer: Tokenizer, cases: Sequence[Case]) -> Answers:
    """Let the float network answer."""
    from edgeslm.forge.home_command.network import generate_greedily  # noqa: PLC0415
    from edgeslm.forge.home_command.tokenizer import decode, encode_prompt  # noqa: PLC0415

    texts: list[str] = []
    for start in range(0, len(cases), 250):
        prompts = [encode_prompt(tokenizer, case.text) for case in cases[start : start + 250]]
        texts += [decode(tokenizer, ids) for ids in generate_greedily(network, prompts, END_ID)]
    return Answers(texts)


def answer_with_graph(
    graph: Path, tokenizer: Tokenizer, cases: Sequence[Case], python: str = sys.executable
) -> Answers:
    """Let a graph answer, in a process of its own.

    Args:
        graph: the `.tflite` file.
        tokenizer: the model's tokenizer.
        cases: what to answer.
        python: the interpreter to use; it has ai-edge-litert or tflite-runtime.

    Raises:
        RuntimeError: the process failed; the message holds the end of what it wrote.
    """
    from edgeslm.forge.home_command.tokenizer import decode, encode_prompt  # noqa: PLC0415

    prompts = "\n".join(json.dumps(encode_prompt(tokenizer, case.text)) for case in cases)
    command = [python, "-I", str(Path(__file__).resolve()), str(graph)]
    done = subprocess.run(command, input=prompts, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr[-800:]}")
    *lines, speeds = [json.loads(line) for line in done.stdout.splitlines()]
    texts = [decode(tokenizer, ids) for ids in lines]
    return Answers(texts, speeds["decode_tokens_per_s"], speeds["prefill_tokens_per_s"])


def score(cases: Sequence[Case], answers: Answers) -> dict[str, Any]:
    """Return the figures of one candidate: `exact`, `intent`, `count`, speeds, and the misses."""
    parsed = [parse_answer(text) for text in answers.texts]
    exact = [got == case.answer for got, case in zip(parsed, cases, strict=True)]
    intent = [
        got is not None and got.get("intent") == case.answer.get("intent")
        for got, case in zip(parsed, cases, strict=True)
    ]
    misses = [
        {"text": case.text, "expected": case.answer, "got": text}
        for case, text, right in zip(cases, answers.texts, exact, strict=True)
        if not right
    ]
    return {
        "count": len(cases),
        "exact": sum(exact) / max(1, len(cases)),
        "intent": sum(intent) / max(1, len(cases)),
        "decode_tokens_per_s": answers.decode_tokens_per_s,
        "prefill_tokens_per_s": answers.prefill_tokens_per_s,
        "misses": misses,
    }


def parse_answer(text: str) -> dict[str, Any] | None:
    """Return the JSON object of an answer, or None when it is none: a wrong answer is a result here."""
    try:
        value = json.loads(text)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def read_cases(path: Path, limit: int | None = None) -> list[Case]:
    """Read `{"text", "answer"}` JSON lines; `answer` is an object or its JSON text."""
    cases = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.strip():
            continue
        row = json.loads(line)
        answer = json.loads(row["answer"]) if isinstance(row["answer"], str) else row["answer"]
        cases.append(Case(row["text"], answer))
    return cases[:limit]


def _interpreter_class() -> Any:
    for module in ("ai_edge_litert.interpreter", "tflite_runtime.interpreter"):
        try:
            return importlib.import_module(module).Interpreter
        except ImportError:
            continue
    raise ImportError(
        "neither ai-edge-litert nor tflite-runtime is installed in this Python: pip install one of them"
    )


def _serve(graph: Path) -> None:
    """Answer prompts from stdin; the last line of the output holds the speeds."""
    runner = GraphRunner(graph)
    for line in sys.stdin:
        print(json.dumps(runner.answer(json.loads(line))))
    speeds = {
        "decode_tokens_per_s": runner.decode_tokens / max(runner.decode_s, 1e-9),
        "prefill_tokens_per_s": runner.prefill_tokens / max(runner.prefill_s, 1e-9),
    }
    print(json.dumps(speeds))


if __name__ == "__main__":
    _serve(Path(sys.argv[1]))
