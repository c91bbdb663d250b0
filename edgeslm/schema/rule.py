"""Files of rules: what is listened to, when something is to happen, and what (``rules/*.yaml``).

Texts that are expressions or templates are only bounded here; :mod:`edgeslm.agent.rules.loading` compiles them and
checks what refers to what.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    JsonValue,
    StringConstraints,
    field_validator,
    model_validator,
)

from edgeslm.schema.base import FileModel, Identifier
from edgeslm.schema.budget import quantity
from edgeslm.schema.message import MAX_PROMPT_CHARS, Priority

MAX_RULES = 512
"""Rules of one device in all."""
MAX_INPUTS = 256
MAX_TEXT_CHARS = 8192
"""Of a template or an expression."""
MAX_PAYLOAD_BYTES = 65_536
"""Largest message body that an input looks at."""
MAX_MAGNITUDE = 1e15
"""Numbers beyond it are no readings; sums and squares of those within it stay finite."""

Decoding = Literal["json", "text", "number"]
ValueType = Literal["number", "text", "boolean", "any"]

RESERVED_NAMES = frozenset({"answer", "given", "now", "payload", "rule", "stats", "topic"})
"""An input cannot be called this: templates have them for something else."""

_HOURS = re.compile(r"^([01][0-9]|2[0-3]):[0-5][0-9]-([01][0-9]|2[0-3]):[0-5][0-9]$")
_PATH = re.compile(r"^[^.\[\]\x00]{1,64}(?:\.[^.\[\]\x00]{1,64}|\[[0-9]{1,4}\]){0,15}$|^\[[0-9]{1,4}\]$")
_INPUT_NAME = re.compile(r"^[a-z][a-z0-9_]{0,39}$")


def _seconds(text: object) -> float:
    return quantity(text, "s")


def _hours(text: str) -> str:
    if not _HOURS.match(text):
        raise ValueError(f"'{text[:40]}' are no hours, such as '22:00-06:00'")
    return text


Seconds = Annotated[float, BeforeValidator(_seconds), Field(gt=0, le=7 * 86_400.0, allow_inf_nan=False)]
"""Written with its unit: ``30s``, ``5m``, ``1d``."""
Expression = Annotated[str, StringConstraints(min_length=1, max_length=1024)]
Template = Annotated[str, StringConstraints(min_length=1, max_length=MAX_TEXT_CHARS)]
Bounds = tuple[
    Annotated[float, Field(ge=-MAX_MAGNITUDE, le=MAX_MAGNITUDE)],
    Annotated[float, Field(ge=-MAX_MAGNITUDE, le=MAX_MAGNITUDE)],
]


def check_filter(text: str) -> str:
    """`text`, if it is a topic filter (MQTT 5, section 4.7) that a rule may listen to.

    Raises:
        ValueError: it is not.
    """
    levels = text.split("/")
    if not text or len(text.encode("utf-8", "surrogatepass")) > 1024 or "\x00" in text:
        raise ValueError("a topic filter of 1 to 1024 bytes is expected")
    if levels[0] == "$share":
        raise ValueError("a shared subscription cannot be read: every device has its own rules")
    for position, level in enumerate(levels):
        if "#" in level and (level != "#" or position != len(levels) - 1):
            raise ValueError(f"'{text[:80]}': '#' stands alone, as the last level")
        if "+" in level and level != "+":
            raise ValueError(f"'{text[:80]}': '+' stands alone in its level")
    return text


def _ordered(bounds: Bounds | None) -> Bounds | None:
    if bounds is not None and bounds[0] > bounds[1]:
        raise ValueError(f"the lowest value comes first, here {bounds[0]:g} is above {bounds[1]:g}")
    return bounds


class Input(FileModel):
    """A named value that messages bring.

    Attributes:
        topic: filter, with ``+`` and ``#``; any topic of the broker.
        decode: what the body is: JSON, text in UTF-8, or a number written as text.
        path: where in the JSON the value stands: ``a.b[0].c``; the whole body without it.
        type: what the value has to be; other values are faults. By default what `decode` gives, a number for JSON.
        range: lowest and highest number; others are faults of the sensor, counted and left out.
        window_s: seconds of readings that mean, min, max, slope and count look at.
        max_age_s: a reading older than this is none.
        qos: of the subscription.
    """

    topic: Annotated[str, StringConstraints(max_length=1024)]
    decode: Decoding = "json"
    path: Annotated[str, StringConstraints(max_length=256)] | None = None
    type: ValueType | None = None
    range: Bounds | None = None
    window_s: Seconds | None = Field(default=None, alias="window")
    max_age_s: Seconds | None = Field(default=None, alias="max_age")
    qos: Literal[0, 1] = 0

    _filter = field_validator("topic")(check_filter)
    _bounds = field_validator("range")(_ordered)

    @field_validator("path")
    @classmethod
    def _well_formed(cls, path: str | None) -> str | None:
        if path is not None and not _PATH.match(path):
            raise ValueError(f"'{path[:80]}' is not a path such as 'a.b[0].c'")
        return path

    @model_validator(mode="after")
    def _fitting(self) -> Self:
        if self.decode != "json" and self.path is not None:
            raise ValueError("only JSON has a path in it")
        if self.value_type != "number" and (self.range is not None or self.window_s is not None):
            raise ValueError(f"range and window are for numbers, and this is '{self.value_type}'")
        return self

    @property
    def value_type(self) -> ValueType:
        """What the value has to be."""
        return self.type or ("text" if self.decode == "text" else "number")


class Rate(FileModel):
    """At most so many firings in any stretch of `over_s` seconds."""

    most: Annotated[int, Field(ge=1, le=10_000)]
    over_s: Seconds = Field(alias="over")


class Publish(FileModel):
    """A message to send.

    Attributes:
        topic: template; each ``{{...}}`` fills (part of) one level. It has to be in the file's ``allow``.
        payload: a text, or a structure whose texts are templates. A text that is nothing but one ``{{expression}}``
            keeps the type of its value.
        schema_: JSON Schema that the payload has to match; needed where the payload holds a template.
        clamp: paths in the payload whose numbers are brought into a range, ``.`` for the payload itself.
    """

    topic: Annotated[str, StringConstraints(min_length=1, max_length=1024)]
    payload: JsonValue
    schema_: dict[str, JsonValue] | bool | None = Field(default=None, alias="schema")
    clamp: Annotated[dict[str, Bounds], Field(max_length=32)] = Field(default_factory=dict)
    qos: Literal[0, 1] = 1
    retain: bool = False

    @field_validator("clamp")
    @classmethod
    def _bounded(cls, clamp: dict[str, Bounds]) -> dict[str, Bounds]:
        for path, bounds in clamp.items():
            if path != "." and not _PATH.match(path):
                raise ValueError(f"'{path[:80]}' is not a path such as 'a.b[0].c'")
            _ordered(bounds)
        return clamp


class Call(FileModel):
    """Another rule to go on with; it sees the values of `with` as ``given``."""

    rule: Identifier
    values: Annotated[dict[str, JsonValue], Field(max_length=32)] = Field(default_factory=dict, alias="with")


class Action(FileModel):
    """One thing to do: exactly one of `publish`, `call` and `event` (its text, a template)."""

    if_: Expression | None = Field(default=None, alias="if")
    publish: Publish | None = None
    call: Call | None = None
    event: Template | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        if sum(part is not None for part in (self.publish, self.call, self.event)) != 1:
            raise ValueError("exactly one of publish, call and event is expected")
        return self


class Rule(FileModel):
    """When something is to happen, and what.

    Attributes:
        on: inputs whose messages make it look; by default those that `when` reads, without it those that the prompt
            or, where there is none, the actions read.
        every_s: look also at these intervals, for conditions that time alone makes true.
        when: condition; always true without.
        fire: ``once`` when the condition becomes true, or for ``each`` message that finds it true. By default once
            where there is a condition.
        debounce_s: seconds that the condition has to stay true; with ``each`` also seconds without another message.
        busy: while the model works on the former firing: keep the ``latest`` one, or ``queue`` them.
        queue: firings kept in that case.
        quiet: local hours in which it does not fire, ``HH:MM-HH:MM``.
        max_age_s: readings older than this are none for this rule.
        energy: when the budget is short, ``skip`` the firing, or let it ``wait`` until its deadline.
        deadline_s: an answer that comes later is not acted on; 30 s, or an hour for what may wait.
        dry_run: find out everything and do nothing.
        interlock: conditions on fresh readings that have to hold in the moment of action.
        answer: JSON Schema; an answer that does not match is never acted on.
    """

    name: Identifier
    on: Annotated[tuple[str, ...], Field(max_length=32)] | None = None
    every_s: Seconds | None = Field(default=None, alias="every")
    when: Expression | None = None
    fire: Literal["once", "each"] | None = None
    debounce_s: Seconds | None = Field(default=None, alias="debounce")
    busy: Literal["latest", "queue"] = "latest"
    queue: Annotated[int, Field(ge=1, le=256)] = 8
    rate: Rate = Rate(most=60, over="1m")
    quiet: Annotated[tuple[Annotated[str, AfterValidator(_hours)], ...], Field(max_length=8)] = ()
    max_age_s: Seconds | None = Field(default=None, alias="max_age")
    priority: Priority = "normal"
    energy: Literal["wait", "skip"] = "skip"
    deadline_s: Seconds | None = Field(default=None, alias="deadline")
    dry_run: bool = False
    interlock: Annotated[tuple[Expression, ...], Field(max_length=16)] = ()
    model: Identifier | None = None
    prompt: Template | None = None
    max_tokens: Annotated[int, Field(ge=1, le=8192)] | None = None
    answer: dict[str, JsonValue] | bool | None = None
    then: Annotated[tuple[Action, ...], Field(min_length=1, max_length=16)]

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.prompt is not None and self.answer is None:
            raise ValueError("a prompt needs 'answer', the schema of what may be acted on")
        if self.prompt is None and (self.answer is not None or self.model is not None):
            raise ValueError("model and answer are for a rule with a prompt")
        return self

    @property
    def is_once(self) -> bool:
        """Whether it fires only when its condition becomes true."""
        return self.fire == "once" or (self.fire is None and self.when is not None)

    @property
    def patience_s(self) -> float:
        """Seconds after which an answer is not acted on."""
        return self.deadline_s or (3600.0 if self.energy == "wait" else 30.0)


class RuleFile(FileModel):
    """One file of rules.

    Attributes:
        allow: filters of the topics that its rules may publish to.
        inputs: values by name; a name is known in this file alone.
    """

    allow: Annotated[
        tuple[Annotated[str, StringConstraints(max_length=1024)], ...], Field(max_length=64)
    ] = ()
    inputs: Annotated[dict[str, Input], Field(max_length=MAX_INPUTS)] = Field(default_factory=dict)
    rules: Annotated[tuple[Rule, ...], Field(min_length=1, max_length=MAX_RULES)]

    @field_validator("allow")
    @classmethod
    def _filters(cls, allow: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(map(check_filter, allow))

    @field_validator("inputs", mode="before")
    @classmethod
    def _names(cls, inputs: Any) -> Any:
        for name in inputs if isinstance(inputs, dict) else ():
            if not isinstance(name, str) or not _INPUT_NAME.match(name):
                raise ValueError(f"'{str(name)[:40]}' is not a name of an input: a-z, 0-9 and _ are expected")
            if name in RESERVED_NAMES:
                raise ValueError(f"'{name}' cannot name an input: templates have it for something else")
        return inputs


def prompt_fits(text: str) -> bool:
    """Whether `text` can be a prompt."""
    return 0 < len(text.strip()) <= MAX_PROMPT_CHARS
