"""One more partition behind all others, with an empty ext4 file system: for state that is kept apart from the root.

What always holds: nothing before the end of the image changes but its partition table; the same image gives the same
bytes. The identities of partition and file system follow from that of the disk.

Source: UEFI Specification 2.10, 5.3.3 (entries of a GPT); the type of Linux file systems, 0FC63DAF-....
"""

from __future__ import annotations

import os
import struct
import uuid
from dataclasses import replace

from edgeslm.errors import ImageError, PartitionError, ToolFailedError
from edgeslm.flash.image.grow import ALIGNMENT_BYTES
from edgeslm.flash.image.image import Image
from edgeslm.flash.image.mbr import MBR_AT
from edgeslm.flash.image.partition_table import SECTOR, Partition, PartitionTable
from edgeslm.flash.image.partitions import grow_last
from edgeslm.flash.image.sparse import write_all
from edgeslm.flash.image.tools import run_tool

_LINUX = uuid.UUID("0fc63daf-8483-4772-8e79-3d69d8477de4")
_SPACE = uuid.UUID("8c3a6bb5-7a57-4f0c-9f1e-6f0a4a0b2f11")
_ENTRY_BYTES = 128
_GPT_END_BYTES = 34 * SECTOR
"""What the second table of a GPT takes at the end of a disk."""
_LEAST_BYTES = 16 * 2**20


def add_ext4(image: Image, size_bytes: int, *, label: str, image_bytes: int | None = None) -> Partition:
    """Add a partition, and make an ext4 file system in it. The image has to be opened anew to see it.

    Args:
        image: open; nothing is being written to it.
        size_bytes: of the partition, at least.
        label: of the file system, at most 16 letters, and name of the partition where the table has names.
        image_bytes: length of the image, which the partition fills; ``None``: as long as it has to be.

    Raises:
        PartitionError: the table takes none more; nothing was changed.
        ImageError: it failed on the way; the image is of no more use.
    """
    path = str(image.path)
    behind = max(each.end_bytes for each in image.table.partitions)
    start = _aligned(behind)
    end = _aligned(start + max(size_bytes, _LEAST_BYTES) + _GPT_END_BYTES)
    if image_bytes is not None:
        end = image_bytes // ALIGNMENT_BYTES * ALIGNMENT_BYTES
    if end - start < size_bytes + _GPT_END_BYTES:
        raise PartitionError(
            f"{path} would have {max(end - start, 0)} bytes left for '{label}', and {size_bytes} are needed",
            path=path, hint="Ask for a longer image",
        )  # fmt: skip
    identity = uuid.uuid5(_SPACE, f"{image.table.disk_id} {label}")
    with_new, added = with_partition(image.table, start, identity, label, path)
    grown, patches = grow_last(with_new, added, end, path)
    added = next(each for each in grown.partitions if each.number == added.number)
    try:
        with image.path.open("r+b") as stream:
            os.ftruncate(stream.fileno(), end)
            for at, data in patches:
                write_all(stream.fileno(), data, at)
        run_tool(
            [
                "mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", "-I", "256", "-m", "0", "-L", label,
                "-U", str(identity),
                "-O", "^metadata_csum_seed,^orphan_file",
                "-E", f"offset={added.start_bytes},hash_seed={identity},root_owner=0:0,lazy_itable_init=1,nodiscard",
                str(image.path.absolute()), f"{added.size_bytes // 4096 * 4}K",
            ],
            time_s=image.time_s,
        )  # fmt: skip
    except (OSError, ToolFailedError) as error:
        raise ImageError(
            f"cannot add a partition to {path}: {error}", path=path, hint="Prepare the image anew"
        ) from error
    return added


def with_partition(
    table: PartitionTable, start_bytes: int, identity: uuid.UUID, name: str, path: str
) -> tuple[PartitionTable, Partition]:
    """A table with one partition more, of one sector, which :func:`grow_last` then makes as long as it is to be.

    Raises:
        PartitionError: it takes none more.
    """
    if table.kind == "none":
        raise PartitionError(f"{path} has no table that another partition could be added to", path=path)
    used = {each.number for each in table.partitions}
    if table.kind == "mbr":
        first = bytearray(table.head[0])
        free = [number for number in range(1, 5) if not first[MBR_AT + 16 * (number - 1) + 4]]
        if not free:
            raise PartitionError(
                f"the partition table of {path} is full", path=path, hint="An MBR holds four"
            )
        number = free[0]
        struct.pack_into(
            "<B3sB3sII", first, MBR_AT + 16 * (number - 1),
            0, b"\xfe\xff\xff", 0x83, b"\xfe\xff\xff", start_bytes // SECTOR, 1,
        )  # fmt: skip
        added = Partition(number, start_bytes, SECTOR, "83")
        return _with(table, added, (bytes(first), *table.head[1:])), added
    first_sector, header, entries, *rest = table.head
    (entry_bytes,) = struct.unpack_from("<I", header, 84)
    number = next((number for number in range(1, len(entries) // entry_bytes + 1) if number not in used), 0)
    if not number:
        raise PartitionError(f"the partition table of {path} is full", path=path)
    sector = start_bytes // SECTOR
    entry = struct.pack(
        "<16s16sQQQ72s", _LINUX.bytes_le, identity.bytes_le, sector, sector, 0, name.encode("utf-16-le")
    )
    changed = bytearray(entries)
    at = (number - 1) * entry_bytes
    changed[at : at + _ENTRY_BYTES] = entry
    added = Partition(number, start_bytes, SECTOR, str(_LINUX), name)
    return _with(table, added, (first_sector, header, bytes(changed), *rest)), added


def _with(table: PartitionTable, added: Partition, head: tuple[bytes, ...]) -> PartitionTable:
    partitions = tuple(sorted((*table.partitions, added), key=lambda each: each.number))
    return replace(table, partitions=partitions, head=head)


def _aligned(size_bytes: int) -> int:
    return -(-size_bytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
