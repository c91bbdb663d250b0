"""SHA-256 taken beside reading and writing: hashing gigabytes takes as long as copying them, on a core of its own."""

from __future__ import annotations

import hashlib
from concurrent.futures import Future, ThreadPoolExecutor

_WORTH_BYTES = 64 * 1024
"""Shorter pieces are hashed sooner than they are handed over."""


class SideDigest:
    """The SHA-256 of pieces, one of which is hashed while the next is got ready."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self._beside: ThreadPoolExecutor | None = None
        self._waiting: Future[None] | None = None

    def update(self, data: bytes) -> None:
        """Go on with `data`, which nobody may change."""
        self._wait()
        if len(data) < _WORTH_BYTES:
            self._hash.update(data)
            return
        if self._beside is None:
            self._beside = ThreadPoolExecutor(1)
        self._waiting = self._beside.submit(self._hash.update, data)

    def hexdigest(self) -> str:
        """The digest of all so far."""
        self._wait()
        return self._hash.hexdigest()

    def _wait(self) -> None:
        if self._waiting is not None:
            self._waiting.result()
            self._waiting = None
