"""States of sequences that begin many prompts: a system prompt, a block of examples, a conversation so far.

A state is found by the model and the exact tokens before it, never by text, and taken only where the prompt begins with
all of them. States live in memory within a limit that all models share, the least recently used go first; with a
directory they are also kept on disk, within another limit, and survive a restart. A file is believed only if it is
whole and says the same model and tokens; what can't be read or written is done without.

A conversation that another prompt displaces from the engine is kept as well, in memory alone: what somebody said in it
is never written to disk.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import os
import struct
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from edgeslm.errors import InferenceError
from edgeslm.runtime.engine import Engine, KvState

log = logging.getLogger(__name__)

LEAST_TOKENS = 32
"""Shorter beginnings are not kept: to compute them anew takes one short call."""
DEFAULT_LIMIT_BYTES = 64 << 20
DEFAULT_DISK_LIMIT_BYTES = 256 << 20
_CONVERSATIONS = 256
"""So many are known to have been displaced; the state of one more is let go of by use alone."""
_SEEN_PROMPTS = 8
"""So many of the last prompts are remembered, to see what they have in common."""
_SUFFIX = ".kv"
_MAGIC = b"edgeslm-kv-1\n"
_HEADER_BYTES = struct.Struct("<I")
_MAX_HEADER = 1 << 20


class Beginnings(Protocol):
    """What is known of prompts that begin alike."""

    def prefill(
        self, engine: Engine, ids: Sequence[int], should_stop: Callable[[], bool] | None = None
    ) -> int:
        """See :meth:`PrefixCache.prefill`."""


class KeptStates:
    """States in memory, within one limit for all models. From any thread."""

    def __init__(self, limit_bytes: int = DEFAULT_LIMIT_BYTES) -> None:
        """Keep nothing yet."""
        self._limit_bytes = limit_bytes
        self._kept: OrderedDict[str, KvState] = OrderedDict()
        self._size_bytes = 0
        self._lock = threading.Lock()

    @property
    def limit_bytes(self) -> int:
        """Most memory for them; 0 keeps none."""
        return self._limit_bytes

    @property
    def size_bytes(self) -> int:
        """Memory that they take."""
        return self._size_bytes

    def __len__(self) -> int:
        return len(self._kept)

    def lengths(self) -> set[int]:
        """How many tokens the states are of."""
        with self._lock:
            return {state.position for state in self._kept.values()}

    def get(self, key: str) -> KvState | None:
        """The state under `key`, which counts as used."""
        with self._lock:
            state = self._kept.get(key)
            if state is not None:
                self._kept.move_to_end(key)
            return state

    def keep(self, key: str, state: KvState) -> None:
        """Keep `state`, and as many others as there is room for; one that is too large is not kept."""
        with self._lock:
            self._forget(key)
            if state.size_bytes > self._limit_bytes:
                return
            self._kept[key] = state
            self._size_bytes += state.size_bytes
            while self._size_bytes > self._limit_bytes:
                self._forget(next(iter(self._kept)))

    def forget(self, key: str) -> None:
        """Let go of the state under `key`, where there is one."""
        with self._lock:
            self._forget(key)

    def _forget(self, key: str) -> None:
        state = self._kept.pop(key, None)
        if state is not None:
            self._size_bytes -= state.size_bytes


class PrefixCache:
    """Keeps states of one model by the tokens that lead to them."""

    def __init__(
        self,
        model: str,
        states: KeptStates | None = None,
        *,
        directory: Path | None = None,
        disk_limit_bytes: int = DEFAULT_DISK_LIMIT_BYTES,
    ) -> None:
        """Nothing is read yet.

        Args:
            model: names weights and graph, so that no state is taken for another model's.
            states: where they are kept in memory; by default in a place of their own.
            directory: where they are kept as well; made if it is missing.
            disk_limit_bytes: most room there.
        """
        self._model = model
        self._states = KeptStates() if states is None else states
        self._directory = directory
        self._disk_limit_bytes = disk_limit_bytes
        self._seen: deque[tuple[int, ...]] = deque(maxlen=_SEEN_PROMPTS)
        self._conversation: tuple[int, ...] = ()
        """What the engine holds of a conversation that may go on."""
        self._conversations: deque[tuple[int, ...]] = deque(maxlen=_CONVERSATIONS)
        """Those that were displaced."""

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
        return self._prefill(engine, ids, self._seen_before(ids), should_stop)

    def beginning_with(self, known: Sequence[int], *, has_turns: bool) -> Beginnings:
        """For a prompt of which is known what others may share with it: `known`, such as a message of the system.

        Args:
            has_turns: earlier turns come after that, which are the prompt's own: no more of it is shared.
        """

        def shared(ids: Sequence[int]) -> int:
            length = min(common_length(known, ids), len(ids) - 1)
            return max(length if length >= LEAST_TOKENS else 0, 0 if has_turns else self._seen_before(ids))

        return _Known(self._prefill, shared)

    def follow(self, engine: Engine, ids: Sequence[int]) -> None:
        """A turn of a conversation is over: its next one will begin with `ids`, which the engine holds most of."""
        self._conversation = tuple(ids[: engine.position]) if self._states.limit_bytes else ()

    def make_way(self, engine: Engine, ids: Sequence[int] = ()) -> None:
        """Keep the conversation that `engine` holds, where `ids` are about to displace it.

        Raises:
            InferenceError: what the engine raises.
        """
        held = self._conversation
        if len(held) < LEAST_TOKENS or engine.position != len(held) or tuple(ids[: len(held)]) == held:
            return
        self._conversation = ()
        state = engine.export_state()
        if state.tokens != held:
            return
        for other in [one for one in self._conversations if held[: len(one)] == one]:
            self._conversations.remove(other)
            self._states.forget(self._key(other))
        self._conversations.append(held)
        self._states.keep(self._key(held), state)

    def _prefill(
        self, engine: Engine, ids: Sequence[int], shared: int, should_stop: Callable[[], bool] | None
    ) -> int:
        found = self.longest(ids)  # before another one takes its place
        self.make_way(engine, ids)
        cached = engine.resume(ids)
        if found is not None and found[0] > cached:
            cached = self._take_up(engine, found[1])
        known = 0 if found is None else found[0]
        # What the engine holds needs no second copy, but does not survive a restart.
        is_lacking = shared > cached or (shared == cached and self._directory is not None)
        if is_lacking and shared - known >= LEAST_TOKENS:
            engine.prefill(ids[cached:shared], should_stop)
            if engine.position == shared:
                self.put(engine.export_state())
        if engine.position < len(ids) - 1:
            engine.prefill(ids[engine.position : -1], should_stop)
        return cached

    def _seen_before(self, ids: Sequence[int]) -> int:
        """How far an earlier prompt began like this one, where that is worth keeping; else 0. It is one from now on."""
        seen = tuple(self._seen)
        self._seen.appendleft(tuple(ids))
        if self._states.limit_bytes == 0 and self._directory is None:
            return 0
        most = max((common_length(one, ids) for one in seen), default=0)
        most = min(most, len(ids) - 1)
        return most if most >= LEAST_TOKENS else 0

    def longest(self, ids: Sequence[int]) -> tuple[int, KvState] | None:
        """The longest known beginning of `ids` that leaves at least one token to compute.

        Returns:
            Its number of tokens and its state, or ``None``.
        """
        lengths = self._states.lengths() | self._lengths_on_disk()
        for length in sorted((n for n in lengths if n < len(ids)), reverse=True):
            key = self._key(ids[:length])
            state = self._states.get(key)
            if state is None:
                state = self._read(key, length)
                if state is not None:
                    self._states.keep(key, state)
            if state is not None and state.tokens == tuple(ids[:length]):
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
        self._states.keep(key, state)
        self._write(key, state)

    def drop(self, ids: Sequence[int]) -> None:
        """Forget the state after `ids`."""
        key = self._key(ids)
        self._states.forget(key)
        path = self._path(key, len(ids))
        if path is not None:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)

    def _key(self, ids: Sequence[int]) -> str:
        digest = hashlib.sha256(self._model.encode() + b"\0")
        digest.update(np.asarray(ids, "<i8").tobytes())
        return digest.hexdigest()[:40]

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
            # The tokens are what somebody asked.
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            fresh.touch(mode=0o600)
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


@dataclass(frozen=True)
class PrefixPlace:
    """Where the models of one process keep their states.

    Attributes:
        states: in memory, for all of them together; by default each has its own.
        directory: on disk as well.
        disk_limit_bytes: most room there.
    """

    states: KeptStates | None = None
    directory: Path | None = None
    disk_limit_bytes: int = DEFAULT_DISK_LIMIT_BYTES

    def cache(self, model: str) -> PrefixCache:
        """The cache of the model that `model` names by weights and graph."""
        return PrefixCache(
            model, self.states, directory=self.directory, disk_limit_bytes=self.disk_limit_bytes
        )


class _Known:
    """`Beginnings` of a prompt of which is known how much of it others share."""

    def __init__(
        self,
        prefill: Callable[[Engine, Sequence[int], int, Callable[[], bool] | None], int],
        shared: Callable[[Sequence[int]], int],
    ) -> None:
        self._prefill = prefill
        self._shared = shared

    def prefill(
        self, engine: Engine, ids: Sequence[int], should_stop: Callable[[], bool] | None = None
    ) -> int:
        """See :meth:`PrefixCache.prefill`."""
        return self._prefill(engine, ids, self._shared(ids), should_stop)


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


def common_length(left: Sequence[int], right: Sequence[int]) -> int:
    """How many tokens both begin with."""
    pairs = enumerate(zip(left, right, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(left), len(right)))
