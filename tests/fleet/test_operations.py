from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.update_fleet_rig import wait_for
from edgeslm import codec, topics
from edgeslm.errors import CodecError, LinkError
from edgeslm.fleet.operations import Gathering, Outcome, Wishes, collect, new_id, request
from edgeslm.link.broker import EmbeddedBroker, find_mosquitto
from edgeslm.link.mqtt import MqttLink
from edgeslm.link.port import Message
from edgeslm.schema.config import BrokerConfig
from edgeslm.schema.message import Availability
from edgeslm.schema.operation import FINAL, OperationCommand, OperationEvent, OperationState

FLEET = "green"
STATES = ("received", "running", "restarting", *sorted(FINAL))


def event(state: OperationState, device: str = "a", command_id: str = "id", **more: Any) -> OperationEvent:
    return OperationEvent(
        device=device, id=command_id, op="work", state=state, at="2026-12-01T00:00:00Z", **more
    )


# --- gathering, without a broker ------------------------------------------------------------------------------


def test_the_last_word_of_a_device_stands() -> None:
    gathering = Gathering("work", "id", ["a", "b"])
    assert gathering.take("a", event("running", text="half", share=0.5)) is not None
    assert gathering.take("a", event("done", result={"n": 1})) is not None
    assert gathering.take("a", event("failed")) is None
    assert gathering.open == ["b"]
    first, second = gathering.outcomes()
    assert (first.state, first.result, first.open) == ("done", {"n": 1}, False)
    assert (second.state, second.open) == ("pending", True)


def test_what_was_said_before_or_belongs_to_others_is_no_news() -> None:
    gathering = Gathering("work", "id", ["a"])
    assert gathering.take("a", event("running")) is not None
    assert gathering.take("a", event("running")) is None
    assert gathering.take("c", event("done")) is None
    assert gathering.take("a", event("done", command_id="another")) is None
    assert gathering.open == ["a"]


def test_whose_word_it_is_follows_from_the_topic_and_not_from_what_is_said() -> None:
    gathering = Gathering("work", "id", ["a", "b"])
    gathering.take("a", event("done", device="b"))
    assert gathering.open == ["b"]


def test_presence_is_told_once() -> None:
    gathering = Gathering("work", "id", ["a"])
    assert gathering.present("a", "offline") is not None
    assert gathering.present("a", "offline") is None
    assert gathering.present("z", "online") is None
    assert gathering.outcomes()[0].presence == "offline"


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(STATES)), max_size=30))
def test_whatever_comes_each_device_has_the_first_last_word_that_it_said(said: list[tuple[str, Any]]) -> None:
    gathering = Gathering("work", "id", "ab")
    for device, state in said:
        gathering.take(device, event(state, device))
    for outcome in gathering.outcomes():
        own = [state for device, state in said if device == outcome.device]
        final = next((state for state in own if state in FINAL), None)
        assert outcome.state == (final or (own[-1] if own else "pending"))
        assert outcome.open == (final is None)
        assert (outcome.device in gathering.open) == outcome.open


def test_ids_are_never_the_same() -> None:
    assert len({new_id() for _ in range(1000)}) == 1000


@pytest.mark.parametrize(
    ("op", "args", "life"),
    [
        ("Not An Op", {}, timedelta(hours=1)),
        ("work", {"x": "y" * 300_000}, timedelta(hours=1)),
        ("work", {str(n): n for n in range(65)}, timedelta(hours=1)),
        ("work", {"x": object()}, timedelta(hours=1)),
        ("work", {}, timedelta(days=400)),
        ("work", {}, timedelta(0)),
    ],
)
def test_what_is_no_command_is_not_sent(op: str, args: dict[str, Any], life: timedelta) -> None:
    with pytest.raises(CodecError):
        request(BrokerConfig(port=1), FLEET, op, {"a": args}, Wishes(life=life))


# --- over a broker --------------------------------------------------------------------------------------------

NEEDS_MOSQUITTO = pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed")


class FakeDevice:
    """The wire side of a device: takes commands, and says what a test tells it to."""

    def __init__(self, config: BrokerConfig, name: str, *answers: OperationState) -> None:
        self.name = name
        self.answers = answers
        self.commands: list[bytes] = []
        self.up = threading.Event()
        self.link = MqttLink(config.model_copy(update={"session_expiry_s": 60}), f"device-{name}")
        self.link.start(self, [(topics.command_filter(FLEET, name), 1)])
        assert self.up.wait(20)

    def say(self, state: OperationState, command_id: str) -> None:
        body = codec.encode(event(state, self.name, command_id))
        self.link.publish(Message(topics.id_topic(FLEET, self.name, "e", "operation"), body))

    def on_message(self, message: Message) -> None:
        self.commands.append(message.payload)
        message.acknowledge()
        if message.payload:
            command = codec.decode(OperationCommand, message.payload)
            for state in self.answers:
                self.say(state, command.id)

    def on_connected(self, *, session_present: bool) -> None:
        body = codec.encode(Availability(state="online"))
        self.link.publish(Message(topics.device_topic(FLEET, self.name, "availability"), body, retain=True))
        self.up.set()

    def on_disconnected(self, reason: str) -> None: ...

    def on_published(self, token: int) -> None: ...


@pytest.fixture(scope="module")
def broker() -> Iterator[EmbeddedBroker]:
    with EmbeddedBroker(kind="mosquitto") as running:
        yield running


@pytest.fixture
def config(broker: EmbeddedBroker) -> BrokerConfig:
    return broker.client_config()


def kept(config: BrokerConfig, command_id: str) -> list[str]:
    """Devices for which the broker keeps the command."""
    found = collect(config, FLEET, "work", command_id, Wishes(timeout_s=0.0, keep=True))
    return [outcome.device for outcome in found]


@NEEDS_MOSQUITTO
def test_many_devices_are_asked_at_once_and_the_broker_keeps_nothing(config: BrokerConfig) -> None:
    devices = [FakeDevice(config, f"m{number}", "received", "running", "done") for number in range(8)]
    news: list[Outcome] = []
    args = {device.name: {"n": number} for number, device in enumerate(devices)}
    outcomes = request(
        config, FLEET, "work", args, Wishes(timeout_s=30, on_news=news.append), command_id="many"
    )
    assert [outcome.state for outcome in outcomes] == ["done"] * 8
    assert {outcome.presence for outcome in outcomes} == {"online"}
    for number, device in enumerate(devices):
        assert codec.decode(OperationCommand, device.commands[0]).args == {"n": number}
        assert wait_for(lambda device=device: device.commands[-1] == b"")
        device.link.stop()
    assert kept(config, "many") == []
    assert len([one for one in news if one.state == "done"]) == 8


@NEEDS_MOSQUITTO
def test_what_is_open_at_the_end_is_taken_back(config: BrokerConfig) -> None:
    silent = FakeDevice(config, "silent")
    done = FakeDevice(config, "done", "done")
    outcomes = request(
        config,
        FLEET,
        "work",
        {"silent": {}, "done": {}, "absent": {}},
        Wishes(timeout_s=1.0),
        command_id="back",
    )
    assert [(outcome.device, outcome.state, outcome.kept) for outcome in outcomes] == [
        ("silent", "pending", False),
        ("done", "done", False),
        ("absent", "pending", False),
    ]
    assert wait_for(lambda: silent.commands[-1] == b"")
    assert kept(config, "back") == []
    silent.link.stop()
    done.link.stop()


@NEEDS_MOSQUITTO
def test_one_that_runs_gets_to_say_what_becomes_of_it_when_it_is_taken_back(config: BrokerConfig) -> None:
    class Obeying(FakeDevice):
        def on_message(self, message: Message) -> None:
            super().on_message(message)
            if not message.payload:
                self.say("cancelled", "obey")

    device = Obeying(config, "obeying", "running")
    (outcome,) = request(config, FLEET, "work", {"obeying": {}}, Wishes(timeout_s=1.0), command_id="obey")
    assert outcome.state == "cancelled"
    device.link.stop()


@NEEDS_MOSQUITTO
def test_a_kept_command_finds_its_device_later_and_its_answer_is_collected(config: BrokerConfig) -> None:
    wishes = Wishes(timeout_s=0.2, keep=True, life=timedelta(minutes=5))
    (outcome,) = request(config, FLEET, "work", {"late": {"n": 1}}, wishes, command_id="later")
    assert (outcome.state, outcome.kept, outcome.open) == ("pending", True, True)
    assert kept(config, "later") == ["late"]
    device = FakeDevice(config, "late", "received", "done")
    assert wait_for(lambda: bool(device.commands))
    assert codec.decode(OperationCommand, device.commands[0]).args == {"n": 1}
    (outcome,) = collect(config, FLEET, "work", "later", Wishes(timeout_s=30, keep=True))
    assert outcome.state == "done"
    assert kept(config, "later") == []
    assert collect(config, FLEET, "work", "later", Wishes(timeout_s=30, keep=True)) == ()
    device.link.stop()


@NEEDS_MOSQUITTO
def test_a_kept_command_is_gone_when_its_life_is_over(config: BrokerConfig) -> None:
    wishes = Wishes(timeout_s=0.0, keep=True, life=timedelta(seconds=1))
    request(config, FLEET, "work", {"never": {}}, wishes, command_id="short")
    assert wait_for(lambda: kept(config, "short") == [], 20)


@NEEDS_MOSQUITTO
def test_hostile_answers_are_dropped(config: BrokerConfig) -> None:
    device = FakeDevice(config, "hostile", "done")
    topic = topics.id_topic(FLEET, "hostile", "e", "operation")
    for body in (
        b"",
        b"{",
        b"\xff",
        b"[" * 100_000,
        codec.encode(event("done", command_id="x")),
        b"x" * 280_000,
    ):
        device.link.publish(Message(topic, body, retain=True))
    (outcome,) = request(config, FLEET, "work", {"hostile": {}}, Wishes(timeout_s=30), command_id="host")
    assert outcome.state == "done"
    device.link.publish(Message(topic, b"", retain=True))
    device.link.stop()


@NEEDS_MOSQUITTO
def test_the_waiting_can_be_ended_early(config: BrokerConfig) -> None:
    stop = threading.Event()
    timer = threading.Timer(0.3, stop.set)
    timer.start()
    began = datetime.now(UTC)
    (outcome,) = request(
        config, FLEET, "work", {"absent": {}}, Wishes(timeout_s=60, stop=stop), command_id="stop"
    )
    assert outcome.open
    assert datetime.now(UTC) - began < timedelta(seconds=30)


def test_a_broker_that_is_not_there_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgeslm.fleet.broker_line.CONNECT_TIMEOUT_S", 0.3)
    with pytest.raises(LinkError, match="cannot be reached"):
        request(BrokerConfig(port=1), FLEET, "work", {"a": {}}, Wishes())
