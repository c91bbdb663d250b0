"""The files of an ext4 file system within an image, changed by debugfs without mounting it.

All changes of one call are one script for one process, so that thousands of files take seconds. debugfs ends well
whatever happened, so that nothing it says counts: each file is read back by :mod:`edgeslm.flash.image.ext4_reader`.

What always holds: a name reaches debugfs as one quoted word or not at all, and the same entries give the same bytes.

Left to others: making room (:mod:`edgeslm.flash.image.grow`).

Source: debugfs(8); its words are split by ss_parse of libss, where a quote within quotes is doubled.
"""

from __future__ import annotations

import posixpath
import stat
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edgeslm.errors import ToolFailedError, TreeError, TreeFullError
from edgeslm.files import PARTIAL
from edgeslm.flash.image.ext4_reader import Ext4Reader, Inode
from edgeslm.flash.image.plan import Plan, plan_writes
from edgeslm.flash.image.sparse import copy_part
from edgeslm.flash.image.staging import Staged, digest_of, encoded, size_of, stage
from edgeslm.flash.image.tools import find_tool, run_tool
from edgeslm.flash.image.window import Window
from edgeslm.flash.tree import Entry, Kind, Node, is_plain, resolve

_MAX_LINE_BYTES = 8000
"""debugfs reads a line of a script into 8192 bytes, and the rest of it as another command."""
_MAX_NAME_BYTES = 255
_NEVER_BARE = "/."
"""Before a path from which debugfs takes the last name off: what is left of ``/name`` it takes for where it is."""
_SLACK_BLOCKS = 64
_EXTENT_BYTES = 2**27
"""What one extent covers at most; four of them need no block."""
_KINDS: dict[int, Kind] = {stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFLNK: "symlink"}
_FORMATS: dict[Kind, int] = {kind: form for form, kind in _KINDS.items()}


@dataclass(frozen=True)
class Need:
    """What entries take in an ext4 file system, a little more than less.

    Attributes:
        size_bytes: their blocks and those of the directories that hold their names.
        inodes: how many files, directories and links are made.
    """

    size_bytes: int
    inodes: int


class Ext4Tree:
    """An ext4 file system as a tree; see :class:`~edgeslm.flash.tree.Tree`.

    Attributes:
        window: where it lies in its image.
    """

    def __init__(self, window: Window, *, time_s: int | None = None) -> None:
        """Open it for reading; nothing is changed before the first write.

        Args:
            time_s: Unix time of what is written; when the file system was last written where it is ``None``.

        Raises:
            TreeError: it is no ext4, or damaged, or uses what is not known here.
        """
        self.window = window
        self._reader = Ext4Reader(window)
        self.time_s = self._reader.superblock.written_s if time_s is None else time_s

    def stat(self, path: str) -> Node | None:
        """See :meth:`~edgeslm.flash.tree.Tree.stat`."""
        return _Plain(self._reader).stat(self._real(path, last=False))

    def names(self, path: str) -> tuple[str, ...]:
        """See :meth:`~edgeslm.flash.tree.Tree.names`."""
        found = self._find(path)
        if found is None or not stat.S_ISDIR(found.mode):
            raise self._error("list", path, "there is no directory")
        return tuple(sorted(self._reader.entries(found.number)))

    def read(self, path: str, *, max_bytes: int) -> bytes:
        """See :meth:`~edgeslm.flash.tree.Tree.read`."""
        found = self._find(path)
        if found is None or not stat.S_ISREG(found.mode):
            raise self._error("read", path, "there is no file")
        if found.size_bytes > max_bytes:
            raise TreeError(f"{path} has more than {max_bytes} bytes", path=path)
        return b"".join(self._reader.pieces(found))

    def write(self, entries: Sequence[Entry]) -> None:
        """See :meth:`~edgeslm.flash.tree.Tree.write`."""
        if not entries:
            return
        self.make_ready()
        plan = plan_writes(_Plain(self._reader), entries)
        self._check_room(plan)
        with self._staging() as directory:
            staged: dict[str, Staged] = {}
            lines = list(self._script(plan, Path(directory), staged))
            said = self._run(lines, Path(directory))
            self._look_again()
            for path, entry in plan.result.items():
                wrong = self._wrong(path, entry, staged.get(path))
                if wrong is not None:
                    why = f"it {wrong} when read back ({said or 'debugfs said nothing'})"
                    raise self._error("write", entry.path, why)

    def remove(self, paths: Sequence[str]) -> None:
        """See :meth:`~edgeslm.flash.tree.Tree.remove`."""
        lines: list[str] = []
        gone: dict[str, str] = {}
        for path in paths:
            found = self._find(path, last=False)
            if found is not None and path != "/":
                real = self._real(path, last=False)
                gone[path] = real
                lines.append(f"{'rmdir' if stat.S_ISDIR(found.mode) else 'rm'} {_quoted(_NEVER_BARE + real)}")
        if not lines:
            return
        self.make_ready()
        with self._staging() as directory:
            said = self._run(lines, Path(directory))
        self._look_again()
        for path, real in gone.items():
            if self._reader.find(real) is not None:
                raise self._error("remove", path, f"it is still there ({said or 'debugfs said nothing'})")

    def free_bytes(self) -> int:
        """See :meth:`~edgeslm.flash.tree.Tree.free_bytes`; what only root may take does not count."""
        fs = self._reader.superblock
        return max(fs.free_blocks - fs.reserved_blocks, 0) * fs.block_bytes

    def need(self, entries: Sequence[Entry]) -> Need:
        """What writing `entries` takes; what they replace counts as if it stayed.

        Raises:
            TreeError: they cannot be written there.
        """
        return self._need(plan_writes(_Plain(self._reader), entries))

    def free_inodes(self) -> int:
        """How many files, directories and links can still be made."""
        return self._reader.superblock.free_inodes

    @property
    def needs_repair(self) -> bool:
        """Whether it says things that are not so until :meth:`make_ready` was called."""
        return self._reader.superblock.needs_repair

    def make_ready(self) -> None:
        """Replay the journal and mend what can be mended without a question, where the file system asks for it.

        Raises:
            TreeError: it cannot be mended.
            ToolMissingError: e2fsck or debugfs is not installed.
        """
        find_tool("debugfs")
        if not self._reader.superblock.needs_repair:
            return
        try:
            if self._reader.superblock.needs_replay:
                self._mend_apart()
            else:
                run_tool(["e2fsck", "-fp", self.device], time_s=self.time_s, good=(0, 1))
        except OSError as error:
            raise self._error("mend", "/", error.strerror or str(error)) from error
        except ToolFailedError as error:
            raise self._error("mend", "/", str(error)) from error
        self._look_again()
        if self._reader.superblock.needs_repair:
            raise self._error("mend", "/", "e2fsck left it as it was")

    def moved_to(self, window: Window) -> None:
        """Take note that the file system is now as large as `window`.

        Raises:
            TreeError: it cannot be read there.
        """
        self.window = window
        self._look_again()

    @property
    def device(self) -> str:
        """How programs of e2fsprogs call it."""
        return f"{self.window.path.absolute()}?offset={self.window.start_bytes}"

    # --- pieces -------------------------------------------------------------------------------------------------

    def _mend_apart(self) -> None:
        """Mend a copy, and put that in its place: e2fsck replays no journal of a file system within a file.

        Raises:
            ToolFailedError: e2fsck cannot mend it without a question; nothing was changed.
            OSError: there is no room for the copy, or it cannot be read or written.
        """
        window = self.window
        with self._staging() as directory:
            copy = Path(directory) / "root"
            with copy.open("xb") as stream:
                size = window.size_bytes
                copy_part(window.descriptor, stream.fileno(), start=window.start_bytes, size=size)
                stream.truncate(size)
            run_tool(["e2fsck", "-fp", str(copy)], time_s=self.time_s, good=(0, 1))
            # What holds data in the image does in the copy as well, so that all of it is written over.
            with copy.open("rb") as stream, window.path.open("r+b") as image:
                copy_part(stream.fileno(), image.fileno(), start=0, size=size, to=window.start_bytes)

    def _look_again(self) -> None:
        self._reader = Ext4Reader(self.window)

    def _find(self, path: str, *, last: bool = True) -> Inode | None:
        return self._reader.find(self._real(path, last=last))

    def _real(self, path: str, *, last: bool) -> str:
        if not is_plain(path):
            raise TreeError(f"{path[:200]!r} is no plain absolute path", path=path)
        plain = _Plain(self._reader)
        if last or path == "/":
            return resolve(plain, path)
        return posixpath.join(resolve(plain, posixpath.dirname(path)), posixpath.basename(path))

    def _staging(self) -> tempfile.TemporaryDirectory[str]:
        try:
            return tempfile.TemporaryDirectory(prefix=PARTIAL, dir=self.window.path.absolute().parent)
        except OSError as error:
            raise self._error("write", "/", error.strerror or str(error)) from error

    def _check_room(self, plan: Plan) -> None:
        """Refuse what does not fit before anything is written."""
        fs = self._reader.superblock
        need = self._need(plan)
        if need.size_bytes > self.free_bytes():
            raise TreeFullError(
                f"{self.window.path} has {self.free_bytes()} bytes free, and {need.size_bytes} are needed",
                path="/",
                needed_bytes=need.size_bytes,
                free_bytes=self.free_bytes(),
                hint="Make the root file system larger, or put less there",
            )
        if need.inodes > fs.free_inodes:
            raise TreeFullError(
                f"{self.window.path} has room for {fs.free_inodes} files, and {need.inodes} are needed",
                path="/",
                needed_bytes=need.inodes * fs.inode_bytes,
                free_bytes=fs.free_inodes * fs.inode_bytes,
                hint="Make the root file system larger, or put less there",
            )

    def _need(self, plan: Plan) -> Need:
        block_bytes = self._reader.superblock.block_bytes
        blocks, inodes = _SLACK_BLOCKS, 0
        names: dict[str, int] = {}
        for step in plan.steps:
            if step.verb not in {"write", "make", "link"}:
                continue
            inodes += 1
            above, name = posixpath.split(step.path)
            names[above] = names.get(above, 0) + 12 + len(encoded(name))
            if step.verb == "write":
                size = size_of(step.entry)
                blocks += -(-size // block_bytes) + size // _EXTENT_BYTES
            else:
                blocks += 1
        # A name does not lie across two blocks, so that some of each stays empty.
        blocks += sum(-(-taken // (block_bytes - _MAX_NAME_BYTES - 24)) for taken in names.values())
        return Need(blocks * block_bytes, inodes)

    def _script(self, plan: Plan, directory: Path, staged: dict[str, Staged]) -> Iterable[str]:
        """The commands for a plan; the bytes of files are laid out as they are needed."""
        here = ""
        for index, step in enumerate(plan.steps):
            path, entry = step.path, step.entry
            quoted = _quoted(path)
            above, name = posixpath.split(path)
            if step.verb in {"make", "link", "write"} and above != here:
                yield f"cd {_quoted(above)}"
                here = above
            match step.verb:
                case "make":
                    yield f"mkdir {_quoted(name)}"
                case "remove":
                    yield f"rm {_quoted(_NEVER_BARE + path)}"
                case "link":
                    yield f"symlink {_quoted(name)} {_quoted(entry.target, path=path)}"
                    if entry.uid or entry.gid:
                        yield f"sif {quoted} uid {entry.uid}"
                        yield f"sif {quoted} gid {entry.gid}"
                case "write":
                    staged[path] = stage(entry, directory, index)
                    yield f"write {staged[path].name} {_quoted(name)}"
                case "set":
                    yield f"sif {quoted} mode 0{_FORMATS[entry.kind] | entry.mode & 0o7777:o}"
                    yield f"sif {quoted} uid {entry.uid}"
                    yield f"sif {quoted} gid {entry.gid}"

    def _run(self, lines: Sequence[str], directory: Path) -> str:
        script = directory / "script"
        words = [encoded(line) for line in lines]
        for line in words:
            if len(line) > _MAX_LINE_BYTES:
                raise TreeError(f"{lines[words.index(line)][:200]!r} is too long for debugfs", path="/")
        try:
            script.write_bytes(b"".join(line + b"\n" for line in words))
            said = run_tool(
                ["debugfs", "-w", "-f", script.name, self.device], time_s=self.time_s, cwd=directory
            )
            if self._reader.superblock.has_quotas:
                # debugfs does not count what users take; e2fsck counts it anew.
                run_tool(["e2fsck", "-fp", self.device], time_s=self.time_s, good=(0, 1))
        except OSError as error:
            raise self._error("write", "/", error.strerror or str(error)) from error
        except ToolFailedError as error:
            raise self._error("write", "/", str(error)) from error
        return said

    def _wrong(self, path: str, entry: Entry, staged: Staged | None) -> str | None:
        """What is otherwise at `path` than it was written; ``None`` where nothing is."""
        found = self._reader.find(path)
        if found is None:
            return "is not there"
        if stat.S_IFMT(found.mode) != _FORMATS[entry.kind]:
            return "is of another kind"
        if (found.uid, found.gid) != (entry.uid, entry.gid):
            return f"belongs to {found.uid}:{found.gid}"
        if entry.kind == "symlink":
            target = self._reader.target(found)
            return None if target == entry.target else f"leads to {target[:200]!r}"
        if stat.S_IMODE(found.mode) != entry.mode & 0o7777:
            return f"has the mode {stat.S_IMODE(found.mode):o}"
        if staged is None:
            return None
        if found.size_bytes != staged.size_bytes:
            return f"has {found.size_bytes} bytes instead of {staged.size_bytes}"
        return None if digest_of(self._reader.pieces(found)) == staged.sha256 else "holds other bytes"

    def _error(self, verb: str, path: str, why: str) -> TreeError:
        return TreeError(f"cannot {verb} {path} in {self.window.path}: {why}", path=path)


class _Plain:
    """What is at paths that have no link on their way."""

    def __init__(self, reader: Ext4Reader) -> None:
        self._reader = reader

    def stat(self, path: str) -> Node | None:
        """See :meth:`~edgeslm.flash.tree.Tree.stat`."""
        found = self._reader.find(path)
        if found is None:
            return None
        kind: Kind | Literal["other"] = _KINDS.get(stat.S_IFMT(found.mode), "other")
        target = self._reader.target(found) if kind == "symlink" else ""
        return Node(kind, stat.S_IMODE(found.mode), found.uid, found.gid, found.size_bytes, target)


def _quoted(text: str, *, path: str | None = None) -> str:
    """One word of debugfs.

    Raises:
        TreeError: it cannot be said to debugfs, which takes a line at a time, or is no name that ext4 takes.
    """
    raw = encoded(text)
    if any(byte < 0x20 or byte == 0x7F for byte in raw):
        raise TreeError(f"{text[:200]!r} has control characters", path=path or text)
    if any(len(part) > _MAX_NAME_BYTES for part in raw.split(b"/")):
        raise TreeError(f"{text[:200]!r} is too long", path=path or text)
    return '"' + text.replace('"', '""') + '"'
