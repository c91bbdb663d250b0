"""The packets of simulated devices, against paho's and against rubbish."""

from __future__ import annotations

import struct

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from edgeslm.errors import LinkError
from edgeslm.link.port import Message
from edgeslm.sim import fleet_wire as wire


def packets(data: bytes) -> list[wire.Packet]:
    buffer = bytearray(data)
    found = list(wire.read(buffer))
    assert not buffer
    return found


def arriving(topic: str, payload: bytes, mid: int, properties: bytes = b"") -> bytes:
    """A PUBLISH as a broker sends it."""
    name = topic.encode()
    number = struct.pack(">H", mid) if mid else b""
    body = struct.pack(">H", len(name)) + name + number + wire._length(len(properties)) + properties + payload
    return bytes((0x30 | (2 if mid else 0),)) + wire._length(len(body)) + body


@given(st.text(max_size=50), st.binary(max_size=300), st.integers(0, 65535), st.integers(1, 50))
def test_messages_are_read_whole_however_the_network_cuts_them(
    topic: str, payload: bytes, mid: int, piece: int
) -> None:
    data = arriving(topic, payload, mid, b"\x02\x00\x00\x00\x05") + bytes((0xD0, 0)) + arriving("t", b"x", 0)
    buffer, found = bytearray(), []
    for start in range(0, len(data), piece):
        buffer += data[start : start + piece]
        found += list(wire.read(buffer))
    assert found == [wire.Arrived(topic, payload, mid), None, wire.Arrived("t", b"x", 0)]


@given(st.binary(max_size=60))
@example(b"\x20\x00")
@example(b"\x30\xff\xff\xff\xff\x01")
@example(b"\x32\x05\x00\x01a\x00\x01")
@example(b"\x90\x02\x00\x01")
@example(b"\x40\x01\x00")
def test_rubbish_is_a_named_error_or_waits_for_more(data: bytes) -> None:
    buffer = bytearray(data)
    try:
        list(wire.read(buffer))
    except LinkError:
        return
    assert len(buffer) <= len(data)


def test_refuses_a_packet_that_is_too_large_before_it_comes() -> None:
    with pytest.raises(LinkError, match="at most 1000000"):
        list(wire.read(bytearray(b"\x30" + wire._length(wire.MAX_PACKET_BYTES + 1))))


def test_the_brokers_receive_maximum_is_found_among_its_other_properties() -> None:
    properties = (
        b"\x22\x00\x0a" + b"\x26\x00\x01a\x00\x01b" + b"\x12\x00\x02id" + b"\x21\x00\x07" + b"\x24\x01"
    )
    body = b"\x00\x00" + wire._length(len(properties)) + properties
    assert packets(b"\x20" + wire._length(len(body)) + body) == [wire.Accepted(0, 7)]
    assert packets(b"\x20\x03\x00\x00\x00") == [wire.Accepted(0, wire.RECEIVE_MAXIMUM)]


def test_a_refusal_is_read_from_every_answer_that_can_hold_one() -> None:
    assert packets(b"\x20\x03\x00\x87\x00") == [wire.Accepted(0x87, wire.RECEIVE_MAXIMUM)]
    assert packets(b"\x40\x03\x00\x09\x87") == [wire.Confirmed(9, 0x87)]
    assert packets(b"\x40\x02\x00\x09") == [wire.Confirmed(9, 0)]
    assert packets(b"\x90\x05\x00\x01\x00\x01\x87") == [wire.Subscribed(b"\x01\x87")]
    assert packets(b"\xe0\x00\xe0\x01\x8e") == [wire.Closing(0), wire.Closing(0x8E)]


def test_a_connection_says_all_that_the_broker_has_to_know() -> None:
    will = Message("w", b"gone", retain=True)
    made = wire.connect("id", keepalive_s=60, session_expiry_s=5, will=will, user="u", password=b"p")
    properties = b"\x11\x00\x00\x00\x05\x21\x00\x14\x27" + struct.pack(">I", wire.MAX_PACKET_BYTES)
    body = (
        b"\x00\x04MQTT\x05\xec\x00\x3c" + bytes((len(properties),)) + properties
        + b"\x00\x02id\x00\x00\x01w\x00\x04gone\x00\x01u\x00\x01p"
    )  # fmt: skip
    assert made == b"\x10" + bytes((len(body),)) + body
    assert wire.connect("id", keepalive_s=60, session_expiry_s=0, will=None)[9] == 0x02


def test_messages_are_written_as_the_standard_says() -> None:
    assert wire.publish(Message("t", b"x", retain=True), 258) == b"\x33\x07\x00\x01t\x01\x02\x00x"
    assert wire.publish(Message("t", b"x", qos=0), 258) == b"\x30\x05\x00\x01t\x00x"
    assert wire.subscribe(1, ["a"]) == b"\x82\x07\x00\x01\x00\x00\x01a\x01"
    assert wire.confirm(258) == b"\x40\x02\x01\x02"
    assert wire.disconnect() == b"\xe0\x07\x00\x05\x11\x00\x00\x00\x00"
    assert len(wire.publish(Message("t", bytes(20_000)), 1)) == 20_000 + 3 + 2 + 1 + 4
