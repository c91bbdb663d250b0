"""An image as it is published, unpacked into a raw file with holes.

What always holds: the form is known by its content and not by its name, both digests are of what was really read, and
the file is there under its name only when all of it was unpacked and no digest said otherwise. Reading, unpacking,
hashing and writing go on beside each other.

Left to others: what each packed form looks like (:mod:`edgeslm.flash.image.forms`), and how files are read and written
(:mod:`edgeslm.flash.image.past_cache`).
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from edgeslm.errors import ImageDigestError, ImageError, ImageSourceError
from edgeslm.files import PARTIAL, read_bounded
from edgeslm.flash.image.digests import SideDigest
from edgeslm.flash.image.forms import GET_IT_AGAIN, Form, OnProgress, PackedForm, Reading, pieces_of
from edgeslm.flash.image.past_cache import STEP_BYTES, SparseWriter, chunks, clone

__all__ = ["MAX_IMAGE_BYTES", "Form", "OnProgress", "Unpacked", "form_of", "read_digest", "unpack"]

MAX_IMAGE_BYTES = 64 * 2**30
"""The largest raw image that is unpacked where nothing else is said."""
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
    (b"PK\x05\x06", "an empty ZIP archive"),
    (b"!<arch>", "a Debian package"),
    (b"\x7fELF", "a program"),
)
_DIGEST_LINE = re.compile(rb"^([0-9a-fA-F]{64})(?:[ \t]+\*?([^\r\n]*?))?\r?$", re.MULTILINE)
_DIGEST_FILE_BYTES = 256 * 1024


@dataclass(frozen=True)
class Unpacked:
    """What came out of an image as it is published.

    Attributes:
        path: the raw image.
        form: what the source was.
        source_sha256: of the source, as it lies there.
        sha256: of the raw image. Both are ``None`` where the source is raw and there is nothing to compare with:
            hashing it would take longer than copying it.
        size_bytes: of the raw image.
    """

    path: Path
    form: Form
    source_sha256: str | None
    sha256: str | None
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
            reading = Reading(source, stream, report or _ignore)
            form = _form(source, stream)
            _check_space(source, stream, target, max_bytes)
            if form == "raw" and reading.size_bytes > max_bytes:
                raise _too_large(source, max_bytes)
            try:
                if form == "raw":
                    unpacked = _copy(reading, beside, target, hashed=expected is not None)
                else:
                    unpacked = _unpack(reading, form, beside, target, max_bytes)
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


def _ignore(_done: int, _total: int) -> None:
    """Tell nobody."""


def _form(source: Path, stream: BinaryIO) -> Form:
    head = stream.read(512)
    stream.seek(0)
    if not head:
        raise ImageSourceError(f"{source} is empty", path=str(source), hint=GET_IT_AGAIN)
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


def _copy(reading: Reading, beside: Path, target: Path, *, hashed: bool) -> Unpacked:
    """Copy a raw image to `beside`, as which it comes to `target`; hash it only where that is of use."""
    size, source = reading.size_bytes, reading.stream.fileno()
    zeros = bytes(STEP_BYTES if hashed else 0)
    with beside.open("xb") as writing:
        if not hashed and clone(source, writing.fileno()):
            reading.passed(size)
            return Unpacked(target, "raw", None, None, size)
        writing.truncate(size)
        try:
            with closing(chunks(source, size)) as found, SparseWriter(writing.fileno()) as writer:
                for chunk in found:
                    writer.put(chunk)
                    length = chunk.end - chunk.start
                    if hashed:
                        reading.took(zeros[:length] if chunk.data is None else chunk.data)
                    else:
                        reading.passed(length)
                digest = reading.finish() if hashed else None
                writer.finish(size)
        except EOFError as error:
            raise reading.cut_short() from error
    return Unpacked(target, "raw", digest, digest, size)


def _unpack(reading: Reading, form: PackedForm, beside: Path, target: Path, max_bytes: int) -> Unpacked:
    """Unpack an image to `beside`, as which it comes to `target`."""
    digest = SideDigest()
    size = 0
    with beside.open("xb") as writing, SparseWriter(writing.fileno()) as writer:
        for piece in pieces_of(reading, form):
            size += len(piece)
            if size > max_bytes:
                raise _too_large(reading.path, max_bytes)
            digest.update(piece)
            writer.add(piece)
        writer.finish(size)
    if not size:
        raise reading.damaged("there is nothing in it")
    return Unpacked(target, form, reading.finish(), digest.hexdigest(), size)


def _check_digest(source: Path, unpacked: Unpacked, expected: str | None) -> None:
    if expected is None or expected in (unpacked.source_sha256, unpacked.sha256):
        return
    actual = unpacked.source_sha256 or ""
    raise ImageDigestError(
        f"{source} has the SHA-256 {actual}, and was to have {expected}",
        path=str(source),
        expected=expected,
        actual=actual,
        hint=GET_IT_AGAIN,
    )
