"""The generation loop: prompt ids in, answer out, one token at a time.

Between two tokens, and between two prefill chunks, the loop asks `should_stop`; that is where cancellation,
deadlines and budgets act, at most one token late.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from edgeslm.runtime.engine import Engine
from edgeslm.runtime.sampling import SamplingSettings, TokenSampler
from edgeslm.runtime.tokenizer import TextStream, Tokenizer
from edgeslm.schema.message import FinishReason

OnText = Callable[[str], None]
"""Called with each new piece of text, on the computing thread."""

ShouldStop = Callable[[], FinishReason | None]
"""Asked between tokens: a reason ends the answer there."""


@dataclass(frozen=True)
class GenerationSettings:
    """How to answer.

    Attributes:
        max_tokens: most tokens of the answer, the stop token included.
        stop_tokens: ids that end the answer.
        stop: strings that end the answer; neither they nor what follows is part of it.
    """

    max_tokens: int
    stop_tokens: frozenset[int]
    sampling: SamplingSettings = field(default_factory=SamplingSettings)
    stop: tuple[str, ...] = ()


@dataclass(frozen=True)
class Generation:
    """An answer and how long its parts took.

    Attributes:
        prefill_s: seconds for all prompt tokens but the last.
        first_token_s: seconds from the start to the first token, or ``None`` if there was none.
        decode_s: seconds from the first token to the last.
        total_s: seconds in all.
    """

    text: str
    token_ids: tuple[int, ...]
    prompt_tokens: int
    finish_reason: FinishReason
    prefill_s: float
    first_token_s: float | None
    decode_s: float
    total_s: float


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


def _never() -> FinishReason | None:
    return None


def generate(
    engine: Engine,
    tokenizer: Tokenizer,
    prompt_ids: Sequence[int],
    settings: GenerationSettings,
    *,
    on_text: OnText | None = None,
    should_stop: ShouldStop = _never,
) -> Generation:
    """Answer `prompt_ids` from an empty cache.

    Args:
        prompt_ids: at least one; with `max_tokens` they have to fit into the engine's context.
        on_text: gets the answer piece by piece; the pieces joined are the answer.
        should_stop: see :data:`ShouldStop`.

    Raises:
        InferenceError: the runtime fails or computes values that are not finite.
    """
    sampler = TokenSampler(settings.sampling)
    stream = TextStream(tokenizer)
    stops = StopStrings(settings.stop)
    pieces: list[str] = []
    answer: list[int] = []

    def emit(text: str) -> None:
        if text:
            pieces.append(text)
            if on_text is not None:
                on_text(text)

    started = time.perf_counter()
    engine.reset()
    engine.prefill(prompt_ids[:-1], lambda: should_stop() is not None)
    prefilled = time.perf_counter()
    first_token_at: float | None = None
    token = prompt_ids[-1]
    reason = should_stop()
    while reason is None:
        token = sampler.choose(engine.step(token))
        answer.append(token)
        if first_token_at is None:
            first_token_at = time.perf_counter()
        if token in settings.stop_tokens:
            reason = "stop"
            break
        emit(stops.push(stream.push(token)))
        if stops.found:
            reason = "stop"
        elif len(answer) >= settings.max_tokens:
            reason = "length"
        else:
            reason = should_stop()
    emit(stops.push(stream.finish()))
    emit(stops.finish())
    ended = time.perf_counter()
    return Generation(
        text="".join(pieces),
        token_ids=tuple(answer),
        prompt_tokens=len(prompt_ids),
        finish_reason=reason,
        prefill_s=prefilled - started,
        first_token_s=None if first_token_at is None else first_token_at - started,
        decode_s=0.0 if first_token_at is None else ended - first_token_at,
        total_s=ended - started,
    )
