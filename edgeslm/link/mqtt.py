"""The link over MQTT, by paho 2.x.

What always holds:

- **A fresh paho client for every connection**, driven by this link's own thread (connect, serve until
  broken, wait, again). paho keeps unconfirmed messages in its client object and sends them again after its
  own reconnect, which the port forbids; a client that lives for one connection cannot. It also leaves paho's
  select(), which fails past descriptor 1,023, and its loop thread, which an exception ends while it still
  says connected.
- **One writer.** `on_socket_register_write` is set, so that paho only queues when other threads publish;
  they wake the thread through a socket pair and it does all reading and writing.
- **paho's callbacks only record.** The owner is told afterwards, when no lock of paho is held: a handler may
  publish, acknowledge or stop. A handler that raises is logged and the link lives on.
- **``on_connected`` means subscribed**: it comes after SUBACK and before any message. Filters are subscribed
  on every connect, even into a session that the broker kept: a newer agent may ask for more than its
  predecessor did.
- **Acknowledgements leave in the order in which the messages came** [MQTT-4.6.0-2], since brokers may insist
  (rumqttd closes the connection otherwise). One given early waits for those before it.
- **Bounded**: at most the broker's Receive Maximum or 20 unconfirmed messages on the wire, 1,000 waiting
  behind them and 1,000 unwritten QoS 0 messages; beyond that `publish` returns ``None``. Inbound, Receive
  Maximum 20 (MQTT 5 only) and a packet limit of 4 MiB that the broker is asked to keep (MQTT 5).

A PUBACK that carries a refusal (MQTT 5, not authorized or quota exceeded) is logged and counts as published:
sending the same message again would be refused again. Password and TLS files are read anew for every
connection, so rotating them needs no restart. Over 3.1.1 the MQTT 5 properties of a message are left out.

Left to others: storing messages until they are confirmed (the owner's outbox), deciding what a message
means, and removing filters of an earlier program version from a session that the broker kept.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import select
import socket
import ssl
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt import MQTTException
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from edgeslm.errors import LinkError
from edgeslm.link.port import LinkEvents, Message
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
MIN_BACKOFF_S = 0.2
MAX_BACKOFF_S = 10.0
FAREWELL_TIMEOUT_S = 2.0
LINGER_S = 0.2
"""For the broker to close a connection after DISCONNECT."""
_JOIN_TIMEOUT_S = CONNECT_TIMEOUT_S + FAREWELL_TIMEOUT_S + 1.0


def backoff_s(failures: int, jitter: float) -> float:
    """Seconds to wait after `failures` (1 or more) connections in a row that did not last.

    Args:
        failures: how many.
        jitter: 0 to 1, random, so that a fleet does not come back in step after its broker was away.
    """
    longest = min(MAX_BACKOFF_S, MIN_BACKOFF_S * 2.0 ** min(failures - 1, 16))
    return longest * (0.5 + 0.5 * jitter)


def tls_context(config: BrokerConfig) -> ssl.SSLContext | None:
    """The TLS settings that `config` asks for; ``None`` for plain TCP.

    Raises:
        LinkError: a certificate or key file cannot be read or is none.
    """
    if config.ca_file is None:
        return None
    try:
        context = ssl.create_default_context(cafile=str(config.ca_file))
        if config.cert_file is not None and config.key_file is not None:
            context.load_cert_chain(str(config.cert_file), str(config.key_file))
    except OSError as error:  # ssl.SSLError is one
        files = ", ".join(str(path) for path in (config.ca_file, config.cert_file, config.key_file) if path)
        raise LinkError(
            f"TLS files ({files}) cannot be used: {error}", hint="They must be readable PEM files"
        ) from error
    return context


def read_password(config: BrokerConfig) -> str | None:
    """The broker password, without the line end of its file.

    Raises:
        LinkError: the file cannot be read.
    """
    if config.password_file is None:
        return None
    try:
        return config.password_file.read_text("utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise LinkError(f"password file {config.password_file} cannot be read: {error}") from error


def _new_properties(packet: int) -> Properties:
    return Properties(packet)  # type: ignore[no-untyped-call]


def _properties_of(message: Message, packet: int) -> Properties | None:
    """The MQTT 5 properties that `message` needs in a PUBLISH or a will; ``None`` if none."""
    if message.response_topic is None and message.correlation is None and message.expiry_s is None:
        return None
    properties = _new_properties(packet)
    if message.response_topic is not None:
        properties.ResponseTopic = message.response_topic
    if message.correlation is not None:
        properties.CorrelationData = message.correlation
    if message.expiry_s is not None:
        properties.MessageExpiryInterval = message.expiry_s
    return properties


def _packet_bytes(message: Message) -> int:
    """Length of its PUBLISH, or a little more."""
    texts = (message.topic, message.response_topic or "")
    return (
        sum(len(text.encode()) for text in texts)
        + len(message.correlation or b"")
        + len(message.payload)
        + 32
    )


class _Waker:
    """Interrupts the link thread's poll from any thread."""

    def __init__(self) -> None:
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)

    def fileno(self) -> int:
        return self._reader.fileno()

    def wake(self) -> None:
        try:
            self._writer.send(b"\x00")
        except OSError:
            # Full: a wake-up is pending anyway. Closed: nobody is left to wake.
            return

    def clear(self) -> None:
        try:
            while self._reader.recv(4096):
                pass
        except OSError:
            return

    def close(self) -> None:
        self._reader.close()
        self._writer.close()


@dataclass
class _Unacknowledged:
    mid: int
    is_done: bool = False


class _Connection:
    """One connection's life. Only the link thread steps it; the link's lock guards what others reach."""

    def __init__(self, config: BrokerConfig, client_id: str, will: Message | None, waker: _Waker) -> None:
        self._config = config
        self._is_v5 = config.protocol == "5"
        self._waker = waker
        self._poller = select.poll()
        self._poller.register(waker.fileno(), select.POLLIN)
        self.is_subscribed = False
        self.session_present = False
        self.reason = "connection lost"
        self.is_broken = False
        self.window = WINDOW
        self.max_packet_bytes = MQTT_MAX_PACKET_BYTES
        self.news: deque[Callable[[], None]] = deque()
        self.filters: tuple[tuple[str, int], ...] = ()
        self.arrived: Callable[[_Connection, paho.MQTTMessage], None] | None = None
        self.confirmed: Callable[[_Connection, int], None] | None = None
        self.tokens: dict[int, int] = {}
        self.waiting: deque[tuple[int, Message]] = deque()
        self.unwritten_qos0 = 0
        self._unacknowledged: OrderedDict[int, _Unacknowledged] = OrderedDict()
        self._last_serial = 0
        self._asked: dict[int, tuple[tuple[str, int], ...]] = {}
        self._client = self._new_client(client_id, will)

    # --- link thread ---------------------------------------------------------------------------------------

    def _new_client(self, client_id: str, will: Message | None) -> paho.Client:
        config = self._config
        client = paho.Client(
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
        return not self.is_broken and self._client.socket() is not None

    def step(self, timeout_s: float) -> None:
        """Wait for the network or a wake-up, at most `timeout_s`, and do what is due."""
        sock = self._client.socket()
        if sock is None:
            return
        interest = select.POLLIN | (select.POLLOUT if self._client.want_write() else 0)
        self._poller.register(sock, interest)
        # TLS may hold decrypted bytes back that no poll announces.
        has_buffered = isinstance(sock, ssl.SSLSocket) and sock.pending() > 0
        # A quarter of the keepalive notices a due ping well within the broker's grace of half of one. The
        # broker may have set another keepalive than ours, or 0 for none.
        longest_s = max(0.0, min(timeout_s, self._client.keepalive / 4 or timeout_s))
        ready = dict(self._poller.poll(0 if has_buffered else longest_s * 1000))
        if self._waker.fileno() in ready:
            self._waker.clear()
        if has_buffered or sock.fileno() in ready:
            self._client.loop_read()
        if self._client.want_write():
            self._client.loop_write()
        self._client.loop_misc()

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
        sock = self._client.socket()
        if sock is not None:
            sock.close()

    # --- any thread, under the link's lock -----------------------------------------------------------------

    def send(self, token: int, message: Message) -> bool:
        """Write `message`, or queue it behind the window; whether it was taken."""
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
        return token in self.tokens.values() or any(waiting == token for waiting, _ in self.waiting)

    def remember(self, mid: int) -> int:
        """Note a received QoS 1 message; its serial number (the broker uses `mid` again)."""
        self._last_serial += 1
        self._unacknowledged[self._last_serial] = _Unacknowledged(mid)
        return self._last_serial

    def acknowledge(self, serial: int) -> None:
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
        if self._is_v5:
            _, mid = self._client.subscribe([(name, SubscribeOptions(qos=qos)) for name, qos in filters])
        else:
            _, mid = self._client.subscribe(list(filters))
        if mid is not None:
            self._asked[mid] = tuple(filters)
        return mid

    def unsubscribe(self, names: Sequence[str]) -> None:
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
        by_broker = flags.is_disconnect_packet_from_server
        self._break(f"closed by the broker: {reason}" if by_broker else f"connection lost: {reason}")

    def _break(self, reason: str) -> None:
        if not self.is_broken:
            self.is_broken = True
            self.reason = reason


class MqttLink:
    """A :class:`~edgeslm.link.port.Link` to an MQTT broker. It lives once: start, then stop."""

    def __init__(self, config: BrokerConfig, client_id: str, will: Message | None = None) -> None:
        self._config = config
        self._client_id = client_id
        self._will = will
        self._lock = threading.Lock()
        self._waker = _Waker()
        self._stopping = threading.Event()
        self._farewell: Message | None = None
        self._connection: _Connection | None = None
        self._events: LinkEvents | None = None
        self._filters: dict[str, int] = {}
        self._last_token = 0
        self._told_reason: str | None = None
        self._thread: threading.Thread | None = None

    # --- the port ------------------------------------------------------------------------------------------

    def start(self, events: LinkEvents, filters: Sequence[tuple[str, int]]) -> None:
        """See :meth:`edgeslm.link.port.Link.start`."""
        if self._thread is not None or self._stopping.is_set():
            raise LinkError("a link can be started only once")
        self._events = events
        self._filters = dict(filters)
        try:
            # Built and thrown away: finds bad files, a bad will and bad settings now, not in the thread.
            _Connection(self._config, self._client_id, self._will, self._waker)
        except (ValueError, MQTTException) as error:
            raise LinkError(f"the link to {self._address()} cannot be set up: {error}") from error
        self._thread = threading.Thread(target=self._run, name=f"link-{self._client_id}", daemon=True)
        self._thread.start()

    def publish(self, message: Message) -> int | None:
        """See :meth:`edgeslm.link.port.Link.publish`; ``None`` also when the bounds above are reached.

        Raises:
            LinkError: the message can never be sent: its topic holds wildcards, or it is longer than what
                MQTT or (as it announced) this broker takes. Trying again is futile.
        """
        with self._lock:
            if self._connection is None:
                return None
            self._last_token += 1
            token = self._last_token
            try:
                if not self._connection.send(token, message):
                    return None
            except (ValueError, MQTTException) as error:
                raise LinkError(f"a message to '{message.topic[:120]}' cannot be sent: {error}") from error
        self._waker.wake()
        return token

    def stop(self, farewell: Message | None = None) -> None:
        """See :meth:`edgeslm.link.port.Link.stop`."""
        if not self._stopping.is_set():
            self._farewell = farewell
            self._stopping.set()
        self._waker.wake()
        thread = self._thread
        if thread is None:
            self._waker.close()
        elif thread is not threading.current_thread():
            thread.join(_JOIN_TIMEOUT_S)
            if thread.is_alive():
                _LOG.error("the link thread to %s does not end: name resolution may hang", self._address())

    # --- beyond the port, for clients whose interests change ------------------------------------------------

    def subscribe(self, filters: Sequence[tuple[str, int]]) -> None:
        """Subscribe to more (filter, qos), now or on connecting, and keep them subscribed."""
        with self._lock:
            self._filters.update(filters)
            if self._connection is not None:
                self._connection.subscribe(filters)
        self._waker.wake()

    def unsubscribe(self, names: Sequence[str]) -> None:
        """Give filters up."""
        with self._lock:
            for name in names:
                self._filters.pop(name, None)
            if self._connection is not None:
                self._connection.unsubscribe(names)
        self._waker.wake()

    # --- the thread ----------------------------------------------------------------------------------------

    def _address(self) -> str:
        return f"{self._config.host}:{self._config.port}"

    def _run(self) -> None:
        failures = 0
        while not self._stopping.is_set():
            began_s = time.monotonic()
            reason = self._live()
            if self._stopping.is_set():
                break
            self._tell_disconnected(reason)
            # One that a broker accepts and drops at once (two clients of one name, say) has not lasted.
            failures = 1 if time.monotonic() - began_s > MAX_BACKOFF_S else failures + 1
            self._stopping.wait(backoff_s(failures, random.random()))  # noqa: S311 - no secret
        self._waker.close()

    def _live(self) -> str:
        """One connection from its first to its last byte; why it ended."""
        try:
            connection = self._open()
        except (OSError, ValueError, LinkError, MQTTException) as error:
            return f"cannot connect to {self._address()}: {error}"
        try:
            self._serve(connection)
        except Exception as error:
            # Bytes that paho cannot parse end in whatever its parser stumbles over.
            _LOG.exception("the connection to %s is given up", self._address())
            connection.reason = f"connection given up: {type(error).__name__}: {error}"
        finally:
            with self._lock:
                self._connection = None
            connection.close()
        return connection.reason

    def _open(self) -> _Connection:
        connection = _Connection(self._config, self._client_id, self._will, self._waker)
        with self._lock:
            connection.filters = tuple(self._filters.items())
        connection.arrived = self._on_arrived
        connection.confirmed = self._on_confirmed
        connection.open()
        return connection

    def _serve(self, connection: _Connection) -> None:
        deadline_s = time.monotonic() + CONNECT_TIMEOUT_S
        while connection.is_open() and not self._stopping.is_set():
            if connection.is_subscribed:
                connection.step(MAX_BACKOFF_S)
            elif time.monotonic() < deadline_s:
                connection.step(deadline_s - time.monotonic())
            else:
                connection.reason = f"{self._address()} does not answer as an MQTT broker"
                return
            self._report(connection)
        if connection.is_open():
            self._say_goodbye(connection)

    def _report(self, connection: _Connection) -> None:
        """Tell the owner what paho's callbacks recorded."""
        if not connection.is_subscribed:
            return
        if self._connection is not connection:
            with self._lock:
                self._connection = connection
                missed = tuple(item for item in self._filters.items() if item not in connection.filters)
                if missed:  # asked for while CONNECT was on its way
                    connection.subscribe(missed)
            self._told_reason = None
            if self._events is not None:
                on_connected = partial(self._events.on_connected, session_present=connection.session_present)
                self._tell(on_connected)
        while connection.news:
            connection.news.popleft()()

    def _say_goodbye(self, connection: _Connection) -> None:
        deadline_s = time.monotonic() + FAREWELL_TIMEOUT_S
        token = self.publish(self._farewell) if self._farewell is not None else None
        while token is not None and connection.is_open() and time.monotonic() < deadline_s:
            connection.step(deadline_s - time.monotonic())
            self._report(connection)
            with self._lock:
                if not connection.is_pending(token):
                    break
        connection.disconnect(deadline_s)

    # --- telling the owner ---------------------------------------------------------------------------------

    def _tell(self, handler: Callable[[], None]) -> None:
        try:
            handler()
        except Exception:
            _LOG.exception("a link handler raised; what it was told is dropped")

    def _tell_disconnected(self, reason: str) -> None:
        if reason == self._told_reason or self._events is None:
            return  # still the same outage: the owner knows
        self._told_reason = reason
        _LOG.info("link to %s: %s", self._address(), reason)
        self._tell(partial(self._events.on_disconnected, reason))

    def _on_confirmed(self, connection: _Connection, mid: int) -> None:
        with self._lock:
            token = connection.settle(mid)
        if token is not None and self._events is not None:
            self._tell(partial(self._events.on_published, token))

    def _on_arrived(self, connection: _Connection, raw: paho.MQTTMessage) -> None:
        message = Message(topic="", payload=b"")
        if raw.qos > 0:
            with self._lock:
                serial = connection.remember(raw.mid)
            message = Message("", b"", acknowledge=partial(self._acknowledge, connection, serial))
        try:
            topic = raw.topic
        except UnicodeDecodeError:
            _LOG.warning("a message whose topic is not UTF-8 is dropped")
            message.acknowledge()
            return
        properties = raw.properties
        message = Message(
            topic=topic,
            payload=bytes(raw.payload),
            qos=raw.qos,
            retain=raw.retain,
            response_topic=getattr(properties, "ResponseTopic", None),
            correlation=getattr(properties, "CorrelationData", None),
            expiry_s=getattr(properties, "MessageExpiryInterval", None),
            acknowledge=message.acknowledge,
        )
        if self._events is not None:
            self._tell(partial(self._events.on_message, message))

    def _acknowledge(self, connection: _Connection, serial: int) -> None:
        with self._lock:
            if self._connection is not connection:
                return  # that connection is gone; the broker delivers the message again
            connection.acknowledge(serial)
        self._waker.wake()
