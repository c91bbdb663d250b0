"""A fleet on paper for tests and benchmarks of rollouts: a real store, releases and controller; scripted devices.

The broker keeps what is retained and nothing else, and devices do what they are told in steps, so that a test decides
what happens before what: a report that is late, a controller that dies between any two steps.
"""

from __future__ import annotations

import atexit
import functools
import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

from benchmarks.update_trust_rig import Clock, Rig, fast_directory, key, keys
from edgeslm import codec, topics
from edgeslm.fleet.releases import ReleaseRepository
from edgeslm.fleet.rollout import records
from edgeslm.fleet.rollout.assigner import Assigner
from edgeslm.fleet.rollout.beginning import NewMember, begin
from edgeslm.fleet.rollout.controller import LEASE, Controller
from edgeslm.fleet.rollout.lease import Lease
from edgeslm.fleet.rollout.views import show
from edgeslm.fleet.store.database import Store, sqlite_url
from edgeslm.fleet.store.models import DeviceRow
from edgeslm.link.port import LinkEvents, Message
from edgeslm.power.boards import load_boards
from edgeslm.schema.release import ReleaseInfo
from edgeslm.schema.rollout import RolloutPlan, RolloutView, parse_waves
from edgeslm.schema.update import (
    Criterion,
    CriterionVerdict,
    Outcome,
    Reported,
    ReportedChange,
    ReportedFault,
    ReportedModel,
    Verdict,
)

FLEET = "green"
START = datetime(2026, 12, 1, 12, tzinfo=UTC)
VERSIONS = {"lamp": ("1.0.0", "1.1.0", "1.2.0"), "fern": ("1.0.0", "1.1.0")}
Behaviour = Literal["good", "worse", "false_fail", "crash", "inconclusive", "no_room", "deaf"]
"""What a device makes of a release; ``deaf`` follows nothing and says nothing."""


@functools.cache
def _repository() -> Path:
    """Releases of ``lamp`` and ``fern``, made once; not to be changed."""
    directory = Path(tempfile.mkdtemp(prefix="edgeslm-releases-", dir=_memory()))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    made = Rig.__new__(Rig)
    made.directory, made.clock = directory, Clock(START)
    made.repository = ReleaseRepository.create(
        directory / "repository",
        root=keys("root-1"),
        targets=keys("targets-1"),
        snapshot=keys("snapshot"),
        timestamp=keys("timestamp"),
        clock=made.clock,
    )
    made.repository.delegate_assignments(FLEET, keys("assignments"))
    for name, versions in VERSIONS.items():
        for version in versions:
            made.release(name, version)
    made.repository.sign_pending([key("root-1"), key("targets-1")])
    made.repository.publish([key("snapshot"), key("timestamp")])
    return directory / "repository"


def _memory() -> str | None:
    return "/dev/shm" if Path("/dev/shm").is_dir() else None  # noqa: S108 - none of this is about the disk


# --- the broker ---------------------------------------------------------------------------------------------


@dataclass
class PaperBroker:
    """What is retained, by topic; `sent` counts what was published on each."""

    retained: dict[str, bytes] = field(default_factory=dict)
    sent: dict[str, list[bytes]] = field(default_factory=dict)


class PaperLink:
    """A link whose confirmations come when they are let through."""

    def __init__(self, broker: PaperBroker) -> None:
        self.broker = broker
        self.unconfirmed: list[int] = []
        self._last = 0

    def start(self, events: LinkEvents, filters: Sequence[tuple[str, int]]) -> None:
        """Part of ``Link``."""

    def stop(self, farewell: Message | None = None) -> None:
        """Part of ``Link``."""

    def publish(self, message: Message) -> int | None:
        """Keep it."""
        self._last += 1
        self.broker.retained[message.topic] = message.payload
        self.broker.sent.setdefault(message.topic, []).append(message.payload)
        self.unconfirmed.append(self._last)
        return self._last


# --- devices ------------------------------------------------------------------------------------------------


def verdict(outcome: Outcome, change: float = 0.0, *, reach: float = 0.02, answers: float = 0.0) -> Verdict:
    """A gate's verdict whose speed changed by `change`."""

    def ratio(name: Criterion, share: float) -> CriterionVerdict:
        says: Outcome = "fail" if outcome == "fail" else outcome
        return CriterionVerdict(
            name=name, outcome=says, change=share, low=share - reach, high=share + reach, limit=0.1
        )

    return Verdict(
        outcome=outcome,
        mode="beside",
        criteria=(
            CriterionVerdict(name="answers", outcome="pass", change=answers, limit=0.03),
            ratio("ttft", change),
            ratio("decode", change),
            CriterionVerdict(name="energy", outcome="not_measured", note="the only meter is an estimate"),
        ),
        prompts=100,
        rounds=8,
    )


@dataclass
class PaperDevice:
    """A device that follows what it is told, one step at a time, in the order in which real ones do.

    Attributes:
        behaviours: by version of ``lamp``; what is not in it is good.
        history: every package that it began to change to, with the number of the assignment.
    """

    name: str
    shas: dict[tuple[str, str], str]
    behaviours: dict[str, Behaviour] = field(default_factory=dict)
    running: dict[str, str] = field(default_factory=lambda: {"lamp": "1.0.0", "fern": "1.0.0"})
    follows: int = 0
    seq: int = 0
    epoch: str = "e1"
    is_off: bool = False
    changes: dict[str, ReportedChange] = field(default_factory=dict)
    denied: set[str] = field(default_factory=set)
    history: list[tuple[str, str, int]] = field(default_factory=list)

    @property
    def is_deaf(self) -> bool:
        """It takes nothing up."""
        return self.is_off or "deaf" in self.behaviours.values()

    def follow(self, body: bytes | None) -> None:
        """Take an assignment up."""
        if body is None or self.is_deaf:
            return
        signed = json.loads(body)["signed"]
        if signed["seq"] <= self.follows:
            return
        self.follows = signed["seq"]
        for name, release in signed["releases"].items():
            self._wish(name, release["version"], force=release["force"])

    def _wish(self, name: str, version: str, *, force: bool) -> None:
        sha256 = self.shas[name, version]
        change = self.changes.get(name)
        if change is not None and not change.settled:
            if change.sha256 == sha256:
                self.changes[name] = change.model_copy(update={"assignment": self.follows})
                return
            self._settle(name, "rejected", ReportedFault(cause="superseded", detail="a newer wish"))
        if self.running.get(name) == version or (sha256 in self.denied and not force):
            return
        number = len(self.history) + 1
        self.history.append((name, version, self.follows))
        self.changes[name] = ReportedChange(
            number=number,
            version=version,
            sha256=sha256,
            state="offered",
            assignment=self.follows,
            settled=False,
        )

    def step(self) -> bool:
        """Go on with one change; whether there was one."""
        for name, change in self.changes.items():
            if change.settled or self.is_deaf:
                continue
            if change.state == "offered":
                self.changes[name] = change.model_copy(update={"state": "trial"})
            else:
                self._end(name, change)
            return True
        return False

    def _end(self, name: str, change: ReportedChange) -> None:
        behaviour: Behaviour = self.behaviours.get(change.version, "good") if name == "lamp" else "good"
        if behaviour == "good":
            self.running[name] = change.version
            self._settle(name, "committed", None, verdict("pass"))
        elif behaviour in {"worse", "false_fail"}:
            found = verdict("fail", 0.1 if behaviour == "worse" else 0.06)
            self.denied.add(change.sha256 or "")
            fault = ReportedFault(cause="gate_failed", detail="decode is slower", denied=True)
            self._settle(name, "rolled_back", fault, found)
            if behaviour == "false_fail":
                self.behaviours[change.version] = "good"
        elif behaviour == "crash":
            self.denied.add(change.sha256 or "")
            fault = ReportedFault(cause="crashed", detail="it died", denied=True)
            self._settle(name, "rolled_back", fault)
        elif behaviour == "inconclusive":
            fault = ReportedFault(cause="inconclusive", detail="decode: too close")
            self._settle(name, "rolled_back", fault, verdict("inconclusive", 0.045, reach=0.03))
        else:
            self._settle(name, "rejected", ReportedFault(cause="no_room", detail="the card is full"))

    def _settle(
        self,
        name: str,
        state: Literal["committed", "rejected", "rolled_back"],
        fault: ReportedFault | None,
        found: Verdict | None = None,
    ) -> None:
        self.changes[name] = self.changes[name].model_copy(
            update={"state": state, "settled": True, "fault": fault, "verdict": found}
        )

    def report(self) -> bytes:
        """Body of ``reported``."""
        self.seq += 1
        models = tuple(
            ReportedModel(
                name=name,
                version=version,
                sha256=self.shas[name, version],
                change=self.changes.get(name),
            )
            for name, version in sorted(self.running.items())
        )
        return codec.encode(
            Reported(device=self.name, epoch=self.epoch, seq=self.seq, assignment=self.follows, models=models)
        )


# --- the whole ----------------------------------------------------------------------------------------------


class PaperFleet:
    """Store, releases, devices, and a controller that can be replaced at any moment.

    Attributes:
        now: the present time.
        quarantined: why devices are not believed.
    """

    def __init__(self, store: Store, boards: dict[str, str]) -> None:
        """Write devices into the store.

        Args:
            boards: type of board by device.
        """
        self.store = store
        self.now = START
        self.broker = PaperBroker()
        self.quarantined: dict[str, str] = {}
        self.directory = _repository()
        targets = ReleaseRepository(self.directory).releases()
        self.releases: dict[tuple[str, str], ReleaseInfo] = {
            (one.info.name, one.info.version): one.info for one in targets
        }
        shas = {label: info.sha256 for label, info in self.releases.items()}
        self.boards = boards
        self.devices = {name: PaperDevice(name, shas) for name in boards}
        with store.write() as session:
            for name, board in boards.items():
                digest = hashlib.sha256(name.encode()).hexdigest()
                session.add(
                    DeviceRow(
                        name=name,
                        standing="active",
                        key_sha256=digest,
                        board=board,
                        notes="",
                        created_at=self.now,
                    )
                )
        self.controller = self.new_controller()
        for device in self.devices.values():
            self.broker.retained[self._topic(device.name, "reported")] = device.report()

    def new_controller(self, holder: str | None = None, *, tick_s: float = 1.0) -> Controller:
        """Another controller, as after the one before was killed: connected, and told what the broker keeps."""
        self.link = PaperLink(self.broker)
        assigner = Assigner(FLEET, self.directory, [key("assignments")], load_boards())
        controller = Controller(
            self.store,
            FLEET,
            self.link,
            assigner,
            lease=Lease(LEASE, holder),
            clock=lambda: self.now,
            tick_s=tick_s,
            quarantine=lambda _: self.quarantined,
        )
        controller.on_connected(session_present=False)
        self.controller = controller
        self._told: dict[str, bytes] = {}
        return controller

    def begin(
        self, version: str = "1.1.0", *, name: str = "lamp", waves: str = "100%", **plan: object
    ) -> int:
        """Begin a rollout to all devices in the order of their names, divided as `waves` says by the real code."""
        from edgeslm.fleet.rollout.waves import Candidate, divide  # noqa: PLC0415

        found = RolloutPlan.model_validate({"waves": parse_waves(waves), **plan})
        release = self.releases[name, version]
        candidates = [Candidate(device, board) for device, board in self.boards.items()]
        members = [
            NewMember(one.device, one.board, number, "1.0.0", self.releases[name, "1.0.0"].sha256)
            for number, wave in enumerate(divide(found, release.sha256, candidates, {}))
            for one in wave
        ]
        with self.store.write() as session:
            return begin(session, found, release, members, actor="test", now=self.now)

    def show(self, rollout_id: int) -> RolloutView:
        """All about a rollout."""
        with self.store.read() as session:
            return show(session, rollout_id, self.quarantined)

    def statuses(self, rollout_id: int) -> dict[str, str]:
        """State of each device."""
        return {one.device: one.status for one in self.show(rollout_id).members}

    # --- steps ---

    def confirm(self) -> None:
        """Let the broker's confirmations through."""
        tokens, self.link.unconfirmed = self.link.unconfirmed, []
        for token in tokens:
            self.controller.on_published(token)

    def follow(self, device: PaperDevice) -> None:
        """Let a device see what the broker keeps for it."""
        device.follow(self.broker.retained.get(self._topic(device.name, "desired")))
        self.say(device)

    def say(self, device: PaperDevice) -> None:
        """Let a device report."""
        if not device.is_deaf:
            self.broker.retained[self._topic(device.name, "reported")] = device.report()

    def hear(self) -> None:
        """Let the controller take what devices reported."""
        for name in self.devices:
            topic = self._topic(name, "reported")
            body = self.broker.retained.get(topic)
            if body is not None and self._told.get(topic) != body:
                self._told[topic] = body
                self.controller.on_message(Message(topic, body, retain=True))
        self.controller.take(0)

    def round(self) -> None:
        """Everybody does one thing."""
        self.hear()
        self.controller.turn()
        self.confirm()
        for device in self.devices.values():
            device.follow(self.broker.retained.get(self._topic(device.name, "desired")))
            device.step()
            self.say(device)

    def settle(
        self, rollout_id: int, *, rounds: int = 60, step: timedelta = timedelta(seconds=5)
    ) -> RolloutView:
        """Rounds until a rollout ends or waits for somebody."""
        for _ in range(rounds):
            self.round()
            self.now += step
            with self.store.read() as session:
                phase = records.need_rollout(session, rollout_id).phase
            if phase not in {"running", "returning"}:
                break
        return self.show(rollout_id)

    def _topic(self, device: str, channel: Literal["desired", "reported"]) -> str:
        return topics.device_topic(FLEET, device, channel)


@contextmanager
def paper_fleet(boards: dict[str, str]) -> Iterator[PaperFleet]:
    """A fleet on paper whose store is gone afterwards."""
    with fast_directory() as directory:
        store = Store(sqlite_url(directory / "fleet.db"))
        try:
            yield PaperFleet(store, boards)
        finally:
            store.close()


def many(count: int, boards: Sequence[str] = ("pi-4b", "pi-3b")) -> dict[str, str]:
    """Names and types of board of `count` devices."""
    return {f"d{number:04}": boards[number % len(boards)] for number in range(count)}
