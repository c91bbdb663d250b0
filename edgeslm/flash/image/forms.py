"""The packed forms in which images are published, each unpacked piece by piece.

What always holds: a form ends where it says or it is an error; what follows its end is another of its kind, padding of
zeros, or an error. A few MB are held in memory, and what the decoder asks for: 64 MiB for ``xz -9``.

Source: RFC 1952 (gzip), RFC 8878 (Zstandard), the .xz File Format 1.2, APPNOTE.TXT 6.3.10 (ZIP).
"""

from __future__ import annotations

import lzma
import os
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, Literal

import zstandard

from edgeslm.errors import ImageSourceError
from edgeslm.flash.image.digests import SideDigest
from edgeslm.flash.image.sparse import COPY_BYTES

PackedForm = Literal["xz", "gz", "zst", "zip"]
Form = Literal["raw"] | PackedForm
OnProgress = Callable[[int, int], None]
"""Told how many bytes of the source were read, and of how many; what it raises ends the unpacking."""
GET_IT_AGAIN = "Get the image again, and compare its SHA-256 with the one that is published beside it"
_DECODER_BYTES = 128 * 2**20
_ZSTD_BLOCK_BYTES = 2**17
_ZIP_END_BYTES = 22 + 65535 + 20 + 56
_ZIP_ELSEWHERE = 2**32 - 1
_ZIP_DIRECTORY_BYTES = 2**20


class Reading:
    """The source, hashed as it is read from its first byte to its last."""

    def __init__(self, path: Path, stream: BinaryIO, report: OnProgress) -> None:
        """Begin.

        Args:
            report: told how far it is.
        """
        self.path = path
        self.stream = stream
        self.size_bytes = os.fstat(stream.fileno()).st_size
        self.at = 0
        self._report = report
        self._hash = SideDigest()

    def read(self, size: int = COPY_BYTES) -> bytes:
        """Some more bytes; none at the end."""
        data = self.stream.read(size)
        self.took(data)
        return data

    def exactly(self, size: int) -> bytes:
        """So many bytes, or the error that the source is cut short."""
        data = self.stream.read(size)
        self.took(data)
        if len(data) != size:
            raise self.cut_short()
        return data

    def took(self, data: bytes | memoryview) -> None:
        """Count and hash what was read."""
        self._hash.update(data)
        self.passed(len(data))

    def passed(self, size: int) -> None:
        """Count what was read by others, or not at all."""
        self.at += size
        self._report(self.at, self.size_bytes)

    def finish(self) -> str:
        """The digest of all of it; what was not read yet is read now."""
        self.stream.seek(self.at)
        while self.read():
            pass
        return self._hash.hexdigest()

    def cut_short(self) -> ImageSourceError:
        """The error that there should be more of it."""
        return ImageSourceError(f"{self.path} is cut short", path=str(self.path), hint=GET_IT_AGAIN)

    def damaged(self, why: object) -> ImageSourceError:
        """The error that it cannot be unpacked."""
        return ImageSourceError(f"{self.path} is damaged: {why}", path=str(self.path), hint=GET_IT_AGAIN)

    def followed(self) -> ImageSourceError:
        """The error that there should be less of it."""
        return ImageSourceError(
            f"{self.path} goes on after its end with something else", path=str(self.path), hint=GET_IT_AGAIN
        )


def pieces_of(reading: Reading, form: PackedForm) -> Iterator[bytes]:
    """The raw image in pieces of bounded size."""
    match form:
        case "xz":
            return _xz(reading)
        case "gz":
            return _gz(reading)
        case "zst":
            return _zst(reading)
        case "zip":
            return _zip(reading)


def _xz(reading: Reading) -> Iterator[bytes]:
    """One or more streams of xz, with padding between them."""
    data = reading.read()
    while data:
        decoder = lzma.LZMADecompressor(format=lzma.FORMAT_XZ, memlimit=_DECODER_BYTES)
        while not decoder.eof:
            if decoder.needs_input and not data:
                data = reading.read()
                if not data:
                    raise reading.cut_short()
            try:
                piece = decoder.decompress(data, COPY_BYTES)
            except (lzma.LZMAError, EOFError, MemoryError) as error:
                raise reading.damaged(error or "it asks for too much memory") from error
            data = b""
            if piece:
                yield piece
        data = _after(reading, decoder.unused_data, b"\xfd7zXZ\0")


def _gz(reading: Reading) -> Iterator[bytes]:
    """One or more members of gzip."""
    data = reading.read()
    while data:
        decoder = zlib.decompressobj(wbits=31)
        while not decoder.eof:
            if not data:
                data = reading.read()
                if not data:
                    raise reading.cut_short()
            try:
                piece = decoder.decompress(data, COPY_BYTES)
            except zlib.error as error:
                raise reading.damaged(error) from error
            data = decoder.unconsumed_tail
            if piece:
                yield piece
        data = _after(reading, decoder.unused_data, b"\x1f\x8b\x08")


def _after(reading: Reading, data: bytes, magic: bytes) -> bytes:
    """What follows one stream: zeros are passed over, another stream is given back, and anything else refused."""
    data = data.lstrip(b"\0")
    while len(data) < len(magic):
        more = reading.read()
        if not more:
            break
        data = (data + more).lstrip(b"\0")
    if data and not data.startswith(magic):
        raise reading.followed()
    return data


def _zst(reading: Reading) -> Iterator[bytes]:
    """Frames of Zstandard, block by block: one block gives 128 KiB at most, whatever it says (RFC 8878, 3.1.1)."""
    while magic := reading.read(4):
        if len(magic) == 4 and magic[1:] == b"\x2a\x4d\x18" and magic[0] >> 4 == 5:
            left = int.from_bytes(reading.exactly(4), "little")
            while left:
                left -= len(reading.exactly(min(left, COPY_BYTES)))
            continue
        if magic != b"\x28\xb5\x2f\xfd":
            raise reading.followed()
        yield from _zst_frame(reading, magic)


def _zst_frame(reading: Reading, magic: bytes) -> Iterator[bytes]:
    descriptor = reading.exactly(1)
    flags = descriptor[0]
    single = flags >> 5 & 1
    rest = 1 - single + (0, 1, 2, 4)[flags & 3] + (single, 2, 4, 8)[flags >> 6]
    decoder = zstandard.ZstdDecompressor(max_window_size=_DECODER_BYTES).decompressobj()
    try:
        yield decoder.decompress(magic + descriptor + reading.exactly(rest))
        last = False
        while not last:
            header = reading.exactly(3)
            value = int.from_bytes(header, "little")
            last = bool(value & 1)
            size = 1 if value >> 1 & 3 == 1 else value >> 3
            if size > _ZSTD_BLOCK_BYTES:
                raise reading.damaged("a block is larger than blocks can be")
            yield decoder.decompress(header + reading.exactly(size))
        if flags >> 2 & 1:
            yield decoder.decompress(reading.exactly(4))
    except zstandard.ZstdError as error:
        raise reading.damaged(error) from error
    if not decoder.eof:
        raise reading.damaged("a frame of it does not end where it says")


def _zip(reading: Reading) -> Iterator[bytes]:
    """The one image in a ZIP archive; the source is hashed afterwards, since it is not read in order."""
    _check_directory(reading)
    try:
        with zipfile.ZipFile(reading.stream) as archive:
            images = [
                member for member in archive.infolist() if member.filename.lower().endswith((".img", ".raw"))
            ]
            if len(images) != 1:
                raise reading.damaged(f"a ZIP archive has to hold one image, and this holds {len(images)}")
            if images[0].compress_type not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
                raise reading.damaged("the image in it is neither stored nor deflated")
            with archive.open(images[0]) as stream:
                while piece := stream.read(COPY_BYTES):
                    yield piece
    except (
        zipfile.BadZipFile,
        zlib.error,
        struct.error,
        ArithmeticError,
        EOFError,
        RuntimeError,
        ValueError,
    ) as error:
        raise reading.damaged(error) from error


def _check_directory(reading: Reading) -> None:
    """Refuse an archive whose list of files is longer than one image needs: all of it would come into memory."""
    at = max(reading.size_bytes - _ZIP_END_BYTES, 0)
    reading.stream.seek(at)
    end = reading.stream.read(_ZIP_END_BYTES)
    reading.stream.seek(0)
    found, found_64 = end.rfind(b"PK\5\6"), end.rfind(b"PK\6\6")
    if found < 0 or found + 22 > len(end):
        raise reading.cut_short()
    (size,) = struct.unpack_from("<I", end, found + 12)
    if size == _ZIP_ELSEWHERE and 0 <= found_64 <= len(end) - 56:
        (size,) = struct.unpack_from("<Q", end, found_64 + 40)
    if size > _ZIP_DIRECTORY_BYTES:
        raise reading.damaged(f"its list of files has {size} bytes")
