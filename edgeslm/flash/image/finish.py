"""What a finished image is handed on with: its SHA-256, and the map of the blocks that have to be written.

A block is left out of the map only where its content means nothing to the file system that it lies in *and* it is zero.
What is zero and means something, such as an empty journal, has to be written: on a card that was used before there lies
something else. So the map follows from the content of the image alone, and not from how it is stored here.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from edgeslm.errors import ImageError
from edgeslm.files import replace_file
from edgeslm.flash.image.beside import Beside
from edgeslm.flash.image.bmap import BLOCK_BYTES, BlockMap, BlockRange, write_bmap
from edgeslm.flash.image.digests import SideDigest
from edgeslm.flash.image.ext4_reader import Ext4Reader
from edgeslm.flash.image.fat_reader import FatReader
from edgeslm.flash.image.filesystems import probe
from edgeslm.flash.image.partitions import read_table
from edgeslm.flash.image.past_cache import STEP_BYTES, chunks, is_zero
from edgeslm.flash.image.window import Window

UNIT_BYTES = 64 * 1024
"""What is left out or written as one: shorter gaps are not worth a seek."""
OnProgress = Callable[[int, int], None]
"""Told how many bytes of the image were read, and of how many; what it raises ends the reading."""


@dataclass(frozen=True)
class Finished:
    """A finished image.

    Attributes:
        sha256: of all of it.
        bmap_path: where its block map lies.
        digest_path: where its SHA-256 lies, in the form of sha256sum.
    """

    path: Path
    size_bytes: int
    sha256: str
    block_map: BlockMap
    bmap_path: Path
    digest_path: Path


def finish(path: Path, *, report: OnProgress | None = None) -> Finished:
    """Write ``<image>.sha256`` and ``<image>.bmap`` beside the image `path`, and sync all three.

    Raises:
        ImageError: it cannot be read, or they cannot be written.
        TreeError: a file system in it is damaged.
    """
    try:
        # Before it is read, so that what is hashed is what lies on the disk.
        with path.open("r+b") as stream:
            os.fsync(stream.fileno())
    except OSError as error:
        raise ImageError(f"cannot finish {path}: {error.strerror or error}", path=str(path)) from error
    digest, block_map = map_image(path, report=report)
    bmap_path = path.with_name(f"{path.name}.bmap")
    digest_path = path.with_name(f"{path.name}.sha256")
    try:
        replace_file(bmap_path, write_bmap(block_map))
        replace_file(digest_path, f"{digest}  {path.name}\n".encode())
    except OSError as error:
        raise ImageError(f"cannot finish {path}: {error.strerror or error}", path=str(path)) from error
    return Finished(path, block_map.image_bytes, digest, block_map, bmap_path, digest_path)


def map_image(path: Path, *, report: OnProgress | None = None) -> tuple[str, BlockMap]:
    """The SHA-256 of an image and its block map, both in one reading.

    Raises:
        ImageError: it cannot be read.
        TreeError: a file system in it is damaged.
    """
    try:
        with path.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            window = Window(path, stream.fileno(), 0, size)
            free = list(_free_units(window))
            with Beside() as beside:
                mapper = _Mapper(size, free, beside)
                mapper.read(stream.fileno(), report)
                return mapper.finish()
    except EOFError as error:
        raise ImageError(f"{path} became shorter while it was read", path=str(path)) from error
    except OSError as error:
        raise ImageError(f"cannot read {path}: {error.strerror or error}", path=str(path)) from error


def _free_units(window: Window) -> Iterator[tuple[int, int]]:
    """Whole units that nothing has taken, as (start, end) in the image, in order."""
    for partition in sorted(read_table(window).partitions, key=lambda each: each.start_bytes):
        part = window.part(partition.start_bytes, partition.size_bytes)
        match probe(part):
            case "ext4":
                ranges = Ext4Reader(part).free_ranges()
            case "FAT":
                ranges = FatReader(part).free_ranges()
            case _:
                continue
        for start, end in ranges:
            first = -(-(start + partition.start_bytes) // UNIT_BYTES) * UNIT_BYTES
            last = (end + partition.start_bytes) // UNIT_BYTES * UNIT_BYTES
            if first < last:
                yield first, last


class _Mapper:
    """Hashes an image as a whole and in parts, each in a thread of its own."""

    def __init__(self, size_bytes: int, free: list[tuple[int, int]], beside: Beside) -> None:
        self._size = size_bytes
        self._free = free
        self._beside = beside
        self._whole = SideDigest()
        self._ranges: list[BlockRange] = []
        self._range = hashlib.sha256()
        self._start: int | None = None
        self._zeros = memoryview(bytes(STEP_BYTES))
        self._next_free = 0

    def read(self, descriptor: int, report: OnProgress | None) -> None:
        """Read all of the image, holes by their length."""
        with closing(chunks(descriptor, self._size)) as found:
            for chunk in found:
                data = self._zeros[: chunk.end - chunk.start] if chunk.data is None else chunk.data
                self._whole.update(data)
                self._beside.do(self._take, chunk.start, data, chunk.data is None)
                if report is not None:
                    report(chunk.end, self._size)

    def finish(self) -> tuple[str, BlockMap]:
        """The digest of all, and the map."""
        self._beside.wait()
        self._close(self._size)
        return self._whole.hexdigest(), BlockMap(self._size, BLOCK_BYTES, tuple(self._ranges))

    def _take(self, at: int, data: memoryview, is_hole: bool) -> None:
        """Go on with the parts."""
        for first, last, left_out in self._parts(at, data, is_hole):
            if left_out:
                self._close(first)
                continue
            if self._start is None:
                self._start = first
            self._range.update(data[first - at : last - at])

    def _parts(self, at: int, data: memoryview, is_hole: bool) -> Iterator[tuple[int, int, bool]]:
        """Stretches of `data` that are left out or not, as (start, end, left out)."""
        start, before = at, None
        for unit in range(at, at + len(data), UNIT_BYTES):
            left_out = self._is_free(unit) and (is_hole or is_zero(data[unit - at : unit - at + UNIT_BYTES]))
            if before is not None and left_out != before:
                yield start, unit, before
                start = unit
            before = left_out
        if before is not None:
            yield start, at + len(data), before

    def _is_free(self, at: int) -> bool:
        while self._next_free < len(self._free) and self._free[self._next_free][1] <= at:
            self._next_free += 1
        return self._next_free < len(self._free) and self._free[self._next_free][0] <= at

    def _close(self, end: int) -> None:
        if self._start is None:
            return
        last = (end - 1) // BLOCK_BYTES
        self._ranges.append(BlockRange(self._start // BLOCK_BYTES, last, self._range.hexdigest()))
        self._start = None
        self._range = hashlib.sha256()
