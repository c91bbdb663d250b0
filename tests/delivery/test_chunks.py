"""A chunk map has one byte form, and belongs to one file."""

from __future__ import annotations

import hashlib
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeslm.delivery.chunks import ChunkMap, map_blob, parse_map, write_map
from edgeslm.errors import ChunkMapError, DeliveryDiskError
from edgeslm.schema.delivery import BLOCK_BYTES, BlobRef


@pytest.mark.parametrize("size", [1, BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 1, 5 * BLOCK_BYTES, 300_001])
def test_a_map_fits_every_block_of_its_file_and_no_other(tmp_path, size):
    data = os.urandom(size)
    (tmp_path / "file").write_bytes(data)
    blob = write_map(tmp_path / "file")
    written = (tmp_path / "file.chunks").read_bytes()
    assert blob.sha256 == hashlib.sha256(data).hexdigest()
    assert blob.chunks_sha256 == hashlib.sha256(written).hexdigest()
    of_map = map_blob(blob)
    assert of_map is not None
    assert (of_map.sha256, of_map.size_bytes) == (blob.chunks_sha256, len(written))
    chunks = parse_map(written, blob)
    assert chunks.encode() == written
    blocks = [data[at : at + BLOCK_BYTES] for at in range(0, size, BLOCK_BYTES)]
    for index in range(blob.block_count):
        assert [number for number, block in enumerate(blocks) if chunks.fits(index, block)] == [index]
        assert blob.block_bytes(index) == len(blocks[index])
    assert not chunks.fits(blob.block_count, b"")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "file.chunks"]


@given(st.data())
def test_any_other_bytes_are_no_map(data):
    chunks = ChunkMap("ab" * 32, BLOCK_BYTES + 1, bytes(range(64)))
    blob = BlobRef(sha256="ab" * 32, size_bytes=BLOCK_BYTES + 1, chunks_sha256="00" * 32)
    right = chunks.encode()
    head = len(right) - 64
    position, flip = data.draw(st.integers(0, head - 1)), data.draw(st.integers(1, 255))
    changed = bytearray(right)
    changed[position] ^= flip
    for bad in (bytes(changed), right[:position], right + b"x", right[:-1]):
        with pytest.raises(ChunkMapError):
            parse_map(bad, blob)
    assert parse_map(right, blob) == chunks


def test_a_map_of_another_file_is_refused():
    right = ChunkMap("ab" * 32, 5, bytes(32)).encode()
    for other in (BlobRef(sha256="cd" * 32, size_bytes=5), BlobRef(sha256="ab" * 32, size_bytes=6)):
        with pytest.raises(ChunkMapError):
            parse_map(right, other)


def test_what_cannot_be_mapped_is_a_disk_error(tmp_path):
    (tmp_path / "empty").write_bytes(b"")
    os.mkfifo(tmp_path / "fifo")
    for name in ("empty", "fifo", "missing", "."):
        with pytest.raises(DeliveryDiskError):
            write_map(tmp_path / name)
    assert not list(tmp_path.glob("*.chunks"))


def test_the_maps_of_the_largest_files_stay_small():
    largest = BlobRef(sha256="ab" * 32, size_bytes=2**36, chunks_sha256="cd" * 32)
    of_map = map_blob(largest)
    assert of_map is not None
    assert of_map.size_bytes < 2**25 + 100
