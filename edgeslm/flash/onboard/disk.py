"""Files of the board, below a root that is mostly ``/``.

What always holds: nothing is read or written outside of the root, wherever links lead; a file appears under its name as
a whole.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from .manifest import DamagedError, Item, OnboardError

_PARTIAL = ".partial-"
_PIECE_BYTES = 2**20
_MAX_LINKS = 40

Open = Callable[[Item], "contextlib.AbstractContextManager[BinaryIO]"]
"""Opens the bytes of a file that is to be installed."""


class Disk:
    """The files below `root`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._known: dict[str, Path] = {}

    def place(self, path: str) -> Path:
        """Where `path` is really, its last part not followed.

        Raises:
            OnboardError: links lead in a circle.
        """
        above, _, name = path.rpartition("/")
        if above not in self._known:
            self._known[above] = self._follow(above)
        return self._known[above] / name

    def _follow(self, path: str) -> Path:
        waiting = [part for part in reversed(path.split("/")) if part]
        found: list[str] = []
        followed = 0
        while waiting:
            part = waiting.pop()
            if part == ".":
                continue
            if part == "..":
                del found[-1:]
                continue
            here = self.root.joinpath(*found, part)
            if not here.is_symlink():
                found.append(part)
                continue
            followed += 1
            if followed > _MAX_LINKS:
                raise OnboardError(f"links lead in a circle at {path}")
            target = os.readlink(here)  # noqa: PTH115 - as it is
            if target.startswith("/"):
                found.clear()
            waiting.extend(part for part in reversed(target.split("/")) if part)
        return self.root.joinpath(*found)

    def has(self, item: Item) -> bool:
        """Whether it is there already, as it should be but for its owner."""
        place = self.place(item.path)
        try:
            found = place.lstat()
            if item.kind == "symlink":
                return stat.S_ISLNK(found.st_mode) and os.readlink(place) == item.target  # noqa: PTH115
            if stat.S_IMODE(found.st_mode) != item.mode:
                return False
            if item.kind == "directory":
                return stat.S_ISDIR(found.st_mode)
            same = stat.S_ISREG(found.st_mode) and found.st_size == item.size_bytes
            return same and digest(place) == item.sha256
        except OSError:
            return False

    def put(self, item: Item, open_bytes: Open, owner: tuple[int, int], *, synced: bool) -> None:
        """Put one thing there, in place of what is there.

        Args:
            owner: uid and gid; -1 leaves them.
            synced: a file's bytes last when this returns; else when somebody syncs the disk.

        Raises:
            DamagedError: the bytes are not those that the manifest names.
            OSError: the disk refuses.
        """
        place = self.place(item.path)
        self._make_parents(place.parent, owner)
        if item.kind == "directory":
            if place.is_symlink() or not place.is_dir():
                place.mkdir(0o700)
                self._known.clear()
            _give(place, owner, item.mode)
            return
        beside = place.parent / f"{_PARTIAL}{secrets.token_hex(8)}"
        try:
            if item.kind == "symlink":
                beside.symlink_to(item.target)
                os.lchown(beside, *owner)
            else:
                with beside.open("xb") as stream, open_bytes(item) as source:
                    os.fchmod(stream.fileno(), 0o600)
                    _copy(source, stream, item)
                    stream.flush()
                    _give(beside, owner, item.mode)
                    if synced:
                        os.fsync(stream.fileno())
            beside.replace(place)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise
        if item.kind == "symlink":
            self._known.clear()
        if synced:
            sync_directory(place.parent)

    def _make_parents(self, directory: Path, owner: tuple[int, int]) -> None:
        if directory.is_dir():
            return
        self._make_parents(directory.parent, owner)
        directory.mkdir(0o755)
        _give(directory, owner, 0o755)

    def owner_of(self, path: str) -> tuple[int, int] | None:
        """Who owns what `path` leads to; ``None`` where there is nothing."""
        try:
            found = self._follow(path).stat()
        except OSError:
            return None
        return found.st_uid, found.st_gid

    def free_bytes(self, path: str) -> tuple[int, int]:
        """The file system that `path` will lie on, by its number, and how many bytes are free there."""
        place = self._follow(path)
        while not place.exists():
            place = place.parent
        found = os.statvfs(place)
        return place.stat().st_dev, found.f_bavail * found.f_frsize

    def remove(self, path: str) -> None:
        """Take away a file, a link, or a directory with all that it holds; what is not there is passed over."""
        place = self.place(path)
        if place.is_dir() and not place.is_symlink():
            shutil.rmtree(place)
        else:
            place.unlink(missing_ok=True)

    def remove_file(self, path: str) -> None:
        """Take away a file or a link; a directory in its place stays, and what is not there is passed over."""
        place = self.place(path)
        if place.is_symlink() or not place.is_dir():
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                place.unlink()

    def remove_empty(self, path: str) -> None:
        """Take a directory away if it is empty."""
        with contextlib.suppress(OSError):
            self.place(path).rmdir()

    def leftovers(self, paths: Iterator[str]) -> None:
        """Clear away what a cut-off run left in the directories of `paths`."""
        for directory in {self.place(path).parent for path in paths}:
            with contextlib.suppress(OSError):
                for left in directory.glob(f"{_PARTIAL}*"):
                    if left.is_symlink() or not left.is_dir():
                        left.unlink(missing_ok=True)


def _copy(source: BinaryIO, target: BinaryIO, item: Item) -> None:
    seen, size_bytes = hashlib.sha256(), 0
    while piece := source.read(_PIECE_BYTES):
        size_bytes += len(piece)
        seen.update(piece)
        if size_bytes > item.size_bytes:
            break
        target.write(piece)
    if size_bytes != item.size_bytes or seen.hexdigest() != item.sha256:
        raise DamagedError(f"{item.path} is damaged in the archive", "Copy the archive anew")


def _give(place: Path, owner: tuple[int, int], mode: int) -> None:
    os.chown(place, *owner)
    place.chmod(mode)


def digest(path: Path) -> str:
    """SHA-256 of a file's bytes.

    Raises:
        OSError: it cannot be read.
    """
    seen = hashlib.sha256()
    with path.open("rb") as stream:
        while piece := stream.read(_PIECE_BYTES):
            seen.update(piece)
    return seen.hexdigest()


def sync_directory(path: Path) -> None:
    """Make creations, renames and removals in a directory last.

    Raises:
        OSError: the disk refuses.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
