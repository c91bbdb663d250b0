"""An image as it is published, unpacked into a raw file with holes.

What always holds: the form is known by its content and not by its name, both digests are of what was really read, and
the file is there under its name only when all of it was unpacked and no digest said otherwise. A few MB are held in
memory, and what the decoder asks for: 64 MiB for ``xz -9``.

Source: RFC 1952 (gzip), RFC 8878 (Zstandard), the .xz File Format 1.2.
"""

from __future__ import annotations

import hashlib
import lzma
import os
import re
import secrets
import shutil
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

import zstandard

from edgeslm.errors import ImageDigestError, ImageError, ImageSourceError
from edgeslm.files import PARTIAL, read_bounded
from edgeslm.flash.image.sparse import COPY_BYTES, data_ranges, write_sparse

Form = Literal["raw", "xz", "gz", "zst", "zip"]
OnProgress = Callable[[int, int], None]
"""Told how many bytes of the source were read, and of how many; what it raises ends the unpacking."""

MAX_IMAGE_BYTES = 64 * 2**30
"""The largest raw image that is unpacked where nothing else is said."""
_DECODER_BYTES = 128 * 2**20
_ZSTD_BLOCK_BYTES = 2**17
_MAGIC: tuple[tuple[bytes, Form], ...] = (
    (b"\xfd7zXZ\0", "xz"),
    (b"\x1f\x8b\x08", "gz"),
    (b"\x28\xb5\x2f\xfd", "zst"),
    (b"PK\x03\x04", "zip"),
)
_OTHERS = (
    (b"BZh", "compressed with bzip2"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (b"QFI\xfb", "a disk of QEMU"),
    (b"conectix", "a disk of Hyper-V"),
    (b"KDMV", "a disk of VMware"),
    (b"Rar!", "a RAR archive"),
    (b"!<arch>", "a Debian package"),
    (b"\x7fELF", "a program"),
)
_DIGEST_LINE = re.compile(rb"^([0-9a-fA-F]{64})(?:[ \t]+\*?([^\r\n]*?))?\r?$", re.MULTILINE)
_DIGEST_FILE_BYTES = 256 * 1024
_GET_IT_AGAIN = "Get the image again, and compare its SHA-256 with the one that is published beside it"


@dataclass(frozen=True)
class Unpacked:
    """What came out of an image as it is published.

    Attributes:
        path: the raw image.
        form: what the source was.
        source_sha256: of the source, as it lies there.
        sha256: of the raw image.
        size_bytes: of the raw image.
    """

    path: Path
    form: Form
    source_sha256: str
    sha256: str
    size_bytes: int


def unpack(
    source: Path,
    target: Path,
    *,
    sha256: str | None = None,
    max_bytes: int = MAX_IMAGE_BYTES,
    report: OnProgress | None = None,
) -> Unpacked:
    """Unpack `source` to `target`, in place of what is there.

    Args:
        source: raw, or compressed by xz, gzip, zstd, or one image in a ZIP archive.
        target: where the raw image goes; it gets holes where the image is zero.
        sha256: the digest that the source or the raw image has to have. Where it is ``None`` a file beside the source,
            named like it with ``.sha256`` at its end, says it, if there is one.
        max_bytes: the largest raw image that is taken.
        report: told how far it is.

    Raises:
        ImageSourceError: the source is cut short, damaged, followed by something, too large, or of no known form.
        ImageDigestError: it is not the one that was asked for.
        ImageError: a file cannot be read or written, or the disk is too small.
    """
    expected = sha256.lower() if sha256 is not None else read_digest(source)
    if expected is not None and re.fullmatch(r"[0-9a-f]{64}", expected) is None:
        raise ImageError(
            f"{expected[:80]!r} is no SHA-256", path=str(source), hint="It has 64 hexadecimal digits"
        )
    beside = target.parent / f"{PARTIAL}{secrets.token_hex(8)}"
    try:
        with source.open("rb") as stream:
            reading = _Reading(source, stream, report or _ignore)
            form = _form(source, stream)
            _check_space(source, stream, target, max_bytes)
            try:
                found = _unpack(reading, form, beside, max_bytes)
                unpacked = Unpacked(target, form, reading.finish(), *found)
                _check_digest(source, unpacked, expected)
                beside.replace(target)
            finally:
                beside.unlink(missing_ok=True)
    except OSError as error:
        raise ImageError(
            f"cannot unpack {source} to {target}: {error.strerror or error}",
            path=str(error.filename or source),
        ) from error
    return unpacked


def form_of(source: Path) -> Form:
    """What `source` is, told by its content; whether it is an image at all its partition table says.

    Raises:
        ImageSourceError: it is empty, or of a form that is not taken.
        ImageError: it cannot be read.
    """
    try:
        with source.open("rb") as stream:
            return _form(source, stream)
    except OSError as error:
        raise ImageError(f"cannot read {source}: {error.strerror or error}", path=str(source)) from error


def read_digest(source: Path) -> str | None:
    """The SHA-256 that a file beside `source` says it has; ``None`` where there is no such file.

    Raises:
        ImageError: the file is there, and names no digest for this image.
    """
    beside = source.with_name(f"{source.name}.sha256")
    try:
        data = read_bounded(beside, _DIGEST_FILE_BYTES)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ImageError(f"cannot read {beside}: {error.strerror or error}", path=str(beside)) from error
    found: set[str] = {
        digest.decode().lower()
        for digest, name in _DIGEST_LINE.findall(data)
        if not name or os.fsencode(source.name) == name.rpartition(b"/")[2]
    }
    if len(found) != 1 or len(data) > _DIGEST_FILE_BYTES:
        raise ImageError(
            f"{beside} does not say which SHA-256 {source.name} has",
            path=str(beside),
            hint="A line of it has 64 hexadecimal digits, two spaces and the name; or give the digest yourself",
        )
    return found.pop()


# --- reading and writing ----------------------------------------------------------------------------------------


class _Reading:
    """The source, hashed as it is read from its first byte to its last."""

    def __init__(self, path: Path, stream: BinaryIO, report: OnProgress) -> None:
        self.path = path
        self.stream = stream
        self.size_bytes = os.fstat(stream.fileno()).st_size
        self.at = 0
        self._report = report
        self._hash = hashlib.sha256()

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

    def took(self, data: bytes) -> None:
        self._hash.update(data)
        self.at += len(data)
        self._report(self.at, self.size_bytes)

    def finish(self) -> str:
        """The digest of all of it; what was not read yet is read now."""
        self.stream.seek(self.at)
        while self.read():
            pass
        return self._hash.hexdigest()

    def cut_short(self) -> ImageSourceError:
        return ImageSourceError(f"{self.path} is cut short", path=str(self.path), hint=_GET_IT_AGAIN)

    def damaged(self, why: object) -> ImageSourceError:
        return ImageSourceError(f"{self.path} is damaged: {why}", path=str(self.path), hint=_GET_IT_AGAIN)

    def followed(self) -> ImageSourceError:
        return ImageSourceError(
            f"{self.path} goes on after its end with something else", path=str(self.path), hint=_GET_IT_AGAIN
        )


def _ignore(_done: int, _total: int) -> None:
    """Tell nobody."""


def _form(source: Path, stream: BinaryIO) -> Form:
    head = stream.read(512)
    stream.seek(0)
    if not head:
        raise ImageSourceError(f"{source} is empty", path=str(source), hint=_GET_IT_AGAIN)
    for magic, form in _MAGIC:
        if head.startswith(magic):
            return form
    for magic, what in (*_OTHERS, *(((head, "a tar archive"),) if head[257:262] == b"ustar" else ())):
        if head.startswith(magic):
            raise ImageSourceError(
                f"{source} is {what}",
                path=str(source),
                hint="Unpack it first; raw, xz, gz, zst and zip are taken",
            )
    return "raw"


def _check_space(source: Path, stream: BinaryIO, target: Path, max_bytes: int) -> None:
    """Refuse what cannot fit, before anything is written: compressed or not, so much comes out of it at least."""
    taken = os.fstat(stream.fileno())
    least = min(taken.st_blocks * 512, taken.st_size)
    if least > max_bytes:
        raise _too_large(source, max_bytes)
    free = shutil.disk_usage(target.parent).free
    if least > free:
        raise ImageError(
            f"{source} takes more than {least} bytes, and {target.parent} has {free}",
            path=str(target),
            hint="Make room there, or choose another place for the result",
        )


def _too_large(source: Path, max_bytes: int) -> ImageSourceError:
    return ImageSourceError(
        f"{source} unpacks to more than {max_bytes} bytes",
        path=str(source),
        hint="Allow more if that is meant",
    )


def _unpack(reading: _Reading, form: Form, target: Path, max_bytes: int) -> tuple[str, int]:
    """Write the raw image; its digest and size."""
    digest = None if form == "raw" else hashlib.sha256()
    size = 0
    with target.open("xb") as writing:
        for piece in _pieces(reading, form):
            if size + len(piece) > max_bytes:
                raise _too_large(reading.path, max_bytes)
            if digest is not None:
                digest.update(piece)
            write_sparse(writing.fileno(), piece, size)
            size += len(piece)
        writing.truncate(size)
    if not size:
        raise reading.damaged("there is nothing in it")
    return reading.finish() if digest is None else digest.hexdigest(), size


def _check_digest(source: Path, unpacked: Unpacked, expected: str | None) -> None:
    if expected is None or expected in (unpacked.source_sha256, unpacked.sha256):
        return
    raise ImageDigestError(
        f"{source} has the SHA-256 {unpacked.source_sha256}, and was to have {expected}",
        path=str(source),
        expected=expected,
        actual=unpacked.source_sha256,
        hint=_GET_IT_AGAIN,
    )


# --- forms ------------------------------------------------------------------------------------------------------


def _pieces(reading: _Reading, form: Form) -> Iterator[bytes]:
    """The raw image in pieces of bounded size."""
    match form:
        case "raw":
            return _raw(reading)
        case "xz":
            return _xz(reading)
        case "gz":
            return _gz(reading)
        case "zst":
            return _zst(reading)
        case "zip":
            return _zip(reading)


def _raw(reading: _Reading) -> Iterator[bytes]:
    """A raw image; its holes are not read."""
    zeros = bytes(COPY_BYTES)
    ranges = data_ranges(reading.stream.fileno(), 0, reading.size_bytes)
    for first, last in [*ranges, (reading.size_bytes, reading.size_bytes)]:
        while reading.at < first:
            piece = zeros[: first - reading.at]
            reading.took(piece)
            yield piece
        reading.stream.seek(first)
        while reading.at < last:
            yield reading.exactly(min(COPY_BYTES, last - reading.at))


def _xz(reading: _Reading) -> Iterator[bytes]:
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


def _gz(reading: _Reading) -> Iterator[bytes]:
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


def _after(reading: _Reading, data: bytes, magic: bytes) -> bytes:
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


def _zst(reading: _Reading) -> Iterator[bytes]:
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


def _zst_frame(reading: _Reading, magic: bytes) -> Iterator[bytes]:
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


def _zip(reading: _Reading) -> Iterator[bytes]:
    """The one image in a ZIP archive; the source is hashed afterwards, since it is not read in order."""
    try:
        with zipfile.ZipFile(reading.stream) as archive:
            images = [
                member for member in archive.infolist() if member.filename.lower().endswith((".img", ".raw"))
            ]
            if len(images) != 1:
                raise reading.damaged(f"a ZIP archive has to hold one image, and this holds {len(images)}")
            with archive.open(images[0]) as stream:
                while piece := stream.read(COPY_BYTES):
                    yield piece
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise reading.damaged(error) from error
