"""The bytes that each token of a vocabulary says, and the vocabulary as ``llguidance`` wants it.

The library can read a tokenizer file itself, but then holds a second tokenizer: for a vocabulary of 262,144 tokens
that takes three times as long and 80 MB more. So our tokenizer is lent to it where its decoder is of a known form:
byte-level (GPT-2 and its heirs), or words with U+2581 for spaces and ``<0x0A>`` for single bytes (SentencePiece).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from edgeslm.runtime.tokenizer import Tokenizer

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_SPACE = "\u2581"


def open_vocabulary(library: Any, tokenizer: Tokenizer, stop_tokens: Sequence[int]) -> Any:
    """The library's tokenizer for `tokenizer`.

    Args:
        stop_tokens: ids that end an answer.

    Raises:
        Exception: what the library raises for a tokenizer that it cannot use.
    """
    said = token_bytes(tokenizer)
    if said is None or not stop_tokens:
        return library.LLTokenizer(tokenizer.to_json(), eos_token=list(stop_tokens) or None)
    lent = library.TokenizerWrapper(_Lent(tokenizer, said, stop_tokens[0]))
    return library.LLTokenizer(lent, eos_token=list(stop_tokens))


def token_bytes(tokenizer: Tokenizer) -> list[bytes] | None:
    """What each token says, by id; ``None`` where the decoder is of no known form."""
    to_bytes = _decoder(tokenizer.decoder_steps())
    if to_bytes is None:
        return None
    said = [b""] * tokenizer.vocab_size
    for text, token in tokenizer.vocabulary().items():
        if token < len(said):
            said[token] = to_bytes(text)
    for token, text in tokenizer.added_tokens().items():
        if token < len(said):
            said[token] = text.encode()
    return said


class _Lent:
    """A tokenizer in the form that the library's ``TokenizerWrapper`` takes."""

    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer, said: list[bytes], stop_token: int) -> None:
        self._tokenizer = tokenizer
        self.tokens = said
        self.eos_token_id = stop_token
        self.special_token_ids = sorted(tokenizer.special_ids())

    def __call__(self, text: str) -> list[int]:
        """Token ids of `text`; refuses bytes, which tells the library to give text."""
        return self._tokenizer.encode(text)


def _decoder(steps: list[dict[str, Any]]) -> Callable[[str], bytes] | None:
    kinds = [step.get("type") for step in steps]
    if kinds == ["ByteLevel"]:
        table = _byte_level_table()
        return lambda text: _from_byte_level(text, table)
    replaces = [
        step
        for step in steps
        if step.get("type") == "Replace"
        and step.get("pattern") == {"String": _SPACE}
        and step.get("content") == " "
    ]
    # Stripping is about the start of a whole text only.
    if (
        replaces
        and set(kinds) <= {"Replace", "ByteFallback", "Fuse", "Strip"}
        and kinds.count("Replace") == 1
    ):
        return _from_words
    return None


def _from_words(text: str) -> bytes:
    byte = _BYTE.fullmatch(text)
    return bytes([int(byte[1], 16)]) if byte else text.replace(_SPACE, " ").encode()


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
