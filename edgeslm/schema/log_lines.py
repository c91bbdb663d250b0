"""The operation ``logs``: what it takes and gives; see :mod:`edgeslm.schema.operation`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from edgeslm.schema.base import FileModel, WireModel

LogLevel = Literal["info", "warning", "error"]
MAX_LINES = 400
MAX_LINE_CHARS = 2000

LogStamp = Annotated[
    str,
    StringConstraints(pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2} [0-9]{2}:[0-9]{2}:[0-9]{2},[0-9]{3}$"),
]
"""As a line begins: the device's own time, where it is, to the millisecond."""


class LogsArgs(FileModel):
    """What of the log is asked for.

    Attributes:
        lines: the latest so many.
        level: nothing less grave.
        since_s: nothing older than so many seconds.
        after: nothing before this stamp, which an earlier answer gave; lines of the very same stamp come again.
    """

    lines: Annotated[int, Field(ge=1, le=MAX_LINES)] = 100
    level: LogLevel = "info"
    since_s: Annotated[float, Field(gt=0, le=31 * 86_400)] | None = None
    after: LogStamp | None = None


class LogLines(WireModel):
    """What there is of it.

    Attributes:
        lines: oldest first; a record of several lines is several of these.
        left_out: lines that were asked for and had no room.
    """

    lines: Annotated[
        tuple[Annotated[str, StringConstraints(max_length=MAX_LINE_CHARS)], ...],
        Field(max_length=MAX_LINES, strict=False),
    ]
    left_out: Annotated[int, Field(ge=0)] = 0
