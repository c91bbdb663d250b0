"""What was said in conversations that clients name, so that the next prompt can come after it.

What always holds:

* In memory alone: a session ends with the agent, and nothing of it is written anywhere.
* A session belongs to one model in one release. Under the same name another model has a session of its own; another
  release begins it anew.
* Within its limits: the number of sessions, the bytes of all together, and the time that one may rest. Whichever was
  used least recently goes first, and goes as a whole.

Left to others: how turns become a prompt, and how many there is room for (:mod:`edgeslm.runtime.conversation`).
"""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from edgeslm.runtime.conversation import Turn
from edgeslm.schema.config import SessionsConfig
from edgeslm.schema.installed import InstalledPackage
from edgeslm.schema.message import SessionState

log = logging.getLogger(__name__)

_Key = tuple[str, str]


@dataclass(frozen=True)
class Recalled:
    """What is known of a session.

    Attributes:
        turns: the oldest first.
        state: whether there is anything, and why not.
    """

    turns: tuple[Turn, ...]
    state: SessionState


@dataclass(frozen=True)
class _Session:
    sha256: str
    turns: tuple[Turn, ...]
    used_s: float

    @property
    def size_bytes(self) -> int:
        return sum(turn.size_bytes for turn in self.turns)


class Sessions:
    """The sessions of one device, by name and model; for who computes, which is one at a time."""

    def __init__(
        self, limits: SessionsConfig | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Know of none yet.

        Args:
            clock: seconds, monotonic.
        """
        self._limits = limits or SessionsConfig()
        self._clock = clock
        self._sessions: OrderedDict[_Key, _Session] = OrderedDict()

    def __len__(self) -> int:
        return len(self._sessions)

    @property
    def size_bytes(self) -> int:
        """About the memory that all of them take."""
        return sum(session.size_bytes for session in self._sessions.values())

    def recall(self, name: str, package: InstalledPackage) -> Recalled:
        """What was said in session `name` with the model of `package`."""
        self._expire()
        session = self._sessions.get((name, package.manifest.name))
        if session is None:
            return Recalled((), "new")
        if session.sha256 != package.sha256:
            return Recalled((), "restarted")
        return Recalled(session.turns, "continued")

    def remember(self, name: str, package: InstalledPackage, turn: Turn, *, dropped: int = 0) -> None:
        """Add `turn` to what was said in session `name` with the model of `package`.

        Args:
            dropped: so many of the oldest turns are forgotten.
        """
        key = (name, package.manifest.name)
        # Not what was recalled for this turn: a prompt of high priority may have had its own in the meantime.
        turns = self.recall(name, package).turns[dropped:]
        self._sessions[key] = _Session(package.sha256, (*turns, turn), self._clock())
        self._sessions.move_to_end(key)
        self._expire()
        while len(self._sessions) > self._limits.max_sessions or self.size_bytes > self._limits.max_kb * 1024:
            _, gone = self._sessions.popitem(last=False)
            log.info("a session of %d turns is forgotten: there is no room for it", len(gone.turns))

    def _expire(self) -> None:
        oldest_s = self._clock() - self._limits.idle_s
        for key in [key for key, session in self._sessions.items() if session.used_s < oldest_s]:
            del self._sessions[key]
