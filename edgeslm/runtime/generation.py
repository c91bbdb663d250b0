"""The generation loop: prompt ids in, answer out.

A turn of the loop computes what is not computed yet, chooses one token, and adds those that the answer's form forces
after it; where guessing pays, a turn checks several tokens at once (:mod:`edgeslm.runtime.speculation`). Whatever
the way, the tokens are those that choosing one after the other gives.

Between two turns, and between two prefill chunks, the loop asks `should_stop`; that is where cancellation,
deadlines and budgets act, at most one token late. An answer that is cut short is completed to its form without the
model, where it has one.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from edgeslm.errors import BadRequestError
from edgeslm.runtime.constraint import Grammar
from edgeslm.runtime.engine import Engine
from edgeslm.runtime.executor import Logits
from edgeslm.runtime.prefix_cache import Beginnings
from edgeslm.runtime.sampling import SamplingSettings, TokenSampler
from edgeslm.runtime.speculation import Copies, EarlierAnswers, Hope, Pace
from edgeslm.runtime.tokenizer import TextStream, Tokenizer, TokenText
from edgeslm.schema.message import FinishReason

OnText = Callable[[str], None]
"""Called with each new piece of text, on the computing thread."""

ShouldStop = Callable[[], FinishReason | None]
"""Asked between tokens: a reason ends the answer there. It may take its time, and compute other prompts meanwhile if it
sets the engine's sequence aside for as long. After it gave a reason the engine is not touched any more."""


@dataclass(frozen=True)
class GenerationSettings:
    """How to answer.

    Attributes:
        max_tokens: most tokens of the answer, the stop token included.
        stop_tokens: ids that end the answer.
        stop: strings that end the answer; neither they nor what follows is part of it.
        grammar: the form that the answer has to have.
    """

    max_tokens: int
    stop_tokens: frozenset[int]
    sampling: SamplingSettings = field(default_factory=SamplingSettings)
    stop: tuple[str, ...] = ()
    grammar: Grammar | None = None


@dataclass(frozen=True)
class Generation:
    """An answer and how long its parts took.

    Attributes:
        token_ids: chosen and forced ones, not those that only completed an answer that was cut short.
        prefill_s: seconds for all prompt tokens but the last, and for what the form forces right at the start.
        first_token_s: seconds from the start to the first token, or ``None`` if there was none; with what
            `should_stop` took.
        decode_s: seconds from the first token to the last; like `prefill_s` without what `should_stop` took.
        total_s: seconds in all.
        forced_tokens: tokens that the form left no choice about, and the model was not asked for.
        guessed_tokens: tokens that were guessed and checked.
        confirmed_tokens: of these, the ones that were right.
        cached_tokens: tokens of the prompt that were known and not computed.
        closed: of an answer with a form that was cut short, whether its text has the form all the same.
    """

    text: str
    token_ids: tuple[int, ...]
    prompt_tokens: int
    finish_reason: FinishReason
    prefill_s: float
    first_token_s: float | None
    decode_s: float
    total_s: float
    forced_tokens: int = 0
    guessed_tokens: int = 0
    confirmed_tokens: int = 0
    cached_tokens: int = 0
    closed: bool | None = None


class StopStrings:
    """Passes text on until a stop string appears, holding back what might be the start of one."""

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = [text for text in stop if text]
        self._pending = ""
        self.found = False

    def push(self, text: str) -> str:
        """The part of the text so far that is certainly before any stop string."""
        if self.found:
            return ""
        self._pending += text
        first = min((at for at in map(self._pending.find, self._stop) if at >= 0), default=None)
        if first is not None:
            self.found = True
            clear, self._pending = self._pending[:first], ""
            return clear
        held = max((self._overlap(stop) for stop in self._stop), default=0)
        cut = len(self._pending) - held
        clear, self._pending = self._pending[:cut], self._pending[cut:]
        return clear

    def finish(self) -> str:
        """What was held back for nothing."""
        clear, self._pending = ("" if self.found else self._pending), ""
        return clear

    def _overlap(self, stop: str) -> int:
        """Length of the longest start of `stop` that the pending text ends with."""
        longest = min(len(stop) - 1, len(self._pending))
        return next((n for n in range(longest, 0, -1) if self._pending.endswith(stop[:n])), 0)


def never() -> FinishReason | None:
    """No reason to stop."""
    return None


def generate(
    engine: Engine,
    tokenizer: Tokenizer,
    prompt_ids: Sequence[int],
    settings: GenerationSettings,
    *,
    on_text: OnText | None = None,
    should_stop: ShouldStop = never,
    pace: Pace | None = None,
    earlier: EarlierAnswers | None = None,
    prefixes: Beginnings | None = None,
) -> Generation:
    """Answer `prompt_ids`.

    Args:
        prompt_ids: at least one; with `max_tokens` they have to fit into the engine's context.
        on_text: gets the answer piece by piece; the pieces joined are the answer.
        should_stop: see :data:`ShouldStop`.
        pace: what was measured with this engine so far.
        earlier: earlier answers to guess from; this one is added.
        prefixes: what is known of prompts that begin alike; without it everything is computed anew.

    Raises:
        BadRequestError: a token of the prompt is none that the model knows.
        ConstraintError: the form cannot be followed any further.
        InferenceError: the runtime fails or computes values that are not finite.
    """
    unknown = next((token for token in prompt_ids if not 0 <= token < tokenizer.vocab_size), None)
    if unknown is not None:
        raise BadRequestError(
            f"token id {unknown} is none of the {tokenizer.vocab_size} that the model knows"
        )
    writer = _Writer(engine, tokenizer, settings, on_text, should_stop, pace or Pace(), prefixes)
    generation = writer.write(prompt_ids, earlier)
    if earlier is not None:
        earlier.add(generation.token_ids)
    return generation


class _EndedError(Exception):
    """The answer ended before its prompt was computed."""


class _Writer:
    """One answer while it grows."""

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer,
        settings: GenerationSettings,
        on_text: OnText | None,
        should_stop: ShouldStop,
        pace: Pace,
        prefixes: Beginnings | None,
    ) -> None:
        self._engine = engine
        self._prefixes = prefixes
        self._cached = 0
        self._settings = settings
        self._on_text = on_text
        self._should_stop = should_stop
        self._pace = pace
        self._sampler = TokenSampler(settings.sampling)
        grammar = settings.grammar
        self._matcher = None if grammar is None else grammar.start()
        self._stream: TokenText = TextStream(tokenizer) if grammar is None else grammar.text()
        self._stops = StopStrings(settings.stop)
        self._pieces: list[str] = []
        self._answer: list[int] = []
        self._copies: Copies | None = None
        self._hope = Hope()
        self._pending: list[int] = []
        """Tokens that are not in the engine's cache yet; the newest last."""
        self._reason: FinishReason | None = None
        self._first_token_at: float | None = None
        self._asked_s = 0.0
        """Seconds that `should_stop` took."""
        self._asked_first_s = 0.0
        self._forced = 0
        self._guessed = 0
        self._confirmed = 0

    def write(self, prompt_ids: Sequence[int], earlier: EarlierAnswers | None) -> Generation:
        started = time.perf_counter()
        self._begin(prompt_ids, earlier)
        prefill_s = time.perf_counter() - started - self._asked_s
        while self._reason is None:
            self._turn()
        closed = self._end()
        ended = time.perf_counter()
        first = self._first_token_at
        return Generation(
            text="".join(self._pieces),
            token_ids=tuple(self._answer),
            prompt_tokens=len(prompt_ids),
            finish_reason=self._reason,
            prefill_s=prefill_s,
            first_token_s=None if first is None else first - started,
            decode_s=0.0 if first is None else ended - first - (self._asked_s - self._asked_first_s),
            total_s=ended - started,
            forced_tokens=self._forced,
            guessed_tokens=self._guessed,
            confirmed_tokens=self._confirmed,
            cached_tokens=min(self._cached, len(prompt_ids)),
            closed=closed,
        )

    def _begin(self, prompt_ids: Sequence[int], earlier: EarlierAnswers | None) -> None:
        """Compute the prompt, together with what the form forces right at the start."""
        room = self._settings.max_tokens
        forced = [] if self._matcher is None else self._matcher.forced()[:room]
        begun = [*prompt_ids, *forced]
        if self._engine.verify_limit:
            self._copies = Copies(*(earlier.all() if earlier is not None else ()), prompt_ids)
        if self._prefixes is None or self._is_all(forced):
            self._engine.reset()
        if not self._is_all(forced):
            self._compute(begun)
        self._pending = begun[-1:]
        if self._reason is None:
            self._reason = self._ask()
        if self._reason is None:
            self._take_forced(forced)

    def _compute(self, begun: Sequence[int]) -> None:
        """Bring the engine to hold all of `begun` but the last."""

        def stop() -> bool:
            self._reason = self._ask()
            if self._reason is not None:
                raise _EndedError  # whoever ended it may have begun to compute something else with the engine
            return False

        with contextlib.suppress(_EndedError):
            if self._prefixes is None:
                self._engine.prefill(begun[:-1], stop)
            else:
                self._cached = self._prefixes.prefill(self._engine, begun, stop)

    def _is_all(self, forced: Sequence[int]) -> bool:
        """Whether `forced` is the whole answer: then the model need not be asked at all."""
        if self._settings.grammar is None or not forced:
            return False
        whole = self._settings.grammar.start()
        for token in forced:
            whole.accept(token)
        return whole.is_stopped

    def _turn(self) -> None:
        """Compute what is pending, with guesses where these pay, and take what follows."""
        guess = self._guess()
        base = self._engine.position + len(self._pending)
        rows = self._pace.verify(self._engine, [*self._pending, *guess]) if guess else None
        if rows is None:
            self._pending = self._extend(self._pace.append(self._engine, self._pending))
        else:
            confirmed = 0
            while True:
                new = self._extend(rows[len(self._pending) - 1 + confirmed])
                agreed = _common(guess[confirmed:], new)
                confirmed += agreed
                if self._reason is not None or agreed < len(new):
                    break
            self._engine.rewind(base + confirmed)
            self._hope.add(confirmed, len(guess))
            self._guessed += len(guess)
            self._confirmed += confirmed
            self._pending = new[agreed:]
        if self._reason is None:
            self._reason = self._ask()

    def _ask(self) -> FinishReason | None:
        began_s = time.perf_counter()
        reason = self._should_stop()
        self._asked_s += time.perf_counter() - began_s
        return reason

    def _guess(self) -> list[int]:
        if self._copies is None:
            return []
        room = min(
            self._settings.max_tokens - len(self._answer) - 1,
            self._engine.context_tokens - self._engine.position - len(self._pending),
        )
        limit = min(self._engine.verify_limit - len(self._pending), room)
        guess = self._copies.propose(limit) if limit > 0 else []
        return guess if guess and self._pace.pays(len(self._pending), len(guess), self._hope.share) else []

    def _extend(self, logits: Logits) -> list[int]:
        """Take the next token, and those that the form forces after it."""
        token = self._choose(logits)
        if self._matcher is not None:
            self._matcher.accept(token)
        self._take(token)
        if self._reason is not None or self._matcher is None:
            return [token]
        return [token, *self._take_forced(self._matcher.forced())]

    def _choose(self, logits: Logits) -> int:
        if self._matcher is None:
            return self._sampler.choose(logits)
        if self._sampler.is_greedy:
            # What the model wants is mostly allowed, and asking for one token is far cheaper than for all.
            token = self._sampler.choose(logits)
            if self._matcher.allows(token):
                return token
        return self._sampler.choose(logits, self._matcher.allowed())

    def _take_forced(self, tokens: Sequence[int]) -> list[int]:
        """Take what the form forces, as far as there is room; what was taken."""
        taken: list[int] = []
        for token in tokens:
            if self._reason is not None or self._matcher is None:
                break
            self._matcher.accept(token)
            self._take(token)
            taken.append(token)
        self._forced += len(taken)
        return taken

    def _take(self, token: int) -> None:
        """`token` is the next of the answer."""
        self._answer.append(token)
        if self._first_token_at is None:
            self._first_token_at = time.perf_counter()
            self._asked_first_s = self._asked_s
        if token in self._settings.stop_tokens:
            self._reason = "stop"
            return
        if self._copies is not None:
            self._copies.extend([token])
        self._emit(self._stops.push(self._stream.push(token)))
        if self._stops.found:
            self._reason = "stop"
        elif self._matcher is not None and self._matcher.is_stopped:
            self._reason = "schema"
        elif len(self._answer) >= self._settings.max_tokens:
            self._reason = "length"

    def _emit(self, text: str) -> None:
        if text:
            self._pieces.append(text)
            if self._on_text is not None:
                self._on_text(text)

    def _end(self) -> bool | None:
        """Give out what was held back; complete the answer to its form if it was cut short."""
        self._emit(self._stops.push(self._stream.finish()))
        self._emit(self._stops.finish())
        grammar = self._settings.grammar
        is_whole = self._reason == "schema" or (self._reason == "stop" and not self._stops.found)
        if grammar is None or is_whole:
            return None
        completion = grammar.complete("".join(self._pieces))
        self._emit(completion or "")
        return completion is not None


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens both begin with."""
    count = 0
    for one, other in zip(first, second, strict=False):
        if one != other:
            break
        count += 1
    return count
