"""An image of a disk: its partitions, the trees in them, and what its system is.

What always holds: the image is a plain file and stays one; nothing is mounted, no loop device is taken and no right of
root is needed. A partition's tree is chosen by what it holds and not by its number.

Left to others: getting the raw image (:mod:`edgeslm.flash.image.source`), and what goes into it.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from edgeslm.errors import FileSystemError, ImageError, PartitionError, ToolFailedError, TreeError
from edgeslm.files import PARTIAL
from edgeslm.flash.image.ext4 import Ext4Tree
from edgeslm.flash.image.ext4_superblock import read_superblock
from edgeslm.flash.image.facts import ImageFacts, has_system, is_file, read_facts
from edgeslm.flash.image.fat import FatTree
from edgeslm.flash.image.filesystems import probe
from edgeslm.flash.image.grow import ALIGNMENT_BYTES, grow_root
from edgeslm.flash.image.partitions import Partition, read_table
from edgeslm.flash.image.sparse import copy_part
from edgeslm.flash.image.tools import run_tool
from edgeslm.flash.image.window import Window
from edgeslm.flash.tree import Entry

_MAX_IMAGE_BYTES = 2**41
_BOOT_FILES = (("/config.txt", "/cmdline.txt"), ("/user-data", "/dietpi.txt", "/extlinux/extlinux.conf"))
"""What makes one of several FAT partitions the one that a board boots from, the surest first."""
_OVERHEAD = 0.1
"""Share of new room that goes to tables of inodes and to what only root may take."""


class Image:
    """An open image; use it as a context manager.

    Attributes:
        path: the raw file.
        table: its partitions.
        root: the root file system.
        boot: the FAT partition that the board boots from; ``None`` where the root file system is that as well.
        root_partition: where the root file system lies.
        boot_partition: where the boot partition lies, if there is one.
        time_s: Unix time of all that is written.
    """

    def __init__(self, path: Path, *, time_s: int | None = None) -> None:
        """Open an image; see :func:`open_image`."""
        shown = str(path)
        if any(mark in str(path.absolute()) for mark in ("?", "@@", "\n")):
            raise ImageError(
                f"the tools that change {shown!r} would misread its name",
                path=shown,
                hint="Use a name without ? and @@",
            )
        self.path = path
        self._descriptor = -1
        try:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            size = os.lseek(self._descriptor, 0, os.SEEK_END)
        except OSError as error:
            self.close()
            raise ImageError(f"cannot read {path}: {error.strerror or error}", path=shown) from error
        try:
            self._open(size, time_s)
        except BaseException:
            self.close()
            raise

    def _open(self, size: int, time_s: int | None) -> None:
        if not 0 < size <= _MAX_IMAGE_BYTES:
            raise ImageError(
                f"{self.path} has {size} bytes, which is no size of an image", path=str(self.path)
            )
        self.table = read_table(self.window)
        found = {each.number: probe(self._part(each)) for each in self.table.partitions}
        self.root_partition = self._choose_root(found)
        written_s = read_superblock(self._part(self.root_partition)).written_s
        epoch = _epoch() if time_s is None else time_s
        self.time_s = written_s if epoch is None else epoch
        self.root = Ext4Tree(self._part(self.root_partition), time_s=self.time_s)
        self.boot_partition = self._choose_boot(found)
        self.boot = None if self.boot_partition is None else self._fat(self.boot_partition)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _at: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    @property
    def size_bytes(self) -> int:
        """How long the image is."""
        return os.fstat(self._descriptor).st_size

    @property
    def window(self) -> Window:
        """All of it."""
        return Window(self.path, self._descriptor, 0, os.lseek(self._descriptor, 0, os.SEEK_END))

    def facts(self) -> ImageFacts:
        """What the system in it is.

        Raises:
            TreeError: a file system in it cannot be read.
        """
        return read_facts(
            self.root, self.boot, image_bytes=self.size_bytes, root_bytes=self.root_partition.size_bytes
        )

    def grow(self, image_bytes: int) -> None:
        """Make the image, its root partition and its root file system larger; smaller is refused.

        Args:
            image_bytes: how long it is to be; rounded up to whole 4 MiB.

        Raises:
            PartitionError: its root partition is not the last; nothing was changed.
            ImageError: it is larger already, or it failed on the way.
        """
        wanted = -(-image_bytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
        if wanted == self.size_bytes:
            return
        if wanted < self.size_bytes:
            raise ImageError(
                f"{self.path} has {self.size_bytes} bytes, and cannot be made {wanted} bytes long",
                path=str(self.path),
                hint=f"Ask for {self.size_bytes} bytes or more",
            )
        self.root.make_ready()
        block_bytes = read_superblock(self.root.window).block_bytes
        self.table = grow_root(
            self.window,
            self.table,
            self.root_partition,
            wanted,
            block_bytes=block_bytes,
            time_s=self.root.time_s,
        )
        number = self.root_partition.number
        self.root_partition = next(each for each in self.table.partitions if each.number == number)
        self.root.moved_to(self._part(self.root_partition))

    def ensure_free(self, root_bytes: int) -> None:
        """Make the root file system larger if less than `root_bytes` still fit there.

        Raises:
            PartitionError: it has to grow, and cannot.
            ImageError: it failed on the way.
        """
        for _ in range(4):
            lacking = root_bytes - self.root.free_bytes()
            if lacking <= 0:
                return
            self.grow(self.size_bytes + int(lacking / (1 - _OVERHEAD)) + ALIGNMENT_BYTES)
        raise ImageError(
            f"{self.path} does not get {root_bytes} bytes of room by growing", path=str(self.path)
        )

    def ensure_room(self, entries: Sequence[Entry]) -> None:
        """Make the root file system larger if `entries` do not fit there, be it for their bytes or their number.

        Raises:
            PartitionError: it has to grow, and cannot.
            TreeError: they cannot be written there, whatever its size.
            ImageError: it failed on the way.
        """
        need = self.root.need(entries)
        self.ensure_free(need.size_bytes)
        for _ in range(4):
            lacking = need.inodes - self.root.free_inodes()
            if lacking <= 0:
                return
            fs = read_superblock(self.root.window)
            groups = -(-lacking // fs.inodes_per_group)
            self.grow(self.size_bytes + groups * fs.blocks_per_group * fs.block_bytes)
        raise ImageError(f"{self.path} does not get room for {need.inodes} files", path=str(self.path))

    def check(self) -> None:
        """Look at its file systems as a whole: e2fsck and fsck.vfat, changing nothing.

        Raises:
            FileSystemError: one of them has a fault.
            ToolMissingError: one of the two is not installed.
        """
        try:
            run_tool(["e2fsck", "-fn", self.root.device], says=True, time_s=self.root.time_s)
            if self.boot_partition is not None:
                with tempfile.TemporaryDirectory(
                    prefix=PARTIAL, dir=self.path.absolute().parent
                ) as directory:
                    copy = Path(directory) / "boot"
                    self._copy(self.boot_partition, copy)
                    run_tool(["fsck.vfat", "-n", str(copy)], says=True)
        except ToolFailedError as error:
            raise FileSystemError(
                f"a file system in {self.path} has a fault: {error.message}",
                path=str(self.path),
                hint="Get the image again, and prepare it anew",
            ) from error
        except OSError as error:
            raise ImageError(
                f"cannot check {self.path}: {error.strerror or error}", path=str(self.path)
            ) from error

    # --- pieces -------------------------------------------------------------------------------------------------

    def _part(self, partition: Partition) -> Window:
        return self.window.part(partition.start_bytes, partition.size_bytes)

    def _fat(self, partition: Partition) -> FatTree:
        return FatTree(self._part(partition), time_s=self.root.time_s)

    def _copy(self, partition: Partition, target: Path) -> None:
        with target.open("xb") as stream:
            copy_part(
                self._descriptor, stream.fileno(), start=partition.start_bytes, size=partition.size_bytes
            )
            os.ftruncate(stream.fileno(), partition.size_bytes)

    def _choose_root(self, found: dict[int, str | None]) -> Partition:
        candidates = [each for each in self.table.partitions if found[each.number] == "ext4"]
        if len(candidates) > 1:
            candidates = [each for each in candidates if has_system(Ext4Tree(self._part(each)))] or candidates
        if len(candidates) == 1:
            return candidates[0]
        shown = ", ".join(f"{number}: {kind or 'unknown'}" for number, kind in found.items())
        raise PartitionError(
            f"{self.path} has {'several' if candidates else 'no'} ext4 partitions with a system in them ({shown})",
            path=str(self.path),
            hint="Use an image with one ext4 root, such as those of Raspberry Pi OS, Ubuntu, Armbian or DietPi",
        )

    def _choose_boot(self, found: dict[int, str | None]) -> Partition | None:
        candidates = [each for each in self.table.partitions if found[each.number] == "FAT"]
        for paths in _BOOT_FILES if len(candidates) > 1 else ():
            for each in candidates:
                try:
                    if any(is_file(self._fat(each), path) for path in paths):
                        return each
                except TreeError:
                    continue
        return candidates[0] if candidates else None


def open_image(path: Path, *, time_s: int | None = None) -> Image:
    """Open the raw image `path`.

    Args:
        time_s: Unix time of what is written into it. Where it is ``None`` SOURCE_DATE_EPOCH says it, and where that is
            not set its root file system: when that was last written.

    Raises:
        ImageError: it cannot be read.
        PartitionError: its partitions are damaged or of an unknown kind, or none of them is a root that is known.
        TreeError: a file system in it is damaged.
    """
    return Image(path, time_s=time_s)


def _epoch() -> int | None:
    said = os.environ.get("SOURCE_DATE_EPOCH", "")
    return int(said) if said.isascii() and said.isdigit() and len(said) < 12 else None
