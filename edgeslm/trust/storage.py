"""Trusted metadata on the device's disk.

::

    <dir>/enrolled.json         the root that the device was enrolled with
    <dir>/root.json             the newest trusted root
    <dir>/timestamp.json        names the snapshot in use
    <dir>/<n>.<role>.json       snapshot, targets and delegated roles, each named by its version
    <dir>/clock.json            what is known about the time
    <dir>/.lock                 held during a refresh

What always holds, whenever power is cut: every file is whole, and ``timestamp.json`` names a snapshot that names
targets that are there. New versions are written under new names first; the rename of ``timestamp.json`` then switches
to all of them at once, and what nothing names any more is removed after it.

Left to others: whether a file is to be trusted (:mod:`edgeslm.trust.decisions`); nothing gets here that is not.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path

from edgeslm.errors import TrustStateError
from edgeslm.files import clear_partial, locked, read_bounded, replace_file, sync_directory
from edgeslm.trust.clock import Remembered

ROOT, TIMESTAMP, ENROLLED, _CLOCK, _LOCK = (
    "root.json",
    "timestamp.json",
    "enrolled.json",
    "clock.json",
    ".lock",
)
_UNVERSIONED = frozenset({ROOT, TIMESTAMP, ENROLLED, _CLOCK, _LOCK})
_MAX_CLOCK_BYTES = 8192


class TrustStorage:
    """The files under one directory, which is made when missing.

    Attributes:
        directory: where they lie.
    """

    def __init__(self, directory: Path) -> None:
        """Open the directory.

        Raises:
            TrustStateError: it cannot be made.
        """
        self.directory = directory
        with self._faults(directory):
            directory.mkdir(parents=True, exist_ok=True)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Exclude every other process; what a killed one left half-written is cleared. Not reentrant.

        Raises:
            TrustStateError: the lock cannot be had.
        """
        with ExitStack() as stack:
            # What is raised within the caller's block is none of this file's faults.
            with self._faults(self.directory):
                stack.enter_context(locked(self.directory / _LOCK))
                clear_partial(self.directory)
            yield

    def read(self, name: str, max_bytes: int) -> bytes | None:
        """The bytes of the file `name`, one more than `max_bytes` where it is longer; ``None`` where it is missing.

        Raises:
            TrustStateError: the disk refuses.
        """
        with self._faults(self.directory / name):
            try:
                return read_bounded(self.directory / name, max_bytes)
            except FileNotFoundError:
                return None

    def write(self, name: str, data: bytes) -> None:
        """Let the file `name` hold `data`; a file that already does is left alone.

        Raises:
            TrustStateError: the disk refuses; the file holds what it held before.
        """
        if self.read(name, len(data)) == data:
            return
        with self._faults(self.directory / name):
            replace_file(self.directory / name, data)

    def remove(self, *names: str) -> None:
        """Remove files, in that order, where they are there.

        Raises:
            TrustStateError: the disk refuses.
        """
        for name in names:
            with self._faults(self.directory / name):
                (self.directory / name).unlink(missing_ok=True)
                sync_directory(self.directory)

    def keep_only(self, names: Collection[str]) -> None:
        """Remove every versioned file that is not among `names`.

        Raises:
            TrustStateError: the disk refuses.
        """
        with self._faults(self.directory):
            found = {
                entry.name for entry in os.scandir(self.directory) if entry.is_file(follow_symlinks=False)
            }
            extra = found - _UNVERSIONED - set(names)
            for name in extra:
                (self.directory / name).unlink(missing_ok=True)
            if extra:
                sync_directory(self.directory)

    def remembered(self) -> Remembered:
        """What is known about the time; nothing where the file is missing or damaged."""
        try:
            fields = json.loads(self.read(_CLOCK, _MAX_CLOCK_BYTES) or b"{}")
            return Remembered(
                wall=_time(fields.get("wall_s")),
                signed=_time(fields.get("signed_s")),
                signers=tuple(str(signer) for signer in fields.get("signers", ())),
            )
        except (ValueError, AttributeError, TypeError, OverflowError, OSError):
            return Remembered()

    def remember(self, remembered: Remembered) -> None:
        """Keep what is known about the time.

        Raises:
            TrustStateError: the disk refuses.
        """
        fields = {
            "wall_s": None if remembered.wall is None else int(remembered.wall.timestamp()),
            "signed_s": None if remembered.signed is None else int(remembered.signed.timestamp()),
            "signers": remembered.signers,
        }
        self.write(_CLOCK, json.dumps(fields).encode())

    @contextmanager
    def _faults(self, path: Path) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise TrustStateError(f"{path}: {error.strerror or error}", path=str(path)) from error


def _time(seconds: object) -> datetime | None:
    return datetime.fromtimestamp(seconds, UTC) if isinstance(seconds, int) else None
