"""Reports of a whole agent through outages, over the in-process broker."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgeslm import topics
from edgeslm.agent.description import AgentIdentity, availability
from edgeslm.agent.journal import Journal
from edgeslm.agent.service import Agent
from edgeslm.cli.wiring import SPOOL_NAME, build_power
from edgeslm.link.inprocess import InProcessBroker, InProcessLink
from edgeslm.power.boards import load_boards
from edgeslm.schema.config import AgentConfig
from edgeslm.sim.model import EchoModel

from .conftest import DEVICE, FLEET, Client

SYSTEM = topics.device_topic(FLEET, DEVICE, "m/system")


class Home:
    """A broker, a listener, and an agent that reports each second."""

    def __init__(self, state_dir: Path) -> None:
        self.state_dir = state_dir
        self.broker = InProcessBroker()
        self.client = Client(self.broker)

    def start(self) -> Agent:
        config = AgentConfig.model_validate(
            {"device": DEVICE, "state_dir": self.state_dir, "metrics": {"interval_s": 1}}
        )
        board = load_boards()["host"]
        link = InProcessLink(self.broker, DEVICE, availability(FLEET, DEVICE, "offline"))
        power, listeners = build_power(config, board, link, 1, {})
        agent = Agent(
            AgentIdentity(FLEET, DEVICE, board.name),
            {"echo": EchoModel()},
            link,
            power.monitor.meter,
            Journal(self.state_dir / "agent.db"),
            power=power,
            listeners=listeners,
        )
        agent.start()
        return agent

    def reports(self) -> list[dict[str, Any]]:
        return [json.loads(message.payload) for message in self.client.kept if message.topic == SYSTEM]


def wait_for(is_met: Callable[[], bool]) -> None:
    until_s = time.monotonic() + 40
    while not is_met():
        assert time.monotonic() < until_s
        time.sleep(0.02)


def test_reports_of_an_outage_survive_a_restart_and_come_before_those_of_the_next_process(
    tmp_path: Path,
) -> None:
    home = Home(tmp_path)
    first = home.start()
    assert first.wait_connected(10)
    wait_for(lambda: len(home.reports()) >= 1)
    home.broker.cut()
    seen = len(home.reports())
    began_s = time.monotonic()
    wait_for(lambda: time.monotonic() - began_s > 2.5)  # reports are due at times of their own
    first.stop()
    assert (tmp_path / SPOOL_NAME).exists()
    second = home.start()
    home.broker.restore()
    wait_for(lambda: any(report["seq"] == 0 for report in home.reports()[seen:]))
    seqs = list(dict.fromkeys((report["at"], report["seq"]) for report in home.reports()))
    numbers = [seq for _, seq in seqs]
    restart = numbers.index(0, 1)
    assert numbers[:restart] == list(range(restart))
    assert restart > seen, "what was made during the outage came"
    assert numbers[restart:] == list(range(len(numbers) - restart))
    assert home.reports()[-1]["spool_dropped"] == 0
    second.stop()
    home.client.close()


def test_an_agent_that_is_always_connected_writes_no_spool(tmp_path: Path) -> None:
    home = Home(tmp_path)
    agent = home.start()
    wait_for(lambda: len(home.reports()) >= 2)
    agent.stop()
    home.client.close()
    assert not (tmp_path / SPOOL_NAME).exists()
