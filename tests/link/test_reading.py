"""Reading the short way gives what paho's own way gives, however the bytes come."""

from __future__ import annotations

import socket
from collections.abc import Iterable
from itertools import pairwise

import paho.mqtt.client as paho
import pytest
from hypothesis import given
from hypothesis import strategies as st
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from edgeslm.link.reading import ReadingClient

Heard = tuple[bytes | str, bytes, bool, int]
WIRE_BYTES = 100_000
BOTH = (MQTTProtocolVersion.MQTTv311, MQTTProtocolVersion.MQTTv5)


def length_of(count: int) -> bytes:
    out = bytearray()
    while True:
        count, low = divmod(count, 128)
        out.append(low | (128 if count else 0))
        if not count:
            return bytes(out)


def publish(
    version: MQTTProtocolVersion,
    topic: bytes,
    payload: bytes,
    *,
    qos: int = 0,
    retain: bool = False,
    properties: bytes = b"",
) -> bytes:
    body = len(topic).to_bytes(2, "big") + topic
    body += (7).to_bytes(2, "big") if qos else b""
    if version == MQTTProtocolVersion.MQTTv5:
        body += length_of(len(properties)) + properties
    body += payload
    return bytes([0x30 | qos << 1 | retain]) + length_of(len(body)) + body


class Reader:
    """A client at one end of a wire; what it hears, and whether it still reads."""

    def __init__(self, client: paho.Client) -> None:
        self.heard: list[Heard] = []
        self.plain = 0
        self.is_alive = True
        self._client = client
        self._far, near = socket.socketpair()
        near.setblocking(False)
        client._sock = near  # connecting is another matter
        client.on_message = self._on_message

    def take(self, chunk: bytes) -> None:
        if not self.is_alive:
            return
        self._far.sendall(chunk)
        before = None
        while self.is_alive and before != (before := self._progress()):
            message = None
            if isinstance(self._client, ReadingClient):
                self._client.fetch()
                message = self._client.next_plain()
            if message is not None:
                self.plain += 1
                self.heard.append((message.topic, message.payload, message.retain, 0))
                continue
            self.is_alive = (
                self._client.loop_read() == paho.MQTT_ERR_SUCCESS and self._client.socket() is not None
            )

    def _progress(self) -> tuple[int, ...]:
        """Changes as long as something is there to read; paho takes a packet a call, or a hundred pieces of one."""
        near = self._client.socket()
        waiting = 0
        if near is not None:
            try:
                waiting = len(near.recv(1 << 20, socket.MSG_PEEK))
            except BlockingIOError:
                waiting = 0
        return len(self.heard), waiting, getattr(self._client, "_at", 0)

    def _on_message(self, _client: paho.Client, _userdata: object, message: paho.MQTTMessage) -> None:
        try:
            topic: bytes | str = message.topic
        except UnicodeDecodeError:
            topic = b"no text"
        self.heard.append((topic, bytes(message.payload), message.retain, message.qos))

    def close(self) -> None:
        self._far.close()
        near = self._client.socket()
        if near is not None:
            near.close()


def both(version: MQTTProtocolVersion, chunks: Iterable[bytes]) -> tuple[Reader, Reader]:
    ours, theirs = (
        Reader(kind(CallbackAPIVersion.VERSION2, protocol=version, manual_ack=True))
        for kind in (ReadingClient, paho.Client)
    )
    try:
        for chunk in chunks:
            ours.take(chunk)
            theirs.take(chunk)
    finally:
        ours.close()
        theirs.close()
    return ours, theirs


def pieces(stream: bytes, cuts: Iterable[int]) -> list[bytes]:
    wanted = (
        {cut % (len(stream) + 1) for cut in cuts} | set(range(0, len(stream), WIRE_BYTES)) | {len(stream)}
    )
    return [stream[start:end] for start, end in pairwise(sorted(wanted)) if end > start]


TOPICS = st.one_of(
    st.text(min_size=1, max_size=20).map(str.encode), st.sampled_from([b"\xff\xfe", b"", b"a/b", b"\xc3"])
)
EXPIRES = b"\x02\x00\x00\x00\x3c"
MESSAGES = st.tuples(
    TOPICS,
    st.one_of(st.binary(max_size=40), st.sampled_from([b"x" * 127, b"x" * 20_000, b"x" * 70_000])),
    st.sampled_from([0, 0, 0, 1]),
    st.booleans(),
    st.sampled_from([b"", b"", EXPIRES]),
)


@pytest.mark.parametrize("version", BOTH)
@given(messages=st.lists(MESSAGES, max_size=6), cuts=st.lists(st.integers(0, 1 << 20), max_size=8))
def test_what_comes_is_heard_as_paho_hears_it_however_it_is_cut(version, messages, cuts):
    stream = b"".join(
        publish(version, topic, payload, qos=qos, retain=retain, properties=properties)
        for topic, payload, qos, retain, properties in messages
    )
    ours, theirs = both(version, pieces(stream, cuts))
    assert ours.heard == theirs.heard
    assert ours.is_alive == theirs.is_alive


@pytest.mark.parametrize("version", BOTH)
@given(rubbish=st.binary(max_size=60), cuts=st.lists(st.integers(0, 100), max_size=5))
def test_rubbish_ends_as_it_does_with_paho(version, rubbish, cuts):
    ahead = publish(version, b"a/b", b"1")
    ours, theirs = both(version, pieces(ahead + b"0" + rubbish, cuts))
    assert ours.heard == theirs.heard
    assert ours.is_alive == theirs.is_alive


@pytest.mark.parametrize("version", BOTH)
def test_readings_take_the_short_way_and_all_else_does_not(version):
    stream = b"".join(publish(version, b"sensors/%d" % n, b"%d" % n) for n in range(50))
    ours, _ = both(version, [stream])
    assert ours.plain == 50
    stream = publish(version, b"a", b"1", qos=1) * 5
    ours, _ = both(version, [stream])
    assert (ours.plain, len(ours.heard)) == (0, 5)
