"""Every channel of the topic tree: what travels there, who sends it, with which quality of service, retained or not.

What always holds: addresses are built by :mod:`edgeslm.topics`, so none stands here that it does not know; a test
says that none is missing. The view is that of a device: it *receives* prompts and *sends* results.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Final, Literal, TypeAlias

from pydantic import BaseModel

from edgeslm import topics
from edgeslm.schema.assignment import Assignment
from edgeslm.schema.delivery import BlockRefusal, BlockRequest, MetadataRefusal, MetadataRequest
from edgeslm.schema.enrol import CertificateReply, IdentityReport, Sealed
from edgeslm.schema.message import Availability, CancelRequest, Info, PromptRequest, Result, StreamDelta
from edgeslm.schema.metrics import Event, InferenceMetrics, PowerMetrics, SystemMetrics
from edgeslm.schema.operation import OperationCommand, OperationEvent
from edgeslm.schema.update import Reported

Action: TypeAlias = Literal["receive", "send"]
Body: TypeAlias = Literal["json", "signed", "text", "block", "metadata"]

_FLEET: Final = "fleet-name"
_DEVICE: Final = "device-name"
_LAST: Final = "last-level"
_SECOND: Final = "second-level"


@dataclass(frozen=True)
class MessageDoc:
    """One form of message.

    Attributes:
        name: unique among all messages.
        model: of its body; for `signed` that of the signed part, and ``None`` for what is no JSON.
        body: form of the body.
    """

    name: str
    summary: str
    model: type[BaseModel] | None = None
    body: Body = "json"


@dataclass(frozen=True)
class ChannelDoc:
    """One channel.

    Attributes:
        name: unique.
        address: the topic, with ``{parameters}``.
        action: what the device does there.
        messages: by name, of :data:`MESSAGES`.
        note: what to know when using it.
        reply: the channel of the answer, for what is asked.
        reply_anywhere: the answer goes to the Response Topic, where the request names one.
    """

    name: str
    address: str
    action: Action
    title: str
    messages: tuple[str, ...]
    note: str
    qos: Literal[0, 1] = 1
    retain: bool = False
    parameters: tuple[str, ...] = ("fleet", "device")
    reply: str | None = None
    reply_anywhere: bool = False


PARAMETERS: Final[Mapping[str, str]] = {
    "fleet": "Name of the fleet: 1 to 64 of `a-z`, `0-9` and `-`; `home` unless it was set up otherwise.",
    "device": "Name of the device, of the same form; never `pool` or `enrol`.",
    "id": "Chosen by whoever asks: 1 to 128 of letters, digits and `. _ : -`.",
    "model": "Name of a model that devices serve, such as `home-command`.",
    "type": "Type of the event, such as `throttled`.",
    "op": "Name of an operation, such as `self-test`.",
    "file": "sha256 of a file in hexadecimal, or the name of a file of release metadata, such as `7.root.json`.",
    "claim": "Public part of a claim: six characters.",
}

MESSAGES: Final[tuple[MessageDoc, ...]] = (
    MessageDoc("prompt", "One prompt with its options.", PromptRequest),
    MessageDoc("promptText", "The prompt itself, in UTF-8.", body="text"),
    MessageDoc("cancel", "Take a prompt back.", CancelRequest),
    MessageDoc("result", "An answer with its receipt, or an error.", Result),
    MessageDoc("resultText", "The answer itself, in UTF-8.", body="text"),
    MessageDoc("delta", "A piece of an answer.", StreamDelta),
    MessageDoc("availability", "Whether the device is there.", Availability),
    MessageDoc("info", "What the device is, and what it serves.", Info),
    MessageDoc("power", "Draw, energy by cause, budget, battery.", PowerMetrics),
    MessageDoc("inference", "What the models did.", InferenceMetrics),
    MessageDoc("system", "Temperature, memory, disk.", SystemMetrics),
    MessageDoc("event", "Something happened.", Event),
    MessageDoc("assignment", "What the device should run, signed.", Assignment, "signed"),
    MessageDoc("reported", "What the device runs, and how changes go.", Reported),
    MessageDoc("command", "What the device is to do once.", OperationCommand),
    MessageDoc("operation", "How far the device is with a command.", OperationEvent),
    MessageDoc("identity", "Which certificate the device uses, on which machine.", IdentityReport),
    MessageDoc("certificate", "The next certificate of the device.", CertificateReply),
    MessageDoc("blockRequest", "Ask for blocks of a file.", BlockRequest),
    MessageDoc("metadataRequest", "Ask for a part of a file of release metadata.", MetadataRequest),
    MessageDoc(
        "block",
        "`SLB1`, number of the block (uint32, little-endian), its bytes: 64 KiB or less.",
        body="block",
    ),
    MessageDoc(
        "metadata",
        "`SLM1`, number of the request (uint64), offset and size of the file (uint32 each), little-endian; the part.",
        body="metadata",
    ),
    MessageDoc("blockRefusal", "Why there are no blocks.", BlockRefusal),
    MessageDoc("metadataRefusal", "Why there is no metadata.", MetadataRefusal),
    MessageDoc("enrolRequest", "First contact of a device; the sealed text is an enrol-request.", Sealed),
    MessageDoc("enrolReply", "The answer to first contact; the sealed text is an enrol-reply.", Sealed),
)


def message_named(name: str) -> MessageDoc:
    """The form of message with that name, one of :data:`MESSAGES`."""
    return next(message for message in MESSAGES if message.name == name)


def channel_of(topic: str) -> ChannelDoc:
    """The channel that `topic` belongs to.

    Raises:
        TopicError: it is no topic of the tree.
    """
    return _by_kind()[_kind(topic)]


@cache
def _by_kind() -> dict[tuple[type, str | None], ChannelDoc]:
    stand_ins = dict.fromkeys(PARAMETERS, "x")
    return {_kind(channel.address.format(**stand_ins)): channel for channel in channels()}


def _kind(topic: str) -> tuple[type, str | None]:
    parsed = topics.parse(topic)
    channel = parsed.channel if isinstance(parsed, topics.DeviceTopic | topics.EnrolTopic) else None
    return type(parsed), channel


def channels() -> tuple[ChannelDoc, ...]:
    """All channels, in the order in which a reader meets them."""
    return (
        *_prompt_channels(),
        *_state_channels(),
        *_fleet_channels(),
    )


def _prompt_channels() -> tuple[ChannelDoc, ...]:
    return (
        ChannelDoc(
            "prompt",
            _device("prompt"),
            "receive",
            "Answer a prompt",
            ("prompt",),
            "Not retained: what a broker keeps is never carried out. The same id again gets the stored answer.",
            reply="result",
            reply_anywhere=True,
        ),
        ChannelDoc(
            "poolPrompt",
            _named(topics.pool_topic(_FLEET, _LAST), "model"),
            "receive",
            "Answer a prompt of a pool",
            ("prompt",),
            "One device of the fleet that serves the model takes it: they share the subscription "
            "`$share/<model>/<topic>` of MQTT 5.",
            parameters=("fleet", "model"),
            reply="result",
            reply_anywhere=True,
        ),
        ChannelDoc(
            "promptText",
            _device("prompt/text"),
            "receive",
            "Answer plain text",
            ("promptText",),
            "For people, sensors and home automation: no id, so nothing to take back.",
            reply="resultText",
            reply_anywhere=True,
        ),
        ChannelDoc(
            "cancel",
            _device("cancel"),
            "receive",
            "Take a prompt back",
            ("cancel",),
            "Of a device, not of a pool.",
        ),
        ChannelDoc(
            "result",
            _with_id("result", "id"),
            "send",
            "Tell a result",
            ("result",),
            "Only where the request named no Response Topic.",
            parameters=("fleet", "device", "id"),
        ),
        ChannelDoc(
            "resultText",
            _device("result/text"),
            "send",
            "Tell the answer to plain text",
            ("resultText", "result"),
            "The text alone; an error comes as a result in JSON.",
        ),
        ChannelDoc(
            "stream",
            _with_id("stream", "id"),
            "send",
            "Tell an answer while it grows",
            ("delta",),
            "At most once each, in order of `seq`; a gap is a loss. The result holds the whole text.",
            qos=0,
            parameters=("fleet", "device", "id"),
        ),
    )


def _state_channels() -> tuple[ChannelDoc, ...]:
    return (
        ChannelDoc(
            "availability",
            _device("availability"),
            "send",
            "Tell presence",
            ("availability",),
            "`offline` is the will.",
            retain=True,
        ),
        ChannelDoc(
            "info",
            _device("info"),
            "send",
            "Tell what it is",
            ("info",),
            "At each start and change.",
            retain=True,
        ),
        ChannelDoc(
            "power",
            _device("m/power"),
            "send",
            "Report power",
            ("power",),
            "Once a minute, unless set otherwise.",
        ),
        ChannelDoc(
            "inference", _device("m/inference"), "send", "Report inference", ("inference",), "As `m/power`."
        ),
        ChannelDoc("system", _device("m/system"), "send", "Report the system", ("system",), "As `m/power`."),
        ChannelDoc(
            "events",
            _with_id("e", "type"),
            "send",
            "Tell an event",
            ("event", "operation"),
            f"`e/{topics.OPERATION_EVENT}` answers commands; all other types are events.",
            parameters=("fleet", "device", "type"),
        ),
    )


def _fleet_channels() -> tuple[ChannelDoc, ...]:
    return (
        ChannelDoc(
            "desired",
            _device("desired"),
            "receive",
            "Follow an assignment",
            ("assignment",),
            "Canonical JSON, signed by keys to which the release repository delegates; short-lived.",
            retain=True,
        ),
        ChannelDoc(
            "reported",
            _device("reported"),
            "send",
            "Report what runs",
            ("reported",),
            "`seq` rises with each report of an `epoch`.",
            retain=True,
        ),
        ChannelDoc(
            "commands",
            _named(topics.command_topic(_FLEET, _DEVICE, _SECOND, _LAST), "id"),
            "receive",
            "Do what an operator asks for",
            ("command",),
            "Retained until whoever asked clears it, so that a device which is away finds it; carried out once. "
            f"Answered on `e/{topics.OPERATION_EVENT}`.",
            retain=True,
            parameters=("fleet", "device", "op", "id"),
            reply="events",
        ),
        ChannelDoc(
            "identity",
            _device("identity"),
            "send",
            "Tell which certificate is in use",
            ("identity",),
            "After each connection.",
            retain=True,
        ),
        ChannelDoc(
            "certificate",
            _device("certificate"),
            "receive",
            "Take the next certificate",
            ("certificate",),
            "For the key that the fleet knows; another name in it renames the device.",
        ),
        ChannelDoc(
            "fetch",
            _with_id("fetch", "file"),
            "send",
            "Ask for blocks or metadata",
            ("blockRequest", "metadataRequest"),
            "Blocks by sha256, metadata by name. A request without blocks wants no more.",
            qos=0,
            parameters=("fleet", "device", "file"),
            reply="blocks",
        ),
        ChannelDoc(
            "blocks",
            _with_id("blocks", "file"),
            "receive",
            "Take blocks or metadata",
            ("block", "metadata", "blockRefusal", "metadataRefusal"),
            "What is lost is asked for again.",
            qos=0,
            parameters=("fleet", "device", "file"),
        ),
        ChannelDoc(
            "enrolRequest",
            _enrolment("request"),
            "send",
            "Ask for a first certificate",
            ("enrolRequest",),
            "Sealed by the claim's secret; asked again until it is answered.",
            parameters=("fleet", "claim"),
            reply="enrolReply",
        ),
        ChannelDoc(
            "enrolReply",
            _enrolment("reply"),
            "receive",
            "Take the first certificate",
            ("enrolReply",),
            "Sealed by the claim's secret.",
            parameters=("fleet", "claim"),
        ),
    )


def _device(channel: topics.DeviceChannel) -> str:
    return _named(topics.device_topic(_FLEET, _DEVICE, channel), "")


def _with_id(channel: topics.IdChannel, parameter: str) -> str:
    return _named(topics.id_topic(_FLEET, _DEVICE, channel, _LAST), parameter)


def _enrolment(channel: topics.EnrolChannel) -> str:
    return _named(topics.enrol_topic(_FLEET, _LAST, channel), "claim")


def _named(topic: str, last: str) -> str:
    """`topic` with parameters where the builder was given stand-ins."""
    for given, name in ((_FLEET, "fleet"), (_DEVICE, "device"), (_SECOND, "op"), (_LAST, last)):
        topic = topic.replace(given, f"{{{name}}}")
    return topic
