"""From a message to a decision: what is asked, by whom, and where the answer goes. Pure.

Nothing here looks at the queue, the journal or the models; :mod:`edgeslm.agent.service` does.
"""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass
from typing import Protocol

from edgeslm import codec, topics
from edgeslm.agent.job import ReplyAddress, ReplyForm
from edgeslm.errors import BadRequestError, BodySizeError, CodecError, EdgeslmError, TooLargeError, TopicError
from edgeslm.schema.message import NO_SESSION_IN_POOLS, CancelRequest, ErrorBody, PromptRequest, Result

UNIDENTIFIED = "unidentified"
"""Stands for the id of a request that is too broken to have one."""


class Received(Protocol):
    """What intake needs of a message; ``link.Message`` has it."""

    @property
    def topic(self) -> str:
        """Topic it came on."""

    @property
    def payload(self) -> bytes:
        """Body."""

    @property
    def retain(self) -> bool:
        """Whether the broker had it in store."""

    @property
    def response_topic(self) -> str | None:
        """MQTT 5 Response Topic."""

    @property
    def correlation(self) -> bytes | None:
        """MQTT 5 Correlation Data."""


@dataclass(frozen=True)
class Prompt:
    """A well-formed prompt."""

    request: PromptRequest
    reply: ReplyAddress


@dataclass(frozen=True)
class Cancel:
    """A wish to take a prompt back."""

    request_id: str


@dataclass(frozen=True)
class Refused:
    """A message that can't be served, and whom to tell why."""

    request_id: str
    reply: ReplyAddress
    error: EdgeslmError


@dataclass(frozen=True)
class Ignored:
    """A message that nobody waits for."""

    reason: str


Decision = Prompt | Cancel | Refused | Ignored


def read(message: Received, fleet: str, device: str, max_body_bytes: int) -> Decision:
    """What `message` asks of this device."""
    try:
        address = topics.parse(message.topic)
    except TopicError as error:
        return Ignored(str(error))
    if message.retain:
        # A retained order would be carried out again at every reconnect.
        return Ignored(f"retained message on {message.topic}")
    if isinstance(address, topics.DeviceTopic):
        if address.channel == "cancel":
            return _read_cancel(message, max_body_bytes)
        if address.channel == "prompt/text":
            return _read_text(message, fleet, device, max_body_bytes)
        if address.channel != "prompt":
            return Ignored(f"nothing is asked on {message.topic}")
        return _read_prompt(message, fleet, device, None, max_body_bytes)
    if isinstance(address, topics.PoolTopic):
        return _read_prompt(message, fleet, device, address.model, max_body_bytes)
    return Ignored(f"nothing is asked on {message.topic}")


def _read_cancel(message: Received, max_body_bytes: int) -> Decision:
    try:
        return Cancel(codec.decode(CancelRequest, message.payload, max_bytes=max_body_bytes).id)
    except CodecError as error:
        return Ignored(f"unreadable cancel: {error}")


def _read_text(message: Received, fleet: str, device: str, max_body_bytes: int) -> Decision:
    topic = topics.device_topic(fleet, device, "result/text")
    try:
        reply = ReplyAddress(_response_topic(message) or topic, message.correlation, "text")
    except BadRequestError as error:
        return Refused(UNIDENTIFIED, ReplyAddress(topic), error)
    try:
        text = codec.decode_text(codec.plain(message.payload, max_bytes=max_body_bytes))
    except BodySizeError as error:
        return Refused(UNIDENTIFIED, reply, _too_large(error, len(message.payload), max_body_bytes))
    except CodecError as error:
        return Refused(UNIDENTIFIED, reply, BadRequestError(str(error)))
    return Prompt(PromptRequest(id=f"text-{uuid.uuid4()}", prompt=text), reply)


def _read_prompt(
    message: Received, fleet: str, device: str, pool_model: str | None, max_body_bytes: int
) -> Decision:
    request: PromptRequest | None = None
    fault: EdgeslmError | None = None
    body = b""
    try:
        body = codec.plain(message.payload, max_bytes=max_body_bytes)
        request = codec.decode(PromptRequest, body)
        request_id = request.id
    except BodySizeError as error:
        request_id, fault = UNIDENTIFIED, _too_large(error, len(message.payload), max_body_bytes)
    except CodecError as error:
        request_id, fault = _find_id(body), BadRequestError(str(error))
    form: ReplyForm = "gzip" if request is not None and "gzip" in request.accept_encoding else "json"
    reply = ReplyAddress(topics.id_topic(fleet, device, "result", request_id), message.correlation, form)
    try:
        topic = _response_topic(message)
    except BadRequestError as error:
        return Refused(request_id, reply, error)
    if topic is not None:
        reply = ReplyAddress(topic, message.correlation, form)
    if fault is not None or request is None:
        return Refused(request_id, reply, fault or BadRequestError("unreadable"))
    if pool_model is not None:
        if request.model not in {None, pool_model}:
            wrong = BadRequestError(f"model '{request.model}' asked of the pool of '{pool_model}'")
            return Refused(request_id, reply, wrong)
        if request.options.session is not None:
            return Refused(request_id, reply, BadRequestError(NO_SESSION_IN_POOLS))
        request = request.model_copy(update={"model": pool_model})
    return Prompt(request, reply)


def _response_topic(message: Received) -> str | None:
    if message.response_topic is None:
        return None
    if not topics.is_publishable(message.response_topic):
        raise BadRequestError(f"response topic '{message.response_topic[:80]}' cannot be published to")
    return message.response_topic


def _too_large(error: BodySizeError, size: int, limit: int) -> TooLargeError:
    return TooLargeError(error.message, actual=size, limit=limit, unit="bytes")


def _find_id(payload: bytes) -> str:
    """The id in a body that may be wrong in every other way, so that its sender can tell which one it was."""
    try:
        body = json.loads(payload)
    except (ValueError, RecursionError):
        return UNIDENTIFIED
    found = body.get("id") if isinstance(body, dict) else None
    if not isinstance(found, str) or not 0 < len(found) <= 128 or any(char in found for char in "/+#\x00"):
        return UNIDENTIFIED
    try:
        found.encode()
    except UnicodeEncodeError:  # a lone surrogate, which JSON can spell and MQTT can't
        return UNIDENTIFIED
    return found


def error_result(request_id: str, device: str, error: EdgeslmError) -> Result:
    """`error` as the result of a request."""
    retry_after_s = getattr(error, "retry_after_s", None)
    return Result(
        id=request_id,
        device=device,
        error=ErrorBody(code=error.code, message=str(error)[:1000], retry_after_s=retry_after_s),
    )


def render(result: Result, form: str) -> bytes:
    """The body of a reply: the whole result, or for plain-text askers the answer (errors stay JSON)."""
    if form == "text" and result.text is not None:
        return result.text.encode()
    body = codec.encode(result)
    return codec.compress(body) if form == "gzip" else body
