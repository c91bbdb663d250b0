"""Ask a device one question over MQTT 5: python examples/ask.py "lock the front door"."""

import argparse
import json
import queue
import uuid

import paho.mqtt.client as mqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("prompt")
parser.add_argument("--host", default="127.0.0.1")
parser.add_argument("--port", type=int, default=1883)
parser.add_argument("--topic", default="edgeslm/v1/home/kitchen-pi/prompt")
arguments = parser.parse_args()

answers = queue.Queue()
reply_topic = f"ask/{uuid.uuid4()}"


def ask(client, userdata, flags, reason, properties):
    """Once connected: listen for the answer first, then ask."""
    client.subscribe(reply_topic, qos=1)
    about = Properties(PacketTypes.PUBLISH)
    about.ResponseTopic = reply_topic
    body = {"id": str(uuid.uuid4()), "prompt": arguments.prompt}
    client.publish(arguments.topic, json.dumps(body), qos=1, properties=about)


client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
client.on_connect = ask
client.on_message = lambda client, userdata, message: answers.put(json.loads(message.payload))
client.connect(arguments.host, arguments.port)
client.loop_start()
try:
    result = answers.get(timeout=30)
except queue.Empty:
    raise SystemExit(f"no answer on {arguments.topic} within 30 s: is the device online?") from None
client.disconnect()
if "error" in result:
    raise SystemExit(f"{result['error']['code']}: {result['error']['message']}")
print(result["text"])
