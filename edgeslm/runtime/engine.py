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

With a golden vector no signature computes for anybody before it has computed that: the first ones when the graph is
opened, those of longer contexts when a sequence grows into them. A bucket that computes something else is refused for
good; a longer one takes its place, or the context ends before it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import numpy as np

from edgeslm.errors import InferenceError, ProofError
from edgeslm.runtime.bucket_proof import BucketProof
from edgeslm.runtime.buckets import HIDDEN, Bucket, Signature, find_buckets, plan_chunks
from edgeslm.runtime.engine_port import Engine, KvState
from edgeslm.runtime.executor import Arrays, GraphExecutor, Logits

log = logging.getLogger(__name__)

Found = TypeVar("Found", bound=Signature | None)

LEAST_COMMON = 16
"""Fewer tokens in common with the last sequence are computed anew: that costs one short call."""

__all__ = ["Engine", "KvEngine", "KvState", "plan_chunks"]


class KvEngine:
    """`Engine` over an executor."""

    def __init__(
        self, executor: GraphExecutor, proof: BucketProof | None = None, only: Bucket | None = None
    ) -> None:
        """Over caches of the shortest bucket, which an executor starts with.

        Args:
            proof: what signatures have to compute before they are used; without it they are taken as they are.
            only: use this bucket, which the caches have the shapes of.
        """
        self._executor = executor
        self._proof = proof
        self._proved: set[str] = set()
        self._refusal: ProofError | None = None
        if only is None:
            buckets = find_buckets({name: executor.inputs(name) for name in executor.usable_signatures})
        else:
            buckets = (only,)
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

    def prove(self) -> None:
        """Compute the golden vector on the shortest bucket that has room for it; the sequence is forgotten.

        Raises:
            ProofError: it came out otherwise, or no bucket has room.
            InferenceError: the runtime fails.
        """
        self.reset()
        proof = self._proof
        if proof is None:
            return
        fitting = tuple(bucket for bucket in self._buckets if bucket.context >= proof.places)
        if not fitting:
            raise ProofError(
                f"golden vector: it takes {proof.places} places of {self.context_tokens}", path=proof.path
            )
        self._buckets = fitting
        self._prove(fitting[0], fitting[0].decode)
        self._use(fitting[0])

    def _prove(self, bucket: Bucket, signature: Signature) -> None:
        """Compute the golden vector by `signature`; a sequence that has begun is set aside meanwhile.

        Raises:
            ProofError: it came out otherwise.
        """
        if self._proof is None or self._is_proved(signature):
            return
        put_back: Callable[[], None] | None = None
        if self._position > 0:
            put_back = self._executor.set_aside(bucket.decode.name)
        else:
            self._allocate(bucket)
        try:
            self._proved |= self._proof.check(KvEngine(self._executor, only=bucket), bucket, signature)
        finally:
            if put_back is not None:
                put_back()

    def _is_proved(self, signature: Signature | None) -> bool:
        return self._proof is None or signature is None or signature.name in self._proved

    def _ready(self, end: int, pick: Callable[[Bucket], Found], goal: int = 0) -> Found:
        """The signature that `pick` takes from the bucket for `end` tokens, proved, with the cache grown to it.

        Args:
            goal: tokens that there will be soon: no bucket is proved that ends before them.

        Raises:
            InferenceError: no bucket for so many tokens computes what it should.
        """
        while True:
            least = self._bucket.context if self._position > 0 else 0
            fitting = [one for one in self._buckets if one.context >= max(end, least)]
            wanted = (one for one in fitting if one.context >= goal or self._is_proved(pick(one)))
            bucket = next(wanted, None)
            if bucket is None:
                raise InferenceError(f"no context of {max(end, goal)} tokens is served here: {self._refusal}")
            signature = pick(bucket)
            if signature is not None:
                try:
                    self._prove(bucket, signature)
                except ProofError as error:
                    self._refuse(bucket, error)
                    continue
                self._use(bucket)
            return signature

    def _refuse(self, bucket: Bucket, error: ProofError) -> None:
        log.error("a context of %d tokens is not served: '%s'", bucket.context, error)
        self._refusal = error
        self._buckets = tuple(one for one in self._buckets if one is not bucket)
        if self._buckets:
            self._longest = self._buckets[-1]

    def _use(self, bucket: Bucket) -> None:
        """Give the caches the shapes of `bucket`; an empty cache may shrink, a filled one only grows."""
        if bucket is not self._bucket:
            self._allocate(bucket)

    def _allocate(self, bucket: Bucket) -> None:
        self._executor.resize(bucket.decode.name, keep=self._position > 0)
        self._bucket = bucket
        self._mask = np.full((1, 1, 1, bucket.context), HIDDEN, np.float32)

    def prefill(self, tokens: Sequence[int], should_stop: Callable[[], bool] | None = None) -> None:
        """Append `tokens` without computing logits; `should_stop` is asked between chunks.

        Raises:
            InferenceError: they do not fit, or the runtime fails.
        """
        self._room_for(len(tokens))
        longest = self._longest
        rings = [ring.places for ring in longest.decode.rings]
        start, goal = 0, self._position + len(tokens)
        for taken in plan_chunks(len(tokens), self._position, longest.context, list(longest.prefill), rings):
            if should_stop is not None and should_stop():
                return
            chunk = tokens[start : start + taken]
            start += taken
            signature = self._prefill_signature(taken, goal)
            if signature is not None:
                self.compute(signature, chunk)
                continue
            for token in chunk:
                self.step(token)

    def _prefill_signature(self, taken: int, goal: int) -> Signature | None:
        """The prefill signature that carries `taken` tokens from here, or ``None`` for a decode step."""
        longest = self._longest.prefill
        size = min((n for n in longest if taken <= n and longest[n].fits(self._position)), default=None)
        if size is None:
            return None
        return self._ready(self._position + size, lambda bucket: bucket.prefill.get(size), goal)

    def compute(self, signature: Signature, chunk: Sequence[int]) -> Logits | None:
        """Append `chunk`, padded to the length of `signature`, which is of the bucket in use.

        Returns:
            Logits after each token, padding included, where the signature gives them.

        Raises:
            InferenceError: the runtime fails.
        """
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
        decode = self._ready(position + 1, _decode_of)
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
        signature = self._ready(self._position + size, lambda bucket: bucket.verify.get(size))
        if signature is None:
            return None
        logits = self.compute(signature, tokens)
        return None if logits is None else logits.reshape(size, -1)[: len(tokens)]

    def export_state(self) -> KvState:
        """A copy of the sequence's caches."""
        places = {mask.places for mask in self._bucket.decode.masks} | {self._bucket.context}
        caches: Arrays = {}
        for name, cache in self._executor.read_caches():
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
        self._ready(state.position, _decode_of)
        self._executor.write_caches(state.caches)
        self._held = list(state.tokens)
        self._position = self._furthest = state.position

    @contextmanager
    def set_aside(self) -> Iterator[None]:
        """See :meth:`Engine.set_aside`. Takes the caches of the shortest context; nothing is copied."""
        bucket, mask, held = self._bucket, self._mask, self._held
        position, furthest = self._position, self._furthest
        shortest = self._buckets[0] if self._buckets else bucket
        put_back = self._executor.set_aside(shortest.decode.name)
        self._bucket, self._held = shortest, []
        self._mask = np.full((1, 1, 1, shortest.context), HIDDEN, np.float32)
        self.reset()
        try:
            yield
        finally:
            put_back()
            self._bucket, self._mask, self._held = bucket, mask, held
            self._position, self._furthest = position, furthest


def _decode_of(bucket: Bucket) -> Signature:
    return bucket.decode


def _places_axis(name: str, shape: tuple[int, ...], places: set[int]) -> int:
    """Along which axis of a cache the positions lie.

    The community's layout has them second, (batch, context, heads, head size), for keys and values alike; the other
    has keys by position, (batch, heads, context, head size), and values across it.
    """
    if shape[1] in places:
        return 1
    return 2 if "_k_" in name else 3
