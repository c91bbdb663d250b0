"""LiteRT-LM as a peer: a program of its own, so that it runs where litert-lm-api is installed and nothing else is.

    python runtime_peer_litert_lm.py MODEL.litertlm THREADS CACHE_DIR

Reads one JSON request a line, answers with one JSON object a line. It takes its figures with the library's own
benchmark, which computes made-up tokens.
"""

import importlib.metadata
import json
import resource
import sys
import time
from typing import Any

import litert_lm
from litert_lm.benchmark import Benchmark

_CONTEXT = 1024


def main() -> None:
    """Serve requests."""
    path, threads, cache = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    backend = litert_lm.Backend.CPU(thread_count=threads)
    started = time.perf_counter()
    engine = litert_lm.Engine(path, backend=backend, cache_dir=cache, max_num_tokens=_CONTEXT)
    load_s = time.perf_counter() - started
    del engine
    _say({"load_s": load_s, "version": importlib.metadata.version("litert-lm-api")})
    for line in sys.stdin:
        request = json.loads(line)
        if request["op"] == "memory":
            _say({"peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024})
            continue
        found = Benchmark(
            model_path=path,
            backend=backend,
            prefill_tokens=len(request["tokens"]),
            decode_tokens=request["count"],
            max_num_tokens=_CONTEXT,
            cache_dir=cache,
        ).run()
        prefill, decode = found.last_prefill_tokens_per_second, found.last_decode_tokens_per_second
        _say(
            {
                "first_s": len(request["tokens"]) / prefill,
                "decode_s": request["count"] / decode,
                "count": request["count"],
            }
        )


def _say(answer: dict[str, Any]) -> None:
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
