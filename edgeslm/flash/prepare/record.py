"""``<image>.json``: what an image was made of, and what it is now. No secret is in it.

What always holds: the same input gives the same record.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, StringConstraints, ValidationError

from edgeslm.errors import PrepareError
from edgeslm.files import read_bounded
from edgeslm.flash.fit_types import Check
from edgeslm.flash.payload.manifest import Word
from edgeslm.schema.base import FileModel, Identifier, SemanticVersion, Sha256
from edgeslm.schema.enrol import ClaimId

MAX_RECORD_BYTES = 2**20

Name = Annotated[str, StringConstraints(min_length=1, max_length=255)]
Text = Annotated[str, StringConstraints(max_length=200)]
Bytes = Annotated[int, Field(ge=0)]


class SourceImage(FileModel):
    """The image that it was made of.

    Attributes:
        name: of the file.
        sha256: of the file.
        raw_sha256: of what was in it. Both are ``None`` for a raw image that there was no digest to compare with.
        size_bytes: of what was in it.
    """

    name: Name
    form: Literal["raw", "xz", "gz", "zst", "zip"]
    sha256: Sha256 | None = None
    raw_sha256: Sha256 | None = None
    size_bytes: Bytes


class ImageSystem(FileModel):
    """The operating system in it; see :class:`edgeslm.flash.image.facts.ImageFacts`."""

    kind: Text
    name: Text
    machine: Text
    python: Text
    glibc: Text | None


class PreparedImage(FileModel):
    """A prepared image.

    Attributes:
        image: name of the file.
        size_bytes: length of it.
        mapped_bytes: how many bytes of it have to be written to a card.
        sha256: of it.
        fleet, device, claim: whom it is for; ``None`` where each card gets its own. The name of a claim is no secret.
        hostname: that the image is told; ``None`` leaves it as it is.
        first_boot: how the image is told what is its user's; ``None`` where it is told nothing.
        boot: what was set in boot files and system, for people.
        cmdline: words that were added to the kernel's command line.
        models: that it serves first.
        payload_bytes: of all files that were put there.
        payload_files: how many files and links they are.
        root_free_bytes: what still fits into its root.
        checks: what was looked at before.
    """

    v: Literal[1] = 1
    edgeslm: SemanticVersion
    image: Name
    size_bytes: Bytes
    mapped_bytes: Bytes
    sha256: Sha256
    source: SourceImage
    system: ImageSystem
    board: Identifier
    profile: Identifier
    fleet: Identifier | None = None
    device: Identifier | None = None
    claim: ClaimId | None = None
    hostname: Text | None = None
    first_boot: Text | None = None
    boot: Annotated[tuple[Word, ...], Field(max_length=256)] = ()
    cmdline: Annotated[tuple[Word, ...], Field(max_length=256)] = ()
    models: Annotated[tuple[Word, ...], Field(max_length=16)] = ()
    payload_bytes: Bytes
    payload_files: Bytes
    root_free_bytes: Bytes
    checks: Annotated[tuple[Check, ...], Field(max_length=256)] = ()


def record_path(image: Path) -> Path:
    """Where the record of an image lies."""
    return image.with_name(f"{image.name}.json")


def encode_record(record: PreparedImage) -> bytes:
    """The record as a file."""
    return record.model_dump_json(indent=2, exclude_none=True).encode() + b"\n"


def read_record(image: Path) -> PreparedImage:
    """The record of a prepared image.

    Raises:
        PrepareError: there is none beside it, or it is damaged.
    """
    path = record_path(image)
    hint = "Prepare the image with: edgeslm flash prepare"
    try:
        data = read_bounded(path.resolve(), MAX_RECORD_BYTES)
        return PreparedImage.model_validate_json(data)
    except OSError as error:
        raise PrepareError(
            f"{path}, which says what {image.name} is, cannot be read: {error.strerror or error}",
            what="image", hint=hint,
        ) from error  # fmt: skip
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise PrepareError(
            f"{path} is no record of a prepared image: {where[:100]}: {first['msg'][:200]}",
            what="image", hint=hint,
        ) from error  # fmt: skip
