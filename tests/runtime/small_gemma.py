"""A small random network in the form of Gemma, for tests that compute."""

import numpy as np

from benchmarks.gemma.balance import collect
from benchmarks.gemma.network import quantize
from benchmarks.gemma.weights import GemmaShape

SHAPE = GemmaShape(
    layers=4, width=32, heads=2, head_width=16, inner_width=48, vocab=96, window=12, rotary_base=1e6,
    norm_epsilon=1e-6, global_every=2,
)  # fmt: skip
CONTEXTS = (16, 32, 64)
CHUNK = 8
RING = SHAPE.window + CHUNK
LIMIT = 0.35
"""Logits may differ by as much where sums are taken in another order: int8 rounding makes steps of what was a hair."""


def raw_tensors(seed=5):
    rng = np.random.default_rng(seed)

    def matrix(rows, columns):
        return rng.normal(0, columns**-0.5, (rows, columns)).astype(np.float32)

    heads, width, inner, wide = SHAPE.heads, SHAPE.width, SHAPE.inner_width, SHAPE.head_width
    tensors = {"embedding": matrix(SHAPE.vocab, width) * 4, "final_norm": np.ones(width, np.float32)}
    for layer in range(SHAPE.layers):
        sizes = {
            "query": (heads * wide, width), "key": (wide, width), "value": (wide, width),
            "output": (width, heads * wide), "gate": (inner, width), "up": (inner, width), "down": (width, inner),
        }  # fmt: skip
        norms = {
            "query_norm": wide, "key_norm": wide, "attention_norm": width, "attention_end_norm": width,
            "feed_forward_norm": width, "feed_forward_end_norm": width,
        }  # fmt: skip
        tensors |= {f"{layer}.{name}": matrix(*size) for name, size in sizes.items()}
        tensors |= {f"{layer}.{name}": np.ones(size, np.float32) for name, size in norms.items()}
    return tensors


def weights(seed=5):
    tensors = raw_tensors(seed)
    inputs = collect(SHAPE, tensors, [tokens(64, seed=2)])
    return quantize(SHAPE, tensors, np.ones(SHAPE.width, np.float32), inputs)


def tokens(count, seed=1):
    return [int(token) for token in np.random.default_rng(seed).integers(1, SHAPE.vocab, count)]


def step_by_step(engine, ids):
    return np.stack([engine.step(token).copy() for token in ids])
