"""Tells the fleet how the device is: metrics at an interval, events when something happens.

Runs on the sampling thread, which calls it ten times a second. How a message gets to the broker, also through an
outage, is left to the spool; what that drops shows as a gap in the sequence numbers.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Final, TypedDict

from edgeslm import codec, topics
from edgeslm.agent.metrics import Gatherer, Outcome
from edgeslm.agent.spool import Spool
from edgeslm.agent.stamps import iso_time
from edgeslm.clock import clock_is_set
from edgeslm.errors import LedgerError
from edgeslm.power.attribution import Interval
from edgeslm.power.bank import Demoted, MeterEvent
from edgeslm.power.monitor import PowerMonitor
from edgeslm.power.port import Throttling, Vitals
from edgeslm.power.steward import Steward
from edgeslm.procfs import memory_kib
from edgeslm.schema.budget import Budget
from edgeslm.schema.metrics import (
    BatteryMetrics,
    Event,
    EventType,
    InferenceMetrics,
    Metrics,
    PowerMetrics,
    SystemMetrics,
    WindowState,
)

log = logging.getLogger(__name__)

_EXHAUSTED_SHARE: Final = 0.02
_AVAILABLE_SHARE: Final = 0.10
_EXCEEDED_SHARE: Final = -0.02
_LOW_BATTERY_SHARE: Final = 0.2
_J_PER_KWH: Final = 3.6e6


class _Head(TypedDict):
    """What all reports begin with."""

    device: str
    seq: int
    at: str
    clock_set: bool
    span_s: float


class Telemetry:
    """Thread-safe; :meth:`attach` makes it listen to a monitor."""

    def __init__(
        self,
        fleet: str,
        device: str,
        spool: Spool,
        monitor: PowerMonitor,
        *,
        interval_s: float,
        state_dir: Path,
        hot_c: float | None = None,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        """Take the parts.

        Args:
            spool: gets messages to the broker.
            interval_s: seconds between reports.
            state_dir: whose file system's room is told.
            hot_c: processor temperature that is an event where the budget names no ceiling.
        """
        self._fleet, self._device, self._spool, self._monitor = fleet, device, spool, monitor
        self._budget = Budget()
        self._steward: Steward | None = None
        self._interval_s, self._state_dir, self._wall_clock = interval_s, state_dir, wall_clock
        self._board_hot_c = hot_c
        self._gatherer = Gatherer()
        self._seq: dict[str, int] = {}
        self._on: set[EventType] = set()
        self._exhausted: set[str] = set()
        self._began_s = time.monotonic()
        self._reported_s = self._began_s
        self._busy: tuple[float, float] | None = None
        self._day = ""
        self._today_j = self._co2_g = self._cost = 0.0
        self._waiting: Callable[[], int] = int
        self.on_report: Callable[[PowerMetrics, InferenceMetrics, SystemMetrics], None] | None = None

    def attach(self, waiting: Callable[[], int]) -> None:
        """Listen to the monitor, which has not started yet; `waiting` tells how many prompts wait."""
        self._waiting = waiting
        self._begin_day()
        self._monitor.listen(on_interval=self._interval, on_vitals=self._vitals, on_meter=self._meter)

    def use(self, budget: Budget, steward: Steward | None) -> None:
        """Tell of `budget` from now on, and of who spends it."""
        self._budget, self._steward = budget, steward

    def add_outcome(self, outcome: Outcome) -> None:
        """A prompt is done with."""
        self._gatherer.add_outcome(outcome)

    def connected(self) -> None:
        """The broker is there: send what has gathered."""
        self._spool.connected()

    def disconnected(self) -> None:
        """The broker is gone."""
        self._spool.disconnected()

    def published(self, token: int) -> None:
        """The broker has a message."""
        self._spool.published(token)

    def close(self) -> None:
        """Keep what could not be sent for the next process; nothing is told any more."""
        self._spool.close()

    def event(self, kind: EventType, detail: str, **figures: float | str) -> None:
        """Tell that something happened."""
        log.info("event %s: %s", kind, detail)
        event = Event(device=self._device, type=kind, at=self._now(), detail=detail, figures=figures)
        topic = topics.id_topic(self._fleet, self._device, "e", kind)
        self._spool.put(topic, codec.encode(event), is_event=True)

    # --- on the sampling thread ----------------------------------------------------------------------------------

    def _interval(self, interval: Interval) -> None:
        self._spool.tick()
        self._gatherer.add_interval(interval)
        self._today_j += interval.energy_j
        tariff = self._budget.tariff
        if tariff is not None:
            local = datetime.fromtimestamp(self._wall_clock()).astimezone()
            minute = local.hour * 60 + local.minute
            kwh = interval.energy_j / _J_PER_KWH
            self._co2_g += kwh * (tariff.value("co2_g_per_kwh", minute) or 0.0)
            self._cost += kwh * (tariff.value("price_per_kwh", minute) or 0.0)
        if interval.end_s - self._reported_s >= self._interval_s:
            self.report(interval.end_s)

    def _vitals(self, vitals: Vitals) -> None:
        flags = vitals.throttling or Throttling()
        temperature_c = vitals.temperature_c
        self._edge("under_voltage", flags.under_voltage, "the supply's voltage broke down")
        throttled = flags.throttled or flags.frequency_capped or flags.soft_temperature_limit
        self._edge("throttled", throttled, "the firmware slows the board down")
        ceiling = self._budget.temperature
        hot_c = self._board_hot_c if ceiling is None else ceiling.ceiling_c
        if temperature_c is not None and hot_c is not None:
            hot = temperature_c >= hot_c - (5.0 if "too_hot" in self._on else 0.0)
            self._edge("too_hot", hot, f"processor at {temperature_c:.1f} C", temperature_c=temperature_c)
        if vitals.battery is not None:
            battery = self._budget.battery
            reserve_share = _LOW_BATTERY_SHARE if battery is None else battery.reserve_share
            low = vitals.battery.share <= reserve_share
            self._edge(
                "battery_low", low, f"battery at {vitals.battery.share:.0%}", share=vitals.battery.share
            )
        self._watch_budget()

    def _watch_budget(self) -> None:
        for window in self._windows():
            name, left = window.name, window.left_share
            key = f"{name}:exhausted"
            if left < _EXHAUSTED_SHARE and key not in self._exhausted:
                self._exhausted.add(key)
                self.event(
                    "budget_exhausted", f"window '{name}' has {left:.1%} left", window=name, left_share=left
                )
            elif left > _AVAILABLE_SHARE and key in self._exhausted:
                self._exhausted.discard(key)
                self.event(
                    "budget_available", f"window '{name}' has {left:.1%} left", window=name, left_share=left
                )
            key = f"{name}:exceeded"
            if left < _EXCEEDED_SHARE and key not in self._exhausted:
                self._exhausted.add(key)
                self.event(
                    "budget_exceeded",
                    f"window '{name}' is exceeded by {-left:.1%}",
                    window=name,
                    left_share=left,
                )
            elif left >= 0:
                self._exhausted.discard(key)

    def _meter(self, event: MeterEvent) -> None:
        if isinstance(event, Demoted):
            detail = f"{event.meter} is {event.fault}: {event.detail}; {event.replaced_by} is used"
            self.event("meter_demoted", detail, meter=event.meter, fault=event.fault, used=event.replaced_by)
        else:
            self.event("meter_restored", f"{event.meter} is believed again", meter=event.meter)

    def _edge(self, kind: EventType, holds: bool, detail: str, **figures: float | str) -> None:
        if holds and kind not in self._on:
            self._on.add(kind)
            self.event(kind, detail, **figures)
        elif not holds:
            self._on.discard(kind)

    # --- reports -------------------------------------------------------------------------------------------------

    def report(self, now_s: float) -> None:
        """Publish all three reports on the time since the last ones."""
        span_s = now_s - self._reported_s
        self._reported_s = now_s
        power = self._power(now_s, span_s)
        inference = InferenceMetrics(
            **self._head("m/inference", span_s), waiting=self._waiting(), models=self._gatherer.take_models()
        )
        system = self._system(now_s, span_s)
        if self._steward is not None:
            self._steward.save()
        reports: tuple[tuple[topics.DeviceChannel, Metrics], ...] = (
            ("m/power", power),
            ("m/inference", inference),
            ("m/system", system),
        )
        for channel, report in reports:
            topic = topics.device_topic(self._fleet, self._device, channel)
            self._spool.put(topic, codec.encode(report), is_event=False)
        if self.on_report is not None:
            self.on_report(power, inference, system)

    def _power(self, now_s: float, span_s: float) -> PowerMetrics:
        energy = self._gatherer.take_energy(now_s)
        facts = self._monitor.facts
        draw = self._monitor.account.draw
        battery = self._monitor.vitals.battery
        co2_g, cost, self._co2_g, self._cost = self._co2_g, self._cost, 0.0, 0.0
        if self._today() != self._day:
            self._begin_day()
        return PowerMetrics(
            **self._head("m/power", span_s),
            meter="none" if facts is None else facts.name,
            meter_class=self._monitor.meter.meter_class,
            error_share=0.0 if facts is None else facts.error_share,
            idle_w=round(draw.idle.idle_w, 4),
            energy_j=round(energy.energy_j, 4),
            today_j=round(self._today_j, 3),
            points=energy.points,
            causes=energy.causes,
            windows=self._windows(),
            battery=None
            if battery is None
            else BatteryMetrics(
                share=battery.share, discharge_w=battery.discharge_w, external=battery.external
            ),
            co2_g=None if self._budget.tariff is None else round(co2_g, 6),
            cost=None if self._budget.tariff is None else round(cost, 8),
        )

    def _windows(self) -> tuple[WindowState, ...]:
        steward = self._steward
        if steward is None:
            return ()
        return tuple(
            WindowState(
                name=use.name,
                window_s=use.over_s,
                limit_j=round(use.limit_j, 3),
                used_j=round(use.used_j, 3),
                left_share=round(1 - use.used_j / use.limit_j, 4),
            )
            for use in steward.usage()
        )

    def _system(self, now_s: float, span_s: float) -> SystemMetrics:
        vitals = self._monitor.vitals
        flags = asdict(vitals.throttling or Throttling())
        since = "_since_boot"
        return SystemMetrics(
            **self._head("m/system", span_s),
            uptime_s=round(now_s - self._began_s, 1),
            temperature_c=vitals.temperature_c,
            frequency_mhz=vitals.frequency_mhz,
            throttling=tuple(name for name, on in flags.items() if on and not name.endswith(since)),
            throttled_before=tuple(
                name.removesuffix(since) for name, on in flags.items() if on and name.endswith(since)
            ),
            busy_cores=self._busy_cores(now_s),
            rss_mb=_resident_mb(),
            memory_free_mb=_memory_free_mb(),
            disk_free_mb=_disk_free_mb(self._state_dir),
            spool_waiting=self._spool.waiting,
            spool_dropped=self._spool.dropped,
        )

    def _head(self, channel: topics.DeviceChannel, span_s: float) -> _Head:
        seq = self._seq.get(channel, -1) + 1
        self._seq[channel] = seq
        return {
            "device": self._device,
            "seq": seq,
            "at": self._now(),
            "clock_set": clock_is_set(self._wall_clock()),
            "span_s": round(span_s, 3),
        }

    def _now(self) -> str:
        return iso_time(self._wall_clock())

    # --- the day -------------------------------------------------------------------------------------------------

    def _today(self) -> str:
        return datetime.fromtimestamp(self._wall_clock()).astimezone().date().isoformat()

    def _begin_day(self) -> None:
        """Start from what the ledger has for today; it lags by a batch, which is still in the intervals to come."""
        self._day = self._today()
        local = datetime.fromtimestamp(self._wall_clock()).astimezone()
        midnight_s = local.replace(hour=0, minute=0, second=0, microsecond=0).timestamp()
        try:
            rows = self._monitor.ledger.energy(midnight_s, self._wall_clock() + 60)
        except LedgerError as error:
            log.warning("today's energy starts from nothing: %s", error)
            rows = []
        self._today_j = sum(row.energy_j for row in rows)

    def _busy_cores(self, now_s: float) -> float | None:
        busy_s = self._monitor.busy_s
        before, self._busy = self._busy, (now_s, busy_s)
        if before is None or now_s <= before[0]:
            return None
        return round((busy_s - before[1]) / (now_s - before[0]), 3)


def _resident_mb() -> float | None:
    """Resident memory of this process (proc_pid_statm(5))."""
    try:
        pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return round(pages * os.sysconf("SC_PAGE_SIZE") / 2**20, 1)


def _memory_free_mb() -> float | None:
    free_kib = memory_kib("MemAvailable")
    return None if free_kib is None else round(free_kib / 1024, 1)


def _disk_free_mb(path: Path) -> float | None:
    try:
        return round(shutil.disk_usage(path).free / 2**20, 1)
    except OSError:
        return None
