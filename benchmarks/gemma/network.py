"""Gemma 3 as a graph that XNNPACK computes well: one step over caches that are given in and out.

What decides its speed, besides the int8 matrix products:

* keys lie by position, (context, head_width), values across it, (head_width, context). For few tokens both are the
  *left* operand of their product: XNNPACK packs the right operand anew at each call, and the right one is then the
  query or the weights of attention, a few kilobytes;
* queries, keys and values come from one matrix, and so do gate and up; queries and keys are normed and rotated as one;
* a local layer keeps a ring of positions instead of the whole context (the form is told in
  `edgeslm/runtime/buckets.py`). Rotary angles are applied before keys are kept, so the order in the ring does not
  matter.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from benchmarks.gemma.flatgraph import Array, ModelWriter, QuantizedMatrix, Subgraph, Tensor
from benchmarks.gemma.reference import matrix
from benchmarks.gemma.rounding import rounded
from benchmarks.gemma.weights import GemmaShape, Tensors

LEFT_TOKENS = 16
"""Up to so many tokens in a step the caches are left operands; with more, packing them pays."""
BLOCK = 32
"""Columns of the table that share a scale, as in the file that the weights come from (Q8_0)."""


@dataclass(frozen=True)
class LayerWeights:
    """One layer, quantized; norms in float."""

    qkv: QuantizedMatrix
    output: QuantizedMatrix
    gate_up: QuantizedMatrix
    down: QuantizedMatrix
    head_norms: Array
    attention_norm: Array
    attention_end_norm: Array
    feed_forward_norm: Array
    feed_forward_end_norm: Array


@dataclass(frozen=True)
class GemmaWeights:
    """The network, quantized."""

    shape: GemmaShape
    head: QuantizedMatrix
    table: Array
    table_scales: Array
    final_norm: Array
    layers: tuple[LayerWeights, ...]
    ones: Array
    wide_turns: tuple[Array, Array]
    local_turns: tuple[Array, Array]


def quantize(
    shape: GemmaShape, tensors: Tensors, head_scales: Array, inputs: Mapping[str, Array]
) -> GemmaWeights:
    """Int8 weights, one scale for each row.

    Args:
        head_scales: what the columns of the embedding are multiplied by as the head (see `benchmarks.gemma.balance`).
        inputs: of each matrix product of `tensors`, as `benchmarks.gemma.balance.collect` gives them.
    """

    def layer(index: int) -> LayerWeights:
        def take(*names: str) -> Array:
            return np.concatenate([tensors[f"{index}.{name}"] for name in names])

        def product(name: str) -> QuantizedMatrix:
            return rounded(matrix(tensors, index, name), inputs[f"{index}.{name}"])

        # The scale of attention, 1 / sqrt(head_width), is folded into the norm of the queries.
        query = take("query_norm") / np.float32(math.sqrt(shape.head_width))
        heads = np.stack([query] * shape.heads + [take("key_norm")])[None, None]
        return LayerWeights(
            qkv=product("qkv"),
            output=product("output"),
            gate_up=product("gate_up"),
            down=product("down"),
            head_norms=np.ascontiguousarray(heads, np.float32),
            attention_norm=take("attention_norm"),
            attention_end_norm=take("attention_end_norm"),
            feed_forward_norm=take("feed_forward_norm"),
            feed_forward_end_norm=take("feed_forward_end_norm"),
        )

    embedding = tensors["embedding"]
    blocks = (len(embedding), shape.width // BLOCK, BLOCK)
    table = QuantizedMatrix(embedding.reshape(-1, BLOCK))
    return GemmaWeights(
        shape=shape,
        head=rounded(embedding * head_scales, inputs["head"]),
        table=table.values.reshape(blocks),
        table_scales=(table.scales * np.float32(math.sqrt(shape.width))).reshape(*blocks[:2], 1),
        final_norm=tensors["final_norm"],
        layers=tuple(layer(index) for index in range(shape.layers)),
        ones=np.ones(shape.head_width, np.float32),
        wide_turns=_turns(shape.head_width, shape.rotary_base),
        local_turns=_turns(shape.head_width, shape.local_rotary_base),
    )


def _turns(head_width: int, base: float) -> tuple[Array, Array]:
    """Radians that each element turns per position, for the cosine, and with its sign for the sine."""
    half = head_width // 2
    turns = (base ** (-np.arange(half, dtype=np.float64) / half)).astype(np.float32)
    shape = (1, 1, 1, head_width)
    return np.concatenate([turns, turns]).reshape(shape), np.concatenate([-turns, turns]).reshape(shape)


class _Step:
    """One signature being written."""

    def __init__(
        self, graph: Subgraph, weights: GemmaWeights, count: int, context: int, ring: int | None
    ) -> None:
        self.graph, self.weights, self.count = graph, weights, count
        self.context, self.ring = context, min(ring or context, context)
        self.plain = ring is None
        self.zero = np.zeros(1, np.int32)

    def write(self, *, logits: bool) -> None:
        """Write inputs, layers and outputs."""
        graph, shape, count = self.graph, self.weights.shape, self.count
        tokens = graph.input("tokens", (1, count), "int32")
        input_pos = graph.input("input_pos", (count,), "int32")
        window = f"window_{shape.window}"
        masks = dict.fromkeys((True, False), graph.input("mask", (1, 1, count, self.context)))
        if not self.plain:
            masks[False] = graph.input(f"{window}_mask", (1, 1, count, self.ring))
        starts = dict.fromkeys((True, False), self._start(input_pos))
        if self.ring < self.context:
            starts[False] = self._start(graph.input(f"{window}_pos", (count,), "int32"))
        caches = [
            tuple(
                graph.input(f"kv_cache_{kind}_{index}", self._cache_shape(kind, shape.is_global(index)))
                for kind in "kv"
            )
            for index in range(shape.layers)
        ]
        flat = graph.typed(graph.reshape(tokens, (count,)), "int32")
        x = self._embed(flat)
        x = graph.reshape(x, (1, count, shape.width))
        position = graph.op("CAST", [input_pos], (count,), "CastOptions")
        position = graph.reshape(position, (1, count, 1, 1))
        angles = {
            True: self._angles(position, self.weights.wide_turns),
            False: self._angles(position, self.weights.local_turns),
        }
        for index, layer in enumerate(self.weights.layers):
            wide = shape.is_global(index)
            query, keys, values = self._look(x, layer, angles[wide], starts[wide], caches[index])
            graph.outputs |= {f"kv_cache_k_{index}": keys, f"kv_cache_v_{index}": values}
            if logits or index + 1 < shape.layers:
                x = self._layer(x, layer, self._attend(query, keys, values, masks[wide]))
        if logits:
            x = graph.norm(x, self.weights.final_norm, shape.norm_epsilon)
            graph.outputs["logits"] = self._linear(x, self.weights.head)

    def _embed(self, tokens: Tensor) -> Tensor:
        """Rows of the table, (count, width).

        It is no part of the head, whose rows have one scale each and columns scaled for its inputs: an error here is
        one of all layers, and of the table only the rows that are looked up come into memory. It stands here without
        its scales, which are looked up like it: as its quantization every signature would keep a copy of them.
        """
        graph, weights, count = self.graph, self.weights, self.count
        rows = graph.gather(graph.constant(weights.table), tokens, "int8")
        rows = graph.op("CAST", [rows], rows.shape, "CastOptions")
        scales = graph.gather(graph.constant(weights.table_scales), tokens, "float32")
        return graph.reshape(graph.binary("MUL", rows, scales), (count, weights.shape.width))

    def _cache_shape(self, kind: str, wide: bool) -> tuple[int, int, int, int]:
        places, width = self.context if wide else self.ring, self.weights.shape.head_width
        return (1, 1, places, width) if kind == "k" else (1, 1, width, places)

    def _start(self, places: Tensor) -> tuple[Tensor, Tensor]:
        """Where keys and values are written: the first of `places`, in their dimension."""
        graph = self.graph
        first = graph.typed(graph.slice(places, [0], [1]), "int32") if self.count > 1 else places
        zero = graph.constant(self.zero)
        keys = graph.typed(graph.concat([zero, zero, first, zero], 0), "int32")
        values = graph.typed(graph.concat([zero, zero, zero, first], 0), "int32")
        return keys, values

    def _angles(self, position: Tensor, turns: tuple[Array, Array]) -> tuple[Tensor, Tensor]:
        graph = self.graph
        cosine, sine = (graph.binary("MUL", position, graph.constant(turn)) for turn in turns)
        return graph.op("COS", [cosine], cosine.shape), graph.op("SIN", [sine], sine.shape)

    def _linear(self, x: Tensor, matrix: QuantizedMatrix) -> Tensor:
        return self.graph.linear(x, matrix, scaled=not self.plain)

    def _norm(self, value: Tensor, weight: Array) -> Tensor:
        return self.graph.norm(value, weight, self.weights.shape.norm_epsilon)

    def _look(
        self, x: Tensor, layer: LayerWeights, angles: tuple[Tensor, Tensor],
        start: tuple[Tensor, Tensor], caches: tuple[Tensor, ...],
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        """Queries, and the caches with keys and values written: all that the last layer of a prefill is for."""
        graph, shape, count = self.graph, self.weights.shape, self.count
        heads, width = shape.heads, shape.head_width
        mixed = self._linear(self._norm(x, layer.attention_norm), layer.qkv)
        mixed = graph.reshape(mixed, (1, count, heads + 2, width))
        turned = graph.slice(mixed, [0, 0, 0, 0], [1, count, heads + 1, width])
        turned = graph.binary("MUL", self._norm(turned, self.weights.ones), graph.constant(layer.head_norms))
        turned = self._rotate(turned, angles)
        query = graph.slice(turned, [0, 0, 0, 0], [1, count, heads, width])
        key = graph.slice(turned, [0, 0, heads, 0], [1, count, 1, width])
        value = graph.slice(mixed, [0, 0, heads + 1, 0], [1, count, 1, width])
        value = graph.reshape(value, (1, 1, count, width))
        if count > 1:
            value = graph.transpose(value, [0, 1, 3, 2])
        keys = graph.write_at(caches[0], graph.reshape(key, (1, 1, count, width)), start[0])
        values = graph.write_at(caches[1], graph.reshape(value, (1, 1, width, count)), start[1])
        return graph.reshape(query, (1, 1, count * heads, width)), keys, values

    def _layer(self, x: Tensor, layer: LayerWeights, attended: Tensor) -> Tensor:
        """What follows attention."""
        graph, shape, count = self.graph, self.weights.shape, self.count
        attended = graph.reshape(attended, (1, count, shape.heads * shape.head_width))
        x = graph.binary("ADD", x, self._norm(self._linear(attended, layer.output), layer.attention_end_norm))
        inner = self._linear(self._norm(x, layer.feed_forward_norm), layer.gate_up)
        gate, up = graph.halves(inner)
        gate = graph.op("GELU", [gate], gate.shape, "GeluOptions", approximate=True)
        down = self._linear(graph.binary("MUL", gate, up), layer.down)
        return graph.binary("ADD", x, self._norm(down, layer.feed_forward_end_norm))

    def _rotate(self, x: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
        """Turn each pair (i, i + half) by its position's angle; the sine carries the sign."""
        graph = self.graph
        left, right = graph.halves(x)
        swapped = graph.concat([right, left], 3)
        return graph.binary("ADD", graph.binary("MUL", x, angles[0]), graph.binary("MUL", swapped, angles[1]))

    def _attend(self, query: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        """Rows of `query` are tokens, and heads within tokens; the same for what is returned."""
        graph, count = self.graph, self.count
        places, rows = keys.shape[2], query.shape[2]
        few = count <= LEFT_TOKENS
        scores = (
            graph.transpose(graph.product(keys, query), [0, 1, 3, 2]) if few else graph.product(query, keys)
        )
        if count > 1:
            scores = graph.reshape(scores, (1, count, rows // count, places))
            scores = graph.binary("ADD", scores, graph.reshape(mask, (1, count, 1, places)))
            scores = graph.reshape(scores, (1, 1, rows, places))
        else:
            scores = graph.binary("ADD", scores, mask)
        weights = graph.op("SOFTMAX", [scores], scores.shape, "SoftmaxOptions", beta=1.0)
        if few:
            return graph.transpose(graph.product(values, weights), [0, 1, 3, 2])
        return graph.product(weights, values)


def add_signature(
    writer: ModelWriter,
    weights: GemmaWeights,
    name: str,
    *,
    count: int,
    context: int,
    ring: int | None,
    logits: bool,
) -> None:
    """Add signature `name`.

    Args:
        count: tokens at once.
        context: places of the caches.
        ring: places of local layers' caches, where the context is longer; ``None`` gives the community's plain form,
            with one mask for all layers, in which a local layer sees everything.
        logits: whether it gives logits, after each token.
    """
    _Step(writer.subgraph(name), weights, count, context, ring).write(logits=logits)
