"""Choosing the next token from logits: greedy, or temperature with top-k and top-p (nucleus) filtering."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgeslm.errors import InferenceError
from edgeslm.runtime.executor import Logits

_FEW = 1024


@dataclass(frozen=True)
class SamplingSettings:
    """How to choose.

    Attributes:
        temperature: 0 is greedy.
        top_k: keep the k likeliest; 0 keeps all.
        top_p: keep the likeliest up to this cumulative probability.
        seed: makes the choice repeatable; ``None`` draws one.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None


class TokenSampler:
    """Chooses tokens one after the other; the same seed and logits give the same choices."""

    def __init__(self, settings: SamplingSettings) -> None:
        self._settings = settings
        self._random = np.random.default_rng(settings.seed) if settings.temperature > 0 else None

    @property
    def is_greedy(self) -> bool:
        """Whether the likeliest token is always taken."""
        return self._random is None

    def choose(self, logits: Logits, allowed: npt.NDArray[np.int64] | None = None) -> int:
        """The next token id.

        Args:
            logits: (vocab,) float32.
            allowed: ids to choose among, ascending; ids beyond the vocabulary are passed over.

        Raises:
            InferenceError: the logits hold no finite maximum, so the graph computed rubbish.
        """
        if allowed is not None:
            allowed = allowed[: np.searchsorted(allowed, logits.size)]
            if not allowed.size:
                raise InferenceError("the graph's vocabulary is smaller than the tokenizer's")
            logits = logits[allowed]
        best = int(logits.argmax())
        if not np.isfinite(logits[best]):
            raise InferenceError("the graph computed logits that are not finite")
        chosen = best if self._random is None else self._draw(logits, self._random)
        return chosen if allowed is None else int(allowed[chosen])

    def _draw(self, logits: Logits, random: np.random.Generator) -> int:
        scores = logits.astype(np.float64) / self._settings.temperature
        ids = np.arange(scores.size)
        if 0 < self._settings.top_k < scores.size:
            ids = np.argpartition(scores, -self._settings.top_k)[-self._settings.top_k :]
            scores = scores[ids]
        weights = np.exp(scores - scores.max())
        weights /= weights.sum()
        if self._settings.top_p < 1.0:
            order = _likeliest(weights, self._settings.top_p)
            # The token that crosses the threshold stays in: there is always at least one.
            kept = order[: int(np.searchsorted(np.cumsum(weights[order]), self._settings.top_p)) + 1]
            ids, weights = ids[kept], weights[kept] / weights[kept].sum()
        return int(ids[random.choice(ids.size, p=weights)])


def _likeliest(weights: npt.NDArray[np.float64], share: float) -> npt.NDArray[np.int64]:
    """Places of the largest weights in falling order, as many as hold `share` of the whole or more."""
    if weights.size > 4 * _FEW:
        # Mostly a few hold it, and sorting a large vocabulary takes as long as a small model's step.
        few = np.argpartition(weights, -_FEW)[-_FEW:]
        if weights[few].sum() >= share:
            return few[np.argsort(-weights[few], kind="stable")]
    return np.argsort(-weights, kind="stable")
