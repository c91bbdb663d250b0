"""Arrays in messages and manifests: nested lists that a person can read, or bytes that are short.

Bounded here is what can be told without looking at the numbers; whether they fit a graph is found by
:mod:`edgeslm.runtime.arrays` and :mod:`edgeslm.runtime.tensor`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Discriminator, Field, JsonValue, StringConstraints, Tag

from edgeslm.schema.base import WireModel

MAX_DIMENSIONS = 8
MAX_TENSORS = 32
"""Most inputs of one request, and most outputs of one answer."""
MAX_TENSOR_CHARS = 16 * 2**20
"""Longest text of bytes; the size of a message's body ends it far earlier."""

TensorKind = Literal[
    "bool", "int8", "uint8", "int16", "uint16", "int32", "int64", "float16", "float32", "float64"
]
TensorName = Annotated[str, StringConstraints(min_length=1, max_length=256)]


class TensorBytes(WireModel):
    """An array as bytes.

    Attributes:
        dtype: what one number is.
        shape: sizes, the outermost first; none for one number.
        data: the numbers in base64 (RFC 4648, with padding), row after row, each with its lowest byte first.
    """

    dtype: TensorKind
    shape: Annotated[
        tuple[Annotated[int, Field(ge=0, lt=2**31)], ...], Field(max_length=MAX_DIMENSIONS, strict=False)
    ]
    data: Annotated[str, StringConstraints(max_length=MAX_TENSOR_CHARS)]


def _form(value: object) -> str:
    return "lists" if isinstance(value, list) else "bytes"


TensorValue = Annotated[
    Annotated[TensorBytes, Tag("bytes")] | Annotated[list[JsonValue], Tag("lists")], Discriminator(_form)
]
Tensors = Annotated[dict[TensorName, TensorValue], Field(min_length=1, max_length=MAX_TENSORS)]
"""Arrays by the name of the input or output."""
