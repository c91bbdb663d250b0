"""A package that lies unpacked and verified on disk: how the layers above hand it to one another."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgeslm.schema.package import Manifest


@dataclass(frozen=True)
class InstalledPackage:
    """An unpacked package.

    Attributes:
        directory: where its members lie; read-only by convention, named by `sha256`.
        sha256: digest of the ``.slm`` file it came from.
    """

    directory: Path
    manifest: Manifest
    sha256: str

    def file(self, name: str) -> Path:
        """Path of the member `name`."""
        return self.directory / name
