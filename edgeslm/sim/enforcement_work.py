"""Days of prompts for the enforcement simulation: bursts that always ask for more than the budget allows, and alarms.

Everything follows from a seed. What a prompt really takes is hidden from the governor, which gets an estimate that is
wrong in the way estimates are: by the length of the answer, and by how much this one board draws.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np

from edgeslm.power.governor_types import Setting, Work, WorkEstimate
from edgeslm.schema.message import Priority

DAY_S: Final = 86_400.0

_P90: Final = 1.3
_MAX_TOKENS_FACTOR: Final = 2.0


@dataclass(frozen=True)
class Load:
    """How much is asked, and how well it is foreseen.

    Attributes:
        token_s: computing time of a token at the first setting; of short prompts less.
        seconds: shortest and longest computing time of a prompt at the first setting.
        alarm_seconds: likewise of one of high priority.
        alarm_deadline_s: shortest and longest time that an alarm may take.
        alarms_per_h: single alarms in an hour.
        alarm_bursts_per_day: bursts of alarms.
        alarm_burst: fewest and most alarms of a burst, within 15 seconds.
        burst_every_s: mean time between bursts of other prompts.
        excess: joules asked for, as a multiple of what the budget allows.
        length_error: deviation of the logarithm of the answer's length from what was foreseen.
    """

    token_s: float = 0.1
    seconds: tuple[float, float] = (1.0, 10.0)
    alarm_seconds: tuple[float, float] = (0.8, 2.0)
    alarm_deadline_s: tuple[float, float] = (30.0, 60.0)
    alarms_per_h: float = 1.5
    alarm_bursts_per_day: float = 4.0
    alarm_burst: tuple[int, int] = (2, 5)
    burst_every_s: float = 600.0
    excess: float = 2.5
    length_error: float = 0.2


@dataclass(frozen=True)
class SimPrompt:
    """A prompt as it really is.

    Attributes:
        work: what the governor is told.
        prefill_s: computing time before the first token, at the first setting.
        token_s: computing time of a token, likewise.
        tokens: of the answer.
        draw: watts while it computes, as a multiple of what the setting says.
    """

    work: Work
    prefill_s: float
    token_s: float
    tokens: int
    draw: float


def make_prompts(
    load: Load, settings: tuple[Setting, ...], allowed_net_w: float, length_s: float, rng: np.random.Generator
) -> list[SimPrompt]:
    """All prompts of `length_s` seconds, by time of arrival."""
    net_w = settings[0].net_w
    board_draw = float(np.clip(rng.normal(1.0, 0.05), 0.88, 1.12))
    found: list[tuple[float, Priority]] = []
    mean_s = (load.seconds[1] - load.seconds[0]) / math.log(load.seconds[1] / load.seconds[0])
    size = load.excess * allowed_net_w * load.burst_every_s / (mean_s * net_w)
    at_s = 0.0
    while at_s < length_s:
        for _ in range(1 + int(rng.exponential(size))):
            found.append((at_s + float(rng.uniform(0, 60)), "low" if rng.random() < 0.5 else "normal"))
        at_s += float(rng.exponential(load.burst_every_s))
    singles = rng.poisson(load.alarms_per_h * length_s / 3600)
    found += [(float(at), "high") for at in rng.uniform(0, length_s - 120, singles)]
    for burst_s in rng.uniform(0, length_s - 120, rng.poisson(load.alarm_bursts_per_day * length_s / DAY_S)):
        count = rng.integers(load.alarm_burst[0], load.alarm_burst[1] + 1)
        found += [(float(burst_s + rng.uniform(0, 15)), "high") for _ in range(count)]
    found = sorted(one for one in found if one[0] < length_s - 60)
    return [
        _prompt(load, settings, f"p{number}", at_s, priority, board_draw, rng)
        for number, (at_s, priority) in enumerate(found)
    ]


def _prompt(
    load: Load,
    settings: tuple[Setting, ...],
    name: str,
    at_s: float,
    priority: Priority,
    board_draw: float,
    rng: np.random.Generator,
) -> SimPrompt:
    least_s, most_s = load.alarm_seconds if priority == "high" else load.seconds
    seconds = math.exp(rng.uniform(math.log(least_s), math.log(most_s)))
    prefill_s = 0.2 * seconds
    token_s = min(load.token_s, seconds / 10)
    tokens = max(1, round((seconds - prefill_s) / token_s))
    foreseen = max(1.0, tokens * math.exp(rng.normal(0.0, load.length_error)))
    net_w = settings[0].net_w
    mean_j = net_w * (prefill_s + foreseen * token_s)
    estimate = WorkEstimate(
        mean_j=mean_j,
        p90_j=_P90 * mean_j,
        seconds=prefill_s + foreseen * token_s,
        token_j=net_w * token_s,
        prefill_j=net_w * prefill_s,
        chunk_j=net_w * max(token_s, prefill_s / 4),
    )
    deadline_s = None
    if priority == "high":
        deadline_s = at_s + float(rng.uniform(*load.alarm_deadline_s))
    elif priority == "normal" and rng.random() < 0.4:
        deadline_s = at_s + float(rng.uniform(300, 3600))
    max_tokens = math.ceil(_MAX_TOKENS_FACTOR * max(tokens, foreseen))
    work = Work(name, priority, at_s, deadline_s, max_tokens, estimate, settings)
    draw = board_draw * float(np.clip(rng.normal(1.0, 0.03), 0.9, 1.1))
    return SimPrompt(work, prefill_s, token_s, tokens, draw)
