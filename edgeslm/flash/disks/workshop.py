"""The directory in which the images of a batch are made: one batch at a time, and nothing is left of what was in it.

What always holds: it is its owner's alone, for claims are in the images; what a killed batch left there is gone as soon
as the batch goes on.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgeslm.errors import BatchError


def workshop_path(state: Path, place: Path | None) -> Path:
    """Where it is for the batch of that state.

    Args:
        place: directory for it; ``None`` for beside the state.
    """
    return (place or state.parent) / f".{state.name}.work"


@contextmanager
def workshop(directory: Path) -> Iterator[Path]:
    """An empty directory, until the block ends.

    Raises:
        BatchError: another batch works there, or it cannot be made or emptied.
    """
    try:
        directory.mkdir(mode=0o700, exist_ok=True)
        held = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise _no_room(directory, error) from error
    try:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise BatchError(
                f"another edgeslm is at this batch, in {directory}",
                path=str(directory),
                hint="Let it end, or stop it",
            ) from error
        try:
            os.fchmod(held, 0o700)
            _empty(directory)
            yield directory
        finally:
            _empty(directory)
            directory.rmdir()
    except OSError as error:
        raise _no_room(directory, error) from error
    finally:
        os.close(held)


def _empty(directory: Path) -> None:
    for path in directory.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _no_room(directory: Path, error: OSError) -> BatchError:
    return BatchError(
        f"cannot make images in {directory}: {error.strerror or error}",
        path=str(directory),
        hint="Name another place for them: --work-dir",
    )
