"""Who may do what at the fleet's broker: every forbidden thing is tried, against a real mosquitto.

mosquitto grants subscriptions that it never serves, and confirms messages that it drops (over MQTT 3.1.1). So
nothing here believes what it says: a forbidden message counts as refused when nobody hears it, a forbidden
subscription when nothing is heard through it. Whether one has waited long enough is told by a permitted message that
follows the forbidden ones on the same connection, which the broker handles in order.

``python -m benchmarks.update_acl`` prints ``acl_cases`` and ``acl_refused``, and what was not refused on stderr.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import ssl
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal, get_args

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion

from benchmarks.update_fleet_rig import FleetRig, Visitor, fleet_rig, wait_for
from edgeslm import topics
from edgeslm.fleet.broker_files import DOOR_CERTIFICATE, DOOR_KEY, DOOR_PID, HOME_ASSISTANT, OPERATOR
from edgeslm.fleet.ca import (
    CertificateAuthority,
    CertificateRequest,
    key_digest,
    key_pem,
    new_key,
    self_signed,
)
from edgeslm.fleet.home_assistant import issue_identity
from edgeslm.fleet.registry import revoke_device
from edgeslm.link.client import REPLY_ROOT
from edgeslm.link.inprocess import matches
from edgeslm.link.port import Message
from edgeslm.schema.config import BrokerConfig
from edgeslm.schema.enrol import Claim
from edgeslm.schema.fleet import Grant
from edgeslm.trust.claim import broker_password

ACTOR, OTHER, OTHER_FLEET = "kitchen", "cellar", "blue"
Action = Literal["publish", "subscribe", "subscribe widely", "leave a will", "take a session", "get in"]
GRANTED_TO_OTHER, GRANTED_TO_ALL = ("sensors/cellar", "lights/cellar/set"), "sensors/outside"
"""Topics that the settings grant: some to one device, one to read for every device."""
_SECRET_REPLY = f"{REPLY_ROOT}/somebody/result"


@dataclass(frozen=True)
class Case:
    """Something that is forbidden.

    Attributes:
        who: kind of client that tries it.
        where: topic, filter or door.
    """

    who: str
    action: Action
    where: str


@dataclass(frozen=True)
class Actor:
    """A client that tries what it may not.

    Attributes:
        config: how it reaches the broker, with what it has been given.
        reads: filters that it may read.
        writes: filters that it may write.
        heard: topic that it may read, and that proves that it hears.
        says: topic that it may write, and that proves that it is heard.
    """

    who: str
    config: BrokerConfig
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    heard: str
    says: str


@dataclass(frozen=True)
class Observers:
    """Who would hear what is forbidden: one at the broker who hears everything, and another claim at the door.

    Attributes:
        told: topic on which the neighbour hears the operator.
    """

    operator: Visitor
    neighbour: Visitor | None = None
    told: str = ""

    def clear(self) -> None:
        """Forget what was heard."""
        self.operator.events.messages.clear()
        if self.neighbour is not None:
            self.neighbour.events.messages.clear()

    def heard(self, actor: Actor, payload: bytes) -> set[str]:
        """The topics on which `payload` was heard, once what the actor may say has been heard after it."""
        _hear(self.operator, actor.says, payload if payload == b"will" else b"permitted")
        messages = self.operator.events.messages
        if self.neighbour is not None:
            self.operator.publish(self.told, b"done")
            _hear(self.neighbour, self.told, b"done")
            messages = [*messages, *self.neighbour.events.messages]
        return {message.topic for message in messages if message.payload == payload}


def all_topics(fleet: str, claims: Sequence[str]) -> list[str]:
    """Every channel of the tree: of the actor, another device, another fleet, the pools and claims."""
    found = []
    for its_fleet, device in ((fleet, ACTOR), (fleet, OTHER), (OTHER_FLEET, ACTOR), (OTHER_FLEET, OTHER)):
        found += [topics.device_topic(its_fleet, device, name) for name in get_args(topics.DeviceChannel)]
        found += [topics.id_topic(its_fleet, device, name, "x") for name in get_args(topics.IdChannel)]
        found += [topics.command_topic(its_fleet, device, op, "x") for op in ("bench", "self-test")]
        found.append(topics.discovery_topic(its_fleet, device))
    for its_fleet in (fleet, OTHER_FLEET):
        found.append(topics.pool_topic(its_fleet, "home-command"))
        for claim in claims:
            found += [topics.enrol_topic(its_fleet, claim, name) for name in get_args(topics.EnrolChannel)]
    return [
        *found,
        f"{topics.ROOT}/{fleet}/{ACTOR}/unheard-of",
        f"{topics.ROOT}/{fleet}",
        _SECRET_REPLY,
        "elsewhere",
        topics.birth_topic(),
        f"{topics.HOME_ASSISTANT_PREFIX}/device/{fleet}/config",
        f"{topics.HOME_ASSISTANT_PREFIX}/light/{fleet}/{ACTOR}/config",
        *GRANTED_TO_OTHER,
        GRANTED_TO_ALL,
    ]


def wide_filters(fleet: str) -> list[str]:
    """Filters that would catch more than their owner's."""
    return [
        "#",
        "+/#",
        "$SYS/#",
        f"{topics.ROOT}/#",
        f"{topics.ROOT}/{fleet}/#",
        f"{topics.ROOT}/{fleet}/+/prompt",
        f"{topics.ROOT}/{fleet}/{OTHER}/#",
        f"{topics.ROOT}/+/{ACTOR}/#",
        f"{topics.ROOT}/{fleet}/enrol/#",
        f"{REPLY_ROOT}/#",
        f"$share/thieves/{topics.ROOT}/{fleet}/{OTHER}/prompt",
        f"$share/thieves/{topics.ROOT}/#",
        f"{topics.HOME_ASSISTANT_PREFIX}/#",
        f"{topics.HOME_ASSISTANT_PREFIX}/device/+/+/config",
        "sensors/#",
        "lights/#",
    ]


def may(allowed: Sequence[str], topic: str) -> bool:
    """Whether `topic` falls under one of the filters."""
    return any(matches(one, topic) for one in allowed)


def measure(rig: FleetRig) -> dict[Case, bool]:
    """Try every case at the broker of `rig`, which has no device yet; whether each was refused.

    The rig's operator has to hear everything: see :func:`whole_rig`.
    """
    fleet = rig.config.name
    with rig.service():
        device, other = rig.join(ACTOR), rig.join(OTHER)
    claims = [rig.claim().claim, rig.claim().claim]
    config_of_claim = _claim_config(rig, claims[0])
    replaced, home_assistant = _home_assistant(rig), _home_assistant(rig)
    of_device = topics.device_access(fleet, topics.device_user(fleet, ACTOR))
    of_claim = topics.claim_access(topics.claim_user(fleet, claims[0].claim))
    of_door, of_home_assistant = topics.door_access(fleet), topics.home_assistant_access(fleet)
    actors = [
        Actor(
            "device",
            device.broker_config(),
            (*of_device.reads, GRANTED_TO_ALL),
            (*of_device.writes, f"{REPLY_ROOT}/#"),
            topics.device_topic(fleet, ACTOR, "prompt"),
            topics.id_topic(fleet, ACTOR, "e", "done"),
        ),
        Actor(
            "claim", config_of_claim, of_claim.reads, of_claim.writes, of_claim.reads[0], of_claim.writes[0]
        ),
        Actor(
            "home assistant",
            home_assistant,
            of_home_assistant.reads,
            of_home_assistant.writes,
            topics.device_topic(fleet, OTHER, "info"),
            topics.device_topic(fleet, OTHER, "prompt"),
        ),
    ]
    everything = all_topics(fleet, [claim.claim for claim in claims])
    claim_victim = topics.claim_user(fleet, claims[1].claim)
    victims = {
        topics.device_user(fleet, OTHER): other.broker_config(),
        "operator-in-session": rig.fleet.operator_config(),
        HOME_ASSISTANT: home_assistant,
        claim_victim: _claim_config(rig, claims[1]),
    }
    refused: dict[Case, bool] = {}
    with (
        rig.operator([("#", 1)]) as operator,
        Visitor(_claim_config(rig, claims[1]), "neighbour", [("#", 1)]) as neighbour,
    ):
        observers = Observers(operator, neighbour, topics.enrol_topic(fleet, claims[1].claim, "reply"))
        for actor in actors:
            refused |= _speaking(fleet, actor, observers, everything)
    for actor in actors:
        refused |= _taking_sessions(
            actor, {name: config for name, config in victims.items() if config is not actor.config}
        )
    refused |= _getting_in(rig, claims, home_assistant, replaced)
    # The door itself, should somebody take it over: without the real one, whose session it is.
    os.kill(int((rig.fleet.broker / DOOR_PID).read_text()), signal.SIGTERM)
    assert wait_for(lambda: not rig.process.is_running)
    door = Actor(
        "door", _door_config(rig), of_door.reads, of_door.writes, of_claim.reads[0], of_claim.writes[0]
    )
    del victims[claim_victim]  # it is at that door
    with rig.operator([("#", 1)]) as operator:
        refused |= _speaking(fleet, door, Observers(operator), everything)
    refused |= _taking_sessions(door, victims)
    return refused


def _speaking(fleet: str, actor: Actor, observers: Observers, everything: Sequence[str]) -> dict[Case, bool]:
    operator = observers.operator
    return (
        _publishing(actor, observers, everything)
        | _subscribing(actor, operator, everything)
        | _subscribing_widely(actor, operator, everything, wide_filters(fleet))
        | _leaving_wills(actor, observers, everything)
    )


def whole_rig() -> AbstractContextManager[FleetRig]:
    """A fleet whose operator hears and says everything, beyond the fleet as well."""
    to_other, sets_other = GRANTED_TO_OTHER
    return fleet_rig(
        more_access=f"\nuser {OPERATOR}\ntopic readwrite #\n",
        grants=(
            Grant(device=OTHER, read=(to_other,), write=(sets_other,)),
            Grant(read=(GRANTED_TO_ALL,)),
        ),
    )


def figures() -> dict[str, int]:
    """``acl_cases`` and ``acl_refused``."""
    logging.getLogger("edgeslm").setLevel(logging.CRITICAL)  # refusals are what is expected here
    with whole_rig() as rig:
        refused = measure(rig)
    for case, was_refused in refused.items():
        if not was_refused:
            print(f"[acl] not refused: {case}", file=sys.stderr)
    return {"acl_cases": len(refused), "acl_refused": sum(refused.values())}


# --- what is tried ------------------------------------------------------------------------------------------


def _publishing(actor: Actor, observers: Observers, everything: Sequence[str]) -> dict[Case, bool]:
    forbidden = [topic for topic in everything if not may(actor.writes, topic)]
    observers.clear()
    with Visitor(actor.config, "publisher") as visitor:
        for topic in forbidden:
            visitor.link.publish(Message(topic, b"forbidden", retain=True))
        visitor.publish(actor.says, b"permitted")
        heard = observers.heard(actor, b"forbidden")
    return {Case(actor.who, "publish", topic): topic not in heard for topic in forbidden}


def _subscribing(actor: Actor, observer: Visitor, everything: Sequence[str]) -> dict[Case, bool]:
    forbidden = [topic for topic in everything if not may(actor.reads, topic)]
    heard = _overheard(actor, observer, everything, [*forbidden, actor.heard])
    return {Case(actor.who, "subscribe", topic): topic not in heard for topic in forbidden}


def _subscribing_widely(
    actor: Actor, observer: Visitor, everything: Sequence[str], filters: Sequence[str]
) -> dict[Case, bool]:
    cases = {}
    for one in filters:
        heard = _overheard(actor, observer, everything, [one, actor.heard])
        cases[Case(actor.who, "subscribe widely", one)] = all(may(actor.reads, topic) for topic in heard)
    return cases


def _overheard(
    actor: Actor, observer: Visitor, everything: Sequence[str], filters: Sequence[str]
) -> set[str]:
    """The topics that an actor hears through `filters`: retained before it came, while it was away, and live."""
    config = actor.config.model_copy(update={"session_expiry_s": 300})
    wanted = [(one, 1) for one in filters]
    for topic in everything:
        observer.link.publish(Message(topic, b"retained", retain=True))
    observer.publish("elsewhere", b"done")
    with Visitor(config, "listener", wanted) as visitor:
        heard = visitor.events.messages
        observer.publish(actor.heard, b"first")
        assert wait_for(lambda: any(message.payload == b"first" for message in heard)), (
            "a permitted message is lost"
        )
    with Visitor(config.model_copy(update={"session_expiry_s": 300}), "listener", wanted) as again:
        for topic in everything:
            observer.link.publish(Message(topic, b"live"))
        observer.publish(actor.heard, b"last")
        later = again.events.messages
        assert wait_for(lambda: any(message.payload == b"last" for message in later)), (
            "a permitted message is lost"
        )
    with Visitor(actor.config.model_copy(update={"session_expiry_s": 0}), "listener"):
        pass  # the session goes with its subscriptions
    for topic in everything:
        observer.link.publish(Message(topic, b"", retain=True))
    return {message.topic for message in (*heard, *later)}


def _leaving_wills(actor: Actor, observers: Observers, everything: Sequence[str]) -> dict[Case, bool]:
    """Connections that break with a will on a forbidden topic; the last one, permitted, is heard."""
    forbidden = [topic for topic in everything if not may(actor.writes, topic)][::4]
    observers.clear()
    for topic in [*forbidden, actor.says]:
        _break_with_will(actor.config, topic)
    heard = observers.heard(actor, b"will")
    return {Case(actor.who, "leave a will", topic): topic not in heard for topic in forbidden}


def _break_with_will(config: BrokerConfig, topic: str) -> None:
    client = paho.Client(CallbackAPIVersion.VERSION2, client_id="mortal", protocol=paho.MQTTv5)
    answered: list[object] = []
    client.on_connect = lambda *arguments: answered.append(arguments)
    client.will_set(topic, b"will", 1)
    context = ssl.create_default_context(cafile=str(config.ca_file))
    if config.cert_file is not None and config.key_file is not None:
        context.load_cert_chain(config.cert_file, config.key_file)
    client.tls_set_context(context)
    if config.username is not None and config.password_file is not None:
        client.username_pw_set(config.username, config.password_file.read_text())
    client.connect(config.host, config.port)
    while not answered and client.socket() is not None:
        client.loop(0.1)
    sock = client.socket()
    if sock is not None:
        sock.close()


def _taking_sessions(actor: Actor, victims: Mapping[str, BrokerConfig]) -> dict[Case, bool]:
    """Connections under the client id of somebody else, who must not notice."""
    cases = {}
    for client_id, config in victims.items():
        with Visitor(config, client_id) as victim:
            with Visitor(actor.config, client_id) as thief:
                thief.publish(actor.says, b"here")
            # A confirmation proves that the broker still serves the victim, on the connection that it had.
            token = victim.link.publish(Message("elsewhere", b"still here"))
            is_served = token is not None and wait_for(lambda: bool(victim.events.published))
            cases[Case(actor.who, "take a session", client_id)] = is_served and victim.events.connections == 1
    return cases


def _getting_in(
    rig: FleetRig, claims: Sequence[Claim], home_assistant: BrokerConfig, replaced: BrokerConfig
) -> dict[Case, bool]:
    """Doors that are closed: no, foreign, expired and revoked certificates, and wrong passwords."""
    broker, authority = rig.config.broker, rig.fleet.authority_certificate
    bare = BrokerConfig(host=broker.host, port=broker.port, ca_file=authority, session_expiry_s=0)
    with rig.service():
        revoked = rig.join("revoked").broker_config()
    with rig.store.write() as session:
        revoke_device(session, "revoked", reason="test", actor="test", now=rig.now())
    rig.broker.sync(rig.store, rig.now())
    rig.broker.disconnect("revoked", rig.now())
    operator = rig.fleet.operator_config()
    device = rig.identities(ACTOR).current()
    assert device is not None
    of_device = device.broker_config()
    stranger = CertificateAuthority.create(rig.config.name, rig.now())
    doors = {
        "devices, without a certificate": bare,
        "devices, by another authority": _certified(rig, stranger, ACTOR, timedelta(days=1)),
        "devices, expired": _certified(rig, rig.authority, ACTOR, timedelta(seconds=-60)),
        "devices, revoked": revoked,
        "devices, by its own word": _self_made(rig, topics.device_user(rig.config.name, ACTOR)),
        "devices, as the operator": replace_port(operator, broker.port),
        "operator, without a certificate": replace_port(bare, broker.operator_port),
        "operator, as a device": replace_port(of_device, broker.operator_port),
        "operator, by its own word": replace_port(_self_made(rig, OPERATOR), broker.operator_port),
        "operator, as a claim": replace_port(_claim_config(rig, claims[0]), broker.operator_port),
        "claims, without a password": replace_port(bare, broker.claim_port),
        "claims, with another's password": _claim_config(rig, claims[0], secret=claims[1].secret),
        "claims, as a device": replace_port(of_device, broker.claim_port),
        "claims, as the operator": _named(replace_port(bare, broker.claim_port), OPERATOR, rig),
        "claims, with the operator's certificate": replace_port(operator, broker.claim_port),
        "operator, as Home Assistant": replace_port(home_assistant, broker.operator_port),
        "claims, as Home Assistant": replace_port(home_assistant, broker.claim_port),
        "devices, as Home Assistant that was": replaced,
        "operator, as the door": replace_port(_door_config(rig), broker.operator_port),
        "claims, after its time": _claim_config(rig, rig.claim(life=timedelta(seconds=-1)).claim),
    }
    cases = {}
    for door, config in doors.items():
        with Visitor(config, "intruder", must_connect=False) as visitor:
            is_settled = wait_for(lambda: bool(visitor.events.reasons or visitor.events.connections))
            cases[Case("stranger", "get in", door)] = is_settled and visitor.events.connections == 0
    with (
        Visitor(of_device, "resident"),
        Visitor(home_assistant, "resident"),
        Visitor(_claim_config(rig, claims[0]), "guest"),
        rig.operator(),
    ):
        pass  # the doors are not closed to everybody
    return cases


# --- means --------------------------------------------------------------------------------------------------


def _hear(observer: Visitor, topic: str, payload: bytes) -> None:
    messages = observer.events.messages
    is_heard = wait_for(lambda: any((one.topic, one.payload) == (topic, payload) for one in messages))
    assert is_heard, f"a permitted message on {topic} is lost"


def replace_port(config: BrokerConfig, port: int) -> BrokerConfig:
    """`config` at another listener."""
    return config.model_copy(update={"port": port})


def _claim_config(rig: FleetRig, claim: Claim, secret: str | None = None) -> BrokerConfig:
    path = rig.directory / f"{claim.claim}-{secret or 'own'}.password"
    path.write_text(broker_password(secret or claim.secret))
    return BrokerConfig(
        host=claim.host,
        port=claim.port,
        ca_file=rig.fleet.authority_certificate,
        username=topics.claim_user(claim.fleet, claim.claim),
        password_file=path,
        session_expiry_s=0,
    )


def _named(config: BrokerConfig, user: str, rig: FleetRig) -> BrokerConfig:
    path = rig.directory / f"{user}.password"
    path.write_text("guess")
    return config.model_copy(update={"username": user, "password_file": path})


def _certified(rig: FleetRig, authority: CertificateAuthority, device: str, life: timedelta) -> BrokerConfig:
    key = new_key()
    request = CertificateRequest(key.public_key(), key_digest(key.public_key()))
    begin = rig.now() - max(-life, timedelta()) - timedelta(hours=2)
    issued = authority.issue_device(request, rig.config.name, device, begin, rig.now() + life - begin)
    return _with_files(rig, key_pem(key), issued.pem)


def _self_made(rig: FleetRig, name: str) -> BrokerConfig:
    key = new_key()
    return _with_files(rig, key_pem(key), self_signed(key, name, rig.now()))


def _with_files(rig: FleetRig, key: bytes, certificate: str) -> BrokerConfig:
    stem = rig.directory / f"intruder-{os.urandom(4).hex()}"
    stem.with_suffix(".key").write_bytes(key)
    stem.with_suffix(".crt").write_text(certificate)
    return BrokerConfig(
        host=rig.config.broker.host,
        port=rig.config.broker.port,
        ca_file=rig.fleet.authority_certificate,
        cert_file=stem.with_suffix(".crt"),
        key_file=stem.with_suffix(".key"),
        session_expiry_s=0,
    )


def _home_assistant(rig: FleetRig) -> BrokerConfig:
    with rig.store.write() as session:
        identity = issue_identity(session, rig.authority, actor="test", now=rig.now())
    return _with_files(rig, identity.key_pem, identity.certificate.pem)


def _door_config(rig: FleetRig) -> BrokerConfig:
    directory = rig.fleet.broker
    identity = {"cert_file": directory / DOOR_CERTIFICATE, "key_file": directory / DOOR_KEY}
    return replace_port(rig.fleet.operator_config().model_copy(update=identity), rig.config.broker.port)


if __name__ == "__main__":
    print(json.dumps(figures()))
