"""Deltas between packages: the form, and rebuilding a package file from an installed one.

A delta describes the bytes of a target ``.slm`` by those of a base. The target is cut into frames of 1 MiB;
a frame is copied together from *runs* of the base, and then *values* are added, byte by byte modulo 256, at
the places where the two differ. Between int8 graphs of one layout most differences are small and few, so that
their places and values compress to a few per cent. What the base does not have is a run of zeros to which
everything is added.

::

    file     magic "SLMDELTA", version, size and sha256 of the base, size and sha256 of the target, frames
    frame    packed and plain size of three parts, and the parts: runs, gaps, values
    runs     (length, offset in the base, or -1 for zeros) each
    gaps     a byte for each difference: how many equal bytes lie before it; 255 means 255 equal bytes and no
             difference yet. Empty when there are values: a value for every byte of the frame
    values   a palette and indexes into it of 1, 2 or 4 bits; or an empty palette and bytes
    parts    raw DEFLATE (RFC 1951), or as they are where that is shorter

What always holds:

* Memory is bounded by the size of a frame, whatever a delta claims; nothing outside of the base is read and
  nothing behind the end of the target is written.
* A file under the target's name has the sha256 that was asked for. After an error there is none.

Left to others: making deltas (:mod:`edgeslm.models.delta_making`), fetching them, and trusting them: a delta
needs no trust, because its result is checked against a sha256 that is trusted.
"""

from __future__ import annotations

import hashlib
import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgeslm.errors import DeltaError, PackageError
from edgeslm.files import sync_directory
from edgeslm.models.archive import open_regular
from edgeslm.models.image import Image, PackageImage
from edgeslm.models.package import writing
from edgeslm.schema.installed import InstalledPackage
from edgeslm.schema.package import MAX_PACKAGE_BYTES

Octets: TypeAlias = NDArray[np.uint8]

FRAME_BYTES = 2**20
MAX_RUNS = 4096
MAX_SPARSE_VALUES = FRAME_BYTES // 4
"""Differences in one frame that are still given as places; beyond it every byte has a value."""

HEADER = struct.Struct("<8sI32sQ32sQ")
MAGIC = b"SLMDELTA"
VERSION = 1
FRAME = struct.Struct("<6I")
RUN = struct.Struct("<Iq")
NOWHERE = -1
SKIP = 255

_SYNC_FRAMES = 4
"""A card that has to take all at once holds up everybody else's syncs, the journal's among them."""
_MAX_RUNS_BYTES = MAX_RUNS * RUN.size
_MAX_GAPS_BYTES = MAX_SPARSE_VALUES + FRAME_BYTES // SKIP + 1
_MAX_VALUES_BYTES = FRAME_BYTES + 17


@dataclass(frozen=True)
class DeltaHeader:
    """What a delta leads from, and to.

    Attributes:
        base_sha256: of the package file that the base was unpacked from.
        target_sha256: of the package file that comes out.
    """

    base_sha256: str
    base_bytes: int
    target_sha256: str
    target_bytes: int

    def encode(self) -> bytes:
        """The first bytes of the delta."""
        ends = (bytes.fromhex(self.base_sha256), self.base_bytes)
        return HEADER.pack(MAGIC, VERSION, *ends, bytes.fromhex(self.target_sha256), self.target_bytes)


def read_header(delta: Path) -> DeltaHeader:
    """What the delta at `delta` leads from, and to.

    Raises:
        DeltaError: it is no delta, of a later version, or cannot be read.
    """
    with _opened(delta) as stream:
        return _read_header(stream, delta)


def apply_delta(delta: Path, base: InstalledPackage, out: Path, *, sha256: str, size_bytes: int) -> None:
    """Rebuild the package file `out`, replacing a file of that name, and sync it to the disk.

    Besides the interpreter and numpy this takes a few MiB of memory, whatever the sizes. Cut off at any point,
    it leaves at most a file ``.<name of out>.partial``, which the next attempt replaces.

    Args:
        delta: the delta.
        base: the package that it was made from.
        out: path of the package file; its directory exists.
        sha256: what the result has to have.
        size_bytes: what the result has to have.

    Raises:
        DeltaError: damaged, made for another base or another target, or its result is another file.
        PackageError: the base cannot be read.
        StoreError: `out` cannot be written.
    """
    with _opened(delta) as stream, PackageImage(base) as image:
        header = _read_header(stream, delta)
        found = (header.base_sha256, header.base_bytes, header.target_sha256, header.target_bytes)
        if found != (base.sha256, image.size_bytes, sha256, size_bytes):
            raise DeltaError(
                f"{delta.name}: leads from {header.base_sha256} ({header.base_bytes} bytes) to "
                f"{header.target_sha256} ({header.target_bytes} bytes), and not from {base.sha256} "
                f"({image.size_bytes} bytes) to {sha256} ({size_bytes} bytes)",
                path=str(delta), sha256=sha256,
            )  # fmt: skip
        temporary = out.parent / f".{out.name}.partial"
        try:
            _write(rebuilt(stream, image, size_bytes, delta), temporary, delta, sha256)
            with writing(out):
                temporary.replace(out)
                sync_directory(out.parent)
        finally:
            temporary.unlink(missing_ok=True)


def rebuilt(stream: BufferedReader, base: Image, target_bytes: int, path: Path) -> Iterator[memoryview]:
    """The frames of the target, in order.

    Args:
        stream: the delta behind its header.
        base: what it was made from.
        target_bytes: size of the target.
        path: of the delta, for errors.

    Raises:
        DeltaError: it is damaged.
        PackageError: the base cannot be read.
    """
    left = target_bytes
    while left:
        frame_bytes = min(FRAME_BYTES, left)
        left -= frame_bytes
        sizes = FRAME.unpack(_read(stream, FRAME.size, path))
        runs = _part(stream, sizes[0:2], _MAX_RUNS_BYTES, path)
        gaps = _part(stream, sizes[2:4], _MAX_GAPS_BYTES, path)
        values = _part(stream, sizes[4:6], _MAX_VALUES_BYTES, path)
        frame = _copied(runs, base, frame_bytes, path)
        if gaps:
            places = _places(gaps, frame_bytes, path)
            frame[places] += _unpacked(values, len(places), path)
        elif values:
            frame += _unpacked(values, frame_bytes, path)
        yield frame.data
    if _read_up_to(stream, 1, path):
        raise _damaged(path, "has bytes behind its last frame")


# --- parts --------------------------------------------------------------------------------------------------


def _read_header(stream: BufferedReader, path: Path) -> DeltaHeader:
    magic, version, base, base_bytes, target, target_bytes = HEADER.unpack(_read(stream, HEADER.size, path))
    if magic != MAGIC:
        raise DeltaError(f"{path.name}: is not a delta between packages", path=str(path))
    if version != VERSION:
        raise DeltaError(
            f"{path.name}: is of delta version {version}; this release knows {VERSION}", path=str(path)
        )
    if not (0 < base_bytes <= MAX_PACKAGE_BYTES and 0 < target_bytes <= MAX_PACKAGE_BYTES):
        raise _damaged(path, "names a size that no package has")
    return DeltaHeader(base.hex(), base_bytes, target.hex(), target_bytes)


def _part(stream: BufferedReader, sizes: tuple[int, ...], limit_bytes: int, path: Path) -> bytes:
    packed_bytes, plain_bytes = sizes
    if not packed_bytes <= plain_bytes <= limit_bytes:
        raise _damaged(path, "names a size that no part of a frame has")
    packed = _read(stream, packed_bytes, path)
    if packed_bytes == plain_bytes:
        return packed
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        # One byte more than stated tells a longer one; no memory is taken beyond it.
        plain = inflater.decompress(packed, plain_bytes + 1)
    except zlib.error as error:
        raise _damaged(path, f"does not inflate: {error}") from error
    if len(plain) != plain_bytes or not inflater.eof or inflater.unused_data:
        raise _damaged(path, "inflates to another size than it names")
    return plain


def _copied(runs: bytes, base: Image, frame_bytes: int, path: Path) -> Octets:
    frame: Octets = np.zeros(frame_bytes, np.uint8)
    if len(runs) % RUN.size:
        raise _damaged(path, "has a broken list of runs")
    filled = 0
    for length, offset in RUN.iter_unpack(runs):
        if not 0 < length <= frame_bytes - filled:
            raise _damaged(path, "has a run that leaves its frame")
        if offset != NOWHERE:
            if not 0 <= offset <= base.size_bytes - length:
                raise _damaged(path, "has a run that leaves the base")
            frame[filled : filled + length] = np.frombuffer(base.read(offset, length), np.uint8)
        filled += length
    if filled != frame_bytes:
        raise _damaged(path, "has runs that do not fill their frame")
    return frame


def _places(gaps: bytes, frame_bytes: int, path: Path) -> NDArray[np.int32]:
    steps = np.frombuffer(gaps, np.uint8)
    differs = steps != SKIP
    places: NDArray[np.int32] = np.cumsum(steps, dtype=np.int32)
    places += np.cumsum(differs, dtype=np.int32)
    places = places[differs] - 1
    if len(places) and places[-1] >= frame_bytes:
        raise _damaged(path, "has a difference that leaves its frame")
    return places


def index_bits(palette_size: int) -> int:
    """Bits of an index into a palette of that many values."""
    return 1 if palette_size <= 2 else 2 if palette_size <= 4 else 4


def _unpacked(part: bytes, count: int, path: Path) -> Octets:
    """The `count` values in `part`."""
    palette_size = part[0] if part else 0
    palette, data = part[1 : 1 + palette_size], np.frombuffer(part, np.uint8)[1 + palette_size :]
    if not part or palette_size > 16 or len(palette) != palette_size:
        raise _damaged(path, "has a broken palette")
    if not palette:
        values = data
    else:
        bits = index_bits(palette_size)
        whole = np.zeros(16, np.uint8)
        whole[:palette_size] = np.frombuffer(palette, np.uint8)
        values = np.empty((len(data), 8 // bits), np.uint8)
        for column in range(8 // bits):
            values[:, column] = whole[(data >> bits * column) & (1 << bits) - 1]
        values = values.reshape(-1)
        if len(data) != -(-count * bits // 8):
            raise _damaged(path, "has another number of values than of differences")
        values = values[:count]
    if len(values) != count:
        raise _damaged(path, "has another number of values than of differences")
    return values


def _write(frames: Iterator[memoryview], out: Path, delta: Path, sha256: str) -> None:
    digest = hashlib.sha256()
    with writing(out):
        out.unlink(missing_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with os.fdopen(os.open(out, flags, 0o644), "wb") as stream:
            for number, frame in enumerate(frames, start=1):
                digest.update(frame)
                stream.write(frame)
                if number % _SYNC_FRAMES == 0:
                    stream.flush()
                    os.fdatasync(stream.fileno())
            stream.flush()
            os.fsync(stream.fileno())
    if digest.hexdigest() != sha256:
        raise DeltaError(
            f"{delta.name}: rebuilds {digest.hexdigest()} where {sha256} was to come out; "
            "the delta or the installed package is damaged",
            path=str(delta), sha256=sha256, hint="Fetch the whole package",
        )  # fmt: skip


# --- reading ------------------------------------------------------------------------------------------------


@contextmanager
def _opened(delta: Path) -> Iterator[BufferedReader]:
    try:
        with open_regular(delta, delta) as stream:
            yield stream
    except PackageError as error:
        if error.path != str(delta):
            raise  # the base is to blame
        raise DeltaError(error.message, path=str(delta)) from error


def _read(stream: BufferedReader, size_bytes: int, path: Path) -> bytes:
    data = _read_up_to(stream, size_bytes, path)
    if len(data) != size_bytes:
        raise _damaged(path, "ends early")
    return data


def _read_up_to(stream: BufferedReader, size_bytes: int, path: Path) -> bytes:
    try:
        return stream.read(size_bytes)
    except OSError as error:
        raise DeltaError(f"{path.name}: cannot be read: {error.strerror}", path=str(path)) from error


def _damaged(path: Path, what: str) -> DeltaError:
    return DeltaError(f"{path.name}: {what}", path=str(path), hint="Fetch it again, or the whole package")
