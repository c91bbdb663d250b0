"""Sparkplug B: payloads and topics, as bytes and values (Eclipse Sparkplug 3.0.0, chapters 4 and 6).

What always holds: hostile bytes become a :class:`~edgeslm.errors.CodecError`, never another exception, and cost no more
than their length; what is encoded decodes to the same, and to the same with Eclipse Tahu and pysparkplug. Numbers,
booleans and texts are understood; of data sets, templates, bytes and properties only the name and the type come out.
Int8 and Int16 are read and never written.

Written by hand, since the few kinds of field that are needed take fewer lines than a board would load of a protobuf
runtime. Left to others: when to send what (:mod:`edgeslm.agent.sparkplug_node`).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final, Literal, TypeAlias, get_args

from edgeslm.errors import CodecError, TopicError

NAMESPACE: Final = "spBv1.0"
MAX_PAYLOAD_BYTES: Final = 262_144
MAX_METRICS: Final = 512
MAX_TEXT_BYTES: Final = 65_536
MAX_NAME_BYTES: Final = 1_024

Verb: TypeAlias = Literal["NBIRTH", "NDEATH", "NDATA", "NCMD"]
Value: TypeAlias = bool | int | float | str | None


class DataType(IntEnum):
    """Types of metrics, by their number on the wire (section 6.4.16)."""

    UNKNOWN = 0
    INT8 = 1
    INT16 = 2
    INT32 = 3
    INT64 = 4
    UINT8 = 5
    UINT16 = 6
    UINT32 = 7
    UINT64 = 8
    FLOAT = 9
    DOUBLE = 10
    BOOLEAN = 11
    STRING = 12
    DATETIME = 13
    TEXT = 14
    UUID = 15
    DATASET = 16
    BYTES = 17
    FILE = 18
    TEMPLATE = 19


_SIGNED_BITS: Final = {DataType.INT8: 8, DataType.INT16: 16, DataType.INT32: 32, DataType.INT64: 64}
_UNSIGNED_BITS: Final = {
    DataType.UINT8: 8,
    DataType.UINT16: 16,
    DataType.UINT32: 32,
    DataType.UINT64: 64,
    DataType.DATETIME: 64,
}
_TEXTS: Final = frozenset({DataType.STRING, DataType.TEXT, DataType.UUID})
_LONG: Final = frozenset({DataType.INT64, DataType.UINT32, DataType.UINT64, DataType.DATETIME})
"""Types that travel in ``long_value``; all other whole numbers in ``int_value``. Read they are from both.

UInt32 would fit into ``int_value``, but Eclipse Tahu looks for it in ``long_value`` alone, and others look in both.
"""
_NOT_WRITTEN: Final = frozenset({DataType.INT8, DataType.INT16})
"""Tahu takes a negative one for positive unless it is 32 bits wide, and pysparkplug refuses it if it is."""

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MAX_VARINT_BYTES: Final = 10


@dataclass(frozen=True)
class Metric:
    """One value with its name.

    Attributes:
        name: ``None`` where only the alias was sent.
        value: ``None`` is null, or of a type that is not understood.
        alias: number that stands for the name.
        timestamp_ms: milliseconds since 1970, UTC.
    """

    name: str | None
    value: Value
    datatype: DataType = DataType.UNKNOWN
    alias: int | None = None
    timestamp_ms: int | None = None


@dataclass(frozen=True)
class Payload:
    """The body of every message but ``STATE``.

    Attributes:
        timestamp_ms: milliseconds since 1970, UTC.
        seq: 0 to 255; commands and deaths have none.
    """

    timestamp_ms: int | None
    metrics: tuple[Metric, ...] = field(default=())
    seq: int | None = None


# --- topics -------------------------------------------------------------------------------------------------


def topic(group: str, verb: Verb, node: str) -> str:
    """The topic of an edge node (section 4.1).

    Raises:
        TopicError: a name is empty or holds what a topic cannot.
    """
    for what, name in (("group", group), ("edge node", node)):
        if (
            not name
            or len(name.encode("utf-8", "surrogatepass")) > 255
            or any(one in name for one in "/+#\x00")
        ):
            raise TopicError(
                f"{what} '{name[:80]}' cannot stand in a Sparkplug topic: 1 to 255 bytes, none of / + #"
            )
    return f"{NAMESPACE}/{group}/{verb}/{node}"


def parse_topic(text: str) -> tuple[str, Verb, str]:
    """Group, verb and edge node of a topic.

    Raises:
        TopicError: it is not the topic of an edge node.
    """
    levels = text.split("/")
    if len(levels) == 4 and levels[0] == NAMESPACE and levels[1] and levels[3]:
        for verb in get_args(Verb):
            if levels[2] == verb:
                return levels[1], verb, levels[3]
    raise TopicError(f"'{text[:120]}' is no topic of a Sparkplug edge node")


# --- payloads -----------------------------------------------------------------------------------------------


def encode(payload: Payload) -> bytes:
    """`payload` as bytes.

    Raises:
        CodecError: a value does not fit its type, or the type is one that is not written.
    """
    out = bytearray()
    if payload.timestamp_ms is not None:
        out += _number(1, payload.timestamp_ms)
    for metric in payload.metrics:
        out += _lengthy(2, _metric(metric))
    if payload.seq is not None:
        out += _number(3, payload.seq)
    return bytes(out)


def decode(body: bytes) -> Payload:
    """The payload in `body`.

    Raises:
        CodecError: too large, no protobuf, or with more metrics than are taken.
    """
    if len(body) > MAX_PAYLOAD_BYTES:
        raise CodecError(f"Sparkplug payload of {len(body)} bytes, at most {MAX_PAYLOAD_BYTES} are taken")
    timestamp_ms: int | None = None
    seq: int | None = None
    metrics: list[Metric] = []
    for number, kind, value in _fields(body):
        if number == 1 and kind == _VARINT:
            timestamp_ms = _whole(value)
        elif number == 2 and kind == _BYTES:
            if len(metrics) == MAX_METRICS:
                raise CodecError(f"Sparkplug payload with more than {MAX_METRICS} metrics")
            metrics.append(_read_metric(_raw(value)))
        elif number == 3 and kind == _VARINT:
            seq = _whole(value)
    return Payload(timestamp_ms, tuple(metrics), seq)


def find(metrics: Sequence[Metric], name: str) -> Metric | None:
    """The metric with that name."""
    return next((metric for metric in metrics if metric.name == name), None)


def _metric(metric: Metric) -> bytes:
    out = bytearray()
    if metric.name is not None:
        out += _lengthy(1, _utf8(metric.name))
    if metric.alias is not None:
        out += _number(2, metric.alias)
    if metric.timestamp_ms is not None:
        out += _number(3, metric.timestamp_ms)
    if metric.datatype is not DataType.UNKNOWN:
        out += _number(4, metric.datatype)
    out += _number(7, 1) if metric.value is None else _value(metric)
    return bytes(out)


def _value(metric: Metric) -> bytes:
    kind, value = metric.datatype, metric.value
    if kind is DataType.BOOLEAN and isinstance(value, bool):
        return _number(14, int(value))
    if kind in _TEXTS and isinstance(value, str):
        return _lengthy(15, _utf8(value))
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            if kind is DataType.FLOAT:
                return _tag(12, _FIXED32) + struct.pack("<f", value)
            if kind is DataType.DOUBLE:
                return _tag(13, _FIXED64) + struct.pack("<d", value)
        except (OverflowError, struct.error) as error:
            raise _misfit(metric) from error
    if isinstance(value, int) and not isinstance(value, bool):
        bits = None if kind in _NOT_WRITTEN else _SIGNED_BITS.get(kind)
        if bits is not None and -(1 << bits - 1) <= value < 1 << bits - 1:
            return _number(11 if kind in _LONG else 10, value % (1 << bits))  # two's complement
        bits = _UNSIGNED_BITS.get(kind)
        if bits is not None and 0 <= value < 1 << bits:
            return _number(11 if kind in _LONG else 10, value)
    raise _misfit(metric)


def _misfit(metric: Metric) -> CodecError:
    name = (metric.name or "")[:80]
    return CodecError(f"metric '{name}': {str(metric.value)[:40]!r} is no {metric.datatype.name}")


def _read_metric(body: bytes) -> Metric:
    name: str | None = None
    alias = timestamp_ms = None
    datatype = DataType.UNKNOWN
    found: int | bytes | None = None
    held = 0
    is_null = False
    for number, kind, value in _fields(body):
        if number == 1 and kind == _BYTES:
            name = _text(_raw(value), MAX_NAME_BYTES)
        elif number == 2 and kind == _VARINT:
            alias = _whole(value)
        elif number == 3 and kind == _VARINT:
            timestamp_ms = _whole(value)
        elif number == 4 and kind == _VARINT:
            datatype = _datatype(_whole(value))
        elif number == 7 and kind == _VARINT:
            is_null = bool(_whole(value))
        elif _KIND_OF_VALUE.get(number) == kind:
            held, found = number, value
    return Metric(name, None if is_null else _held(held, found, datatype), datatype, alias, timestamp_ms)


_KIND_OF_VALUE: Final = {10: _VARINT, 11: _VARINT, 12: _FIXED32, 13: _FIXED64, 14: _VARINT, 15: _BYTES}


def _held(number: int, value: int | bytes | None, datatype: DataType) -> Value:
    if isinstance(value, int):
        if number == 14:
            return bool(value)
        bits = _SIGNED_BITS.get(datatype)
        if bits is None:
            return value
        low = value % (1 << bits)
        return low - (1 << bits) if low >= 1 << bits - 1 else low
    if isinstance(value, bytes):
        if number == 15:
            return _text(value, MAX_TEXT_BYTES)
        return float(struct.unpack("<f" if number == 12 else "<d", value)[0])
    return None


def _datatype(number: int) -> DataType:
    try:
        return DataType(number)
    except ValueError:
        return DataType.UNKNOWN


# --- protobuf (https://protobuf.dev/programming-guides/encoding/) --------------------------------------------


def _fields(body: bytes) -> Iterator[tuple[int, int, int | bytes]]:
    """Each field's number, wire type and value."""
    at = 0
    while at < len(body):
        key, at = _read_varint(body, at)
        number, kind = key >> 3, key & 7
        if kind == _VARINT:
            value, at = _read_varint(body, at)
            yield number, kind, value
            continue
        if kind == _BYTES:
            length, at = _read_varint(body, at)
        elif kind in {_FIXED64, _FIXED32}:
            length = 8 if kind == _FIXED64 else 4
        else:
            raise CodecError(f"Sparkplug payload: byte {at} begins no field of protobuf")
        if length > len(body) - at:
            raise CodecError(f"Sparkplug payload ends within the field at byte {at}")
        yield number, kind, body[at : at + length]
        at += length


def _read_varint(body: bytes, at: int) -> tuple[int, int]:
    value = 0
    for count, byte in enumerate(body[at : at + _MAX_VARINT_BYTES]):
        value |= (byte & 0x7F) << 7 * count
        if byte < 0x80:
            return value & 2**64 - 1, at + count + 1
    raise CodecError(f"Sparkplug payload: the number at byte {at} has no end")


def _number(number: int, value: int) -> bytes:
    if not 0 <= value < 2**64:
        raise CodecError(f"{value} is no number that Sparkplug can hold here")
    return _tag(number, _VARINT) + _varint(value)


def _lengthy(number: int, value: bytes) -> bytes:
    return _tag(number, _BYTES) + _varint(len(value)) + value


def _tag(number: int, kind: int) -> bytes:
    return _varint(number << 3 | kind)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _whole(value: int | bytes) -> int:
    return value if isinstance(value, int) else 0


def _raw(value: int | bytes) -> bytes:
    return value if isinstance(value, bytes) else b""


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise CodecError(f"'{ascii(text)[:40]}' is no text in Unicode") from error


def _text(raw: bytes, max_bytes: int) -> str:
    if len(raw) > max_bytes:
        raise CodecError(f"Sparkplug text of {len(raw)} bytes, at most {max_bytes} are taken")
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise CodecError(f"Sparkplug text is not UTF-8 at byte {error.start}") from error
