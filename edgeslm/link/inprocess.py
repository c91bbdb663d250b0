"""The link in memory: a broker that is an object, and links to it.

For tests and simulators, and shipped for those of others. It passes the same contract suite as the MQTT
link: filters with ``+``, ``#`` and ``$share``, retained messages, wills, sessions that keep QoS 1 messages
for an absent client, a window of 20 unacknowledged messages, and redelivery after a reconnect. Handlers run
in each link's own thread, one at a time, as with the real link.

What always holds: a broker never calls a handler itself, so that no handler can block it; it is guarded by
one lock; what a link publishes is routed before ``publish`` returns.

Faults: :meth:`InProcessBroker.cut` and :meth:`~InProcessBroker.restore` (network outage),
:meth:`InProcessBroker.swallow` (messages are lost on the way to the broker), :meth:`InProcessLink.drop` (the
client dies).

Left out: authentication, size limits, and expiry of sessions (0 s means a clean session, anything else for
ever).
"""

from __future__ import annotations

import itertools
import logging
import queue
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from edgeslm.errors import LinkError
from edgeslm.link.port import LinkEvents, Message

_LOG = logging.getLogger(__name__)

WINDOW = 20
MAX_QUEUED = 10_000
"""QoS 1 messages kept for one session; what comes after them is dropped, as brokers do."""
_JOIN_TIMEOUT_S = 5.0
_SHARE = "$share/"


def matches(topic_filter: str, topic: str) -> bool:
    """Whether `topic` falls under `topic_filter` (MQTT 5, section 4.7; not a shared one)."""
    wanted, levels = topic_filter.split("/"), topic.split("/")
    if topic.startswith("$") and wanted[0] in {"+", "#"}:
        return False  # [MQTT-4.7.2-1]
    for position, level in enumerate(wanted):
        if level == "#":
            return True  # also the parent level itself
        if position >= len(levels) or level not in {"+", levels[position]}:
            return False
    return len(wanted) == len(levels)


@dataclass
class _Held:
    """A message on its way to one client."""

    message: Message
    expires_s: float | None

    def is_expired(self) -> bool:
        return self.expires_s is not None and time.monotonic() >= self.expires_s

    def rest(self) -> Message:
        """The message with the expiry that is left of it (MQTT 5, section 3.3.2.3.3)."""
        if self.expires_s is None:
            return self.message
        return replace(self.message, expiry_s=max(1, round(self.expires_s - time.monotonic())))


@dataclass
class _Session:
    """What the broker keeps of a client."""

    client_id: str
    filters: dict[str, int] = field(default_factory=dict)
    queued: deque[_Held] = field(default_factory=deque)
    inflight: OrderedDict[int, _Held] = field(default_factory=OrderedDict)
    link: InProcessLink | None = None


class InProcessBroker:
    """A broker without a network."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._sessions: dict[str, _Session] = {}
        self._retained: dict[str, Message] = {}
        self._turns: dict[str, int] = {}
        self._serials = itertools.count(1)
        self._waiting: list[InProcessLink] = []
        self._is_cut = False
        self._swallows = False

    # --- faults and insight -------------------------------------------------------------------------------

    def cut(self) -> None:
        """Break every connection, as a network outage does: wills are published, nobody can connect."""
        with self._lock:
            self._is_cut = True
            links = [session.link for session in self._sessions.values() if session.link is not None]
            for link in links:
                self._detach(link)
                link._told_disconnected("cut")
            self._waiting += links
            for link in links:  # only now: nobody is there any more to hear of the others' deaths
                if link.will is not None:
                    self._route(link.will)

    def restore(self) -> None:
        """End the outage: links reconnect at once, and nothing is swallowed any more."""
        with self._lock:
            self._is_cut = False
            self._swallows = False
            waiting, self._waiting = self._waiting, []
            for link in waiting:
                self._connect(link)

    def swallow(self) -> None:
        """Lose what links publish from now until :meth:`restore`: taken, neither routed nor confirmed."""
        with self._lock:
            self._swallows = True

    def retained(self, topic: str) -> Message | None:
        """The retained message of `topic`."""
        with self._lock:
            return self._retained.get(topic)

    def publish(self, message: Message) -> None:
        """Route `message` as if some client had published it."""
        with self._lock:
            self._route(message)

    # --- for links ----------------------------------------------------------------------------------------

    def _connect(self, link: InProcessLink) -> None:
        with self._lock:
            if self._is_cut:
                self._waiting.append(link)
                return
            session = self._sessions.get(link.client_id)
            if session is not None and session.link is not None:
                session.link._told_disconnected("session taken over")
                self._detach(session.link)
            session = self._sessions.get(link.client_id) if link.is_persistent else None
            is_present = session is not None
            if session is None:
                session = _Session(link.client_id)
                self._sessions[link.client_id] = session
            session.link = link
            link._told_connected(is_present)
            self._deliver(session)
            self._subscribe(session, link.filters())

    def _subscribe(self, session: _Session, filters: Sequence[tuple[str, int]]) -> None:
        session.filters.update(filters)
        for topic_filter, qos in filters:
            if topic_filter.startswith(_SHARE):
                continue  # a group gets no retained messages (MQTT 5, section 4.8.2)
            for topic, message in self._retained.items():
                if matches(topic_filter, topic):
                    self._enqueue(session, message, min(qos, message.qos), retain=True)

    def _take(self, link: InProcessLink, message: Message, token: int) -> bool:
        with self._lock:
            session = self._sessions.get(link.client_id)
            if session is None or session.link is not link:
                return False
            if self._swallows:
                return True
            self._route(message)
            if message.qos > 0:
                link._told_published(token)
            return True

    def _leave(self, link: InProcessLink, *, is_clean: bool) -> None:
        with self._lock:
            if link in self._waiting:
                self._waiting.remove(link)
            if self._detach(link) and not is_clean and link.will is not None:
                self._route(link.will)

    def _detach(self, link: InProcessLink) -> bool:
        """Separate `link` from its session; whether it was connected."""
        session = self._sessions.get(link.client_id)
        if session is None or session.link is not link:
            return False
        session.link = None
        session.queued.extendleft(reversed(session.inflight.values()))
        session.inflight.clear()
        if not link.is_persistent:
            del self._sessions[link.client_id]
        return True

    def _acknowledge(self, client_id: str, serial: int) -> None:
        with self._lock:
            session = self._sessions.get(client_id)
            if session is not None and session.inflight.pop(serial, None) is not None:
                self._deliver(session)

    # --- routing ------------------------------------------------------------------------------------------

    def _route(self, message: Message) -> None:
        if not message.topic or any(char in message.topic for char in "+#\x00"):
            raise LinkError(f"'{message.topic[:120]}' is no topic to publish to")
        if message.retain:
            if message.payload:
                self._retained[message.topic] = message
            else:
                self._retained.pop(message.topic, None)
        groups: dict[str, list[tuple[_Session, int]]] = {}
        for session in list(self._sessions.values()):
            granted = []
            for topic_filter, qos in session.filters.items():
                if not topic_filter.startswith(_SHARE):
                    if matches(topic_filter, message.topic):
                        granted.append(qos)
                elif matches(topic_filter.split("/", 2)[2], message.topic):
                    groups.setdefault(topic_filter, []).append((session, qos))
            if granted:  # overlapping filters give one copy, at the best quality [MQTT-3.3.4-2]
                self._enqueue(session, message, min(max(granted), message.qos))
        for name, members in groups.items():
            self._deal(name, members, message)

    def _deal(self, name: str, members: list[tuple[_Session, int]], message: Message) -> None:
        """Give `message` to one member, in turn; to an absent one only if all are."""
        present = [member for member in members if member[0].link is not None] or members
        turn = self._turns.get(name, 0)
        self._turns[name] = turn + 1
        session, qos = present[turn % len(present)]
        self._enqueue(session, message, min(qos, message.qos))

    def _enqueue(self, session: _Session, message: Message, qos: int, *, retain: bool = False) -> None:
        if session.link is None and qos == 0:
            return
        if len(session.queued) >= MAX_QUEUED:
            _LOG.warning("a message for %s is dropped: %d wait already", session.client_id, MAX_QUEUED)
            return
        expires_s = None if message.expiry_s is None else time.monotonic() + message.expiry_s
        session.queued.append(_Held(replace(message, qos=qos, retain=retain), expires_s))
        self._deliver(session)

    def _deliver(self, session: _Session) -> None:
        while session.link is not None and session.queued and len(session.inflight) < WINDOW:
            held = session.queued.popleft()
            if held.is_expired():
                continue
            message = held.rest()
            if message.qos > 0:
                serial = next(self._serials)
                session.inflight[serial] = held
                acknowledge = partial(self._acknowledge, session.client_id, serial)
                message = replace(message, acknowledge=acknowledge)
            session.link._told_message(message)


class InProcessLink:
    """A :class:`~edgeslm.link.port.Link` to an :class:`InProcessBroker`."""

    def __init__(
        self,
        broker: InProcessBroker,
        client_id: str,
        will: Message | None = None,
        *,
        session_expiry_s: int = 86_400,
    ) -> None:
        self.client_id = client_id
        self.will = will
        self.is_persistent = session_expiry_s > 0
        self._broker = broker
        self._filters: dict[str, int] = {}
        self._events: LinkEvents | None = None
        self._news: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._tokens = itertools.count(1)
        self._is_over = False
        self._is_dead = False
        self._held_until_s = 0.0
        self._released = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, events: LinkEvents, filters: Sequence[tuple[str, int]]) -> None:
        """See :meth:`edgeslm.link.port.Link.start`."""
        if self._thread is not None or self._is_over:
            raise LinkError("a link can be started only once")
        self._events = events
        self._filters = dict(filters)
        self._thread = threading.Thread(target=self._run, name=f"link-{self.client_id}", daemon=True)
        self._thread.start()
        self._broker._connect(self)

    def publish(self, message: Message) -> int | None:
        """See :meth:`edgeslm.link.port.Link.publish`.

        Raises:
            LinkError: the topic holds wildcards or is empty.
        """
        if self._is_over:
            return None
        token = next(self._tokens)
        return token if self._broker._take(self, message, token) else None

    def stop(self, farewell: Message | None = None) -> None:
        """See :meth:`edgeslm.link.port.Link.stop`."""
        if farewell is not None:
            self.publish(farewell)
        self._end(is_clean=True)

    def drop(self) -> None:
        """Die without a word: the will is published, the session stays, no handler is called any more."""
        self._is_dead = True
        self._end(is_clean=False)

    def subscribe(self, filters: Sequence[tuple[str, int]]) -> None:
        """Subscribe to more (filter, qos), now or on connecting, and keep them subscribed."""
        with self._broker._lock:
            self._filters.update(filters)
            session = self._broker._sessions.get(self.client_id)
            if session is not None and session.link is self:
                self._broker._subscribe(session, filters)

    def unsubscribe(self, names: Sequence[str]) -> None:
        """Give filters up."""
        with self._broker._lock:
            session = self._broker._sessions.get(self.client_id)
            for name in names:
                self._filters.pop(name, None)
                if session is not None:
                    session.filters.pop(name, None)

    def hold(self, seconds: float) -> None:
        """See :meth:`edgeslm.link.port.SubscribingLink.hold`."""
        self._released.clear()
        self._held_until_s = time.monotonic() + seconds if seconds > 0 else 0.0
        if seconds <= 0:
            self._released.set()

    def filters(self) -> list[tuple[str, int]]:
        """What it subscribes to."""
        return list(self._filters.items())

    def _end(self, *, is_clean: bool) -> None:
        self._is_over = True
        self._released.set()
        self._broker._leave(self, is_clean=is_clean)
        self._news.put(None)
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(_JOIN_TIMEOUT_S)

    # --- told by the broker, under its lock ---------------------------------------------------------------

    def _told_connected(self, session_present: bool) -> None:
        if self._events is not None:
            self._news.put(partial(self._events.on_connected, session_present=session_present))

    def _told_disconnected(self, reason: str) -> None:
        if self._events is not None:
            self._news.put(partial(self._events.on_disconnected, reason))

    def _told_message(self, message: Message) -> None:
        if self._events is not None:
            self._news.put(partial(self._events.on_message, message))

    def _told_published(self, token: int) -> None:
        if self._events is not None:
            self._news.put(partial(self._events.on_published, token))

    def _run(self) -> None:
        while True:
            handler = self._news.get()
            while (held_s := self._held_until_s - time.monotonic()) > 0 and not self._is_over:
                self._released.wait(held_s)
            if handler is None or self._is_dead:
                return
            try:
                handler()
            except Exception:
                _LOG.exception("a link handler raised; what it was told is dropped")
