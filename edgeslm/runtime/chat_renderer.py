"""A conversation in the form of a package's chat template, and how one is checked when a package is made."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, lru_cache, partial
from pathlib import Path

from edgeslm.errors import ChatTemplateError
from edgeslm.runtime.chat_template import MAX_TEMPLATE_CHARS, ChatMessage, ChatTemplate
from edgeslm.runtime.conversation import Turn
from edgeslm.runtime.generation import Generation
from edgeslm.runtime.prefix_cache import common_length
from edgeslm.runtime.prompt import PromptEncoder
from edgeslm.runtime.tokenizer import Tokenizer, open_tokenizer
from edgeslm.schema.package import ChatTemplateSpec, Manifest, TokenizerSpec

_KNOWN_SYSTEMS = 8
"""So many messages of the system are remembered with what they begin conversations with."""
_PROBES = ("A", "7")
"""Questions that no token begins both of."""


class ChatRenderer:
    """`Renderer` for packages with a chat template: all turns are rendered anew, as the template has them."""

    def __init__(self, encoder: PromptEncoder, system: str | None = None) -> None:
        """Take the parts.

        Args:
            system: begins each conversation, in place of the package's own system message.
        """
        self._encoder = encoder
        self._system = system
        self._with = lru_cache(_KNOWN_SYSTEMS)(partial(type(self), encoder))

    def with_system(self, system: str | None) -> ChatRenderer:
        """See ``Renderer``."""
        if system is None:
            return self
        self._encoder.check_system(system)
        return self._with(system)

    @cached_property
    def beginning(self) -> Sequence[int]:
        """See ``Renderer``: what conversations have in common that differ from the user's first word on."""
        if self._system is None:
            return ()
        one, other = (self.render((), probe) for probe in _PROBES)
        return one[: common_length(one, other)]

    @property
    def max_chars(self) -> int:
        """See ``Renderer``."""
        return self._encoder.max_chars

    def least_tokens(self, texts: Sequence[str]) -> int:
        """See ``Renderer``."""
        return self._encoder.least_tokens(texts)

    def clean(self, prompt: str) -> str:
        """See ``Renderer``."""
        return self._encoder.clean(prompt)

    def render(self, turns: Sequence[Turn], prompt: str) -> list[int]:
        """See ``Renderer``."""
        messages = []
        for turn in turns:
            messages += [ChatMessage("user", self.clean(turn.prompt)), ChatMessage("assistant", turn.answer)]
        return self._encoder.tokenize_messages([*messages, ChatMessage("user", prompt)], self._system)

    def turn(self, prompt: str, generation: Generation) -> Turn:
        """See ``Renderer``."""
        return Turn(prompt, generation.text)


def open_chat(
    manifest: Manifest, tokenizer: TokenizerSpec, spec: ChatTemplateSpec, file: Callable[[str], Path]
) -> tuple[Tokenizer, PromptEncoder, ChatRenderer]:
    """The tokenizer and the chat template of a package, and what puts its conversations together.

    Args:
        tokenizer, spec: what the manifest says of them.
        file: where the member of that name is.

    Raises:
        ChatTemplateError: the template is none, may not be run, or does not go with tokenizer or manifest.
        ModelLoadError: the tokenizer cannot be opened.
    """
    path = file(spec.file)
    template = read_template(spec, path)
    opened = open_tokenizer(
        tokenizer,
        file(tokenizer.file),
        manifest.prompt,
        manifest.stop_tokens,
        markup=template.samples,
    )
    special = opened.special_tokens()
    for name, token in (("bos_token", spec.bos_token), ("eos_token", spec.eos_token)):
        if token and token not in special:
            raise ChatTemplateError(f"{name} '{token}' is no special token of the tokenizer", path=str(path))
    encoder = PromptEncoder(
        manifest.prompt, opened, manifest.max_prompt_tokens, template=template, system=spec.system
    )
    return opened, encoder, ChatRenderer(encoder)


def read_template(spec: ChatTemplateSpec, path: Path) -> ChatTemplate:
    """The chat template in the file at `path`.

    Raises:
        ChatTemplateError: it cannot be read, is none, may not be run, or has no place for the package's system message.
    """
    try:
        with path.open("rb") as file:
            text = file.read(4 * MAX_TEMPLATE_CHARS + 1).decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ChatTemplateError(f"chat template: it cannot be read: {error}", path=str(path)) from error
    template = ChatTemplate(text, path=str(path), bos_token=spec.bos_token, eos_token=spec.eos_token)
    if spec.system and not template.takes_system:
        raise ChatTemplateError(
            "chat template: it has no place for the system message of the package",
            path=str(path),
            hint="Leave out 'system', or take a template that puts it into the first message",
        )
    return template


def examine(manifest: Manifest, files: Mapping[str, Path]) -> None:
    """Make sure that a package that is about to be written has a chat template that goes with its tokenizer.

    Args:
        files: the file that is stored under each name.

    Raises:
        ChatTemplateError, ModelLoadError: as for :func:`open_chat`.
    """
    if manifest.chat_template is not None and manifest.tokenizer is not None:
        open_chat(manifest, manifest.tokenizer, manifest.chat_template, files.__getitem__)
