"""Rules as the engine runs them: every text checked and compiled, every name resolved."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from pydantic import JsonValue

from edgeslm.agent.rules.conditions import Condition
from edgeslm.agent.rules.safety import Allowed, Clamp, Schema
from edgeslm.agent.rules.templates import Template
from edgeslm.agent.rules.values import Path
from edgeslm.schema.rule import Input, Rule
from edgeslm.schema.rule_trace import OverriddenRule

InputKey: TypeAlias = tuple[str, str]
"""File and name."""


@dataclass(frozen=True)
class Structure:
    """A payload with templates for texts."""

    content: JsonValue | Template | dict[str, Structure] | list[Structure]


@dataclass(frozen=True)
class CompiledInput:
    """One input."""

    key: InputKey
    spec: Input
    path: Path

    @property
    def name(self) -> str:
        """As its file calls it."""
        return self.key[1]


@dataclass(frozen=True)
class CompiledPublish:
    """A message to send.

    Attributes:
        topic: one template for each level.
        is_text: the payload is a text in the file.
    """

    topic: tuple[Template | str, ...]
    payload: Structure
    is_text: bool
    schema: Schema | None
    clamp: Clamp
    qos: int
    retain: bool


@dataclass(frozen=True)
class CompiledCall:
    """Another rule to go on with."""

    rule: str
    values: dict[str, Structure]


@dataclass(frozen=True)
class CompiledAction:
    """One thing to do."""

    condition: Condition | None
    what: CompiledPublish | CompiledCall | Template


@dataclass(frozen=True)
class CompiledRule:
    """One rule.

    Attributes:
        origin: the package that brought it; ``None`` for one of the device's own.
        inputs: what its expressions and templates may read, by name.
        shown: names of inputs that it reads, for the trace.
        triggers: inputs whose messages make it look.
        templates: all of them, for what they need.
    """

    spec: Rule
    file: str
    inputs: Mapping[str, InputKey]
    shown: tuple[str, ...]
    triggers: tuple[InputKey, ...]
    condition: Condition | None
    interlock: tuple[Condition, ...]
    prompt: Template | None
    answer: Schema | None
    actions: tuple[CompiledAction, ...]
    allowed: Allowed
    templates: tuple[Template, ...]
    origin: str | None = None

    @property
    def name(self) -> str:
        """Its name, unique on a device."""
        return self.spec.name


@dataclass(frozen=True)
class RuleSet:
    """All rules of a device.

    Attributes:
        fingerprint: changes whenever a file does.
        overridden: rules of packages that are not in use.
    """

    files: tuple[str, ...]
    inputs: dict[InputKey, CompiledInput]
    rules: dict[str, CompiledRule]
    fingerprint: str
    overridden: tuple[OverriddenRule, ...] = ()

    def filters(self) -> list[tuple[str, int]]:
        """What has to be subscribed to."""
        from edgeslm.agent.rules.matching import least_filters  # noqa: PLC0415

        return least_filters((item.spec.topic, item.spec.qos) for item in self.inputs.values())
