"""Making the root file system of an image larger, without mounting it and without a loop device.

resize2fs can be told where in a file a file system begins, and cuts the file to the size of the file system all the
same: its end would be lost. So for that moment the file begins with the file system: what stands before it is kept
aside, and taken out of the file by fallocate(2), which moves no data. Where the host's file system has no such call the
partition is copied out and back.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from edgeslm.errors import ImageError, ToolFailedError, ToolMissingError
from edgeslm.files import PARTIAL
from edgeslm.flash.image.partitions import Partition, PartitionTable, Patch, grow_last
from edgeslm.flash.image.sparse import copy_part, write_all
from edgeslm.flash.image.tools import find_tool, run_tool
from edgeslm.flash.image.window import Window

ALIGNMENT_BYTES = 4 * 2**20
"""What an image's size is rounded up to: the erase block of most cards."""


def grow_root(
    image: Window, table: PartitionTable, root: Partition, image_bytes: int, *, block_bytes: int, time_s: int
) -> PartitionTable:
    """Let an image be `image_bytes` long and its root file system reach to its end.

    Args:
        image: all of it.
        root: the partition of the root file system, which has no damage.
        image_bytes: larger than it is.
        block_bytes: of the root file system.
        time_s: Unix time of what is written.

    Returns:
        The table as it is now.

    Raises:
        PartitionError: the table does not allow it; nothing was changed.
        ToolMissingError: e2fsck or resize2fs is not installed; nothing was changed.
        ImageError: it failed on the way; the image is of no more use.
    """
    grown_table, patches = grow_last(table, root, image_bytes, str(image.path))
    grown = next(each for each in grown_table.partitions if each.number == root.number)
    find_tool("e2fsck")
    find_tool("resize2fs")
    try:
        run_tool(
            ["e2fsck", "-fp", f"{image.path.absolute()}?offset={root.start_bytes}"],
            time_s=time_s,
            good=(0, 1),
        )
        with image.path.open("r+b") as stream:
            descriptor = stream.fileno()
            os.ftruncate(descriptor, root.end_bytes)
            _resize(image.path, descriptor, root, grown.size_bytes // block_bytes * block_bytes, time_s)
            os.ftruncate(descriptor, image_bytes)
            _patch(descriptor, patches)
    except (OSError, ToolFailedError) as error:
        raise ImageError(
            f"cannot make the root of {image.path} larger: {error}",
            path=str(image.path),
            hint="The image is of no more use; prepare it anew",
        ) from error
    return grown_table


def _resize(path: Path, descriptor: int, root: Partition, size_bytes: int, time_s: int) -> None:
    """Resize the root file system, which the file ends with."""
    with tempfile.TemporaryDirectory(prefix=PARTIAL, dir=path.absolute().parent) as directory:
        aside = Path(directory) / "aside"
        with aside.open("x+b") as kept:
            start = root.start_bytes
            copy_part(descriptor, kept.fileno(), start=0, size=start)
            if not start or _fallocate("--collapse-range", path, start):
                _run_resize(path, size_bytes, time_s)
                if start and not _fallocate("--insert-range", path, start):
                    raise OSError("what stands before the root file system cannot be put back")
                copy_part(kept.fileno(), descriptor, start=0, size=start)
                return
            os.ftruncate(kept.fileno(), 0)
            copy_part(descriptor, kept.fileno(), start=start, size=root.size_bytes)
            os.ftruncate(kept.fileno(), root.size_bytes)
            _run_resize(aside, size_bytes, time_s)
            os.ftruncate(descriptor, start)
            copy_part(kept.fileno(), descriptor, start=0, size=size_bytes, to=start)


def _run_resize(path: Path, size_bytes: int, time_s: int) -> None:
    run_tool(["resize2fs", "-f", str(path.absolute()), f"{size_bytes // 1024}K"], time_s=time_s)


def _fallocate(how: str, path: Path, size_bytes: int) -> bool:
    """Take the first bytes out of a file or make room for them; whether the host's file system can do that."""
    try:
        run_tool(["fallocate", how, "--offset", "0", "--length", str(size_bytes), str(path.absolute())])
    except (ToolFailedError, ToolMissingError):
        return False
    return True


def _patch(descriptor: int, patches: Sequence[Patch]) -> None:
    for at, data in patches:
        write_all(descriptor, data, at)
