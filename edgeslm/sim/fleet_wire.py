"""The few MQTT 5 packets that a simulated device sends and gets. Pure.

The link of real devices (:mod:`edgeslm.link`) connects with calls that wait, for TLS as well. A thousand devices that
come back after an outage would stand in line behind each other's handshakes in one process, which is the very thing
that is to be simulated. So simulated devices write and read these packets themselves, and need a tenth of the memory.

Source: "MQTT Version 5.0", OASIS Standard, 2019; clauses stand where they decide.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from edgeslm.errors import LinkError
from edgeslm.link.port import Message

MAX_PACKET_BYTES: Final = 1_000_000
RECEIVE_MAXIMUM: Final = 20
REFUSED: Final = 0x80
"""Reason codes from here on say no (clause 2.4)."""

_CONNECT, _CONNACK, _PUBLISH, _PUBACK, _SUBSCRIBE, _SUBACK, _PINGREQ, _PINGRESP, _DISCONNECT = (
    1, 2, 3, 4, 8, 9, 12, 13, 14,
)  # fmt: skip
PING: Final = bytes((_PINGREQ << 4, 0))
_SESSION_EXPIRY, _RECEIVE_MAXIMUM, _MAXIMUM_PACKET = 0x11, 0x21, 0x27


@dataclass(frozen=True, slots=True)
class Accepted:
    """CONNACK: the broker's answer to a connection.

    Attributes:
        reason: 0, or why not.
        window: unconfirmed messages that the broker takes at most.
    """

    reason: int
    window: int


@dataclass(frozen=True, slots=True)
class Subscribed:
    """SUBACK: one reason for each filter."""

    reasons: bytes


@dataclass(frozen=True, slots=True)
class Arrived:
    """PUBLISH; `mid` is 0 where nothing is to be acknowledged."""

    topic: str
    payload: bytes
    mid: int


@dataclass(frozen=True, slots=True)
class Confirmed:
    """PUBACK: the broker has a message, or refuses it."""

    mid: int
    reason: int


@dataclass(frozen=True, slots=True)
class Closing:
    """DISCONNECT from the broker."""

    reason: int


Packet = Accepted | Subscribed | Arrived | Confirmed | Closing | None
"""``None`` is PINGRESP."""


# --- writing ------------------------------------------------------------------------------------------------


def connect(
    client_id: str,
    *,
    keepalive_s: int,
    session_expiry_s: int,
    will: Message | None,
    user: str | None = None,
    password: bytes | None = None,
) -> bytes:
    """CONNECT; a session that expires is taken up again, one that does not is begun anew (clause 3.1)."""
    flags = 0x02 if session_expiry_s == 0 else 0
    properties = struct.pack(
        ">BIBHBI",
        _SESSION_EXPIRY, session_expiry_s, _RECEIVE_MAXIMUM, RECEIVE_MAXIMUM, _MAXIMUM_PACKET, MAX_PACKET_BYTES,
    )  # fmt: skip
    body = _text(client_id)
    if will is not None:
        flags |= 0x04 | will.qos << 3 | (0x20 if will.retain else 0)
        body += b"\x00" + _text(will.topic) + _data(will.payload)
    if user is not None:
        flags |= 0x80
        body += _text(user)
    if password is not None:
        flags |= 0x40
        body += _data(password)
    head = _text("MQTT") + bytes((5, flags)) + struct.pack(">H", keepalive_s)
    return _packet(_CONNECT << 4, head + _length(len(properties)) + properties + body)


def subscribe(mid: int, filters: Sequence[str]) -> bytes:
    """SUBSCRIBE to `filters` with QoS 1."""
    body = struct.pack(">H", mid) + b"\x00" + b"".join(_text(name) + b"\x01" for name in filters)
    return _packet(_SUBSCRIBE << 4 | 0x02, body)


def publish(message: Message, mid: int) -> bytes:
    """PUBLISH; `mid` counts for QoS 1 only."""
    flags = message.qos << 1 | message.retain
    number = struct.pack(">H", mid) if message.qos else b""
    return _packet(_PUBLISH << 4 | flags, _text(message.topic) + number + b"\x00" + message.payload)


def confirm(mid: int) -> bytes:
    """PUBACK."""
    return struct.pack(">BBH", _PUBACK << 4, 2, mid)


def disconnect() -> bytes:
    """DISCONNECT that also ends the session: simulated devices come back as new ones."""
    properties = struct.pack(">BI", _SESSION_EXPIRY, 0)
    return _packet(_DISCONNECT << 4, b"\x00" + _length(len(properties)) + properties)


def _packet(first: int, body: bytes) -> bytes:
    return bytes((first,)) + _length(len(body)) + body


def _text(text: str) -> bytes:
    return _data(text.encode())


def _data(data: bytes) -> bytes:
    return struct.pack(">H", len(data)) + data


def _length(number: int) -> bytes:
    """A variable byte integer (clause 1.5.5)."""
    found = bytearray()
    while True:
        number, low = number >> 7, number & 0x7F
        found.append(low | (0x80 if number else 0))
        if not number:
            return bytes(found)


# --- reading ------------------------------------------------------------------------------------------------


def read(buffer: bytearray) -> Iterator[Packet]:
    """Take whole packets from the front of `buffer`; what is left of one stays there.

    Raises:
        LinkError: what comes is no packet that a broker sends to a device.
    """
    at = 0
    try:
        while True:
            size, start = _read_length(buffer, at + 1)
            if size > MAX_PACKET_BYTES:
                raise LinkError(f"a packet of {size} bytes, at most {MAX_PACKET_BYTES} are taken")
            if start < 0 or len(buffer) < start + size:
                return
            first, body = buffer[at], bytes(buffer[start : start + size])
            at = start + size
            try:
                packet = _parse(first, body)
            except (struct.error, IndexError, UnicodeDecodeError) as error:
                raise LinkError(f"a packet of kind {first >> 4} that is none: {error}") from error
            yield packet
    finally:
        del buffer[:at]


def _read_length(buffer: bytes | bytearray, at: int) -> tuple[int, int]:
    """A variable byte integer and where it ends; that is -1 where its end has not come yet."""
    number = 0
    for place in range(4):
        if at + place >= len(buffer):
            return 0, -1
        byte = buffer[at + place]
        number |= (byte & 0x7F) << 7 * place
        if byte < 0x80:
            return number, at + place + 1
    raise LinkError("a length of more than four bytes")


def _parse(first: int, body: bytes) -> Packet:
    match first >> 4:
        case 2:  # CONNACK
            return Accepted(body[1], _window(body[2:]))
        case 3:  # PUBLISH
            return _arrived(first, body)
        case 4:  # PUBACK; a reason that is left out is success
            return Confirmed(struct.unpack_from(">H", body)[0], body[2] if len(body) > 2 else 0)
        case 9:  # SUBACK
            return Subscribed(body[_end_of_properties(body, 2) :])
        case 13:  # PINGRESP
            return None
        case 14:  # DISCONNECT
            return Closing(body[0] if body else 0)
        case kind:
            raise LinkError(f"a packet of kind {kind}, which no broker sends to a device")


def _arrived(first: int, body: bytes) -> Arrived:
    (size,) = struct.unpack_from(">H", body)
    at, mid = 2 + size, 0
    topic = body[2:at].decode()
    if first & 0x06:
        (mid,) = struct.unpack_from(">H", body, at)
        at += 2
    if at > len(body):
        raise LinkError("a message whose topic is longer than itself")
    return Arrived(topic, body[_end_of_properties(body, at) :], mid)


def _end_of_properties(body: bytes, at: int) -> int:
    """Where the properties end that begin `at` there."""
    size, start = _read_length(body, at)
    if start < 0 or start + size > len(body):
        raise LinkError("a packet whose properties are longer than itself")
    return start + size


_NUMBERS: Final = {0x11: 4, 0x13: 2, 0x21: 2, 0x22: 2, 0x24: 1, 0x25: 1, 0x27: 4, 0x28: 1, 0x29: 1, 0x2A: 1}
"""Bytes of CONNACK's properties that are numbers (clause 2.2.2.2); all others are texts, and one is two of them."""


def _window(data: bytes) -> int:
    """Receive Maximum among the properties of a CONNACK, at most our own."""
    end = _end_of_properties(data, 0)
    _, at = _read_length(data, 0)
    while at < end:
        kind = data[at]
        width = _NUMBERS.get(kind)
        if kind == _RECEIVE_MAXIMUM:
            return min(RECEIVE_MAXIMUM, int(struct.unpack_from(">H", data, at + 1)[0]))
        at += 1
        if width is not None:
            at += width
            continue
        for _ in range(2 if kind == 0x26 else 1):
            at += 2 + int(struct.unpack_from(">H", data, at)[0])
    return RECEIVE_MAXIMUM
