"""This runtime as one of the engines that the benchmark compares: a process of its own, as the peers have.

    python -m benchmarks.runtime_engine PACKAGE THREADS STORE

Requests, one JSON object a line; each is answered with one:

* ``generate``: `tokens` and `count`: greedy from an empty cache, by single steps;
* ``write``: `tokens` and `count`: greedy by the generation loop, with all that makes it faster;
* ``schema``: `prompts`, `schema`, `max_tokens`: whole greedy answers held to the schema;
* ``follow``: `tokens`: the likeliest token after each of them, by single steps from an empty cache;
* ``prefix``: `prefix` and `suffixes`: seconds to the first token, for the first and for those after it;
* ``memory``: the peak so far.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgeslm.cli import wiring
from edgeslm.runtime.engine import Engine
from edgeslm.runtime.generation import GenerationSettings, generate
from edgeslm.runtime.model import LoadedModel, load_model
from edgeslm.runtime.prefix_cache import PrefixCache
from edgeslm.runtime.speculation import Pace
from edgeslm.schema.message import Options

LIBRARIES = ("ai_edge_litert.compiled_model", "ai_edge_litert.interpreter", "sentencepiece")
"""Imported before the clock starts, as the peers have imported theirs."""


class Child:
    """Serves requests with one model."""

    def __init__(self, package: str, threads: int, store: Path) -> None:
        installed = wiring.install_package(package, store)
        for library in LIBRARIES:
            importlib.import_module(library)
        started = time.perf_counter()
        self.model: LoadedModel = load_model(installed, threads=threads, cache_dir=store / "cache")
        self.load_s = time.perf_counter() - started
        self.engine: Engine = self.model.engine
        self.pace = Pace()
        self.operations: dict[str, Callable[..., dict[str, Any]]] = {
            "generate": self.generate,
            "write": self.write,
            "schema": self.schema,
            "follow": self.follow,
            "prefix": self.prefix,
            "memory": self.memory,
        }

    def generate(self, tokens: list[int], count: int) -> dict[str, Any]:
        """Greedy, by single steps."""
        engine = self.engine
        started, work = time.perf_counter(), time.process_time()
        engine.reset()
        logits = engine.append(tokens)
        said = [int(logits.argmax())]
        first, first_work = time.perf_counter(), time.process_time()
        while len(said) <= count:
            said.append(int(engine.step(said[-1]).argmax()))
        return {
            "tokens": said,
            "first_s": first - started,
            "decode_s": time.perf_counter() - first,
            "first_cpu_s": first_work - work,
            "decode_cpu_s": time.process_time() - first_work,
            "count": count,
        }

    def write(self, tokens: list[int], count: int) -> dict[str, Any]:
        """Greedy, by the generation loop."""
        settings = GenerationSettings(max_tokens=count + 1, stop_tokens=frozenset())
        found = generate(self.engine, self.model.tokenizer, tokens, settings, pace=self.pace)
        return {
            "tokens": list(found.token_ids),
            "first_s": found.first_token_s,
            "decode_s": found.decode_s,
            "count": len(found.token_ids) - 1,
            "guessed": found.guessed_tokens,
            "confirmed": found.confirmed_tokens,
        }

    def follow(self, tokens: list[int]) -> dict[str, Any]:
        """What would be said after each token of a text."""
        self.engine.reset()
        return {"tokens": [int(self.engine.step(token).argmax()) for token in tokens]}

    def schema(self, prompts: list[str], schema: dict[str, Any], max_tokens: int) -> dict[str, Any]:
        """Answers held to a schema."""
        options = Options(json_schema=schema, max_tokens=max_tokens)
        started = time.perf_counter()
        found = [self.model.answer(prompt, options).generation for prompt in prompts]
        return {
            "took_s": time.perf_counter() - started,
            "texts": [one.text for one in found],
            "tokens": sum(len(one.token_ids) for one in found),
            "forced": sum(one.forced_tokens for one in found),
        }

    def prefix(self, prefix: list[int], suffixes: list[list[int]]) -> dict[str, Any]:
        """First tokens after a prefix that is computed once."""
        cache = PrefixCache(self.model.fingerprint)
        self.engine.reset()
        taken = []
        for suffix in suffixes:
            ids = [*prefix, *suffix]
            started = time.perf_counter()
            cache.prefill(self.engine, ids)
            self.engine.step(ids[-1]).argmax()
            taken.append(time.perf_counter() - started)
        return {"first_s": taken}

    def memory(self) -> dict[str, Any]:
        """Peak of the process so far."""
        return {"peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def main() -> None:
    """Serve requests."""
    child = Child(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
    version = importlib.metadata.version("ai-edge-litert")
    _say({"load_s": child.load_s, "version": f"ai-edge-litert {version}"})
    for line in sys.stdin:
        request = json.loads(line)
        _say(child.operations[request.pop("op")](**request))


def _say(answer: dict[str, Any]) -> None:
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
