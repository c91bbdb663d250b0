"""Renewing and renaming over a real mosquitto with TLS: the agent's part, driven as the agent drives it."""

from __future__ import annotations

import base64
import hashlib
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.update_fleet_rig import AGENT, FleetRig, Listener, fleet_rig, wait_for
from edgeslm import codec
from edgeslm.agent.renewal import Renewal
from edgeslm.errors import FleetError
from edgeslm.fleet import registry
from edgeslm.fleet.ca import read_request
from edgeslm.fleet.certificates import Issuer
from edgeslm.fleet.enrolment import take_request
from edgeslm.link.broker import find_mosquitto
from edgeslm.link.mqtt import MqttLink
from edgeslm.link.port import Message
from edgeslm.schema.config import BrokerConfig
from edgeslm.schema.enrol import CertificateReply, EnrolRequest, Machine
from edgeslm.schema.fleet import DeviceDetail
from edgeslm.trust.claim import proof_key, seal
from edgeslm.trust.identity import CANDIDATE, Identity

pytestmark = pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed")


@pytest.fixture(scope="module")
def rig() -> Iterator[FleetRig]:
    with fleet_rig() as made, made.service():
        yield made


def joined_days_ago(rig: FleetRig, name: str, days: float) -> Identity:
    """A device with a certificate of that age."""
    applicant = rig.identities(name).apply(rig.claim(name).claim)
    request = EnrolRequest(csr=applicant.request_pem, machine=Machine(boot_id=name, boots=1), agent=AGENT)
    payload = seal(proof_key(applicant.claim.secret), "request", request)
    with rig.store.write() as session:
        then = rig.now() - timedelta(days=days)
        take_request(session, rig.issuer, applicant.claim.claim, payload, then)
        (certificate,) = registry.need_device(session, name).certificates
    broker = rig.config.broker
    return rig.identities(name).adopt(
        applicant, certificate.pem, host=broker.host, port=broker.port, trust_root=None
    )


def show(rig: FleetRig, name: str) -> DeviceDetail:
    with rig.store.read() as session:
        return registry.show_device(session, name)


class Agent:
    """An agent that does nothing but hold its identity."""

    def __init__(self, rig: FleetRig, identity: Identity, *, wall_clock: float | None = None) -> None:
        self.store = rig.identities(identity.facts.device)
        self.told: list[str] = []
        self.events = Listener()
        config = identity.broker_config(BrokerConfig(session_expiry_s=300))
        self.link = MqttLink(config, "agent")
        self.renewal = Renewal(
            self.store,
            identity,
            Machine(boot_id=identity.facts.device, boots=1),
            AGENT,
            config=config,
            open_link=MqttLink,
            publish=self.link.publish,
            on_changed=self.told.append,
            wall_clock=time.time if wall_clock is None else lambda: wall_clock,
            trial_timeout_s=1.0,
        )
        self._taken = 0
        self._connections = 0
        self.link.start(self.events, [(self.renewal.topic, 1)])

    def turn(self) -> None:
        """What the agent's dispatcher does with what has come."""
        if self.events.connections > self._connections:
            self._connections = self.events.connections
            self.renewal.connected()
        for token in list(self.events.published):
            self.renewal.published(token)
        for message in self.events.messages[self._taken :]:
            self._taken += 1
            self.renewal.take(message.payload)
        self.renewal.tick()

    def run_until(self, is_met: object, timeout_s: float = 10.0) -> bool:
        def step() -> bool:
            self.turn()
            return bool(is_met())  # type: ignore[operator]

        return wait_for(step, timeout_s)

    def current(self) -> Identity:
        identity = self.store.current()
        assert identity is not None
        return identity

    def stop(self) -> None:
        self.link.stop()
        self.renewal.stop()


def test_a_certificate_in_its_last_third_is_renewed_without_losing_the_session(rig: FleetRig) -> None:
    identity = joined_days_ago(rig, "old", 21)
    agent = Agent(rig, identity)
    try:
        assert agent.run_until(lambda: agent.current().facts.serial != identity.facts.serial)
        assert agent.run_until(lambda: agent.events.connections >= 2), "the agent's own link comes back"
        renewed = agent.current()
        assert renewed.facts.not_after_s > identity.facts.not_after_s + 20 * 86_400
        assert show(rig, "old").certificates[0].serial == renewed.facts.serial
        assert agent.run_until(lambda: show(rig, "old").device.finding is None)
        assert agent.store.is_settled(renewed)
        # What was sent while the session was taken over is not lost.
        with rig.operator() as operator:
            operator.publish(agent.renewal.topic, b"after")
        assert wait_for(lambda: any(message.payload == b"after" for message in agent.events.messages))
    finally:
        agent.stop()


def test_a_certificate_that_is_not_due_stays(rig: FleetRig) -> None:
    identity = joined_days_ago(rig, "young", 5)
    agent = Agent(rig, identity)
    try:
        assert agent.run_until(lambda: agent.store.is_settled(identity))
        assert agent.current() == identity
        assert len(show(rig, "young").certificates) == 1
    finally:
        agent.stop()


def test_a_board_whose_clock_says_1970_is_renewed_when_the_fleet_says_it_is_time(rig: FleetRig) -> None:
    early, late = joined_days_ago(rig, "lost-early", 5), joined_days_ago(rig, "lost-late", 21)
    for identity, is_due in ((early, False), (late, True)):
        agent = Agent(rig, identity, wall_clock=0.0)
        try:
            if is_due:
                assert agent.run_until(lambda: agent.current().facts.serial != identity.facts.serial)  # noqa: B023
            else:
                assert agent.run_until(lambda: agent.store.is_settled(identity))  # noqa: B023
                assert agent.current() == identity
        finally:
            agent.stop()


def test_a_certificate_that_the_broker_refuses_is_not_used(
    rig: FleetRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgeslm.agent.enrolment.PROOF_TIMEOUT_S", 1.0)
    identity = joined_days_ago(rig, "refused", 5)
    agent = Agent(rig, identity)
    try:
        assert agent.run_until(lambda: agent.events.connections == 1)
        # Rightly signed, of the right key, and yet to begin.
        request = read_request(identity.request_pem())
        future = rig.now() + timedelta(days=9)
        issued = rig.authority.issue_device(request, "green", "refused", future, timedelta(days=30))
        agent.renewal.take(codec.encode(CertificateReply(certificate=issued.pem)))
        assert (identity.directory / CANDIDATE).exists()
        assert agent.run_until(lambda: not (identity.directory / CANDIDATE).exists(), 30)
        assert agent.current() == identity
    finally:
        agent.stop()


@pytest.mark.parametrize("payload", [b"", b"rubbish", b'{"v":1,"certificate":"rubbish"}', b"x" * 100_000])
def test_what_is_no_certificate_changes_nothing(rig: FleetRig, payload: bytes) -> None:
    name = f"wrong-{len(payload)}"
    identity = joined_days_ago(rig, name, 5)
    agent = Agent(rig, identity)
    try:
        agent.renewal.take(payload)
        assert agent.current() == identity
        assert not (identity.directory / CANDIDATE).exists()
    finally:
        agent.stop()


def test_a_trial_that_was_cut_off_is_made_again(rig: FleetRig) -> None:
    identity = joined_days_ago(rig, "cut", 5)
    issued = rig.authority.issue_device(
        read_request(identity.request_pem()), "green", "cut", rig.now(), timedelta(days=30)
    )
    rig.identities("cut").stage(identity, issued.pem)
    agent = Agent(rig, identity)
    try:
        assert agent.run_until(lambda: agent.current().facts.serial == issued.serial)
    finally:
        agent.stop()


def test_a_device_that_is_renamed_says_so_once_it_has_its_new_name(rig: FleetRig) -> None:
    identity = joined_days_ago(rig, "galley", 5)
    agent = Agent(rig, identity)
    try:
        assert agent.run_until(lambda: agent.store.is_settled(identity))
        with rig.store.write() as session:
            registry.rename_device(session, "green", "galley", "kitchen", actor="anna", now=rig.now())
        assert agent.run_until(lambda: agent.told)
        assert "kitchen" in agent.told[0]
        assert agent.current().facts.device == "kitchen"
    finally:
        agent.stop()
    assert wait_for(lambda: "kitchen" in {one.name for one in _devices(rig)})
    assert show(rig, "kitchen").device.rename_to is None
    with rig.operator([("edgeslm/v1/green/galley/#", 1)]) as operator:
        operator.publish("edgeslm/v1/green/galley/cancel", b"{}")
        assert [message.topic for message in operator.events.messages if message.retain] == []


class Roots:
    """A fleet's root to come."""

    def __init__(self, rig: FleetRig) -> None:
        self.newest: bytes | None = None
        rig.issuer = Issuer(rig.config, rig.authority, lambda: self.newest)


def test_a_device_that_joined_before_there_was_a_repository_gets_its_root_with_the_next_certificate() -> None:
    with fleet_rig() as rig:
        roots = Roots(rig)
        identity = joined_days_ago(rig, "early", 5)
        agent = Agent(rig, identity)
        try:
            with rig.service():
                assert agent.run_until(lambda: agent.store.is_settled(identity))
                assert agent.current().facts.root_sha256 is None
            roots.newest = b"the first root"
            with rig.service():
                assert agent.run_until(lambda: agent.told)
                assert "root" in agent.told[0]
                renewed = agent.current()
                assert renewed.trust_root.read_bytes() == b"the first root"
                assert renewed.facts.root_sha256 == hashlib.sha256(b"the first root").hexdigest()
                assert wait_for(lambda: len(show(rig, "early").certificates) == 2)
            # A device that has one follows the roots after it by itself, and is given no other.
            roots.newest = b"the second root"
            with rig.service() as service:
                agent.renewal.connected()
                assert agent.run_until(lambda: service.wait_connected(0))
                assert not agent.run_until(lambda: len(agent.told) > 1, timeout_s=1.0)
            assert len(show(rig, "early").certificates) == 2
            assert renewed.trust_root.read_bytes() == b"the first root"
        finally:
            agent.stop()


def test_a_repository_that_cannot_be_read_keeps_no_device_from_its_next_certificate() -> None:
    def unreadable() -> bytes | None:
        raise FleetError("the disk refuses", path="root.json")

    with fleet_rig() as rig:
        identity = joined_days_ago(rig, "old", 21)
        rig.issuer = Issuer(rig.config, rig.authority, unreadable)
        agent = Agent(rig, identity)
        try:
            with rig.service():
                assert agent.run_until(lambda: agent.current().facts.serial != identity.facts.serial)
                assert agent.current().facts.root_sha256 is None
        finally:
            agent.stop()


def test_a_device_that_joins_has_a_root_and_needs_no_other_certificate(rig: FleetRig) -> None:
    with fleet_rig(trust_root=b"a root") as made, made.service():
        identity = made.join("late")
        assert identity.facts.root_sha256 == hashlib.sha256(b"a root").hexdigest()
        agent = Agent(made, identity)
        try:
            assert agent.run_until(lambda: agent.events.connections == 1 and agent.events.published)
            assert len(show(made, "late").certificates) == 1
        finally:
            agent.stop()


@pytest.mark.parametrize("root", [b"made up by a broker", b"", None], ids=["made-up", "empty", "none"])
def test_a_root_that_the_certificate_does_not_name_is_not_trusted(rig: FleetRig, root: bytes | None) -> None:
    name = f"wary-{'none' if root is None else len(root)}"
    identity = joined_days_ago(rig, name, 5)
    agent = Agent(rig, identity)
    try:
        request = read_request(identity.request_pem())
        for vouched in (None, hashlib.sha256(b"the right one").hexdigest()):
            issued = rig.authority.issue_device(
                request, "green", name, rig.now(), timedelta(days=30), root_sha256=vouched
            )
            carried = None if root is None else base64.b64encode(root).decode()
            agent.renewal.take(codec.encode(CertificateReply(certificate=issued.pem, trust_root=carried)))
            agent.renewal.stop()
            assert not identity.trust_root.exists()
        assert agent.told == []
    finally:
        agent.stop()


def _devices(rig: FleetRig) -> list[registry.DeviceRecord]:
    with rig.store.read() as session:
        return registry.list_devices(session)


def test_a_device_that_is_not_connected_reports_later(rig: FleetRig) -> None:
    identity = joined_days_ago(rig, "offline", 21)
    sent: list[Message] = []
    renewal = Renewal(
        rig.identities("offline"),
        identity,
        Machine(),
        AGENT,
        config=identity.broker_config(),
        open_link=MqttLink,
        publish=sent.append,
        on_changed=lambda why: None,
    )
    renewal.tick()
    assert sent == [], "the first look is on connecting"
    renewal.connected()
    assert len(sent) == 1
    assert b'"renew":true' in sent[0].payload
