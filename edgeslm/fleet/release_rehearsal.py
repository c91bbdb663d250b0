"""Trying a change of a release repository on a copy, so that a dry run says what would really be signed.

The copy has the metadata and no packages: enough for every change but adding one.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgeslm.errors import ReleaseRepositoryError
from edgeslm.fleet.release_files import RepositoryFiles
from edgeslm.fleet.releases import ReleaseRepository


@contextmanager
def rehearsed(directory: Path) -> Iterator[ReleaseRepository]:
    """A copy of the repository in `directory`, which is gone in the end.

    Raises:
        ReleaseRepositoryError: there is none, or the disk refuses.
    """
    with tempfile.TemporaryDirectory(prefix="edgeslm-rehearsal-") as temporary:
        copy = Path(temporary) / "repository"
        packages = str(directory / "public")
        try:
            with RepositoryFiles.open(directory).locked():
                shutil.copytree(
                    directory, copy, ignore=lambda at, _: {"targets"} if at == packages else set()
                )
            (copy / "public" / "targets").mkdir(exist_ok=True)
        except (OSError, shutil.Error) as error:
            raise ReleaseRepositoryError(
                f"{directory} cannot be copied: {error}", path=str(directory)
            ) from error
        yield ReleaseRepository(copy)
