"""Taking edgeslm away from a board.

What always holds:

* What belongs to people stays, and is named: files that they changed, files that they added, and, unless it is asked
  for, the identity and journal of the device.
* What starts the service goes first, and what says what was installed goes last. So a power cut leaves a board that
  starts all of it or nothing, and running it again goes on.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from .disk import Disk
from .manifest import OnboardError
from .record import is_as_installed, read_record


@dataclass(frozen=True)
class Kept:
    """What stays on the board.

    Attributes:
        why: as part of a sentence.
    """

    path: str
    why: str


@dataclass(frozen=True)
class Removal:
    """What taking it away does.

    Attributes:
        edgeslm: version that was installed.
        gone: files and links that go, in this order.
        trees: directories that go with all that they hold.
        directories: that go if nothing is in them by then, the deepest first.
        kept: what stays.
        state: the service's own directory, where it goes as well.
        cmdline: words that were added to the kernel's command line, and stay there.
    """

    edgeslm: str
    gone: tuple[str, ...]
    trees: tuple[str, ...]
    directories: tuple[str, ...]
    kept: tuple[Kept, ...]
    state: str | None
    cmdline: tuple[str, ...]


def plan_uninstall(installed: str, state: str, service: str, disk: Disk, *, purge: bool) -> Removal:
    """What there is to do.

    Args:
        installed: path of what says on the board what was installed.
        state: the service's own directory.
        service: name of its unit.
        purge: state and changed files go as well.

    Raises:
        OnboardError: nothing was installed, or what says so is damaged.
    """
    record = read_record(installed, disk)
    if record is None:
        raise OnboardError(
            f"{installed} is not here: edgeslm was not installed in {disk.root} this way",
            "What was set up by hand is taken away by hand",
        )
    gone: list[str] = []
    kept: list[Kept] = []
    trees: list[str] = []
    directories: list[str] = []
    for known in record.files:
        if known.kind == "directory":
            if known.path != state:
                directories.append(known.path)
        elif known.kind == "tree":
            trees.append(known.path)
        elif purge or is_as_installed(known, disk):
            gone.append(known.path)
        else:
            kept.append(Kept(known.path, "it was changed since"))
    ours = {known.path for known in record.files} | {installed}
    for directory in (*directories, *(f"{known}.d" for known in ours if known.endswith(f"/{service}"))):
        kept += [Kept(path, "it is not ours") for path in _strange(directory, ours, disk)]
    if not purge and disk.follow(state).is_dir():
        kept.append(Kept(state, "identity, journal and models of this device; --purge removes it"))
    return Removal(
        edgeslm=record.edgeslm,
        gone=tuple(sorted(gone, key=lambda path: (not _starts(path), path))),
        trees=tuple(trees),
        directories=tuple(sorted(directories, key=lambda path: path.count("/"), reverse=True)),
        kept=tuple({one.path: one for one in kept}.values()),
        state=state if purge else None,
        cmdline=record.cmdline,
    )


def _strange(directory: str, ours: Collection[str], disk: Disk) -> Iterator[str]:
    """What is in a directory and is not ours; of a directory with nothing of ours its own path."""
    for path, is_directory in disk.names(directory):
        if is_directory and any(one == path or one.startswith(f"{path}/") for one in ours):
            yield from _strange(path, ours, disk)
        elif path not in ours:
            yield path


def _starts(path: str) -> bool:
    """Whether a path is a link by which systemd starts something at boot."""
    return ".wants/" in path


def uninstall(removal: Removal, installed: str, disk: Disk) -> None:
    """Take away what goes; what says what was installed goes last.

    Raises:
        OnboardError: the disk refuses; running it again goes on.
    """
    try:
        for path in removal.gone:
            disk.remove_file(path)
        for path in removal.trees:
            disk.remove(path)
        if removal.state is not None:
            owned = disk.follow(removal.state)
            disk.remove(removal.state)
            if owned.is_dir():  # behind the link of a dynamic user
                shutil.rmtree(owned)
        for path in removal.directories:
            disk.remove_empty(path)
        os.sync()
        disk.remove(installed)
        disk.remove_empty(installed.rpartition("/")[0])
        os.sync()
    except OSError as error:
        raise OnboardError(
            f"{error.filename or disk.root}: {error.strerror or error}",
            "Running it again goes on where it stopped",
        ) from error
