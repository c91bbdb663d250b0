"""The partition table of an image: read, and changed where the last partition is to grow.

What always holds: a table is either read whole, each of its partitions lying within the image and none across another,
or it is an error that says what is wrong. Both checksums of a GPT are compared. What is to be written is computed here
and written by who asked.

Source: UEFI 2.10, chapter 5 (GPT and its protective MBR); the MBR as Linux reads it, block/partitions/msdos.c.
"""

from __future__ import annotations

import binascii
import struct
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from edgeslm.errors import PartitionError, TreeError
from edgeslm.flash.image.window import Window

SECTOR = 512
TableKind = Literal["mbr", "gpt", "none"]
Patch = tuple[int, bytes]
"""Where in the image something is to be written, and what."""

_MBR_AT = 446
_EXTENDED = frozenset({0x05, 0x0F, 0x85})
_PROTECTIVE = 0xEE
_MAX_LOGICAL = 128
_MAX_SECTORS = 2**32 - 1
_LAST_CHS = b"\xfe\xff\xff"
_GPT = struct.Struct("<8s4sII4xQQQQ16sQIII")
_GPT_MAGIC = b"EFI PART"
_ENTRY = struct.Struct("<16s16sQQQ72s")
_MAX_ENTRIES_BYTES = 256 * 1024
_CUT_SHORT = "The image may be cut short: get it again, and compare its SHA-256 with the published one"


@dataclass(frozen=True)
class Partition:
    """One partition.

    Attributes:
        number: as Linux counts, from 1; logical ones of an MBR from 5.
        start_bytes: from the start of the image.
        type: of an MBR two hexadecimal digits, of a GPT the GUID of its type; ``""`` for an image without a table.
        name: of a GPT; ``""`` elsewhere.
    """

    number: int
    start_bytes: int
    size_bytes: int
    type: str = ""
    name: str = ""

    @property
    def end_bytes(self) -> int:
        """The first byte behind it."""
        return self.start_bytes + self.size_bytes


@dataclass(frozen=True)
class PartitionTable:
    """The partitions of an image, in the order of their numbers.

    Attributes:
        kind: ``none`` where one file system takes the whole image.
        disk_id: of an MBR eight hexadecimal digits, of a GPT its GUID.
        image_bytes: of the image, which the table was checked against.
        head: the first sector as it was read, and of a GPT its header and entries.
    """

    kind: TableKind
    partitions: tuple[Partition, ...]
    disk_id: str
    image_bytes: int
    head: tuple[bytes, ...] = ()

    def room_after(self, partition: Partition) -> bool:
        """Whether nothing follows `partition`, so that it can grow with the image."""
        return all(other.end_bytes <= partition.end_bytes for other in self.partitions)


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
            raise _unknown(image)
        types = [first[at + 4] for at in range(_MBR_AT, 510, 16)]
        if _PROTECTIVE in types:
            table = _read_gpt(image, first, hybrid=sum(kind != 0 for kind in types) > 1)
        else:
            table = _read_mbr(image, first)
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
        return _grow_mbr(table, partition, image_bytes, path)
    return _grow_gpt(table, partition, image_bytes, path)


# --- checks -----------------------------------------------------------------------------------------------------


def _is_file_system(image: Window, first: bytes) -> bool:
    """Whether a file system begins at the start: a boot sector of FAT carries the mark of an MBR as well."""
    if first[510:] == b"\x55\xaa":
        return b"FAT" in (first[54:57], first[82:85]) and first[0] in (0xEB, 0xE9)
    return image.size_bytes >= 2048 and image.read(1080, 2) == b"\x53\xef"


def _unknown(image: Window) -> PartitionError:
    return PartitionError(
        f"{image.path} has no partition table of a known kind (MBR or GPT)",
        path=str(image.path),
        hint="Is it the image of a disk? Installers and archives are none",
    )


def _damaged(image: Window, why: str, hint: str | None = None) -> PartitionError:
    return PartitionError(
        f"the partition table of {image.path} is damaged: {why}", path=str(image.path), hint=hint
    )


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
                hint=_CUT_SHORT,
            )
        if before is not None and partition.start_bytes < before.end_bytes:
            raise _damaged(image, f"partitions {before.number} and {partition.number} overlap")
        before = partition


# --- MBR --------------------------------------------------------------------------------------------------------


def _entries(sector: bytes) -> Iterator[tuple[int, int, int]]:
    """Type, first sector and number of sectors of the four entries."""
    for at in range(_MBR_AT, 510, 16):
        kind = sector[at + 4]
        start, count = struct.unpack_from("<II", sector, at + 8)
        yield kind, start, count


def _read_mbr(image: Window, first: bytes) -> PartitionTable:
    if any(first[at] not in (0x00, 0x80) for at in range(_MBR_AT, 510, 16)):
        raise _unknown(image)
    found: list[Partition] = []
    extended: tuple[int, int] | None = None
    for number, (kind, start, count) in enumerate(_entries(first), start=1):
        if not kind or not count:
            continue
        if not start:
            raise _damaged(image, f"partition {number} begins where the table lies")
        if kind in _EXTENDED:
            if extended is not None:
                raise _damaged(image, "it has two extended partitions")
            extended = start, count
            continue
        found.append(Partition(number, start * SECTOR, count * SECTOR, f"{kind:02x}"))
    if extended is not None:
        if any(
            each.start_bytes < sum(extended) * SECTOR and each.end_bytes > extended[0] * SECTOR
            for each in found
        ):
            raise _damaged(image, "a partition overlaps the extended one")
        found += _read_logical(image, *extended)
    heads = (first,) if extended is None else (first, b"extended")
    return PartitionTable("mbr", tuple(found), first[443:439:-1].hex(), image.size_bytes, heads)


def _read_logical(image: Window, base: int, count: int) -> Iterator[Partition]:
    """Follow the chain of an extended partition, each link of which lies within it and behind the one before."""
    at = base
    for number in range(5, 5 + _MAX_LOGICAL):
        sector = image.read(at * SECTOR, SECTOR)
        if sector[510:] != b"\x55\xaa":
            raise _damaged(image, "the chain of its logical partitions breaks off")
        (kind, start, size), (further, link, _), *_ = _entries(sector)
        if kind and size:
            if not start or at + start + size > base + count:
                raise _damaged(image, f"logical partition {number} lies outside of the extended one")
            yield Partition(number, (at + start) * SECTOR, size * SECTOR, f"{kind:02x}")
        if further not in _EXTENDED or not link:
            return
        if base + link <= at or link >= count:
            raise _damaged(image, "the chain of its logical partitions leads back or out")
        at = base + link
    raise _damaged(image, f"it has more than {_MAX_LOGICAL} logical partitions")


def _grow_mbr(
    table: PartitionTable, partition: Partition, image_bytes: int, path: str
) -> tuple[PartitionTable, list[Patch]]:
    if partition.number > 4 or len(table.head) > 1:
        raise PartitionError(
            f"{path} has logical partitions, which cannot grow",
            path=path,
            hint="Use an image with primary ones",
        )
    sectors = (image_bytes - partition.start_bytes) // SECTOR
    if image_bytes // SECTOR > _MAX_SECTORS:
        raise PartitionError(f"an MBR cannot hold {image_bytes} bytes", path=path)
    first = bytearray(table.head[0])
    at = _MBR_AT + 16 * (partition.number - 1)
    first[at + 5 : at + 8] = _LAST_CHS
    struct.pack_into("<I", first, at + 12, sectors)
    return _grown(table, partition, sectors, image_bytes, (bytes(first),)), [(0, bytes(first))]


def _grown(
    table: PartitionTable, partition: Partition, sectors: int, image_bytes: int, head: tuple[bytes, ...]
) -> PartitionTable:
    grown = replace(partition, size_bytes=sectors * SECTOR)
    partitions = tuple(grown if each == partition else each for each in table.partitions)
    return replace(table, partitions=partitions, image_bytes=image_bytes, head=head)


# --- GPT --------------------------------------------------------------------------------------------------------


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


def _read_gpt(image: Window, first: bytes, *, hybrid: bool) -> PartitionTable:
    found = _read_header(image, 1)
    if isinstance(found, str):
        if image.size_bytes >= 8192 and image.read(4096, 8) == _GPT_MAGIC:
            raise PartitionError(
                f"{image.path} is for disks with sectors of 4096 bytes, and cards have {SECTOR}",
                path=str(image.path),
                hint="Use an image for sectors of 512 bytes",
            )
        backup = _read_header(image, image.size_bytes // SECTOR - 1)
        raise _damaged(
            image,
            f"the first header of its GPT cannot be used: {found}"
            + ("" if isinstance(backup, str) else "; the one at the end is whole"),
            _CUT_SHORT if isinstance(backup, str) else "Mend it with gdisk (w), or get the image again",
        )
    header, entries = found
    if header.entries_at < 2 or header.entries_at * SECTOR + header.table_bytes > header.first * SECTOR:
        raise _damaged(image, "the entries of its GPT lie among the partitions")
    partitions = []
    for number, at in enumerate(range(0, len(entries), header.entry_bytes), start=1):
        kind, _, start, last, _, name = _ENTRY.unpack_from(entries, at)
        if not any(kind):
            continue
        if not header.first <= start <= last <= header.last:
            raise _damaged(image, f"partition {number} lies outside of what its GPT may use")
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


def _grow_gpt(
    table: PartitionTable, partition: Partition, image_bytes: int, path: str
) -> tuple[PartitionTable, list[Patch]]:
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
    for at in range(_MBR_AT, 510, 16):
        if mbr[at + 4] == _PROTECTIVE:
            struct.pack_into("<I", mbr, at + 12, min(end, _MAX_SECTORS))
    heads = (bytes(mbr), primary.packed(), bytes(grown_entries))
    sectors = last + 1 - partition.start_bytes // SECTOR
    patches: Sequence[Patch] = (
        (backup.entries_at * SECTOR, bytes(grown_entries)),
        (end * SECTOR, backup.packed()),
        (primary.entries_at * SECTOR, bytes(grown_entries)),
        (SECTOR, primary.packed()),
        (0, bytes(mbr)),
    )
    return _grown(table, partition, sectors, image_bytes, heads), list(patches)
