"""One MQTT connection, from CONNECT to the last byte, by paho 2.x.

What always holds:

- **A paho client of its own**, never paho's reconnect: paho keeps unconfirmed messages in its client object
  and sends them again after its own reconnect, which the port forbids; a client that lives for one connection
  cannot. It also leaves paho's select(), which fails past descriptor 1,023, and its loop thread, which an
  exception ends while it still says connected.
- **One writer.** `on_socket_register_write` is set, so that paho only queues when other threads publish;
  they wake the link's thread through a socket pair and it does all reading and writing.
- **paho's callbacks only record.** What the owner of the link is to hear waits in `news`.
- **Acknowledgements leave in the order in which the messages came** [MQTT-4.6.0-2], since brokers may insist
  (rumqttd closes the connection otherwise). One given early waits for those before it.
- **Bounded**: at most the broker's Receive Maximum or 20 unconfirmed messages on the wire, 1,000 waiting
  behind them and 1,000 unwritten QoS 0 messages. Inbound, Receive Maximum 20 (MQTT 5 only) and a packet limit
  of 4 MiB that the broker is asked to keep (MQTT 5).

A PUBACK that carries a refusal (MQTT 5, not authorized or quota exceeded) is logged and counts as published:
sending the same message again would be refused again. Over 3.1.1 the MQTT 5 properties of a message are left
out.

Left to others: reconnecting and telling the owner (:mod:`edgeslm.link.mqtt`), whose lock also guards what is
marked so below.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import socket
import ssl
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from edgeslm.clock import utc_now
from edgeslm.errors import ConfigError
from edgeslm.link.port import HOPS_PROPERTY, MAX_HOPS_TOLD, Message
from edgeslm.link.reading import ReadingClient
from edgeslm.schema.config import BrokerConfig

_LOG = logging.getLogger(__name__)

WINDOW = 20
"""Unconfirmed messages on the wire, each way."""
MAX_WAITING = 1000
"""Messages taken but not yet written, for each QoS."""
MAX_PACKET_BYTES = 4 * 2**20
MQTT_MAX_PACKET_BYTES = 268_435_455
CONNECT_TIMEOUT_S = 10.0
"""From the first SYN to SUBACK."""
LINGER_S = 0.2
"""For the broker to close a connection after DISCONNECT."""
_LOOK_S = 0.005
"""While messages come one on the heels of the other, the clock and the network's other needs wait so long at most."""
_MOST_AT_ONCE = 16
"""Plain messages that are told before the network's other needs are looked at."""
_OF_DATES = (9, 10)
"""A certificate is not valid yet, or not any more (OpenSSL, X509_STORE_CTX_get_error(3))."""


def tls_context(config: BrokerConfig) -> ssl.SSLContext | None:
    """The TLS settings that `config` asks for; ``None`` for plain TCP.

    Raises:
        ConfigError: a certificate or key file cannot be read or is none.
    """
    if config.ca_file is None:
        return None
    blamed = [config.ca_file]
    try:
        context = ssl.create_default_context(cafile=str(config.ca_file))
        if config.cert_file is not None and config.key_file is not None:
            blamed = [config.cert_file, config.key_file]
            context.load_cert_chain(str(config.cert_file), str(config.key_file))
    except OSError as error:  # ssl.SSLError is one
        raise ConfigError(
            f"TLS file {' or '.join(str(path) for path in blamed)} cannot be used: {error}",
            path=str(blamed[0]),
            hint="It must be a readable PEM file",
        ) from error
    return context


def read_password(config: BrokerConfig) -> str | None:
    """The broker password, without the line end of its file.

    Raises:
        ConfigError: the file cannot be read.
    """
    if config.password_file is None:
        return None
    try:
        return config.password_file.read_text("utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"password file {config.password_file} cannot be read: {error}", path=str(config.password_file)
        ) from error


def doubt_about_tls(config: BrokerConfig, error: Exception) -> str:
    """What to ask oneself when connecting ended in `error`, to stand behind its text; mostly empty."""
    is_of_handshake = isinstance(error, ssl.SSLError | ConnectionResetError)
    if isinstance(error, ssl.SSLCertVerificationError) and error.verify_code in _OF_DATES:
        return f" (the clock of this machine says {utc_now():%Y-%m-%d})"
    if config.ca_file is None or not is_of_handshake or isinstance(error, ssl.SSLCertVerificationError):
        return ""
    return " (is this a port without TLS?)"


def _doubt_about_silence(config: BrokerConfig) -> str:
    """What to ask oneself when the broker ended the connection instead of answering CONNECT."""
    if config.ca_file is None:
        return "is this a TLS port, or one for another MQTT version?"
    if config.cert_file is None:
        return "does the broker want a client certificate?"
    return "does the broker accept the client certificate?"


def _new_properties(packet: int) -> Properties:
    return Properties(packet)  # type: ignore[no-untyped-call]


def _properties_of(message: Message, packet: int) -> Properties | None:
    """The MQTT 5 properties that `message` needs in a PUBLISH or a will; ``None`` if none."""
    needed = (message.response_topic, message.correlation, message.expiry_s, message.hops or None)
    if all(item is None for item in needed):
        return None
    properties = _new_properties(packet)
    if message.response_topic is not None:
        properties.ResponseTopic = message.response_topic
    if message.correlation is not None:
        properties.CorrelationData = message.correlation
    if message.expiry_s is not None:
        properties.MessageExpiryInterval = message.expiry_s
    if message.hops:
        properties.UserProperty = (HOPS_PROPERTY, str(min(message.hops, MAX_HOPS_TOLD)))
    return properties


def hops_of(properties: Properties | None) -> int:
    """How many rules stand behind a message with these properties; what is no such number counts for nothing."""
    for name, value in getattr(properties, "UserProperty", ()):
        if name == HOPS_PROPERTY and value.isascii() and value.isdigit():
            return min(int(value[:4]), MAX_HOPS_TOLD)
    return 0


def _packet_bytes(message: Message) -> int:
    """Length of its PUBLISH, or a little more."""
    texts = (message.topic, message.response_topic or "")
    return (
        sum(len(text.encode()) for text in texts)
        + len(message.correlation or b"")
        + len(message.payload)
        + 64
    )


class Waker:
    """Interrupts the link thread's poll from any thread."""

    def __init__(self) -> None:
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)

    def fileno(self) -> int:
        """What to poll for reading."""
        return self._reader.fileno()

    def wake(self) -> None:
        """End the poll, or the next one."""
        try:
            self._writer.send(b"\x00")
        except OSError:
            # Full: a wake-up is pending anyway. Closed: nobody is left to wake.
            return

    def clear(self) -> None:
        """Forget the wake-ups so far."""
        try:
            while self._reader.recv(4096):
                pass
        except OSError:
            return

    def close(self) -> None:
        """Give the sockets back; waking does nothing from now on."""
        self._reader.close()
        self._writer.close()


@dataclass
class _Unacknowledged:
    mid: int
    is_done: bool = False


class Connection:
    """One connection's life. Only the link thread steps it; the link's lock guards what others reach.

    Attributes:
        filters: (filter, qos) to subscribe on connecting.
        arrived: what `news` is to call for a received message,
        heard: and for such as paho did not see, with QoS 0 and no properties, in their order.
        confirmed: what `news` is to call for a message id that the broker confirmed.
        news: what happened, for the link thread to call when no lock of paho is held.
        is_subscribed: CONNACK came, and SUBACK if there was something to subscribe.
        session_present: the broker kept our session.
        is_broken: it is over, for `reason`.
        window: unconfirmed messages that this broker wants on the wire at most.
        max_packet_bytes: longest packet that this broker takes.
        held_until_s: nothing is read before (monotonic); any thread may set it.
        tokens: token by message id of what is on the wire.
        waiting: (token, message) of what waits behind the window.
        unwritten_qos0: QoS 0 messages that paho has queued.
    """

    def __init__(self, config: BrokerConfig, client_id: str, will: Message | None, waker: Waker) -> None:
        """Prepare one; nothing is opened yet.

        Raises:
            ConfigError: a password or TLS file cannot be used.
            ValueError: `will` cannot be sent, or a setting is out of paho's bounds.
            MQTTException: the same, where MQTT 5 properties are to blame.
        """
        self._config = config
        self._is_v5 = config.protocol == "5"
        self._waker = waker
        self._poller = select.poll()
        self._poller.register(waker.fileno(), select.POLLIN)
        self._is_answered = False
        self.is_subscribed = False
        self.session_present = False
        self.reason = "connection lost"
        self.is_broken = False
        self.window = WINDOW
        self.max_packet_bytes = MQTT_MAX_PACKET_BYTES
        self.news: deque[Callable[[], None]] = deque()
        self.filters: tuple[tuple[str, int], ...] = ()
        self.arrived: Callable[[Connection, paho.MQTTMessage], None] | None = None
        self.heard: Callable[[Sequence[Message]], None] | None = None
        self.confirmed: Callable[[Connection, int], None] | None = None
        self.held_until_s = 0.0
        self._look_s = 0.0
        self.tokens: dict[int, int] = {}
        self.waiting: deque[tuple[int, Message]] = deque()
        self.unwritten_qos0 = 0
        self._unacknowledged: OrderedDict[int, _Unacknowledged] = OrderedDict()
        self._last_serial = 0
        self._asked: dict[int, tuple[tuple[str, int], ...]] = {}
        self._client = self._new_client(client_id, will)

    # --- link thread ---------------------------------------------------------------------------------------

    def _new_client(self, client_id: str, will: Message | None) -> ReadingClient:
        config = self._config
        client = ReadingClient(
            CallbackAPIVersion.VERSION2,
            client_id=client_id,
            clean_session=None if self._is_v5 else config.session_expiry_s == 0,
            protocol=paho.MQTTv5 if self._is_v5 else paho.MQTTv311,
            reconnect_on_failure=False,
            manual_ack=True,
        )
        # Our own window is at most as wide, so that paho's never fills: its queue is searched from the start
        # for every confirmation.
        client.max_inflight_messages = WINDOW
        client.connect_timeout = CONNECT_TIMEOUT_S
        if will is not None:
            properties = _properties_of(will, PacketTypes.WILLMESSAGE) if self._is_v5 else None
            client.will_set(will.topic, will.payload, will.qos, will.retain, properties)
        if config.username is not None:
            client.username_pw_set(config.username, read_password(config))
        context = tls_context(config)
        if context is not None:
            client.tls_set_context(context)
        client.on_socket_open = self._on_socket_open
        client.on_socket_register_write = self._on_socket_register_write
        client.on_connect = self._on_connect
        client.on_subscribe = self._on_subscribe
        client.on_message = self._on_message
        client.on_publish = self._on_publish
        client.on_disconnect = self._on_disconnect
        return client

    def open(self) -> None:
        """Connect TCP (and TLS) and send CONNECT.

        Raises:
            OSError: the broker cannot be reached.
        """
        config = self._config
        if not self._is_v5:
            self._client.connect(config.host, config.port, config.keepalive_s)
            return
        properties = _new_properties(PacketTypes.CONNECT)
        properties.SessionExpiryInterval = config.session_expiry_s
        properties.ReceiveMaximum = WINDOW
        properties.MaximumPacketSize = MAX_PACKET_BYTES
        self._client.connect(
            config.host,
            config.port,
            config.keepalive_s,
            clean_start=config.session_expiry_s == 0,
            properties=properties,
        )

    def is_open(self) -> bool:
        """Whether it can still be stepped."""
        return not self.is_broken and self._client.socket() is not None

    def step(self, timeout_s: float) -> None:
        """Wait for the network or a wake-up, at most `timeout_s`, and do what is due."""
        sock = self._client.socket()
        if sock is None:
            return
        now_s = time.monotonic()
        held_s = self.held_until_s - now_s
        has_ahead = held_s <= 0 and self._client.has_ahead()
        if has_ahead and now_s < self._look_s and not self._client.want_write():
            self._read()
            return
        self._look_s = now_s + _LOOK_S
        interest = (select.POLLIN if held_s <= 0 else 0) | (
            select.POLLOUT if self._client.want_write() else 0
        )
        self._poller.register(sock, interest)
        # TLS may hold decrypted bytes back that no poll announces.
        is_deciphered = held_s <= 0 and isinstance(sock, ssl.SSLSocket) and sock.pending() > 0
        has_buffered = has_ahead or is_deciphered
        # A quarter of the keepalive notices a due ping well within the broker's grace of half of one. The
        # broker may have set another keepalive than ours, or 0 for none.
        longest_s = max(0.0, min(timeout_s, self._client.keepalive / 4 or timeout_s))
        if held_s > 0:
            longest_s = min(longest_s, held_s)
        ready = dict(self._poller.poll(0 if has_buffered else longest_s * 1000))
        if self._waker.fileno() in ready:
            self._waker.clear()
        # What is to be said first: each message that comes in costs more than one that goes out.
        if self._client.want_write():
            self._client.loop_write()
        if has_buffered or ready.get(sock.fileno(), 0) & ~select.POLLOUT:
            self._read()
        self._client.loop_misc()

    def _read(self) -> None:
        self._client.fetch()
        message = self._client.next_plain()
        if message is None:
            self._client.loop_read()
            return
        heard = []
        while message is not None:
            heard.append(message)
            message = self._client.next_plain() if len(heard) < _MOST_AT_ONCE else None
        if self.heard is not None:
            self.news.append(partial(self.heard, heard))

    def disconnect(self, deadline_s: float) -> None:
        """Send DISCONNECT, and let the broker close the connection first."""
        sock = self._client.socket()
        if sock is None:
            return
        # paho closes at once, which rumqttd counts as a second disconnection: a client that connects in that
        # moment and is given the freed connection number is thrown out.
        with socket.socket(fileno=os.dup(sock.fileno())) as held:
            self._client.disconnect()
            while self.is_open() and time.monotonic() < deadline_s:
                self.step(deadline_s - time.monotonic())
            held.settimeout(LINGER_S)
            with contextlib.suppress(OSError):
                while held.recv(4096):
                    pass

    def close(self) -> None:
        """Close the socket, without DISCONNECT: the broker sends the will."""
        sock = self._client.socket()
        if sock is not None:
            sock.close()

    # --- any thread, under the link's lock -----------------------------------------------------------------

    def send(self, token: int, message: Message) -> bool:
        """Write `message`, or queue it behind the window; whether it was taken.

        Raises:
            ValueError: it is longer than what the broker takes, or its topic holds wildcards.
            MQTTException: its MQTT 5 properties cannot be sent.
        """
        size_bytes = _packet_bytes(message)
        if size_bytes > self.max_packet_bytes:
            # The broker would close the connection, and do so again for each new attempt.
            raise ValueError(f"{size_bytes} bytes, the broker takes {self.max_packet_bytes}")
        if message.qos == 0:
            if self.unwritten_qos0 >= MAX_WAITING or not self._write(token, message):
                return False
            self.unwritten_qos0 += 1
            return True
        if len(self.tokens) < self.window:
            return self._write(token, message)
        if len(self.waiting) >= MAX_WAITING:
            return False
        self.waiting.append((token, message))
        return True

    def _write(self, token: int, message: Message) -> bool:
        properties = _properties_of(message, PacketTypes.PUBLISH) if self._is_v5 else None
        info = self._client.publish(message.topic, message.payload, message.qos, message.retain, properties)
        if info.rc != MQTTErrorCode.MQTT_ERR_SUCCESS:
            return False
        if message.qos > 0:
            self.tokens[info.mid] = token
        return True

    def settle(self, mid: int) -> int | None:
        """Note that the broker confirmed `mid` and let the next one out; the token, ``None`` for QoS 0."""
        token = self.tokens.pop(mid, None)
        if token is None:
            self.unwritten_qos0 -= 1
            return None
        if self.waiting:
            self._write(*self.waiting.popleft())
        return token

    def is_pending(self, token: int) -> bool:
        """Whether the QoS 1 message of `token` is still to be confirmed."""
        return token in self.tokens.values() or any(waiting == token for waiting, _ in self.waiting)

    def remember(self, mid: int) -> int:
        """Note a received QoS 1 message; its serial number (the broker uses `mid` again)."""
        self._last_serial += 1
        self._unacknowledged[self._last_serial] = _Unacknowledged(mid)
        return self._last_serial

    def acknowledge(self, serial: int) -> None:
        """Acknowledge a received message as soon as all before it are."""
        entry = self._unacknowledged.get(serial)
        if entry is None:
            return
        entry.is_done = True
        while self._unacknowledged:
            first = next(iter(self._unacknowledged))
            if not self._unacknowledged[first].is_done:
                return
            self._client.ack(self._unacknowledged.pop(first).mid, 1)

    def subscribe(self, filters: Sequence[tuple[str, int]]) -> int | None:
        """Send SUBSCRIBE; its message id, or ``None`` if the connection is lost."""
        if self._is_v5:
            _, mid = self._client.subscribe([(name, SubscribeOptions(qos=qos)) for name, qos in filters])
        else:
            _, mid = self._client.subscribe(list(filters))
        if mid is not None:
            self._asked[mid] = tuple(filters)
        return mid

    def unsubscribe(self, names: Sequence[str]) -> None:
        """Send UNSUBSCRIBE."""
        self._client.unsubscribe(list(names))

    # --- paho's callbacks, in the link thread: they record and never raise ----------------------------------

    def _on_socket_open(self, _client: paho.Client, _userdata: Any, sock: Any) -> None:
        try:
            # Nagle and delayed acknowledgements turn a round trip of 0.35 ms into 88 ms.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except OSError as error:
            _LOG.warning("TCP_NODELAY cannot be set: %s", error)

    def _on_socket_register_write(self, _client: paho.Client, _userdata: Any, _sock: Any) -> None:
        self._waker.wake()

    def _on_connect(
        self,
        _client: paho.Client,
        _userdata: Any,
        flags: paho.ConnectFlags,
        reason: ReasonCode,
        properties: Properties | None,
    ) -> None:
        self._is_answered = True
        if reason.is_failure:
            self._break(f"refused by the broker: {reason}")
            return
        self.session_present = flags.session_present
        self.window = min(WINDOW, getattr(properties, "ReceiveMaximum", WINDOW))
        self.max_packet_bytes = getattr(properties, "MaximumPacketSize", self.max_packet_bytes)
        if not self.filters:
            self.is_subscribed = True
        elif self.subscribe(self.filters) is None:
            self._break("connection lost while subscribing")

    def _on_subscribe(
        self,
        _client: paho.Client,
        _userdata: Any,
        mid: int,
        reasons: list[ReasonCode],
        _properties: Properties | None,
    ) -> None:
        for (name, _), reason in zip(self._asked.pop(mid, ()), reasons, strict=False):
            if reason.is_failure:
                _LOG.error("the broker refuses the subscription to %s: %s", name, reason)
        self.is_subscribed = True

    def _on_message(self, _client: paho.Client, _userdata: Any, message: paho.MQTTMessage) -> None:
        if self.arrived is not None:
            self.news.append(partial(self.arrived, self, message))

    def _on_publish(
        self,
        _client: paho.Client,
        _userdata: Any,
        mid: int,
        reason: ReasonCode,
        _properties: Properties | None,
    ) -> None:
        if reason.is_failure:
            _LOG.error("the broker refuses a message: %s", reason)
        if self.confirmed is not None:
            self.news.append(partial(self.confirmed, self, mid))

    def _on_disconnect(
        self,
        _client: paho.Client,
        _userdata: Any,
        flags: paho.DisconnectFlags,
        reason: ReasonCode,
        _properties: Properties | None,
    ) -> None:
        if flags.is_disconnect_packet_from_server:
            self._break(f"closed by the broker: {reason}")
        elif self._is_answered:
            self._break(f"connection lost: {reason}")
        else:
            doubt = _doubt_about_silence(self._config)
            self._break(f"connection lost before the broker answered: {reason} ({doubt})")

    def _break(self, reason: str) -> None:
        if not self.is_broken:
            self.is_broken = True
            self.reason = reason
