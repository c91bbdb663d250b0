"""The link over MQTT, by paho 2.x.

What always holds:

- **A fresh** :class:`~edgeslm.link.connection.Connection` **each time**, driven by this link's own thread:
  connect, serve until broken, wait, again.
- **The owner is told when no lock of paho is held**: a handler may publish, acknowledge or stop. A handler
  that raises is logged and the link lives on.
- **``on_connected`` means subscribed**: it comes after SUBACK and before any message. Filters are subscribed
  on every connect, even into a session that the broker kept: a newer agent may ask for more than its
  predecessor did.
- **Bounded**: beyond the connection's bounds `publish` returns ``None``.

Password and TLS files are read anew for every connection, so rotating them needs no restart.

Left to others: the wire (:mod:`edgeslm.link.connection`), storing messages until they are confirmed (the
owner's outbox), deciding what a message means, and removing filters of an earlier program version from a
session that the broker kept.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial

import paho.mqtt.client as paho
from paho.mqtt import MQTTException

from edgeslm.errors import ConfigError, LinkError
from edgeslm.link.connection import CONNECT_TIMEOUT_S, Connection, Waker, doubt_about_tls, hops_of
from edgeslm.link.port import LinkEvents, Message, no_ack
from edgeslm.schema.config import BrokerConfig

_LOG = logging.getLogger(__name__)

MIN_BACKOFF_S = 0.2
MAX_BACKOFF_S = 10.0
LASTING_S = 2.0
"""A connection that held this long was a good one: the next attempt comes soon."""
FAREWELL_TIMEOUT_S = 2.0
_JOIN_TIMEOUT_S = CONNECT_TIMEOUT_S + FAREWELL_TIMEOUT_S + 1.0


def backoff_s(failures: int, jitter: float) -> float:
    """Seconds to wait after `failures` (1 or more) connections in a row that did not last.

    Args:
        failures: how many.
        jitter: 0 to 1, random, so that a fleet does not come back in step after its broker was away.
    """
    longest = min(MAX_BACKOFF_S, MIN_BACKOFF_S * 2.0 ** min(failures - 1, 16))
    return longest * (0.5 + 0.5 * jitter)


class MqttLink:
    """A :class:`~edgeslm.link.port.Link` to an MQTT broker. It lives once: start, then stop.

    Attributes:
        beats: rounds of its thread so far: while it works there is one every :data:`MAX_BACKOFF_S` at least, but for a
            broker's name or address that takes longer to answer.
    """

    def __init__(self, config: BrokerConfig, client_id: str, will: Message | None = None) -> None:
        self._config = config
        self._client_id = client_id
        self._will = will
        self._lock = threading.Lock()
        self._waker = Waker()
        self._stopping = threading.Event()
        self._farewell: Message | None = None
        self._connection: Connection | None = None
        self._events: LinkEvents | None = None
        self._filters: dict[str, int] = {}
        self._last_token = 0
        self._told_reason: str | None = None
        self._thread: threading.Thread | None = None
        self.beats = 0

    # --- the port ------------------------------------------------------------------------------------------

    def start(self, events: LinkEvents, filters: Sequence[tuple[str, int]]) -> None:
        """See :meth:`edgeslm.link.port.Link.start`."""
        if self._thread is not None or self._stopping.is_set():
            raise LinkError("a link can be started only once")
        self._events = events
        self._filters = dict(filters)
        try:
            # Built and thrown away: finds bad files, a bad will and bad settings now, not in the thread.
            Connection(self._config, self._client_id, self._will, self._waker)
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

    def hold(self, seconds: float) -> None:
        """See :meth:`edgeslm.link.port.SubscribingLink.hold`."""
        connection = self._connection
        if connection is None:
            return
        before_s, connection.held_until_s = connection.held_until_s, time.monotonic() + max(seconds, 0.0)
        if connection.held_until_s < before_s:
            self._waker.wake()

    # --- the thread ----------------------------------------------------------------------------------------

    def _address(self) -> str:
        return f"{self._config.host}:{self._config.port}"

    def _run(self) -> None:
        failures = 0
        while not self._stopping.is_set():
            self.beats += 1
            began_s = time.monotonic()
            reason = self._live()
            if self._stopping.is_set():
                break
            self._tell_disconnected(reason)
            # One that a broker accepts and drops at once (two clients of one name, say) has not lasted.
            failures = 1 if time.monotonic() - began_s > LASTING_S else failures + 1
            self._stopping.wait(backoff_s(failures, random.random()))  # noqa: S311 - no secret
        self._waker.close()

    def _live(self) -> str:
        """One connection from its first to its last byte; why it ended."""
        try:
            connection = self._open()
        except (OSError, ValueError, ConfigError, MQTTException) as error:
            return f"cannot connect to {self._address()}: {error}{doubt_about_tls(self._config, error)}"
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

    def _open(self) -> Connection:
        connection = Connection(self._config, self._client_id, self._will, self._waker)
        with self._lock:
            connection.filters = tuple(self._filters.items())
        connection.arrived = self._on_arrived
        connection.heard = self._on_heard
        connection.confirmed = self._on_confirmed
        connection.open()
        return connection

    def _serve(self, connection: Connection) -> None:
        deadline_s = time.monotonic() + CONNECT_TIMEOUT_S
        while connection.is_open() and not self._stopping.is_set():
            self.beats += 1
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

    def _report(self, connection: Connection) -> None:
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

    def _say_goodbye(self, connection: Connection) -> None:
        connection.held_until_s = 0.0
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

    def _on_confirmed(self, connection: Connection, mid: int) -> None:
        with self._lock:
            token = connection.settle(mid)
        if token is not None and self._events is not None:
            self._tell(partial(self._events.on_published, token))

    def _on_arrived(self, connection: Connection, raw: paho.MQTTMessage) -> None:
        acknowledge: Callable[[], None] = no_ack
        if raw.qos > 0:
            with self._lock:
                serial = connection.remember(raw.mid)
            acknowledge = partial(self._acknowledge, connection, serial)
        try:
            topic = raw.topic
        except UnicodeDecodeError:
            _LOG.warning("a message whose topic is not UTF-8 is dropped")
            acknowledge()
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
            hops=hops_of(properties),
            acknowledge=acknowledge,
        )
        self._on_heard([message])

    def _on_heard(self, messages: Sequence[Message]) -> None:
        if self._events is None:
            return
        for message in messages:
            self._tell(partial(self._events.on_message, message))

    def _acknowledge(self, connection: Connection, serial: int) -> None:
        with self._lock:
            if self._connection is not connection:
                return  # that connection is gone; the broker delivers the message again
            connection.acknowledge(serial)
        self._waker.wake()
