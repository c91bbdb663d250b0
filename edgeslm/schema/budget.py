"""What a device may draw: a section of the agent's file, or part of the fleet's signed desired state.

A quantity can be written in two ways: with its unit as text (``max_wait: 30m``), or as a number in the unit that ends
the key (``max_wait_s: 1800``). The second is what a budget is stored and signed as; reading it gives the same budget.

Whether a board can keep a budget at all is found where its idle draw is known: :mod:`edgeslm.power.budget`.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Final, Literal, Self

from pydantic import Field, StringConstraints, field_validator, model_validator

from edgeslm.schema.base import FileModel, Identifier
from edgeslm.schema.message import Priority

_QUANTITY = re.compile(r"^\s*([0-9]{1,12}(?:\.[0-9]{1,9})?)\s*([A-Za-z%°]{1,4})\s*$")

_POWER: Final = {"mW": 1e-3, "W": 1.0, "kW": 1e3}
_ENERGY: Final = {"J": 1.0, "kJ": 1e3, "MJ": 1e6, "mWh": 3.6, "Wh": 3600.0, "kWh": 3.6e6}
_UNITS: Final[dict[str, tuple[dict[str, float], str]]] = {
    "w": (_POWER, "a power, such as '2 W' or '500 mW'"),
    "s": (
        {"s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86_400.0},
        "a time, such as '30s', '5m' or '1d'",
    ),
    "share": ({"%": 0.01}, "a share, such as '20 %'"),
    "c": ({"C": 1.0, "°C": 1.0}, "a temperature, such as '75 C'"),
}
"""By the ending of a key: factors to its unit, and how to write one."""

SHORTEST_WINDOW_S: Final = 1.0
LONGEST_WINDOW_S: Final = 7 * 86_400.0

BATTERY_WINDOW: Final = "battery"
QUIET_WINDOW: Final = "quiet-hours"
RESERVED_NAMES: Final = frozenset({BATTERY_WINDOW, QUIET_WINDOW})
"""Names under which the limits of battery curve and quiet hours appear beside the windows."""

ClockTime = Annotated[str, StringConstraints(pattern=r"^([01][0-9]|2[0-3]):[0-5][0-9]$|^24:00$")]
"""Local time of day, ``HH:MM``."""
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
LimitW = Annotated[float, Field(gt=0, le=10_000, allow_inf_nan=False)]
WaitS = Annotated[float, Field(ge=0, le=LONGEST_WINDOW_S, allow_inf_nan=False)]
Reaction = Literal["ease", "hold", "ignore"]
Intensity = Literal["price_per_kwh", "co2_g_per_kwh"]


def quantity(text: object, ending: str) -> float:
    """`text` such as ``"30m"`` as a number in the unit of keys that end in `ending`.

    Raises:
        ValueError: no text, no number with unit, or no unit of that kind.
    """
    factors, example = _UNITS[ending]
    return _quantity(text, factors, example)


def _quantity(text: object, factors: dict[str, float], example: str) -> float:
    found = _QUANTITY.match(text) if isinstance(text, str) else None
    factor = factors.get(found[2]) if found else None
    if found is None or factor is None:
        raise ValueError(f"'{str(text)[:40]}' is not {example}")
    return float(found[1]) * factor


def minute_of_day(clock: str) -> int:
    """Minutes since midnight of a :data:`ClockTime`; 1440 for ``24:00``."""
    return int(clock[:2]) * 60 + int(clock[3:])


class _Quantities(FileModel):
    """Reads quantities with their unit; see the module."""

    @model_validator(mode="before")
    @classmethod
    def _read_units(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        read = dict(data)
        for name in cls.model_fields:
            stem, _, ending = name.rpartition("_")
            if ending in _UNITS and stem in read:
                if name in read:
                    raise ValueError(f"'{stem}' and '{name}' are the same setting")
                try:
                    read[name] = cls._read(stem, read)
                except ValueError as error:
                    raise ValueError(f"{stem}: {error}") from error
                del read[stem]
        return read

    @classmethod
    def _read(cls, stem: str, data: dict[str, Any]) -> float | None:
        name = next(name for name in cls.model_fields if name.rpartition("_")[0] == stem)
        return quantity(data[stem], name.rpartition("_")[2])


class Window(_Quantities):
    """A limit on the energy of any stretch of time, in the manner of RAPL's power limits and time windows.

    Attributes:
        name: what it is for, such as ``supply``, ``heat`` or ``day``.
        limit_w: mean watts that no stretch of `over_s` may exceed. ``limit`` may also be an energy (``20 Wh``).
        over_s: length of the stretch, a second to seven days.
    """

    name: Identifier
    over_s: Annotated[float, Field(ge=SHORTEST_WINDOW_S, le=LONGEST_WINDOW_S, allow_inf_nan=False)]
    limit_w: LimitW

    @classmethod
    def _read(cls, stem: str, data: dict[str, Any]) -> float | None:
        if stem != "limit":
            return super()._read(stem, data)
        text = data["limit"]
        example = "a power or an energy, such as '2 W' or '20 Wh'"
        if not isinstance(text, str) or text.strip().endswith("W"):
            return _quantity(text, _POWER, example)
        energy_j = _quantity(text, _ENERGY, example)
        try:
            over_s = float(data["over_s"])
        except (KeyError, TypeError, ValueError):
            raise ValueError("an energy needs 'over', the time that it is for") from None
        return energy_j / max(over_s, 1e-9)

    @property
    def limit_j(self) -> float:
        """Joules allowed in any `over_s` seconds."""
        return self.limit_w * self.over_s


class BatteryPoint(_Quantities):
    """What may be drawn on average at a state of charge."""

    at_share: Share
    limit_w: LimitW


class BatteryBudget(_Quantities):
    """How a battery's charge restrains work. Nothing of it binds high priority.

    Attributes:
        reserve_share: state of charge from which on only high priority runs.
        curve: mean watts by state of charge, interpolated; the ends hold below the first and above the last point.
    """

    reserve_share: Share = 0.2
    curve: Annotated[tuple[BatteryPoint, ...], Field(max_length=16)] = ()

    @field_validator("curve")
    @classmethod
    def _rising(cls, curve: tuple[BatteryPoint, ...]) -> tuple[BatteryPoint, ...]:
        shares = [point.at_share for point in curve]
        if shares != sorted(set(shares)):
            raise ValueError("points stand in order of charge, each charge once")
        return curve


class TemperatureBudget(_Quantities):
    """A ceiling for the processor's temperature.

    Attributes:
        ceiling_c: from here on only high priority starts, and what runs is slowed.
        hysteresis_c: degrees below the ceiling at which work goes on.
    """

    ceiling_c: Annotated[float, Field(ge=30, le=110, allow_inf_nan=False)]
    hysteresis_c: Annotated[float, Field(ge=0.5, le=30, allow_inf_nan=False)] = 5.0


class _Period(_Quantities):
    """A part of the day in local time; one that ends before it begins goes past midnight."""

    begins: ClockTime
    ends: ClockTime

    @model_validator(mode="after")
    def _has_length(self) -> Self:
        if minute_of_day(self.begins) % 1440 == minute_of_day(self.ends):
            raise ValueError(
                "a period ends at another time than it begins; for a whole day write 00:00 to 24:00"
            )
        return self

    def covers(self, minute: int) -> bool:
        """Whether `minute` of the day lies in it."""
        begins, ends = minute_of_day(self.begins), minute_of_day(self.ends)
        if begins < ends:
            return begins <= minute < ends
        return minute >= begins or minute < ends


class QuietHours(_Period):
    """A part of the day in which little runs.

    Attributes:
        lowest_priority: the least priority that still runs.
        limit_w: lower limit on the mean draw of a minute for all but high priority.
    """

    lowest_priority: Priority = "high"
    limit_w: LimitW | None = None


class TariffPeriod(_Period):
    """What energy costs, in money and in carbon, in a part of the day.

    Attributes:
        price_per_kwh: in the operator's currency.
        co2_g_per_kwh: grams of CO2e.
    """

    price_per_kwh: Annotated[float, Field(ge=-100, le=1000, allow_inf_nan=False)] | None = None
    co2_g_per_kwh: Annotated[float, Field(ge=0, le=10_000, allow_inf_nan=False)] | None = None


class LowWaits(_Quantities):
    """Low priority waits for a cheap period.

    Attributes:
        by: what is looked at.
        at_most: a period is cheap up to this value.
        max_wait_s: seconds from acceptance after which a prompt runs at any price.
    """

    by: Intensity
    at_most: Annotated[float, Field(ge=-100, le=10_000, allow_inf_nan=False)]
    max_wait_s: WaitS = 8 * 3600.0


class Tariff(_Quantities):
    """Price and carbon intensity over the day.

    Attributes:
        price_per_kwh: outside all periods, and in those that name none.
        co2_g_per_kwh: likewise.
        periods: parts of the day with other values.
        low_waits: whether low priority waits for a cheap period.
    """

    price_per_kwh: Annotated[float, Field(ge=-100, le=1000, allow_inf_nan=False)] | None = None
    co2_g_per_kwh: Annotated[float, Field(ge=0, le=10_000, allow_inf_nan=False)] | None = None
    periods: Annotated[tuple[TariffPeriod, ...], Field(max_length=48)] = ()
    low_waits: LowWaits | None = None

    @field_validator("periods")
    @classmethod
    def _apart(cls, periods: tuple[TariffPeriod, ...]) -> tuple[TariffPeriod, ...]:
        for at, one in enumerate(periods):
            for other in periods[at + 1 :]:
                if one.covers(minute_of_day(other.begins) % 1440) or other.covers(
                    minute_of_day(one.begins) % 1440
                ):
                    raise ValueError(f"{one.begins} to {one.ends} and {other.begins} to {other.ends} overlap")
        return periods

    @model_validator(mode="after")
    def _cheap_sometime(self) -> Self:
        waits = self.low_waits
        if waits is None:
            return self
        values = [getattr(self, waits.by), *(getattr(period, waits.by) for period in self.periods)]
        known = [value for value in values if value is not None]
        if not known:
            raise ValueError(f"low_waits needs {waits.by}, here or in a period")
        if min(known) > waits.at_most:
            raise ValueError(f"{waits.by} is never {waits.at_most:g} or less; the least is {min(known):g}")
        return self

    def value(self, by: Intensity, minute: int) -> float | None:
        """Price or intensity at `minute` of the local day; ``None`` where it is not known."""
        for period in self.periods:
            found: float | None = getattr(period, by)
            if found is not None and period.covers(minute):
                return found
        outside: float | None = getattr(self, by)
        return outside


class Budget(_Quantities):
    """Everything that restrains a device. An empty one restrains nothing.

    Attributes:
        windows: any number of limits; each holds for itself.
        reserve_share: part of each window that is kept for high priority; ``None`` (``reserve: auto``) learns how
            much high priority asks for.
        max_wait_s: seconds for which a prompt without a deadline may wait for energy before it is refused with
            ``retry_after_s``.
        min_tokens: an answer is never capped to fewer tokens.
        cap_frequency: whether the processor's frequency, which the whole board shares, may be lowered.
        battery: where the board runs on one.
        temperature: ceiling.
        on_under_voltage: when the supply's voltage breaks down: ``ease`` runs everything at the gentlest setting,
            ``hold`` lets only high priority run, ``ignore`` does nothing.
        on_throttling: likewise when the firmware throttles or caps the frequency.
        quiet_hours: parts of the day in which little runs.
        tariff: price and carbon intensity.
    """

    windows: Annotated[tuple[Window, ...], Field(max_length=16)] = ()
    reserve_share: Annotated[float, Field(ge=0, le=0.5, allow_inf_nan=False)] | None = None
    max_wait_s: WaitS = 3600.0
    min_tokens: Annotated[int, Field(ge=1, le=8192)] = 8
    cap_frequency: bool = False
    battery: BatteryBudget | None = None
    temperature: TemperatureBudget | None = None
    on_under_voltage: Reaction = "ease"
    on_throttling: Reaction = "ease"
    quiet_hours: Annotated[tuple[QuietHours, ...], Field(max_length=8)] = ()
    tariff: Tariff | None = None

    @classmethod
    def _read(cls, stem: str, data: dict[str, Any]) -> float | None:
        if stem == "reserve" and data[stem] == "auto":
            return None
        return super()._read(stem, data)

    @property
    def restrains(self) -> bool:
        """Whether anything in it can ever hold work back."""
        waits = self.tariff is not None and self.tariff.low_waits is not None
        return bool(self.windows or self.battery or self.temperature or self.quiet_hours or waits)

    @field_validator("windows")
    @classmethod
    def _named_once(cls, windows: tuple[Window, ...]) -> tuple[Window, ...]:
        names = [window.name for window in windows]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"window '{twice[0]}' is named twice")
        taken = sorted(set(names) & RESERVED_NAMES)
        if taken:
            raise ValueError(f"a window cannot be called '{taken[0]}': that name stands for another limit")
        return windows
