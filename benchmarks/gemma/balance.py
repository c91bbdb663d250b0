"""Scales moved between weights, so that int8 loses less: the network computes what it did.

Inputs of a matrix product are quantized row by row as they come, and a few columns that are much larger than the
others leave these few steps. Dividing each column of the input by a scale and multiplying the matrix's column by it
changes no product (SmoothQuant, arXiv:2211.10438). Here no operator is added for it: the scales go into the weights of
the norm before (``qkv``, ``gate_up``, the head), into the rows of the values (``output``) or of ``up`` (``down``).

For each matrix the scales are those of a small grid with which the product of int8 input and int8 weights comes
nearest to the float one, on inputs from texts that are not measured with.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import product

import numpy as np

from benchmarks.gemma.flatgraph import Array, QuantizedMatrix
from benchmarks.gemma.reference import hidden, matrix
from benchmarks.gemma.weights import GemmaShape, Tensors

POWERS = tuple(product((0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 1.0), (0.0, 0.25, 0.5)))
"""Of the largest input and of the largest weight of a column, that are tried."""
ROWS = 384
"""Inputs that each try is judged by."""
HEAD_ROWS = 8192
"""Rows of the head that it is judged by; there are 262,144."""


def collect(shape: GemmaShape, tensors: Tensors, texts: Sequence[Sequence[int]]) -> dict[str, Array]:
    """Inputs of each matrix product over `texts`, by name; those of the head are ``head``."""
    seen: dict[str, list[Array]] = {}
    for tokens in texts:
        after = hidden(shape, tensors, tokens, lambda name, value: seen.setdefault(name, []).append(value))
        seen.setdefault("head", []).append(after)
    return {name: np.concatenate(parts) for name, parts in seen.items()}


def balance(shape: GemmaShape, tensors: Tensors, inputs: Mapping[str, Array]) -> tuple[Tensors, Array]:
    """The same network with its scales moved.

    Args:
        inputs: as :func:`collect` gives them.

    Returns:
        the tensors, in which ``embedding`` is left as it is, and the scales, (width,) float32, that its columns are
        to be multiplied by as the head; ``final_norm`` is divided by them already.
    """
    done = dict(tensors)

    def shared_by_heads(scales: Array) -> Array:
        return np.asarray(
            np.tile(scales.reshape(shape.heads, shape.head_width).max(0), shape.heads), np.float32
        )

    for layer in range(shape.layers):
        for name, parts, before in (
            ("qkv", ("query", "key", "value"), "attention_norm"),
            ("gate_up", ("gate", "up"), "feed_forward_norm"),
        ):
            scales = _best(matrix(tensors, layer, name), inputs[f"{layer}.{name}"])
            done[f"{layer}.{before}"] = np.asarray(done[f"{layer}.{before}"] / scales, np.float32)
            for part in parts:
                done[f"{layer}.{part}"] = done[f"{layer}.{part}"] * scales
        for name, before, tie in (("output", "value", shared_by_heads), ("down", "up", None)):
            scales = _best(tensors[f"{layer}.{name}"], inputs[f"{layer}.{name}"], tie)
            done[f"{layer}.{name}"] = done[f"{layer}.{name}"] * scales
            rows = scales[: len(done[f"{layer}.{before}"]), None]
            done[f"{layer}.{before}"] = np.asarray(done[f"{layer}.{before}"] / rows, np.float32)
    head = tensors["embedding"]
    chosen = np.random.default_rng(0).permutation(len(head))[:HEAD_ROWS]
    scales = _best(head[chosen], inputs["head"])
    done["final_norm"] = np.asarray(done["final_norm"] / scales, np.float32)
    return done, scales


def _best(weights: Array, inputs: Array, tie: Callable[[Array], Array] | None = None) -> Array:
    """The scales of the grid with the smallest error, the geometric mean of which is 1; ones where none is better."""
    rows = inputs[np.random.default_rng(0).permutation(len(inputs))[:ROWS]]
    wanted = rows @ weights.T
    largest = np.abs(inputs).max(0) + np.float32(1e-6), np.abs(weights).max(0) + np.float32(1e-8)
    tried = [np.ones(weights.shape[1], np.float32)]
    for of_input, of_weight in POWERS:
        scales = largest[0] ** of_input / largest[1] ** of_weight
        scales = scales if tie is None else tie(scales)
        tried.append((scales / np.exp(np.log(scales).mean())).astype(np.float32))

    def error(scales: Array) -> float:
        held = QuantizedMatrix(weights * scales)
        found = quantized_rows(rows / scales) @ (held.values * held.scales[:, None]).T
        return float(np.square(found - wanted).sum())

    return min(tried, key=error)


def quantized_rows(x: Array) -> Array:
    """`x` as XNNPACK sees it: int8 with a scale and a zero point for each row, and back."""
    low, high = np.minimum(x.min(-1, keepdims=True), 0), np.maximum(x.max(-1, keepdims=True), 0)
    step = np.where(high > low, (high - low) / np.float32(255), np.float32(1))
    zero = np.rint(np.clip(-128 - low / step, -128, 127))
    return np.asarray((np.clip(np.rint(x / step) + zero, -128, 127) - zero) * step, np.float32)
