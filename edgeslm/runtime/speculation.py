"""More than one token a step, where that pays on this board: what is known beforehand, and what is guessed.

Known beforehand are the tokens that a constraint forces. Guessed are copies: where the last few tokens stand
earlier in the prompt, in the answer or in an earlier answer, what followed there is proposed, and the model checks
all of it in one go (prompt lookup, after Saxena 2023). A guess never changes an answer: a token is taken only where
the model itself says it.

Nothing here is settled beforehand: :class:`Pace` measures what one token, several known ones and several guessed
ones take, and leaves out what is slower than one by one; now and then it looks again.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Sequence

from edgeslm.runtime.engine import Engine
from edgeslm.runtime.executor import Logits

_GRAMS = (4, 3, 2)
"""How many of the last tokens have to stand somewhere else as well; long matches are looked for first."""
_SEPARATOR = -1
_MAX_REMEMBERED = 2_048
_FIRST_HOPE = 0.75
_LOOK_AGAIN = 32
"""After so many occasions that were left out, one is taken again to measure it."""


class Average:
    """A running mean that follows changes but no single outlier: the machine has other work as well."""

    def __init__(self) -> None:
        self.value = 0.0
        self.count = 0

    def add(self, value: float) -> None:
        """One more measurement."""
        self.count += 1
        if self.count > 1:
            value = min(value, 4 * self.value) if self.value > 0 else value
        self.value += (value - self.value) / min(self.count, 8)


class Pace:
    """What computing takes with this engine, and which way is the fastest."""

    def __init__(self) -> None:
        self._step = Average()
        self._known: dict[int, Average] = {}
        self._known_left_out = 0
        self._guess = Average()
        self._guesses_left_out = 0

    def append(self, engine: Engine, tokens: Sequence[int]) -> Logits:
        """Append `tokens`, together or one by one; logits of what follows.

        Raises:
            InferenceError: what the engine raises.
        """
        if len(tokens) > 1 and not self._are_slower_together(len(tokens)):
            started = time.perf_counter()
            logits = engine.append(tokens)
            self._known.setdefault(len(tokens).bit_length(), Average()).add(time.perf_counter() - started)
            return logits
        for token in tokens[:-1]:
            self._timed_step(engine, token)
        return self._timed_step(engine, tokens[-1])

    def _timed_step(self, engine: Engine, token: int) -> Logits:
        started = time.perf_counter()
        logits = engine.step(token)
        self._step.add(time.perf_counter() - started)
        return logits

    def _are_slower_together(self, count: int) -> bool:
        together = self._known.get(count.bit_length())
        if together is None or together.count < 2 or not self._step.count:  # the first warms up
            return False
        if together.value <= count * self._step.value:
            return False
        self._known_left_out += 1
        return self._known_left_out % _LOOK_AGAIN != 0

    def pays(self, pending: int, guessed: int, hope: float) -> bool:
        """Whether checking a guess is probably faster than the plain way.

        Args:
            pending: tokens that have to be computed anyway, at least one.
            guessed: tokens of the guess.
            hope: share of a guess that was right lately.
        """
        if self._guess.count < 2 or not self._step.count:  # the first warms up
            return True
        if (pending + hope * guessed) * self._step.value > self._guess.value:
            return True
        self._guesses_left_out += 1
        return self._guesses_left_out % _LOOK_AGAIN == 0

    def verify(self, engine: Engine, tokens: Sequence[int]) -> Logits | None:
        """:meth:`Engine.verify`, measured."""
        started = time.perf_counter()
        rows = engine.verify(tokens)
        self._guess.add(time.perf_counter() - started)
        return rows

    def figures(self) -> dict[str, float]:
        """What was measured, for people who wonder: seconds of a step, and of checking a guess."""
        return {"step_s": self._step.value, "guess_s": self._guess.value}


class Hope:
    """Which share of the guesses is right; anew for each answer, since some copy and others do not."""

    def __init__(self) -> None:
        self.share = _FIRST_HOPE

    def add(self, confirmed: int, guessed: int) -> None:
        """So many tokens of a guess were right."""
        self.share += (confirmed / guessed - self.share) / 4


class Copies:
    """Where in what was said before the last few tokens stand, and what followed there."""

    def __init__(self, *sequences: Iterable[int]) -> None:
        self._tokens: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}
        for number, sequence in enumerate(sequences):
            self.extend([_SEPARATOR, *sequence] if number else sequence)

    def extend(self, tokens: Iterable[int]) -> None:
        """`tokens` come next."""
        for token in tokens:
            at = len(self._tokens)
            # What ends before this token is only now followed by something.
            for size in _GRAMS:
                if at >= size:
                    self._after[tuple(self._tokens[at - size :])] = at
            self._tokens.append(token)

    def propose(self, limit: int) -> list[int]:
        """What probably comes next: at most `limit` tokens, often none."""
        for size in _GRAMS:
            at = self._after.get(tuple(self._tokens[-size:])) if len(self._tokens) >= size else None
            if at is not None:
                found = self._tokens[at : at + limit]
                return found[: found.index(_SEPARATOR)] if _SEPARATOR in found else found
        return []


class EarlierAnswers:
    """The last answers' tokens, for :class:`Copies`."""

    def __init__(self) -> None:
        self._answers: deque[tuple[int, ...]] = deque()

    def all(self) -> list[tuple[int, ...]]:
        """The answers, the oldest first."""
        return list(self._answers)

    def add(self, answer: tuple[int, ...]) -> None:
        """One more; the oldest go."""
        self._answers.append(answer[:_MAX_REMEMBERED])
        while sum(map(len, self._answers)) > _MAX_REMEMBERED:
            self._answers.popleft()
