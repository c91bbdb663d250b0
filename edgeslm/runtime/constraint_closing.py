"""Completing an answer that was cut short, so that it still has its form. Bounded in steps and time.

A walk through the grammar: what is forced is taken, and where there is a choice, what closes soonest: the end of a
string, then of an object or a list, then a digit. A place that keeps coming back gets other choices after a while,
so that the walk leaves every loop that can be left. The library allows nothing that leads nowhere; therefore the walk
needs no way back. Only text is made: the model computes nothing.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from edgeslm.runtime.constraint_json import JsonPlace

_MAX_STEPS = 2_000
_MAX_CHARS = 16_384
_MAX_CPU_S = 0.1
_SAME_CHOICES = 3
"""Visits of a place that get the same choice, before the others get their turns."""
_UNUSUAL_FROM = 8
"""Turns from which on, at every power of two, any other token gets a turn."""

_IN_STRING = tuple('"aex0123456789-:TZ.@/ _A,+')
_OUTSIDE = tuple('}],"0123456789-ntf{[:.')
_CLOSING = frozenset('"}],')
"""What ends a part of a JSON text; taken whenever it is allowed."""
_PLAIN = tuple("aex0123456789 -:.,;)]}\"'>\n")


def find_completion(matcher: Any, tokenizer: Any, text: str, *, is_json: bool) -> str | None:
    """What completes `text`.

    Args:
        matcher: the library's, which has consumed `text`; it is used up.
        tokenizer: the library's.
        is_json: whether the form is one of JSON, so that quotes, braces and brackets mean something.

    Returns:
        The addition, or ``None`` where none was found within the bounds.
    """
    walk = _Walk(matcher, tokenizer, text, is_json=is_json)
    until_s = time.thread_time() + _MAX_CPU_S
    for _ in range(_MAX_STEPS):
        if matcher.is_accepting():
            return walk.added.decode(errors="strict") if _is_text(walk.added) else None
        if matcher.is_stopped() or time.thread_time() > until_s or len(walk.added) > _MAX_CHARS:
            return None
        if not walk.step():
            return None
    return None


def _is_text(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


class _Walk:
    def __init__(self, matcher: Any, tokenizer: Any, text: str, *, is_json: bool) -> None:
        self._matcher = matcher
        self._tokenizer = tokenizer
        self._is_json = is_json
        self._place = JsonPlace()
        self._place.feed(text.encode())
        self._visits: Counter[tuple[int | None, bool]] = Counter()
        self._ids: dict[str, int] = {}
        self.added = b""

    def step(self) -> bool:
        """Go on by what is forced, or by one choice; whether there was one."""
        forced = self._matcher.compute_ff_bytes()
        if forced:
            return self._take(self._tokenizer.tokenize_bytes(forced), forced)
        token = self._choose()
        return token is not None and self._take([token], self._tokenizer.decode_bytes([token]))

    def _take(self, tokens: Sequence[int], said: bytes) -> bool:
        if len(said) > _MAX_CHARS or self._matcher.try_consume_tokens(tokens) < len(tokens):
            return False
        self.added += said
        self._place.feed(said)
        return True

    def _choose(self) -> int | None:
        wanted = _PLAIN if not self._is_json else _IN_STRING if self._place.in_string else _OUTSIDE
        char = next((char for char in wanted if self._may(self._id(char))), None)
        first = None if char is None else self._id(char)
        if self._is_json and char is not None and char in _CLOSING:
            return first
        place = (first, self._place.in_string)
        self._visits[place] += 1
        turn = self._visits[place] - _SAME_CHOICES
        if first is not None and turn < 0:
            return first
        choices = [token for char in wanted if self._may(token := self._id(char))]
        if choices and not (turn >= _UNUSUAL_FROM and turn.bit_count() == 1):
            return choices[turn % len(choices)]
        # Rarely, since it is slow: something that nobody thought of.
        others = self._others(set(choices))
        return others[turn.bit_length() % len(others)] if others else next(iter(choices), None)

    def _id(self, char: str) -> int:
        if char not in self._ids:
            tokens = self._tokenizer.greedy_tokenize(char)
            self._ids[char] = tokens[0] if len(tokens) == 1 else -1
        return self._ids[char]

    def _may(self, token: int) -> bool:
        return token >= 0 and self._matcher.validate_tokens([token]) == 1

    def _others(self, known: set[int]) -> list[int]:
        """Some more tokens that may come next, short ones first."""
        bits = np.unpackbits(np.frombuffer(self._matcher.compute_bitmask(), np.uint8), bitorder="little")
        ids = [
            int(token)
            for token in np.flatnonzero(bits)[:512]
            if token not in known and not self._tokenizer.is_special_token(int(token))
        ]
        ids.sort(key=lambda token: len(self._tokenizer.decode_bytes([token])))
        return ids[:32]
