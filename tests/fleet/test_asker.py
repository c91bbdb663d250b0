"""Asking over a real broker with its access list; devices are stand-ins, so that they can be many, and lie."""

from __future__ import annotations

import itertools
import json
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.update_fleet_rig import FleetRig, Visitor, fleet_rig, wait_for
from edgeslm import topics
from edgeslm.errors import LinkError
from edgeslm.fleet import asker as asker_module
from edgeslm.fleet import broker_line
from edgeslm.fleet.asker import MAX_ONE_BY_ONE, Asker, Wishes
from edgeslm.fleet.asking import Answer
from edgeslm.link.broker import find_mosquitto
from edgeslm.link.mqtt import MqttLink
from edgeslm.link.port import Message
from edgeslm.schema.message import PromptRequest

pytestmark = pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed")

FLEET = "green"
WAIT_S = 60.0
_numbers = itertools.count()
REQUEST = PromptRequest(id="x", prompt="hello")
RECEIPT = {
    "prompt_tokens": 1, "completion_tokens": 1, "queue_ms": 0.1, "ttft_ms": 1.0, "total_ms": 1.0,
    "energy_j": 0.1, "energy_net_j": 0.1, "power_w": 3.0, "meter": "estimated", "model": "m@1.0.0",
    "model_sha256": "0" * 64, "runtime": "none",
}  # fmt: skip


class StandIn:
    """Answers the prompts of every device of the fleet with what it was asked; `mute` ones not."""

    def __init__(self, rig: FleetRig, mute: frozenset[str] = frozenset()) -> None:
        self.asked: list[tuple[str, str]] = []
        self.mute = mute
        self.before: list[Message] = []
        self.connected = threading.Event()
        config = rig.fleet.operator_config().model_copy(update={"session_expiry_s": 600})
        self.link = MqttLink(config, f"stand-in-{next(_numbers)}")
        self.link.start(
            self, [(f"{topics.ROOT}/{FLEET}/+/prompt", 1), (f"{topics.ROOT}/{FLEET}/+/cancel", 1)]
        )
        assert self.connected.wait(WAIT_S)

    def on_message(self, message: Message) -> None:
        message.acknowledge()
        topic = topics.parse(message.topic)
        assert isinstance(topic, topics.DeviceTopic)
        body = json.loads(message.payload)
        self.asked.append((topic.device, topic.channel))
        if topic.channel != "prompt" or topic.device in self.mute:
            return
        assert message.response_topic is not None
        for other in self.before:
            self.link.publish(Message(message.response_topic, other.payload))
        said = {"v": 1, "id": body["id"], "device": topic.device, "text": body["prompt"], "receipt": RECEIPT}
        self.link.publish(Message(message.response_topic, json.dumps(said).encode()))

    def on_connected(self, *, session_present: bool) -> None:
        self.connected.set()

    def on_disconnected(self, reason: str) -> None:
        self.connected.clear()

    def on_published(self, token: int) -> None: ...


def be_online(rig: FleetRig, names: list[str]) -> None:
    with rig.operator() as operator:
        for name in names:
            topic = topics.device_topic(FLEET, name, "availability")
            operator.publish(topic, b'{"v":1,"state":"online"}', retain=True)


@pytest.fixture(scope="module")
def rig() -> Iterator[FleetRig]:
    with fleet_rig() as made:
        yield made


def ask(rig: FleetRig, names: list[str], **wishes: object) -> tuple[Answer, ...]:
    with Asker(rig.fleet.operator_config(), FLEET, names) as asker:
        return asker.ask(REQUEST, Wishes(**{"timeout_s": WAIT_S, **wishes}))  # type: ignore[arg-type]


def test_many_devices_answer_over_one_connection(rig: FleetRig) -> None:
    names = [f"many-{number}" for number in range(4 * MAX_ONE_BY_ONE)]
    be_online(rig, names)
    stand_in = StandIn(rig)
    heard: list[str] = []
    answers = ask(rig, [*names, "absent"], on_answer=lambda answer: heard.append(answer.device))
    stand_in.link.stop()
    assert [answer.device for answer in answers] == [*names, "absent"]
    assert sum(answer.is_answered for answer in answers) == len(names)
    assert (answers[-1].state, heard[0]) == ("absent", "absent")
    assert sorted(heard) == sorted([*names, "absent"])
    assert len(stand_in.asked) == len(names)


def test_what_is_no_answer_of_that_device_is_dropped(rig: FleetRig) -> None:
    be_online(rig, ["honest"])
    stand_in = StandIn(rig)
    forged = {"v": 1, "id": "guessed", "device": "honest", "text": "forged", "receipt": RECEIPT}
    bodies = [b"", b"{", b"\xff" * 100, json.dumps(forged).encode(), json.dumps({"id": "x"}).encode()]
    stand_in.before = [Message("x", body) for body in bodies]
    (answer,) = ask(rig, ["honest"])
    stand_in.link.stop()
    assert (answer.state, answer.text) == ("answered", "hello")


def test_who_does_not_answer_in_time_is_told_to_stop(rig: FleetRig) -> None:
    be_online(rig, ["quick", "slow"])
    stand_in = StandIn(rig, mute=frozenset({"slow"}))
    answers = ask(rig, ["quick", "slow"], timeout_s=2.0)
    assert [answer.state for answer in answers] == ["answered", "silent"]
    assert wait_for(lambda: ("slow", "cancel") in stand_in.asked)
    stop = threading.Event()
    stop.set()
    (answer,) = ask(rig, ["slow"], stop=stop)
    assert answer.state == "silent"
    stand_in.link.stop()


def test_one_that_went_away_is_not_waited_for_when_it_is_the_last(
    rig: FleetRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asker_module, "COME_BACK_S", 0.5)
    be_online(rig, ["leaving"])
    stand_in = StandIn(rig, mute=frozenset({"leaving"}))

    def leave() -> None:
        assert wait_for(lambda: bool(stand_in.asked), WAIT_S)
        with rig.operator() as operator:
            topic = topics.device_topic(FLEET, "leaving", "availability")
            operator.publish(topic, b'{"v":1,"state":"offline"}', retain=True)

    leaving = threading.Thread(target=leave)
    leaving.start()
    (answer,) = ask(rig, ["leaving"], timeout_s=600.0)
    leaving.join()
    stand_in.link.stop()
    assert (answer.state, answer.presence) == ("silent", "offline")


def test_answers_that_were_lost_with_the_connection_are_asked_for_again() -> None:
    with fleet_rig() as rig:
        be_online(rig, ["steady"])
        stand_in = StandIn(rig, mute=frozenset({"steady"}))

        found: list[Answer] = []
        asking = threading.Thread(target=lambda: found.extend(ask(rig, ["steady"])))
        asking.start()
        assert wait_for(lambda: bool(stand_in.asked), WAIT_S)
        rig.process.stop()
        stand_in.mute = frozenset()
        rig.process.start()  # in this thread: the broker ends with the one that started it
        asking.join()
        stand_in.link.stop()
        assert [(answer.state, answer.text) for answer in found] == [("answered", "hello")]


def test_one_that_comes_back_is_asked_again(rig: FleetRig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its broker may have forgotten its session, and the prompt in it."""
    monkeypatch.setattr(asker_module, "COME_BACK_S", WAIT_S)
    be_online(rig, ["back"])
    stand_in = StandIn(rig, mute=frozenset({"back"}))

    def come_back() -> None:
        assert wait_for(lambda: bool(stand_in.asked), WAIT_S)
        stand_in.mute = frozenset()
        with rig.operator() as operator:
            topic = topics.device_topic(FLEET, "back", "availability")
            operator.publish(topic, b'{"v":1,"state":"offline"}', retain=True)
            operator.publish(topic, b'{"v":1,"state":"online"}', retain=True)

    coming = threading.Thread(target=come_back)
    coming.start()
    (answer,) = ask(rig, ["back"])
    coming.join()
    stand_in.link.stop()
    assert answer.is_answered
    assert stand_in.asked == [("back", "prompt")] * 2


def test_no_broker_is_a_named_error(rig: FleetRig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broker_line, "CONNECT_TIMEOUT_S", 1.0)
    config = rig.fleet.operator_config().model_copy(update={"port": 1})
    with pytest.raises(LinkError, match="cannot be reached"), Asker(config, FLEET, ["a"]):
        pass


def test_a_device_cannot_read_what_others_answer(rig: FleetRig) -> None:
    with rig.service():
        rig.join("spy")
    identity = rig.identities("spy").current()
    assert identity is not None
    be_online(rig, ["quick"])
    stand_in = StandIn(rig)
    with Visitor(identity.broker_config(), f"{FLEET}/spy", [("edgeslm-client/#", 1)]) as spy:
        (answer,) = ask(rig, ["quick"])
        assert answer.is_answered
        assert spy.events.messages == []
    stand_in.link.stop()
