"""Chunk maps: the sha256 of every block of a file, so that each is checked as it arrives.

::

    magic "SLMCHUNK", version, block size, size and sha256 of the file, sha256 of each block

A map is a file of its own, named by its sha256, which whoever vouches for the file vouches for as well. It
has one byte form. Beside a file it lies as ``<name of the file>.chunks``.
"""

from __future__ import annotations

import hashlib
import os
import struct
from dataclasses import dataclass
from pathlib import Path

from edgeslm.delivery.files import FileBlob, disk_errors
from edgeslm.errors import ChunkMapError
from edgeslm.files import sync_directory
from edgeslm.schema.delivery import BLOCK_BYTES, BlobRef

_HEADER = struct.Struct("<8sIIQ32s")
_MAGIC = b"SLMCHUNK"
_VERSION = 1
_DIGEST_BYTES = 32


@dataclass(frozen=True)
class ChunkMap:
    """The digests of the blocks of one file.

    Attributes:
        sha256: of the file.
        digests: sha256 of each block, one after the other.
    """

    sha256: str
    size_bytes: int
    digests: bytes

    def fits(self, index: int, data: bytes) -> bool:
        """Whether `data` is the block `index`."""
        at = index * _DIGEST_BYTES
        return hashlib.sha256(data).digest() == self.digests[at : at + _DIGEST_BYTES]

    def encode(self) -> bytes:
        """The bytes of the map."""
        sha256 = bytes.fromhex(self.sha256)
        return _HEADER.pack(_MAGIC, _VERSION, BLOCK_BYTES, self.size_bytes, sha256) + self.digests


def map_blob(blob: BlobRef) -> BlobRef | None:
    """The chunk map of `blob` as a blob, if it has one: its size follows from the file's."""
    if blob.chunks_sha256 is None:
        return None
    return BlobRef(sha256=blob.chunks_sha256, size_bytes=_HEADER.size + blob.block_count * _DIGEST_BYTES)


def parse_map(data: bytes, blob: BlobRef) -> ChunkMap:
    """The chunk map in `data`.

    Raises:
        ChunkMapError: it is none, or one of another file than `blob`.
    """
    sha256 = bytes.fromhex(blob.sha256)
    expected = _HEADER.pack(_MAGIC, _VERSION, BLOCK_BYTES, blob.size_bytes, sha256)
    if data[: _HEADER.size] != expected:
        raise ChunkMapError(f"not a chunk map of {blob.sha256}", sha256=blob.sha256)
    digests = data[_HEADER.size :]
    if len(digests) != blob.block_count * _DIGEST_BYTES:
        raise ChunkMapError(
            f"the chunk map of {blob.sha256} has {len(digests)} bytes of digests for "
            f"{blob.block_count} blocks",
            sha256=blob.sha256,
        )
    return ChunkMap(blob.sha256, blob.size_bytes, digests)


def write_map(path: Path) -> BlobRef:
    """Write the chunk map of the file at `path` beside it, synced, and say how to refer to the file.

    Raises:
        DeliveryDiskError: the file cannot be read or is empty, or the map cannot be written.
    """
    whole, digests = hashlib.sha256(), bytearray()
    with FileBlob(path) as file:
        for offset in range(0, file.size_bytes, BLOCK_BYTES):
            data = file.read(offset, BLOCK_BYTES)
            whole.update(data)
            digests += hashlib.sha256(data).digest()
        chunks = ChunkMap(whole.hexdigest(), file.size_bytes, bytes(digests))
    data = chunks.encode()
    out = path.with_name(f"{path.name}.chunks")
    temporary = out.with_name(f".{out.name}.partial")
    with disk_errors(out):
        with temporary.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(out)
        sync_directory(out.parent)
    return BlobRef(
        sha256=chunks.sha256, size_bytes=chunks.size_bytes, chunks_sha256=hashlib.sha256(data).hexdigest()
    )
