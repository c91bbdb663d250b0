"""Every file in examples/ does what it says, against a real broker and a real agent."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from edgeslm.link.broker import EmbeddedBroker, available_kinds
from edgeslm.link.client import RequestClient
from edgeslm.schema.config import AgentConfig, BrokerConfig, LimitsConfig

EXAMPLES = Path(__file__).parents[2] / "examples"
TESTED = {"agent.yaml", "ask.py"}
START_TIMEOUT_S = 60.0

needs_broker = pytest.mark.skipif(not available_kinds(), reason="no MQTT broker is installed")


def _environment() -> dict[str, str]:
    """Without settings of the person who runs the tests."""
    return {name: value for name, value in os.environ.items() if not name.startswith("EDGESLM_AGENT_")}


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """A broker's port, with an agent behind it that runs by examples/agent.yaml."""
    directory = tmp_path_factory.mktemp("example-agent")
    log = directory / "log"
    with EmbeddedBroker() as broker, log.open("wb") as stderr:
        agent = subprocess.Popen(
            [
                *(sys.executable, "-m", "edgeslm", "agent", "run", "--config", str(EXAMPLES / "agent.yaml")),
                *("--port", str(broker.port), "--state-dir", str(directory / "state")),
            ],
            env=_environment(),
            stderr=stderr,
        )
        try:
            _wait_online(broker.client_config(), agent, log)
            yield broker.port
        finally:
            agent.terminate()
            agent.wait(20)


def _wait_online(config: BrokerConfig, agent: subprocess.Popen[bytes], log: Path) -> None:
    deadline_s = time.monotonic() + START_TIMEOUT_S
    with RequestClient(config) as client:
        while time.monotonic() < deadline_s and agent.poll() is None:
            if any(view.state == "online" for view in client.list_devices("home")):
                return
            time.sleep(0.1)
    raise AssertionError(f"the agent did not come online: {log.read_text('utf-8', 'replace')[-800:]}")


def _ask(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(EXAMPLES / "ask.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_every_example_has_a_test():
    assert {path.name for path in EXAMPLES.iterdir() if path.is_file()} == TESTED


@needs_broker
def test_ask_prints_the_answer_of_the_device(port):
    done = _ask("lock the front door", "--port", str(port))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["intent"].startswith("Hass")


@needs_broker
def test_ask_tells_the_error_of_the_device(port):
    done = _ask(" ".join(["lamp"] * 2000), "--port", str(port))
    assert done.returncode == 1
    assert done.stderr.startswith("too_large: ")


def test_the_example_settings_are_the_defaults():
    assert AgentConfig.model_validate(
        yaml.safe_load((EXAMPLES / "agent.yaml").read_text("utf-8"))
    ) == AgentConfig(device="kitchen-pi")


def test_the_example_settings_name_every_setting():
    text = (EXAMPLES / "agent.yaml").read_text("utf-8")
    names = {name for model in (AgentConfig, BrokerConfig, LimitsConfig) for name in model.model_fields}
    assert {name for name in names if f"{name}:" not in text} == set()
