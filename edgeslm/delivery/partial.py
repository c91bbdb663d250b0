"""A file while it arrives: what of it is here, on the disk, whatever happens to the power.

::

    <sha256>.part     the blocks that are here, at their places; the rest are holes
    <sha256>.have     magic, sha256, size, CRC-32 of the bitmap, bitmap: which blocks are here
    <sha256>.blob     the whole file; it gets that name by one rename after its sha256 was found right

What always holds: the bitmap names only blocks that were synced before it was written, and every block was
checked before it was written. A bitmap that is missing, torn or at odds with the file is no harm: it is made
anew by hashing what is there. So is one whose blocks turn out not to give the whole, and just the bad ones
are fetched again.

Blocks are synced every few MiB: a power cut costs no more than that, and a card need not sync each block.
"""

from __future__ import annotations

import hashlib
import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np

from edgeslm.delivery.chunks import ChunkMap
from edgeslm.delivery.files import FileBlob, disk_errors
from edgeslm.errors import ChunkMapError
from edgeslm.files import sync_directory
from edgeslm.schema.delivery import BLOCK_BYTES, BlobRef

SYNC_BYTES = 4 * 2**20

_HEADER = struct.Struct("<8s32sQI")
_MAGIC = b"SLMHAVE1"
_READ_BYTES = 2**20


class PartialFile:
    """What of one blob is here.

    Attributes:
        whole: path that the file has once all of it is here.
    """

    def __init__(self, directory: Path, blob: BlobRef, chunks: ChunkMap | None) -> None:
        """Open or begin the file; without a chunk map it always begins anew, as nothing can be checked.

        Raises:
            DeliveryDiskError: the disk refuses.
        """
        self.whole = directory / f"{blob.sha256}.blob"
        self._blob = blob
        self._chunks = chunks
        self._part = directory / f"{blob.sha256}.part"
        self._have = directory / f"{blob.sha256}.have"
        self._bitmap = bytearray(-(-blob.block_count // 8))
        self._unsynced: list[int] = []
        with ExitStack() as stack, disk_errors(self._part, needed_bytes=blob.size_bytes):
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            self._descriptor = os.open(self._part, flags, 0o644)
            stack.callback(os.close, self._descriptor)
            self._have_descriptor = os.open(self._have, flags, 0o644)
            stack.callback(os.close, self._have_descriptor)
            sync_directory(directory)
            if chunks is None:
                os.ftruncate(self._descriptor, 0)
            elif not self._read_bitmap():
                self._find_blocks()
            self._files = stack.pop_all()

    @property
    def done_bytes(self) -> int:
        """Bytes of the file that are here."""
        last = self._blob.block_count - 1
        count = int.from_bytes(self._bitmap, "little").bit_count()
        short = BLOCK_BYTES - self._blob.block_bytes(last) if self._has(last) else 0
        return count * BLOCK_BYTES - short

    def missing(self) -> list[range]:
        """Runs of the blocks that are not here, in ascending order."""
        bits = np.unpackbits(np.frombuffer(self._bitmap, np.uint8), bitorder="little")
        absent = bits[: self._blob.block_count] == 0
        edges = np.flatnonzero(np.diff(absent, prepend=False, append=False)).tolist()
        return [range(start, stop) for start, stop in zip(edges[::2], edges[1::2], strict=True)]

    def put(self, index: int, data: bytes) -> bool:
        """Keep the block `index`, unless it is not that block; whether it was.

        Raises:
            DeliveryDiskError: the disk refuses.
        """
        if not 0 <= index < self._blob.block_count or len(data) != self._blob.block_bytes(index):
            return False
        if self._chunks is not None and not self._chunks.fits(index, data):
            return False
        if self._has(index):
            return True
        with self._writing():
            _write_all(self._descriptor, data, index * BLOCK_BYTES)
        self._set(index)
        self._unsynced.append(index)
        if len(self._unsynced) * BLOCK_BYTES >= SYNC_BYTES:
            self.sync()
        return True

    def sync(self) -> None:
        """Make what is here survive a power cut.

        Raises:
            DeliveryDiskError: the disk refuses.
        """
        if not self._unsynced:
            return
        with self._writing():
            os.fdatasync(self._descriptor)
            # Memory is scarce, and nobody reads these pages before the check of the whole.
            first, last = min(self._unsynced), max(self._unsynced)
            span = (last - first + 1) * BLOCK_BYTES
            os.posix_fadvise(self._descriptor, first * BLOCK_BYTES, span, os.POSIX_FADV_DONTNEED)
            self._write_bitmap()
        self._unsynced.clear()

    def finish(self) -> bool:
        """Give the file its name if it is right as a whole; otherwise forget the blocks that are wrong.

        Raises:
            ChunkMapError: every block is right and the whole is not, so that the map is of another file.
            DeliveryDiskError: the disk refuses.
        """
        self.sync()
        if self._sha256() == self._blob.sha256:
            with self._writing():
                os.fsync(self._descriptor)
                # First: behind a rename that a kill cuts off it would stay for good.
                self._have.unlink(missing_ok=True)
                self._part.replace(self.whole)
                sync_directory(self.whole.parent)
            return True
        with self._writing():
            if self._chunks is None:
                self.restart()
            else:
                self._find_blocks()
        if self._chunks is not None and not self.missing():
            self.discard()
            raise ChunkMapError(
                f"{self._blob.sha256}: every block is as its chunk map says, and the whole is not",
                sha256=self._blob.sha256,
            )
        return False

    def restart(self) -> None:
        """Forget all blocks.

        Raises:
            DeliveryDiskError: the disk refuses.
        """
        with self._writing():
            os.ftruncate(self._descriptor, 0)
        self._bitmap = bytearray(len(self._bitmap))
        self._unsynced.clear()

    def discard(self) -> None:
        """Forget the file.

        Raises:
            DeliveryDiskError: the disk refuses.
        """
        with self._writing():
            self._part.unlink(missing_ok=True)
            self._have.unlink(missing_ok=True)

    def close(self) -> None:
        """Close the files; what was not synced may be lost."""
        self._files.close()

    # --- parts ---

    def _has(self, index: int) -> bool:
        return bool(self._bitmap[index >> 3] >> (index & 7) & 1)

    def _set(self, index: int) -> None:
        self._bitmap[index >> 3] |= 1 << (index & 7)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        with disk_errors(self._part, needed_bytes=self._blob.size_bytes - self.done_bytes):
            yield

    def _read_bitmap(self) -> bool:
        """Take the bitmap from the disk, if it is whole and nothing speaks against it."""
        data = os.pread(self._have_descriptor, _HEADER.size + len(self._bitmap) + 1, 0)
        if len(data) != _HEADER.size + len(self._bitmap):
            return False
        magic, sha256, size_bytes, checksum = _HEADER.unpack_from(data)
        bitmap = data[_HEADER.size :]
        if (magic, sha256.hex(), size_bytes) != (_MAGIC, self._blob.sha256, self._blob.size_bytes):
            return False
        if zlib.crc32(bitmap) != checksum or int.from_bytes(bitmap, "little") >> self._blob.block_count:
            return False
        last = int.from_bytes(bitmap, "little").bit_length() - 1
        end = last * BLOCK_BYTES + self._blob.block_bytes(last) if last >= 0 else 0
        if end > os.fstat(self._descriptor).st_size:
            return False
        self._bitmap = bytearray(bitmap)
        return True

    def _write_bitmap(self) -> None:
        identity = (bytes.fromhex(self._blob.sha256), self._blob.size_bytes, zlib.crc32(self._bitmap))
        _write_all(self._have_descriptor, _HEADER.pack(_MAGIC, *identity) + self._bitmap, 0)
        os.fdatasync(self._have_descriptor)

    def _find_blocks(self) -> None:
        """Find out by hashing which blocks are here."""
        self._bitmap = bytearray(len(self._bitmap))
        self._unsynced.clear()
        if os.fstat(self._descriptor).st_size > self._blob.size_bytes:
            os.ftruncate(self._descriptor, self._blob.size_bytes)
        present = min(os.fstat(self._descriptor).st_size // BLOCK_BYTES + 1, self._blob.block_count)
        for index in range(present):
            data = os.pread(self._descriptor, self._blob.block_bytes(index), index * BLOCK_BYTES)
            if self._chunks is not None and self._chunks.fits(index, data):
                self._set(index)
        os.fdatasync(self._descriptor)
        self._write_bitmap()

    def _sha256(self) -> str:
        # What is hashed is to come from the card and not from memory.
        os.posix_fadvise(self._descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        digest, offset = hashlib.sha256(), 0
        with self._writing():
            while data := os.pread(self._descriptor, _READ_BYTES, offset):
                digest.update(data)
                offset += len(data)
        return digest.hexdigest()


def is_whole(path: Path, blob: BlobRef) -> bool:
    """Whether the file at `path` is `blob`, to the last byte.

    Raises:
        DeliveryDiskError: it is there and cannot be read.
    """
    if not path.is_file() or path.stat().st_size != blob.size_bytes:
        return False
    digest = hashlib.sha256()
    with FileBlob(path) as file:
        for offset in range(0, file.size_bytes, _READ_BYTES):
            digest.update(file.read(offset, _READ_BYTES))
    return digest.hexdigest() == blob.sha256


def _write_all(descriptor: int, data: bytes | bytearray, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written
