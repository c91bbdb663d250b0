"""Sole owner of bytes <-> message. Hostile bytes become a :class:`CodecError`, never another exception.

JSON is read by pydantic's parser (bounded recursion, no NaN in bounded fields); bodies above the size limit are
refused before parsing. A body may be compressed by gzip (RFC 1952): no JSON begins with its first
two bytes.
"""

from __future__ import annotations

import zlib
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from edgeslm.errors import BodySizeError, CodecError
from edgeslm.schema.message import MAX_PROMPT_CHARS

ModelT = TypeVar("ModelT", bound=BaseModel)

MAX_PLAIN_BYTES = 16 * 2**20
"""A compressed body may not become longer than this, where nothing else is said."""

_GZIP_MAGIC = b"\x1f\x8b"
_GZIP_BITS = 16 + zlib.MAX_WBITS
_WORTH_BYTES = 256
_MAX_FAULTS_TOLD = 3


def encode(message: BaseModel) -> bytes:
    """`message` as compact UTF-8 JSON; fields that are ``None`` are left out."""
    return message.model_dump_json(by_alias=True, exclude_none=True).encode()


def compress(body: bytes) -> bytes:
    """`body` compressed by gzip, or as it is where that saves nothing. The same body always gives the same bytes."""
    if len(body) < _WORTH_BYTES:
        return body
    packer = zlib.compressobj(6, wbits=_GZIP_BITS)
    packed = packer.compress(body) + packer.flush()
    return packed if len(packed) < len(body) else body


def is_compressed(body: bytes) -> bool:
    """Whether `body` says that it is compressed."""
    return body.startswith(_GZIP_MAGIC)


def plain(body: bytes, *, max_bytes: int = MAX_PLAIN_BYTES) -> bytes:
    """`body` as it was before it was compressed, if it was; never takes more memory than `max_bytes` and one more.

    Raises:
        BodySizeError: it becomes longer than `max_bytes`.
        CodecError: it says that it is compressed and is not, or is cut off, or more follows, or it is so twice.
    """
    if not is_compressed(body):
        if len(body) > max_bytes:
            raise BodySizeError(f"body of {len(body)} bytes, at most {max_bytes} are taken")
        return body
    unpacker = zlib.decompressobj(wbits=_GZIP_BITS)
    try:
        found = unpacker.decompress(body, max_bytes + 1)
    except zlib.error as error:
        raise CodecError(f"not gzip, as its first bytes say: {str(error)[:100]}") from error
    if len(found) > max_bytes:
        raise BodySizeError(f"body of more than {max_bytes} bytes once unpacked; so many are taken at most")
    if not unpacker.eof or unpacker.unused_data:
        raise CodecError(
            "the gzip body is cut off" if not unpacker.eof else "something follows the gzip body"
        )
    if is_compressed(found):
        raise CodecError("compressed twice")
    return found


def decode(kind: type[ModelT], body: bytes, *, max_bytes: int | None = None) -> ModelT:
    """The message of type `kind` in `body`.

    Raises:
        CodecError: too large, not JSON, or not of that form. The text names the fields to blame and never
            repeats more than a few characters of the input.
    """
    if max_bytes is not None or is_compressed(body):
        body = plain(body, max_bytes=MAX_PLAIN_BYTES if max_bytes is None else max_bytes)
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
        text = plain(body).decode("utf-8").strip()
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
