"""Shared building blocks of the schemas: identifiers, versions, and the two kinds of model."""

from __future__ import annotations

import re
from typing import Annotated, NewType

from pydantic import BaseModel, ConfigDict, StringConstraints

IDENTIFIER_PATTERN = r"^[a-z0-9-]{1,64}$"
"""Valid at once as MQTT topic level, Home Assistant object id and (but for leading dashes) host name."""

Identifier = Annotated[str, StringConstraints(pattern=IDENTIFIER_PATTERN)]
RequestId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._:-]{1,128}$")]
"""Chosen by the requester; a wider alphabet than ours (UUIDs, ULIDs), yet always one topic level."""
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
SemanticVersion = Annotated[
    str, StringConstraints(pattern=r"^\d{1,9}\.\d{1,9}\.\d{1,9}(-[0-9A-Za-z.-]{1,64})?$", max_length=96)
]
FileName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]
"""A plain name of a file in a package: no separators, no leading dot."""

DeviceId = NewType("DeviceId", str)
FleetId = NewType("FleetId", str)

_IDENTIFIER = re.compile(IDENTIFIER_PATTERN)


def is_identifier(text: str) -> bool:
    """Whether `text` can name a device, fleet, board or model."""
    return _IDENTIFIER.fullmatch(text) is not None


def version_key(version: str) -> tuple[int, int, int, int, str]:
    """Sorts semantic versions; a pre-release comes before its release (semver.org, item 11, coarsely)."""
    numbers, _, suffix = version.partition("-")
    major, minor, patch = (int(part) for part in numbers.split("."))
    return major, minor, patch, 0 if suffix else 1, suffix


class FileModel(BaseModel):
    """Part of a file that a person or a build wrote: unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class WireModel(BaseModel):
    """Part of a message: unknown fields are ignored, values are never coerced from other JSON types."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)
