"""Messages on the wire (design: topic tree and delivery), bounded so that hostile input stays small.

What is a request's fault is found here; what depends on the model (prompt length, schema support) is found where
the model is known.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Final, Literal, Self

from pydantic import Field, JsonValue, StringConstraints, field_validator, model_validator

from edgeslm.errors import WireCode
from edgeslm.schema.base import Identifier, RequestId, WireModel
from edgeslm.schema.chat import MAX_MESSAGE_CHARS, Messages, check_order
from edgeslm.schema.tensor import Tensors

MAX_PROMPT_CHARS = MAX_MESSAGE_CHARS
MAX_BODY_BYTES = 262_144
"""Largest message body that is parsed at all."""
MAX_CPU_FEATURES = 512
MAX_SCHEMA_CHARS = 16_384
"""Longest JSON Schema or grammar that an answer can be held to, a schema as compact JSON."""
MAX_SCHEMA_DEPTH = 64
MAX_REGEX_CHARS = 4_096
MAX_CHOICES = 256
MAX_INPUTS = 64
"""Most inputs of one request."""

Priority = Literal["high", "normal", "low"]
Task = Literal["generate", "classify", "embed", "tensor"]
Overflow = Literal["error", "slide"]
SessionState = Literal["new", "continued", "restarted"]
FinishReason = Literal["stop", "length", "schema", "deadline", "cancelled", "budget"]
MeterClass = Literal["measured", "calibrated", "estimated"]
DeviceState = Literal["online", "offline", "sleeping"]
AnswerFormKind = Literal["json_schema", "regex", "choices", "grammar"]
ANSWER_FORMS: Final[tuple[AnswerFormKind, ...]] = ("json_schema", "regex", "choices", "grammar")
"""Options that hold an answer to a form; one at most."""
NO_SESSION_IN_POOLS = "option 'session' means nothing to a pool: a session stays on one device; ask that one"
"""Who takes the next prompt of a pool knows nothing of this one."""


class Options(WireModel):
    """How a prompt is to be answered.

    Attributes:
        max_tokens: most tokens of the answer; ``None`` leaves it to the model's own limit.
        temperature: 0 is greedy.
        top_k: keep the k likeliest tokens; 0 keeps all.
        top_p: keep the likeliest tokens up to this cumulative probability.
        seed: makes sampling repeatable.
        stop: strings that end the answer; they are not part of it.
        stream: publish deltas while the answer grows.
        deadline_ms: milliseconds from acceptance, queue time included, after which an answer is worthless.
        priority: who goes first.
        json_schema: JSON Schema that the answer, as compact JSON, follows.
        regex: regular expression that the whole answer matches; without look-around and back references.
        choices: the answers that there can be.
        grammar: grammar in Lark's notation (an EBNF) whose `start` the whole answer follows.
        session: name of a conversation: the prompt comes after its earlier prompts and answers, as far as the device
            remembers them.
        overflow: what happens to a prompt that, with the earlier turns, is longer than the model takes: ``error``, the
            default, refuses it; ``slide`` leaves out the oldest turns, and of a prompt that is too long by itself the
            beginning.
    """

    max_tokens: Annotated[int, Field(ge=1, le=8192)] | None = None
    temperature: Annotated[float, Field(ge=0.0, le=10.0)] = 0.0
    top_k: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    stop: Annotated[
        tuple[Annotated[str, StringConstraints(min_length=1, max_length=128)], ...],
        Field(max_length=16, strict=False),
    ] = ()
    stream: bool = False
    deadline_ms: Annotated[int, Field(ge=1, le=86_400_000)] | None = None
    priority: Priority = "normal"
    json_schema: dict[str, Any] | None = None
    regex: Annotated[str, StringConstraints(min_length=1, max_length=MAX_REGEX_CHARS)] | None = None
    choices: (
        Annotated[
            tuple[Annotated[str, StringConstraints(min_length=1, max_length=1024)], ...],
            Field(min_length=1, max_length=MAX_CHOICES, strict=False),
        ]
        | None
    ) = None
    grammar: Annotated[str, StringConstraints(min_length=1, max_length=MAX_SCHEMA_CHARS)] | None = None
    session: RequestId | None = None
    overflow: Overflow | None = None

    @field_validator("json_schema")
    @classmethod
    def _bounded(cls, schema: dict[str, Any] | None) -> dict[str, Any] | None:
        if schema is not None:
            _check_depth(schema)
            try:
                chars = len(json.dumps(schema, ensure_ascii=False, separators=(",", ":"), allow_nan=False))
            except (TypeError, ValueError) as error:
                raise ValueError(f"not JSON: {error}") from error
            if chars > MAX_SCHEMA_CHARS:
                raise ValueError(f"a schema of {chars} characters, at most {MAX_SCHEMA_CHARS} are taken")
        return schema

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        given = [name for name in ANSWER_FORMS if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} contradict each other: an answer has one form")
        return self

    @property
    def answer_form(self) -> AnswerFormKind | None:
        """The option that holds the answer to a form, where one does."""
        return next((name for name in ANSWER_FORMS if getattr(self, name) is not None), None)


def _check_depth(value: Any) -> None:
    """Refuse what is nested deeper than any sensible schema, without recursing into it."""
    level = [value]
    for _ in range(MAX_SCHEMA_DEPTH):
        level = [
            child
            for item in level
            if isinstance(item, dict | list | tuple)
            for child in (item.values() if isinstance(item, dict) else item)
        ]
        if not level:
            return
    raise ValueError(f"a schema nested deeper than {MAX_SCHEMA_DEPTH} levels")


class PromptRequest(WireModel):
    """One prompt.

    Options stand beside the prompt or under ``options``; both forms are the same message.

    Attributes:
        task: what the model is to do: ``generate`` an answer, ``classify`` (which of the package's labels, or of the
            option ``choices``), ``embed`` (a vector that says what the text means), or ``tensor`` (arrays in, out).
        prompt: the text; none where arrays are asked about.
        messages: a conversation in place of one text: at most one message of the system, then user and assistant in
            turns, the user last. For models whose package says how to put one together.
        tensor: the arrays, by the name of the model's input; instead of a text.
        inputs: several texts, or objects of arrays, in place of one: each is answered for itself, with the same options
            and one receipt. Whether one can be served shows in its output.
        accept_encoding: how the answer may be encoded; ``gzip`` is known, others are passed over. An answer that
            would not become shorter comes as it is.
    """

    v: Literal[1] = 1
    id: RequestId
    task: Task = "generate"
    model: Identifier | None = None
    prompt: Annotated[str, StringConstraints(max_length=MAX_PROMPT_CHARS)] = ""
    messages: Messages | None = None
    tensor: Tensors | None = None
    inputs: (
        Annotated[tuple[JsonValue, ...], Field(min_length=1, max_length=MAX_INPUTS, strict=False)] | None
    ) = None
    options: Options = Options()
    accept_encoding: Annotated[
        tuple[Annotated[str, StringConstraints(max_length=32)], ...], Field(max_length=8, strict=False)
    ] = ()

    @model_validator(mode="before")
    @classmethod
    def _lift_options(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        nested = data.get("options", {})
        if not isinstance(nested, dict):
            return data
        known = Options.model_fields.keys()
        flat = {name: data[name] for name in known if name in data}
        clash = sorted(flat.keys() & nested.keys())
        if clash:
            raise ValueError(f"option given twice: {', '.join(clash)}")
        unknown = sorted(str(name)[:64] for name in nested.keys() - known)
        if unknown:
            # Unlike an unknown field, an unknown option would silently change what the requester asked for.
            raise ValueError(f"unknown option: {', '.join(unknown[:5])}")
        return {**data, "options": {**nested, **flat}}

    @field_validator("messages")
    @classmethod
    def _in_order(cls, messages: Messages | None) -> Messages | None:
        return None if messages is None else check_order(messages)

    @model_validator(mode="after")
    def _asks_one_thing(self) -> Self:
        if self.messages is not None:
            self._check_messages()
        elif self.inputs is not None:
            self._check_inputs()
        elif self.tensor is None and self.task == "tensor":
            raise ValueError("task 'tensor' needs arrays, under 'tensor'")
        elif self.tensor is None and not self.prompt:
            raise ValueError("prompt is missing or empty")
        if self.tensor is not None and self.prompt:
            raise ValueError("prompt and tensor contradict each other: a request has one of them")
        if self.tensor is not None and self.task == "generate":
            raise ValueError("task 'generate' takes a prompt; arrays go with task 'tensor'")
        form = self.options.answer_form
        if form is not None and self.task != "generate" and (self.task, form) != ("classify", "choices"):
            raise ValueError(f"option '{form}' means nothing to task '{self.task}'")
        if self.task != "generate":
            for name in ("session", "overflow"):
                if getattr(self.options, name) is not None:
                    raise ValueError(f"option '{name}' means nothing to task '{self.task}'")
        return self

    def _check_messages(self) -> None:
        if self.prompt or self.tensor is not None or self.inputs is not None:
            raise ValueError(
                "messages and prompt, tensor or inputs contradict each other: a request has one of them"
            )
        if self.task != "generate":
            raise ValueError(f"messages go with task 'generate', not with '{self.task}'")
        if self.options.session is not None:
            raise ValueError(
                "option 'session' goes with a prompt: messages bring their earlier turns along themselves"
            )

    def _check_inputs(self) -> None:
        if self.prompt or self.tensor is not None:
            raise ValueError("inputs and prompt or tensor contradict each other: a request has one of them")
        if self.options.stream:
            raise ValueError("inputs are answered at once; option 'stream' goes with one prompt")
        if self.options.session is not None:
            raise ValueError("option 'session' goes with one prompt, not with inputs")

    @property
    def brings_arrays(self) -> bool:
        """Whether it is for a model that takes arrays; of inputs the first counts."""
        return self.tensor is not None or (self.inputs is not None and isinstance(self.inputs[0], dict))

    def asks_as(self, other: Self) -> bool:
        """Whether `other` asks the same of the same kind of model, however it is to be answered."""
        return (
            self.task,
            self.prompt,
            self.messages,
            self.tensor,
            self.inputs,
            self.options.session,
        ) == (
            other.task,
            other.prompt,
            other.messages,
            other.tensor,
            other.inputs,
            other.options.session,
        )


class CancelRequest(WireModel):
    """Take a prompt back."""

    v: Literal[1] = 1
    id: RequestId


class Receipt(WireModel):
    """What one prompt cost.

    Attributes:
        prompt_tokens: tokens of the prompt after the template.
        completion_tokens: tokens generated, the stop token included.
        cached_tokens: prompt tokens taken from a cache instead of being computed.
        session: of a prompt in a session: whether it began one, continued one, or began one anew because the model's
            release is another one than before.
        session_turns: earlier turns that the prompt came after, those left out not counted.
        dropped_turns: earlier turns that were left out, and are forgotten, to make room.
        dropped_chars: characters at the beginning of the prompt that were left out to make room.
        queue_ms: acceptance to start of computation.
        ttft_ms: acceptance to first token.
        total_ms: acceptance to last token.
        paused_ms: of that, pauses between tokens: the budget asked for them, or a prompt of high priority went first;
            no part of the rates.
        prefill_tps: prompt tokens a second, those that were known not counted, or ``None`` where nothing was computed.
        decode_tps: generated tokens a second, or ``None`` for fewer than two.
        energy_j: energy that the prompt is charged with: the idle board while it ran, and its own work.
        energy_net_j: the same with the idle draw subtracted.
        power_w: mean draw of the board while the prompt ran.
        meter: how the energy is known.
        model: name and version.
        model_sha256: digest of the package.
        runtime: which TFLite runtime computed it.
    """

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    session: SessionState | None = None
    session_turns: int | None = None
    dropped_turns: int | None = None
    dropped_chars: int | None = None
    queue_ms: float
    ttft_ms: float | None = None
    total_ms: float
    paused_ms: float = 0.0
    prefill_tps: float | None = None
    decode_tps: float | None = None
    energy_j: float
    energy_net_j: float
    power_w: float
    meter: MeterClass
    model: str
    model_sha256: str
    runtime: str


class ErrorBody(WireModel):
    """Why there is no answer."""

    code: WireCode
    message: str
    retry_after_s: float | None = None


class Output(WireModel):
    """What came of one input of several: an answer, as a result has it, or an error.

    Attributes:
        prompt_tokens: tokens of the input after the template.
        completion_tokens: of a generated answer, its tokens.
        dropped_chars: characters at the beginning of the input that were left out to make room.
    """

    text: str | None = None
    data: JsonValue = Field(default=None, alias="json")
    label: str | None = None
    scores: dict[str, float] | None = None
    embedding: Annotated[tuple[float, ...], Field(strict=False)] | None = None
    tensor: Tensors | None = None
    finish_reason: FinishReason | None = None
    closed: bool | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    dropped_chars: int | None = None
    error: ErrorBody | None = None


class Result(WireModel):
    """The final answer to a prompt: an answer with its receipt, or an error.

    Attributes:
        text: the answer.
        data: the answer parsed, where it was asked for in JSON or the model promises an object (``json`` on the
            wire).
        label: of a classification, the likeliest label.
        scores: the probability of each label, the likeliest first.
        embedding: the vector, of length one.
        tensor: the outputs by name, as lists where the inputs were lists; long ones, and those with a number that JSON
            cannot spell, as bytes in any case.
        outputs: of a request with several inputs, what came of each, in their order.
        closed: of an answer with a form that was cut short: whether its text has the form all the same, because the
            device could complete it.
    """

    v: Literal[1] = 1
    id: str
    device: str
    text: str | None = None
    data: JsonValue = Field(default=None, alias="json")
    label: str | None = None
    scores: dict[str, float] | None = None
    embedding: Annotated[tuple[float, ...], Field(strict=False)] | None = None
    tensor: Tensors | None = None
    outputs: Annotated[tuple[Output, ...], Field(max_length=MAX_INPUTS, strict=False)] | None = None
    finish_reason: FinishReason | None = None
    closed: bool | None = None
    receipt: Receipt | None = None
    error: ErrorBody | None = None

    @model_validator(mode="after")
    def _answer_or_error(self) -> Self:
        if (self.error is None) == (self.receipt is None):
            raise ValueError("a result carries either an error or an answer with its receipt")
        return self


class StreamDelta(WireModel):
    """A piece of an answer, as it grows; at most once each, in order of ``seq``."""

    v: Literal[1] = 1
    id: str
    seq: int
    text: str


class Availability(WireModel):
    """Retained presence; ``offline`` is the will."""

    v: Literal[1] = 1
    state: DeviceState


class ModelInfo(WireModel):
    """One served model, as announced.

    Attributes:
        loaded: whether it is in memory; one that is not is loaded when it is asked. Older agents do not say.
        messages: whether it takes a conversation in place of a prompt; older agents do not, and do not say.
    """

    name: str
    version: str
    sha256: str
    task: Task
    context_tokens: int
    graph: str
    loaded: bool | None = None
    messages: bool | None = None


class Info(WireModel):
    """Retained self-description of a device.

    Attributes:
        ram_mb: memory of the board in all, as the kernel counts it.
        cpu_features: what its processor can do, in the kernel's words.
        pool: whether it takes the prompts of pools itself, without a gateway; older agents do not say.
        forms: what it can hold answers to: none where the library for it is missing; older agents do not say.
    """

    v: Literal[1] = 1
    device: str
    agent: str
    python: str
    runtime: str
    board: str
    tasks: tuple[Task, ...] = Field(strict=False)
    models: tuple[ModelInfo, ...] = Field(strict=False)
    meter: MeterClass
    max_queue: int
    max_body_bytes: int
    started_at: str
    pool: bool | None = None
    ram_mb: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    cpu_features: (
        Annotated[
            tuple[Annotated[str, StringConstraints(max_length=64)], ...],
            Field(max_length=MAX_CPU_FEATURES, strict=False),
        ]
        | None
    ) = None
    forms: Annotated[tuple[AnswerFormKind, ...], Field(max_length=16, strict=False)] | None = None
