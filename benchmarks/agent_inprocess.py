"""The peer of the agent figures: the model alone, in a process of its own. ``ModelWorker`` starts it.

One JSON object a line: requests on stdin, what they took on stdout.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from edgeslm.cli.wiring import open_model
from edgeslm.schema.message import Options


def main() -> None:
    """Load the model named first, in the store named second, and answer until stdin ends."""
    model = open_model(sys.argv[1], threads=1, store_dir=Path(sys.argv[2]))
    print(json.dumps({"runtime": model.runtime_name}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        options = Options.model_validate(request["options"])
        started_s = time.perf_counter()
        generation = model.answer(request["prompt"], options).generation
        wall_ms = (time.perf_counter() - started_s) * 1e3
        tokens = len(generation.token_ids)
        tps = (tokens - 1) / generation.decode_s if tokens > 1 and generation.decode_s > 0 else None
        print(
            json.dumps({"wall_ms": wall_ms, "text": generation.text, "tokens": tokens, "decode_tps": tps}),
            flush=True,
        )


if __name__ == "__main__":
    main()
