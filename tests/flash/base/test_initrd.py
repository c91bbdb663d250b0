"""The initial file system: modules in an order in which they can be loaded, and bytes that the kernel reads."""

from __future__ import annotations

import gzip
import lzma
import shutil
import subprocess
from pathlib import Path

import pytest

from edgeslm.errors import BaseImageError
from edgeslm.flash.base.initrd import is_module, make_initrd, module_name, with_needed
from tests.flash.base.conftest import module_bytes

MODULES = {
    "ext4": lzma.compress(module_bytes(depends="jbd2,mbcache")),
    "jbd2": gzip.compress(module_bytes(depends="crc32c")),
    "mbcache": module_bytes(),
    "crc32c": module_bytes(),
    "virtio_blk": module_bytes(depends="virtio-ring"),
    "virtio_ring": module_bytes(),
    "left": module_bytes(depends="right"),
    "right": module_bytes(depends="left"),
}


def unpacked(archive: bytes) -> dict[str, tuple[int, bytes]]:
    """Mode and content of everything in an archive of the form newc."""
    data, found, at = gzip.decompress(archive), {}, 0
    while True:
        fields = [int(data[at + 6 + 8 * index : at + 14 + 8 * index], 16) for index in range(13)]
        assert data[at : at + 6] == b"070701"
        name = data[at + 110 : at + 110 + fields[11] - 1].decode()
        start = at + 110 + fields[11]
        start += -start % 4
        if name == "TRAILER!!!":
            return found
        found[name] = (fields[1], data[start : start + fields[6]])
        at = start + fields[6]
        at += -at % 4


@pytest.mark.parametrize("wanted", [["ext4", "virtio_blk"], ["virtio-blk", "jbd2", "ext4"], ["left"]])
def test_every_module_comes_after_those_that_it_needs(wanted: list[str]) -> None:
    order = list(with_needed(wanted, MODULES.get))
    assert len(order) == len(set(order))
    assert {name.replace("-", "_") for name in wanted} <= set(order)
    if "ext4" in order:
        assert order.index("crc32c") < order.index("jbd2") < order.index("ext4")
        assert order.index("mbcache") < order.index("ext4")
    if "virtio_blk" in order:
        assert order.index("virtio_ring") < order.index("virtio_blk")


def test_a_module_that_is_asked_for_by_another_name_is_found() -> None:
    modules = {
        "ext4": module_bytes(depends="jbd2").replace(b"license=GPL", b"softdep=pre: crypto-crc32c"),
        "jbd2": module_bytes(),
        "crc32c_generic": module_bytes(),
    }
    aliases = {"crypto_crc32c": "crc32c_generic", "crc32c": "crc32c_generic"}
    order = list(with_needed(["ext4"], modules.get, aliases))
    assert order == ["jbd2", "crc32c_generic", "ext4"]
    assert list(with_needed(["ext4"], modules.get)) == ["jbd2", "ext4"]


def test_modules_that_the_kernel_has_built_in_are_passed_over() -> None:
    assert with_needed(["ext4", "sd_mod"], MODULES.get).keys() == {"crc32c", "jbd2", "mbcache", "ext4"}


@pytest.mark.parametrize("packed", [b"\xfd7zXZ\0", b"\x1f\x8b\x08", b"\x28\xb5\x2f\xfd", b""])
def test_a_module_that_cannot_be_unpacked_is_named(packed: bytes) -> None:
    with pytest.raises(BaseImageError, match="the module ext4"):
        with_needed(["ext4"], {"ext4": packed}.get)


def test_names_of_modules_are_told_from_their_files() -> None:
    assert module_name("kernel/drivers/block/virtio-blk.ko.xz") == "virtio_blk"
    assert is_module("a.ko")
    assert is_module("a.ko.zst")
    assert not is_module("modules.order")


def test_the_archive_holds_program_modules_and_script() -> None:
    archive = make_initrd(b"\x7fELF program", {"jbd2": b"one", "ext4": b"two"})
    found = unpacked(archive)
    assert found["bin/busybox"] == (0o100755, b"\x7fELF program")
    assert found["m/ext4.ko"] == (0o100644, b"two")
    assert b"for module in jbd2 ext4; do" in found["init"][1]
    assert found["init"][0] == 0o100755
    assert found["dev/console"][0] == 0o20600
    assert make_initrd(b"\x7fELF program", {"jbd2": b"one", "ext4": b"two"}) == archive


@pytest.mark.skipif(shutil.which("busybox") is None, reason="busybox is not installed")
def test_busybox_understands_the_script(tmp_path: Path) -> None:
    script = tmp_path / "init"
    script.write_bytes(unpacked(make_initrd(b"", {}))["init"][1])
    subprocess.run(["busybox", "sh", "-n", str(script)], check=True)


def test_the_script_is_one_of_a_shell(tmp_path: Path) -> None:
    script = tmp_path / "init"
    script.write_bytes(unpacked(make_initrd(b"", {"ext4": b""}))["init"][1])
    subprocess.run(["sh", "-n", str(script)], check=True)
