"""The partition table of an image: read, and changed where the last partition is to grow.

What always holds: a table is either read whole, each of its partitions lying within the image and none across another,
or it is an error that says what is wrong. Both checksums of a GPT are compared. What is to be written is computed here
and written by who asked.
"""

from __future__ import annotations

from dataclasses import replace

from edgeslm.errors import PartitionError, TreeError
from edgeslm.flash.image.gpt import grow_gpt, read_gpt
from edgeslm.flash.image.mbr import MBR_AT, PROTECTIVE, grow_mbr, read_mbr
from edgeslm.flash.image.partition_table import (
    CUT_SHORT,
    SECTOR,
    Partition,
    PartitionTable,
    Patch,
    TableKind,
    damaged,
    unknown,
)
from edgeslm.flash.image.window import Window

__all__ = ["SECTOR", "Partition", "PartitionTable", "Patch", "TableKind", "grow_last", "read_table"]


def read_table(image: Window) -> PartitionTable:
    """The partition table of `image`.

    Raises:
        PartitionError: it has none that is known, or a damaged one.
    """
    try:
        first = image.read(0, SECTOR)
        if _is_file_system(image, first):
            whole = Partition(1, 0, image.size_bytes)
            return PartitionTable("none", (whole,), "", image.size_bytes)
        if first[510:] != b"\x55\xaa":
            raise unknown(image)
        types = [first[at + 4] for at in range(MBR_AT, 510, 16)]
        if PROTECTIVE in types:
            table = read_gpt(image, first, hybrid=sum(kind != 0 for kind in types) > 1)
        else:
            table = read_mbr(image, first)
    except TreeError as error:
        raise PartitionError(
            f"{image.path} is too short for a partition table", path=str(image.path)
        ) from error
    _check(image, table)
    return table


def grow_last(
    table: PartitionTable, partition: Partition, image_bytes: int, path: str
) -> tuple[PartitionTable, list[Patch]]:
    """Let `partition` reach to the end of an image that grows to `image_bytes`.

    Args:
        image_bytes: a multiple of the sector.
        path: of the image, for errors.

    Returns:
        The table as it will be, and what is to be written for it, the first sector last.

    Raises:
        PartitionError: something follows the partition, or the table cannot hold that size.
    """
    if partition not in table.partitions or not table.room_after(partition):
        raise PartitionError(
            f"partition {partition.number} of {path} cannot grow: another follows it",
            path=path,
            hint="Use an image whose root partition is the last",
        )
    if image_bytes % SECTOR:
        raise PartitionError(f"{image_bytes} bytes are no whole sectors of {SECTOR}", path=path)
    if table.kind == "none":
        grown = replace(partition, size_bytes=image_bytes)
        return replace(table, partitions=(grown,), image_bytes=image_bytes), []
    if table.kind == "mbr":
        return grow_mbr(table, partition, image_bytes, path)
    return grow_gpt(table, partition, image_bytes, path)


# --- checks -----------------------------------------------------------------------------------------------------


def _is_file_system(image: Window, first: bytes) -> bool:
    """Whether a file system begins at the start: a boot sector of FAT carries the mark of an MBR as well."""
    if first[510:] == b"\x55\xaa":
        return b"FAT" in (first[54:57], first[82:85]) and first[0] in (0xEB, 0xE9)
    return image.size_bytes >= 2048 and image.read(1080, 2) == b"\x53\xef"


def _check(image: Window, table: PartitionTable) -> None:
    """Refuse partitions that reach out of the image or into each other."""
    if not table.partitions:
        raise PartitionError(f"{image.path} has no partitions", path=str(image.path))
    before: Partition | None = None
    for partition in sorted(table.partitions, key=lambda each: each.start_bytes):
        if partition.end_bytes > image.size_bytes:
            raise PartitionError(
                f"partition {partition.number} of {image.path} ends at byte {partition.end_bytes}, and the image"
                f" has {image.size_bytes}",
                path=str(image.path),
                hint=CUT_SHORT,
            )
        if before is not None and partition.start_bytes < before.end_bytes:
            raise damaged(image, f"partitions {before.number} and {partition.number} overlap")
        before = partition
