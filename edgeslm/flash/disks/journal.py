"""How far a card is, kept beside the image, so that a write which was cut off goes on where it was.

What always holds: what a journal says is a hint. A card that goes on is first compared with the image, byte by byte, up
to where the journal says: a reader has a serial number, a card in it often none that can be seen.
"""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from edgeslm.files import read_bounded, replace_file
from edgeslm.flash.disks.lsblk import BlockDevice
from edgeslm.schema.base import FileModel, Sha256

_MAX_BYTES = 16_384
SUFFIX = ".writing"


class WriteState(FileModel):
    """The file.

    Attributes:
        image: fingerprint of the image.
        card: what the card, or its reader, says of itself.
        done_bytes: everything before that was on the medium.
    """

    v: Literal[1] = 1
    image: Sha256
    card: Annotated[str, Field(max_length=1_000)]
    done_bytes: Annotated[int, Field(ge=0, le=2**63)]


class WriteJournal:
    """The journal of one card.

    Attributes:
        path: the file.
        done_bytes: how far an earlier write of this image to this card came; 0 for not at all.
    """

    def __init__(self, path: Path, image: str, card: str) -> None:
        """Look for what an earlier write left. A damaged or foreign journal is none.

        Args:
            image: fingerprint of the image.
            card: see :func:`card_key`.
        """
        self.path = path
        self._image = image
        self._card = card
        self.done_bytes = 0
        with contextlib.suppress(OSError, ValidationError):
            state = WriteState.model_validate_json(read_bounded(path, _MAX_BYTES))
            if state.image == image and state.card == card:
                self.done_bytes = state.done_bytes

    def reached(self, done_bytes: int) -> None:
        """Keep that everything before `done_bytes` is on the medium. Where it cannot be kept, nothing goes on later."""
        self.done_bytes = done_bytes
        state = WriteState(image=self._image, card=self._card, done_bytes=done_bytes)
        with contextlib.suppress(OSError):
            replace_file(self.path, state.model_dump_json().encode() + b"\n", mode=0o600)

    def finished(self) -> None:
        """Nothing goes on later."""
        self.done_bytes = 0
        with contextlib.suppress(OSError):
            self.path.unlink(missing_ok=True)


def card_key(device: BlockDevice) -> str:
    """What tells cards apart, as far as they say; never the name that the kernel gave."""
    return f"{device.title}/{device.serial}/{device.wwn}/{device.size_bytes}"[:1_000]


def journal_path(image: Path, card: str) -> Path:
    """Where the journal of that image and that card is."""
    return image.with_name(f".{image.name[:200]}.{hashlib.sha256(card.encode()).hexdigest()[:12]}{SUFFIX}")
