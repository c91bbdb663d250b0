"""From a request's prompt to token ids, in the form that the package states.

The prompt is text, never markup, or it could end itself and begin the answer. Where the package has a chat template, a
special token that a prompt spells is tokenized as the text that it is; elsewhere such a prompt is refused.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING

from edgeslm.errors import BadRequestError, TooLargeError
from edgeslm.runtime.tokenizer import Tokenizer
from edgeslm.schema.package import PromptForm

if TYPE_CHECKING:  # Jinja2 is loaded for packages that have a template
    from edgeslm.runtime.chat_template import ChatMessage, ChatTemplate

_MAX_CHARS_PER_TOKEN = 64
"""No vocabulary has tokens longer than some dozen characters: what is longer can't fit, and tokenizing it would
only cost time."""


def normal_text(prompt: str) -> str:
    """`prompt` in the normal form in which models were trained (NFC).

    Raises:
        BadRequestError: it is blank, or no Unicode text.
    """
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        raise BadRequestError(f"the prompt is not Unicode text: {error.reason}") from error
    if not prompt.strip():
        raise BadRequestError("empty prompt")
    return unicodedata.normalize("NFC", prompt)


class PromptEncoder:
    """Puts prompts into a package's form and tokenizes them."""

    def __init__(
        self,
        form: PromptForm,
        tokenizer: Tokenizer,
        max_prompt_tokens: int,
        *,
        template: ChatTemplate | None = None,
        system: str = "",
    ) -> None:
        """Take the parts.

        Args:
            template: puts conversations together, in place of prefix and suffix.
            system: what the first message of each conversation says; none where it is empty.
        """
        self._template = template
        self._system = system
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
        if len(prompt) > self.max_chars:
            raise TooLargeError(
                f"prompt of {len(prompt)} characters is far above {self._max_prompt_tokens} tokens",
                actual=len(prompt),
                limit=self.max_chars,
                unit="characters",
            )
        ids = self.tokenize(self.clean(prompt))
        if len(ids) > self._max_prompt_tokens:
            raise TooLargeError(
                f"prompt of {len(ids)} tokens, the model takes {self._max_prompt_tokens}",
                actual=len(ids),
                limit=self._max_prompt_tokens,
                unit="tokens",
            )
        return ids

    @property
    def max_chars(self) -> int:
        """A prompt of more characters is certainly too long."""
        return _MAX_CHARS_PER_TOKEN * self._max_prompt_tokens

    def clean(self, prompt: str) -> str:
        """`prompt` as the model was trained on it, whatever its length.

        Raises:
            BadRequestError: it is blank, no Unicode text, or spells a special token.
        """
        text = normal_text(prompt)
        if self._form.collapse_whitespace:
            text = " ".join(text.split())
        if self._form.lower:
            text = text.lower()
        for special in self._special if self._template is None else ():
            if special in text:
                raise BadRequestError(f"the prompt contains the special token {special}")
        return text

    def tokenize(self, text: str) -> list[int]:
        """Token ids of the clean `text` in its form, whatever their number.

        Raises:
            BadRequestError: there are none.
        """
        if self._template is not None:
            from edgeslm.runtime.chat_template import ChatMessage  # noqa: PLC0415

            return self.tokenize_messages([ChatMessage("user", text)])
        ids = self._tokenizer.encode(f"{self._form.prefix}{text}{self._form.suffix}")
        if not ids:
            raise BadRequestError("the prompt is empty once tokenized")
        return ids

    def tokenize_messages(self, messages: Sequence[ChatMessage]) -> list[int]:
        """Token ids of a conversation up to where the answer begins, after the package's system message.

        Raises:
            BadRequestError: the template does not take it.
            ChatTemplateError: the template fails.
        """
        from edgeslm.runtime.chat_template import ChatMessage  # noqa: PLC0415

        assert self._template is not None  # noqa: S101 - whoever calls has one
        first = [ChatMessage("system", self._system)] if self._system else []
        pieces = self._template.render([*first, *messages], special_tokens=self._special)
        return [token for piece in pieces for token in self._tokenizer.encode(piece)]
