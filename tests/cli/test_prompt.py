"""``edgeslm prompt`` at a real broker, with an agent that echoes."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from paho.mqtt.client import CallbackAPIVersion, Client, MQTTMessage

from edgeslm import codec
from edgeslm.agent.description import AgentIdentity, availability
from edgeslm.agent.journal import Journal
from edgeslm.agent.service import Agent
from edgeslm.cli.prompt import prompt
from edgeslm.link.broker import EmbeddedBroker, find_mosquitto
from edgeslm.link.mqtt import MqttLink
from edgeslm.power.meter import EstimatedMeter
from edgeslm.schema.board import PowerTable
from edgeslm.schema.config import BrokerConfig
from edgeslm.sim.model import EchoModel

pytestmark = pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed")
FLEET, DEVICE = "home", "dev1"
METER = EstimatedMeter(PowerTable(idle_w=2.0, core_load_w=1.0, source="made up for tests"))
WORDS = "turn on the kitchen light and then the one in the hall " * 6


class World:
    """A broker, an agent, and an ear for every message that passes."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.bodies: dict[str, bytes] = {}
        self._heard = threading.Condition()
        self._ear = Client(CallbackAPIVersion.VERSION2)
        self._ear.on_message = self._hear
        self._ear.on_connect = lambda client, *_: client.subscribe("#", 1)
        self._ear.connect("127.0.0.1", port)
        self._ear.loop_start()

    def _hear(self, _client: Client, _data: object, message: MQTTMessage) -> None:
        with self._heard:
            self.bodies[message.topic.split("/")[-1]] = message.payload
            self._heard.notify_all()

    def body(self, end: str) -> bytes:
        with self._heard:
            assert self._heard.wait_for(lambda: end in self.bodies, 10)
            return self.bodies[end]

    def ask(self, *arguments: str) -> Result:
        where = ["--host", "127.0.0.1", "--port", str(self.port), "--fleet", FLEET]
        return CliRunner().invoke(prompt, [*where, *arguments])

    def close(self) -> None:
        self._ear.disconnect()
        self._ear.loop_stop()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with EmbeddedBroker(kind="mosquitto") as broker:
        link = MqttLink(BrokerConfig(port=broker.port), DEVICE, availability(FLEET, DEVICE, "offline"))
        identity = AgentIdentity(FLEET, DEVICE, "host")
        agent = Agent(identity, {"echo": EchoModel()}, link, METER, Journal(tmp_path / "agent.db"))
        agent.start()
        made = World(broker.port)
        try:
            assert agent.wait_connected(20)
            yield made
        finally:
            made.close()
            agent.stop()


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_with_gzip_prompt_and_answer_cross_the_wire_compressed(world: World, protocol: str) -> None:
    done = world.ask("--device", DEVICE, "--protocol", protocol, "--gzip", "--json", WORDS)
    assert done.exit_code == 0, (done.output, done.exception)
    said = json.loads(done.stdout)
    assert said["text"] == WORDS.strip()
    sent = world.body("prompt")
    answered = world.body("result" if protocol == "5" else said["id"])
    assert codec.is_compressed(sent)
    assert codec.is_compressed(answered)
    assert len(answered) < len(codec.plain(answered)) / 2


def test_without_it_nothing_is_compressed(world: World) -> None:
    done = world.ask("--device", DEVICE, "--json", WORDS)
    assert json.loads(done.stdout)["text"] == WORDS.strip()
    assert not codec.is_compressed(world.body("prompt"))
    assert not codec.is_compressed(world.body("result"))


def test_the_only_device_online_is_asked(world: World) -> None:
    world.body("availability")
    done = world.ask("--no-stream", "hello there")
    assert (done.exit_code, done.stdout) == (0, "hello there\n")


def test_a_pool_and_a_device_exclude_each_other(world: World) -> None:
    done = world.ask("--device", DEVICE, "--pool", "echo", "hello")
    assert done.exit_code == 2


def receipts(text: str) -> list[dict[str, object]]:
    return [json.loads(line)["receipt"] for line in text.splitlines()]


def test_a_session_goes_on_from_one_call_to_the_next(world: World) -> None:
    for _ in range(2):
        done = world.ask("--device", DEVICE, "--session", "tea", "--json", "hello there")
    assert receipts(done.stdout)[0]["session_turns"] == 1
    assert json.loads(world.body("prompt"))["options"]["session"] == "tea"


def test_each_line_of_a_batch_is_a_turn(world: World, tmp_path: Path) -> None:
    done = world.ask("--device", DEVICE, "--session", "lines", "--batch", "--json", "one\ntwo\nthree")
    assert [receipt["session_turns"] for receipt in receipts(done.stdout)] == [0, 1, 2]


def test_what_is_too_long_is_an_error_or_slides(world: World) -> None:
    long = "word " * 120
    done = world.ask("--device", DEVICE, long)
    assert done.exit_code == 1
    assert "too_large: prompt of 120 tokens, the model takes 100" in done.stderr
    done = world.ask("--device", DEVICE, "--overflow", "slide", "--json", long)
    assert receipts(done.stdout)[0]["dropped_chars"] == 100


def test_an_option_that_nobody_sets_does_not_cross_the_wire(world: World) -> None:
    world.ask("--device", DEVICE, "hello")
    assert not {"session", "overflow"} & json.loads(world.body("prompt"))["options"].keys()


def test_a_session_does_not_go_with_a_pool(world: World) -> None:
    done = world.ask("--pool", "echo", "--session", "tea", "hello")
    assert done.exit_code == 2
    assert "exclude each other" in done.stderr


def test_a_pool_is_asked(world: World) -> None:
    done = world.ask("--pool", "echo", "--gzip", "hello")
    assert (done.exit_code, done.stdout) == (0, "hello\n")
