"""Conversations, as the agent's clients see them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from edgeslm import topics
from edgeslm.agent.answering import answer_request
from edgeslm.agent.serving import ServedModels
from edgeslm.agent.sessions import Sessions
from edgeslm.errors import BadRequestError
from edgeslm.runtime.conversation import Turn
from edgeslm.schema.config import SessionsConfig
from edgeslm.schema.message import PromptRequest, Result
from edgeslm.sim.model import EchoModel

from .conftest import DEVICE, FLEET, METER, World

PACKAGE = EchoModel().installed
OTHER_RELEASE = replace(PACKAGE, sha256="1" * 64)
TURN = Turn("ask", "say")


@pytest.fixture
def ask(world: World) -> Callable[..., dict[str, Any]]:
    world.start()
    count = iter(range(1000))

    def ask(prompt: str, **fields: Any) -> dict[str, Any]:
        name = f"q{next(count)}"
        world.client.ask({"id": name, "prompt": prompt, **fields})
        return world.client.result(name)

    return ask


def receipt(result: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = result["receipt"]
    return found


def history(result: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(receipt(result).get(name) for name in ("session", "session_turns", "prompt_tokens"))


def test_the_next_prompt_comes_after_what_was_said(ask):
    assert history(ask("one two", session="s")) == ("new", 0, 2)
    assert history(ask("three", session="s")) == ("continued", 1, 5)
    assert history(ask("four", session="s")) == ("continued", 2, 7)


def test_without_a_session_nothing_is_remembered_and_nothing_said_of_it(ask):
    ask("one two", session="s")
    found = receipt(ask("three"))
    assert found["prompt_tokens"] == 1
    assert not {"session", "session_turns", "dropped_turns", "dropped_chars"} & found.keys()
    assert history(ask("four", session="s")) == ("continued", 1, 5)


def test_sessions_know_nothing_of_each_other(ask):
    ask("one two", session="s")
    assert history(ask("three", session="t")) == ("new", 0, 1)


def test_a_cancelled_turn_is_not_remembered(world, ask):
    ask("one", session="s")
    world.model.token_s = 0.05
    world.client.ask({"id": "long", "prompt": "x " * 40, "session": "s"})
    time.sleep(0.2)
    world.client.send("cancel", {"id": "long"})
    assert world.client.result("long")["finish_reason"] == "cancelled"
    assert history(ask("two", session="s")) == ("continued", 1, 3)


def test_a_turn_that_missed_its_deadline_or_failed_is_not_remembered(world, ask):
    world.model.token_s = 0.05
    assert ask("x " * 40, session="s", deadline_ms=150)["finish_reason"] == "deadline"
    world.model.token_s = 0.0
    assert ask("two", session="s", regex="a")["error"]["code"] == "bad_request"
    assert history(ask("three", session="s")) == ("new", 0, 1)


def test_an_answer_that_its_requester_cut_short_is_remembered(ask):
    assert ask("one two three", session="s", max_tokens=1)["finish_reason"] == "length"
    assert history(ask("four", session="s")) == ("continued", 1, 5)


def test_the_same_id_again_is_no_second_turn_and_with_another_session_an_error(world, ask):
    for _ in range(2):
        world.client.ask({"id": "same", "prompt": "one", "session": "s"})
        world.client.result("same")
    assert history(ask("two", session="s")) == ("continued", 1, 3)
    world.client.ask({"id": "same", "prompt": "one", "session": "t"}, response_topic="reply/x")
    error = json.loads(world.client.next(lambda m: m.topic == "reply/x").payload)["error"]
    assert "used for another prompt" in error["message"]


def test_a_conversation_that_is_too_long_is_refused_by_name_and_goes_on_afterwards(ask):
    ask("w " * 45, session="s")
    error = ask("x " * 20, session="s")["error"]
    assert error["code"] == "too_large"
    assert "prompt and 1 earlier turns of 110 tokens, the model takes 100" in error["message"]
    assert history(ask("y", session="s")) == ("continued", 1, 91)


def test_slide_leaves_out_the_oldest_turns_and_says_so(ask):
    ask("w " * 30, session="s")
    ask("v " * 10, session="s")
    found = receipt(ask("x " * 30, session="s", overflow="slide"))
    assert (found["session_turns"], found["dropped_turns"], found["prompt_tokens"]) == (1, 1, 50)
    # What was left out is forgotten.
    assert history(ask("y", session="s", max_tokens=1)) == ("continued", 2, 81)


def test_of_a_prompt_that_is_too_long_by_itself_slide_keeps_the_end(ask):
    assert ask("w " * 120)["error"]["code"] == "too_large"
    found = ask("w " * 120 + "last", overflow="slide")
    assert found["text"].endswith("last")
    assert receipt(found)["dropped_chars"] > 0
    assert "session" not in receipt(found)


def test_a_turn_that_goes_first_in_the_midst_of_another_is_not_lost(world, ask):
    ask("one", session="s")
    world.model.token_s = 0.05
    world.client.ask({"id": "long", "prompt": "x " * 10, "session": "s"})
    time.sleep(0.2)
    assert history(ask("two", session="s", priority="high")) == ("continued", 1, 3)
    assert world.client.result("long")["receipt"]["session_turns"] == 1
    assert history(ask("three", session="s")) == ("continued", 3, 25)


@pytest.mark.parametrize("fields", [{"session": "s"}, {"overflow": "slide"}])
def test_other_tasks_have_no_turns(ask, fields):
    (name,) = fields
    error = ask("one", task="classify", choices=["a", "b"], **fields)["error"]
    assert error == {"code": "bad_request", "message": error["message"]}
    assert f"option '{name}' means nothing to task 'classify'" in error["message"]


@pytest.mark.parametrize(
    "fields", [{"session": ""}, {"session": 5}, {"session": "x" * 129}, {"overflow": "drop"}]
)
def test_a_value_that_is_none_is_refused(ask, fields):
    assert ask("one", **fields)["error"]["code"] == "bad_request"
    assert ask("two")["text"] == "two"


def test_a_pool_has_no_sessions(world, ask):
    topic = topics.pool_topic(FLEET, "echo")
    world.client.send(topic, {"id": "p", "prompt": "one", "session": "s"}, response_topic="reply/x")
    error = json.loads(world.client.next(lambda m: m.topic == "reply/x").payload)["error"]
    assert error["code"] == "bad_request"
    assert "a session stays on one device" in error["message"]


def test_after_a_restart_of_the_agent_a_session_is_new(world, ask):
    ask("one", session="s")
    (agent,) = world.agents
    world.stop(agent)
    world.start()
    assert history(ask("two", session="s")) == ("new", 0, 1)


# --- what the device remembers ---------------------------------------------------------------------------------------


def say(model: EchoModel, sessions: Sessions, prompt: str, **options: Any) -> Result:
    request = PromptRequest(id="a", prompt=prompt, options={"session": "s", **options})
    return answer_request(model, METER, request, DEVICE, accepted_s=time.monotonic(), sessions=sessions)


def test_another_release_begins_the_session_anew_and_says_so():
    model, sessions = EchoModel(), Sessions()
    say(model, sessions, "one")
    model.installed = OTHER_RELEASE
    states = [say(model, sessions, "two").receipt for _ in range(2)]
    assert [(one.session, one.session_turns) for one in states if one] == [("restarted", 0), ("continued", 1)]


def test_another_model_has_a_session_of_its_own_under_the_same_name():
    one, other, sessions = EchoModel(), EchoModel("other"), Sessions()
    say(one, sessions, "one")
    found = say(other, sessions, "two").receipt
    assert found is not None
    assert (found.session, found.session_turns) == ("new", 0)
    assert sessions.recall("s", one.installed).state == "continued"


def test_where_nothing_is_remembered_a_session_is_refused():
    request = PromptRequest(id="a", prompt="one", options={"session": "s"})
    with pytest.raises(BadRequestError, match="'session' is not supported here"):
        answer_request(EchoModel(), METER, request, DEVICE, accepted_s=0.0)


def test_the_session_used_least_recently_goes_first():
    sessions = Sessions(SessionsConfig(max_sessions=2))
    for name in ("a", "b", "a", "c"):
        sessions.remember(name, PACKAGE, TURN)
    assert [sessions.recall(name, PACKAGE).state for name in "abc"] == ["continued", "new", "continued"]


def test_all_sessions_together_stay_within_their_memory():
    sessions = Sessions(SessionsConfig(max_kb=16))
    for number in range(20):
        sessions.remember(str(number), PACKAGE, Turn("x" * 500, "y" * 500))
        assert sessions.size_bytes <= 16 * 1024
    assert 1 < len(sessions) < 6
    sessions.remember("long", PACKAGE, Turn("x" * 20_000, "y"))
    assert sessions.recall("long", PACKAGE).state == "new"


def test_a_session_that_nobody_goes_on_with_is_forgotten():
    now = [100.0]
    sessions = Sessions(SessionsConfig(idle_s=60), clock=lambda: now[0])
    sessions.remember("s", PACKAGE, TURN)
    now[0] += 59
    assert sessions.recall("s", PACKAGE).turns == (TURN,)
    sessions.remember("s", PACKAGE, TURN)
    now[0] += 59
    assert len(sessions.recall("s", PACKAGE).turns) == 2
    now[0] += 2
    assert sessions.recall("s", PACKAGE).state == "new"
    assert len(sessions) == 0


def test_what_is_served_brings_its_sessions_along():
    sessions = Sessions(SessionsConfig(max_sessions=1))
    assert ServedModels({"echo": EchoModel()}, sessions=sessions).sessions is sessions
