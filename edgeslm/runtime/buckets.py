"""What the signatures of a generative graph can do: contexts, chunk lengths, and what each mask hides.

One file may hold the same network at several context lengths, its *buckets*, over one set of weights: what a token
costs then follows the tokens that are there, not those that might come. Signatures are named

* ``decode`` and ``prefill_<n>`` for the longest context, as in files of the LiteRT community;
* ``verify_<n>``: as ``prefill_<n>``, with logits after each of the n tokens;
* each of them with ``_<context>`` behind it for a shorter one: ``decode_256``, ``prefill_16_256``.

Besides ``mask`` a signature may take ``window_<w>_mask``, for layers that see only the last w tokens, and then
``window_<w>_pos``: such layers keep a ring, in which position p lies at p modulo its length. A ring is longer than the
window by at least the longest chunk, so that a padded chunk overwrites nothing that is still seen. A signature without
``window_<w>_pos`` keeps all positions, and the window is only in the mask.

Everything here is pure: no array of a model is touched.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

Shape = tuple[int, ...]
Kind = Literal["decode", "prefill", "verify"]

KV_PREFIX = "kv_cache_"

HIDDEN = np.float32(-0.7 * float(np.finfo(np.float32).max))
"""Added to a score to hide it; LiteRT's own value: large, yet two of them add up without overflow."""

_NAME = re.compile(r"^(?:decode(?:_\d+)?|(prefill|verify)(?:_\d+)?(?:_\d+)?)$")
_MASK = re.compile(r"^(?:window_(\d+)_)?mask$")

CALL_TOKENS = 16
"""What a call costs besides its tokens, in tokens: the weights are read once, however few there are."""


@dataclass(frozen=True)
class MaskInput:
    """A mask that a signature takes.

    Attributes:
        name: the input.
        places: positions that it covers: the context, or the length of a ring.
        window: tokens that are seen, the newest included; ``None`` for all.
        ring_input: input that takes places in the ring, where there is one.
    """

    name: str
    places: int
    window: int | None = None
    ring_input: str | None = None

    def values(self, position: int, count: int) -> npt.NDArray[np.float32]:
        """The mask for tokens at `position` and after: (1, 1, count, places) float32, 0 where a token may look."""
        last = position + count - 1
        held = last - (last - np.arange(self.places)) % self.places  # the position that lies at each place
        at = np.arange(position, position + count)[:, None]
        seen = (held >= 0) & (held <= at)
        if self.window is not None:
            seen &= held > at - self.window
        return np.where(seen, np.float32(0), HIDDEN)[None, None]


@dataclass(frozen=True)
class Signature:
    """One signature: computes `count` tokens at once."""

    name: str
    kind: Kind
    count: int
    context: int
    masks: tuple[MaskInput, ...]

    @property
    def rings(self) -> tuple[MaskInput, ...]:
        """Masks that belong to rings which are shorter than the context."""
        return tuple(mask for mask in self.masks if mask.places < self.context)

    def fits(self, position: int) -> bool:
        """Whether the whole chunk, padding included, can be written from `position` on and hides nothing needed."""
        if position + self.count > self.context:
            return False
        return all(position % ring.places + self.count <= ring.places for ring in self.rings)


@dataclass(frozen=True)
class Bucket:
    """The signatures of one context length."""

    context: int
    decode: Signature
    prefill: Mapping[int, Signature] = field(default_factory=dict)
    verify: Mapping[int, Signature] = field(default_factory=dict)

    def slack(self) -> int:
        """How far behind the furthest position ever written a sequence may be taken up again."""
        spare = [ring.places - (ring.window or 0) + 1 for ring in self.decode.rings]
        return min(spare, default=self.context)


def read_signature(name: str, inputs: Mapping[str, Shape]) -> Signature | None:
    """What signature `name` does, or ``None`` where it is not of this convention."""
    matched = _NAME.match(name)
    if matched is None or "tokens" not in inputs or not any(key.startswith(KV_PREFIX) for key in inputs):
        return None
    masks = tuple(_read_masks(inputs))
    if masks:
        context = max(mask.places for mask in masks)
    else:
        # Without a mask input the community's layout is (batch, context, heads, head size).
        context = next(shape for key, shape in sorted(inputs.items()) if key.startswith(KV_PREFIX))[1]
    group = matched.group(1)
    kind: Kind = "decode" if group is None else "verify" if group == "verify" else "prefill"
    return Signature(name, kind, inputs["tokens"][-1], context, masks)


def _read_masks(inputs: Mapping[str, Shape]) -> Iterator[MaskInput]:
    for name, shape in inputs.items():
        matched = _MASK.match(name)
        if matched is None:
            continue
        window = int(matched.group(1)) if matched.group(1) else None
        ring = f"window_{window}_pos"
        yield MaskInput(name, shape[-1], window, ring if ring in inputs else None)


def find_buckets(signatures: Mapping[str, Mapping[str, Shape]]) -> tuple[Bucket, ...]:
    """The buckets of a graph, the shortest context first; those without a decode signature are none.

    Args:
        signatures: the inputs' shapes by signature.
    """
    by_context: dict[int, list[Signature]] = {}
    for name, inputs in signatures.items():
        signature = read_signature(name, inputs)
        if signature is not None:
            by_context.setdefault(signature.context, []).append(signature)
    buckets = []
    for context, found in sorted(by_context.items()):
        decode = next((one for one in found if one.kind == "decode"), None)
        if decode is not None:
            sizes = {
                kind: {one.count: one for one in found if one.kind == kind} for kind in ("prefill", "verify")
            }
            buckets.append(Bucket(context, decode, **sizes))
    return tuple(buckets)


def plan_chunks(
    count: int, position: int, context_tokens: int, sizes: Sequence[int], rings: Sequence[int] = ()
) -> list[int]:
    """How many tokens each prefill call takes; an entry 1 that is no member of `sizes` is a decode step.

    The largest size that is filled entirely goes first; the rest goes, padded, into what computes the fewest tokens,
    a call counted as :data:`CALL_TOKENS`.

    Args:
        count: tokens to append, with `position` + `count` <= `context_tokens`.
        position: tokens already there.
        context_tokens: room in all.
        sizes: lengths of the prefill signatures, any order.
        rings: lengths of rings, over whose end no chunk may be written.
    """
    chunks: list[int] = []
    while count > 0:
        room = min([context_tokens - position, *(ring - position % ring for ring in rings)])
        fitting = [size for size in sorted(sizes) if size <= room]
        if not fitting:
            taken = 1
        elif fitting[-1] <= count:
            taken = fitting[-1]
        else:
            size = min(fitting, key=lambda size: (-(-count // size) * (size + CALL_TOKENS), size))
            taken = min(size, count)
        chunks.append(taken)
        count -= taken
        position += taken
    return chunks
