"""One simulated device of a fleet: what it says, what it makes of what it is told, and when it has something to do.

What always holds: no I/O, and no clock of its own: moments are given (:class:`Now`), messages are handed back, and who
is asked what to believe is given as well. The same scenario, seed and moments give the same messages. Topics, messages
and their bytes are those of real devices.

Three kinds of time: simulated seconds, in which boards warm up and updates take their course; real seconds, in which
reports are due; and the right wall time, from which the device's own clock may be far off.

Left to others: the board's physics (:mod:`edgeslm.sim.board`), updates (:mod:`edgeslm.sim.fleet_update`), reports at an
interval (:mod:`edgeslm.sim.fleet_reports`), what is believed (:mod:`edgeslm.sim.fleet_trust`), and the network
(:mod:`edgeslm.sim.fleet_loop`).
"""

from __future__ import annotations

import math
import platform
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

import edgeslm
from edgeslm import codec, topics
from edgeslm.agent.description import availability
from edgeslm.agent.update.change import Wanted
from edgeslm.agent.update.gate import COMPARES_NOTHING
from edgeslm.clock import clock_is_set
from edgeslm.errors import EdgeslmError
from edgeslm.link.port import Message
from edgeslm.schema.enrol import IdentityReport, Machine
from edgeslm.schema.message import Info, ModelInfo
from edgeslm.schema.release import ReleaseTarget
from edgeslm.schema.sim_fleet import LieKind, SimulatedGroup
from edgeslm.schema.update import Reported, Verdict
from edgeslm.sim.board import BoardState, Inputs, initial, step
from edgeslm.sim.board_scenario import inputs_at
from edgeslm.sim.chance import bell, share
from edgeslm.sim.fleet_gate import Subject, measure, place_of
from edgeslm.sim.fleet_plan import Now, Plan
from edgeslm.sim.fleet_reports import Reporter
from edgeslm.sim.fleet_trust import Recipient, Trust
from edgeslm.sim.fleet_update import Running, Updates

RUNTIME: Final = "ai-edge-litert 2.3.0"
_CLOCK, _RATE, _UNSET, _JITTER, _LIAR, _CRASH, _CRASH_LATER, _BOARD = range(8)
"""What a number of chance is for."""
_YEAR_S: Final = 365 * 86_400.0
_STEP_S: Final = 60.0
_MAX_STEPS: Final = 8


@dataclass(slots=True)
class Credentials:
    """Who a device is: what the fleet gave to it.

    Attributes:
        key_sha256: digest of its public key.
        serial: of its certificate.
    """

    key_sha256: str
    serial: str


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
        "_reporter",
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
        self._lie = self._draw_lie()
        self._reporter = Reporter(plan, self._subject, name, other, self._lie)
        self._board: BoardState | None = None
        self._wall_s = 0.0
        self._served: dict[str, Running] = {}
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
        due_s = self._reporter.due_s
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
        self._reporter.begin(now)
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
        has_news = self._updates.advance(now.sim_s, online=self.is_online)
        has_news |= self._updates.follow(assignment, now.sim_s, online=self.is_online)
        return self._news() if has_news else []

    def wake(self, now: Now) -> list[Message]:
        """What it says by itself, now that time has passed."""
        self._see(now)
        said: list[Message] = []
        if self._updates.due_s <= now.sim_s and self._updates.advance(now.sim_s, online=self.is_online):
            said += self._news()
        if self._reporter.due_s <= now.real_s:
            board = self._advance_board(now.sim_s)
            said += self._reporter.say(now, self._clock(), board, self._running())
        return said

    # --- World, which its updates meet ---

    @property
    def jitter(self) -> float:
        """See :class:`~edgeslm.sim.fleet_update.World`."""
        return share(self._plan.seed, self.number, _JITTER)

    def find(self, wanted: Wanted, running: Running | None) -> ReleaseTarget:
        """See :class:`~edgeslm.sim.fleet_update.World`."""
        return self._plan.trust.find(wanted, running)

    def try_out(self, wanted: Wanted, running: Running | None, attempt: int) -> Verdict:
        """See :class:`~edgeslm.sim.fleet_update.World`."""
        return measure(
            self._subject,
            None if running is None else f"{wanted.name}@{running.version}",
            f"{wanted.name}@{wanted.version}",
            self._plan.effects,
            COMPARES_NOTHING if wanted.is_return else self._plan.policy.gate,
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
        if self._running() != self._served:
            said.append(self._info())
        return said

    def _report(self) -> Message:
        return self._message("reported", codec.encode(self.reported()), retain=True)

    def _info(self) -> Message:
        self._served = self._running()
        models = tuple(
            ModelInfo(
                name=name, version=one.version, sha256=one.sha256, task="generate", context_tokens=256,
                graph="model.tflite",
            )
            for name, one in self._served.items()
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

    def _running(self) -> dict[str, Running]:
        found = {name: self._updates.serving(name) for name in self._updates.names}
        return {name: one for name, one in found.items() if one is not None}

    def _message(self, channel: topics.DeviceChannel, body: bytes, *, retain: bool = False) -> Message:
        return Message(topics.device_topic(self.fleet, self.name, channel), body, retain=retain)

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
