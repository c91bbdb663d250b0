"""A tap on the wire between an agent and its broker: what the agent published, even where nobody got it.

A broker that is killed takes answers with it that it had received and not passed on; only here can be seen
whether the answer that was published later is the same. The tap passes bytes on as they come and reads along
(MQTT 5, sections 2.1 and 3.3); a side that goes takes the other one with it.
"""

from __future__ import annotations

import contextlib
import json
import select
import socket
import threading
from collections import defaultdict

from benchmarks.agent_rig import MeasurementError

_HOST = "127.0.0.1"
_PUBLISH = 3


class WireTap:
    """Listens from construction to :meth:`close`.

    Attributes:
        answers: the different bodies published for each id, errors left out.
        times_published: how often an answer to it was published.
        streams: for each id the deltas of each run, by sequence number; a run begins with 0.
    """

    def __init__(self, broker_port: int) -> None:
        self._broker_port = broker_port
        self._listener = socket.create_server((_HOST, 0))
        self._closed = threading.Event()
        self._failure: Exception | None = None
        self.port = int(self._listener.getsockname()[1])
        self.answers: defaultdict[str, set[bytes]] = defaultdict(set)
        self.times_published: defaultdict[str, int] = defaultdict(int)
        self.streams: defaultdict[str, list[dict[int, str]]] = defaultdict(list)
        threading.Thread(target=self._accept, name="bench-tap", daemon=True).start()

    def close(self) -> None:
        """Listen no more.

        Raises:
            MeasurementError: it could not read along, so what it has is not the whole.
        """
        self._closed.set()
        self._listener.close()
        if self._failure is not None:
            raise MeasurementError(f"the tap could not read along: {self._failure!r}")

    def complete_runs(self, request_id: str) -> int:
        """Runs of a streamed prompt whose deltas make up the whole answer."""
        texts = {str(json.loads(answer).get("text")) for answer in self.answers[request_id]}
        runs = self.streams[request_id]
        return sum("".join(run[number] for number in sorted(run)) in texts for run in runs)

    def _accept(self) -> None:
        # One agent, one connection at a time: the next one is taken when this one is over.
        while not self._closed.is_set():
            try:
                agent, _ = self._listener.accept()
            except OSError:
                return
            with agent, contextlib.suppress(OSError):
                self._pass_on(agent)

    def _pass_on(self, agent: socket.socket) -> None:
        with socket.create_connection((_HOST, self._broker_port), timeout=5) as broker:
            for sock in (agent, broker):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            unread = bytearray()
            while True:
                for sock in select.select([agent, broker], [], [])[0]:
                    data = sock.recv(65_536)
                    if not data:
                        return
                    if sock is agent:
                        # Noted before the broker has it: it may be killed in between.
                        unread += data
                        self._read_along(unread)
                        broker.sendall(data)
                    else:
                        agent.sendall(data)

    def _read_along(self, unread: bytearray) -> None:
        try:
            while (packet := _cut_packet(unread)) is not None:
                kind_and_flags, body = packet
                if kind_and_flags >> 4 == _PUBLISH:
                    self._note(*_publish(kind_and_flags, body))
        except (ValueError, KeyError, IndexError) as error:
            self._failure = error

    def _note(self, topic: str, payload: bytes) -> None:
        if topic.endswith(("/availability", "/info")):
            return
        body = json.loads(payload)
        if "/stream/" in topic:
            runs = self.streams[body["id"]]
            if body["seq"] == 0 or not runs:
                runs.append({})
            runs[-1][body["seq"]] = body["text"]
        elif "error" not in body:
            self.answers[body["id"]].add(payload)
            self.times_published[body["id"]] += 1


def _varint(data: bytes | bytearray, at: int) -> tuple[int, int] | None:
    """A variable byte integer (section 1.5.5) and where it ends; ``None`` if it is not all there."""
    value = 0
    for index in range(4):
        if at + index >= len(data):
            return None
        value |= (data[at + index] & 0x7F) << (7 * index)
        if not data[at + index] & 0x80:
            return value, at + index + 1
    raise ValueError("variable byte integer of more than four bytes")


def _cut_packet(unread: bytearray) -> tuple[int, bytes] | None:
    """Take a whole packet off the front: its first byte, and what follows the fixed header."""
    length = _varint(unread, 1) if unread else None
    if length is None or len(unread) < length[0] + length[1]:
        return None
    size, start = length
    packet = unread[0], bytes(unread[start : start + size])
    del unread[: start + size]
    return packet


def _publish(kind_and_flags: int, body: bytes) -> tuple[str, bytes]:
    """Topic and payload of a PUBLISH (section 3.3)."""
    at = 2 + int.from_bytes(body[:2], "big")
    topic = body[2:at].decode()
    at += 2 if kind_and_flags & 0x06 else 0
    properties = _varint(body, at)
    if properties is None:
        raise ValueError("PUBLISH without properties")
    return topic, body[properties[0] + properties[1] :]
