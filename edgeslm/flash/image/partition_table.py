"""What a partition table says, in whichever form it lies in the image, and the words for what is wrong with it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from edgeslm.errors import PartitionError
from edgeslm.flash.image.window import Window

SECTOR = 512
TableKind = Literal["mbr", "gpt", "none"]
Patch = tuple[int, bytes]
"""Where in the image something is to be written, and what."""
MAX_SECTORS = 2**32 - 1
"""What the 32 bits of an MBR hold."""
CUT_SHORT = "The image may be cut short: get it again, and compare its SHA-256 with the published one"


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


def unknown(image: Window) -> PartitionError:
    """The error that there is no table."""
    return PartitionError(
        f"{image.path} has no partition table of a known kind (MBR or GPT)",
        path=str(image.path),
        hint="Is it the image of a disk? Installers and archives are none",
    )


def damaged(image: Window, why: str, hint: str | None = None) -> PartitionError:
    """The error that a table cannot be believed."""
    return PartitionError(
        f"the partition table of {image.path} is damaged: {why}", path=str(image.path), hint=hint
    )


def with_size(
    table: PartitionTable, partition: Partition, sectors: int, image_bytes: int, head: tuple[bytes, ...]
) -> PartitionTable:
    """The table where `partition` has another size."""
    grown = replace(partition, size_bytes=sectors * SECTOR)
    partitions = tuple(grown if each == partition else each for each in table.partitions)
    return replace(table, partitions=partitions, image_bytes=image_bytes, head=head)
