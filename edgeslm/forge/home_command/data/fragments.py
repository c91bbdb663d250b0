"""The pieces of answers that recur verbatim, for the tokenizer to make single tokens of.

What always holds: the list depends on the templates and phrasings alone, in
a stable order, and every answer can be written as fragments, free text and
digits.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

from hassil.expression import ListReference, Sentence
from hassil.intents import Intents, RangeSlotList, TextSlotList

from .example import SlotValue, order_slots
from .sampler import load_sources


def fixed_fragments() -> list[str]:
    """Return the JSON fragments: intents, slot openings, fixed pairs, closings."""
    sources = load_sources()
    rules = {name: rule for source in sources for name, rule in source.expansion_rules.items()}
    lists = {name: values for source in sources for name, values in source.slot_lists.items()}
    intents = sorted({name for source in sources for name in source.intents})
    text_slots: set[str] = set()
    number_slots: set[str] = set()
    pairs: set[tuple[str, str]] = set()
    for slot, value in _fixed_slots(sources):
        if isinstance(value, str):
            pairs.add((slot, value))
        else:
            number_slots.add(slot)
    for reference in _references(sources, rules):
        slot, slot_list = reference.slot_name, lists.get(reference.list_name)
        if isinstance(slot_list, TextSlotList):
            outputs = [value.value_out for value in slot_list.values]
            pairs.update((slot, value) for value in outputs if isinstance(value, str))
            if any(not isinstance(value, str) for value in outputs):
                number_slots.add(slot)
        elif isinstance(slot_list, RangeSlotList):
            number_slots.add(slot)
        else:
            text_slots.add(slot)
    fragments = [f'{{"intent":"{name}"' for name in intents]
    fragments += [f',"{slot}":"' for slot in _in_order(text_slots)]
    fragments += [f',"{slot}":' for slot in _in_order(number_slots)]
    fragments += [f',"{slot}":{json.dumps(value)}' for slot, value in sorted(pairs)]
    return [*fragments, '"}', "}", '"']


def _in_order(slots: set[str]) -> list[str]:
    return list(order_slots(dict.fromkeys(sorted(slots), "")))


def _fixed_slots(sources: tuple[Intents, ...]) -> Iterator[tuple[str, SlotValue]]:
    for source in sources:
        for intent in source.intents.values():
            for block in intent.data:
                yield from block.slots.items()


def _references(sources: tuple[Intents, ...], rules: dict[str, Sentence]) -> Iterator[ListReference]:
    for source in sources:
        for intent in source.intents.values():
            for block in intent.data:
                for sentence in block.sentences:
                    yield from sentence.expression.list_references(rules)
