"""Roughens a marked sentence the way people and recognisers do.

What always holds: text inside slot marks comes out as it went in, so every
label stays true; nothing is appended to free text, whose end could then no
longer be told; a typo never turns one fixed word into another.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from random import Random

from .grammar import CHOSEN, COPIED, END
from .word_lists import load_word_lists

_SLOT = re.compile(f"([{COPIED}{CHOSEN}][^{END}]*{END})")
_WORD = re.compile(r"[a-z']+|[^a-z']+")


_LISTS = load_word_lists()
_LEADS, _ASKS, _TAILS = (_LISTS.phrases(name) for name in ("leads", "asks", "tails"))
_QUESTION_LEADS, _QUESTION_TAILS = (_LISTS.phrases(name) for name in ("question_leads", "question_tails"))
_MINDS = _LISTS.phrases("minds")
_GERUNDS = _LISTS.pairs("gerunds")
_IMPERATIVES = _LISTS.words("imperatives")
_QUESTIONS = _LISTS.words("question_words")
_ARTICLES = _LISTS.words("articles")
_SMALL_WORDS = _LISTS.words("small_words")
_NEIGHBOURS = _LISTS.pairs("neighbours")


def starts_with_verb(marked: str) -> bool:
    """Return whether the sentence begins like an order."""
    return marked.partition(" ")[0] in _IMPERATIVES


def add_fillers(marked: str, rng: Random, *, open_end: bool) -> str:
    """Return `marked` with polite words around; with `open_end` nothing goes behind it."""
    first = marked.partition(" ")[0]
    dice = rng.random()
    if first in _IMPERATIVES:
        if dice < 0.06 and first in _GERUNDS:
            marked = f"{rng.choice(_MINDS)} {_GERUNDS[first]}{marked[len(first) :]}"
        elif dice < 0.7:
            marked = f"{rng.choice(_ASKS if rng.random() < 0.6 else _LEADS)} {marked}"
        tail = _TAILS
    elif first in _QUESTIONS:
        if dice < 0.55:
            lead = rng.choice(_QUESTION_LEADS)
            # "can you tell me is ..." is nobody's English.
            marked = marked if "tell" in lead and first != "what" else f"{lead} {marked}"
        tail = _QUESTION_TAILS
    else:
        if dice < 0.3:
            marked = f"{rng.choice(_LEADS[:12])} {marked}"
        tail = _TAILS[:10]
    if not open_end and dice > 0.45:
        marked = f"{marked} {rng.choice(tail)}"
    return marked


def punctuate(marked: str, rng: Random) -> str:
    """Return `marked` with a mark at its end or without its apostrophes."""
    dice = rng.random()
    if dice < 0.35:
        return _outside_slots(marked, lambda text: text.replace("'", ""))
    if marked.partition(" ")[0] in _QUESTIONS:
        return marked + "?"
    return marked + rng.choice((".", ".", "!"))


def drop_small_words(marked: str, rng: Random, *, free_text: bool) -> str:
    """Return `marked` without some articles and, unless free text needs them as borders, prepositions."""
    # Without its first word, "is the lamp on" would be an order.
    head, space, rest = marked.partition(" ")
    if head in _SMALL_WORDS:
        return f"{head}{space}{drop_small_words(rest, rng, free_text=free_text)}"
    droppable = _ARTICLES if free_text else _ARTICLES | _SMALL_WORDS

    def drop(text: str) -> str:
        kept = [word for word in text.split(" ") if word not in droppable or rng.random() < 0.35]
        return " ".join(kept)

    # A dropped first or last word would glue a slot to its neighbour.
    return " ".join(_outside_slots(marked, drop).split())


def misspell(marked: str, rng: Random, fixed_words: frozenset[str]) -> str:
    """Return `marked` with one typo in a fixed word of four letters or more."""
    parts = _SLOT.split(marked)
    pieces = [[part] if part[:1] in (COPIED, CHOSEN) else _WORD.findall(part) for part in parts]
    spots = [
        (at, within)
        for at, piece in enumerate(pieces)
        for within, word in enumerate(piece)
        if len(word) >= 4 and word.isalpha()
    ]
    if not spots:
        return marked
    at, within = rng.choice(spots)
    word = pieces[at][within]
    typo = _one_typo(word, rng)
    if typo not in fixed_words:
        pieces[at][within] = typo
    return "".join("".join(piece) for piece in pieces)


def _one_typo(word: str, rng: Random) -> str:
    at = rng.randrange(1, len(word))
    dice = rng.random()
    if dice < 0.25:
        return word[: at - 1] + word[at] + word[at - 1] + word[at + 1 :]
    if dice < 0.5:
        return word[:at] + word[at + 1 :]
    if dice < 0.72:
        return word[:at] + word[at] + word[at:]
    return word[:at] + rng.choice(_NEIGHBOURS[word[at]]) + word[at + 1 :]


def _outside_slots(marked: str, change: Callable[[str], str]) -> str:
    parts = _SLOT.split(marked)
    return "".join(
        part if part[:1] in (COPIED, CHOSEN) else _keep_borders(part, change(part)) for part in parts
    )


def _keep_borders(before: str, after: str) -> str:
    """Return `after` with a space wherever `before` had one at its ends."""
    if not before.strip():
        return before
    lead = " " if before[0] == " " else ""
    tail = " " if before[-1] == " " else ""
    return f"{lead}{after.strip()}{tail}" if after.strip() else " "
