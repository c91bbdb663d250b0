"""Lines between the updater and the process in which a candidate is tried: JSON, one object a line.

What a trial says is not trusted: native code of a candidate's graphs runs in its process.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, JsonValue, StringConstraints, TypeAdapter

from edgeslm.schema.base import FileModel
from edgeslm.schema.update import Detail

MAX_LINE_BYTES = 262_144
MAX_BLOCK_PROMPTS = 1024

_Seconds = Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]
_Megabytes = Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)]


class TrialBlock(FileModel):
    """To the trial: answer these, one after the other."""

    prompts: Annotated[tuple[Annotated[str, StringConstraints(max_length=4096)], ...], Field(max_length=1024)]


class TrialLoaded(FileModel):
    """The package is loaded and proved."""

    kind: Literal["loaded"] = "loaded"
    load_s: _Seconds
    graph: Annotated[str, StringConstraints(max_length=128)]
    runtime: Annotated[str, StringConstraints(max_length=128)]


class TrialAnswer(FileModel):
    """One answer; see ``agent.update.ports.Timed``.

    Attributes:
        peak_mb: highest resident memory of the process so far.
    """

    kind: Literal["answer"] = "answer"
    text: Annotated[str, StringConstraints(max_length=131_072)]
    data: JsonValue = None
    ttft_s: _Seconds | None = None
    decode_s: _Seconds
    tokens: Annotated[int, Field(ge=0, le=1_000_000)]
    peak_mb: _Megabytes


class TrialFailure(FileModel):
    """It cannot go on; the last line."""

    kind: Literal["failure"] = "failure"
    cause: Literal["load_failed", "out_of_memory", "unhealthy"]
    detail: Detail


TrialLine = Annotated[TrialLoaded | TrialAnswer | TrialFailure, Field(discriminator="kind")]
TRIAL_LINE: TypeAdapter[TrialLoaded | TrialAnswer | TrialFailure] = TypeAdapter(TrialLine)
