"""Files that are whole after a power cut: written beside their name, synced, renamed, and the rename synced."""

from __future__ import annotations

import fcntl
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PARTIAL = ".partial-"
"""Begins the name of a file that is being written; whoever holds the directory's lock may clear it."""


def replace_file(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Let `path` hold `data`: after a crash it holds that or what it held before, never less.

    Raises:
        OSError: the disk refuses; `path` holds what it held before.
    """
    temporary = path.parent / f"{PARTIAL}{secrets.token_hex(8)}"
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)  # noqa: PTH105 - named so that a test can let it fail
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Make creations, renames and removals in the directory `path` last.

    Raises:
        OSError: the disk refuses.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_bounded(path: Path, max_bytes: int) -> bytes:
    """The bytes of the regular file at `path`; one byte more than `max_bytes` where it is longer.

    Raises:
        OSError: missing, unreadable, a link or no regular file.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as stream:
        return stream.read(max_bytes + 1)


def clear_partial(directory: Path) -> None:
    """Remove what a killed writer left behind; call it under the lock that all writers take."""
    for path in directory.glob(f"{PARTIAL}*"):
        path.unlink(missing_ok=True)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Exclude every other process and thread that locks `path`, which is made when missing. Not reentrant.

    Raises:
        OSError: it cannot be made or locked.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
