"""Writing a TFLite file operator by operator: several signatures over one set of weights.

What is written is what runs: no tracer or converter stands between, so the shapes and the order of operands that
XNNPACK likes stay as they are put down here, and eight signatures take seconds. The operators are those that a Gemma
graph needs. Form: the TFLite schema, as the `ai-edge-litert` package carries it.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

schema: Any = importlib.import_module("ai_edge_litert.schema_py_generated")
flatbuffers: Any = importlib.import_module("flatbuffers")

_ALIGNMENT = 16
"""Bytes: what the schema asks of every buffer (``force_align: 16``)."""

_TYPES = {"float32": "FLOAT32", "int32": "INT32", "int8": "INT8"}


class _AlignedBuffer(schema.BufferT):  # type: ignore[misc]  # the library has no types
    """A buffer whose bytes start at a multiple of 16, which the library's own packing does not see to."""

    def Pack(self, builder: Any) -> int:  # noqa: N802 - the library calls it so
        if self.data is None:
            return int(super().Pack(builder))
        raw = np.ascontiguousarray(self.data).reshape(-1).view(np.uint8)
        builder.StartVector(1, raw.size, _ALIGNMENT)
        builder.head -= raw.size
        builder.Bytes[builder.head : builder.head + raw.size] = raw.data
        data = builder.EndVector()
        schema.BufferStart(builder)
        schema.BufferAddData(builder, data)
        return int(schema.BufferEnd(builder))


class _SharedQuantization(schema.QuantizationParametersT):  # type: ignore[misc]
    """Scales that many tensors refer to, written once."""

    def __init__(self, scales: Array) -> None:
        super().__init__(scale=scales, zeroPoint=np.zeros(len(scales), np.int64), quantizedDimension=0)
        self._written: tuple[Any, int] | None = None

    def Pack(self, builder: Any) -> int:  # noqa: N802 - the library calls it so
        if self._written is None or self._written[0] is not builder:
            self._written = (builder, int(super().Pack(builder)))
        return self._written[1]


class Tensor:
    """A tensor of one subgraph: where it stands there, and its shape."""

    def __init__(self, index: int, shape: tuple[int, ...]) -> None:
        self.index = index
        self.shape = shape


class QuantizedMatrix:
    """Int8 weights with one scale for each row.

    Attributes:
        values: (rows, columns) int8.
        scales: (rows,) float32.
    """

    def __init__(self, weights: npt.NDArray[np.float32]) -> None:
        """Quantize (rows, columns) float32 weights, symmetric, to -127..127."""
        largest = np.abs(weights).max(axis=1)
        self.scales = np.where(largest > 0, largest / 127.0, 1.0).astype(np.float32)
        self.values = np.rint(weights / self.scales[:, None]).astype(np.int8)
        self.with_scales = _SharedQuantization(self.scales)


_STEPS = _SharedQuantization(np.ones(1, np.float32))
"""For int8 weights whose scales are multiplied by afterwards."""


class ModelWriter:
    """Collects signatures and writes the file."""

    def __init__(self) -> None:
        self._model = schema.ModelT()
        self._model.version = 3
        self._model.description = "edgeslm"
        self._model.buffers = [schema.BufferT()]  # the first one is empty by convention
        self._model.operatorCodes = []
        self._model.subgraphs = []
        self._model.signatureDefs = []
        self._codes: dict[tuple[str, int], int] = {}
        self._buffers: dict[int, tuple[Array, int]] = {}
        self._ints: dict[tuple[int, ...], Array] = {}
        self._norms: dict[tuple[tuple[int, ...], float], int] = {}
        self._entries: list[Subgraph] = []

    def subgraph(self, name: str) -> Subgraph:
        """A new, empty subgraph that becomes the signature `name`."""
        graph = Subgraph(self, name)
        self._entries.append(graph)
        return graph

    def buffer(self, array: Array) -> int:
        """Index of the buffer that holds `array`; the same array is stored once."""
        if id(array) not in self._buffers:
            holder = _AlignedBuffer()
            holder.data = array
            self._model.buffers.append(holder)
            self._buffers[id(array)] = (array, len(self._model.buffers) - 1)
        return self._buffers[id(array)][1]

    def ints(self, values: Sequence[int]) -> Array:
        """An array with `values`, the same one each time: shapes and places are few, and told by most operators."""
        return self._ints.setdefault(tuple(values), np.array(values, np.int32))

    def code(self, name: str, version: int) -> int:
        """Index of an operator."""
        if (name, version) not in self._codes:
            code = schema.OperatorCodeT()
            code.builtinCode = getattr(schema.BuiltinOperator, name)
            code.deprecatedBuiltinCode = min(code.builtinCode, 127)
            code.version = version
            self._model.operatorCodes.append(code)
            self._codes[name, version] = len(self._model.operatorCodes) - 1
        return self._codes[name, version]

    def norm_body(self, shape: tuple[int, ...], epsilon: float) -> Subgraph:
        """What a runtime computes that doesn't know RMSNorm as one operator."""
        body = Subgraph(self, "odml.rms_norm.impl")
        x, weight = body.input("x", shape), body.input("weight", shape[-1:])
        mean = body.op(
            "MEAN", [body.binary("MUL", x, x), body.constant(np.array([-1], np.int32))], (*shape[:-1], 1),
            "ReducerOptions", keepDims=True,
        )  # fmt: skip
        shifted = body.binary("ADD", mean, body.constant(np.array([epsilon], np.float32)))
        normed = body.binary("MUL", x, body.op("RSQRT", [shifted], shifted.shape))
        body.outputs = {"y": body.binary("MUL", normed, weight)}
        return body

    def norm_index(self, shape: tuple[int, ...], epsilon: float) -> int:
        """A key for the body of a norm, turned into its subgraph's index when the file is written."""
        if (shape, epsilon) not in self._norms:
            self._norms[shape, epsilon] = len(self._norms)
        return self._norms[shape, epsilon]

    def write(self, path: Path) -> None:
        """Write the file."""
        bodies = [self.norm_body(*key) for key in self._norms]
        graphs = [*self._entries, *bodies]
        for graph in graphs:
            self._model.subgraphs.append(graph.packed(first_body=len(self._entries)))
        for index, graph in enumerate(self._entries):
            self._model.signatureDefs.append(graph.signature(index))
        builder = flatbuffers.Builder(1 << 20)
        builder.Finish(self._model.Pack(builder), file_identifier=b"TFL3")
        path.write_bytes(builder.Output())


class Subgraph:
    """One signature's operators, in order."""

    def __init__(self, writer: ModelWriter, name: str) -> None:
        self._writer = writer
        self.name = name
        self._graph = schema.SubGraphT()
        self._graph.name = name
        self._graph.tensors = []
        self._graph.operators = []
        self._inputs: dict[str, Tensor] = {}
        self.outputs: dict[str, Tensor] = {}
        self._constants: dict[int, Tensor] = {}
        self._composites: list[Any] = []

    def _tensor(self, name: str, shape: Sequence[int], dtype: str, buffer: int = 0) -> Tensor:
        tensor = schema.TensorT()
        tensor.name = name
        tensor.shape = list(shape)
        tensor.type = getattr(schema.TensorType, _TYPES[dtype])
        tensor.buffer = buffer
        self._graph.tensors.append(tensor)
        return Tensor(len(self._graph.tensors) - 1, tuple(shape))

    def input(self, name: str, shape: Sequence[int], dtype: str = "float32") -> Tensor:
        """An input of the signature."""
        self._inputs[name] = self._tensor(f"{self.name}_{name}", shape, dtype)
        return self._inputs[name]

    def constant(self, array: Array) -> Tensor:
        """A constant; the same array is one tensor."""
        key = id(array)
        if key not in self._constants:
            buffer = self._writer.buffer(array)
            self._constants[key] = self._tensor(f"constant_{buffer}", array.shape, str(array.dtype), buffer)
        return self._constants[key]

    def op(
        self, name: str, inputs: Sequence[Tensor | None], shape: Sequence[int],
        options: str | None = None, /, *, version: int = 1, **fields: Any,
    ) -> Tensor:  # fmt: skip
        """Append operator `name`; its only output is a float32 tensor of `shape`.

        Args:
            options: class of the schema that holds the operator's `fields`.
        """
        return self._append(name, inputs, [shape], options, version, fields)[0]

    def _append(
        self, name: str, inputs: Sequence[Tensor | None], shapes: Sequence[Sequence[int]],
        options: str | None, version: int, fields: Mapping[str, Any],
    ) -> list[Tensor]:  # fmt: skip
        # Short names: the runtime keeps up to 15 characters without asking for memory.
        made = [self._tensor(f"t{len(self._graph.tensors)}", shape, "float32") for shape in shapes]
        operator = schema.OperatorT()
        operator.opcodeIndex = self._writer.code(name, version)
        operator.inputs = [-1 if tensor is None else tensor.index for tensor in inputs]
        operator.outputs = [tensor.index for tensor in made]
        if options is not None:
            value = getattr(schema, f"{options}T")()
            for field, content in fields.items():
                setattr(value, field, content)
            operator.builtinOptionsType = getattr(schema.BuiltinOptions, options)
            operator.builtinOptions = value
        self._graph.operators.append(operator)
        return made

    def binary(self, name: str, left: Tensor, right: Tensor) -> Tensor:
        """``ADD`` or ``MUL``, with broadcasting."""
        options = {"ADD": "AddOptions", "MUL": "MulOptions"}[name]
        return self.op(name, [left, right], np.broadcast_shapes(left.shape, right.shape), options)

    def reshape(self, x: Tensor, shape: Sequence[int]) -> Tensor:
        """The same values in another shape."""
        if tuple(shape) == x.shape:
            return x
        return self.op("RESHAPE", [x, self._ints(shape)], shape, "ReshapeOptions", newShape=list(shape))

    def transpose(self, x: Tensor, order: Sequence[int]) -> Tensor:
        """Dimensions of `x` in another order."""
        return self.op(
            "TRANSPOSE", [x, self._ints(order)], [x.shape[place] for place in order], "TransposeOptions"
        )

    def slice(self, x: Tensor, begin: Sequence[int], shape: Sequence[int]) -> Tensor:
        """The block of `x` that begins at `begin`."""
        return self.op("SLICE", [x, self._ints(begin), self._ints(shape)], shape, "SliceOptions")

    def halves(self, x: Tensor) -> list[Tensor]:
        """The two halves of `x` along its last dimension."""
        half = (*x.shape[:-1], x.shape[-1] // 2)
        axis = self._ints([len(x.shape) - 1])
        return self._append("SPLIT", [axis, x], [half, half], "SplitOptions", 1, {"numSplits": 2})

    def gather(self, table: Tensor, rows: Tensor, dtype: str) -> Tensor:
        """Rows of `table` (rows, columns), which holds `dtype`."""
        shape = (*rows.shape, *table.shape[1:])
        version = 2 if dtype == "int8" else 1
        return self.typed(self.op("GATHER", [table, rows], shape, "GatherOptions", version=version), dtype)

    def concat(self, parts: Sequence[Tensor], axis: int) -> Tensor:
        """Parts one after the other along `axis`."""
        shape = list(parts[0].shape)
        shape[axis] = sum(part.shape[axis] for part in parts)
        return self.op("CONCATENATION", parts, shape, "ConcatenationOptions", axis=axis)

    def linear(self, x: Tensor, matrix: QuantizedMatrix, *, scaled: bool) -> Tensor:
        """`x` times the transposed matrix; `x` is quantized row by row as it comes.

        Args:
            scaled: the product's rows get their scales by an operator after it, which gives the same values. As the
                weights' own quantization each signature would read and keep a copy of them: of all matrices some
                330,000, in each of eight signatures 3 MB and a tenth of the time that a load takes.
        """
        key = id(matrix)
        if key not in self._constants:
            buffer = self._writer.buffer(matrix.values)
            made = self._tensor(f"matrix_{buffer}", matrix.values.shape, "int8", buffer)
            self._graph.tensors[made.index].quantization = _STEPS if scaled else matrix.with_scales
            self._constants[key] = made
        y = self.op(
            "FULLY_CONNECTED", [x, self._constants[key], None], (*x.shape[:-1], matrix.values.shape[0]),
            "FullyConnectedOptions", version=5, keepNumDims=True,
        )  # fmt: skip
        return self.binary("MUL", y, self.constant(matrix.scales)) if scaled else y

    def product(self, left: Tensor, right: Tensor) -> Tensor:
        """`left` (..., a, k) times the transposed `right` (..., b, k): (..., a, b)."""
        return self.op(
            "BATCH_MATMUL",
            [left, right],
            (*left.shape[:-1], right.shape[-2]),
            "BatchMatMulOptions",
            adjY=True,
        )

    def write_at(self, cache: Tensor, update: Tensor, start: Tensor) -> Tensor:
        """`cache` with `update` written over it from `start` (one int32 for each dimension) on."""
        return self.op(
            "DYNAMIC_UPDATE_SLICE", [cache, update, start], cache.shape, "DynamicUpdateSliceOptions"
        )

    def norm(self, x: Tensor, weight: Array, epsilon: float) -> Tensor:
        """RMSNorm over the last dimension, marked as a composite."""
        made = self.op("STABLEHLO_COMPOSITE", [x, self.constant(weight)], x.shape)
        options = schema.StableHLOCompositeOptionsT()
        options.name = "odml.rms_norm"
        options.decompositionSubgraphIndex = self._writer.norm_index(x.shape, epsilon)
        options.compositeAttributes = list(_attributes({"epsilon": epsilon}))
        operator = self._graph.operators[-1]
        operator.builtinOptions2Type = schema.BuiltinOptions2.StableHLOCompositeOptions
        operator.builtinOptions2 = options
        self._composites.append(options)
        return made

    def typed(self, x: Tensor, dtype: str) -> Tensor:
        """`x`, declared to hold `dtype` instead of float32."""
        self._graph.tensors[x.index].type = getattr(schema.TensorType, _TYPES[dtype])
        return x

    def _ints(self, values: Sequence[int]) -> Tensor:
        return self.constant(self._writer.ints(values))

    def packed(self, first_body: int) -> Any:
        """The schema's object; bodies of composites begin at subgraph `first_body`."""
        for options in self._composites:
            options.decompositionSubgraphIndex += first_body
        self._graph.inputs = [tensor.index for tensor in self._inputs.values()]
        self._graph.outputs = [tensor.index for tensor in self.outputs.values()]
        return self._graph

    def signature(self, index: int) -> Any:
        """The signature's entry."""
        entry = schema.SignatureDefT()
        entry.signatureKey = self.name
        entry.subgraphIndex = index
        entry.inputs = _tensor_maps(self._inputs)
        entry.outputs = _tensor_maps(self.outputs)
        return entry


def _tensor_maps(tensors: Mapping[str, Tensor]) -> list[Any]:
    maps = []
    for name, tensor in tensors.items():
        entry = schema.TensorMapT()
        entry.name = name
        entry.tensorIndex = tensor.index
        maps.append(entry)
    return maps


def _attributes(values: Mapping[str, float]) -> bytes:
    """A composite's attributes as a FlexBuffer."""
    flexbuffers: Any = importlib.import_module("flatbuffers.flexbuffers")
    builder = flexbuffers.Builder()
    with builder.Map():
        for name, value in values.items():
            builder.Float(name, value)
    return bytes(builder.Finish())
