"""llama.cpp as a peer: a program of its own, so that it runs where llama-cpp-python is installed and nothing else is.

    python runtime_peer_llamacpp.py MODEL.gguf THREADS

Reads one JSON request a line, answers with one JSON object a line; see `benchmarks/runtime_engine.py` for the requests.
"""

import ctypes
import json
import resource
import sys
import time
from typing import Any

import llama_cpp
import numpy as np

_CONTEXT = 1024
_BATCH = 512


def main() -> None:
    """Serve requests."""
    path, threads = sys.argv[1], int(sys.argv[2])
    started = time.perf_counter()
    model = llama_cpp.Llama(
        path, n_ctx=_CONTEXT, n_batch=_BATCH, n_threads=threads, n_threads_batch=threads, verbose=False
    )
    _say({"load_s": time.perf_counter() - started, "version": llama_cpp.__version__})
    for line in sys.stdin:
        request = json.loads(line)
        _say(_OPERATIONS[request.pop("op")](model, **request))


def _say(answer: dict[str, Any]) -> None:
    print(json.dumps(answer), flush=True)


def _generate(model: Any, tokens: list[int], count: int) -> dict[str, Any]:
    """Greedy: seconds for the prompt up to the first token, and for each of the others."""
    llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(model.ctx), True)
    model.reset()
    said: list[int] = []
    marks, work = [time.perf_counter()], [time.process_time()]
    model.eval(tokens)
    vocab = model.n_vocab()
    while True:
        pointer = llama_cpp.llama_get_logits_ith(model.ctx, -1)
        logits = np.ctypeslib.as_array(ctypes.cast(pointer, ctypes.POINTER(ctypes.c_float)), shape=(vocab,))
        said.append(int(logits.argmax()))
        marks.append(time.perf_counter())
        work.append(time.process_time())
        if len(said) > count:
            break
        model.eval(said[-1:])
    return {
        "tokens": said,
        "first_s": marks[1] - marks[0],
        "decode_s": marks[-1] - marks[1],
        "first_cpu_s": work[1] - work[0],
        "decode_cpu_s": work[-1] - work[1],
        "count": count,
    }


def _schema(model: Any, prompts: list[str], schema: dict[str, Any], max_tokens: int) -> dict[str, Any]:
    grammar = llama_cpp.LlamaGrammar.from_json_schema(json.dumps(schema), verbose=False)
    texts: list[str] = []
    started, tokens = time.perf_counter(), 0
    for prompt in prompts:
        answer = model.create_completion(prompt, grammar=grammar, temperature=0.0, max_tokens=max_tokens)
        texts.append(answer["choices"][0]["text"])
        tokens += answer["usage"]["completion_tokens"]
    return {"took_s": time.perf_counter() - started, "texts": texts, "tokens": tokens}


def _memory(model: Any) -> dict[str, Any]:
    del model
    return {"peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


_OPERATIONS: dict[str, Any] = {"generate": _generate, "schema": _schema, "memory": _memory}

if __name__ == "__main__":
    main()
