"""Packages are read as files, and a hostile or damaged one is an error that names it."""

from __future__ import annotations

import gzip
import lzma
import tarfile
from pathlib import Path

import pytest
import zstandard

from edgeslm.errors import PackageFileError
from edgeslm.flash.base import deb as module
from edgeslm.flash.base.deb import opened_data, read_control
from tests.flash.base.conftest import ar_bytes, control_text, deb_bytes, tar_bytes

WHOLE = deb_bytes("small", {"./usr/bin/tool": b"#!/bin/sh\n", "./usr/bin/alias": "tool"})


def write(directory: Path, data: bytes) -> Path:
    path = directory / "small_1.0_arm64.deb"
    path.write_bytes(data)
    return path


def read_all(path: Path) -> dict[str, bytes]:
    found = {}
    with opened_data(path) as archive:
        for member in archive:
            stream = archive.extractfile(member) if member.isreg() else None
            found[member.name] = stream.read() if stream else member.linkname.encode()
    return found


@pytest.mark.parametrize("packing", ["xz", "gz", "zst", ""])
def test_reads_every_way_in_which_packages_are_packed(tmp_path: Path, packing: str) -> None:
    pack = {
        "xz": lzma.compress,
        "gz": gzip.compress,
        "zst": zstandard.ZstdCompressor().compress,
        "": lambda data: data,
    }[packing]
    ending = f".{packing}" if packing else ""
    members = {
        "debian-binary": b"2.0\n",
        f"control.tar{ending}": pack(tar_bytes({"./control": control_text("small").encode()})),
        f"data.tar{ending}": pack(tar_bytes({"./usr/bin/tool": b"odd"})),
    }
    path = write(tmp_path, ar_bytes(members))
    assert read_control(path)["control"].startswith(b"Package: small\n")
    assert read_all(path) == {"./usr/bin/tool": b"odd"}


def test_reads_links_and_files(tmp_path: Path) -> None:
    assert read_all(write(tmp_path, WHOLE)) == {"./usr/bin/tool": b"#!/bin/sh\n", "./usr/bin/alias": b"tool"}


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "no package of Debian"),
        (b"<html>not found</html>", "no package of Debian"),
        (b"!<arch>\n", "has no control.tar"),
        (ar_bytes({"debian-binary": b"2.0\n"}), "has no control.tar"),
        (WHOLE.replace(b"control.tar.xz", b"control.tar.br"), "packed in a way that is not known"),
        (b"!<arch>\n" + b"x" * 60, "has no control.tar"),
        (ar_bytes({"control.tar.xz": b"\xfd7zXZ\0damaged"}), "is damaged"),
        (ar_bytes({"control.tar.gz": b"\x1f\x8b\x08\0damaged"}), "is damaged"),
        (ar_bytes({"control.tar": b"\0" * 100}), "is damaged|no control file"),
        (ar_bytes({"control.tar": tar_bytes({"./md5sums": b""})}), "no control file"),
    ],
)
def test_what_is_no_package_is_named(tmp_path: Path, data: bytes, says: str) -> None:
    with pytest.raises(PackageFileError, match=says) as caught:
        read_control(write(tmp_path, data))
    assert caught.value.path.endswith("small_1.0_arm64.deb")


@pytest.mark.parametrize("share", [0.2, 0.6, 0.9, 0.99])
def test_a_package_that_ends_too_soon_is_an_error(tmp_path: Path, share: float) -> None:
    path = write(tmp_path, WHOLE[: int(len(WHOLE) * share)])

    def read() -> None:
        read_control(path)
        read_all(path)

    with pytest.raises(PackageFileError):
        read()


def test_every_flipped_byte_is_an_error_or_changes_nothing_that_is_read(tmp_path: Path) -> None:
    good = read_all(write(tmp_path, WHOLE))
    for at in range(0, len(WHOLE), 7):
        damaged = bytearray(WHOLE)
        damaged[at] ^= 0x55
        path = write(tmp_path, bytes(damaged))
        try:
            read_control(path)
            assert read_all(path) == good
        except PackageFileError:
            pass


def test_control_files_that_are_too_large_are_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_MAX_CONTROL_BYTES", 1000)
    path = write(tmp_path, deb_bytes("small", {}, control_files={"./postinst": bytes(2000)}))
    with pytest.raises(PackageFileError, match="too large"):
        read_control(path)


def test_a_file_with_no_content_of_its_own_is_passed(tmp_path: Path) -> None:
    device = tarfile.TarInfo("./dev/null")
    device.type = tarfile.CHRTYPE
    assert read_all(write(tmp_path, deb_bytes("small", {}, odd=(device,)))) == {"./dev/null": b""}
