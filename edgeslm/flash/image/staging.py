"""The bytes of files, laid out under plain names for programs that take paths, and hashed on the way."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from edgeslm.errors import TreeError
from edgeslm.flash.tree import Entry, pieces

_PLAIN = re.compile(r"/[A-Za-z0-9._/-]{1,1000}")


@dataclass(frozen=True)
class Staged:
    """The bytes of one file.

    Attributes:
        name: of the file in the staging directory, or path of one elsewhere on this machine.
        sha256: of its bytes.
    """

    name: str
    sha256: bytes
    size_bytes: int


def size_of(entry: Entry) -> int:
    """How many bytes `entry` takes.

    Raises:
        TreeError: the file that holds them cannot be asked.
    """
    try:
        return entry.size_bytes
    except OSError as error:
        raise TreeError(
            f"cannot read {entry.content!s} for {entry.path}: {error.strerror}", path=entry.path
        ) from error


def stage(entry: Entry, directory: Path, index: int) -> Staged:
    """Lay the bytes of the file `entry` out in `directory`.

    A file of this machine is taken where it lies, or by a link to it where not every program understands its name.

    Raises:
        TreeError: they cannot be read or written.
    """
    name = f"{index:06d}"
    digest = hashlib.sha256()
    size = 0
    try:
        for piece in pieces(entry):
            digest.update(piece)
            size += len(piece)
        if isinstance(entry.content, bytes):
            (directory / name).write_bytes(entry.content)
        elif _PLAIN.fullmatch(path := str(entry.content.absolute())):
            name = path
        else:
            (directory / name).symlink_to(path)
    except OSError as error:
        why = error.strerror or str(error)
        raise TreeError(f"cannot lay out what {entry.path} is to hold: {why}", path=entry.path) from error
    return Staged(name, digest.digest(), size)


def digest_of(data: Iterable[bytes]) -> bytes:
    """The SHA-256 of pieces."""
    digest = hashlib.sha256()
    for piece in data:
        digest.update(piece)
    return digest.digest()


def encoded(text: str) -> bytes:
    """A name as it lies on a disk.

    Raises:
        TreeError: it has no bytes.
    """
    try:
        return os.fsencode(text)
    except UnicodeEncodeError as error:
        raise TreeError(f"{text[:200]!r} cannot be a name", path=text) from error
