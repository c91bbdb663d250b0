"""The latest lines of the agent's log, kept in memory for whoever asks for diagnostics. Bounded."""

from __future__ import annotations

import logging
from collections import deque

LINES = 400
LINE_CHARS = 400
"""Lines that are kept, and characters of each: 160,000 at most."""

_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class RecentLog(logging.Handler):
    """Keeps what is logged; :meth:`install` makes that everything from INFO on."""

    def __init__(self) -> None:
        """Keep nothing yet."""
        super().__init__(logging.INFO)
        self.setFormatter(logging.Formatter(_FORMAT))
        self._lines: deque[str] = deque(maxlen=LINES)

    def install(self) -> None:
        """Listen to everything that edgeslm logs; what others show of it stays as it was."""
        root = logging.getLogger()
        for handler in root.handlers:
            if handler.level == logging.NOTSET:
                handler.setLevel(root.level)
        ours = logging.getLogger("edgeslm")
        ours.setLevel(min(ours.getEffectiveLevel(), logging.INFO))
        root.addHandler(self)

    def uninstall(self) -> None:
        """Listen no longer."""
        logging.getLogger().removeHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """See ``logging.Handler``."""
        try:
            for line in self.format(record).split("\n"):
                self._lines.append(line[:LINE_CHARS])
        except Exception:
            self.handleError(record)

    def lines(self) -> list[str]:
        """The latest lines, oldest first."""
        self.acquire()  # the handler's own lock, which is held while it emits
        try:
            return list(self._lines)
        finally:
            self.release()
