"""Prompts of high priority go before readings: while one is computed, the link reads nothing and rules wait.

Everything in this process takes turns at one interpreter, and a native call of the runtime keeps it to its end. So each
reading that is looked at meanwhile is paid by the prompt.

What always holds: readings wait for :data:`LONGEST_S` at most at a time, in the buffers of network and broker, however
long a prompt takes; and for half of the time at most in the long run, however many come one on the heels of the other.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

LONGEST_S = 0.25
EXPECTED_S = 0.02
"""How long a prompt that was just heard of is waited for: it has to be decoded and journalled first."""
SENT_S = 0.002
"""After an answer: the link's thread needs the interpreter, to send it."""
_LOOK_AGAIN_S = 0.002


class Precedence:
    """Thread-safe."""

    def __init__(self, hold: Callable[[float], None]) -> None:
        """Take the link's brake.

        Args:
            hold: lets the link read nothing for so many seconds; 0 lets it go on.
        """
        self._hold = hold
        self._lock = threading.Lock()
        self._credit_s = LONGEST_S
        self._settled_s = time.monotonic()
        self._until_s = float("-inf")

    def expect(self) -> None:
        """One may have come."""
        self._take(EXPECTED_S)

    def begin(self) -> None:
        """One is computed from now on."""
        self._take(LONGEST_S)

    def end(self) -> None:
        """It is answered, and its answer is about to be sent."""
        with self._lock:
            self._settle()
            left_s = max(min(self._until_s - self._settled_s, SENT_S), 0.0)
            self._until_s = self._settled_s + left_s
        self._hold(left_s)

    def wait(self) -> None:
        """Give way, on a thread that can wait: returns at once where there is nothing to wait for.

        It looks again by itself: a thread that is woken takes its turn just when the answer wants to leave.
        """
        while (left_s := self._until_s - time.monotonic()) > 0:
            time.sleep(min(left_s, _LOOK_AGAIN_S))

    def _take(self, seconds: float) -> None:
        with self._lock:
            self._settle()
            seconds = min(seconds, self._credit_s)
            if seconds < EXPECTED_S / 2:
                return
            self._until_s = self._settled_s + seconds
        self._hold(seconds)

    def _settle(self) -> None:
        """Spend what readings waited since the last time, and earn what they did not."""
        now_s = time.monotonic()
        held_s = max(min(now_s, self._until_s) - self._settled_s, 0.0)
        self._credit_s = min(self._credit_s - held_s + (now_s - self._settled_s - held_s), LONGEST_S)
        self._settled_s = now_s
