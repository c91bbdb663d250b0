"""The ways to run a model on a board, from its power table, for as long as nothing was measured.

Threads first, then, with one thread, lower frequencies: each way draws less than the one before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from edgeslm.power.governor_types import Setting
from edgeslm.schema.board import PowerTable

PARALLEL_SHARE: Final = 0.9
"""Part of a step that threads divide among them (Amdahl's law): int8 layers do, sampling and glue do not."""


def ways_to_run(
    table: PowerTable, threads: int, *, net_w: float | None = None, frequencies_mhz: Sequence[int] = ()
) -> tuple[Setting, ...]:
    """All settings from `threads` threads at full frequency downwards.

    Args:
        threads: most threads.
        net_w: watts above idle with all of them, where that was learned; else by the table.
        frequencies_mhz: at which the processor can be held, if it may be; those below the highest are used.
    """
    most_w = threads * table.core_load_w if net_w is None else net_w
    settings = [
        Setting(count, None, most_w * count / threads, _speed(count) / _speed(threads))
        for count in range(threads, 0, -1)
    ]
    if table.max_mhz is None:
        return tuple(settings)
    slowest = settings[-1]
    for mhz in sorted(set(frequencies_mhz), reverse=True):
        share = mhz / table.max_mhz
        if share < 1:
            lower_w = slowest.net_w * share**table.frequency_exponent
            settings.append(Setting(1, mhz, lower_w, slowest.speed * share))
    return tuple(settings)


def _speed(threads: int) -> float:
    return 1.0 / (1.0 - PARALLEL_SHARE + PARALLEL_SHARE / threads)
