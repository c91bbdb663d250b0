"""What the operations that every agent has take and give; see :mod:`edgeslm.schema.operation`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from edgeslm.schema.base import FileModel, FileName, Identifier, Sha256, WireModel
from edgeslm.schema.message import MeterClass
from edgeslm.schema.operation import MAX_TEXT_CHARS

# --- arguments: what an operation does not know is refused ---------------------------------------------------


class NoArgs(FileModel):
    """Of an operation that needs to know nothing."""


class BenchArgs(FileModel):
    """Of ``bench``.

    Attributes:
        model: name of the served model; ``None`` is the default one.
        rounds: how often all its golden prompts are answered.
    """

    model: Identifier | None = None
    rounds: Annotated[int, Field(ge=1, le=100)] = 3


class ModelArgs(FileModel):
    """Of ``abort`` and ``retry``: the name of a model."""

    name: Identifier


# --- results --------------------------------------------------------------------------------------------------

CheckState = Literal["ok", "warn", "fail"]
Amount = Annotated[float, Field(allow_inf_nan=False)]


class Check(WireModel):
    """One thing looked at, and a sentence about it."""

    name: Annotated[str, StringConstraints(max_length=64)]
    state: CheckState
    text: Annotated[str, StringConstraints(max_length=MAX_TEXT_CHARS)]


class SelfTestResult(WireModel):
    """Of ``self-test``."""

    checks: Annotated[tuple[Check, ...], Field(max_length=64, strict=False)]

    @property
    def failed(self) -> int:
        """How many checks failed."""
        return sum(check.state == "fail" for check in self.checks)


class Range(WireModel):
    """Median, least and most over the rounds."""

    median: Amount
    least: Amount
    most: Amount


class ServedBench(WireModel):
    """Of ``bench``: what a served model takes while the device goes on with its work.

    Attributes:
        model: name and version.
        prompts: golden prompts answered, in all rounds together,
        right: and how many of them as the package says.
        completion_tokens: generated in all rounds together.
        disturbed: prompts that were given up for one of a user, and asked again.
        tokens_per_s: generated tokens a second, the reading of prompts included.
        ttft_ms: milliseconds to the first token.
        j_per_token: joules of the board a generated token; ``net_`` is above idle. ``None`` without tokens.
        temperature_c: of the processor at the end.
        throttled: the firmware slowed the board down.
    """

    model: Annotated[str, StringConstraints(max_length=256)]
    model_sha256: Sha256
    graph: Annotated[str, StringConstraints(max_length=256)]
    runtime: Annotated[str, StringConstraints(max_length=256)]
    threads: int
    rounds: int
    prompts: int
    right: int
    completion_tokens: int
    disturbed: int
    tokens_per_s: Range
    ttft_ms: Range | None = None
    j_per_token: Range | None = None
    net_j_per_token: Range | None = None
    meter: MeterClass
    temperature_c: Amount | None = None
    throttled: bool = False


MAX_BUNDLE_BYTES = 180 * 1024
"""Largest bundle: what fits into one event, in base64, beside all else."""


class Bundle(WireModel):
    """Of ``diagnostics``: a ``.tar.gz``.

    Attributes:
        files: what it holds.
        cut: what of that is not whole, since there was no room.
        data: its bytes in base64.
    """

    size_bytes: Annotated[int, Field(ge=0, le=MAX_BUNDLE_BYTES)]
    sha256: Sha256
    files: Annotated[tuple[FileName, ...], Field(max_length=64, strict=False)]
    cut: Annotated[tuple[FileName, ...], Field(max_length=64, strict=False)] = ()
    data: Annotated[str, StringConstraints(max_length=(MAX_BUNDLE_BYTES + 2) // 3 * 4)]
