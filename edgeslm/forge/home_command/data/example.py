"""One training pair of `home-command`, its canonical answer, and the held-out split.

What always holds: an answer has one spelling only (slot order, separators and
number form are fixed here and nowhere else), and whether a text is held out
depends on nothing but the text, so no seed, version or mix can leak an
evaluation sentence into training.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

SlotValue = str | int | float

SLOT_ORDER: tuple[str, ...] = ("name", "area", "floor", "domain", "device_class", "state")
"""Slots that come first in an answer, in this order; all others follow alphabetically."""

HELD_OUT_ONE_IN = 25
"""One text in this many is kept for evaluation."""

_RANK = {slot: rank for rank, slot in enumerate(SLOT_ORDER)}
_NOT_A_WORD = re.compile(r"[^a-z0-9.%°\s]")
_SPACES = re.compile(r"\s+")


def normalise(text: str) -> str:
    """Return `text` in lower case with single spaces and no outer space."""
    return _SPACES.sub(" ", text).strip().lower()


def order_slots(slots: Mapping[str, SlotValue]) -> dict[str, SlotValue]:
    """Return `slots` in the canonical order of answers."""
    names = sorted(slots, key=lambda slot: (_RANK.get(slot, len(_RANK)), slot))
    return {name: slots[name] for name in names}


def render_answer(intent: str, slots: Mapping[str, SlotValue]) -> str:
    """Return the canonical compact JSON answer for an intent and its slots."""
    return json.dumps({"intent": intent, **order_slots(slots)}, separators=(",", ":"), ensure_ascii=False)


def is_held_out(text: str) -> bool:
    """Return whether `text` belongs to the evaluation split (about 1 in 25).

    Case, spacing and punctuation do not count: two spellings of one sentence
    are always on the same side.
    """
    bare = normalise(_NOT_A_WORD.sub("", normalise(text)).rstrip(". "))
    digest = hashlib.blake2b(bare.encode(), digest_size=8, person=b"home-command").digest()
    return int.from_bytes(digest, "big") % HELD_OUT_ONE_IN == 0


@dataclass(frozen=True)
class Example:
    """A spoken-style command and the intent it means."""

    text: str
    intent: str
    slots: dict[str, SlotValue]

    @property
    def answer(self) -> str:
        """The canonical compact JSON answer."""
        return render_answer(self.intent, self.slots)
