"""What was installed on a board before, as it says itself: the file that the manifest calls ``installed``.

What always holds: it is a file on a board, so what it says is checked; and nothing at the top of the tree is ever
taken for ours.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from .disk import Disk
from .manifest import OnboardError, is_plain

_MAX_BYTES = 2 * 2**20
_MAX_FILES = 100_000


@dataclass(frozen=True)
class Known:
    """One thing that was put there.

    Attributes:
        kind: file, directory, symlink; or ``tree``, a directory with all that it holds.
        sha256: of a file's bytes; empty where that would give away a secret.
        target: of a link.
    """

    path: str
    kind: str
    sha256: str = ""
    target: str = ""


@dataclass(frozen=True)
class Record:
    """What was installed.

    Attributes:
        edgeslm: version of the agent.
        files: everything that was written.
        cmdline: words that were added to the kernel's command line.
    """

    edgeslm: str
    files: tuple[Known, ...]
    cmdline: tuple[str, ...] = ()

    def known(self) -> dict[str, Known]:
        """All of it by its path."""
        return {file.path: file for file in self.files}


def read_record(installed: str, disk: Disk) -> Record | None:
    """What was installed; ``None`` where nothing was.

    Raises:
        OnboardError: what says so is damaged, or cannot be read.
    """
    try:
        place = disk.place(installed)
        if place.stat().st_size > _MAX_BYTES:
            raise ValueError("it is too large")
        found = json.loads(place.read_bytes())
        files = [
            Known(str(one["path"]), str(one["kind"]), one.get("sha256") or "", one.get("target") or "")
            for one in found["files"][:_MAX_FILES]
        ]
        words = tuple(str(word)[:500] for word in found.get("cmdline", ()))
        return Record(
            str(found.get("edgeslm", ""))[:80],
            # Nothing that was ever installed lies at the top.
            tuple(one for one in files if is_plain(one.path) and one.path.count("/") >= 2),
            words,
        )
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise OnboardError(
            f"{installed} is damaged: {error}", "Take it away, and install edgeslm again"
        ) from error


def is_as_installed(known: Known, disk: Disk) -> bool:
    """Whether it is what was put there, or gone; nobody can tell of a secret, and it counts as such."""
    if not disk.is_there(known.path):
        return True
    if known.kind == "symlink":
        return disk.target(known.path) == known.target
    digest = disk.digest(known.path)
    return digest is not None and known.sha256 in {"", digest}
