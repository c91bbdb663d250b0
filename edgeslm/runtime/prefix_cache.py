"""States of sequences that begin many prompts: a system prompt, a block of examples, a conversation so far.

A state is found by the model and the exact tokens before it, never by text, and taken only where the prompt begins with
all of them. States live in memory within a limit, the least recently used go first; with a directory they are also kept
on disk, within another limit, and survive a restart. A file is believed only if it is whole and says the same model and
tokens; what can't be read or written is done without.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import os
import struct
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from edgeslm.errors import InferenceError
from edgeslm.runtime.engine import Engine, KvState

log = logging.getLogger(__name__)

LEAST_TOKENS = 32
"""Shorter beginnings are not kept: to compute them anew takes one short call."""
_SEEN_PROMPTS = 8
"""So many of the last prompts are remembered, to see what they have in common."""
_SUFFIX = ".kv"
_MAGIC = b"edgeslm-kv-1\n"
_HEADER_BYTES = struct.Struct("<I")
_MAX_HEADER = 1 << 20


class PrefixCache:
    """Keeps states by the tokens that lead to them."""

    def __init__(
        self,
        model: str,
        *,
        limit_bytes: int = 64 << 20,
        directory: Path | None = None,
        disk_limit_bytes: int = 512 << 20,
    ) -> None:
        """Nothing is read yet.

        Args:
            model: names weights and graph, so that no state is taken for another model's.
            limit_bytes: most memory for states.
            directory: where states are kept as well; made if it is missing.
        """
        self._model = model
        self._limit_bytes = limit_bytes
        self._directory = directory
        self._disk_limit_bytes = disk_limit_bytes
        self._kept: OrderedDict[str, KvState] = OrderedDict()
        self._seen: deque[tuple[int, ...]] = deque(maxlen=_SEEN_PROMPTS)
        self._size_bytes = 0

    @property
    def size_bytes(self) -> int:
        """Memory that the states take."""
        return self._size_bytes

    def __len__(self) -> int:
        return len(self._kept)

    def prefill(
        self, engine: Engine, ids: Sequence[int], should_stop: Callable[[], bool] | None = None
    ) -> int:
        """Bring `engine` to hold all of `ids` but the last, in place of what it holds now.

        What the engine holds already is kept where `ids` begin with it; else the longest known beginning is taken up.
        Where an earlier prompt began alike, the state after what they have in common is kept for the next one.

        Args:
            ids: at least one.
            should_stop: asked between chunks; the engine then holds less.

        Returns:
            How many tokens were not computed anew.

        Raises:
            InferenceError: what the engine raises.
        """
        shared = self._shared(ids)
        self._seen.appendleft(tuple(ids))
        found = self.longest(ids)
        cached = engine.resume(ids)
        if found is not None and found[0] > cached:
            cached = self._take_up(engine, found[1])
        if shared > cached:
            engine.prefill(ids[cached:shared], should_stop)
            if engine.position == shared:
                self.put(engine.export_state())
        if engine.position < len(ids) - 1:
            engine.prefill(ids[engine.position : -1], should_stop)
        return cached

    def _shared(self, ids: Sequence[int]) -> int:
        """How far an earlier prompt began like this one, where that is worth keeping; else 0."""
        most = max((_common(seen, ids) for seen in self._seen), default=0)
        most = min(most, len(ids) - 1)
        return most if most >= LEAST_TOKENS else 0

    def longest(self, ids: Sequence[int]) -> tuple[int, KvState] | None:
        """The longest known beginning of `ids` that leaves at least one token to compute.

        Returns:
            Its number of tokens and its state, or ``None``.
        """
        lengths = {state.position for state in self._kept.values()} | self._lengths_on_disk()
        for length in sorted((n for n in lengths if n < len(ids)), reverse=True):
            key = self._key(ids[:length])
            state = self._kept.get(key)
            if state is None:
                state = self._read(key, length)
                if state is not None:
                    self._keep(key, state)
            if state is not None and state.tokens == tuple(ids[:length]):
                if key in self._kept:
                    self._kept.move_to_end(key)
                return length, state
        return None

    def _take_up(self, engine: Engine, state: KvState) -> int:
        try:
            engine.import_state(state)
        except InferenceError as error:
            log.warning("a kept state is done without: %s", error)
            self.drop(state.tokens)
            engine.reset()
            return 0
        return state.position

    def put(self, state: KvState) -> None:
        """Keep `state`; too short or too large ones are not kept."""
        if state.position < LEAST_TOKENS:
            return
        key = self._key(state.tokens)
        self._keep(key, state)
        self._write(key, state)

    def drop(self, ids: Sequence[int]) -> None:
        """Forget the state after `ids`."""
        key = self._key(ids)
        self._forget(key)
        path = self._path(key, len(ids))
        if path is not None:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)

    def _key(self, ids: Sequence[int]) -> str:
        digest = hashlib.sha256(self._model.encode() + b"\0")
        digest.update(np.asarray(ids, "<i8").tobytes())
        return digest.hexdigest()[:40]

    def _keep(self, key: str, state: KvState) -> None:
        self._forget(key)
        if state.size_bytes > self._limit_bytes:
            return
        self._kept[key] = state
        self._size_bytes += state.size_bytes
        while self._size_bytes > self._limit_bytes:
            self._forget(next(iter(self._kept)))

    def _forget(self, key: str) -> None:
        state = self._kept.pop(key, None)
        if state is not None:
            self._size_bytes -= state.size_bytes

    def _path(self, key: str, length: int) -> Path | None:
        return None if self._directory is None else self._directory / f"{key}-{length}{_SUFFIX}"

    def _files(self) -> Iterator[Path]:
        if self._directory is not None:
            with contextlib.suppress(OSError):
                yield from self._directory.glob(f"*{_SUFFIX}")

    def _lengths_on_disk(self) -> set[int]:
        counts = (path.stem.rpartition("-")[2] for path in self._files())
        return {int(count) for count in counts if count.isdigit()}

    def _read(self, key: str, length: int) -> KvState | None:
        path = self._path(key, length)
        if path is None or not path.exists():
            return None
        try:
            state = decode_state(path.read_bytes())
            os.utime(path)
        except (OSError, ValueError) as error:
            log.warning("%s is done without: %s", path.name, error)
            with contextlib.suppress(OSError):
                path.unlink()
            return None
        return state if state.position == length else None

    def _write(self, key: str, state: KvState) -> None:
        path = self._path(key, state.position)
        if path is None:
            return
        fresh = path.with_suffix(f".{os.getpid()}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            fresh.write_bytes(encode_state(state))
            fresh.replace(path)
            self._make_room()
        except OSError as error:
            log.warning("a state is not kept on disk: %s", error)
            with contextlib.suppress(OSError):
                fresh.unlink(missing_ok=True)

    def _make_room(self) -> None:
        """Remove the files that were not used for the longest time, until the rest is within the limit."""
        found = sorted((path.stat().st_mtime_ns, path.stat().st_size, path) for path in self._files())
        total = sum(size for _, size, _ in found)
        for _, size, path in found:
            if total <= self._disk_limit_bytes:
                return
            path.unlink(missing_ok=True)
            total -= size


def encode_state(state: KvState) -> bytes:
    """A state as bytes: magic, header length, header, values, sha256 of it all."""
    header = json.dumps(
        {"tokens": state.tokens, "caches": {name: cache.shape for name, cache in state.caches.items()}}
    ).encode()
    body = io.BytesIO()
    body.write(_MAGIC + _HEADER_BYTES.pack(len(header)) + header)
    for cache in state.caches.values():
        body.write(np.ascontiguousarray(cache, "<f4").data)
    body.write(hashlib.sha256(body.getbuffer()).digest())
    return body.getvalue()


def decode_state(raw: bytes) -> KvState:
    """The state that `raw` holds.

    Raises:
        ValueError: it is cut short, damaged or of another form.
    """
    content, digest = raw[:-32], raw[-32:]
    if not content.startswith(_MAGIC) or hashlib.sha256(content).digest() != digest:
        raise ValueError("damaged, or no state")
    start = len(_MAGIC) + _HEADER_BYTES.size
    (length,) = _HEADER_BYTES.unpack_from(content, len(_MAGIC))
    if length > _MAX_HEADER:
        raise ValueError("a header of that length is none")
    header = json.loads(content[start : start + length])
    values = np.frombuffer(content, "<f4", offset=start + length)
    caches, at = {}, 0
    for name, shape in header["caches"].items():
        size = int(np.prod(shape))
        caches[str(name)] = values[at : at + size].reshape(shape)
        at += size
    if at != values.size:
        raise ValueError("values are missing or left over")
    return KvState(tuple(map(int, header["tokens"])), caches)


def _common(left: Sequence[int], right: Sequence[int]) -> int:
    """How many tokens both begin with."""
    pairs = enumerate(zip(left, right, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(left), len(right)))
