"""The chat template of a package: a conversation -> the text that its model was trained on.

The template is what tokenizers of the ``transformers`` library carry: Jinja2 over ``messages``, ``bos_token``,
``eos_token`` and ``add_generation_prompt``, with ``raise_exception`` and ``strftime_now``. Its conditions, loops,
macros, namespaces and methods of text work; a call into anything else does not.

What always holds:

* A template is hostile input: it runs in Jinja's sandbox, and everything that it makes is counted
  (:mod:`edgeslm.runtime.chat_sandbox`). One without an end is stopped and named within a tenth of a second.
* What a message says is text. Where it spells a special token, :meth:`ChatTemplate.render` cuts the token in two:
  only the template itself can say one.

Left to others: which messages a conversation has, and the tokens (:mod:`edgeslm.runtime.prompt`).

Source: Hugging Face, "Chat templates: advanced usage".
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from typing import Literal

from edgeslm.errors import BadRequestError, ChatTemplateError, TooLargeError
from edgeslm.runtime.chat_sandbox import (
    CPU_S_PER_MESSAGE,
    MAX_CPU_S,
    Refusal,
    Spent,
    compile_template,
    run_template,
)

MAX_TEMPLATE_CHARS = 32_768
"""The longest published ones have half of that."""
MAX_MESSAGES = 1024
MAX_CONVERSATION_CHARS = 524_288
_CUT = "\ufdd0"
"""Marks where a text is to be tokenized in parts; a noncharacter (Unicode 23.7), that no text holds."""

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True)
class ChatMessage:
    """One message of a conversation."""

    role: Role
    content: str


_USER = ChatMessage("user", "Is the door of the shed locked?")
_ANSWER = ChatMessage("assistant", "It is open.")
_SYSTEM = ChatMessage("system", "Answer in one sentence.")
_CONVERSATIONS = {
    "one question": (_USER,),
    "three messages": (_USER, _ANSWER, ChatMessage("user", "Since when?")),
}


class ChatTemplate:
    """A template that was tried on short conversations.

    Attributes:
        takes_system: it has a place for a system message.
        samples: what it made of the conversations that it was tried on.
    """

    def __init__(self, text: str, *, path: str, bos_token: str = "", eos_token: str = "") -> None:
        """Check `text`, and try it.

        Args:
            path: for errors.
            bos_token: begins a text, where the template says so.
            eos_token: ends an answer, where the template says so.

        Raises:
            ChatTemplateError: it is no template, may not be run, or loses what a message says.
        """
        self._path = path
        self._tokens = {"bos_token": bos_token, "eos_token": eos_token}
        if len(text) > MAX_TEMPLATE_CHARS:
            raise self._fault(f"{len(text)} characters; at most {MAX_TEMPLATE_CHARS} are taken")
        try:
            self._template = compile_template(text)
        except Spent as error:
            raise self._fault(str(error)) from error
        samples = [self._try(name, messages) for name, messages in _CONVERSATIONS.items()]
        try:
            samples.append(self._try("a system message", (_SYSTEM, _USER)))
            self.takes_system = True
        except ChatTemplateError:
            # Many refuse one, or leave it out; that only matters to a package that has one.
            self.takes_system = False
        self.samples = tuple(samples)

    def render(
        self,
        messages: Sequence[ChatMessage],
        *,
        special_tokens: Collection[str] = (),
        add_generation_prompt: bool = True,
    ) -> tuple[str, ...]:
        """The text of a conversation, in pieces that are tokenized each for itself.

        Joined they are the text. There is a single one unless a message spells a special token.

        Args:
            special_tokens: texts that the tokenizer takes for special tokens.
            add_generation_prompt: whether an answer follows.

        Raises:
            BadRequestError: the template does not take such a conversation, and says why.
            TooLargeError: more messages or characters than any model takes.
            ChatTemplateError: the template fails, or does not come to an end.
        """
        chars = sum(len(message.content) for message in messages)
        _bound("messages", len(messages), MAX_MESSAGES)
        _bound("characters", chars, MAX_CONVERSATION_CHARS)
        given = [
            {"role": message.role, "content": cut_special_tokens(message.content, special_tokens)}
            for message in messages
        ]
        # A board is a tenth as fast as what the templates are bounded for, and a conversation grows.
        cpu_s = MAX_CPU_S + CPU_S_PER_MESSAGE * len(messages)
        return tuple(filter(None, self._run(given, add_generation_prompt, cpu_s).split(_CUT)))

    def _run(self, messages: list[dict[str, str]], add_generation_prompt: bool, cpu_s: float) -> str:
        context = {
            **self._tokens,
            "messages": messages,
            "add_generation_prompt": add_generation_prompt,
            "tools": None,
            "documents": None,
        }
        try:
            return run_template(self._template, context, now=datetime.now, cpu_s=cpu_s)
        except Refusal as error:
            raise BadRequestError(f"the model does not take such a conversation: {error}") from error
        except Spent as error:
            raise self._fault(str(error)) from error

    def _try(self, name: str, messages: Sequence[ChatMessage]) -> str:
        given = [{"role": message.role, "content": message.content} for message in messages]
        try:
            made = self._run(given, True, MAX_CPU_S)
        except BadRequestError as error:
            raise self._fault(f"tried with {name}: {error}") from error
        lost = next((message for message in messages if message.content not in made), None)
        if lost is not None:
            raise self._fault(f"tried with {name}: what the {lost.role} said is not in the text")
        return made

    def _fault(self, text: str) -> ChatTemplateError:
        return ChatTemplateError(f"chat template: {text}", path=self._path)


def _bound(unit: str, actual: int, limit: int) -> None:
    if actual > limit:
        raise TooLargeError(
            f"a conversation of {actual} {unit}, at most {limit} are taken",
            actual=actual,
            limit=limit,
            unit=unit,
        )


def cut_special_tokens(text: str, special_tokens: Collection[str]) -> str:
    """`text` with a mark inside each special token that it spells, alone or with what may stand around it.

    Raises:
        BadRequestError: a special token of one character, which cannot be cut.
    """
    cuts = set()
    start, end = len(text) - len(text.lstrip()), len(text.rstrip())
    for token in special_tokens:
        for at in _found(text, token):
            if len(token) == 1:
                raise BadRequestError(f"the prompt contains the special token {token}")
            cuts.add(at + 1)
        for length in range(1, len(token)):
            # The template could complete a token that a message begins, or begin one that it completes.
            if text.startswith(token[length:], start):
                cuts.add(start)
            if text.endswith(token[:length], 0, end):
                cuts.add(end)
    places = [0, *sorted(cuts), len(text)]
    return _CUT.join(text[a:b] for a, b in pairwise(places))


def _found(text: str, token: str) -> Iterator[int]:
    at = text.find(token)
    while at >= 0:
        yield at
        at = text.find(token, at + 1)
