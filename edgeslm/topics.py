"""Sole owner of the topic tree: building and parsing topics are inverse functions.

The tree (``<root>`` is ``edgeslm/v1``)::

    <root>/<fleet>/<device>/availability | info | prompt | prompt/text | cancel
    <root>/<fleet>/<device>/result/<id> | result/text | stream/<id>
    <root>/<fleet>/<device>/m/power | m/inference | m/system | e/<type>
    <root>/<fleet>/pool/<model>/prompt

No other module joins or splits a topic string.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from edgeslm.errors import TopicError
from edgeslm.schema.base import is_identifier

ROOT = "edgeslm/v1"
POOL = "pool"
"""A device cannot be called this: it is the second-level name of the pools."""

MAX_TOPIC_BYTES = 1024
"""Response topics from outside longer than this are refused; the MQTT limit is 65,535."""

DeviceChannel = Literal[
    "availability",
    "info",
    "prompt",
    "prompt/text",
    "cancel",
    "result/text",
    "m/power",
    "m/inference",
    "m/system",
]
IdChannel = Literal["result", "stream", "e"]
_DEVICE_CHANNELS: tuple[DeviceChannel, ...] = (
    "availability",
    "info",
    "prompt",
    "prompt/text",
    "cancel",
    "result/text",
    "m/power",
    "m/inference",
    "m/system",
)
_ID_CHANNELS: tuple[IdChannel, ...] = ("result", "stream", "e")


@dataclass(frozen=True)
class DeviceTopic:
    """A topic of one device.

    Attributes:
        request_id: the last level of ``result``, ``stream`` and ``e``: a request's id, or an event's type.
    """

    fleet: str
    device: str
    channel: DeviceChannel | IdChannel
    request_id: str | None = None


@dataclass(frozen=True)
class PoolTopic:
    """The prompt topic shared by all devices of a fleet that serve `model`."""

    fleet: str
    model: str


def _identifier(what: str, text: str) -> str:
    if not is_identifier(text):
        raise TopicError(f"{what} '{text[:80]}' is not an identifier ([a-z0-9-], 1 to 64 characters)")
    return text


def _device_name(text: str) -> str:
    if text == POOL:
        raise TopicError(f"'{POOL}' cannot name a device: it holds the pools")
    return _identifier("device", text)


def _request_level(request_id: str) -> str:
    if not request_id or any(char in request_id for char in "/+#\x00"):
        raise TopicError(f"request id '{request_id[:80]}' is not one topic level")
    return request_id


def device_topic(fleet: str, device: str, channel: DeviceChannel) -> str:
    """The topic of a device's `channel`.

    Raises:
        TopicError: `fleet` or `device` is no identifier.
    """
    return f"{ROOT}/{_identifier('fleet', fleet)}/{_device_name(device)}/{channel}"


def id_topic(fleet: str, device: str, channel: IdChannel, request_id: str) -> str:
    """The topic of one request's results or stream, or of one type of event.

    Raises:
        TopicError: a part is not a single valid level.
    """
    return (
        f"{ROOT}/{_identifier('fleet', fleet)}/{_device_name(device)}/{channel}/{_request_level(request_id)}"
    )


def pool_topic(fleet: str, model: str) -> str:
    """The prompt topic of a model's pool.

    Raises:
        TopicError: `fleet` or `model` is no identifier.
    """
    return f"{ROOT}/{_identifier('fleet', fleet)}/{POOL}/{_identifier('model', model)}/prompt"


def shared_subscription(group: str, topic: str) -> str:
    """The filter under which one member of `group` gets each message (MQTT 5, section 4.8.2)."""
    return f"$share/{_identifier('group', group)}/{topic}"


def fleet_filter(fleet: str, channel: Literal["availability", "info"]) -> str:
    """The filter that matches `channel` of every device in a fleet."""
    return f"{ROOT}/{_identifier('fleet', fleet)}/+/{channel}"


def stream_filter(fleet: str, request_id: str) -> str:
    """The filter that matches the stream of one request on whichever device of the fleet takes it.

    Raises:
        TopicError: a part is not a single valid level.
    """
    return f"{ROOT}/{_identifier('fleet', fleet)}/+/stream/{_request_level(request_id)}"


def parse(topic: str) -> DeviceTopic | PoolTopic:
    """What `topic` addresses.

    Raises:
        TopicError: it is no topic of this tree.
    """
    prefix = ROOT + "/"
    if not topic.startswith(prefix):
        raise TopicError(f"'{topic[:120]}' is not under {ROOT}")
    levels = topic[len(prefix) :].split("/")
    if len(levels) == 4 and levels[1] == POOL and levels[3] == "prompt":
        return PoolTopic(_identifier("fleet", levels[0]), _identifier("model", levels[2]))
    if len(levels) >= 3:
        fleet, device, rest = levels[0], levels[1], "/".join(levels[2:])
        for channel in _DEVICE_CHANNELS:
            if rest == channel:
                return DeviceTopic(_identifier("fleet", fleet), _device_name(device), channel)
        for id_channel in _ID_CHANNELS:
            if levels[2] == id_channel and len(levels) == 4:
                return DeviceTopic(
                    _identifier("fleet", fleet), _device_name(device), id_channel, _request_level(levels[3])
                )
    raise TopicError(f"'{topic[:120]}' is no topic of the tree")


def is_publishable(topic: str) -> bool:
    """Whether a response topic named by a requester may be published to.

    Wildcards, NUL, ``$`` topics (the broker's own) and over-long names are refused, and so is everything of our
    own tree but results and streams: a response must never become another device's prompt.
    """
    if not topic or topic.startswith("$") or any(char in topic for char in "+#\x00"):
        return False
    if len(topic.encode("utf-8", "surrogatepass")) > MAX_TOPIC_BYTES:
        return False
    if not topic.startswith(ROOT + "/"):
        return True
    try:
        parsed = parse(topic)
    except TopicError:
        return False
    return isinstance(parsed, DeviceTopic) and parsed.channel in {"result", "stream", "result/text"}
