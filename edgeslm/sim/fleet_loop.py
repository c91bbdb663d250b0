"""Drives the connections of thousands of simulated devices from one thread: one epoll, and one heap of moments.

What always holds: nothing here waits but for the epoll; each device stands in the heap with the one moment at which it
next has something to do, so a device that is silent costs nothing. The order in which the network delivers does not
follow from the seed.

A device whose network is cut works on, but says and hears nothing; its connection stays, until the broker misses it.
What a device would say while it is away is lost, but for what it says of itself when it is back.

Left to others: what devices say (:mod:`edgeslm.sim.fleet_device`), when they have something to do
(:mod:`edgeslm.sim.fleet_peer`), single connections (:mod:`edgeslm.sim.fleet_link`), and the thread
(:mod:`edgeslm.sim.fleet`).
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import logging
import math
import select
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from edgeslm.agent.description import availability
from edgeslm.errors import EdgeslmError, LinkError
from edgeslm.link.connection import Waker
from edgeslm.link.mqtt import LASTING_S, backoff_s
from edgeslm.link.port import Message
from edgeslm.schema.sim_fleet import OutageKind
from edgeslm.sim.fleet_joining import Joining
from edgeslm.sim.fleet_link import Connection, Denied, Endpoint, Got, Happening, Opened, TlsContexts
from edgeslm.sim.fleet_peer import LOOK_FOR_POWER_S, Counts, Peer
from edgeslm.sim.fleet_plan import Now

_LOG = logging.getLogger(__name__)

MAX_CONNECTING: Final = 48
"""Connections that are being made at once: a broker has a short line for those who come."""
CONNECT_TIMEOUT_S: Final = 20.0
SESSION_EXPIRY_S: Final = 86_400
_TURN_S: Final = 0.5
_FAREWELL_S: Final = 5.0
_MAX_EVENTS: Final = 512
_MAX_REASONS: Final = 20


@dataclass(frozen=True)
class Broker:
    """Where devices find the broker.

    Attributes:
        member: endpoint of a device that belongs to the fleet, by its peer.
        address: numeric, of the door.
        ca_file: the fleet's authority.
    """

    member: Callable[[Peer], Endpoint]
    address: str
    ca_file: Path


class FleetLoop:
    """See the module. :meth:`run` is the thread; everything else that is public may be called from any."""

    def __init__(
        self, peers: Sequence[Peer], broker: Broker, *, seed: int, speed: float, arrive_s: float
    ) -> None:
        """Take the parts; nothing is connected yet."""
        self.peers = tuple(peers)
        self.counts = Counts()
        self.reasons: Counter[str] = Counter()
        self.changed = threading.Condition()
        self._broker = broker
        self._seed, self._speed, self._arrive_s = seed, speed, arrive_s
        self._epoll: select.epoll | None = None
        self._by_fd: dict[int, Peer] = {}
        self._heap: list[tuple[float, int, Peer]] = []
        self._ticket = itertools.count()
        self._to_connect: deque[Peer] = deque()
        self._connecting: set[Peer] = set()
        self._posted: deque[Callable[[], None]] = deque()
        self._waker = Waker()
        self._tls = TlsContexts()
        self._stopping = False
        self._began_s = time.monotonic()
        self._now = Now(0.0, self._began_s, time.time())

    # --- any thread ---

    def post(self, task: Callable[[], None]) -> None:
        """Do `task` on the loop's thread, soon."""
        self._posted.append(task)
        self._waker.wake()

    def stop(self) -> None:
        """Say goodbye and end."""
        self._stopping = True
        self._waker.wake()

    # --- the thread ---

    def run(self) -> None:
        """Connect everybody and carry on until :meth:`stop`."""
        self._began_s = time.monotonic()
        self._look()
        with select.epoll() as self._epoll:
            self._epoll.register(self._waker.fileno(), select.EPOLLIN)
            for peer in self.peers:
                peer.plan(self._began_s, seed=self._seed, speed=self._speed, arrive_s=self._arrive_s)
                self._reschedule(peer)
            try:
                while not self._stopping:
                    self._turn(_TURN_S)
                self._say_goodbye()
            finally:
                for peer in self.peers:
                    if peer.connection is not None:
                        peer.connection.close()
                self._waker.close()

    def now(self) -> Now:
        """The present moment; for the loop's thread."""
        return self._now

    def send_away(self, peer: Peer, kind: OutageKind, for_s: float) -> None:
        """Let a device go away now, for so many real seconds; for the loop's thread."""
        peer.away, peer.away_since_s, peer.away_until_s = kind, self._now.real_s, self._now.real_s + for_s
        if kind == "off" and peer.connection is not None:
            self._drop(peer)
        elif peer.connection is not None:
            self._unpoll(peer)
        peer.device.disconnected()
        peer.delayed.clear()
        peer.connect_at_s = math.inf
        self._reschedule(peer)

    def bring_back(self, peer: Peer) -> None:
        """End a device's absence; for the loop's thread."""
        was, peer.away, peer.away_until_s = peer.away, None, math.inf
        if was is None:
            return
        if peer.connection is not None:
            self._drop(peer)
        if was == "off":
            ran_s = (peer.away_since_s - self._began_s) * self._speed
            peer.device.restarted(self._now, ran_s)
        peer.connect_at_s, peer.failures = self._now.real_s, 0
        self._reschedule(peer)

    def _turn(self, longest_s: float) -> None:
        assert self._epoll is not None  # noqa: S101 - run() made it
        self._look()
        while self._posted:
            self._posted.popleft()()
        busy = self._attend_due()
        self._connect_next()
        wait_s = min(longest_s, max(0.0, self._heap[0][0] - time.monotonic()) if self._heap else longest_s)
        ready = self._epoll.poll(wait_s, _MAX_EVENTS)
        self._look()
        for fd, events in ready:
            if fd == self._waker.fileno():
                self._waker.clear()
            elif (peer := self._by_fd.get(fd)) is not None:
                self._ready(peer, events)
        if ready or busy:
            with self.changed:
                self.changed.notify_all()

    def _look(self) -> None:
        real_s = time.monotonic()
        self._now = Now((real_s - self._began_s) * self._speed, real_s, time.time())

    # --- moments ---

    def _reschedule(self, peer: Peer) -> None:
        due_s = math.inf if self._stopping else peer.next_s(self._now, self._speed)
        if due_s != peer.due_s:
            peer.due_s = due_s
            if due_s < math.inf:
                heapq.heappush(self._heap, (due_s, next(self._ticket), peer))

    def _attend_due(self) -> bool:
        """Look after everybody whose moment has come; whether there was somebody."""
        found = False
        while self._heap and self._heap[0][0] <= self._now.real_s:
            due_s, _, peer = heapq.heappop(self._heap)
            if due_s != peer.due_s:
                continue  # it has another moment by now
            found, peer.due_s = True, math.inf
            try:
                self._attend(peer)
            except LinkError as error:
                self._lost(peer, str(error))
            except Exception:  # one device must not end them all
                _LOG.exception("simulated device %s", peer.device.name)
                self._lost(peer, "it failed")
            self._reschedule(peer)
        return found

    def _attend(self, peer: Peer) -> None:
        now = self._now
        if peer.away is not None:
            if now.real_s >= peer.away_until_s:
                self.bring_back(peer)
            elif peer.away == "cut" and peer.endpoint is not None:
                peer.device.wake(now)
                self._watch_state(peer)
            return
        due = [away for away in peer.planned if away.from_s <= now.real_s]
        if due:
            peer.begin(due[0])
            self.send_away(peer, due[0].kind, due[0].for_s)
            return
        if not peer.device.is_on:
            if peer.device.power_is_back(now):
                peer.device.restarted(now, LOOK_FOR_POWER_S)
                peer.connect_at_s = now.real_s
            return
        if now.real_s >= peer.give_up_s:
            raise LinkError("the broker does not answer")
        if now.real_s >= peer.drop_at_s:
            outage_s = peer.plan_drop(now.real_s, seed=self._seed, speed=self._speed)
            if peer.connection is not None:
                self._lost(peer, "dropped by the scenario")
                peer.connect_at_s = now.real_s + outage_s
        if peer.connection is None and now.real_s >= peer.connect_at_s and not peer.is_queued:
            peer.is_queued = True
            self._to_connect.append(peer)
        if peer.endpoint is not None:
            self._say(peer, peer.device.wake(now))
            self._watch_state(peer)
        self._keep_up(peer)

    def _keep_up(self, peer: Peer) -> None:
        """What is due on an open connection."""
        connection, now_s = peer.connection, self._now.real_s
        if connection is None or connection.phase != "open":
            return
        if peer.joining is not None and now_s >= peer.joining.due_s:
            connection.send(peer.joining.ask(now_s), now_s)
        while peer.delayed and peer.delayed[0][0] <= now_s:
            connection.send(peer.delayed.popleft()[1], now_s)
        if now_s >= peer.ping_at_s:
            connection.ping(now_s)
        self._repoll(peer)

    def _watch_state(self, peer: Peer) -> None:
        """Begin what begins with a state of an update, or with an empty battery."""
        states = peer.device.updates.states if peer.planned else ()
        for away in peer.planned:
            if away.during in states:
                peer.begin(away)
                self.send_away(peer, away.kind, away.for_s)
                return
        if not peer.device.is_on and peer.connection is not None:
            self._drop(peer)
            peer.device.disconnected()

    # --- connections ---

    def _connect_next(self) -> None:
        while self._to_connect and len(self._connecting) < MAX_CONNECTING:
            peer = self._to_connect.popleft()
            peer.is_queued = False
            if peer.away is None and peer.device.is_on and peer.connection is None:
                try:
                    self._connect(peer)
                except EdgeslmError as error:
                    self._lost(peer, str(error))
            self._reschedule(peer)

    def _connect(self, peer: Peer) -> None:
        device, now_s = peer.device, self._now.real_s
        if (
            peer.endpoint is None
            and peer.joining is None
            and peer.claim is not None
            and peer.file is not None
        ):
            peer.joining = Joining(device, peer.claim, peer.file)
        if peer.joining is not None:
            endpoint = peer.joining.endpoint(self._broker.address, self._broker.ca_file)
            filters, will, expiry_s = peer.joining.filters(), None, 0
        elif peer.endpoint is not None:
            endpoint, filters = peer.endpoint, device.filters()
            will, expiry_s = device.will(), SESSION_EXPIRY_S
        else:
            return
        peer.connection = Connection(
            endpoint,
            filters,
            self._tls,
            will=will,
            keepalive_s=device.group.link.keepalive_s,
            session_expiry_s=expiry_s,
            now_s=now_s,
        )
        self._connecting.add(peer)
        peer.give_up_s = now_s + CONNECT_TIMEOUT_S
        assert self._epoll is not None  # noqa: S101 - run() made it
        peer.polled = peer.connection.events
        self._epoll.register(peer.connection.fileno(), peer.polled)
        self._by_fd[peer.connection.fileno()] = peer

    def _ready(self, peer: Peer, events: int) -> None:
        connection = peer.connection
        if connection is None:
            return
        try:
            for happening in connection.ready(events, self._now.real_s):
                self._happened(peer, connection, happening)
            self._repoll(peer)
        except EdgeslmError as error:
            self._lost(peer, str(error))
        except Exception:  # one device must not end them all
            _LOG.exception("simulated device %s", peer.device.name)
            self._lost(peer, "it failed")
        self._reschedule(peer)

    def _happened(self, peer: Peer, connection: Connection, happening: Happening) -> None:
        if peer.connection is not connection:
            return
        now = self._now
        match happening:
            case Opened():
                self._connecting.discard(peer)
                self.counts.connected += 1
                peer.give_up_s, peer.opened_s = math.inf, now.real_s
                if peer.joining is not None:
                    connection.send(peer.joining.ask(now.real_s), now.real_s)
                else:
                    self._say(peer, peer.device.connected(now))
                    self._watch_state(peer)
            case Got(topic, payload):
                self.counts.received += 1
                if peer.joining is not None:
                    self._hear_of_claim(peer, peer.joining, payload)
                else:
                    self._say(peer, peer.device.take(topic, payload, now))
                    self._watch_state(peer)
            case Denied():
                self.counts.denied += 1

    def _hear_of_claim(self, peer: Peer, joining: Joining, payload: bytes) -> None:
        joining.take(payload)
        if joining.rejected is not None:
            peer.rejected = joining.rejected
        elif joining.member is not None:
            peer.device.credentials = joining.member.credentials
            peer.endpoint, peer.joining, peer.claim = self._broker.member(peer), None, None
            self.counts.joined += 1
        else:
            return
        if peer.connection is not None:
            with contextlib.suppress(LinkError):
                peer.connection.leave(None, self._now.real_s)
            self._drop(peer)
        peer.connect_at_s, peer.failures = self._now.real_s, 0

    def _say(self, peer: Peer, messages: Sequence[Message]) -> None:
        connection, now_s = peer.connection, self._now.real_s
        if not messages or connection is None or connection.phase != "open" or peer.away is not None:
            return
        self.counts.sent += len(messages)
        latency_s = 1e-3 * peer.device.group.link.latency_ms
        if latency_s:
            peer.delayed.append((now_s + latency_s, messages))
        else:
            connection.send(messages, now_s)
            self._repoll(peer)

    def _repoll(self, peer: Peer) -> None:
        connection = peer.connection
        if connection is not None and peer.polled and connection.events != peer.polled:
            assert self._epoll is not None  # noqa: S101 - run() made it
            peer.polled = connection.events
            self._epoll.modify(connection.fileno(), peer.polled)

    def _unpoll(self, peer: Peer) -> None:
        """Look at the connection no more, though it stays open."""
        if peer.connection is not None and peer.polled:
            assert self._epoll is not None  # noqa: S101 - run() made it
            with contextlib.suppress(OSError):
                self._epoll.unregister(peer.connection.fileno())
            self._by_fd.pop(peer.connection.fileno(), None)
            peer.polled = 0
            if peer.connection.phase != "open":
                peer.connection.close()
                peer.connection = None
        self._connecting.discard(peer)
        peer.give_up_s = peer.opened_s = math.inf

    def _drop(self, peer: Peer) -> None:
        """Close the connection."""
        self._unpoll(peer)
        if peer.connection is not None:
            peer.connection.close()
        peer.connection = None
        peer.delayed.clear()

    def _lost(self, peer: Peer, reason: str) -> None:
        """The connection is gone, or never came to be; the next attempt is later."""
        was_open = peer.connection is not None and peer.connection.phase == "open"
        lasted = was_open and self._now.real_s - peer.opened_s >= LASTING_S
        self.counts.lost += was_open and not self._stopping
        self.counts.failed += not was_open
        if len(self.reasons) < _MAX_REASONS or reason in self.reasons:
            self.reasons[reason[:200]] += 1
        self._drop(peer)
        peer.device.disconnected()
        peer.failures = 1 if lasted else peer.failures + 1
        peer.connect_at_s = self._now.real_s + backoff_s(peer.failures, peer.jitter(self._seed))

    def _say_goodbye(self) -> None:
        deadline_s = time.monotonic() + _FAREWELL_S
        self._to_connect.clear()
        for peer in self.peers:
            peer.due_s = math.inf  # nothing is due any more, whatever stands in the heap
            if peer.connection is None:
                continue
            if peer.connection.phase == "open" and peer.away is None:
                farewell = availability(peer.device.fleet, peer.device.name, "offline")
                with contextlib.suppress(LinkError):
                    peer.connection.leave(None if peer.joining else farewell, self._now.real_s)
                self._repoll(peer)
            else:
                self._drop(peer)
        while any(peer.connection is not None for peer in self.peers) and time.monotonic() < deadline_s:
            self._turn(0.05)
