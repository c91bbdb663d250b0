"""Text <-> token ids, and turning a growing sequence of ids into a growing text.

Byte-level vocabularies split characters over tokens, and some decoders join across tokens, so text can't be
decoded token by token: :class:`TextStream` gives out only what later tokens can't change.

Two kinds of tokenizer file are read: the JSON of the `tokenizers` library, here, and the models of SentencePiece
(:mod:`edgeslm.runtime.tokenizer_sentencepiece`). For a vocabulary of 262,144 pieces the second costs a tenth of the
processor time and a fifth of the memory.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

from edgeslm.errors import ModelLoadError
from edgeslm.runtime.token_bytes import bytes_by_id
from edgeslm.runtime.tokenizer_sentencepiece import SentencePieceTokenizer
from edgeslm.schema.package import PromptForm, TokenizerSpec

_REPLACEMENT = "\ufffd"
_WINDOW_TOKENS = 8
"""Tokens decoded together with new ones, so that decoders see what stands before."""


class Tokenizer(Protocol):
    """What the runtime asks of a tokenizer."""

    @property
    def vocab_size(self) -> int:
        """Number of token ids, added tokens included."""

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`; special tokens that the text spells out become themselves."""

    def decode(self, ids: list[int]) -> str:
        """Text of `ids`, special tokens left out, bytes that are no text as U+FFFD.

        Raises:
            InferenceError: one of them is no id of this vocabulary, or stands for what is no text.
        """

    def special_ids(self) -> frozenset[int]:
        """Ids of the tokens that are no text."""

    def special_tokens(self) -> frozenset[str]:
        """Texts that encode to a special token: a prompt from outside must not contain them."""

    def token_bytes(self) -> list[bytes] | None:
        """What each token says, by id; ``None`` where that can't be told token by token."""

    def to_json(self) -> str | None:
        """The tokenizer as the `tokenizers` library has it, without padding and truncation; ``None`` for others."""


def open_tokenizer(
    spec: TokenizerSpec,
    path: Path,
    prompt: PromptForm,
    stop_tokens: Iterable[int] = (),
    markup: Iterable[str] = (),
) -> Tokenizer:
    """The tokenizer of a package.

    Args:
        path: the file that `spec` names.
        prompt: what it spells out is markup, in a prompt from outside not allowed.
        stop_tokens: these as well.
        markup: further texts of which the same is true: what a chat template makes.

    Raises:
        ModelLoadError: unreadable, not of that form, or what reads it is not installed.
    """
    if spec.kind == "sentencepiece":
        return SentencePieceTokenizer(
            path, markup=(prompt.prefix, prompt.suffix, *markup), stop_tokens=stop_tokens
        )
    return JsonTokenizer(path)


class JsonTokenizer:
    """`Tokenizer` over a file of the `tokenizers` library."""

    def __init__(self, path: Path) -> None:
        """Load it.

        Raises:
            ModelLoadError: unreadable or not of that form.
        """
        from tokenizers import Tokenizer as HfTokenizer  # noqa: PLC0415 - a `tensor` model does without it

        try:
            self._tokenizer: Any = HfTokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception
            raise ModelLoadError(
                f"{path.name} is no tokenizer: {str(error)[:200]}", path=str(path)
            ) from error
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()

    @property
    def vocab_size(self) -> int:
        """Number of token ids, added tokens included."""
        return int(self._tokenizer.get_vocab_size(with_added_tokens=True))

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`; special tokens that the text spells out become themselves."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def decode(self, ids: list[int]) -> str:
        """Text of `ids`, special tokens left out."""
        text: str = self._tokenizer.decode(ids, skip_special_tokens=True)
        return text

    def to_json(self) -> str:
        """The tokenizer as its file has it, without padding and truncation."""
        text: str = self._tokenizer.to_str()
        return text

    def token_bytes(self) -> list[bytes] | None:
        """What each token says, by id; ``None`` where the decoder is of no known form."""
        added = self._tokenizer.get_added_tokens_decoder()
        return bytes_by_id(
            self._decoder_steps(),
            self._tokenizer.get_vocab(with_added_tokens=True),
            {int(token): found.content for token, found in added.items()},
            self.vocab_size,
        )

    def special_ids(self) -> frozenset[int]:
        """Ids of the tokens that are no text."""
        added = self._tokenizer.get_added_tokens_decoder()
        return frozenset(int(token) for token, found in added.items() if found.special)

    def _decoder_steps(self) -> list[dict[str, Any]]:
        """How token names become text, step by step, in the words of the tokenizer file."""
        if self._tokenizer.decoder is None:
            return []
        found = json.loads(self._tokenizer.decoder.__getstate__())
        return list(found["decoders"]) if found.get("type") == "Sequence" else [found]

    def special_tokens(self) -> frozenset[str]:
        """Texts that encode to a special token: a prompt from outside must not contain them."""
        added = self._tokenizer.get_added_tokens_decoder().values()
        return frozenset(token.content for token in added if token.special)


class TokenText(Protocol):
    """Turns token ids into text as they come."""

    def push(self, token: int) -> str:
        """The text that `token` settles; empty while a character is incomplete."""

    def finish(self) -> str:
        """The rest."""


class TextStream:
    """`TokenText` with the tokenizer's own decoder."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._from = 0
        self._settled = 0

    def push(self, token: int) -> str:
        """The text that `token` settles; empty while a character is incomplete."""
        self._ids.append(token)
        return self._advance(final=False)

    def finish(self) -> str:
        """The rest, incomplete characters included as U+FFFD."""
        return self._advance(final=True)

    def _advance(self, *, final: bool) -> str:
        before = self._tokenizer.decode(self._ids[self._from : self._settled])
        now = self._tokenizer.decode(self._ids[self._from :])
        incomplete = now.endswith(_REPLACEMENT) and len(self._ids) - self._settled < _WINDOW_TOKENS
        if (incomplete and not final) or len(now) < len(before):
            return ""
        self._settled = len(self._ids)
        self._from = max(self._from, self._settled - _WINDOW_TOKENS)
        return now[len(before) :]
