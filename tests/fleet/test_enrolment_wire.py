"""Joining, renewing, revoking and renaming over a real mosquitto with TLS."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.update_fleet_rig import AGENT, HOST, FleetRig, Visitor, fleet_rig, wait_for
from edgeslm import topics
from edgeslm.agent.enrolment import fetch_claim, join_fleet, prove, report
from edgeslm.errors import ClaimError, EnrolmentRefusedError, FleetError, LinkError, NoAnswerError
from edgeslm.fleet import enrolment, registry
from edgeslm.fleet.claims import list_claims
from edgeslm.fleet.store.models import ClaimRow
from edgeslm.link.broker import find_mosquitto
from edgeslm.link.mqtt import MqttLink
from edgeslm.schema.config import BrokerConfig
from edgeslm.schema.enrol import Claim, EnrolReply, Machine
from edgeslm.schema.fleet import Approval, DeviceDetail
from edgeslm.trust.claim import proof_key, read_token, seal
from edgeslm.trust.identity import Identity, IdentityStore

pytestmark = pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed")


@pytest.fixture(scope="module")
def rig() -> Iterator[FleetRig]:
    with fleet_rig(trust_root=b'{"signed": {}}') as made, made.service():
        yield made


def show(rig: FleetRig, name: str) -> DeviceDetail:
    with rig.store.read() as session:
        return registry.show_device(session, name)


def claim_state(rig: FleetRig, claim: Claim) -> str:
    with rig.store.read() as session:
        return next(one.state for one in list_claims(session, rig.now()) if one.claim == claim.claim)


def connects(identity: Identity, timeout_s: float = 5.0) -> bool:
    try:
        prove(identity, identity.broker_config(), MqttLink, report(identity, Machine(), AGENT), timeout_s)
    except NoAnswerError:
        return False
    return True


# --- joining ------------------------------------------------------------------------------------------------


def test_a_device_joins_and_its_claim_is_used_up(rig: FleetRig) -> None:
    new = rig.claim("kitchen")
    identity = rig.join("kitchen", new.claim)
    assert (identity.facts.fleet, identity.facts.device, identity.port) == (
        "green",
        "kitchen",
        rig.config.broker.port,
    )
    assert identity.trust_root.read_bytes() == b'{"signed": {}}'
    assert rig.identities("kitchen").is_settled(identity)
    assert wait_for(lambda: claim_state(rig, new.claim) == "used")
    assert wait_for(lambda: new.claim.claim not in (rig.fleet.broker / "passwd").read_text())
    with pytest.raises(NoAnswerError, match=r"[Nn]ot authori"):
        rig.join("a-thief", new.claim, timeout_s=1.5)


def test_a_token_that_is_typed_brings_the_authority_s_certificate(rig: FleetRig) -> None:
    new = rig.claim("typed")
    token = read_token(str(new.token))
    claim = fetch_claim(token, fleet="green", host=HOST, port=rig.config.broker.claim_port)
    assert claim.ca == rig.fleet.authority_pem()
    assert rig.join("typed", claim).facts.device == "typed"


def test_a_token_is_of_no_use_at_a_broker_of_another_authority(rig: FleetRig) -> None:
    token = read_token(str(rig.claim("typed-2").token))
    with fleet_rig(name="blue") as other, pytest.raises(ClaimError):
        fetch_claim(token, fleet="green", host=HOST, port=other.config.broker.claim_port)
    with pytest.raises(LinkError):
        fetch_claim(token, fleet="green", host=HOST, port=1)


def test_a_claim_is_not_given_to_a_broker_of_another_authority(rig: FleetRig) -> None:
    new = rig.claim("typed-3")
    with fleet_rig(name="blue") as other:
        lured = new.claim.model_copy(update={"port": other.config.broker.claim_port})
        with pytest.raises(NoAnswerError, match="certificate verify failed"):
            rig.join("typed-3", lured, timeout_s=1.5)
        assert "typed-3" not in (other.directory / "mosquitto.log").read_text()


class _CutError(BaseException):
    """The power is gone."""


class _Cut(IdentityStore):
    """Loses power when something is to be written."""

    def __init__(self, directory: Path, at: str) -> None:
        super().__init__(directory)
        self.at = at

    def adopt(self, *arguments: object, **more: object) -> Identity:
        if self.at == "before adopting":
            raise _CutError
        identity = super().adopt(*arguments, **more)  # type: ignore[arg-type]
        if self.at == "after adopting":
            raise _CutError
        return identity

    def settle(self, identity: Identity) -> None:
        if self.at == "before settling":
            raise _CutError
        super().settle(identity)


@pytest.mark.parametrize("at", ["before adopting", "after adopting", "before settling"])
def test_a_power_cut_while_joining_ends_with_the_same_key_and_certificate(rig: FleetRig, at: str) -> None:
    name = at.replace(" ", "-")
    new = rig.claim(name)
    directory = rig.identities(name).directory
    machine = Machine(boot_id=name, boots=1)
    with pytest.raises(_CutError):
        join_fleet(
            _Cut(directory, at), new.claim, MqttLink, device=None, machine=machine, agent=AGENT, timeout_s=10
        )
    issued = show(rig, name).certificates
    if at == "before settling":
        # The fleet has seen the certificate in use: the broker does not even let the claim in any more.
        assert wait_for(lambda: new.claim.claim not in (rig.fleet.broker / "passwd").read_text())
    identity = rig.join(name, new.claim, machine=machine)
    assert [one.serial for one in show(rig, name).certificates] == [one.serial for one in issued]
    assert identity.facts.serial == issued[0].serial
    assert wait_for(lambda: claim_state(rig, new.claim) == "used")


def test_a_device_believes_nobody_but_its_fleet(rig: FleetRig) -> None:
    """Whoever can write to its reply topic, such as a door in the wrong hands, can make it wait at most."""
    new, other = rig.claim(), rig.claim()
    topic = topics.enrol_topic("green", new.claim.claim, "reply")
    rejection = EnrolReply(state="rejected", key_sha256="0" * 64, reason="go away")
    forged = [
        b"",
        b"rubbish",
        seal(b"a guess", "reply", rejection),
        seal(proof_key(other.claim.secret), "reply", rejection),
        seal(proof_key(new.claim.secret), "request", rejection),
        seal(proof_key(new.claim.secret), "reply", rejection),  # rightly sealed, for another key
    ]
    states: list[str] = []
    is_waiting = threading.Event()

    def heard(state: str) -> None:
        states.append(state)
        if "approval" in state:
            is_waiting.set()

    joined: list[str] = []
    device = threading.Thread(
        target=lambda: joined.append(
            rig.join("doubter", new.claim, device="doubter", on_state=heard).facts.device
        )
    )
    device.start()
    assert is_waiting.wait(10)
    with rig.operator() as liar:
        for payload in forged:
            liar.publish(topic, payload)
    with rig.store.write() as session:
        enrolment.approve(
            session, rig.config, "doubter", name=None, replaces=False, actor="anna", now=rig.now()
        )
    device.join()
    assert joined == ["doubter"]
    assert not any("go away" in state for state in states)


def test_a_device_waits_for_the_operator_and_hears_what_it_waits_for(rig: FleetRig) -> None:
    new = rig.claim()
    states: list[str] = []

    def approve() -> None:
        def waits() -> bool:
            with rig.store.read() as session:
                return any(one.device == "shed" for one in enrolment.list_pending(session))

        assert wait_for(waits)
        with rig.store.write() as session:
            enrolment.approve(
                session, rig.config, "shed", name=None, replaces=False, actor="anna", now=rig.now()
            )

    operator = threading.Thread(target=approve)
    operator.start()
    identity = rig.join("shed", new.claim, device="shed", on_state=states.append)
    operator.join()
    assert identity.facts.device == "shed"
    assert any("waiting for approval" in state for state in states)


def test_a_device_that_is_rejected_is_told_why(rig: FleetRig) -> None:
    new = rig.claim("unwanted")
    with rig.store.write() as session:
        session.get_one(ClaimRow, new.claim.claim).expires_at = rig.now() - timedelta(seconds=1)
    with pytest.raises(EnrolmentRefusedError) as caught:
        rig.join("unwanted", new.claim)
    assert caught.value.reason == "the claim is expired"


def test_a_hook_lets_a_device_in(tmp_path: Path) -> None:
    code = "import sys, json; sys.exit(json.load(sys.stdin)['machine'].get('serial') != 's1')"
    approval = Approval(mode="hook", hook=(sys.executable, "-c", code))
    with fleet_rig(approval=approval) as rig, rig.service():
        assert rig.join("known", machine=Machine(serial="s1")).facts.device == "known"
        with pytest.raises(EnrolmentRefusedError):
            rig.join("unknown", machine=Machine(serial="s2"))


def test_devices_that_join_together_all_get_in(rig: FleetRig) -> None:
    claims = [rig.claim(f"many-{number}").claim for number in range(10)]
    joined: list[str] = []

    def join(claim: Claim) -> None:
        joined.append(rig.join(f"{claim.device}", claim, timeout_s=20).facts.device)

    threads = [threading.Thread(target=join, args=(claim,)) for claim in claims]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(joined) == [f"many-{number}" for number in range(10)]
    assert wait_for(lambda: {claim_state(rig, claim) for claim in claims} == {"used"})


# --- afterwards ---------------------------------------------------------------------------------------------


def test_a_revoked_device_is_put_off_at_once_and_stays_out(rig: FleetRig) -> None:
    identity = rig.join("stolen")
    with Visitor(
        identity.broker_config(), "its-agent", [(topics.device_topic("green", "stolen", "prompt"), 1)]
    ) as agent:
        with rig.store.write() as session:
            registry.revoke_device(session, "stolen", reason="stolen", actor="anna", now=rig.now())
        assert "revoked" in rig.broker.sync(rig.store, rig.now()).changed
        rig.broker.disconnect("stolen", rig.now())
        assert wait_for(lambda: bool(agent.events.reasons))
        assert wait_for(lambda: len(agent.events.reasons) > 1), "it is let in again"
        assert agent.events.connections == 1
    assert not connects(identity, 1.5)
    rig.broker.forget("stolen")
    with rig.operator([(topics.device_topic("green", "stolen", "identity"), 1)]) as operator:
        operator.publish(topics.device_topic("green", "stolen", "cancel"), b"{}")
        assert operator.events.messages == []


def test_two_revocations_within_a_second_both_count(rig: FleetRig) -> None:
    identities = [rig.join(f"pair-{number}") for number in range(2)]
    for identity in identities:
        with rig.store.write() as session:
            name = identity.facts.device
            registry.revoke_device(session, name, reason="lost", actor="anna", now=rig.now())
        rig.broker.sync(rig.store, rig.now())
    assert [connects(identity, 0.7) for identity in identities] == [False, False]


def test_the_sessions_of_absent_devices_are_left_alone_whatever_is_claimed_and_revoked(rig: FleetRig) -> None:
    """On SIGHUP mosquitto would end them a second time, and throw the devices out when they come back."""

    def endings() -> int:
        log = (rig.directory / "mosquitto.log").read_text()
        return sum("green/absent disconnected" in line for line in log.splitlines())

    absent, lost = rig.join("absent"), rig.join("lost")
    with Visitor(absent.broker_config(BrokerConfig(session_expiry_s=3600)), "its-agent"):
        pass
    assert wait_for(lambda: endings() == 2)
    for number in range(2):
        rig.claim(f"unused-{number}")
    with rig.store.write() as session:
        registry.revoke_device(session, lost.facts.device, reason="lost", actor="anna", now=rig.now())
    rig.broker.sync(rig.store, rig.now())
    with Visitor(absent.broker_config(BrokerConfig(session_expiry_s=3600)), "its-agent") as agent:
        # mosquitto looks for sessions that are over once a second.
        assert not wait_for(lambda: bool(agent.events.reasons), 1.5), agent.events.reasons
        assert agent.events.connections == 1
        assert endings() == 2


def test_nothing_that_is_read_at_the_start_changes_with_claims_and_revocations(rig: FleetRig) -> None:
    rig.claim("one-more")
    done = rig.broker.sync(rig.store, rig.now())
    assert (done.changed, done.reload, done.needs_restart) == ((), "unneeded", False)


def test_a_changed_setting_asks_for_a_restart(tmp_path: Path) -> None:
    with fleet_rig() as rig:
        (rig.fleet.broker / "acl").write_text("")
        done = rig.broker.sync(rig.store, rig.now())
        assert ("acl" in done.changed, done.needs_restart) == (True, True)
        assert not rig.broker.sync(rig.store, rig.now()).needs_restart


def test_a_command_of_the_settings_is_run_when_the_passwords_changed(tmp_path: Path) -> None:
    marker = tmp_path / "reloaded"
    with fleet_rig() as rig:
        touch = (sys.executable, "-c", f"open({str(marker)!r}, 'w')")
        settings = rig.config.broker.model_copy(update={"reload_command": touch})
        rig.fleet.config = rig.config.model_copy(update={"broker": settings})
        rig.claim("kitchen")
        assert marker.exists()
        failing = settings.model_copy(update={"reload_command": ("false",)})
        rig.fleet.config = rig.config.model_copy(update={"broker": failing})
        with pytest.raises(FleetError, match="false"):
            rig.claim("cellar")


def test_a_board_that_takes_another_s_place_puts_it_off(rig: FleetRig) -> None:
    former = rig.join("porch")
    with Visitor(former.broker_config(), "its-agent") as agent:
        newcomer = rig.join("porch-again", rig.claim("porch", replaces=True).claim)
        assert newcomer.facts.device == "porch"
        assert wait_for(lambda: len(agent.events.reasons) > 1)
        assert agent.events.connections == 1
    assert not connects(former, 1.5)
    assert connects(newcomer)


def test_a_copy_of_a_card_is_named_within_seconds_of_running(rig: FleetRig) -> None:
    first = Machine(serial="s1", boot_id="one", boots=1)
    copy = Machine(serial="s2", boot_id="two", boots=2)
    identity = rig.join("copied", machine=first)
    for machine in (copy, first, copy):
        prove(identity, identity.broker_config(), MqttLink, report(identity, machine, AGENT))
    assert wait_for(lambda: show(rig, "copied").device.finding == "cloned")


def test_presence_follows_what_the_device_says(rig: FleetRig) -> None:
    identity = rig.join("awake")
    topic = topics.device_topic("green", "awake", "availability")
    with Visitor(identity.broker_config(), "its-agent") as agent:
        agent.publish(topic, b'{"v":1,"state":"online"}', retain=True)
        assert wait_for(lambda: show(rig, "awake").device.presence == "online")
        agent.publish(topic, b'{"v":1,"state":"sleeping"}', retain=True)
        assert wait_for(lambda: show(rig, "awake").device.presence == "sleeping")


def test_the_service_catches_up_with_what_was_said_while_it_was_away() -> None:
    with fleet_rig() as rig:
        with rig.service():
            identity = rig.join("away")
        with Visitor(identity.broker_config(), "its-agent") as agent:
            agent.publish(
                topics.device_topic("green", "away", "availability"), b'{"v":1,"state":"online"}', retain=True
            )
        assert show(rig, "away").device.presence is None
        with rig.service():
            assert wait_for(lambda: show(rig, "away").device.presence == "online")


def test_a_broker_that_was_killed_comes_back_with_its_files(tmp_path: Path) -> None:
    with fleet_rig() as rig, rig.service() as service:
        identity = rig.join("kitchen")
        rig.process.stop()
        assert not rig.broker.is_running()
        rig.claim("meanwhile")
        rig.process.start()
        assert rig.broker.is_running()
        assert service.wait_connected(10)
        assert connects(identity)
        rig.join("cellar")
