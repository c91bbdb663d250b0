"""From a request's prompt to token ids, by the package's template.

Templates come from outside, so they run in Jinja2's sandbox. The prompt is text, never markup: it can't spell
special tokens, or a prompt could end itself and begin the answer.
"""

from __future__ import annotations

import unicodedata

from jinja2 import StrictUndefined, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from edgeslm.errors import BadRequestError, ModelLoadError, TooLargeError
from edgeslm.runtime.tokenizer import Tokenizer


class PromptTemplate:
    """A compiled template over the variable ``prompt``."""

    def __init__(self, source: str, tokenizer: Tokenizer, max_prompt_tokens: int) -> None:
        """Compile `source`.

        Raises:
            ModelLoadError: it is no template.
        """
        environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined, autoescape=False)  # noqa: S701 - no HTML
        # Loops and arithmetic of arbitrary size are what a sandbox does not stop; a prompt template needs neither.
        environment.globals.clear()
        try:
            self._template = environment.from_string(source)
        except TemplateError as error:
            raise ModelLoadError(f"prompt template: {error}", path="manifest.json") from error
        self._tokenizer = tokenizer
        self._special = tokenizer.special_tokens()
        self._max_prompt_tokens = max_prompt_tokens

    def encode(self, prompt: str) -> list[int]:
        """Token ids of `prompt` in its template.

        Raises:
            BadRequestError: the prompt is blank, or has control characters or special tokens in it.
            TooLargeError: more tokens than the model takes.
        """
        text = unicodedata.normalize("NFC", prompt)
        if not text.strip():
            raise BadRequestError("empty prompt")
        for special in self._special:
            if special in text or special in text.lower():
                raise BadRequestError(f"the prompt contains the special token {special}")
        # A token covers a character at the least once its bytes are merged, and no vocabulary has tokens of more
        # than some dozen characters: what is this long can't fit, and tokenizing it would only cost time.
        if len(text) > 64 * self._max_prompt_tokens:
            raise TooLargeError(
                f"prompt of {len(text)} characters is far above {self._max_prompt_tokens} tokens",
                actual=len(text),
                limit=64 * self._max_prompt_tokens,
                unit="characters",
            )
        try:
            ids = self._tokenizer.encode(self._template.render(prompt=text))
        except TemplateError as error:
            raise BadRequestError(f"the model's prompt template fails on this prompt: {error}") from error
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
