"""SHA-256 taken beside reading and writing: hashing gigabytes takes as long as copying them, on a core of its own."""

from __future__ import annotations

import hashlib

from edgeslm.flash.image.beside import Beside

_WORTH_BYTES = 64 * 1024
"""Shorter pieces are hashed sooner than they are handed over."""


class SideDigest:
    """The SHA-256 of pieces that come one after another, hashed while the next are got ready."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self._beside = Beside()

    def update(self, data: bytes | memoryview) -> None:
        """Go on with `data`, which nobody may change until :data:`~edgeslm.flash.image.beside.LAG` more came."""
        if len(data) < _WORTH_BYTES:
            self._beside.wait()
            self._hash.update(data)
        else:
            self._beside.do(self._hash.update, data)

    def hexdigest(self) -> str:
        """The digest of all so far."""
        self._beside.wait()
        return self._hash.hexdigest()
