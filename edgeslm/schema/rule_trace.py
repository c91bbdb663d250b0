"""What rules leave behind: the trace of each firing, how rules are, and recorded messages."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, JsonValue

from edgeslm.schema.base import WireModel
from edgeslm.schema.message import Receipt

Outcome = Literal["acted", "dry_run", "nothing", "skipped", "refused", "failed"]
"""``nothing``: no action's condition held; ``skipped``: hours, rate, budget or a newer firing; ``refused``: answer,
payload, topic or interlock did not allow it; ``failed``: a fault, no answer, or a message that could not be sent."""


class ActionTrace(WireModel):
    """One thing that was done, or would have been."""

    kind: Literal["publish", "call", "event"]
    to: str
    payload: str | None = None
    clamped: tuple[str, ...] = Field(default=(), strict=False)


class FiringTrace(WireModel):
    """One firing from reading to action.

    Attributes:
        at: device time of the firing, ISO 8601 in UTC.
        cause: the topic that made it look, ``every``, or ``call:<rule>``.
        inputs: values that the rule could see, by name.
        answer: what the model said, as data.
        took_ms: milliseconds from the message to the action.
        hops: rules that went before it in a row.
    """

    at: str
    rule: str
    outcome: Outcome
    detail: str = ""
    cause: str
    inputs: dict[str, JsonValue] = Field(default_factory=dict)
    prompt: str | None = None
    answer: JsonValue = None
    actions: tuple[ActionTrace, ...] = Field(default=(), strict=False)
    receipt: Receipt | None = None
    took_ms: float = 0.0
    hops: int = 0


class RuleStatus(WireModel):
    """One rule, as it is now.

    Attributes:
        origin: the package that brought it, as ``name@version``; ``None`` for one of the device's own.
        looked: how often its condition was looked at.
        fired: firings that passed hours, rate and queue.
        last: what became of the latest firing, with its reason.
    """

    name: str
    file: str
    origin: str | None = None
    looked: int
    fired: int
    acted: int
    skipped: int
    refused: int
    failed: int
    waiting: int
    last: str = ""


class InputStatus(WireModel):
    """One input, as it is now; `faults` are messages that it could not use."""

    name: str
    file: str
    topic: str
    value: JsonValue = None
    age_s: float | None = None
    readings: int
    faults: int
    last_fault: str = ""


class OverriddenRule(WireModel):
    """A rule that a package brought and that is not in use, since `by`, a file, has one of that name."""

    name: str
    file: str
    origin: str
    by: str


class RulesStatus(WireModel):
    """All rules of a device.

    Attributes:
        overridden: rules of packages that others of the same name take the place of.
        error: why the files as they are now are not in use; the former ones run.
        shed: messages dropped since more came than could be looked at.
        running: false once whoever ran them ended in order.
    """

    at: str
    running: bool = True
    files: tuple[str, ...] = Field(default=(), strict=False)
    error: str | None = None
    shed: int = 0
    rules: tuple[RuleStatus, ...] = Field(default=(), strict=False)
    overridden: tuple[OverriddenRule, ...] = Field(default=(), strict=False)
    inputs: tuple[InputStatus, ...] = Field(default=(), strict=False)


class RecordedMessage(WireModel):
    """A line of a recorded log.

    Attributes:
        at_s: seconds since the first message.
        wall_s: Unix time.
        text: the body, where it is UTF-8.
        hex: the body, where it is not.
    """

    at_s: Annotated[float, Field(ge=0, le=1e8, allow_inf_nan=False)]
    wall_s: Annotated[float, Field(ge=0, le=253_402_300_799, allow_inf_nan=False)]
    topic: Annotated[str, Field(min_length=1, max_length=65_535)]
    text: str | None = None
    hex: str | None = None
    qos: Literal[0, 1, 2] = 0
    retain: bool = False
