"""Sole owner of bytes <-> message. Hostile bytes become a :class:`CodecError`, never another exception.

JSON is read by pydantic's parser (bounded recursion, no NaN in bounded fields); bodies above the size limit are
refused before parsing.
"""

from __future__ import annotations

from typing import TypeVar

from pydantic import BaseModel, ValidationError

from edgeslm.errors import CodecError
from edgeslm.schema.message import MAX_PROMPT_CHARS

ModelT = TypeVar("ModelT", bound=BaseModel)

_MAX_FAULTS_TOLD = 3


def encode(message: BaseModel) -> bytes:
    """`message` as compact UTF-8 JSON; fields that are ``None`` are left out."""
    return message.model_dump_json(by_alias=True, exclude_none=True).encode()


def decode(kind: type[ModelT], body: bytes, *, max_bytes: int | None = None) -> ModelT:
    """The message of type `kind` in `body`.

    Raises:
        CodecError: too large, not JSON, or not of that form. The text names the fields to blame and never
            repeats more than a few characters of the input.
    """
    if max_bytes is not None and len(body) > max_bytes:
        raise CodecError(f"body of {len(body)} bytes, at most {max_bytes} are taken")
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        raise CodecError(describe(error)) from error
    except (ValueError, RecursionError) as error:
        raise CodecError(f"not JSON in UTF-8: {str(error)[:200]}") from error


def decode_text(body: bytes) -> str:
    """A plain-text prompt, stripped.

    Raises:
        CodecError: not UTF-8, empty, or too long.
    """
    try:
        text = body.decode("utf-8").strip()
    except UnicodeDecodeError as error:
        raise CodecError(f"not UTF-8: byte {error.start} of {len(body)}") from error
    if not text:
        raise CodecError("empty prompt")
    if len(text) > MAX_PROMPT_CHARS:
        raise CodecError(f"prompt of {len(text)} characters, at most {MAX_PROMPT_CHARS} are taken")
    return text


def describe(error: ValidationError) -> str:
    """A validation error as one sentence for the person who sent the input."""
    faults = error.errors(include_url=False, include_context=False, include_input=False)
    told = []
    for fault in faults[:_MAX_FAULTS_TOLD]:
        where = ".".join(str(part)[:40] for part in fault["loc"][:6])
        what = fault["msg"].removeprefix("Value error, ")
        told.append(f"{where}: {what}" if where else what)
    rest = len(faults) - len(told)
    return "; ".join(told)[:500] + (f"; and {rest} more" if rest > 0 else "")
