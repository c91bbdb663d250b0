"""Reading and writing as much as was asked for, whatever a disk takes at once."""

from __future__ import annotations

from edgeslm.errors import DiskFaultError, DiskFullError
from edgeslm.flash.disks.target import Target

_MOST_STALLS = 8


def write_all(target: Target, offset: int, data: memoryview) -> None:
    """Write all of `data`, which is aligned.

    Raises:
        DiskError: the disk does not take it.
    """
    stalls = 0
    while data:
        taken = target.write(offset, data)
        # What was taken beyond the last whole block is written again: the next write has to begin at a block.
        taken -= 0 if taken == len(data) else taken % target.align_bytes
        stalls = 0 if taken else stalls + 1
        if stalls > _MOST_STALLS:
            raise DiskFaultError(
                f"{target.device} takes less than a block at byte {offset}",
                device=target.device,
                offset=offset,
                hint="The reader or the card is bad: try again, then with another",
            )
        data, offset = data[taken:], offset + taken


def read_all(target: Target, offset: int, into: memoryview) -> None:
    """Fill `into`, which is aligned.

    Raises:
        DiskFullError: the disk ends before.
        DiskError: it cannot be read.
    """
    stalls = 0
    while into:
        got = target.read(offset, into)
        if not got:
            raise DiskFullError(
                f"{target.device} ends at byte {offset}",
                device=target.device,
                offset=offset,
                hint="The card is smaller than it says: take another one",
            )
        got -= 0 if got == len(into) else got % target.align_bytes
        stalls = 0 if got else stalls + 1
        if stalls > _MOST_STALLS:
            raise DiskFaultError(
                f"{target.device} gives less than a block at byte {offset}",
                device=target.device,
                offset=offset,
                hint="The reader or the card is bad: try again, then with another",
            )
        into, offset = into[got:], offset + got
