"""A graph with a KV cache as an engine: tokens in, logits out.

Follows the LiteRT community's convention for generative models: signatures ``prefill_<n>`` and ``decode`` that
take ``tokens`` (1, n) int32, ``input_pos`` (n,) int32, optionally ``mask`` (1, 1, n, context) float32, and the
caches ``kv_cache_k_<i>``/``kv_cache_v_<i>``, and give back the caches; ``decode`` also gives ``logits``. What our own
graphs have beyond that (shorter contexts, rings, logits after each of several tokens) is said in
:mod:`edgeslm.runtime.buckets`. Who computes a signature, and where the caches lie, is an executor's business
(:mod:`edgeslm.runtime.executor`).

The cache is written at ``input_pos``; what lies beyond the position is never attended to (the mask hides it), so
a prefill chunk may be padded. DYNAMIC_UPDATE_SLICE clamps its start, therefore a padded chunk must still fit:
position + chunk <= context, else the tokens go one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from edgeslm.errors import InferenceError
from edgeslm.runtime.buckets import HIDDEN, Bucket, Signature, find_buckets, plan_chunks
from edgeslm.runtime.executor import Arrays, GraphExecutor, Logits

LEAST_COMMON = 16
"""Fewer tokens in common with the last sequence are computed anew: that costs one short call."""

__all__ = ["Engine", "KvEngine", "KvState", "plan_chunks"]


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


class KvEngine:
    """`Engine` over an executor."""

    def __init__(self, executor: GraphExecutor) -> None:
        self._executor = executor
        buckets = find_buckets({name: executor.inputs(name) for name in executor.usable_signatures})
        self._buckets = buckets
        self._bucket = buckets[0]
        self._longest = buckets[-1]
        self._position = 0
        self._held: list[int] = []
        """The tokens at each position; what is beyond the position may be stale."""
        self._furthest = 0
        """One past the furthest place ever written in this sequence, padding included."""
        self._token = np.zeros((1, 1), np.int32)
        self._pos = np.zeros((1,), np.int32)
        self._mask = np.full((1, 1, 1, self._bucket.context), HIDDEN, np.float32)

    @property
    def context_tokens(self) -> int:
        """Most tokens that the cache holds."""
        return self._longest.context

    @property
    def allocated_tokens(self) -> int:
        """Tokens that the cache holds as it is now; it grows when more come."""
        return self._bucket.context

    @property
    def position(self) -> int:
        """Tokens that are in the cache."""
        return self._position

    def reset(self) -> None:
        """Forget the sequence. Stale cache contents stay: the mask hides them until they are overwritten."""
        self._position = self._furthest = 0

    def _room_for(self, count: int) -> None:
        if self._position + count > self.context_tokens:
            raise InferenceError(
                f"{self._position} + {count} tokens exceed the context of {self.context_tokens}"
            )

    def _use(self, end: int) -> Bucket:
        """The bucket for a sequence of `end` tokens; an empty cache may shrink, a filled one only grows."""
        bucket = next(bucket for bucket in self._buckets if bucket.context >= end)
        if bucket.context < self._bucket.context and self._position > 0:
            return self._bucket
        if bucket is not self._bucket:
            self._executor.resize(bucket.decode.name, keep=self._position > 0)
            self._bucket = bucket
            self._mask = np.full((1, 1, 1, bucket.context), HIDDEN, np.float32)
        return bucket

    def prefill(self, tokens: Sequence[int], should_stop: Callable[[], bool] | None = None) -> None:
        """Append `tokens` without computing logits; `should_stop` is asked between chunks.

        Raises:
            InferenceError: they do not fit, or the runtime fails.
        """
        self._room_for(len(tokens))
        longest = self._longest
        rings = [ring.places for ring in longest.decode.rings]
        start = 0
        for taken in plan_chunks(len(tokens), self._position, longest.context, list(longest.prefill), rings):
            if should_stop is not None and should_stop():
                return
            chunk = tokens[start : start + taken]
            start += taken
            signature = self._prefill_signature(taken)
            if signature is None:
                self.step(chunk[0])
            else:
                self._run(signature, chunk)

    def _prefill_signature(self, taken: int) -> Signature | None:
        """The prefill signature that carries `taken` tokens from here, or ``None`` for a decode step."""
        longest = self._longest.prefill
        size = min((n for n in longest if taken <= n and longest[n].fits(self._position)), default=None)
        return None if size is None else self._use(self._position + size).prefill.get(size, longest[size])

    def _run(self, signature: Signature, chunk: Sequence[int]) -> Logits | None:
        """Compute `chunk`, padded to the signature's length; the bucket is in use already."""
        count, position = signature.count, self._position
        padded = np.zeros((1, count), np.int32)
        padded[0, : len(chunk)] = chunk
        positions = np.arange(position, position + count, dtype=np.int32)
        inputs: Arrays = {"tokens": padded, "input_pos": positions}
        for mask in signature.masks:
            inputs[mask.name] = mask.values(position, count)
            if mask.ring_input is not None:
                inputs[mask.ring_input] = (positions % mask.places).astype(np.int32)
        logits = self._executor.run(signature.name, inputs)
        self._held[position:] = chunk
        self._position = position + len(chunk)
        self._furthest = max(self._furthest, position + count)
        return logits

    def step(self, token: int) -> Logits:
        """Append `token`; logits of what follows, (vocab,) float32, valid until the next call.

        Raises:
            InferenceError: the context is full, or the runtime fails.
        """
        self._room_for(1)
        position = self._position
        decode = self._use(position + 1).decode
        self._token[0, 0] = token
        self._pos[0] = position
        inputs: Arrays = {"tokens": self._token, "input_pos": self._pos}
        for mask in decode.masks:
            if mask.window is None:
                self._mask[..., : position + 1] = 0
                self._mask[..., position + 1 :] = HIDDEN
                inputs[mask.name] = self._mask
                continue
            inputs[mask.name] = mask.values(position, 1)
            if mask.ring_input is not None:
                inputs[mask.ring_input] = np.array([position % mask.places], np.int32)
        logits = self._executor.run(decode.name, inputs)
        if logits is None:
            raise InferenceError(f"'{decode.name}' gave no logits")
        self._held[position:] = [token]
        self._position = position + 1
        self._furthest = max(self._furthest, self._position)
        return logits

    def append(self, tokens: Sequence[int]) -> Logits:
        """Append `tokens`, at least one; logits of what follows the last, as :meth:`step` gives them.

        Raises:
            InferenceError: they do not fit, or the runtime fails.
        """
        if len(tokens) > 1:
            rows = self.verify(tokens)
            if rows is not None:
                last: Logits = rows[-1]
                return last
            self.prefill(tokens[:-1])
        return self.step(tokens[-1])

    def rewind(self, position: int) -> None:
        """Forget all but the first `position` tokens; what lies beyond is hidden until it is overwritten.

        Raises:
            InferenceError: there are not so many, or a ring has lost what would be seen from there.
        """
        if not 0 <= position <= self._position:
            raise InferenceError(f"the cache holds {self._position} tokens, not {position}")
        if not self._can_rewind(position):
            raise InferenceError(
                f"the cache no longer holds what {position} tokens need: it went on to {self._furthest}"
            )
        self._position = position

    def _can_rewind(self, position: int) -> bool:
        """Whether no ring has overwritten what is seen from `position`."""
        overwritten = any(self._furthest > ring.places for ring in self._bucket.decode.rings)
        return not overwritten or self._furthest - position <= self._bucket.slack()

    def resume(self, tokens: Sequence[int]) -> int:
        """See :meth:`Engine.resume`."""
        most = min(self._position, len(tokens) - 1)
        common = next((at for at in range(most) if self._held[at] != tokens[at]), max(most, 0))
        if common < LEAST_COMMON or not self._can_rewind(common):
            self.reset()
            return 0
        self._position = common
        return common

    @property
    def verify_limit(self) -> int:
        """Most tokens that :meth:`verify` takes at once; 0 where the graph cannot."""
        return max(self._longest.verify, default=0)

    def verify(self, tokens: Sequence[int]) -> Logits | None:
        """See :meth:`Engine.verify`.

        Raises:
            InferenceError: they do not fit, or the runtime fails.
        """
        self._room_for(len(tokens))
        longest = self._longest.verify
        size = min((n for n in longest if len(tokens) <= n and longest[n].fits(self._position)), default=None)
        if size is None:
            return None
        signature = self._use(self._position + size).verify.get(size)
        if signature is None:
            return None
        logits = self._run(signature, tokens)
        return None if logits is None else logits.reshape(size, -1)[: len(tokens)]

    def export_state(self) -> KvState:
        """A copy of the sequence's caches."""
        places = {mask.places for mask in self._bucket.decode.masks} | {self._bucket.context}
        caches: Arrays = {}
        for name, cache in self._executor.read_caches().items():
            axis = _places_axis(name, cache.shape, places)
            filled = [slice(None)] * cache.ndim
            filled[axis] = slice(min(self._position, cache.shape[axis]))
            caches[name] = cache[tuple(filled)].copy()
        return KvState(tuple(self._held[: self._position]), caches)

    def import_state(self, state: KvState) -> None:
        """Take up the sequence that `state` holds in place of the present one.

        Raises:
            InferenceError: it is not of this graph.
        """
        self.reset()
        if not 0 < state.position <= self.context_tokens:
            raise InferenceError(f"a state of {state.position} tokens is not of this graph")
        self._use(state.position)
        self._executor.write_caches(state.caches)
        self._held = list(state.tokens)
        self._position = self._furthest = state.position


def _places_axis(name: str, shape: tuple[int, ...], places: set[int]) -> int:
    """Along which axis of a cache the positions lie.

    The community's layout has them second, (batch, context, heads, head size), for keys and values alike; the other
    has keys by position, (batch, heads, context, head size), and values across it.
    """
    if shape[1] in places:
        return 1
    return 2 if "_k_" in name else 3
