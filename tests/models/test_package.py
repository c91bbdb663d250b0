"""Packages are read whole or refused with a reason, and leave nothing behind."""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import stat
import zipfile
import zlib
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgeslm.errors import (
    PackageContentError,
    PackageError,
    PackageFormatError,
    PackageHashError,
    PackagePathError,
    PackageSizeError,
    PackageTruncatedError,
    StoreError,
)
from edgeslm.models import archive as archive_module
from edgeslm.models import package as package_module
from edgeslm.models.archive import sha256_file
from edgeslm.models.inspect import summary, verify_package
from edgeslm.models.package import read_manifest, unpack
from edgeslm.models.packing import pack, pack_directory
from edgeslm.models.store import ModelStore

# --- right packages -----------------------------------------------------------------------------------------


def test_a_packed_package_unpacks_to_its_members(tmp_path, slm):
    slm.pack(tmp_path / "tiny.slm")
    manifest = unpack(tmp_path / "tiny.slm", tmp_path / "out")
    assert manifest == read_manifest(tmp_path / "tiny.slm")
    found = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert found.pop("manifest.json") == slm.manifest()
    assert found == slm.members()


def test_the_packer_writes_the_one_byte_form(tmp_path, slm):
    sha256 = slm.pack(tmp_path / "tiny.slm")
    data = (tmp_path / "tiny.slm").read_bytes()
    assert data == slm.raw(slm.package())
    assert sha256 == hashlib.sha256(data).hexdigest() == sha256_file(tmp_path / "tiny.slm")


def test_other_tools_can_read_a_package(tmp_path, slm):
    slm.pack(tmp_path / "tiny.slm")
    with zipfile.ZipFile(tmp_path / "tiny.slm") as archive:
        assert archive.testzip() is None
        assert archive.namelist()[0] == "manifest.json"
        assert archive.read("tiny.tflite") == slm.graph


def test_order_and_times_of_sources_do_not_matter(tmp_path, slm):
    one = slm.pack(tmp_path / "one.slm")
    sources = slm.sources(tmp_path / "again")
    for path in sources.values():
        os.utime(path, (10**9, 10**9))
        path.chmod(0o755)
    draft = dict(reversed(slm.draft().items()))
    assert pack(draft, dict(reversed(sources.items())), tmp_path / "two.slm") == one


@pytest.mark.parametrize("kind", ["json", "yaml"])
def test_a_directory_packs_like_its_parts(tmp_path, slm, kind):
    slm.sources(tmp_path / "source")
    # JSON is YAML, too
    (tmp_path / "source" / f"manifest.{kind}").write_text(json.dumps(slm.draft()))
    assert pack_directory(tmp_path / "source", tmp_path / "dir.slm") == slm.pack(tmp_path / "parts.slm")


def test_members_of_every_small_size_survive(tmp_path, slm):
    members = slm.members(empty__bin=b"", one__bin=b"x", zip__bin=slm.raw(slm.package()))
    slm.pack(tmp_path / "tiny.slm", members)
    unpack(tmp_path / "tiny.slm", tmp_path / "out")
    assert {name: (tmp_path / "out" / name).read_bytes() for name in members} == members


def test_members_larger_than_a_chunk_survive(tmp_path, slm, monkeypatch):
    monkeypatch.setattr(archive_module, "CHUNK_BYTES", 7)
    slm.pack(tmp_path / "tiny.slm")
    unpack(tmp_path / "tiny.slm", tmp_path / "out")
    assert (tmp_path / "out" / "tiny.tflite").read_bytes() == slm.graph


# --- hostile packages ---------------------------------------------------------------------------------------

Spoil = Callable[..., bytes]
HOSTILE: list[tuple[str, type[PackageError], str, Spoil]] = []


def hostile(error: type[PackageError], words: str) -> Callable[[Spoil], Spoil]:
    """Register a way to spoil a package, with the error and some words that tell the reason."""

    def register(spoil: Spoil) -> Spoil:
        HOSTILE.append((spoil.__name__, error, words, spoil))
        return spoil

    return register


def _named(slm, raw_member, name: bytes, **central) -> bytes:
    return slm.raw([*slm.package(), raw_member(name, b"payload", central=central)])


@hostile(PackageFormatError, "does not start as a ZIP")
def not_a_zip(slm, raw_member):
    return b"\x7fELF" + bytes(5000)


@hostile(PackageTruncatedError, "ends after 0 bytes")
def empty_file(slm, raw_member):
    return b""


@hostile(PackageFormatError, "manifest.json")
def empty_zip(slm, raw_member):
    return slm.raw([])


@hostile(PackagePathError, "not a plain file name")
def absolute_path(slm, raw_member):
    return _named(slm, raw_member, b"/etc/passwd")


@hostile(PackagePathError, "not a plain file name")
def parent_path(slm, raw_member):
    return _named(slm, raw_member, b"../escape")


@hostile(PackagePathError, "not a plain file name")
def dots(slm, raw_member):
    return _named(slm, raw_member, b"..")


@hostile(PackagePathError, "not a plain file name")
def sub_directory(slm, raw_member):
    return _named(slm, raw_member, b"a/b")


@hostile(PackagePathError, "not a plain file name")
def backslash(slm, raw_member):
    return _named(slm, raw_member, b"..\\escape")


@hostile(PackagePathError, "not a plain file name")
def drive(slm, raw_member):
    return _named(slm, raw_member, b"C:escape")


@hostile(PackagePathError, "not a plain file name")
def directory_member(slm, raw_member):
    return _named(slm, raw_member, b"folder/")


@hostile(PackagePathError, "not a plain file name")
def hidden_file(slm, raw_member):
    return _named(slm, raw_member, b".hidden")


@hostile(PackagePathError, "not a plain file name")
def nul_in_name(slm, raw_member):
    return _named(slm, raw_member, b"x.bin\x00.txt")


@hostile(PackagePathError, "not a plain file name")
def newline_in_name(slm, raw_member):
    return _named(slm, raw_member, b"x.bin\n")


@hostile(PackagePathError, "not a plain file name")
def non_ascii_name(slm, raw_member):
    return _named(slm, raw_member, "größe.bin".encode(), flags=0x800)


@hostile(PackageFormatError, "damaged")
def name_in_broken_utf8(slm, raw_member):
    return _named(slm, raw_member, b"\xff\xfe.bin", flags=0x800)


@hostile(PackagePathError, "not a plain file name")
def long_name(slm, raw_member):
    return _named(slm, raw_member, b"x" * 200)


@hostile(PackagePathError, "not a plain file name")
def empty_name(slm, raw_member):
    return _named(slm, raw_member, b"")


@hostile(PackagePathError, "symbolic link")
def symlink_member(slm, raw_member):
    return _named(slm, raw_member, b"zlink", attributes=(stat.S_IFLNK | 0o777) << 16)


@hostile(PackagePathError, "found directory")
def directory_by_mode(slm, raw_member):
    return _named(slm, raw_member, b"zdir", attributes=(stat.S_IFDIR | 0o755) << 16)


@hostile(PackagePathError, "found directory")
def directory_by_dos_bit(slm, raw_member):
    return _named(slm, raw_member, b"zdir", attributes=0x10)


@hostile(PackagePathError, "special file")
def device_member(slm, raw_member):
    return _named(slm, raw_member, b"zdev", attributes=(stat.S_IFBLK | 0o666) << 16)


@hostile(PackageFormatError, "more than names, sizes")
def set_user_id(slm, raw_member):
    return slm.raw([*slm.package()[:-1], raw_member(b"zrun", b"", central={"attributes": 0o104755 << 16})])


@hostile(PackageFormatError, "there twice")
def duplicate_member(slm, raw_member):
    members = slm.package()
    return slm.raw([*members, members[-1]])


@hostile(PackageFormatError, "there twice")
def duplicate_one_letter_member(slm, raw_member):
    return slm.raw([*slm.package(), raw_member(b"z", b"1"), raw_member(b"z", b"2")])


@hostile(PackageFormatError, "there twice")
def duplicate_manifest(slm, raw_member):
    members = slm.package()
    return slm.raw([members[0], *members])


@hostile(PackageFormatError, "there twice")
def names_that_differ_in_case(slm, raw_member):
    return slm.raw([*slm.package(), raw_member(b"TINY.tflite", b"")])


@hostile(PackageContentError, "not named by the manifest")
def unnamed_member(slm, raw_member):
    return _named(slm, raw_member, b"zzz.bin")


@hostile(PackageContentError, "named by the manifest but missing")
def missing_member(slm, raw_member):
    return slm.raw([member for member in slm.package() if member.name != b"tiny.tflite"])


@hostile(PackageFormatError, "files named but not listed")
def graph_not_listed(slm, raw_member):
    members = slm.members(tiny__tflite=None)
    return slm.raw(slm.package(members))


@hostile(PackageFormatError, "manifest.json")
def no_manifest(slm, raw_member):
    return slm.raw(slm.package()[1:])


@hostile(PackageFormatError, "out of order")
def manifest_not_first(slm, raw_member):
    members = slm.package()
    return slm.raw([*members[1:], members[0]])


@hostile(PackageFormatError, "compressed")
def zip_bomb(slm, raw_member):
    deflater = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = deflater.compress(bytes(10**7)) + deflater.flush()
    claims = {"method": 8, "size": 2**32 - 2, "packed": len(packed)}
    return slm.raw([*slm.package(), raw_member(b"zbomb", packed, local=claims, central=claims)])


@hostile(PackageFormatError, "compressed")
def deflated_by_a_common_tool(slm, raw_member):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for member in slm.package():
            archive.writestr(member.name.decode(), member.data)
    return stream.getvalue()


@hostile(PackageFormatError, "encrypted")
def encrypted_flag(slm, raw_member):
    return _named(slm, raw_member, b"zzz", flags=1)


@hostile(PackageFormatError, "more than names, sizes")
def data_descriptor_flag(slm, raw_member):
    members = slm.package()
    members[-1].local = members[-1].central = {"flags": 8}
    return slm.raw(members)


@hostile(PackageSizeError, "two sizes")
def stored_with_two_sizes(slm, raw_member):
    members = slm.package()
    members[-1].central = {"size": 5}
    return slm.raw(members)


@hostile(PackageFormatError, "disagree")
def local_size_differs(slm, raw_member):
    members = slm.package()
    members[-1].local = {"size": 5, "packed": 5}
    return slm.raw(members)


@hostile(PackageFormatError, "disagree")
def local_name_differs(slm, raw_member):
    members = slm.package()
    members[-1].local = {"name": b"tokenizer.jsoN"}
    return slm.raw(members)


@hostile(PackageFormatError, "disagree")
def local_method_differs(slm, raw_member):
    members = slm.package()
    members[-1].local = {"method": 8}
    return slm.raw(members)


@hostile(PackageFormatError, "disagree")
def local_flags_differ(slm, raw_member):
    members = slm.package()
    members[-1].local = {"flags": 1}
    return slm.raw(members)


@hostile(PackageSizeError, "than the manifest states")
def manifest_states_another_size(slm, raw_member):
    manifest = json.loads(slm.manifest())
    manifest["files"]["tiny.tflite"]["size_bytes"] += 1
    return slm.raw(slm.package(manifest=json.dumps(manifest).encode()))


@hostile(PackageSizeError, "does not end where")
def size_beyond_the_end(slm, raw_member):
    members = slm.package()
    claims = {"size": 2**32 - 2, "packed": 2**32 - 2}
    members[-1].local = members[-1].central = claims
    return slm.raw(members)


@hostile(PackageFormatError, "does not start where")
def overlapping_members(slm, raw_member):
    members = slm.package()
    members[-1].central = {"offset": 0}
    return slm.raw(members)


@hostile(PackageFormatError, "does not start where")
def gap_between_members(slm, raw_member):
    members = slm.package()
    members[0].data, rest = members[0].data + b"hidden", len(members[0].data)
    members[0].local = members[0].central = {
        "size": rest, "packed": rest, "crc": zlib.crc32(members[0].data[:rest])
    }  # fmt: skip
    return slm.raw(members)


@hostile(PackageSizeError, "larger than allowed")
def oversize_manifest(slm, raw_member):
    return slm.raw(slm.package(manifest=slm.manifest() + b" " * 2**20))


@hostile(PackageSizeError, "too many members")
def too_many_members(slm, raw_member):
    return slm.raw([*slm.package(), *(raw_member(b"z%03d" % number, b"") for number in range(70))])


@hostile(PackageFormatError, "files: Dictionary should have at most 64")
def too_many_files_in_the_manifest(slm, raw_member):
    files = {f"f{n}": {"sha256": "0" * 64, "size_bytes": 0} for n in range(70)}
    return slm.raw(slm.package(manifest=slm.manifest(files=files)))


@hostile(PackageHashError, "another sha256")
def other_bytes(slm, raw_member):
    manifest = slm.manifest()
    return slm.raw(slm.package(slm.members(tiny__tflite=slm.graph[:-1] + b"!"), manifest=manifest))


@hostile(PackageHashError, "CRC-32")
def wrong_checksum(slm, raw_member):
    members = slm.package()
    members[-1].local = members[-1].central = {"crc": 1}
    return slm.raw(members)


@hostile(PackageHashError, "CRC-32")
def wrong_checksum_of_the_manifest(slm, raw_member):
    members = slm.package()
    members[0].local = members[0].central = {"crc": 1}
    return slm.raw(members)


@hostile(PackageFormatError, "package format 2; this release knows 1")
def later_format(slm, raw_member):
    return slm.raw(slm.package(manifest=b'{"format": 2, "everything": "else is new"}'))


@hostile(PackageFormatError, "package format 0; this release knows 1")
def earlier_format(slm, raw_member):
    return slm.raw(slm.package(format=0))


@hostile(PackageFormatError, "no format version")
def format_is_text(slm, raw_member):
    return slm.raw(slm.package(format="1"))


@hostile(PackageFormatError, "no format version")
def format_is_true(slm, raw_member):
    return slm.raw(slm.package(format=True))


@hostile(PackageFormatError, "no format version")
def manifest_is_a_list(slm, raw_member):
    return slm.raw(slm.package(manifest=b"[1]"))


@hostile(PackageFormatError, "not JSON")
def manifest_is_not_json(slm, raw_member):
    return slm.raw(slm.package(manifest=b"{'format': 1}"))


@hostile(PackageFormatError, "not JSON")
def manifest_is_nested_deep(slm, raw_member):
    return slm.raw(slm.package(manifest=b'{"format": ' + b"[" * 500_000))


@hostile(PackageFormatError, "not JSON")
def manifest_is_not_utf8(slm, raw_member):
    return slm.raw(slm.package(manifest=b'{"format": 1, "name": "\xff"}'))


@hostile(PackageFormatError, "Extra inputs")
def unknown_key(slm, raw_member):
    return slm.raw(slm.package(run_this="rm -rf /"))


@hostile(PackageFormatError, "files.../escape")
def path_in_the_manifest(slm, raw_member):
    files = json.loads(slm.manifest())["files"] | {"../escape": {"sha256": "0" * 64, "size_bytes": 0}}
    return slm.raw(slm.package(files=files))


@hostile(PackageContentError, "not a TFLite flatbuffer")
def graph_without_identifier(slm, raw_member):
    return slm.raw(slm.package(slm.members(tiny__tflite=b"\x80\x04pickle...")))


@hostile(PackageContentError, "not a TFLite flatbuffer")
def empty_graph(slm, raw_member):
    return slm.raw(slm.package(slm.members(tiny__tflite=b"")))


@hostile(PackageContentError, "not a tokenizer in JSON")
def tokenizer_not_json(slm, raw_member):
    return slm.raw(slm.package(slm.members(tokenizer__json=b"model: BPE")))


@hostile(PackageContentError, "not a tokenizer in JSON")
def tokenizer_without_model(slm, raw_member):
    return slm.raw(slm.package(slm.members(tokenizer__json=b"{}")))


@hostile(PackageContentError, "not a tokenizer in JSON")
def tokenizer_nested_deep(slm, raw_member):
    return slm.raw(slm.package(slm.members(tokenizer__json=b'{"model": ' + b"[" * 500_000)))


@hostile(PackageContentError, "not a SentencePiece model")
def tokenizer_of_the_other_kind(slm, raw_member):
    return slm.raw(slm.package(tokenizer={"kind": "sentencepiece", "file": "tokenizer.json"}))


@hostile(PackageContentError, "line 2 is not a golden case")
def golden_line_broken(slm, raw_member):
    return slm.raw(slm.package(slm.members(golden__jsonl=b'{"prompt": "a", "text": "b"}\n{"prompt": 1}\n')))


@hostile(PackageContentError, "no golden case")
def golden_empty(slm, raw_member):
    return slm.raw(slm.package(slm.members(golden__jsonl=b"\n\n")))


@hostile(PackageSizeError, "larger than allowed")
def golden_too_large(slm, raw_member):
    return slm.raw(slm.package(slm.members(golden__jsonl=slm.golden + b"\n" * 2**20)))


@hostile(PackageFormatError, "ZIP64")
def zip64_end_record(slm, raw_member):
    return slm.raw(slm.package(), offset=0xFFFF_FFFF)


@hostile(PackageFormatError, "ZIP64")
def zip64_locator(slm, raw_member):
    locator = b"PK\6\7" + bytes(16)
    return slm.raw(slm.package(), between=locator)


@hostile(PackageFormatError, "more than names, sizes")
def zip64_size_of_a_member(slm, raw_member):
    members = slm.package()
    size = len(members[-1].data)
    extra = b"\1\0\x10\0" + size.to_bytes(8, "little") * 2
    members[-1].central = {"size": 0xFFFF_FFFF, "packed": 0xFFFF_FFFF, "extra": extra}
    return slm.raw(members)


@hostile(PackageSizeError, "does not end where")
def zip64_size_of_exabytes(slm, raw_member):
    members = slm.package()
    extra = b"\1\0\x10\0" + (2**62).to_bytes(8, "little") * 2
    members[-1].central = {"size": 0xFFFF_FFFF, "packed": 0xFFFF_FFFF, "extra": extra}
    return slm.raw(members)


@hostile(PackageFormatError, "more than names, sizes")
def extra_field(slm, raw_member):
    members = slm.package()
    members[-1].central = {"extra": b"UT\5\0\1abcd"}
    return slm.raw(members)


@hostile(PackageFormatError, "does not start where")
def local_extra_field(slm, raw_member):
    members = slm.package()
    members[0].local = {"extra": b"UT\5\0\1abcd"}
    return slm.raw(members)


@hostile(PackageFormatError, "more than names, sizes")
def comment_of_a_member(slm, raw_member):
    members = slm.package()
    members[0].central = {"comment": b"hello"}
    return slm.raw(members)


@hostile(PackageFormatError, "more than names, sizes")
def time_of_a_member(slm, raw_member):
    members = slm.package()
    members[0].local = members[0].central = {"date": 0x5A21}
    return slm.raw(members)


@hostile(PackageFormatError, "behind its end record")
def archive_comment(slm, raw_member):
    return slm.raw(slm.package(), comment=b"hello")


@hostile(PackageFormatError, "9 bytes behind its end record")
def trailing_bytes(slm, raw_member):
    return slm.raw(slm.package(), suffix=b"#!payload")


@hostile(PackageFormatError, "does not start where")
def prefix_counted_in_offsets(slm, raw_member):
    return slm.raw(slm.package(), prefix=b"#!/bin/sh\n")


@hostile(PackageFormatError, "not where the end record says")
def prefix_before_the_file(slm, raw_member):
    return b"#!/bin/sh\n" + slm.raw(slm.package())


@hostile(PackageFormatError, "not where the end record says")
def two_files_in_a_row(slm, raw_member):
    return slm.raw(slm.package()) * 2


@hostile(PackageFormatError, "several files")
def split_archive(slm, raw_member):
    return slm.raw(slm.package(), disk=1)


@hostile(PackageFormatError, "several files")
def counts_differ(slm, raw_member):
    return slm.raw(slm.package(), total=2)


@hostile(PackageFormatError, "ZIP directory")
def directory_with_fewer_members(slm, raw_member):
    return slm.raw(slm.package(), count=2, total=2)


@pytest.mark.parametrize(
    ("error", "words", "spoil"), [row[1:] for row in HOSTILE], ids=[row[0] for row in HOSTILE]
)
def test_refuses_a_hostile_package_and_leaves_nothing_behind(
    tmp_path, slm, raw_member, tree, error, words, spoil
):
    path = tmp_path / "hostile.slm"
    path.write_bytes(spoil(slm, raw_member))
    store = ModelStore(tmp_path / "store")
    before = tree(tmp_path)
    for attempt in (
        lambda: unpack(path, tmp_path / "out"),
        lambda: store.install(path),
        lambda: verify_package(path),
    ):
        with pytest.raises(PackageError) as caught:
            attempt()
        assert type(caught.value) is error
        assert words in str(caught.value)
        assert caught.value.path == str(path)
        assert len(str(caught.value)) < 1000
        assert str(caught.value).isprintable()
    assert tree(tmp_path) == before


def test_errors_name_member_expected_and_actual(tmp_path, slm):
    members = slm.package(slm.members(tiny__tflite=slm.graph + b"!"), manifest=slm.manifest())
    (tmp_path / "tiny.slm").write_bytes(slm.raw(members))
    with pytest.raises(PackageSizeError) as caught:
        read_manifest(tmp_path / "tiny.slm")
    size = len(slm.graph)
    assert caught.value.member == "tiny.tflite"
    assert caught.value.expected == f"{size} bytes"
    assert caught.value.actual == f"{size + 1} bytes"


CUTS = [0, 1, 3, 4, 21, 22, 29, 30, 43, 44, *sorted(random.Random(3).sample(range(45, 4000), 60))]


@pytest.mark.parametrize("cut", [*CUTS, *(-n for n in (1, 2, 17, 21, 22, 23, 40, 67, 68, 69, 300))])
def test_refuses_a_package_cut_anywhere(tmp_path, slm, tree, cut):
    whole = slm.raw(slm.package())
    path = tmp_path / "cut.slm"
    path.write_bytes(whole[:cut] if cut < len(whole) else whole[:-5])
    before = tree(tmp_path)
    with pytest.raises(PackageTruncatedError):
        unpack(path, tmp_path / "out")
    assert tree(tmp_path) == before


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.integers(0, 4095), bit=st.integers(0, 7))
def test_refuses_any_flipped_bit(tmp_path, slm, position, bit):
    data = bytearray(slm.raw(slm.package()))
    data[position % len(data)] ^= 1 << bit
    path = tmp_path / "flipped.slm"
    path.write_bytes(data)
    with pytest.raises(PackageError):
        unpack(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_change_of_the_headers_is_a_package_error(tmp_path, slm, data):
    whole = slm.raw(slm.package())
    start = len(whole) - 500
    position = data.draw(st.integers(start, len(whole) - 1))
    patch = data.draw(st.binary(min_size=1, max_size=8))
    changed = whole[:position] + patch + whole[position + len(patch) :]
    path = tmp_path / "changed.slm"
    path.write_bytes(changed)
    if changed == whole:
        assert read_manifest(path)
    else:
        with pytest.raises(PackageError):
            unpack(path, tmp_path / "out")


def test_refuses_what_is_no_regular_file(tmp_path):
    os.mkfifo(tmp_path / "fifo.slm")
    (tmp_path / "folder.slm").mkdir()
    for name in ("fifo.slm", "folder.slm"):
        with pytest.raises(PackageFormatError, match="not a regular file"):
            read_manifest(tmp_path / name)
    with pytest.raises(PackageError, match="No such file"):
        read_manifest(tmp_path / "missing.slm")
    with pytest.raises(PackageError, match="No such file"):
        sha256_file(tmp_path / "missing.slm")


def test_refuses_a_package_that_changes_while_it_is_read(tmp_path, slm, monkeypatch):
    path = tmp_path / "tiny.slm"
    slm.pack(path, slm.members(tiny__tflite=slm.graph * 100))
    check = package_module._check_against_manifest

    def then_change(*arguments):
        check(*arguments)
        with path.open("r+b") as stream:
            stream.seek(50_000)
            stream.write(b"changed")

    monkeypatch.setattr(package_module, "_check_against_manifest", then_change)
    with pytest.raises(PackageHashError) as caught:
        unpack(path, tmp_path / "out")
    assert caught.value.member == "tiny.tflite"
    assert not (tmp_path / "out").exists()


def test_does_not_unpack_over_anything(tmp_path, slm, tree):
    slm.pack(tmp_path / "tiny.slm")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine")
    before = tree(tmp_path)
    with pytest.raises(StoreError) as caught:
        unpack(tmp_path / "tiny.slm", tmp_path / "out")
    assert caught.value.path == str(tmp_path / "out")
    assert tree(tmp_path) == before


# --- packing ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("draft", "members", "error"),
    [
        ({"format": 2}, {}, PackageFormatError),
        ({"files": {}}, {}, PackageFormatError),
        ({"nonsense": 1}, {}, PackageFormatError),
        ({"measured": {"pi-5": {"decode_tps": float("nan")}}}, {}, PackageFormatError),
        ({}, {"tiny__tflite": b"no graph at all"}, PackageContentError),
        ({}, {"tiny__tflite": None}, PackageFormatError),
        ({}, {"tokenizer__json": b"no JSON"}, PackageContentError),
        ({}, {"golden__jsonl": b"no JSON"}, PackageContentError),
        ({}, {"TINY__tflite": b""}, PackageFormatError),
        ({}, {f"f{number}": b"" for number in range(70)}, PackageSizeError),
    ],
)
def test_does_not_pack_what_does_not_unpack(tmp_path, slm, tree, draft, members, error):
    sources = slm.sources(tmp_path / "members", slm.members(**members))
    (tmp_path / "out.slm").write_bytes(b"what was there")
    before = tree(tmp_path)
    with pytest.raises(error) as caught:
        pack(slm.draft(**draft), sources, tmp_path / "out.slm")
    assert caught.value.path == str(tmp_path / "out.slm")
    assert tree(tmp_path) == before


def test_does_not_pack_links_or_names_that_leave_the_package(tmp_path, slm):
    sources = slm.sources(tmp_path / "members")
    (tmp_path / "link").symlink_to(sources["tiny.tflite"])
    for name, source in (
        ("link", tmp_path / "link"),
        ("folder", tmp_path),
        ("missing", tmp_path / "missing"),
        ("../up", sources["tiny.tflite"]),
        ("manifest.json", sources["tiny.tflite"]),
    ):
        with pytest.raises(PackagePathError):
            pack(slm.draft(), {**sources, name: source}, tmp_path / "out.slm")
    assert not (tmp_path / "out.slm").exists()


def test_a_directory_needs_one_readable_draft(tmp_path, slm):
    source = tmp_path / "source"
    slm.sources(source)
    with pytest.raises(PackageFormatError, match="found neither"):
        pack_directory(source, tmp_path / "out.slm")
    (source / "manifest.yaml").write_text("a: [")
    with pytest.raises(PackageFormatError, match="cannot be parsed"):
        pack_directory(source, tmp_path / "out.slm")
    (source / "manifest.yaml").write_text("!!python/object/apply:os.system ['false']")
    with pytest.raises(PackageFormatError, match="cannot be parsed"):
        pack_directory(source, tmp_path / "out.slm")
    (source / "manifest.yaml").write_text("- a")
    with pytest.raises(PackageContentError, match="expected mapping, found list"):
        pack_directory(source, tmp_path / "out.slm")
    (source / "manifest.json").write_text("{}")
    with pytest.raises(PackageFormatError, match="needs one draft"):
        pack_directory(source, tmp_path / "out.slm")
    with pytest.raises(PackageError, match="No such file"):
        pack_directory(tmp_path / "nowhere", tmp_path / "out.slm")


def test_a_full_disk_while_packing_leaves_the_old_package(tmp_path, slm, tree, monkeypatch):
    slm.pack(tmp_path / "out.slm")
    before = tree(tmp_path)

    def refuse(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(StoreError, match="No space left"):
        slm.pack(tmp_path / "out.slm", version="2.0.0")
    assert tree(tmp_path) == before


# --- reports ------------------------------------------------------------------------------------------------


def test_verify_reports_every_member(tmp_path, slm):
    sha256 = slm.pack(tmp_path / "tiny.slm", slm.members(extra__bin=b"more"))
    report = verify_package(tmp_path / "tiny.slm")
    assert report.sha256 == sha256
    assert report.golden_cases == 2
    assert {member.name: member.role for member in report.members} == {
        "tiny.tflite": "graph",
        "tokenizer.json": "tokenizer",
        "golden.jsonl": "golden",
        "LICENSE.txt": "license",
        "extra.bin": "other",
    }


def test_the_summary_is_the_same_before_and_after_installing(tmp_path, slm):
    sha256 = slm.pack(tmp_path / "tiny.slm")
    told = summary(tmp_path / "tiny.slm")
    assert told == summary(ModelStore(tmp_path / "store").install(tmp_path / "tiny.slm"))
    assert told.sha256 == sha256
    assert told.size_bytes == (tmp_path / "tiny.slm").stat().st_size
    assert told.graphs[0].size_bytes == len(slm.graph)
    assert json.loads(told.model_dump_json())["licenses"][0]["spdx"] == "Apache-2.0"
