"""Remote operations on the wire: the command (``cmd/<op>/<id>``), and the events that answer it (``e/operation``).

Left to others: what each operation takes and gives (:mod:`edgeslm.schema.operation_results` for those that every agent
has), which is loaded when one is asked for.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Literal, Self

from pydantic import AwareDatetime, Field, JsonValue, StringConstraints, model_validator

from edgeslm.schema.base import Identifier, RequestId, WireModel

OperationState = Literal[
    "received",
    "running",
    "restarting",
    "refused",
    "done",
    "failed",
    "rolled_back",
    "expired",
    "cancelled",
]
FINAL: frozenset[OperationState] = frozenset(
    {"refused", "done", "failed", "rolled_back", "expired", "cancelled"}
)
"""States that are the last word."""

OperationReason = Literal["refused", "failed", "rolled_back", "expired", "cancelled"]

MAX_LIFE = timedelta(days=31)
"""Longest time for which a command may wait for its device."""
MAX_TEXT_CHARS = 500


class OperationCommand(WireModel):
    """What a device is to do once.

    Attributes:
        id: of the request; the same for all devices that it goes to. With `op` it tells commands apart for good.
        expires_at: when it need not be begun any more.
        args: for the operation.
    """

    v: Literal[1] = 1
    id: RequestId
    op: Identifier
    issued_at: AwareDatetime
    expires_at: AwareDatetime
    args: Annotated[dict[str, JsonValue], Field(max_length=64)] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _has_a_life(self) -> Self:
        if not timedelta(0) < self.expires_at - self.issued_at <= MAX_LIFE:
            raise ValueError(f"expires_at has to come after issued_at, by {MAX_LIFE.days} days at most")
        return self


class OperationFault(WireModel):
    """Why it was not done."""

    reason: OperationReason
    message: str


class OperationEvent(WireModel):
    """How far a device is with a command. The last one of a command has a state of :data:`FINAL`.

    Attributes:
        at: device time, ISO 8601 in UTC; right only where the device's clock is.
        text: for people.
        share: of it that is done, 0 to 1, where that is known.
        result: what came of it.
    """

    v: Literal[1] = 1
    device: Identifier
    id: RequestId
    op: Identifier
    state: OperationState
    at: Annotated[str, StringConstraints(max_length=64)]
    text: str = ""
    share: Annotated[float, Field(ge=0, le=1)] | None = None
    result: dict[str, JsonValue] | None = None
    error: OperationFault | None = None

    @property
    def is_final(self) -> bool:
        """Whether it is the last word."""
        return self.state in FINAL
