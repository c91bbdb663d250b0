"""Whether a file has the one byte form of a package (:mod:`edgeslm.models.archive`).

`zipfile` reads the directory; its records and all local headers are then compared with the bytes that they
have to be. So every trick with headers that two readers understand differently is simply another byte form,
and refused. Memory is bounded whatever a header claims, and nothing is decompressed.
"""

from __future__ import annotations

import stat
import struct
import zipfile
from collections.abc import Sequence
from io import BufferedReader
from pathlib import Path

from edgeslm.errors import (
    PackageFormatError,
    PackageHashError,
    PackagePathError,
    PackageSizeError,
    PackageTruncatedError,
)
from edgeslm.models.archive import (
    END,
    END_MAGIC,
    FILE_NAME,
    LOCAL_MAGIC,
    ZIP64_END,
    ZIP64_END_MAGIC,
    ZIP64_FROM,
    ZIP64_LOCATOR,
    ZIP64_LOCATOR_MAGIC,
    Entry,
    directory,
    fault,
    layout,
    local_header,
    members_end,
    read_exactly,
    too_large,
)
from edgeslm.schema.package import MANIFEST_NAME, MAX_MANIFEST_BYTES, MAX_MEMBERS, MAX_PACKAGE_BYTES

_MAX_RECORD_BYTES = 1024
_ZIP64_MARK = 0xFFFF_FFFF
_DOS_DIRECTORY = 0x10
_ENCRYPTED = 0x1


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
    """Offset of the directory, once it is known to be small, and to end where the end records start."""
    if size_bytes > MAX_PACKAGE_BYTES:
        raise fault(
            PackageSizeError, path, "is larger than a package can be",
            expected=f"at most {MAX_PACKAGE_BYTES} bytes", actual=f"{size_bytes} bytes",
        )  # fmt: skip
    end_offset = size_bytes - END.size
    record = _end_record(stream, end_offset, path) if end_offset >= 0 else None
    if record is None:
        raise _without_end(stream, size_bytes, path)
    disk, first_disk, count, total, length, offset = record
    wide = _zip64_end_record(stream, end_offset, path)
    if wide is not None:
        end_offset -= ZIP64_END.size + ZIP64_LOCATOR.size
        disk, first_disk, count, total, length, offset = wide
    needs_wide = record[-1] == _ZIP64_MARK
    if needs_wide != (wide is not None) or (needs_wide and offset < ZIP64_FROM):
        raise fault(
            PackageFormatError, path, "has ZIP64 records that it does not need, or lacks those that it needs"
        )
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
    magic, *fields, comment_length = END.unpack(read_exactly(stream, END.size, path, at=at))
    return tuple(fields) if magic == END_MAGIC and comment_length == 0 else None


def _zip64_end_record(stream: BufferedReader, end_offset: int, path: Path) -> tuple[int, ...] | None:
    """The same fields from the ZIP64 record before the end record, or ``None`` where there is none.

    `zipfile` takes what stands there for true whenever it finds the locator, needed or not.
    """
    at = end_offset - ZIP64_END.size - ZIP64_LOCATOR.size
    if at < 0:
        return None
    data = read_exactly(stream, end_offset - at, path, at=at)
    magic, *_ = ZIP64_LOCATOR.unpack_from(data, ZIP64_END.size)
    if magic != ZIP64_LOCATOR_MAGIC:
        return None
    magic, _, _, _, *fields = ZIP64_END.unpack_from(data)
    if magic != ZIP64_END_MAGIC:
        raise fault(PackageFormatError, path, "its ZIP64 end record is not before its locator")
    return tuple(fields)


def _without_end(stream: BufferedReader, size_bytes: int, path: Path) -> PackageFormatError:
    """Why a file does not close with an end record: no ZIP at all, something behind it, or cut off."""
    head = read_exactly(stream, min(size_bytes, len(LOCAL_MAGIC)), path, at=0)
    if not LOCAL_MAGIC.startswith(head):
        return fault(PackageFormatError, path, "is not a package: it does not start as a ZIP file does")
    span = min(size_bytes, 2**16 + END.size)
    tail = read_exactly(stream, span, path, at=size_bytes - span)
    found = tail.rfind(END_MAGIC)
    if 0 <= found <= span - END.size:
        *_, length, offset, _comment = END.unpack_from(tail, found)
        behind = span - found - END.size
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
    if members_end(entries) != directory_offset:
        raise fault(
            PackageSizeError, path, "does not end where the ZIP directory starts", member=entries[-1].name,
            expected=f"offset {directory_offset}", actual=f"offset {members_end(entries)}",
        )  # fmt: skip
