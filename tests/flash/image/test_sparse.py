"""Files with holes."""

from __future__ import annotations

import errno
import os
import random
from pathlib import Path

import pytest

from edgeslm.flash.image.sparse import copy_part, data_ranges, write_all

MIB = 2**20


@pytest.fixture
def holey(tmp_path: Path) -> Path:
    path = tmp_path / "holey"
    with path.open("wb") as stream:
        for at in (MIB, 5 * MIB + 77, 40 * MIB):
            stream.seek(at)
            stream.write(random.Random(at).randbytes(300_000))
        stream.truncate(64 * MIB)
    return path


def test_ranges_hold_all_that_is_not_zero(holey: Path) -> None:
    data = bytearray(holey.read_bytes())
    with holey.open("rb") as stream:
        ranges = list(data_ranges(stream.fileno(), 0, len(data)))
        part = list(data_ranges(stream.fileno(), 5 * MIB, 6 * MIB))
        assert list(data_ranges(stream.fileno(), 50 * MIB, 64 * MIB)) == []
    assert len(ranges) == 3
    for start, end in ranges:
        data[start:end] = bytes(end - start)
    assert not any(data)
    assert all(5 * MIB <= start < end <= 6 * MIB for start, end in part)


def test_a_host_that_knows_no_holes_gives_one_part(holey: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise OSError(errno.EINVAL, "no")

    with holey.open("rb") as stream:
        monkeypatch.setattr(os, "lseek", refuse)
        assert list(data_ranges(stream.fileno(), 7, 64 * MIB)) == [(7, 64 * MIB)]


@pytest.mark.parametrize("in_kernel", [True, False])
def test_a_copied_part_has_the_same_bytes_and_holes(
    holey: Path, monkeypatch: pytest.MonkeyPatch, in_kernel: bool
) -> None:
    if not in_kernel:

        def refuse(*_: object) -> int:
            raise OSError(errno.EXDEV, "no")

        monkeypatch.setattr(os, "copy_file_range", refuse)
    copy = holey.with_name("copy")
    with holey.open("rb") as reading, copy.open("xb") as writing:
        copy_part(reading.fileno(), writing.fileno(), start=0, size=64 * MIB)
        writing.truncate(64 * MIB)
    assert copy.read_bytes() == holey.read_bytes()
    assert copy.stat().st_blocks * 512 < 2 * MIB


def test_a_part_is_copied_to_another_place(holey: Path) -> None:
    with holey.open("rb") as reading, holey.with_name("part").open("x+b") as writing:
        copy_part(reading.fileno(), writing.fileno(), start=5 * MIB, size=MIB, to=123)
        os.ftruncate(writing.fileno(), MIB + 123)
        writing.seek(0)
        assert writing.read() == bytes(123) + holey.read_bytes()[5 * MIB : 6 * MIB]


def test_a_short_write_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda descriptor, data, at: write(descriptor, bytes(data)[:3], at))
    with (tmp_path / "out").open("x+b") as stream:
        write_all(stream.fileno(), b"0123456789", 2)
    assert (tmp_path / "out").read_bytes() == b"\0\x000123456789"
