"""Whole images to and from a disk, past the page cache, and without their zeros.

An image is read once and written once. Kept by the kernel it would push out of memory what others need, and the pages
for it cost a processor more than the disk takes. So the disk reads and writes our own buffers (``O_DIRECT``), several
at a time.

What always holds: the bytes are those of ordinary reads and writes. Where a file system does not know ``O_DIRECT``, or
wants it otherwise aligned, and where the file is in memory already, they are ordinary ones. Holes are not read, and
blocks of zeros are not written.

Source: open(2), "O_DIRECT"; preadv2(2), RWF_NOWAIT; ioctl_ficlone(2).
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from edgeslm.errors import ImageError
from edgeslm.flash.image.beside import LAG, Beside
from edgeslm.flash.image.sparse import data_ranges

STEP_BYTES = 4 * 2**20
"""What is read and written at a time."""
_GATHER_BYTES = 2**20
"""What comes piece by piece is written at a time; decoders are slower than disks."""
_UNIT_BYTES = 64 * 2**10
"""What is left out as zeros, or written."""
_ALIGN_BYTES = 4096
_AHEAD = 2
"""Reads under way at once: with one, a fast disk has nothing to do between two of them."""
_PROBES = 8
_ZEROS = bytearray(_UNIT_BYTES)
_FICLONE = 0x40049409


@dataclass(frozen=True)
class Chunk:
    """A piece of a file.

    Attributes:
        start, end: where it lies in the file; `start` is a multiple of :data:`STEP_BYTES`.
        data: its bytes, which stay until :data:`~edgeslm.flash.image.beside.LAG` more chunks were taken, so that a
            stage :class:`~edgeslm.flash.image.beside.Beside` can have them; ``None`` for zeros.
    """

    start: int
    end: int
    data: memoryview | None


def aligned(size_bytes: int) -> memoryview:
    """A buffer that begins at a page, as ``O_DIRECT`` wants it; zeros at first."""
    return memoryview(mmap.mmap(-1, size_bytes))


def chunks(descriptor: int, size_bytes: int) -> Generator[Chunk]:
    """All of a file that is open for reading, in order. Meanwhile nothing else is read by this descriptor.

    Raises:
        OSError: it cannot be read.
        EOFError: it ends earlier.
    """
    places = list(_places(descriptor, size_bytes))
    full = [start for start, _, is_data in places if is_data]
    with (
        _past_cache(descriptor, unless=full[:: -(-len(full) // _PROBES) or 1]),
        ThreadPoolExecutor(_AHEAD) as readers,
    ):
        buffers = [aligned(STEP_BYTES) for _ in range(min(_AHEAD + LAG + 1, len(full)))]
        waiting: deque[tuple[int, int, Future[memoryview] | None]] = deque()
        used = 0
        for start, end, is_data in places:
            reading = None
            if is_data:
                reading = readers.submit(_fill, descriptor, buffers[used % len(buffers)], start, end)
                used += 1
            waiting.append((start, end, reading))
            if len(waiting) > _AHEAD:
                yield _chunk(*waiting.popleft())
        while waiting:
            yield _chunk(*waiting.popleft())
    if os.fstat(descriptor).st_size < size_bytes:  # what is beyond its end looks like a hole
        raise EOFError(f"the file ends before byte {size_bytes}")


def copy_sparse(source: Path, target: Path) -> None:
    """Copy an image to a file that must not be there yet; zeros become holes.

    Raises:
        ImageError: either refuses; nothing is left of the copy.
    """
    try:
        with source.open("rb") as reading, target.open("xb") as writing:
            try:
                size = os.fstat(reading.fileno()).st_size
                copy_whole(reading.fileno(), writing.fileno(), size)
            except BaseException:
                target.unlink(missing_ok=True)
                raise
    except (OSError, EOFError) as error:
        raise ImageError(
            f"cannot copy {source} to {target}: {getattr(error, 'strerror', None) or error}", path=str(target)
        ) from error


def copy_whole(source: int, target: int, size_bytes: int) -> None:
    """Copy an open file to one that is open for writing and has nothing in it; zeros become holes.

    Raises:
        OSError: either refuses.
        EOFError: the source is shorter.
    """
    if clone(source, target):
        return
    with closing(chunks(source, size_bytes)) as found, SparseWriter(target) as writer:
        os.ftruncate(target, size_bytes)
        for chunk in found:
            writer.put(chunk)
        writer.finish(size_bytes)


def clone(source: int, target: int) -> bool:
    """Let an empty file have the blocks of another until either is changed; whether their file system can do that."""
    try:
        fcntl.ioctl(target, _FICLONE, source)
    except OSError:
        return False
    return True


class SparseWriter:
    """A new file that is written from its start to its end in a thread of its own; use it as a context manager."""

    def __init__(self, descriptor: int) -> None:
        """Begin.

        Args:
            descriptor: open for writing, of a file with nothing but holes; it belongs to who made this.
        """
        self._descriptor = descriptor
        self._beside = Beside()
        self._direct = _past_cache(descriptor)
        self._buffers: list[memoryview] = []
        self._size = 0

    def __enter__(self) -> SparseWriter:
        self._direct.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._beside.__exit__()
        self._direct.__exit__(None, None, None)

    def put(self, chunk: Chunk) -> None:
        """Write a chunk of another file to the same place.

        Raises:
            OSError: the disk refused something before.
        """
        if chunk.data is not None:
            self._beside.do(_write, self._descriptor, chunk.data, chunk.start)

    def add(self, data: bytes) -> None:
        """Go on with `data`, of any length.

        Raises:
            OSError: the disk refused something before.
        """
        left = memoryview(data)
        while left:
            number, place = divmod(self._size, _GATHER_BYTES)
            if len(self._buffers) <= min(number, LAG):
                self._buffers.append(aligned(_GATHER_BYTES))
            buffer = self._buffers[number % (LAG + 1)]
            taken = min(len(left), _GATHER_BYTES - place)
            buffer[place : place + taken] = left[:taken]
            left, self._size = left[taken:], self._size + taken
            if place + taken == _GATHER_BYTES:
                self._beside.do(_write, self._descriptor, buffer, number * _GATHER_BYTES)

    def finish(self, size_bytes: int) -> None:
        """Write what is left; the file is `size_bytes` long then.

        Raises:
            OSError: the disk refuses.
        """
        number, place = divmod(self._size, _GATHER_BYTES)
        if place:
            buffer = self._buffers[number % (LAG + 1)]
            self._beside.do(_write, self._descriptor, buffer[:place], number * _GATHER_BYTES)
        self._beside.wait()
        os.ftruncate(self._descriptor, size_bytes)


def is_zero(data: memoryview) -> bool:
    """Whether all of `data`, at most 64 KiB, is zero."""
    # A bytearray is compared at once, memoryviews element by element.
    return (_ZEROS if len(data) == len(_ZEROS) else _ZEROS[: len(data)]) == data


# --- pieces -----------------------------------------------------------------------------------------------------


def _places(descriptor: int, size_bytes: int) -> Iterator[tuple[int, int, bool]]:
    """A file step by step, as (start, end, whether anything but a hole is there)."""
    ranges = list(data_ranges(descriptor, 0, size_bytes))
    index = 0
    for start in range(0, size_bytes, STEP_BYTES):
        end = min(start + STEP_BYTES, size_bytes)
        while index < len(ranges) and ranges[index][1] <= start:
            index += 1
        yield start, end, index < len(ranges) and ranges[index][0] < end


def _chunk(start: int, end: int, reading: Future[memoryview] | None) -> Chunk:
    return Chunk(start, end, None if reading is None else reading.result())


def _fill(descriptor: int, buffer: memoryview, start: int, end: int) -> memoryview:
    """Read from `start` to `end`, a little more where that is no whole block."""
    size = end - start
    view, got = buffer[: -(-size // _ALIGN_BYTES) * _ALIGN_BYTES], 0
    while got < size:
        direct = _is_direct(descriptor)
        try:
            more = os.preadv(descriptor, [view[got:]], start + got)
        except OSError as error:
            if not direct or error.errno != errno.EINVAL:
                raise
            _through_cache(descriptor)
            continue
        if not more:
            raise EOFError(f"the file ends at byte {start + got}")
        got += more
    return view[:size]


def _write(descriptor: int, data: memoryview, at: int) -> None:
    """Write `data` at `at` but for blocks of zeros; what is no whole block goes through the page cache."""
    first: int | None = None
    for place in range(0, len(data), _UNIT_BYTES):
        if is_zero(data[place : place + _UNIT_BYTES]):
            if first is not None:
                _write_all(descriptor, data[first:place], at + first)
            first = None
        elif first is None:
            first = place
    if first is not None:
        _write_all(descriptor, data[first:], at + first)


def _write_all(descriptor: int, data: memoryview, at: int) -> None:
    while data:
        direct = _is_direct(descriptor)
        try:
            written = os.pwrite(descriptor, data, at)
        except OSError as error:
            if not direct or error.errno != errno.EINVAL:
                raise
            _through_cache(descriptor)
            continue
        data, at = data[written:], at + written


@contextmanager
def _past_cache(descriptor: int, *, unless: list[int] | None = None) -> Iterator[None]:
    """Let a descriptor read and write past the page cache where it can.

    Args:
        unless: places of a file that is read; where all of them are in memory, all of it is likely to be, and memory is
            faster than the disk.
    """
    flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
    if not unless or not all(_is_cached(descriptor, place) for place in unless):
        with suppress(OSError):  # a file system that does not know it
            fcntl.fcntl(descriptor, fcntl.F_SETFL, flags | os.O_DIRECT)
    try:
        yield
    finally:
        fcntl.fcntl(descriptor, fcntl.F_SETFL, flags)


def _is_cached(descriptor: int, place: int) -> bool:
    try:
        return os.preadv(descriptor, [bytearray(1)], place, os.RWF_NOWAIT) == 1
    except OSError:
        return False


def _is_direct(descriptor: int) -> bool:
    """Whether ``O_DIRECT`` is in use; asked before a call, since a read beside it may have done with it after."""
    return bool(fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT)


def _through_cache(descriptor: int) -> None:
    """Have done with ``O_DIRECT``."""
    fcntl.fcntl(descriptor, fcntl.F_SETFL, fcntl.fcntl(descriptor, fcntl.F_GETFL) & ~os.O_DIRECT)
