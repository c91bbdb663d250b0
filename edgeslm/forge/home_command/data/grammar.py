"""Compiles hassil sentence templates into closures that draw a random sentence.

hassil parses the templates; its own samplers enumerate or recurse over the
expression tree, which is too slow to feed a training loop. Here each tree is
compiled once into nested closures that return text.

What always holds: text that came from a slot is enclosed in marks, so that
later stages (noise, checks) know what they must not touch; `strip_marks`
removes them. What a slot is filled with is left to the `Draft` passed in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from random import Random

from hassil.expression import (
    Alternative,
    Expression,
    Group,
    ListReference,
    Permutation,
    RuleReference,
    Sentence,
    TextChunk,
)
from hassil.intents import RangeSlotList, SlotList, TextSlotList

from .example import SlotValue
from .quantities import draw_number, say_number

COPIED = "\x01"
"""Opens text whose words are copied into the answer."""
CHOSEN = "\x03"
"""Opens text that stands for a listed value or a number."""
END = "\x02"
"""Closes either."""

_MARKS = str.maketrans("", "", COPIED + CHOSEN + END)


@dataclass
class Draft:
    """One sentence in the making: where chance comes from and what the slots became."""

    rng: Random
    fill: Callable[[str, Draft], tuple[str, SlotValue]]
    """Returns the text and the slot value for an open list such as `name` or `message`."""
    domain: str | None = None
    noun: str = "any"
    """Whether a device name must (`must`), may (`any`) or must not (`never`) name its kind."""
    slots: dict[str, SlotValue] = field(default_factory=dict)


Emit = Callable[[Draft], str]


def strip_marks(marked: str) -> str:
    """Return `marked` without the slot marks."""
    return marked.translate(_MARKS)


class Compiler:
    """Compiles expressions that share one set of lists and rules."""

    def __init__(self, lists: Mapping[str, SlotList], rules: Mapping[str, Sentence]) -> None:
        self._lists = lists
        self._rules = rules
        self._compiled_rules: dict[str, Emit] = {}

    def compile(self, expression: Expression) -> Emit:
        """Return a closure that draws one text of `expression`.

        Raises KeyError when the expression refers to a rule that does not exist.
        """
        if isinstance(expression, TextChunk):
            return _emit_text(expression.original_text.lower())
        if isinstance(expression, Alternative):
            return _emit_one_of([self.compile(item) for item in expression.items])
        if isinstance(expression, Permutation):
            return _emit_shuffled([self.compile(item) for item in expression.items])
        if isinstance(expression, Group):
            return _emit_all([self.compile(item) for item in expression.items])
        if isinstance(expression, RuleReference):
            return self._compile_rule(expression.rule_name)
        if isinstance(expression, ListReference):
            return self._compile_list(expression)
        raise TypeError(f"template part of unknown type {type(expression).__name__}")

    def _compile_rule(self, rule_name: str) -> Emit:
        if rule_name not in self._compiled_rules:
            self._compiled_rules[rule_name] = self.compile(self._rules[rule_name].expression)
        return self._compiled_rules[rule_name]

    def _compile_list(self, reference: ListReference) -> Emit:
        slot = reference.slot_name
        slot_list = self._lists.get(reference.list_name)
        if isinstance(slot_list, RangeSlotList):
            return _emit_number(slot, slot_list)
        if isinstance(slot_list, TextSlotList):
            values = [(self.compile(value.text_in), value.value_out) for value in slot_list.values]
            return _emit_listed(slot, values)
        return _emit_open(slot, reference.list_name)


def _emit_text(text: str) -> Emit:
    return lambda draft: text


def _emit_one_of(choices: list[Emit]) -> Emit:
    count = len(choices)
    return lambda draft: choices[int(draft.rng.random() * count)](draft)


def _emit_shuffled(parts: list[Emit]) -> Emit:
    def emit(draft: Draft) -> str:
        order = parts[:]
        draft.rng.shuffle(order)
        return " ".join(part(draft) for part in order)

    return emit


def _emit_all(parts: list[Emit]) -> Emit:
    if len(parts) == 1:
        return parts[0]
    return lambda draft: "".join([part(draft) for part in parts])


def _emit_number(slot: str, range_list: RangeSlotList) -> Emit:
    multiplier = range_list.multiplier

    def emit(draft: Draft) -> str:
        value = draw_number(range_list, draft.rng)
        meant = value if multiplier is None else value * multiplier
        # An answer never says -20.0 where -20 is meant.
        draft.slots[slot] = int(meant) if meant == int(meant) else meant
        return f"{CHOSEN}{say_number(value, draft.rng, words=range_list.words)}{END}"

    return emit


def _emit_listed(slot: str, values: list[tuple[Emit, SlotValue]]) -> Emit:
    count = len(values)

    def emit(draft: Draft) -> str:
        text, value = values[int(draft.rng.random() * count)]
        draft.slots[slot] = value
        return f"{CHOSEN}{text(draft).strip()}{END}"

    return emit


def _emit_open(slot: str, list_name: str) -> Emit:
    def emit(draft: Draft) -> str:
        text, value = draft.fill(list_name, draft)
        draft.slots[slot] = value
        return f"{COPIED}{text}{END}"

    return emit
