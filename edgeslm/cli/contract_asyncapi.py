"""The wire as an AsyncAPI 3 document (https://www.asyncapi.com/docs/reference/specification/v3.0.0).

Made of the table of channels and of the schemas, so that it says nothing of its own. Its operations are those of a
device; whoever talks to one turns them round. MQTT's part follows the bindings of version 0.2.0.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from pydantic import BaseModel

import edgeslm
from edgeslm.cli.contract_channels import MESSAGES, PARAMETERS, ChannelDoc, MessageDoc, channels
from edgeslm.cli.contract_schemas import Json, shared, slug
from edgeslm.schema.message import MAX_PROMPT_CHARS

_BINDING: Final = "0.2.0"
_ANYWHERE: Final = "responseTopic"
_REQUESTS: Final = frozenset({"prompt", "promptText"})
_CONTENT_TYPES: Final = {
    "json": "application/json",
    "signed": "application/json",
    "text": "text/plain",
    "block": "application/octet-stream",
    "metadata": "application/octet-stream",
}
_DESCRIPTION: Final = """\
What an edgeslm device hears and says over MQTT. MQTT 5 is preferred, 3.1.1 works without the Response Topic.
Delivery is QoS 1 unless an operation says otherwise, and a prompt is run effectively once: its id again gets the
stored answer. Unknown fields are ignored and each message says `v: 1`, so that old and new talk to each other.

Operations are those of the device: it receives prompts and sends results.
"""

EXAMPLES: Final[Mapping[str, tuple[tuple[str, Json], ...]]] = {
    "prompt": (
        ("shortest", {"id": "q-1", "prompt": "lock the front door"}),
        (
            "streamed",
            {"v": 1, "id": "q-2", "prompt": "turn on the lamp", "stream": True, "deadline_ms": 5000},
        ),
    ),
    "cancel": (("cancel", {"id": "q-2"}),),
    "result": (
        (
            "answer",
            {
                "v": 1,
                "id": "q-1",
                "device": "kitchen-pi",
                "text": '{"intent":"HassTurnOn","name":"Front Door"}',
                "json": {"intent": "HassTurnOn", "name": "Front Door"},
                "finish_reason": "stop",
                "receipt": {
                    "prompt_tokens": 10,
                    "completion_tokens": 8,
                    "cached_tokens": 0,
                    "queue_ms": 0.413,
                    "ttft_ms": 5.252,
                    "total_ms": 11.806,
                    "paused_ms": 0.0,
                    "prefill_tps": 3749.1,
                    "decode_tps": 1068.1,
                    "energy_j": 0.341982,
                    "energy_net_j": 0.106776,
                    "power_w": 29.0794,
                    "meter": "estimated",
                    "model": "home-command@1.0.0",
                    "model_sha256": "9e65784f" * 8,
                    "runtime": "ai-edge-litert 2.3.0",
                },
            },
        ),
        (
            "error",
            {
                "v": 1,
                "id": "q-3",
                "device": "kitchen-pi",
                "error": {"code": "busy", "message": "the queue is full", "retry_after_s": 2.5},
            },
        ),
    ),
    "delta": (("first", {"v": 1, "id": "q-2", "seq": 0, "text": '{"intent":'}),),
    "availability": (("online", {"v": 1, "state": "online"}),),
    "event": (
        (
            "throttled",
            {
                "v": 1,
                "device": "kitchen-pi",
                "type": "throttled",
                "at": "2026-01-31T12:00:00Z",
                "detail": "the firmware slows the board down",
                "figures": {"temperature_c": 81.0},
            },
        ),
    ),
    "command": (
        (
            "self-test",
            {
                "v": 1,
                "id": "c-1",
                "op": "self-test",
                "issued_at": "2026-01-31T12:00:00Z",
                "expires_at": "2026-01-31T13:00:00Z",
                "args": {},
            },
        ),
    ),
    "blockRequest": (
        ("two runs", {"v": 1, "blocks": [{"first": 0, "last": 15}, {"first": 20, "last": 20}]}),
    ),
}
"""By message: a name and a body each."""


def document() -> Json:
    """The whole document."""
    models = tuple(dict.fromkeys(message.model for message in MESSAGES if message.model is not None))
    references, schemas = shared(models, "#/components/schemas/{model}")
    table = channels()
    return {
        "asyncapi": "3.0.0",
        "id": "urn:edgeslm:v1",
        "info": {
            "title": "edgeslm",
            "version": edgeslm.__version__,
            "description": _DESCRIPTION,
            "license": {"name": "Apache-2.0", "url": "https://www.apache.org/licenses/LICENSE-2.0"},
        },
        "defaultContentType": "application/json",
        "servers": _servers(),
        "channels": {
            **{channel.name: _channel(channel) for channel in table},
            _ANYWHERE: {
                "address": None,
                "title": "Where the requester wants its answer",
                "description": "The Response Topic of the request (MQTT 5): at most 1,024 bytes, no wildcards, not "
                "beginning with `$`, and no topic on which a device takes orders. Correlation Data is repeated.",
                "messages": {name: _message_reference(name) for name in ("result", "resultText")},
            },
        },
        "operations": {
            _operation_name(channel): _operation(channel, name_of_reply=_reply_of(channel, table))
            for channel in table
        },
        "components": {
            "messages": {message.name: _message(message, references) for message in MESSAGES},
            "parameters": {name: {"description": text} for name, text in PARAMETERS.items()},
            "schemas": schemas,
        },
    }


def _servers() -> Json:
    host = {"host": {"default": "broker.local", "description": "The broker."}}
    return {
        "plain": {"host": "{host}:1883", "protocol": "mqtt", "protocolVersion": "5", "variables": host},
        "tls": {
            "host": "{host}:8883",
            "protocol": "mqtts",
            "protocolVersion": "5",
            "description": "Of a fleet: the device shows the certificate that it got when it joined.",
            "variables": host,
            "security": [{"type": "X509"}],
        },
    }


def _channel(channel: ChannelDoc) -> Json:
    return {
        "address": channel.address,
        "title": channel.title,
        "messages": {name: _message_reference(name) for name in channel.messages},
        "parameters": {name: {"$ref": f"#/components/parameters/{name}"} for name in channel.parameters},
    }


def _message_reference(name: str) -> Json:
    return {"$ref": f"#/components/messages/{name}"}


def _operation_name(channel: ChannelDoc) -> str:
    return f"{channel.action}{channel.name[0].upper()}{channel.name[1:]}"


def _reply_of(channel: ChannelDoc, table: tuple[ChannelDoc, ...]) -> ChannelDoc | None:
    return next((other for other in table if other.name == channel.reply), None)


def _operation(channel: ChannelDoc, *, name_of_reply: ChannelDoc | None) -> Json:
    made: Json = {
        "action": channel.action,
        "channel": {"$ref": f"#/channels/{channel.name}"},
        "title": channel.title,
        "description": channel.note,
        "messages": _messages_of(channel.name, channel.messages),
        "bindings": {"mqtt": {"qos": channel.qos, "retain": channel.retain, "bindingVersion": _BINDING}},
    }
    if channel.reply_anywhere and name_of_reply is not None:
        made["description"] += f" Without a Response Topic the answer goes to `{name_of_reply.address}`."
        form = "resultText" if channel.name == "promptText" else "result"
        made["reply"] = {
            "address": {
                "description": "Response Topic of the request.",
                "location": "$message.header#/responseTopic",
            },
            "channel": {"$ref": f"#/channels/{_ANYWHERE}"},
            "messages": _messages_of(_ANYWHERE, (form,)),
        }
    elif name_of_reply is not None:
        made["reply"] = {"channel": {"$ref": f"#/channels/{name_of_reply.name}"}}
    return made


def _messages_of(channel: str, names: tuple[str, ...]) -> list[Json]:
    return [{"$ref": f"#/channels/{channel}/messages/{name}"} for name in names]


def _message(message: MessageDoc, references: Mapping[type[BaseModel], Json]) -> Json:
    made: Json = {"name": message.name, "summary": message.summary}
    made["contentType"] = _CONTENT_TYPES[message.body]
    made["payload"] = _payload(message, references)
    if message.model is not None:
        if "id" in message.model.model_fields:
            made["correlationId"] = {"location": "$message.payload#/id"}
        made["x-schema-file"] = f"schemas/{slug(message.model)}.schema.json"
    if message.name in _REQUESTS:
        made["headers"] = {
            "type": "object",
            "properties": {
                "responseTopic": {"type": "string", "description": "MQTT 5 property of the same name."},
                "correlationData": {"type": "string", "description": "MQTT 5 property of the same name."},
            },
        }
    examples = EXAMPLES.get(message.name, ())
    if examples:
        made["examples"] = [{"name": name, "payload": body} for name, body in examples]
    return made


def _payload(message: MessageDoc, references: Mapping[type[BaseModel], Json]) -> Json:
    if message.model is None:
        if message.body == "text":
            return {"type": "string", "minLength": 1, "maxLength": MAX_PROMPT_CHARS}
        return {"type": "string", "format": "binary", "description": message.summary}
    form: Json = dict(references[message.model])
    return _signed(form) if message.body == "signed" else form


def _signed(form: Json) -> Json:
    signature: dict[str, Any] = {
        "type": "object",
        "required": ["keyid", "sig"],
        "properties": {"keyid": {"type": "string"}, "sig": {"type": "string"}},
    }
    return {
        "type": "object",
        "required": ["signatures", "signed"],
        "properties": {"signatures": {"type": "array", "maxItems": 8, "items": signature}, "signed": form},
    }
