"""SIGKILL for the controller of rollouts at random moments: is anything lost by that, or done twice?

Two controllers run, one works under the lease. The one that works is killed, the other takes over, another is started.
Store, broker, signatures and processes are real. Rollouts follow one another: one that goes through, one that is taken
back by hand half-way, one that its canaries stop. After each it is looked, in store, broker and devices, whether all is
as it would be without a kill. The moments come from a seed; what they hit is up to the machine.
"""

from __future__ import annotations

import json
import random
import statistics
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Final, Literal

from sqlalchemy import select

from benchmarks.agent_rig import MeasurementError, say
from benchmarks.fleet_controller import LEASE_S, TICK_S, Controllers
from benchmarks.fleet_rig import (
    ACTOR,
    FLEET,
    MODEL,
    Home,
    Service,
    devices_at,
    home,
    push,
    push_here,
    scenario,
    wait_for_rest,
)
from benchmarks.report import Found
from benchmarks.update_fleet_rig import Visitor, wait_for
from edgeslm import topics
from edgeslm.clock import utc_now
from edgeslm.errors import RolloutError
from edgeslm.fleet.assignments import Visit
from edgeslm.fleet.rollout import operate
from edgeslm.fleet.rollout.controller import LEASE
from edgeslm.fleet.rollout.lease import LENGTH
from edgeslm.fleet.rollout.views import list_rollouts, show
from edgeslm.fleet.store.models import AuditRow, DeviceRow, EventRow
from edgeslm.fleet.store.rollouts import DesiredRow, LeaseRow
from edgeslm.schema.rollout import FINISHED, RolloutView
from edgeslm.schema.sim_fleet import Noise, ReleaseEffect
from edgeslm.sim.fleet import SimFleet

KILLS, QUICK_KILLS = 200, 15
SERVE_KILLS = 3
DEVICES = 40
SEED = 20_261_125
_BOARDS = ("pi-3b", "pi-4b")
_SPEED = 900.0
_BAD = tuple(f"9.{number}.0" for number in range(40))
"""A release that a device refused is not tried there again: each rollout that is to be stopped brings another."""
_WAVES = "1 per board, 10%, 50%, 100%"
_LONGEST_S = 1.0
"""Longest that a controller works before it is killed."""
_TIMEOUT_S = 180.0
_QUIET = Noise(speed=0.002, energy=0.002, spread=0.0)
"""What is asked here is not whether gates err."""

Kind = Literal["through", "taken back", "stopped"]
KINDS: Final[tuple[Kind, ...]] = ("through", "taken back", "stopped")


@dataclass
class Count:
    """What was found.

    Attributes:
        lost: devices or steps that are not what they would be without a kill, `doubled` steps that were taken twice.
        busy: kills while devices were under way or assignments unsent.
    """

    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    kills: int = 0
    busy: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    phases: Counter[str] = field(default_factory=Counter)
    takeovers_s: list[float] = field(default_factory=list)


class Executioner(threading.Thread):
    """Kills the controller that works, again and again, and sees that another takes over."""

    def __init__(self, place: Home, controllers: Controllers, wanted: int, count: Count) -> None:
        super().__init__(name="executioner", daemon=True)
        self._place = place
        self._controllers = controllers
        self._wanted = wanted
        self._count = count
        self._chance = random.Random(SEED)
        self._is_over = threading.Event()
        self.may_kill = threading.Event()
        self.failure: str | None = None
        self._killed_at_s: float | None = None

    @property
    def is_done(self) -> bool:
        """Whether all kills are done, or it cannot go on."""
        return self._count.kills >= self._wanted or self.failure is not None

    def stop(self) -> None:
        """End."""
        self._is_over.set()
        self.may_kill.set()
        self.join(_TIMEOUT_S)

    def run(self) -> None:
        """See the class."""
        try:
            while not self.is_done:
                self.may_kill.wait()
                if self._is_over.is_set():
                    return
                self._kill_one()
        except Exception as error:  # it is told by whoever waits for the kills
            self.failure = f"{type(error).__name__}: {error}"

    def _kill_one(self) -> None:
        leader = self._leader()
        if self._killed_at_s is not None:
            self._count.takeovers_s.append(time.monotonic() - self._killed_at_s)
            self._killed_at_s = None
        if self._is_over.wait(self._chance.uniform(0.0, _LONGEST_S)) or not self.may_kill.is_set():
            return
        phase, is_busy = self._work()
        self._controllers.kill(leader)
        self._killed_at_s = time.monotonic()
        self._controllers.start()
        self._count.kills += 1
        self._count.busy += is_busy
        self._count.phases[phase] += 1
        if self._count.kills % 20 == 0:
            say(f"{self._count.kills} kills, {sum(self._count.kinds.values())} rollouts")

    def _leader(self) -> int:
        """Process id of a living controller that works."""
        deadline_s = time.monotonic() + _TIMEOUT_S
        while time.monotonic() < deadline_s:
            pid = holder_pid(self._place)
            if pid in self._controllers.alive:
                return pid
            time.sleep(0.01)
        raise MeasurementError(f"nobody takes over: {self._place.log.read_text('utf-8', 'replace')[-800:]}")

    def _work(self) -> tuple[str, bool]:
        """What is under way at this moment."""
        with self._place.store.read() as session:
            unsent = session.scalars(
                select(DesiredRow.device_id).where(DesiredRow.published_seq != DesiredRow.seq).limit(1)
            ).first()
            views = [one for one in _views(session) if one.phase not in FINISHED]
        phase = views[0].phase if views else "none"
        under_way = any(one.status in {"asked", "returning"} for view in views for one in view.members)
        return phase, unsent is not None or under_way


def _views(session: Any) -> list[RolloutView]:
    return [show(session, one.id, {}) for one in list_rollouts(session, only_going=True)]


def holder_pid(place: Home) -> int | None:
    """Process id of who holds the lease at this moment."""
    with place.store.read() as session:
        row = session.get(LeaseRow, LEASE)
        if row is None or row.expires_at <= utc_now():
            return None
        return int(row.holder.split(":")[1])


# --- what a rollout has to be like when it is over -----------------------------------------------------------


class Judge:
    """Compares what a rollout left with what it has to leave."""

    def __init__(self, place: Home, fleet: SimFleet, wire: Visitor) -> None:
        self._place, self._fleet, self._wire = place, fleet, wire
        self._changes = self._change_numbers()
        self._versions = self._running()
        with place.store.read() as session:
            self._seen_audit = _last_id(session, AuditRow)
            self._seen_events = _last_id(session, EventRow)

    def judge(self, kind: Kind, rollout_id: int, version: str, count: Count) -> None:
        """Look at everything."""
        label = f"rollout {rollout_id} ({kind})"
        if not wait_for(self._is_quiet, _TIMEOUT_S):
            count.lost.append(f"{label}: something is still under way")
        with self._place.store.read() as session:
            view = show(session, rollout_id, {})
            rows = session.execute(
                select(DeviceRow.name, DesiredRow.seq, DesiredRow.body)
                .join(DesiredRow, DesiredRow.device_id == DeviceRow.id)
            ).all()  # fmt: skip
            taken = session.execute(
                select(AuditRow.subject, AuditRow.action).where(
                    AuditRow.id > self._seen_audit, AuditRow.actor == "controller"
                )
            )
            actions = Counter((subject, action) for subject, action in taken)
            waves = Counter(
                session.scalars(
                    select(EventRow.text).where(
                        EventRow.id > self._seen_events,
                        EventRow.subject == f"rollout-{rollout_id}",
                        EventRow.text.startswith("wave "),
                    )
                )
            )
        wanted_phase = "completed" if kind == "through" else "aborted"
        if view.phase != wanted_phase:
            count.lost.append(f"{label} is {view.phase}, not {wanted_phase}: {view.reason}")
        running, changes, follows = self._running(), self._change_numbers(), self._follows()
        for one in view.members:
            self._judge_device(label, kind, one.device, one.status, version, running[one.device], count)
            begun = changes[one.device] - self._changes[one.device]
            asked = actions[one.device, "assign"]
            most = _most(kind, one.status)
            if begun > most:
                count.doubled.append(f"{label}: {one.device} began {begun} changes")
            if asked > most:
                count.doubled.append(f"{label}: {one.device} was assigned {asked} times")
        phases = {what: times for (who, what), times in actions.items() if who == f"rollout-{rollout_id}"}
        for step, times in {**waves, **phases}.items():
            if times > 1:
                count.doubled.append(f"{label}: {step} {times} times")
        self._judge_broker(label, rows, follows, count)

    def _judge_device(
        self, label: str, kind: Kind, device: str, status: str, version: str, runs: str | None, count: Count
    ) -> None:
        ends = {"passed"} if kind == "through" else {"returned", "skipped"}
        if status not in ends:
            count.lost.append(f"{label}: {device} is {status}")
        wanted = version if kind == "through" else self._versions[device]
        if runs != wanted:
            count.lost.append(f"{label}: {device} runs {runs}, not {wanted}")

    def _judge_broker(self, label: str, rows: Any, follows: dict[str, int], count: Count) -> None:
        names = {topics.device_topic(FLEET, name, "desired"): name for name, _, _ in rows}
        with Visit(
            self._place.directory.operator_config(), f"bench-look-{time.monotonic_ns()}", list(names)
        ) as visit:
            kept = visit.retained()
        for name, seq, body in rows:
            if kept.get(topics.device_topic(FLEET, name, "desired")) != body:
                count.lost.append(f"{label}: the broker has not the assignment {seq} of {name}")
            if follows[name] != seq:
                count.lost.append(f"{label}: {name} follows {follows[name]}, not {seq}")
        sent: dict[tuple[str, int], set[bytes]] = defaultdict(set)
        for message in self._wire.events.messages:
            if message.payload:
                sent[message.topic, _seq_of(message.payload)].add(message.payload)
        for (topic, seq), bodies in sent.items():
            if len(bodies) > 1:
                count.doubled.append(f"{label}: {len(bodies)} assignments of number {seq} on {topic}")
        self._wire.events.messages.clear()

    def _is_quiet(self) -> bool:
        with self._place.store.read() as session:
            rows = session.execute(
                select(DeviceRow.name, DesiredRow.seq, DesiredRow.published_seq)
                .join(DesiredRow, DesiredRow.device_id == DeviceRow.id)
            ).all()  # fmt: skip
        if any(seq != published for _, seq, published in rows):
            return False
        follows = self._follows()
        return all(follows[name] == seq for name, seq, _ in rows) and self._fleet.look(self._is_idle)

    def _is_idle(self) -> bool:
        return all(device.updates.is_idle for device in self._fleet.devices)

    def _follows(self) -> dict[str, int]:
        return self._fleet.look(lambda: {one.name: one.updates.assignment for one in self._fleet.devices})

    def _change_numbers(self) -> dict[str, int]:
        def number(device: Any) -> int:
            change = device.updates.get(MODEL)
            return 0 if change is None else int(change.number)

        return self._fleet.look(lambda: {one.name: number(one) for one in self._fleet.devices})

    def _running(self) -> dict[str, str | None]:
        def version(device: Any) -> str | None:
            serving = device.updates.serving(MODEL)
            return None if serving is None else str(serving.version)

        return self._fleet.look(lambda: {one.name: version(one) for one in self._fleet.devices})


def _most(kind: Kind, status: str) -> int:
    """Steps that a device takes at most: there, and back."""
    if status == "skipped":
        return 0
    return 1 if kind == "through" else 2


def _last_id(session: Any, table: Any) -> int:
    found = session.scalars(select(table.id).order_by(table.id.desc()).limit(1)).first()
    return 0 if found is None else int(found)


def _seq_of(payload: bytes) -> int:
    return int(json.loads(payload)["signed"]["seq"])


# --- rollouts under kills ------------------------------------------------------------------------------------


def run_kills(kills: int) -> Count:
    """Kill so many times while one rollout follows another.

    Raises:
        MeasurementError: devices do not come, nobody takes over, or a rollout does not come to rest.
    """
    count = Count()
    chance = random.Random(SEED + 1)
    effects = [ReleaseEffect(release=f"{MODEL}@{version}", time=0.3) for version in _BAD]
    bad = iter(_BAD)
    wanted = scenario(DEVICES, boards=_BOARDS, effects=effects, speed=_SPEED, interval_s=None, noise=_QUIET)
    with (
        home(["1.0.0", "1.1.0", *_BAD]) as place,
        devices_at(place, wanted, join=False) as fleet,
        Controllers(place) as controllers,
        _wire(place) as wire,
    ):
        if not fleet.wait_until(lambda now: now.online() == DEVICES, _TIMEOUT_S):
            raise MeasurementError(f"devices do not come: {fleet.summary().reasons}")
        controllers.start()
        controllers.start()
        executioner = Executioner(place, controllers, kills, count)
        executioner.start()
        version = "1.0.0"
        try:
            while not executioner.is_done:
                kind = KINDS[sum(count.kinds.values()) % len(KINDS)]
                judge = Judge(place, fleet, wire)
                good = "1.1.0" if version == "1.0.0" else "1.0.0"
                other = next(bad) if kind == "stopped" else good
                number = push_here(place, f"{MODEL}@{other}", "--waves", _WAVES, "--downgrade")
                executioner.may_kill.set()
                if kind == "taken back" and not _take_back(
                    place, number, chance.randint(1, DEVICES // 2 - 2)
                ):
                    kind = "through"
                wait_for_rest(place, number, _TIMEOUT_S, poll_s=0.05)
                executioner.may_kill.clear()
                judge.judge(kind, number, other, count)
                count.kinds[kind] += 1
                version = other if kind == "through" else version
        finally:
            executioner.stop()
        if executioner.failure is not None:
            raise MeasurementError(executioner.failure)
    return count


@contextmanager
def _wire(place: Home) -> Iterator[Visitor]:
    """Hears all assignments that the broker is given."""
    filters = [(topics.fleet_filter(FLEET, "desired"), 1)]
    visitor = Visitor(place.directory.operator_config(), "bench-wire", filters)
    try:
        yield visitor
    finally:
        visitor.close()


def _take_back(place: Home, number: int, passed: int) -> bool:
    """Let somebody take a rollout back as soon as so many devices have passed; ``False`` if it was over before."""

    def is_time() -> bool:
        with place.store.read() as session:
            view = show(session, number, {})
        return view.passed >= passed or view.phase in FINISHED

    if not wait_for(is_time, _TIMEOUT_S):
        raise MeasurementError(f"rollout {number} does not get on")
    try:
        with place.store.write() as session:
            operate.abort(session, number, keep=False, reason="", actor=ACTOR, now=utc_now())
    except RolloutError:
        return False
    return True


def run_services(kills: int) -> tuple[Count, list[float]]:
    """The same with ``fleet serve`` and the lease that ships; what was found, and seconds until another worked.

    Raises:
        MeasurementError: as above.
    """
    count, took_s = Count(), []
    chance = random.Random(SEED + 2)
    wanted = scenario(DEVICES, boards=_BOARDS, speed=_SPEED, interval_s=None, noise=_QUIET)
    with (
        home(["1.0.0", "1.1.0"]) as place,
        devices_at(place, wanted, join=False) as fleet,
        _wire(place) as wire,
    ):
        services = {one.pid: one for one in (Service(place), Service(place))}
        try:
            if not wait_for(lambda: holder_pid(place) in services, _TIMEOUT_S):
                raise MeasurementError("no service works")
            if not fleet.wait_until(lambda now: now.online() == DEVICES, _TIMEOUT_S):
                raise MeasurementError(f"devices do not come: {fleet.summary().reasons}")
            version = "1.0.0"
            for _ in range(kills):
                version = "1.1.0" if version == "1.0.0" else "1.0.0"
                judge = Judge(place, fleet, wire)
                number, _ = push(place, f"{MODEL}@{version}", "--waves", _WAVES, "--downgrade")
                time.sleep(chance.uniform(0.0, 4.0))
                leader = holder_pid(place)
                assert leader is not None
                services.pop(leader).kill()
                began_s = time.monotonic()
                if not wait_for(lambda: holder_pid(place) in services, _TIMEOUT_S):
                    raise MeasurementError("nobody takes over")
                took_s.append(time.monotonic() - began_s)
                another = Service(place)
                services[another.pid] = another
                wait_for_rest(place, number, _TIMEOUT_S)
                judge.judge("through", number, version, count)
                count.kills += 1
        finally:
            for service in services.values():
                service.kill()
    return count, took_s


def measure_takeover(quick: bool) -> Found:
    """``takeover_lost``: devices and steps that were lost or doubled by all kills."""
    count = run_kills(QUICK_KILLS if quick else KILLS)
    served, took_s = run_services(1 if quick else SERVE_KILLS)
    faults = [*count.lost, *count.doubled, *served.lost, *served.doubled]
    for fault in faults[:20]:
        say(f"fault: {fault}")
    return {
        "takeover_lost": len(faults),
        "takeover_s": max(took_s),
        "takeover_detail": {
            "kills": count.kills,
            "kills_while_busy": count.busy,
            "kills_by_phase": dict(count.phases),
            "rollouts": dict(count.kinds),
            "lost": len(count.lost),
            "doubled": len(count.doubled),
            "lease_s": LEASE_S,
            "tick_s": TICK_S,
            "takeover_short_lease_s_p50": statistics.median(count.takeovers_s),
            "kills_of_fleet_serve": served.kills,
            "lost_with_fleet_serve": len(served.lost) + len(served.doubled),
            "lease_of_fleet_serve_s": LENGTH / timedelta(seconds=1),
        },
        "faults": faults[:20],
    }
