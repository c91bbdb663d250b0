"""Files with holes: which parts hold data, and copying those alone.

An image of 8 GB holds 2 GB; what is not there is neither read nor written.

Left to others: whole images (:mod:`edgeslm.flash.image.past_cache`).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

COPY_BYTES = 2**20
"""How much is held in memory at a time."""
_NO_COPY_IN_KERNEL = frozenset({errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM})


def data_ranges(descriptor: int, start: int, end: int) -> Iterator[tuple[int, int]]:
    """The parts of a file between `start` and `end` that hold data, as (start, end) in bytes, in order.

    A file system that knows no holes gives one part.

    Raises:
        OSError: it cannot be read.
    """
    at = start
    while at < end:
        try:
            first = os.lseek(descriptor, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return
            if error.errno != errno.EINVAL:
                raise
            yield at, end
            return
        if first >= end:
            return
        last = min(os.lseek(descriptor, first, os.SEEK_HOLE), end)
        yield first, last
        at = last


def copy_part(source: int, target: int, *, start: int, size: int, to: int = 0) -> None:
    """Copy `size` bytes at `start` of one open file to `to` in another, where holes are and stay.

    The target has nothing but holes there. It is not made longer by a hole at the end.

    Raises:
        OSError: either refuses; the source ends too early.
    """
    for first, last in data_ranges(source, start, start + size):
        _copy_data(source, target, first, last - first, first - start + to)


def write_all(descriptor: int, data: bytes | memoryview, at: int) -> None:
    """Write all of `data` at `at`.

    Raises:
        OSError: the disk refuses.
    """
    left = memoryview(data)
    while left:
        written = os.pwrite(descriptor, left, at)
        left = left[written:]
        at += written


def _copy_data(source: int, target: int, start: int, size: int, to: int) -> None:
    """Copy bytes that are no hole; the kernel does it where it can."""
    in_kernel = True
    while size:
        if in_kernel:
            try:
                done = os.copy_file_range(source, target, size, start, to)
            except OSError as error:
                if error.errno not in _NO_COPY_IN_KERNEL:
                    raise
                in_kernel = False
                continue
        else:
            piece = os.pread(source, min(size, COPY_BYTES), start)
            write_all(target, piece, to)
            done = len(piece)
        if not done:
            raise OSError(errno.EIO, "the file ends earlier than it did")
        start, to, size = start + done, to + done, size - done
