"""Images that grow: their table, their root partition and its file system."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from edgeslm.errors import ImageError, PartitionError, ToolMissingError, TreeFullError
from edgeslm.flash.image import grow
from edgeslm.flash.image.ext4_superblock import read_superblock
from edgeslm.flash.image.image import open_image
from edgeslm.flash.image.partitions import PartitionTable
from edgeslm.flash.tree import Entry
from tests.flash.image.conftest import MIB, ROOT_AT, STAMP_S, Workshop

Tool = Callable[..., str]
Fsck = Callable[[Path], None]
BIG = 600 * MIB


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(params=["in place", "copied"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways to let the file begin with its file system: by fallocate, and where the host has no such call."""
    if request.param == "copied":
        monkeypatch.setattr(grow, "_fallocate", lambda *_: False)
    return str(request.param)


def test_root_reaches_to_the_end_and_is_clean(
    workshop: Workshop, disk: Path, way: str, tool: Tool, fsck: Fsck
) -> None:
    boot = disk.read_bytes()[:ROOT_AT]
    with open_image(disk, time_s=STAMP_S) as image:
        before, free = image.table, image.root.free_bytes()
        image.grow(BIG)
        assert image.size_bytes == disk.stat().st_size == BIG
        assert image.root.free_bytes() > free + 0.8 * (BIG - 50 * MIB)
        assert image.root.read("/etc/hostname", max_bytes=9) == b"board\n"
        image.root.write([Entry("/large", content=b"\1" * (30 * MIB))])
        image.check()
        grown = image.root_partition
    fsck(disk)
    table = json.loads(tool("sfdisk", "--json", disk))["partitiontable"]
    assert [each["start"] * 512 for each in table["partitions"]] == [MIB, ROOT_AT]
    assert table["partitions"][1]["size"] * 512 == grown.size_bytes
    assert BIG - 33 * 512 <= grown.end_bytes <= BIG
    assert open_table(disk).disk_id == before.disk_id
    unlike = [at for at in range(0, ROOT_AT, 512) if disk_bytes(disk, at) != boot[at : at + 512]]
    assert all(at < 34 * 512 for at in unlike)


def open_table(path: Path) -> PartitionTable:
    with open_image(path) as image:
        return image.table


def disk_bytes(path: Path, at: int) -> bytes:
    with path.open("rb") as stream:
        stream.seek(at)
        return stream.read(512)


def test_the_file_stays_full_of_holes(workshop: Workshop, disk: Path, way: str) -> None:
    workshop.open(disk).grow(4 * 2**30)
    assert disk.stat().st_size == 4 * 2**30
    assert disk.stat().st_blocks * 512 < 120 * MIB


def test_both_ways_and_two_runs_give_the_same_bytes(
    workshop: Workshop, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digests = set()
    for name in ("one", "two", "copied"):
        path = Path(shutil.copy(disk, workshop.directory / f"{name}.img"))
        if name == "copied":
            monkeypatch.setattr(grow, "_fallocate", lambda *_: False)
        image = workshop.open(path)
        image.grow(200 * MIB)
        image.root.write([Entry("/opt/file", content=b"\1" * MIB)])
        digests.add(digest(path))
    assert len(digests) == 1


def test_an_image_of_one_file_system_grows(workshop: Workshop, tool: Tool) -> None:
    path = workshop.ext4().path
    image = workshop.open(path)
    image.grow(100 * MIB)
    assert path.stat().st_size == 100 * MIB
    assert read_superblock(image.root.window).blocks * 1024 == 100 * MIB
    tool("e2fsck", "-fn", path)


@pytest.mark.parametrize(
    "options",
    [["-O", "^resize_inode"], ["-b", "4096"], ["-O", "^has_journal,^extents,^64bit,^metadata_csum"]],
)
def test_root_of_another_form_grows(workshop: Workshop, fsck: Fsck, options: list[str]) -> None:
    path = workshop.disk(options=options)
    workshop.open(path).grow(300 * MIB)
    fsck(path)


def test_a_root_that_was_not_unmounted_is_mended_first(
    workshop: Workshop, mbr_disk: Path, fsck: Fsck, patch: Callable[[Path, int, bytes], None], tool: Tool
) -> None:
    tool("debugfs", "-w", "-R", "ssv state 0", f"{mbr_disk}?offset={ROOT_AT}")
    workshop.open(mbr_disk).grow(100 * MIB)
    fsck(mbr_disk)


def test_what_does_not_fit_makes_room_and_what_fits_does_not(
    workshop: Workshop, disk: Path, fsck: Fsck
) -> None:
    image = workshop.open(disk)
    size = image.size_bytes
    image.ensure_free(MIB)
    assert image.size_bytes == size
    image.ensure_free(90 * MIB)
    assert image.root.free_bytes() >= 90 * MIB
    assert image.size_bytes < size + 120 * MIB
    fsck(disk)


def test_entries_get_the_room_that_they_take(workshop: Workshop, disk: Path, fsck: Fsck) -> None:
    image = workshop.open(disk)
    entries = [Entry(f"/opt/{number}", content=b"\1" * MIB) for number in range(40)]
    with pytest.raises(TreeFullError):
        image.root.write(entries)
    image.ensure_room(entries)
    image.root.write(entries)
    fsck(disk)


def test_more_files_than_there_are_inodes_get_room_as_well(workshop: Workshop, fsck: Fsck) -> None:
    path = workshop.disk(options=["-N", "200"])
    image = workshop.open(path)
    entries = [Entry(f"/opt/{number}") for number in range(1500)]
    image.ensure_room(entries)
    image.root.write(entries)
    fsck(path)


def test_a_smaller_image_is_refused_and_the_same_size_does_nothing(
    workshop: Workshop, mbr_disk: Path
) -> None:
    image = workshop.open(mbr_disk)
    image.grow(44 * MIB)
    before = digest(mbr_disk)
    image.grow(44 * MIB)
    image.grow(44 * MIB - 1)
    with pytest.raises(ImageError, match="cannot be made"):
        image.grow(40 * MIB)
    assert digest(mbr_disk) == before


def test_a_root_that_another_partition_follows_is_refused_and_left_alone(
    workshop: Workshop, tool: Tool
) -> None:
    path = workshop.disk(boot={})
    with path.open("r+b") as stream:
        stream.truncate(64 * MIB)
    tool("sfdisk", "-q", "-a", path, stdin="start=50MiB, size=4MiB\n")
    before = digest(path)
    with pytest.raises(PartitionError, match="another follows it"):
        workshop.open(path).grow(200 * MIB)
    assert digest(path) == before


def test_a_failure_on_the_way_says_that_the_image_is_of_no_more_use(
    workshop: Workshop, mbr_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = workshop.open(mbr_disk)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(grow, "_run_resize", full)
    with pytest.raises(ImageError, match="No space left") as caught:
        image.grow(100 * MIB)
    assert "prepare it anew" in (caught.value.hint or "")


def test_a_missing_program_is_named_before_anything_is_changed(
    workshop: Workshop, mbr_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = workshop.open(mbr_disk)
    before = digest(mbr_disk)
    (workshop.directory / "bin").mkdir()
    for name in ("debugfs", "e2fsck"):
        found = shutil.which(name, path="/usr/sbin:/sbin")
        assert found is not None
        (workshop.directory / "bin" / name).symlink_to(found)
    monkeypatch.setenv("PATH", str(workshop.directory / "bin"))
    monkeypatch.setattr("edgeslm.flash.image.tools._SYSTEM_PATH", "/nonexistent")
    with pytest.raises(ToolMissingError, match="resize2fs"):
        image.grow(100 * MIB)
    assert digest(mbr_disk) == before


def test_nothing_is_left_beside_the_image(workshop: Workshop, mbr_disk: Path, way: str) -> None:
    before = sorted(mbr_disk.parent.iterdir())
    workshop.open(mbr_disk).grow(100 * MIB)
    assert sorted(mbr_disk.parent.iterdir()) == before
