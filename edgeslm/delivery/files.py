"""Files for delivery: reading what may change or be something else, and naming what a disk refuses."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from edgeslm.errors import DeliveryDiskError, DeliveryRoomError

RESERVE_BYTES = 16 * 2**20
"""Left free by a delivery: the journal of the agent lives on the same disk."""

_FULL = {errno.ENOSPC, errno.EDQUOT}


class FileBlob:
    """A regular file, open for reading."""

    def __init__(self, path: Path) -> None:
        """Open the file at `path`.

        Raises:
            DeliveryDiskError: it cannot be opened, is no regular file, or empty.
        """
        self.path = path
        with disk_errors(path):
            # Without O_NONBLOCK opening a FIFO would wait for a writer.
            self._descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        status = os.fstat(self._descriptor)
        if not stat.S_ISREG(status.st_mode) or not status.st_size:
            os.close(self._descriptor)
            raise DeliveryDiskError(f"{path}: is empty or not a regular file", path=str(path))
        self._size_bytes = status.st_size

    @property
    def size_bytes(self) -> int:
        """Of the file when it was opened."""
        return self._size_bytes

    def read(self, offset: int, size_bytes: int) -> bytes:
        """Bytes from `offset` on; fewer only where the file ends.

        Raises:
            DeliveryDiskError: it cannot be read, or became shorter.
        """
        wanted = max(0, min(size_bytes, self._size_bytes - offset))
        with disk_errors(self.path):
            data = os.pread(self._descriptor, wanted, offset)
        if len(data) != wanted:
            raise DeliveryDiskError(f"{self.path}: changed while it was read", path=str(self.path))
        return data

    def close(self) -> None:
        """Close the file."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def find_file(directory: Path, sha256: str) -> Path | None:
    """The file that is named by that digest in `directory`, if there is one."""
    for name in (sha256, f"{sha256}.blob", f"{sha256}.slm"):
        path = directory / name
        if path.is_file():
            return path
    return None


@contextmanager
def disk_errors(path: Path, *, needed_bytes: int = 0) -> Iterator[None]:
    """Turn the system's refusals about `path` into a :class:`DeliveryDiskError`.

    Args:
        path: to blame.
        needed_bytes: still to be written, for the figures of a full disk.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise _no_room(path, needed_bytes, _free_bytes(path.parent)) from error
        raise DeliveryDiskError(f"{path}: {error.strerror or error}", path=str(path)) from error


def check_room(directory: Path, needed_bytes: int) -> None:
    """Whether so many bytes fit into `directory` and leave the reserve.

    Raises:
        DeliveryRoomError: they do not.
        DeliveryDiskError: the disk cannot be asked.
    """
    with disk_errors(directory):
        free_bytes = shutil.disk_usage(directory).free
    if needed_bytes + RESERVE_BYTES > free_bytes:
        raise _no_room(directory, needed_bytes + RESERVE_BYTES, free_bytes)


def _free_bytes(directory: Path) -> int:
    try:
        return shutil.disk_usage(directory).free
    except OSError:
        return 0


def _no_room(path: Path, needed_bytes: int, free_bytes: int) -> DeliveryRoomError:
    return DeliveryRoomError(
        f"{path}: no room: {needed_bytes / 2**20:.1f} MiB are needed, {free_bytes / 2**20:.1f} MiB are free",
        path=str(path), needed_bytes=needed_bytes, free_bytes=free_bytes,
    )  # fmt: skip
