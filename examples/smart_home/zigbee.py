"""Zigbee2MQTT as seen from its broker: retained states, `/set` and `/get`, availability, and the bridge's own topics.

Only the form of the messages is real; there is no radio behind it. See zigbee2mqtt.io, "MQTT topics and messages".
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from edgeslm.errors import LinkError
from edgeslm.link.mqtt import MqttLink
from edgeslm.link.port import Message
from edgeslm.schema.config import BrokerConfig

BASE = "zigbee2mqtt"
State = dict[str, Any]

SENSORS: Mapping[str, State] = {
    "hall_motion": {"occupancy": False, "illuminance": 480, "battery": 87, "linkquality": 76},
    "hall_door": {"contact": True, "battery": 64, "linkquality": 91},
    "living_window": {"contact": True, "battery": 92, "linkquality": 83},
}
ACTUATORS: Mapping[str, State] = {
    "hall_light": {"state": "OFF", "brightness": 254, "linkquality": 109},
    "kitchen_ceiling": {"state": "OFF", "brightness": 254, "linkquality": 120},
    "living_lamp": {"state": "ON", "brightness": 254, "color": {"hex": "#FFFFFF"}, "linkquality": 98},
    "living_blinds": {"state": "OPEN", "position": 100, "linkquality": 60},
    "living_heating": {"occupied_heating_setpoint": 20, "system_mode": "heat", "linkquality": 71},
    "front_door": {"state": "UNLOCK", "lock_state": "unlocked", "battery": 77, "linkquality": 88},
}
"""What each thing understands is what stands in its state, and `transition`, which is obeyed at once."""
_WORDS = frozenset({"ON", "OFF", "OPEN", "CLOSE", "LOCK", "UNLOCK"})


class Zigbee:
    """The bridge with all that has joined it."""

    def __init__(self, broker: BrokerConfig) -> None:
        """Take the broker; nothing is said yet."""
        self._link = MqttLink(broker.model_copy(update={"session_expiry_s": 0}), "zigbee2mqtt")
        self._changed = threading.Condition()
        self._is_connected = False
        self._states = {name: dict(state) for name, state in {**SENSORS, **ACTUATORS}.items()}
        self.orders: list[tuple[str, str]] = []

    def start(self, timeout_s: float = 30.0) -> None:
        """Connect, and say how everything is.

        Raises:
            LinkError: the broker cannot be reached.
        """
        self._link.start(self, [(f"{BASE}/+/set", 1), (f"{BASE}/+/get", 1), (f"{BASE}/bridge/request/+", 1)])
        if not self.wait(lambda: self._is_connected, timeout_s):
            raise LinkError("the simulated Zigbee2MQTT cannot reach the broker")
        self._say("bridge/state", {"state": "online"}, retain=True)
        self._say("bridge/info", {"version": "2.1.3", "permit_join": False}, retain=True)
        devices = [{"friendly_name": name, "type": "EndDevice", "supported": True} for name in self._states]
        self._say("bridge/devices", devices, retain=True)
        for name in self._states:
            self._say(f"{name}/availability", {"state": "online"}, retain=True)
            self._tell(name)

    def stop(self) -> None:
        """Say that the bridge is gone, and leave."""
        body = json.dumps({"state": "offline"}).encode()
        self._link.stop(Message(f"{BASE}/bridge/state", body, retain=True))

    def sense(self, sensor: str, **readings: object) -> None:
        """`sensor` sees something else."""
        with self._changed:
            self._states[sensor].update(readings)
        self._tell(sensor)

    def state(self, name: str) -> State:
        """How a thing is."""
        with self._changed:
            return dict(self._states[name])

    def say(self, topic: str, text: str) -> None:
        """Publish as somebody else in the home does."""
        self._publish(Message(topic, text.encode()))

    def wait(self, holds: Callable[[], bool], timeout_s: float = 30.0) -> bool:
        """Whether `holds` becomes true in time; it is looked at whenever something changed."""
        with self._changed:
            return self._changed.wait_for(holds, timeout_s)

    # --- LinkEvents: on the link's thread, which may publish but not wait ---------------------------------------

    def on_message(self, message: Message) -> None:
        """An order to a thing, or a request to the bridge."""
        message.acknowledge()
        if message.topic.startswith(f"{BASE}/bridge/request/"):
            self._answer(message.topic.removeprefix(f"{BASE}/bridge/request/"), message.payload)
            return
        name, _, verb = message.topic.removeprefix(f"{BASE}/").rpartition("/")
        if name not in self._states:
            return
        if verb == "set":
            with self._changed:
                self.orders.append((message.topic, message.payload.decode("utf-8", "replace")))
                self._states[name].update(_understood(self._states[name], message.payload))
                self._changed.notify_all()
        self._tell(name)

    def on_connected(self, *, session_present: bool) -> None:
        """The broker is there."""
        del session_present
        with self._changed:
            self._is_connected = True
            self._changed.notify_all()

    def on_disconnected(self, reason: str) -> None:
        """The link comes back by itself."""

    def on_published(self, token: int) -> None:
        """Nobody waits for that here."""

    # --- speaking -----------------------------------------------------------------------------------------------

    def _answer(self, request: str, payload: bytes) -> None:
        body = _object(payload)
        answer: State = {"data": {}, "error": f"no such request: {request}", "status": "error"}
        if request == "permit_join":
            answer = {"data": {"time": body.get("time", 0)}, "status": "ok"}
        if "transaction" in body:
            answer["transaction"] = body["transaction"]
        self._say(f"bridge/response/{request}", answer)

    def _tell(self, name: str) -> None:
        self._say(name, self.state(name), retain=True)

    def _say(self, topic: str, body: object, *, retain: bool = False) -> None:
        self._publish(Message(f"{BASE}/{topic}", json.dumps(body).encode(), retain=retain))

    def _publish(self, message: Message) -> None:
        deadline_s = time.monotonic() + 10.0
        while self._link.publish(message) is None:  # as much is under way as the link holds
            if time.monotonic() > deadline_s:
                raise LinkError("the broker takes nothing from the simulated Zigbee2MQTT")
            time.sleep(0.02)


def _object(payload: bytes) -> State:
    try:
        body = json.loads(payload)
    except ValueError:
        return {}
    return body if isinstance(body, dict) else {}


def _understood(state: State, payload: bytes) -> State:
    """What of an order changes a thing: fields that it has, with words that it knows."""
    body = _object(payload)
    wanted = {name: body[name] for name in body if name in state and name != "linkquality"}
    if wanted.get("state") not in {None, *_WORDS}:
        del wanted["state"]
    if wanted.get("state") in {"OPEN", "CLOSE"}:
        wanted["position"] = 100 if wanted["state"] == "OPEN" else 0
    if wanted.get("state") in {"LOCK", "UNLOCK"}:
        wanted["lock_state"] = {"LOCK": "locked", "UNLOCK": "unlocked"}[wanted["state"]]
    if "position" in wanted and "state" in state:
        wanted["state"] = "CLOSE" if wanted["position"] == 0 else "OPEN"
    if ("brightness" in wanted or "color" in wanted) and "state" not in wanted:
        wanted["state"] = "ON"
    return wanted
