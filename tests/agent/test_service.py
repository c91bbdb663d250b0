"""The agent as its clients see it."""

import json
import time

import pytest

from edgeslm.agent.journal import Journal
from edgeslm.errors import JournalError


def test_answers_a_prompt_with_a_receipt(world):
    world.start()
    world.client.ask({"id": "a", "prompt": "hello there"})
    result = world.client.result("a")
    assert result["text"] == "hello there"
    assert result["finish_reason"] == "stop"
    assert result["device"] == "dev1"
    receipt = result["receipt"]
    assert receipt["meter"] == "estimated"
    assert receipt["completion_tokens"] == 2
    assert receipt["energy_j"] >= receipt["energy_net_j"] >= 0
    assert receipt["total_ms"] >= receipt["queue_ms"] >= 0


def test_response_topic_and_correlation_are_honoured_and_the_id_echoed(world):
    world.start()
    world.client.ask({"id": "a", "prompt": "hi"}, response_topic="reply/x", correlation=b"\x01\x02")
    message = world.client.next(lambda m: m.topic == "reply/x")
    assert message.correlation == b"\x01\x02"
    assert json.loads(message.payload)["id"] == "a"


def test_plain_text_in_plain_text_out(world):
    world.start()
    world.client.send("prompt/text", "grüß dich".encode())
    assert world.client.next(lambda m: m.topic.endswith("/result/text")).payload.decode() == "grüß dich"


def test_streams_deltas_that_join_to_the_answer(world):
    world.model.token_s = 0.02
    world.start()
    words = " ".join(f"w{n}" for n in range(12))
    world.client.ask({"id": "s", "prompt": words, "stream": True})
    assert world.client.result("s")["text"] == words
    deltas = [json.loads(m.payload) for m in world.client.kept if m.topic.endswith("/stream/s")]
    assert len(deltas) > 2
    assert [d["seq"] for d in deltas] == list(range(len(deltas)))
    assert "".join(d["text"] for d in deltas) == words


def test_the_same_id_is_answered_twice_and_run_once(world):
    world.start()
    for _ in range(2):
        world.client.ask({"id": "a", "prompt": "once"})
        first = world.client.result("a")
    world.client.ask({"id": "a", "prompt": "once"}, response_topic="reply/other")
    again = json.loads(world.client.next(lambda m: m.topic == "reply/other").payload)
    assert again == first
    assert world.model.answered == ["once"]


def test_the_same_id_while_it_runs_is_answered_to_both_and_run_once(world):
    world.model.token_s = 0.1
    world.start()
    world.client.ask({"id": "a", "prompt": "one two three"})
    time.sleep(0.1)
    world.client.ask({"id": "a", "prompt": "one two three"}, response_topic="reply/second")
    second = json.loads(world.client.next(lambda m: m.topic == "reply/second").payload)
    assert second["text"] == "one two three"
    assert sum(m.topic.endswith("/result/a") for m in world.client.kept) == 1
    assert world.model.answered == ["one two three"]


def test_an_id_used_for_another_prompt_is_an_error(world):
    world.start()
    world.client.ask({"id": "a", "prompt": "one"})
    world.client.result("a")
    world.client.ask({"id": "a", "prompt": "two"}, response_topic="reply/x")
    error = json.loads(world.client.next(lambda m: m.topic == "reply/x").payload)["error"]
    assert error["code"] == "bad_request"
    assert "another prompt" in error["message"]


def test_high_priority_overtakes_what_waits(world):
    world.model.token_s = 0.05
    world.start()
    for name, priority in [("first", "normal"), ("low", "low"), ("normal", "normal"), ("high", "high")]:
        world.client.ask({"id": name, "prompt": f"{name} a b", "priority": priority})
        time.sleep(0.02)  # the first one is taken from the queue before the others come
    for name in ("high", "first", "normal", "low"):
        world.client.result(name)
    assert [prompt.split()[0] for prompt in world.model.answered] == ["high", "first", "normal", "low"]


def test_a_full_queue_says_busy_and_when_to_come_again(world):
    world.model.token_s = 0.2
    world.start(max_queue=2)
    world.client.ask({"id": "run", "prompt": "a b c"})
    time.sleep(0.1)
    for name in ("w1", "w2", "over"):
        world.client.ask({"id": name, "prompt": name})
    error = world.client.result("over")["error"]
    assert error["code"] == "busy"
    assert error["retry_after_s"] > 0
    assert world.client.result("w2")["text"] == "w2"


def test_cancel_stops_a_running_prompt_and_one_that_waits(world):
    world.model.token_s = 0.05
    world.start()
    world.client.ask({"id": "run", "prompt": " ".join("x" * 60)})
    world.client.ask({"id": "wait", "prompt": "y"})
    time.sleep(0.2)
    world.client.send("cancel", {"id": "wait"})
    world.client.send("cancel", {"id": "run"})
    running = world.client.result("run")
    assert running["finish_reason"] == "cancelled"
    assert running["receipt"]["completion_tokens"] < 30
    assert world.client.result("wait")["error"]["code"] == "cancelled"


def test_a_deadline_counts_queue_time_and_cuts_an_answer(world):
    world.model.token_s = 0.05
    world.start()
    world.client.ask({"id": "run", "prompt": " ".join("x" * 40), "deadline_ms": 400})
    world.client.ask({"id": "late", "prompt": "y", "deadline_ms": 100})
    assert world.client.result("run")["finish_reason"] == "deadline"
    assert world.client.result("late")["error"]["code"] == "deadline"


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"\xff\xfe\x00", "bad_request"),
        (b"", "bad_request"),
        (b"[" * 100_000, "bad_request"),
        (b"x" * 1_000_000, "too_large"),
        ({"prompt": "no id"}, "bad_request"),
        ({"id": "b", "prompt": 5}, "bad_request"),
        ({"id": "b", "prompt": "x", "temperature": "hot"}, "bad_request"),
        ({"id": "b", "prompt": "x", "temperature": -1}, "bad_request"),
        ({"id": "b", "prompt": "x", "options": {"wings": 2}}, "bad_request"),
        ({"id": "b", "prompt": "x", "json_schema": {}}, "bad_request"),
        ({"id": "b", "prompt": "x", "model": "gpt"}, "unknown_model"),
        ({"id": "b", "prompt": "x", "task": "embed"}, "bad_request"),
        ({"id": "b", "prompt": "   "}, "bad_request"),
        ({"id": "a/b", "prompt": "x"}, "bad_request"),
        ({"id": "b", "v": 2, "prompt": "x"}, "bad_request"),
        ({"id": "b", "prompt": "x " * 101}, "too_large"),
        ({"id": "\ud800", "prompt": "x"}, "bad_request"),
    ],
)
def test_a_bad_prompt_gets_an_error_and_the_next_good_one_an_answer(world, body, code):
    world.start()
    world.client.ask(body, response_topic="reply/bad")
    world.client.ask({"id": "good", "prompt": "fine"})
    error = json.loads(world.client.next(lambda m: m.topic == "reply/bad").payload)
    assert error["error"]["code"] == code
    assert error["error"]["message"]
    assert len(json.dumps(error)) < 1500
    assert world.client.result("good")["text"] == "fine"


@pytest.mark.parametrize(
    "topic", ["a/+/b", "#", "$SYS/x", "edgeslm/v1/home/other/prompt", "edgeslm/v1/home/pool/echo/prompt"]
)
def test_a_response_topic_that_would_do_harm_is_refused(world, topic):
    world.start()
    world.client.ask({"id": "a", "prompt": "x"}, response_topic=topic)
    assert world.client.result("a")["error"]["code"] == "bad_request"
    assert world.model.answered == []


def test_presence_and_self_description_are_retained(world):
    agent = world.start()
    root = "edgeslm/v1/home/dev1"
    assert json.loads(world.broker.retained(f"{root}/availability").payload)["state"] == "online"
    info = json.loads(world.broker.retained(f"{root}/info").payload)
    assert info["models"][0]["name"] == "echo"
    world.stop(agent)
    assert json.loads(world.broker.retained(f"{root}/availability").payload)["state"] == "offline"


def test_a_pool_prompt_is_answered(world):
    world.start()
    world.client.send(
        "edgeslm/v1/home/pool/echo/prompt", {"id": "p", "prompt": "pooled"}, response_topic="reply/p"
    )
    assert json.loads(world.client.next(lambda m: m.topic == "reply/p").payload)["text"] == "pooled"


def test_a_retained_order_is_not_carried_out(world):
    world.client.send("prompt", {"id": "r", "prompt": "again and again"}, retain=True)
    world.start()
    world.client.ask({"id": "a", "prompt": "x"})
    world.client.result("a")
    assert world.model.answered == ["x"]


def test_answers_wait_for_a_broker_that_is_away(world):
    world.model.token_s = 0.05
    world.start()
    for n in range(30):
        world.client.ask({"id": f"n{n}", "prompt": "a b"})
    time.sleep(0.3)
    world.broker.cut()
    time.sleep(0.5)
    world.broker.restore()
    for n in range(30):
        assert world.client.result(f"n{n}")["text"] == "a b"
    assert len(world.model.answered) == 30


def test_prompts_of_the_last_run_are_answered_by_the_next(world):
    world.model.token_s = 0.2
    agent = world.start()
    for name in ("a", "b", "c"):
        world.client.ask({"id": name, "prompt": f"{name} done"})
    time.sleep(0.15)
    world.stop(agent)
    world.model.token_s = 0.0
    world.start()
    for name in ("a", "b", "c"):
        assert world.client.result(name)["text"] == f"{name} done"
    assert sorted(world.model.answered) == ["a done", "b done", "c done"]


def test_a_broken_journal_refuses_prompts_and_the_agent_goes_on(world, monkeypatch):
    world.start()

    def full(self, *arguments):
        raise JournalError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "accept", full)
        world.client.ask({"id": "a", "prompt": "x"})
        assert world.client.result("a")["error"]["code"] == "internal"
    world.client.ask({"id": "b", "prompt": "y"})
    assert world.client.result("b")["text"] == "y"


def test_whatever_a_model_throws_becomes_an_error(world, monkeypatch):
    world.start()
    with monkeypatch.context() as patch:
        patch.setattr(world.model, "answer", lambda *a, **k: 1 / 0)
        world.client.ask({"id": "a", "prompt": "x"})
        assert world.client.result("a")["error"]["code"] == "internal"
    world.client.ask({"id": "b", "prompt": "y"})
    assert world.client.result("b")["text"] == "y"
