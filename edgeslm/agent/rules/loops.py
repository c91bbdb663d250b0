"""Tells a circle that runs through other devices from a sensor that is just busy. Pure; one watch a rule.

Where messages go through MQTT 5 all the way, they carry how many rules stand behind them, and a long row is cut. Not
so through a 3.1.1 client, a bridge, or somebody else's program. There a circle shows in its rhythm: each action is
followed by exactly one message that sets the rule off again, soon, time after time. So does a dimmer that somebody
turns, for a while. What tells them apart: without the action the circle falls silent, and the dimmer does not care.

So after a row of such firings that lasted for a minute, or a thousand of them, one is held back for a moment. If
anything else sets the rule off meanwhile, nothing is wrong: the newest firing goes on at once, and the rule is not
bothered again for a good while. If nothing does, the firing goes on as well, only late; where that happens three times
in a row, it is a circle and the rule pauses. How fast it may run until then is for the rule's rate.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, Literal

FOLLOW_S: Final = 5.0
"""What comes later after an action is no answer to it."""
LEAST_CYCLES: Final = 16
ROW_S: Final = 60.0
MANY_CYCLES: Final = 1000
HOLD_S: Final = 10.0
MOST_SILENCES: Final = 3
TRUST_S: Final = 600.0
PAUSE_S: Final = 600.0

Verdict = Literal["go", "hold", "paused"]


@dataclass(slots=True)
class LoopWatch:
    """One rule.

    Attributes:
        cycles: firings in a row, each the only one since an action that was not long ago.
        silences: firings in a row that were held back without anything happening meanwhile.
        paused_until_s: monotonic time until which it does nothing.
    """

    cycles: int = 0
    silences: int = 0
    paused_until_s: float = -math.inf
    _trusted_until_s: float = -math.inf
    _acted_s: float = -math.inf
    _fired: int = 0
    _began_s: float = 0.0

    def fired(self, now_s: float) -> Verdict:
        """A message set the rule off: what to do with the firing."""
        if now_s < self.paused_until_s:
            return "paused"
        self._fired += 1
        if self._fired > 1 or now_s - self._acted_s > FOLLOW_S:
            self.cycles, self._began_s = 0, now_s
            if self._fired == 1:
                self.silences = 0
            return "go"
        self.cycles += 1
        is_long = self.cycles >= LEAST_CYCLES and now_s - self._began_s >= ROW_S
        is_row = is_long or self.cycles >= MANY_CYCLES
        return "hold" if is_row and now_s >= self._trusted_until_s else "go"

    def acted(self, now_s: float) -> None:
        """The rule did something."""
        self._acted_s, self._fired = now_s, 0

    def was_disturbed(self, now_s: float) -> None:
        """Something set the rule off while a firing was held back: it does not live by its own actions."""
        self.cycles = self.silences = 0
        self._began_s = now_s
        self._trusted_until_s = now_s + TRUST_S

    def was_silent(self, now_s: float) -> bool:
        """Nothing did; whether the rule is to pause."""
        self.cycles, self._began_s = 0, now_s
        self.silences += 1
        if self.silences < MOST_SILENCES:
            return False
        self.silences = 0
        self.paused_until_s = now_s + PAUSE_S
        return True
