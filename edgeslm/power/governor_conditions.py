"""What holds work back beside the windows: battery, heat, a weak supply, quiet hours, a dear tariff.

None of it binds high priority, except that on a hot or throttled board everything runs at the gentlest setting.
Pure; local time comes in as the minute of the day.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Final

from edgeslm.power.governor_types import RANK, Conditions, Reason, Situation, Work
from edgeslm.power.port import Vitals
from edgeslm.schema.budget import BatteryBudget, Budget, LowWaits, Tariff, TemperatureBudget, minute_of_day

HOLD_S: Final = 60.0
"""Seconds for which a board counts as throttled after it was: easing clears the flag, and must not undo itself."""

_BATTERY_WAIT_S: Final = 900.0
_COOLING_WAIT_S: Final = 60.0
"""Nobody can know how long; they only decide what a requester is told."""
_DAY_MINUTES: Final = 1440


def note_vitals(conditions: Conditions, budget: Budget, vitals: Vitals) -> Conditions:
    """After a look at the board. What is not known this time stays as it was."""
    temperature, hot = budget.temperature, conditions.hot
    if temperature is not None and vitals.temperature_c is not None:
        threshold_c = temperature.ceiling_c - (temperature.hysteresis_c if hot else 0.0)
        hot = vitals.temperature_c >= threshold_c
    under_voltage_until_s = conditions.under_voltage_until_s
    throttled_until_s = conditions.throttled_until_s
    flags = vitals.throttling
    if flags is not None:
        if flags.under_voltage:
            under_voltage_until_s = vitals.at_s + HOLD_S
        if flags.throttled or flags.frequency_capped or flags.soft_temperature_limit:
            throttled_until_s = vitals.at_s + HOLD_S
    battery_share = conditions.battery_share if vitals.battery is None else vitals.battery.share
    return Conditions(battery_share, hot, under_voltage_until_s, throttled_until_s)


def battery_limit_w(battery: BatteryBudget, share: float) -> float | None:
    """Mean watts that the curve allows at `share`; ``None`` without a curve."""
    curve = battery.curve
    if not curve:
        return None
    if share <= curve[0].at_share:
        return curve[0].limit_w
    for low, high in pairwise(curve):
        if share <= high.at_share:
            part = (share - low.at_share) / (high.at_share - low.at_share)
            return low.limit_w + part * (high.limit_w - low.limit_w)
    return curve[-1].limit_w


def quiet_limit_w(budget: Budget, minute: int | None) -> float | None:
    """Mean watts that quiet hours allow at `minute`; ``None`` outside them and without a limit."""
    if minute is None:
        return None
    limits_w = [quiet.limit_w for quiet in budget.quiet_hours if quiet.covers(minute)]
    return min((limit_w for limit_w in limits_w if limit_w is not None), default=None)


def gentle(budget: Budget, conditions: Conditions, now_s: float) -> tuple[Reason, ...]:
    """Why everything runs at the gentlest setting; empty if it need not."""
    if conditions.hot and budget.temperature is not None:
        return (_too_hot(budget.temperature),)
    if budget.on_under_voltage == "ease" and now_s < conditions.under_voltage_until_s:
        return (Reason("under_voltage", "", {"hold_s": HOLD_S}),)
    if budget.on_throttling == "ease" and now_s < conditions.throttled_until_s:
        return (Reason("throttled", "", {"hold_s": HOLD_S}),)
    return ()


def held_back(budget: Budget, situation: Situation, work: Work) -> tuple[Reason, float] | None:
    """Why `work` may not run now, and for how many seconds probably; ``None`` if nothing holds it back."""
    if work.priority == "high":
        return None
    conditions, now_s = situation.conditions, situation.now_s
    battery, share = budget.battery, conditions.battery_share
    if battery is not None and share is not None and share <= battery.reserve_share:
        figures = {"share": share, "reserve_share": battery.reserve_share}
        return Reason("battery_reserve", "", figures), _BATTERY_WAIT_S
    if conditions.hot and budget.temperature is not None:
        return _too_hot(budget.temperature), _COOLING_WAIT_S
    if budget.on_under_voltage == "hold" and now_s < conditions.under_voltage_until_s:
        return Reason("under_voltage", "", {"hold_s": HOLD_S}), conditions.under_voltage_until_s - now_s
    if budget.on_throttling == "hold" and now_s < conditions.throttled_until_s:
        return Reason("throttled", "", {"hold_s": HOLD_S}), conditions.throttled_until_s - now_s
    if situation.minute is None:
        return None
    return _quiet(budget, situation.minute, work) or _dear(budget.tariff, situation, situation.minute, work)


def _too_hot(temperature: TemperatureBudget) -> Reason:
    ceiling_c = temperature.ceiling_c
    return Reason("too_hot", "", {"ceiling_c": ceiling_c, "resume_c": ceiling_c - temperature.hysteresis_c})


def _quiet(budget: Budget, minute: int, work: Work) -> tuple[Reason, float] | None:
    for quiet in budget.quiet_hours:
        if quiet.covers(minute) and RANK[work.priority] > RANK[quiet.lowest_priority]:
            delay_s = 60.0 * ((minute_of_day(quiet.ends) - minute) % _DAY_MINUTES)
            return Reason("quiet_hours", quiet.lowest_priority, {"wait_s": delay_s}), delay_s
    return None


def _dear(
    tariff: Tariff | None, situation: Situation, minute: int, work: Work
) -> tuple[Reason, float] | None:
    waits = None if tariff is None else tariff.low_waits
    if tariff is None or waits is None or work.priority != "low":
        return None
    value = tariff.value(waits.by, minute)
    if value is None or value <= waits.at_most:
        return None
    delay_s = _cheap_in_s(tariff, waits, minute)
    latest_s = work.accepted_s + waits.max_wait_s
    if work.deadline_s is not None:
        latest_s = min(latest_s, work.deadline_s - work.estimate.seconds)
    # Waiting for a price is a wish: where it can't come true in time, the prompt runs at any price.
    if delay_s is None or situation.now_s + delay_s > latest_s:
        return None
    figures = {"value": value, "at_most": waits.at_most, "wait_s": delay_s}
    return Reason("waits_for_cheap", waits.by, figures), delay_s


def _cheap_in_s(tariff: Tariff, waits: LowWaits, minute: int) -> float | None:
    """Seconds until the next minute at which a period begins or ends, and that is cheap."""
    borders = {minute_of_day(clock) for period in tariff.periods for clock in (period.begins, period.ends)}
    cheap = []
    for border in borders:
        value = tariff.value(waits.by, border % _DAY_MINUTES)
        if value is not None and value <= waits.at_most:
            cheap.append(60.0 * ((border - minute) % _DAY_MINUTES))
    return min(cheap, default=None)
