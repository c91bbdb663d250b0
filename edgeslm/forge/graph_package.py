"""A package around a single ``.tflite`` file that takes arrays: its golden vector is computed here, once.

The inputs of the golden vector are drawn from the range that each input can hold, so that a kernel that computes
rubbish shows; what the graph makes of them on this machine is what devices must get too.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import edgeslm
from edgeslm.errors import BadRequestError, ModelLoadError, TooLargeError
from edgeslm.runtime.arrays import MAX_LISTED, Array, to_wire
from edgeslm.runtime.backend import choose_runtime, native_output_hidden
from edgeslm.runtime.tensor import TensorGraph, TensorSpec

SEED = 20240601
MAX_PROOF_NUMBERS = 2**18
"""Most numbers of a golden vector: it is part of the manifest."""
_STEPS = 2
"""Quantisation steps that kernels of different processors may be apart."""
_SHARE = 1e-3
"""Share of the largest output that sums in another order may be apart."""
_LEAST = 1e-6
_DRAWS = 8
_MIB = 2**20


def draft_package(
    graph: Path,
    *,
    name: str,
    version: str,
    license_name: str,
    labels: Sequence[str] = (),
    description: str = "",
) -> dict[str, Any]:
    """The draft of a manifest for :func:`edgeslm.models.packing.pack`, whose one member is `graph`.

    Args:
        labels: what its scores are for; the package is for task ``classify`` then, else for ``tensor``.
        license_name: SPDX identifier of the graph's licence.

    Raises:
        ModelLoadError: it cannot be opened, has no golden vector, or as many scores as labels.
    """
    runtime = choose_runtime()
    with native_output_hidden():
        opened = TensorGraph(graph, runtime)
        inputs, outputs = _golden(opened, graph)
    scored = next(iter(outputs))
    if labels and outputs[scored].size != len(labels):
        raise ModelLoadError(
            f"{graph.name} has {outputs[scored].size} scores, and there are {len(labels)} labels",
            path=str(graph),
            hint="Give one label a line, in the order of the scores",
        )
    takes = "; ".join(map(str, opened.inputs.values()))
    gives = "; ".join(map(str, opened.outputs.values()))
    spec: dict[str, Any] = {
        "file": graph.name,
        "runtimes": ["litert", "tflite-runtime"],
        "quantization": "/".join(sorted({item.dtype for item in opened.inputs.values()})) + " in",
        "proof": {
            "inputs": _plain(inputs, is_input=True),
            "outputs": _plain(outputs, is_input=False),
            "atol": _tolerance(opened.outputs, outputs),
        },
    }
    if labels and len(outputs) > 1:
        spec["output"] = scored
    draft: dict[str, Any] = {
        "format": 1,
        "name": name,
        "version": version,
        "task": "classify" if labels else "tensor",
        "description": description or f"Takes {takes}. Gives {gives}.",
        "graphs": [spec],
        "requires": {
            "ram_mb": math.ceil(2 * graph.stat().st_size / _MIB),
            "agent": edgeslm.__version__,
        },
        "licenses": [{"spdx": license_name, "of": graph.name}],
    }
    return {**draft, "labels": list(labels)} if labels else draft


def name_of(path: Path) -> str:
    """A name for a package from that of its file."""
    return re.sub(r"[^a-z0-9]+", "-", path.stem.lower()).strip("-")[:64] or "graph"


def _golden(opened: TensorGraph, path: Path) -> tuple[dict[str, Array], dict[str, Array]]:
    chance = np.random.default_rng(SEED)
    found: dict[str, Array] = {}
    for _ in range(_DRAWS):
        inputs = {name: _draw(spec, chance) for name, spec in opened.inputs.items()}
        if sum(array.size for array in inputs.values()) > MAX_PROOF_NUMBERS:
            raise ModelLoadError(
                f"{path.name} takes more than {MAX_PROOF_NUMBERS} numbers, too many for a golden vector",
                path=str(path),
            )
        try:
            found = opened.run(inputs)
        except (BadRequestError, TooLargeError) as error:
            raise ModelLoadError(f"{path.name}: no golden vector: {error}", path=str(path)) from error
        if any(array.any() for array in found.values()):
            break
    if not any(array.any() for array in found.values()):
        raise ModelLoadError(
            f"{path.name} gives nothing but zeros, whatever it gets",
            path=str(path),
            hint="Some runtimes compute zeros for layers that they do not know; try another",
        )
    if not all(np.isfinite(array).all() for array in found.values()):
        raise ModelLoadError(f"{path.name} gives numbers that are not finite", path=str(path))
    return inputs, found


def _draw(spec: TensorSpec, chance: np.random.Generator) -> Array:
    shape = tuple(max(size, 1) for size in spec.shape)
    if spec.quantization is not None:
        limits = np.iinfo(np.dtype(spec.dtype))
        scales, zeros = spec.quantization.along(len(shape))
        low = np.max(scales * (max(limits.min, -32768) - zeros.astype(np.float64)))
        high = np.min(scales * (min(limits.max, 32767) - zeros.astype(np.float64)))
        drawn = chance.uniform(low, high, shape)
    elif spec.dtype.startswith("float"):
        drawn = chance.uniform(-1, 1, shape)
    else:
        return chance.integers(0, 2, shape).astype(spec.dtype)
    # As half precision, which the manifest holds in full, and in half the room.
    return drawn.astype(np.float16).astype(np.float32)


def _plain(arrays: Mapping[str, Array], *, is_input: bool) -> dict[str, Any]:
    total = sum(array.size for array in arrays.values())
    if is_input and total > MAX_LISTED:
        arrays = {
            name: array.astype(np.float16) if array.dtype.kind == "f" else array
            for name, array in arrays.items()
        }
    found = to_wire(arrays, as_bytes=total > MAX_LISTED)
    return {
        name: value if isinstance(value, list) else value.model_dump(mode="json")
        for name, value in found.items()
    }


def _tolerance(specs: Mapping[str, TensorSpec], outputs: Mapping[str, Array]) -> float:
    steps = [
        max(spec.quantization.scales) * _STEPS for spec in specs.values() if spec.quantization is not None
    ]
    largest = max(float(np.abs(array.astype(np.float64)).max()) for array in outputs.values() if array.size)
    return float(f"{max([*steps, largest * _SHARE, _LEAST]):.6g}")
