"""A memory stick gives what it has, under whatever name."""

from __future__ import annotations

import os

import pytest

from edgeslm.delivery.file_source import FileSource
from edgeslm.errors import DeliveryCancelledError, SourceError, SourceMissingError
from edgeslm.schema.delivery import BLOCK_BYTES

SIZE = 3 * BLOCK_BYTES + 5


@pytest.fixture
def blob(library):
    return library.add(SIZE)


def take(source, blob, *wanted, received=lambda _: None):
    return dict(source.blocks(blob, wanted or [range(4)], received))


@pytest.mark.parametrize("name", ["{}", "{}.slm", "{}.blob", "whatever is its name.slm"])
def test_a_file_is_found(library, blob, name):
    data = library.data(blob.sha256)
    (library.directory / blob.sha256).rename(library.directory / name.format(blob.sha256))
    (library.directory / "other").write_bytes(bytes(SIZE))
    source = FileSource(library.directory)
    assert source.reach == "local"
    got = take(source, blob)
    assert b"".join(got[index] for index in range(4)) == data
    assert take(source, blob, range(3, 4)) == {3: data[3 * BLOCK_BYTES :]}


def test_what_is_not_there_is_missing(library, blob):
    (library.directory / blob.sha256).write_bytes(b"shorter")
    os.mkfifo(library.directory / "fifo")
    (library.directory / "folder").mkdir()
    other = library.add(SIZE, seed=2)
    (library.directory / other.sha256).unlink()
    with pytest.raises(SourceMissingError):
        take(FileSource(library.directory), other)


def test_a_stick_that_is_pulled_out_is_a_source_error(tmp_path, library, blob):
    with pytest.raises(SourceError):
        take(FileSource(tmp_path / "gone"), blob)
    source = FileSource(library.directory)
    with pytest.raises(SourceError, match="changed while it was read"):
        take(source, blob, received=lambda _: os.truncate(library.directory / blob.sha256, 10))


def test_what_the_taker_raises_passes_through(library, blob):
    def stop(_):
        raise DeliveryCancelledError("no longer wanted")

    with pytest.raises(DeliveryCancelledError):
        take(FileSource(library.directory), blob, received=stop)
