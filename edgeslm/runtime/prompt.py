"""From a request's prompt to token ids, in the form that the package states.

The prompt is text, never markup: it can't spell special tokens, or a prompt could end itself and begin the answer.
"""

from __future__ import annotations

import unicodedata

from edgeslm.errors import BadRequestError, TooLargeError
from edgeslm.runtime.tokenizer import Tokenizer
from edgeslm.schema.package import PromptForm

_MAX_CHARS_PER_TOKEN = 64
"""No vocabulary has tokens longer than some dozen characters: what is longer can't fit, and tokenizing it would
only cost time."""


class PromptEncoder:
    """Puts prompts into a package's form and tokenizes them."""

    def __init__(self, form: PromptForm, tokenizer: Tokenizer, max_prompt_tokens: int) -> None:
        self._form = form
        self._tokenizer = tokenizer
        self._special = tokenizer.special_tokens()
        self._max_prompt_tokens = max_prompt_tokens

    def encode(self, prompt: str) -> list[int]:
        """Token ids of `prompt` in its form.

        Raises:
            BadRequestError: the prompt is blank, no Unicode text, or spells a special token.
            TooLargeError: more tokens than the model takes.
        """
        limit = _MAX_CHARS_PER_TOKEN * self._max_prompt_tokens
        if len(prompt) > limit:
            raise TooLargeError(
                f"prompt of {len(prompt)} characters is far above {self._max_prompt_tokens} tokens",
                actual=len(prompt),
                limit=limit,
                unit="characters",
            )
        try:
            prompt.encode()
        except UnicodeEncodeError as error:
            raise BadRequestError(f"the prompt is not Unicode text: {error.reason}") from error
        text = unicodedata.normalize("NFC", prompt)
        if self._form.collapse_whitespace:
            text = " ".join(text.split())
        if self._form.lower:
            text = text.lower()
        if not text.strip():
            raise BadRequestError("empty prompt")
        for special in self._special:
            if special in text:
                raise BadRequestError(f"the prompt contains the special token {special}")
        ids = self._tokenizer.encode(f"{self._form.prefix}{text}{self._form.suffix}")
        if len(ids) > self._max_prompt_tokens:
            raise TooLargeError(
                f"prompt of {len(ids)} tokens, the model takes {self._max_prompt_tokens}",
                actual=len(ids),
                limit=self._max_prompt_tokens,
                unit="tokens",
            )
        if not ids:
            raise BadRequestError("the prompt is empty once tokenized")
        return ids
