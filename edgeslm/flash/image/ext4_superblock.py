"""The superblock of ext2, ext3 and ext4: what such a file system says of itself.

What always holds: sizes that a file system cannot have, and features that the reader does not know, are errors.

Source: the Linux kernel's "ext4 Data Structures and Algorithms", Documentation/filesystems/ext4.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from edgeslm.errors import TreeError
from edgeslm.flash.image.window import Window

_MAGIC = 0xEF53
_FILETYPE, _RECOVER, _META_BG, _EXTENTS, _64BIT, _MMP, _FLEX_BG = 0x2, 0x4, 0x10, 0x40, 0x80, 0x100, 0x200
_EA_INODE, _CSUM_SEED, _LARGE_DIR = 0x400, 0x2000, 0x4000
_KNOWN = (
    _FILETYPE | _RECOVER | _META_BG | _EXTENTS | _64BIT | _MMP | _FLEX_BG
    | _EA_INODE | _CSUM_SEED | _LARGE_DIR
)  # fmt: skip
_SPARSE_SUPER, _BIGALLOC, _SHARED_BLOCKS, _ORPHAN_PRESENT = 0x1, 0x200, 0x4000, 0x10000
_MIN_GROUP_BLOCKS = 256
_CLEAN = 0x1
_GDT_CSUM, _METADATA_CSUM, _QUOTA, _PROJECT_QUOTA = 0x10, 0x400, 0x100, 0x2000


@dataclass(frozen=True)
class Superblock:
    """What an ext4 file system says of itself.

    Attributes:
        reserved_blocks: of the free ones, those that only root may take.
        written_s: Unix time when it was last written.
        has_checksums: its groups may say that their bitmaps were never written.
        has_quotas: it counts what users take.
        needs_replay: its journal holds changes that are not in it yet.
        needs_repair: that, or it was not unmounted, or an error was found in it.
    """

    block_bytes: int
    blocks: int
    free_blocks: int
    reserved_blocks: int
    inodes: int
    free_inodes: int
    first_block: int
    blocks_per_group: int
    inodes_per_group: int
    inode_bytes: int
    descriptor_bytes: int
    first_meta_group: int | None
    sparse_super: bool
    has_checksums: bool
    has_quotas: bool
    written_s: int
    needs_replay: bool
    needs_repair: bool


def read_superblock(window: Window) -> Superblock:
    """What the file system in `window` says of itself.

    Raises:
        TreeError: it is none, or damaged, or uses what is not known here.
    """
    data = window.read(1024, 1024) if window.size_bytes >= 2048 else bytes(1024)
    if struct.unpack_from("<H", data, 56)[0] != _MAGIC:
        raise fault(window, "it is no ext4")
    inodes, blocks, reserved, free, free_inodes, first, log_size = struct.unpack_from("<7I", data, 0)
    per_group, _, inodes_per_group, _, written = struct.unpack_from("<5I", data, 32)
    (state,) = struct.unpack_from("<H", data, 58)
    (revision,) = struct.unpack_from("<I", data, 76)
    (inode_bytes,) = struct.unpack_from("<H", data, 88) if revision else (128,)
    _, incompatible, read_only = struct.unpack_from("<3I", data, 92)
    (orphan,) = struct.unpack_from("<I", data, 232)
    (descriptor_bytes,) = struct.unpack_from("<H", data, 254)
    (first_meta,) = struct.unpack_from("<I", data, 260)
    if incompatible & ~_KNOWN:
        raise fault(window, f"it uses features that are not known here (0x{incompatible & ~_KNOWN:x})")
    if read_only & (_BIGALLOC | _SHARED_BLOCKS):
        raise fault(window, "its blocks are taken in clusters or shared, which is not known here")
    if incompatible & _64BIT:
        high, reserved_high, free_high = struct.unpack_from("<3I", data, 336)
        blocks, reserved, free = blocks | high << 32, reserved | reserved_high << 32, free | free_high << 32
    else:
        descriptor_bytes = 32
    if (
        log_size > 6
        or inode_bytes not in {128, 256, 512, 1024, 2048, 4096}
        or descriptor_bytes not in {32, 64, 128}
    ):
        raise fault(window, "its sizes are none that it can have")
    block_bytes = 1024 << log_size
    if not 0 < blocks <= window.size_bytes // block_bytes:
        raise fault(window, f"it has {blocks} blocks of {block_bytes} bytes in {window.size_bytes} bytes")
    if inode_bytes > block_bytes or first != (log_size == 0) or first >= blocks:
        raise fault(window, "its sizes are none that it can have")
    groups = -(-(blocks - first) // max(per_group, 1))
    if (
        not _MIN_GROUP_BLOCKS <= per_group <= 8 * block_bytes
        or not 0 < inodes_per_group <= 8 * block_bytes
        or not 0 < inodes <= groups * inodes_per_group
    ):
        raise fault(window, "its groups have no possible size")
    return Superblock(
        block_bytes=block_bytes,
        blocks=blocks,
        free_blocks=free,
        reserved_blocks=reserved,
        inodes=inodes,
        free_inodes=free_inodes,
        first_block=first,
        blocks_per_group=per_group,
        inodes_per_group=inodes_per_group,
        inode_bytes=inode_bytes,
        descriptor_bytes=descriptor_bytes,
        first_meta_group=first_meta if incompatible & _META_BG else None,
        sparse_super=bool(read_only & _SPARSE_SUPER),
        has_checksums=bool(read_only & (_GDT_CSUM | _METADATA_CSUM)),
        has_quotas=bool(read_only & (_QUOTA | _PROJECT_QUOTA)),
        written_s=written,
        needs_replay=bool(incompatible & _RECOVER),
        needs_repair=bool(
            incompatible & _RECOVER or read_only & _ORPHAN_PRESENT or orphan or state & 3 != _CLEAN
        ),
    )


def fault(window: Window, why: str) -> TreeError:
    """The error that the file system in `window` cannot be read."""
    return TreeError(
        f"the file system at byte {window.start_bytes} of {window.path} cannot be read: {why}",
        path="/",
        hint="Look at it with e2fsck -fn, or get the image again",
    )
