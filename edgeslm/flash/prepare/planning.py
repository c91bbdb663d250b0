"""What is to be done to an image, decided before any of it is done.

What always holds: the image is read and not changed; what cannot be carried out is an error that says why.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from pydantic import ValidationError

import edgeslm
from edgeslm import codec
from edgeslm.errors import PrepareError, TreeError
from edgeslm.flash.boot_settings import BootChanges, boot_changes, read_boot_facts
from edgeslm.flash.first_boot import FirstBootFiles, detect
from edgeslm.flash.fit import FitReport, FitRequest, demand, fit
from edgeslm.flash.fit_room import storage_parts
from edgeslm.flash.fit_types import MB
from edgeslm.flash.image.facts import ImageFacts
from edgeslm.flash.image.image import Image
from edgeslm.flash.packages import MAX_STATUS_BYTES, STATUS_PATH, installed_packages
from edgeslm.flash.payload import layout
from edgeslm.flash.payload.manifest import MAX_MANIFEST_BYTES, InstalledPayload
from edgeslm.flash.payload.systems import board_system
from edgeslm.flash.payload.whole import BoardSystem, Settled
from edgeslm.flash.prepare.request import PrepareRequest
from edgeslm.flash.tree import Entry
from edgeslm.schema.base import FileModel
from edgeslm.schema.customisation import Customisation

_BLOCK_BYTES: Final = 4096
_OF_THE_SYSTEM: Final = frozenset({"swap", "log", "spare"})
"""What stays in the root where the agent's state is kept apart."""
_OVERHEAD: Final = 0.1
"""Share of a file system that its own tables and journal take."""
ROOT_SPARE_BYTES: Final = 64 * MB
"""Left free in a root that is only read: for what its first start writes."""


class Personal(FileModel):
    """What a prepared image was told of its user: :data:`edgeslm.flash.payload.layout.PERSONAL`, root's alone.

    Attributes:
        customisation: all of it; passwords are in it as hashes.
        first_boot: name of the way in which it was told.
    """

    customisation: Customisation
    first_boot: str | None = None


@dataclass(frozen=True)
class Decided:
    """What is to be done to an image, but for the payload itself.

    Attributes:
        facts: about the image.
        system: that the payload is for.
        packages: Debian packages in it; ``None`` where it keeps no list.
        report: whether all fits, as far as it can be told without the payload.
        first_boot: what tells the image what is its user's.
        first_boot_title: how; ``None`` where it is told nothing.
        boot: what carries out the profile's settings.
        settled: both, for the payload's manifest.
    """

    facts: ImageFacts
    system: BoardSystem
    packages: frozenset[str] | None
    report: FitReport
    first_boot: FirstBootFiles
    first_boot_title: str | None
    boot: BootChanges
    settled: Settled

    @property
    def remove(self) -> tuple[str, ...]:
        """Files of the root that go."""
        return (*self.first_boot.remove_root, *self.boot.remove)

    def root_entries(self, payload: tuple[Entry, ...]) -> tuple[Entry, ...]:
        """Everything for the root file system, the payload last."""
        return _once((*self.first_boot.root, *self.boot.root_edits, *payload))

    @property
    def boot_entries(self) -> tuple[Entry, ...]:
        """Everything for the boot partition."""
        return _once((*self.first_boot.boot, *self.boot.boot))


def decide(image: Image, request: PrepareRequest) -> Decided:
    """Look at an image, and say what is to be done to it.

    Raises:
        PrepareError: it was prepared before, or nothing runs there.
        FitError: board, profile, image and models do not go together.
        FirstBootError: the image cannot be told what is asked for.
        BootSettingsError: the image cannot carry out a setting.
        TreeError: it cannot be read.
    """
    _refuse_prepared(image)
    facts, packages = image.facts(), _packages(image)
    report = fit(fit_request(request, facts, packages))
    demand(report)
    system = board_system(facts, image.root)
    method = None if request.customisation.is_empty else detect(image.boot, image.root)
    first = FirstBootFiles() if method is None else method.files(request.customisation)
    if first.boot and image.boot is None:
        raise PrepareError("the image has no boot partition for what is its user's", what="image")
    boot = boot_changes(
        request.profile,
        request.board,
        read_boot_facts(image.boot, image.root),
        words=first.cmdline,
        ntp=request.customisation.ntp,
    )
    personal = Personal(
        customisation=request.customisation, first_boot=None if method is None else method.name
    )
    title = None if method is None else method.title
    settled = Settled(
        entries=(
            *boot.root,
            Entry(layout.OPT, "directory", mode=0o755),
            Entry(layout.PERSONAL, content=codec.encode(personal) + b"\n", mode=0o600),
        ),
        boot=boot.said,
        cmdline=boot.words,
        first_boot=title,
    )
    return Decided(facts, system, packages, report, first, title, boot, settled)


def fit_request(
    request: PrepareRequest,
    facts: ImageFacts,
    packages: frozenset[str] | None,
    *,
    payload_bytes: int | None = None,
    agent_version: str = edgeslm.__version__,
) -> FitRequest:
    """What is known for whether all fits."""
    return FitRequest(
        board=request.board,
        profile=request.profile,
        models=request.needs,
        agent_version=agent_version,
        image=facts,
        packages=packages,
        ram_mb=request.ram_mb,
        card_bytes=request.card_bytes if request.card_bytes is not None else request.image_bytes,
        payload_bytes=payload_bytes,
        has_claim=request.has_claim,
    )


def wanted_free_bytes(known: FitRequest) -> int:
    """How much room the root file system should have before anything is put there."""
    return int(sum(size for _, size in storage_parts(known)) * MB)


def wanted_state_bytes(known: FitRequest) -> int:
    """How large a partition of the agent's state should be where it is kept apart from the root."""
    parts = sum(size for name, size in storage_parts(known) if name not in _OF_THE_SYSTEM)
    return int(parts * MB / (1 - _OVERHEAD))


def least_free_bytes(entries: tuple[Entry, ...]) -> int:
    """How much room `entries` take at least: whole blocks of files, and a block of each directory."""
    return sum(-(-entry.size_bytes // _BLOCK_BYTES) * _BLOCK_BYTES or _BLOCK_BYTES for entry in entries)


def _packages(image: Image) -> frozenset[str] | None:
    try:
        return installed_packages(image.root.read(STATUS_PATH, max_bytes=MAX_STATUS_BYTES))
    except TreeError:
        return None


def _refuse_prepared(image: Image) -> None:
    if image.root.stat(layout.MANIFEST) is None:
        return
    try:
        found = InstalledPayload.model_validate_json(
            image.root.read(layout.MANIFEST, max_bytes=MAX_MANIFEST_BYTES)
        )
        said = f"for the board {found.board}, profile {found.profile}"
    except ValidationError:
        said = f"as {layout.MANIFEST} in it says"
    raise PrepareError(
        f"edgeslm is on the image already, {said}",
        what="image",
        hint="Start from the image as its makers publish it; cards for more devices are made of a prepared image with: "
        "edgeslm flash batch",
    )


def _once(entries: tuple[Entry, ...]) -> tuple[Entry, ...]:
    """Each path once, the last word on it standing in the first one's place."""
    return tuple({entry.path: entry for entry in entries}.values())
