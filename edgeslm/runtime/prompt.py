"""From a request's prompt to token ids, in the form that the package states.

The prompt is text, never markup, or it could end itself and begin the answer. Where the package has a chat template, a
special token that a prompt spells is tokenized as the text that it is; elsewhere such a prompt is refused.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from edgeslm.errors import BadRequestError, TooLargeError
from edgeslm.runtime.tokenizer import Tokenizer
from edgeslm.schema.package import PromptForm

if TYPE_CHECKING:  # Jinja2 is loaded for packages that have a template
    from edgeslm.runtime.chat_template import ChatMessage, ChatTemplate

_MAX_CHARS_PER_TOKEN = 64
"""No vocabulary has tokens longer than some dozen characters: what is longer can't fit, and tokenizing it would
only cost time."""
_FEW_CHARS_PER_TOKEN = 6
"""Texts of more characters for each token that the model takes are counted piece by piece, as far as that takes:
common ones have four or five."""
_PIECE_CHARS = 2048
_CUT_TOKENS = 4
"""A cut between two pieces makes so many tokens more at most."""
_WORD_CHARS = 64


def normal_text(prompt: str, name: str = "prompt") -> str:
    """`prompt` in the normal form in which models were trained (NFC).

    Args:
        name: what it is called in an error.

    Raises:
        BadRequestError: it is blank, or no Unicode text.
    """
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        raise BadRequestError(f"the {name} is not Unicode text: {error.reason}") from error
    if not prompt.strip():
        raise BadRequestError(f"empty {name}")
    return unicodedata.normalize("NFC", prompt)


def no_place_for_system(name: str) -> BadRequestError:
    """Why the model `name` cannot be asked with a message of the system."""
    return BadRequestError(
        f"{name} has no place for a message of the system: its chat template takes none",
        hint="Say it at the beginning of the user's first message",
    )


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
        if (least := self.least_tokens((prompt,))) > self._max_prompt_tokens:
            raise self._too_large(f"prompt of at least {least} tokens", least)
        ids = self.tokenize(self.clean(prompt))
        if len(ids) > self._max_prompt_tokens:
            raise self._too_large(f"prompt of {len(ids)} tokens", len(ids))
        return ids

    def _too_large(self, what: str, tokens: int) -> TooLargeError:
        return TooLargeError(
            f"{what}, the model takes {self._max_prompt_tokens}",
            actual=tokens,
            limit=self._max_prompt_tokens,
            unit="tokens",
        )

    def least_tokens(self, texts: Sequence[str]) -> int:
        """So many tokens `texts` have for certain; 0 of short ones, and counted no further than the model takes.

        What takes a large vocabulary a tenth of a second to put into tokens has far too many of them, mostly.
        """
        if sum(map(len, texts)) <= _FEW_CHARS_PER_TOKEN * self._max_prompt_tokens:
            return 0
        count = 0
        for text in texts:
            if self._form.collapse_whitespace:
                text = " ".join(text.split())  # noqa: PLW2901 - the same text, as it will be counted
            for piece in _pieces(unicodedata.normalize("NFC", text)):
                count += max(len(self._tokenizer.encode(piece)) - _CUT_TOKENS, 0)
                if count > self._max_prompt_tokens:
                    return count
        return count

    def check_system(self, system: str) -> None:
        """Make sure that a conversation can begin with `system`, as a message of the system.

        Raises:
            BadRequestError: the template has no place for one.
            TooLargeError: it alone is more than the model takes.
        """
        if self._template is None or not self._template.takes_system:
            raise no_place_for_system("this model")
        least = self.least_tokens((system,))
        if least > self._max_prompt_tokens:
            raise self._too_large(f"message of the system of at least {least} tokens", least)

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

    def tokenize_messages(self, messages: Sequence[ChatMessage], system: str | None = None) -> list[int]:
        """Token ids of a conversation up to where the answer begins.

        Args:
            system: begins it, in place of the package's own system message.

        Raises:
            BadRequestError: the template does not take it.
            ChatTemplateError: the template fails.
        """
        from edgeslm.runtime.chat_template import ChatMessage  # noqa: PLC0415

        assert self._template is not None  # noqa: S101 - whoever calls has one
        said = self._system if system is None else system
        first = [ChatMessage("system", said)] if said else []
        pieces = self._template.render([*first, *messages], special_tokens=self._special)
        return [token for piece in pieces for token in self._tokenizer.encode(piece)]


def _pieces(text: str) -> Iterator[str]:
    """`text` in pieces that begin with a word, where one begins soon enough."""
    start = 0
    while start < len(text):
        end = start + _PIECE_CHARS
        space = text.find(" ", end, end + _WORD_CHARS)
        end = end if space < 0 else space
        yield text[start:end]
        start = end
