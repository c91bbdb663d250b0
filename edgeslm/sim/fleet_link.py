"""One MQTT connection of a simulated device, that never waits: whoever has an epoll loop drives many of them.

What always holds: no call blocks, for TCP, TLS or MQTT; at most the broker's Receive Maximum of messages is
unconfirmed, and a bounded number waits behind them. A connection lives once.

Left to others: when to connect, and what is said (:mod:`edgeslm.sim.fleet_loop`).
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import ssl
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from edgeslm.errors import ConfigError, LinkError
from edgeslm.link.port import Message
from edgeslm.sim import fleet_wire as wire

MAX_WAITING: Final = 200
"""Messages behind the window; of more, the oldest are lost, as on a device that is cut off for long."""
_READ_BYTES: Final = 65_536
_MAX_MID: Final = 65_535

Phase = Literal["tcp", "tls", "mqtt", "subscribing", "open"]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where to connect, and as whom.

    Attributes:
        host: as the broker's certificate names it.
        address: numeric.
        client_id: at the broker, where that does not follow from the user.
        user: with which name, where no certificate says it.
        ca_file: authority; ``None`` is plain TCP.
        cert_file: key and certificate of the client, in one file.
    """

    host: str
    address: str
    port: int
    client_id: str
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    ca_file: Path | None = None
    cert_file: Path | None = None


@dataclass(frozen=True, slots=True)
class Opened:
    """The broker took us, and the subscriptions."""


@dataclass(frozen=True, slots=True)
class Got:
    """A message."""

    topic: str
    payload: bytes


@dataclass(frozen=True, slots=True)
class Denied:
    """The broker refuses a message that we sent."""


Happening = Opened | Got | Denied


class Connection:
    """See the module.

    Attributes:
        phase: how far it is.
        sent_s: when something was sent last, in seconds of the caller's clock; for the keepalive.
    """

    __slots__ = (
        "_connect_packet",
        "_endpoint",
        "_filters",
        "_in",
        "_inflight",
        "_last_mid",
        "_out",
        "_socket",
        "_tls",
        "_waiting",
        "_window",
        "phase",
        "sent_s",
        "wants_write",
    )

    def __init__(
        self,
        endpoint: Endpoint,
        filters: Sequence[str],
        tls: TlsContexts,
        *,
        will: Message | None,
        keepalive_s: int,
        session_expiry_s: int,
        now_s: float,
    ) -> None:
        """Begin to connect.

        Raises:
            LinkError: there are no sockets left, or the network is gone.
        """
        self._connect_packet = wire.connect(
            endpoint.client_id,
            keepalive_s=keepalive_s,
            session_expiry_s=session_expiry_s,
            will=will,
            user=endpoint.user,
            password=None if endpoint.password is None else endpoint.password.encode(),
        )
        self._filters = tuple(filters)
        self._endpoint, self._tls = endpoint, tls
        self._in, self._out = bytearray(), bytearray()
        self._inflight: set[int] = set()
        self._waiting: deque[Message] = deque(maxlen=MAX_WAITING)
        self._window, self._last_mid = wire.RECEIVE_MAXIMUM, 0
        self.phase: Phase = "tcp"
        self.sent_s, self.wants_write = now_s, True
        self._socket: socket.socket = _open(endpoint)

    def fileno(self) -> int:
        """What to poll."""
        return self._socket.fileno()

    @property
    def events(self) -> int:
        """What to poll for."""
        return select.EPOLLIN | (select.EPOLLOUT if self.wants_write else 0)

    def send(self, messages: Sequence[Message], now_s: float) -> None:
        """Send `messages`, as far as the window lets them; the rest follows.

        Raises:
            LinkError: the connection is gone.
        """
        self._waiting.extend(messages)
        self._fill()
        if self._out:
            self.sent_s = now_s
            self._flush()

    def ping(self, now_s: float) -> None:
        """Say that we are there.

        Raises:
            LinkError: the connection is gone.
        """
        self._out += wire.PING
        self.sent_s = now_s
        self._flush()

    def leave(self, farewell: Message | None, now_s: float) -> None:
        """Say goodbye: the broker sends no will, and closes the connection.

        Raises:
            LinkError: the connection is gone.
        """
        if farewell is not None:
            self._last_mid = self._last_mid % _MAX_MID + 1
            self._out += wire.publish(farewell, self._last_mid)
        self._out += wire.disconnect()
        self.sent_s = now_s
        self._flush()

    def ready(self, events: int, now_s: float) -> list[Happening]:
        """The socket can be read or written: what came of it.

        Raises:
            LinkError: the connection is gone, or the broker refuses us.
            ConfigError: a TLS file cannot be used.
        """
        if self.phase == "tcp":
            fault = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if fault:
                raise LinkError(f"cannot connect: {os.strerror(fault)}")
            if not events & select.EPOLLOUT:
                return []
            if self._endpoint.ca_file is None:
                self._greet(now_s)
            else:
                # Python's sockets begin TLS only where TCP is there; the descriptor stays the same.
                self._socket = self._tls.secured(self._socket, self._endpoint)
                self.phase = "tls"
        if self.phase == "tls":
            self._shake_hands(now_s)
            return []
        found: list[Happening] = []
        if events & (select.EPOLLIN | select.EPOLLHUP | select.EPOLLERR):
            self._receive()
            found = list(self._take(now_s))
        self._fill()
        self._flush()
        return found

    def close(self) -> None:
        """Close without a word: the broker sends the will."""
        with contextlib.suppress(OSError):
            self._socket.close()

    # --- inside ---

    def _shake_hands(self, now_s: float) -> None:
        assert isinstance(self._socket, ssl.SSLSocket)  # noqa: S101 - the phase says so
        try:
            self._socket.do_handshake()
        except ssl.SSLWantReadError:
            self.wants_write = False
        except ssl.SSLWantWriteError:
            self.wants_write = True
        except (OSError, ValueError) as error:  # ValueError: closed meanwhile
            raise LinkError(f"no TLS: {error}") from error
        else:
            self._greet(now_s)

    def _greet(self, now_s: float) -> None:
        self.phase = "mqtt"
        self._out += self._connect_packet
        self._connect_packet = b""
        self.sent_s = now_s
        self._flush()

    def _receive(self) -> None:
        while True:
            try:
                data = self._socket.recv(_READ_BYTES)
            except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                return
            except OSError as error:
                raise LinkError(f"connection lost: {error}") from error
            if not data:
                raise LinkError("the broker closed the connection")
            self._in += data
            if len(data) < _READ_BYTES and not isinstance(self._socket, ssl.SSLSocket):
                return

    def _take(self, now_s: float) -> Iterator[Happening]:
        for packet in wire.read(self._in):
            match packet:
                case wire.Arrived(topic, payload, mid):
                    if mid:
                        self._out += wire.confirm(mid)
                        self.sent_s = now_s
                    yield Got(topic, payload)
                case wire.Confirmed(mid, reason):
                    self._inflight.discard(mid)
                    if reason >= wire.REFUSED:
                        yield Denied()
                case wire.Accepted(reason, window):
                    if reason >= wire.REFUSED:
                        raise LinkError(f"refused by the broker: reason {reason:#04x}")
                    self._window, self._last_mid = window, 1
                    self.phase = "subscribing"
                    self._out += wire.subscribe(1, self._filters)
                case wire.Subscribed(reasons):
                    if any(reason >= wire.REFUSED for reason in reasons):
                        raise LinkError("the broker refuses a subscription")
                    self.phase = "open"
                    yield Opened()
                case wire.Closing(reason):
                    raise LinkError(f"closed by the broker: reason {reason:#04x}")

    def _fill(self) -> None:
        if self.phase != "open":
            return
        while self._waiting and len(self._inflight) < self._window:
            message = self._waiting.popleft()
            if message.qos:
                self._last_mid = self._last_mid % _MAX_MID + 1
                self._inflight.add(self._last_mid)
            self._out += wire.publish(message, self._last_mid)

    def _flush(self) -> None:
        if self.phase in {"tcp", "tls"}:
            return
        while self._out:
            try:
                sent = self._socket.send(self._out)
            except (BlockingIOError, ssl.SSLWantWriteError, ssl.SSLWantReadError):
                break
            except OSError as error:
                raise LinkError(f"connection lost: {error}") from error
            del self._out[:sent]
        self.wants_write = bool(self._out)


def _open(endpoint: Endpoint) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in endpoint.address else socket.AF_INET
        plain = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise LinkError(
            f"no socket: {error.strerror}", hint="Let the process have more open files: ulimit -n"
        ) from error
    try:
        plain.setblocking(False)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        fault = plain.connect_ex((endpoint.address, endpoint.port))
        if fault not in {0, errno.EINPROGRESS}:
            raise LinkError(f"cannot connect: {os.strerror(fault)}")
    except BaseException:
        plain.close()
        raise
    return plain


class TlsContexts:
    """Settings of TLS for all connections of one process; for one thread.

    A connection copies its certificate from the context when it is made, so one context serves them all, one after the
    other; a context for each would take as much memory as the connection itself.
    """

    def __init__(self) -> None:
        """Nothing is read yet."""
        self._found: dict[tuple[Path, bool], ssl.SSLContext] = {}

    def secured(self, plain: socket.socket, endpoint: Endpoint) -> ssl.SSLSocket:
        """`plain`, about to begin TLS; the descriptor stays the same.

        Raises:
            LinkError: the connection is gone.
            ConfigError: a TLS file cannot be used.
        """
        blamed = endpoint.cert_file or endpoint.ca_file
        try:
            context = self._context(endpoint)
            if endpoint.cert_file is not None:
                context.load_cert_chain(endpoint.cert_file)
        except OSError as error:
            raise ConfigError(f"TLS file {blamed} cannot be used: {error}", path=str(blamed)) from error
        try:
            return context.wrap_socket(plain, server_hostname=endpoint.host, do_handshake_on_connect=False)
        except OSError as error:
            raise LinkError(f"connection lost: {error}") from error

    def _context(self, endpoint: Endpoint) -> ssl.SSLContext:
        # Those who show a certificate and those who have none must not share: it would be shown for both.
        key = (endpoint.ca_file or Path(), endpoint.cert_file is not None)
        context = self._found.get(key)
        if context is None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.load_verify_locations(endpoint.ca_file)
            self._found[key] = context
        return context
