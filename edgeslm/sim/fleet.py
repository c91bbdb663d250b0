"""A simulated fleet: devices of a scenario at a real broker, from one thread.

::

    with SimFleet(scenario, devices, site) as fleet:
        fleet.wait_until(lambda now: now.online() == len(devices), timeout_s=60)

What always holds: the seed decides what devices are, what goes wrong and what they measure; the thread ends with the
block, and nothing of it is left at the broker but what devices retained.

Left to others: making scenarios into devices (:func:`make_devices` here), their credentials
(:mod:`edgeslm.sim.fleet_joining`), and a fleet for them to be in (:mod:`edgeslm.sim.rehearsal`).
"""

from __future__ import annotations

import math
import secrets
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future, wait
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Final, Self, TypeVar

from edgeslm import topics
from edgeslm.errors import ConfigError, LinkError
from edgeslm.power.boards import load_boards
from edgeslm.schema.assignment import DEFAULT_LIFETIME, AssignedRelease, Assignment
from edgeslm.schema.enrol import Claim
from edgeslm.schema.scenario import Scenario
from edgeslm.schema.sim_fleet import FleetScenario, FleetSummary, OutageKind, SimulatedGroup
from edgeslm.schema.update import Reported
from edgeslm.sim.board import plant_of
from edgeslm.sim.board_scenario import shipped_scenarios
from edgeslm.sim.fleet_device import SimulatedDevice
from edgeslm.sim.fleet_gate import Effects
from edgeslm.sim.fleet_joining import Member
from edgeslm.sim.fleet_link import Endpoint
from edgeslm.sim.fleet_loop import Broker, FleetLoop
from edgeslm.sim.fleet_peer import Peer
from edgeslm.sim.fleet_plan import Plan
from edgeslm.sim.fleet_trust import Credulous, Trust
from edgeslm.sim.fleet_update import Running

_ASK_TIMEOUT_S: Final = 30.0
_LOOK_S: Final = 0.25
_LOOKING_SHARE: Final = 10.0
_JOIN_TIMEOUT_S: Final = 15.0

T = TypeVar("T")


def make_devices(
    scenario: FleetScenario,
    fleet: str,
    trust: Trust | None = None,
    *,
    names: Mapping[str, Sequence[str]] | None = None,
) -> tuple[SimulatedDevice, ...]:
    """The devices of a scenario.

    Args:
        scenario: what they are.
        fleet: name of theirs.
        trust: what they believe; by default everything.
        names: of the devices of a group, where they are not to be called after it.

    Raises:
        ConfigError: a group names a board or conditions that there are not.
    """
    trust = trust or Credulous(scenario.releases)
    effects, epoch = Effects.of(scenario.releases), secrets.token_hex(8)
    plans = [_plan(scenario, group, fleet, trust, effects, epoch) for group in scenario.groups]
    called = [
        (plan, name)
        for plan in plans
        for name in (names or {}).get(plan.group.name) or device_names(plan.group)
    ]
    others = [name for _, name in called]
    return tuple(
        SimulatedDevice(plan, name, number, others[(number + 1) % len(others)])
        for number, (plan, name) in enumerate(called)
    )


def device_names(group: SimulatedGroup) -> tuple[str, ...]:
    """How the devices of a group are called."""
    return tuple(f"{group.name}-{number + 1:04}" for number in range(group.count))


def _plan(
    scenario: FleetScenario, group: SimulatedGroup, fleet: str, trust: Trust, effects: Effects, epoch: str
) -> Plan:
    boards, conditions = load_boards(), _conditions(group)
    if group.board not in boards:
        raise ConfigError(
            f"group '{group.name}': unknown board '{group.board}'",
            key="groups.board",
            hint=f"Known: {', '.join(sorted(boards))}",
        )
    return Plan(
        fleet=fleet,
        seed=scenario.seed,
        speed=scenario.speed,
        interval_s=scenario.interval_s,
        group=group,
        board=boards[group.board],
        plant=plant_of(boards[group.board], conditions.battery),
        conditions=conditions,
        starts={
            name: Running(version, trust.digest(name, version))
            for name, version in sorted(group.models.items())
        },
        effects=effects,
        policy=scenario.policy,
        trust=trust,
        epoch=epoch,
    )


def _conditions(group: SimulatedGroup) -> Scenario:
    known = shipped_scenarios()
    if group.conditions not in known:
        raise ConfigError(
            f"group '{group.name}': unknown conditions '{group.conditions}'",
            key="groups.conditions",
            hint=f"Known: {', '.join(sorted(known))}",
        )
    return known[group.conditions]


def simulate_gate(device: SimulatedDevice, name: str, version: str) -> Reported:
    """What `device` reports once it is through with a release, at no broker and in no time: for studies of the gate.

    Args:
        device: as :func:`make_devices` made it; it runs the release, or has gone back, afterwards.
        name: of the model.
        version: of the release; what it does stands in the scenario.
    """
    updates, issued_at = device.updates, datetime.now(UTC)
    assignment = Assignment(
        fleet=device.fleet,
        device=device.name,
        device_key_sha256=device.credentials.key_sha256,
        seq=updates.assignment + 1,
        issued_at=issued_at,
        expires_at=issued_at + DEFAULT_LIFETIME,
        releases={
            name: AssignedRelease(
                version=version, sha256=device.trust.digest(name, version), allow_downgrade=True
            )
        },
    )
    updates.follow(assignment, updates.seen_s, online=True)
    while updates.due_s < math.inf:
        updates.advance(updates.due_s, online=True)
    return device.reported()


@dataclass(frozen=True)
class Site:
    """The fleet that devices are in, as they see it.

    Attributes:
        host: of the broker, as its certificate names it.
        port: of its listener for devices.
        ca_file: the fleet's authority.
        plain_port: of a listener on this machine that takes names without proof; where there is one, it is used.
        directory: where devices keep their keys.
        members: devices that belong to the fleet already, by name; the others join with
        claims: these.
    """

    host: str
    port: int
    ca_file: Path
    directory: Path
    plain_port: int | None = None
    members: Mapping[str, Member] = field(default_factory=dict)
    claims: Mapping[str, Claim] = field(default_factory=dict)


class SimFleet:
    """See the module. Its methods may be called from any thread.

    Attributes:
        devices: in order of their numbers; while the fleet runs they are its thread's, see :meth:`look`.
    """

    def __init__(self, scenario: FleetScenario, devices: Sequence[SimulatedDevice], site: Site) -> None:
        """Take the parts; nothing is connected yet.

        Raises:
            LinkError: the broker's host has no address.
        """
        self.devices = tuple(devices)
        self._site = site
        self._address = _address_of(site.host)
        peers = []
        for device in devices:
            peer = Peer(device, site.directory / f"{device.name}.pem", claim=site.claims.get(device.name))
            member = site.members.get(device.name)
            if member is not None:
                device.credentials = member.credentials
                peer.endpoint = self._endpoint(peer)
            peers.append(peer)
        broker = Broker(self._endpoint, self._address, site.ca_file)
        self._loop = FleetLoop(
            peers, broker, seed=scenario.seed, speed=scenario.speed, arrive_s=scenario.arrive_s
        )
        self._by_name = {peer.device.name: peer for peer in peers}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sim-fleet", daemon=True)

    def start(self) -> Self:
        """Let devices connect."""
        self._thread.start()
        return self

    def stop(self) -> None:
        """Let all devices say goodbye, and end the thread. Idempotent."""
        self._loop.stop()
        if self._thread.is_alive():
            self._thread.join(_JOIN_TIMEOUT_S)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    # --- looking ---

    def look(self, at: Callable[[], T]) -> T:
        """What `at` gives when it is called on the fleet's thread, where devices hold still.

        Raises:
            LinkError: the fleet gives no answer.
        """
        if not self._thread.is_alive():
            return at()
        answer: Future[T] = Future()

        def ask() -> None:
            try:
                answer.set_result(at())
            except Exception as error:  # it is the caller's, and must not end the fleet's thread
                answer.set_exception(error)

        self._loop.post(ask)
        deadline_s = time.monotonic() + _ASK_TIMEOUT_S
        while not wait([answer], _LOOK_S).done:
            if not self._thread.is_alive():
                return at()  # it ended meanwhile
            if time.monotonic() > deadline_s:
                raise LinkError("the simulated fleet gives no answer")
        return answer.result()

    def summary(self) -> FleetSummary:
        """How the fleet is now."""
        return self.look(self._summary)

    def wait_until(self, is_met: Callable[[FleetSummary], bool], timeout_s: float) -> bool:
        """Wait until something is so of the fleet; ``False`` if it is not in time."""
        deadline_s = time.monotonic() + timeout_s
        while True:
            began_s = time.monotonic()
            if is_met(self.summary()):
                return True
            now_s = time.monotonic()
            if now_s >= deadline_s or not self._thread.is_alive():
                return False
            # Something happens to a large fleet all the time: looking at it must not be all that is done.
            pause_s = min(_LOOKING_SHARE * (now_s - began_s), deadline_s - now_s)
            self._ended.wait(pause_s)
            with self._loop.changed:
                self._loop.changed.wait(min(_LOOK_S, max(0.0, deadline_s - time.monotonic())))

    # --- what happens to devices ---

    def switch_off(self, names: Collection[str], *, for_s: float = math.inf) -> None:
        """Let boards go out without a word, for so many real seconds.

        Raises:
            KeyError: there is no such device.
        """
        self._send_away(names, "off", for_s)

    def cut_off(self, names: Collection[str], *, for_s: float = math.inf) -> None:
        """Let the network swallow all that devices say and hear, for so many real seconds.

        Raises:
            KeyError: there is no such device.
        """
        self._send_away(names, "cut", for_s)

    def bring_back(self, names: Collection[str]) -> None:
        """End the absence of devices.

        Raises:
            KeyError: there is no such device.
        """
        peers = [self._by_name[name] for name in names]

        def bring_back() -> None:
            for peer in peers:
                self._loop.bring_back(peer)

        self.look(bring_back)

    def _send_away(self, names: Collection[str], kind: OutageKind, for_s: float) -> None:
        peers = [self._by_name[name] for name in names]

        def send_away() -> None:
            for peer in peers:
                self._loop.send_away(peer, kind, for_s)

        self.look(send_away)

    # --- inside ---

    def _run(self) -> None:
        try:
            self._loop.run()
        finally:
            self._ended.set()

    def _endpoint(self, peer: Peer) -> Endpoint:
        site, device = self._site, peer.device
        client_id = f"edgeslm-{device.fleet}-{device.name}"
        if site.plain_port is not None:
            user = topics.device_user(device.fleet, device.name)
            return Endpoint(site.host, self._address, site.plain_port, client_id, user=user)
        return Endpoint(
            site.host, self._address, site.port, client_id, ca_file=site.ca_file, cert_file=peer.file
        )

    def _summary(self) -> FleetSummary:
        running: Counter[str] = Counter()
        changes: Counter[str] = Counter()
        faults: Counter[str] = Counter()
        refused, why_refused = 0, ""
        for device in self.devices:
            refused += device.refused
            why_refused = why_refused or device.why_refused
            for name in device.updates.names:
                now, change = device.updates.serving(name), device.updates.get(name)
                if now is not None:
                    running[f"{name}@{now.version}"] += 1
                if change is not None:
                    on_probation = change.state == "committed" and not change.settled
                    state = "on probation" if on_probation else change.state
                    changes[f"{name}@{change.wanted.version} {state}"] += 1
                    if change.fault is not None:
                        faults[change.fault.cause] += 1
        return FleetSummary(
            devices=len(self.devices),
            sim_s=round(self._loop.now().sim_s, 1),
            phases=dict(Counter(peer.phase for peer in self._loop.peers)),
            running=dict(sorted(running.items())),
            changes=dict(sorted(changes.items())),
            faults=dict(sorted(faults.items())),
            counts=asdict(self._loop.counts),
            refused=refused,
            why_refused=why_refused,
            reasons=dict(self._loop.reasons.most_common()),
        )


def _address_of(host: str) -> str:
    try:
        return str(socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][4][0])
    except OSError as error:
        raise LinkError(f"the broker's host '{host}' has no address: {error}") from error
