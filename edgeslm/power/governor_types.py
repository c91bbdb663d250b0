"""The governor's words: what is asked of it, what it knows, what it answers.

All joules here are net: above what the idle board draws in the same time.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from edgeslm.power.windows import Room
from edgeslm.schema.message import Priority

RANK: Final[Mapping[Priority, int]] = {"high": 0, "normal": 1, "low": 2}


@dataclass(frozen=True, slots=True)
class Setting:
    """A way to run a model on this board.

    Attributes:
        threads: inference threads.
        frequency_mhz: highest frequency of the processor; ``None`` leaves it alone.
        net_w: watts above idle while computing.
        speed: tokens a second, as a share of those of the first setting.
    """

    threads: int
    frequency_mhz: int | None
    net_w: float
    speed: float

    def cost(self, first: Setting) -> float:
        """Joules above idle of the same work, as a share of those at the `first` setting."""
        return self.net_w / (first.net_w * self.speed) if first.net_w > 0 else 1.0


@dataclass(frozen=True, slots=True)
class WorkEstimate:
    """What a prompt will take at the first setting.

    Attributes:
        mean_j: expected joules.
        p90_j: joules that nine of ten such prompts stay below.
        seconds: expected computing time.
        token_j: joules per generated token.
        prefill_j: joules before the first token.
        chunk_j: most joules between two moments at which the work can pause: a token, or a chunk of the prompt.
    """

    mean_j: float
    p90_j: float
    seconds: float
    token_j: float
    prefill_j: float
    chunk_j: float


@dataclass(frozen=True, slots=True)
class Work:
    """A prompt that waits.

    Attributes:
        accepted_s: monotonic time of acceptance.
        deadline_s: monotonic time after which the answer is worthless.
        max_tokens: most tokens of the answer, as the estimate was made for.
        settings: ways to run its model, fastest first, each gentler than the one before.
        ahead_j: joules of the work that goes before it; 0 for the next in line.
    """

    id: str
    priority: Priority
    accepted_s: float
    deadline_s: float | None
    max_tokens: int
    estimate: WorkEstimate
    settings: tuple[Setting, ...]
    ahead_j: float = 0.0


ReasonCode = Literal[
    "unlimited",
    "fits",
    "window_full",
    "behind",
    "never_fits",
    "deadline",
    "max_wait",
    "battery_reserve",
    "too_hot",
    "under_voltage",
    "throttled",
    "quiet_hours",
    "waits_for_cheap",
    "tokens_capped",
    "fewer_threads",
    "frequency_capped",
    "pauses",
    "gives_way",
    "cut_off",
]

_TEXTS: Final[Mapping[ReasonCode, str]] = {
    "unlimited": "no window of the budget restrains it",
    "fits": "needs {need_j:.1f} J; window '{subject}' has {free_j:.1f} J free, {reserve_j:.1f} J of it kept for high "
    "priority",
    "window_full": "needs {need_j:.1f} J; window '{subject}' has {free_j:.1f} J free, {reserve_j:.1f} J of it kept for "
    "high priority; enough in {wait_s:.1f} s",
    "behind": "waits behind {subject}",
    "never_fits": "needs {need_j:.1f} J; window '{subject}' never holds more than {capacity_j:.1f} J above idle, "
    "{reserve_j:.1f} J of it kept for high priority",
    "deadline": "{left_s:.1f} s are left to its deadline; it would begin in {wait_s:.1f} s and take {seconds:.1f} s",
    "max_wait": "has waited {waited_s:.0f} s and would wait {wait_s:.0f} s more; {max_wait_s:.0f} s are allowed",
    "battery_reserve": "battery at {share:.0%}; at {reserve_share:.0%} and below only high priority runs",
    "too_hot": "processor reached {ceiling_c:.0f} C and is not yet below {resume_c:.0f} C",
    "under_voltage": "the supply's voltage broke down in the last {hold_s:.0f} s",
    "throttled": "the firmware throttled the board in the last {hold_s:.0f} s",
    "quiet_hours": "quiet hours for another {wait_s:.0f} s: only priority {subject} and above runs",
    "waits_for_cheap": "{subject} is {value:g}; in {wait_s:.0f} s it falls to {at_most:g} or less",
    "tokens_capped": "answer capped to {tokens:.0f} tokens instead of {asked:.0f}: window '{subject}' has "
    "{free_j:.1f} J free, {reserve_j:.1f} J of it kept for high priority",
    "fewer_threads": "{threads:.0f} threads instead of {most:.0f}: {net_w:.2f} W above idle instead of {most_w:.2f} W",
    "frequency_capped": "processor held at {mhz:.0f} MHz: {net_w:.2f} W above idle instead of {most_w:.2f} W",
    "pauses": "pauses between tokens: {draw_w:.2f} W while computing, window '{subject}' allows {limit_w:.2f} W",
    "gives_way": "a high-priority prompt has to begin now to be in time",
    "cut_off": "the next token needs {need_j:.2f} J; window '{subject}' has {spare_j:.2f} J to spare, and not enough "
    "soon",
}


@dataclass(frozen=True, slots=True)
class Reason:
    """One step of a decision, for machines and for people.

    Attributes:
        code: what counted.
        subject: the window or other thing that it is about.
        figures: numbers by name; units are in the names.
    """

    code: ReasonCode
    subject: str = ""
    figures: Mapping[str, float] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """As a sentence without capital and full stop."""
        return _TEXTS[self.code].format(subject=self.subject, **self.figures)


@dataclass(frozen=True, slots=True)
class Run:
    """Start now.

    Attributes:
        setting: threads and frequency.
        max_tokens: most tokens of the answer.
        line_j: by window, joules that the prompt has to leave free while it runs.
        reasons: how it came to that.
    """

    setting: Setting
    max_tokens: int
    line_j: Mapping[str, float]
    reasons: tuple[Reason, ...]


@dataclass(frozen=True, slots=True)
class Defer:
    """Wait at least until `until_s`, monotonic.

    Attributes:
        blocks: whether work of the same or less priority waits as well, since it would take the energy that this
            one waits for.
    """

    until_s: float
    blocks: bool
    reasons: tuple[Reason, ...]


@dataclass(frozen=True, slots=True)
class Refuse:
    """There will be no answer.

    Attributes:
        retry_after_s: seconds after which asking again makes sense; ``None`` if the budget never allows it.
    """

    retry_after_s: float | None
    reasons: tuple[Reason, ...]


Decision = Run | Defer | Refuse


@dataclass(frozen=True, slots=True)
class Conditions:
    """State of the board as far as it restrains work.

    Attributes:
        battery_share: state of charge; ``None`` without a battery.
        hot: the temperature reached its ceiling and is not yet well below.
        under_voltage_until_s: until when the supply counts as weak, monotonic.
        throttled_until_s: until when the board counts as throttled.
    """

    battery_share: float | None = None
    hot: bool = False
    under_voltage_until_s: float = -math.inf
    throttled_until_s: float = -math.inf


@dataclass(frozen=True, slots=True)
class Situation:
    """What is known when a decision is due.

    Attributes:
        now_s: monotonic seconds.
        minute: of the local day, 0 to 1439; ``None`` where the clock is not set: then quiet hours and tariff rest.
        idle_w: watts of the idle board.
        rooms: what each window of the budget has left.
        soft_rooms: likewise for limits that do not bind high priority.
        guard_share: part of each window's limit that is kept free against what is not known (the meter's error, the
            idle draw to come); high priority may use it.
        demand: what high priority may ask for; see :func:`edgeslm.power.governor_reserve.expected_demand`.
        conditions: of the board.
    """

    now_s: float
    minute: int | None
    idle_w: float
    rooms: tuple[Room, ...]
    soft_rooms: tuple[Room, ...] = ()
    guard_share: float = 0.0
    demand: tuple[tuple[float, float], ...] = ()
    conditions: Conditions = Conditions()


@dataclass(frozen=True, slots=True)
class Go:
    """Compute a piece at least, and more without asking again until `until_s`, monotonic."""

    until_s: float


@dataclass(frozen=True, slots=True)
class Pause:
    """Compute nothing for `seconds`, then ask again."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Stop:
    """End the answer with ``finish_reason: budget``."""

    reason: Reason


Step = Go | Pause | Stop
