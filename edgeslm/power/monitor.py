"""Watches the power of the board that this process runs on.

Meters, processor clock, accounting, ledger and vitals in one, sampled in the background.

What always holds: from :meth:`PowerMonitor.start` to :meth:`PowerMonitor.stop` each joule that the board draws is in
the ledger and in the intervals that listeners get; listeners run on the sampling thread and must be quick.

Left to others: what may be spent (:mod:`edgeslm.power.governor`), and telling the world.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

from edgeslm.power.account import EnergyAccount
from edgeslm.power.attribution import Interval
from edgeslm.power.bank import MeterBank, MeterEvent
from edgeslm.power.cpu import CpuClock
from edgeslm.power.health import limits_of
from edgeslm.power.ledger import Ledger
from edgeslm.power.meters.discovery import Discovery
from edgeslm.power.port import EnergyMeter, MeterFacts, Vitals
from edgeslm.power.sampler import ACCOUNT_STATE, BankSource, Sampler
from edgeslm.power.vitals import VitalsReader
from edgeslm.procfs import boot_id
from edgeslm.schema.board import Board
from edgeslm.schema.power import MetersConfig

log = logging.getLogger(__name__)

LEDGER_NAME = "energy.db"
VITALS_PERIOD_S = 1.0


class PowerMonitor:
    """One per process. Listeners are added before :meth:`start`."""

    def __init__(self, board: Board, config: MetersConfig, discovery: Discovery, ledger_file: Path) -> None:
        """Open the ledger; `discovery` holds the meters, which :meth:`stop` closes.

        Raises:
            LedgerError: the ledger cannot be opened, or was written by a newer release.
        """
        self.ledger = Ledger(ledger_file, boot_id())
        self.account = EnergyAccount(
            board.power, state=self.ledger.state(ACCOUNT_STATE), period_s=1 / config.sample_hz
        )
        self.vitals = Vitals(at_s=time.monotonic())
        self.interval: Interval | None = None
        self._bank = MeterBank(discovery.meters, discovery.model, limits_of(board.power, board.cores))
        self._vitals_reader = VitalsReader(config.root, config.vcgencmd)
        self._vitals_due_s = 0.0
        self._stopped = False
        self._on_interval: list[Callable[[Interval], None]] = []
        self._on_vitals: list[Callable[[Vitals], None]] = []
        self._on_meter: list[Callable[[MeterEvent], None]] = []
        self._cpu = CpuClock(config.root)
        self._sampler = Sampler(
            BankSource(self._bank, self._cpu, self._meter_changed),
            self.account,
            self.ledger,
            listeners=[self._take],
            period_s=1 / config.sample_hz,
        )

    @property
    def meter(self) -> EnergyMeter:
        """What pieces of work are measured with."""
        return self.account

    @property
    def facts(self) -> MeterFacts | None:
        """Of the meter in use; ``None`` before the first sample."""
        return self.account.facts

    @property
    def busy_s(self) -> float:
        """Core seconds that the whole board was busy since the start; to be asked by listeners only."""
        return self._cpu.read().busy_s

    def listen(
        self,
        *,
        on_interval: Callable[[Interval], None] | None = None,
        on_vitals: Callable[[Vitals], None] | None = None,
        on_meter: Callable[[MeterEvent], None] | None = None,
    ) -> None:
        """Be told, on the sampling thread, of each interval, each look at the vitals, each change of meters."""
        if on_interval is not None:
            self._on_interval.append(on_interval)
        if on_vitals is not None:
            self._on_vitals.append(on_vitals)
        if on_meter is not None:
            self._on_meter.append(on_meter)

    def start(self) -> None:
        """Take the first sample and go on in the background."""
        self._look(time.monotonic())
        self._sampler.start()

    def stop(self) -> None:
        """Settle what is open, write the ledger, close all files. Idempotent."""
        if self._stopped:
            return
        self._stopped = True
        self._sampler.stop()
        self._bank.close()
        self._vitals_reader.close()
        self.ledger.close()

    def _take(self, interval: Interval) -> None:
        self.interval = interval
        for listener in self._on_interval:
            listener(interval)
        if interval.end_s >= self._vitals_due_s:
            self._look(interval.end_s)

    def _look(self, now_s: float) -> None:
        self._vitals_due_s = now_s + VITALS_PERIOD_S
        self.vitals = self._vitals_reader.read(now_s)
        for listener in self._on_vitals:
            listener(self.vitals)

    def _meter_changed(self, event: MeterEvent) -> None:
        log.warning("%s", event)
        for listener in self._on_meter:
            listener(event)
