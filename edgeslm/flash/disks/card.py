"""One card from beginning to end: found, held, written, read back, let go.

What always holds: a disk is judged by what lsblk says of it now, opened so that nobody else gets it, and known to be
the same one after that. A plain file stands for a card only where that is asked for (:attr:`Need.loops`).
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from edgeslm.errors import DiskError, DiskRefusedError
from edgeslm.flash.disks.journal import WriteJournal, card_key, journal_path
from edgeslm.flash.disks.lsblk import BlockDevice
from edgeslm.flash.disks.progress import Tell
from edgeslm.flash.disks.selection import Need, choose
from edgeslm.flash.disks.source import RawImage
from edgeslm.flash.disks.target import DiskTarget, Expected
from edgeslm.flash.disks.transfer import read_all
from edgeslm.flash.disks.writer import FIRST_BYTES, Written, verify_image, write_image
from edgeslm.flash.image.past_cache import aligned

List = Callable[[], Sequence[BlockDevice]]
"""Tells the block devices of this machine as they are now."""


@dataclass(frozen=True)
class Card:
    """A card that is held.

    Attributes:
        device: what lsblk said of it.
    """

    device: BlockDevice
    target: DiskTarget


def find_card(path: Path, need: Need, list_devices: List) -> BlockDevice:
    """The disk that `path` names, or a link to it, where nothing speaks against writing it.

    Raises:
        DiskRefusedError: it may not be written, or is no disk.
        DiskError: the disks of this machine cannot be told.
    """
    try:
        real = path.resolve(strict=True)
        mode = real.stat().st_mode
    except OSError as error:
        raise DiskRefusedError(
            f"there is no disk {path}: {error.strerror or error}",
            device=str(path),
            hint="See which there are: edgeslm flash disks",
        ) from error
    if stat.S_ISBLK(mode):
        return choose(list_devices(), str(real), need)
    if not (need.loops and stat.S_ISREG(mode)):
        raise DiskRefusedError(
            f"{path} is no disk", device=str(path), hint="See which there are: edgeslm flash disks"
        )
    device = file_device(real)
    return choose((device,), device.device, need)


def file_device(path: Path) -> BlockDevice:
    """A plain file as if lsblk had named it: to try things out with.

    Raises:
        DiskError: it cannot be asked.
    """
    try:
        found = path.stat()
    except OSError as error:
        raise DiskError(f"cannot ask {path}: {error.strerror or error}", device=str(path)) from error
    return BlockDevice(
        name=path.name,
        kname=path.name,
        path=str(path),
        kind="loop",
        size_bytes=found.st_size,
        medium=found.st_ino,
        model="plain file",
    )


@contextmanager
def held(device: BlockDevice, *, writing: bool = True) -> Iterator[Card]:
    """Hold the card until the block ends: nothing can mount it meanwhile.

    Args:
        writing: else it is only read, and others may use it too.

    Raises:
        DiskBusyError: something holds it.
        DiskGoneError: another card is there now.
        DiskError: it cannot be opened.
    """
    expected = Expected(device.number, device.size_bytes) if device.number else None
    target = DiskTarget(device.device, expected=expected, writing=writing)
    try:
        yield Card(device, target)
    finally:
        target.close()


def write_card(image: RawImage, card: Card, *, tell: Tell, keep_journal: bool = True) -> Written:
    """Write `image` to `card`, and read it back; a write that was cut off goes on where it was.

    Args:
        keep_journal: note beside the image how far it is; else it always begins anew.

    Raises:
        EdgeslmError: as :func:`~edgeslm.flash.disks.writer.write_image` says.
    """
    key = card_key(card.device)
    journal = WriteJournal(journal_path(image.path, key), image.fingerprint, key) if keep_journal else None
    return write_image(image, card.target, tell=tell, journal=journal)


def check_card(image: RawImage, card: Card, *, tell: Tell) -> int:
    """See whether `card` holds `image`, write nothing, and return how many bytes were compared.

    Raises:
        EdgeslmError: as :func:`~edgeslm.flash.disks.writer.verify_image` says.
    """
    return verify_image(image, card.target, tell=tell)


def begins_as(image: RawImage, card: Card) -> bool:
    """Whether the first block of `card` is that of `image`.

    Raises:
        DiskError: the card cannot be read.
    """
    size = max(card.target.align_bytes, FIRST_BYTES)
    found = aligned(size)
    read_all(card.target, 0, found)
    return bytes(found[: len(image.head)]) == image.head[:size]
