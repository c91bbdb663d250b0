"""A fleet on a real mosquitto in a temporary directory: for tests and benchmarks of identity."""

from __future__ import annotations

import itertools
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from edgeslm.agent.enrolment import join_fleet
from edgeslm.fleet.broker import Broker
from edgeslm.fleet.broker_files import ACCESS
from edgeslm.fleet.broker_process import BrokerProcess
from edgeslm.fleet.certificates import Issuer
from edgeslm.fleet.claims import NewClaim, issue_claim
from edgeslm.fleet.directory import create_fleet
from edgeslm.fleet.service import EnrolmentService
from edgeslm.link.mqtt import MqttLink
from edgeslm.link.port import Message
from edgeslm.schema.config import BrokerConfig
from edgeslm.schema.enrol import Claim, Machine
from edgeslm.schema.fleet import Approval, FleetBroker, FleetConfig, Grant
from edgeslm.trust.identity import Identity, IdentityStore

HOST = "127.0.0.1"
WAIT_S = 10.0
AGENT = "0.0.0"
_names = itertools.count()


def free_ports(count: int) -> list[int]:
    """Ports that nothing listens on at this moment."""
    with ExitStack() as stack:
        held = [stack.enter_context(socket.socket()) for _ in range(count)]
        for sock in held:
            sock.bind((HOST, 0))
        return [int(sock.getsockname()[1]) for sock in held]


def wait_for(is_met: Callable[[], bool], timeout_s: float = WAIT_S) -> bool:
    """Wait until something is so; ``False`` if it is not in time."""
    deadline_s = time.monotonic() + timeout_s
    while not is_met():
        if time.monotonic() > deadline_s:
            return False
        time.sleep(0.005)
    return True


class Listener:
    """Link events, written down."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.connected = threading.Event()
        self.connections = 0
        self.reasons: list[str] = []
        self.published: set[int] = set()

    def on_message(self, message: Message) -> None:
        """Keep it."""
        self.messages.append(message)
        message.acknowledge()

    def on_connected(self, *, session_present: bool) -> None:
        """Count it."""
        del session_present
        self.connections += 1
        self.connected.set()

    def on_disconnected(self, reason: str) -> None:
        """Keep why."""
        self.connected.clear()
        self.reasons.append(reason)

    def on_published(self, token: int) -> None:
        """Keep it."""
        self.published.add(token)


class Visitor:
    """An MQTT client with its events; connected when it is made."""

    def __init__(
        self,
        config: BrokerConfig,
        client_id: str,
        filters: list[tuple[str, int]] | None = None,
        *,
        must_connect: bool = True,
    ) -> None:
        self.events = Listener()
        self.link = MqttLink(config, client_id)
        self.link.start(self.events, filters or [])
        if must_connect and not self.events.connected.wait(WAIT_S):
            self.link.stop()
            raise AssertionError(f"not connected: {self.events.reasons}")

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        """Publish with QoS 1, and wait until the broker has it."""
        token = self.link.publish(Message(topic, payload, retain=retain))
        if token is None or not wait_for(lambda: token in self.events.published):
            raise AssertionError(f"{topic} cannot be published: {self.events.reasons}")

    def close(self) -> None:
        """Disconnect."""
        self.link.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class FleetRig:
    """A fleet whose broker runs."""

    def __init__(
        self,
        directory: Path,
        *,
        name: str = "green",
        approval: Approval | None = None,
        certificate_days: float = 30,
        trust_root: bytes | None = None,
        more_access: str = "",
        grants: tuple[Grant, ...] = (),
    ) -> None:
        """Make the fleet; its broker starts with the context.

        Args:
            directory: where everything goes.
            name: of the fleet.
            approval: who joins by itself.
            certificate_days: life of devices' certificates.
            trust_root: root of a release repository.
            more_access: lines for the broker's access list.
            grants: of the fleet's settings.
        """
        ports = free_ports(3)
        self.directory = directory
        self.config = FleetConfig(
            name=name,
            broker=FleetBroker(
                host=HOST, port=ports[0], claim_port=ports[1], operator_port=ports[2], bind=HOST
            ),
            certificate_days=certificate_days,
            approval=approval or Approval(),
            grants=grants,
        )
        self.fleet = create_fleet(directory / "fleet", self.config, passphrase=None, now=self.now())
        self.authority = self.fleet.authority(lambda path: b"")
        self.store = self.fleet.open_store()
        self.broker = Broker(self.fleet, lambda: self.authority)
        self.issuer = Issuer(self.config, self.authority, lambda: trust_root)
        self.broker.sync(self.store, self.now())
        with (self.fleet.broker / ACCESS).open("a") as file:
            file.write(more_access)
        self.process = BrokerProcess(
            self.broker.config_files, self.config.broker, directory / "mosquitto.log"
        )

    @staticmethod
    def now() -> datetime:
        """The wall clock."""
        return datetime.now(UTC)

    def __enter__(self) -> Self:
        self.process.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.stop()
        self.store.close()

    @contextmanager
    def service(self) -> Iterator[EnrolmentService]:
        """The fleet's side, answering."""
        link = MqttLink(self.fleet.operator_config(), f"service-{next(_names)}")
        service = EnrolmentService(self.store, self.issuer, self.broker, link)
        service.start()
        try:
            assert service.wait_connected(WAIT_S), service.reason
            yield service
        finally:
            service.stop()

    def claim(
        self, device: str | None = None, *, replaces: bool = False, life: timedelta = timedelta(hours=1)
    ) -> NewClaim:
        """A new claim, known to the broker."""
        with self.store.write() as session:
            new = issue_claim(
                session,
                self.config,
                self.fleet.authority_pem(),
                device=device,
                profile=None,
                replaces=replaces,
                life=life,
                actor="test",
                now=self.now(),
            )
        self.broker.sync(self.store, self.now())
        return new

    def identities(self, name: str) -> IdentityStore:
        """A device's state directory."""
        return IdentityStore(self.directory / "devices" / name / "identity")

    def join(
        self,
        name: str,
        claim: Claim | None = None,
        *,
        device: str | None = None,
        machine: Machine | None = None,
        timeout_s: float = WAIT_S,
        on_state: Callable[[str], None] = lambda text: None,
    ) -> Identity:
        """A device joins over the wire; a service has to answer.

        Args:
            name: of its state directory.
            claim: to use; by default one for `name`.
            device: name to propose.
            machine: that it is on.
        """
        return join_fleet(
            self.identities(name),
            claim or self.claim(name).claim,
            MqttLink,
            device=device,
            machine=machine or Machine(boot_id=f"boot-{name}", boots=1),
            agent=AGENT,
            timeout_s=timeout_s,
            on_state=on_state,
        )

    def operator(self, filters: list[tuple[str, int]] | None = None) -> Visitor:
        """The operator at the broker."""
        return Visitor(self.fleet.operator_config(), f"operator-{next(_names)}", filters)


@contextmanager
def fleet_rig(**settings: Any) -> Iterator[FleetRig]:
    """A fleet in a directory that is removed afterwards."""
    with (
        tempfile.TemporaryDirectory(prefix="edgeslm-fleet-") as name,
        FleetRig(Path(name), **settings) as rig,
    ):
        yield rig
