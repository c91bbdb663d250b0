"""What is delivered, how it may be, and the messages of a pull over MQTT.

A file is a *blob*, named by its sha256 and cut into blocks of 64 KiB. What a device is to have is a package,
whole or as a delta from something that it has.
"""

from __future__ import annotations

import re
from datetime import time
from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from edgeslm.schema.base import FileModel, Sha256, WireModel
from edgeslm.schema.message import ErrorBody
from edgeslm.schema.package import MAX_PACKAGE_BYTES

BLOCK_BYTES = 2**16
MAX_BLOCKS = MAX_PACKAGE_BYTES // BLOCK_BYTES
MAX_REQUESTED_RUNS = 64
MAX_METADATA_BYTES = 2 * 2**20
"""Of one file of metadata of a release repository that travels over MQTT."""

MeteredRule = Literal["allow", "delta", "refuse"]

_HOURS = re.compile(r"^([01]\d|2[0-3]):[0-5]\d-([01]\d|2[0-3]):[0-5]\d$")


class BlobRef(WireModel):
    """A file by its contents.

    Attributes:
        chunks_sha256: of its chunk map, a blob of its own, by which every block is checked as it arrives.
            Without one only the whole can be checked.
    """

    sha256: Sha256
    size_bytes: Annotated[int, Field(ge=1, le=MAX_PACKAGE_BYTES)]
    chunks_sha256: Sha256 | None = None

    @property
    def block_count(self) -> int:
        """Blocks that it is cut into; the last one may be shorter."""
        return -(-self.size_bytes // BLOCK_BYTES)

    def block_bytes(self, index: int) -> int:
        """Size of the block `index`."""
        return min(BLOCK_BYTES, self.size_bytes - index * BLOCK_BYTES)


class DeltaRef(WireModel):
    """A delta to a package.

    Attributes:
        base_sha256: of the package that has to be installed for it.
    """

    base_sha256: Sha256
    blob: BlobRef


class DeliveryTarget(WireModel):
    """A package and the ways to it."""

    package: BlobRef
    deltas: Annotated[tuple[DeltaRef, ...], Field(max_length=32, strict=False)] = ()


class DeliveryPolicy(FileModel):
    """How a device may fetch.

    Only sources beyond the local network are bound by `metered`, `metered_max_bytes` and `hours`.

    Attributes:
        max_bytes_per_s: bandwidth cap, or ``None``.
        metered: over a metered link fetch everything, deltas only, or nothing.
        metered_max_bytes: most bytes that a delivery may move over a metered link, or ``None``.
        hours: "HH:MM-HH:MM" in local time, over midnight if the second is earlier; or ``None`` for any time.
        min_bytes_per_s: a source that gives less is left for another.
        slow_after_s: seconds over which that is judged.
        retry_s: seconds before the first retry with a source that failed; it doubles with each failure.
        max_retry_s: seconds between retries at most.
        deadline_s: seconds after which a delivery is given up; what has arrived stays.
    """

    max_bytes_per_s: Annotated[int, Field(ge=1024)] | None = None
    metered: MeteredRule = "delta"
    metered_max_bytes: Annotated[int, Field(ge=0)] | None = None
    hours: Annotated[str, StringConstraints(pattern=_HOURS.pattern)] | None = None
    min_bytes_per_s: Annotated[int, Field(ge=0)] = 1024
    slow_after_s: Annotated[float, Field(gt=0, le=3600)] = 30.0
    retry_s: Annotated[float, Field(gt=0, le=3600)] = 2.0
    max_retry_s: Annotated[float, Field(gt=0, le=86_400)] = 300.0
    deadline_s: Annotated[float, Field(gt=0, le=30 * 86_400)] = 86_400.0

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.max_bytes_per_s is not None and self.max_bytes_per_s < self.min_bytes_per_s:
            raise ValueError("max_bytes_per_s is below min_bytes_per_s: every source would be too slow")
        if self.hours is not None and self.opens == self.closes:
            raise ValueError("hours are empty; leave them out for any time")
        return self

    @property
    def opens(self) -> time:
        """When the hours begin."""
        return time.fromisoformat((self.hours or "00:00-00:00")[:5])

    @property
    def closes(self) -> time:
        """When they end."""
        return time.fromisoformat((self.hours or "00:00-00:00")[6:])


class BlockRun(WireModel):
    """Blocks from `first` to `last`, both included."""

    first: Annotated[int, Field(ge=0, lt=MAX_BLOCKS)]
    last: Annotated[int, Field(ge=0, lt=MAX_BLOCKS)]

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.last < self.first:
            raise ValueError("last is before first")
        return self


class BlockRequest(WireModel):
    """A device asks for blocks of the blob that its topic names; without any it wants no more.

    Blocks are asked for once, and again only after they seem to be lost: what was asked for before goes on.
    """

    v: Literal[1] = 1
    blocks: Annotated[tuple[BlockRun, ...], Field(max_length=MAX_REQUESTED_RUNS, strict=False)] = ()


class BlockRefusal(WireModel):
    """Instead of blocks: why there are none."""

    v: Literal[1] = 1
    error: ErrorBody


class MetadataRequest(WireModel):
    """A device asks for a part of the file of metadata that its topic names.

    Attributes:
        id: chosen by the device for one file; every answer repeats it, so that late ones are told apart.
        offset: where the part begins.
    """

    v: Literal[1] = 1
    id: Annotated[int, Field(ge=0, lt=2**63)]
    offset: Annotated[int, Field(ge=0, le=MAX_METADATA_BYTES)] = 0


class MetadataRefusal(WireModel):
    """Instead of a part: why there is none."""

    v: Literal[1] = 1
    id: Annotated[int, Field(ge=0, lt=2**63)]
    reason: Literal["missing", "unreadable"]
