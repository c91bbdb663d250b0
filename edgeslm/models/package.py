"""The ``.slm`` file: its one byte form, and reading, checking and unpacking it.

A package is a ZIP in which nothing is left to choose: members stored, ``manifest.json`` first and the
others by name, one timestamp, one mode, no extra fields, comments, gaps or ZIP64. So the same contents
always have the same sha256, an unpacked package can be hashed as the file that it came from, and every
trick with headers that two readers understand differently is simply another byte form, and refused.
`zipfile` reads the directory; its records and all local headers are then compared with the bytes that they
have to be.

What always holds:

* A package is hostile until its last byte was read. Every fault is a :class:`PackageError` that names the
  file and, where there is one to blame, the member, what was expected and what was found.
* Memory is bounded by the limits below, whatever a header claims. Nothing is decompressed, nothing
  executed.
* What was unpacked with a fault is gone when the error is raised.

Left to others: whole packages after power cuts (:mod:`edgeslm.models.store`), writing packages
(:mod:`edgeslm.models.packing`), and whether a graph computes what it should (the runtime's golden vector).

Source: PKWARE APPNOTE.TXT 6.3.10, sections 4.3.7 (local header), 4.3.12 (directory) and 4.3.16 (end
record).
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import from_json

from edgeslm.codec import describe
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
from edgeslm.schema.package import (
    FORMAT_VERSION,
    MANIFEST_NAME,
    MAX_MANIFEST_BYTES,
    MAX_MEMBERS,
    GoldenCase,
    Manifest,
)

MAX_ARCHIVE_BYTES = 2**32 - 2
"""Largest package: beyond it a ZIP needs ZIP64 records, which format 1 does without."""
MAX_TOKENIZER_BYTES = 64 * 2**20
MAX_GOLDEN_BYTES = 2**20
CHUNK_BYTES = 2**20

FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_MAX_RECORD_BYTES = 1024
_GRAPH_HEAD_BYTES = 8
_GRAPH_IDENTIFIER = b"TFL3"

_LOCAL = struct.Struct("<4s5H3I2H")
_CENTRAL = struct.Struct("<4s6H3I5H2I")
_END = struct.Struct("<4s4H2IH")
_LOCAL_MAGIC, _CENTRAL_MAGIC, _END_MAGIC = b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06"
_ZIP64_LOCATOR_MAGIC, _ZIP64_LOCATOR_BYTES = b"PK\x06\x07", 20
_VERSION = 20
_MADE_BY = 3 << 8 | _VERSION
_DOS_DATE = 1 << 5 | 1  # 1980-01-01, the first day that the format knows
_MODE = (stat.S_IFREG | 0o644) << 16
_DOS_DIRECTORY = 0x10
_ENCRYPTED = 0x1

ErrorT = TypeVar("ErrorT", bound=PackageError)


@dataclass(frozen=True)
class Entry:
    """One member as the ZIP records it.

    Attributes:
        crc32: checksum of its bytes, which a ZIP needs beside the manifest's sha256.
        offset: of its local header in the file.
    """

    name: str
    size_bytes: int
    crc32: int
    offset: int

    @property
    def data_offset(self) -> int:
        """Offset of its first byte in the file."""
        return self.offset + _LOCAL.size + len(self.name)


@dataclass(frozen=True)
class Contents:
    """What a reading of the whole package found.

    Attributes:
        sha256: of the whole file.
        size_bytes: of the whole file.
        golden_cases: lines of ``golden.jsonl``.
    """

    manifest: Manifest
    sha256: str
    size_bytes: int
    golden_cases: int


@dataclass(frozen=True)
class _Opened:
    path: Path
    stream: BufferedReader
    size_bytes: int
    entries: tuple[Entry, ...]
    manifest: Manifest
    manifest_sha256: str


# --- the byte form ------------------------------------------------------------------------------------------


def layout(members: Mapping[str, tuple[int, int]]) -> tuple[Entry, ...]:
    """The entries of a package, in file order.

    Args:
        members: size in bytes and CRC-32 by name, the manifest among them.
    """
    entries = []
    offset = 0
    for name in sorted(members, key=lambda name: (name != MANIFEST_NAME, name)):
        size_bytes, crc32 = members[name]
        entries.append(Entry(name, size_bytes, crc32, offset))
        offset = entries[-1].data_offset + size_bytes
    return tuple(entries)


def local_header(entry: Entry) -> bytes:
    """The bytes before a member's own."""
    name = entry.name.encode("ascii")
    size = entry.size_bytes
    return (
        _LOCAL.pack(_LOCAL_MAGIC, _VERSION, 0, 0, 0, _DOS_DATE, entry.crc32, size, size, len(name), 0) + name
    )


def directory(entries: Sequence[Entry]) -> bytes:
    """The bytes after the last member's: directory and end record."""
    records = b"".join(_central_record(entry) for entry in entries)
    count = len(entries)
    return records + _END.pack(_END_MAGIC, 0, 0, count, count, len(records), _members_end(entries), 0)


def _central_record(entry: Entry) -> bytes:
    name = entry.name.encode("ascii")
    size = entry.size_bytes
    fields = (_MADE_BY, _VERSION, 0, 0, 0, _DOS_DATE, entry.crc32, size, size, len(name), 0, 0, 0, 0, _MODE)
    return _CENTRAL.pack(_CENTRAL_MAGIC, *fields, entry.offset) + name


def _members_end(entries: Sequence[Entry]) -> int:
    return entries[-1].data_offset + entries[-1].size_bytes if entries else 0


def archive_size_bytes(entries: Sequence[Entry]) -> int:
    """Size of the whole file."""
    return _members_end(entries) + sum(_CENTRAL.size + len(entry.name) for entry in entries) + _END.size


# --- errors -------------------------------------------------------------------------------------------------


def fault(
    kind: type[ErrorT],
    path: Path,
    what: str,
    *,
    member: str | None = None,
    expected: str | None = None,
    actual: str | None = None,
    hint: str | None = None,
) -> ErrorT:
    """An error whose text says where, what, and what was expected; hostile names are shown escaped."""
    where = path.name if member is None else f"{path.name}: {_shown(member)}"
    text = f"{where}: {what}"
    if expected is not None and actual is not None:
        text += f" (expected {expected}, found {actual})"
    return kind(text, path=str(path), member=member, expected=expected, actual=actual, hint=hint)


def _shown(name: str) -> str:
    return name if FILE_NAME.fullmatch(name) else ascii(name[:80])


# --- reading ------------------------------------------------------------------------------------------------


def sha256_file(path: Path) -> str:
    """Hex sha256 of the file at `path`.

    Raises:
        PackageError: it cannot be read or is no regular file.
    """
    with open_regular(path, path) as stream:
        try:
            return hashlib.file_digest(stream, "sha256").hexdigest()
        except OSError as error:
            raise fault(PackageError, path, f"cannot be read: {error.strerror}") from error


def read_manifest(path: Path) -> Manifest:
    """The manifest of the package file at `path`.

    The container is checked as a whole, the bytes of the other members are not.

    Raises:
        PackageError: the file cannot be read, or one of its subclasses for what is wrong with it.
    """
    with _opened(path, path) as opened:
        return opened.manifest


def check_package(path: Path, *, shown_as: Path | None = None) -> Contents:
    """Read the whole package at `path` and check everything that unpacking checks, without writing.

    Args:
        path: the package file.
        shown_as: path to name in errors, where the file is about to be renamed.

    Raises:
        PackageError: as for :func:`read_manifest`.
    """
    with _opened(path, shown_as or path) as opened:
        return _read_through(opened, None)


def unpack(path: Path, into: Path) -> Manifest:
    """Unpack the package at `path` into the new directory `into`; see :func:`extract`."""
    return extract(path, into).manifest


def extract(path: Path, into: Path) -> Contents:
    """Unpack the package at `path` into the new directory `into`, whose parent exists.

    Files and directory are synced to the disk. After a crash `into` may be incomplete; after an error it is
    gone.

    Raises:
        PackageError: as for :func:`read_manifest`.
        StoreError: `into` exists or cannot be written.
    """
    with _opened(path, path) as opened:
        with writing(into):
            into.mkdir()
        try:
            contents = _read_through(opened, into)
            with writing(into):
                sync_directory(into)
        except BaseException:
            shutil.rmtree(into, ignore_errors=True)
            raise
        return contents


def parse_manifest(data: bytes, path: Path) -> Manifest:
    """The manifest in `data`.

    Args:
        data: bytes of ``manifest.json``.
        path: package file or directory, for errors.

    Raises:
        PackageSizeError: too large to be parsed.
        PackageFormatError: not JSON, of another format version, or not a manifest.
    """
    if len(data) > MAX_MANIFEST_BYTES:
        raise _too_large(path, MANIFEST_NAME, len(data), MAX_MANIFEST_BYTES)
    try:
        value = from_json(data, allow_inf_nan=False)
    except (ValueError, RecursionError) as error:
        reason = f"is not JSON: {str(error)[:200]}"
        raise fault(PackageFormatError, path, reason, member=MANIFEST_NAME) from error
    # Asked before the schema: a later format would fail in ways that say nothing about the reason.
    version = value.get("format") if isinstance(value, dict) else None
    if type(version) is not int:
        raise fault(
            PackageFormatError, path, "has no format version", member=MANIFEST_NAME,
            expected=str(FORMAT_VERSION), actual=ascii(version)[:40],
        )  # fmt: skip
    if version != FORMAT_VERSION:
        raise fault(
            PackageFormatError, path, f"is of package format {version}; this release knows {FORMAT_VERSION}",
            member=MANIFEST_NAME, expected=str(FORMAT_VERSION), actual=str(version),
            hint="Install a release of edgeslm that knows it" if version > FORMAT_VERSION else None,
        )  # fmt: skip
    try:
        return Manifest.model_validate_json(data)
    except ValidationError as error:
        raise fault(PackageFormatError, path, describe(error), member=MANIFEST_NAME) from error


@contextmanager
def open_regular(path: Path, shown: Path) -> Iterator[BufferedReader]:
    """Open the file at `path` for reading; errors (:class:`PackageError`) name it as `shown`."""
    try:
        # Without O_NONBLOCK opening a FIFO would wait for a writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise fault(PackageError, shown, f"cannot be read: {error.strerror}") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise fault(PackageFormatError, shown, "is not a regular file")
    with os.fdopen(descriptor, "rb") as stream:
        yield stream


@contextmanager
def _opened(path: Path, shown: Path) -> Iterator[_Opened]:
    with open_regular(path, shown) as stream:
        size_bytes = os.fstat(stream.fileno()).st_size
        entries = _read_entries(stream, size_bytes, shown)
        data = _read_exactly(stream, entries[0].size_bytes, shown, at=entries[0].data_offset)
        _check_crc32(shown, entries[0], zlib.crc32(data))
        manifest = parse_manifest(data, shown)
        _check_against_manifest(manifest, entries, shown)
        yield _Opened(shown, stream, size_bytes, entries, manifest, hashlib.sha256(data).hexdigest())


def _read_exactly(stream: BufferedReader, size_bytes: int, path: Path, *, at: int | None = None) -> bytes:
    try:
        if at is not None:
            stream.seek(at)
        data = stream.read(size_bytes)
    except OSError as error:
        raise fault(PackageError, path, f"cannot be read: {error.strerror}") from error
    if len(data) != size_bytes:
        raise fault(
            PackageTruncatedError,
            path,
            "ends early",
            expected=f"{size_bytes} bytes",
            actual=f"{len(data)} bytes",
        )
    return data


def _too_large(path: Path, member: str, size_bytes: int, limit_bytes: int) -> PackageSizeError:
    return fault(
        PackageSizeError, path, "is larger than allowed", member=member,
        expected=f"at most {limit_bytes} bytes", actual=f"{size_bytes} bytes",
    )  # fmt: skip


# --- the container ------------------------------------------------------------------------------------------


def _read_entries(stream: BufferedReader, size_bytes: int, path: Path) -> tuple[Entry, ...]:
    """The members in file order, after every header was found to be what it has to be."""
    directory_offset = _find_directory(stream, size_bytes, path)
    try:
        infos = zipfile.ZipFile(stream).infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, EOFError, struct.error) as error:
        raise fault(PackageFormatError, path, f"its ZIP directory is damaged: {error}") from error
    for info in infos:
        _check_plain(info, path)
    _check_names([info.filename for info in infos], path)
    entries = layout({info.filename: (info.file_size, info.CRC) for info in infos})
    _check_layout(entries, infos, directory_offset, path)
    if _read_exactly(stream, size_bytes - directory_offset, path, at=directory_offset) != directory(entries):
        raise fault(
            PackageFormatError, path, "its ZIP directory says more than names, sizes and checksums",
            hint="Write packages with `edgeslm model pack`, which adds no extra fields, times or comments",
        )  # fmt: skip
    for entry in entries:
        expected = local_header(entry)
        _check_header(entry, _read_exactly(stream, len(expected), path, at=entry.offset), path)
    return entries


def _find_directory(stream: BufferedReader, size_bytes: int, path: Path) -> int:
    """Offset of the directory, once it is known to be small, and to end where the end record starts."""
    if size_bytes > MAX_ARCHIVE_BYTES:
        raise fault(
            PackageSizeError, path, "is larger than a package can be",
            expected=f"at most {MAX_ARCHIVE_BYTES} bytes", actual=f"{size_bytes} bytes",
        )  # fmt: skip
    end_offset = size_bytes - _END.size
    record = _end_record(stream, end_offset, path) if end_offset >= 0 else None
    if record is None:
        raise _without_end(stream, size_bytes, path)
    disk, first_disk, count, total, length, offset = record
    locator = _read_exactly(stream, 4, path, at=max(0, end_offset - _ZIP64_LOCATOR_BYTES))
    if locator == _ZIP64_LOCATOR_MAGIC or 0xFFFF in (count, total) or 0xFFFF_FFFF in (length, offset):
        raise fault(PackageFormatError, path, "is a ZIP64 archive, which the package format does without")
    if count > MAX_MEMBERS + 1:
        raise fault(
            PackageSizeError,
            path,
            "has too many members",
            expected=f"at most {MAX_MEMBERS + 1}",
            actual=str(count),
        )
    if disk or first_disk or count != total:
        raise fault(PackageFormatError, path, "is a part of an archive of several files")
    if offset + length != end_offset or length > count * _MAX_RECORD_BYTES:
        raise fault(
            PackageFormatError, path, "its ZIP directory is not where the end record says",
            expected=f"{end_offset - length} bytes before it", actual=f"{offset} bytes",
        )  # fmt: skip
    return offset


def _end_record(stream: BufferedReader, at: int, path: Path) -> tuple[int, ...] | None:
    """Fields of the end record at `at`, or ``None`` where there is none without a comment."""
    magic, *fields, comment_length = _END.unpack(_read_exactly(stream, _END.size, path, at=at))
    return tuple(fields) if magic == _END_MAGIC and comment_length == 0 else None


def _without_end(stream: BufferedReader, size_bytes: int, path: Path) -> PackageFormatError:
    """Why a file does not close with an end record: no ZIP at all, something behind it, or cut off."""
    head = _read_exactly(stream, min(size_bytes, len(_LOCAL_MAGIC)), path, at=0)
    if not _LOCAL_MAGIC.startswith(head):
        return fault(PackageFormatError, path, "is not a package: it does not start as a ZIP file does")
    span = min(size_bytes, 2**16 + _END.size)
    tail = _read_exactly(stream, span, path, at=size_bytes - span)
    found = tail.rfind(_END_MAGIC)
    if 0 <= found <= span - _END.size:
        *_, length, offset, _comment = _END.unpack_from(tail, found)
        behind = span - found - _END.size
        if offset + length == size_bytes - span + found:
            return fault(PackageFormatError, path, f"has {behind} bytes behind its end record")
    return fault(
        PackageTruncatedError, path, f"ends after {size_bytes} bytes, before its ZIP directory does",
        hint="Fetch it again",
    )  # fmt: skip


def _check_plain(info: zipfile.ZipInfo, path: Path) -> None:
    name = info.orig_filename  # `filename` is cut at the first NUL
    if not FILE_NAME.fullmatch(name):
        raise fault(
            PackagePathError, path, "is not a plain file name", member=name, expected=FILE_NAME.pattern,
            actual=ascii(name[:80]),
        )  # fmt: skip
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind not in {0, stat.S_IFREG} or info.external_attr & _DOS_DIRECTORY:
        what = {stat.S_IFLNK: "symbolic link", stat.S_IFDIR: "directory", 0: "directory"}.get(
            kind, "special file"
        )
        raise fault(
            PackagePathError, path, "is not a file", member=name, expected="regular file", actual=what
        )
    if info.flag_bits & _ENCRYPTED:
        raise fault(
            PackageFormatError, path, "is encrypted", member=name, expected="plain bytes", actual="encrypted"
        )
    if info.compress_type != zipfile.ZIP_STORED:
        raise fault(
            PackageFormatError, path, "is compressed", member=name, expected="stored",
            actual=f"ZIP method {info.compress_type}",
        )  # fmt: skip
    if info.file_size != info.compress_size:
        raise fault(
            PackageSizeError, path, "has two sizes", member=name,
            expected=f"{info.file_size} bytes", actual=f"{info.compress_size} bytes",
        )  # fmt: skip
    if name == MANIFEST_NAME and info.file_size > MAX_MANIFEST_BYTES:
        raise _too_large(path, name, info.file_size, MAX_MANIFEST_BYTES)


def _check_names(names: Sequence[str], path: Path) -> None:
    seen: dict[str, str] = {}
    for name in names:
        # Names that differ in case alone are one file where a file system folds case.
        if (twin := seen.get(name.lower())) is not None:
            raise fault(
                PackageFormatError, path, "is there twice", member=name,
                expected="distinct names", actual=twin,
            )  # fmt: skip
        seen[name.lower()] = name
    if MANIFEST_NAME not in names:
        raise fault(
            PackageFormatError, path, "is not in the package", member=MANIFEST_NAME,
            expected=MANIFEST_NAME, actual=f"{len(names)} other members",
        )  # fmt: skip


def _check_layout(
    entries: Sequence[Entry], infos: Sequence[zipfile.ZipInfo], directory_offset: int, path: Path
) -> None:
    for entry, info in zip(entries, infos, strict=True):
        if entry.name != info.filename:
            raise fault(
                PackageFormatError, path, "members are out of order", member=info.filename,
                expected=entry.name, actual=info.filename,
            )  # fmt: skip
        if entry.offset != info.header_offset:
            raise fault(
                PackageFormatError, path, "does not start where the member before it ends", member=entry.name,
                expected=f"offset {entry.offset}", actual=f"offset {info.header_offset}",
            )  # fmt: skip
    if _members_end(entries) != directory_offset:
        raise fault(
            PackageSizeError, path, "does not end where the ZIP directory starts", member=entries[-1].name,
            expected=f"offset {directory_offset}", actual=f"offset {_members_end(entries)}",
        )  # fmt: skip


def _check_header(entry: Entry, found: bytes, path: Path) -> None:
    if found != local_header(entry):
        raise fault(
            PackageFormatError, path, "its local header and the ZIP directory disagree", member=entry.name,
            expected=local_header(entry).hex(), actual=found.hex(),
        )  # fmt: skip


# --- the members --------------------------------------------------------------------------------------------


def _check_against_manifest(manifest: Manifest, entries: Sequence[Entry], path: Path) -> None:
    sizes = {entry.name: entry.size_bytes for entry in entries if entry.name != MANIFEST_NAME}
    for name in sorted(sizes.keys() ^ manifest.files.keys()):
        if name in sizes:
            raise fault(
                PackageContentError, path, "is not named by the manifest", member=name,
                expected="only members that the manifest names", actual=name,
            )  # fmt: skip
        raise fault(
            PackageContentError, path, "is named by the manifest but missing", member=name,
            expected=name, actual="nothing",
        )  # fmt: skip
    for name, member in manifest.files.items():
        if member.size_bytes != sizes[name]:
            raise fault(
                PackageSizeError, path, "has another size than the manifest states", member=name,
                expected=f"{member.size_bytes} bytes", actual=f"{sizes[name]} bytes",
            )  # fmt: skip
    for name, limit_bytes in _parsed_members(manifest):
        if sizes[name] > limit_bytes:
            raise _too_large(path, name, sizes[name], limit_bytes)


def _parsed_members(manifest: Manifest) -> list[tuple[str, int]]:
    """Members that are read into memory as a whole, with the most bytes that they may have."""
    parsed = []
    if manifest.tokenizer is not None:
        parsed.append((manifest.tokenizer.file, MAX_TOKENIZER_BYTES))
    if manifest.golden is not None:
        parsed.append((manifest.golden, MAX_GOLDEN_BYTES))
    return parsed


def _read_through(opened: _Opened, into: Path | None) -> Contents:
    """Read every byte once, in order: hash the whole and each member, keep what is parsed, write all."""
    whole = hashlib.sha256()
    keep_bytes = dict.fromkeys((graph.file for graph in opened.manifest.graphs), _GRAPH_HEAD_BYTES)
    keep_bytes.update(_parsed_members(opened.manifest))
    kept: dict[str, bytes] = {}
    opened.stream.seek(0)
    for entry in opened.entries:
        header = _read_exactly(opened.stream, len(local_header(entry)), opened.path)
        _check_header(entry, header, opened.path)
        whole.update(header)
        digest, crc32, head = hashlib.sha256(), 0, bytearray()
        with _member_writer(into, entry.name) as write:
            for chunk in _chunks(opened, entry.size_bytes):
                whole.update(chunk)
                digest.update(chunk)
                crc32 = zlib.crc32(chunk, crc32)
                head += chunk[: max(0, keep_bytes.get(entry.name, 0) - len(head))]
                write(chunk)
        _check_sha256(opened, entry, digest.hexdigest())
        _check_crc32(opened.path, entry, crc32)
        kept[entry.name] = bytes(head)
    tail = directory(opened.entries)
    if _read_exactly(opened.stream, len(tail), opened.path) != tail or opened.stream.read(1):
        raise fault(PackageFormatError, opened.path, "changed while it was read")
    whole.update(tail)
    golden_cases = _check_contents(opened.manifest, kept, opened.path)
    return Contents(opened.manifest, whole.hexdigest(), opened.size_bytes, golden_cases)


def _chunks(opened: _Opened, size_bytes: int) -> Iterator[bytes]:
    while size_bytes:
        chunk = _read_exactly(opened.stream, min(size_bytes, CHUNK_BYTES), opened.path)
        size_bytes -= len(chunk)
        yield chunk


def _check_sha256(opened: _Opened, entry: Entry, actual: str) -> None:
    # The manifest cannot name its own digest; it has to be the one that was parsed.
    named = opened.manifest.files.get(entry.name)
    expected = named.sha256 if named is not None else opened.manifest_sha256
    if actual != expected:
        raise fault(
            PackageHashError, opened.path, "has another sha256 than it should", member=entry.name,
            expected=expected, actual=actual, hint="Fetch it again",
        )  # fmt: skip


def _check_crc32(path: Path, entry: Entry, actual: int) -> None:
    if actual != entry.crc32:
        raise fault(
            PackageHashError, path, "has another CRC-32 than its header states", member=entry.name,
            expected=f"{entry.crc32:08x}", actual=f"{actual:08x}", hint="Fetch it again",
        )  # fmt: skip


# --- what members have to be --------------------------------------------------------------------------------


class _JsonObject(BaseModel):
    """Any JSON object."""


class _TokenizerFile(BaseModel):
    """As much of a `tokenizers` file as tells it from other JSON; ignored parts build no Python objects."""

    model: _JsonObject


def _check_contents(manifest: Manifest, kept: Mapping[str, bytes], path: Path) -> int:
    """Whether graphs, tokenizer and golden cases are what they are said to be; the number of golden cases."""
    for graph in manifest.graphs:
        found = kept[graph.file][4:8]
        if found != _GRAPH_IDENTIFIER:
            raise fault(
                PackageContentError, path, "is not a TFLite flatbuffer", member=graph.file,
                expected=ascii(_GRAPH_IDENTIFIER), actual=ascii(found),
            )  # fmt: skip
    if manifest.tokenizer is not None:
        name = manifest.tokenizer.file
        try:
            _TokenizerFile.model_validate_json(kept[name])
        except ValidationError as error:
            reason = f"is not a tokenizer in JSON: {describe(error)}"
            raise fault(PackageContentError, path, reason, member=name) from error
    if manifest.golden is None:
        return 0
    return sum(1 for _ in parse_golden(kept[manifest.golden], path, manifest.golden))


def parse_golden(data: bytes, path: Path, member: str) -> Iterator[GoldenCase]:
    """The golden cases in `data`, one a line; empty lines are skipped.

    Raises:
        PackageContentError: a line is no golden case, or there is none.
    """
    empty = True
    for number, line in enumerate(data.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            yield GoldenCase.model_validate_json(line)
        except ValidationError as error:
            reason = f"line {number} is not a golden case: {describe(error)}"
            raise fault(PackageContentError, path, reason, member=member) from error
        empty = False
    if empty:
        raise fault(PackageContentError, path, "holds no golden case", member=member)


# --- writing ------------------------------------------------------------------------------------------------


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn the system's refusals to write at `path` into a :class:`StoreError`."""
    try:
        yield
    except OSError as error:
        raise StoreError(f"{path}: cannot be written: {error.strerror or error}") from error


def sync_directory(path: Path) -> None:
    """Make the names in the directory `path` survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _member_writer(into: Path | None, name: str) -> Iterator[Callable[[bytes], object]]:
    """A function that appends to the new file `name`, synced in the end; without `into` it does nothing."""
    if into is None:
        yield len
        return
    with writing(into / name):
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with os.fdopen(os.open(into / name, flags, 0o444), "wb") as stream:
            yield stream.write
            stream.flush()
            os.fsync(stream.fileno())
