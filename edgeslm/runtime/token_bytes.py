"""The bytes that each token of a vocabulary says.

Known are two forms of decoder: byte-level (GPT-2 and its heirs), and words with U+2581 for spaces and ``<0x0A>`` for
single bytes (SentencePiece).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

SPACE = "\u2581"
"""How SentencePiece writes a space in the name of a piece."""
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def bytes_by_id(
    steps: Sequence[Mapping[str, Any]], vocabulary: Mapping[str, int], added: Mapping[int, str], count: int
) -> list[bytes] | None:
    """What each token says, by id; ``None`` where the decoder is of no known form.

    Args:
        steps: of the decoder, in the words of a `tokenizers` file.
        vocabulary: ids by the tokens' names.
        added: tokens that stand for their own text.
        count: number of ids.
    """
    to_bytes = _decoder(steps)
    if to_bytes is None:
        return None
    said = [b""] * count
    for text, token in vocabulary.items():
        if token < count:
            said[token] = to_bytes(text)
    for token, text in added.items():
        if token < count:
            said[token] = text.encode()
    return said


def _decoder(steps: Sequence[Mapping[str, Any]]) -> Callable[[str], bytes] | None:
    kinds = [step.get("type") for step in steps]
    if kinds == ["ByteLevel"]:
        table = _byte_level_table()
        return lambda text: _from_byte_level(text, table)
    replaces = [
        step
        for step in steps
        if step.get("type") == "Replace"
        and step.get("pattern") == {"String": SPACE}
        and step.get("content") == " "
    ]
    # Stripping is about the start of a whole text only.
    if (
        replaces
        and set(kinds) <= {"Replace", "ByteFallback", "Fuse", "Strip"}
        and kinds.count("Replace") == 1
    ):
        return from_word
    return None


def from_word(text: str) -> bytes:
    """What a piece of SentencePiece says that is called `text`."""
    byte = _BYTE.fullmatch(text)
    return bytes([int(byte[1], 16)]) if byte else text.replace(SPACE, " ").encode()


def _from_byte_level(text: str, table: dict[str, int]) -> bytes:
    try:
        return bytes([table[char] for char in text])
    except KeyError:  # a token that was added as plain text
        return text.encode()


def _byte_level_table() -> dict[str, int]:
    """GPT-2's names for bytes: those that print stand for themselves, the others follow from U+0100 on."""
    printing = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printing]
    return {chr(byte): byte for byte in printing} | {chr(0x100 + at): byte for at, byte in enumerate(others)}
