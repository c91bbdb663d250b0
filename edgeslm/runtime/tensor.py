"""Any TFLite graph that takes arrays and gives arrays: real numbers outside, whatever it is quantised to inside.

What always holds: names, shapes and kinds are checked before the graph sees an array; a graph that was refused an
input is as it was. One call may carry a batch: rows go through together where the graph's first dimension is open,
one by one where it is fixed at one.

Left to others: which package (:mod:`edgeslm.runtime.model`), and what an array means.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeslm.errors import BadRequestError, InferenceError, ModelLoadError, TooLargeError
from edgeslm.runtime.backend import Runtime, open_interpreter
from edgeslm.runtime.quantization import Floats, Quantization, dequantize, quantize

MAX_ELEMENTS = 16 * 2**20
"""Most numbers in one input; more would be an attack on the memory of a board."""
MAX_BATCH = 256

_KINDS = frozenset(["float32", "float16", "int8", "uint8", "int16", "uint16", "int32", "int64", "bool"])
_PREFIX, _SUFFIX = "serving_default_", ":0"

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class TensorSpec:
    """One input or output.

    Attributes:
        shape: -1 where a dimension is open.
        dtype: what lies in the graph; outside it is float32 where it is quantised.
        quantization: none where the numbers are what they say.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    quantization: Quantization | None

    @property
    def outside(self) -> str:
        """The kind of number that a caller sees."""
        return "float32" if self.quantization is not None else self.dtype

    def __str__(self) -> str:
        sizes = " x ".join("any" if size < 0 else str(size) for size in self.shape) or "one number"
        return f"{self.name} ({sizes}, {self.outside})"


class TensorGraph:
    """A graph, ready to compute on one thread.

    Attributes:
        inputs: by name, in the graph's order.
        outputs: by name, in the graph's order.
    """

    def __init__(self, path: Path, runtime: Runtime, threads: int = 1, signature: str | None = None) -> None:
        """Open the graph.

        Args:
            signature: which of its signatures; without one its only one, or the graph itself where it has none.

        Raises:
            ModelLoadError: it cannot be opened, or an input or output is of a kind that is not served.
            RuntimeMissingError: the runtime cannot be imported.
        """
        self._path = path
        self._interpreter = open_interpreter(path, runtime, threads)
        self._runner = self._choose(signature)
        self.inputs = self._specs(self._details("input"))
        self.outputs = self._specs(self._details("output"))
        self._allocated: dict[str, tuple[int, ...]] = {}

    def _choose(self, signature: str | None) -> Any:
        known = self._interpreter.get_signature_list()
        if signature is None and len(known) != 1:
            if known:
                raise self._fault(
                    f"it has several signatures: {', '.join(sorted(known)[:8])}", "Name one of them"
                )
            return None
        name = signature or next(iter(known))
        if name not in known:
            raise self._fault(
                f"it has no signature {name!r}", f"It has: {', '.join(sorted(known)[:8]) or 'none'}"
            )
        return self._interpreter.get_signature_runner(name)

    def _fault(self, text: str, hint: str | None = None) -> ModelLoadError:
        return ModelLoadError(f"{self._path.name}: {text}", path=str(self._path), hint=hint)

    def _details(self, side: str) -> dict[str, dict[str, Any]]:
        if self._runner is not None:
            details: dict[str, dict[str, Any]] = getattr(self._runner, f"get_{side}_details")()
            return details
        found = getattr(self._interpreter, f"get_{side}_details")()
        return {_plain_name(detail["name"]): detail for detail in found}

    def _specs(self, details: Mapping[str, dict[str, Any]]) -> dict[str, TensorSpec]:
        return {name: self._spec(name, detail) for name, detail in details.items()}

    def _spec(self, name: str, detail: Mapping[str, Any]) -> TensorSpec:
        dtype = np.dtype(detail["dtype"]).name if detail["dtype"] is not np.bytes_ else "string"
        if dtype not in _KINDS:
            raise self._fault(f"tensor {name!r} holds {dtype}", f"Served are {', '.join(sorted(_KINDS))}")
        if detail.get("sparsity_parameters"):
            raise self._fault(f"tensor {name!r} is sparse", "Only dense tensors can go in and out")
        given = detail.get("quantization_parameters") or {}
        scales = [float(scale) for scale in given.get("scales", ())]
        quantization = None
        if scales and dtype.startswith(("int", "uint")):
            zeros = [int(zero) for zero in given["zero_points"]]
            try:
                quantization = Quantization(tuple(scales), tuple(zeros), int(given["quantized_dimension"]))
            except ValueError as error:
                raise self._fault(
                    f"tensor {name!r} is quantised in a way that makes no sense: {error}"
                ) from error
        shape = detail.get("shape_signature", detail["shape"])
        return TensorSpec(name, tuple(int(size) for size in shape), dtype, quantization)

    def run(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        """Compute the outputs for `arrays`.

        Args:
            arrays: one for each input, of its shape, a first dimension of one left out or not; for a batch with one
                more dimension, or a longer first one.

        Returns:
            One array for each output: float32 where it is quantised in the graph. Of a batch, the rows in order.

        Raises:
            BadRequestError: a name, a shape or a number that the graph does not take.
            TooLargeError: more numbers, or rows, than are taken at once.
            InferenceError: the runtime fails.
        """
        self._check_names(arrays)
        arrays = {name: _with_row(self.inputs[name].shape, array) for name, array in arrays.items()}
        rows = self._count_rows(arrays)
        if rows is None:
            return self._compute(
                {name: self._inward(self.inputs[name], array) for name, array in arrays.items()}
            )
        computed = [
            self._compute(
                {name: self._inward(self.inputs[name], array[row]) for name, array in arrays.items()}
            )
            for row in range(rows)
        ]
        return {name: _join([one[name] for one in computed]) for name in self.outputs}

    def _check_names(self, arrays: Mapping[str, Array]) -> None:
        if arrays.keys() != self.inputs.keys():
            wrong = sorted(arrays.keys() - self.inputs.keys())[:4]
            lacking = sorted(self.inputs.keys() - arrays.keys())[:4]
            what = [f"unknown: {', '.join(name[:64] for name in wrong)}"] if wrong else []
            what += [f"lacking: {', '.join(lacking)}"] if lacking else []
            raise BadRequestError(
                f"inputs are not the model's ({'; '.join(what)})",
                hint="It takes " + ", ".join(map(str, self.inputs.values())),
            )
        for name, array in arrays.items():
            if array.size > MAX_ELEMENTS:
                raise TooLargeError(
                    f"input {name} has {array.size} numbers, at most {MAX_ELEMENTS} are taken",
                    actual=int(array.size),
                    limit=MAX_ELEMENTS,
                    unit="numbers",
                )

    def _count_rows(self, arrays: Mapping[str, Array]) -> int | None:
        """How many calls the arrays are, where they are a batch that the graph does not take whole.

        Rows of ``array[row]`` then have the shape of the input, or that without its first dimension of one.
        """
        if all(_fits(self.inputs[name].shape, array.shape) for name, array in arrays.items()):
            return None
        counts = set()
        for name, array in arrays.items():
            shape = self.inputs[name].shape
            is_stacked = array.ndim == len(shape) + 1 and _fits(shape, array.shape[1:])
            is_longer = shape[:1] == (1,) and array.ndim == len(shape) and _fits(shape[1:], array.shape[1:])
            if not (is_stacked or is_longer):
                raise BadRequestError(
                    f"input {name} has the shape {'x'.join(map(str, array.shape)) or 'of one number'}",
                    hint=f"The model takes {self.inputs[name]}, or a batch of it",
                )
            counts.add(array.shape[0])
        if len(counts) != 1:
            raise BadRequestError(f"the inputs have different numbers of rows: {sorted(counts)[:8]}")
        rows = int(counts.pop())
        if not 1 <= rows <= MAX_BATCH:
            raise TooLargeError(
                f"a batch of {rows} rows, 1 to {MAX_BATCH} are taken",
                actual=rows,
                limit=MAX_BATCH,
                unit="rows",
            )
        return rows

    def _inward(self, spec: TensorSpec, array: Array) -> Array:
        """`array` as the graph takes it: quantised, of the kind and rank of the input."""
        if array.ndim == len(spec.shape) - 1:
            array = array[None]
        if spec.quantization is not None or spec.dtype.startswith("float"):
            if array.dtype.kind not in "fiub":
                raise BadRequestError(f"input {spec.name} holds {array.dtype}, not numbers")
            with np.errstate(over="ignore"):
                real: Floats = array.astype(np.float32)
            if spec.quantization is None:
                return real.astype(spec.dtype)
            try:
                return quantize(real, spec.quantization, np.dtype(spec.dtype))
            except ValueError as error:
                raise BadRequestError(f"input {spec.name}: {error}", hint="Send finite numbers") from error
        with np.errstate(invalid="ignore"):
            exact = array.astype(spec.dtype)
        if array.dtype.kind not in "fiub" or not np.array_equal(exact, array):
            raise BadRequestError(f"input {spec.name} holds numbers that are no {spec.dtype}")
        return exact

    def _compute(self, arrays: dict[str, Array]) -> dict[str, Array]:
        try:
            found = self._run_signature(arrays) if self._runner is not None else self._run_plain(arrays)
        except (ValueError, RuntimeError) as error:
            raise InferenceError(f"{self._path.name} failed while computing: {str(error)[:300]}") from error
        return {
            name: array if spec.quantization is None else dequantize(array, spec.quantization)
            for name, spec, array in ((name, self.outputs[name], found[name]) for name in self.outputs)
        }

    def _run_signature(self, arrays: dict[str, Array]) -> dict[str, Array]:
        found: dict[str, Array] = self._runner(**arrays)
        return found

    def _run_plain(self, arrays: dict[str, Array]) -> dict[str, Array]:
        shapes = {name: array.shape for name, array in arrays.items()}
        indices = {
            _plain_name(detail["name"]): detail["index"] for detail in self._interpreter.get_input_details()
        }
        if shapes != self._allocated:
            self._allocated = {}
            for name, shape in shapes.items():
                self._interpreter.resize_tensor_input(indices[name], shape)
            self._interpreter.allocate_tensors()
            self._allocated = shapes
        for name, array in arrays.items():
            self._interpreter.set_tensor(indices[name], array)
        self._interpreter.invoke()
        return {
            _plain_name(detail["name"]): self._interpreter.get_tensor(detail["index"])
            for detail in self._interpreter.get_output_details()
        }


def to_labels(scores: Floats, labels: tuple[str, ...]) -> dict[str, float]:
    """Probabilities by label, the likeliest first.

    Args:
        scores: (labels,) float32; taken as they are where they are probabilities already (none negative, sum 1 within
            a step of int8 each), else by softmax.

    Raises:
        InferenceError: not as many scores as labels, or one is not finite.
    """
    flat = scores.reshape(-1).astype(np.float64)
    if flat.size != len(labels):
        raise InferenceError(f"{flat.size} scores for {len(labels)} labels")
    if not np.isfinite(flat).all():
        raise InferenceError("a score is not finite")
    is_distribution = bool((flat >= 0).all()) and math.isclose(flat.sum(), 1, abs_tol=len(labels) / 256)
    if not is_distribution:
        powers = np.exp(flat - flat.max())
        flat = powers / powers.sum()
    order = np.argsort(-flat, kind="stable")
    return {labels[index]: float(flat[index]) for index in order}


def _join(rows: list[Array]) -> Array:
    """Rows of a batch as one array: joined along their first dimension where that is one, else stacked."""
    if all(row.shape[:1] == (1,) for row in rows):
        return np.concatenate(rows)
    return np.stack(rows)


def _with_row(shape: tuple[int, ...], array: Array) -> Array:
    """`array` with the first dimension of `shape`, where that is one or open and was left out."""
    is_short = shape[:1] in {(1,), (-1,)} and _fits(shape[1:], array.shape)
    return array[None] if is_short else array


def _fits(shape: tuple[int, ...], given: tuple[int, ...]) -> bool:
    return len(shape) == len(given) and all(
        size == found or (size < 0 and found >= 1) for size, found in zip(shape, given, strict=True)
    )


def _plain_name(name: str) -> str:
    return name.removeprefix(_PREFIX).removesuffix(_SUFFIX)
