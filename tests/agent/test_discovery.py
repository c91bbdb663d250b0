"""What Home Assistant is told, byte by byte, and whether it would take it."""

from __future__ import annotations

import asyncio
import importlib
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeslm import topics
from edgeslm.agent.discovery import (
    Facts,
    ShownModel,
    birth_topic,
    discovery,
    discovery_payload,
    discovery_topic,
    is_birth,
    object_id,
)
from edgeslm.link.inprocess import matches
from edgeslm.schema.base import IDENTIFIER_PATTERN
from edgeslm.schema.operation import MAX_LIFE, OperationCommand

GOLDEN = Path(__file__).parents[1] / "golden" / "home_assistant"
NOW = datetime(2026, 11, 25, 2, 40, tzinfo=UTC)
ALONE = Facts(
    fleet="home",
    device="kitchen-pi",
    board="Raspberry Pi 4 Model B",
    board_id="pi-4b",
    agent="0.1.0",
    models=(ShownModel("home-command", "1.0.0"),),
    order_id="ha-0123456789abcdef",
    now=NOW,
)
MEMBER = replace(
    ALONE,
    fleet="ward-3",
    models=(ShownModel("home-command", "1.0.0"), ShownModel("triage", "2.1.0")),
    updates=("home-command", "triage"),
    budget=True,
    battery=True,
)
CASES = {"alone": ALONE, "member": MEMBER}


@pytest.mark.parametrize("name", CASES)
def test_the_message_is_the_golden_one(name: str) -> None:
    golden = json.loads((GOLDEN / f"{name}.json").read_text("utf-8"))
    assert json.loads(discovery_payload(CASES[name])) == golden


@pytest.mark.parametrize("facts", CASES.values(), ids=CASES)
def test_home_assistant_accepts_the_message_and_knows_every_key(facts: Facts) -> None:
    pytest.importorskip("homeassistant")
    asyncio.run(_validate(discovery(facts)))


async def _validate(message: dict[str, Any]) -> None:
    core = importlib.import_module("homeassistant.core")
    schemas = importlib.import_module("homeassistant.components.mqtt.schemas")
    core.HomeAssistant("/nonexistent")  # templates are checked only where there is one
    schemas.DEVICE_DISCOVERY_SCHEMA(message)
    shared = {key: message[key] for key in ("device", "origin", "availability", "availability_mode", "qos")}
    for component in message["components"].values():
        platform = importlib.import_module(f"homeassistant.components.mqtt.{component['platform']}")
        given_ = {key: value for key, value in component.items() if key != "platform"} | shared
        assert given_.keys() <= platform.DISCOVERY_SCHEMA(given_).keys()


def test_every_entity_has_a_unique_id_of_its_own() -> None:
    components = discovery(MEMBER)["components"]
    ids = [component["unique_id"] for component in components.values()]
    assert len(set(ids)) == len(ids)
    assert all(one.startswith("edgeslm_ward-3_kitchen-pi_") for one in ids)


def test_no_entity_reads_a_topic_that_the_device_does_not_publish_anyway() -> None:
    for component in discovery(MEMBER)["components"].values():
        for key in ("state_topic", "json_attributes_topic"):
            topic = component.get(key)
            if topic is not None:
                parsed = topics.parse(topic.replace("+", "x"))
                assert isinstance(parsed, topics.DeviceTopic)
                assert parsed.channel in {
                    "info",
                    "reported",
                    "m/power",
                    "m/inference",
                    "m/system",
                    "e",
                    "result",
                }


def test_orders_go_where_a_device_reads_and_nowhere_else() -> None:
    for component in discovery(MEMBER)["components"].values():
        if "command_topic" in component:
            parsed = topics.parse(component["command_topic"])
            is_prompt = isinstance(parsed, topics.DeviceTopic) and parsed.channel == "prompt"
            assert is_prompt or isinstance(parsed, topics.CommandTopic)


def test_a_fleet_s_access_list_lets_home_assistant_use_every_entity() -> None:
    access = topics.home_assistant_access(MEMBER.fleet)
    for component in discovery(MEMBER)["components"].values():
        for name, topic in component.items():
            if name.endswith("topic"):
                allowed = access.writes if name == "command_topic" else access.reads
                assert any(matches(one, topic) for one in allowed), topic


def test_the_order_that_installs_is_a_valid_operation_for_its_topic() -> None:
    component = discovery(MEMBER)["components"]["update_triage"]
    order = OperationCommand.model_validate_json(component["payload_install"])
    topic = topics.parse(component["command_topic"])
    assert isinstance(topic, topics.CommandTopic)
    assert (topic.op, topic.command_id) == (order.op, order.id)
    assert order.args == {"name": "triage"}
    assert timedelta(days=1) < order.expires_at - order.issued_at <= MAX_LIFE


def test_a_device_without_fleet_budget_or_battery_shows_nothing_of_them() -> None:
    keys = discovery(ALONE)["components"].keys()
    assert not {"budget_exhausted", "battery"} & keys
    assert not any(key.startswith("update_") for key in keys)


NAMES = st.from_regex(IDENTIFIER_PATTERN, fullmatch=True)


@given(NAMES, NAMES, NAMES, NAMES)
def test_two_devices_never_share_an_id(fleet: str, device: str, other_fleet: str, other: str) -> None:
    same = (fleet, device) == (other_fleet, other)
    assert (object_id(fleet, device) == object_id(other_fleet, other)) == same


def test_topics_are_those_of_home_assistant() -> None:
    assert discovery_topic("homeassistant", "home", "pi") == "homeassistant/device/home/pi/config"
    assert birth_topic("ha/one") == "ha/one/status"
    assert is_birth(b"online")
    assert not is_birth(b"offline")
    assert not is_birth(b"\xff\x00")
