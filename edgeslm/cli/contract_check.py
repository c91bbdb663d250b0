"""Whether messages are as the contract says: for those who write a client, and see it answered by nobody. Pure.

It judges by the models with which devices read, so it is as strict as they are. Left to others: messages that are not
on a topic of edgeslm, and whether a request makes sense to the device that gets it.
"""

from __future__ import annotations

import json

from pydantic import BaseModel

from edgeslm import codec, topics
from edgeslm.cli.contract_channels import ChannelDoc, MessageDoc, channel_of, message_named
from edgeslm.errors import CodecError, TopicError
from edgeslm.schema.message import MAX_BODY_BYTES

_BINARY = {"block": (b"SLB1", 8), "metadata": (b"SLM1", 20)}
"""How such a body begins, and how long its head is."""


class Fault(BaseModel):
    """A message that is not as it should be.

    Attributes:
        number: of the message, counted from 1.
    """

    number: int
    topic: str
    fault: str


class Findings(BaseModel):
    """What came of a log.

    Attributes:
        messages: in it.
        checked: of them, on topics of edgeslm.
    """

    messages: int
    checked: int
    faults: tuple[Fault, ...]


def is_ours(topic: str) -> bool:
    """Whether `topic` is below the root of edgeslm's tree."""
    return topic.startswith(f"{topics.ROOT}/")


def fault_of(topic: str, payload: bytes, *, retain: bool = False) -> str | None:
    """What is wrong with a message on a topic of edgeslm; ``None`` where nothing is.

    Args:
        topic: where it came.
        payload: its body; an empty one clears what was retained.
        retain: the broker had it in store.
    """
    try:
        channel = channel_of(topic)
    except TopicError as error:
        return str(error)
    if retain and not channel.retain:
        return (
            "it is retained, and nothing here may be: what a broker keeps comes again with every connection"
        )
    if not payload:
        return None if channel.retain else "it is empty"
    faults = [_fault_as(message_named(name), payload) for name in channel.messages]
    if None in faults:
        return None
    return _told(channel, [fault for fault in faults if fault is not None])


def _told(channel: ChannelDoc, faults: list[str]) -> str:
    if len(faults) == 1:
        return faults[0]
    forms = zip(channel.messages, faults, strict=True)
    return "it is none of these: " + "; ".join(f"{name} ({fault})" for name, fault in forms)


def _fault_as(form: MessageDoc, payload: bytes) -> str | None:
    try:
        if form.body in _BINARY:
            magic, head_bytes = _BINARY[form.body]
            begins = payload.startswith(magic) and len(payload) >= head_bytes
            return (
                None
                if begins
                else f"it does not begin with {magic.decode()} and a head of {head_bytes} bytes"
            )
        if form.model is None:
            codec.decode_text(payload)
        elif form.body == "signed":
            codec.decode(form.model, _signed_part(payload))
        else:
            codec.decode(form.model, payload, max_bytes=MAX_BODY_BYTES)
    except CodecError as error:
        return error.message
    return None


def _signed_part(payload: bytes) -> bytes:
    try:
        whole = json.loads(payload)
        return json.dumps(whole["signed"]).encode()
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise CodecError("no JSON with 'signed' and 'signatures'") from error
