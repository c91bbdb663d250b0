"""A stretch of an image, read at any place within it and nowhere else."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from edgeslm.errors import TreeError


@dataclass(frozen=True)
class Window:
    """A partition of an image, or all of it.

    Attributes:
        path: the image.
        descriptor: of the image, open for reading; it belongs to who made this.
        start_bytes: where the stretch begins in the image.
        size_bytes: how long it is.
    """

    path: Path
    descriptor: int
    start_bytes: int
    size_bytes: int

    def read(self, at: int, size: int) -> bytes:
        """Exactly `size` bytes at `at`, counted from the start of the stretch.

        Raises:
            TreeError: not all of them lie within it, or the image cannot be read.
        """
        if at < 0 or size < 0 or at + size > self.size_bytes:
            raise TreeError(
                f"{self.path} points to bytes {at} to {at + size} of a file system that has {self.size_bytes}",
                path="/",
            )
        try:
            data = os.pread(self.descriptor, size, self.start_bytes + at)
            while len(data) < size:
                more = os.pread(self.descriptor, size - len(data), self.start_bytes + at + len(data))
                if not more:
                    raise TreeError(f"{self.path} ends within a file system", path="/")
                data += more
        except OSError as error:
            raise TreeError(f"cannot read {self.path}: {error.strerror or error}", path="/") from error
        return data

    def part(self, start_bytes: int, size_bytes: int) -> Window:
        """A stretch within this one.

        Raises:
            TreeError: it does not lie within.
        """
        if start_bytes < 0 or size_bytes < 0 or start_bytes + size_bytes > self.size_bytes:
            raise TreeError(f"{self.path} has no {size_bytes} bytes at {start_bytes}", path="/")
        return Window(self.path, self.descriptor, self.start_bytes + start_bytes, size_bytes)
