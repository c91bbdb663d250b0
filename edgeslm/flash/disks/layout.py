"""What of an image is written, in which order, and by which digests it is known again. Pure.

What always holds: runs are ascending, disjoint and aligned, and cover every unit. A unit is a range of the image's
block map, with its SHA-256; an image without a map has none, and is compared itself. Blocks that a map leaves out may
be written or not (their content is undefined, by the map's own meaning): gaps too short to be worth a jump are written
along, with what the image holds there, and no digest covers them.

Source: bmap-tools, ``TransRead.py`` and the format's own comment, block map 2.0.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from edgeslm.errors import ImageContentError
from edgeslm.flash.image.bmap import BlockMap

STEP_BYTES = 4 * 2**20
"""How much is read and written at once; SD cards erase in units of that size (SD Physical Layer, 4.13, AU_SIZE)."""
HEAD_BYTES = 2**20
"""Kept back until all the rest is known to be there: partition tables, and boot loaders of most boards."""
SECTOR_BYTES = 512
_SHORT_GAP_BYTES = 256 * 2**10


@dataclass(frozen=True)
class Run:
    """Bytes that are written one after the other, `start` included and `end` not."""

    start: int
    end: int


@dataclass(frozen=True)
class Unit:
    """Bytes with one digest.

    Attributes:
        sha256: what the image's block map says they are.
    """

    start: int
    end: int
    sha256: str


@dataclass(frozen=True)
class Layout:
    """An image, seen by who writes it.

    Attributes:
        image_bytes: its size.
        units: ascending and disjoint; none without a block map.
    """

    image_bytes: int
    runs: tuple[Run, ...]
    units: tuple[Unit, ...]

    @property
    def written_bytes(self) -> int:
        """How many bytes are written."""
        return sum(run.end - run.start for run in self.runs)


def plan_layout(image_bytes: int, blocks: BlockMap | None, *, path: str) -> Layout:
    """How an image of `image_bytes` is written.

    Args:
        blocks: its block map, where it has one.
        path: the image, for errors.

    Raises:
        ImageContentError: its size is none of an image, or not that of its map.
    """
    if image_bytes < SECTOR_BYTES or image_bytes % SECTOR_BYTES:
        raise ImageContentError(
            f"{path} has {image_bytes} bytes, and an image of a disk is made of blocks of {SECTOR_BYTES}",
            path=path,
            hint="It was cut off on its way: fetch it again",
        )
    if blocks is None:
        return Layout(image_bytes, (Run(0, image_bytes),), ())
    if blocks.image_bytes != image_bytes:
        raise ImageContentError(
            f"{path} has {image_bytes} bytes, and its block map says {blocks.image_bytes}",
            path=path,
            hint="One of them is of another image, or was cut off: fetch both again, or use --no-bmap",
        )
    size = blocks.block_bytes
    units = tuple(
        Unit(one.first * size, min((one.last + 1) * size, image_bytes), one.sha256) for one in blocks.ranges
    )
    return Layout(image_bytes, _joined(units), units)


def _joined(units: Sequence[Unit]) -> tuple[Run, ...]:
    """Runs that cover `units`, short gaps written along."""
    runs: list[Run] = []
    for unit in units:
        if runs and unit.start - runs[-1].end < _SHORT_GAP_BYTES:
            runs[-1] = Run(runs[-1].start, unit.end)
        else:
            runs.append(Run(unit.start, unit.end))
    return tuple(runs)


class Digester:
    """Digests of units, from bytes that come in ascending order."""

    def __init__(self, units: Sequence[Unit]) -> None:
        """Begin at the first unit."""
        self._units = units
        self._at = 0
        self._hash = hashlib.sha256()
        self._fed = 0
        self.digests: list[bytes] = []

    def feed(self, offset: int, data: bytes | memoryview) -> list[int]:
        """Take bytes at `offset`, and return the indices of the units that they complete.

        Raises:
            ValueError: bytes of a unit were left out.
        """
        view = memoryview(data)
        end, done = offset + len(view), []
        while self._at < len(self._units):
            unit = self._units[self._at]
            if unit.start >= end:
                break
            begin = unit.start + self._fed
            if begin < offset:
                raise ValueError(f"bytes from {begin} to {offset} of the image were left out")
            upto = min(unit.end, end)
            self._hash.update(view[begin - offset : upto - offset])
            self._fed += upto - begin
            if upto < unit.end:
                break
            self.digests.append(self._hash.digest())
            done.append(self._at)
            self._at += 1
            self._hash, self._fed = hashlib.sha256(), 0
        return done

    @property
    def complete(self) -> bool:
        """Every unit has its digest."""
        return self._at == len(self._units)


def steps(layout: Layout, align_bytes: int) -> tuple[Run, ...]:
    """What is read and written at once: the runs, cut at multiples of :data:`STEP_BYTES` and at the head's end.

    Args:
        align_bytes: each begins and ends at a multiple of this; the last may reach beyond the image.
    """
    found: list[Run] = []
    for run in layout.runs:
        start = run.start // align_bytes * align_bytes
        end = -(-run.end // align_bytes) * align_bytes
        start = max(start, found[-1].end) if found else start
        while start < end:
            cut = HEAD_BYTES if start < HEAD_BYTES else (start // STEP_BYTES + 1) * STEP_BYTES
            found.append(Run(start, min(cut, end)))
            start = min(cut, end)
    return tuple(found)
