"""A lean MQTT 5 client: paho, TCP_NODELAY, no thread of its own.

The caller's thread polls the socket, so that a round trip holds no thread switch of the client's: what is
left is the broker's and the agent's. A client lives for one connection; a session may outlive it.
"""

from __future__ import annotations

import select
import socket
import time
from collections import deque
from dataclasses import dataclass
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

CONNECT_TIMEOUT_S = 10.0
_HOST = "127.0.0.1"


class ConnectionLostError(ConnectionError):
    """The connection could not be made, or broke."""


@dataclass(frozen=True)
class Arrival:
    """A received message; `at_s` is ``time.perf_counter`` when it was read."""

    topic: str
    payload: bytes
    correlation: bytes | None
    retain: bool
    at_s: float


def _new_properties(packet: int) -> Properties:
    return Properties(packet)  # type: ignore[no-untyped-call]


class LeanClient:
    """One connection; not thread-safe.

    Attributes:
        arrivals: messages not taken yet, oldest first.
        confirmed: (mid, reason code) of each PUBACK not taken yet; 0 is plain success, 16 is success with
            nobody subscribed.
    """

    def __init__(
        self,
        port: int,
        filters: list[tuple[str, int]],
        *,
        client_id: str = "",
        session_expiry_s: int = 0,
        protocol: int = paho.MQTTv5,
    ) -> None:
        """Connect and subscribe to `filters` of (filter, qos).

        Args:
            port: on loopback.
            filters: what to subscribe to.
            client_id: empty lets the broker choose.
            session_expiry_s: above 0 the session is kept, and taken up where there is one.
            protocol: ``paho.MQTTv5`` or ``paho.MQTTv311``.

        Raises:
            ConnectionLostError: no broker, or it refuses.
        """
        self.arrivals: deque[Arrival] = deque()
        self.confirmed: deque[tuple[int, int]] = deque()
        self._is_v5 = protocol == paho.MQTTv5
        self._ready = False
        self._why = "no answer"
        self._filters = filters
        self._client = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id=client_id,
            clean_session=None if self._is_v5 else True,
            protocol=MQTTProtocolVersion(protocol),
            reconnect_on_failure=False,
        )
        self._client.connect_timeout = CONNECT_TIMEOUT_S
        self._client.max_inflight_messages_set(
            20
        )  # mosquitto closes the connection beyond its Receive Maximum
        self._client.on_socket_open = self._on_socket_open
        self._client.on_connect = self._on_connect
        self._client.on_subscribe = self._on_subscribe
        self._client.on_message = self._on_message
        self._client.on_publish = self._on_publish
        self._client.on_disconnect = self._on_disconnect
        self._poller = select.poll()
        try:
            if self._is_v5:
                properties = _new_properties(PacketTypes.CONNECT)
                properties.SessionExpiryInterval = session_expiry_s
                properties.ReceiveMaximum = 1000
                self._client.connect(
                    _HOST, port, 60, clean_start=session_expiry_s == 0, properties=properties
                )
            else:
                self._client.connect(_HOST, port, 60)
        except (OSError, ValueError) as error:
            raise ConnectionLostError(str(error)) from error
        sock = self._client.socket()
        assert sock is not None
        self._poller.register(sock, select.POLLIN)
        until_s = time.monotonic() + CONNECT_TIMEOUT_S
        while not self._ready and time.monotonic() < until_s:
            self.poll(0.1)
        if not self._ready:
            self.close()
            raise ConnectionLostError(f"no CONNACK and SUBACK within {CONNECT_TIMEOUT_S:g} s")

    # --- use ----------------------------------------------------------------------------------------------

    def publish(
        self,
        topic: str,
        payload: bytes,
        *,
        response_topic: str | None = None,
        correlation: bytes | None = None,
        qos: int = 1,
    ) -> int:
        """Send a message; its mid.

        Raises:
            ConnectionLostError: not connected any more.
        """
        properties = None
        if self._is_v5 and (response_topic is not None or correlation is not None):
            properties = _new_properties(PacketTypes.PUBLISH)
            if response_topic is not None:
                properties.ResponseTopic = response_topic
            if correlation is not None:
                properties.CorrelationData = correlation
        info = self._client.publish(topic, payload, qos, False, properties)
        if info.rc != MQTTErrorCode.MQTT_ERR_SUCCESS:
            raise ConnectionLostError(self._why)
        return info.mid

    def poll(self, timeout_s: float) -> None:
        """Read and write what is due, waiting at most `timeout_s` for the network.

        Raises:
            ConnectionLostError: the connection broke.
        """
        sock = self._client.socket()
        if sock is None:
            raise ConnectionLostError(self._why)
        wants_write = self._client.want_write()
        self._poller.modify(sock, select.POLLIN | (select.POLLOUT if wants_write else 0))
        for _, event in self._poller.poll(timeout_s * 1000):
            if event & ~select.POLLOUT:
                self._client.loop_read()
            if event & select.POLLOUT:
                self._client.loop_write()
        self._client.loop_misc()
        if self._client.socket() is None:
            raise ConnectionLostError(self._why)

    def take(self, timeout_s: float) -> Arrival | None:
        """The oldest message; ``None`` when none comes within `timeout_s`.

        Raises:
            ConnectionLostError: the connection broke.
        """
        until_s = time.monotonic() + timeout_s
        while not self.arrivals:
            left_s = until_s - time.monotonic()
            if left_s <= 0:
                return None
            self.poll(left_s)
        return self.arrivals.popleft()

    def close(self) -> None:
        """Leave the broker; a kept session stays."""
        self._client.disconnect()
        sock = self._client.socket()
        if sock is not None:
            sock.close()

    # --- paho's callbacks ---------------------------------------------------------------------------------

    def _on_socket_open(self, _client: paho.Client, _userdata: Any, sock: Any) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def _on_connect(
        self, client: paho.Client, _userdata: Any, _flags: Any, reason: ReasonCode, _properties: Any
    ) -> None:
        if reason.is_failure:
            self._why = str(reason)
        elif self._filters:
            client.subscribe(self._filters)
        else:
            self._ready = True

    def _on_subscribe(
        self, _client: paho.Client, _userdata: Any, _mid: int, _reasons: Any, _properties: Any
    ) -> None:
        self._ready = True

    def _on_message(self, _client: paho.Client, _userdata: Any, message: paho.MQTTMessage) -> None:
        correlation = getattr(message.properties, "CorrelationData", None)
        self.arrivals.append(
            Arrival(message.topic, bytes(message.payload), correlation, message.retain, time.perf_counter())
        )

    def _on_publish(
        self, _client: paho.Client, _userdata: Any, mid: int, reason: ReasonCode, _properties: Any
    ) -> None:
        self.confirmed.append((mid, reason.value))

    def _on_disconnect(
        self, _client: paho.Client, _userdata: Any, _flags: Any, reason: ReasonCode, _properties: Any
    ) -> None:
        self._why = str(reason)
