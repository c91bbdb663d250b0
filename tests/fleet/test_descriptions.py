"""What devices say of themselves, over a real mosquitto with TLS."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.update_fleet_rig import Visitor, fleet_rig, wait_for
from edgeslm import codec, topics
from edgeslm.fleet.selection import select
from edgeslm.link.broker import find_mosquitto
from edgeslm.schema.message import Info

pytestmark = pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed")


def info(device: str, meter: str) -> bytes:
    return codec.encode(
        Info.model_validate(
            {
                "device": device,
                "agent": "0.1.0",
                "python": "3.11.9",
                "runtime": "ai-edge-litert 2.3.0",
                "board": "pi-4b",
                "tasks": ("generate",),
                "models": (),
                "meter": meter,
                "max_queue": 8,
                "max_body_bytes": 65_536,
                "started_at": "2026-11-24T12:00:00Z",
            }
        )
    )


def test_a_service_learns_what_a_device_says_of_itself() -> None:
    with fleet_rig() as rig:
        with rig.service():
            identity = rig.join("kitchen", rig.claim("kitchen").claim)
        topic = topics.device_topic("green", "kitchen", "info")
        with Visitor(identity.broker_config(), "its-agent") as device:
            device.publish(topic, info("kitchen", "measured"), retain=True)  # while nobody listens

            def is_found(query: str) -> bool:
                with rig.store.read() as session:
                    return [one.name for one in select(session, queries=[query])] == ["kitchen"]

            with rig.service():
                assert wait_for(lambda: is_found("meter = measured"))
                device.publish(topic, b"rubbish", retain=True)
                device.publish(topic, info("kitchen", "estimated"), retain=True)
                assert wait_for(lambda: is_found("meter = estimated and runtime ~ ai-edge-litert*"))
