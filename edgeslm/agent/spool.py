"""Reports and events on their way to the broker, through outages and restarts.

What always holds: they leave in order; each is kept until the broker confirms it; memory and disk are bounded, the
oldest reports go before any event does, and what is dropped is counted. The card is spared: nothing is written while
the broker is there or away for less than a minute, then once a minute, without a sync; and at the end, with one.

An item is sent again where its confirmation was lost, or the card forgot that it came: under its old sequence number
and time, by which a receiver knows it. A kill without warning takes what was not written yet, a minute of an outage at
most.

After an outage the rest waits for a random while and then goes at a bounded rate, since a whole fleet comes back at
once. Where the clock is not set yet, old items wait a little for it; the time of each is corrected before it leaves,
also after a restart, where the clock of its boot became known at last.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from edgeslm import codec
from edgeslm.agent.ports import Link, Message
from edgeslm.agent.spool_store import Item, SpoolStore
from edgeslm.agent.stamps import restamp
from edgeslm.clock import clock_is_set
from edgeslm.errors import JournalError, LinkError

log = logging.getLogger(__name__)

WINDOW: Final = 8
"""Items handed over and not confirmed: fewer than a connection takes, so that answers pass."""
_READ_AHEAD: Final = 64
_SETTLE_EACH: Final = 64
_SETTLE_AFTER_S: Final = 1.0
_RETRY_S: Final = 1.0
_FIRST_PAUSE_S: Final = 0.5
_LONGEST_PAUSE_S: Final = 30.0


@dataclass(frozen=True)
class SpoolLimits:
    """How much, how fast.

    Attributes:
        most_in_memory: items that wait in memory; more go to the card at once.
        most_items: items on the card.
        most_bytes: bytes of topics and payloads there.
        to_disk_after_s: seconds of an outage until they are written, and between writes.
        per_s: items a second at most, `burst` of them at once.
        return_pause_s: longest wait after an outage, where more than a burst has gathered.
        clock_wait_s: longest wait of old items for the clock, after connecting.
    """

    most_in_memory: int = 256
    most_items: int = 20_000
    most_bytes: int = 16 * 2**20
    to_disk_after_s: float = 60.0
    per_s: float = 25.0
    burst: int = 30
    return_pause_s: float = 5.0
    clock_wait_s: float = 60.0


class _Rate:
    """A bucket of tokens."""

    def __init__(self, per_s: float, burst: int) -> None:
        self._per_s, self._burst = per_s, float(burst)
        self._tokens, self._at_s = float(burst), 0.0

    def take(self, now_s: float) -> bool:
        self._tokens = min(self._burst, self._tokens + max(0.0, now_s - self._at_s) * self._per_s)
        self._at_s = now_s
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


def _since_boot_s() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Spool:
    """Thread-safe. :meth:`tick` is to be called some times a second."""

    def __init__(
        self,
        link: Link,
        path: Path,
        boot: str,
        *,
        limits: SpoolLimits | None = None,
        compresses: bool = False,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
        since_boot: Callable[[], float] = _since_boot_s,
        chance: Callable[[], float] = random.random,
    ) -> None:
        """Take up what a former run left, if it left anything; else no file is made before it is needed.

        Args:
            link: what publishes.
            path: of the file.
            boot: the kernel's id of this boot.
            compresses: let messages leave compressed, where that makes them shorter.
            clock: monotonic seconds.
            wall_clock: Unix time.
            since_boot: seconds since the board booted.
            chance: 0 to 1, random.
        """
        self._link, self._path, self._boot = link, path, boot
        self._limits = limits or SpoolLimits()
        self._pack = codec.compress if compresses else bytes
        self._clock, self._wall_clock, self._since_boot, self._chance = clock, wall_clock, since_boot, chance
        self._lock = threading.RLock()
        self._store: SpoolStore | None = None
        self._fresh: deque[Item] = deque()
        """Not on the card."""
        self._loaded: deque[Item] = deque()
        """Read from the card, which has them still."""
        self._read_to = 0
        self._flying: dict[int, tuple[Item, bool]] = {}
        """By token, with whether the card has it."""
        self._confirmed: set[int] = set()
        """Numbers that the broker has and the card too."""
        self._last = 0
        self._dropped = 0
        """Not counted on the card yet."""
        self._rate = _Rate(self._limits.per_s, self._limits.burst)
        self._is_connected = False
        self._is_closed = False
        self._is_faulty = False
        self._is_boot_noted = False
        self._connected_s = self._away_since_s = self._written_s = self._settled_s = clock()
        self._paused_until_s = 0.0
        self._failures = 0
        if path.exists():
            self._open()

    @property
    def waiting(self) -> int:
        """Items that the broker has not confirmed."""
        with self._lock:
            on_card = 0 if self._store is None else self._store.count - len(self._confirmed)
            return on_card + len(self._fresh) + sum(not kept for _, kept in self._flying.values())

    @property
    def dropped(self) -> int:
        """Items that were given up, since the file was made."""
        with self._lock:
            return self._dropped + (0 if self._store is None else self._store.dropped)

    def put(self, topic: str, payload: bytes, *, is_event: bool) -> None:
        """Send a report or an event, now or when that is possible."""
        boot = None if clock_is_set(self._wall_clock()) else self._boot
        with self._lock:
            if self._is_closed:
                log.warning("%s is lost: the agent ends", topic)
                return
            self._last += 1
            self._fresh.append(Item(self._last, topic, payload, is_event, boot, self._since_boot()))
            self._pump()
            if len(self._fresh) > self._limits.most_in_memory:
                if not self._is_faulty or self._clock() - self._written_s > _RETRY_S:
                    self._write()
                self._shed()

    def tick(self) -> None:
        """Do what is due."""
        with self._lock:
            now_s = self._clock()
            if not self._is_connected and now_s - self._away_since_s > self._limits.to_disk_after_s:
                if self._fresh and now_s - self._written_s >= self._limits.to_disk_after_s:
                    self._write()
            elif self._is_connected:
                self._pump()
            if self._confirmed and now_s - self._settled_s > _SETTLE_AFTER_S:
                self._settle()
            self._note_boot()

    def connected(self) -> None:
        """The broker is there."""
        with self._lock:
            self._take_back()
            now_s = self._clock()
            self._is_connected, self._connected_s = True, now_s
            self._failures, self._paused_until_s = 0, now_s
            if self.waiting > self._limits.burst:
                self._paused_until_s = now_s + self._chance() * self._limits.return_pause_s
            self._pump()

    def disconnected(self) -> None:
        """The broker is gone: what it had not confirmed waits again, before everything else."""
        with self._lock:
            if self._is_connected:
                self._away_since_s = self._clock()
            self._is_connected = False
            self._take_back()

    def published(self, token: int) -> None:
        """The broker confirmed the message of `token`."""
        with self._lock:
            item, is_on_card = self._flying.pop(token, (None, False))
            if item is None:
                return
            self._failures = 0
            if is_on_card:
                self._confirmed.add(item.number)
                if len(self._confirmed) % _SETTLE_EACH == 0:  # not at each one while the card refuses
                    self._settle()
            self._pump()

    def close(self) -> None:
        """Write what is left. Idempotent."""
        with self._lock:
            if self._is_closed:
                return
            self._is_closed, self._is_connected = True, False
            self._take_back()
            if self._fresh:
                self._write(synced=True)
                if self._fresh:
                    log.error("%d reports and events are lost: they cannot be written", len(self._fresh))
            if self._confirmed:
                self._settle()
            if self._store is not None:
                self._store.close()
                self._store = None

    # --- sending -------------------------------------------------------------------------------------------------

    def _pump(self) -> None:
        now_s = self._clock()
        while self._is_connected and len(self._flying) < WINDOW and now_s >= self._paused_until_s:
            queue = self._loaded if self._loaded or self._load() else self._fresh
            if not queue or self._waits_for_clock(queue[0], now_s) or not self._rate.take(now_s):
                return
            item = queue[0]
            try:
                token = self._link.publish(Message(item.topic, self._pack(self._stamped(item).payload)))
            except LinkError as error:
                log.warning("%s is dropped: %s", item.topic, error)
                queue.popleft()
                self._dropped += 1
                if queue is self._loaded:
                    self._confirmed.add(item.number)
                continue
            if token is None:
                self._failures += 1
                longest_s = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2.0 ** min(self._failures - 1, 10))
                self._paused_until_s = now_s + longest_s * (0.5 + 0.5 * self._chance())
                return
            queue.popleft()
            self._flying[token] = (item, queue is self._loaded)

    def _take_back(self) -> None:
        """Nothing flies any more."""
        flying = sorted(self._flying.values(), key=lambda entry: entry[0].number)
        self._flying.clear()
        self._loaded.clear()
        self._read_to = 0
        self._fresh.extendleft(item for item, is_on_card in reversed(flying) if not is_on_card)
        if self._confirmed:
            self._settle()
        if self._fresh and self._store is not None and self._store.last > self._fresh[0].number:
            self._write()  # the card has later ones, and would go first

    def _waits_for_clock(self, item: Item, now_s: float) -> bool:
        wait_s = self._limits.clock_wait_s
        return (
            item.boot == self._boot
            and now_s - self._connected_s < wait_s
            and self._since_boot() - item.since_boot_s > wait_s
            and not clock_is_set(self._wall_clock())
        )

    # --- time ----------------------------------------------------------------------------------------------------

    def _stamped(self, item: Item) -> Item:
        """`item` with its right time, where that is known."""
        if item.boot is None:
            return item
        began_s = self._began_s(item.boot)
        if began_s is None:
            return item
        return replace(
            item, payload=restamp(item.topic, item.payload, began_s + item.since_boot_s), boot=None
        )

    def _began_s(self, boot: str) -> float | None:
        """Unix time at which `boot` began, if it is known."""
        if boot == self._boot:
            wall_s = self._wall_clock()
            return wall_s - self._since_boot() if clock_is_set(wall_s) else None
        try:
            return None if self._store is None else self._store.boot_began_s(boot)
        except JournalError as error:
            self._complain(error)
            return None

    def _note_boot(self) -> None:
        """For items on the card that may leave after another boot only."""
        if self._is_boot_noted or self._store is None or not self._store.count:
            return
        began_s = self._began_s(self._boot)
        if began_s is None:
            return
        self._is_boot_noted = True
        try:
            self._store.note_boot(self._boot, began_s)
        except JournalError as error:
            self._complain(error)

    # --- the card ------------------------------------------------------------------------------------------------

    def _open(self) -> SpoolStore | None:
        """The file; what cannot be read is set aside once, since no fault of it may keep the agent from starting."""
        for _ in range(2):
            try:
                limits = self._limits
                self._store = SpoolStore(
                    self._path, most_items=limits.most_items, most_bytes=limits.most_bytes
                )
            except JournalError as error:
                self._complain(error)
                if not self._set_aside():
                    return None
                continue
            self._last = max(self._last, self._store.last)
            return self._store
        return None

    def _set_aside(self) -> bool:
        aside = self._path.with_name(f"{self._path.name}.set-aside")
        try:
            self._path.replace(aside)
            for suffix in ("-wal", "-shm"):
                self._path.with_name(self._path.name + suffix).unlink(missing_ok=True)
        except OSError:
            return False
        log.error("unsent reports and events of former runs are set aside: %s", aside)
        return True

    def _write(self, *, synced: bool = False) -> None:
        """Put what is in memory on the card; it stays in memory where that fails."""
        self._written_s = self._clock()
        store = self._store or self._open()
        if store is None:
            return
        items = [self._stamped(item) for item in self._fresh]
        try:
            kept_to = max(
                (item.number for item, is_on_card in self._flying.values() if is_on_card), default=0
            )
            kept_to = max([kept_to, *(item.number for item in self._loaded)])
            store.append(items, dropped=self._dropped, kept_to=kept_to, synced=synced)
        except JournalError as error:
            self._complain(error)
            return
        self._is_faulty = False
        self._fresh.clear()
        self._dropped = 0

    def _load(self) -> bool:
        """Whether the card had more; with confirmed ones that could not be removed yet skipped."""
        if self._store is None or self._store.last <= self._read_to:
            return False
        try:
            items = self._store.read(self._read_to, _READ_AHEAD)
            while items and all(item.number in self._confirmed for item in items):
                self._read_to = items[-1].number
                items = self._store.read(self._read_to, _READ_AHEAD)
        except JournalError as error:
            self._complain(error)
            return False
        if items:
            self._read_to = items[-1].number
        self._loaded.extend(item for item in items if item.number not in self._confirmed)
        return bool(self._loaded)

    def _settle(self) -> None:
        self._settled_s = self._clock()
        if self._store is None:
            self._confirmed.clear()
            return
        try:
            self._store.remove(self._confirmed)
        except JournalError as error:
            self._complain(error)
            return
        self._confirmed.clear()

    def _shed(self) -> None:
        """Make room in memory where the card would not take anything."""
        while len(self._fresh) > self._limits.most_in_memory:
            oldest = next((item for item in self._fresh if not item.is_event), self._fresh[0])
            self._fresh.remove(oldest)
            self._dropped += 1

    def _complain(self, error: JournalError) -> None:
        if not self._is_faulty:
            log.error("the spool of reports and events: %s", error)
        self._is_faulty = True
