"""The partition table of an MBR, with the chain of logical partitions within an extended one.

Source: Linux, block/partitions/msdos.c.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from edgeslm.errors import PartitionError
from edgeslm.flash.image.partition_table import (
    MAX_SECTORS,
    SECTOR,
    Partition,
    PartitionTable,
    Patch,
    damaged,
    unknown,
    with_size,
)
from edgeslm.flash.image.window import Window

MBR_AT = 446
PROTECTIVE = 0xEE
_EXTENDED = frozenset({0x05, 0x0F, 0x85})
_MAX_LOGICAL = 128
_LAST_CHS = b"\xfe\xff\xff"


def entries(sector: bytes) -> Iterator[tuple[int, int, int]]:
    """Type, first sector and number of sectors of the four entries."""
    for at in range(MBR_AT, 510, 16):
        kind = sector[at + 4]
        start, count = struct.unpack_from("<II", sector, at + 8)
        yield kind, start, count


def read_mbr(image: Window, first: bytes) -> PartitionTable:
    """The table in the first sector of an image, which has the mark of an MBR.

    Raises:
        PartitionError: it is damaged.
        TreeError: the image is too short.
    """
    if any(first[at] not in (0x00, 0x80) for at in range(MBR_AT, 510, 16)):
        raise unknown(image)
    found: list[Partition] = []
    extended: tuple[int, int] | None = None
    for number, (kind, start, count) in enumerate(entries(first), start=1):
        if not kind or not count:
            continue
        if not start:
            raise damaged(image, f"partition {number} begins where the table lies")
        if kind in _EXTENDED:
            if extended is not None:
                raise damaged(image, "it has two extended partitions")
            extended = start, count
            continue
        found.append(Partition(number, start * SECTOR, count * SECTOR, f"{kind:02x}"))
    if extended is not None:
        if any(
            each.start_bytes < sum(extended) * SECTOR and each.end_bytes > extended[0] * SECTOR
            for each in found
        ):
            raise damaged(image, "a partition overlaps the extended one")
        found += _read_logical(image, *extended)
    heads = (first,) if extended is None else (first, b"extended")
    return PartitionTable("mbr", tuple(found), first[443:439:-1].hex(), image.size_bytes, heads)


def _read_logical(image: Window, base: int, count: int) -> Iterator[Partition]:
    """Follow the chain of an extended partition, each link of which lies within it and behind the one before."""
    at = base
    for number in range(5, 5 + _MAX_LOGICAL):
        sector = image.read(at * SECTOR, SECTOR)
        if sector[510:] != b"\x55\xaa":
            raise damaged(image, "the chain of its logical partitions breaks off")
        (kind, start, size), (further, link, _), *_ = entries(sector)
        if kind and size:
            if not start or at + start + size > base + count:
                raise damaged(image, f"logical partition {number} lies outside of the extended one")
            yield Partition(number, (at + start) * SECTOR, size * SECTOR, f"{kind:02x}")
        if further not in _EXTENDED or not link:
            return
        if base + link <= at or link >= count:
            raise damaged(image, "the chain of its logical partitions leads back or out")
        at = base + link
    raise damaged(image, f"it has more than {_MAX_LOGICAL} logical partitions")


def grow_mbr(
    table: PartitionTable, partition: Partition, image_bytes: int, path: str
) -> tuple[PartitionTable, list[Patch]]:
    """See :func:`edgeslm.flash.image.partitions.grow_last`."""
    if partition.number > 4 or len(table.head) > 1:
        raise PartitionError(
            f"{path} has logical partitions, which cannot grow",
            path=path,
            hint="Use an image with primary ones",
        )
    sectors = (image_bytes - partition.start_bytes) // SECTOR
    if image_bytes // SECTOR > MAX_SECTORS:
        raise PartitionError(f"an MBR cannot hold {image_bytes} bytes", path=path)
    first = bytearray(table.head[0])
    at = MBR_AT + 16 * (partition.number - 1)
    first[at + 5 : at + 8] = _LAST_CHS
    struct.pack_into("<I", first, at + 12, sectors)
    return with_size(table, partition, sectors, image_bytes, (bytes(first),)), [(0, bytes(first))]
