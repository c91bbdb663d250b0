"""Packages above 4 GiB have one byte form as well, and those below have no trace of it."""

from __future__ import annotations

import hashlib
import struct
import zipfile
import zlib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgeslm.errors import PackageError, PackageFormatError, PackageSizeError
from edgeslm.models import archive as archive_module
from edgeslm.models import archive_reader as reader_module
from edgeslm.models.archive import archive_size_bytes, directory, layout, local_header
from edgeslm.models.inspect import verify_package
from edgeslm.models.package import read_manifest, unpack
from edgeslm.models.packing import pack
from edgeslm.models.store import ModelStore

GIB = 2**30
MARK = 0xFFFF_FFFF


@pytest.fixture
def small_limit(monkeypatch):
    """Lets ZIP64 begin at a size that is quickly written."""

    def patch(limit: int) -> None:
        monkeypatch.setattr(archive_module, "ZIP64_FROM", limit)
        monkeypatch.setattr(reader_module, "ZIP64_FROM", limit)

    return patch


def widen(members, limit: int) -> dict[str, object]:
    """Turn what is at or above `limit` into ZIP64, by the letter of APPNOTE; what the end record needs."""
    offset = 0
    for member in members:
        size, sizes, here = len(member.data), {}, []
        if size >= limit:
            member.local = {"extra": struct.pack("<2H2Q", 1, 16, size, size), "packed": MARK, "size": MARK}
            member.local["version"] = 45
            sizes = {"packed": MARK, "size": MARK}
            here = [size, size]
        if offset >= limit:
            sizes["offset"] = MARK
            here.append(offset)
        if here:
            extra = struct.pack(f"<2H{len(here)}Q", 1, 8 * len(here), *here)
            member.central = {**sizes, "version": 45, "extra": extra}
        offset += 30 + len(member.name) + len(member.local.get("extra", b"")) + size
    if offset < limit:
        return {}
    records = sum(46 + len(member.name) + len(member.central.get("extra", b"")) for member in members)
    numbers = (len(members), len(members), records, offset)
    wide = b"PK\6\6" + struct.pack("<Q2H2I4Q", 44, 3 << 8 | 45, 45, 0, 0, *numbers)
    locator = b"PK\6\7" + struct.pack("<IQI", 0, offset + records, 1)
    return {"between": wide + locator, "offset": MARK}


def spliced(raw: bytes, members) -> bytes:
    """`raw` with "made by" of the wide members as it has to be; the builder knows one version only."""
    data = bytearray(raw)
    at = data.find(b"PK\1\2")
    for member in members:
        if member.central.get("version") == 45:
            data[at + 4] = 45
        at += 46 + len(member.name) + len(member.central.get("extra", b""))
    return bytes(data)


@pytest.mark.parametrize("limit", [1, 72, 73, 100, 1031, 1032, 1033, 1500, 2000, 2800, 2900, 10**6])
def test_zip64_stands_exactly_where_a_number_does_not_fit(tmp_path, slm, small_limit, limit):
    small_limit(limit)
    sha256 = slm.pack(tmp_path / "tiny.slm")
    members = slm.package()
    ends = widen(members, limit)
    data = (tmp_path / "tiny.slm").read_bytes()
    assert data == spliced(slm.raw(members, **ends), members)
    assert (b"PK\6\6" in data) == bool(ends)
    with zipfile.ZipFile(tmp_path / "tiny.slm") as archive:
        assert archive.testzip() is None
        assert {name: archive.read(name) for name in archive.namelist()[1:]} == slm.members()
    store = ModelStore(tmp_path / "store")
    store.verify(store.install(tmp_path / "tiny.slm", expected_sha256=sha256))


def test_the_limit_itself_needs_zip64_and_one_below_does_not():
    for size, wide in ((MARK - 1, False), (MARK, True)):
        (entry,) = layout({"m": (size, 0)})
        assert (b"\1\0\x10\0" in local_header(entry)) == wide
    for size, wide in ((MARK - 32, False), (MARK - 31, True)):
        entries = layout({"m": (size, 0)})
        assert entries[0].end_offset == size + 31
        assert (b"PK\6\6" in directory(entries)) == wide


@settings(max_examples=200, deadline=None)
@given(sizes=st.lists(st.integers(0, 2**36), min_size=1, max_size=8))
def test_headers_have_the_lengths_that_the_layout_counts_on(sizes):
    entries = layout({f"m{number}": (size, 7) for number, size in enumerate(sizes)})
    offset = 0
    for entry in entries:
        assert entry.offset == offset
        assert entry.data_offset == offset + len(local_header(entry))
        offset = entry.end_offset
    assert archive_size_bytes(entries) == offset + len(directory(entries))


# --- real sizes: holes in a file cost nothing ---------------------------------------------------------------


def sparse_package(path: Path, slm, huge_bytes: int) -> None:
    """A package with a member of zeros, which is a hole, before two others."""
    members = slm.members()
    files = {name: (len(data), zlib.crc32(data)) for name, data in members.items()}
    named = {
        name: {"sha256": hashlib.sha256(data).hexdigest(), "size_bytes": len(data)}
        for name, data in members.items()
    }
    named["huge.bin"] = {"sha256": "0" * 64, "size_bytes": huge_bytes}
    manifest = slm.manifest(files=named)
    entries = layout(
        {"manifest.json": (len(manifest), zlib.crc32(manifest)), "huge.bin": (huge_bytes, 0), **files}
    )
    sources = {"manifest.json": manifest, "huge.bin": b"", **members}
    with path.open("wb") as stream:
        for entry in entries:
            stream.seek(entry.offset)
            stream.write(local_header(entry) + sources[entry.name])
        stream.seek(entries[-1].end_offset)
        stream.write(directory(entries))


@pytest.mark.parametrize("huge_bytes", [4 * GIB - 5000, MARK - 1, MARK, 4 * GIB, 9 * GIB + 1, 40 * GIB])
def test_a_package_above_4_gib_is_read_and_other_tools_agree(tmp_path, slm, huge_bytes):
    path = tmp_path / "huge.slm"
    sparse_package(path, slm, huge_bytes)
    assert read_manifest(path).files["huge.bin"].size_bytes == huge_bytes
    with zipfile.ZipFile(path) as archive:
        assert archive.getinfo("huge.bin").file_size == huge_bytes
        assert archive.read("tokenizer.json") == slm.tokenizer
        assert archive.getinfo("tokenizer.json").header_offset > huge_bytes


def test_a_huge_package_that_is_cut_or_changed_anywhere_in_its_end_is_refused(tmp_path, slm):
    path = tmp_path / "huge.slm"
    sparse_package(path, slm, 5 * GIB)
    size = path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        start = archive.start_dir
    with path.open("r+b") as stream:
        stream.seek(start)
        end = stream.read()
        assert len(end) > 300
        for position in range(len(end)):
            stream.seek(start)
            stream.write(end[:position] + bytes([end[position] ^ 0x41]) + end[position + 1 :])
            stream.flush()
            with pytest.raises(PackageError):
                read_manifest(path)
        for cut in (1, 4, 21, 22, 42, 43, 98, 99, 300):
            stream.seek(start)
            stream.write(end)
            stream.truncate(size - cut)
            with pytest.raises(PackageError):
                read_manifest(path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"between": b""}, "lacks those"),
        ({"between": b"PK\6\6" + bytes(52) + b"PK\6\7" + bytes(16)}, "does not need"),
        ({"between": bytes(56) + b"PK\6\7" + bytes(16)}, "not before its locator"),
        ({"offset": 100}, "does not need"),
        ({"offset": 0}, "does not need"),
    ],
)
def test_zip64_records_that_are_not_as_they_have_to_be_are_refused(tmp_path, slm, small_limit, change, words):
    small_limit(1500)
    members = slm.package()
    ends = widen(members, 1500)
    path = tmp_path / "tiny.slm"
    path.write_bytes(spliced(slm.raw(members, **ends), members))
    read_manifest(path)
    path.write_bytes(spliced(slm.raw(members, **{**ends, **change}), members))
    with pytest.raises(PackageFormatError, match=words):
        read_manifest(path)


def test_zip64_of_a_small_package_is_another_byte_form(tmp_path, slm, small_limit):
    small_limit(1500)
    slm.pack(tmp_path / "tiny.slm")
    small_limit(MARK)
    with pytest.raises(PackageFormatError, match="does not need"):
        read_manifest(tmp_path / "tiny.slm")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.integers(0, 10**6), bit=st.integers(0, 7))
def test_refuses_any_flipped_bit_of_a_wide_package(tmp_path, slm, position, bit):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(archive_module, "ZIP64_FROM", 1000)
        patch.setattr(reader_module, "ZIP64_FROM", 1000)
        path = tmp_path / "flipped.slm"
        slm.pack(path)
        data = bytearray(path.read_bytes())
        data[position % len(data)] ^= 1 << bit
        path.write_bytes(data)
        with pytest.raises(PackageError):
            unpack(path, tmp_path / "out")
        assert not (tmp_path / "out").exists()


def test_a_file_larger_than_a_package_can_be_is_refused(tmp_path):
    with (tmp_path / "monster.slm").open("wb") as stream:
        stream.truncate(2**36 + 1)
    with pytest.raises(PackageSizeError, match="larger than a package can be"):
        read_manifest(tmp_path / "monster.slm")


@pytest.mark.nightly
@pytest.mark.timeout(600)
def test_a_package_above_4_gib_is_verified_to_the_last_byte(tmp_path, slm):
    sources = slm.sources(tmp_path / "members")
    with (tmp_path / "members" / "huge.bin").open("wb") as stream:
        stream.truncate(4 * GIB + 4096)
        stream.seek(4 * GIB + 4095)
        stream.write(b"!")
    huge = tmp_path / "members" / "huge.bin"
    sha256 = pack(slm.draft(), {**sources, "huge.bin": huge}, tmp_path / "huge.slm")
    store = ModelStore(tmp_path / "store")
    installed = store.install(tmp_path / "huge.slm", expected_sha256=sha256)
    assert installed.file("huge.bin").stat().st_size == 4 * GIB + 4096
    store.verify(installed)
    at = (tmp_path / "huge.slm").stat().st_size
    with (tmp_path / "huge.slm").open("r+b") as stream:
        data = b""
        while b"!" not in data:  # the last byte of the huge member lies before what follows it
            at -= 4096
            stream.seek(at)
            data = stream.read(4096)
        stream.seek(at + data.rindex(b"!"))
        stream.write(b"?")
    with pytest.raises(PackageError):
        verify_package(tmp_path / "huge.slm")
