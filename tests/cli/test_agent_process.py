from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgeslm import topics
from edgeslm.cli.agent_process import AgentProcess
from edgeslm.cli.output import printable
from edgeslm.errors import LinkError
from edgeslm.link.broker import EmbeddedBroker
from edgeslm.link.client import RequestClient
from edgeslm.schema.message import Options, PromptRequest, Receipt

COMMAND = "turn the kitchen lights to 40 percent"


@pytest.fixture(scope="module")
def broker() -> Iterator[EmbeddedBroker]:
    with EmbeddedBroker(kind="iotcore") as running:
        yield running


def wait_for_the_will(client: RequestClient) -> None:
    deadline_s = time.monotonic() + 10
    while {view.state for view in client.list_devices("demo", 0.05)} != {"offline"}:
        assert time.monotonic() < deadline_s


def test_starts_again_on_the_same_state_after_a_kill(broker: EmbeddedBroker, tmp_path: Path) -> None:
    agent = AgentProcess(broker.port, tmp_path / "new" / "state", device="phoenix", flags=["--threads", "1"])
    assert not agent.is_running
    assert agent.log_tail() == ""
    with agent, RequestClient(broker.client_config()) as client:
        agent.wait_online(client)
        first = agent.pid
        assert agent.start().pid == first
        agent.kill()
        agent.kill()
        assert not agent.is_running
        with pytest.raises(LinkError, match="exit code -9"):
            agent.check()
        wait_for_the_will(client)
        agent.start()
        agent.wait_online(client)
        agent.check()
        assert agent.pid != first
        assert "demo/phoenix serves" in agent.log_tail()
    assert not agent.is_running
    with pytest.raises(LinkError, match="exit code 0"):
        agent.check()


def test_a_conversation_is_taken_up_and_ends_with_the_agent(broker: EmbeddedBroker, tmp_path: Path) -> None:
    state = tmp_path / "state"
    prefixes = state / "cache" / "prefixes"
    config = tmp_path / "agent.yaml"

    def settings(**values: object) -> None:
        config.write_text(json.dumps(values))

    def ask(client: RequestClient, prompt: str, **options: object) -> Receipt:
        request = PromptRequest(
            id=str(uuid.uuid4()), prompt=prompt, options=Options.model_validate({"session": "s", **options})
        )
        topic = topics.device_topic("demo", "talker", "prompt")
        receipt = client.ask(topic, request, lambda _: None, 30).receipt
        assert receipt is not None
        return receipt

    settings(prefixes={"on_disk": True}, sessions={"max_sessions": 1})
    flags = ["--threads", "1", "--config", str(config)]
    agent = AgentProcess(broker.port, state, device="talker", flags=flags)
    long = "please turn the kitchen lights and then the hallway lights in the evening to 40 percent and then"
    with agent, RequestClient(broker.client_config()) as client:
        agent.wait_online(client)
        first, second = (ask(client, COMMAND) for _ in range(2))
        assert (first.session, first.session_turns, first.cached_tokens) == ("new", 0, 0)
        assert (second.session, second.session_turns) == ("continued", 1)
        # All that was computed for the first turn; its last token ended the answer.
        assert second.cached_tokens == first.prompt_tokens + first.completion_tokens - 1
        for color in ("red", "blue"):
            ask(client, f"{long} {color}", session=None)
        (kept,) = prefixes.iterdir()
        assert (prefixes.stat().st_mode & 0o777, kept.stat().st_mode & 0o777) == (0o700, 0o600)
        assert ask(client, "turn on the fan", session="another").session == "new"
        assert ask(client, "turn on the fan").session == "new"  # there was room for one
        agent.kill()
        wait_for_the_will(client)
        settings()
        agent.start()
        agent.wait_online(client)
        assert not prefixes.exists()
        third = ask(client, COMMAND)
        assert (third.session, third.session_turns, third.cached_tokens) == ("new", 0, 0)


def test_an_agent_that_cannot_run_is_told_with_its_own_words(broker: EmbeddedBroker, tmp_path: Path) -> None:
    agent = AgentProcess(broker.port, tmp_path, device="stillborn", flags=["--board", "no-such-board"])
    words = r"exit code [12]\. Its log:\n(.|\n)*no-such-board"
    with agent, RequestClient(broker.client_config()) as client, pytest.raises(LinkError, match=words):
        agent.wait_online(client)


def test_what_could_steer_a_terminal_is_not_shown() -> None:
    assert printable("a\x1b[2Jb\n\x07c", keep="\n") == "a?[2Jb\n?c"
