"""Sole owner of the topic tree: building and parsing topics are inverse functions.

The tree (``<root>`` is ``edgeslm/v1``)::

    <root>/<fleet>/<device>/availability | info | prompt | prompt/text | cancel
    <root>/<fleet>/<device>/result/<id> | result/text | stream/<id>
    <root>/<fleet>/<device>/m/power | m/inference | m/system | e/<type>
    <root>/<fleet>/<device>/desired | reported | identity | certificate
    <root>/<fleet>/<device>/cmd/<op>/<id>
    <root>/<fleet>/<device>/fetch/<file> | blocks/<file>
    <root>/<fleet>/pool/<model>/prompt
    <root>/<fleet>/enrol/<claim>/request | reply

Beside it two topics of Home Assistant's tree (``<prefix>`` is ``homeassistant`` unless changed)::

    <prefix>/device/<fleet>/<device>/config    what a device is, for Home Assistant
    <prefix>/status                            whether Home Assistant is there

No other module joins or splits a topic string. What a device reads and what it writes is said here too, since a
broker's access list follows from it and from nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from edgeslm.errors import TopicError
from edgeslm.schema.base import is_identifier

ROOT = "edgeslm/v1"
POOL = "pool"
ENROL = "enrol"
RESERVED_NAMES = frozenset({POOL, ENROL})
"""A device cannot be called this: these second-level names hold the pools, and first contact."""

HOME_ASSISTANT_PREFIX = "homeassistant"
"""First level of Home Assistant's tree, unless changed there; access lists open no other."""
HOME_ASSISTANT_ORDERS = ("choose-model", "retry", "self-test")
"""The operations that Home Assistant may order."""

OPERATION_EVENT = "operation"
"""The type of event (``e/<type>``) that answers commands."""

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
    "desired",
    "reported",
    "identity",
    "certificate",
]
IdChannel = Literal["result", "stream", "e", "fetch", "blocks"]
_DEVICE_CHANNELS: tuple[DeviceChannel, ...] = get_args(DeviceChannel)
_ID_CHANNELS: tuple[IdChannel, ...] = get_args(IdChannel)
_READ_BY_DEVICE: frozenset[DeviceChannel] = frozenset(
    {"prompt", "prompt/text", "cancel", "desired", "certificate"}
)
"""Where a device takes orders, with ``cmd`` and the pools; on all other channels of its own it speaks."""

EnrolChannel = Literal["request", "reply"]
_ENROL_CHANNELS: tuple[EnrolChannel, ...] = get_args(EnrolChannel)


@dataclass(frozen=True)
class DeviceTopic:
    """A topic of one device.

    Attributes:
        request_id: the last level of ``result`` and ``stream`` (a request's id), of ``e`` (an event's type), and of
            ``fetch`` and ``blocks`` (a file's sha256, or the name of a file of metadata).
    """

    fleet: str
    device: str
    channel: DeviceChannel | IdChannel
    request_id: str | None = None


@dataclass(frozen=True)
class CommandTopic:
    """A retained command to one device: `op` is what to do, `command_id` which one."""

    fleet: str
    device: str
    op: str
    command_id: str


@dataclass(frozen=True)
class PoolTopic:
    """The prompt topic shared by all devices of a fleet that serve `model`."""

    fleet: str
    model: str


@dataclass(frozen=True)
class EnrolTopic:
    """First contact under one claim."""

    fleet: str
    claim: str
    channel: EnrolChannel


@dataclass(frozen=True)
class Access:
    """Topic filters of an access list: what its holder may read and write."""

    reads: tuple[str, ...]
    writes: tuple[str, ...]


def _identifier(what: str, text: str) -> str:
    if not is_identifier(text):
        raise TopicError(f"{what} '{text[:80]}' is not an identifier ([a-z0-9-], 1 to 64 characters)")
    return text


def _device_name(text: str) -> str:
    if text in RESERVED_NAMES:
        raise TopicError(f"'{text}' cannot name a device: the topic tree needs that name itself")
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


def command_topic(fleet: str, device: str, op: str, command_id: str) -> str:
    """The topic of one command to a device.

    Raises:
        TopicError: a part is not a single valid level.
    """
    device_part = f"{_identifier('fleet', fleet)}/{_device_name(device)}"
    return f"{ROOT}/{device_part}/cmd/{_identifier('operation', op)}/{_request_level(command_id)}"


def enrol_topic(fleet: str, claim: str, channel: EnrolChannel) -> str:
    """The topic of first contact under `claim`.

    Raises:
        TopicError: `fleet` or `claim` is no identifier.
    """
    return f"{ROOT}/{_identifier('fleet', fleet)}/{ENROL}/{_identifier('claim', claim)}/{channel}"


def shared_subscription(group: str, topic: str) -> str:
    """The filter under which one member of `group` gets each message (MQTT 5, section 4.8.2)."""
    return f"$share/{_identifier('group', group)}/{topic}"


def fleet_filter(
    fleet: str, channel: Literal["availability", "desired", "info", "identity", "reported"]
) -> str:
    """The filter that matches `channel` of every device in a fleet."""
    return f"{ROOT}/{_identifier('fleet', fleet)}/+/{channel}"


def stream_filter(fleet: str, request_id: str) -> str:
    """The filter that matches the stream of one request on whichever device of the fleet takes it.

    Raises:
        TopicError: a part is not a single valid level.
    """
    return f"{ROOT}/{_identifier('fleet', fleet)}/+/stream/{_request_level(request_id)}"


def command_filter(fleet: str, device: str) -> str:
    """The filter that matches every command to a device.

    Raises:
        TopicError: `fleet` or `device` is no identifier.
    """
    return f"{ROOT}/{_identifier('fleet', fleet)}/{_device_name(device)}/cmd/+/+"


def commands_filter(fleet: str, op: str, command_id: str) -> str:
    """The filter that matches one command to whichever devices of a fleet.

    Raises:
        TopicError: a part is not a single valid level.
    """
    where = f"{ROOT}/{_identifier('fleet', fleet)}/+/cmd"
    return f"{where}/{_identifier('operation', op)}/{_request_level(command_id)}"


def event_filter(fleet: str, kind: str) -> str:
    """The filter that matches one type of event of every device in a fleet.

    Raises:
        TopicError: a part is not a single valid level.
    """
    return f"{ROOT}/{_identifier('fleet', fleet)}/+/e/{_request_level(kind)}"


def metrics_filters(fleet: str) -> tuple[str, ...]:
    """The filters that match what every device of a fleet reports on itself, and its events."""
    devices = f"{ROOT}/{_identifier('fleet', fleet)}/+"
    return (f"{devices}/m/power", f"{devices}/m/inference", f"{devices}/m/system", f"{devices}/e/+")


def fetch_filter(fleet: str) -> str:
    """The filter that matches what devices of a fleet ask for blocks of files and for metadata with."""
    return f"{ROOT}/{_identifier('fleet', fleet)}/+/fetch/+"


def enrol_filter(fleet: str) -> str:
    """The filter that matches the requests of every claim of a fleet."""
    return f"{ROOT}/{_identifier('fleet', fleet)}/{ENROL}/+/request"


def discovery_topic(fleet: str, device: str, prefix: str = HOME_ASSISTANT_PREFIX) -> str:
    """Where a device tells Home Assistant what it is.

    Fleet and device are levels of their own, as in :func:`device_user`, so that a broker's access list gives each
    device this topic of its own and no other's.

    Raises:
        TopicError: `fleet` or `device` is no identifier.
    """
    return f"{prefix}/device/{_identifier('fleet', fleet)}/{_device_name(device)}/config"


def birth_topic(prefix: str = HOME_ASSISTANT_PREFIX) -> str:
    """Where Home Assistant says that it has started, or is gone."""
    return f"{prefix}/status"


def home_assistant_filter() -> str:
    """The filter that matches everything of Home Assistant's tree."""
    return f"{HOME_ASSISTANT_PREFIX}/#"


def device_user(fleet: str, device: str) -> str:
    """The user name of a device at the broker, which is the common name of its certificate."""
    return f"{_identifier('fleet', fleet)}/{_device_name(device)}"


def claim_user(fleet: str, claim: str) -> str:
    """The user name of a claim's holder at the broker."""
    return f"{_identifier('fleet', fleet)}/{ENROL}/{_identifier('claim', claim)}"


def device_access(fleet: str, user: str = "%u") -> Access:
    """What a device of `fleet` may read and write, by the answers' own topics excepted.

    Args:
        fleet: whose.
        user: :func:`device_user` of a device; the default is what mosquitto puts a user's name in place of.
    """
    own = f"{ROOT}/{user}"
    reads = [f"{own}/{channel}" for channel in _DEVICE_CHANNELS if channel in _READ_BY_DEVICE]
    writes = [f"{own}/{channel}" for channel in _DEVICE_CHANNELS if channel not in _READ_BY_DEVICE]
    pools = f"{ROOT}/{_identifier('fleet', fleet)}/{POOL}/+/prompt"
    return Access(
        reads=(*reads, f"{own}/cmd/+/+", f"{own}/blocks/+", pools, birth_topic()),
        writes=(
            *writes,
            *(f"{own}/{channel}/+" for channel in _ID_CHANNELS if channel != "blocks"),
            f"{HOME_ASSISTANT_PREFIX}/device/{user}/config",
        ),
    )


def home_assistant_access(fleet: str) -> Access:
    """What Home Assistant may read and write: its own tree, what devices show, prompts, and the orders it has."""
    devices = f"{ROOT}/{_identifier('fleet', fleet)}/+"
    shown: tuple[DeviceChannel, ...] = (
        "availability",
        "info",
        "reported",
        "result/text",
        "m/power",
        "m/inference",
        "m/system",
    )
    return Access(
        reads=(
            home_assistant_filter(),
            *(f"{devices}/{channel}" for channel in shown),
            f"{devices}/result/+",
            f"{devices}/e/+",
        ),
        writes=(
            home_assistant_filter(),
            f"{devices}/prompt",
            *(f"{devices}/cmd/{op}/+" for op in HOME_ASSISTANT_ORDERS),
        ),
    )


def claim_access(user: str = "%u") -> Access:
    """What the holder of a claim may read and write.

    Args:
        user: :func:`claim_user` of the claim; the default is what mosquitto puts a user's name in place of.
    """
    return Access((f"{ROOT}/{user}/reply",), (f"{ROOT}/{user}/request",))


def door_access(fleet: str) -> Access:
    """What passes between the fleet and those who hold its claims."""
    return Access((f"{ROOT}/{_identifier('fleet', fleet)}/{ENROL}/+/reply",), (enrol_filter(fleet),))


def operator_access(fleet: str) -> Access:
    """What an operator may read and write: everything of the fleet, and what its devices show Home Assistant."""
    whole = f"{ROOT}/{_identifier('fleet', fleet)}/#"
    shown = f"{HOME_ASSISTANT_PREFIX}/device/{fleet}/+/config"
    return Access((whole, shown), (whole, shown))


def pool_filter(fleet: str) -> str:
    """The filter that matches everything of a fleet's pools."""
    return f"{ROOT}/{_identifier('fleet', fleet)}/{POOL}/#"


def retained_topics(fleet: str, device: str) -> tuple[str, ...]:
    """The topics of a device on which a broker keeps its latest word, commands excepted."""
    kept: tuple[DeviceChannel, ...] = ("availability", "info", "desired", "reported", "identity")
    return tuple(device_topic(fleet, device, channel) for channel in kept)


def parse(topic: str) -> DeviceTopic | CommandTopic | PoolTopic | EnrolTopic:
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
    if len(levels) == 4 and levels[1] == ENROL:
        for enrol_channel in _ENROL_CHANNELS:
            if levels[3] == enrol_channel:
                return EnrolTopic(
                    _identifier("fleet", levels[0]), _identifier("claim", levels[2]), enrol_channel
                )
    if len(levels) == 5 and levels[2] == "cmd":
        return CommandTopic(
            _identifier("fleet", levels[0]),
            _device_name(levels[1]),
            _identifier("operation", levels[3]),
            _request_level(levels[4]),
        )
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
