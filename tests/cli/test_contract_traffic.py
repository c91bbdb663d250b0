"""What a real agent says over a real broker is what the contract says."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
import uuid
from typing import Any

import jsonschema_rs
import pytest

from edgeslm import topics
from edgeslm.cli.contract_channels import MESSAGES, channel_of
from edgeslm.cli.contract_check import fault_of
from edgeslm.cli.contract_schemas import standalone
from edgeslm.link.broker import EmbeddedBroker, available_kinds
from edgeslm.link.mqtt import MqttLink
from edgeslm.link.port import Message

WAIT_S = 60.0
FORMS = {message.name: message for message in MESSAGES}

pytestmark = pytest.mark.skipif("mosquitto" not in available_kinds(), reason="mosquitto is not installed")


class Tap:
    """A client that hears everything and asks."""

    def __init__(self, broker: EmbeddedBroker) -> None:
        self.heard: list[Message] = []
        self.connected = threading.Event()
        config = broker.client_config().model_copy(update={"session_expiry_s": 0})
        self.link = MqttLink(config, f"tap-{uuid.uuid4().hex[:8]}")
        self.link.start(self, [(topics.operator_access("home").reads[0], 1), ("asked/here", 1)])
        assert self.connected.wait(WAIT_S)

    def on_message(self, message: Message) -> None:
        message.acknowledge()
        self.heard.append(message)

    def on_connected(self, *, session_present: bool) -> None:
        del session_present
        self.connected.set()

    def on_disconnected(self, reason: str) -> None:
        del reason

    def on_published(self, token: int) -> None:
        del token

    def wait(self, topic: str) -> Message:
        deadline_s = time.monotonic() + WAIT_S
        while time.monotonic() < deadline_s:
            for message in self.heard:
                if message.topic == topic and message.payload:
                    return message
            time.sleep(0.02)
        raise AssertionError(f"nothing on {topic}; heard: {sorted({one.topic for one in self.heard})}")


@pytest.fixture(scope="module")
def heard(tmp_path_factory) -> list[Message]:
    """All messages of an agent that was asked in every way, and of those who asked."""
    directory = tmp_path_factory.mktemp("contract")
    config = {"device": "kitchen-pi", "models": ["builtin:home-command"], "metrics": {"interval_s": 1}}
    (directory / "agent.yaml").write_text(json.dumps(config))
    with EmbeddedBroker(kind="mosquitto") as broker:
        tap = Tap(broker)
        command = [sys.executable, "-m", "edgeslm", "agent", "run", "--config", str(directory / "agent.yaml")]
        command += ["--port", str(broker.port), "--state-dir", str(directory / "state")]
        agent = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        try:
            own = f"{topics.ROOT}/home/kitchen-pi"
            tap.wait(f"{own}/availability")
            asked: list[tuple[str, dict[str, Any] | str, dict[str, Any]]] = [
                ("prompt", {"id": "q-1", "prompt": "lock the front door", "stream": True}, {}),
                ("prompt", {"id": "q-2", "prompt": "lock it", "options": {"tempreature": 1}}, {}),
                ("prompt", {"id": "q-3", "prompt": "turn on the lamp"}, {"response_topic": "asked/here"}),
                ("prompt/text", "lock the front door", {}),
                ("cancel", {"id": "q-9"}, {}),
            ]
            for channel, body, more in asked:
                payload = body.encode() if isinstance(body, str) else json.dumps(body).encode()
                tap.link.publish(Message(f"{own}/{channel}", payload, **more))
            for channel in (
                "result/q-1",
                "result/q-2",
                "result/text",
                "stream/q-1",
                "m/power",
                "m/system",
                "info",
            ):
                tap.wait(f"{own}/{channel}")
            tap.wait("asked/here")
        finally:
            agent.terminate()
            agent.wait(WAIT_S)
        deadline_s = time.monotonic() + WAIT_S
        while b"offline" not in [one.payload for one in tap.heard if one.topic.endswith("availability")][-1]:
            assert time.monotonic() < deadline_s
            time.sleep(0.02)
        tap.link.stop()
    return tap.heard


def _is_form(name: str, payload: bytes) -> bool:
    form = FORMS[name]
    if form.model is None:
        return form.body == "text" and not payload.startswith(b'{"v"')
    try:
        return bool(jsonschema_rs.is_valid(standalone(form.model), json.loads(payload)))
    except ValueError:
        return False


def test_every_message_is_one_of_its_channel(heard):
    own = [message for message in heard if message.topic.startswith(topics.ROOT) and message.payload]
    assert len(own) >= 12
    wrong = [
        (message.topic, message.payload[:200])
        for message in own
        # The one wrong request was sent on purpose.
        if not any(_is_form(name, message.payload) for name in channel_of(message.topic).messages)
        and b"tempreature" not in message.payload
    ]
    assert wrong == []


def test_the_check_finds_the_one_wrong_request(heard):
    wrong = [
        fault
        for message in heard
        if message.topic.startswith(topics.ROOT)
        and (fault := fault_of(message.topic, message.payload)) is not None
    ]
    assert wrong == ["unknown option: tempreature"]


def test_a_request_that_the_contract_refuses_the_device_refuses(heard):
    refused = next(message for message in heard if message.topic.endswith("result/q-2"))
    assert json.loads(refused.payload)["error"]["code"] == "bad_request"


def test_answers_go_where_the_contract_says(heard):
    there = [message for message in heard if message.topic == "asked/here"]
    assert [json.loads(message.payload)["id"] for message in there] == ["q-3"]
    assert not [message for message in heard if message.topic.endswith("result/q-3")]


def test_quality_of_service_is_that_of_the_contract(heard):
    for message in heard:
        if message.topic.startswith(topics.ROOT):
            assert message.qos == channel_of(message.topic).qos, message.topic
