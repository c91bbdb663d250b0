"""Gemma 3 in float32 with numpy: what the int8 graph is compared with, and where its inputs are looked at.

Plain and whole: one text at a time, no caches. Independent of `benchmarks.gemma.network`, but for the tensors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from benchmarks.gemma.flatgraph import Array
from benchmarks.gemma.weights import GemmaShape, Tensors

HIDDEN = np.float32(-1e30)
Tap = Callable[[str, Array], None]
"""Gets the name and the input, (tokens, columns) float32, of each matrix product."""

JOINED = {"qkv": ("query", "key", "value"), "gate_up": ("gate", "up")}
"""Matrices that are computed as one."""


def matrix(tensors: Tensors, layer: int, name: str) -> Array:
    """A matrix as it is computed: `name` is one of ``qkv``, ``output``, ``gate_up``, ``down``."""
    return np.concatenate([tensors[f"{layer}.{part}"] for part in JOINED.get(name, (name,))])


def hidden(shape: GemmaShape, tensors: Tensors, tokens: Sequence[int], tap: Tap | None = None) -> Array:
    """What the head is computed on after each of `tokens`: (tokens, width) float32."""
    count = len(tokens)
    at = np.arange(count)
    x: Array = tensors["embedding"][np.asarray(tokens)] * np.float32(math.sqrt(shape.width))
    distance = at[:, None] - at
    masks = {
        True: np.where(distance >= 0, np.float32(0), HIDDEN),
        False: np.where((distance >= 0) & (distance < shape.window), np.float32(0), HIDDEN),
    }
    turns = {
        True: _turns(shape, at, shape.rotary_base),
        False: _turns(shape, at, shape.local_rotary_base),
    }

    def norm(value: Array, name: str) -> Array:
        mean = np.square(value).mean(-1, keepdims=True)
        return np.asarray(value / np.sqrt(mean + np.float32(shape.norm_epsilon)) * tensors[name])

    def product(layer: int, name: str, value: Array) -> Array:
        if tap is not None:
            tap(f"{layer}.{name}", value)
        return value @ matrix(tensors, layer, name).T

    for layer in range(shape.layers):
        wide = shape.is_global(layer)
        mixed = product(layer, "qkv", norm(x, f"{layer}.attention_norm"))
        mixed = mixed.reshape(count, shape.heads + 2, shape.head_width)
        query = _rotate(norm(mixed[:, : shape.heads], f"{layer}.query_norm"), turns[wide])
        key = _rotate(norm(mixed[:, shape.heads : shape.heads + 1], f"{layer}.key_norm"), turns[wide])[:, 0]
        scores = query.transpose(1, 0, 2) @ key.T / np.float32(math.sqrt(shape.head_width)) + masks[wide]
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        attended = (weights @ mixed[:, -1]).transpose(1, 0, 2).reshape(count, -1)
        x = x + norm(product(layer, "output", attended), f"{layer}.attention_end_norm")
        inner = product(layer, "gate_up", norm(x, f"{layer}.feed_forward_norm"))
        gate, up = inner[:, : shape.inner_width], inner[:, shape.inner_width :]
        bent = np.tanh(np.float32(math.sqrt(2 / math.pi)) * (gate + np.float32(0.044715) * gate**3))
        down = product(layer, "down", np.float32(0.5) * gate * (1 + bent) * up)
        x = x + norm(down, f"{layer}.feed_forward_end_norm")
    return norm(x, "final_norm")


def likeliest(tensors: Tensors, after: Array) -> list[int]:
    """The likeliest next token for each row of what :func:`hidden` gave."""
    blocks = np.array_split(after, max(1, len(after) // 128))
    return [int(token) for block in blocks for token in (block @ tensors["embedding"].T).argmax(1)]


def _turns(shape: GemmaShape, at: Array, base: float) -> tuple[Array, Array]:
    half = shape.head_width // 2
    angles = at[:, None] * base ** (-np.arange(half) / half)
    return np.cos(angles).astype(np.float32)[:, None], np.sin(angles).astype(np.float32)[:, None]


def _rotate(x: Array, turns: tuple[Array, Array]) -> Array:
    half = x.shape[-1] // 2
    left, right = x[..., :half], x[..., half:]
    cosine, sine = turns
    return np.concatenate([left * cosine - right * sine, right * cosine + left * sine], -1)
