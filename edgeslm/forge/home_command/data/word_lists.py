"""Reads `word_lists.yaml`: the short fixed lists behind noise and invented words."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import yaml


@dataclass(frozen=True)
class WordLists:
    """Named lists, kept as lines of text so that YAML cannot turn `on` or `no` into a truth value."""

    lines: dict[str, str]

    def words(self, name: str) -> frozenset[str]:
        """Return a list of single words, for look-ups."""
        return frozenset(self.lines[name].split())

    def letters(self, name: str) -> tuple[str, ...]:
        """Return a list of letter groups in order, repeated ones kept."""
        return tuple(self.lines[name].split())

    def phrases(self, name: str) -> tuple[str, ...]:
        """Return a list of phrases in order, repeated ones kept."""
        return tuple(phrase.strip() for phrase in self.lines[name].split("|"))

    def pairs(self, name: str) -> dict[str, str]:
        """Return a list of two words each, as a mapping from the first to the second."""
        return dict(phrase.split() for phrase in self.phrases(name))


@cache
def load_word_lists() -> WordLists:
    """Return the lists of the package."""
    text = files(__package__).joinpath("word_lists.yaml").read_text(encoding="utf-8")
    return WordLists(yaml.safe_load(text))
