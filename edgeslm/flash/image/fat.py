"""The files of a FAT boot partition within an image, changed by mtools without mounting it.

What always holds: each file is read back by :mod:`edgeslm.flash.image.fat_reader`, whatever mtools ended with, and the
same entries give the same bytes. FAT knows no links, modes and owners: the first are refused, the others are not kept.

Source: mtools(1), and the names that Microsoft's "FAT: General Overview of On-Disk Format" allows.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from edgeslm.errors import ToolFailedError, TreeError, TreeFullError
from edgeslm.files import PARTIAL
from edgeslm.flash.image.fat_reader import FatNode, FatReader, fold
from edgeslm.flash.image.plan import Plan, Step, plan_writes
from edgeslm.flash.image.staging import Staged, digest_of, size_of, stage
from edgeslm.flash.image.tools import find_tool, run_tool
from edgeslm.flash.image.window import Window
from edgeslm.flash.tree import Entry, Node, is_plain

_REFUSED = frozenset('"*:<>?\\|[]')
"""What FAT does not allow, and what mtools takes for a pattern."""
_MAX_NAME = 255
_IMAGE = "image"
_EARLIEST_S = 315532800
"""1980-01-01, where the dates of FAT begin."""


class FatTree:
    """A FAT file system as a tree; see :class:`~edgeslm.flash.tree.Tree`.

    Attributes:
        window: where it lies in its image.
    """

    def __init__(self, window: Window, *, time_s: int) -> None:
        """Open it for reading; nothing is changed before the first write.

        Args:
            time_s: Unix time of what is written.

        Raises:
            TreeError: it is no FAT, or damaged.
        """
        self.window = window
        self.time_s = max(time_s, _EARLIEST_S)
        self._reader = FatReader(window)

    def stat(self, path: str) -> Node | None:
        """See :meth:`~edgeslm.flash.tree.Tree.stat`; modes are those of a mounted one."""
        found = self._find(path)
        if found is None:
            return None
        mode = 0o555 if found.is_read_only else 0o755
        return Node("directory" if found.is_directory else "file", mode, 0, 0, found.size_bytes)

    def names(self, path: str) -> tuple[str, ...]:
        """See :meth:`~edgeslm.flash.tree.Tree.names`."""
        found = self._find(path)
        if found is None or not found.is_directory:
            raise self._error("list", path, "there is no directory")
        return tuple(sorted(node.name for node in self._reader.entries(found).values()))

    def read(self, path: str, *, max_bytes: int) -> bytes:
        """See :meth:`~edgeslm.flash.tree.Tree.read`."""
        found = self._find(path)
        if found is None or found.is_directory:
            raise self._error("read", path, "there is no file")
        if found.size_bytes > max_bytes:
            raise TreeError(f"{path} has more than {max_bytes} bytes", path=path)
        return b"".join(self._reader.pieces(found))

    def write(self, entries: Sequence[Entry]) -> None:
        """See :meth:`~edgeslm.flash.tree.Tree.write`."""
        for entry in entries:
            if entry.kind == "symlink":
                raise TreeError(f"{entry.path} is to be a link, and FAT has none", path=entry.path)
            _check_names(entry.path)
        if not entries:
            return
        find_tool("mcopy")
        plan = plan_writes(self, entries, fold=fold)
        self._check_room(plan)
        said: list[str] = []
        staged: dict[str, Staged] = {}
        with self._bench() as directory:
            for index, step in enumerate(plan.steps):
                self._do(step, directory, index, staged, said)
        self._reader = FatReader(self.window)
        for path, entry in plan.result.items():
            wrong = self._wrong(path, entry, staged.get(path))
            if wrong is not None:
                why = f"it {wrong} when read back ({'; '.join(said) or 'mtools said nothing'})"
                raise self._error("write", entry.path, why)

    def remove(self, paths: Sequence[str]) -> None:
        """See :meth:`~edgeslm.flash.tree.Tree.remove`."""
        said: list[str] = []
        gone: dict[str, str] = {}
        for path in paths:
            found = self._find(path)
            if found is not None and path != "/":
                _check_names(path)
                gone[path] = "mrd" if found.is_directory else "mdel"
        if not gone:
            return
        with self._bench() as directory:
            for path, command in gone.items():
                self._run(directory, command, said, f"::{path}")
        self._reader = FatReader(self.window)
        for path in gone:
            if self._find(path) is not None:
                raise self._error(
                    "remove", path, f"it is still there ({'; '.join(said) or 'mtools said nothing'})"
                )

    def free_bytes(self) -> int:
        """See :meth:`~edgeslm.flash.tree.Tree.free_bytes`."""
        return self._reader.free_clusters() * self._reader.cluster_bytes

    # --- pieces -------------------------------------------------------------------------------------------------

    @contextmanager
    def _bench(self) -> Iterator[Path]:
        """A directory to run mtools in, with a link to the image: mtools gives other names to a shell."""
        image = self.window.path.absolute()
        try:
            with tempfile.TemporaryDirectory(prefix=PARTIAL, dir=image.parent) as directory:
                (Path(directory) / _IMAGE).symlink_to(image)
                yield Path(directory)
        except OSError as error:
            raise self._error("write", "/", error.strerror or str(error)) from error

    def _find(self, path: str) -> FatNode | None:
        if not is_plain(path):
            raise TreeError(f"{path[:200]!r} is no plain absolute path", path=path)
        return self._reader.find(path)

    def _check_room(self, plan: Plan) -> None:
        """Refuse what does not fit before anything is written; what is replaced counts as free, being taken away."""
        unit = self._reader.cluster_bytes
        clusters = 0
        for step in plan.steps:
            if step.verb == "write":
                clusters += -(-size_of(step.entry) // unit)
            elif step.verb == "make":
                clusters += 2
            elif step.verb == "remove":
                there = self._reader.find(step.path)
                clusters -= 0 if there is None else -(-there.size_bytes // unit)
        free = self._reader.free_clusters()
        if clusters > free:
            raise TreeFullError(
                f"the boot partition of {self.window.path} has {free * unit} bytes free, and {clusters * unit} are"
                " needed",
                path="/",
                needed_bytes=clusters * unit,
                free_bytes=free * unit,
                hint="Put less there, or use an image with a larger boot partition",
            )

    def _do(
        self, step: Step, directory: Path, index: int, staged: dict[str, Staged], said: list[str]
    ) -> None:
        inside = f"::{step.path}"
        match step.verb:
            case "make":
                self._run(directory, "mmd", said, "-D", "s", inside)
            case "remove":
                self._run(directory, "mdel", said, inside)
            case "write":
                laid = staged[step.path] = stage(step.entry, directory, index)
                self._run(directory, "mcopy", said, "-D", "o", "-Q", laid.name, inside)
            case _:
                pass

    def _run(self, directory: Path, command: str, said: list[str], *words: str) -> None:
        """Run one of mtools; what it says is kept for the error of who finds that it did nothing."""
        try:
            output = run_tool(
                [command, "-i", f"{_IMAGE}@@{self.window.start_bytes}", *words],
                time_s=self.time_s,
                cwd=directory,
                good=range(256),
            )
        except ToolFailedError as error:
            raise self._error("write", "/", str(error)) from error
        if output and len(said) < 8:
            said.append(output)

    def _wrong(self, path: str, entry: Entry, staged: Staged | None) -> str | None:
        found = self._reader.find(path)
        if found is None:
            return "is not there"
        if found.is_directory != (entry.kind == "directory"):
            return "is of another kind"
        if staged is None:
            return None
        if found.size_bytes != staged.size_bytes:
            return f"has {found.size_bytes} bytes instead of {staged.size_bytes}"
        return None if digest_of(self._reader.pieces(found)) == staged.sha256 else "holds other bytes"

    def _error(self, verb: str, path: str, why: str) -> TreeError:
        return TreeError(f"cannot {verb} {path} in {self.window.path}: {why}", path=path)


def _check_names(path: str) -> None:
    for part in path.split("/")[1:]:
        if (
            any(map(_is_refused, part))
            or part.endswith((".", " "))
            or part.startswith(" ")
            or len(part) > _MAX_NAME
        ):
            raise TreeError(f"{path[:200]!r} cannot be a name on a FAT partition", path=path)


def _is_refused(letter: str) -> bool:
    """Whether mtools or FAT cannot take it; what takes two units of UTF-16 mtools makes another name of."""
    code = ord(letter)
    return letter in _REFUSED or code < 0x20 or code == 0x7F or 0xD800 <= code <= 0xDFFF or code > 0xFFFF
