"""Partition tables of new images: MBR and GPT, with two partitions. Pure.

Source: UEFI Specification 2.10, chapter 5.
"""

from __future__ import annotations

import struct
import uuid
import zlib
from dataclasses import dataclass
from typing import Literal

SECTOR_BYTES = 512
_ENTRIES, _ENTRY_BYTES = 128, 128
_ARRAY_SECTORS = _ENTRIES * _ENTRY_BYTES // SECTOR_BYTES
_FAT, _LINUX = 0x0C, 0x83
_BASIC_DATA = uuid.UUID("ebd0a0a2-b9e5-4433-87c0-68b6b72699c7")
_ROOT_ARM64 = uuid.UUID("b921b045-1df0-41c3-af44-4c6f280d3fae")
TAIL_BYTES = (_ARRAY_SECTORS + 1) * SECTOR_BYTES
"""What the copy of a GPT takes at the end of a disk."""


@dataclass(frozen=True)
class Span:
    """Where a partition lies, in bytes; whole sectors."""

    start: int
    size: int

    @property
    def first(self) -> int:
        """Its first sector."""
        return self.start // SECTOR_BYTES

    @property
    def sectors(self) -> int:
        """How many it has."""
        return self.size // SECTOR_BYTES


def table_bytes(
    kind: Literal["mbr", "gpt"], disk_bytes: int, boot: Span, root: Span, identity: uuid.UUID
) -> dict[int, bytes]:
    """The bytes of a table, by where on the disk they go.

    Args:
        kind: of the table.
        disk_bytes: size of the disk.
        boot: partition with a FAT.
        root: partition with the root file system.
        identity: of the disk; partitions get theirs from it.
    """
    if kind == "mbr":
        entries = _mbr_entry(boot, _FAT, active=True) + _mbr_entry(root, _LINUX)
        return {0: _mbr(entries, identity.int & 0xFFFFFFFF)}
    sectors = disk_bytes // SECTOR_BYTES
    array = b"".join(
        _gpt_entry(span, kind_id, name, uuid.uuid5(identity, name))
        for span, kind_id, name in ((boot, _BASIC_DATA, "boot"), (root, _ROOT_ARM64, "root"))
    ).ljust(_ENTRIES * _ENTRY_BYTES, b"\0")
    protective = _mbr_entry(Span(SECTOR_BYTES, disk_bytes - SECTOR_BYTES), 0xEE)
    copy_at = sectors - 1 - _ARRAY_SECTORS
    return {
        0: _mbr(protective, 0),
        SECTOR_BYTES: _gpt_header(1, sectors - 1, 2, sectors, array, identity),
        2 * SECTOR_BYTES: array,
        copy_at * SECTOR_BYTES: array,
        (sectors - 1) * SECTOR_BYTES: _gpt_header(sectors - 1, 1, copy_at, sectors, array, identity),
    }


def _mbr(entries: bytes, signature: int) -> bytes:
    return bytes(440) + struct.pack("<IH", signature, 0) + entries.ljust(64, b"\0") + b"\x55\xaa"


def _mbr_entry(span: Span, kind: int, *, active: bool = False) -> bytes:
    # Nothing reads cylinders any more; all bits set says that they cannot express where it lies.
    nowhere = b"\xfe\xff\xff"
    return struct.pack("<B3sB3sII", 0x80 if active else 0, nowhere, kind, nowhere, span.first, span.sectors)


def _gpt_entry(span: Span, kind: uuid.UUID, name: str, identity: uuid.UUID) -> bytes:
    last = span.first + span.sectors - 1
    return struct.pack(
        "<16s16sQQQ72s", kind.bytes_le, identity.bytes_le, span.first, last, 0, name.encode("utf-16-le")
    )


def _gpt_header(at: int, other: int, array_at: int, sectors: int, array: bytes, identity: uuid.UUID) -> bytes:
    usable = (2 + _ARRAY_SECTORS, sectors - 2 - _ARRAY_SECTORS)

    def header(checksum: int) -> bytes:
        return struct.pack(
            "<8sIIIIQQQQ16sQIII",
            b"EFI PART",
            0x00010000,
            92,
            checksum,
            0,
            at,
            other,
            *usable,
            identity.bytes_le,
            array_at,
            _ENTRIES,
            _ENTRY_BYTES,
            zlib.crc32(array),
        )

    return header(zlib.crc32(header(0))).ljust(SECTOR_BYTES, b"\0")
