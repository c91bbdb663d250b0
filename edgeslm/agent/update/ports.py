"""What the updater needs of the world. The command line's wiring chooses who provides it.

What always holds: an error that comes out of a port is an :class:`UpdateError` with its cause; adapters turn those of
trust, delivery and serving into one.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Protocol

from edgeslm.agent.ports import Activity, Model
from edgeslm.agent.update.change import Wanted
from edgeslm.power.port import Vitals
from edgeslm.schema.installed import InstalledPackage
from edgeslm.schema.message import MeterClass
from edgeslm.schema.package import RuntimeKind
from edgeslm.schema.release import HeldRelease, ReleaseTarget

Cancelled = Callable[[], bool]
"""Asked every second or so: whether the step is no longer wanted."""

OnBytes = Callable[[int, int], None]
"""Told of bytes that are here, and of bytes in all."""


class Releases(Protocol):
    """Trusted metadata."""

    def find(self, wanted: Wanted, held: HeldRelease | None, cancelled: Cancelled) -> ReleaseTarget:
        """The release, if somebody trusted vouches for these bytes and it may follow what runs.

        Args:
            wanted: what the assignment says.
            held: what runs under the name.
            cancelled: see :data:`Cancelled`.

        Raises:
            UpdateError: ``unreachable`` while metadata cannot be had, ``not_trusted`` while nobody vouches for it or
                metadata has expired, ``unsafe_version`` below the security floor or for a downgrade nobody asked for.
            UpdateInterruptedError: it was cancelled.
        """


class Delivery(Protocol):
    """Brings the file of a release here. What has arrived survives power cuts."""

    def fetch(
        self, target: ReleaseTarget, held: InstalledPackage | None, on_bytes: OnBytes, cancelled: Cancelled
    ) -> Path:
        """The file of the release, checked as a whole; a second call for the same release finds it again.

        Args:
            target: the release.
            held: what runs under the name: a delta may start from it.
            on_bytes: see :data:`OnBytes`.
            cancelled: see :data:`Cancelled`.

        Raises:
            UpdateError: ``unreachable`` while no source gives it, ``corrupt`` when all that came was wrong,
                ``no_room`` when the disk is full.
            UpdateInterruptedError: it was cancelled.
        """

    def keep_only(self, sha256s: Collection[str]) -> None:
        """Let go of everything that was fetched, wholly or in part, for other packages than these.

        Raises:
            UpdateError: ``internal``: the disk refuses.
        """


class Serving(Protocol):
    """The part of the agent that answers prompts. It goes on doing so whatever is called here."""

    def served(self, name: str) -> InstalledPackage | None:
        """The package that answers prompts for `name`."""

    def swap(self, name: str, installed: InstalledPackage, *, beside: bool) -> float:
        """Let `installed` answer the prompts for `name` from the next one on; seconds in which none could begin.

        A package that serves already is left as it is, in no time. A name that is not served yet is added.

        Args:
            name: of the model.
            installed: what to load.
            beside: load it while the old one serves; otherwise the old one is let go of first, to have its memory.

        Raises:
            ModelLoadError: it does not load; what served before serves again.
            EdgeslmError: any other reason, with the same outcome.
        """

    def withdraw(self, name: str) -> None:
        """Serve `name` no longer."""

    def hold(self, name: str) -> AbstractContextManager[Model]:
        """The model that serves `name`, with no prompt beginning until the block ends. Held for less than a second.

        Raises:
            UnknownModelError: it is not served.
        """

    def activity(self, name: str) -> Activity:
        """What prompts have come to, for `name`."""

    def any_activity(self) -> Activity:
        """The same over all models."""


class Content(Protocol):
    """What packages bring along besides a model: rules."""

    def check(self, candidate: InstalledPackage) -> None:
        """Make sure that what the package brings would do on this device. Called before any trial.

        Raises:
            UpdateError: ``bad_package`` where it would do nowhere, ``incompatible`` where it does not go with what this
                device has.
        """

    def use(self, packages: Mapping[str, InstalledPackage]) -> None:
        """These packages are committed, by name; others are not, or not any more. Only notes it."""


@dataclass(frozen=True)
class EnergyCount:
    """Joules of the whole board since some start.

    Attributes:
        at_s: monotonic seconds up to which they are counted.
    """

    at_s: float
    total_j: float
    meter: MeterClass


class BoardEnergy(Protocol):
    """The meter, for work that another process does."""

    @property
    def period_s(self) -> float:
        """Seconds between values that differ."""

    def count(self) -> EnergyCount | None:
        """The count so far; ``None`` while no meter tells."""


@dataclass(frozen=True)
class DeviceFacts:
    """What this device is.

    Attributes:
        name: on the wire.
        agent: version of edgeslm.
        cpu_features: of its processor.
        runtimes: kinds that are installed.
        ram_mb: memory in all; 0 where it is not known.
        threads: that a model computes with.
    """

    name: str
    agent: str
    cpu_features: frozenset[str]
    runtimes: tuple[RuntimeKind, ...]
    ram_mb: int
    threads: int


class Device(Protocol):
    """The board and its surroundings as they are at the moment."""

    @property
    def facts(self) -> DeviceFacts:
        """What does not change."""

    @property
    def energy(self) -> BoardEnergy | None:
        """The meter, where there is one."""

    def vitals(self) -> Vitals:
        """Temperature, throttling, battery."""

    def available_mb(self) -> int | None:
        """Memory that can be had without swapping; ``None`` where it is not known."""

    def is_online(self) -> bool:
        """Whether the broker is connected."""

    def utc(self) -> datetime | None:
        """The time, or ``None`` while nobody has set the clock."""

    def monotonic(self) -> float:
        """Seconds that never go back."""

    def sleep(self, seconds: float) -> None:
        """Let some time pass."""

    def may_try(self) -> str | None:
        """Why nothing should be tried at the moment, such as an empty battery; ``None`` if it may."""


class Timed(Protocol):
    """One answer as it was measured, without the time in any queue."""

    @property
    def text(self) -> str:
        """The answer."""

    @property
    def data(self) -> object:
        """Parsed, where the package promises JSON objects."""

    @property
    def ttft_s(self) -> float | None:
        """Seconds to the first token."""

    @property
    def decode_s(self) -> float:
        """Seconds from the first token to the last."""

    @property
    def tokens(self) -> int:
        """Tokens of the answer."""


class Subject(Protocol):
    """A release that is being measured."""

    def answer(self, prompts: Sequence[str], cancelled: Cancelled) -> Sequence[Timed]:
        """Answer all prompts, greedily.

        Raises:
            TrialError: it crashed, hung, failed, or took too much memory.
            UpdateInterruptedError: it was cancelled.
        """

    @property
    def peak_mb(self) -> float | None:
        """Highest resident memory of its process so far; ``None`` where it shares one with other work."""

    def close(self) -> None:
        """End it."""
