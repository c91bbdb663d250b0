"""The sampling thread: looks at the board ten times a second and hands on what it drew.

What always holds:

* samples keep to a schedule made at the start; a late one does not delay the next, and missed ones are left out;
* a meter that shows instants is looked at at a random moment within each period. A load that pulses with the mains
  or with a video frame would, at even distances, be met at the same point of its pulse again and again;
* nothing that a meter, a listener or the disk does ends the thread.
"""

from __future__ import annotations

import logging
import math
import random
import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from edgeslm.errors import MeterError
from edgeslm.power.account import PERIOD_S, EnergyAccount, PowerSample
from edgeslm.power.attribution import Interval
from edgeslm.power.bank import MeterBank, MeterEvent
from edgeslm.power.cpu import CpuClock
from edgeslm.power.ledger import FLUSH_S, Ledger
from edgeslm.power.port import MeterFacts

log = logging.getLogger(__name__)

Listener = Callable[[Interval], None]
"""Told of each interval, on the sampling thread; should be quick."""

ACCOUNT_STATE = "account"
"""Key of the ledger's state under which the account's is kept."""

_STRATA = 64
_STOP_TIMEOUT_S = 5.0


class PowerSource(Protocol):
    """Whoever looks at the board."""

    def read(self, now_s: float) -> PowerSample:
        """The board as it is at monotonic `now_s`; returns within milliseconds.

        Raises:
            MeterError: no meter has anything to say.
        """


class BankSource:
    """``PowerSource`` over the board's meters and its processor clock."""

    def __init__(self, bank: MeterBank, cpu: CpuClock, on_event: Callable[[MeterEvent], None]) -> None:
        """Take the parts; `on_event` is told, on the sampling thread, of meters demoted and restored."""
        self._bank = bank
        self._cpu = cpu
        self._on_event = on_event

    def read(self, now_s: float) -> PowerSample:
        """The board as it is at monotonic `now_s`."""
        found = self._bank.read(now_s)
        for event in found.events:
            self._on_event(event)
        return PowerSample(found.reading, found.facts, self._cpu.read())


class Schedule:
    """When to sample: once in each period.

    Scattered moments are drawn by strata: over 64 periods each sixty-fourth of the period is hit once, in random
    order and at a random point. Each moment is as random as any, and together they cover the period evenly, which
    takes most of the noise out of the sum.
    """

    def __init__(self, start_s: float, period_s: float, seed: int | None = None) -> None:
        """Plan from monotonic `start_s` on; `seed` makes the moments repeatable."""
        self._start_s = start_s
        self._period_s = period_s
        self._random = random.Random(seed)  # noqa: S311  (nobody gains by guessing it)
        self._strata: list[int] = []
        self._slot = -1

    def next_s(self, now_s: float, *, scattered: bool) -> float:
        """Monotonic time of the next sample; in the past if that one is late already."""
        current = math.floor((now_s - self._start_s) / self._period_s)
        self._slot = max(self._slot + 1, current)
        return self._start_s + (self._slot + (self._scatter() if scattered else 0.0)) * self._period_s

    def _scatter(self) -> float:
        if not self._strata:
            self._strata = self._random.sample(range(_STRATA), _STRATA)
        return (self._strata.pop() + self._random.random()) / _STRATA


def shows_instants(facts: MeterFacts, period_s: float) -> bool:
    """Whether values of the meter, taken every `period_s`, leave most of the time between them unseen."""
    return not (facts.averages and facts.period_s >= period_s / 2)


class Sampler:
    """Samples on a thread of its own from :meth:`start` to :meth:`stop`."""

    def __init__(
        self,
        source: PowerSource,
        account: EnergyAccount,
        ledger: Ledger,
        *,
        listeners: Sequence[Listener] = (),
        period_s: float = PERIOD_S,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        """Take the parts.

        Args:
            ledger: gets every interval, and what the account learned.
            listeners: told after the ledger, in order.
            wall_clock: Unix time.
        """
        self._source = source
        self._account = account
        self._ledger = ledger
        self._listeners = tuple(listeners)
        self._period_s = period_s
        self._wall_clock = wall_clock
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="power-sampler", daemon=True)
        self._silent = False
        self._failing: set[int] = set()
        self.scattered = False
        """Whether the meter has to be looked at in random moments."""

    def start(self) -> None:
        """Take the first sample, so that work can be accounted for from now on, and go on in the background."""
        self.sample(time.monotonic())
        self._thread.start()

    def stop(self) -> None:
        """End the thread, settle what is open, and write the ledger."""
        self._stopping.set()
        self._thread.join(_STOP_TIMEOUT_S)
        self.finish(time.monotonic())

    def sample(self, now_s: float) -> None:
        """Look at the board once, at monotonic `now_s`, and hand on what it drew."""
        self._tell(self._account.observe(self._look(now_s)), now_s)

    def flush(self) -> None:
        """Write the ledger."""
        self._ledger.set_state(ACCOUNT_STATE, self._account.state())
        self._ledger.flush(self._wall_clock())

    def finish(self, now_s: float) -> None:
        """Settle what is open at monotonic `now_s`, and write the ledger."""
        self._tell(self._account.close(), now_s)
        self.flush()

    def _run(self) -> None:
        schedule = Schedule(time.monotonic(), self._period_s)
        flush_s = time.monotonic() + FLUSH_S
        while True:
            wait_s = schedule.next_s(time.monotonic(), scattered=self.scattered) - time.monotonic()
            if self._stopping.wait(max(wait_s, 0.0)):
                return
            try:
                now_s = time.monotonic()
                self.sample(now_s)
                if now_s >= flush_s:
                    flush_s = now_s + FLUSH_S
                    self.flush()
            except Exception:  # accounting goes on whatever one sample provokes
                log.exception("a power sample failed")

    def _look(self, now_s: float) -> PowerSample | None:
        try:
            sample = self._source.read(now_s)
        except MeterError as error:
            if not self._silent:
                log.warning("no meter tells the draw: %s", error)
            self._silent = True
            return None
        self._silent = False
        self.scattered = shows_instants(sample.facts, self._period_s)
        return sample

    def _tell(self, interval: Interval | None, now_s: float) -> None:
        if interval is None:
            return
        self._ledger.add(interval, now_s, self._wall_clock())
        for number, listener in enumerate(self._listeners):
            try:
                listener(interval)
            except Exception:  # one listener's fault is not the others'
                if number not in self._failing:
                    log.exception("a listener to power intervals fails")
                self._failing.add(number)
            else:
                self._failing.discard(number)
