"""Prompts, answers and reports that are compressed where a peer asks for it, and only there."""

from __future__ import annotations

import gzip
import json
import time
import zlib
from pathlib import Path

import pytest
from pydantic import ValidationError

from edgeslm import codec
from edgeslm.agent.description import AgentIdentity, AgentLimits, availability
from edgeslm.agent.journal import Journal
from edgeslm.agent.service import Agent
from edgeslm.agent.spool import Spool, SpoolLimits
from edgeslm.link.broker import EmbeddedBroker, find_mosquitto
from edgeslm.link.client import RequestClient
from edgeslm.link.inprocess import InProcessBroker, InProcessLink
from edgeslm.link.mqtt import MqttLink
from edgeslm.link.port import Message
from edgeslm.power.meter import EstimatedMeter
from edgeslm.schema.board import PowerTable
from edgeslm.schema.config import AgentConfig, BrokerConfig
from edgeslm.schema.message import Options, PromptRequest, Result
from edgeslm.sim.model import EchoModel

METER = EstimatedMeter(PowerTable(idle_w=2.0, core_load_w=1.0, source="made up for tests"))
WORDS = "turn on the kitchen light and then the one in the hall " * 6


def body(request_id: str, prompt: str = WORDS, **more: object) -> bytes:
    return json.dumps({"id": request_id, "prompt": prompt, **more}).encode()


def test_a_compressed_prompt_is_answered_in_plain(world):
    world.start()
    world.client.ask(gzip.compress(body("a")))
    assert world.client.result("a")["text"] == WORDS.strip()


def test_an_answer_is_compressed_when_asked_and_the_same_answer_in_plain_when_not(world):
    world.start()
    world.client.ask(body("a", accept_encoding=["br", "gzip"]))
    packed = world.client.next(lambda m: m.topic.endswith("/result/a")).payload
    assert codec.is_compressed(packed)
    world.client.ask(body("a"), response_topic="reply/plain")
    plain = world.client.next(lambda m: m.topic == "reply/plain").payload
    assert json.loads(plain) == json.loads(gzip.decompress(packed))
    assert len(packed) < len(plain)
    assert world.model.answered == [WORDS], "run once"


def test_an_answer_that_would_not_become_shorter_comes_as_it_is(world):
    world.start()
    world.client.ask(body("a", "x", accept_encoding=["gzip"], model="gpt"))
    assert world.client.result("a")["error"]["code"] == "unknown_model"


def test_an_encoding_that_nobody_knows_is_passed_over(world):
    world.start()
    world.client.ask(body("a", accept_encoding=["br", "zstd"]))
    assert world.client.result("a")["text"] == WORDS.strip()


def test_a_compressed_text_is_answered_as_text(world):
    world.start()
    world.client.send("prompt/text", gzip.compress(WORDS.encode()))
    answer = world.client.next(lambda m: m.topic.endswith("/result/text")).payload
    assert answer.decode() == WORDS.strip()


def test_an_answer_waits_compressed_for_a_broker_that_is_away_and_for_the_next_run(world):
    world.model.token_s = 0.01
    agent = world.start()
    world.client.ask(body("a", accept_encoding=["gzip"]))
    time.sleep(0.1)
    world.broker.cut()
    time.sleep(1.5)
    world.stop(agent)
    world.broker.restore()
    world.start()
    assert world.model.answered == [WORDS], "by the first run"
    packed = world.client.next(lambda m: m.topic.endswith("/result/a")).payload
    assert codec.is_compressed(packed)
    assert codec.decode(Result, packed).text == WORDS.strip()


def bomb() -> bytes:
    packer = zlib.compressobj(9, wbits=31)
    return packer.compress(bytes(64 * 2**20)) + packer.flush()


@pytest.mark.parametrize(
    ("payload", "code"),
    [
        (bomb(), "too_large"),
        (gzip.compress(body("a"))[:-4], "bad_request"),
        (gzip.compress(body("a")) + b"!", "bad_request"),
        (b"\x1f\x8b" + body("a"), "bad_request"),
        (gzip.compress(gzip.compress(body("a"))), "bad_request"),
        (gzip.compress(b"{"), "bad_request"),
    ],
    ids=["bomb", "cut off", "a byte more", "not gzip", "twice", "not JSON"],
)
@pytest.mark.parametrize("channel", ["prompt", "prompt/text"])
def test_a_hostile_body_gets_an_error_and_the_next_prompt_an_answer(world, payload, code, channel):
    world.start()
    world.client.send(channel, payload, response_topic="reply/x")
    told = world.client.next(lambda m: m.topic == "reply/x").payload
    if channel == "prompt" or code == "too_large":
        assert json.loads(told)["error"]["code"] == code
    world.client.ask(body("next", "hello"))
    assert world.client.result("next")["text"] == "hello"


def test_a_fault_inside_a_compressed_prompt_is_told_under_its_id(world):
    world.start()
    world.client.ask(gzip.compress(body("a", temperature="hot")))
    assert world.client.result("a")["error"]["code"] == "bad_request"


def test_a_compressed_cancel_is_heard(world):
    world.model.token_s = 0.05
    world.start()
    world.client.ask(body("run", " ".join("x" * 60)))
    time.sleep(0.2)
    world.client.send("cancel", gzip.compress(b'{"id":"run"}'))
    assert world.client.result("run")["finish_reason"] == "cancelled"


@pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed")
@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_both_mqtt_versions_carry_compressed_prompts_and_answers(tmp_path: Path, protocol: str) -> None:
    with EmbeddedBroker(kind="mosquitto") as broker:
        config = BrokerConfig(port=broker.port, protocol=protocol)
        will = availability("home", "dev1", "offline")
        agent = Agent(
            AgentIdentity("home", "dev1", "host"),
            {"echo": EchoModel()},
            MqttLink(config, "dev1", will),
            METER,
            Journal(tmp_path / "agent.db"),
            AgentLimits(),
        )
        agent.start()
        try:
            assert agent.wait_connected(20)
            with RequestClient(config) as client:
                request = PromptRequest(id="a", prompt=WORDS, options=Options(), accept_encoding=("gzip",))
                topic = "edgeslm/v1/home/dev1/prompt"
                assert client.ask(topic, request, timeout_s=20, compresses=True).text == WORDS.strip()
        finally:
            agent.stop()


# --- reports -----------------------------------------------------------------------------------------------------


class Listener:
    def __init__(self, broker: InProcessBroker) -> None:
        self.heard: list[bytes] = []
        InProcessLink(broker, "listener").start(self, [("#", 1)])

    def on_message(self, message: Message) -> None:
        self.heard.append(message.payload)
        message.acknowledge()

    def on_connected(self, *, session_present: bool) -> None: ...

    def on_disconnected(self, reason: str) -> None: ...

    def on_published(self, token: int) -> None: ...


class Confirming:
    """Tells the spool what the link tells."""

    def __init__(self) -> None:
        self.spool: Spool | None = None

    def on_message(self, message: Message) -> None: ...

    def on_connected(self, *, session_present: bool) -> None:
        if self.spool is not None:
            self.spool.connected()

    def on_disconnected(self, reason: str) -> None: ...

    def on_published(self, token: int) -> None:
        if self.spool is not None:
            self.spool.published(token)


@pytest.mark.parametrize("compresses", [False, True])
def test_reports_leave_compressed_where_the_settings_say_so(tmp_path: Path, compresses: bool) -> None:
    broker = InProcessBroker()
    listener, events = Listener(broker), Confirming()
    link = InProcessLink(broker, "device")
    spool = events.spool = Spool(
        link, tmp_path / "spool.db", "boot", limits=SpoolLimits(per_s=1e6, burst=10**6), compresses=compresses
    )
    for number in range(20):
        spool.put(
            "m/power", json.dumps({"number": number, "points": [[1, 2.5]] * 60}).encode(), is_event=False
        )
    link.start(events, [])
    deadline_s = time.monotonic() + 10
    while (len(listener.heard) < 20 or spool.waiting) and time.monotonic() < deadline_s:
        spool.tick()
        time.sleep(0.01)
    assert [json.loads(codec.plain(heard))["number"] for heard in listener.heard] == list(range(20))
    assert {codec.is_compressed(heard) for heard in listener.heard} == {compresses}
    spool.close()


def test_compressed_reports_and_home_assistant_are_refused_together() -> None:
    settings = {"device": "dev1", "metrics": {"encoding": "gzip"}}
    assert AgentConfig.model_validate(settings).metrics.encoding == "gzip"
    with pytest.raises(ValidationError, match="Home Assistant cannot read compressed reports"):
        AgentConfig.model_validate({**settings, "homeassistant": {"enabled": True}})
    with pytest.raises(ValidationError, match="encoding"):
        AgentConfig.model_validate({"device": "dev1", "metrics": {"encoding": "br"}})
