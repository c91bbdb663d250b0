"""A directory beside the result in which it is made, so that nothing is found under its name that is not whole.

What always holds: one process at a time works on a result; what a killed one left behind is taken away by the next; the
image comes last to its name, after everything that speaks of it.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from edgeslm.errors import PrepareError
from edgeslm.files import PARTIAL, sync_directory

_TRIES = 5


@contextmanager
def workplace(out: Path) -> Iterator[Path]:
    """An empty directory of ours beside `out`, as long as the block lasts.

    Raises:
        PrepareError: it cannot be made, or another process is making the same.
    """
    directory = out.absolute().parent / f"{PARTIAL}{out.name}"
    descriptor = _enter(directory, out)
    try:
        _clear(directory)
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)
        os.close(descriptor)


def publish(made: Sequence[Path], out: Path) -> None:
    """Give finished files their names beside `out`: those that speak of the image first, the image itself last.

    Args:
        made: in a directory of the same file system; the last one is the image.

    Raises:
        OSError: the disk refuses; there is no image at its name then.
    """
    parent = out.absolute().parent
    out.unlink(missing_ok=True)
    for path in made:
        path.replace(parent / path.name)
    sync_directory(parent)


def refused(error: OSError, out: Path) -> PrepareError:
    """What the operating system said, as an error of ours."""
    path = error.filename or out
    return PrepareError(
        f"{path}: {error.strerror or error}",
        what="output", hint="Choose another place with --out; it needs room for the unpacked image and the payload",
    )  # fmt: skip


def _enter(directory: Path, out: Path) -> int:
    """The directory, opened and locked."""
    try:
        for _ in range(_TRIES):
            directory.mkdir(mode=0o700, exist_ok=True)
            try:
                descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            except FileNotFoundError:
                continue
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if directory.exists() and os.fstat(descriptor).st_ino == directory.stat().st_ino:
                    return descriptor
            except BlockingIOError as error:
                os.close(descriptor)
                raise PrepareError(
                    f"{out} is being made by another process", what="output",
                    hint="Wait for it, or choose another --out",
                ) from error  # fmt: skip
            os.close(descriptor)  # its owner went away with it between the two calls
    except OSError as error:
        raise refused(error, out) from error
    raise PrepareError(f"{out} is being made by another process", what="output", hint="Try again")


def _clear(directory: Path) -> None:
    for path in directory.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
