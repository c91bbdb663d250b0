"""How late a deadline and a cancellation may act, and that threads change between prompts: measured."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from edgeslm.agent.description import AgentIdentity, availability
from edgeslm.agent.journal import Journal
from edgeslm.agent.service import Agent
from edgeslm.cli.wiring import build_power, open_model
from edgeslm.link.inprocess import InProcessBroker, InProcessLink
from edgeslm.power.boards import load_boards
from edgeslm.power.port import Throttling, Vitals
from edgeslm.schema.config import AgentConfig

from .conftest import DEVICE, FLEET, Client, World

TOKEN_S = 0.05
SLACK_S = 0.03
"""What the machine that tests may have other things to do for."""
WORDS = " ".join(f"w{n}" for n in range(60))


@pytest.mark.parametrize("priority", ["high", "normal", "low"])
def test_a_deadline_is_missed_by_at_most_a_token(world: World, priority: str) -> None:
    world.model.token_s = TOKEN_S
    world.start()
    late_ms = []
    for number in range(5):
        fields = {"deadline_ms": 230 + 11 * number, "priority": priority}
        world.client.ask({"id": f"p{number}", "prompt": WORDS, **fields})
        result = world.client.result(f"p{number}")
        assert result["finish_reason"] == "deadline"
        late_ms.append(result["receipt"]["total_ms"] - fields["deadline_ms"])
    assert min(late_ms) >= 0
    assert sorted(late_ms)[2] <= (TOKEN_S + SLACK_S) * 1e3


def test_a_cancellation_takes_effect_within_a_token(world: World) -> None:
    world.model.token_s = TOKEN_S
    world.start()
    more = []
    for number in range(5):
        name = f"p{number}"
        world.client.ask({"id": name, "prompt": WORDS, "stream": True})
        for _ in range(3):
            world.client.next(lambda m, name=name: m.topic.endswith(f"/stream/{name}"))
        time.sleep(0.007 * number)
        said = " ".join(
            json.loads(m.payload)["text"] for m in world.client.kept if m.topic.endswith(f"/stream/{name}")
        )
        world.client.send("cancel", {"id": name})
        result = world.client.result(name)
        assert result["finish_reason"] == "cancelled"
        more.append(result["receipt"]["completion_tokens"] - len(said.split()))
    assert sorted(more)[2] <= 1, "beyond what had been said, the token in work alone"


def test_threads_change_between_two_prompts_and_the_answer_is_the_same(tmp_path: Path) -> None:
    host = load_boards()["host"]
    table = host.power.model_copy(update={"idle_w": 0.1, "core_load_w": 10.0})
    board = host.model_copy(update={"power": table})
    config = AgentConfig.model_validate(
        {
            "device": DEVICE,
            "state_dir": tmp_path / "state",
            "power": {"disabled": ["pmic"]},
            "budget": {"windows": [{"name": "heat", "limit_w": 80.0, "over": "60s"}]},
        }
    )
    model = open_model("home-command", threads=2, store_dir=tmp_path / "store")
    broker = InProcessBroker()
    link = InProcessLink(broker, DEVICE, availability(FLEET, DEVICE, "offline"))
    power, listeners = build_power(config, board, link, 2, {model.name: 4_000_000})
    agent = Agent(
        AgentIdentity(FLEET, DEVICE, board.name),
        {"home-command": model},
        link,
        power.monitor.meter,
        Journal(config.state_dir / "agent.db"),
        power=power,
        listeners=listeners,
    )
    client = Client(broker)
    agent.start()
    assert agent.wait_connected(5)
    answers: list[dict[str, Any]] = []
    for name in ("many", "few"):
        client.ask({"id": name, "prompt": "turn on the kitchen lights"})
        answers.append(client.result(name))
        if name == "many":
            assert model.threads == 2
            throttled = Vitals(at_s=time.monotonic(), throttling=Throttling(throttled=True))
            assert power.steward is not None
            power.steward.governor.note_vitals(throttled)
    agent.stop()
    client.close()
    assert model.threads == 1, "the gentlest setting, from the next prompt on"
    assert answers[0]["text"] == answers[1]["text"]
