"""A FAT12, FAT16 or FAT32 file system, read from its clusters: what proves that files are on a boot partition.

What always holds: what the file system says is not believed. Whatever lies outside of it, runs in a circle or is larger
than it can be is an error.

Source: Microsoft's "FAT: General Overview of On-Disk Format" 1.03.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from edgeslm.errors import TreeError
from edgeslm.flash.image.window import Window

MAX_DIRECTORY_BYTES = 2 * 2**20
_MAX_TABLE_BYTES = 64 * 2**20
_READ_ONLY, _VOLUME, _DIRECTORY, _LONG = 0x01, 0x08, 0x10, 0x0F
_LOWER_BASE, _LOWER_EXTENSION = 0x08, 0x10
_NAME_PARTS = ((1, 11), (14, 26), (28, 32))


@dataclass(frozen=True)
class FatNode:
    """A file or directory.

    Attributes:
        name: as it is shown; the root has none.
        cluster: the first one; 0 for what has none, and for the root of FAT12 and FAT16.
    """

    name: str
    is_directory: bool
    is_read_only: bool
    cluster: int
    size_bytes: int


class FatReader:
    """The files of a FAT file system as they are on the disk when this is made; make another after a change.

    Attributes:
        cluster_bytes: the unit in which files take space.
        root: the directory at the top.
    """

    def __init__(self, window: Window) -> None:
        """Read the boot sector and the table.

        Raises:
            TreeError: it is no FAT, or damaged.
        """
        self._window = window
        boot = window.read(0, 512) if window.size_bytes >= 512 else bytes(512)
        sector, per_cluster, reserved, tables, root_entries, short_total, _, short_table = struct.unpack_from(
            "<HBHBHHBH", boot, 11
        )
        long_total, long_table = struct.unpack_from("<I", boot, 32)[0], struct.unpack_from("<I", boot, 36)[0]
        if (
            boot[510:] != b"\x55\xaa"
            or sector not in {512, 1024, 2048, 4096}
            or not reserved
            or tables not in {1, 2}
        ):
            raise self._fault("it is no FAT")
        if per_cluster not in {1, 2, 4, 8, 16, 32, 64, 128}:
            raise self._fault("its clusters have no possible size")
        total = short_total or long_total
        table_sectors = short_table or long_table
        root_sectors = -(-root_entries * 32 // sector)
        first = reserved + tables * table_sectors + root_sectors
        if not table_sectors or total * sector > window.size_bytes or first >= total:
            raise self._fault("it reaches out of its partition")
        self.cluster_bytes: int = per_cluster * sector
        self._clusters = (total - first) // per_cluster
        self._bits = 32 if not short_table else 12 if self._clusters < 4085 else 16
        self._data_at = first * sector
        self._root_at, self._root_bytes = (reserved + tables * table_sectors) * sector, root_entries * 32
        table_bytes = min(table_sectors * sector, -(-(self._clusters + 2) * self._bits // 8))
        if table_bytes > _MAX_TABLE_BYTES or table_bytes * 8 < (self._clusters + 2) * self._bits:
            raise self._fault("its table has no possible size")
        self._table = window.read(reserved * sector, table_bytes)
        root_cluster = struct.unpack_from("<I", boot, 44)[0] if self._bits == 32 else 0
        self.root = FatNode("", is_directory=True, is_read_only=False, cluster=root_cluster, size_bytes=0)
        self.entries = lru_cache(maxsize=1024)(self._entries)
        """What a directory holds, by the folded name, in the order of the disk."""

    def find(self, path: str) -> FatNode | None:
        """What is at the absolute `path`, in whatever case; ``None`` where there is nothing.

        Raises:
            TreeError: it cannot be read.
        """
        node = self.root
        above: set[int] = set()
        for part in path.split("/"):
            if not part:
                continue
            found = self.entries(node).get(fold(part)) if node.is_directory else None
            if found is None:
                return None
            above.add(node.cluster)
            if found.is_directory and found.cluster in above:
                raise self._fault("its directories run in a circle")
            node = found
        return node

    def pieces(self, node: FatNode) -> Iterator[bytes]:
        """The bytes of a file.

        Raises:
            TreeError: they cannot be read.
        """
        left = node.size_bytes
        if left:
            for first, count in self._runs(node.cluster):
                size = min(count * self.cluster_bytes, left)
                yield self._window.read(self._data_at + (first - 2) * self.cluster_bytes, size)
                left -= size
                if not left:
                    return
        if left:
            raise self._fault(f"{node.name} has fewer bytes than it says")

    def free_clusters(self) -> int:
        """How many clusters nothing has taken."""
        return sum(1 for _ in self._free())

    def free_ranges(self) -> Iterator[tuple[int, int]]:
        """The bytes that nothing has taken, as (start, end) in the partition, in order."""
        start = end = 0
        for cluster in self._free():
            at = self._data_at + (cluster - 2) * self.cluster_bytes
            if at != end:
                if end > start:
                    yield start, end
                start = at
            end = at + self.cluster_bytes
        if end > start:
            yield start, end

    # --- pieces -------------------------------------------------------------------------------------------------

    def _fault(self, why: str) -> TreeError:
        return TreeError(
            f"the file system at byte {self._window.start_bytes} of {self._window.path} cannot be read: {why}",
            path="/",
            hint="Look at it with fsck.vfat -n, or get the image again",
        )

    def _free(self) -> Iterator[int]:
        if self._bits == 12:
            return (cluster for cluster in range(2, self._clusters + 2) if not self._next(cluster))
        size = self._bits // 8
        used = memoryview(self._table)[2 * size : (self._clusters + 2) * size]
        values = struct.iter_unpack("<H" if size == 2 else "<I", used)
        return (cluster for cluster, (value,) in enumerate(values, start=2) if not value & 0x0FFFFFFF)

    def _next(self, cluster: int) -> int:
        if self._bits == 32:
            return int(struct.unpack_from("<I", self._table, cluster * 4)[0]) & 0x0FFFFFFF
        if self._bits == 16:
            return int(struct.unpack_from("<H", self._table, cluster * 2)[0])
        at = cluster + cluster // 2
        value = int.from_bytes(self._table[at : at + 2], "little")
        return value >> 4 if cluster & 1 else value & 0xFFF

    def _runs(self, cluster: int) -> Iterator[tuple[int, int]]:
        """Clusters that follow each other on the disk, at most a MiB of them at a time, as (first, how many)."""
        end = {32: 0x0FFFFFF8, 16: 0xFFF8, 12: 0xFF8}[self._bits]
        most = max(2**20 // self.cluster_bytes, 1)
        first = count = 0
        for _ in range(self._clusters + 1):
            if count and (cluster != first + count or count >= most):
                yield first, count
                count = 0
            if cluster >= end:
                return
            if not 2 <= cluster < self._clusters + 2:
                raise self._fault(f"a file leads to cluster {cluster}, and it has {self._clusters}")
            first = first if count else cluster
            count += 1
            cluster = self._next(cluster)
        raise self._fault("a file runs in a circle")

    def _directory_bytes(self, node: FatNode) -> bytes:
        if node == self.root and self._bits != 32:
            return self._window.read(self._root_at, self._root_bytes)
        data = bytearray()
        for first, count in self._runs(node.cluster):
            data += self._window.read(
                self._data_at + (first - 2) * self.cluster_bytes, count * self.cluster_bytes
            )
            if len(data) > MAX_DIRECTORY_BYTES:
                raise self._fault(f"the directory {node.name or '/'} is larger than directories can be")
        return bytes(data)

    def _entries(self, node: FatNode) -> dict[str, FatNode]:
        found: dict[str, FatNode] = {}
        long: list[bytes] = []
        data = self._directory_bytes(node)
        for at in range(0, len(data) - 31, 32):
            entry = data[at : at + 32]
            if not entry[0]:
                break
            if entry[0] == 0xE5:
                long = []
            elif entry[11] & 0x3F == _LONG:
                long.append(entry)
            else:
                if not entry[11] & _VOLUME and entry[0] != 0x2E:
                    child = self._node(entry, _long_name(entry, long) or _short_name(entry))
                    found.setdefault(fold(child.name), child)
                long = []
        return found

    def _node(self, entry: bytes, name: str) -> FatNode:
        high, low, size = (
            struct.unpack_from("<H", entry, 20)[0],
            struct.unpack_from("<H", entry, 26)[0],
            struct.unpack_from("<I", entry, 28)[0],
        )
        is_directory = bool(entry[11] & _DIRECTORY)
        cluster = low | (high << 16 if self._bits == 32 else 0)
        return FatNode(name, is_directory, bool(entry[11] & _READ_ONLY), cluster, 0 if is_directory else size)


def fold(name: str) -> str:
    """The form of a name in which two that mean the same file are equal: letter by letter, as long as it was."""
    return "".join(upper if len(upper := letter.upper()) == 1 else letter for letter in name)


def _short_name(entry: bytes) -> str:
    raw = entry[:11].replace(b"\x05", b"\xe5", 1) if entry[0] == 0x05 else entry[:11]
    base = raw[:8].decode("cp850").rstrip(" ")
    extension = raw[8:].decode("cp850").rstrip(" ")
    base = base.lower() if entry[12] & _LOWER_BASE else base
    extension = extension.lower() if entry[12] & _LOWER_EXTENSION else extension
    return f"{base}.{extension}" if extension else base


def _long_name(entry: bytes, parts: list[bytes]) -> str | None:
    """The long name that stands before `entry`; ``None`` where there is none that belongs to it."""
    checksum = 0
    for byte in entry[:11]:
        checksum = ((checksum >> 1) | (checksum & 1) << 7) + byte & 0xFF
    numbers = [part[0] & 0x3F for part in parts]
    if not parts or numbers != list(range(len(parts), 0, -1)) or any(part[13] != checksum for part in parts):
        return None
    raw = b"".join(part[first:last] for part in reversed(parts) for first, last in _NAME_PARTS)
    text = raw.decode("utf-16-le", errors="replace").partition("\0")[0]
    return text if text and "/" not in text else None
