"""An agent with a budget: real model, real accounting, a board whose other processes are known to be idle."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edgeslm.agent.description import AgentIdentity, availability
from edgeslm.agent.journal import Journal
from edgeslm.agent.service import Agent
from edgeslm.cli.wiring import build_power, open_model, try_out
from edgeslm.errors import BudgetConfigError, ConfigError
from edgeslm.link.inprocess import InProcessBroker, InProcessLink
from edgeslm.power.boards import load_boards
from edgeslm.power.ledger_reader import LedgerReader
from edgeslm.runtime.model import LoadedModel
from edgeslm.schema.board import Board
from edgeslm.schema.config import AgentConfig

from .conftest import DEVICE, FLEET, Client

COMMAND = "turn on the kitchen lights"
QUIET_STAT = "cpu  10 0 10 100000 0 0 0 0 0 0\n"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return open_model("home-command", threads=1, store_dir=tmp_path_factory.mktemp("store"))


@pytest.fixture
def board() -> Board:
    """Draws next to nothing at rest, so that what the model takes is most of it."""
    host = load_boards()["host"]
    table = host.power.model_copy(update={"idle_w": 0.1, "core_load_w": 10.0})
    return host.model_copy(update={"power": table})


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "root/proc").mkdir(parents=True)
    (tmp_path / "root/proc/stat").write_text(QUIET_STAT)
    return tmp_path / "root"


@pytest.fixture
def start(
    tmp_path: Path, model: LoadedModel, board: Board, root: Path
) -> Iterator[Callable[..., tuple[Agent, Client]]]:
    stops: list[Callable[[], None]] = []

    def _start(budget: dict[str, Any], **metrics: Any) -> tuple[Agent, Client]:
        config = AgentConfig.model_validate(
            {
                "device": DEVICE,
                "state_dir": tmp_path / "state",
                "power": {"root": root, "disabled": ["pmic"]},
                "budget": budget,
                "metrics": metrics,
            }
        )
        broker = InProcessBroker()
        link = InProcessLink(broker, DEVICE, availability(FLEET, DEVICE, "offline"))
        power, listeners = build_power(config, board, link, 1, {model.name: 4_000_000})
        if power.steward is not None and not power.steward.knows(model.name):
            try_out(model, board, power.steward)
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
        stops.extend([agent.stop, client.close])
        return agent, client

    yield _start
    for stop in stops:
        stop()


def window(limit_w: float, over: str = "12s") -> dict[str, Any]:
    return {"windows": [{"name": "heat", "limit_w": limit_w, "over": over}]}


def spend(client: Client, most: int = 400, name: str = "spend") -> int:
    """Ask until the budget has enough of it; the number of the first prompt that was refused."""
    for number in range(most):
        client.ask({"id": f"{name}-{number}", "prompt": COMMAND})
        if "error" in client.result(f"{name}-{number}"):
            return number
    raise AssertionError(f"the budget bore {most} prompts")


def test_a_prompt_beyond_the_budget_is_refused_with_the_time_to_come_back(start: Any) -> None:
    _, client = start({**window(0.2, "60s"), "max_wait": "0s"})
    number = spend(client)
    assert number > 0
    client.ask({"id": "again", "prompt": COMMAND})
    error = client.result("again")["error"]
    assert error["code"] == "budget"
    assert 0 < error["retry_after_s"] <= 100
    assert "window 'heat'" in error["message"]


def test_a_prompt_may_wait_for_energy_and_is_answered_when_there_is_some(start: Any) -> None:
    _, client = start({**window(0.5, "11s"), "max_wait": "60s"})
    answers = []
    for number in range(1000):
        client.ask({"id": f"p{number}", "prompt": COMMAND})
        result = client.result(f"p{number}", 60)
        assert "error" not in result, result
        answers.append(result["receipt"])
        if answers[-1]["queue_ms"] > 1000:
            break
    assert answers[-1]["queue_ms"] > 1000
    assert len(answers) > 3, "the first ones did not have to wait"
    assert all(answer["queue_ms"] < 1000 for answer in answers[:-1])


def test_high_priority_is_answered_while_the_rest_waits(start: Any) -> None:
    always = {"begins": "00:00", "ends": "24:00", "lowest_priority": "high"}
    agent, client = start({"quiet_hours": [always], "max_wait": "2d"})
    client.ask({"id": "p", "prompt": COMMAND})
    client.ask({"id": "alarm", "prompt": COMMAND, "priority": "high"})
    assert "receipt" in client.result("alarm")
    assert agent.waiting == 1
    client.send("cancel", {"id": "p"})
    assert client.result("p")["error"]["code"] == "cancelled"


def test_what_was_decided_is_in_the_ledger(start: Any, tmp_path: Path) -> None:
    agent, client = start({**window(0.2), "max_wait": "0s"})
    refused = f"spend-{spend(client)}"
    agent.stop()
    reader = LedgerReader.open(tmp_path / "state/energy.db")
    answered, row = reader.prompt("spend-0"), reader.prompt(refused)
    reader.close()
    assert answered is not None
    assert row is not None
    assert answered.net_j is not None
    assert answered.note.predicted_j == pytest.approx(answered.net_j, rel=2.0)
    steps = json.loads(answered.note.decision or "")
    assert [step["what"] for step in steps] == ["runs"]
    assert json.loads(row.note.decision or "")[-1]["what"] == "refused"
    assert row.net_j is None


def test_reports_tell_what_was_drawn_and_what_for(start: Any, model: LoadedModel) -> None:
    _, client = start(window(5.0), interval_s=1)
    client.ask({"id": "a", "prompt": COMMAND})
    receipt = client.result("a")["receipt"]
    first, second = (
        json.loads(client.next(lambda m: m.topic.endswith("/m/power")).payload) for _ in range(2)
    )
    inference = json.loads(client.next(lambda m: m.topic.endswith("/m/inference")).payload)
    assert (first["seq"], second["seq"]) == (0, 1)
    assert first["windows"][0]["name"] == "heat"
    assert first["windows"][0]["limit_j"] == 60
    prompts = [share for share in first["causes"] if share["cause"] == "prompt"]
    assert [share["model"] for share in prompts] == [model.name]
    assert prompts[0]["net_j"] == pytest.approx(receipt["energy_net_j"], rel=0.5)
    total_j = sum(share["energy_j"] for share in first["causes"])
    assert total_j == pytest.approx(first["energy_j"], rel=0.1)
    assert inference["models"][0]["answered"] == 1
    assert inference["models"][0]["prompt_tokens"] == receipt["prompt_tokens"]


def test_an_exhausted_window_is_an_event(start: Any) -> None:
    _, client = start({**window(0.15), "reserve_share": 0.0, "max_wait": "0s"})
    spend(client)
    event = json.loads(client.next(lambda m: "/e/budget_" in m.topic).payload)
    assert event["figures"]["window"] == "heat"


def test_the_windows_go_on_after_a_restart(start: Any) -> None:
    agent, client = start({**window(0.12, "5m"), "max_wait": "0s"})
    spend(client)
    agent.stop()
    (before,) = agent._power.steward.usage()
    agent, _ = start({**window(0.12, "5m"), "max_wait": "0s"})
    (after,) = agent._power.steward.usage()
    # How many prompts are left depends on what else this machine does meanwhile.
    assert before.used_j > 1
    assert after.used_j >= before.used_j * (1 - 1e-9)


def test_a_budget_below_the_idle_draw_keeps_the_agent_from_starting(start: Any) -> None:
    with pytest.raises(BudgetConfigError, match=r"0\.10 W"):
        start(window(0.05))


FLEETS = json.dumps({"windows": [{"name": "fleet", "limit_w": 0.15, "over_s": 300}], "max_wait_s": 0})


def test_a_budget_of_the_fleet_holds_from_the_next_prompt_on_and_after_a_restart(start: Any) -> None:
    agent, client = start({})
    client.ask({"id": "free", "prompt": COMMAND})
    assert "receipt" in client.result("free")
    side = agent._power
    side.follow_budget(FLEETS)
    spend(client)
    agent.stop()
    (before,) = side.steward.usage()
    agent, _ = start({})
    (after,) = agent._power.steward.usage()
    assert (after.name, after.limit_j) == (before.name, before.limit_j)
    assert before.used_j > 0
    assert after.used_j >= before.used_j * (1 - 1e-9)


def test_without_a_budget_of_the_fleet_that_of_the_settings_holds_again(start: Any) -> None:
    agent, client = start({**window(0.12), "max_wait": "0s"})
    agent._power.follow_budget(FLEETS)
    assert agent._power.steward.usage()[0].name == "fleet"
    agent._power.follow_budget(None)
    assert [use.name for use in agent._power.steward.usage()] == ["heat"]
    client.ask({"id": "a", "prompt": COMMAND})
    assert client.result("a")["id"] == "a"


@pytest.mark.parametrize(
    "text", ["", "[]", '{"windows": 7}', '{"windows":[{"name":"w","limit_w":0.05,"over_s":60}]}']
)
def test_what_is_no_budget_or_never_kept_leaves_the_former_one(start: Any, text: str, tmp_path: Path) -> None:
    agent, _ = start(window(5.0))
    with pytest.raises(ConfigError):
        agent._power.follow_budget(text)
    assert [use.name for use in agent._power.steward.usage()] == ["heat"]
    assert not (tmp_path / "state/budget.json").exists()
