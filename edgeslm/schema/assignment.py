"""Assignments: the signed statement of what one device should run (the body of ``desired``).

An assignment is for one device and one key of it, for a short time, with a number that only rises. All numbers
are integers: it is signed as canonical JSON, which has no other kind.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, AwareDatetime, Field, PlainSerializer, StringConstraints, model_validator

from edgeslm.schema.base import Identifier, SemanticVersion, Sha256, WireModel

DEFAULT_LIFETIME = timedelta(days=7)
MAX_LIFETIME = timedelta(days=31)
MAX_ASSIGNMENT_BYTES = 32_768
MAX_ASSIGNED = 32
MAX_BUDGET_CHARS = 8192


def _whole_utc_seconds(value: datetime) -> datetime:
    return value.astimezone(UTC).replace(microsecond=0)


def utc_text(value: datetime) -> str:
    """`value` as signed metadata writes it, such as ``2026-01-31T12:00:00Z``."""
    return value.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


UtcSeconds = Annotated[AwareDatetime, AfterValidator(_whole_utc_seconds), PlainSerializer(utc_text)]


BudgetText = Annotated[str, StringConstraints(pattern=r"^[ -~]*$", max_length=MAX_BUDGET_CHARS)]
"""JSON in ASCII; canonical JSON leaves control characters as they are, which no parser would read back."""


class AssignedRelease(WireModel):
    """One release to run.

    Attributes:
        sha256: of the package; the signed repository has to vouch for the same.
        allow_downgrade: it may replace a newer version, though never one below the security floor.
        force: try it although it failed here before.
        is_return: it ran here before, and the fleet takes its successor back: it has to load and answer, and is
            compared with nothing.
    """

    version: SemanticVersion
    sha256: Sha256
    allow_downgrade: bool = False
    force: bool = False
    is_return: bool = False


class UpdateWindow(WireModel):
    """When the device may begin to change; outside of it, it waits."""

    opens_at: UtcSeconds
    closes_at: UtcSeconds

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.closes_at <= self.opens_at:
            raise ValueError("the window closes before it opens")
        return self


class Assignment(WireModel):
    """What one device should run.

    Attributes:
        device_key_sha256: digest of the device's public key (DER, SubjectPublicKeyInfo): a device that enrolled
            again follows nothing that was meant for the board before it.
        seq: rises with every assignment to this device.
        releases: by name.
        budget: JSON of a power budget, as text because it holds fractions; read by whoever applies it, so that one
            which this release does not understand is refused alone.
        window: when to change; at once if there is none.
    """

    v: Literal[1] = 1
    type: Literal["assignment"] = "assignment"
    fleet: Identifier
    device: Identifier
    device_key_sha256: Sha256
    seq: Annotated[int, Field(ge=1, lt=2**53)]
    issued_at: UtcSeconds
    expires_at: UtcSeconds
    releases: dict[Identifier, AssignedRelease] = Field(default_factory=dict, max_length=MAX_ASSIGNED)
    budget: BudgetText | None = None
    window: UpdateWindow | None = None

    @model_validator(mode="after")
    def _short_lived(self) -> Self:
        if not timedelta(0) < self.expires_at - self.issued_at <= MAX_LIFETIME:
            raise ValueError(f"has to expire after it was issued, and within {MAX_LIFETIME.days} days")
        return self
