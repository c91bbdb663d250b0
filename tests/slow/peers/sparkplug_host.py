"""A Sparkplug host by pysparkplug, in an environment of its own: asks one prompt, prints what came.

Arguments: port, group, node, prompt. One line of JSON for each message; ends once the answer and a death came.
"""

import json
import queue
import sys
import time

import pysparkplug as spb

port, group, node, prompt = sys.argv[1:]
heard = queue.Queue()
client = spb.Client()
for kind in (spb.MessageType.NBIRTH, spb.MessageType.NDATA, spb.MessageType.NDEATH):
    topic = spb.Topic(group_id=group, message_type=kind, edge_node_id=node)
    client.subscribe(topic, spb.QoS.AT_LEAST_ONCE, lambda _, message: heard.put(message))
client.connect("127.0.0.1", port=int(port))


def command(*metrics):
    """Send one command."""
    now = spb.get_current_timestamp()
    made = tuple(
        spb.Metric(timestamp=now, name=name, datatype=kind, value=value) for name, kind, value in metrics
    )
    topic = spb.Topic(group_id=group, message_type=spb.MessageType.NCMD, edge_node_id=node)
    body = spb.NCmd(timestamp=now, metrics=made)
    message = spb.Message(topic=topic, payload=body, qos=spb.QoS.AT_MOST_ONCE, retain=False)
    client.publish(message, include_dtypes=True)


def told(message):
    """Print what came."""
    payload = message.payload
    metrics = [payload.bd_seq_metric] if isinstance(payload, spb.NDeath) else payload.metrics
    values = {one.name: [one.datatype.name, one.value] for one in metrics}
    kind = message.topic.message_type.name
    print(json.dumps({"kind": kind, "seq": getattr(payload, "seq", None), "metrics": values}), flush=True)
    return kind, values


deadline = time.monotonic() + 120
is_born = is_asked = False
next_try = 0.0
while time.monotonic() < deadline:
    if not is_born and time.monotonic() >= next_try:
        # What a host does that came too late for the birth.
        command(("Node Control/Rebirth", spb.DataType.BOOLEAN, True))
        next_try = time.monotonic() + 2
    try:
        kind, values = told(heard.get(timeout=0.5))
    except queue.Empty:
        continue
    is_born = is_born or kind == "NBIRTH"
    if is_born and not is_asked:
        is_asked = True
        command(("Prompt/Text", spb.DataType.STRING, prompt), ("Prompt/Id", spb.DataType.STRING, "scada-1"))
    if kind == "NDEATH":
        client.disconnect()
        sys.exit(0)
sys.exit("nothing died within two minutes")
