"""``restart``: the agent ends in order, and begins anew under the same process number.

What always holds: it does not end where it could not begin anew, since its settings cannot be used any more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

import edgeslm
from edgeslm.agent.operations.arguments import read_args
from edgeslm.agent.operations.ports import Command, Done, Progress, Restart, Step
from edgeslm.errors import EdgeslmError, OperationError
from edgeslm.schema.operation_results import NoArgs


class RestartAgent:
    """``Operation``."""

    op = "restart"
    deadline_s = 600.0

    def __init__(self, recheck: Callable[[], None]) -> None:
        """Take what raises an ``EdgeslmError`` where the agent could not begin anew."""
        self._recheck = recheck

    def begin(self, command: Command, progress: Progress) -> Step:
        """See ``Operation``."""
        read_args(NoArgs, command)
        try:
            self._recheck()
        except EdgeslmError as error:
            raise OperationError(f"it could not begin anew: {error}", reason="refused") from error
        return Restart()

    def resume(self, command: Command, memo: Mapping[str, Any] | None, progress: Progress) -> Step:
        """See ``Operation``: whatever ended the process before, this is another one."""
        progress.tell("the agent began anew")
        return Done(
            {
                "agent": edgeslm.__version__,
                "began_at": datetime.now(UTC).isoformat(timespec="seconds"),
                "in_order": memo is not None,
            }
        )
