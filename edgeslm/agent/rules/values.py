"""From the body of a message to the value that an input names. Bounded: whatever came, a value or a named error."""

from __future__ import annotations

import re
from typing import TypeAlias

from pydantic import JsonValue
from pydantic_core import from_json

from edgeslm.errors import PayloadError
from edgeslm.schema.rule import MAX_MAGNITUDE, MAX_PAYLOAD_BYTES, Decoding, ValueType

MAX_DEPTH = 16
MAX_NODES = 4096
MAX_STRING_CHARS = 8192

Path: TypeAlias = tuple[str | int, ...]

_NUMBER = re.compile(rb"^\s*[+-]?(?:[0-9]{1,18}(?:\.[0-9]{0,18})?|\.[0-9]{1,18})(?:[eE][+-]?[0-9]{1,3})?\s*$")
_STEP = re.compile(r"\.?([^.\[\]]+)|\[([0-9]+)\]")


def parse_path(text: str | None) -> Path:
    """The steps of a path such as ``a.b[0].c``; it is well formed (``schema.rule``)."""
    if text is None or text == ".":
        return ()
    return tuple(name or int(index) for name, index in _STEP.findall(text))


def decode(payload: bytes, how: Decoding) -> JsonValue:
    """The content of a message's body.

    Raises:
        PayloadError: too long, too deep, not of that form, or a number that is none.
    """
    if len(payload) > MAX_PAYLOAD_BYTES:
        raise PayloadError(f"a body of {len(payload)} bytes, at most {MAX_PAYLOAD_BYTES} are looked at")
    if how == "number":
        if not _NUMBER.match(payload):
            raise PayloadError(f"'{_shown(payload)}' is not a number")
        return _finite(float(payload))
    if how == "text":
        try:
            text = payload.decode("utf-8").strip()
        except UnicodeDecodeError as error:
            raise PayloadError(f"not UTF-8: byte {error.start} of {len(payload)}") from error
        if len(text) > MAX_STRING_CHARS:
            raise PayloadError(f"a text of {len(text)} characters, at most {MAX_STRING_CHARS} are taken")
        return text
    try:
        value: JsonValue = from_json(payload, allow_inf_nan=False)
    except ValueError as error:
        raise PayloadError(f"not JSON: {str(error)[:100]}") from error
    check_bounded(value)
    return value


def check_bounded(value: JsonValue) -> None:
    """Make sure that `value` is small enough to work with.

    Raises:
        PayloadError: too deep, too many parts, too long a text, or too large a number.
    """
    level: list[JsonValue] = [value]
    nodes = 0
    for _ in range(MAX_DEPTH):
        below: list[JsonValue] = []
        nodes += len(level)
        if nodes > MAX_NODES:
            raise PayloadError(f"more than {MAX_NODES} parts")
        for part in level:
            if isinstance(part, dict):
                if any(len(key) > MAX_STRING_CHARS for key in part):
                    raise PayloadError(f"a key of more than {MAX_STRING_CHARS} characters")
                below += part.values()
            elif isinstance(part, list):
                below += part
            elif isinstance(part, str):
                if len(part) > MAX_STRING_CHARS:
                    raise PayloadError(f"a text of {len(part)} characters, at most {MAX_STRING_CHARS}")
            elif isinstance(part, int | float):
                _finite(part)
        if not below:
            return
        level = below
    raise PayloadError(f"deeper than {MAX_DEPTH} levels")


def extract(value: JsonValue, path: Path) -> JsonValue:
    """What stands at `path` in `value`.

    Raises:
        PayloadError: nothing does.
    """
    found = value
    for step in path:
        if isinstance(found, dict) and isinstance(step, str) and step in found:
            found = found[step]
            continue
        if isinstance(found, list) and isinstance(step, int) and step < len(found):
            found = found[step]
            continue
        raise PayloadError(f"there is no '{step}' in it")
    return found


def check_type(value: JsonValue, kind: ValueType) -> JsonValue:
    """`value`, if it is of `kind`.

    Raises:
        PayloadError: it is not. Types are never converted: ``"21"`` is no number.
    """
    if kind == "any":
        return value
    fits = {
        "number": isinstance(value, int | float) and not isinstance(value, bool),
        "text": isinstance(value, str),
        "boolean": isinstance(value, bool),
    }[kind]
    if not fits:
        raise PayloadError(f"a {kind} is expected, not {describe_value(value)}")
    return value


def describe_value(value: JsonValue) -> str:
    """What `value` is, for a person, in a few words."""
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return "a list"
    return repr(value)[:40]


def _finite(number: float) -> float:
    # Compared as it is: an integer of a thousand digits is no float, and NaN is in no range.
    if not -MAX_MAGNITUDE <= number <= MAX_MAGNITUDE:
        raise PayloadError(f"a number beyond {MAX_MAGNITUDE:g} is no reading")
    return number


def _shown(payload: bytes) -> str:
    return payload[:40].decode("utf-8", "replace")
