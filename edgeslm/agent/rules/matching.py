"""Which inputs a topic is for: filters in a tree of levels, whose number hardly matters for the time it takes.

Topics that came before are remembered, a bounded number of them: a sender that makes up ever new ones costs time in
proportion to its messages, and no memory.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

T = TypeVar("T")

MAX_REMEMBERED = 4096
_MAX_REMEMBERED_CHARS = 256


@dataclass(slots=True)
class _Level(Generic[T]):
    below: dict[str, _Level[T]] = field(default_factory=dict)
    here: list[T] = field(default_factory=list)
    all_below: list[T] = field(default_factory=list)


class TopicTree(Generic[T]):
    """Things by topic filter (MQTT 5, section 4.7)."""

    def __init__(self, entries: Iterable[tuple[str, T]]) -> None:
        self._root: _Level[T] = _Level()
        self._remembered: dict[str, tuple[T, ...]] = {}
        for topic_filter, entry in entries:
            self._add(topic_filter, entry)

    def _add(self, topic_filter: str, entry: T) -> None:
        level = self._root
        for name in topic_filter.split("/"):
            if name == "#":
                level.all_below.append(entry)
                return
            level = level.below.setdefault(name, _Level())
        level.here.append(entry)

    def find(self, topic: str) -> tuple[T, ...]:
        """What is filed under filters that `topic` falls under."""
        found = self._remembered.get(topic)
        if found is None:
            found = tuple(self._search(topic))
            if len(topic) <= _MAX_REMEMBERED_CHARS:
                if len(self._remembered) >= MAX_REMEMBERED:
                    self._remembered.clear()
                self._remembered[topic] = found
        return found

    def _search(self, topic: str) -> list[T]:
        names = topic.split("/")
        # [MQTT-4.7.2-1]: a wildcard at the front does not match the broker's own topics.
        is_own = topic.startswith("$")
        found: list[T] = [] if is_own else [*self._root.all_below]
        levels = [self._root]
        for position, name in enumerate(names):
            following = []
            for level in levels:
                if name in level.below and name not in {"+", "#"}:
                    following.append(level.below[name])
                if "+" in level.below and not (is_own and position == 0):
                    following.append(level.below["+"])
            for level in following:
                found += level.all_below
            levels = following
            if not levels:
                return found
        for level in levels:
            found += level.here
        return found


def overlap(one: str, other: str) -> bool:
    """Whether there is a topic that falls under both filters."""
    left, right = one.split("/"), other.split("/")
    for position in range(max(len(left), len(right)) + 1):
        a = left[position] if position < len(left) else None
        b = right[position] if position < len(right) else None
        if a == "#" or b == "#":
            return not (position == 0 and (one.startswith("$") or other.startswith("$")))
        if a is None or b is None:
            return a is b
        if a != b and "+" not in {a, b}:
            return False
        if position == 0 and a != b and (a.startswith("$") or b.startswith("$")):
            return False
    return True


def covers(wide: str, narrow: str) -> bool:
    """Whether every topic under `narrow` is under `wide` too."""
    left, right = wide.split("/"), narrow.split("/")
    if narrow.startswith("$") and left[0] in {"+", "#"}:
        return False
    for position, name in enumerate(left):
        if name == "#":
            return True
        if position >= len(right) or right[position] == "#":
            return False
        if name != "+" and name != right[position]:
            return False
    return len(left) == len(right)


def least_filters(filters: Iterable[tuple[str, int]]) -> list[tuple[str, int]]:
    """The subscriptions that bring everything under `filters`, without those that others cover.

    Where two overlap a broker may deliver a message twice.
    """
    best: dict[str, int] = {}
    for name, qos in filters:
        best[name] = max(qos, best.get(name, 0))
    kept: dict[str, int] = {}
    for name, qos in sorted(best.items(), key=lambda item: (item[0].count("/"), item[0])):
        wide = next((other for other in best if other != name and covers(other, name)), None)
        if wide is None:
            kept[name] = max(qos, kept.get(name, 0))
    for name, qos in best.items():
        for other, granted in kept.items():
            if covers(other, name):
                kept[other] = max(granted, qos)
    return sorted(kept.items())
