"""Images and cards to write: plain files, and loop devices where this machine lets one have them."""

from __future__ import annotations

import hashlib
import json
import random
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edgeslm.flash.image.bmap import BlockMap, BlockRange, write_bmap

MIB = 2**20
MakeImage = Callable[..., Path]


def partition_table(size_bytes: int, start_bytes: int = MIB) -> bytes:
    """The first sector of a disk with one partition up to its end."""
    entry = (
        bytes([0, 0, 2, 0, 0x83, 0, 0, 0])
        + (start_bytes // 512).to_bytes(4, "little")
        + ((size_bytes - start_bytes) // 512).to_bytes(4, "little")
    )
    return bytes(446) + entry + bytes(48) + b"\x55\xaa"


@pytest.fixture
def make_image(tmp_path: Path) -> MakeImage:
    """Makes a raw image; `data` says which MiB are not holes, all by default."""

    def make(
        name: str = "sd.img", *, mib: int = 12, data: tuple[int, ...] | None = None, seed: int = 1
    ) -> Path:
        source, path = random.Random(seed), tmp_path / name
        with path.open("wb") as stream:
            stream.truncate(mib * MIB)
            for at in range(mib) if data is None else data:
                stream.seek(at * MIB)
                stream.write(source.randbytes(MIB))
            stream.seek(0)
            stream.write(partition_table(mib * MIB))
        return path

    return make


@pytest.fixture
def make_map() -> Callable[..., Path]:
    """Writes a block map beside an image, in which only those MiB are."""

    def make(image: Path, data: tuple[int, ...]) -> Path:
        content, blocks = image.read_bytes(), MIB // 4096
        ranges = tuple(
            BlockRange(
                at * blocks, (at + 1) * blocks - 1, hashlib.sha256(content[at * MIB :][:MIB]).hexdigest()
            )
            for at in data
        )
        path = image.with_name(f"{image.name}.bmap")
        path.write_bytes(write_bmap(BlockMap(len(content), 4096, ranges)))
        return path

    return make


@pytest.fixture
def make_card(tmp_path: Path) -> Callable[..., Path]:
    """Makes a plain file that stands for a card, with somebody's partition table on it."""

    def make(name: str = "card", *, mib: int = 80) -> Path:
        path = tmp_path / name
        with path.open("wb") as stream:
            stream.write(partition_table(mib * MIB, 2 * MIB))
            stream.seek(2 * MIB)
            stream.write(random.Random(name).randbytes(MIB))
            stream.truncate(mib * MIB)
        return path

    return make


@pytest.fixture
def loop() -> Iterator[Callable[[Path], str]]:
    """Makes a block device of a file; needs root and loop devices."""
    devices: list[str] = []

    def attach(path: Path) -> str:
        try:
            done = subprocess.run(
                ["losetup", "--find", "--show", path], capture_output=True, text=True, timeout=30, check=False
            )
        except FileNotFoundError:
            pytest.skip("losetup is not installed")
        if done.returncode:
            pytest.skip(f"no loop devices here: {done.stderr.strip()[:100]}")
        devices.append(done.stdout.strip())
        return devices[-1]

    yield attach
    for device in devices:
        subprocess.run(["losetup", "--detach", device], timeout=30, check=False)


@pytest.fixture
def lsblk() -> Callable[[str], bytes]:
    """What lsblk wrote on a machine, recorded."""
    directory = Path(__file__).parents[2] / "golden" / "lsblk"
    return lambda name: (directory / f"{name}.json").read_bytes()


@pytest.fixture
def edit_lsblk(lsblk: Callable[[str], bytes]) -> Callable[..., bytes]:
    """A recording with one device changed."""

    def edit(name: str, device: str, **changes: object) -> bytes:
        data = json.loads(lsblk(name))
        one = next(one for one in data["blockdevices"] if one["name"] == device)
        one.update({key.replace("_", "-"): value for key, value in changes.items()})
        return json.dumps(data).encode()

    return edit
