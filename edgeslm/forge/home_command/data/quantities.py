"""Draws the numbers of commands and says them the ways people and recognisers do.

What always holds: the number returned is the number said. Ranges, fractions
and multipliers are those of the hassil range list, with one exception that is
ours: temperatures are now and then negative, since cold stores exist.
"""

from __future__ import annotations

from random import Random

from hassil.intents import RangeFractionType, RangeSlotList, RangeType

from .word_lists import load_word_lists

_LISTS = load_word_lists()
_ONES, _TENS = _LISTS.letters("ones"), _LISTS.letters("tens")
_USUAL_TIMES = (1, 1, 2, 2, 3, 4, 5, 5, 5, 8, 10, 10, 10, 12, 15, 15, 20, 20, 25, 30, 30, 40, 45, 60, 90)

WORDS_SHARE = 0.4
"""Share of numbers written out in words."""

NEGATIVE_TEMPERATURE_SHARE = 0.02


def spell_integer(value: int, rng: Random) -> str:
    """Return `value` (below 1,000,000) in English words, as one of its usual spellings."""
    if value < 0:
        return "minus " + spell_integer(-value, rng)
    if value < 20:
        return _ONES[value]
    if value < 100:
        tens, ones = divmod(value, 10)
        if ones == 0:
            return _TENS[tens]
        return _TENS[tens] + (" " if rng.random() < 0.75 else "-") + _ONES[ones]
    if value < 1000:
        hundreds, rest = divmod(value, 100)
        head = "a" if hundreds == 1 and rng.random() < 0.5 else _ONES[hundreds]
        return f"{head} hundred" + (f" and {spell_integer(rest, rng)}" if rest else "")
    if value < 10000 and value % 1000 and value % 100 == 0 and rng.random() < 0.5:
        return spell_integer(value // 100, rng) + " hundred"
    thousands, rest = divmod(value, 1000)
    return f"{spell_integer(thousands, rng)} thousand" + (f" {spell_integer(rest, rng)}" if rest else "")


def say_number(value: int | float, rng: Random, *, words: bool = True) -> str:
    """Return `value` as digits or words; `value` is whole or ends in one half."""
    if isinstance(value, int):
        if words and rng.random() < WORDS_SHARE:
            return spell_integer(value, rng)
        if value < 0 and rng.random() < 0.5:
            return f"minus {-value}"
        return str(value)
    whole = int(value)
    form = rng.random()
    if form < 0.55 or not words:
        return f"{value:.1f}"
    said = spell_integer(whole, rng) if form < 0.9 else str(whole)
    return said + (" point five" if rng.random() < 0.6 else " and a half")


def draw_number(range_list: RangeSlotList, rng: Random) -> int | float:
    """Return a number of the range, with everyday values more often than others."""
    start, stop, step = range_list.start, range_list.stop, range_list.step
    dice = rng.random()
    if range_list.type is RangeType.TEMPERATURE:
        value = _draw_temperature(start, stop, dice, rng)
        if range_list.fraction_type is RangeFractionType.HALVES and 0 <= value < stop and rng.random() < 0.18:
            return value + 0.5
        return value
    if range_list.type is RangeType.PERCENTAGE:
        if dice < 0.4:
            return rng.randrange(start, stop + 1, 10)
        if dice < 0.6:
            return rng.randrange(start, stop + 1, 5)
        return rng.randrange(start, stop + 1, step)
    if step == 100:
        return rng.randrange(2000, 6501, step) if dice < 0.6 else rng.randrange(start, stop + 1, step)
    if dice < 0.55:
        return rng.choice(_USUAL_TIMES)
    return rng.randrange(start, stop + 1, step)


def _draw_temperature(start: int, stop: int, dice: float, rng: Random) -> int:
    if dice < NEGATIVE_TEMPERATURE_SHARE:
        return -rng.randint(1, 30)
    if dice < 0.6:
        return rng.randint(15, 30)
    return rng.randint(start, stop)
