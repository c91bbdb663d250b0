"""Images of disks of a few dozen MiB, made by the same programs that make those of vendors."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from edgeslm.flash.image.image import Image, open_image
from edgeslm.flash.image.window import Window

MIB = 2**20
STAMP_S = 1_700_000_000
BOOT_AT, ROOT_AT = 1 * MIB, 17 * MIB
ROOT_MIB = 24
ENVIRONMENT = {
    **os.environ,
    "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin",
    "SOURCE_DATE_EPOCH": str(STAMP_S),
    "E2FSPROGS_FAKE_TIME": str(STAMP_S),
    "LC_ALL": "C.UTF-8",
    "MTOOLS_SKIP_CHECK": "1",
}
DEBIAN = {
    "etc/os-release": 'PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\nID=debian\nVERSION_ID="12"\n'
    "VERSION_CODENAME=bookworm\n",
    "etc/hostname": "board\n",
    "usr/lib/systemd/systemd": "\x7fELF",
}
BOOT = {"config.txt": "arm_64bit=1\n", "cmdline.txt": "root=/dev/mmcblk0p2 rootwait\n"}


def run(*command: str | Path, stdin: str = "", status: int | None = 0) -> str:
    """Run a program; what it said."""
    done = subprocess.run(
        [str(word) for word in command],
        input=stdin.encode(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=ENVIRONMENT,
        check=False,
        timeout=60,
    )
    said = done.stdout.decode(errors="replace")
    assert status is None or done.returncode == status, said
    return said


def lay(directory: Path, files: Mapping[str, str | bytes]) -> Path:
    """Write files of text or bytes below a directory."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode("latin-1"))
    return directory


def make_ext4(
    path: Path, seed: Path, *, size_mib: int = ROOT_MIB, at: int = 0, options: Sequence[str] = ()
) -> None:
    """Make an ext4 file system at a place of a file, with the files of `seed`."""
    if not path.exists():
        with path.open("wb") as stream:
            stream.truncate(at + size_mib * MIB)
    run(
        "mke2fs", "-q", "-F", "-t", "ext4", "-U", "11111111-2222-4333-8444-555555555555",
        "-E", f"offset={at},hash_seed=11111111-2222-4333-8444-555555555555,root_owner=0:0",
        *options, "-d", seed, path, f"{size_mib}M",
    )  # fmt: skip


def make_disk(
    path: Path,
    work: Path,
    *,
    root: Mapping[str, str | bytes] | None = None,
    boot: Mapping[str, str | bytes] | None = None,
    label: str = "dos",
    size_mib: int = ROOT_MIB,
    options: Sequence[str] = (),
) -> Path:
    """Make a disk with a FAT boot partition and an ext4 root behind it."""
    end = ROOT_AT // MIB + size_mib + (1 if label == "gpt" else 0)
    with path.open("wb") as stream:
        stream.truncate(end * MIB)
    kinds = {"dos": ("c", "83"), "gpt": ("EBD0A0A2-B9E5-4433-87C0-68B6B72699C7", "linux")}[label]
    header = "label-id: 0x1a2b3c4d" if label == "dos" else "label-id: 1A2B3C4D-0000-4000-8000-000000000000"
    uuids = ["", ""] if label == "dos" else [f", uuid=AAAAAAAA-0000-4000-8000-00000000000{n}" for n in (1, 2)]
    run(
        "sfdisk", "-q", path,
        stdin=f"label: {label}\n{header}\nstart={BOOT_AT // MIB}MiB, size=16MiB, type={kinds[0]}{uuids[0]}\n"
        f"start={ROOT_AT // MIB}MiB, size={size_mib}MiB, type={kinds[1]}{uuids[1]}\n",
    )  # fmt: skip
    run("mkfs.vfat", "--offset", str(BOOT_AT // 512), "-i", "12345678", "-n", "boot", path, str(16 * 1024))
    seed = lay(work / "boot", BOOT if boot is None else boot)
    for each in sorted(seed.iterdir()):
        run("mcopy", "-s", "-i", f"{path}@@{BOOT_AT}", each, "::")
    make_ext4(
        path,
        lay(work / "root", DEBIAN if root is None else root),
        size_mib=size_mib,
        at=ROOT_AT,
        options=options,
    )
    return path


@dataclass(frozen=True)
class Workshop:
    """A directory where images are made, and what closes them."""

    directory: Path
    closing: ExitStack

    def disk(self, name: str = "disk.img", **how: object) -> Path:
        """Make a disk; see :func:`make_disk`."""
        work = self.directory / f"{name}.seed"
        work.mkdir()
        return make_disk(self.directory / name, work, **how)  # type: ignore[arg-type]

    def ext4(
        self, files: Mapping[str, str | bytes] = DEBIAN, name: str = "root.img", **how: object
    ) -> Window:
        """Make an ext4 file system alone."""
        path = self.directory / name
        make_ext4(path, lay(self.directory / f"{name}.seed", files), **how)  # type: ignore[arg-type]
        return self.window(path)

    def fat(self, *, size_mib: int = 16, options: Sequence[str] = (), name: str = "boot.img") -> Window:
        """Make a FAT file system alone."""
        path = self.directory / name
        with path.open("wb") as stream:
            stream.truncate(size_mib * MIB)
        run("mkfs.vfat", "-i", "12345678", *options, path)
        return self.window(path)

    def window(self, path: Path) -> Window:
        """All of a file."""
        stream = self.closing.enter_context(path.open("rb"))
        return Window(path, stream.fileno(), 0, path.stat().st_size)

    def open(self, path: Path) -> Image:
        """Open an image; what is written into it is of one fixed time."""
        return self.closing.enter_context(open_image(path, time_s=STAMP_S))


@pytest.fixture
def workshop(tmp_path: Path) -> Iterator[Workshop]:
    with ExitStack() as closing:
        yield Workshop(tmp_path, closing)


@pytest.fixture(scope="session")
def _disks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    directory = tmp_path_factory.mktemp("disks")
    made = {}
    for label in ("dos", "gpt"):
        (directory / label).mkdir()
        made[label] = make_disk(directory / f"{label}.img", directory / label, label=label)
    return made


@pytest.fixture(params=["dos", "gpt"])
def disk(request: pytest.FixtureRequest, _disks: dict[str, Path], tmp_path: Path) -> Path:
    """A disk of either kind, of this test's own."""
    return Path(shutil.copy(_disks[request.param], tmp_path / "disk.img"))


@pytest.fixture
def mbr_disk(_disks: dict[str, Path], tmp_path: Path) -> Path:
    """A disk with an MBR, of this test's own."""
    return Path(shutil.copy(_disks["dos"], tmp_path / "disk.img"))


@pytest.fixture
def gpt_disk(_disks: dict[str, Path], tmp_path: Path) -> Path:
    """A disk with a GPT, of this test's own."""
    return Path(shutil.copy(_disks["gpt"], tmp_path / "disk.img"))


@pytest.fixture
def tool() -> Callable[..., str]:
    """Runs a program of the system and checks how it ended."""
    return run


@pytest.fixture
def fsck(tool: Callable[..., str]) -> Callable[[Path], None]:
    """Has both file systems of a disk checked by the programs that repair them."""

    def check(path: Path) -> None:
        tool("e2fsck", "-fn", f"{path}?offset={ROOT_AT}")
        boot = path.with_name("checked-boot")
        with path.open("rb") as stream:
            stream.seek(BOOT_AT)
            boot.write_bytes(stream.read(16 * MIB))
        tool("fsck.vfat", "-n", boot)
        boot.unlink()

    return check


@pytest.fixture
def patch() -> Callable[[Path, int, bytes], None]:
    """Overwrites bytes of a file."""

    def write(path: Path, at: int, data: bytes) -> None:
        with path.open("r+b") as stream:
            stream.seek(at)
            stream.write(data)

    return write


def elf(machine: int, size: int = 64) -> bytes:
    """The head of a program for a machine, e_machine in the order of a little-endian one."""
    return (b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<HH", 3, machine)).ljust(size, b"\0")


@pytest.fixture
def program() -> Callable[..., bytes]:
    """Makes the head of a program."""
    return elf
