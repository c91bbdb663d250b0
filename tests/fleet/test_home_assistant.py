"""Home Assistant at the fleet's broker: one certificate at a time, and what the settings grant beside it."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from pydantic import ValidationError

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.update_fleet_rig import FleetRig, Visitor, fleet_rig, wait_for
from edgeslm import topics
from edgeslm.errors import FleetError
from edgeslm.fleet.broker_files import Granted, access_text
from edgeslm.fleet.ca import BROKER_LIFE, CertificateAuthority
from edgeslm.fleet.grants import granted
from edgeslm.fleet.home_assistant import has_identity, issue_identity, revoke_identity, revoked_identities
from edgeslm.fleet.registry import list_audit
from edgeslm.fleet.store.database import Store, sqlite_url
from edgeslm.fleet.store.models import DeviceRow, FactRow, TagRow
from edgeslm.link.broker import find_mosquitto
from edgeslm.link.client import REPLY_ROOT
from edgeslm.schema.config import BrokerConfig
from edgeslm.schema.fleet import FleetBroker, FleetConfig, Grant

NOW = datetime(2026, 11, 25, tzinfo=UTC)


@pytest.fixture
def store(tmp_path: Path):
    store = Store(sqlite_url(tmp_path / "fleet.db"))
    yield store
    store.close()


@pytest.fixture(scope="module")
def authority() -> CertificateAuthority:
    return CertificateAuthority.create("green", NOW)


# --- certificates -------------------------------------------------------------------------------------------


def test_a_new_certificate_takes_the_place_of_the_one_before(store, authority):
    with store.write() as session:
        first = issue_identity(session, authority, actor="anna", now=NOW)
        assert revoked_identities(session, NOW) == []
        issue_identity(session, authority, actor="anna", now=NOW + timedelta(days=1))
        (revoked,) = revoked_identities(session, NOW + timedelta(days=1))
    assert (revoked.serial, revoked.at) == (first.certificate.serial, NOW + timedelta(days=1))
    assert b"PRIVATE KEY" in first.key_pem


def test_access_is_taken_away_once(store, authority):
    with store.write() as session:
        assert not revoke_identity(session, actor="anna", now=NOW)
        issue_identity(session, authority, actor="anna", now=NOW)
        assert has_identity(session, NOW)
        assert revoke_identity(session, actor="anna", now=NOW)
        assert not has_identity(session, NOW)
        assert not revoke_identity(session, actor="anna", now=NOW)
        assert [entry.action for entry in list_audit(session)] == [
            "revoke-home-assistant",
            "issue-home-assistant",
        ]


def test_what_has_run_out_is_on_no_list(store, authority):
    with store.write() as session:
        issue_identity(session, authority, actor="anna", now=NOW)
        revoke_identity(session, actor="anna", now=NOW)
        assert revoked_identities(session, NOW + BROKER_LIFE + timedelta(days=1)) == []


def test_no_key_is_kept(store, authority):
    with store.write() as session:
        identity = issue_identity(session, authority, actor="anna", now=NOW)
        kept = json.dumps([fact.value for fact in session.query(FactRow)])
        audits = "".join(entry.model_dump_json() for entry in list_audit(session))
    secret = identity.key_pem.decode().splitlines()[1]
    assert secret not in kept + audits


def test_a_note_that_cannot_be_read_is_named(store):
    with store.write() as session:
        session.merge(FactRow(key="home-assistant", value={"certificates": [{"serial": 7}]}))
    with store.read() as session, pytest.raises(FleetError, match="note on Home Assistant"):
        has_identity(session, NOW)


# --- grants -------------------------------------------------------------------------------------------------


def _config(*grants: Grant) -> FleetConfig:
    return FleetConfig(name="green", broker=FleetBroker(host="broker.lan"), grants=grants)


def _device(name: str, *tags: str) -> DeviceRow:
    row = DeviceRow(name=name, standing="active", key_sha256="0" * 64, created_at=NOW)
    row.tags = [TagRow(tag=tag) for tag in tags]
    return row


def test_a_grant_to_a_tag_is_for_the_devices_that_have_it(store):
    config = _config(Grant(tag="hall", read=("sensors/#",)), Grant(device="attic", write=("fan/set",)))
    with store.write() as session:
        session.add_all([_device("kitchen", "hall"), _device("cellar"), _device("bath", "hall", "wet")])
        session.flush()
        found = granted(session, config)
    assert found == (
        Granted(("green/bath", "green/kitchen"), topics.Access(("sensors/#",), ())),
        Granted(("green/attic",), topics.Access((), ("fan/set",))),
    )


def test_grants_of_one_device_stand_together_and_those_to_all_are_denied_to_who_is_no_device():
    text = access_text(
        "green",
        [
            Granted(("green/bath",), topics.Access(("sensors/#",), ())),
            Granted(("green/attic", "green/bath"), topics.Access((), ("fan/set",))),
            Granted(None, topics.Access(("weather",), ())),
        ],
    )
    parts = {
        part.splitlines()[0]: part.splitlines()[1:] for part in text.split("\n\n") if part.startswith("user")
    }
    assert parts["user green/bath"] == ["topic read sensors/#", "topic write fan/set"]
    assert parts["user green/attic"] == ["topic write fan/set"]
    assert "pattern read weather\n" in text
    for other in ("user door", "user home_assistant"):
        assert "topic deny weather" in parts[other]


@pytest.mark.parametrize(
    "topic",
    [
        "#",
        "+/kitchen",
        "edgeslm/v1/green/cellar/prompt",
        "edgeslm/#",
        "edgeslm-client/#",
        "homeassistant/device/green/cellar/config",
        "$SYS/#",
        "$share/x/sensors",
        "/sensors",
        "",
        "sensors/#/x",
        "sensors/a+",
        "sensors/x\ntopic readwrite #",
        "sensors/x y",
        "sensors/%u",
        "sensors/\x00",
        "sensors/" + "x" * 1100,
    ],
)
def test_refuses_a_grant_that_would_open_more_than_its_own_topics(topic):
    for side in ("read", "write"):
        with pytest.raises(ValidationError):
            Grant.model_validate({"device": "kitchen", side: [topic]})


@pytest.mark.parametrize(
    "grant",
    [
        {"device": "a", "tag": "b", "read": ["x"]},
        {"device": "a"},
        {"device": "pool", "read": ["x"]},
        {"device": "A/b", "read": ["x"]},
        {"read": ["x"], "publish": ["y"]},
    ],
)
def test_refuses_a_grant_that_does_not_say_one_thing(grant):
    with pytest.raises(ValidationError):
        Grant.model_validate(grant)


def test_what_no_grant_may_open_is_what_the_topic_tree_is_made_of():
    for root in (topics.ROOT, REPLY_ROOT, topics.HOME_ASSISTANT_PREFIX):
        with pytest.raises(ValidationError):
            Grant(read=(f"{root}/x",))
    for name in topics.RESERVED_NAMES:
        with pytest.raises(ValidationError):
            Grant(device=name, read=("x",))


# --- at a broker --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rig():
    if find_mosquitto() is None:
        pytest.skip("mosquitto is not installed")
    grants = (Grant(device="kitchen", read=("sensors/+",), write=("lights/kitchen/set",)),)
    more = "\nuser operator\ntopic readwrite #\n"
    with fleet_rig(grants=grants, more_access=more) as rig:
        yield rig


def _home_assistant(rig: FleetRig, name: str) -> BrokerConfig:
    with rig.store.write() as session:
        identity = issue_identity(session, rig.authority, actor="test", now=rig.now())
    rig.broker.sync(rig.store, rig.now())
    key, certificate = rig.directory / f"{name}.key", rig.directory / f"{name}.crt"
    key.write_bytes(identity.key_pem)
    certificate.write_text(identity.certificate.pem)
    return BrokerConfig(
        host=rig.config.broker.host,
        port=rig.config.broker.port,
        ca_file=rig.fleet.authority_certificate,
        cert_file=certificate,
        key_file=key,
        session_expiry_s=0,
    )


def test_a_device_shows_itself_hears_the_birth_and_is_ordered(rig):
    with rig.service():
        device = rig.join("kitchen").broker_config()
    shown, order = (
        topics.discovery_topic("green", "kitchen"),
        topics.command_topic("green", "kitchen", "retry", "x"),
    )
    filters = [(topics.birth_topic(), 1), (topics.command_filter("green", "kitchen"), 1)]
    with (
        Visitor(device, "any", filters) as kitchen,
        Visitor(_home_assistant(rig, "one"), "any", [("homeassistant/#", 1)]) as home,
    ):
        kitchen.publish(shown, b"{}", retain=True)
        assert wait_for(lambda: shown in {message.topic for message in home.events.messages})
        rig.broker.forget("kitchen")  # as of a device that is out of use
        assert wait_for(lambda: b"" in {message.payload for message in home.events.messages})
        home.publish(topics.birth_topic(), b"online")
        home.publish(order, b"{}")
        heard = kitchen.events.messages
        assert wait_for(lambda: {topics.birth_topic(), order} <= {message.topic for message in heard})


def test_a_device_uses_what_it_is_granted(rig):
    with rig.service():
        device = rig.join("kitchen-2", rig.claim("kitchen", replaces=True).claim).broker_config()
    with rig.operator([("lights/#", 1)]) as operator, Visitor(device, "any", [("sensors/+", 1)]) as kitchen:
        operator.publish("sensors/motion", b"1")
        assert wait_for(lambda: bool(kitchen.events.messages))
        kitchen.publish("lights/kitchen/set", b"on")
        assert wait_for(lambda: bool(operator.events.messages))


def test_who_has_been_replaced_is_put_off_and_stays_off(rig):
    with Visitor(_home_assistant(rig, "old"), "any") as old:
        with Visitor(_home_assistant(rig, "new"), "any", must_connect=True) as new:
            assert wait_for(
                lambda: bool(old.events.reasons)
            )  # one session at a time, and it is not the old one's
            assert wait_for(lambda: len(old.events.reasons) > 1)
            assert old.events.connections == 1
            assert new.events.connections == 1
        with rig.store.write() as session:
            revoke_identity(session, actor="test", now=rig.now())
    current = _home_assistant(rig, "current")
    with Visitor(current, "any") as visitor:
        with rig.store.write() as session:
            revoke_identity(session, actor="test", now=rig.now())
        rig.broker.sync(rig.store, rig.now())
        rig.broker.disconnect_home_assistant(rig.now())
        assert wait_for(lambda: len(visitor.events.reasons) > 1)
        assert visitor.events.connections == 1


def test_the_rules_of_a_device_act_on_what_it_is_granted(rig, tmp_path):
    with rig.service():
        rig.join("kitchen-3", rig.claim("kitchen", replaces=True).claim)
    (tmp_path / "rules.yaml").write_text(
        "allow: [lights/kitchen/set]\n"
        "inputs: {motion: {topic: sensors/motion}}\n"
        "rules:\n"
        "  - {name: on, when: motion > 0, then: [{publish: {topic: lights/kitchen/set, payload: 'ON'}}]}\n"
    )
    settings = {
        "state_dir": str(rig.directory / "devices" / "kitchen-3"),
        "threads": 1,
        "rules": ["rules.yaml"],
    }
    (tmp_path / "agent.yaml").write_text(json.dumps(settings))
    command = [sys.executable, "-m", "edgeslm", "agent", "run", "--config", str(tmp_path / "agent.yaml")]
    online = topics.device_topic("green", "kitchen", "availability")
    with rig.operator([("lights/#", 1), (online, 1)]) as operator:
        agent = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        try:
            heard = operator.events.messages
            assert wait_for(lambda: any(b"online" in message.payload for message in heard), 60)
            operator.publish("sensors/motion", b"1")
            assert wait_for(lambda: b"ON" in {message.payload for message in heard}, 60)
        finally:
            agent.terminate()
            agent.wait(60)
