"""A whole fleet for the figures of fleets: a directory with releases, a broker, and ``fleet serve`` as a process.

All of it is the product as it ships; only devices are simulated, in the process that measures. Processor time and
memory of the service are read from ``/proc``, so nothing that measures counts into them.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from click.testing import CliRunner

from benchmarks.agent_rig import MeasurementError, rss_mb
from benchmarks.update_fleet_rig import free_ports
from benchmarks.update_trust_rig import Rig
from edgeslm.cli.fleet import fleet as fleet_commands
from edgeslm.clock import utc_now
from edgeslm.fleet.broker import Broker
from edgeslm.fleet.broker_process import BrokerProcess
from edgeslm.fleet.certificates import Issuer
from edgeslm.fleet.directory import FleetDirectory, create_fleet
from edgeslm.fleet.distribution import prepared, release_prepared
from edgeslm.fleet.release_setup import online_signers, set_up
from edgeslm.fleet.releases import ReleaseRepository
from edgeslm.fleet.rollout.views import summarize
from edgeslm.fleet.signing import load_signer
from edgeslm.fleet.store.database import Store
from edgeslm.link.broker import find_mosquitto
from edgeslm.link.broker_config import LOOPBACK
from edgeslm.schema.fleet import FleetBroker, FleetConfig
from edgeslm.schema.rollout import FINISHED, RolloutView
from edgeslm.schema.sim_fleet import FleetScenario, Noise, ReleaseEffect, SimulatedGroup
from edgeslm.sim.fleet import SimFleet, Site, make_devices
from edgeslm.sim.fleet_joining import Member, claims_for, preset
from edgeslm.sim.rehearsal import trust_of

FLEET = "bench"
MODEL = "lamp"
BOARDS = ("pi-3b", "pi-4b", "pi-5", "pi-3b-plus")
ACTOR = "benchmark"
_SECRET = b"four words of mine"
_BATCH = 100
_START_S = 60.0
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Home:
    """A fleet whose broker runs.

    Attributes:
        store: opened by the process that measures, beside the service's own.
    """

    directory: FleetDirectory
    store: Store
    issuer: Issuer
    broker: Broker
    scratch: Path
    port: int
    log: Path
    broker_pids: tuple[int, ...] = field(default=())

    @property
    def keys(self) -> Path:
        """Where the keys of releases and assignments lie."""
        return self.directory.root / "keys"


@contextmanager
def home(versions: Sequence[str]) -> Iterator[Home]:
    """A fleet on this machine with releases of :data:`MODEL`, on a real disk, gone at the end.

    Args:
        versions: of the releases.

    Raises:
        MeasurementError: mosquitto is not installed.
    """
    if find_mosquitto() is None:
        raise MeasurementError("mosquitto is not installed")
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="edgeslm-fleet-")))
        ports = free_ports(3)
        settings = FleetBroker(
            host=LOOPBACK, port=ports[0], claim_port=ports[1], operator_port=ports[2], bind=LOOPBACK
        )
        config = FleetConfig(name=FLEET, broker=settings)
        directory = create_fleet(scratch / "fleet", config, passphrase=None, now=utc_now())
        publish(directory.releases, directory.root / "keys", scratch, versions)
        authority = directory.authority(lambda _: b"")
        store = directory.open_store()
        stack.callback(store.close)
        broker = Broker(directory, lambda: authority)
        broker.sync(store, utc_now())
        stack.enter_context(BrokerProcess(broker.config_files, settings, scratch / "mosquitto.log"))
        issuer = Issuer(config, authority, directory.trust_root)
        yield Home(directory, store, issuer, broker, scratch, ports[0], scratch / "serve.log")


def publish(releases: Path, keys: Path, scratch: Path, versions: Sequence[str]) -> ReleaseRepository:
    """Make a release repository for :data:`FLEET` with its keys, and publish tiny packages in it."""
    repository = set_up(releases, keys, FLEET, lambda _: _SECRET)
    made = Rig.__new__(Rig)
    made.directory, made.repository = scratch, repository
    for version in versions:
        made.release(MODEL, version)
        package = scratch / f"{MODEL}-{version}.slm"
        with prepared(repository, package, with_deltas=False) as ready:
            release_prepared(repository, ready)
    repository.sign_pending([load_signer(keys / "targets.pem", lambda _: _SECRET)])
    repository.publish(online_signers(keys))
    return repository


def scenario(
    devices: int,
    *,
    boards: Sequence[str] = BOARDS,
    effects: Sequence[ReleaseEffect] = (),
    speed: float = 600.0,
    interval_s: float | None = 60.0,
    noise: Noise | None = None,
    seed: int = 1,
) -> FleetScenario:
    """Devices of some types of board in equal parts, which run version 1.0.0."""
    groups = tuple(
        SimulatedGroup(
            name=board,
            count=devices // len(boards) + (place < devices % len(boards)),
            board=board,
            models={MODEL: "1.0.0"},
            noise=noise or Noise(),
        )
        for place, board in enumerate(boards)
    )
    return FleetScenario(
        name="bench",
        title="Devices of a benchmark",
        seed=seed,
        speed=speed,
        interval_s=interval_s,
        groups=groups,
        releases=tuple(effects),
    )


@contextmanager
def devices_at(place: Home, wanted: FleetScenario, *, join: bool) -> Iterator[SimFleet]:
    """Simulated devices on their way to the broker, which check what they are told against the releases.

    Args:
        join: each joins over the wire with a claim, as a new device does; else all are in the store beforehand.
    """
    with tempfile.TemporaryDirectory(prefix="edgeslm-sim-") as name:
        scratch = Path(name)
        trust = trust_of(place.directory, wanted, scratch / "trust")
        devices = make_devices(wanted, FLEET, trust)
        broker, authority = place.directory.config.broker, place.directory.authority_certificate
        if join:
            with place.store.write() as session:
                claims = claims_for(session, place.issuer, devices, actor=ACTOR, now=utc_now())
            place.broker.sync(place.store, utc_now())
            site = Site(broker.host, broker.port, authority, scratch, claims=claims)
        else:
            members: dict[str, Member] = {}
            for first in range(0, len(devices), _BATCH):
                with place.store.write() as session:
                    part = devices[first : first + _BATCH]
                    members |= preset(session, place.issuer, part, scratch, actor=ACTOR, now=utc_now())
            site = Site(broker.host, broker.port, authority, scratch, members=members)
        with SimFleet(wanted, devices, site) as fleet:
            yield fleet


# --- the service --------------------------------------------------------------------------------------------


class Service:
    """``edgeslm fleet serve`` as a process: enrolment, presence, metrics, releases, rollouts."""

    def __init__(self, place: Home) -> None:
        self._log = place.log
        command = [sys.executable, "-m", "edgeslm", "fleet", "serve", "--releases-port", "0"]
        with place.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*command, "--fleet-dir", str(place.directory.root)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=clean_environment(),
            )

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def wait_ready(self) -> None:
        """Wait until it answers devices.

        Raises:
            MeasurementError: it does not.
        """
        deadline_s = time.monotonic() + _START_S
        while "answering devices" not in self.log_tail():
            if self._process.poll() is not None or time.monotonic() > deadline_s:
                raise MeasurementError(f"fleet serve does not start: {self.log_tail()}")
            time.sleep(0.05)

    def log_tail(self) -> str:
        """The end of what it said."""
        return self._log.read_text("utf-8", "replace")[-1500:]

    def cpu_s(self) -> float:
        """Processor time so far, of all its threads.

        Raises:
            MeasurementError: it is gone.
        """
        return cpu_s(self.pid)

    def kill(self) -> None:
        """End it without a warning."""
        self._process.kill()
        self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self.kill()


class Watch:
    """Processor time and memory of a process over a stretch of work.

    Attributes:
        cpu_s: used in all.
        took_s: how long it lasted.
        worst_cores: most cores used on average in any five seconds.
    """

    _SPAN_S = 5.0

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._began_s, self._began_cpu_s = time.monotonic(), cpu_s(pid)
        self._seen = [(self._began_s, self._began_cpu_s)]
        self.worst_cores = 0.0

    def look(self) -> None:
        """Note where it is; called often."""
        now_s, used_s = time.monotonic(), cpu_s(self._pid)
        self._seen.append((now_s, used_s))
        while len(self._seen) > 2 and now_s - self._seen[1][0] >= self._SPAN_S:
            self._seen.pop(0)
        span_s = now_s - self._seen[0][0]
        if span_s >= self._SPAN_S:
            self.worst_cores = max(self.worst_cores, (used_s - self._seen[0][1]) / span_s)

    @property
    def cpu_s(self) -> float:
        """See the class."""
        return self._seen[-1][1] - self._began_cpu_s

    @property
    def took_s(self) -> float:
        """See the class."""
        return self._seen[-1][0] - self._began_s


def cpu_s(pid: int) -> float:
    """Processor time of a process so far.

    Raises:
        MeasurementError: it is gone.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError as error:
        raise MeasurementError(f"process {pid} is gone") from error
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S


def peak_mb(pid: int) -> float:
    """Most memory that a process ever had."""
    return rss_mb(pid, "VmHWM")


def clean_environment() -> dict[str, str]:
    """The environment without settings of whoever measures."""
    return {name: value for name, value in os.environ.items() if not name.startswith("EDGESLM_")}


# --- rollouts -----------------------------------------------------------------------------------------------


def push(place: Home, release: str, *options: str) -> tuple[int, float]:
    """Begin a rollout with the command that ships, and leave it to the service; its number and the command's seconds.

    Raises:
        MeasurementError: it is refused.
    """
    began_s = time.monotonic()
    command = [sys.executable, "-m", "edgeslm", "fleet", "push", release, "--yes", "--detach", *options]
    done = subprocess.run(
        [*command, "--fleet-dir", str(place.directory.root)],
        capture_output=True,
        text=True,
        check=False,
        env=clean_environment(),
        timeout=300,
    )
    if done.returncode != 0:
        raise MeasurementError(f"fleet push: {done.stderr.strip()[-500:]}")
    return int(done.stdout.split()[-1]), time.monotonic() - began_s


def push_here(place: Home, release: str, *options: str) -> int:
    """The same without a process of its own, which takes a second to start; the rollout's number.

    Raises:
        MeasurementError: it is refused.
    """
    arguments = ["push", release, "--yes", "--detach", "--fleet-dir", str(place.directory.root), *options]
    done = CliRunner(env={name: None for name in os.environ if name.startswith("EDGESLM_")}).invoke(
        fleet_commands, arguments
    )
    if done.exit_code != 0:
        raise MeasurementError(f"fleet push: {done.output.strip()[-500:]} {done.exception}")
    return int(done.stdout.split()[-1])


def wait_for_rest(
    place: Home, rollout_id: int, timeout_s: float, watch: Watch | None = None, poll_s: float = 0.25
) -> RolloutView:
    """Wait until a rollout ends or waits for somebody.

    Raises:
        MeasurementError: it does not in time.
    """
    deadline_s = time.monotonic() + timeout_s
    while True:
        with place.store.read() as session:
            view = summarize(session, rollout_id)
        if watch is not None:
            watch.look()
        if view.phase in FINISHED or view.phase in {"paused", "waiting"}:
            return view
        if time.monotonic() > deadline_s:
            raise MeasurementError(f"rollout {rollout_id} is {view.phase} after {timeout_s:g} s")
        time.sleep(poll_s)
