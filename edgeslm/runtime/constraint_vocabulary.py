"""A vocabulary as ``llguidance`` wants it.

The library can read a tokenizer file itself, but then holds a second tokenizer: for a vocabulary of 262,144 tokens
that takes three times as long and 80 MB more. So our tokenizer is lent to it where it is known what each token says
(:mod:`edgeslm.runtime.token_bytes`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edgeslm.runtime.tokenizer import Tokenizer


def open_vocabulary(library: Any, tokenizer: Tokenizer, stop_tokens: Sequence[int]) -> Any:
    """The library's tokenizer for `tokenizer`.

    Args:
        stop_tokens: ids that end an answer.

    Raises:
        ValueError: no token ends an answer, and the library could not find one by itself.
        Exception: what the library raises for a tokenizer that it cannot use.
    """
    said = tokenizer.token_bytes()
    if said is None or not stop_tokens:
        described = tokenizer.to_json()
        if described is None:
            raise ValueError("the package names no stop token")
        return library.LLTokenizer(described, eos_token=list(stop_tokens) or None)
    lent = library.TokenizerWrapper(_Lent(tokenizer, said, stop_tokens[0]))
    return library.LLTokenizer(lent, eos_token=list(stop_tokens))


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
        if not isinstance(text, str):
            raise TypeError("text is wanted")
        return self._tokenizer.encode(text)
