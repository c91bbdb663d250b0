"""What the machinery of remote operations needs of each operation, as protocols.

What always holds: an operation is begun once. If the process ends while one is under way, for whatever reason, the next
process calls :meth:`Operation.resume`, never :meth:`Operation.begin` again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True)
class Command:
    """One command, as it was accepted and written down.

    Attributes:
        op: what to do.
        args: for the operation; parsed JSON, not checked yet.
    """

    id: str
    op: str
    args: Mapping[str, Any]


@dataclass(frozen=True)
class Done:
    """It is done.

    Attributes:
        result: what came of it, as JSON.
    """

    result: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Restart:
    """It goes on in the next process: this one has to end in order, and begin anew.

    Attributes:
        memo: what the next process has to know; JSON, on the card before this process ends.
    """

    memo: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Waiting:
    """Nothing to do just now; :meth:`Operation.resume` is called again after a while.

    Attributes:
        memo: what it has to know then.
        retry_s: seconds until then.
    """

    memo: Mapping[str, Any]
    retry_s: float


Step = Done | Restart | Waiting


class Progress(Protocol):
    """How an operation tells how far it is, and hears that it is to stop."""

    def tell(self, text: str, share: float | None = None) -> None:
        """What it is doing; `share` of it that is done, 0 to 1."""

    def is_cancelled(self) -> bool:
        """Whether it was taken back, its time is over, or the agent ends."""


class Operation(Protocol):
    """One sort of operation; its methods run in the operations' own thread, one at a time."""

    @property
    def op(self) -> str:
        """Its name in the topic."""

    @property
    def deadline_s(self) -> float:
        """Longest that one may take, restarts included."""

    def begin(self, command: Command, progress: Progress) -> Step:
        """Do it, or as much of it as this process can.

        Raises:
            OperationError: it is refused, or failed; everything is as it was before.
        """

    def resume(self, command: Command, memo: Mapping[str, Any] | None, progress: Progress) -> Step:
        """Go on after a restart, or after :class:`Waiting`.

        Args:
            command: as begun.
            memo: of the last :class:`Restart` or :class:`Waiting`; ``None`` if the process ended before any.
            progress: to tell.

        Raises:
            OperationError: it failed; everything is as it was before.
        """
