"""What the energy of a period was spent on, with its price and its carbon: rows of the ledger, grouped for people.

Hours and days are local ones here, as tariffs are. What the ledger has rolled up belongs to the hour or the day in
which it begins, and is priced by the rate at its beginning.

Pure: rows in, rows out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, tzinfo
from typing import Final, Literal

from edgeslm.power.integrate import weakest
from edgeslm.power.ledger_reader import EnergyRow, PromptRow
from edgeslm.schema.budget import Intensity, Tariff
from edgeslm.schema.message import MeterClass

ReportGroup = Literal["cause", "model", "rule", "hour", "day"]

J_PER_KWH: Final = 3.6e6


@dataclass(frozen=True, slots=True)
class Rates:
    """What a kilowatt hour costs in money and in carbon; a flat rate takes the place of the tariff's.

    Attributes:
        price_per_kwh: flat, in the operator's currency.
        co2_g_per_kwh: flat, grams of CO2e.
    """

    tariff: Tariff | None = None
    price_per_kwh: float | None = None
    co2_g_per_kwh: float | None = None

    def value(self, by: Intensity, minute: int) -> float | None:
        """The rate at `minute` of the local day; ``None`` where it is not known."""
        flat: float | None = getattr(self, by)
        if flat is not None or self.tariff is None:
            return flat
        return self.tariff.value(by, minute)


@dataclass(frozen=True, slots=True)
class ReportRow:
    """One group, or the total.

    Attributes:
        group: the cause, model, rule, hour or day; ``None`` for what belongs to no model or rule.
        start_s: Unix time of the first of it.
        energy_j: joules, the idle draw included.
        net_j: joules above the idle draw.
        seconds: wall time that is the group's own.
        meter: the weakest class that a tenth of the energy or more rests on.
        co2_g: grams of CO2e; ``None`` where the rate of any part is not known.
        cost: in the operator's currency; likewise.
        prompts: prompts of it that the ledger still knows; ``None`` unless grouped by model or rule.
        completion_tokens: generated tokens of those of which they are known.
        j_per_prompt: net joules.
        j_per_token: net joules a generated token.
    """

    group: str | None
    start_s: float
    energy_j: float
    net_j: float
    seconds: float
    meter: MeterClass
    co2_g: float | None = None
    cost: float | None = None
    prompts: int | None = None
    completion_tokens: int | None = None
    j_per_prompt: float | None = None
    j_per_token: float | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """A period: rows by energy, or by time where they are hours or days; ``total`` is ``None`` without any."""

    rows: tuple[ReportRow, ...]
    total: ReportRow | None


@dataclass(slots=True)
class _Sum:
    """A group as it adds up."""

    start_s: float
    energy_j: float = 0.0
    net_j: float = 0.0
    seconds: float = 0.0
    classes: dict[MeterClass, float] = field(default_factory=dict)
    co2_g: float | None = 0.0
    cost: float | None = 0.0

    def add(self, row: EnergyRow, co2_g_per_kwh: float | None, price_per_kwh: float | None) -> None:
        kwh = row.energy_j / J_PER_KWH
        self.energy_j += row.energy_j
        self.net_j += row.net_j
        self.seconds += row.seconds
        self.classes[row.meter] = self.classes.get(row.meter, 0.0) + row.energy_j
        self.co2_g = None if self.co2_g is None or co2_g_per_kwh is None else self.co2_g + kwh * co2_g_per_kwh
        self.cost = None if self.cost is None or price_per_kwh is None else self.cost + kwh * price_per_kwh


@dataclass(slots=True)
class _Prompts:
    """Prompts of a group as they add up."""

    count: int = 0
    net_j: float = 0.0
    tokens: int = 0
    token_j: float = 0.0

    def add(self, net_j: float, tokens: int | None) -> None:
        self.count += 1
        self.net_j += net_j
        if tokens:
            self.tokens += tokens
            self.token_j += net_j


def local_time(at_s: float, zone: tzinfo | None) -> datetime:
    """Unix time as local time; ``None`` is the zone of this machine."""
    return datetime.fromtimestamp(at_s).astimezone() if zone is None else datetime.fromtimestamp(at_s, zone)


def make_report(
    rows: Iterable[EnergyRow],
    by: ReportGroup,
    rates: Rates = Rates(),
    *,
    prompts: Sequence[PromptRow] = (),
    zone: tzinfo | None = None,
) -> Report:
    """Group `rows`.

    Args:
        rows: of the ledger, by minute and, unless `by` is a time, by that.
        prompts: of the same period; used where `by` is ``model`` or ``rule``.
        zone: whose hours and days; ``None`` is the zone of this machine.
    """
    sums: dict[str | None, _Sum] = {}
    total: _Sum | None = None
    for row in rows:
        start_s = float(row.start_s or 0)
        at = local_time(start_s, zone)
        minute = at.hour * 60 + at.minute
        co2_g, price = rates.value("co2_g_per_kwh", minute), rates.value("price_per_kwh", minute)
        group = sums.setdefault(_group(row, by, at), _Sum(start_s))
        total = total or _Sum(start_s)
        for part in (group, total):
            part.add(row, co2_g, price)
    counts = _count(prompts, by) if by in ("model", "rule") else None
    found = [_row(group, part, counts) for group, part in sums.items()]
    found.sort(key=(lambda row: row.start_s) if by in ("hour", "day") else (lambda row: -row.energy_j))
    return Report(tuple(found), None if total is None else _row(None, total, None))


def _group(row: EnergyRow, by: ReportGroup, at: datetime) -> str | None:
    if by == "day":
        return at.date().isoformat()
    if by == "hour":
        return at.replace(minute=0, second=0, microsecond=0).isoformat(timespec="minutes")
    name: str | None = getattr(row, by)
    return name


def _count(prompts: Sequence[PromptRow], by: ReportGroup) -> dict[str | None, _Prompts]:
    counts: dict[str | None, _Prompts] = {}
    for prompt in prompts:
        if prompt.net_j is not None:
            name: str | None = getattr(prompt.note, by)
            counts.setdefault(name, _Prompts()).add(prompt.net_j, prompt.note.completion_tokens)
    return counts


def _row(group: str | None, part: _Sum, counts: dict[str | None, _Prompts] | None) -> ReportRow:
    count = None if counts is None else counts.get(group, _Prompts())
    return ReportRow(
        group,
        part.start_s,
        part.energy_j,
        part.net_j,
        part.seconds,
        weakest(part.classes.items()),
        part.co2_g,
        part.cost,
        None if count is None else count.count,
        count.tokens if count is not None and count.tokens else None,
        count.net_j / count.count if count is not None and count.count else None,
        count.token_j / count.tokens if count is not None and count.tokens else None,
    )
