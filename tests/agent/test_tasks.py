"""Tasks other than generating, as the agent's clients see them; the graph is a real one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeslm.agent.description import AgentIdentity, AgentLimits, availability
from edgeslm.agent.journal import Journal
from edgeslm.agent.service import Agent
from edgeslm.agent.update.child import TrialProcess, TrialSettings
from edgeslm.agent.update.watchdog import Pulse, WatchedModel
from edgeslm.forge.graph_package import draft_package
from edgeslm.link.inprocess import InProcessBroker, InProcessLink
from edgeslm.models.packing import pack
from edgeslm.models.store import ModelStore
from edgeslm.runtime.loading import load_served
from edgeslm.schema.message import PromptRequest
from edgeslm.sim.model import EchoModel

from ..runtime.graphs import dense_int8
from .conftest import DEVICE, FLEET, METER, Client

WEIGHTS = np.array([[4, 0, -4], [1, 2, 3]])
"""In real numbers a quarter of it."""


class House:
    """A device that says words back and classifies three numbers, and its client."""

    def __init__(self, directory: Path) -> None:
        graph = dense_int8(WEIGHTS, directory / "dense.tflite")
        draft = draft_package(
            graph, name="trend", version="1.0.0", license_name="Apache-2.0", labels=["falls", "rises"]
        )
        pack(draft, {graph.name: graph}, directory / "trend.slm")
        self.trend = load_served(ModelStore(directory / "store").install(directory / "trend.slm"))
        self.echo = EchoModel()
        self.directory = directory
        self.broker = InProcessBroker()
        self.client = Client(self.broker)

    def start(self) -> Agent:
        agent = Agent(
            AgentIdentity(FLEET, DEVICE, "host"),
            {"echo": self.echo, "trend": self.trend},
            InProcessLink(self.broker, "agent", availability(FLEET, DEVICE, "offline")),
            METER,
            Journal(self.directory / "agent.db"),
            AgentLimits(),
        )
        agent.start()
        assert agent.wait_connected(5)
        return agent


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    made = House(tmp_path)
    agent = made.start()
    yield made
    agent.stop()
    made.client.close()


def test_arrays_are_answered_with_arrays_and_a_receipt(house: House) -> None:
    house.client.ask({"id": "a", "task": "tensor", "model": "trend", "tensor": {"x": [[1, 2, 3]]}})
    result = house.client.result("a")
    assert result["tensor"] == {"y": [[-2.0, 4.0]]}
    assert "text" not in result
    assert result["receipt"]["model"] == "trend@1.0.0"
    assert result["receipt"]["completion_tokens"] == 0


def test_a_request_without_a_model_goes_to_one_that_does_its_task(house: House) -> None:
    house.client.ask({"id": "a", "task": "classify", "tensor": {"x": [[1, 2, 3]]}})
    result = house.client.result("a")
    assert result["label"] == "rises"
    assert list(result["scores"]) == ["rises", "falls"]
    house.client.ask({"id": "b", "prompt": "hello"})
    assert house.client.result("b")["text"] == "hello"


def test_arrays_go_past_a_default_that_classifies_text(house: House) -> None:
    house.echo.tasks = ("generate", "classify")
    house.client.ask({"id": "a", "task": "classify", "tensor": {"x": [[1, 2, 3]]}})
    assert house.client.result("a")["label"] == "rises"
    house.client.ask({"id": "b", "task": "classify", "prompt": "hi", "model": "trend"})
    assert "takes arrays, not text" in house.client.result("b")["error"]["message"]


def test_a_trial_in_a_process_of_its_own_loads_it_too(house: House) -> None:
    settings = TrialSettings("auto", 1, None, load_s=30.0, answer_s=10.0)
    trial = TrialProcess(house.trend.installed, settings, 128, memory_low=lambda: False)
    try:
        assert trial.load(lambda: False).graph == "dense.tflite"
        assert [answer.text for answer in trial.answer(["hello"], lambda: False)] == [""]
    finally:
        trial.close()


def test_under_a_watchdog_it_is_the_same(house: House) -> None:
    watched = WatchedModel(house.trend, Pulse(), 10.0)
    assert watched.tasks == ("classify", "tensor")
    request = PromptRequest(id="a", task="tensor", tensor={"x": [[1, 2, 3]]})
    assert watched.infer(request).tensor == {"y": [[-2.0, 4.0]]}


def test_the_device_says_what_it_does(house: House) -> None:
    info = json.loads(house.client.next(lambda message: message.topic.endswith("/info")).payload)
    assert info["tasks"] == ["classify", "generate", "tensor"]
    assert [model["task"] for model in info["models"]] == ["generate", "classify"]


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (
            {"task": "embed", "prompt": "hi"},
            "task 'embed' is not served here (served: generate, classify, tensor)",
        ),
        (
            {"task": "tensor", "model": "echo", "tensor": {"x": [1]}},
            "not served by echo@1.0.0 (served: generate)",
        ),
        ({"task": "generate", "model": "trend", "prompt": "hi"}, "(served: classify, tensor)"),
        ({"task": "tensor", "tensor": {"x": [[1, 2]]}}, "1x2"),
        ({"task": "tensor", "tensor": {"x": [[1, "2", 3]]}}, "other than numbers"),
        ({"task": "classify", "prompt": "is it warm", "model": "trend"}, "takes arrays, not text"),
        ({"task": "tensor", "prompt": "hi"}, "needs arrays"),
    ],
)
def test_what_cannot_be_done_is_an_error_that_says_why(house: House, body: dict[str, Any], told: str) -> None:
    house.client.ask({"id": "a", **body})
    error = house.client.result("a")["error"]
    assert error["code"] == "bad_request"
    assert told in error["message"]
    house.client.ask({"id": "b", "task": "tensor", "tensor": {"x": [[1, 2, 3]]}})
    assert house.client.result("b")["tensor"] == {"y": [[-2.0, 4.0]]}


def test_the_same_id_gets_the_same_answer_and_other_arrays_an_error(house: House) -> None:
    body = {"id": "a", "task": "tensor", "tensor": {"x": [[1, 2, 3]]}}
    house.client.ask(body)
    first = house.client.result("a")
    house.client.ask(body, response_topic="reply/again")
    again = house.client.next(lambda message: message.topic == "reply/again")
    assert json.loads(again.payload) == first
    house.client.ask({**body, "tensor": {"x": [[3, 2, 1]]}}, response_topic="reply/other")
    other = house.client.next(lambda message: message.topic == "reply/other")
    assert "used for another prompt" in json.loads(other.payload)["error"]["message"]
