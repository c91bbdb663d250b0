"""What a query can ask of a device: its fields, of what kind each is, and how values compare. Pure.

What always holds: ``!=`` is the opposite of ``=``, for a device without the value as well; every other comparison is
false for such a device, but for ages, where what never happened is older than anything.

Left to others: the language (:mod:`edgeslm.fleet.query`), and where facts come from
(:mod:`edgeslm.fleet.selection`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from fnmatch import fnmatchcase
from typing import Literal, TypeVar

from edgeslm.schema.base import is_identifier, version_key
from edgeslm.schema.fleet import DeviceFacts

Operator = Literal["=", "!=", "<", "<=", ">", ">=", "~"]
Kind = Literal["text", "set", "group", "version", "age"]
VersionKey = tuple[int, int, int, int, str]
_Ordered = TypeVar("_Ordered", float, VersionKey)

ORDERS: tuple[Operator, ...] = ("<", "<=", ">", ">=")
OPERATORS: dict[Kind, tuple[Operator, ...]] = {
    "text": ("=", "!=", "~"),
    "set": ("=", "!=", "~"),
    "group": ("=", "!="),
    "version": ("=", "!=", *ORDERS, "~"),
    "age": ("=", "!=", *ORDERS),
}
_UNITS_S = {"s": 1, "min": 60, "h": 3600, "d": 86_400, "w": 604_800}
_AGE = re.compile(r"(\d{1,9})(s|min|h|d|w)")
_VERSION = re.compile(r"(\d{1,9})(?:\.(\d{1,9}))?(?:\.(\d{1,9}))?(-[0-9A-Za-z.-]{1,64})?")


@dataclass(frozen=True)
class Moment:
    """What a query is asked in.

    Attributes:
        now: the present time, from which ages count.
        groups: names of the devices in each group that the query names.
    """

    now: datetime
    groups: Mapping[str, Collection[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class TextField:
    """A text that a device has or has not."""

    read: Callable[[DeviceFacts], str | None]
    kind: Kind = "text"


@dataclass(frozen=True)
class SetField:
    """Some texts."""

    read: Callable[[DeviceFacts, Moment], Collection[str]]
    kind: Kind = "set"


@dataclass(frozen=True)
class VersionField:
    """A version, or a text where it is none."""

    read: Callable[[DeviceFacts], str | None]
    kind: Kind = "version"


@dataclass(frozen=True)
class AgeField:
    """Seconds since something happened, or until it will; ``None`` if it never did."""

    read: Callable[[DeviceFacts, datetime], float | None]
    kind: Kind = "age"


Field = TextField | SetField | VersionField | AgeField


def _since(at: datetime | None, now: datetime) -> float | None:
    return None if at is None else (now - at).total_seconds()


def _until(at: datetime | None, now: datetime) -> float | None:
    return None if at is None else (at - now).total_seconds()


def _groups_of(facts: DeviceFacts, moment: Moment) -> list[str]:
    return [name for name, members in moment.groups.items() if facts.name in members]


_FIELDS: dict[str, Field] = {
    "agent": VersionField(lambda one: one.agent),
    "board": TextField(lambda one: one.board),
    "budget": TextField(lambda one: one.budget),
    "expires": AgeField(lambda one, now: _until(one.expires_at, now)),
    "finding": TextField(lambda one: one.finding),
    "group": SetField(_groups_of, "group"),
    "joined": AgeField(lambda one, now: _since(one.created_at, now)),
    "meter": TextField(lambda one: one.meter),
    "name": TextField(lambda one: one.name),
    "note": TextField(lambda one: one.notes or None),
    "pin": TextField(lambda one: one.pin),
    "presence": TextField(lambda one: one.presence),
    "profile": TextField(lambda one: one.profile),
    "quarantine": TextField(lambda one: one.quarantine),
    "runtime": TextField(lambda one: one.runtime),
    "seen": AgeField(lambda one, now: _since(one.last_seen_at, now)),
    "serial": TextField(lambda one: one.serial),
    "standing": TextField(lambda one: one.standing),
    "tag": SetField(lambda one, _moment: one.tags),
}
_PREFIXES: dict[str, Callable[[str], Field]] = {
    "assigned": lambda name: VersionField(lambda one: one.assigned.get(name)),
    "model": lambda name: VersionField(lambda one: one.running.get(name)),
}

FIELD_NAMES = (*_FIELDS, *(f"{prefix}.NAME" for prefix in _PREFIXES))
"""As help and errors list them; ``NAME`` stands for the name of a model."""


def find_field(name: str) -> Field | None:
    """The field called `name`; ``None`` if there is none."""
    prefix, dot, model = name.partition(".")
    if dot and prefix in _PREFIXES and is_identifier(model):
        return _PREFIXES[prefix](model)
    return _FIELDS.get(name)


# --- values -------------------------------------------------------------------------------------------------


def age_s(text: str) -> float | None:
    """Seconds of an age such as ``2h``; ``None`` if it is none."""
    match = _AGE.fullmatch(text)
    return None if match is None else float(int(match[1]) * _UNITS_S[match[2]])


def loose_version_key(text: str | None) -> VersionKey | None:
    """Sorts versions whose last parts may be left out: they count as 0. ``None`` for what is no version."""
    match = _VERSION.fullmatch(text) if text is not None else None
    if match is None:
        return None
    return version_key(f"{match[1]}.{match[2] or 0}.{match[3] or 0}{match[4] or ''}")


def value_fault(kind: Kind, operator: Operator, value: str | None) -> str | None:
    """What is wrong with a value; ``None`` if nothing is.

    Args:
        kind: of the field.
        operator: one of the kind's.
        value: ``None`` stands for the absence of a value.
    """
    if value is None and kind == "group":
        return "a group has a name"
    if value is None:
        return None if operator in {"=", "!="} else f"'none' goes with = and != only, not {operator}"
    if kind == "age" and operator in {"=", "!="}:
        return "an age is compared with < <= > >=; = and != go with 'none' only"
    if kind == "age" and age_s(value) is None:
        return f"'{value}' is no age such as 90s, 30min, 2h, 7d or 4w"
    if kind == "version" and operator in ORDERS and loose_version_key(value) is None:
        return f"'{value}' is no version such as 1.2 or 1.2.0-rc.1"
    return None


def holds(asked: Field, operator: Operator, value: str | None, facts: DeviceFacts, moment: Moment) -> bool:
    """Whether a comparison is true of a device.

    Args:
        asked: the field.
        operator: one of its kind's.
        value: one that :func:`value_fault` finds nothing wrong with.
        facts: the device.
        moment: when, and with which groups.
    """
    if operator == "!=":
        return not holds(asked, "=", value, facts, moment)
    if isinstance(asked, SetField):
        found = asked.read(facts, moment)
        if value is None:
            return not found
        return value in found if operator == "=" else any(_globs(one, value) for one in found)
    if isinstance(asked, AgeField):
        passed_s = asked.read(facts, moment.now)
        if value is None:
            return passed_s is None
        return _in_order(math.inf if passed_s is None else passed_s, operator, age_s(value) or 0.0)
    text = asked.read(facts)
    if value is None or text is None:
        return operator == "=" and value is text
    if operator == "~":
        return _globs(text, value)
    if isinstance(asked, TextField):
        return text == value
    one, other = loose_version_key(text), loose_version_key(value)
    if one is None or other is None:
        return operator == "=" and text == value
    return _in_order(one, operator, other)


def _globs(text: str, pattern: str) -> bool:
    return fnmatchcase(text.lower(), pattern.lower())


def _in_order(one: _Ordered, order: Operator, other: _Ordered) -> bool:
    if order == "<":
        return one < other
    if order == "<=":
        return one <= other
    if order == ">":
        return one > other
    return one >= other if order == ">=" else one == other
