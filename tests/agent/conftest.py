"""An agent over the in-process link, and a client to talk to it."""

from __future__ import annotations

import json
import queue
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edgeslm import topics
from edgeslm.agent.description import AgentIdentity, AgentLimits, availability
from edgeslm.agent.journal import Journal
from edgeslm.agent.service import Agent
from edgeslm.link.inprocess import InProcessBroker, InProcessLink
from edgeslm.link.port import Message
from edgeslm.power.meter import EstimatedMeter
from edgeslm.schema.board import PowerTable
from edgeslm.sim.model import EchoModel

FLEET, DEVICE = "home", "dev1"
METER = EstimatedMeter(PowerTable(idle_w=2.0, core_load_w=1.0, source="made up for tests"))


class Client:
    """An MQTT client that keeps what it gets."""

    def __init__(self, broker: InProcessBroker, name: str = "client") -> None:
        self.messages: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self.kept: list[Message] = []
        self._unread: list[Message] = []
        self._link = InProcessLink(broker, name)
        self._link.start(self, [(f"{topics.ROOT}/#", 1), ("reply/#", 1)])

    def on_message(self, message: Message) -> None:
        self.kept.append(message)
        self.messages.put(message)
        message.acknowledge()

    def on_connected(self, *, session_present: bool) -> None: ...

    def on_disconnected(self, reason: str) -> None: ...

    def on_published(self, token: int) -> None: ...

    def send(self, channel: str, body: Any, **properties: Any) -> None:
        payload = body if isinstance(body, bytes) else json.dumps(body).encode()
        topic = (
            channel
            if "/" in channel and channel.startswith("edgeslm/")
            else f"{topics.ROOT}/{FLEET}/{DEVICE}/{channel}"
        )
        self._link.publish(Message(topic, payload, **properties))

    def ask(self, body: Any, **properties: Any) -> None:
        self.send("prompt", body, **properties)

    def next(self, matches: Callable[[Message], bool], timeout_s: float = 10.0) -> Message:
        """The oldest matching message that was not returned yet; waits for one."""
        until = time.monotonic() + timeout_s
        while True:
            for index, message in enumerate(self._unread):
                if matches(message):
                    return self._unread.pop(index)
            try:
                self._unread.append(self.messages.get(timeout=max(0.0, until - time.monotonic())))
            except queue.Empty:
                break
        raise AssertionError(f"nothing came; seen: {[m.topic for m in self.kept][-8:]}")

    def result(self, request_id: str, timeout_s: float = 10.0) -> dict[str, Any]:
        suffix = f"/result/{request_id}"
        return json.loads(self.next(lambda m: m.topic.endswith(suffix), timeout_s).payload)

    def close(self) -> None:
        self._link.stop()


class World:
    """A broker, a client, and agents that come and go over one journal."""

    def __init__(self, state_dir: Path) -> None:
        self.state_dir = state_dir
        self.broker = InProcessBroker()
        self.client = Client(self.broker)
        self.model = EchoModel()
        self.agents: list[Agent] = []

    def start(self, **limits: Any) -> Agent:
        will = availability(FLEET, DEVICE, "offline")
        agent = Agent(
            AgentIdentity(FLEET, DEVICE, "host"),
            {"echo": self.model},
            InProcessLink(self.broker, "agent", will),
            METER,
            Journal(self.state_dir / "agent.db"),
            AgentLimits(**limits),
        )
        agent.start()
        assert agent.wait_connected(5)
        self.agents.append(agent)
        return agent

    def stop(self, agent: Agent) -> None:
        self.agents.remove(agent)
        agent.stop()

    def close(self) -> None:
        for agent in list(self.agents):
            self.stop(agent)
        self.client.close()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    yield world
    world.close()
