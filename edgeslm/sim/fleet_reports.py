"""What a simulated device reports on itself at an interval: power, inference, system, and events when something begins.

What always holds: no I/O, and no clock of its own. Reports are due in real seconds, since whoever gathers them lives in
real time; energy is the board's mean draw over the span that a report covers. Lies are told here.

Left to others: the board's physics (:mod:`edgeslm.sim.board`), and when a device may speak
(:mod:`edgeslm.sim.fleet_device`).
"""

from __future__ import annotations

import math
from datetime import datetime
from typing import Final, TypedDict

from edgeslm import codec, topics
from edgeslm.clock import clock_is_set
from edgeslm.link.port import Message
from edgeslm.schema.metrics import (
    BatteryMetrics,
    EnergyShare,
    Event,
    EventType,
    InferenceMetrics,
    Metrics,
    ModelMetrics,
    PowerMetrics,
    PowerPoint,
    SystemMetrics,
)
from edgeslm.schema.sim_fleet import LieKind
from edgeslm.sim.board import THROTTLED, UNDER_VOLTAGE, BoardState
from edgeslm.sim.chance import bell, share
from edgeslm.sim.fleet_gate import Subject, factor
from edgeslm.sim.fleet_plan import Now, Plan
from edgeslm.sim.fleet_update import Running

_PHASE, _LOAD = 50, 51
"""What a number of chance is for; apart from those of the device's own."""
_LONGEST_SPANS: Final = 10
_LOW_BATTERY: Final = 0.2
_TOKENS: Final = 12
_ENERGY_J, _TOKEN_S, _TTFT_S = 0.8, 0.009, 0.06


class _Head(TypedDict):
    """What all reports begin with."""

    device: str
    seq: int
    at: str
    clock_set: bool
    span_s: float


class Reporter:
    """The reports of one device.

    Attributes:
        due_s: when the next are due, in real seconds; infinite before :meth:`begin`.
    """

    __slots__ = (
        "_answered",
        "_lie",
        "_name",
        "_on",
        "_other",
        "_plan",
        "_seq",
        "_since_s",
        "_subject",
        "_today_j",
        "due_s",
    )

    def __init__(self, plan: Plan, subject: Subject, name: str, other: str, lie: LieKind | None) -> None:
        """Take the parts; `other` is the device in whose name a liar speaks."""
        self._plan, self._subject = plan, subject
        self._name, self._other, self._lie = name, other, lie
        self._since_s, self._answered, self._today_j = 0.0, 0.0, 0.0
        self._seq = 0
        self._on: set[EventType] = set()
        self.due_s = math.inf

    def begin(self, now: Now) -> None:
        """Report from now on, unless that began before; devices of a fleet are spread over the interval."""
        if self._plan.interval_s is not None and self.due_s == math.inf:
            phase = share(self._plan.seed, self._subject.number, _PHASE)
            self.due_s, self._since_s = now.real_s + phase * self._plan.interval_s, now.real_s

    def say(self, now: Now, clock: datetime, board: BoardState, running: dict[str, Running]) -> list[Message]:
        """The reports that are due, and when the next will be.

        Args:
            now: the moment.
            clock: what the device takes for the time.
            board: how its board is.
            running: what runs, by name.
        """
        interval_s = self._plan.interval_s or math.inf
        # Missed ones are not made up for, as on a device that slept.
        self.due_s += interval_s * (1 + (now.real_s - self.due_s) // interval_s)
        span_s = min(now.real_s - self._since_s, _LONGEST_SPANS * interval_s)
        self._since_s = now.real_s
        head: _Head = {
            "device": self._other if self._lie == "other's identity" else self._name,
            "seq": self._seq,
            "at": clock.isoformat(timespec="milliseconds"),
            "clock_set": clock_is_set(clock.timestamp()),
            "span_s": round(span_s, 3),
        }
        self._seq += 1
        inference = self._inference(head, span_s, running)
        reports: tuple[tuple[topics.DeviceChannel, Metrics], ...] = (
            ("m/power", self._power(head, span_s, board, inference)),
            ("m/inference", inference),
            ("m/system", self._system(head, now, board)),
        )
        said = [
            Message(topics.device_topic(self._plan.fleet, self._name, channel), codec.encode(report))
            for channel, report in reports
        ]
        if self._lie == "other's identity":
            topic = topics.device_topic(self._plan.fleet, self._other, "m/power")
            said.append(Message(topic, said[0].payload))
        return said + self._events(clock, board)

    def _power(
        self, head: _Head, span_s: float, board: BoardState, inference: InferenceMetrics
    ) -> PowerMetrics:
        power_w = -board.power_w if self._lie == "negative watts" else board.power_w
        energy_j = power_w * span_s
        work_j = sum(model.net_j for model in inference.models)
        self._today_j += energy_j
        pack, meter = self._plan.plant.battery, self._plan.group.meter
        return PowerMetrics(
            **head,
            meter="none" if meter is None else f"simulated {meter}",
            meter_class=meter or "estimated",
            error_share=0.02,
            idle_w=round(self._plan.plant.idle_w, 4),
            energy_j=round(energy_j, 4),
            today_j=round(self._today_j, 3),
            points=(PowerPoint(ago_s=0.0, min_w=power_w, mean_w=power_w, max_w=power_w),),
            causes=(
                EnergyShare(cause="idle", energy_j=round(energy_j - work_j, 4), net_j=0.0),
                EnergyShare(cause="prompt", energy_j=round(work_j, 4), net_j=round(work_j, 4)),
            ),
            battery=None
            if pack is None
            else BatteryMetrics(
                share=board.battery_j / 3600.0 / pack.capacity_wh,
                discharge_w=board.battery_w,
                external=board.external,
            ),
        )

    def _inference(self, head: _Head, span_s: float, running: dict[str, Running]) -> InferenceMetrics:
        group, effects = self._plan.group, self._plan.effects
        before = int(self._answered)
        self._answered += group.prompts_per_h * span_s / 3600.0
        answered = int(self._answered) - before
        models = []
        for name, one in sorted(running.items())[:1]:  # the default model answers them all
            release = f"{name}@{one.version}"
            slower = factor(self._subject, release, effects, "time")
            energy_j = answered * _ENERGY_J * factor(self._subject, release, effects, "energy")
            noise = group.noise.speed * bell(self._plan.seed, self._subject.number, _LOAD, self._seq)
            slower *= math.exp(noise)
            models.append(
                ModelMetrics(
                    model=release,
                    answered=answered,
                    failed=0,
                    refused=0,
                    deferred=0,
                    shortened=0,
                    prompt_tokens=answered * 2 * _TOKENS,
                    completion_tokens=answered * _TOKENS,
                    decode_tps=round(1.0 / (_TOKEN_S * slower), 3) if answered else None,
                    ttft_ms=round(1e3 * _TTFT_S * slower, 3) if answered else None,
                    energy_j=round(energy_j, 4),
                    net_j=round(0.6 * energy_j, 4),
                    j_per_token=round(energy_j / answered / _TOKENS, 5) if answered else None,
                )
            )
        return InferenceMetrics(**head, waiting=0, models=tuple(models))

    def _system(self, head: _Head, now: Now, board: BoardState) -> SystemMetrics:
        flags = ((UNDER_VOLTAGE, "under_voltage"), (THROTTLED, "throttled"))
        return SystemMetrics(
            **head,
            uptime_s=round(now.sim_s, 1),
            temperature_c=round(board.temperature_c, 2),
            frequency_mhz=round(board.frequency_mhz),
            throttling=tuple(text for bit, text in flags if board.flags & bit),
            busy_cores=0.2,
            rss_mb=58.0,
            memory_free_mb=1024.0,
            disk_free_mb=8192.0,
        )

    def _events(self, clock: datetime, board: BoardState) -> list[Message]:
        pack = self._plan.plant.battery
        battery = 1.0 if pack is None else board.battery_j / 3600.0 / pack.capacity_wh
        holds: tuple[tuple[EventType, bool, str], ...] = (
            ("under_voltage", bool(board.flags & UNDER_VOLTAGE), "the supply's voltage broke down"),
            ("throttled", bool(board.flags & THROTTLED), "the firmware slows the board down"),
            ("battery_low", battery <= _LOW_BATTERY, f"battery at {battery:.0%}"),
        )
        said = []
        for kind, is_so, detail in holds:
            if is_so and kind not in self._on:
                self._on.add(kind)
                event = Event(
                    device=self._name, type=kind, at=clock.isoformat(timespec="milliseconds"), detail=detail
                )
                topic = topics.id_topic(self._plan.fleet, self._name, "e", kind)
                said.append(Message(topic, codec.encode(event)))
            elif not is_so:
                self._on.discard(kind)
        return said
