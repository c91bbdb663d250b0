"""Fetching one file: from several sources, over links that break, until every byte of it is here and right.

What always holds:

* What :meth:`Fetcher.fetch` gives has the sha256 and the size that were asked for, read back from the disk.
* What has arrived stays, whatever ends a fetch: an error, a kill, a power cut. The next one goes on from it.
* One fetch at a time works in a directory, whatever the process.

Left to others: how sources are treated (:mod:`edgeslm.delivery.session`), and what to fetch and whether to
(:mod:`edgeslm.delivery.deliver`).
"""

from __future__ import annotations

import fcntl
import logging
import os
import random
import re
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from edgeslm.delivery.chunks import ChunkMap, map_blob, parse_map
from edgeslm.delivery.files import check_room, disk_errors
from edgeslm.delivery.partial import is_whole
from edgeslm.delivery.port import BlockSource, Cancel, Progress
from edgeslm.delivery.session import Session, Terms
from edgeslm.errors import DeliveryBusyError, NoSourceError
from edgeslm.schema.delivery import BlobRef, DeliveryPolicy

log = logging.getLogger(__name__)

_OURS = re.compile(r"([0-9a-f]{64})\.(part|have|blob)|\.([0-9a-f]{64})\.blob\.partial")


def _ignore(_: Progress) -> None:
    """Nobody wants to know."""


def _allow(_: BlockSource) -> None:
    """Every source may be used."""


class Fetcher:
    """Fetches files into one directory, which it makes when missing."""

    def __init__(
        self,
        directory: Path,
        *,
        now: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random.random,
    ) -> None:
        """Set up a fetcher.

        Args:
            directory: holds what arrives.
            now: monotonic seconds.
            chance: from 0 to 1, for the spread of retries.
        """
        self.directory = directory
        self._now = now
        self._chance = chance

    def path(self, blob: BlobRef) -> Path:
        """Where a file lies once all of it is here."""
        return self.directory / f"{blob.sha256}.blob"

    def arrived_bytes(self, blob: BlobRef) -> int:
        """About how much of a file is here, by what it takes on the disk."""
        for path in (self.path(blob), self.directory / f"{blob.sha256}.part"):
            try:
                return min(path.stat().st_blocks * 512, blob.size_bytes)
            except OSError:
                continue
        return 0

    def fetch(
        self,
        blob: BlobRef,
        sources: Sequence[BlockSource],
        policy: DeliveryPolicy,
        progress: Callable[[Progress], None] = _ignore,
        cancelled: Cancel | None = None,
        *,
        allowed: Callable[[BlockSource], None] = _allow,
        patience_s: float | None = None,
        room_bytes: int = 0,
    ) -> Path:
        """Bring the file `blob` here.

        Args:
            blob: what to fetch.
            sources: in order of preference.
            policy: cap, least rate, retries and deadline.
            progress: told about twice a second.
            cancelled: ends the fetch when set; within a second, but for an attempt to connect, which is let
                run out.
            allowed: asked before a source is used and every few seconds meanwhile; what it raises ends the
                fetch.
            patience_s: seconds without a source that gives anything after which to give up before the
                deadline.
            room_bytes: that have to be free beside those of the file itself.

        Returns:
            Its path.

        Raises:
            DeliveryError: it could not be brought here; subclasses tell why.
        """
        terms = Terms(
            policy=policy,
            progress=progress,
            cancelled=cancelled or threading.Event(),
            allowed=allowed,
            patience_s=patience_s,
            now=self._now,
            chance=self._chance,
        )
        with self._locked():
            if self._is_here(blob):
                return self.path(blob)
            left_bytes = blob.size_bytes - self.arrived_bytes(blob)
            check_room(self.directory, left_bytes + room_bytes)
            session = Session(self.directory, sources, terms)
            session.bring(blob, self._chunks(blob, session))
            return self.path(blob)

    def forget(self, sha256s: Collection[str]) -> None:
        """Remove what is here of the files `sha256s`, whole or begun.

        Raises:
            DeliveryBusyError: a fetch is under way.
            DeliveryDiskError: the disk refuses.
        """
        self._remove(lambda sha256: sha256 in sha256s)

    def keep_only(self, sha256s: Collection[str]) -> None:
        """Remove what is here of all other files than `sha256s`, whole or begun.

        Raises:
            DeliveryBusyError: a fetch is under way.
            DeliveryDiskError: the disk refuses.
        """
        self._remove(lambda sha256: sha256 not in sha256s)

    # --- parts ---

    def _is_here(self, blob: BlobRef) -> bool:
        path = self.path(blob)
        if is_whole(path, blob):
            return True
        if path.is_file():  # gone bad: what of it is still right need not be fetched
            with disk_errors(path):
                path.replace(self.directory / f"{blob.sha256}.part")
                (self.directory / f"{blob.sha256}.have").unlink(missing_ok=True)
        return False

    def _chunks(self, blob: BlobRef, session: Session) -> ChunkMap | None:
        """The chunk map of `blob`, fetched if need be; ``None`` where it has none or nobody has it."""
        map_of_it = map_blob(blob)
        if map_of_it is None:
            return None
        if not self._is_here(map_of_it):
            try:
                session.bring(map_of_it, None)
            except NoSourceError as error:
                if not error.missing:
                    raise
                log.warning("nobody has the chunk map of %s: only the whole will be checked", blob.sha256)
                return None
        path = self.path(map_of_it)
        with disk_errors(path):
            return parse_map(path.read_bytes(), blob)

    def _remove(self, unwanted: Callable[[str], bool]) -> None:
        with self._locked(), disk_errors(self.directory):
            for path in self.directory.iterdir():
                match = _OURS.fullmatch(path.name)
                if match is not None and unwanted(match[1] or match[3]):
                    path.unlink(missing_ok=True)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with disk_errors(self.directory):
            self.directory.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.directory / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise DeliveryBusyError(f"{self.directory}: a fetch is under way") from error
            yield
        finally:
            os.close(descriptor)
