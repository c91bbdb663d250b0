"""The GUID partition table: its header, its entries, and both again at the end of the disk.

Source: UEFI 2.10, chapter 5.
"""

from __future__ import annotations

import binascii
import struct
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace

from edgeslm.errors import PartitionError
from edgeslm.flash.image.mbr import MBR_AT, PROTECTIVE
from edgeslm.flash.image.partition_table import (
    CUT_SHORT,
    MAX_SECTORS,
    SECTOR,
    Partition,
    PartitionTable,
    Patch,
    damaged,
    with_size,
)
from edgeslm.flash.image.window import Window

_GPT = struct.Struct("<8s4sII4xQQQQ16sQIII")
_GPT_MAGIC = b"EFI PART"
_ENTRY = struct.Struct("<16s16sQQQ72s")
_MAX_ENTRIES_BYTES = 256 * 1024


@dataclass(frozen=True)
class _Header:
    """What a header of a GPT says, its own checksum having been compared."""

    size: int
    at: int
    other: int
    first: int
    last: int
    guid: bytes
    entries_at: int
    count: int
    entry_bytes: int
    entries_crc: int

    @property
    def table_bytes(self) -> int:
        return self.count * self.entry_bytes

    def packed(self) -> bytes:
        def fields(crc: int) -> bytes:
            return _GPT.pack(
                _GPT_MAGIC,
                b"\0\0\1\0",
                _GPT.size,
                crc,
                self.at,
                self.other,
                self.first,
                self.last,
                self.guid,
                self.entries_at,
                self.count,
                self.entry_bytes,
                self.entries_crc,
            )

        return fields(binascii.crc32(fields(0))).ljust(SECTOR, b"\0")


def _parse_header(sector: bytes, at: int) -> _Header | str:
    """What the header in `sector` says, or what is wrong with it."""
    magic, revision, size, crc, *rest = _GPT.unpack_from(sector)
    if magic != _GPT_MAGIC:
        return "it is not there"
    if revision != b"\0\0\1\0" or not _GPT.size <= size <= SECTOR:
        return "it is of an unknown version"
    if binascii.crc32(sector[:16] + bytes(4) + sector[20:size]) != crc:
        return "its checksum is wrong"
    header = _Header(size, *rest)
    if header.at != at:
        return "it names another place than its own"
    if (
        header.entry_bytes < 128
        or header.entry_bytes % 128
        or not 0 < header.table_bytes <= _MAX_ENTRIES_BYTES
    ):
        return "its entries have no possible size"
    if not header.first <= header.last:
        return "it leaves no room for partitions"
    return header


def _read_header(image: Window, at: int) -> tuple[_Header, bytes] | str:
    """The header in sector `at` and the entries that it names, or what is wrong."""
    if (at + 1) * SECTOR > image.size_bytes:
        return "it lies behind the end of the image"
    header = _parse_header(image.read(at * SECTOR, SECTOR), at)
    if isinstance(header, str):
        return header
    if header.entries_at * SECTOR + header.table_bytes > image.size_bytes:
        return "its entries lie behind the end of the image"
    entries = image.read(header.entries_at * SECTOR, header.table_bytes)
    if binascii.crc32(entries) != header.entries_crc:
        return "the checksum of its entries is wrong"
    return header, entries


def read_gpt(image: Window, first: bytes, *, hybrid: bool) -> PartitionTable:
    """The table of an image whose first sector is a protective MBR.

    Args:
        hybrid: that MBR names other partitions as well.

    Raises:
        PartitionError: it is damaged.
        TreeError: the image is too short.
    """
    found = _read_header(image, 1)
    if isinstance(found, str):
        if image.size_bytes >= 8192 and image.read(4096, 8) == _GPT_MAGIC:
            raise PartitionError(
                f"{image.path} is for disks with sectors of 4096 bytes, and cards have {SECTOR}",
                path=str(image.path),
                hint="Use an image for sectors of 512 bytes",
            )
        backup = _read_header(image, image.size_bytes // SECTOR - 1)
        raise damaged(
            image,
            f"the first header of its GPT cannot be used: {found}"
            + ("" if isinstance(backup, str) else "; the one at the end is whole"),
            CUT_SHORT if isinstance(backup, str) else "Mend it with gdisk (w), or get the image again",
        )
    header, entries = found
    if header.entries_at < 2 or header.entries_at * SECTOR + header.table_bytes > header.first * SECTOR:
        raise damaged(image, "the entries of its GPT lie among the partitions")
    if (header.other + 1) * SECTOR > image.size_bytes:
        raise damaged(
            image,
            "the second header of its GPT lies behind the end of the image",
            f"{CUT_SHORT}; if it is published like that, sgdisk -e mends it",
        )
    partitions = []
    for number, at in enumerate(range(0, len(entries), header.entry_bytes), start=1):
        kind, _, start, last, _, name = _ENTRY.unpack_from(entries, at)
        if not any(kind):
            continue
        if not header.first <= start <= last <= header.last:
            raise damaged(image, f"partition {number} lies outside of what its GPT may use")
        partitions.append(
            Partition(
                number,
                start * SECTOR,
                (last + 1 - start) * SECTOR,
                str(uuid.UUID(bytes_le=kind)),
                name.decode("utf-16-le", errors="replace").partition("\0")[0],
            )
        )
    guid = str(uuid.UUID(bytes_le=header.guid))
    heads = (first, image.read(SECTOR, SECTOR), entries, *((b"hybrid",) if hybrid else ()))
    return PartitionTable("gpt", tuple(partitions), guid, image.size_bytes, heads)


def grow_gpt(
    table: PartitionTable, partition: Partition, image_bytes: int, path: str
) -> tuple[PartitionTable, list[Patch]]:
    """See :func:`edgeslm.flash.image.partitions.grow_last`; the second header goes to the new end."""
    first_sector, header_sector, entries, *hybrid = table.head
    header = _parse_header(header_sector, 1)
    if hybrid or isinstance(header, str):
        raise PartitionError(
            f"{path} has a hybrid MBR beside its GPT, which cannot be grown",
            path=path,
            hint="Use a plain GPT or MBR",
        )
    table_sectors = -(-header.table_bytes // SECTOR)
    end = image_bytes // SECTOR - 1
    last = end - table_sectors - 1
    grown_entries = bytearray(entries)
    struct.pack_into("<Q", grown_entries, (partition.number - 1) * header.entry_bytes + 40, last)
    crc = binascii.crc32(grown_entries)
    primary = replace(header, size=_GPT.size, other=end, last=last, entries_crc=crc)
    backup = replace(primary, at=end, other=1, entries_at=end - table_sectors)
    mbr = bytearray(first_sector)
    for at in range(MBR_AT, 510, 16):
        if mbr[at + 4] == PROTECTIVE:
            struct.pack_into("<I", mbr, at + 12, min(end, MAX_SECTORS))
    heads = (bytes(mbr), primary.packed(), bytes(grown_entries))
    sectors = last + 1 - partition.start_bytes // SECTOR
    patches: Sequence[Patch] = (
        (backup.entries_at * SECTOR, bytes(grown_entries)),
        (end * SECTOR, backup.packed()),
        (primary.entries_at * SECTOR, bytes(grown_entries)),
        (SECTOR, primary.packed()),
        (0, bytes(mbr)),
    )
    return with_size(table, partition, sectors, image_bytes, heads), list(patches)
