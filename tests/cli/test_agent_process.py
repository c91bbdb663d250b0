from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgeslm.cli.agent_process import AgentProcess
from edgeslm.cli.output import printable
from edgeslm.errors import LinkError
from edgeslm.link.broker import EmbeddedBroker
from edgeslm.link.client import RequestClient


@pytest.fixture(scope="module")
def broker() -> Iterator[EmbeddedBroker]:
    with EmbeddedBroker(kind="iotcore") as running:
        yield running


def wait_for_the_will(client: RequestClient) -> None:
    deadline_s = time.monotonic() + 10
    while [view.state for view in client.list_devices("demo", 0.05)] != ["offline"]:
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


def test_an_agent_that_cannot_run_is_told_with_its_own_words(broker: EmbeddedBroker, tmp_path: Path) -> None:
    agent = AgentProcess(broker.port, tmp_path, device="stillborn", flags=["--board", "no-such-board"])
    words = r"exit code [12]\. Its log:\n(.|\n)*no-such-board"
    with agent, RequestClient(broker.client_config()) as client, pytest.raises(LinkError, match=words):
        agent.wait_online(client)


def test_what_could_steer_a_terminal_is_not_shown() -> None:
    assert printable("a\x1b[2Jb\n\x07c", keep="\n") == "a?[2Jb\n?c"
