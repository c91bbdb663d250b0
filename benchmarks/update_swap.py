"""How long no prompt can begin while one version of the model that ships takes the place of another."""

from __future__ import annotations

import itertools
import tempfile
import threading
from pathlib import Path

from benchmarks.report import Found
from benchmarks.update_device_rig import NAME, make_release, measure_swap
from edgeslm.agent.serving import ServedModels
from edgeslm.models.store import ModelStore
from edgeslm.runtime.model import LoadedModel, load_model
from edgeslm.schema.installed import InstalledPackage
from edgeslm.schema.message import Options

_PROMPT = "turn on the kitchen light"
_TIMES = 10


def measure_swaps(quick: bool) -> Found:
    """Swap there and back, beside and in place, under a prompt after the other."""
    with tempfile.TemporaryDirectory(prefix="edgeslm-swap-") as scratch:
        directory = Path(scratch)
        store, cache = ModelStore(directory / "models"), directory / "cache"
        one, other = (
            store.install(make_release(directory / "depot", version, golden=4).path)
            for version in ("1.0.1", "1.1.0")
        )

        def load(installed: InstalledPackage) -> LoadedModel:
            return load_model(installed, cache_dir=cache)

        served = ServedModels({NAME: load(one)}, load)
        ended = threading.Event()
        answered = itertools.count()

        def ask() -> None:
            while not ended.is_set():
                with served.hold(NAME) as model:
                    model.answer(_PROMPT, Options())
                next(answered)

        asking = threading.Thread(target=ask, name="prompts")
        asking.start()
        try:
            swap_s = measure_swap(served, one, other, 2 if quick else _TIMES)
        finally:
            ended.set()
            asking.join()
    return {"swap_s": swap_s, "swap_detail": {"answered_meanwhile": next(answered)}}
