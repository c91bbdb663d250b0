"""Gemma 3 as a graph that XNNPACK computes well: one step over caches that are given in and out.

What decides its speed, besides the int8 matrix products:

* keys lie by position, (context, head_width), values across it, (head_width, context), and both are the *left* operand
  of their product: XNNPACK packs the right operand anew at each call, and the right one is here the query or the
  weights of attention, a few kilobytes;
* queries, keys and values come from one matrix, and so do gate and up;
* a local layer keeps a ring of positions instead of the whole context: written at `ring_pos`, seen through
  `ring_mask`. Rotary angles are applied before keys are kept, so the order within the ring does not matter.

RMSNorm is marked as a composite, which XNNPACK computes as one operator.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.gemma.weights import GemmaShape, Tensors

Caches = dict[str, Tensor]


class Norm(nn.Module):  # type: ignore[misc]  # torch is not read by mypy here
    """RMSNorm as a composite."""

    def __init__(self, weight: Tensor, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.register_buffer("ones", torch.ones_like(weight), persistent=False)
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        """Normalize the last dimension."""
        from litert_torch.generative.layers.normalization import rms_norm_with_hlfb  # noqa: PLC0415

        normed: Tensor = rms_norm_with_hlfb(x, self.weight, self.epsilon, self.ones)
        return normed


def _linear(*matrices: Any) -> nn.Linear:
    weight = torch.from_numpy(np.concatenate(matrices))
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight = nn.Parameter(weight, requires_grad=False)
    return layer


class Layer(nn.Module):  # type: ignore[misc]
    """Attention, then feed-forward, each between two norms and beside a residual."""

    def __init__(self, shape: GemmaShape, tensors: Tensors, index: int) -> None:
        super().__init__()

        def take(name: str) -> Any:
            return tensors[f"{index}.{name}"]

        def norm(name: str, scale: float = 1.0) -> Norm:
            return Norm(torch.from_numpy(take(name) * np.float32(scale)), shape.norm_epsilon)

        self.shape = shape
        self.qkv = _linear(take("query"), take("key"), take("value"))
        self.output = _linear(take("output"))
        self.gate_up = _linear(take("gate"), take("up"))
        self.down = _linear(take("down"))
        self.attention_norm = norm("attention_norm")
        self.attention_end_norm = norm("attention_end_norm")
        self.feed_forward_norm = norm("feed_forward_norm")
        self.feed_forward_end_norm = norm("feed_forward_end_norm")
        # The scale of attention, 1 / sqrt(head_width), is folded into the norm of the query.
        self.query_norm = norm("query_norm", 1.0 / math.sqrt(shape.head_width))
        self.key_norm = norm("key_norm")

    def forward(
        self, x: Tensor, angles: tuple[Tensor, Tensor], mask: Tensor, at: Tensor, keys: Tensor, values: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Apply the layer to `x: (1, n, width)`; returns it with both caches updated from place `at` on."""
        heads, head_width = self.shape.heads, self.shape.head_width
        count = x.shape[1]
        mixed = self.qkv(self.attention_norm(x))
        query = mixed[..., : heads * head_width].reshape(1, count, heads, head_width)
        key = mixed[..., heads * head_width : (heads + 1) * head_width].reshape(1, count, 1, head_width)
        value = mixed[..., (heads + 1) * head_width :]
        query = _rotate(self.query_norm(query), *angles).permute(0, 2, 1, 3)
        query = query.reshape(1, 1, heads * count, head_width)
        key = _rotate(self.key_norm(key), *angles).reshape(1, 1, count, head_width)
        value = value.reshape(1, count, head_width).permute(0, 2, 1).reshape(1, 1, head_width, count)
        keys = _write(keys, key, at, 2)
        values = _write(values, value, at, 3)
        attended = _attend(query, keys, values, mask, count)
        attended = attended.reshape(1, heads, count, head_width).permute(0, 2, 1, 3)
        x = x + self.attention_end_norm(self.output(attended.reshape(1, count, heads * head_width)))
        inner = self.gate_up(self.feed_forward_norm(x))
        width = self.shape.inner_width
        gated = functional.gelu(inner[..., :width], approximate="tanh") * inner[..., width:]
        return x + self.feed_forward_end_norm(self.down(gated)), keys, values

LEFT = True

def _attend(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor, count: int) -> Tensor:
    """(1, 1, heads * count, head_width); `mask: (1, 1, count, places)` is added to the scores."""
    from litert_torch.generative.custom_ops.bmm_4d import bmm_4d  # noqa: PLC0415

    places = keys.shape[2]
    rows = query.shape[2]
    if not LEFT:
        sc = bmm_4d(query, keys)
        sc = (sc.reshape(1, rows // count, count, places) + mask).reshape(1, 1, rows, places)
        return bmm_4d(functional.softmax(sc, dim=-1), values)
    scores = bmm_4d(keys, query).permute(0, 1, 3, 2)
    scores = (scores.reshape(1, rows // count, count, places) + mask).reshape(1, 1, rows, places)
    weights = functional.softmax(scores, dim=-1)
    mixed: Tensor = bmm_4d(values, weights).permute(0, 1, 3, 2)
    return mixed


def _write(cache: Tensor, update: Tensor, at: Tensor, dimension: int) -> Tensor:
    from litert_torch.generative.custom_ops.dynamic_update_slice import dynamic_update_slice  # noqa: PLC0415

    zero = torch.zeros([], dtype=torch.int32)
    start = at[0].reshape([])
    written: Tensor = dynamic_update_slice(
        cache, update, [start if place == dimension else zero for place in range(4)]
    )
    return written


def _rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Turn each pair (i, i + half) of `x: (1, n, heads, head_width)` by its position's angle."""
    half = x.shape[-1] // 2
    left, right = x[..., :half], x[..., half:]
    return torch.cat((left * cosine - right * sine, right * cosine + left * sine), dim=-1)


class Gemma(nn.Module):  # type: ignore[misc]
    """The network for one signature.

    Args of the constructor:
        logits: ``none`` (prefill), ``last`` or ``all`` of the positions given in.
        ring: whether local layers keep rings; else they see the context through `ring_mask` as well.
    """

    def __init__(self, shape: GemmaShape, tensors: Tensors, *, with_logits: bool) -> None:
        super().__init__()
        self.shape = shape
        self.with_logits = with_logits
        table = torch.from_numpy(tensors["embedding"])
        self.embedding = nn.Embedding(*table.shape, _weight=table)
        self.head = nn.Linear(table.shape[1], table.shape[0], bias=False)
        self.head.weight = self.embedding.weight
        self.layers = nn.ModuleList(Layer(shape, tensors, index) for index in range(shape.layers))
        self.final_norm = Norm(torch.from_numpy(tensors["final_norm"]), shape.norm_epsilon)
        self.register_buffer("slow", _frequencies(shape.head_width, shape.rotary_base), persistent=False)
        self.register_buffer("fast", _frequencies(shape.head_width, shape.local_rotary_base), persistent=False)

    def forward(
        self,
        tokens: Tensor,
        input_pos: Tensor,
        mask: Tensor,
        ring_pos: Tensor,
        ring_mask: Tensor,
        kv_cache: Caches,
    ) -> dict[str, Tensor]:
        """One step over `tokens: (1, n)`."""
        x = self.embedding(tokens) * math.sqrt(self.shape.width)
        position = input_pos.float().reshape(1, -1, 1, 1)
        angles = {True: _angles(position * self.slow), False: _angles(position * self.fast)}
        result: dict[str, Tensor] = {}
        for index, layer in enumerate(self.layers):
            wide = self.shape.is_global(index)
            keys, values = kv_cache[f"k_{index}"], kv_cache[f"v_{index}"]
            at, seen = (input_pos, mask) if wide else (ring_pos, ring_mask)
            x, keys, values = layer(x, angles[wide], seen, at, keys, values)
            result[f"kv_cache_k_{index}"], result[f"kv_cache_v_{index}"] = keys, values
        if self.with_logits:
            result["logits"] = self.head(self.final_norm(x))
        return result


def _frequencies(head_width: int, base: float) -> Tensor:
    half = head_width // 2
    return base ** (-torch.arange(half, dtype=torch.float32) / half)


def _angles(angle: Tensor) -> tuple[Tensor, Tensor]:
    return angle.cos(), angle.sin()


def example(shape: GemmaShape, count: int, context: int, ring: int) -> dict[str, Any]:
    """Inputs of the form that a signature of `count` tokens at `context` positions has."""
    caches: Caches = {}
    for index in range(shape.layers):
        places = context if shape.is_global(index) else min(ring, context)
        caches[f"k_{index}"] = torch.zeros(1, 1, places, shape.head_width)
        caches[f"v_{index}"] = torch.zeros(1, 1, shape.head_width, places)
    return {
        "tokens": torch.zeros(1, count, dtype=torch.int32),
        "input_pos": torch.arange(count, dtype=torch.int32),
        "mask": torch.zeros(1, 1, count, context),
        "ring_pos": torch.arange(count, dtype=torch.int32),
        "ring_mask": torch.zeros(1, 1, count, min(ring, context)),
        "kv_cache": caches,
    }
