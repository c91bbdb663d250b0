"""A graph with a KV cache as an engine: tokens in, logits out.

Follows the LiteRT community's convention for generative models: signatures ``prefill_<n>`` and ``decode`` that
take ``tokens`` (1, n) int32, ``input_pos`` (n,) int32, optionally ``mask`` (1, 1, n, context) float32, and the
caches ``kv_cache_k_<i>``/``kv_cache_v_<i>``, and give back the caches; ``decode`` also gives ``logits``. Who
computes a signature, and where the caches lie, is an executor's business (:mod:`edgeslm.runtime.executor`).

The cache is written at ``input_pos``; what lies beyond the position is never attended to (the mask hides it), so
a prefill chunk may be padded. DYNAMIC_UPDATE_SLICE clamps its start, therefore a padded chunk must still fit:
position + chunk <= context, else the tokens go one by one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np

from edgeslm.errors import InferenceError
from edgeslm.runtime.executor import KV_PREFIX, Arrays, GraphExecutor, Logits, Shape

_PREFILL = re.compile(r"^prefill(?:_\d+)?$")
_HIDDEN = np.float32(-0.7 * float(np.finfo(np.float32).max))
"""Added to a score to hide it; LiteRT's own value: large, yet two of them add up without overflow."""


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


def plan_chunks(count: int, position: int, context_tokens: int, sizes: Sequence[int]) -> list[int]:
    """How many tokens each prefill call takes; an entry 1 that is no member of `sizes` is a decode step.

    The largest size that is filled entirely goes first; the rest goes into the smallest that holds it, padded, if
    the padded chunk still fits into the context.

    Args:
        count: tokens to append, with `position` + `count` <= `context_tokens`.
        position: tokens already there.
        context_tokens: room in all.
        sizes: lengths of the prefill signatures, any order.
    """
    ascending = sorted(sizes)
    chunks: list[int] = []
    while count > 0:
        room = context_tokens - position
        fitting = [size for size in ascending if size <= room]
        holding = [size for size in fitting if size >= count]
        if holding:
            taken = count
        elif fitting:
            taken = fitting[-1]
        else:
            taken = 1
        chunks.append(taken)
        count -= taken
        position += taken
    return chunks


class KvEngine:
    """`Engine` over an executor."""

    def __init__(self, executor: GraphExecutor) -> None:
        self._executor = executor
        decode = executor.inputs("decode")
        self._has_mask = "mask" in decode
        self._context_tokens = _find_context(decode)
        self._prefill_names = {
            executor.inputs(name)["tokens"][-1]: name for name in executor.signatures if _PREFILL.match(name)
        }
        self._position = 0
        self._token = np.zeros((1, 1), np.int32)
        self._pos = np.zeros((1,), np.int32)
        self._mask = np.full((1, 1, 1, self._context_tokens), _HIDDEN, np.float32)

    @property
    def context_tokens(self) -> int:
        """Most tokens that the cache holds."""
        return self._context_tokens

    @property
    def position(self) -> int:
        """Tokens that are in the cache."""
        return self._position

    def reset(self) -> None:
        """Forget the sequence. Stale cache contents stay: the mask hides them until they are overwritten."""
        self._position = 0

    def _room_for(self, count: int) -> None:
        if self._position + count > self._context_tokens:
            raise InferenceError(
                f"{self._position} + {count} tokens exceed the context of {self._context_tokens}"
            )

    def prefill(self, tokens: Sequence[int], should_stop: Callable[[], bool] | None = None) -> None:
        """Append `tokens` without computing logits; `should_stop` is asked between chunks.

        Raises:
            InferenceError: they do not fit, or the runtime fails.
        """
        self._room_for(len(tokens))
        start = 0
        for taken in plan_chunks(
            len(tokens), self._position, self._context_tokens, list(self._prefill_names)
        ):
            if should_stop is not None and should_stop():
                return
            chunk = tokens[start : start + taken]
            start += taken
            size = self._chunk_size(taken)
            if size is None:
                self.step(chunk[0])
            else:
                self._prefill_chunk(chunk, size)

    def _chunk_size(self, taken: int) -> int | None:
        """The prefill length that carries `taken` tokens from here, or ``None`` for a decode step."""
        room = self._context_tokens - self._position
        return min((size for size in self._prefill_names if taken <= size <= room), default=None)

    def _prefill_chunk(self, chunk: Sequence[int], size: int) -> None:
        padded = np.zeros((1, size), np.int32)
        padded[0, : len(chunk)] = chunk
        positions = np.arange(self._position, self._position + size, dtype=np.int32)
        inputs: Arrays = {"tokens": padded, "input_pos": positions}
        if self._has_mask:
            seen = np.arange(self._context_tokens)[None, :] <= positions[:, None]
            inputs["mask"] = np.where(seen, np.float32(0), _HIDDEN)[None, None]
        self._executor.run(self._prefill_names[size], inputs)
        self._position += len(chunk)

    def step(self, token: int) -> Logits:
        """Append `token`; logits of what follows, (vocab,) float32, valid until the next call.

        Raises:
            InferenceError: the context is full, or the runtime fails.
        """
        self._room_for(1)
        self._token[0, 0] = token
        self._pos[0] = self._position
        inputs: Arrays = {"tokens": self._token, "input_pos": self._pos}
        if self._has_mask:
            self._mask[..., : self._position + 1] = 0
            self._mask[..., self._position + 1 :] = _HIDDEN
            inputs["mask"] = self._mask
        logits = self._executor.run("decode", inputs)
        if logits is None:
            raise InferenceError("'decode' gave no logits")
        self._position += 1
        return logits

    def append(self, tokens: Sequence[int]) -> Logits:
        """Append `tokens`, at least one; logits of what follows the last, as :meth:`step` gives them.

        Raises:
            InferenceError: they do not fit, or the runtime fails.
        """
        if len(tokens) > 1:
            self.prefill(tokens[:-1])
        return self.step(tokens[-1])

    def rewind(self, position: int) -> None:
        """Forget all but the first `position` tokens; what lies beyond is hidden until it is overwritten.

        Raises:
            InferenceError: there are not so many.
        """
        if not 0 <= position <= self._position:
            raise InferenceError(f"the cache holds {self._position} tokens, not {position}")
        self._position = position

    @property
    def verify_limit(self) -> int:
        """Most tokens that :meth:`verify` takes at once; 0 where the graph cannot."""
        return 0

    def verify(self, tokens: Sequence[int]) -> Logits | None:
        """See :meth:`Engine.verify`: no graph of this form gives logits after each token."""
        del tokens
        return None


def _find_context(decode: Mapping[str, Shape]) -> int:
    if "mask" in decode:
        return decode["mask"][-1]
    # Without a mask input the community's layout is (batch, context, heads, head size).
    return next(shape for name, shape in sorted(decode.items()) if name.startswith(KV_PREFIX))[1]
