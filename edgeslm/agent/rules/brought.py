"""Rules that packages bring along: which ones a device follows now, and whether those of a new package would do.

What always holds: nothing of a package is read before the package is whole; a package without rules costs nothing, not
even the code that reads them. Rules of a package are in use exactly while it is committed: those of a release on trial
are not, and where one is rolled back, so are its rules.

Left to others: which package that is (:mod:`edgeslm.agent.update`), and what its rules mean
(:mod:`edgeslm.agent.rules.loading`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgeslm.errors import RuleFileError, UpdateError
from edgeslm.schema.installed import InstalledPackage
from edgeslm.schema.package import MAX_RULE_FILE_BYTES, Manifest


@dataclass(frozen=True)
class BroughtFile:
    """A file of rules of a package.

    Attributes:
        name: how it is called in what is told of it.
        origin: the package, as ``name@version``.
    """

    name: str
    body: bytes
    origin: str


class BroughtRules:
    """The rules of all packages of a device. From any thread.

    Attributes:
        own: files that the device has of its own, and directories of them.
    """

    def __init__(self, own: Sequence[Path] = ()) -> None:
        """Begin with no package."""
        self.own = tuple(own)
        self._lock = threading.Lock()
        self._packages: dict[str, InstalledPackage] = {}
        self._told: list[Callable[[], None]] = []

    def __bool__(self) -> bool:
        """Whether any package brings some."""
        return bool(self.signature)

    @property
    def signature(self) -> tuple[str, ...]:
        """Changes when other packages bring rules: their digests."""
        with self._lock:
            return tuple(item.sha256 for item in self._packages.values())

    def listen(self, told: Callable[[], None]) -> None:
        """Tell of each change, on whichever thread brings it."""
        with self._lock:
            self._told.append(told)

    def files(self) -> list[BroughtFile]:
        """All files, those of the first package by name first.

        Raises:
            RuleFileError: one cannot be read.
        """
        with self._lock:
            packages = list(self._packages.values())
        return [file for package in packages for file in _files(package)]

    # --- ``Content`` of the updater ----------------------------------------------------------------------------

    def use(self, packages: Mapping[str, InstalledPackage]) -> None:
        """See ``Content``."""
        found = {name: item for name, item in sorted(packages.items()) if item.manifest.rules}
        with self._lock:
            if found == self._packages:
                return
            self._packages = found
            told = list(self._told)
        for tell in told:
            tell()

    def check(self, candidate: InstalledPackage) -> None:
        """See ``Content``."""
        if not candidate.manifest.rules:
            return
        from edgeslm.agent.rules.loading import compile_rules, load_rules  # noqa: PLC0415

        try:
            files = _files(candidate)
            compile_rules([], files)
        except RuleFileError as error:
            raise UpdateError(_told(candidate.manifest, error), cause="bad_package") from error
        try:
            load_rules(self.own)
        except RuleFileError:
            return  # what the device has already does not run: that is not this package's fault
        with self._lock:
            packages = {**self._packages, candidate.manifest.name: candidate}
        others = (_files(package) for _, package in sorted(packages.items()))
        try:
            load_rules(self.own, [file for found in others for file in found])
        except RuleFileError as error:
            detail = f"beside the other rules of this device {_told(candidate.manifest, error)}"
            raise UpdateError(detail, cause="incompatible") from error


def brought_files(manifest: Manifest, bodies: Mapping[str, bytes]) -> list[BroughtFile]:
    """The files of rules of a package, with their `bodies` by member."""
    return [
        BroughtFile(f"{manifest.name}/{name}", bodies[name], f"{manifest.name}@{manifest.version}")
        for name in manifest.rules
    ]


def _files(package: InstalledPackage) -> list[BroughtFile]:
    manifest = package.manifest
    return brought_files(manifest, {name: _read(package.file(name)) for name in manifest.rules})


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            return stream.read(MAX_RULE_FILE_BYTES + 1)
    except OSError as error:
        raise RuleFileError(f"{path}: {error.strerror}", path=str(path)) from error


def _told(manifest: Manifest, error: RuleFileError) -> str:
    return f"the rules of {manifest.name}@{manifest.version}: {error.message}"
