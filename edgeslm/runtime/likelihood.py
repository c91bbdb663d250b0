"""How likely a generative model holds each of several answers: classification without training.

A choice counts by the mean log-likelihood of its tokens and of the end after them, so that a long one is not worse off
than a short one, and ``on`` is told from ``on and off``. The prompt is computed once, and kept for all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeslm.errors import InferenceError, TooLargeError
from edgeslm.runtime.engine import Engine

_Row = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Likelihoods:
    """What was found.

    Attributes:
        logarithms: mean log-likelihood of each choice, in their order.
        cached_tokens: tokens of the prompt that did not have to be computed.
    """

    logarithms: tuple[float, ...]
    cached_tokens: int


def measure_likelihoods(
    engine: Engine,
    prompt: Sequence[int],
    choices: Sequence[Sequence[int]],
    end_tokens: frozenset[int],
    beat: Callable[[], None] = lambda: None,
) -> Likelihoods:
    """How likely each of `choices` follows `prompt`.

    Args:
        prompt: token ids, at least one.
        choices: token ids of each, at least one.
        end_tokens: any of which ends an answer; without one the end does not count.
        beat: called before each step; what it raises ends the work, and harms nothing.

    Raises:
        TooLargeError: prompt and choice exceed the context.
        InferenceError: the runtime fails.
    """
    longest = len(prompt) + max(map(len, choices))
    if longest > engine.context_tokens:
        raise TooLargeError(
            f"prompt and longest choice are {longest} tokens, the model takes {engine.context_tokens}",
            actual=longest,
            limit=engine.context_tokens,
            unit="tokens",
        )
    beat()
    cached = engine.resume(prompt)
    first = engine.append(prompt[cached:]).reshape(-1).astype(np.float64)
    found = []
    for choice in choices:
        _go_back(engine, prompt)
        found.append(_likelihood(engine, first, choice, end_tokens, beat))
    return Likelihoods(tuple(found), cached)


def _likelihood(
    engine: Engine,
    first: _Row,
    choice: Sequence[int],
    end_tokens: frozenset[int],
    beat: Callable[[], None],
) -> float:
    steps = [_logarithm(first, frozenset([choice[0]]))]
    wanted = [frozenset([token]) for token in choice[1:]] + ([end_tokens] if end_tokens else [])
    beat()
    rows = engine.verify(choice)
    if rows is not None:
        steps += [_logarithm(row, tokens) for row, tokens in zip(rows, wanted, strict=False)]
    else:
        for token, following in zip(choice, wanted, strict=False):
            beat()
            steps.append(_logarithm(engine.step(token), following))
    return float(np.mean(steps))


def _go_back(engine: Engine, prompt: Sequence[int]) -> None:
    """Leave the cache with `prompt` alone in it."""
    try:
        engine.rewind(len(prompt))
    except InferenceError:  # a ring went on too far; the prompt has to be computed again
        engine.reset()
        engine.append(prompt)


def _logarithm(logits: _Row, tokens: frozenset[int]) -> float:
    """Log-probability of any of `tokens`."""
    row = np.asarray(logits, np.float64).reshape(-1)
    top = row.max()
    chosen = row[[token for token in tokens if token < row.size]]
    with np.errstate(divide="ignore"):
        found = np.log(np.exp(chosen - top).sum()) - np.log(np.exp(row - top).sum())
    if np.isnan(found):
        raise InferenceError("a logit is not finite")
    return float(max(found, -1e4))
