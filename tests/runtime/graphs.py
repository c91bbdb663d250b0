"""Small graphs, written tensor by tensor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as fb

TYPES = {
    "float32": fb.TensorType.FLOAT32,
    "int8": fb.TensorType.INT8,
    "uint8": fb.TensorType.UINT8,
    "int32": fb.TensorType.INT32,
    "string": fb.TensorType.STRING,
}


@dataclass
class Tensor:
    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"
    scales: tuple[float, ...] = ()
    zeros: tuple[int, ...] = ()
    axis: int = 0
    data: Any = None
    is_open: bool = False


@dataclass
class Op:
    code: int
    inputs: Sequence[int]
    outputs: Sequence[int]
    options_type: int = 0
    options: Any = None
    custom: str | None = None


@dataclass
class Graph:
    tensors: list[Tensor]
    ops: list[Op]
    inputs: Sequence[int]
    outputs: Sequence[int]
    signatures: dict[str, tuple[dict[str, int], dict[str, int]]] = field(default_factory=dict)

    def write(self, path: Path) -> Path:
        model = fb.ModelT()
        model.version = 3
        model.buffers = [fb.BufferT()]
        model.operatorCodes = []
        model.signatureDefs = []
        sub = fb.SubGraphT()
        sub.tensors, sub.operators = [], []
        sub.inputs, sub.outputs = list(self.inputs), list(self.outputs)
        for tensor in self.tensors:
            made = fb.TensorT()
            made.name, made.shape, made.type = tensor.name, list(tensor.shape), TYPES[tensor.dtype]
            if tensor.is_open:
                made.shapeSignature = [-1, *tensor.shape[1:]]
            if tensor.scales:
                made.quantization = fb.QuantizationParametersT()
                made.quantization.scale, made.quantization.zeroPoint = list(tensor.scales), list(tensor.zeros)
                made.quantization.quantizedDimension = tensor.axis
            if tensor.data is not None:
                buffer = fb.BufferT()
                buffer.data = np.frombuffer(np.asarray(tensor.data, tensor.dtype).tobytes(), np.uint8)
                made.buffer = len(model.buffers)
                model.buffers.append(buffer)
            sub.tensors.append(made)
        for op in self.ops:
            code = fb.OperatorCodeT()
            code.builtinCode, code.deprecatedBuiltinCode, code.version = op.code, min(op.code, 127), 1
            code.customCode = op.custom
            made_op = fb.OperatorT()
            made_op.opcodeIndex = len(model.operatorCodes)
            made_op.inputs, made_op.outputs = list(op.inputs), list(op.outputs)
            made_op.builtinOptionsType, made_op.builtinOptions = op.options_type, op.options
            model.operatorCodes.append(code)
            sub.operators.append(made_op)
        for key, (inputs, outputs) in self.signatures.items():
            signature = fb.SignatureDefT()
            signature.signatureKey, signature.subgraphIndex = key, 0
            signature.inputs = [_named(name, index) for name, index in inputs.items()]
            signature.outputs = [_named(name, index) for name, index in outputs.items()]
            model.signatureDefs.append(signature)
        model.subgraphs = [sub]
        builder = flatbuffers.Builder(1024)
        builder.Finish(model.Pack(builder), b"TFL3")
        path.write_bytes(builder.Output())
        return path


def _named(name: str, index: int) -> Any:
    made = fb.TensorMapT()
    made.name, made.tensorIndex = name, index
    return made


def dense_int8(weights: Any, path: Path, *, is_open: bool = False, signatures: bool = True) -> Path:
    """(1, n) int8 -> (1, m) int8 of `weights` (m, n): input scale 0.5 zero 3, weights 0.25, output 1.0 zero -2."""
    rows, columns = np.asarray(weights).shape
    options = fb.FullyConnectedOptionsT()
    return Graph(
        [
            Tensor("serving_default_x:0", (1, columns), "int8", (0.5,), (3,), is_open=is_open),
            Tensor("weights", (rows, columns), "int8", (0.25,), (0,), data=weights),
            Tensor("bias", (rows,), "int32", (0.125,), (0,), data=np.zeros(rows)),
            Tensor("y", (1, rows), "int8", (1.0,), (-2,), is_open=is_open),
        ],
        [
            Op(
                fb.BuiltinOperator.FULLY_CONNECTED,
                (0, 1, 2),
                (3,),
                fb.BuiltinOptions.FullyConnectedOptions,
                options,
            )
        ],
        (0,),
        (3,),
        {"serving_default": ({"x": 0}, {"y": 3})} if signatures else {},
    ).write(path)


def add_floats(path: Path, shape: tuple[int, ...] = (1, 3)) -> Path:
    """``sum`` of ``a`` and ``b``, without a signature."""
    return Graph(
        [Tensor("a", shape), Tensor("b", shape), Tensor("sum", shape)],
        [Op(fb.BuiltinOperator.ADD, (0, 1), (2,), fb.BuiltinOptions.AddOptions, fb.AddOptionsT())],
        (0, 1),
        (2,),
    ).write(path)


def custom_operation(path: Path, name: str) -> Path:
    """A graph of one operation that is not built in."""
    return Graph(
        [Tensor("x", (1, 3)), Tensor("y", (1, 3))],
        [Op(fb.BuiltinOperator.CUSTOM, (0,), (1,), custom=name)],
        (0,),
        (1,),
        {"decode": ({"x": 0}, {"y": 1})},
    ).write(path)
