"""The packs at a real broker, among peers that hear and answer as Zigbee2MQTT, Tasmota, ESPHome and Shelly do."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edgeslm.link.broker import EmbeddedBroker, available_kinds
from edgeslm.link.mqtt import MqttLink
from edgeslm.link.port import Message

ROOT = Path(__file__).parents[2]
PACKS = sorted((ROOT / "examples" / "peers").glob("*.yaml"))
ANSWERS = ROOT / "tests" / "golden" / "traffic" / "zigbee2mqtt.answers.jsonl"
SHELLY = "shellyplus1pm-a8032ab1fe78"
WAIT_S = 60.0

pytestmark = pytest.mark.skipif("mosquitto" not in available_kinds(), reason="mosquitto is not installed")


def _hue(request: dict) -> dict:
    return {"brightness": 160, "color_mode": "color_temp", "linkquality": 109, "state": request["state"]}


class Peers:
    """All peers in one client: each hears its commands and says what came of them."""

    def __init__(self, broker: EmbeddedBroker) -> None:
        self.heard: list[tuple[str, bytes]] = []
        self.connected = threading.Event()
        self.link = MqttLink(broker.client_config().model_copy(update={"session_expiry_s": 0}), "peers")
        self.answers: dict[str, Callable[[bytes], tuple[str, object]]] = {
            "zigbee2mqtt/hall_light/set": lambda body: ("zigbee2mqtt/hall_light", _hue(json.loads(body))),
            "zigbee2mqtt/bridge/request/permit_join": self._permit_join,
            "cmnd/iron/TelePeriod": lambda body: ("stat/iron/RESULT", {"TelePeriod": int(body)}),
            "bathroom/light/mirror/command": lambda body: ("bathroom/light/mirror/state", json.loads(body)),
            f"{SHELLY}/rpc": self._shelly,
        }
        self.link.start(self, [(topic, 1) for topic in self.answers])
        assert self.connected.wait(WAIT_S)

    def _permit_join(self, body: bytes) -> tuple[str, object]:
        request = json.loads(body)
        answer = {"data": {}, "error": "adapter is disconnected", "status": "error"}
        return "zigbee2mqtt/bridge/response/permit_join", {**answer, "transaction": request["transaction"]}

    def _shelly(self, body: bytes) -> tuple[str, object]:
        request = json.loads(body)
        answer = {"id": request["id"], "src": SHELLY, "dst": request["src"], "result": {"was_on": True}}
        return f"{request['src']}/rpc", answer

    def on_message(self, message: Message) -> None:
        message.acknowledge()
        self.heard.append((message.topic, message.payload))
        topic, body = self.answers[message.topic](message.payload)
        self.say(topic, body)

    def on_connected(self, *, session_present: bool) -> None:
        del session_present
        self.connected.set()

    def on_disconnected(self, reason: str) -> None:
        del reason

    def on_published(self, token: int) -> None:
        del token

    def say(self, topic: str, body: object, *, retain: bool = False) -> None:
        payload = body.encode() if isinstance(body, str) else json.dumps(body).encode()
        assert self.link.publish(Message(topic, payload, retain=retain)) is not None

    def wait(self, topic: str) -> bytes:
        deadline_s = time.monotonic() + WAIT_S
        while time.monotonic() < deadline_s:
            for heard, payload in self.heard:
                if heard == topic:
                    return payload
            time.sleep(0.01)
        raise AssertionError(f"nothing on {topic}; heard: {self.heard}")


class Rig:
    """The peers, and what the rules tell of their firings."""

    def __init__(self, peers: Peers, output: Path) -> None:
        self.peers = peers
        self.output = output

    def firings(self) -> list[dict]:
        lines = self.output.read_text("utf-8").splitlines()
        return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]

    def wait_fired(self, rule: str) -> dict:
        deadline_s = time.monotonic() + WAIT_S
        while time.monotonic() < deadline_s:
            for firing in self.firings():
                if firing["rule"] == rule:
                    return firing
            time.sleep(0.02)
        raise AssertionError(f"{rule} did not fire: {self.output.read_text('utf-8')[-2000:]}")


@pytest.fixture(scope="module")
def rig(tmp_path_factory) -> Iterator[Rig]:
    output = tmp_path_factory.mktemp("peers") / "firings.jsonl"
    with EmbeddedBroker(kind="mosquitto") as broker, output.open("wb") as out:
        peers = Peers(broker)
        command = [sys.executable, "-m", "edgeslm", "rules", "run", *map(str, PACKS)]
        command += ["--port", str(broker.port), "--answers", str(ANSWERS), "--json"]
        running = subprocess.Popen(command, stdout=out, stderr=subprocess.DEVNULL)
        made = Rig(peers, output)
        try:
            # Said until it is heard: when the rules have subscribed, nobody tells.
            deadline_s = time.monotonic() + WAIT_S
            while not made.firings():
                assert time.monotonic() < deadline_s
                assert running.poll() is None
                peers.say("tele/iron/LWT", "Offline")
                time.sleep(0.2)
            yield made
        finally:
            running.terminate()
            running.wait(WAIT_S)
            peers.link.stop()


def test_zigbee2mqtt_light_follows_motion_and_word(rig):
    motion = {"battery": 87, "illuminance": 9, "linkquality": 76, "occupancy": True}
    rig.peers.say("zigbee2mqtt/hall_motion", motion)
    assert json.loads(rig.peers.wait("zigbee2mqtt/hall_light/set"))["state"] == "ON"
    rig.peers.say("house/said", "turn off the hall light")
    assert rig.wait_fired("light-by-word")["outcome"] == "acted"


def test_zigbee2mqtt_bridge_refuses_under_our_transaction(rig):
    rig.peers.say("house/pair", "start")
    assert (
        json.loads(rig.peers.wait("zigbee2mqtt/bridge/request/permit_join"))["transaction"] == "edgeslm-join"
    )
    refused = rig.wait_fired("joining-refused")
    assert "adapter is disconnected" in refused["actions"][0]["payload"]


def test_tasmota_plug_that_comes_is_told_how_often_to_report(rig):
    rig.peers.say("tele/iron/LWT", "Online")
    assert rig.peers.wait("cmnd/iron/TelePeriod") == b"60"


def test_esphome_light_goes_on_with_the_door(rig):
    rig.peers.say("bathroom/light/mirror/state", {"state": "OFF"})
    rig.peers.say("bathroom/binary_sensor/door/state", "ON")
    assert json.loads(rig.peers.wait("bathroom/light/mirror/command"))["state"] == "ON"


def test_shelly_too_hot_is_switched_off_over_rpc_and_its_answer_heard(rig):
    status = {"id": 0, "output": True, "apower": 2300.0, "temperature": {"tC": 84.7, "tF": 184.5}}
    rig.peers.say(f"{SHELLY}/status/switch:0", status)
    request = json.loads(rig.peers.wait(f"{SHELLY}/rpc"))
    assert (request["method"], request["params"]) == ("Switch.Set", {"id": 0, "on": False})
    assert rig.wait_fired("switched-off")["actions"][0]["payload"] == "the relay was on and is off now"
