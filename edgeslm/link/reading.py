"""paho's client with two short ways for reading.

A board may hear thousands of readings a second, and has one interpreter for them and for its model.

- **In large pieces**: by itself paho asks the network three times for each packet.
- **Plain messages** (QoS 0, without properties, which is how sensors speak) are taken from such a piece as they lie
  there. Whatever is not plain, whole and well-formed is left to paho, in its turn.

Both stand on one method that paho calls for bytes. A paho that reads in another way does not call it, or asks for more
than a byte of a header; then all goes its way through paho.

The form of a packet: MQTT 5.0, sections 2.1 and 3.3; MQTT 3.1.1, the same sections.
"""

from __future__ import annotations

import contextlib

import paho.mqtt.client as paho

from edgeslm.link.port import Message

_PIECE_BYTES = 65_536
_PLAIN, _RETAINED = 0x30, 0x31
"""First byte of a PUBLISH with QoS 0."""
_NO_PROPERTIES = 0
_LENGTH_BYTES = 4
"""Longest form of a packet's length."""
_LEAST_BYTES = 5
"""Of a PUBLISH: header, and a topic of one letter."""


class ReadingClient(paho.Client):
    """For one connection: bytes that are left over are those of that one."""

    _piece = b""
    _at = 0
    _knows_place = True
    _in_header = False
    _body_left = 0
    _length = 0
    _length_bytes = 0

    def fetch(self) -> None:
        """Read a piece, where paho waits for the beginning of a packet and nothing is here; the network is ready.

        An end, or a fault of the network, is found again by paho and is its to tell.
        """
        if self.has_ahead() or self._body_left or self._in_header or not self._knows_place:
            return
        with contextlib.suppress(OSError):
            self._piece, self._at = super()._sock_recv(_PIECE_BYTES), 0

    def has_ahead(self) -> bool:
        """Whether something is read already that no poll announces."""
        return self._at < len(self._piece)

    def next_plain(self) -> Message | None:
        """Take the next message, where it is here as a whole and plain."""
        piece, at = self._piece, self._at
        if self._body_left or self._in_header or not self._knows_place or len(piece) - at < _LEAST_BYTES:
            return None
        if piece[at] not in (_PLAIN, _RETAINED):
            return None
        length = shift = 0
        body = at + 1
        while True:
            if body == len(piece) or shift == 7 * _LENGTH_BYTES:
                return None
            byte = piece[body]
            length |= (byte & 127) << shift
            shift, body = shift + 7, body + 1
            if byte < 128:
                break
        end = body + length
        topic_end = body + 2 + int.from_bytes(piece[body : body + 2], "big")
        payload = topic_end + (self.protocol == paho.MQTTv5)
        if end > len(piece) or payload > end or topic_end == body + 2:
            return None
        if payload > topic_end and piece[topic_end] != _NO_PROPERTIES:
            return None
        try:
            topic = piece[body + 2 : topic_end].decode()
        except UnicodeDecodeError:
            return None
        self._at = end
        return Message(topic, piece[payload:end], qos=0, retain=piece[at] == _RETAINED)

    def _sock_recv(self, bufsize: int) -> bytes:
        at = self._at
        if at == len(self._piece):
            if bufsize >= _PIECE_BYTES:
                taken = super()._sock_recv(bufsize)
                self._follow(taken)
                return taken
            self._piece, self._at, at = super()._sock_recv(_PIECE_BYTES), 0, 0
        taken = self._piece[at : at + bufsize]
        self._at = at + len(taken)
        self._follow(taken)
        return taken

    def _follow(self, taken: bytes) -> None:
        """Keep in mind where in a packet paho is."""
        if self._body_left:
            self._body_left -= len(taken)
            self._knows_place &= self._body_left >= 0
        elif len(taken) > 1:
            self._knows_place = False
        elif not taken:
            return
        elif not self._in_header:
            self._in_header, self._length, self._length_bytes = True, 0, 0
        else:
            self._length |= (taken[0] & 127) << (7 * self._length_bytes)
            self._length_bytes += 1
            if taken[0] < 128:
                self._in_header, self._body_left = False, self._length
