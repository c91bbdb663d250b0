"""What the generation loop asks of an engine: tokens in, logits out, and the state of a sequence to take up later."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from edgeslm.runtime.executor import Arrays, Logits


@dataclass(frozen=True)
class KvState:
    """The caches of a sequence, to take it up again later.

    Attributes:
        tokens: the sequence.
        caches: the filled part of each cache; not to be written to.
    """

    tokens: tuple[int, ...]
    caches: Arrays

    @property
    def position(self) -> int:
        """Tokens in it."""
        return len(self.tokens)

    @property
    def size_bytes(self) -> int:
        """Memory that it takes."""
        return sum(cache.nbytes for cache in self.caches.values())


class Engine(Protocol):
    """Computes next-token logits over a growing sequence."""

    @property
    def context_tokens(self) -> int:
        """Most tokens that the cache holds."""

    @property
    def position(self) -> int:
        """Tokens that are in the cache."""

    def reset(self) -> None:
        """Forget the sequence."""

    def prefill(self, tokens: Sequence[int], should_stop: Callable[[], bool] | None = None) -> None:
        """Append `tokens` without computing logits; `should_stop` is asked between chunks."""

    def step(self, token: int) -> Logits:
        """Append `token`; logits of what follows, (vocab,) float32, valid until the next call."""

    def append(self, tokens: Sequence[int]) -> Logits:
        """Append `tokens`, at least one; logits of what follows the last, as :meth:`step` gives them."""

    def rewind(self, position: int) -> None:
        """Forget all but the first `position` tokens."""

    @property
    def verify_limit(self) -> int:
        """Most tokens that :meth:`verify` takes at once; 0 where the graph cannot."""

    def verify(self, tokens: Sequence[int]) -> Logits | None:
        """Append `tokens` in one go; logits after each of them, (tokens, vocab) float32, valid until the next call.

        ``None``, and nothing appended, where the graph cannot or they are too many for it.
        """

    def resume(self, tokens: Sequence[int]) -> int:
        """Forget all but what the sequence has in common with the beginning of `tokens`; how many these are.

        At least one of `tokens` is left to compute. 0 where too little is in common, or what is can't be had anymore.
        """

    def export_state(self) -> KvState:
        """A copy of the sequence's caches."""

    def import_state(self, state: KvState) -> None:
        """Take up the sequence that `state` holds in place of the present one."""

    def set_aside(self) -> AbstractContextManager[None]:
        """Within the block another sequence is computed, from none on; afterwards the present one goes on as it was.

        Raises:
            InferenceError: there is no memory for a second one; the present one goes on.
        """
