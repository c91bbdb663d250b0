"""The flow of examples/node-red fits itself and the topic tree; `make test-node-red` runs it."""

from __future__ import annotations

import json
from pathlib import Path

from edgeslm import topics

FLOWS = Path(__file__).parents[2] / "examples" / "node-red" / "flows.json"
NODES = {node["id"]: node for node in json.loads(FLOWS.read_text("utf-8"))}
TAB = next(node for node in NODES.values() if node["type"] == "tab")
CORE = {
    "tab",
    "mqtt-broker",
    "mqtt in",
    "mqtt out",
    "http in",
    "http response",
    "inject",
    "function",
    "debug",
}


def test_it_needs_nothing_that_node_red_does_not_bring():
    assert {node["type"] for node in NODES.values()} <= CORE


def test_every_wire_leads_to_a_node_and_every_output_is_wired():
    for node in NODES.values():
        for output in node.get("wires", []):
            assert set(output) <= set(NODES), node["id"]
        if node["type"] in {"mqtt in", "http in", "inject", "function"}:
            assert all(node["wires"]), node["id"]


def test_it_asks_and_listens_on_topics_of_the_tree():
    settings = {one["name"]: one["value"] for one in TAB["env"]}
    assert topics.parse(settings["PROMPT_TOPIC"]) == topics.DeviceTopic("home", "kitchen-pi", "prompt")
    heard = {node["topic"] for node in NODES.values() if node["type"] == "mqtt in"}
    assert heard == {
        settings["ANSWER_TOPIC"],
        topics.fleet_filter("home", "availability"),
        topics.event_filter("home", "throttled").replace("throttled", "+"),
    }


def test_the_answer_topic_is_one_that_a_device_publishes_to():
    assert topics.is_publishable(next(one["value"] for one in TAB["env"] if one["name"] == "ANSWER_TOPIC"))


def test_it_holds_no_secret():
    broker = next(node for node in NODES.values() if node["type"] == "mqtt-broker")
    assert "credentials" not in broker
    assert broker["protocolVersion"] == "5"
