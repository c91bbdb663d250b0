"""A fleet in virtual time: the controller that ships over a real store, and simulated devices with the real gate.

Assignments are signed and judged as always. Messages take no time, and the clock is that of the simulation, so that
a rollout of hours takes a second.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from benchmarks.agent_rig import MeasurementError
from benchmarks.fleet_rig import ACTOR, FLEET, MODEL, publish
from benchmarks.update_trust_rig import fast_directory
from edgeslm import codec, topics
from edgeslm.clock import utc_now
from edgeslm.fleet.assignments import last_reported, view_device
from edgeslm.fleet.release_setup import assignment_signer
from edgeslm.fleet.releases import ReleaseRepository
from edgeslm.fleet.rollout import records
from edgeslm.fleet.rollout.assigner import Assigner
from edgeslm.fleet.rollout.beginning import begin
from edgeslm.fleet.rollout.controller import Controller
from edgeslm.fleet.rollout.preflight import Facts, preflight
from edgeslm.fleet.rollout.views import show
from edgeslm.fleet.store.database import Store, sqlite_url
from edgeslm.fleet.store.models import DeviceRow
from edgeslm.link.port import LinkEvents, Message
from edgeslm.power.boards import load_boards
from edgeslm.schema.message import MAX_BODY_BYTES, Info
from edgeslm.schema.rollout import RolloutPlan, RolloutView
from edgeslm.schema.sim_fleet import FleetScenario
from edgeslm.sim.fleet import make_devices
from edgeslm.sim.fleet_device import SimulatedDevice
from edgeslm.sim.fleet_plan import Now
from edgeslm.sim.fleet_trust import Verifying
from edgeslm.trust.fetch import DirectoryFetch

STEP_S = 20.0
_MAX_TURNS = 200
GOING = frozenset(("running", "returning"))


@dataclass(frozen=True)
class Releases:
    """Published releases, shared by many virtual fleets."""

    directory: Path
    repository: ReleaseRepository
    assigner: Assigner
    trust: Verifying


@contextmanager
def published(versions: Sequence[str]) -> Iterator[Releases]:
    """Releases of :data:`MODEL`, gone at the end."""
    with fast_directory() as directory:
        keys = directory / "keys"
        repository = publish(directory / "releases", keys, directory, versions)
        trust = Verifying.open(
            directory / "trust", repository.root_bytes(), DirectoryFetch(directory / "releases" / "public")
        )
        assigner = Assigner(FLEET, directory / "releases", [assignment_signer(keys)], load_boards())
        Store(sqlite_url(directory / "empty.db")).close()
        yield Releases(directory, repository, assigner, trust)


class Air:
    """A link that keeps what is published until it is delivered."""

    def __init__(self) -> None:
        self.waiting: list[tuple[int, Message]] = []
        self._last = 0

    def start(self, events: LinkEvents, filters: Sequence[tuple[str, int]]) -> None:
        """Part of ``Link``."""

    def stop(self, farewell: Message | None = None) -> None:
        """Part of ``Link``."""

    def publish(self, message: Message) -> int | None:
        """Part of ``Link``."""
        self._last += 1
        self.waiting.append((self._last, message))
        return self._last


class VirtualFleet:
    """Devices of a scenario and their controller; used as a context manager."""

    def __init__(self, releases: Releases, scenario: FleetScenario) -> None:
        self._releases = releases
        self._began = utc_now()
        self._passed_s = 0.0
        self._boards = load_boards()
        devices = make_devices(scenario, FLEET, releases.trust)
        self.devices = {device.name: device for device in devices}
        path = releases.directory / "fleet.db"
        path.write_bytes((releases.directory / "empty.db").read_bytes())
        self._path = path
        self.store = Store(sqlite_url(path))
        self._infos: dict[str, Info] = {}
        with self.store.write() as session:
            for device in devices:
                digest = hashlib.sha256(device.name.encode()).hexdigest()
                device.credentials.key_sha256 = digest
                session.add(
                    DeviceRow(
                        name=device.name,
                        standing="active",
                        key_sha256=digest,
                        board=device.group.board,
                        notes="",
                        created_at=self._began,
                    )
                )
        self._air = Air()
        self._controller = Controller(
            self.store, FLEET, self._air, releases.assigner, clock=lambda: self._began + self.passed
        )
        self._controller.on_connected(session_present=False)
        for device in devices:
            self._hear(device, device.connected(self._now))
        self._settle_down()

    @property
    def passed(self) -> timedelta:
        """Virtual time since the beginning."""
        return timedelta(seconds=self._passed_s)

    def __enter__(self) -> VirtualFleet:
        return self

    def __exit__(self, *_: object) -> None:
        self.store.close()
        for suffix in ("", "-wal", "-shm"):
            self._path.with_name(self._path.name + suffix).unlink(missing_ok=True)

    def begin(self, version: str, plan: RolloutPlan) -> int:
        """Check and begin a rollout to all devices, as ``fleet push`` does."""
        with self.store.read() as session:
            rows = [session.query(DeviceRow).filter_by(name=name).one() for name in self.devices]
            facts = [
                Facts(
                    view_device(row, self._infos[row.name], last_reported(session, row), self._boards),
                    board=row.board,
                    has_meter=self._infos[row.name].meter == "measured",
                )
                for row in rows
            ]
        targets = self._releases.repository.releases()
        target = next(one for one in targets if (one.info.name, one.info.version) == (MODEL, version))
        checked = preflight(
            target,
            plan,
            facts,
            published={one.info.sha256 for one in targets},
            pinned={},
            quarantined=(),
            groups={},
        )
        with self.store.write() as session:
            now = self._began + self.passed
            return begin(session, plan, target.info, checked.members(), actor=ACTOR, now=now)

    def carry_on(self, rollout_id: int, *, within_wave: bool, limit: timedelta) -> tuple[str, int, str]:
        """Let time pass until the rollout rests, or leaves its wave; its phase, its wave from 0, and why.

        Raises:
            MeasurementError: it does neither in time.
        """
        until_s = self._passed_s + limit.total_seconds()
        while self._passed_s < until_s:
            self._settle_down()
            with self.store.read() as session:
                row = records.need_rollout(session, rollout_id)
                found = row.phase, row.wave, row.reason
            if found[0] not in GOING or (within_wave and (found[1] > 0 or found[0] != "running")):
                return found
            self._passed_s += STEP_S
            now = self._now
            for device in self.devices.values():
                if device.due_s(now) <= now.real_s:
                    self._hear(device, device.wake(now))
        raise MeasurementError(f"rollout {rollout_id} is {found[0]} after {limit}")

    def show(self, rollout_id: int) -> RolloutView:
        """All about a rollout."""
        with self.store.read() as session:
            return show(session, rollout_id, {})

    # --- inside ---

    @property
    def _now(self) -> Now:
        return Now(self._passed_s, self._passed_s, self._began.timestamp() + self._passed_s)

    def _settle_down(self) -> None:
        """Let the controller do all that there is to do at this moment."""
        for _ in range(_MAX_TURNS):
            self._controller.take(0)
            more = self._controller.turn()
            delivered = self._deliver()
            if not more and not delivered:
                return

    def _deliver(self) -> bool:
        waiting, self._air.waiting = self._air.waiting, []
        for token, message in waiting:
            topic = topics.parse(message.topic)
            assert isinstance(topic, topics.DeviceTopic)
            device = self.devices[topic.device]
            self._hear(device, device.take(message.topic, message.payload, self._now))
            self._controller.on_published(token)
        return bool(waiting)

    def _hear(self, device: SimulatedDevice, said: Sequence[Message]) -> None:
        for message in said:
            topic = topics.parse(message.topic)
            if not isinstance(topic, topics.DeviceTopic):
                continue
            if topic.channel == "info":
                self._infos[device.name] = codec.decode(Info, message.payload, max_bytes=MAX_BODY_BYTES)
            elif topic.channel == "reported":
                self._controller.on_message(message)
