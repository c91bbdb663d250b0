"""One simulated device of a fleet: what it says, what it makes of what it is told, and when it has something to do.

What always holds: no I/O, and no clock of its own: moments are given (:class:`Now`), messages are handed back, and who
is asked what to believe is given as well. The same scenario, seed and moments give the same messages. Topics, messages and their bytes are those of real devices.

Three kinds of time: simulated seconds, in which boards warm up and updates take their course; real seconds, in which
reports are due; and the right wall time, from which the device's own clock may be far off.

Left to others: the board's physics (:mod:`edgeslm.sim.board`), updates (:mod:`edgeslm.sim.fleet_update`), what is
believed (:mod:`edgeslm.sim.fleet_trust`), and the network (:mod:`edgeslm.sim.fleet_loop`).
"""

from __future__ import annotations

import math
import platform
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final, TypedDict

import edgeslm
from edgeslm import codec, topics
from edgeslm.agent.description import availability
from edgeslm.agent.update.change import Wanted
from edgeslm.clock import clock_is_set
from edgeslm.errors import EdgeslmError
from edgeslm.link.port import Message
from edgeslm.schema.board import Board
from edgeslm.schema.enrol import IdentityReport, Machine
from edgeslm.schema.message import Info, ModelInfo
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
from edgeslm.schema.release import ReleaseTarget
from edgeslm.schema.scenario import Scenario
from edgeslm.schema.sim_fleet import LieKind, SimulatedGroup
from edgeslm.schema.update import Reported, UpdatePolicy, Verdict
from edgeslm.sim.board import THROTTLED, UNDER_VOLTAGE, BoardState, Inputs, Plant, initial, step
from edgeslm.sim.board_scenario import inputs_at
from edgeslm.sim.chance import bell, share
from edgeslm.sim.fleet_gate import Effects, Subject, factor, measure, place_of
from edgeslm.sim.fleet_trust import Recipient, Trust
from edgeslm.sim.fleet_update import Running, Updates

RUNTIME: Final = "ai-edge-litert 2.3.0"
_CLOCK, _RATE, _UNSET, _JITTER, _PHASE, _LIAR, _CRASH, _CRASH_LATER, _LOAD, _BOARD = range(10)
"""What a number of chance is for."""
_YEAR_S: Final = 365 * 86_400.0
_STEP_S: Final = 60.0
_MAX_STEPS: Final = 8
_LOW_BATTERY: Final = 0.2
_TOKENS: Final = 12
_ENERGY_J, _TOKEN_S, _TTFT_S = 0.8, 0.009, 0.06


@dataclass(frozen=True, slots=True)
class Now:
    """A moment.

    Attributes:
        sim_s: simulated seconds since the simulation began.
        real_s: seconds of a monotonic clock.
        wall_s: the right Unix time.
    """

    sim_s: float
    real_s: float
    wall_s: float


@dataclass(frozen=True, slots=True)
class Plan:
    """What all devices of a group have in common.

    Attributes:
        fleet: its name.
        seed: of the simulation.
        speed: simulated seconds in a real one.
        interval_s: real seconds between reports; ``None`` is no reports.
        board: its facts,
        plant: its physics,
        conditions: and what acts on it.
        starts: what runs at the beginning, by name.
        effects: what releases do.
        policy: of updates.
        trust: what is believed.
        epoch: of this simulation: its devices know nothing of an earlier one.
    """

    fleet: str
    seed: int
    speed: float
    interval_s: float | None
    group: SimulatedGroup
    board: Board
    plant: Plant
    conditions: Scenario
    starts: dict[str, Running]
    effects: Effects
    policy: UpdatePolicy
    trust: Trust
    epoch: str


@dataclass(slots=True)
class Credentials:
    """Who a device is: what the fleet gave to it.

    Attributes:
        key_sha256: digest of its public key.
        serial: of its certificate.
    """

    key_sha256: str
    serial: str


class _Head(TypedDict):
    """What all reports begin with."""

    device: str
    seq: int
    at: str
    clock_set: bool
    span_s: float


@dataclass(slots=True)
class _Reporting:
    """Where a device is with its reports; times are real seconds."""

    due_s: float = math.inf
    since_s: float = 0.0
    seq: int = 0
    answered: float = 0.0
    today_j: float = 0.0
    on: set[EventType] = field(default_factory=set)


class SimulatedDevice:
    """A device; see the module. Its methods are for one thread.

    Attributes:
        name: on the wire.
        number: from 0, over the whole fleet; chance is drawn by it.
        other: a device in whose name a liar speaks.
        is_on: whether its board has power.
        refused: assignments that it did not follow, and why the last was not.
    """

    __slots__ = (
        "_board",
        "_epoch",
        "_lie",
        "_plan",
        "_reporting",
        "_served",
        "_subject",
        "_updates",
        "_wall_s",
        "credentials",
        "is_on",
        "is_online",
        "name",
        "number",
        "other",
        "refused",
        "reported_seq",
        "why_refused",
    )

    def __init__(self, plan: Plan, name: str, number: int, other: str) -> None:
        """Make one that has yet to get its credentials."""
        self.name, self.number, self.other = name, number, other
        self._plan = plan
        group = plan.group
        self._subject = Subject(plan.seed, number, group.board, group.noise, group.meter)
        self._updates = Updates(plan.starts, plan.policy, self)
        self._epoch = plan.epoch
        self._reporting = _Reporting()
        self._lie = self._draw_lie()
        self._board: BoardState | None = None
        self._wall_s = 0.0
        self._served: tuple[Running | None, ...] = ()
        self.credentials = Credentials("0" * 64, "1")
        self.is_on = True
        self.is_online = False
        self.reported_seq = 0
        self.refused = 0
        self.why_refused = ""

    # --- what others look at ---

    @property
    def fleet(self) -> str:
        """Of the device."""
        return self._plan.fleet

    @property
    def group(self) -> SimulatedGroup:
        """Of the device."""
        return self._plan.group

    @property
    def lie(self) -> LieKind | None:
        """What it says that is not so."""
        return self._lie

    @property
    def trust(self) -> Trust:
        """What it believes."""
        return self._plan.trust

    @property
    def updates(self) -> Updates:
        """Its changes."""
        return self._updates

    def machine(self) -> Machine:
        """What its hardware is."""
        return Machine(
            board=self.group.board, serial=f"sim{self.number:013x}", boot_id=f"sim-{self._epoch}", boots=1
        )

    def will(self) -> Message:
        """What the broker says when it is gone."""
        return availability(self.fleet, self.name, "offline")

    def filters(self) -> tuple[str, ...]:
        """What it listens to."""
        channels: tuple[topics.DeviceChannel, ...] = ("desired", "certificate")
        return tuple(topics.device_topic(self.fleet, self.name, channel) for channel in channels)

    def due_s(self, now: Now) -> float:
        """When it has something to do, in real seconds; infinite for never."""
        due_s = self._reporting.due_s
        if self._updates.due_s < math.inf:
            due_s = min(due_s, now.real_s + max(0.0, self._updates.due_s - now.sim_s) / self._plan.speed)
        return due_s

    # --- what happens to it ---

    def connected(self, now: Now) -> list[Message]:
        """The broker takes it: what a device says then."""
        self._see(now)
        self.is_online = True
        self._updates.reconnected()
        self._updates.advance(now.sim_s, online=True)
        if self._plan.interval_s is not None and self._reporting.due_s == math.inf:
            phase = share(self._plan.seed, self.number, _PHASE)
            self._reporting.due_s = now.real_s + phase * self._plan.interval_s
            self._reporting.since_s = now.real_s
        identity = IdentityReport(
            serial=self.credentials.serial, machine=self.machine(), agent=edgeslm.__version__
        )
        return [
            availability(self.fleet, self.name, "online"),
            self._message("identity", codec.encode(identity), retain=True),
            self._info(),
            self._report(),
        ]

    def disconnected(self) -> None:
        """The connection is gone."""
        self.is_online = False

    def restarted(self, now: Now, ran_s: float) -> None:
        """Its board went out some time ago, and starts again."""
        self._see(now)
        self.is_on = True
        self._updates.restarted(now.sim_s, ran_s)

    def take(self, topic: str, payload: bytes, now: Now) -> list[Message]:
        """What it says to a message."""
        self._see(now)
        if topic != topics.device_topic(self.fleet, self.name, "desired") or not payload:
            return []
        to = Recipient(self.fleet, self.name, self.credentials.key_sha256, self._clock())
        try:
            assignment = self._plan.trust.judge(payload, to, self._updates.assignment)
        except EdgeslmError as error:
            self.refused, self.why_refused = self.refused + 1, f"{type(error).__name__}: {error}"[:300]
            return []
        self._updates.advance(now.sim_s, online=self.is_online)
        is_new = self._updates.follow(assignment, now.sim_s, online=self.is_online)
        return self._news() if is_new else []

    def wake(self, now: Now) -> list[Message]:
        """What it says by itself, now that time has passed."""
        self._see(now)
        said: list[Message] = []
        if self._updates.due_s <= now.sim_s and self._updates.advance(now.sim_s, online=self.is_online):
            said += self._news()
        if self._reporting.due_s <= now.real_s and self._plan.interval_s is not None:
            said += self._metrics(now, self._plan.interval_s)
            # Missed ones are not made up for, as on a device that slept.
            late_s = now.real_s - self._reporting.due_s
            self._reporting.due_s += self._plan.interval_s * (1 + late_s // self._plan.interval_s)
        return said

    # --- World, which its updates meet ---

    @property
    def jitter(self) -> float:
        """See :class:`~edgeslm.sim.fleet_update.World`."""
        return share(self._plan.seed, self.number, _JITTER)

    def find(self, wanted: Wanted, running: Running | None) -> ReleaseTarget:
        """See :class:`~edgeslm.sim.fleet_update.World`."""
        return self._plan.trust.find(wanted, running)

    def try_out(self, name: str, running: Running | None, version: str, attempt: int) -> Verdict:
        """See :class:`~edgeslm.sim.fleet_update.World`."""
        return measure(
            self._subject,
            None if running is None else f"{name}@{running.version}",
            f"{name}@{version}",
            self._plan.effects,
            self._plan.policy.gate,
            attempt=attempt,
            temperature_c=None if self._board is None else self._board.temperature_c,
        )

    def crashes(self, name: str, version: str, *, serving: bool) -> bool:
        """See :class:`~edgeslm.sim.fleet_update.World`."""
        release = f"{name}@{version}"
        effect = self._plan.effects.get(release, self.group.board)
        likely = effect.crashes_later if serving else effect.crashes
        purpose = _CRASH_LATER if serving else _CRASH
        return likely > 0 and share(self._plan.seed, self.number, purpose, place_of(release)) < likely

    def fetch_s(self, size_bytes: int) -> float:
        """See :class:`~edgeslm.sim.fleet_update.World`."""
        return size_bytes / 1e6 / self.group.link.mb_per_s

    def utc(self) -> datetime | None:
        """See :class:`~edgeslm.sim.fleet_update.World`."""
        return self._clock() if clock_is_set(self._clock().timestamp()) else None

    # --- what it says ---

    def reported(self) -> Reported:
        """Its next report on updates."""
        self.reported_seq += 1
        return Reported(
            device=self.name,
            epoch=self._epoch,
            seq=self.reported_seq,
            assignment=self._updates.assignment,
            models=self._updates.models(),
        )

    def _news(self) -> list[Message]:
        said = [self._report()]
        if tuple(self._updates.serving(name) for name in self._updates.names) != self._served:
            said.append(self._info())
        return said

    def _report(self) -> Message:
        return self._message("reported", codec.encode(self.reported()), retain=True)

    def _info(self) -> Message:
        names = self._updates.names
        self._served = tuple(self._updates.serving(name) for name in names)
        models = tuple(
            ModelInfo(
                name=name, version=one.version, sha256=one.sha256, task="generate", context_tokens=256,
                graph="model.tflite",
            )
            for name, one in zip(names, self._served, strict=True)
            if one is not None
        )  # fmt: skip
        info = Info(
            device=self.name,
            agent=edgeslm.__version__,
            python=platform.python_version(),
            runtime=RUNTIME,
            board=self.group.board,
            tasks=("generate",),
            models=models,
            meter=self.group.meter or "estimated",
            max_queue=256,
            max_body_bytes=262_144,
            started_at=self._clock().isoformat(timespec="seconds"),
            ram_mb=max(self._plan.board.ram_mb, default=None),
            cpu_features=self._plan.board.cpu_features,
        )
        return self._message("info", codec.encode(info), retain=True)

    def _message(self, channel: topics.DeviceChannel, body: bytes, *, retain: bool = False) -> Message:
        return Message(topics.device_topic(self.fleet, self.name, channel), body, retain=retain)

    def _metrics(self, now: Now, interval_s: float) -> list[Message]:
        span_s = min(now.real_s - self._reporting.since_s, 10 * interval_s)
        self._reporting.since_s = now.real_s
        board = self._advance_board(now.sim_s)
        head: _Head = {
            "device": self.other if self._lie == "other's identity" else self.name,
            "seq": self._reporting.seq,
            "at": self._clock().isoformat(timespec="milliseconds"),
            "clock_set": clock_is_set(self._clock().timestamp()),
            "span_s": round(span_s, 3),
        }
        self._reporting.seq += 1
        inference = self._inference(head, span_s)
        reports: tuple[tuple[topics.DeviceChannel, Metrics], ...] = (
            ("m/power", self._power(head, span_s, board, inference)),
            ("m/inference", inference),
            ("m/system", self._system(head, now, board)),
        )
        said = [self._message(channel, codec.encode(report)) for channel, report in reports]
        if self._lie == "other's identity":
            said.append(Message(topics.device_topic(self.fleet, self.other, "m/power"), said[0].payload))
        return said + self._events(board)

    def _power(
        self, head: _Head, span_s: float, board: BoardState, inference: InferenceMetrics
    ) -> PowerMetrics:
        power_w = -board.power_w if self._lie == "negative watts" else board.power_w
        energy_j = power_w * span_s
        work_j = sum(model.net_j for model in inference.models)
        self._reporting.today_j += energy_j
        pack = self._plan.plant.battery
        return PowerMetrics(
            **head,
            meter="none" if self.group.meter is None else f"simulated {self.group.meter}",
            meter_class=self.group.meter or "estimated",
            error_share=0.02,
            idle_w=round(self._plan.plant.idle_w, 4),
            energy_j=round(energy_j, 4),
            today_j=round(self._reporting.today_j, 3),
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

    def _inference(self, head: _Head, span_s: float) -> InferenceMetrics:
        before = int(self._reporting.answered)
        self._reporting.answered += self.group.prompts_per_h * span_s / 3600.0
        answered = int(self._reporting.answered) - before
        models = []
        for name in self._updates.names[:1]:
            running = self._updates.serving(name)
            if running is None:
                continue
            release = f"{name}@{running.version}"
            slower = factor(self._subject, release, self._plan.effects, "time")
            energy_j = answered * _ENERGY_J * factor(self._subject, release, self._plan.effects, "energy")
            noise = math.exp(
                self.group.noise.speed * bell(self._plan.seed, self.number, _LOAD, self._reporting.seq)
            )
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
                    decode_tps=round(1.0 / (_TOKEN_S * slower * noise), 3) if answered else None,
                    ttft_ms=round(1e3 * _TTFT_S * slower * noise, 3) if answered else None,
                    energy_j=round(energy_j, 4),
                    net_j=round(0.6 * energy_j, 4),
                    j_per_token=round(energy_j / answered / _TOKENS, 5) if answered else None,
                )
            )
        return InferenceMetrics(**head, waiting=0, models=tuple(models))

    def _system(self, head: _Head, now: Now, board: BoardState) -> SystemMetrics:
        return SystemMetrics(
            **head,
            uptime_s=round(now.sim_s, 1),
            temperature_c=round(board.temperature_c, 2),
            frequency_mhz=round(board.frequency_mhz),
            throttling=tuple(
                text
                for bit, text in ((UNDER_VOLTAGE, "under_voltage"), (THROTTLED, "throttled"))
                if board.flags & bit
            ),
            busy_cores=0.2,
            rss_mb=58.0,
            memory_free_mb=1024.0,
            disk_free_mb=8192.0,
        )

    def _events(self, board: BoardState) -> list[Message]:
        pack = self._plan.plant.battery
        battery = 1.0 if pack is None else board.battery_j / 3600.0 / pack.capacity_wh
        holds: tuple[tuple[EventType, bool, str], ...] = (
            ("under_voltage", bool(board.flags & UNDER_VOLTAGE), "the supply's voltage broke down"),
            ("throttled", bool(board.flags & THROTTLED), "the firmware slows the board down"),
            ("battery_low", battery <= _LOW_BATTERY, f"battery at {battery:.0%}"),
        )
        said = []
        for kind, is_so, detail in holds:
            if is_so and kind not in self._reporting.on:
                self._reporting.on.add(kind)
                at = self._clock().isoformat(timespec="milliseconds")
                event = Event(device=self.name, type=kind, at=at, detail=detail)
                said.append(Message(topics.id_topic(self.fleet, self.name, "e", kind), codec.encode(event)))
            elif not is_so:
                self._reporting.on.discard(kind)
        return said

    # --- inside ---

    def _see(self, now: Now) -> None:
        self._wall_s = now.wall_s
        if self._board is None:
            self._board = initial(self._plan.plant, self._inputs(0.0))

    def _advance_board(self, sim_s: float) -> BoardState:
        """The board at that time; where much time passed at once, in long steps."""
        board = self._board or initial(self._plan.plant, self._inputs(0.0))
        left_s = sim_s - board.time_s
        if left_s > 1e-3:
            count = max(1, min(_MAX_STEPS, math.ceil(left_s / _STEP_S)))
            for _ in range(count):
                board = step(self._plan.plant, board, self._inputs(board.time_s), left_s / count)
            self._board, self.is_on = board, board.alive
        return board

    def power_is_back(self, now: Now) -> bool:
        """Whether a board that has gone out for lack of power runs again by now."""
        return self._advance_board(now.sim_s).alive

    def _inputs(self, time_s: float) -> Inputs:
        seed = int(share(self._plan.seed, self.number, _BOARD) * 2**53)
        return inputs_at(self._plan.conditions, seed, time_s, self._plan.plant.supply_w)

    def _clock(self) -> datetime:
        """What the device takes for the time."""
        seed, clock = self._plan.seed, self.group.clock
        if self._lie == "future time":
            return datetime.fromtimestamp(self._wall_s + _YEAR_S, UTC)
        if clock.unset_share and share(seed, self.number, _UNSET) < clock.unset_share:
            return datetime.fromtimestamp(self._wall_s % 86_400.0, UTC)
        offset_s = clock.offset_s * bell(seed, self.number, _CLOCK) if clock.offset_s else 0.0
        if clock.drift_ppm:
            passed_s = 0.0 if self._board is None else self._board.time_s
            offset_s += 1e-6 * clock.drift_ppm * bell(seed, self.number, _RATE) * passed_s
        return datetime.fromtimestamp(max(self._wall_s + offset_s, 0.0), UTC)

    def _draw_lie(self) -> LieKind | None:
        drawn = share(self._plan.seed, self.number, _LIAR)
        for liar in self.group.liars:
            if drawn < liar.share:
                return liar.kind
            drawn -= liar.share
        return None
