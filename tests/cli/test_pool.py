"""A gateway between requesters and real agents, in memory and as a process at a real broker."""

from __future__ import annotations

import gzip
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from edgeslm import codec, topics
from edgeslm.agent.description import AgentIdentity, availability
from edgeslm.agent.journal import Journal
from edgeslm.agent.service import Agent
from edgeslm.cli.pool import pool
from edgeslm.errors import UsageError
from edgeslm.link.broker import EmbeddedBroker, find_mosquitto
from edgeslm.link.client import RequestClient
from edgeslm.link.inprocess import InProcessBroker, InProcessLink
from edgeslm.link.mqtt import MqttLink
from edgeslm.link.pool_gateway import PoolGateway, open_gateway
from edgeslm.link.port import Message, SubscribingLink
from edgeslm.power.meter import EstimatedMeter
from edgeslm.schema.board import PowerTable
from edgeslm.schema.config import BrokerConfig
from edgeslm.schema.message import Options, PromptRequest, Result
from edgeslm.sim.model import EchoModel

FLEET, MODEL = "home", "echo"
TOPIC = topics.pool_topic(FLEET, MODEL)
METER = EstimatedMeter(PowerTable(idle_w=2.0, core_load_w=1.0, source="made up for tests"))


def start_agent(
    device: str, link: SubscribingLink, state_dir: Path, token_s: float = 0.0
) -> tuple[Agent, EchoModel]:
    model = EchoModel(token_s=token_s)
    identity = AgentIdentity(FLEET, device, "host", False)
    agent = Agent(identity, {MODEL: model}, link, METER, Journal(state_dir / device / "agent.db"))
    agent.start()
    assert agent.wait_connected(20)
    return agent, model


def wait_for(is_met: Callable[[], bool]) -> None:
    until_s = time.monotonic() + 30
    while not is_met():
        assert time.monotonic() < until_s
        time.sleep(0.01)


class World:
    """A broker in memory, agents, a gateway that can be killed."""

    def __init__(self, state_dir: Path) -> None:
        self.state_dir = state_dir
        self.broker = InProcessBroker()
        self.links: dict[str, InProcessLink] = {}
        self.models: dict[str, EchoModel] = {}
        self.agents: dict[str, Agent] = {}
        self.ready: list[str] = []
        self.client = RequestClient(link=InProcessLink(self.broker, "client", session_expiry_s=0)).connect()
        self._lives = 0

    def add(self, device: str, token_s: float = 0.0) -> None:
        self.links[device] = InProcessLink(self.broker, device, availability(FLEET, device, "offline"))
        self.agents[device], self.models[device] = start_agent(
            device, self.links[device], self.state_dir, token_s
        )

    def serve(self) -> None:
        self._lives += 1
        self.asking = InProcessLink(self.broker, "gateway")
        self.devices = InProcessLink(self.broker, f"gateway-devices-{self._lives}", session_expiry_s=0)
        self.stopped = threading.Event()
        gateway = PoolGateway(FLEET, MODEL, self.asking, self.devices)
        self.thread = threading.Thread(target=gateway.run, args=(self.stopped, self._note_ready), daemon=True)
        self.thread.start()
        wait_for(lambda: self.ready == sorted(self.agents))

    def _note_ready(self, ready: list[str]) -> None:
        self.ready = ready

    def kill_gateway(self) -> None:
        self.asking.drop()
        self.devices.drop()
        self.stopped.set()
        self.thread.join(10)
        self.ready = []

    def ask(self, request_id: str, prompt: str = "one two", **options: object) -> Result:
        request = PromptRequest(id=request_id, prompt=prompt, options=Options.model_validate(options))
        return self.client.ask(TOPIC, request, timeout_s=40)

    def close(self) -> None:
        self.stopped.set()
        self.thread.join(10)
        self.client.close()
        for device, agent in self.agents.items():
            self.models[device].token_s = 0.0
            agent.stop()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    yield world
    world.close()


def test_work_is_shared_and_answered(world: World) -> None:
    world.add("a")
    world.add("b")
    world.serve()
    results = [world.ask(f"r{number}", f"prompt {number}") for number in range(20)]
    assert [result.text for result in results] == [f"prompt {number}" for number in range(20)]


def test_a_device_that_dies_with_a_prompt_is_replaced_before_the_deadline(world: World) -> None:
    world.add("a", token_s=4.0)
    world.add("b")
    world.serve()
    found: list[Result] = []
    asking = threading.Thread(target=lambda: found.append(world.ask("r1", deadline_ms=30_000)))
    asking.start()
    wait_for(lambda: world.agents["a"].waiting == 1)
    world.links["a"].drop()
    asking.join(30)
    assert [(result.device, result.text) for result in found] == [("b", "one two")]


def test_a_device_that_hangs_is_replaced_at_half_of_the_deadline(world: World) -> None:
    world.add("a", token_s=4.0)
    world.add("b")
    world.serve()
    began_s = time.monotonic()
    result = world.ask("r1", deadline_ms=4000)
    assert (result.device, result.text) == ("b", "one two")
    assert 1.9 < time.monotonic() - began_s < 4
    wait_for(lambda: world.agents["a"].waiting == 0)  # what the hanging one holds is taken back


def test_an_id_is_answered_once_and_the_same_again(world: World) -> None:
    world.add("a")
    world.add("b")
    world.serve()
    first, second = world.ask("r1"), world.ask("r1")
    assert first == second
    assert len(world.models["a"].answered) + len(world.models["b"].answered) == 1
    other = world.ask("r1", "another prompt")
    assert other.error is not None
    assert other.error.code == "bad_request"


def test_each_requester_gets_the_form_of_answer_that_it_takes(world: World) -> None:
    world.add("a")
    world.serve()
    replies: dict[str, bytes] = {}

    class Ear:
        def on_message(self, message: Message) -> None:
            replies[message.topic] = message.payload
            message.acknowledge()

        def on_connected(self, *, session_present: bool) -> None: ...

        def on_disconnected(self, reason: str) -> None: ...

        def on_published(self, token: int) -> None: ...

    link = InProcessLink(world.broker, "two")
    link.start(Ear(), [("reply/+", 1)])
    wait_for(lambda: link.publish(Message("x", b"")) is not None)
    words = "turn on the kitchen light " * 20
    for topic, wish in (("reply/gzip", ("gzip",)), ("reply/plain", ()), ("reply/again", ("gzip",))):
        request = PromptRequest(id="r1", prompt=words, accept_encoding=wish)
        link.publish(Message(TOPIC, codec.compress(codec.encode(request)), response_topic=topic))
    wait_for(lambda: len(replies) == 3)
    assert {topic: codec.is_compressed(body) for topic, body in replies.items()} == {
        "reply/gzip": True,
        "reply/plain": False,
        "reply/again": True,
    }
    assert {codec.decode(Result, body).text for body in replies.values()} == {words.strip()}
    assert len(world.models["a"].answered) == 1
    link.stop()


def test_a_gateway_that_dies_finds_its_prompts_again(world: World) -> None:
    world.add("a", token_s=0.5)
    world.serve()
    found: list[Result] = []
    asking = [
        threading.Thread(target=lambda n=number: found.append(world.ask(f"r{n}"))) for number in range(4)
    ]
    for thread in asking:
        thread.start()
    wait_for(lambda: world.agents["a"].waiting > 0)
    world.kill_gateway()
    world.serve()
    for thread in asking:
        thread.join(40)
    assert sorted(result.id for result in found) == ["r0", "r1", "r2", "r3"]
    assert all(result.text == "one two" for result in found)
    assert len(world.models["a"].answered) == 4, "each was computed once"


def test_bad_prompts_are_answered_and_end_nothing(world: World) -> None:
    world.add("a")
    world.serve()
    replies: list[bytes] = []

    class Ear:
        def on_message(self, message: Message) -> None:
            replies.append(message.payload)
            message.acknowledge()

        def on_connected(self, *, session_present: bool) -> None: ...

        def on_disconnected(self, reason: str) -> None: ...

        def on_published(self, token: int) -> None: ...

    link = InProcessLink(world.broker, "hostile")
    link.start(Ear(), [("bad/reply", 1)])
    wait_for(lambda: link.publish(Message("x", b"")) is not None)
    bodies = [
        b"",
        b"[" * 5000,
        b"\xff",
        b'{"id":"x"}',
        b"x" * 300_000,
        gzip.compress(bytes(8 * 2**20)),
        gzip.compress(b'{"id":"z","prompt":"p"}')[:-2],
        b'{"id":"y","prompt":"p","model":"z"}',
        b'{"id":"s","prompt":"p","session":"s"}',
    ]
    for body in bodies:
        link.publish(Message(TOPIC, body, response_topic="bad/reply"))
        link.publish(Message(TOPIC, body, response_topic=topics.device_topic(FLEET, "a", "prompt")))
        link.publish(Message(TOPIC, body))
    wait_for(lambda: len(replies) == len(bodies))
    assert {codec.decode(Result, reply).device for reply in replies} == {"pool"}
    link.stop()
    assert world.ask("after").text == "one two"


# --- the process -----------------------------------------------------------------------------------------------


def test_refuses_what_cannot_work_with_a_sentence() -> None:
    for flags, told in ((["--model", "a/b"], "not an identifier"), (["--model", "m", "--port", "0"], "port")):
        done = CliRunner().invoke(pool, ["serve", *flags])
        assert done.exit_code in {1, 2}
        assert told in done.output
    with pytest.raises(UsageError, match=r"3\.1\.1"):
        open_gateway(FLEET, MODEL, BrokerConfig(protocol="3.1.1"), patience_s=1)


@pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed")
def test_serves_at_a_real_broker_through_a_restart_of_it_and_says_what_was_done(tmp_path: Path) -> None:
    (tmp_path / "broker").mkdir()
    with EmbeddedBroker(kind="mosquitto", persistence_dir=tmp_path / "broker") as broker:
        config = broker.client_config()
        agents = [
            start_agent(name, MqttLink(config, name, availability(FLEET, name, "offline")), tmp_path)[0]
            for name in ("a", "b")
        ]
        command = [sys.executable, "-m", "edgeslm", "pool", "serve", "--model", MODEL, "--json"]
        with (tmp_path / "log").open("wb") as log:
            gateway = subprocess.Popen(
                [*command, "--port", str(broker.port)], stdout=subprocess.PIPE, stderr=log, text=True
            )
        try:
            wait_for(lambda: "2 ready: a, b" in (tmp_path / "log").read_text())
            with RequestClient(config) as client:
                for number in range(10):
                    request = PromptRequest(id=f"r{number}", prompt=f"prompt {number}")
                    if number == 5:
                        broker.kill()
                        broker.start()
                    assert client.ask(TOPIC, request, timeout_s=60).text == f"prompt {number}"
            gateway.send_signal(signal.SIGTERM)
            out, _ = gateway.communicate(timeout=60)
        finally:
            gateway.kill()
            gateway.wait()
            for agent in agents:
                agent.stop()
    assert gateway.returncode == 0
    report = json.loads(out)
    assert (report["answered"], report["failed"]) == (10, 0)
    assert "Traceback" not in (tmp_path / "log").read_text()
