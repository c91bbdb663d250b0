"""Rules beside a real agent over the in-process link, and the trace that they leave."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edgeslm import topics
from edgeslm.agent.description import AgentIdentity, availability
from edgeslm.agent.journal import Journal
from edgeslm.agent.rules.runner import RuleRunner
from edgeslm.agent.rules.trace import TRACE_NAME, TraceReader, TraceStore
from edgeslm.agent.service import Agent
from edgeslm.errors import JournalError
from edgeslm.link.inprocess import InProcessBroker, InProcessLink
from edgeslm.link.port import Message
from edgeslm.power.meter import EstimatedMeter
from edgeslm.power.port import Cause
from edgeslm.schema.board import PowerTable
from edgeslm.schema.rule_trace import FiringTrace, RulesStatus
from edgeslm.sim.model import EchoModel

FLEET, DEVICE = "home", "dev1"
RULES = """
allow: [out/+]
inputs:
  t: {topic: sensors/t}
  said: {topic: said, decode: text, qos: 1}
rules:
  - {name: warm, when: t > 20, fire: each, then: [{publish: {topic: out/fan, payload: "ON"}}, {event: "it is {{ t }}"}]}
  - name: ask
    prompt: "{{ said }}"
    answer: {type: string, pattern: "^lamp"}
    then: [{publish: {topic: out/lamp, payload: "{{ answer }}", schema: {type: string}}}]
"""


class Meter(EstimatedMeter):
    """Notes what energy is spent on."""

    def __init__(self) -> None:
        super().__init__(PowerTable(idle_w=2.0, core_load_w=1.0, source="made up for tests"))
        self.causes: list[Cause] = []

    def begin(self, cause: Cause) -> Any:
        self.causes.append(cause)
        return super().begin(cause)


class Home:
    """A broker, an agent with rules, and somebody who listens."""

    def __init__(self, directory: Path, text: str) -> None:
        self.state = directory
        self.file = directory / "rules" / "r.yaml"
        self.file.parent.mkdir()
        self.file.write_text(text)
        self.broker = InProcessBroker()
        self.model = EchoModel()
        self.meter = Meter()
        self.events: list[tuple[str, str]] = []
        self.heard: list[Message] = []
        self._changed = threading.Condition()
        self._listener = InProcessLink(self.broker, "listener")
        self._listener.start(self, [("out/#", 1), (f"{topics.ROOT}/#", 1)])
        self.runner = RuleRunner([self.file.parent], TraceStore(directory / TRACE_NAME), self._event)
        self.link = InProcessLink(self.broker, "agent", availability(FLEET, DEVICE, "offline"))
        self.agent = Agent(
            AgentIdentity(FLEET, DEVICE, "host"),
            {"echo": self.model},
            self.link,
            self.meter,
            Journal(directory / "agent.db"),
            rules=self.runner,
        )
        self.agent.start()
        assert self.agent.wait_connected(10)

    def _event(self, kind: str, detail: str, figures: dict[str, float | str]) -> None:
        with self._changed:
            self.events.append((kind, detail))
            self._changed.notify_all()

    def on_message(self, message: Message) -> None:
        message.acknowledge()
        with self._changed:
            self.heard.append(message)
            self._changed.notify_all()

    def on_connected(self, *, session_present: bool) -> None: ...

    def on_disconnected(self, reason: str) -> None: ...

    def on_published(self, token: int) -> None: ...

    def wait(self, is_met: Callable[[], bool], timeout_s: float = 20.0) -> None:
        until_s = time.monotonic() + timeout_s
        with self._changed:
            while not self._changed.wait_for(is_met, 0.02):  # not everything that is waited for tells us
                assert time.monotonic() < until_s, (self.events, [m.topic for m in self.heard])

    def came(self, topic: str) -> list[bytes]:
        return [message.payload for message in self.heard if message.topic == topic]

    def send(self, topic: str, body: Any, **properties: Any) -> None:
        payload = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.broker.publish(Message(topic, payload, **properties))

    def close(self) -> None:
        self.agent.stop()
        self._listener.stop()


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    made = Home(tmp_path, RULES)
    yield made
    made.close()


def test_a_reading_becomes_an_action_and_an_event(home):
    home.send("sensors/t", 25)
    home.wait(lambda: home.came("out/fan") == [b"ON"] and ("rule", "it is 25") in home.events)


def test_a_sentence_becomes_a_prompt_and_its_answer_an_action(home):
    home.send("said", b"lamp on")
    home.wait(lambda: home.came("out/lamp") == [b"lamp on"])
    assert [(cause.kind, cause.rule) for cause in home.meter.causes] == [("prompt", "ask")]
    assert home.agent.waiting == 0
    assert home.came(f"{topics.ROOT}/{FLEET}/{DEVICE}/result/x") == []


def test_every_firing_leaves_its_trace(home):
    home.send("said", b"lamp on")
    home.send("said", b"door on")
    home.wait(lambda: len(home.came("out/lamp")) == 1)
    until_s = time.monotonic() + 20
    reader = TraceReader(home.state / TRACE_NAME)
    while len(found := reader.latest(10)) < 2 and time.monotonic() < until_s:
        time.sleep(0.02)
    by_prompt = {trace.prompt: trace for _, trace in found}
    acted, refused = by_prompt["lamp on"], by_prompt["door on"]
    assert (acted.outcome, acted.answer, acted.inputs) == ("acted", "lamp on", {"said": "lamp on"})
    assert acted.receipt is not None
    assert acted.actions[0].to == "out/lamp"
    assert acted.took_ms > 0
    assert refused.outcome == "refused"
    assert reader.after(found[0][0])[0][0] == found[1][0]
    reader.close()


def test_a_waiting_prompt_of_high_priority_interrupts_a_rule(home):
    home.model.token_s = 0.05
    home.send("said", b"lamp " + b"slow " * 60)
    home.wait(lambda: bool(home.meter.causes))
    prompt = topics.device_topic(FLEET, DEVICE, "prompt")
    home.send(prompt, {"id": "alarm", "prompt": "fire", "priority": "high"})
    home.wait(lambda: bool(home.came(topics.id_topic(FLEET, DEVICE, "result", "alarm"))))
    assert home.came("out/lamp") == []
    home.model.token_s = 0.0
    home.wait(lambda: len(home.came("out/lamp")) == 1)
    assert [cause.rule for cause in home.meter.causes] == ["ask", None], "it went on where it was"


def test_an_error_in_a_file_leaves_the_old_rules_running_and_is_told(home):
    home.file.write_text(RULES.replace("when: t > 20", "when: tt > 20"))
    home.wait(lambda: any(kind == "rules" and "stay as they are" in text for kind, text in home.events))
    assert "Did you mean 't'?" in home.events[-1][1]
    home.send("sensors/t", 25)
    home.wait(lambda: home.came("out/fan") == [b"ON"])
    assert home.runner.status().error is not None
    home.file.write_text(RULES.replace("t > 20", "t > 30").replace("sensors/t", "sensors/new"))
    home.wait(lambda: home.events[-1] == ("rules", "2 rules of 1 files are in use"))
    assert home.runner.status().error is None
    home.send("sensors/t", 35)
    home.send("sensors/new", 35)
    home.wait(lambda: len(home.came("out/fan")) == 2)


def test_an_action_waits_for_the_broker_a_moment(home):
    home.wait(lambda: bool(home.came(topics.device_topic(FLEET, DEVICE, "info"))))
    home.runner.on_message(Message("sensors/t", b"1"))
    home.broker.cut()
    home.runner.on_message(Message("sensors/t", b"25"))
    home.wait(lambda: ("rule", "it is 25") in home.events)
    assert home.came("out/fan") == []
    home.broker.restore()
    home.wait(lambda: home.came("out/fan") == [b"ON"])


def test_prompts_of_other_devices_are_none_of_ours_though_a_rule_hears_them(tmp_path):
    text = RULES.replace("topic: said", "topic: edgeslm/v1/home/other/prompt/text")
    made = Home(tmp_path, text)
    try:
        made.send(topics.device_topic(FLEET, "other", "prompt/text"), b"lamp on")
        made.wait(lambda: made.came("out/lamp") == [b"lamp on"])
        assert made.came(topics.device_topic(FLEET, DEVICE, "result/text")) == []
        assert made.came(topics.device_topic(FLEET, "other", "result/text")) == []
    finally:
        made.close()


def test_a_wrong_file_from_the_start_keeps_the_agent_running(tmp_path):
    made = Home(tmp_path, "rules: 7\n")
    try:
        made.wait(lambda: any("no rules run" in text for _, text in made.events))
        made.send(topics.device_topic(FLEET, DEVICE, "prompt"), {"id": "a", "prompt": "hi"})
        made.wait(lambda: bool(made.came(topics.id_topic(FLEET, DEVICE, "result", "a"))))
    finally:
        made.close()


def test_tells_how_the_rules_are_when_asked(home):
    home.send("sensors/t", "no number")
    home.send("sensors/t", 25)
    home.wait(lambda: home.came("out/fan") == [b"ON"])
    reader = TraceReader(home.state / TRACE_NAME)
    found = reader.ask_status(20)
    assert found is not None
    assert {rule.name: rule.acted for rule in found.rules} == {"warm": 1, "ask": 0}
    assert [(item.value, item.faults) for item in found.inputs if item.name == "t"] == [(25, 1)]
    assert not list(home.state.glob("*.ask"))
    reader.close()


def test_a_status_that_nobody_answers_is_the_last_one(tmp_path):
    store = TraceStore(tmp_path / "t.db")
    store.tell(RulesStatus(at="then"))
    store.close()
    assert TraceReader(tmp_path / "t.db").ask_status(0.2) == RulesStatus(at="then")
    assert not list(tmp_path.glob("*.ask"))


def test_the_trace_stays_bounded(tmp_path):
    store = TraceStore(tmp_path / "t.db", max_firings=100)
    for number in range(30):
        trace = FiringTrace(at="", rule=f"r{number % 2}", outcome="acted", cause=str(number))
        store.add([trace] * 20)
    reader = TraceReader(tmp_path / "t.db")
    assert 100 <= len(reader.latest(1000)) <= 100 + 256
    assert {trace.rule for _, trace in reader.latest(1000, "r1")} == {"r1"}
    assert reader.latest(1)[0][1].cause == "29"
    assert reader.status() is None
    store.tell(RulesStatus(at="now"))
    assert reader.status() == RulesStatus(at="now")
    store.close()


def test_a_trace_that_is_not_there_is_told(tmp_path):
    with pytest.raises(JournalError, match="there is no"):
        TraceReader(tmp_path / "none.db")
