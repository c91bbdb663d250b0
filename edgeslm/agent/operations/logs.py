"""``logs``: the latest lines of the agent's log, for somebody who is not at the device.

What always holds: all lines went through the :class:`~edgeslm.agent.operations.redaction.Redactor` before any of them
was chosen, so that a secret over several lines is gone whatever is asked for; the answer fits into one event; what this
operation logs about itself is not among it, or following a log would make it longer.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from edgeslm.agent.operations.arguments import cut_off, read_args
from edgeslm.agent.operations.ports import Command, Done, Progress, Step
from edgeslm.agent.operations.redaction import Redactor
from edgeslm.schema.log_lines import MAX_LINE_CHARS, LogLevel, LogLines, LogsArgs

MAX_BYTES: Final = 160 * 1024
"""Of all lines together, as JSON: what fits into one event beside all else."""
_HEAD: Final = re.compile(r"(\d{4}-\d{2}-\d{2} \d{2}:\d{2}:\d{2},\d{3}) ([A-Z]+) ")
_RANKS: Final[dict[LogLevel, int]] = {"info": 0, "warning": 1, "error": 2}
_NAMES: Final = {"WARNING": 1, "ERROR": 2, "CRITICAL": 2}
_OWN: Final = re.compile(r"INFO edgeslm\.agent\.operations\.runner: (?:command|operation) logs/")


class Logs:
    """``Operation``."""

    op = "logs"
    deadline_s = 30.0

    def __init__(
        self,
        lines: Callable[[], Sequence[str]],
        redactor: Callable[[], Redactor],
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Take the parts.

        Args:
            lines: the latest lines, oldest first, each beginning with local time and level or going on with the one
                before.
            redactor: knows the secrets of this device as they are by then.
            clock: gives Unix time.
        """
        self._lines = lines
        self._redactor = redactor
        self._clock = clock

    def begin(self, command: Command, progress: Progress) -> Step:
        """See ``Operation``."""
        del progress
        args = read_args(LogsArgs, command)
        lines = self._redactor().text("\n".join(self._lines())).split("\n")
        not_before = args.after or ""
        if args.since_s is not None:
            not_before = max(not_before, stamp(self._clock() - args.since_s))
        result = chosen(lines, args.level, not_before, args.lines)
        return Done(result.model_dump(mode="json"))

    def resume(self, command: Command, memo: Mapping[str, Any] | None, progress: Progress) -> Step:
        """See ``Operation``."""
        cut_off(command)


def stamp(unix_s: float) -> str:
    """A time as lines begin with it."""
    milliseconds = int(unix_s * 1000)
    return (
        f"{time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(milliseconds // 1000))},{milliseconds % 1000:03}"
    )


def chosen(lines: Sequence[str], level: LogLevel, not_before: str, count: int) -> LogLines:
    """The latest `count` of the lines that are as grave and as late as asked for, as far as there is room."""
    found = []
    is_wanted = False
    for line in lines:
        head = _HEAD.match(line)
        if head is not None:
            is_grave = _NAMES.get(head[2], 0) >= _RANKS[level]
            is_own = _OWN.match(line, head.start(2)) is not None
            is_wanted = is_grave and head[1] >= not_before and not is_own
        if is_wanted and line:
            found.append(line[:MAX_LINE_CHARS])
    kept: list[str] = []
    room = MAX_BYTES
    for line in reversed(found[-count:]):
        room -= len(json.dumps(line, ensure_ascii=False).encode("utf-8", "replace")) + 1
        if room < 0:
            break
        kept.append(line.encode("utf-8", "replace").decode())
    return LogLines(lines=tuple(reversed(kept)), left_out=len(found) - len(kept))
