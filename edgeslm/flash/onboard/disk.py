"""Files of the board, below a root that is mostly ``/``.

What always holds:

* Nothing is read or written outside of the root, wherever links lead.
* A file appears under its name as a whole.
* Below a directory that belongs to somebody else, such as the service's own, no link is followed when something is
  written: a service that was taken over could otherwise lead root's hand elsewhere, and would be given what it finds
  there.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from .manifest import DamagedError, Item, OnboardError

SAVED = ".old"
"""Stands behind the name of a file that was a person's, where another one took its place."""
_PARTIAL = ".partial-"
_PIECE_BYTES = 2**20
_MAX_LINKS = 40
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC

Open = Callable[[Item], "contextlib.AbstractContextManager[BinaryIO]"]
"""Opens the bytes of a file that is to be installed."""


class Disk:
    """The files below `root`.

    Attributes:
        root: what stands for ``/``.
        guarded: directory that belongs to somebody else than root.
    """

    def __init__(self, root: Path, guarded: str = "") -> None:
        self.root = root
        self.guarded = guarded
        self._known: dict[str, Path] = {}

    # --- looking ------------------------------------------------------------------------------------------------

    def place(self, path: str) -> Path:
        """Where `path` is really, its last part not followed.

        Raises:
            OnboardError: links lead in a circle.
        """
        above, _, name = path.rpartition("/")
        if above not in self._known:
            self._known[above] = self.follow(above)
        return self._known[above] / name

    def follow(self, path: str) -> Path:
        """Where `path` leads, within the root.

        Raises:
            OnboardError: links lead in a circle.
        """
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
        """Whether it is there already as it should be, below :attr:`guarded` with the owner of that."""
        if item.path == self.guarded:
            # systemd gives it another mode, and puts a link in its place (StateDirectory= of a dynamic user).
            return self.follow(item.path).is_dir()
        place = self.place(item.path)
        try:
            found = place.lstat()
            if self._is_guarded(item.path) and (found.st_uid, found.st_gid) != self.owner_of(self.guarded):
                return False
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

    def is_there(self, path: str) -> bool:
        """Whether anything is at `path`, be it a link to nothing."""
        return os.path.lexists(self.place(path))

    def digest(self, path: str) -> str | None:
        """SHA-256 of the file at `path`; ``None`` where there is no file, or it cannot be read."""
        place = self.place(path)
        try:
            return digest(place) if stat.S_ISREG(place.lstat().st_mode) else None
        except OSError:
            return None

    def target(self, path: str) -> str | None:
        """Where the link at `path` leads; ``None`` where there is no link."""
        try:
            return os.readlink(self.place(path))  # noqa: PTH115 - as it is
        except OSError:
            return None

    def names(self, path: str) -> list[tuple[str, bool]]:
        """The paths in a directory, and of each whether it is one itself; none where `path` is no directory."""
        place = self.place(path)
        if place.is_symlink() or not place.is_dir():
            return []
        found = sorted(place.iterdir())
        return [(f"{path}/{one.name}", one.is_dir() and not one.is_symlink()) for one in found]

    def owner_of(self, path: str) -> tuple[int, int] | None:
        """Who owns what `path` leads to; ``None`` where there is nothing."""
        try:
            found = self.follow(path).stat()
        except OSError:
            return None
        return found.st_uid, found.st_gid

    def free_bytes(self, path: str) -> tuple[int, int]:
        """The file system that `path` will lie on, by its number, and how many bytes are free there."""
        place = self.follow(path)
        while not place.exists():
            place = place.parent
        found = os.statvfs(place)
        return place.stat().st_dev, found.f_bavail * found.f_frsize

    # --- writing ------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Keep others of our kind from the same root; a process that ends, however that comes, lets go.

        Raises:
            OnboardError: another one is at work.
        """
        descriptor = os.open(self.root, _DIRECTORY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
        except BlockingIOError as error:
            raise OnboardError(
                f"another installation is at work in {self.root}", "Wait until it is done"
            ) from error
        finally:
            os.close(descriptor)

    def put(self, item: Item, open_bytes: Open, owner: tuple[int, int], *, synced: bool) -> None:
        """Put one thing there, in place of what is there.

        Args:
            owner: uid and gid; -1 leaves them.
            synced: a file's bytes last when this returns; else when somebody syncs the disk.

        Raises:
            DamagedError: the bytes are not those that the manifest names.
            OnboardError: a link is in the way where none may be followed.
            OSError: the disk refuses.
        """
        above, _, name = item.path.rpartition("/")
        with self._opened(above, owner) as directory:
            if item.kind == "directory":
                self._put_directory(directory, name, owner, item.mode)
            else:
                self._put_other(directory, name, item, open_bytes, owner, synced=synced)
            if item.kind != "file":
                self._known.clear()
            if synced:
                os.fsync(directory)

    def _put_directory(self, above: int, name: str, owner: tuple[int, int], mode: int) -> None:
        with contextlib.suppress(FileNotFoundError):
            if stat.S_ISLNK(os.lstat(name, dir_fd=above).st_mode):
                os.unlink(name, dir_fd=above)
        with contextlib.suppress(FileExistsError):
            os.mkdir(name, mode, dir_fd=above)
        made = os.open(name, _DIRECTORY | os.O_NOFOLLOW, dir_fd=above)
        try:
            os.fchown(made, *owner)
            os.fchmod(made, mode)
        finally:
            os.close(made)

    def _put_other(
        self, above: int, name: str, item: Item, open_bytes: Open, owner: tuple[int, int], *, synced: bool
    ) -> None:
        beside = f"{_PARTIAL}{secrets.token_hex(8)}"
        try:
            if item.kind == "symlink":
                os.symlink(item.target, beside, dir_fd=above)
                os.chown(beside, *owner, dir_fd=above, follow_symlinks=False)
            else:
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
                with (
                    os.fdopen(os.open(beside, flags, 0o600, dir_fd=above), "wb") as stream,
                    open_bytes(item) as source,
                ):
                    _copy(source, stream, item)
                    stream.flush()
                    os.fchown(stream.fileno(), *owner)
                    os.fchmod(stream.fileno(), item.mode)
                    if synced:
                        os.fsync(stream.fileno())
            os.replace(beside, name, src_dir_fd=above, dst_dir_fd=above)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(beside, dir_fd=above)
            raise

    @contextlib.contextmanager
    def _opened(self, path: str, owner: tuple[int, int]) -> Iterator[int]:
        """The directory `path`, made where it is missing."""
        safe = self.guarded if self._is_guarded(path) else path
        start = self.follow(safe)
        self._make(start)
        descriptor = os.open(start, _DIRECTORY)
        try:
            for part in path[len(safe) :].split("/"):
                if part:
                    below = _step(descriptor, part, owner, path)
                    os.close(descriptor)
                    descriptor = below
            yield descriptor
        finally:
            os.close(descriptor)

    def _is_guarded(self, path: str) -> bool:
        return bool(self.guarded) and (path == self.guarded or path.startswith(f"{self.guarded}/"))

    def _make(self, directory: Path) -> None:
        if directory.is_dir():
            return
        self._make(directory.parent)
        directory.mkdir()
        directory.chmod(0o755)

    def save(self, path: str) -> str:
        """Keep a second name for a file that is about to be replaced; returns that name."""
        place = self.place(path)
        beside = place.parent / f"{_PARTIAL}{secrets.token_hex(8)}"
        shutil.copy2(place, beside)
        found = place.stat()
        os.chown(beside, found.st_uid, found.st_gid)
        beside.replace(place.parent / f"{place.name}{SAVED}")
        return f"{path}{SAVED}"

    # --- taking away --------------------------------------------------------------------------------------------

    def remove(self, path: str) -> None:
        """Take away a file, a link, or a directory with all that it holds; what is not there is passed over."""
        place = self.place(path)
        if place.is_dir() and not place.is_symlink():
            shutil.rmtree(place)
        else:
            place.unlink(missing_ok=True)

    def prune(self, path: str, keep: Collection[str], mark: str) -> None:
        """Take away all directories in the directory `path` but those of the names in `keep`.

        Args:
            mark: file in each of them that says that it is whole; it goes first.
        """
        with self._opened(path, (-1, -1)) as descriptor:
            for name in os.listdir(descriptor):  # noqa: PTH208 - by a descriptor
                if name in keep:
                    continue
                with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                    inside = os.open(name, _DIRECTORY | os.O_NOFOLLOW, dir_fd=descriptor)
                    try:
                        with contextlib.suppress(FileNotFoundError):
                            os.unlink(mark, dir_fd=inside)
                        os.fsync(inside)
                    finally:
                        os.close(inside)
                    shutil.rmtree(name, dir_fd=descriptor)

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

    def leftovers(self, paths: Iterable[str]) -> None:
        """Clear away what a cut-off run left in the directories of `paths`."""
        for directory in {self.place(path).parent for path in paths}:
            with contextlib.suppress(OSError):
                for left in directory.glob(f"{_PARTIAL}*"):
                    if left.is_symlink() or not left.is_dir():
                        left.unlink(missing_ok=True)


def _step(above: int, name: str, owner: tuple[int, int], path: str) -> int:
    """One directory further down, made where it is missing; no link is followed."""
    try:
        return os.open(name, _DIRECTORY | os.O_NOFOLLOW, dir_fd=above)
    except FileNotFoundError:
        os.mkdir(name, 0o755, dir_fd=above)
        made = os.open(name, _DIRECTORY | os.O_NOFOLLOW, dir_fd=above)
        os.fchown(made, *owner)
        os.fchmod(made, 0o755)
        return made
    except OSError as error:
        if error.errno in {errno.ELOOP, errno.ENOTDIR}:
            raise OnboardError(
                f"{path}: {name} is no directory of its own: the service may have been tampered with",
                "Look at it, and take it away before you go on",
            ) from error
        raise


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
