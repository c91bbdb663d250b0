"""Packages of Debian as files: what is in a ``.deb``, without any program of Debian.

Source: deb(5), and ar(5) in its common form.
"""

from __future__ import annotations

import io
import lzma
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, BinaryIO, cast

from edgeslm.errors import PackageFileError

_MAGIC = b"!<arch>\n"
_HEADER_BYTES = 60
_MAX_CONTROL_BYTES = 16 * 2**20
_PIECE_BYTES = 2**20


class _Part(io.RawIOBase):
    """Some bytes of a file, as a file that can only be read on."""

    def __init__(self, stream: BinaryIO, size_bytes: int) -> None:
        self._stream = stream
        self._left = size_bytes

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        view = memoryview(cast("bytearray", buffer))
        data = self._stream.read(min(len(view), self._left))
        view[: len(data)] = data
        self._left -= len(data)
        return len(data)


def read_control(path: Path) -> dict[str, bytes]:
    """The control files of a package, by name: ``control``, ``conffiles``, ``postinst`` ...

    Raises:
        PackageFileError: it is no package, or a damaged one.
    """
    found: dict[str, bytes] = {}
    total_bytes = 0
    with _opened(path, "control.tar") as archive:
        for member in archive:
            total_bytes += member.size
            if total_bytes > _MAX_CONTROL_BYTES:
                raise PackageFileError(f"{path.name}: its control files are too large", path=str(path))
            if member.isreg():
                stream = archive.extractfile(member)
                found[member.name.removeprefix("./")] = stream.read() if stream else b""
    if "control" not in found:
        raise PackageFileError(f"{path.name}: it has no control file", path=str(path))
    return found


@contextmanager
def opened_data(path: Path) -> Iterator[tarfile.TarFile]:
    """The files of a package, to be read once, one after the other.

    Raises:
        PackageFileError: it is no package, or a damaged one.
    """
    with _opened(path, "data.tar") as archive:
        yield archive


@contextmanager
def _opened(path: Path, wanted: str) -> Iterator[tarfile.TarFile]:
    try:
        with path.open("rb") as stream:
            name, part = _find(stream, wanted, path)
            unpacked = _unpacked(name, part, path)
            with tarfile.open(fileobj=unpacked, mode="r|") as archive:
                yield archive
            # Its checksums stand behind what an archive holds, and are looked at only by who reads to the end.
            while unpacked.read(_PIECE_BYTES):
                pass
    except (tarfile.TarError, lzma.LZMAError, zlib.error, EOFError) as error:
        raise PackageFileError(
            f"{path.name} is damaged: {error}", path=str(path), hint="Remove it and try again"
        ) from error


def _find(stream: BinaryIO, wanted: str, path: Path) -> tuple[str, _Part]:
    if stream.read(len(_MAGIC)) != _MAGIC:
        raise PackageFileError(f"{path.name} is no package of Debian", path=str(path))
    while len(header := stream.read(_HEADER_BYTES)) == _HEADER_BYTES:
        name = header[:16].decode("ascii", "replace").strip().rstrip("/")
        try:
            size_bytes = int(header[48:58])
        except ValueError:
            break
        if name == wanted or name.startswith(f"{wanted}."):
            return name, _Part(stream, size_bytes)
        stream.seek(size_bytes + size_bytes % 2, io.SEEK_CUR)
    raise PackageFileError(f"{path.name} has no {wanted}", path=str(path), hint="Remove it and try again")


def _unpacked(name: str, part: _Part, path: Path) -> IO[bytes]:
    buffered = io.BufferedReader(part, _PIECE_BYTES)
    if name.endswith(".xz"):
        return cast("IO[bytes]", lzma.LZMAFile(buffered))
    if name.endswith(".gz"):
        import gzip  # noqa: PLC0415 - seldom

        return cast("IO[bytes]", gzip.GzipFile(fileobj=buffered))
    if name.endswith(".zst"):
        import zstandard  # noqa: PLC0415 - seldom, and an extra

        return cast("IO[bytes]", zstandard.ZstdDecompressor().stream_reader(buffered))
    if name.endswith(".tar"):
        return buffered
    raise PackageFileError(f"{path.name}: {name} is packed in a way that is not known", path=str(path))
