"""Arrays of the wire <-> arrays of numpy. Pure; what is wrong with an array is told by its name."""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from pydantic import JsonValue

from edgeslm.errors import BadRequestError, TooLargeError
from edgeslm.schema.tensor import MAX_DIMENSIONS, TensorBytes, TensorKind, TensorValue

MAX_LISTED = 4096
"""Most numbers of an output that is written as lists; a longer one comes as bytes."""
MAX_OUTPUT_BYTES = 2**20
"""Most bytes of all outputs of an answer; brokers and boards would choke on more."""

Array = npt.NDArray[Any]


def to_arrays(tensors: Mapping[str, TensorValue]) -> dict[str, Array]:
    """What a message holds, as arrays.

    Raises:
        BadRequestError: one is no array of numbers.
    """
    return {name: _to_array(name, value) for name, value in tensors.items()}


def to_wire(arrays: Mapping[str, Array], *, as_bytes: bool) -> dict[str, TensorValue]:
    """`arrays` for a message.

    Args:
        as_bytes: in the short form. What has more than 4,096 numbers, or one that JSON cannot spell, has it anyway.

    Raises:
        TooLargeError: more than a message should carry.
    """
    total = sum(array.nbytes for array in arrays.values())
    if total > MAX_OUTPUT_BYTES:
        raise TooLargeError(
            f"the outputs are {total} bytes, at most {MAX_OUTPUT_BYTES} are answered",
            actual=total,
            limit=MAX_OUTPUT_BYTES,
            unit="bytes",
        )
    return {name: _to_value(array, as_bytes=as_bytes) for name, array in arrays.items()}


def _to_array(name: str, value: TensorValue) -> Array:
    if isinstance(value, TensorBytes):
        return _from_bytes(name, value)
    try:
        array = np.asarray(value)
    except (ValueError, OverflowError) as error:
        raise BadRequestError(
            f"input {name[:64]} is no array: its lists differ in length, or lie too deep",
            hint="Give lists of equal length on each level",
        ) from error
    if array.ndim > MAX_DIMENSIONS:
        raise BadRequestError(
            f"input {name[:64]} has {array.ndim} dimensions, at most {MAX_DIMENSIONS} are taken"
        )
    if array.dtype.kind not in "fiub":
        raise BadRequestError(f"input {name[:64]} holds something other than numbers")
    return array


def _from_bytes(name: str, value: TensorBytes) -> Array:
    try:
        data = base64.b64decode(value.data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadRequestError(f"input {name[:64]}: data is no base64") from error
    kind = np.dtype(value.dtype).newbyteorder("<")
    needed = math.prod(value.shape) * kind.itemsize
    if len(data) != needed:
        shape = " x ".join(map(str, value.shape)) or "one"
        raise BadRequestError(f"input {name[:64]} has {len(data)} bytes; {shape} {value.dtype} take {needed}")
    try:
        array = np.frombuffer(data, kind).reshape(value.shape)
    except ValueError as error:  # none of them, in too many ways
        raise BadRequestError(f"input {name[:64]} has a shape that no array can have") from error
    return array.astype(kind.newbyteorder("="))


def _to_value(array: Array, *, as_bytes: bool) -> TensorValue:
    is_plain = array.ndim > 0 and array.size <= MAX_LISTED and bool(np.isfinite(array).all())
    if as_bytes or not is_plain:
        little = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
        return TensorBytes(
            dtype=cast("TensorKind", array.dtype.name),
            shape=array.shape,
            data=base64.b64encode(little.tobytes()).decode(),
        )
    return _listed(array)


def _listed(array: Array) -> list[JsonValue]:
    if array.dtype.kind == "f" and array.dtype.itemsize < 8:
        # The shortest text that is read as the same number, not its exact value in double precision.
        array = np.array([float(str(number)) for number in array.ravel()]).reshape(array.shape)
    found: list[JsonValue] = array.tolist()
    return found
