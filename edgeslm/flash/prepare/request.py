"""What is wanted of a prepared image. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from edgeslm.flash.fit_types import ModelNeed
from edgeslm.schema.board import Board
from edgeslm.schema.customisation import Customisation
from edgeslm.schema.enrol import Claim
from edgeslm.schema.profile import Profile

Stage = Callable[[str, int, int], None]
"""Told what is being done, how far that is, and of how much; 0 of 0 where that cannot be told. What it raises ends the
work."""

UNNAMED = "unnamed"
"""Host name of an image that is for many cards, until each gets its own."""


def quiet(_what: str, _done: int, _total: int) -> None:
    """Tell nobody."""


@dataclass(frozen=True)
class PrepareRequest:
    """What is wanted.

    Attributes:
        image: as it is published: raw, or compressed.
        out: the prepared image.
        sha256: that the image has to have, packed or unpacked; else a file beside it says it, if there is one.
        profile: with its parents, paths in it absolute.
        needs: of the models, for whether they fit.
        claim: by which the board joins its fleet.
        device: name of a device that has no claim.
        for_many: neither claim nor device: each card gets its own from :func:`edgeslm.flash.prepare.personalise`.
        archive: of the agent; ``None`` packs one for what the image turns out to be.
        cache: where packed archives are kept.
        models: instead of the profile's, where there are any.
        rules: files of rules and directories of them.
        customisation: what the image is told of its user.
        ram_mb: of the unit that is meant.
        card_bytes: of the card that is meant.
        image_bytes: length of the prepared image, which its root fills; ``None``: as long as it has to be.
        max_image_bytes: the largest image that is unpacked; ``None``: what is usual.
    """

    image: Path
    out: Path
    board: Board
    profile: Profile
    needs: tuple[ModelNeed, ...]
    cache: Path
    sha256: str | None = None
    claim: Claim | None = None
    device: str | None = None
    for_many: bool = False
    archive: Path | None = None
    models: tuple[str, ...] = ()
    rules: tuple[Path, ...] = ()
    customisation: Customisation = field(default_factory=Customisation)
    ram_mb: int | None = None
    card_bytes: int | None = None
    image_bytes: int | None = None
    max_image_bytes: int | None = None

    @property
    def has_claim(self) -> bool:
        """Whether fleet, device and broker come with a claim, now or later."""
        return self.claim is not None or self.for_many

    @property
    def device_name(self) -> str | None:
        """Name of the device; ``None`` where it is not known yet."""
        return self.device if self.claim is None else self.claim.device


def board_host_name(device: str) -> str | None:
    """A device's name as a host name: it may begin or end with dashes, and be one character longer."""
    return device[:63].strip("-") or None
