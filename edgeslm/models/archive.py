"""The container of a ``.slm`` file: its one byte form.

A package is a ZIP in which nothing is left to choose: members stored, ``manifest.json`` first and the
others by name, one timestamp, one mode, no comments or gaps, and no extra fields but those of ZIP64, which
stand exactly where a size or an offset does not fit in 32 bits. So the same contents always have the same
sha256, and an unpacked package can be hashed as the file that it came from. A file below 4 GiB never has a
trace of ZIP64 in it.

Here are also the errors about packages, and the bounded reading of files that may be hostile. Left to others:
whether a file has the byte form (:mod:`edgeslm.models.archive_reader`), and what the members have to be
(:mod:`edgeslm.models.package`).

Source: PKWARE APPNOTE.TXT 6.3.10, sections 4.3.7 (local header), 4.3.12 (directory), 4.3.14 and 4.3.15
(ZIP64 end record and locator), 4.3.16 (end record) and 4.5.3 (ZIP64 extra field).
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import TypeVar

from edgeslm.errors import (
    PackageError,
    PackageFormatError,
    PackageSizeError,
    PackageTruncatedError,
)
from edgeslm.schema.package import MANIFEST_NAME

CHUNK_BYTES = 2**20

FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")

ZIP64_FROM = 0xFFFF_FFFF
"""First size or offset that is written in 64 bits: in a 32-bit field this value says where to look instead."""

LOCAL = struct.Struct("<4s5H3I2H")
END = struct.Struct("<4s4H2IH")
ZIP64_END = struct.Struct("<4sQ2H2I4Q")
ZIP64_LOCATOR = struct.Struct("<4sIQI")
LOCAL_MAGIC, END_MAGIC = b"PK\x03\x04", b"PK\x05\x06"
ZIP64_END_MAGIC, ZIP64_LOCATOR_MAGIC = b"PK\x06\x06", b"PK\x06\x07"

_CENTRAL = struct.Struct("<4s6H3I5H2I")
_CENTRAL_MAGIC = b"PK\x01\x02"
_ELSEWHERE = 0xFFFF_FFFF
_ZIP64_EXTRA = 1
_LOCAL_EXTRA = struct.Struct("<2H2Q")
_VERSION, _ZIP64_VERSION = 20, 45
_MADE_BY = 3 << 8
_DOS_DATE = 1 << 5 | 1  # 1980-01-01, the first day that the format knows
_MODE = (stat.S_IFREG | 0o644) << 16

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
        extra_bytes = _LOCAL_EXTRA.size if self.size_bytes >= ZIP64_FROM else 0
        return self.offset + LOCAL.size + len(self.name) + extra_bytes

    @property
    def end_offset(self) -> int:
        """Offset behind its last byte in the file."""
        return self.data_offset + self.size_bytes


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
        offset = entries[-1].end_offset
    return tuple(entries)


def local_header(entry: Entry) -> bytes:
    """The bytes before a member's own."""
    name = entry.name.encode("ascii")
    size, version, extra = entry.size_bytes, _VERSION, b""
    if size >= ZIP64_FROM:
        extra = _LOCAL_EXTRA.pack(_ZIP64_EXTRA, 16, size, size)
        size, version = _ELSEWHERE, _ZIP64_VERSION
    fields = (version, 0, 0, 0, _DOS_DATE, entry.crc32, size, size, len(name), len(extra))
    return LOCAL.pack(LOCAL_MAGIC, *fields) + name + extra


def directory(entries: Sequence[Entry]) -> bytes:
    """The bytes after the last member's: directory and end records."""
    records = b"".join(_central_record(entry) for entry in entries)
    count, offset = len(entries), members_end(entries)
    ends = b""
    if offset >= ZIP64_FROM:
        version, of_this_record = _ZIP64_VERSION, ZIP64_END.size - 12
        fields = (of_this_record, _MADE_BY | version, version, 0, 0, count, count, len(records), offset)
        ends = ZIP64_END.pack(ZIP64_END_MAGIC, *fields)
        ends += ZIP64_LOCATOR.pack(ZIP64_LOCATOR_MAGIC, 0, offset + len(records), 1)
        offset = _ELSEWHERE
    return records + ends + END.pack(END_MAGIC, 0, 0, count, count, len(records), offset, 0)


def _central_record(entry: Entry) -> bytes:
    name = entry.name.encode("ascii")
    size, offset, version, extra = entry.size_bytes, entry.offset, _VERSION, b""
    wide = [size, size] if size >= ZIP64_FROM else []
    wide += [offset] if offset >= ZIP64_FROM else []
    if wide:
        extra = struct.pack(f"<2H{len(wide)}Q", _ZIP64_EXTRA, 8 * len(wide), *wide)
        version = _ZIP64_VERSION
        size = _ELSEWHERE if size >= ZIP64_FROM else size
        offset = _ELSEWHERE if offset >= ZIP64_FROM else offset
    fields = (_MADE_BY | version, version, 0, 0, 0, _DOS_DATE, entry.crc32, size, size, len(name), len(extra))
    return _CENTRAL.pack(_CENTRAL_MAGIC, *fields, 0, 0, 0, _MODE, offset) + name + extra


def members_end(entries: Sequence[Entry]) -> int:
    """Offset behind the last member, where the directory starts."""
    return entries[-1].end_offset if entries else 0


def archive_size_bytes(entries: Sequence[Entry]) -> int:
    """Size of the whole file."""
    return members_end(entries) + len(directory(entries))


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
