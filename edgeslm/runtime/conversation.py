"""From earlier turns and a new prompt to token ids that the model has room for. Pure.

How turns are put together is a renderer's business. What is decided here is what to do when they are too many: refuse
them by name, or leave out the oldest. What stands before the first turn (a system prompt, a block of examples) is
rendered anew for the turns that stay, so it is never what is left out.

Left to others: which turns there are (:mod:`edgeslm.agent.sessions`), and that what was computed once is not computed
again (:mod:`edgeslm.runtime.prefix_cache`).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol, Self

from edgeslm.errors import BadRequestError, ContextOverflowError
from edgeslm.runtime.generation import Generation
from edgeslm.runtime.prompt import PromptEncoder, normal_text
from edgeslm.runtime.tokenizer import Tokenizer
from edgeslm.schema.message import Overflow, PromptRequest
from edgeslm.schema.package import Manifest

_SLACK = 4
"""Where turns have to go, so many go that this part of the context is free: what remains is computed anew at its new
places, which shall not happen at each turn."""
_WORD_CHARS = 32
"""A prompt that is cut begins with a whole word, where one begins so soon after the cut."""
_TURN_BYTES, _TOKEN_BYTES = 400, 36
"""Memory that a turn takes without its text, and a token of it, in CPython."""


@dataclass(frozen=True)
class Turn:
    """One prompt and its answer.

    Attributes:
        prompt: as the model was asked.
        answer: its text.
        token_ids: both with what the package puts around them, as they were computed; empty where a renderer goes by
            the text.
    """

    prompt: str
    answer: str
    token_ids: tuple[int, ...] = ()

    @property
    def size_bytes(self) -> int:
        """About the memory that it takes."""
        return _TURN_BYTES + 4 * (len(self.prompt) + len(self.answer)) + _TOKEN_BYTES * len(self.token_ids)


@dataclass(frozen=True)
class Spoken:
    """What a request says.

    Attributes:
        prompt: what is asked now.
        turns: what was said before, as the request has it.
        system: how to answer, in place of what the package says; ``None`` leaves it to that.
    """

    prompt: str
    turns: tuple[Turn, ...] = ()
    system: str | None = None


def spoken(request: PromptRequest) -> Spoken:
    """What `request` says, as a prompt or in messages.

    Raises:
        BadRequestError: a message is no Unicode text.
    """
    if request.messages is None:
        return Spoken(request.prompt)
    texts = [normal_text(message.content, f"message {at}") for at, message in enumerate(request.messages, 1)]
    system = texts.pop(0) if request.messages[0].role == "system" else None
    *before, prompt = texts
    turns = tuple(Turn(asked, answer) for asked, answer in zip(before[::2], before[1::2], strict=True))
    return Spoken(prompt, turns, system)


def check_messages(request: PromptRequest, manifest: Manifest) -> None:
    """Make sure that the model of `manifest` has a form for what `request` brings.

    Raises:
        BadRequestError: it brings messages, and the package does not say how they are put together.
    """
    if request.messages is not None and not manifest.takes_messages:
        raise _no_form(f"{manifest.name}@{manifest.version}")


def _no_form(name: str) -> BadRequestError:
    return BadRequestError(
        f"{name} has no form for messages: its package has no chat template",
        hint="Send a 'prompt', with a 'session' for what was said before, or ask a model whose info says 'messages'",
    )


class Renderer(Protocol):
    """Puts a conversation into the form that a model was trained on."""

    @property
    def max_chars(self) -> int:
        """A prompt of more characters is certainly longer than the model takes."""

    def least_tokens(self, texts: Sequence[str]) -> int:
        """So many tokens `texts` have for certain; found fast, so that it may be far less than they have."""

    @property
    def beginning(self) -> Sequence[int]:
        """Token ids that what :meth:`with_system` says puts at the beginning of each conversation, else none."""

    def with_system(self, system: str | None) -> Self:
        """The same, with `system` in place of the package's own message of the system; itself for ``None``.

        Raises ``BadRequestError`` where there is no place for one.
        """

    def clean(self, prompt: str) -> str:
        """`prompt` as it will be rendered, or ``BadRequestError`` where it is no prompt."""

    def render(self, turns: Sequence[Turn], prompt: str) -> list[int]:
        """Token ids of `turns` and the clean `prompt`, up to where the answer begins."""

    def turn(self, prompt: str, generation: Generation) -> Turn:
        """What to remember of the clean `prompt` and its answer."""


class PlainRenderer:
    """`Renderer` for packages without a chat template: each turn in the package's form, one after the other."""

    def __init__(self, encoder: PromptEncoder, tokenizer: Tokenizer, stop_tokens: Sequence[int]) -> None:
        """Take the parts.

        Args:
            stop_tokens: ids that end an answer; the first is put where an answer ended without one.
        """
        self._encoder = encoder
        self._tokenizer = tokenizer
        self._stop_tokens = tuple(stop_tokens)
        self._special = tokenizer.special_tokens()

    @property
    def max_chars(self) -> int:
        """See ``Renderer``."""
        return self._encoder.max_chars

    def least_tokens(self, texts: Sequence[str]) -> int:
        """See ``Renderer``."""
        return self._encoder.least_tokens(texts)

    @property
    def beginning(self) -> Sequence[int]:
        """See ``Renderer``."""
        return ()

    def with_system(self, system: str | None) -> Self:
        """See ``Renderer``."""
        if system is not None:
            raise _no_form("this model")
        return self

    def clean(self, prompt: str) -> str:
        """See ``Renderer``."""
        return self._encoder.clean(prompt)

    def render(self, turns: Sequence[Turn], prompt: str) -> list[int]:
        """See ``Renderer``; a turn that was never computed here has no form."""
        if not all(turn.token_ids for turn in turns):
            raise _no_form("this model")
        before = [token for turn in turns for token in turn.token_ids]
        return before + self._encoder.tokenize(prompt)

    def turn(self, prompt: str, generation: Generation) -> Turn:
        """See ``Renderer``."""
        answer = list(generation.token_ids)
        is_plain = not any(special in generation.text for special in self._special)
        if is_plain and not _says_all(generation, self._stop_tokens):
            answer = self._tokenizer.encode(generation.text)
        if self._stop_tokens and answer[-1:] not in [[token] for token in self._stop_tokens]:
            answer.append(self._stop_tokens[0])
        return Turn(prompt, generation.text, (*self._encoder.tokenize(prompt), *answer))


def _says_all(generation: Generation, stop_tokens: Sequence[int]) -> bool:
    """Whether the answer's tokens say its text: not so where a stop string was cut off, or its form completed."""
    if generation.finish_reason == "stop":
        return generation.token_ids[-1:] != () and generation.token_ids[-1] in stop_tokens
    return generation.closed is None


@dataclass(frozen=True)
class Fitted:
    """A conversation that there is room for.

    Attributes:
        token_ids: of all of it, up to where the answer begins.
        prompt: the clean prompt that is part of it.
        dropped_turns: turns left out, the oldest ones.
        dropped_chars: characters left out at the beginning of the prompt.
    """

    token_ids: list[int]
    prompt: str
    dropped_turns: int = 0
    dropped_chars: int = 0


def fit(
    renderer: Renderer,
    turns: Sequence[Turn],
    prompt: str,
    *,
    limit: int,
    room: int,
    overflow: Overflow,
) -> Fitted:
    """Put `prompt` after `turns`, as far as there is room.

    Args:
        limit: most tokens of a prompt with all before it.
        room: tokens that leave place for the whole answer; at most `limit`. With ``error``, an answer rather becomes
            shorter than a prompt is refused; with ``slide``, old turns rather go.
        overflow: what to do when it is too long.

    Raises:
        BadRequestError: `prompt` is none.
        ContextOverflowError: too long, and nothing may be left out.
    """
    most_chars = renderer.max_chars
    ahead = max(len(prompt) - most_chars, 0)
    if ahead > 0:
        if overflow == "error":
            raise _too_long(len(prompt), most_chars, "characters", limit, turns)
        # Nothing of that can stay, and to look at it could take seconds.
        fitted = fit(renderer, turns, prompt[ahead:], limit=limit, room=room, overflow=overflow)
        return replace(fitted, dropped_chars=fitted.dropped_chars + ahead)
    said = [text for turn in turns for text in (turn.prompt, turn.answer)]
    least = renderer.least_tokens([*said, prompt])
    if least > limit and overflow == "error":
        raise _too_long(least, limit, "tokens", limit, turns, "at least ")
    asked = renderer.clean(prompt)
    if least > limit:
        return _without_turns(renderer, turns, asked, limit, room) or _end_of(
            renderer, asked, limit, room, len(turns)
        )
    ids = renderer.render(turns, asked)
    if len(ids) <= (limit if overflow == "error" else room):
        return Fitted(ids, asked)
    if overflow == "error":
        raise _too_long(len(ids), limit, "tokens", limit, turns)
    return _without_turns(renderer, turns, asked, limit, room) or _end_of(
        renderer, asked, limit, room, len(turns)
    )


def _end_of(renderer: Renderer, asked: str, limit: int, room: int, turns: int) -> Fitted:
    """The end of `asked`, without any of so many turns."""
    cut = _first(len(asked) - 1, lambda count: len(renderer.render((), _tail(asked, count))) <= room)
    rest = _tail(asked, cut)
    ids = renderer.render((), rest)
    if len(ids) > limit:
        raise ContextOverflowError(
            f"what the model's package puts around a prompt is {len(ids)} tokens, the model takes {limit}",
            actual=len(ids),
            limit=limit,
            unit="tokens",
            turns=0,
            hint="No prompt can be answered with it",
        )
    return Fitted(ids, rest, turns, len(asked) - len(rest))


def _without_turns(
    renderer: Renderer, turns: Sequence[Turn], asked: str, limit: int, room: int
) -> Fitted | None:
    """The conversation without as many of its oldest turns as need be; ``None`` if `asked` is too long by itself."""

    def fits(dropped: int, goal: int) -> bool:
        left = turns[dropped:]
        said = [text for turn in left for text in (turn.prompt, turn.answer)]
        return renderer.least_tokens([*said, asked]) <= goal and len(renderer.render(left, asked)) <= goal

    for goal in (room - limit // _SLACK, room):
        dropped = _first(len(turns), partial(fits, goal=goal))
        if dropped < len(turns):
            return Fitted(renderer.render(turns[dropped:], asked), asked, dropped)
    ids = renderer.render((), asked)
    return Fitted(ids, asked, len(turns)) if len(ids) <= limit else None


def _first(most: int, holds: Callable[[int], bool]) -> int:
    """The lowest number up to `most` for which `holds`, which stays true once it is; `most` where there is none."""
    return bisect_left(range(most), True, key=holds)


def _tail(text: str, cut: int) -> str:
    """`text` without its first `cut` characters, and without the rest of a word that they end in."""
    tail = text[cut:]
    if cut == 0 or text[cut - 1].isspace() or tail[:1].isspace():
        return tail.lstrip() or tail
    space = next((at for at, char in enumerate(tail[:_WORD_CHARS]) if char.isspace()), None)
    return tail if space is None else tail[space:].lstrip() or tail


def _too_long(
    actual: int, most: int, unit: str, limit: int, turns: Sequence[Turn], how_many: str = ""
) -> ContextOverflowError:
    what = f"prompt and {len(turns)} earlier turns" if turns else "prompt"
    taken = f"{limit}" if unit == "tokens" else f"{limit} tokens"
    other = " leave out earlier turns or begin another session," if turns else ""
    return ContextOverflowError(
        f"{what} of {how_many}{actual} {unit}, the model takes {taken}",
        actual=actual,
        limit=most,
        unit=unit,
        turns=len(turns),
        hint=f"Shorten it,{other} or ask with overflow 'slide', which leaves out the oldest",
    )
