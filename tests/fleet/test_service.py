"""The service that answers devices: what waits, while nothing is answered yet."""

from __future__ import annotations

from pathlib import Path

from edgeslm import topics
from edgeslm.clock import utc_now
from edgeslm.fleet.broker import Broker
from edgeslm.fleet.certificates import Issuer
from edgeslm.fleet.directory import create_fleet
from edgeslm.fleet.service import EnrolmentService
from edgeslm.link.mqtt import MqttLink
from edgeslm.link.port import Message
from edgeslm.schema.fleet import FleetBroker, FleetConfig


def test_a_device_that_asks_again_while_its_request_waits_costs_nothing(tmp_path: Path) -> None:
    config = FleetConfig(name="green", broker=FleetBroker(host="127.0.0.1"))
    fleet = create_fleet(tmp_path / "fleet", config, passphrase=None, now=utc_now())
    authority, store = fleet.authority(lambda _: b""), fleet.open_store()
    broker = Broker(fleet, lambda: authority)
    broker.sync(store, utc_now())
    issuer = Issuer(config, authority, fleet.trust_root)
    service = EnrolmentService(store, issuer, broker, MqttLink(fleet.operator_config(), "service"))
    done: list[str] = []

    def say(what: str, topic: str, payload: bytes) -> None:
        service.on_message(Message(topic, payload, acknowledge=lambda: done.append(what)))

    request = topics.enrol_topic("green", "abc123", "request")
    say("first", request, b"let me in")
    say("again", request, b"let me in")
    say("other", request, b"let me in, I have another key")
    presence = topics.device_topic("green", "porch", "availability")
    for state in ("online", "offline", "online again"):
        say(state, presence, b'{"v":1,"state":"online"}')
    assert done == ["again"]
    store.close()
