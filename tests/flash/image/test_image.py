"""Images of disks as a whole."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from edgeslm.errors import FileSystemError, ImageError, PartitionError
from edgeslm.flash.image.image import open_image
from edgeslm.flash.tree import Entry
from tests.flash.image.conftest import DEBIAN, MIB, ROOT_AT, STAMP_S, Workshop, lay, make_ext4, run

Tool = Callable[..., str]
Patch = Callable[[Path, int, bytes], None]


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_root_and_boot_are_told_by_what_they_hold(workshop: Workshop, disk: Path) -> None:
    image = workshop.open(disk)
    assert image.root.read("/etc/hostname", max_bytes=9) == b"board\n"
    assert image.boot is not None
    assert image.boot.names("/") == ("cmdline.txt", "config.txt")
    assert image.boot_partition is not None
    assert (image.boot_partition.number, image.root_partition.number) == (1, 2)


def partitioned(workshop: Workshop, parts: list[tuple[int, str, dict[str, str]]], label: str = "gpt") -> Path:
    """A disk with partitions of 16 MiB each, as (number, kind, files)."""
    path = workshop.directory / "parts.img"
    with path.open("wb") as stream:
        stream.truncate((len(parts) * 16 + 3) * MIB)
    lines = [f"{number}: start={1 + at * 16}MiB, size=16MiB" for at, (number, _, _) in enumerate(parts)]
    run("sfdisk", "-q", path, stdin=f"label: {label}\n" + "\n".join(lines) + "\n")
    for at, (number, kind, files) in enumerate(parts):
        start = (1 + at * 16) * MIB
        seed = lay(workshop.directory / f"seed{number}", files)
        if kind == "ext4":
            make_ext4(path, seed, size_mib=16, at=start)
        elif kind == "fat":
            run("mkfs.vfat", "--offset", str(start // 512), path, str(16 * 1024))
            for each in sorted(seed.iterdir()):
                run("mcopy", "-s", "-i", f"{path}@@{start}", each, "::")
        else:
            with path.open("r+b") as stream:
                stream.seek(start)
                stream.write(kind.encode("latin-1"))
    return path


ROOT, DATA = {"etc/os-release": "ID=debian\n"}, {"photos/a.jpg": "x"}


@pytest.mark.parametrize(
    ("parts", "root", "boot"),
    [
        ([(15, "fat", {"EFI/x": ""}), (1, "ext4", ROOT)], 1, 15),
        ([(1, "ext4", ROOT), (15, "fat", {"EFI/x": ""})], 1, 15),
        ([(1, "ext4", DATA), (2, "ext4", ROOT)], 2, None),
        ([(1, "fat", {"EFI/x": ""}), (2, "fat", {"config.txt": ""}), (3, "ext4", ROOT)], 3, 2),
        ([(1, "fat", {"x": ""}), (2, "fat", {"extlinux/extlinux.conf": ""}), (3, "ext4", ROOT)], 3, 2),
        ([(1, "fat", {"user-data": ""}), (2, "fat", {"config.txt": ""}), (3, "ext4", ROOT)], 3, 2),
        ([(1, "loader without a file system", {}), (2, "ext4", ROOT)], 2, None),
    ],
)
def test_partitions_are_chosen_by_content_and_not_by_number(
    workshop: Workshop, parts: list[tuple[int, str, dict[str, str]]], root: int, boot: int | None
) -> None:
    image = workshop.open(partitioned(workshop, parts))
    assert image.root_partition.number == root
    assert (image.boot_partition and image.boot_partition.number) == boot


@pytest.mark.parametrize(
    ("parts", "why"),
    [
        ([(1, "fat", {"config.txt": ""})], "no ext4 .*1: FAT"),
        ([(1, "ext4", ROOT), (2, "ext4", ROOT)], "several ext4"),
        ([(1, "ext4", DATA), (2, "ext4", DATA)], "several ext4"),
        ([(1, "hsqs", {}), (2, "LUKS\xba\xbe", {}), (3, "?", {})], "1: SquashFS, 2: LUKS, 3: unknown"),
    ],
)
def test_an_image_without_one_root_is_refused_with_what_is_in_it(
    workshop: Workshop, parts: list[tuple[int, str, dict[str, str]]], why: str
) -> None:
    with pytest.raises(PartitionError, match=why) as caught:
        open_image(partitioned(workshop, parts))
    assert "Raspberry Pi OS" in (caught.value.hint or "")


def test_logical_partitions_are_looked_into(workshop: Workshop) -> None:
    path = workshop.directory / "logical.img"
    with path.open("wb") as stream:
        stream.truncate(40 * MIB)
    logical = "start=2MiB, size=4MiB\nstart=8MiB, size=24MiB\n"
    run("sfdisk", "-q", path, stdin=f"label: dos\nstart=1MiB, size=38MiB, type=5\n{logical}")
    make_ext4(path, lay(workshop.directory / "seed", DEBIAN), at=8 * MIB)
    image = workshop.open(path)
    assert image.root_partition.number == 6
    image.root.write([Entry("/opt/x", content=b"x")])
    image.check()
    with pytest.raises(PartitionError, match="logical"):
        image.grow(80 * MIB)


@pytest.mark.parametrize("name", ["disk?offset=1.img", "disk@@5.img", "disk\n.img"])
def test_a_name_that_tools_would_misread_is_refused(workshop: Workshop, mbr_disk: Path, name: str) -> None:
    with pytest.raises(ImageError, match="misread"):
        open_image(mbr_disk.rename(mbr_disk.with_name(name)))


ODD = [
    "with space",
    "qu'ote",
    'dou"ble',
    "bär",
    "-dash",
    "$(touch run)",
    "`touch run`",
    "a%s",
    "a;touch run",
    "*",
]


@pytest.mark.parametrize("name", ODD)
def test_an_odd_name_is_no_hindrance_and_never_run(workshop: Workshop, mbr_disk: Path, name: str) -> None:
    (mbr_disk.parent / name).mkdir()
    image = workshop.open(mbr_disk.rename(mbr_disk.parent / name / f"{name}.img"))
    image.root.write([Entry("/opt/x", content=b"x")])
    assert image.boot is not None
    image.boot.write([Entry("/x", content=b"x")])
    image.boot.remove(["/x"])
    image.grow(64 * MIB)
    image.check()
    assert [each.name for each in image.path.parent.iterdir()] == [f"{name}.img"]
    assert not Path("run").exists()


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "empty").write_bytes(b"")
    for name in ("missing", "fifo", "empty", "."):
        with pytest.raises(ImageError):
            open_image(tmp_path / name)


def test_both_file_systems_are_clean_after_writing_and_the_rest_is_as_it_was(
    workshop: Workshop, disk: Path, fsck: Callable[[Path], None]
) -> None:
    gap = disk.read_bytes()[:MIB]
    image = workshop.open(disk)
    image.root.write(
        [Entry("/opt/edgeslm/agent", content=b"\1" * MIB), Entry("/etc/hostname", content=b"new\n")]
    )
    assert image.boot is not None
    image.boot.write([Entry("/overlays/a long name.dtbo", content=b"\2" * 5000)])
    image.check()
    fsck(disk)
    assert disk.read_bytes()[:MIB] == gap


def test_a_fault_in_either_file_system_is_found_and_named(
    workshop: Workshop, disk: Path, patch: Patch
) -> None:
    image = workshop.open(disk)
    image.check()
    broken = Path(shutil.copy(disk, disk.with_name("broken.img")))
    with broken.open("r+b") as stream:
        stream.seek(MIB)
        (reserved,) = stream.read(16)[14:15]
    patch(broken, MIB + reserved * 512 + 40, b"\x07\x00\x09\x00")
    with pytest.raises(FileSystemError, match=r"fsck\.vfat"):
        workshop.open(broken).check()
    broken = Path(shutil.copy(disk, disk.with_name("broken2.img")))
    run("debugfs", "-w", "-R", "clri /etc", f"{broken}?offset={ROOT_AT}")
    with pytest.raises(FileSystemError, match="e2fsck"):
        workshop.open(broken).check()


def prepare(path: Path) -> str:
    """All that preparing does with an image; its digest."""
    with open_image(path, time_s=STAMP_S) as image:
        image.ensure_free(100 * MIB)
        image.root.write([Entry(f"/opt/{number}", content=b"\1" * number * 100) for number in range(300)])
        assert image.boot is not None
        image.boot.write([Entry("/config.txt", content=b"arm_64bit=1\ndtparam=i2c_arm=on\n")])
        image.root.remove(["/opt/7"])
        image.check()
    return digest(path)


def test_two_runs_with_the_same_input_give_the_same_bytes(workshop: Workshop, disk: Path) -> None:
    other = Path(shutil.copy(disk, disk.with_name("other.img")))
    assert prepare(disk) == prepare(other)


@pytest.mark.parametrize(
    ("said", "time_s"), [("1234567890", 1234567890), ("", STAMP_S), ("soon", STAMP_S), ("9" * 20, STAMP_S)]
)
def test_the_time_is_what_the_environment_says_or_that_of_the_image(
    mbr_disk: Path, monkeypatch: pytest.MonkeyPatch, said: str, time_s: int
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", said)
    with open_image(mbr_disk) as image:
        assert image.time_s == time_s


def test_a_truncated_image_is_refused(workshop: Workshop, disk: Path) -> None:
    with disk.open("r+b") as stream:
        stream.truncate(30 * MIB)
    with pytest.raises(PartitionError) as caught:
        open_image(disk)
    assert "cut short" in (caught.value.hint or "")


def test_a_closed_or_refused_image_gives_its_file_back(disk: Path, patch: Patch) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    with open_image(disk):
        pass
    patch(disk, ROOT_AT + 1024, bytes(1024))
    with pytest.raises(PartitionError):
        open_image(disk)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_an_image_of_8_gb_is_prepared_in_less_than_100_mb(workshop: Workshop, mbr_disk: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from edgeslm.flash.image.image import open_image;"
        "from edgeslm.flash.tree import Entry;"
        "image = open_image(Path(sys.argv[1])); image.grow(8 * 10**9);"
        "image.root.write([Entry(f'/opt/{n}', content=b'x' * 5000) for n in range(3000)]); image.check();"
        "print(Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(mbr_disk)], capture_output=True, check=True, timeout=100
    )
    assert int(done.stdout) < 100 * 1024
