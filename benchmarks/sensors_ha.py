"""What Home Assistant makes of a device, for ``benchmarks.sensors``.

A real Home Assistant (see ``make test-homeassistant``), mosquitto and agent. ``ha_entities_share`` is the share of the
announced entities that Home Assistant makes, and shows with a state, without a warning in its log; with a warning it
is 0. ``ha_ready_s`` is from the start of Home Assistant's MQTT to right states of a device that is there already, the
start of its process apart. ``ha_message_bytes`` is the size of the discovery message.
"""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.agent_rig import MeasurementError, say
from benchmarks.home_assistant_rig import DEVICE, FLEET, VARIABLE, World, home_assistant_python, is_right
from benchmarks.report import Found
from edgeslm.agent.discovery import discovery_topic

_RIGHT_S = 60.0


def measure_home_assistant(quick: bool) -> Found:
    """What Home Assistant makes of the discovery message."""
    del quick  # it takes some ten seconds
    python = home_assistant_python()
    if python is None:
        raise MeasurementError(
            f"no Home Assistant: run make test-homeassistant, or set {VARIABLE}; and mosquitto"
        )
    return _measure(python)


def _measure(python: Path) -> Found:
    with World(python) as world:
        world.device.start()
        payload = world.retained(discovery_topic("homeassistant", FLEET, DEVICE))
        announced = json.loads(payload)["components"]
        world.home_assistant.start()
        ready_s = world.wait(is_right, _RIGHT_S)
        states, warnings = world.home_assistant.states(), world.home_assistant.warnings()
    for warning in warnings:
        say(warning)
    shown = [key for key in announced if states.get(key, {}).get("state") not in {None, "unavailable"}]
    return {
        "ha_entities_share": 0.0 if warnings else len(shown) / len(announced),
        "ha_ready_s": ready_s,
        "ha_message_bytes": float(len(payload)),
    }
