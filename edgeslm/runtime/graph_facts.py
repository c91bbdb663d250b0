"""What stands in a graph's file, read without a runtime: operations, sizes of tensors, signatures.

Only what says how much memory a graph takes and which operations it needs; numbers of weights are never touched. The
file comes from outside, so each offset in it is checked, and a file that leads nowhere is an error.

Source: the TensorFlow Lite schema, version 3 (``tensorflow/lite/schema/schema.fbs``), for the places of the fields;
FlatBuffers internals for the encoding.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from edgeslm.errors import ModelLoadError
from edgeslm.runtime.backend import check_flatbuffer

_MAX_ITEMS = 1_000_000
_ITEM_BYTES = {
    0: 4,
    1: 2,
    2: 4,
    3: 1,
    4: 8,
    6: 1,
    7: 2,
    8: 8,
    9: 1,
    10: 8,
    11: 16,
    12: 8,
    15: 4,
    16: 2,
    18: 2,
}
"""Bytes of an item of each ``TensorType``; of strings, resources and variants nothing is known."""
_HALF_BYTE = {17, 19}
"""``INT4`` and ``UINT4``: two in a byte."""
_CUSTOM = 32


@dataclass(frozen=True)
class TensorFacts:
    """One tensor.

    Attributes:
        size_bytes: of what it holds; 0 where its type says nothing of that.
        constant: number of the buffer in the file that holds it; ``None`` for what is computed.
    """

    size_bytes: int
    constant: int | None


@dataclass(frozen=True)
class OperationFacts:
    """One step of a subgraph.

    Attributes:
        code: number of the built-in operation.
        custom: name of one that is not built in.
        inputs, outputs: places of tensors in the subgraph; -1 for none.
    """

    code: int
    custom: str | None
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


@dataclass(frozen=True)
class SubgraphFacts:
    """One subgraph; most signatures have their own."""

    tensors: tuple[TensorFacts, ...]
    operations: tuple[OperationFacts, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


@dataclass(frozen=True)
class GraphFacts:
    """A graph's file.

    Attributes:
        size_bytes: of the file.
        signatures: subgraph and inputs (name to place of the tensor) of each signature.
    """

    size_bytes: int
    subgraphs: tuple[SubgraphFacts, ...]
    signatures: dict[str, tuple[int, dict[str, int]]]

    @property
    def custom_operations(self) -> tuple[str, ...]:
        """Names of the operations that are not built in, sorted."""
        return tuple(sorted({op.custom for sub in self.subgraphs for op in sub.operations if op.custom}))


def read_graph(path: Path) -> GraphFacts:
    """The facts of the graph at `path`.

    Raises:
        ModelLoadError: unreadable, no TFLite flatbuffer, or damaged.
    """
    check_flatbuffer(path)
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _graph(_Buffer(data))
    except OSError as error:
        raise ModelLoadError(f"cannot read graph: {error.strerror}", path=str(path)) from error
    except (struct.error, IndexError, ValueError, RecursionError) as error:
        raise ModelLoadError(
            f"{path.name} is damaged: an offset in it leads nowhere",
            path=str(path),
            hint="Copy it again: edgeslm model verify compares every file with its digest",
        ) from error


class _Buffer:
    """A flatbuffer: tables are known by their position."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data = data
        self.size = len(data)

    def number(self, form: str, position: int) -> int:
        if not 0 <= position < self.size:
            raise IndexError(position)
        value: int = struct.unpack_from(form, self.data, position)[0]
        return value

    def field(self, table: int, index: int) -> int:
        """Position of a field, 0 where the table does not have it."""
        vtable = table - self.number("<i", table)
        slot = 4 + 2 * index
        if slot >= self.number("<H", vtable):
            return 0
        offset = self.number("<H", vtable + slot)
        return table + offset if offset else 0

    def scalar(self, table: int, index: int, form: str, default: int = 0) -> int:
        position = self.field(table, index)
        return self.number(form, position) if position else default

    def reference(self, table: int, index: int) -> int:
        position = self.field(table, index)
        return position + self.number("<I", position) if position else 0

    def count(self, vector: int) -> int:
        if not vector:
            return 0
        count = self.number("<I", vector)
        if count > _MAX_ITEMS:
            raise ValueError("a list beyond all measure")
        return count

    def length(self, table: int, index: int) -> int:
        """Bytes of a vector of bytes: of weights, so without a limit."""
        vector = self.reference(table, index)
        return self.number("<I", vector) if vector else 0

    def tables(self, table: int, index: int) -> Iterator[int]:
        vector = self.reference(table, index)
        for item in range(self.count(vector)):
            position = vector + 4 + 4 * item
            yield position + self.number("<I", position)

    def numbers(self, table: int, index: int) -> tuple[int, ...]:
        vector = self.reference(table, index)
        count = self.count(vector)
        return struct.unpack_from(f"<{count}i", self.data, vector + 4) if count else ()

    def text(self, table: int, index: int) -> str:
        vector = self.reference(table, index)
        count = self.count(vector)
        return self.data[vector + 4 : vector + 4 + count].decode("utf-8", "replace") if count else ""


def _graph(buffer: _Buffer) -> GraphFacts:
    model = buffer.number("<I", 0)
    codes = []
    for code in buffer.tables(model, 1):
        number = max(buffer.scalar(code, 0, "<b"), buffer.scalar(code, 3, "<i"))
        codes.append((number, buffer.text(code, 1) or None if number == _CUSTOM else None))
    filled = [
        buffer.length(item, 0) > 0 or buffer.scalar(item, 1, "<Q") > 1 for item in buffer.tables(model, 4)
    ]
    return GraphFacts(
        size_bytes=buffer.size,
        subgraphs=tuple(_subgraph(buffer, table, codes, filled) for table in buffer.tables(model, 2)),
        signatures={
            buffer.text(table, 2): (
                buffer.scalar(table, 4, "<I"),
                {buffer.text(entry, 0): buffer.scalar(entry, 1, "<I") for entry in buffer.tables(table, 0)},
            )
            for table in buffer.tables(model, 7)
        },
    )


def _subgraph(
    buffer: _Buffer, table: int, codes: list[tuple[int, str | None]], filled: list[bool]
) -> SubgraphFacts:
    operations = []
    for op in buffer.tables(table, 3):
        code, custom = codes[buffer.scalar(op, 0, "<I")]
        operations.append(OperationFacts(code, custom, buffer.numbers(op, 1), buffer.numbers(op, 2)))
    return SubgraphFacts(
        tensors=tuple(_tensor(buffer, tensor, filled) for tensor in buffer.tables(table, 0)),
        operations=tuple(operations),
        inputs=buffer.numbers(table, 1),
        outputs=buffer.numbers(table, 2),
    )


def _tensor(buffer: _Buffer, table: int, filled: list[bool]) -> TensorFacts:
    kind = buffer.scalar(table, 1, "<b")
    items = 1
    for size in buffer.numbers(table, 0):
        items *= max(size, 0)
    size_bytes = (items + 1) // 2 if kind in _HALF_BYTE else items * _ITEM_BYTES.get(kind, 0)
    number = buffer.scalar(table, 2, "<I")
    return TensorFacts(size_bytes, number if filled[number] else None)
