"""The image that is written: a raw file, opened once, with what is known of its content.

What always holds: all of it is read from one open file, so that an image which is replaced meanwhile does not end up as
halves of two; one that is changed in place is found out. Holes of a sparse file are not read: they are zeros.

A packed image is unpacked first (:func:`edgeslm.flash.image.source.unpack`): it is known to be whole before any card is
touched.
"""

from __future__ import annotations

import errno
import hashlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType

from edgeslm.errors import ImageContentError
from edgeslm.files import read_bounded
from edgeslm.flash.disks.layout import HEAD_BYTES, STEP_BYTES, Layout, Run, Unit, plan_layout
from edgeslm.flash.disks.progress import Progress, Tell
from edgeslm.flash.image.bmap import MAX_BMAP_BYTES, BlockMap, read_bmap
from edgeslm.flash.image.partitions import read_table
from edgeslm.flash.image.past_cache import aligned
from edgeslm.flash.image.source import form_of, read_digest, unpack
from edgeslm.flash.image.window import Window

MAP_SUFFIX = ".bmap"


_ZEROS = bytearray(STEP_BYTES)
_SLOW_S = 0.004
"""What comes out of memory takes less for one step; else the next step is asked for ahead, which costs as much as it
helps where it is in memory already."""


@dataclass(frozen=True)
class Piece:
    """Bytes on their way.

    Attributes:
        run: where they belong.
        data: they, in a buffer that is used again for the next piece; ``None`` for zeros.
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
        buffer = aligned(STEP_BYTES)
        for index, run in enumerate(runs):
            if self._is_hole(run):
                yield Piece(run, None)
                continue
            view, began_s = buffer[: run.end - run.start], time.monotonic()
            self._fill(run.start, view)
            if index + 1 < len(runs) and time.monotonic() - began_s > _SLOW_S:
                self._fetch(runs[index + 1])
            yield Piece(run, view)

    def holds(self, run: Run, found: memoryview, into: bytearray) -> bool:
        """Whether `found` is what belongs into `run`.

        Args:
            into: room for as much, to read into.

        Raises:
            ImageContentError: the image cannot be read.
        """
        if self._is_hole(run):
            return is_zero(found)
        if len(found) < len(into):
            into = into[: len(found)]
        self._fill(run.start, memoryview(into))
        # A bytearray is compared at once, memoryviews element by element.
        return into == found

    def check_unit(self, unit: Unit) -> None:
        """See whether the image itself is there what its block map says.

        Raises:
            ImageContentError: it is not, or cannot be read.
        """
        digest, buffer = hashlib.sha256(), aligned(STEP_BYTES)
        for start in range(unit.start, unit.end, STEP_BYTES):
            view = buffer[: min(STEP_BYTES, unit.end - start)]
            self._fill(start, view)
            digest.update(view)
        if digest.hexdigest() != unit.sha256:
            raise ImageContentError(
                f"{self.path}: bytes {unit.start} to {unit.end} are not what its block map says",
                path=str(self.path),
                hint="The image is damaged, or the map is of another one: fetch or make both anew",
            )

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

    def check_table(self) -> None:
        """See whether it has a partition table, and all that the table names.

        Raises:
            PartitionError: it has none that is known, or was cut short.
        """
        read_table(Window(self.path, self._fd, 0, self.layout.image_bytes))

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

    def _fetch(self, run: Run) -> None:
        """Let the kernel read it while something else is done."""
        with suppress(OSError):  # some file systems cannot
            os.posix_fadvise(self._fd, run.start, run.end - run.start, os.POSIX_FADV_WILLNEED)

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


def open_raw(path: Path, *, beside: Path | None = None, with_map: bool = True) -> RawImage:
    """Open a raw image, with the block map beside it where there is one.

    Args:
        beside: the image that it was unpacked from; its block map lies beside that one.

    Raises:
        BlockMapError: the map is damaged.
        ImageContentError: the image cannot be opened, or is not that of the map.
    """
    found = map_beside(beside or path) if with_map else None
    blocks = None
    if found is not None:
        try:
            data = read_bounded(found, MAX_BMAP_BYTES)
        except OSError as error:
            raise _unreadable(found, error) from error
        blocks = read_bmap(data, path=str(found))
    return RawImage(path, blocks)


def is_zero(found: memoryview) -> bool:
    """Whether `found`, of one step at most, is zeros alone."""
    return (_ZEROS if len(found) == len(_ZEROS) else _ZEROS[: len(found)]) == found


def map_beside(path: Path) -> Path | None:
    """The block map of an image, where bmaptool looks for it as well: ``sd.img.bmap``, or ``sd.bmap``."""
    for name in (path.name, path.stem, Path(path.stem).stem):
        if (beside := path.with_name(name + MAP_SUFFIX)).exists():
            return beside
    return None


@contextmanager
def ready_image(
    path: Path, *, sha256: str | None, with_map: bool, work_dir: Path | None, tell: Tell
) -> Iterator[RawImage]:
    """An image that can be written: whole, the one that was asked for, with a partition table.

    It is raw, or unpacked for as long as the block lasts.

    Args:
        sha256: of the file as it lies there, or of what it unpacks to; where it is ``None``, a file beside the image
            says it, if there is one.
        work_dir: where a packed image is unpacked; ``None`` for where temporary files go.

    Raises:
        ImageError: it is none of all that.
    """
    form = form_of(path)
    with ExitStack() as stack:
        raw = path
        if form != "raw":
            try:
                made = stack.enter_context(TemporaryDirectory(prefix="edgeslm-image-", dir=work_dir))
            except OSError as error:
                raise _unreadable(work_dir or path, error) from error
            raw = Path(made) / "image"
            unpack(
                path,
                raw,
                sha256=sha256,
                report=lambda done, total: tell(Progress("unpacking", done, total)),
            )
        image = stack.enter_context(open_raw(raw, beside=path, with_map=with_map))
        if form == "raw":
            expected = sha256 or (None if image.mapped else read_digest(path))
            if expected is not None:
                size_bytes = image.layout.image_bytes
                image.check_digest(
                    expected.lower(), lambda done: tell(Progress("checking", done, size_bytes))
                )
        image.check_table()
        yield image


def _unreadable(path: Path, error: OSError) -> ImageContentError:
    return ImageContentError(f"cannot read {path}: {error.strerror or error}", path=str(path))
