"""A prompt of high priority is answered between two tokens of a longer one, which then goes on where it was."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgeslm.agent.description import AgentIdentity, availability
from edgeslm.agent.journal import Journal
from edgeslm.agent.queue import JobQueue
from edgeslm.agent.service import Agent
from edgeslm.cli.wiring import open_model
from edgeslm.errors import InferenceError
from edgeslm.link.inprocess import InProcessBroker, InProcessLink
from edgeslm.power.account import EnergyAccount
from edgeslm.power.meter import EstimatedMeter
from edgeslm.power.port import Cause, Throttling, Vitals
from edgeslm.runtime.model import LoadedModel
from edgeslm.schema.board import PowerTable
from edgeslm.schema.message import PromptRequest
from edgeslm.sim.model import EchoModel

from .conftest import DEVICE, FLEET, METER, Client, World
from .test_power_side import board, root, start, window  # noqa: F401

WORDS = " ".join(f"w{n}" for n in range(60))
TOKEN_S = 0.03
ALARM = {"id": "alarm", "prompt": "fire in the hall", "priority": "high"}


def run(world: World, **fields: Any) -> None:
    """Ask a long prompt, and wait until it is being answered."""
    world.client.ask({"id": "long", "prompt": WORDS, "stream": True, **fields})
    world.client.next(lambda m: m.topic.endswith("/stream/long"))


@pytest.fixture
def slow(world: World) -> World:
    world.model.token_s = TOKEN_S
    world.start()
    return world


def order(world: World) -> list[str]:
    """Ids of the results, in the order in which they came."""
    return [m.topic.rpartition("/")[2] for m in world.client.kept if "/result/" in m.topic]


@pytest.mark.parametrize("priority", ["normal", "low"])
def test_an_alarm_is_answered_at_once_and_the_long_answer_goes_on(slow: World, priority: str) -> None:
    run(slow, priority=priority)
    slow.client.ask(ALARM)
    alarm, long = slow.client.result("alarm"), slow.client.result("long")
    assert order(slow) == ["alarm", "long"]
    assert (alarm["text"], long["text"]) == (ALARM["prompt"], WORDS)
    assert alarm["receipt"]["queue_ms"] < 3 * TOKEN_S * 1e3
    deltas = [json.loads(m.payload) for m in slow.client.kept if m.topic.endswith("/stream/long")]
    assert [delta["seq"] for delta in deltas] == list(range(len(deltas)))
    assert "".join(delta["text"] for delta in deltas) == WORDS


def test_what_the_long_answer_took_is_without_the_alarm(slow: World) -> None:
    run(slow)
    slow.client.ask({**ALARM, "prompt": WORDS})
    alarm, long = slow.client.result("alarm")["receipt"], slow.client.result("long")["receipt"]
    alone_s = 60 * TOKEN_S
    alarm_ms = alarm["total_ms"] - alarm["queue_ms"]
    assert alarm_ms <= long["paused_ms"] < alarm_ms + 100
    assert long["total_ms"] > 2 * alone_s * 1e3
    assert long["decode_tps"] == pytest.approx(alarm["decode_tps"], rel=0.3)
    own_s = (long["total_ms"] - long["queue_ms"] - long["paused_ms"]) / 1e3
    for receipt, seconds in ((long, own_s), (alarm, alarm_ms / 1e3)):
        idle_j = receipt["energy_j"] - receipt["energy_net_j"]
        assert idle_j == pytest.approx(2.0 * seconds, rel=0.1), "2 W at rest, for its own time alone"


def test_alarms_do_not_interrupt_each_other_and_all_of_them_go_first(slow: World) -> None:
    run(slow)
    names = [f"alarm{n}" for n in range(4)]
    for name in names:
        slow.client.ask({**ALARM, "id": name, "prompt": f"{name} b c d"})
    assert slow.client.result("long")["text"] == WORDS
    assert order(slow) == [*names, "long"]


def test_a_long_alarm_keeps_nobody_from_being_cancelled_within_a_token(slow: World) -> None:
    run(slow)
    slow.client.ask({**ALARM, "prompt": WORDS, "stream": True})
    slow.client.next(lambda m: m.topic.endswith("/stream/alarm"))
    time.sleep(0.3)  # so long nothing is read at most, for the alarm's sake
    began_s = time.monotonic()
    slow.client.send("cancel", {"id": "long"})
    assert slow.client.result("long")["finish_reason"] == "cancelled"
    assert time.monotonic() - began_s < 4 * TOKEN_S
    slow.client.ask({"id": "next", "prompt": "after"})
    assert slow.client.result("alarm")["text"] == WORDS
    assert slow.client.result("next")["text"] == "after"
    assert order(slow) == ["long", "alarm", "next"]


def test_a_deadline_counts_on_while_an_alarm_is_answered(slow: World) -> None:
    run(slow, deadline_ms=500)
    slow.client.ask({**ALARM, "prompt": WORDS})
    long = slow.client.result("long")
    assert long["finish_reason"] == "deadline"
    assert WORDS.startswith(long["text"])
    assert 500 <= long["receipt"]["total_ms"] < 500 + 3 * TOKEN_S * 1e3
    assert slow.client.result("alarm")["text"] == WORDS


def test_an_alarm_itself_can_be_cancelled_and_be_late(slow: World) -> None:
    run(slow)
    slow.client.ask({**ALARM, "prompt": WORDS, "deadline_ms": 200})
    assert slow.client.result("alarm")["finish_reason"] == "deadline"
    slow.client.ask({**ALARM, "id": "second", "prompt": WORDS, "stream": True})
    slow.client.next(lambda m: m.topic.endswith("/stream/second"))
    slow.client.send("cancel", {"id": "second"})
    assert slow.client.result("second")["finish_reason"] == "cancelled"
    assert slow.client.result("long")["text"] == WORDS


def test_an_alarm_that_fails_harms_nobody(slow: World, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = EchoModel.answer

    def fail_at_fire(self: EchoModel, prompt: str, *args: Any, **more: Any) -> Any:
        if prompt == ALARM["prompt"]:
            raise RuntimeError("whatever")
        return answer(self, prompt, *args, **more)

    monkeypatch.setattr(EchoModel, "answer", fail_at_fire)
    run(slow)
    slow.client.ask(ALARM)
    assert slow.client.result("alarm")["error"]["code"] == "internal"
    slow.client.ask({**ALARM, "id": "nobody", "model": "none"})
    assert slow.client.result("nobody")["error"]["code"] == "unknown_model"
    assert slow.client.result("long")["text"] == WORDS


def test_without_memory_for_both_the_alarm_comes_next(slow: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: EchoModel) -> None:
        raise InferenceError("no memory for a second sequence")

    monkeypatch.setattr(EchoModel, "set_aside", refuse)
    run(slow)
    slow.client.ask({"id": "normal", "prompt": "later"})
    slow.client.ask(ALARM)
    for name in ("long", "alarm", "normal"):
        assert "text" in slow.client.result(name)
    assert order(slow) == ["long", "alarm", "normal"]


def test_a_full_queue_has_places_for_alarms_which_go_first(world: World) -> None:
    world.model.token_s = TOKEN_S
    world.start(max_queue=2)
    run(world)
    for number in range(4):
        world.client.ask({"id": f"n{number}", "prompt": "x"})
    world.client.ask(ALARM)
    assert world.client.result("alarm")["text"] == ALARM["prompt"]
    assert [world.client.result(f"n{n}")["error"]["code"] for n in (2, 3)] == ["busy", "busy"]
    assert world.client.result("long")["text"] == WORDS


def test_each_is_journalled_once_and_what_was_cut_off_runs_again(world: World, tmp_path: Path) -> None:
    world.model.token_s = TOKEN_S
    agent = world.start()
    run(world)
    world.client.ask({**ALARM, "prompt": WORDS, "stream": True})
    world.client.next(lambda m: m.topic.endswith("/stream/alarm"))
    # What a kill would leave now: both accepted, neither answered.
    journal = Journal(world.state_dir / "agent.db")
    assert sorted(prompt.request.id for prompt, _ in journal.unanswered()) == ["alarm", "long"]
    world.stop(agent)  # finishes what runs, and what that interrupts
    assert journal.unanswered() == []
    for name in ("alarm", "long"):  # the client hears them on a thread of its own
        world.client.result(name)
    assert sorted(order(world)) == ["alarm", "long"]
    for name in ("alarm", "long"):
        found = journal.find(name)
        assert found is not None
        assert json.loads(found.result or b"")["text"] == WORDS
    journal.close()


# --- with a model that computes -------------------------------------------------------------------------------

LONG = {"prompt": "turn on the kitchen lights", "regex": "[a-z ]{400}", "max_tokens": 120, "stream": True}
SAMPLED = {
    "prompt": "is the door open",
    "temperature": 0.9,
    "seed": 11,
    "regex": "[a-z ]{400}",
    "stream": True,
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return open_model("home-command", threads=1, store_dir=tmp_path_factory.mktemp("store"))


@pytest.fixture
def real(tmp_path: Path, model: LoadedModel) -> Iterator[Client]:
    broker = InProcessBroker()
    agent = Agent(
        AgentIdentity(FLEET, DEVICE, "host"),
        {"home-command": model, "echo": EchoModel()},
        InProcessLink(broker, "agent", availability(FLEET, DEVICE, "offline")),
        METER,
        Journal(tmp_path / "agent.db"),
    )
    agent.start()
    assert agent.wait_connected(5)
    client = Client(broker)
    yield client
    agent.stop()
    client.close()


@pytest.mark.parametrize("fields", [LONG, SAMPLED])
def test_the_text_is_the_one_that_it_would_have_been(real: Client, fields: dict[str, Any]) -> None:
    real.ask({"id": "alone", **fields})
    wanted = real.result("alone")
    command = {"prompt": "turn off the bedroom lamp"}
    real.ask({"id": "command", **command})
    wanted_command = real.result("command")
    real.ask({"id": "long", **fields})
    real.next(lambda m: m.topic.endswith("/stream/long"))
    for number in range(8):
        model = "echo" if number % 4 == 3 else "home-command"
        real.ask({"id": f"alarm{number}", **command, "model": model, "priority": "high"})
        alarm = real.result(f"alarm{number}")
        assert alarm["text"] == (command["prompt"] if model == "echo" else wanted_command["text"])
    long = real.result("long", 30)
    assert long["text"] == wanted["text"]
    assert long["receipt"]["completion_tokens"] == wanted["receipt"]["completion_tokens"]
    assert long["receipt"]["paused_ms"] > 0
    heard = [m.topic.rpartition("/")[2] for m in real.kept if "/result/" in m.topic]
    assert heard.index("alarm0") < heard.index("long")
    deltas = [json.loads(m.payload)["text"] for m in real.kept if m.topic.endswith("/stream/long")]
    assert "".join(deltas) == wanted["text"]


def test_an_alarm_is_right_though_the_one_it_interrupts_ends_meanwhile(real: Client) -> None:
    real.ask({"id": "alone", **LONG})
    wanted = real.result("alone", 30)
    took_ms = wanted["receipt"]["total_ms"]
    ended = set()
    for number in range(6):
        deadline_ms = max(1, int(took_ms * (number + 1) / 6))
        real.ask({"id": f"long{number}", **LONG, "deadline_ms": deadline_ms})
        real.ask({"id": f"alarm{number}", **LONG, "priority": "high"})
        assert real.result(f"alarm{number}", 30)["text"] == wanted["text"]
        long = real.result(f"long{number}", 30)
        ended.add(long.get("finish_reason") or long["error"]["code"])
    assert "deadline" in ended
    real.ask({"id": "again", **LONG})
    assert real.result("again", 30)["text"] == wanted["text"]


def test_with_a_budget_each_is_on_its_own_account(start: Any) -> None:  # noqa: F811
    agent, client = start(window(50.0, "60s"))
    client.ask({"id": "long", **LONG})
    client.next(lambda m: m.topic.endswith("/stream/long"))
    client.ask({"id": "alarm", "prompt": "turn off the bedroom lamp", "priority": "high"})
    alarm, long = client.result("alarm"), client.result("long", 30)
    heard = [m.topic.rpartition("/")[2] for m in client.kept if "/result/" in m.topic]
    assert heard == ["alarm", "long"]
    assert long["finish_reason"] in {"length", "schema"}
    assert long["receipt"]["paused_ms"] >= alarm["receipt"]["total_ms"] - alarm["receipt"]["queue_ms"]
    assert 0 < alarm["receipt"]["energy_net_j"] < long["receipt"]["energy_net_j"]
    assert agent.waiting == 0


def test_one_that_ends_while_an_alarm_is_computed_leaves_the_budget_to_that(start: Any) -> None:  # noqa: F811
    _, client = start(window(50.0, "60s"))
    client.ask({"id": "long", **LONG, "deadline_ms": 60})
    client.ask({"id": "alarm", **LONG, "priority": "high"})
    assert client.result("alarm", 30)["finish_reason"] in {"length", "schema"}
    long = client.result("long")
    assert long.get("finish_reason") in {"deadline", "schema", None}
    client.ask({"id": "next", "prompt": "turn off the bedroom lamp"})
    assert client.result("next")["finish_reason"] == "stop"


def test_an_alarm_comes_at_once_while_the_budget_pauses_another(start: Any) -> None:  # noqa: F811
    agent, client = start(window(50.0, "60s"))
    steward = agent._power.steward
    slowed = Vitals(at_s=time.monotonic(), throttling=Throttling(throttled=True))
    steward.governor.note_vitals(slowed)  # from now on it pauses for as long as it computes, 0.25 s at a time
    client.ask({"id": "long", **LONG})
    client.next(lambda m: m.topic.endswith("/stream/long"))
    waited_ms = []
    for number in range(4):
        time.sleep(0.06)
        client.ask({"id": f"alarm{number}", "prompt": "turn off the bedroom lamp", "priority": "high"})
        waited_ms.append(client.result(f"alarm{number}")["receipt"]["queue_ms"])
    assert client.result("long", 30)["receipt"]["paused_ms"] > 250
    assert sorted(waited_ms)[2] < 60


# --- its parts ------------------------------------------------------------------------------------------------


def spans() -> list[Any]:
    table = PowerTable(idle_w=2.0, core_load_w=1.0, source="made up for tests")
    return [EstimatedMeter(table), EnergyAccount(table)]


@pytest.mark.parametrize("meter", spans(), ids=["estimated", "accounted"])
def test_a_span_that_is_paused_is_charged_nothing(meter: Any) -> None:
    first = meter.begin(Cause("prompt", id="first"))
    first.pause()
    before_j = first.so_far().energy_j
    second = meter.begin(Cause("prompt", id="second"))
    time.sleep(0.1)
    assert first.so_far().energy_j == pytest.approx(before_j, abs=1e-3)
    assert second.end().energy_j == pytest.approx(0.2, rel=0.3)
    first.go_on()
    time.sleep(0.1)
    assert first.end().energy_j == pytest.approx(before_j + 0.2, rel=0.3)
    third = meter.begin(Cause("prompt", id="third"))
    third.pause()
    time.sleep(0.05)
    assert third.end().energy_j < 0.02


def test_the_queue_gives_out_alarms_alone_and_takes_one_back(world: World) -> None:
    queue = JobQueue()
    assert queue.pop_urgent().turn is None
    agent = world.start()
    make = agent._job
    jobs = [
        make(PromptRequest.model_validate({"id": name, "prompt": "x", "priority": priority}), [], 0.0)
        for name, priority in (("n", "normal"), ("a", "high"), ("b", "high"))
    ]
    for job in jobs:
        queue.push(job)
    turn = queue.pop_urgent().turn
    assert turn is not None
    assert turn.job.id == "a"
    queue.put_back(turn.job)
    assert queue.rival() is jobs[1]
    threading.Timer(0.05, lambda: (jobs[0].cancelled.set(), queue.wake())).start()
    began_s = time.monotonic()
    queue.pause(jobs[0], 5.0, jobs[1])
    assert time.monotonic() - began_s < 1
    queue.close()
    assert queue.pop_urgent().turn is None
    for job in jobs:
        agent._forget(job)
