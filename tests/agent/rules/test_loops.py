"""Circles through other devices: cut where messages tell their hops, found by their rhythm where they do not."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from paho.mqtt.client import CallbackAPIVersion, Client, MQTTMessage
from paho.mqtt.client import MQTTv5 as V5
from paho.mqtt.client import MQTTv311 as V311

from edgeslm.agent.description import AgentIdentity, availability
from edgeslm.agent.journal import Journal
from edgeslm.agent.rules.decisions import Heard, Send
from edgeslm.agent.rules.loops import (
    FOLLOW_S,
    HOLD_S,
    LEAST_CYCLES,
    MANY_CYCLES,
    MOST_SILENCES,
    PAUSE_S,
    ROW_S,
    TRUST_S,
    LoopWatch,
)
from edgeslm.agent.rules.runner import RuleRunner
from edgeslm.agent.rules.safety import MAX_HOPS
from edgeslm.agent.service import Agent
from edgeslm.link.broker import EmbeddedBroker, find_mosquitto
from edgeslm.link.mqtt import MqttLink
from edgeslm.power.meter import EstimatedMeter
from edgeslm.schema.board import PowerTable
from edgeslm.schema.config import BrokerConfig
from edgeslm.schema.rule_trace import FiringTrace
from edgeslm.sim.model import EchoModel

METER = EstimatedMeter(PowerTable(idle_w=2.0, core_load_w=1.0, source="made up for tests"))
ECHO = """
allow: [b/x]
inputs: {n: {topic: a/x}}
rules:
  - {name: there, fire: each, when: n > 0, rate: {most: 10000, over: 1m},
     then: [{publish: {topic: b/x, payload: "{{ n + 1 }}", schema: {type: number}}}]}
"""


# --- hops that messages tell -------------------------------------------------------------------------------------


def test_a_message_that_tells_its_hops_counts_on_and_ends_at_the_limit(bench: Any) -> None:
    made = bench(ECHO)
    for hops in range(MAX_HOPS + 2):
        made.now_s += 1
        made._keep(made.engine.hear(Heard("a/x", b"1", hops=hops), made.now))
    assert [send.hops for send in made.sends] == [1, 2, 3, 4, 5]
    last = made.traces[-1]
    assert (last.outcome, last.hops, last.detail) == (
        "refused", MAX_HOPS + 1, f"more than {MAX_HOPS} rules in a row",
    )  # fmt: skip


# --- the rhythm --------------------------------------------------------------------------------------------------


def circle(watch: LoopWatch, rounds: int, now_s: float, gap_s: float = 0.5) -> tuple[list[str], float]:
    """Each action is followed by one message that sets the rule off."""
    said = []
    for _ in range(rounds):
        verdict = watch.fired(now_s)
        said.append(verdict)
        if verdict != "go":
            break
        watch.acted(now_s)
        now_s += gap_s
    return said, now_s


def test_a_circle_is_found_after_three_silences_and_pauses() -> None:
    watch, now_s = LoopWatch(), 0.0
    for silence in range(MOST_SILENCES):
        began_s = now_s
        said, now_s = circle(watch, 500, now_s)
        assert said[-1] == "hold"
        assert ROW_S <= now_s - began_s + 0.5 <= ROW_S + 1
        now_s += HOLD_S
        assert watch.was_silent(now_s) == (silence == MOST_SILENCES - 1)
        watch.acted(now_s)
        now_s += 0.5
    assert watch.fired(now_s) == "paused"
    assert watch.fired(now_s + PAUSE_S - 1) == "paused"
    assert watch.fired(now_s + PAUSE_S) == "go"


@pytest.mark.parametrize(("gap_s", "rounds"), [(4.9, LEAST_CYCLES + 1), (0.001, MANY_CYCLES + 1)])
def test_a_row_is_long_in_time_or_in_number(gap_s: float, rounds: int) -> None:
    said, _ = circle(LoopWatch(), 5000, 0.0, gap_s)
    assert (said[-1], len(said)) == ("hold", rounds)


def test_a_program_that_asks_and_waits_for_the_action_is_let_alone_for_a_minute() -> None:
    said, _ = circle(LoopWatch(), 500, 0.0, 0.1)
    assert set(said) == {"go"}


def test_a_busy_sensor_is_trusted_after_one_look() -> None:
    watch = LoopWatch()
    said, now_s = circle(watch, 500, 0.0)
    assert said[-1] == "hold"
    watch.was_disturbed(now_s + 1)
    until_s = now_s + TRUST_S
    while now_s < until_s:
        assert watch.fired(now_s) == "go"
        watch.acted(now_s)
        now_s += 0.5


@pytest.mark.parametrize("gap_s", [FOLLOW_S + 0.1, 60.0])
def test_what_comes_slowly_is_never_looked_at(gap_s: float) -> None:
    said, _ = circle(LoopWatch(), 500, 0.0, gap_s)
    assert set(said) == {"go"}


def test_more_than_one_message_to_an_action_is_no_circle() -> None:
    watch, now_s = LoopWatch(), 0.0
    for _ in range(200):
        assert watch.fired(now_s) == "go"
        watch.acted(now_s)
        assert watch.fired(now_s + 0.1) == "go"
        assert watch.fired(now_s + 0.2) == "go"
        now_s += 0.5


def test_bursts_with_pauses_between_them_never_add_up() -> None:
    watch, now_s = LoopWatch(), 0.0
    for _ in range(50):
        said, now_s = circle(watch, 150, now_s)
        if said[-1] == "hold":
            assert not watch.was_silent(now_s + HOLD_S)
            watch.acted(now_s + HOLD_S)
        now_s += 60


@given(st.lists(st.tuples(st.sampled_from(["fire", "act", "wait"]), st.floats(0, 20)), max_size=200))
def test_whatever_comes_a_rule_is_never_paused_without_a_hold_before(steps: list[tuple[str, float]]) -> None:
    watch, now_s, holds = LoopWatch(), 0.0, 0
    for what, wait_s in steps:
        now_s += wait_s
        if what == "act":
            watch.acted(now_s)
        elif what == "fire":
            verdict = watch.fired(now_s)
            assert verdict != "paused"
            holds += verdict == "hold"
            if verdict == "hold":
                watch.was_disturbed(now_s)


# --- in the engine -----------------------------------------------------------------------------------------------


def go_round(made: Any, rounds: int) -> int:
    """A program of somebody else answers each action with a message of its own; how many it sent."""
    sent = 0
    for _ in range(rounds):
        before = len(made.sends)
        made.now_s += 0.2
        made.hear("a/x", 1 + sent)
        sent += 1
        if len(made.sends) == before:
            return sent
    return sent


def test_a_circle_through_somebody_elses_program_ends_with_trace_and_event(bench: Any) -> None:
    made = bench(ECHO)
    for _ in range(MOST_SILENCES):
        go_round(made, 500)
        made.wait(HOLD_S + 0.1)
    assert len(made.sends) <= MOST_SILENCES * (ROW_S / 0.2 + 2)
    last = made.traces[-1]
    assert last.outcome == "refused"
    assert "part of a circle through other devices" in last.detail
    assert made.tells[-1].detail.startswith("paused for 10 minutes: part of a circle")
    made.hear("a/x", 7)
    assert made.traces[-1].outcome == "skipped"
    assert "paused" in made.traces[-1].detail
    (status,) = made.engine.rule_statuses()
    assert status.last.startswith("skipped: paused")
    made.wait(PAUSE_S)
    sends = len(made.sends)
    made.hear("a/x", 7)
    assert len(made.sends) == sends + 1


@pytest.mark.parametrize(
    "then",
    ["[{event: it is so}]", "[{call: {rule: tell}}]"],
    ids=["events", "calls"],
)
def test_a_circle_through_events_or_calls_is_found_as_well(bench: Any, then: str) -> None:
    made = bench(
        "allow: [b/x]\ninputs: {n: {topic: a/x}}\nrules:\n"
        f"  - {{name: there, fire: each, when: n > 0, rate: {{most: 10000, over: 1m}}, then: {then}}}\n"
        "  - {name: tell, on: [], rate: {most: 10000, over: 1m}, then: [{publish: {topic: b/x, payload: x}}]}\n"
    )
    for _ in range(MOST_SILENCES):
        for number in range(1000):
            made.now_s += 0.2
            before = len(made.traces)
            made.hear("a/x", number + 1)
            if len(made.traces) == before:
                break
        made.wait(HOLD_S + 0.1)
    assert made.traces[-1].rule == "there"
    assert "part of a circle" in made.traces[-1].detail


def test_a_sensor_that_speaks_each_second_loses_nothing_and_waits_once_at_most(bench: Any) -> None:
    made = bench(ECHO)
    for number in range(1, 200):
        made.hear("a/x", number)
        made.wait(1.0)
    said = [json.loads(send.payload) - 1 for send in made.sends]
    (held,) = set(range(1, 200)) - set(said)
    assert said == [number for number in range(1, 200) if number != held]
    assert held > ROW_S
    (skipped,) = [trace for trace in made.traces if trace.outcome == "skipped"]
    assert skipped.detail == "a newer firing took its place"


def test_a_burst_that_ends_while_a_firing_is_held_still_has_its_last_word(bench: Any) -> None:
    made = bench(ECHO)
    last = go_round(made, 500)
    assert len(made.sends) == last - 1
    made.wait(HOLD_S)
    assert json.loads(made.sends[-1].payload) == last + 1
    assert isinstance(made.sends[-1], Send)


def test_a_firing_that_is_held_acts_only_while_its_condition_holds(bench: Any) -> None:
    made = bench(ECHO)
    last = go_round(made, 500)
    made.hear("a/x", 0)
    made.wait(HOLD_S)
    assert len(made.sends) == last - 1
    assert made.traces[-1].detail == "the condition does not hold any more"


def test_new_files_do_not_forget_a_circle(bench: Any) -> None:
    made = bench(ECHO)
    for _ in range(MOST_SILENCES):
        go_round(made, 500)
        made.wait(HOLD_S + 0.1)
    made.change(ECHO + "  - {name: other, every: 1h, then: [{event: e}]}\n")
    sends = len(made.sends)
    made.hear("a/x", 9)
    assert len(made.sends) == sends


# --- two real agents over a real broker --------------------------------------------------------------------------

PLAYER = """
allow: [{out}]
inputs: {{n: {{topic: {heard}}}}}
rules:
  - name: {name}
    fire: each
    when: n >= 0
    rate: {{most: 10000, over: 1m}}
    then: [{{publish: {{topic: {out}, payload: "{{{{ n + 1 }}}}", schema: {{type: number}}}}}}]
"""


class Player:
    """An agent whose one rule answers each number with the next one."""

    def __init__(self, directory: Path, config: BrokerConfig, name: str, heard: str, out: str) -> None:
        directory.mkdir()
        file = directory / "r.yaml"
        file.write_text(PLAYER.format(name=name, heard=heard, out=out))
        self.traces: list[FiringTrace] = []
        self.events: list[str] = []
        self.runner = RuleRunner(
            [file],
            None,
            lambda kind, detail, figures: self.events.append(detail),
            on_trace=self.traces.append,
        )
        self.agent = Agent(
            AgentIdentity("home", name, "host"),
            {"echo": EchoModel()},
            MqttLink(config, name, availability("home", name, "offline")),
            METER,
            Journal(directory / "agent.db"),
            rules=self.runner,
        )
        self.agent.start()
        assert self.agent.wait_connected(20)

    @property
    def acted(self) -> int:
        return sum(trace.outcome == "acted" for trace in list(self.traces))


def wait(is_met: Callable[[], object], timeout_s: float = 20.0) -> None:
    until_s = time.monotonic() + timeout_s
    while not is_met():
        assert time.monotonic() < until_s
        time.sleep(0.02)


needs_mosquitto = pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed")


@pytest.fixture
def broker() -> Iterator[EmbeddedBroker]:
    with EmbeddedBroker(kind="mosquitto") as made:
        yield made


def serve(broker: EmbeddedBroker, version: int = V5) -> Client:
    client = Client(CallbackAPIVersion.VERSION2, protocol=version)
    client.connect("127.0.0.1", broker.port)
    client.loop_start()
    return client


@needs_mosquitto
def test_two_agents_that_play_ping_pong_end_after_the_limit_and_say_so(
    broker: EmbeddedBroker, tmp_path: Path
) -> None:
    config = BrokerConfig(port=broker.port)
    ping = Player(tmp_path / "ping", config, "ping", "ball/a", "ball/b")
    pong = Player(tmp_path / "pong", config, "pong", "ball/b", "ball/a")
    server = serve(broker)
    try:
        server.publish("ball/a", b"0", 1)
        wait(lambda: any(trace.outcome == "refused" for trace in ping.traces + pong.traces))
        time.sleep(0.5)
        assert ping.acted + pong.acted == MAX_HOPS + 1
        refused = [trace for trace in ping.traces + pong.traces if trace.outcome == "refused"]
        assert [(trace.hops, trace.detail) for trace in refused] == [
            (MAX_HOPS + 1, f"more than {MAX_HOPS} rules in a row")
        ]
        server.publish("ball/a", b"0", 1)  # the next ball is played as far
        wait(lambda: ping.acted + pong.acted == 2 * (MAX_HOPS + 1))
    finally:
        ping.agent.stop()
        pong.agent.stop()
        server.disconnect()
        server.loop_stop()


class Middle:
    """Somebody else's program between two topics, which knows nothing of hops."""

    def __init__(self, broker: EmbeddedBroker, version: int) -> None:
        self.passed = 0
        self._lock = threading.Lock()
        self._client = Client(CallbackAPIVersion.VERSION2, protocol=version)
        self._client.on_message = self._pass_on
        self._client.connect("127.0.0.1", broker.port)
        self._client.subscribe("ball/b", 1)
        self._client.loop_start()

    def _pass_on(self, client: Client, _data: object, message: MQTTMessage) -> None:
        with self._lock:
            self.passed += 1
        client.publish("ball/a", str(int(message.payload) + 1).encode(), 1)

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


@needs_mosquitto
@pytest.mark.parametrize("version", [V311, V5], ids=["3.1.1", "5"])
def test_a_circle_through_a_program_that_drops_the_hops_is_found_by_its_rhythm(
    broker: EmbeddedBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: int
) -> None:
    monkeypatch.setattr("edgeslm.agent.rules.loops.ROW_S", 0.0)
    monkeypatch.setattr("edgeslm.agent.rules.engine.HOLD_S", 0.5)
    ping = Player(tmp_path / "ping", BrokerConfig(port=broker.port), "ping", "ball/a", "ball/b")
    middle, server = Middle(broker, version), serve(broker)
    try:
        server.publish("ball/a", b"0", 1)
        wait(lambda: ping.events)
        played = middle.passed
        assert played == ping.acted
        # Two firings that were held go on, so that the row is played three times.
        assert MOST_SILENCES * LEAST_CYCLES <= played <= MOST_SILENCES * (LEAST_CYCLES + 1)
        assert ping.events[0].startswith("paused for 10 minutes: part of a circle")
        assert ping.traces[-1].outcome == "refused"
        time.sleep(1.0)
        assert middle.passed == played, "it is over"
    finally:
        ping.agent.stop()
        middle.close()
        server.disconnect()
        server.loop_stop()


@needs_mosquitto
def test_agents_that_speak_3_1_1_to_each_other_end_by_the_rhythm_as_well(
    broker: EmbeddedBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgeslm.agent.rules.loops.ROW_S", 0.0)
    monkeypatch.setattr("edgeslm.agent.rules.engine.HOLD_S", 0.5)
    config = BrokerConfig(port=broker.port, protocol="3.1.1")
    ping = Player(tmp_path / "ping", config, "ping", "ball/a", "ball/b")
    pong = Player(tmp_path / "pong", config, "pong", "ball/b", "ball/a")
    server = serve(broker, V311)
    try:
        server.publish("ball/a", b"0", 1)
        wait(lambda: ping.events or pong.events, 40)
        time.sleep(1.0)
        played = ping.acted + pong.acted
        time.sleep(1.0)
        assert ping.acted + pong.acted == played
    finally:
        ping.agent.stop()
        pong.agent.stop()
        server.disconnect()
        server.loop_stop()
