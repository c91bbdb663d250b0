"""Stretches of an image, and which file system lies in one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from edgeslm.errors import TreeError
from edgeslm.flash.image.filesystems import probe
from edgeslm.flash.image.window import Window
from tests.flash.image.conftest import Workshop


def test_a_window_reads_within_itself_alone(workshop: Workshop) -> None:
    (workshop.directory / "file").write_bytes(bytes(range(100)))
    window = workshop.window(workshop.directory / "file").part(10, 50).part(5, 20)
    assert window.read(0, 20) == bytes(range(15, 35))
    for at, size in ((0, 21), (20, 1), (-1, 1), (0, -1), (2**70, 1)):
        with pytest.raises(TreeError):
            window.read(at, size)
    for start, size in ((0, 21), (-1, 1), (21, 0), (0, -1)):
        with pytest.raises(TreeError):
            window.part(start, size)


def test_a_file_that_became_shorter_is_an_error_and_not_an_end(workshop: Workshop) -> None:
    path = workshop.directory / "file"
    path.write_bytes(bytes(100))
    window = workshop.window(path)
    os.truncate(path, 50)
    with pytest.raises(TreeError, match="ends within"):
        window.read(0, 100)


def test_a_closed_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(100))
    with (tmp_path / "file").open("rb") as stream:
        window = Window(tmp_path / "file", stream.fileno(), 0, 100)
    with pytest.raises(TreeError, match="cannot read"):
        window.read(0, 1)


def test_file_systems_are_told_by_their_marks(workshop: Workshop) -> None:
    assert probe(workshop.ext4()) == "ext4"
    for bits, size in (("12", 4), ("16", 16), ("32", 40)):
        assert probe(workshop.fat(size_mib=size, options=["-F", bits], name=bits)) == "FAT"


@pytest.mark.parametrize(
    ("at", "mark", "name"),
    [
        (0, b"LUKS\xba\xbe", "LUKS"), (0, b"XFSB", "XFS"), (0, b"hsqs", "SquashFS"), (65600, b"_BHRfS_M", "Btrfs"),
        (4086, b"SWAPSPACE2", "swap"), (1024, b"\x10\x20\xf5\xf2", "F2FS"), (1024, b"\xe2\xe1\xf5\xe0", "EROFS"),
        (5, b"nothing", None),
    ],
)  # fmt: skip
def test_file_systems_that_cannot_be_changed_are_named(
    workshop: Workshop, at: int, mark: bytes, name: str | None
) -> None:
    path = workshop.directory / "file"
    path.write_bytes((bytes(at) + mark).ljust(70_000, b"\0"))
    assert probe(workshop.window(path)) == name


@pytest.mark.parametrize("size", [0, 1, 511, 600, 1081, 1082])
def test_a_partition_too_small_for_anything_holds_nothing(workshop: Workshop, size: int) -> None:
    (workshop.directory / "file").write_bytes(bytes(size))
    assert probe(workshop.window(workshop.directory / "file")) is None
