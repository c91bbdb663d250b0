"""Alarms between the tokens of a long answer, and models in turns, with real agents at a real broker."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.update_device_rig import make_release
from edgeslm import topics
from edgeslm.agent.journal import Journal
from edgeslm.cli.agent_process import AgentProcess
from edgeslm.cli.wiring import install_package
from edgeslm.errors import LinkError
from edgeslm.link.broker import EmbeddedBroker
from edgeslm.link.client import RequestClient
from edgeslm.runtime.trial import GraphTrial
from edgeslm.schema.message import PromptRequest, Result

PROMPT = "turn on the kitchen lights"
LONG = {"prompt": PROMPT, "regex": "[a-z ]{400}", "max_tokens": 120, "stream": True}
"""Some tenths of a second: no answer is as long without being held to a form."""


@pytest.fixture(scope="module")
def broker() -> Iterator[EmbeddedBroker]:
    with EmbeddedBroker(kind="iotcore") as running:
        yield running


class Asking:
    """Asks on threads of its own, as many as there are requests."""

    def __init__(self, client: RequestClient, device: str) -> None:
        self._client = client
        self._topic = topics.device_topic("demo", device, "prompt")
        self.results: dict[str, Result] = {}
        self.order: list[str] = []
        self.deltas: dict[str, list[tuple[int, str]]] = {}
        self._threads: list[threading.Thread] = []

    def ask(self, name: str, **fields: Any) -> None:
        request = PromptRequest.model_validate({"id": name, **fields})
        deltas = self.deltas.setdefault(name, [])

        def run() -> None:
            found = self._client.ask(
                self._topic, request, lambda delta: deltas.append((delta.seq, delta.text)), 60
            )
            self.results[name] = found
            self.order.append(name)

        self._threads.append(threading.Thread(target=run))
        self._threads[-1].start()

    def wait_for_delta(self, name: str) -> None:
        until_s = time.monotonic() + 30
        while not self.deltas[name]:
            assert time.monotonic() < until_s
            time.sleep(0.001)

    def join(self) -> None:
        for thread in self._threads:
            thread.join(70)


def test_an_alarm_is_answered_in_the_midst_of_a_long_answer_which_goes_on(
    broker: EmbeddedBroker, tmp_path: Path
) -> None:
    flags = ["--threads", "1"]
    with (
        AgentProcess(broker.port, tmp_path, device="alarms", flags=flags) as agent,
        RequestClient(broker.client_config()) as client,
    ):
        agent.wait_online(client)
        asking = Asking(client, "alarms")
        asking.ask("alone", **LONG)
        asking.ask("command", prompt="is the front door locked")
        asking.join()
        for number in range(100):
            name = f"long{number}"
            asking.ask(name, **LONG)
            asking.wait_for_delta(name)
            asking.ask(f"alarm{number}", prompt="is the front door locked", priority="high")
            asking.join()
            long = asking.results[name].receipt
            if long is not None and long.paused_ms:
                break  # else it was over before the alarm came: these are quick
    assert asking.results[f"alarm{number}"].text == asking.results["command"].text
    assert asking.results[name].text == asking.results["alone"].text
    assert [seq for seq, _ in asking.deltas[name]] == list(range(len(asking.deltas[name])))
    assert "".join(text for _, text in asking.deltas[name]) == asking.results[name].text
    alarm = asking.results[f"alarm{number}"].receipt
    assert alarm is not None
    assert long is not None
    assert 0 < alarm.total_ms - alarm.queue_ms <= long.paused_ms


def test_both_are_answered_once_after_a_kill_in_the_midst(broker: EmbeddedBroker, tmp_path: Path) -> None:
    agent = AgentProcess(broker.port, tmp_path, device="killed", flags=["--threads", "1"])
    with agent, RequestClient(broker.client_config()) as client:
        agent.wait_online(client)
        asking = Asking(client, "killed")
        asking.ask("long", **LONG)
        asking.wait_for_delta("long")
        asking.ask("alarm", **LONG, priority="high")
        asking.wait_for_delta("alarm")
        agent.kill()
        time.sleep(0.3)
        agent.start()
        asking.join()
    assert sorted(asking.order) == ["alarm", "long"]
    assert asking.results["long"].text == asking.results["alarm"].text
    journal = Journal(tmp_path / "agent.db")
    assert journal.unanswered() == []
    assert all(journal.find(name).result is not None for name in ("long", "alarm"))  # type: ignore[union-attr]
    journal.close()


@pytest.fixture(scope="module")
def second(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model that ships, under another name."""
    folder = tmp_path_factory.mktemp("packages")
    return make_release(
        folder, "3.0.0", golden=4, change=lambda draft: draft.update(name="second-command")
    ).path


def test_two_models_take_turns_in_a_memory_for_one(
    broker: EmbeddedBroker, second: Path, tmp_path: Path
) -> None:
    installed = install_package("builtin:home-command", tmp_path / "measured")
    one_bytes = GraphTrial(None, 1).model_bytes(installed)
    config = tmp_path / "agent.yaml"
    settings = {"models": ["builtin:home-command", str(second)], "threads": 1}
    config.write_text(yaml.safe_dump({**settings, "models_memory_mb": int(1.5 * one_bytes / 2**20)}))
    state, flags = tmp_path / "state", ["--config", str(config)]
    with (
        AgentProcess(broker.port, state, device="turns", flags=flags) as agent,
        RequestClient(broker.client_config()) as client,
    ):
        agent.wait_online(client)
        asking = Asking(client, "turns")
        for number in range(6):
            model = ("home-command", "second-command")[number % 2]
            asking.ask(f"p{number}", prompt=PROMPT, model=model)
            asking.join()
        asking.ask("long", **LONG, model="home-command")
        asking.wait_for_delta("long")
        asking.ask("alarm", prompt=PROMPT, model="second-command", priority="high")
        asking.join()
        views = {view.device: view for view in client.list_devices("demo", 0.5)}
    models = [asking.results[f"p{number}"].receipt.model for number in range(6)]  # type: ignore[union-attr]
    assert models == [
        "home-command@" + models[0].rpartition("@")[2] if n % 2 == 0 else "second-command@3.0.0"
        for n in range(6)
    ]
    assert len({asking.results[f"p{number}"].text for number in range(6)}) == 1
    assert asking.order[-2:] == ["long", "alarm"], "there is no room for both, so it comes next"
    info = views["turns"].info
    assert info is not None
    assert {model.name: model.loaded for model in info.models} == {
        "home-command": False,
        "second-command": True,
    }

    config.write_text(yaml.safe_dump({**settings, "models_memory_mb": 1}))
    with (
        AgentProcess(broker.port, state, device="turns", flags=flags) as agent,
        RequestClient(broker.client_config()) as client,
        pytest.raises(LinkError, match=r"home-command@\S+ will need \d+ MB of memory, models may take 1 MB"),
    ):
        agent.wait_online(client)
