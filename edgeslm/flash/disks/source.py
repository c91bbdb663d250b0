"""The image that is written: a raw file, opened once, with what is known of its content.

What always holds: all of it is read from one open file, so that an image which is replaced meanwhile does not end up as
halves of two; one that is changed in place is found out. Holes of a sparse file are not read: they are zeros.

Left to others: images that are packed (:func:`edgeslm.flash.image.source.unpack` makes raw ones of them, and knows
that they are whole before any card is touched).
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from edgeslm.errors import ImageContentError
from edgeslm.files import read_bounded
from edgeslm.flash.disks.ahead import DEPTH
from edgeslm.flash.disks.layout import HEAD_BYTES, STEP_BYTES, Digester, Layout, Run, plan_layout
from edgeslm.flash.disks.target import aligned
from edgeslm.flash.image.bmap import BlockMap, read_bmap

MAP_SUFFIX = ".bmap"
DIGEST_SUFFIX = ".sha256"
MAX_MAP_BYTES = 64 * 2**20
_SHA256_CHARS = 64


@dataclass(frozen=True)
class Piece:
    """Bytes on their way.

    Attributes:
        run: where they belong.
        data: they, in a buffer that is used again soon; ``None`` for zeros.
    """

    run: Run
    data: memoryview | None


class RawImage:
    """An image that is open for reading.

    Attributes:
        path: the file.
        layout: what of it is written.
        mapped: it came with a block map.
    """

    def __init__(self, path: Path, blocks: BlockMap | None) -> None:
        """Open it.

        Raises:
            ImageContentError: it cannot be opened, or cannot be an image.
        """
        self.path = path
        self.mapped = blocks is not None
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise _unreadable(path, error) from error
        try:
            self._seen = self._state()
            self.layout: Layout = plan_layout(self._seen[0], blocks, path=str(path))
            self.head = bytes(self._read_head())
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> RawImage:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of it. May be called twice."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    @property
    def fingerprint(self) -> str:
        """What changes when the image does, at once to have: its size, its time, its first and its last bytes."""
        size, changed_ns = self._seen
        tail = os.pread(self._fd, HEAD_BYTES, max(0, size - HEAD_BYTES))
        return hashlib.sha256(
            repr((size, changed_ns, self.layout.written_bytes)).encode() + self.head + tail
        ).hexdigest()

    def pieces(self, runs: Sequence[Run]) -> Iterator[Piece]:
        """What belongs into `runs`, in their order; zeros beyond the image's end.

        Raises:
            ImageContentError: it cannot be read.
        """
        buffers = [aligned(STEP_BYTES) for _ in range(DEPTH + 2)]
        for index, run in enumerate(runs):
            if self._is_hole(run):
                yield Piece(run, None)
                continue
            view = buffers[index % len(buffers)][: run.end - run.start]
            self._fill(run.start, view)
            yield Piece(run, view)

    def digested(self, pieces: Iterator[Piece], digester: Digester) -> Iterator[Piece]:
        """Hand `pieces` through, and take their digests on the way.

        Raises:
            ImageContentError: they are not what the block map says.
        """
        units = self.layout.units
        zeros = memoryview(bytes(STEP_BYTES))
        for piece in pieces:
            data = zeros[: piece.run.end - piece.run.start] if piece.data is None else piece.data
            for index in digester.feed(piece.run.start, data):
                said = units[index].sha256
                if said is not None and digester.digests[index].hex() != said:
                    raise ImageContentError(
                        f"{self.path}: bytes {units[index].start} to {units[index].end} are not what its block map"
                        " says",
                        path=str(self.path),
                        hint="The image is damaged, or the map is of another one: fetch or make both anew",
                    )
            yield piece

    def check_unchanged(self) -> None:
        """See whether the file is still what it was when it was opened.

        Raises:
            ImageContentError: it was changed.
        """
        if self._state() != self._seen:
            raise ImageContentError(
                f"{self.path} was changed while it was written to the card",
                path=str(self.path),
                hint="Leave it alone until the card is done, and write the card again",
            )

    def check_digest(self, sha256: str, tell: Callable[[int], None]) -> None:
        """See whether the whole file has that digest.

        Args:
            tell: is told how many bytes were looked at.

        Raises:
            ImageContentError: it has another, or cannot be read.
        """
        digest, offset, size = hashlib.sha256(), 0, self._seen[0]
        buffer, zeros = aligned(STEP_BYTES), bytes(STEP_BYTES)
        while offset < size:
            run = Run(offset, min(size, offset + STEP_BYTES))
            if self._is_hole(run):
                digest.update(zeros[: run.end - run.start])
            else:
                view = buffer[: run.end - run.start]
                self._fill(offset, view)
                digest.update(view)
            offset = run.end
            tell(offset)
        if digest.hexdigest() != sha256:
            raise ImageContentError(
                f"{self.path} has the SHA-256 {digest.hexdigest()}, and {sha256} was expected",
                path=str(self.path),
                hint="It is damaged or another image: fetch it again",
            )

    # --- pieces -------------------------------------------------------------------------------------------------

    def _state(self) -> tuple[int, int]:
        found = os.fstat(self._fd)
        return found.st_size, found.st_mtime_ns

    def _read_head(self) -> memoryview:
        head = memoryview(bytearray(min(HEAD_BYTES, self._seen[0])))
        self._fill(0, head)
        return head

    def _is_hole(self, run: Run) -> bool:
        try:
            return os.lseek(self._fd, run.start, os.SEEK_DATA) >= run.end
        except OSError as error:
            # ENXIO: no data from there to the end. Others: a file system that tells no holes.
            return error.errno == errno.ENXIO and run.start < self._seen[0]

    def _fill(self, offset: int, view: memoryview) -> None:
        while view:
            try:
                got = os.preadv(self._fd, [view], offset)
            except OSError as error:
                raise _unreadable(self.path, error) from error
            if not got:
                if offset < self._seen[0]:
                    self.check_unchanged()
                    raise ImageContentError(f"{self.path} ends at byte {offset}", path=str(self.path))
                view[:] = bytes(len(view))
                return
            view, offset = view[got:], offset + got


def open_raw(path: Path, *, with_map: bool = True) -> RawImage:
    """Open a raw image, with the block map beside it where there is one.

    Raises:
        BlockMapError: the map is damaged.
        ImageContentError: the image cannot be opened, or is not that of the map.
    """
    beside = path.with_name(path.name + MAP_SUFFIX)
    blocks = None
    if with_map and beside.exists():
        try:
            data = read_bounded(beside, MAX_MAP_BYTES)
        except OSError as error:
            raise _unreadable(beside, error) from error
        blocks = read_bmap(data)
    return RawImage(path, blocks)


def digest_beside(path: Path) -> str | None:
    """The SHA-256 in the file beside an image, as sha256sum(1) writes it; ``None`` where there is none.

    Raises:
        ImageContentError: the file is there, and holds none.
    """
    beside = path.with_name(path.name + DIGEST_SUFFIX)
    if not beside.exists():
        return None
    try:
        words = read_bounded(beside, 4_096).decode("utf-8", "replace").split()
    except OSError as error:
        raise _unreadable(beside, error) from error
    found = words[0].lower() if words else ""
    if len(found) != _SHA256_CHARS or not set(found) <= set("0123456789abcdef"):
        raise ImageContentError(
            f"{beside} holds no SHA-256", path=str(beside), hint="Remove it, or make it anew"
        )
    return found


def _unreadable(path: Path, error: OSError) -> ImageContentError:
    return ImageContentError(f"cannot read {path}: {error.strerror or error}", path=str(path))
