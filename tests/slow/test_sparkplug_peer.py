"""A Sparkplug host that others wrote sees a real agent's birth, asks it, reads the answer, and sees it die.

`make test-sparkplug` sets the peer's environment up and names its Python in EDGESLM_SPARKPLUG_PYTHON.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from edgeslm.link.broker import EmbeddedBroker

HOST = Path(__file__).parent / "peers" / "sparkplug_host.py"
EXAMPLE = Path(__file__).parents[2] / "examples" / "agent.yaml"
PEER = os.environ.get("EDGESLM_SPARKPLUG_PYTHON")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.skipif(PEER is None, reason="run by `make test-sparkplug`"),
]


@pytest.fixture(scope="module")
def messages(tmp_path_factory) -> list[dict]:
    directory = tmp_path_factory.mktemp("sparkplug")
    edgeslm = [sys.executable, "-m", "edgeslm"]
    processes = []
    with EmbeddedBroker(kind="mosquitto") as broker, (directory / "log").open("wb") as log:

        def start(*arguments: str) -> subprocess.Popen[bytes]:
            processes.append(subprocess.Popen([*edgeslm, *arguments, "--port", str(broker.port)], stderr=log))
            return processes[-1]

        try:
            device = ("--fleet", "home", "--device", "kitchen-pi")
            start("agent", "run", "--config", str(EXAMPLE), "--state-dir", str(directory / "agent"))
            start("sparkplug", "run", *device, "--group", "Plant 1", "--state-dir", str(directory))
            command = [PEER, str(HOST), str(broker.port), "Plant 1", "kitchen-pi", "lock the front door"]
            host = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            processes.append(host)
            # A host that reads nothing must not keep the test for ever; it ends itself after two minutes.
            killer = threading.Timer(200, host.kill)
            killer.start()
            told = []
            for line in host.stdout:
                told.append(json.loads(line))
                if "Answer/Text" in told[-1]["metrics"] and told[-1]["kind"] == "NDATA":
                    processes[1].kill()  # no farewell: the broker publishes the will
            killer.cancel()
            assert host.wait(30) == 0, (directory / "log").read_text("utf-8", "replace")[-2000:]
            return told
        finally:
            for process in processes:
                process.kill()
                process.wait(30)


def test_the_birth_is_read_with_its_control_and_its_properties(messages):
    birth = next(one for one in messages if one["kind"] == "NBIRTH")
    assert birth["seq"] == 0
    assert birth["metrics"]["Node Control/Rebirth"] == ["BOOLEAN", False]
    assert birth["metrics"]["bdSeq"][0] == "INT64"
    assert "home-command" in birth["metrics"]["Properties/Models"][1] or any(
        "home-command" in (one["metrics"].get("Properties/Models") or ["", ""])[1] for one in messages
    )


def test_the_prompt_is_answered_under_its_name(messages):
    answer = next(one for one in messages if one["kind"] == "NDATA" and "Answer/Text" in one["metrics"])
    assert answer["metrics"]["Answer/Id"] == ["STRING", "scada-1"]
    assert json.loads(answer["metrics"]["Answer/Text"][1])["intent"].startswith("Hass")
    assert answer["metrics"]["Answer/Energy J"][1] > 0


def test_the_numbers_have_no_gap(messages):
    seqs = [one["seq"] for one in messages if one["kind"] in {"NBIRTH", "NDATA"}]
    for before, after in itertools.pairwise(seqs):
        assert after in {0, (before + 1) % 256}


def test_the_will_is_the_death_of_the_last_birth(messages):
    birth = [one for one in messages if one["kind"] == "NBIRTH"][-1]
    assert messages[-1]["kind"] == "NDEATH"
    assert messages[-1]["metrics"]["bdSeq"][1] == birth["metrics"]["bdSeq"][1]
