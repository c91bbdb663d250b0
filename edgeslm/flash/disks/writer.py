"""Writing an image to a card, so that a card which looks good is good.

What always holds: the first MiB, with the partition table, is emptied before anything else is written, and comes back
only when all the rest has been read back from the medium and is what the image holds. A card that was pulled out, that
is worn out, that lies about its size, or whose writing was killed, has no partition table: no board boots it, and no
computer shows files on it. The last MiB is emptied as well, for the spare GPT of whatever was on the card before.

The order: probe, write all but the head, sync, read back, write the head without its first block, sync, read that back,
and last the first block in the same way.

Left to others: which disk (:mod:`edgeslm.flash.disks.selection`), and asking.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from edgeslm.errors import CardContentError, DiskError, DiskFullError
from edgeslm.flash.disks.ahead import DEPTH, ahead
from edgeslm.flash.disks.journal import WriteJournal
from edgeslm.flash.disks.layout import HEAD_BYTES, STEP_BYTES, Digester, Run, steps
from edgeslm.flash.disks.probe import probe
from edgeslm.flash.disks.progress import Pace, Progress, Tell
from edgeslm.flash.disks.source import Piece, RawImage, is_zero
from edgeslm.flash.disks.target import Target
from edgeslm.flash.disks.transfer import read_all, write_all
from edgeslm.flash.image.past_cache import aligned

_CHECKPOINT_BYTES = 256 * 2**20
_TAIL_BYTES = 2**20
FIRST_BYTES = 4_096
"""What decides whether there is a partition table: MBR, and the header of a GPT. Flash memory takes it as one."""


@dataclass(frozen=True)
class Written:
    """A card that holds its image.

    Attributes:
        written_bytes: that were written this time.
        kept_bytes: that an earlier write had left, and that were compared.
        verified_bytes: that were read back.
        ready_s: until the first block was written: what was there emptied, and the card probed or compared.
        write_s: from then until all but the head was on the medium.
        verify_s: reading back, and writing the head.
    """

    image_bytes: int
    written_bytes: int
    kept_bytes: int
    verified_bytes: int
    ready_s: float
    write_s: float
    verify_s: float


class _AnotherCardError(Exception):
    """What an earlier write is to have left is not there."""


@dataclass
class _Body:
    """What writing all but the head came to.

    Attributes:
        began_s: when the first block was written; ``None`` where none was.
    """

    began_s: float | None = None
    written_bytes: int = 0
    kept_bytes: int = 0


def write_image(
    image: RawImage,
    target: Target,
    *,
    tell: Tell,
    journal: WriteJournal | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Written:
    """Write `image` and read it back.

    Args:
        tell: is told how far it is.
        journal: what an earlier write left, and where this one leaves its own.

    Raises:
        DiskFullError: the image does not fit.
        FakeCapacityError: the card holds less than it says.
        CardContentError: it does not hold what was written to it.
        ImageContentError: the image is not what its map says, or was changed meanwhile.
        DiskError: the card cannot be read or written, or was taken out.
    """
    if target.size_bytes < image.layout.image_bytes:
        raise DiskFullError(
            f"{target.device} holds {target.size_bytes} bytes, and {image.path} has {image.layout.image_bytes}",
            device=target.device,
            hint="Take a larger card",
        )
    began_s = clock()
    body = _write_body(image, target, tell, journal, clock)
    image.check_unchanged()
    tell(Progress("syncing", 0, 0))
    target.sync()
    written_s = clock()
    if journal is not None:
        journal.reached(image.layout.image_bytes)
    target.forget()
    verified = _verify(image, target, tell, clock, sealed=False)
    tell(Progress("sealing", 0, 0))
    _seal(image, target)
    if journal is not None:
        journal.finished()
    target.reread()
    return Written(
        image_bytes=image.layout.image_bytes,
        written_bytes=body.written_bytes + len(image.head),
        kept_bytes=body.kept_bytes,
        verified_bytes=verified,
        ready_s=(written_s if body.began_s is None else body.began_s) - began_s,
        write_s=0.0 if body.began_s is None else written_s - body.began_s,
        verify_s=clock() - written_s,
    )


def verify_image(
    image: RawImage, target: Target, *, tell: Tell, clock: Callable[[], float] = time.monotonic
) -> int:
    """See whether a card holds `image`, and return how many bytes were compared.

    Raises:
        CardContentError: it does not.
        ImageContentError: the image is not what its map says.
        DiskError: the card cannot be read.
    """
    if target.size_bytes < image.layout.image_bytes:
        raise CardContentError(
            f"{target.device} holds {target.size_bytes} bytes, less than the image", device=target.device
        )
    target.forget()
    return _verify(image, target, tell, clock, sealed=True)


# --- pieces ---------------------------------------------------------------------------------------------------


def _write_body(
    image: RawImage,
    target: Target,
    tell: Tell,
    journal: WriteJournal | None,
    clock: Callable[[], float],
) -> _Body:
    """All but the head; as far as an earlier write came, the card is compared instead.

    Where the comparison fails it is another card, or one that lost what it had taken: all is written.
    """
    _unseal(target)
    if journal is not None and journal.done_bytes:
        with contextlib.suppress(_AnotherCardError):
            return _write_runs(image, target, tell, journal, clock, journal.done_bytes)
        journal.finished()
    _make_ready(target, tell)
    return _write_runs(image, target, tell, journal, clock, 0)


def _write_runs(
    image: RawImage,
    target: Target,
    tell: Tell,
    journal: WriteJournal | None,
    clock: Callable[[], float],
    earlier_bytes: int,
) -> _Body:
    """The runs, of which those before `earlier_bytes` are compared.

    Raises:
        _AnotherCardError: these are not on the card; nothing was written.
    """
    runs = steps(image.layout, target.align_bytes)
    total_bytes = sum(run.end - run.start for run in runs)
    body = _Body()
    if earlier_bytes:
        target.forget()
    pace, paced = Pace("comparing" if earlier_bytes else "writing", total_bytes, clock), 0
    unsynced_bytes = 0
    buffer = aligned(STEP_BYTES)
    for piece in image.pieces(runs):
        length = piece.run.end - piece.run.start
        paced += length
        if piece.run.end <= HEAD_BYTES:
            continue
        if piece.run.end <= earlier_bytes:
            if not _holds(target, piece, buffer[:length]):
                raise _AnotherCardError
            body.kept_bytes += length
            tell(pace.at(paced))
            continue
        if body.began_s is None:
            body.began_s = clock()
            if body.kept_bytes:
                pace = Pace("writing", total_bytes, clock, done_bytes=paced - length)
        if piece.data is None:
            target.zero(piece.run.start, length)
        else:
            write_all(target, piece.run.start, piece.data)
        body.written_bytes += length
        unsynced_bytes += length
        if journal is not None and unsynced_bytes >= _CHECKPOINT_BYTES:
            target.sync()
            journal.reached(piece.run.end)
            unsynced_bytes = 0
        tell(pace.at(paced))
    return body


def _unseal(target: Target) -> None:
    """Empty the head, its first block before all others: what was on the card is either there, or is not."""
    head = _head_of(target)
    first = min(max(target.align_bytes, FIRST_BYTES), head.end)
    _empty(target, Run(0, first))
    target.sync()
    if first < head.end:
        _empty(target, Run(first, head.end))


def _make_ready(target: Target, tell: Tell) -> None:
    """Empty the tail, and look whether the card holds as much as it says; that syncs."""
    tell(Progress("probing", 0, 0))
    end = target.size_bytes // target.align_bytes * target.align_bytes
    tail = max(HEAD_BYTES, (target.size_bytes - _TAIL_BYTES) // target.align_bytes * target.align_bytes)
    if tail < end:
        _empty(target, Run(tail, end))
    probe(target)


def _head_of(target: Target) -> Run:
    return Run(0, min(HEAD_BYTES, target.size_bytes // target.align_bytes * target.align_bytes))


def _empty(target: Target, run: Run) -> None:
    target.zero(run.start, run.end - run.start)


def _holds(target: Target, piece: Piece, buffer: memoryview) -> bool:
    read_all(target, piece.run.start, buffer)
    return is_zero(buffer) if piece.data is None else bytearray(buffer) == piece.data


def _verify(image: RawImage, target: Target, tell: Tell, clock: Callable[[], float], *, sealed: bool) -> int:
    """Read the card, and hold it against the block map's digests, or against the image where it has no map.

    Args:
        sealed: the head is on the card; else its place is taken by what will be written there.
    """
    layout = image.layout
    runs = steps(layout, target.align_bytes)
    pace = Pace("verifying", sum(run.end - run.start for run in runs), clock)
    found, done_bytes, buffer = Digester(layout.units), 0, bytearray(STEP_BYTES)
    head = memoryview(image.head + bytes(-len(image.head) % target.align_bytes))
    with ahead(_read_back(target, runs)) as pieces:
        for run, data in pieces:
            shown = head[run.start : run.end] if run.end <= HEAD_BYTES and not sealed else data
            if not image.mapped and not image.holds(run, shown, buffer):
                raise _otherwise(target, run.start, run.end)
            for index in found.feed(run.start, shown):
                unit = layout.units[index]
                if found.digests[index].hex() != unit.sha256:
                    image.check_unit(unit)
                    raise _otherwise(target, unit.start, unit.end)
            done_bytes += run.end - run.start
            tell(pace.at(done_bytes))
    return done_bytes


def _read_back(target: Target, runs: tuple[Run, ...]) -> Iterator[tuple[Run, memoryview]]:
    buffers = [aligned(STEP_BYTES) for _ in range(DEPTH + 2)]
    for index, run in enumerate(runs):
        view = buffers[index % len(buffers)][: run.end - run.start]
        read_all(target, run.start, view)
        yield run, view


def _otherwise(target: Target, start: int, end: int) -> CardContentError:
    return CardContentError(
        f"{target.device} does not hold the image: bytes {start} to {end} read otherwise",
        device=target.device,
        offset=start,
        hint="Do not use this card: it is worn out, or was changed since it was written",
    )


def _seal(image: RawImage, target: Target) -> None:
    """Write the head and read it back, its first block after all others; where that fails it is emptied again."""
    size = -(-len(image.head) // target.align_bytes) * target.align_bytes
    buffer = aligned(size)
    buffer[: len(image.head)] = image.head
    first = max(target.align_bytes, FIRST_BYTES)
    try:
        for start, end in ((first, size), (0, min(first, size))):
            if start >= end:
                continue
            write_all(target, start, buffer[start:end])
            target.sync()
            target.forget()
            found = aligned(end - start)
            read_all(target, start, found)
            if bytes(found) != bytes(buffer[start:end]):
                raise CardContentError(
                    f"{target.device} does not hold the beginning of the image",
                    device=target.device,
                    offset=start,
                    hint="Do not use this card: it is worn out",
                )
    except BaseException:
        with contextlib.suppress(DiskError):
            _unseal(target)
            target.sync()
        raise
