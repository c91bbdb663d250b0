"""An ext2, ext3 or ext4 file system, read from its blocks.

It is what proves that files are in an image: another reader than the program that wrote them, with no process to start,
so that thousands of files are looked at and hashed in a second.

What always holds: what the file system says is not believed. Whatever lies outside of it, runs in a circle or is larger
than it can be is an error; nothing is read without a bound.

Left to others: checksums and everything else that a file system can have wrong (e2fsck), and writing
(:mod:`edgeslm.flash.image.ext4`).

Source: the Linux kernel's "ext4 Data Structures and Algorithms", Documentation/filesystems/ext4.
"""

from __future__ import annotations

import bisect
import heapq
import re
import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from edgeslm.errors import TreeError
from edgeslm.flash.image.ext4_superblock import fault, read_superblock
from edgeslm.flash.image.window import Window

ROOT_INODE = 2
MAX_DIRECTORY_BYTES = 64 * 2**20
MAX_LINK_BYTES = 4096
_PIECE_BYTES = 2**20
_MAX_DEPTH = 5
_MAX_NODES = 65536
_INODES_UNUSED, _BLOCKS_UNUSED, _TABLE_ZEROED = 0x1, 0x2, 0x4
_FREE = re.compile(rb"\0+")
_FLAG_ENCRYPTED, _FLAG_EXTENTS, _FLAG_INLINE = 0x800, 0x80000, 0x10000000


@dataclass(frozen=True)
class Inode:
    """A file, directory or link.

    Attributes:
        mode: kind and permission bits, as in stat(2).
        area: what says where its bytes are, or the target of a short link.
    """

    number: int
    mode: int
    uid: int
    gid: int
    size_bytes: int
    links: int
    modified_s: int
    flags: int
    area: bytes


class Ext4Reader:
    """The files of an ext4 file system as they are on the disk when this is made; make another after a change.

    Attributes:
        superblock: what it says of itself.
    """

    def __init__(self, window: Window) -> None:
        """Read the superblock.

        Raises:
            TreeError: see :func:`read_superblock`.
        """
        self.superblock = read_superblock(window)
        self._window = window
        self._block = lru_cache(maxsize=512)(self._read_block)
        self.inode = lru_cache(maxsize=65536)(self._read_inode)
        """The inode of a number; :class:`~edgeslm.errors.TreeError` where there is none."""
        self.entries = lru_cache(maxsize=4096)(self._read_entries)
        """The names in a directory, ``.`` and ``..`` left out, and their inodes."""

    def find(self, path: str) -> Inode | None:
        """What is at the absolute `path`, no link followed; ``None`` where there is nothing.

        Raises:
            TreeError: it cannot be read.
        """
        inode = self.inode(ROOT_INODE)
        above = set()
        for part in path.split("/"):
            if not part:
                continue
            number = self.entries(inode.number).get(part) if stat.S_ISDIR(inode.mode) else None
            if number is None:
                return None
            above.add(inode.number)
            if number in above:
                raise self._fault(number, "its directories run in a circle")
            inode = self.inode(number)
        return inode

    def target(self, inode: Inode) -> str:
        """Where a symbolic link leads.

        Raises:
            TreeError: it cannot be read.
        """
        if not 0 < inode.size_bytes <= MAX_LINK_BYTES:
            raise self._fault(inode.number, "a link of no possible length")
        if inode.size_bytes < len(inode.area) and not inode.flags & _FLAG_EXTENTS:
            data = inode.area[: inode.size_bytes]
        else:
            data = b"".join(self.pieces(inode))
        return data.decode("utf-8", errors="surrogateescape")

    def pieces(self, inode: Inode) -> Iterator[bytes]:
        """The bytes of a file, in pieces of a MiB at most.

        Raises:
            TreeError: they cannot be read.
        """
        if inode.flags & (_FLAG_INLINE | _FLAG_ENCRYPTED):
            raise self._fault(
                inode.number, "its bytes are encrypted or lie within the inode, which is not known here"
            )
        size = self.superblock.block_bytes
        at = 0
        for logical, physical, count in self._runs(inode):
            start = logical * size
            if start >= inode.size_bytes:
                break
            yield from _zeros(start - at)
            end = min(start + count * size, inode.size_bytes)
            for first in range(start, end, _PIECE_BYTES):
                yield self._window.read(physical * size + first - start, min(_PIECE_BYTES, end - first))
            at = end
        yield from _zeros(inode.size_bytes - at)

    def free_ranges(self) -> Iterator[tuple[int, int]]:
        """The bytes whose content means nothing, as (start, end) in the partition; in order.

        Those are the blocks that nothing has taken, eight at a time, and of tables of inodes what was never used and is
        not marked as zeroed: Linux zeroes that itself after the first mount, whatever it finds there.

        Raises:
            TreeError: they cannot be read.
        """
        fs = self.superblock
        groups = -(-(fs.blocks - fs.first_block) // fs.blocks_per_group)
        table_blocks = -(-fs.inodes_per_group * fs.inode_bytes // fs.block_bytes)
        taken, idle = [], []
        for group in range(groups):
            descriptor = self._descriptor(group)
            for at, count in ((0, 1), (4, 1), (8, table_blocks)):
                first = self._place(descriptor, at, at + 32)
                taken.append((first * fs.block_bytes, (first + count) * fs.block_bytes))
            used = -(-self._used_inodes(descriptor) * fs.inode_bytes // fs.block_bytes)
            if used < table_blocks and first + table_blocks <= fs.blocks:
                idle.append(((first + used) * fs.block_bytes, (first + table_blocks) * fs.block_bytes))
        taken.sort()
        start = end = 0
        for first, last in heapq.merge(self._free_of(groups, taken), sorted(idle)):
            if first > end:
                if end > start:
                    yield start, end
                start = first
            end = max(end, last)
        if end > start:
            yield start, end

    # --- pieces -------------------------------------------------------------------------------------------------

    def _free_of(self, groups: int, taken: list[tuple[int, int]]) -> Iterator[tuple[int, int]]:
        """The free blocks of all groups, in bytes; `taken` is not among them, in order, whatever bitmaps say."""
        fs = self.superblock
        for group in range(groups):
            first = fs.first_block + group * fs.blocks_per_group
            count = min(fs.blocks_per_group, fs.blocks - first)
            for start, end in self._free_in(group, count):
                yield from _without(
                    (first + start) * fs.block_bytes, (first + min(end, count)) * fs.block_bytes, taken
                )

    def _used_inodes(self, descriptor: bytes) -> int:
        """How many inodes from the start of a group's table may be in use, or have to be zero."""
        fs = self.superblock
        (flags,) = struct.unpack_from("<H", descriptor, 18)
        if not fs.has_checksums or flags & _TABLE_ZEROED:
            return fs.inodes_per_group
        if flags & _INODES_UNUSED:
            return 0
        (unused,) = struct.unpack_from("<H", descriptor, 28)
        if len(descriptor) >= 64:
            unused |= struct.unpack_from("<H", descriptor, 50)[0] << 16
        return max(fs.inodes_per_group - int(unused), 0)

    def _free_in(self, group: int, count: int) -> Iterator[tuple[int, int]]:
        """The free blocks of a group, counted from its first; its own bitmaps and inodes may be among them."""
        descriptor = self._descriptor(group)
        (flags,) = struct.unpack_from("<H", descriptor, 18)
        if self.superblock.has_checksums and flags & _BLOCKS_UNUSED:
            yield 0, count
            return
        bitmap = self._block(self._place(descriptor, 0, 32))[: -(-count // 8)]
        for run in _FREE.finditer(bitmap):
            yield run.start() * 8, run.end() * 8

    def _read_block(self, number: int) -> bytes:
        if not 0 < number < self.superblock.blocks:
            raise fault(self._window, f"block {number} is asked for, and it has {self.superblock.blocks}")
        return self._window.read(number * self.superblock.block_bytes, self.superblock.block_bytes)

    def _fault(self, number: int, why: str) -> TreeError:
        return fault(self._window, f"inode {number}: {why}")

    def _read_inode(self, number: int) -> Inode:
        fs = self.superblock
        if not 0 < number <= fs.inodes:
            raise self._fault(number, "there is none of this number")
        group, index = divmod(number - 1, fs.inodes_per_group)
        block, offset = divmod(index * fs.inode_bytes, fs.block_bytes)
        data = self._block(self._inode_table(group) + block)[offset : offset + fs.inode_bytes]
        mode, uid, size, _, _, modified, _, gid, links = struct.unpack_from("<HHIIIIIHH", data)
        (flags,) = struct.unpack_from("<I", data, 32)
        (size_high,) = struct.unpack_from("<I", data, 108)
        uid_high, gid_high = struct.unpack_from("<HH", data, 120)
        # Of a directory the upper half of the size means something else where there are no large ones.
        if stat.S_ISREG(mode):
            size |= size_high << 32
        if not links:
            raise self._fault(number, "a name leads to it, and it counts none")
        uid, gid = uid | uid_high << 16, gid | gid_high << 16
        return Inode(number, mode, uid, gid, size, links, modified, flags, data[40:100])

    def _inode_table(self, group: int) -> int:
        return self._place(self._descriptor(group), 8, 40)

    def _place(self, descriptor: bytes, low_at: int, high_at: int) -> int:
        (low,) = struct.unpack_from("<I", descriptor, low_at)
        (high,) = struct.unpack_from("<I", descriptor, high_at) if len(descriptor) >= 64 else (0,)
        return int(low) | int(high) << 32

    def _descriptor(self, group: int) -> bytes:
        fs = self.superblock
        per_block = fs.block_bytes // fs.descriptor_bytes
        index, within = divmod(group, per_block)
        if fs.first_meta_group is None or index < fs.first_meta_group:
            block = fs.first_block + 1 + index
        else:
            first = index * per_block
            block = fs.first_block + first * fs.blocks_per_group + self._has_superblock(first)
        return self._block(block)[within * fs.descriptor_bytes : (within + 1) * fs.descriptor_bytes]

    def _has_superblock(self, group: int) -> bool:
        if group <= 1 or not self.superblock.sparse_super:
            return True
        for base in (3, 5, 7):
            power = base
            while power < group:
                power *= base
            if power == group:
                return True
        return False

    def _read_entries(self, number: int) -> dict[str, int]:
        inode = self.inode(number)
        if not stat.S_ISDIR(inode.mode):
            raise self._fault(number, "it is no directory")
        if inode.size_bytes > MAX_DIRECTORY_BYTES:
            raise self._fault(number, f"a directory of {inode.size_bytes} bytes")
        size = self.superblock.block_bytes
        found: dict[str, int] = {}
        data = b"".join(self.pieces(inode))
        for block in range(0, len(data) - size + 1, size):
            at = block
            while at < block + size:
                if at + 8 > block + size:
                    raise self._fault(number, "its names are damaged")
                child, length, name_bytes = struct.unpack_from("<IHB", data, at)
                length = length or 65536  # a block of 64 KiB does not fit 16 bits
                if length < 8 + name_bytes or length % 4 or at + length > block + size:
                    raise self._fault(number, "its names are damaged")
                name = data[at + 8 : at + 8 + name_bytes]
                if child and name not in {b".", b".."}:
                    if not name or b"/" in name or b"\0" in name:
                        raise self._fault(number, "a name in it is none")
                    found[name.decode("utf-8", errors="surrogateescape")] = child
                at += length
        return found

    # --- where bytes are ----------------------------------------------------------------------------------------

    def _runs(self, inode: Inode) -> Iterator[tuple[int, int, int]]:
        """Runs of blocks that hold data, as (block of the file, block of the file system, how many), in order."""
        runs = (
            self._extents(inode.area, inode, None, []) if inode.flags & _FLAG_EXTENTS else self._mapped(inode)
        )
        after = 0
        for logical, physical, count in runs:
            if logical < after or not count or physical + count > self.superblock.blocks:
                raise self._fault(inode.number, "its blocks overlap, or lie outside")
            after = logical + count
            if physical:
                yield logical, physical, count

    def _extents(
        self, node: bytes, inode: Inode, depth: int | None, seen: list[int]
    ) -> Iterator[tuple[int, int, int]]:
        """The runs below a node; those that are reserved and not written lie nowhere, at block 0."""
        magic, count, _, found_depth = struct.unpack_from("<HHHH", node)
        if magic != 0xF30A or found_depth > _MAX_DEPTH or (depth is not None and found_depth != depth):
            raise self._fault(inode.number, "its extents are damaged")
        if 12 + 12 * count > len(node):
            raise self._fault(inode.number, "it has more extents than there is room for")
        for at in range(12, 12 + 12 * count, 12):
            if found_depth:
                _, low, high = struct.unpack_from("<IIH", node, at)
                seen.append(low | high << 32)
                if len(seen) > _MAX_NODES:
                    raise self._fault(inode.number, f"its extents take more than {_MAX_NODES} blocks")
                yield from self._extents(self._block(seen[-1]), inode, found_depth - 1, seen)
                continue
            logical, length, high, low = struct.unpack_from("<IHHI", node, at)
            place = low | high << 32
            if not place:
                raise self._fault(inode.number, "a part of it lies where nothing can lie")
            # Above 32768 the extent is reserved and not written: it reads as zeros.
            yield (logical, place, length) if length <= 32768 else (logical, 0, length - 32768)

    def _mapped(self, inode: Inode) -> Iterator[tuple[int, int, int]]:
        """The blocks of a file of the older form: twelve direct ones, then trees of one, two and three levels."""
        size = self.superblock.block_bytes
        wanted = -(-inode.size_bytes // size)
        per_block = size // 4
        numbers = struct.unpack_from("<15I", inode.area)
        logical = 0
        for index, number in enumerate(numbers):
            level = max(index - 11, 0)
            if logical >= wanted:
                return
            yield from self._mapped_below(number, level, logical, wanted)
            logical += per_block**level

    def _mapped_below(
        self, number: int, level: int, logical: int, wanted: int
    ) -> Iterator[tuple[int, int, int]]:
        if not number or logical >= wanted:
            return
        if not level:
            yield logical, number, 1
            return
        span = (self.superblock.block_bytes // 4) ** (level - 1)
        for index, child in enumerate(
            struct.unpack(f"<{self.superblock.block_bytes // 4}I", self._block(number))
        ):
            yield from self._mapped_below(child, level - 1, logical + index * span, wanted)


def _without(start: int, end: int, taken: list[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """What `taken`, in order, leaves of a range."""
    for first, last in taken[max(bisect.bisect_left(taken, (start, 0)) - 1, 0) :]:
        if first >= end:
            break
        if last <= start:
            continue
        if first > start:
            yield start, first
        start = last
    if start < end:
        yield start, end


def _zeros(size: int) -> Iterator[bytes]:
    while size > 0:
        piece = min(size, _PIECE_BYTES)
        yield bytes(piece)
        size -= piece
