"""A fleet that does not exist, to try things on: its directory, store, broker and devices, gone when the block ends.

::

    def run(stage: Stage) -> int:
        ...  # roll a release out to stage.fleet, as to any other

    rehearse(copies, effects, run)

What always holds: nothing of a real fleet is touched; its release repository, where one is given, is copied. Devices
have keys of their own, so what is signed for them is of no use to the real ones of the same names.

Left to others: what is tried (``run``), and what releases do to devices: nobody knows that beforehand, so the caller
says what to reckon with.
"""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, TypeVar

from edgeslm.clock import utc_now
from edgeslm.errors import ConfigError, FleetError, LinkError
from edgeslm.fleet.assignments import DeviceView
from edgeslm.fleet.broker import Broker
from edgeslm.fleet.broker_files import CONFIG
from edgeslm.fleet.broker_process import BrokerProcess
from edgeslm.fleet.certificates import Issuer
from edgeslm.fleet.directory import FleetDirectory, create_fleet
from edgeslm.fleet.service import EnrolmentService
from edgeslm.fleet.store.database import Store
from edgeslm.link.broker_config import LOOPBACK
from edgeslm.link.mqtt import MqttLink
from edgeslm.schema.fleet import FleetBroker, FleetConfig
from edgeslm.schema.message import MeterClass
from edgeslm.schema.sim_fleet import FleetScenario, Noise, ReleaseEffect, SimulatedGroup
from edgeslm.schema.update import UpdatePolicy
from edgeslm.sim.fleet import SimFleet, Site, make_devices
from edgeslm.sim.fleet_device import SimulatedDevice
from edgeslm.sim.fleet_joining import Member, claims_for, preset
from edgeslm.sim.fleet_trust import Credulous, Trust, Verifying
from edgeslm.trust.fetch import DirectoryFetch

ACTOR: Final = "simulation"
_WAIT_S: Final = 60.0
_WAIT_A_DEVICE_S: Final = 0.1
_UNKNOWN_BOARD: Final = "generic-arm64"
_PLAIN: Final = "plain.conf"
_BATCH: Final = 100

T = TypeVar("T")


# --- a fleet for a while ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stage:
    """A fleet whose broker runs and whose service answers.

    Attributes:
        fleet: its directory.
        store: of the fleet.
        issuer: makes certificates.
        broker: keeps the broker's files.
        service: answers devices.
        process: the broker's; ``None`` where it is not ours.
        plain_port: of a listener that takes devices by their names alone.
        simulated: its devices; ``None`` before :func:`populated` or :func:`joining` has made them.
    """

    fleet: FleetDirectory
    store: Store
    issuer: Issuer
    broker: Broker
    service: EnrolmentService
    process: BrokerProcess | None = None
    plain_port: int | None = None
    simulated: SimFleet | None = None

    @property
    def devices(self) -> SimFleet:
        """Its devices.

        Raises:
            FleetError: there are none yet.
        """
        if self.simulated is None:
            raise FleetError("this fleet has no simulated devices", path=str(self.fleet.root))
        return self.simulated


@contextmanager
def temporary_fleet(
    name: str, *, directory: Path | None = None, releases: Path | None = None, plain: bool = False
) -> Iterator[Stage]:
    """A fleet on this machine alone, removed afterwards.

    Args:
        name: of the fleet.
        directory: where to put it, new; it is left there. By default a temporary one.
        releases: release repository to copy.
        plain: also let devices in without TLS, by their names alone: thousands of them need less memory then.

    Raises:
        LinkError: mosquitto is not installed, or does not start.
        FleetError: the disk refuses.
    """
    with ExitStack() as stack:
        if directory is None:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="edgeslm-rehearsal-")))
        ports = _free_ports(4)
        settings = FleetBroker(
            host=LOOPBACK, port=ports[0], claim_port=ports[1], operator_port=ports[2], bind=LOOPBACK
        )
        config = FleetConfig(name=name, broker=settings)
        fleet = create_fleet(directory / "fleet", config, passphrase=None, now=utc_now())
        if releases is not None:
            _copy(releases, fleet.releases)
        authority = fleet.authority(lambda _: b"")
        store = fleet.open_store()
        stack.callback(store.close)
        broker = Broker(fleet, lambda: authority)
        broker.sync(store, utc_now())
        files = broker.config_files
        if plain:
            files = (_with_plain_listener(fleet, ports[3]), files[1])
        process = stack.enter_context(BrokerProcess(files, settings, directory / "mosquitto.log"))
        issuer = Issuer(config, authority, fleet.trust_root)
        link = MqttLink(fleet.operator_config(), f"edgeslm-fleet-{secrets.token_hex(6)}")
        service = EnrolmentService(store, issuer, broker, link)
        service.start()
        stack.callback(service.stop)
        if not service.wait_connected(_WAIT_S):
            raise LinkError(f"no broker: {service.reason}")
        yield Stage(fleet, store, issuer, broker, service, process, ports[3] if plain else None)


def trust_of(fleet: FleetDirectory, scenario: FleetScenario, directory: Path) -> Trust:
    """What devices of `fleet` believe: its release repository, or everything where it has none.

    Args:
        fleet: whose devices.
        scenario: says how large packages are, where no repository does.
        directory: for the devices' metadata; new.

    Raises:
        MetadataError: the repository is not to be trusted, because it has expired for example.
        MetadataFetchError: it is incomplete.
        TrustStateError: the disk refuses.
    """
    root = fleet.trust_root()
    if root is None:
        return Credulous(scenario.releases)
    return Verifying.open(directory, root, DirectoryFetch(fleet.releases / "public"))


@contextmanager
def populated(
    stage: Stage,
    scenario: FleetScenario,
    *,
    names: Mapping[str, Sequence[str]] | None = None,
    trust: Trust | None = None,
    join: bool = False,
) -> Iterator[Stage]:
    """`stage` with the devices of a scenario, on their way to the broker.

    Args:
        stage: where they are to be.
        scenario: what they are.
        names: of the devices of a group, where they are not to be called after it.
        trust: what they believe; by default the fleet's repository, if it has one.
        join: let each join over the wire, as a new device does, rather than be in the store beforehand.

    Raises:
        ConfigError: the scenario names a board or conditions that there are not.
        FleetError: the disk or the store refuses.
    """
    with tempfile.TemporaryDirectory(prefix="edgeslm-sim-") as directory:
        place = Path(directory)
        trust = trust or trust_of(stage.fleet, scenario, place / "trust")
        devices = make_devices(scenario, stage.fleet.name, trust, names=names)
        site = claiming_site(stage, devices, place) if join else preset_site(stage, devices, place)
        with SimFleet(scenario, devices, site) as simulated:
            yield replace(stage, simulated=simulated)


def preset_site(stage: Stage, devices: Sequence[SimulatedDevice], directory: Path) -> Site:
    """Where devices are that were written into the store as if they had joined.

    Raises:
        FleetError: the disk or the store refuses.
    """
    members: dict[str, Member] = {}
    for start in range(0, len(devices), _BATCH):
        with stage.store.write() as session:
            batch = devices[start : start + _BATCH]
            members |= preset(session, stage.issuer, batch, directory, actor=ACTOR, now=utc_now())
    broker = stage.fleet.config.broker
    return Site(
        broker.host, broker.port, stage.fleet.authority_certificate, directory, stage.plain_port, members
    )


def claiming_site(stage: Stage, devices: Sequence[SimulatedDevice], directory: Path) -> Site:
    """Where devices are that have a claim each, and join over the wire.

    Raises:
        DeviceStateError: a device of that name is in use.
        FleetError: the disk or the store refuses.
    """
    with stage.store.write() as session:
        claims = claims_for(session, stage.issuer, devices, actor=ACTOR, now=utc_now())
    stage.broker.sync(stage.store, utc_now())
    broker = stage.fleet.config.broker
    return Site(broker.host, broker.port, stage.fleet.authority_certificate, directory, claims=claims)


# --- rehearsing ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Copy:
    """What is known of a real device that a simulated one is to stand in for.

    Attributes:
        board: type of board.
        models: version that runs, by name; without one a release has nothing to be compared with, and is judged by its
            answers alone.
        meter: how it knows energy.
    """

    name: str
    board: str | None
    models: Mapping[str, str] = field(default_factory=dict)
    meter: MeterClass | None = "measured"
    tags: tuple[str, ...] = ()

    @classmethod
    def of(cls, view: DeviceView, *, meter: MeterClass | None = "measured", tags: Sequence[str] = ()) -> Copy:
        """A copy of a device, by what the fleet knows of it."""
        models = {name: running.version for name, running in view.running.items()}
        return cls(view.name, None if view.board is None else view.board.name, models, meter, tuple(tags))


def scenario_of(
    devices: Sequence[Copy],
    effects: Sequence[ReleaseEffect],
    *,
    seed: int,
    speed: float,
    noise: Noise | None = None,
    policy: UpdatePolicy | None = None,
) -> tuple[FleetScenario, dict[str, tuple[str, ...]]]:
    """Devices like these as a scenario, with their names by group.

    Raises:
        ConfigError: there are none.
    """
    alike: dict[tuple[object, ...], list[Copy]] = defaultdict(list)
    for device in devices:
        alike[device.board, tuple(sorted(device.models.items())), device.meter, device.tags].append(device)
    if not alike:
        raise ConfigError("there are no devices to rehearse with")
    groups, names = [], {}
    for number, copies in enumerate(alike.values(), start=1):
        first = copies[0]
        group = SimulatedGroup(
            name=f"copies-{number}",
            count=len(copies),
            board=first.board or _UNKNOWN_BOARD,
            models=dict(first.models),
            meter=first.meter,
            noise=noise or Noise(),
            tags=first.tags,
        )
        groups.append(group)
        names[group.name] = tuple(copy.name for copy in copies)
    scenario = FleetScenario(
        name="rehearsal",
        title="Devices like those of a fleet",
        seed=seed,
        speed=speed,
        interval_s=None,
        groups=tuple(groups),
        releases=tuple(effects),
        policy=policy or UpdatePolicy(),
    )
    return scenario, names


def rehearse(
    devices: Sequence[Copy],
    effects: Sequence[ReleaseEffect],
    run: Callable[[Stage], T],
    *,
    fleet: str = "rehearsal",
    releases: Path | None = None,
    seed: int = 1,
    speed: float = 600.0,
    noise: Noise | None = None,
    policy: UpdatePolicy | None = None,
    plain: bool = False,
) -> T:
    """What `run` gives on a fleet of simulated devices like the given ones, all connected when it begins.

    Args:
        devices: which to copy.
        effects: what releases do to them.
        run: is called with the fleet; what it does with it ends with it.
        fleet: its name; with a repository that of the real one, since assignments are signed for a fleet by name.
        releases: release repository to copy, for devices that check what they are told; without one they believe
            everything.
        seed: decides what devices measure.
        speed: simulated seconds in a real one; a trial of minutes takes less than a second.
        noise: of measurements.
        policy: of the devices' updates.
        plain: connect devices without TLS, for thousands of them.

    Raises:
        ConfigError: there are no devices.
        LinkError: the broker does not start, or devices do not connect.
        FleetError: the disk or the store refuses.
    """
    scenario, names = scenario_of(devices, effects, seed=seed, speed=speed, noise=noise, policy=policy)
    with (
        temporary_fleet(fleet, releases=releases, plain=plain) as empty,
        populated(empty, scenario, names=names) as stage,
    ):
        timeout_s = _WAIT_S + _WAIT_A_DEVICE_S * len(devices)
        if not stage.devices.wait_until(lambda now: now.online() == len(devices), timeout_s):
            now = stage.devices.summary()
            reason = next(iter(now.reasons), "no reason")
            raise LinkError(f"{now.online()} of {len(devices)} simulated devices are connected: {reason}")
        return run(stage)


# --- inside -------------------------------------------------------------------------------------------------


def _with_plain_listener(fleet: FleetDirectory, port: int) -> Path:
    """The broker's configuration, with one more listener: on this machine alone, for whoever says a name."""
    text = (fleet.broker / CONFIG).read_text("utf-8").replace("allow_anonymous false", "allow_anonymous true")
    path = fleet.broker / _PLAIN
    path.write_text(f"{text}\nlistener {port} {LOOPBACK}\nuse_username_as_clientid true\n", "utf-8")
    return path


def _copy(releases: Path, to: Path) -> None:
    try:
        shutil.copytree(releases, to, copy_function=_link_or_copy, dirs_exist_ok=True)
    except (OSError, shutil.Error) as error:
        raise FleetError(f"{releases} cannot be copied: {error}", path=str(releases)) from error


def _link_or_copy(source: str, to: str) -> str:
    # Files of a repository are only ever replaced, never written to.
    try:
        os.link(source, to)
    except OSError:
        shutil.copy2(source, to)
    return to


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        held = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in held:
            one.bind((LOOPBACK, 0))
        return [int(one.getsockname()[1]) for one in held]
