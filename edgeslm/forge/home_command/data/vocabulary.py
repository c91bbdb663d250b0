"""Fills the open slots: areas, floors, device names and free text.

What always holds, so that a label can be read off the text alone:

- areas, floors and device names are disjoint: no word that ends an area or a
  floor appears as a modifier in a name;
- a name is never just a generic noun (`light`, `fan`, `door` ...), since the
  templates read `<area> lights` as an area and a domain;
- no invented or rare word equals a fixed word of the templates;
- free text never holds the words that would hide where it ends.

Two kinds of names do begin with an area, where no template reads the same
words as area plus kind: sensors (`greenhouse humidity`) and what is locked or
unlocked (`kitchen door`).
"""

from __future__ import annotations

from functools import cached_property
from importlib.resources import files
from random import Random

import yaml
from hassil.parse_expression import parse_sentence

from .grammar import Compiler, Draft, Emit, strip_marks
from .word_lists import load_word_lists

_LISTS = load_word_lists()

GENERIC_NOUNS = _LISTS.words("generic_nouns") | {"lawn mower"}
"""Nouns that are no name on their own: templates give them a meaning of their own."""

FREE_TEXT_STOPS = _LISTS.words("free_text_stops")
"""Words that never stand in an item, a query or a timer name: templates use them as its border."""

MEDIA_WORDS = _LISTS.words("media_words")
_FUNCTION_WORDS = _LISTS.words("function_words")
_FINAL_STOPS = frozenset({"please", "thanks", "thank", "now", "away"})
_DELAYS = frozenset({"hour", "hours", "minute", "minutes", "second", "seconds"})

_ONSETS, _VOWELS = _LISTS.letters("onsets"), _LISTS.letters("vowels")
# Most invented syllables are open.
_CODAS = ("", "", "", *_LISTS.letters("codas"))


def title_case(text: str) -> str:
    """Return `text` as names are written in answers: each word capitalised."""
    return " ".join(word.capitalize() for word in text.split())


class Vocabulary:
    """Draws slot fillers; `reserved` holds the fixed words of all templates."""

    def __init__(self, reserved: frozenset[str]) -> None:
        text = files(__package__).joinpath("vocabulary.yaml").read_text(encoding="utf-8")
        loaded = yaml.safe_load(text)
        self._words: dict[str, list[str]] = loaded
        self.floors: list[str] = self._words["floors"]
        self.areas: list[str] = [area for area in self._words["areas"] if area not in self.floors]
        self.nouns: dict[str, list[str]] = loaded["nouns"]
        place_words = {
            phrase.split()[-1] for phrase in [*self.areas, *self.floors, *self._words["zone_words"]]
        }
        self.place_words = frozenset(
            place_words | {"room", "floor", "level", "area", "garage"} | set(_DELAYS)
        )
        noun_words = {word for nouns in self.nouns.values() for noun in nouns for word in noun.split()}
        self._never_invented = reserved | self.place_words | noun_words | GENERIC_NOUNS | FREE_TEXT_STOPS
        self._never_invented |= _FUNCTION_WORDS
        self._modifiers: list[str] = [
            word
            for word in self._words["modifiers"]
            if word not in reserved and word not in self.place_words and word not in GENERIC_NOUNS
        ]
        self._rare: list[str] = [
            word for word in self._words["words"] if not self._never_invented & set(word.split())
        ]
        self._brands: list[str] = self._words["brands"]
        self._follow = _letters_that_follow(
            [*self._rare, *self._modifiers, *self._words["people"], *self._words["places"]]
        )
        self._free = Compiler({}, {})

    @cached_property
    def _free_text(self) -> dict[str, list[Emit]]:
        kinds = ("items", "messages", "queries", "titles", "artists", "timer_names")
        return {
            kind: [self._free.compile(parse_sentence(line).expression) for line in self._words[kind]]
            for kind in kinds
        }

    # -- words -----------------------------------------------------------------

    def invent(self, rng: Random) -> str:
        """Return a word that nobody has seen, of 3 to 10 letters (seldom with a digit)."""
        while True:
            dice = rng.random()
            if dice < 0.5:
                word = "".join(
                    rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_CODAS)
                    for _ in range(rng.choice((1, 2, 2, 2, 3)))
                )
            elif dice < 0.92:
                word = self._spell_like_english(rng)
            elif dice < 0.97:
                word = "".join(rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(rng.randint(2, 6)))
            else:
                word = rng.choice("abcdefghkmnpqrstvwxz") + str(rng.randint(1, 99))
            if 2 <= len(word) <= 10 and word not in self._never_invented:
                return word

    def _spell_like_english(self, rng: Random) -> str:
        word = "^^"
        for _ in range(9):
            letter = rng.choice(self._follow.get(word[-2:], ("$",)))
            if letter == "$":
                break
            word += letter
        return word[2:]

    def modifier(self, rng: Random) -> str:
        """Return a word that sets one device apart from another."""
        dice = rng.random()
        if dice < 0.42:
            return self.invent(rng)
        if dice < 0.8:
            return rng.choice(self._modifiers)
        if dice < 0.88:
            return rng.choice(self._brands)
        return rng.choice(self._rare)

    def word(self, rng: Random) -> str:
        """Return a word of free text, invented once in four."""
        dice = rng.random()
        if dice < 0.2:
            return self.invent(rng)
        return rng.choice(self._rare if dice < 0.75 else self._modifiers)

    # -- places ----------------------------------------------------------------

    def area(self, rng: Random) -> str:
        """Return an area, in lower case."""
        dice = rng.random()
        if dice < 0.66:
            return rng.choice(self.areas)
        if dice < 0.78:
            mark = str(rng.choice((1, 2, 3, 4, 5, 6, 7, 8, 9, rng.randint(10, 30), rng.randint(100, 420))))
            if rng.random() < 0.2:
                mark = rng.choice("abcdefgh")
            return f"{rng.choice(self._words['numbered_areas'])} {mark}"
        zone = rng.choice(self._words["zone_words"])
        if dice < 0.9:
            return f"{self.invent(rng)} {zone}"
        adjective = rng.choice(self._words["area_adjectives"])
        return f"{adjective} {zone}" if adjective != zone else f"main {zone}"

    def floor(self, rng: Random) -> str:
        """Return a floor, in lower case."""
        if rng.random() < 0.5:
            return rng.choice(self.floors[:5])
        return rng.choice(self.floors)

    # -- names -----------------------------------------------------------------

    def name(self, rng: Random, domain: str, noun: str = "any") -> str:
        """Return the name of an entity of `domain`, in lower case, 1 to 4 words.

        `noun` says whether the name must (`must`), may (`any`) or must not
        (`never`) end in a noun that shows its kind; `area` puts an area in
        front, for what is locked.
        """
        if domain in ("person", "weather", "todo", "scene", "script"):
            return self._proper_name(rng, domain)
        nouns = self.nouns[domain]
        if noun == "area" or (domain == "sensor" and rng.random() < 0.35):
            kinds = [kind for kind in nouns if kind in ("door", "lock", "back door", "side door")] or nouns
            return f"{rng.choice(self.areas)} {rng.choice(kinds)}"
        if noun == "never":
            return " ".join(self.modifier(rng) for _ in range(rng.choice((1, 1, 2))))
        if noun == "any" and rng.random() < 0.28:
            return self._free_name(rng)
        kind = rng.choice(nouns)
        bare = kind not in GENERIC_NOUNS and rng.random() < 0.25
        count = 0 if bare else rng.choice((1, 1, 1, 2))
        parts = [self.modifier(rng) for _ in range(count)]
        return " ".join([*parts, kind]) + (self._suffix(rng) if rng.random() < 0.2 else "")

    def _free_name(self, rng: Random) -> str:
        words = [
            self.invent(rng) if rng.random() < 0.6 else self.modifier(rng)
            for _ in range(rng.choice((1, 1, 2, 2, 3)))
        ]
        return " ".join(words) + (self._suffix(rng) if rng.random() < 0.1 else "")

    def _suffix(self, rng: Random) -> str:
        dice = rng.random()
        if dice < 0.55:
            return f" {rng.choice((1, 1, 2, 2, 3, 4, 5, 6, 7, 8, 9, rng.randint(10, 99)))}"
        if dice < 0.8:
            return f" {rng.choice('abcdefghjkmnprstvwxz')}{rng.randint(1, 9)}"
        if dice < 0.92:
            return f" {rng.choice('bcdefghkmnpqrstvwxyz')}"
        return f" {rng.choice(('one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight', 'nine'))}"

    def _proper_name(self, rng: Random, domain: str) -> str:
        dice = rng.random()
        if domain == "person":
            person = rng.choice(self._words["people"])
            if dice < 0.7:
                return person
            return self.invent(rng) if dice < 0.93 else f"{person} {self.invent(rng)}"
        if domain == "weather":
            return rng.choice(self._words["places"]) if dice < 0.75 else self.invent(rng)
        kind = rng.choice(self.nouns[domain])
        if dice < 0.5:
            return kind
        if dice < 0.72:
            return f"{self.modifier(rng)} {kind}"
        return " ".join(self.modifier(rng) for _ in range(rng.choice((1, 2, 2))))

    # -- free text -------------------------------------------------------------

    def item(self, rng: Random) -> str:
        """Return something for a list."""
        return self._draw_free(rng, "items", FREE_TEXT_STOPS - {"for", "and"})

    def message(self, rng: Random) -> str:
        """Return something to announce."""
        while True:
            text = self._draw_free(rng, "messages", frozenset({"timer", "everywhere", *_DELAYS}))
            words = text.split()
            if words[-1] not in _FINAL_STOPS and words[0] not in ("please", "that"):
                return text

    def query(self, rng: Random) -> str:
        """Return something to play."""
        while True:
            text = self._draw_free(
                rng, "queries", frozenset({"in", "on", "please", "to", "song", "track", "album"})
            )
            words = text.split()
            if not MEDIA_WORDS & {words[0], words[min(1, len(words) - 1)], words[-1]}:
                return text

    def timer_name(self, rng: Random) -> str:
        """Return the name of a timer."""
        return self._draw_free(rng, "timer_names", FREE_TEXT_STOPS | self.place_words | {"my", "our"})

    def zone(self, rng: Random) -> tuple[str, str]:
        """Return a place people are at, as said and without its article."""
        zone = rng.choice(self._words["zones"]) if rng.random() < 0.85 else self.invent(rng)
        return zone, zone.removeprefix("the ")

    def _draw_free(self, rng: Random, kind: str, stops: frozenset[str]) -> str:
        choices = self._free_text[kind]
        draft = Draft(rng, self._fill_free)
        while True:
            text = " ".join(strip_marks(rng.choice(choices)(draft)).split())
            if text and not stops & set(text.split()) and len(text) <= 48:
                return text

    def _fill_free(self, list_name: str, draft: Draft) -> tuple[str, str]:
        rng = draft.rng
        if list_name == "person":
            text = rng.choice(self._words["people"]) if rng.random() < 0.8 else self.invent(rng)
        elif list_name in ("title", "artist"):
            text = strip_marks(rng.choice(self._free_text[list_name + "s"])(draft))
        else:
            text = rng.choice(self._rare) if list_name == "thing" else self.word(rng)
        return text, text


def _letters_that_follow(words: list[str]) -> dict[str, list[str]]:
    """Return, for each two letters, the letters seen after them (`^` starts, `$` ends a word)."""
    follow: dict[str, list[str]] = {}
    for phrase in words:
        for word in phrase.replace("'", "").split():
            padded = f"^^{word}$"
            for at in range(2, len(padded)):
                follow.setdefault(padded[at - 2 : at], []).append(padded[at])
    return follow
