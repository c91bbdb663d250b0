"""The home in examples/smart_home: its files fit each other, its things obey, and its scene ends as it should."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from edgeslm.agent.home.acting import read_home
from edgeslm.agent.rules.loading import load_rules
from edgeslm.link.broker import EmbeddedBroker, available_kinds
from edgeslm.schema.config import AgentConfig

DIRECTORY = Path(__file__).parents[2] / "examples" / "smart_home"
SETTINGS = yaml.safe_load((DIRECTORY / "agent.yaml").read_text("utf-8"))
RULES = [DIRECTORY / name for name in SETTINGS["rules"]]

needs_broker = pytest.mark.skipif(not available_kinds(), reason="no MQTT broker is installed")


def _run(*arguments: str, said: str = "") -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k != "EDGESLM_HOMEASSISTANT"}
    command = [sys.executable, str(DIRECTORY / "run.py"), *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, input=said, env=environment, timeout=110, check=False
    )


@pytest.fixture(scope="module")
def zigbee() -> ModuleType:
    spec = importlib.util.spec_from_file_location("smart_home_zigbee", DIRECTORY / "zigbee.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_settings_are_those_of_an_agent():
    assert AgentConfig.model_validate(SETTINGS).homeassistant.enabled


def test_every_thing_in_the_map_has_joined_the_bridge(zigbee):
    assert {entity.topic for entity in read_home(DIRECTORY / "home.yaml").entities} == set(zigbee.ACTUATORS)


def test_rules_listen_to_and_order_only_what_there_is(zigbee):
    rules = load_rules(RULES)
    names = {*zigbee.SENSORS, *zigbee.ACTUATORS, "bridge"}
    heard = {topic.split("/")[1] for topic, _ in rules.filters() if topic.startswith("zigbee2mqtt/")}
    assert heard <= names
    allowed = yaml.safe_load(RULES[0].read_text("utf-8"))["allow"]
    assert {topic.split("/")[1] for topic in allowed} <= set(zigbee.ACTUATORS)


@pytest.mark.parametrize(
    ("thing", "order", "changed"),
    [
        ("hall_light", b'{"state": "ON", "transition": 2}', {"state": "ON"}),
        ("hall_light", b'{"brightness": 20}', {"state": "ON", "brightness": 20}),
        ("hall_light", b'{"state": "EXPLODE", "colour": 1}', {}),
        ("front_door", b'{"state": "LOCK"}', {"state": "LOCK", "lock_state": "locked"}),
        ("living_blinds", b'{"position": 0}', {"state": "CLOSE", "position": 0}),
        ("living_blinds", b"\xff[", {}),
    ],
)
def test_a_thing_does_what_it_understands_and_no_more(zigbee, thing, order, changed):
    assert zigbee._understood(zigbee.ACTUATORS[thing], order) == changed


@needs_broker
@pytest.mark.timeout(120)
def test_the_scene_ends_as_it_should_and_the_transcript_is_true():
    done = _run("--once")
    assert done.returncode == 0, done.stdout + done.stderr
    shown = re.search(
        r"```console\n\$ .*?--once\n(.*?)```", (DIRECTORY / "README.md").read_text("utf-8"), re.S
    )
    assert shown is not None
    assert _lasting(shown[1]) == _lasting(done.stdout)


def _lasting(transcript: str) -> list[str]:
    """Without what differs from run to run."""
    return re.sub(r"\(\d+ ms\)|port \d+", "", transcript).split()


@needs_broker
@pytest.mark.timeout(120)
def test_a_broker_of_ones_own_serves_as_well_and_lines_are_said_to_assist():
    with EmbeddedBroker() as broker:
        done = _run(
            "--host", "127.0.0.1", "--port", str(broker.port), said="open the blinds in the living room\n"
        )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("    Living Room Blinds: open\n")


def test_a_broker_that_is_not_there_is_told_without_a_traceback():
    done = _run("--once", "--host", "127.0.0.1", "--port", "1")
    assert done.returncode == 1
    assert done.stderr == "smart_home: no broker answers at 127.0.0.1:1. Start one there\n"
    assert done.stdout == ""
