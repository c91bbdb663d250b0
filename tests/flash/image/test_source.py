"""Getting a raw image out of what is published."""

from __future__ import annotations

import gzip
import hashlib
import lzma
import os
import random
import shutil
import struct
import subprocess
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from edgeslm.errors import ImageDigestError, ImageError, ImageSourceError
from edgeslm.flash.image.source import form_of, read_digest, unpack

MIB = 2**20
RAW = random.Random(7).randbytes(300_000) + bytes(2 * MIB + 123) + random.Random(8).randbytes(70_001)
SHA256 = hashlib.sha256(RAW).hexdigest()


def zipped(path: Path, members: dict[str, bytes], how: int = zipfile.ZIP_DEFLATED) -> bytes:
    with zipfile.ZipFile(path, "w", how) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path.read_bytes()


def zstd(data: bytes, **options: object) -> bytes:
    return zstandard.ZstdCompressor(**options).compress(data)  # type: ignore[arg-type]


PACKED: dict[str, bytes] = {
    "raw": RAW,
    "xz": lzma.compress(RAW),
    "xz-crc32": lzma.compress(RAW, check=lzma.CHECK_CRC32),
    "xz-streams": lzma.compress(RAW[:100_000]) + bytes(8) + lzma.compress(RAW[100_000:]) + bytes(4),
    "gz": gzip.compress(RAW, mtime=0),
    "gz-members": gzip.compress(RAW[:5]) + gzip.compress(RAW[5:1_500_000]) + gzip.compress(RAW[1_500_000:]),
    "gz-padded": gzip.compress(RAW) + bytes(1024),
    "zst": zstd(RAW),
    "zst-checked": zstd(RAW, write_checksum=True, level=19),
    "zst-unsized": zstd(RAW, write_content_size=False),
    "zst-frames": zstd(RAW[:4]) + struct.pack("<II", 0x184D2A53, 7) + b"skipped" + zstd(RAW[4:]),
}


def write(tmp_path: Path, data: bytes, name: str = "image.img.xz") -> Path:
    path = tmp_path / name
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("packed", PACKED.values(), ids=PACKED)
def test_each_form_gives_the_same_image(tmp_path: Path, packed: bytes) -> None:
    source = write(tmp_path, packed, "name-says-nothing")
    found = unpack(source, tmp_path / "out.img", sha256=SHA256.upper())
    assert (tmp_path / "out.img").read_bytes() == RAW
    assert (found.sha256, found.size_bytes) == (SHA256, len(RAW))
    assert found.source_sha256 == hashlib.sha256(packed).hexdigest()
    assert found.form == form_of(source)


@pytest.mark.parametrize("how", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_the_one_image_of_a_zip_archive_is_taken(tmp_path: Path, how: int) -> None:
    packed = zipped(tmp_path / "a.zip", {"README.txt": b"read me", "deep/board.IMG": RAW}, how)
    found = unpack(tmp_path / "a.zip", tmp_path / "out.img", sha256=SHA256)
    assert (tmp_path / "out.img").read_bytes() == RAW
    assert (found.form, found.source_sha256) == ("zip", hashlib.sha256(packed).hexdigest())


@pytest.mark.parametrize(
    "members", [{}, {"a.img": RAW, "b.img": RAW}, {"a.txt": b"x"}], ids=["empty", "two images", "no image"]
)
def test_an_archive_with_no_image_or_several_is_refused(tmp_path: Path, members: dict[str, bytes]) -> None:
    zipped(tmp_path / "a.zip", members)
    with pytest.raises(ImageError):
        unpack(tmp_path / "a.zip", tmp_path / "out.img")
    assert not (tmp_path / "out.img").exists()


def test_an_archive_that_packs_otherwise_is_refused(tmp_path: Path) -> None:
    zipped(tmp_path / "a.zip", {"a.img": RAW}, zipfile.ZIP_LZMA)
    with pytest.raises(ImageSourceError, match="neither stored nor deflated"):
        unpack(tmp_path / "a.zip", tmp_path / "out.img")


def test_an_archive_with_an_endless_list_of_files_is_refused_before_it_is_read(tmp_path: Path) -> None:
    packed = bytearray(zipped(tmp_path / "a.zip", {"a.img": RAW}))
    struct.pack_into("<I", packed, packed.rfind(b"PK\5\6") + 12, 2**31)
    source = write(tmp_path, bytes(packed))
    with pytest.raises(ImageSourceError, match="list of files"):
        unpack(source, tmp_path / "out.img")


@pytest.mark.parametrize("form", [form for form in PACKED if form != "raw"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.999])
def test_a_source_cut_short_leaves_nothing(tmp_path: Path, form: str, share: float) -> None:
    packed = PACKED[form].rstrip(b"\0") if "padded" in form or "streams" in form else PACKED[form]
    source = write(tmp_path, packed[: int(len(packed) * share)])
    with pytest.raises(ImageSourceError) as caught:
        unpack(source, tmp_path / "out.img")
    assert caught.value.exit_code == 4
    assert caught.value.hint is not None
    assert [each.name for each in tmp_path.iterdir()] == [source.name]


@pytest.mark.parametrize("form", [form for form in PACKED if form != "raw"])
def test_what_follows_an_image_is_refused(tmp_path: Path, form: str) -> None:
    source = write(tmp_path, PACKED[form] + b"and something else")
    with pytest.raises(ImageSourceError):
        unpack(source, tmp_path / "out.img")
    assert not (tmp_path / "out.img").exists()


@pytest.mark.parametrize("form", ["xz", "gz", "zst-checked"])
def test_a_bit_that_fell_over_is_found_without_a_digest(tmp_path: Path, form: str) -> None:
    packed = bytearray(PACKED[form])
    packed[len(packed) // 2] ^= 0x10
    with pytest.raises(ImageSourceError):
        unpack(write(tmp_path, bytes(packed)), tmp_path / "out.img")


@pytest.mark.parametrize("packed", [PACKED["raw"], PACKED["zst"]], ids=["raw", "zst"])
def test_another_digest_than_asked_for_is_refused_and_named(tmp_path: Path, packed: bytes) -> None:
    source, target = write(tmp_path, packed), write(tmp_path, b"what was there", "out.img")
    with pytest.raises(ImageDigestError) as caught:
        unpack(source, target, sha256="0" * 64)
    assert (caught.value.expected, caught.value.actual) == ("0" * 64, hashlib.sha256(packed).hexdigest())
    assert target.read_bytes() == b"what was there"
    assert len(list(tmp_path.iterdir())) == 2


def test_the_digest_of_either_the_source_or_the_image_will_do(tmp_path: Path) -> None:
    source = write(tmp_path, PACKED["gz"])
    for digest in (SHA256, hashlib.sha256(PACKED["gz"]).hexdigest()):
        unpack(source, tmp_path / "out.img", sha256=digest)


def test_a_raw_image_is_hashed_only_where_there_is_a_digest_to_compare_with(tmp_path: Path) -> None:
    source = write(tmp_path, RAW)
    found = unpack(source, tmp_path / "out.img")
    assert (found.sha256, found.source_sha256, found.size_bytes) == (None, None, len(RAW))
    assert (tmp_path / "out.img").read_bytes() == RAW
    found = unpack(source, tmp_path / "out.img", sha256=SHA256)
    assert (found.sha256, found.source_sha256) == (SHA256, SHA256)
    packed = unpack(write(tmp_path, PACKED["gz"]), tmp_path / "out.img")
    assert packed.sha256 == SHA256


def test_a_raw_image_that_becomes_shorter_while_it_is_copied_is_cut_short(tmp_path: Path) -> None:
    source = write(tmp_path, random.Random(1).randbytes(40 * MIB), "raw.img")

    def cut(done: int, _total: int) -> None:
        if done == 4 * MIB:
            os.truncate(source, 5 * MIB)

    for digest in (None, "0" * 64):
        with pytest.raises(ImageSourceError, match="cut short"):
            unpack(source, tmp_path / "out.img", sha256=digest, report=cut)
        assert [each.name for each in tmp_path.iterdir()] == [source.name]
        source.write_bytes(random.Random(1).randbytes(40 * MIB))


@pytest.mark.parametrize("digest", ["", "xyz", "0" * 63, "g" * 64])
def test_what_is_no_digest_is_refused_before_anything_is_read(tmp_path: Path, digest: str) -> None:
    with pytest.raises(ImageError, match="no SHA-256"):
        unpack(write(tmp_path, RAW), tmp_path / "out.img", sha256=digest)


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        "{}\n",
        "{}  image.img.xz\n",
        "{} *image.img.xz\r\n",
        "{}  ./somewhere/image.img.xz\n",
        "1111111111111111111111111111111111111111111111111111111111111111  other.img\n{}  image.img.xz\n",
    ],
)
def test_a_digest_beside_the_source_is_used(tmp_path: Path, text: str) -> None:
    source = write(tmp_path, PACKED["xz"])
    digest = hashlib.sha256(PACKED["xz"]).hexdigest()
    write(tmp_path, text.format(digest).encode(), "image.img.xz.sha256")
    assert read_digest(source) == digest
    unpack(source, tmp_path / "out.img")
    write(tmp_path, text.format("0" * 64).encode(), "image.img.xz.sha256")
    with pytest.raises(ImageDigestError):
        unpack(source, tmp_path / "out.img")


@pytest.mark.parametrize("text", ["", "hello\n", f"{'0' * 64}  other.img\n", f"{'0' * 64}\n{'1' * 64}\n"])
def test_a_digest_file_that_says_nothing_for_this_image_is_refused(tmp_path: Path, text: str) -> None:
    source = write(tmp_path, RAW)
    write(tmp_path, text.encode(), "image.img.xz.sha256")
    with pytest.raises(ImageError, match="does not say which SHA-256"):
        unpack(source, tmp_path / "out.img")


def test_an_image_larger_than_allowed_is_refused(tmp_path: Path) -> None:
    for form in ("raw", "xz", "gz", "zst"):
        source = write(tmp_path, PACKED[form])
        with pytest.raises(ImageSourceError, match="unpacks to more than"):
            unpack(source, tmp_path / "out.img", max_bytes=len(RAW) - 1)
        unpack(source, tmp_path / "out.img", max_bytes=len(RAW))


BOMB_BYTES = 256 * MIB


def gzip_bomb() -> bytes:
    """A quarter of a GiB of zeros in a MB."""
    packer = zlib.compressobj(1, wbits=31)
    return b"".join(packer.compress(bytes(MIB)) for _ in range(BOMB_BYTES // MIB)) + packer.flush()


def zstd_bomb() -> bytes:
    """As much, in one frame with blocks of one byte that repeats, which says that it is small."""
    head = b"\x28\xb5\x2f\xfd" + bytes([0b01100000]) + struct.pack("<H", 1000)
    block = (131072 << 3 | 1 << 1).to_bytes(3, "little") + b"\0"
    return head + block * (BOMB_BYTES // 131072)


@pytest.mark.parametrize("make", [gzip_bomb, zstd_bomb])
def test_a_bomb_ends_at_the_limit_and_leaves_nothing(tmp_path: Path, make: Callable[[], bytes]) -> None:
    source = write(tmp_path, make())
    with pytest.raises(ImageSourceError):
        unpack(source, tmp_path / "out.img", max_bytes=64 * MIB)
    assert [each.name for each in tmp_path.iterdir()] == [source.name]


def test_an_xz_that_asks_for_more_memory_than_is_given_is_refused(tmp_path: Path) -> None:
    filters = [{"id": lzma.FILTER_LZMA2, "dict_size": 512 * MIB}]
    source = write(tmp_path, lzma.compress(bytes(100_000), filters=filters))
    with pytest.raises(ImageSourceError, match="damaged"):
        unpack(source, tmp_path / "out.img")


def test_a_zstd_that_asks_for_more_memory_than_is_given_is_refused(tmp_path: Path) -> None:
    frame = b"\x28\xb5\x2f\xfd" + bytes([0x00, (31 - 10) << 3]) + (1 << 3 | 1).to_bytes(3, "little") + b"x"
    with pytest.raises(ImageSourceError, match="damaged"):
        unpack(write(tmp_path, frame), tmp_path / "out.img")


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"BZh91AY", "bzip2"),
        (b"7z\xbc\xaf\x27\x1c", "7z"),
        (b"QFI\xfb", "QEMU"),
        (b"Rar!\x1a", "RAR"),
        (b"\x7fELF", "program"),
        (b"", "empty"),
    ],
)
def test_other_forms_are_named_and_refused(tmp_path: Path, data: bytes, what: str) -> None:
    with pytest.raises(ImageSourceError, match=what):
        unpack(write(tmp_path, data), tmp_path / "out.img")


def test_a_tar_archive_is_named_and_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.add(write(tmp_path, RAW), "a.img")
    with pytest.raises(ImageSourceError, match="tar archive"):
        form_of(tmp_path / "a.tar")


def test_an_image_keeps_its_holes(tmp_path: Path) -> None:
    source = tmp_path / "sparse.img"
    with source.open("wb") as stream:
        stream.truncate(128 * MIB)
        stream.seek(64 * MIB)
        stream.write(b"here")
    found = unpack(source, tmp_path / "out.img")
    assert found.size_bytes == 128 * MIB
    assert (tmp_path / "out.img").stat().st_blocks * 512 < MIB
    with (tmp_path / "out.img").open("rb") as stream:
        stream.seek(64 * MIB)
        assert stream.read(5) == b"here\0"


def test_progress_ends_with_all_of_the_source_and_can_end_the_work(tmp_path: Path) -> None:
    for form, packed in PACKED.items():
        source = write(tmp_path, packed)
        told: list[tuple[int, int]] = []
        unpack(source, tmp_path / "out.img", report=lambda done, total, told=told: told.append((done, total)))
        assert told[-1] == (len(packed), len(packed)), form
        assert told == sorted(told)

    def stop(_done: int, _total: int) -> None:
        raise KeyboardInterrupt

    (tmp_path / "out.img").unlink()
    with pytest.raises(KeyboardInterrupt):
        unpack(source, tmp_path / "out.img", report=stop)
    assert [each.name for each in tmp_path.iterdir()] == [source.name]


def test_what_cannot_be_read_or_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="cannot unpack"):
        unpack(tmp_path / "missing.img", tmp_path / "out.img")
    with pytest.raises(ImageError, match="cannot unpack"):
        unpack(write(tmp_path, RAW), tmp_path / "no" / "out.img")
    with pytest.raises(ImageError):
        form_of(tmp_path)


def test_a_disk_that_is_too_small_is_named_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write(tmp_path, RAW)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(ImageError, match=r"and .* has 1000") as caught:
        unpack(source, tmp_path / "out.img")
    assert "Make room" in (caught.value.hint or "")
    assert [each.name for each in tmp_path.iterdir()] == [source.name]


def test_an_image_packed_with_the_window_of_xz_level_9_is_unpacked_in_less_than_100_mb(
    tmp_path: Path,
) -> None:
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 64 * MIB}]
    source = write(tmp_path, lzma.compress(bytes(72 * MIB), filters=filters))
    code = (
        "import sys; from pathlib import Path; from edgeslm.flash.image.source import unpack;"
        "unpack(Path(sys.argv[1]), Path(sys.argv[2]));"
        "print(Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(source), str(tmp_path / "out.img")],
        capture_output=True, check=True, timeout=60,
    )  # fmt: skip
    assert 64 * MIB < int(done.stdout) * 1024 < 100 * MIB
