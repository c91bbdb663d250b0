"""``abort`` and ``retry``: stop the update of a model, or let a release that failed here be tried again.

Both may be done twice without harm, so one that the end of a process cut off is done again.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol

from edgeslm.agent.operations.arguments import read_args
from edgeslm.agent.operations.ports import Command, Done, Progress, Step
from edgeslm.agent.update.change import Change
from edgeslm.agent.update.journal import PastChange
from edgeslm.errors import OperationError
from edgeslm.schema.operation_results import ModelArgs

_LOOK_S: Final = 0.2


class ChangesModels(Protocol):
    """What is needed of the updater."""

    def abort(self, name: str | None = None, detail: str = ...) -> None:
        """See ``Updater``."""

    def retry(self, name: str) -> None:
        """See ``Updater``."""

    def history(self, limit: int = ...) -> Sequence[PastChange]:
        """See ``Updater``."""


class AbortChange:
    """``Operation``."""

    op = "abort"
    deadline_s = 300.0

    def __init__(self, updater: ChangesModels) -> None:
        """Take the updater."""
        self._updater = updater

    def begin(self, command: Command, progress: Progress) -> Step:
        """See ``Operation``."""
        name = read_args(ModelArgs, command).name
        change = _latest(self._updater, name)
        if change is None or change.settled:
            raise OperationError(f"no update of '{name}' is under way", reason="refused")
        return self._stop(change, progress)

    def resume(self, command: Command, memo: Mapping[str, Any] | None, progress: Progress) -> Step:
        """See ``Operation``."""
        change = _latest(self._updater, read_args(ModelArgs, command).name)
        if change is None:
            raise OperationError("the journal of updates was lost meanwhile", reason="failed")
        return Done(_told(change)) if change.settled else self._stop(change, progress)

    def _stop(self, change: Change, progress: Progress) -> Step:
        name = change.name
        progress.tell(f"stopping {name} {change.wanted.version}, which is {change.state}")
        self._updater.abort(name, "stopped by the operator")
        while True:
            now = _latest(self._updater, name)
            if now is None or now.number != change.number or now.settled:
                break
            if progress.is_cancelled():
                raise OperationError(f"{name} is told to stop and has not yet", reason="cancelled")
            time.sleep(_LOOK_S)
        return Done(_told(now or change))


class RetryRelease:
    """``Operation``."""

    op = "retry"
    deadline_s = 60.0

    def __init__(self, updater: ChangesModels) -> None:
        """Take the updater."""
        self._updater = updater

    def begin(self, command: Command, progress: Progress) -> Step:
        """See ``Operation``."""
        name = read_args(ModelArgs, command).name
        change = _latest(self._updater, name)
        if change is None:
            raise OperationError(f"no update of '{name}' was ever begun here", reason="refused")
        if not change.settled:
            raise OperationError(f"an update of '{name}' is under way: {change.state}", reason="refused")
        self._updater.retry(name)
        return Done(_told(change))

    def resume(self, command: Command, memo: Mapping[str, Any] | None, progress: Progress) -> Step:
        """See ``Operation``."""
        name = read_args(ModelArgs, command).name
        self._updater.retry(name)
        change = _latest(self._updater, name)
        return Done({"name": name} if change is None else _told(change))


def _latest(updater: ChangesModels, name: str) -> Change | None:
    # The latest change of each name is always among what the journal keeps.
    return next((past.change for past in updater.history(1000) if past.change.name == name), None)


def _told(change: Change) -> dict[str, Any]:
    told: dict[str, Any] = {"name": change.name, "version": change.wanted.version, "state": change.state}
    if change.fault is not None:
        told["cause"], told["detail"] = change.fault.cause, change.fault.detail[:500]
    return told
