"""The bytes of a ``.slm`` file, from the file or from the unpacked package that it became.

A package has one byte form (:mod:`edgeslm.models.archive`), so the file need not be kept: its bytes are the
headers, which can be computed, and the members, which lie on the disk. A delta is applied to them, and a
neighbour can be served with them. Reads may come from several threads.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol, Self

from edgeslm.errors import PackageError
from edgeslm.models.archive import directory, fault, layout, local_header, members_end, open_regular
from edgeslm.models.packing import checksum
from edgeslm.schema.installed import InstalledPackage
from edgeslm.schema.package import MANIFEST_NAME


class Image(Protocol):
    """The bytes of a package file, wherever they are."""

    @property
    def size_bytes(self) -> int:
        """Of the whole file."""

    def read(self, offset: int, size_bytes: int) -> bytes:
        """Bytes from `offset` on; fewer where the file ends.

        Raises:
            PackageError: they cannot be read.
        """

    def close(self) -> None:
        """Give back the open files."""


class PackageImage:
    """The image of an installed package. Opening it reads every member once, for the checksums of a ZIP."""

    def __init__(self, package: InstalledPackage) -> None:
        """Open all members.

        Raises:
            PackageError: one is missing or cannot be read.
        """
        self._path = package.directory
        names = (MANIFEST_NAME, *package.manifest.files)
        entries = layout({name: checksum(package.file(name)) for name in names})
        self._starts: list[int] = []
        self._parts: list[bytes | int] = []
        with ExitStack() as stack:
            for entry in entries:
                self._append(entry.offset, local_header(entry))
                path = package.file(entry.name)
                self._append(entry.data_offset, stack.enter_context(open_regular(path, path)).fileno())
            self._append(members_end(entries), directory(entries))
            self._files = stack.pop_all()
        self._size_bytes = members_end(entries) + len(directory(entries))

    @property
    def size_bytes(self) -> int:
        """Of the whole file."""
        return self._size_bytes

    def read(self, offset: int, size_bytes: int) -> bytes:
        """Bytes from `offset` on; fewer where the file ends.

        Raises:
            PackageError: a member changed since it was opened, or cannot be read.
        """
        pieces = []
        end = min(offset + size_bytes, self._size_bytes)
        while offset < end:
            index = bisect_right(self._starts, offset) - 1  # behind all empty members that start there
            start, part = self._starts[index], self._parts[index]
            part_end = self._starts[index + 1] if index + 1 < len(self._starts) else self._size_bytes
            wanted = min(end, part_end) - offset
            if isinstance(part, bytes):
                pieces.append(part[offset - start : offset - start + wanted])
            else:
                pieces.append(_pread(part, wanted, offset - start, self._path))
            offset += wanted
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def close(self) -> None:
        """Close the members."""
        self._files.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _append(self, start: int, part: bytes | int) -> None:
        self._starts.append(start)
        self._parts.append(part)


class FileImage:
    """The image that is a file."""

    def __init__(self, path: Path) -> None:
        """Open the file at `path`.

        Raises:
            PackageError: it cannot be read or is no regular file.
        """
        self._path = path
        with ExitStack() as stack:
            self._descriptor = stack.enter_context(open_regular(path, path)).fileno()
            self._files = stack.pop_all()
        self._size_bytes = os.fstat(self._descriptor).st_size

    @property
    def size_bytes(self) -> int:
        """Of the whole file."""
        return self._size_bytes

    def read(self, offset: int, size_bytes: int) -> bytes:
        """Bytes from `offset` on; fewer where the file ends.

        Raises:
            PackageError: the file changed since it was opened, or cannot be read.
        """
        wanted = max(0, min(size_bytes, self._size_bytes - offset))
        return _pread(self._descriptor, wanted, offset, self._path) if wanted else b""

    def close(self) -> None:
        """Close the file."""
        self._files.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _pread(descriptor: int, size_bytes: int, offset: int, path: Path) -> bytes:
    try:
        data = os.pread(descriptor, size_bytes, offset)
    except OSError as error:
        raise fault(PackageError, path, f"cannot be read: {error.strerror}") from error
    if len(data) != size_bytes:
        raise fault(
            PackageError, path, "changed while it was read",
            expected=f"{size_bytes} bytes at {offset}", actual=f"{len(data)} bytes",
        )  # fmt: skip
    return data
