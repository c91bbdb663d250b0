"""What is known when it is asked whether a profile fits a board, and what is answered. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from edgeslm.flash.image.facts import ImageFacts
from edgeslm.schema.base import FileModel
from edgeslm.schema.board import Board
from edgeslm.schema.package import Manifest
from edgeslm.schema.profile import Profile

Status = Literal["pass", "warning", "unknown", "fail"]

MB = 2**20


class Check(FileModel):
    """One thing that was looked at.

    Attributes:
        name: what.
        status: ``warning`` works, though not as one may expect; ``unknown`` cannot be told with what was given.
        detail: the arithmetic, or the reason.
        hint: what to do about it.
    """

    name: str
    status: Status
    detail: str
    hint: str | None = None


class FitReport(FileModel):
    """Whether a profile fits a board, with everything that was looked at."""

    board: str
    profile: str
    fits: bool
    checks: tuple[Check, ...]

    @property
    def faults(self) -> tuple[Check, ...]:
        """What stands against it."""
        return tuple(check for check in self.checks if check.status == "fail")


@dataclass(frozen=True)
class ModelNeed:
    """What a model asks of a device, from its package.

    Attributes:
        reference: as the profile names it.
        size_bytes: of the ``.slm`` file.
    """

    reference: str
    manifest: Manifest
    size_bytes: int

    @property
    def name(self) -> str:
        """Name of the model."""
        return self.manifest.name

    @property
    def runtimes(self) -> frozenset[str]:
        """Runtimes that can be trusted with one of its graphs."""
        return frozenset(runtime for graph in self.manifest.graphs for runtime in graph.runtimes)


@dataclass(frozen=True)
class FitRequest:
    """Everything that is known. What is ``None`` is not, and whatever hangs on it is answered ``unknown``.

    Attributes:
        models: of the profile, and those asked for beside it; without those that the fleet assigns.
        agent_version: of the agent that is to go onto the board.
        image: what the image is.
        image_kind: its kind, where no more than that is known.
        packages: Debian packages that are installed in it.
        ram_mb: of the one unit that is meant; else all variants of the board are looked at.
        card_bytes: of the card or disk.
        payload_bytes: of all that edgeslm puts onto the board, models included; else it is estimated.
        has_claim: whether the device comes with a claim.
    """

    board: Board
    profile: Profile
    models: tuple[ModelNeed, ...]
    agent_version: str
    image: ImageFacts | None = None
    image_kind: str | None = None
    packages: frozenset[str] | None = None
    ram_mb: int | None = None
    card_bytes: int | None = None
    payload_bytes: int | None = None
    has_claim: bool | None = None

    @property
    def kind(self) -> str | None:
        """The image's kind in the words of profiles; ``None`` where it is not known."""
        return self.image_kind if self.image is None else kind_of(self.image)


def kind_of(facts: ImageFacts) -> str | None:
    """The kind of an image in the words of profiles, such as ``raspios-trixie``; ``None`` for others."""
    if facts.kind == "raspios":
        return f"raspios-{facts.os_codename}" if facts.os_codename else None
    return None if facts.kind == "unknown" else facts.kind


def total(parts: Iterable[tuple[str, float]], unit: str, digits: int = 0) -> tuple[float, str]:
    """The sum of `parts`, and how it came about: ``180 MB system + 64 MB model = 244 MB``. Parts of 0 are left out."""
    shown = [(name, value) for name, value in parts if value]
    whole = sum(value for _, value in shown)
    terms = " + ".join(f"{value:,.{digits}f} {unit} {name}" for name, value in shown)
    return whole, f"{terms} = {whole:,.{digits}f} {unit}" if len(shown) > 1 else terms
