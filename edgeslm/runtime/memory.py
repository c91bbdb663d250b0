"""How much memory a model will take, from its graph's file. Pure.

What is predicted is by how much the process grows until the golden vector is computed and the tokenizer loaded:

* what of the graph's file stays mapped: weights that were packed are given back by ``CompiledModel``, and kept by the
  ``Interpreter``; of a table only the rows come in that are looked up, and the system takes them back when it is short;
* the weights in the order that the processor's kernels want: once where signatures share them, else once for each
  signature, and room to turn the largest of them;
* intermediate results: for each signature the most that lives at one time;
* KV caches: once where they are buffers updated in place; else as arrays, and as each signature's inputs and outputs;
* what the runtime keeps for each operation and tensor, the tokenizer, and the code of the libraries.

The constants are measured on x86-64 with ai-edge-litert 2.3; a test holds the sum against a real process.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edgeslm.runtime.buckets import KV_PREFIX
from edgeslm.runtime.graph_facts import GraphFacts, SubgraphFacts

_PACKED = frozenset({3, 4, 9, 67, 126})
"""Operations whose weights are packed: CONV_2D, DEPTHWISE_CONV_2D, FULLY_CONNECTED, TRANSPOSE_CONV, BATCH_MATMUL."""
_LOOKED_UP = {36: 0, 7: 1}
"""Operations that take rows of a table, and which input that is: GATHER, EMBEDDING_LOOKUP."""
_PART_BYTES = 1_370
"""Kept by the runtime for each operation and each tensor: 3,000 additions in a row make 8.2 MB."""
_COMPILED_BYTES = 29_000_000
"""What the libraries of ``CompiledModel`` take while they load and compute, 7 MB of it ml_dtypes 0.7 (0.6: 1 MB)."""
_INTERPRETER_BYTES = 15_900_000
"""The same for ``Interpreter``."""
_TOKENIZER_LIBRARY_BYTES = 5_000_000
_TOKENIZER_FACTOR = 8
"""Memory of a tokenizer for each byte of its file."""


@dataclass(frozen=True)
class MemoryNeed:
    """Bytes by which a process grows when it loads its first model.

    Attributes:
        graph_bytes: what stays mapped of the file.
        packed_bytes: weights in the order of the kernels.
        arena_bytes: intermediate results, and what the runtime keeps for each operation.
        cache_bytes: KV caches.
        tokenizer_bytes: the tokenizer.
        library_bytes: the libraries; a process that has loaded a model has them already.
    """

    graph_bytes: int
    packed_bytes: int
    arena_bytes: int
    cache_bytes: int
    tokenizer_bytes: int
    library_bytes: int

    @property
    def total_bytes(self) -> int:
        """All of it."""
        return self.model_bytes + self.library_bytes

    @property
    def model_bytes(self) -> int:
        """What is the model's own."""
        return (
            self.graph_bytes + self.packed_bytes + self.arena_bytes + self.cache_bytes + self.tokenizer_bytes
        )


def of_bundle(size_bytes: int) -> MemoryNeed:
    """What a bundle takes of which only the whole is known."""
    return MemoryNeed(size_bytes, 0, 0, 0, 0, 0)


def predict(graph: GraphFacts, tokenizer_bytes: int, *, in_place: bool) -> MemoryNeed:
    """What loading `graph` will take.

    Args:
        tokenizer_bytes: size of the tokenizer's file; 0 where there is none.
        in_place: signatures share packed weights, and caches are updated in place (``CompiledModel``); otherwise each
            signature of the longest context packs for itself.
    """
    used = [(graph.subgraphs[index], inputs) for index, inputs in graph.signatures.values()]
    used = used or [(subgraph, {}) for subgraph in graph.subgraphs[:1]]
    caches = [_cache_bytes(subgraph, inputs) for subgraph, inputs in used]
    longest = max(caches, default=0)
    if not in_place:
        used = [entry for entry, size in zip(used, caches, strict=True) if size == longest]
    weights = [_weights(subgraph) for subgraph, _ in used]
    shared = {number: size for each in weights for number, size in each.items()}
    once = sum(shared.values())
    parts = sum(len(subgraph.operations) + len(subgraph.tensors) for subgraph in graph.subgraphs)
    live = sum(_live_bytes(subgraph) for subgraph, _ in used)
    stays = graph.size_bytes - _table_bytes([subgraph for subgraph, _ in used], frozenset(shared))
    library = _COMPILED_BYTES if in_place else _INTERPRETER_BYTES
    return MemoryNeed(
        graph_bytes=max(stays - once, 0) if in_place else stays,
        packed_bytes=once if in_place else sum(sum(each.values()) for each in weights),
        arena_bytes=parts * _PART_BYTES + live + max(shared.values(), default=0),
        cache_bytes=longest if in_place else longest * (1 + 2 * len(used)),
        tokenizer_bytes=_TOKENIZER_FACTOR * tokenizer_bytes,
        library_bytes=library + (_TOKENIZER_LIBRARY_BYTES if tokenizer_bytes else 0),
    )


def _cache_bytes(subgraph: SubgraphFacts, inputs: Mapping[str, int]) -> int:
    return sum(
        subgraph.tensors[place].size_bytes for name, place in inputs.items() if name.startswith(KV_PREFIX)
    )


def _weights(subgraph: SubgraphFacts) -> dict[int, int]:
    """Size of each buffer of the file that is packed."""
    found = {}
    for operation in subgraph.operations:
        if operation.code in _PACKED:
            for place in operation.inputs:
                tensor = subgraph.tensors[place] if place >= 0 else None
                if tensor is not None and tensor.constant is not None:
                    found[tensor.constant] = tensor.size_bytes
    return found


def _table_bytes(used: Sequence[SubgraphFacts], packed: frozenset[int]) -> int:
    """Size of the constants that nothing needs but operations that look rows up."""
    tables: dict[int, int] = {}
    others = set(packed)
    for subgraph in used:
        for operation in subgraph.operations:
            for at, place in enumerate(operation.inputs):
                tensor = subgraph.tensors[place] if place >= 0 else None
                if tensor is None or tensor.constant is None:
                    continue
                if _LOOKED_UP.get(operation.code) == at:
                    tables[tensor.constant] = tensor.size_bytes
                else:
                    others.add(tensor.constant)
    return sum(size for number, size in tables.items() if number not in others)


def _live_bytes(subgraph: SubgraphFacts) -> int:
    """The most that intermediate results take at one time: each lives from what makes it to its last use."""
    outside = {*subgraph.inputs, *subgraph.outputs}
    last = {
        place: step
        for step, operation in enumerate(subgraph.operations)
        for place in (*operation.inputs, *operation.outputs)
    }
    live = peak = 0
    for step, operation in enumerate(subgraph.operations):
        live += sum(subgraph.tensors[place].size_bytes for place in operation.outputs if place not in outside)
        peak = max(peak, live)
        ending = {place for place in (*operation.inputs, *operation.outputs) if last.get(place) == step}
        live -= sum(
            subgraph.tensors[place].size_bytes
            for place in ending
            if place >= 0 and place not in outside and subgraph.tensors[place].constant is None
        )
    return peak
