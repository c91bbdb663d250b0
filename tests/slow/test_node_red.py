"""The flow of examples/node-red in a real Node-RED, at a real broker, with a real agent.

`make test-node-red` installs Node-RED and names it in EDGESLM_NODE_RED.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgeslm.link.broker import EmbeddedBroker
from edgeslm.link.client import RequestClient

EXAMPLES = Path(__file__).parents[2] / "examples"
FLOWS = EXAMPLES / "node-red" / "flows.json"
NODE_RED = os.environ.get("EDGESLM_NODE_RED")
START_S = 120.0

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(400),
    pytest.mark.skipif(NODE_RED is None, reason="run by `make test-node-red`"),
]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _settings(port: int) -> str:
    return (
        f'module.exports = {{uiHost: "127.0.0.1", uiPort: {port}, flowFile: "flows.json", httpAdminRoot: false, '
        'telemetry: {enabled: false}, editorTheme: {tours: false}, logging: {console: {level: "info"}}};'
    )


@pytest.fixture(scope="module")
def running(tmp_path_factory) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """The port of Node-RED, and the agent's process."""
    directory = tmp_path_factory.mktemp("node-red")
    port = _free_port()
    processes = []
    with EmbeddedBroker(kind="mosquitto") as broker, (directory / "log").open("wb") as log:
        flows = json.loads(FLOWS.read_text("utf-8"))
        next(node for node in flows if node["type"] == "mqtt-broker")["port"] = str(broker.port)
        (directory / "flows.json").write_text(json.dumps(flows))
        (directory / "settings.js").write_text(_settings(port))
        agent = [sys.executable, "-m", "edgeslm", "agent", "run", "--config", str(EXAMPLES / "agent.yaml")]
        agent += ["--port", str(broker.port), "--state-dir", str(directory / "agent")]
        try:
            processes.append(subprocess.Popen(agent, stderr=log))
            processes.append(
                subprocess.Popen(
                    [NODE_RED, "--userDir", str(directory)], stdout=log, stderr=log, cwd=directory
                )
            )
            with RequestClient(broker.client_config()) as client:
                client.wait_online("home", "kitchen-pi", START_S)
            _wait_for_flow(directory / "log", processes[1])
            yield port, processes[0]
        finally:
            for process in processes:
                process.terminate()
                process.wait(60)


def _wait_for_flow(log: Path, node_red: subprocess.Popen[bytes]) -> None:
    deadline_s = time.monotonic() + START_S
    while "Connected to broker" not in log.read_text("utf-8", "replace"):
        assert node_red.poll() is None, log.read_text("utf-8", "replace")[-2000:]
        assert time.monotonic() < deadline_s, log.read_text("utf-8", "replace")[-2000:]
        time.sleep(0.1)


def _ask(port: int, body: object) -> tuple[int, dict]:
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/ask", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=90) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_a_prompt_goes_over_the_flow_to_the_device_and_its_answer_back(running):
    status, answer = _ask(running[0], {"prompt": "lock the front door"})
    assert status == 200
    assert answer["intent"].startswith("Hass")


def test_the_next_prompt_gets_its_own_answer(running):
    answers = [
        _ask(running[0], {"prompt": f"set the living room temperature to {degrees} degrees"})
        for degrees in (19, 21)
    ]
    assert [answer["temperature"] for _, answer in answers] == [19, 21]


def test_an_error_of_the_device_is_an_error_of_the_flow(running):
    status, answer = _ask(running[0], {"prompt": "word " * 3000})
    assert (status, answer["error"]["code"]) == (422, "too_large")


def test_nothing_to_ask_is_said_at_once(running):
    assert _ask(running[0], {})[0] == 400
