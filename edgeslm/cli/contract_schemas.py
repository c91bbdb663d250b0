"""JSON Schemas of what travels, made from the models that read it.

What always holds: a message that the models take, the schemas take. The other way round a device looks closer: at
fields that have to fit each other, and at whole numbers, which JSON Schema takes as ``1.0`` too. What a field means
comes from the ``Attributes`` of its model, so it is written once.

Left to others: on which topic a message travels (:mod:`edgeslm.cli.contract_channels`).
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeAlias

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue, models_json_schema
from pydantic_core import core_schema

from edgeslm.schema.agent_release import UpdateAgentArgs
from edgeslm.schema.assignment import Assignment
from edgeslm.schema.delivery import BlockRefusal, BlockRequest, MetadataRefusal, MetadataRequest
from edgeslm.schema.enrol import CertificateReply, EnrolReply, EnrolRequest, IdentityReport, Sealed
from edgeslm.schema.log_lines import LogLines, LogsArgs
from edgeslm.schema.message import (
    Availability,
    CancelRequest,
    Info,
    Options,
    PromptRequest,
    Result,
    StreamDelta,
)
from edgeslm.schema.metrics import Event, InferenceMetrics, PowerMetrics, SystemMetrics
from edgeslm.schema.operation import OperationCommand, OperationEvent
from edgeslm.schema.operation_results import (
    BenchArgs,
    Bundle,
    ModelArgs,
    NoArgs,
    SelfTestResult,
    ServedBench,
)
from edgeslm.schema.remote_config import RemoteConfig
from edgeslm.schema.update import Reported

Json: TypeAlias = dict[str, Any]
"""A piece of a document in JSON."""

DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
MESSAGES: Final[tuple[type[BaseModel], ...]] = (
    PromptRequest,
    CancelRequest,
    Result,
    StreamDelta,
    Availability,
    Info,
    PowerMetrics,
    InferenceMetrics,
    SystemMetrics,
    Event,
    Reported,
    Assignment,
    OperationCommand,
    OperationEvent,
    IdentityReport,
    CertificateReply,
    Sealed,
    BlockRequest,
    BlockRefusal,
    MetadataRequest,
    MetadataRefusal,
)
"""Bodies of messages in JSON; of ``desired`` the part that is signed."""
PARTS: Final[tuple[type[BaseModel], ...]] = (
    EnrolRequest,
    EnrolReply,
    RemoteConfig,
    NoArgs,
    BenchArgs,
    ModelArgs,
    LogsArgs,
    UpdateAgentArgs,
    SelfTestResult,
    ServedBench,
    Bundle,
    LogLines,
)
"""What travels inside of others: sealed, signed, as arguments and as results of operations."""

_FIELD: Final = re.compile(r"^(\w+): (.*)$")
_ROLE: Final = re.compile(r":\w+:`~?(?:[\w.]*\.)?(\w+)`")


def slug(model: type[BaseModel]) -> str:
    """The name of a model's schema file, such as ``prompt-request``."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", model.__name__).lower()


def schema_files() -> dict[str, Json]:
    """A schema that stands by itself for every message and part, by file name."""
    return {f"{slug(model)}.schema.json": standalone(model) for model in (*MESSAGES, *PARTS)}


def standalone(model: type[BaseModel]) -> Json:
    """The schema of `model` with all that it refers to in itself."""
    schema = model.model_json_schema(schema_generator=_Documented)
    return {"$schema": DIALECT, "$id": f"urn:edgeslm:v1:{slug(model)}", **schema}


def shared(models: tuple[type[BaseModel], ...], where: str) -> tuple[dict[type[BaseModel], Json], Json]:
    """The schemas of `models` in one place.

    Args:
        models: which ones.
        where: the reference to a schema, with ``{model}`` in it.

    Returns:
        The reference to each model's schema, and all schemas by name.
    """
    references, together = models_json_schema(
        [(model, "validation") for model in models], ref_template=where, schema_generator=_Documented
    )
    return {model: references[model, "validation"] for model in models}, together["$defs"]


def plain(text: str) -> str:
    """A piece of a docstring as Markdown on one line."""
    return " ".join(_ROLE.sub(r"`\1`", text).replace("``", "`").split())


def described(model: type[BaseModel]) -> tuple[str, dict[str, str]]:
    """What the docstrings of `model` and its bases say: of the whole, and of its fields by name."""
    fields: dict[str, str] = {}
    for base in reversed(model.__mro__):
        if issubclass(base, BaseModel) and base is not BaseModel:
            fields |= _attributes(inspect.cleandoc(base.__dict__.get("__doc__") or ""))
    whole = inspect.cleandoc(model.__dict__.get("__doc__") or "").partition("\nAttributes:")[0]
    return plain(whole), fields


def _attributes(docstring: str) -> dict[str, str]:
    found: dict[str, str] = {}
    name = ""
    for line in docstring.partition("\nAttributes:\n")[2].splitlines():
        entry = _FIELD.match(line.removeprefix("    "))
        if entry is not None:
            name, found[entry[1]] = entry[1], entry[2]
        elif name:
            found[name] += f" {line}"
    return {field: plain(text) for field, text in found.items()}


class _Documented(GenerateJsonSchema):
    """Schemas with the words of the docstrings, and with the rules that models check by code."""

    def field_title_should_be_set(self, schema: object) -> bool:
        """Never: a title would only repeat the name."""
        del schema
        return False

    def model_schema(self, schema: core_schema.ModelSchema) -> JsonSchemaValue:
        """The schema of one model."""
        made = super().model_schema(schema)
        model: type[BaseModel] = schema["cls"]
        whole, fields = described(model)
        made["description"] = whole
        properties = made.get("properties", {})
        for name, text in fields.items():
            field = model.model_fields.get(name)
            on_wire = name if field is None or field.alias is None else field.alias
            if on_wire in properties:
                properties[on_wire]["description"] = text
        finish = _CHECKED_BY_CODE.get(model)
        if finish is not None:
            finish(made)
        return made


def _options(schema: Json) -> None:
    """An unknown option is refused, unlike an unknown field."""
    schema["additionalProperties"] = False


def _prompt_request(schema: Json) -> None:
    """Options may stand beside the prompt, and arrays or several inputs in its place."""
    schema["properties"] |= Options.model_json_schema(schema_generator=_Documented)["properties"]
    text: Json = {"required": ["prompt"], "properties": {"prompt": {"type": "string", "minLength": 1}}}
    arrays: Json = {"required": ["tensor", "task"], "properties": {"tensor": {"type": "object"}}}
    several: Json = {"required": ["inputs"], "properties": {"inputs": {"type": "array"}}}
    schema["oneOf"] = [text, arrays, several]
    schema["description"] += (
        " The same option in both places is refused, and so are two forms of answer at once."
    )


def _result(schema: Json) -> None:
    """Either an answer with its receipt or an error."""
    schema["oneOf"] = [
        {"required": [name], "properties": {name: {"type": "object"}}} for name in ("receipt", "error")
    ]


_CHECKED_BY_CODE: Final[Mapping[type[BaseModel], Callable[[Json], None]]] = {
    Options: _options,
    PromptRequest: _prompt_request,
    Result: _result,
}
