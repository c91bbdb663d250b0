"""A peer of the agent figures: a round trip over MQTT where nothing is done. ``measure_echo`` starts it.

The shortest honest paho program: it sends each body back to its Response Topic, without journal, queue or
model.
"""

from __future__ import annotations

import socket
import sys
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties


def _on_socket_open(_client: paho.Client, _userdata: Any, sock: Any) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _on_connect(client: paho.Client, _userdata: Any, _flags: Any, _reason: Any, _properties: Any) -> None:
    client.subscribe(sys.argv[2], 1)


def _on_subscribe(_client: paho.Client, _userdata: Any, _mid: int, _reasons: Any, _properties: Any) -> None:
    print("ready", flush=True)


def _on_message(client: paho.Client, _userdata: Any, message: paho.MQTTMessage) -> None:
    properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
    properties.CorrelationData = getattr(message.properties, "CorrelationData", b"")
    topic = getattr(message.properties, "ResponseTopic", "")
    client.publish(topic, message.payload, 1, False, properties)


def main() -> None:
    """Echo on port and topic of the command line until killed."""
    client = paho.Client(CallbackAPIVersion.VERSION2, protocol=paho.MQTTv5)
    client.on_socket_open = _on_socket_open
    client.on_connect = _on_connect
    client.on_subscribe = _on_subscribe
    client.on_message = _on_message
    client.connect("127.0.0.1", int(sys.argv[1]))
    client.loop_forever()


if __name__ == "__main__":
    main()
