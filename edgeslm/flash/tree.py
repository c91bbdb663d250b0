"""Files of an image or a machine, and what is to be put there.

What goes onto a board is decided as a list of :class:`Entry`; a :class:`Tree` takes it: the files of an image that
nobody mounted, those of a running machine, or a directory. Paths are absolute within the tree, ``/`` being its root;
symbolic links lead to places within it, whatever they say.

What always holds: what :meth:`Tree.write` returned from was read back and is there, with its mode and owner.

Left to others: deciding what goes where (:mod:`edgeslm.flash.payload`, :mod:`edgeslm.flash.first_boot`).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import posixpath
import secrets
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from edgeslm.errors import TreeError
from edgeslm.files import PARTIAL, read_bounded, sync_directory

Kind = Literal["file", "directory", "symlink"]
_MAX_LINKS = 40
"""How many links are followed before it is called a loop, as Linux does (path_resolution(7))."""
_MAX_PATH = 4096
_MAX_WALKED = 2**20
"""How many parts of paths are looked up in all: links can make few of them very long."""
_PIECE_BYTES = 2**20


@dataclass(frozen=True)
class Entry:
    """One file, directory or link that is to be in a tree.

    Attributes:
        path: where, absolute and without ``.``, ``..`` or an empty part.
        kind: what it is to be.
        content: of a file: the bytes, or the file of this machine that holds them.
        target: of a symbolic link.
        mode: permission bits; a symbolic link has none.
        uid: owner.
        gid: group.
    """

    path: str
    kind: Kind = "file"
    content: bytes | Path = b""
    target: str = ""
    mode: int = 0o644
    uid: int = 0
    gid: int = 0

    def __post_init__(self) -> None:
        """Refuse paths that could be read in two ways.

        Raises:
            TreeError: not a plain absolute path.
        """
        if not is_plain(self.path) or self.path == "/":
            raise TreeError(f"{self.path[:200]!r} is no plain absolute path", path=self.path)

    @property
    def size_bytes(self) -> int:
        """How many bytes the file takes; 0 for what is no file.

        Raises:
            OSError: the file that holds them cannot be asked.
        """
        if self.kind != "file":
            return 0
        return len(self.content) if isinstance(self.content, bytes) else self.content.stat().st_size


@dataclass(frozen=True)
class Node:
    """What is at one path of a tree.

    Attributes:
        size_bytes: of a file; of a symbolic link the length of its target.
        target: of a symbolic link.
    """

    kind: Kind | Literal["other"]
    mode: int
    uid: int
    gid: int
    size_bytes: int
    target: str = ""


class Looking(Protocol):
    """What can say what is at a path."""

    def stat(self, path: str) -> Node | None:
        """See :meth:`Tree.stat`."""
        ...


class Tree(Protocol):
    """Files of an image or a machine.

    Every method raises :class:`~edgeslm.errors.TreeError` where the tree cannot be read or written, and no other error
    but :class:`~edgeslm.errors.ToolMissingError` where a program that it writes with is not installed.
    """

    def stat(self, path: str) -> Node | None:
        """What is at `path`, the last part of which is not followed; ``None`` where there is nothing."""
        ...

    def names(self, path: str) -> tuple[str, ...]:
        """The names in the directory `path`, sorted; links are followed."""
        ...

    def read(self, path: str, *, max_bytes: int) -> bytes:
        """The bytes of the file `path`; links are followed. A file of more than `max_bytes` is an error."""
        ...

    def write(self, entries: Sequence[Entry]) -> None:
        """Put `entries` there, in their order, in place of what is there, and read each of them back.

        Missing directories above them are made (mode 755, root). Links in the path of an entry are followed but for its
        last part. A directory that is there keeps what it holds; a directory in the place of a file, or the other way
        round, is an error. A file system without links, modes and owners refuses links and ignores the others.

        Raises:
            TreeFullError: they do not fit; nothing was written.
        """
        ...

    def remove(self, paths: Sequence[str]) -> None:
        """Take files, links and empty directories away; what is not there is passed over."""
        ...

    def free_bytes(self) -> int:
        """How many bytes still fit."""
        ...


def is_plain(path: str) -> bool:
    """Whether `path` is absolute and has one reading only."""
    whole = path.startswith("/") and not path.startswith("//") and posixpath.normpath(path) == path
    return whole and "\0" not in path and "\n" not in path


def resolve(tree: Looking, path: str, *, last: bool = True) -> str:
    """Where `path` leads, links followed within the tree; parts that are not there stay as they are.

    Args:
        last: follow the last part as well.

    Raises:
        TreeError: links lead in a circle, or to a path that is longer than paths can be.
    """
    waiting = [part for part in reversed(path.split("/")) if part]
    found = "/"
    followed = walked = 0
    while waiting:
        part = waiting.pop()
        walked += found.count("/")
        if len(found) > _MAX_PATH or walked > _MAX_WALKED:
            raise TreeError(f"links make {path[:200]} too long", path=path)
        if part == ".":
            continue
        if part == "..":
            found = posixpath.dirname(found)
            continue
        step = posixpath.join(found, part)
        node = tree.stat(step) if waiting or last else None
        if node is None or node.kind != "symlink":
            found = step
            continue
        followed += 1
        if followed > _MAX_LINKS:
            raise TreeError(f"links lead in a circle at {path}", path=path)
        if node.target.startswith("/"):
            found = "/"
        waiting.extend(part for part in reversed(node.target.split("/")) if part)
    return found


class DirectoryTree:
    """A directory as a tree: ``/`` of the running machine, or an unpacked one.

    Attributes:
        root: the directory.
    """

    def __init__(self, root: Path, *, keeps_owners: bool = True) -> None:
        """Take a directory.

        Args:
            keeps_owners: set the owners that entries name, which only root can; else all belongs to who runs this.
        """
        self.root = root
        self._keeps_owners = keeps_owners

    def stat(self, path: str) -> Node | None:
        """See :meth:`Tree.stat`."""
        real = self._real(path, last=False)
        try:
            found = real.lstat()
            target = str(real.readlink()) if stat.S_ISLNK(found.st_mode) else ""
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise self._error("look at", path, error) from error
        kind: Kind | Literal["other"] = "other"
        if stat.S_ISREG(found.st_mode):
            kind = "file"
        elif stat.S_ISDIR(found.st_mode):
            kind = "directory"
        elif target:
            kind = "symlink"
        mode = stat.S_IMODE(found.st_mode)
        return Node(kind, mode, found.st_uid, found.st_gid, found.st_size, target)

    def names(self, path: str) -> tuple[str, ...]:
        """See :meth:`Tree.names`."""
        try:
            return tuple(sorted(entry.name for entry in self._real(path).iterdir()))
        except OSError as error:
            raise self._error("list", path, error) from error

    def read(self, path: str, *, max_bytes: int) -> bytes:
        """See :meth:`Tree.read`."""
        real = self._real(path)
        try:
            if not stat.S_ISREG(real.lstat().st_mode):
                raise TreeError(f"{path} in {self.root} is no file", path=path)
            data = read_bounded(real, max_bytes)
        except OSError as error:
            raise self._error("read", path, error) from error
        if len(data) > max_bytes:
            raise TreeError(f"{path} has more than {max_bytes} bytes", path=path)
        return data

    def write(self, entries: Sequence[Entry]) -> None:
        """See :meth:`Tree.write`; all of it is synced when this returns."""
        touched: dict[Path, None] = {}
        for entry in entries:
            try:
                self._write(entry, touched)
            except OSError as error:
                raise self._error("write", entry.path, error) from error
        for directory in reversed(touched):
            try:
                sync_directory(directory)
            except OSError as error:
                raise self._error("sync", str(directory), error) from error

    def remove(self, paths: Sequence[str]) -> None:
        """See :meth:`Tree.remove`."""
        for path in paths:
            real = self._real(path, last=False)
            try:
                with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                    if stat.S_ISDIR(real.lstat().st_mode):
                        real.rmdir()
                    else:
                        real.unlink()
            except OSError as error:
                raise self._error("remove", path, error) from error

    def free_bytes(self) -> int:
        """See :meth:`Tree.free_bytes`."""
        try:
            found = os.statvfs(self.root)
        except OSError as error:
            raise self._error("look at", "/", error) from error
        return found.f_bavail * found.f_frsize

    # --- pieces -------------------------------------------------------------------------------------------------

    def _real(self, path: str, *, last: bool = True) -> Path:
        if not is_plain(path):
            raise TreeError(f"{path[:200]!r} is no plain absolute path", path=path)
        if last:
            path = resolve(self, path)
        elif path != "/":
            path = posixpath.join(resolve(self, posixpath.dirname(path)), posixpath.basename(path))
        return self.root / path[1:]

    def _write(self, entry: Entry, touched: dict[Path, None]) -> None:
        real = self._real(entry.path, last=False)
        self._make_parents(real.parent, touched)
        touched[real.parent] = None
        if entry.kind == "directory":
            if real.is_symlink() or not real.is_dir():
                real.mkdir()
            self._set_owner_and_mode(real, entry)
            touched[real] = None
        elif entry.kind == "symlink":
            beside = real.parent / f"{PARTIAL}{secrets.token_hex(8)}"
            beside.symlink_to(entry.target)
            try:
                if self._keeps_owners:
                    os.chown(beside, entry.uid, entry.gid, follow_symlinks=False)
                beside.replace(real)
            except BaseException:
                beside.unlink(missing_ok=True)
                raise
            if str(real.readlink()) != entry.target:
                raise TreeError(f"{entry.path} leads elsewhere than was written", path=entry.path)
        else:
            self._write_file(real, entry)

    def _make_parents(self, directory: Path, touched: dict[Path, None]) -> None:
        if directory.is_dir():
            return
        self._make_parents(directory.parent, touched)
        directory.mkdir(mode=0o755)
        touched[directory.parent] = None
        touched[directory] = None

    def _set_owner_and_mode(self, real: Path, entry: Entry) -> None:
        if self._keeps_owners:
            os.chown(real, entry.uid, entry.gid)
        real.chmod(entry.mode)

    def _write_file(self, real: Path, entry: Entry) -> None:
        beside = real.parent / f"{PARTIAL}{secrets.token_hex(8)}"
        written = hashlib.sha256()
        try:
            with beside.open("x+b") as stream:
                for piece in pieces(entry):
                    written.update(piece)
                    stream.write(piece)
                stream.flush()
                self._set_owner_and_mode(beside, entry)
                os.fsync(stream.fileno())
                stream.seek(0)
                if hashlib.file_digest(stream, "sha256").digest() != written.digest():
                    raise TreeError(f"{entry.path} reads otherwise than it was written", path=entry.path)
            beside.replace(real)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise

    def _error(self, verb: str, path: str, error: OSError) -> TreeError:
        return TreeError(f"cannot {verb} {path} in {self.root}: {error.strerror or error}", path=path)


def pieces(entry: Entry, piece_bytes: int = _PIECE_BYTES) -> Iterator[bytes]:
    """The bytes of a file, in pieces.

    Raises:
        OSError: the file that holds them cannot be read.
    """
    if isinstance(entry.content, bytes):
        yield entry.content
        return
    with entry.content.open("rb") as stream:
        while piece := stream.read(piece_bytes):
            yield piece
