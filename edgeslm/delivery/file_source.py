"""Blocks from a directory: a memory stick, or a share that is mounted."""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Sequence
from pathlib import Path

from edgeslm.delivery.files import FileBlob, find_file
from edgeslm.delivery.port import Block, Reach, Received
from edgeslm.errors import DeliveryDiskError, SourceError, SourceMissingError
from edgeslm.schema.delivery import BLOCK_BYTES, BlobRef

_MAX_SCANNED = 1000
_SCAN_BYTES = 2**20


class FileSource:
    """The files in one directory, by their digest if they are named by it, and by their contents otherwise."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._found: dict[str, Path] = {}

    @property
    def name(self) -> str:
        """The directory."""
        return str(self._directory)

    @property
    def reach(self) -> Reach:
        """No network."""
        return "local"

    def blocks(
        self, blob: BlobRef, wanted: Sequence[range], received: Received
    ) -> Generator[Block, None, None]:
        """The blocks `wanted`; see :class:`~edgeslm.delivery.port.BlockSource`."""
        path = self._find(blob, received)
        if path is None:
            raise SourceMissingError(
                f"{self._directory}: has no file {blob.sha256}", source=self.name, sha256=blob.sha256
            )
        try:
            with FileBlob(path) as file:
                for run in wanted:
                    for index in run:
                        data = file.read(index * BLOCK_BYTES, blob.block_bytes(index))
                        received(len(data))
                        yield Block(index, data)
        except DeliveryDiskError as error:
            if error.path != str(path):
                raise  # not ours: `received` passes through
            raise SourceError(error.message, source=self.name, sha256=blob.sha256) from error

    def close(self) -> None:
        """Forget what was found: another stick may be there next time."""
        self._found.clear()

    def _find(self, blob: BlobRef, received: Received) -> Path | None:
        path = find_file(self._directory, blob.sha256) or self._found.get(blob.sha256)
        if path is not None:
            return path
        try:
            for number, candidate in enumerate(sorted(self._directory.iterdir())):
                if number >= _MAX_SCANNED:
                    break
                if not candidate.is_file() or candidate.stat().st_size != blob.size_bytes:
                    continue
                if _sha256(candidate, received) == blob.sha256:
                    self._found[blob.sha256] = candidate
                    return candidate
        except OSError as error:
            reason = f"{self._directory}: {error.strerror}"
            raise SourceError(reason, source=self.name, sha256=blob.sha256) from error
        except DeliveryDiskError as error:
            raise SourceError(error.message, source=self.name, sha256=blob.sha256) from error
        return None


def _sha256(path: Path, received: Received) -> str:
    digest = hashlib.sha256()
    with FileBlob(path) as file:
        for offset in range(0, file.size_bytes, _SCAN_BYTES):
            digest.update(file.read(offset, _SCAN_BYTES))
            received(0)
    return digest.hexdigest()
