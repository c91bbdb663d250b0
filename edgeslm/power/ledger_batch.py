"""What the energy ledger holds in memory until it is written.

Minutes in which something happened, each with its joules by cause. Should it not be written for long (the disk is
full), minutes become hours and hours days, so that it stays small and loses no joule.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

from edgeslm.power.attribution import EndedSpan, EnergySum, Interval, Settlement
from edgeslm.power.ledger_reader import PromptNote

MOST_PENDING = 1000
"""Rows beyond which it grows coarser, and prompts beyond which the oldest are forgotten."""

MINUTE, HOUR, DAY = 60, 3600, 86_400


@dataclass(frozen=True, slots=True)
class EnergyKey:
    """What tells rows of energy apart; the fields are the columns of the table, in order.

    Attributes:
        start: Unix time.
        width: seconds.
        model: empty for none.
        rule: empty for none.
        meter: class.
    """

    start: int
    width: int
    cause: str
    model: str
    rule: str
    meter: str


@dataclass(slots=True)
class PowerSum:
    """Draw of the board over some time, as it adds up."""

    min_w: float = math.inf
    max_w: float = -math.inf
    energy_j: float = 0.0
    seconds: float = 0.0

    def add(self, min_w: float, max_w: float, energy_j: float, seconds: float) -> None:
        """Add more."""
        self.min_w = min(self.min_w, min_w)
        self.max_w = max(self.max_w, max_w)
        self.energy_j += energy_j
        self.seconds += seconds


@dataclass(slots=True)
class Batch:
    """What is not on the disk yet.

    Attributes:
        energy: rows to add to.
        power: rows to add to, by start and width.
        notes: by id of the prompt.
        costs: Unix time of settlement and final account, by id of the prompt.
        state: JSON text by key.
        settled_s: monotonic time up to which energy is in it; ``None`` for none.
    """

    energy: dict[EnergyKey, EnergySum] = field(default_factory=dict)
    power: dict[tuple[int, int], PowerSum] = field(default_factory=dict)
    notes: dict[str, PromptNote] = field(default_factory=dict)
    costs: dict[str, tuple[float, EndedSpan]] = field(default_factory=dict)
    state: dict[str, str] = field(default_factory=dict)
    settled_s: float | None = None

    def add(self, interval: Interval, offset_s: float) -> None:
        """Take in the draw of an interval; Unix time is monotonic time plus `offset_s`."""
        minute = math.floor((interval.end_s + offset_s) / MINUTE) * MINUTE
        self._power(minute, MINUTE).add(
            interval.power_w, interval.power_w, interval.energy_j, interval.end_s - interval.start_s
        )

    def settle(self, settlement: Settlement, offset_s: float) -> None:
        """Take in a settlement, spread evenly over the minutes that it touches."""
        start_s, end_s = settlement.start_s + offset_s, settlement.end_s + offset_s
        for minute, part in _minutes(start_s, end_s):
            for share in settlement.shares:
                if share.energy_j > 0 or share.seconds > 0:
                    key = EnergyKey(
                        minute, MINUTE, share.kind, share.model or "", share.rule or "", settlement.meter
                    )
                    self._energy(key).add(share.energy_j * part, share.net_j * part, share.seconds * part)
        for span in settlement.ended:
            if span.cause.kind == "prompt" and span.cause.id is not None:
                self.costs[span.cause.id] = (end_s, span)
        self.settled_s = settlement.end_s

    def merge(self, younger: Batch) -> None:
        """Take in what came after."""
        for key, energy in younger.energy.items():
            self._energy(key).add(energy.energy_j, energy.net_j, energy.seconds)
        for (start, width), power in younger.power.items():
            self._power(start, width).add(power.min_w, power.max_w, power.energy_j, power.seconds)
        self.notes.update(younger.notes)
        self.costs.update(younger.costs)
        self.state.update(younger.state)
        if younger.settled_s is not None:
            self.settled_s = younger.settled_s

    def mean_w(self) -> float:
        """Mean draw of the board."""
        seconds = sum(power.seconds for power in self.power.values())
        return sum(power.energy_j for power in self.power.values()) / seconds if seconds > 0 else 0.0

    def bound(self) -> None:
        """Keep it small: hours in place of minutes, days in place of hours, and the youngest prompts."""
        for width in (HOUR, DAY):
            if len(self.energy) > MOST_PENDING:
                self._coarsen(width)
        for prompt_id in list(self.notes)[:-MOST_PENDING]:
            self.notes.pop(prompt_id)
        for prompt_id in list(self.costs)[:-MOST_PENDING]:
            self.costs.pop(prompt_id)

    def _coarsen(self, width: int) -> None:
        fine_energy, self.energy = self.energy, {}
        for key, energy in fine_energy.items():
            start = key.start // width * width
            coarse = EnergyKey(start, width, key.cause, key.model, key.rule, key.meter)
            self._energy(coarse).add(energy.energy_j, energy.net_j, energy.seconds)
        fine_power, self.power = self.power, {}
        for (start, _), power in fine_power.items():
            coarse_power = self._power(start // width * width, width)
            coarse_power.add(power.min_w, power.max_w, power.energy_j, power.seconds)

    def _energy(self, key: EnergyKey) -> EnergySum:
        return self.energy.setdefault(key, EnergySum())

    def _power(self, start: int, width: int) -> PowerSum:
        return self.power.setdefault((start, width), PowerSum())


def _minutes(start_s: float, end_s: float) -> Iterator[tuple[int, float]]:
    """The minutes that a stretch of Unix time touches, each with the share of the stretch that lies in it."""
    first = math.floor(start_s / MINUTE) * MINUTE
    if end_s <= first + MINUTE:
        yield first, 1.0
        return
    for minute in range(first, math.ceil(end_s / MINUTE) * MINUTE, MINUTE):
        inside_s = min(end_s, minute + MINUTE) - max(start_s, minute)
        yield minute, inside_s / (end_s - start_s)
