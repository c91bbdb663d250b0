"""The container of a ``.slm`` file: its one byte form, and whether a file has it.

A package is a ZIP in which nothing is left to choose: members stored, ``manifest.json`` first and the
others by name, one timestamp, one mode, no extra fields, comments, gaps or ZIP64. So the same contents
always have the same sha256, an unpacked package can be hashed as the file that it came from, and every
trick with headers that two readers understand differently is simply another byte form, and refused.
`zipfile` reads the directory; its records and all local headers are then compared with the bytes that they
have to be.

What always holds:

* Every fault is a :class:`PackageError` that names the file and, where there is one to blame, the member,
  what was expected and what was found.
* Memory is bounded whatever a header claims, and nothing is decompressed.

Left to others: what the members have to be, and unpacking them (:mod:`edgeslm.models.package`).

Source: PKWARE APPNOTE.TXT 6.3.10, sections 4.3.7 (local header), 4.3.12 (directory) and 4.3.16 (end
record).
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
import struct
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import TypeVar

from edgeslm.errors import (
    PackageError,
    PackageFormatError,
    PackageHashError,
    PackagePathError,
    PackageSizeError,
    PackageTruncatedError,
)
from edgeslm.schema.package import MANIFEST_NAME, MAX_MANIFEST_BYTES, MAX_MEMBERS

MAX_ARCHIVE_BYTES = 2**32 - 2
"""Largest package: beyond it a ZIP needs ZIP64 records, which format 1 does without."""
CHUNK_BYTES = 2**20

FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_MAX_RECORD_BYTES = 1024

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


def too_large(path: Path, member: str, size_bytes: int, limit_bytes: int) -> PackageSizeError:
    """The error about a member that has more bytes than it may have."""
    return fault(
        PackageSizeError, path, "is larger than allowed", member=member,
        expected=f"at most {limit_bytes} bytes", actual=f"{size_bytes} bytes",
    )  # fmt: skip


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


def read_exactly(stream: BufferedReader, size_bytes: int, path: Path, *, at: int | None = None) -> bytes:
    """The next `size_bytes` of `stream`, or those from offset `at` on.

    Raises:
        PackageTruncatedError: there are fewer.
        PackageError: it cannot be read.
    """
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


def read_chunks(stream: BufferedReader, size_bytes: int, path: Path) -> Iterator[bytes]:
    """The next `size_bytes` of `stream`, piece by piece; otherwise as :func:`read_exactly`."""
    while size_bytes:
        chunk = read_exactly(stream, min(size_bytes, CHUNK_BYTES), path)
        size_bytes -= len(chunk)
        yield chunk


# --- whether a file has the byte form -----------------------------------------------------------------------


def read_entries(stream: BufferedReader, size_bytes: int, path: Path) -> tuple[Entry, ...]:
    """The members in file order, after every header was found to be what it has to be.

    Args:
        stream: the file, open for reading; where it stands afterwards is not defined.
        size_bytes: of the whole file.
        path: for errors.

    Raises:
        PackageError: the file cannot be read, or is no package; what is wrong with it.
    """
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
    if read_exactly(stream, size_bytes - directory_offset, path, at=directory_offset) != directory(entries):
        raise fault(
            PackageFormatError, path, "its ZIP directory says more than names, sizes and checksums",
            hint="Write packages with `edgeslm model pack`, which adds no extra fields, times or comments",
        )  # fmt: skip
    for entry in entries:
        expected = local_header(entry)
        check_header(entry, read_exactly(stream, len(expected), path, at=entry.offset), path)
    return entries


def check_header(entry: Entry, found: bytes, path: Path) -> None:
    """Whether `found` is the local header that `entry` has to have.

    Raises:
        PackageFormatError: it is not.
    """
    if found != local_header(entry):
        raise fault(
            PackageFormatError, path, "its local header and the ZIP directory disagree", member=entry.name,
            expected=local_header(entry).hex(), actual=found.hex(),
        )  # fmt: skip


def check_crc32(path: Path, entry: Entry, actual: int) -> None:
    """Whether `actual` is the checksum that the headers of `entry` state.

    Raises:
        PackageHashError: it is not.
    """
    if actual != entry.crc32:
        raise fault(
            PackageHashError, path, "has another CRC-32 than its header states", member=entry.name,
            expected=f"{entry.crc32:08x}", actual=f"{actual:08x}", hint="Fetch it again",
        )  # fmt: skip


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
    locator = read_exactly(stream, 4, path, at=max(0, end_offset - _ZIP64_LOCATOR_BYTES))
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
    magic, *fields, comment_length = _END.unpack(read_exactly(stream, _END.size, path, at=at))
    return tuple(fields) if magic == _END_MAGIC and comment_length == 0 else None


def _without_end(stream: BufferedReader, size_bytes: int, path: Path) -> PackageFormatError:
    """Why a file does not close with an end record: no ZIP at all, something behind it, or cut off."""
    head = read_exactly(stream, min(size_bytes, len(_LOCAL_MAGIC)), path, at=0)
    if not _LOCAL_MAGIC.startswith(head):
        return fault(PackageFormatError, path, "is not a package: it does not start as a ZIP file does")
    span = min(size_bytes, 2**16 + _END.size)
    tail = read_exactly(stream, span, path, at=size_bytes - span)
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
        raise too_large(path, name, info.file_size, MAX_MANIFEST_BYTES)


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
