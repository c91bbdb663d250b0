"""Joins a fleet in the background, however long it takes: the network may come an hour after the board.

What always holds: no failure ends it but :meth:`Joining.stop`; a restart at any moment goes on with the same key, since
:mod:`edgeslm.agent.enrolment` does; and nothing here looks at the clock on the wall, which a board without a battery
for it may not know before it has a network.

Left to others: what one attempt is (:mod:`edgeslm.agent.enrolment`), and what a device does once it is a member.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from edgeslm.errors import EdgeslmError, EnrolmentRefusedError, NoAnswerError

log = logging.getLogger(__name__)

ATTEMPT_S = 600.0
FIRST_PAUSE_S = 2.0
LONGEST_PAUSE_S = 60.0
REFUSED_PAUSE_S = 900.0
"""An operator who refused a device by mistake can take that back."""
_STOP_S = 2.0

Attempt = Callable[[float, Callable[[str], None]], object]
"""Joins, or raises why not: gets the seconds that it may take, and who hears what it waits for."""


class Joining:
    """Tries to join until it has.

    Attributes:
        state: what it waits for, for people.
    """

    def __init__(
        self,
        attempt: Attempt,
        on_joined: Callable[[], None],
        on_state: Callable[[str], None] = lambda text: None,
        *,
        pause_s: float = FIRST_PAUSE_S,
    ) -> None:
        """Take the parts.

        Args:
            attempt: one of as many as it takes.
            on_joined: called on the thread of this, once.
            on_state: hears each new :attr:`state`.
            pause_s: after the first attempt that failed; it doubles with each.
        """
        self._attempt = attempt
        self._on_joined = on_joined
        self._on_state = on_state
        self._pause_s = pause_s
        self._stopping = threading.Event()
        self._joined = threading.Event()
        self._thread = threading.Thread(target=self._run, name="edgeslm-joining", daemon=True)
        self.state = "about to join its fleet"

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def wait(self, timeout_s: float) -> bool:
        """Wait until it has joined; whether it has within `timeout_s`."""
        return self._joined.wait(timeout_s)

    def ailment(self) -> str | None:
        """What keeps it from going on, as a sentence; waiting is nothing of the kind."""
        alive = self._joined.is_set() or self._thread.is_alive()
        return None if alive else "it does not try to join its fleet any more"

    def stop(self) -> None:
        """Give up for now. An attempt that is under way is cut off by the end of the process, and does no harm."""
        self._stopping.set()
        self._thread.join(_STOP_S)

    def _run(self) -> None:
        pause_s = self._pause_s
        while not self._stopping.is_set():
            wait_s = pause_s
            try:
                self._attempt(ATTEMPT_S, self._tell)
            except EnrolmentRefusedError as error:
                wait_s = REFUSED_PAUSE_S
                self._tell(str(error))
            except NoAnswerError as error:
                self._tell(error.message)
            except EdgeslmError as error:
                self._tell(f"cannot join: {error}")
            except Exception as error:
                log.exception("an attempt to join failed")
                self._tell(f"cannot join: {type(error).__name__}")
            else:
                self._joined.set()
                self._on_joined()
                return
            self._stopping.wait(wait_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    def _tell(self, text: str) -> None:
        if text == self.state:
            return
        self.state = text
        log.info("joining: %s", text)
        self._on_state(text)
