"""What the engine is told and what it decides. Values only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from edgeslm.schema.message import PromptRequest
from edgeslm.schema.rule_trace import FiringTrace


@dataclass(frozen=True, slots=True)
class Moment:
    """Now.

    Attributes:
        mono_s: monotonic seconds: ages, windows and deadlines.
        wall_s: Unix time: hours of the day, and what is told.
    """

    mono_s: float
    wall_s: float


@dataclass(frozen=True, slots=True)
class Heard:
    """A message as the engine takes it.

    Attributes:
        hops: rules that stand behind it one after the other, as far as it says.
    """

    topic: str
    payload: bytes
    retain: bool = False
    hops: int = 0


@dataclass(frozen=True, slots=True)
class Ask:
    """Put a prompt to the model; the answer comes back under the request's id."""

    rule: str
    request: PromptRequest


@dataclass(frozen=True, slots=True)
class Send:
    """Publish a message.

    Attributes:
        hops: rules that stand behind it one after the other, `rule` among them.
    """

    rule: str
    topic: str
    payload: bytes
    qos: int
    retain: bool
    hops: int = 0


@dataclass(frozen=True, slots=True)
class Tell:
    """Raise an event."""

    rule: str
    detail: str


@dataclass(frozen=True, slots=True)
class Done:
    """A firing is over; keep its trace."""

    trace: FiringTrace


Decision: TypeAlias = Ask | Send | Tell | Done
NewId: TypeAlias = Callable[[str], str]
"""Makes the id of a request, from the name of the rule that asks."""
