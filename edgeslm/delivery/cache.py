"""A read-through cache of files for a local network: what one device asks for comes over the long way once.

It answers by sha256. What it has is served from the disk; anything else is fetched from upstream and served while it
arrives, block by block, to everybody who asks meanwhile. A file lies under its name only after its digest was found
right; what goes out before that is checked by who takes it, as always.

What always holds: the directory holds no more than the cap, what arrives included; what was asked for least recently
goes first; a file that is being fetched stays. A process that was killed leaves only whole files, and what was arriving
is removed by the next.

Left to others: connections (:mod:`edgeslm.delivery.http_server`), and fetching (:mod:`edgeslm.delivery.fetcher`).
"""

from __future__ import annotations

import http.client
import logging
import os
import re
import shutil
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from edgeslm.delivery.fetcher import Fetcher
from edgeslm.delivery.files import FileBlob, disk_errors
from edgeslm.delivery.http_source import HttpSource
from edgeslm.delivery.partial import is_whole
from edgeslm.delivery.port import Blob, Block, BlockSource, Reach, Received
from edgeslm.errors import DeliveryError, NoSourceError, SourceError
from edgeslm.files import sync_directory
from edgeslm.schema.delivery import BLOCK_BYTES, BlobRef, DeliveryPolicy
from edgeslm.schema.package import MAX_PACKAGE_BYTES

log = logging.getLogger(__name__)

MAX_FETCHES = 4
"""Files that arrive at once."""
MISSING_S = 30.0
"""Seconds for which a file that upstream does not have is not asked for again."""
_WAIT_S = 12.0
"""Longest wait for a block that a connection is held open for; devices take longer silence for a dead connection."""
_PATIENCE_S = 60.0
_ASK_TIMEOUT_S = 8.0
_MAX_MISSING = 4096
_ARRIVING = "arriving"
_NAME = re.compile(r"([0-9a-f]{64})\.blob")


class ReadThrough:
    """The cache in a directory, which it makes when missing. It is its own: other files in it are not touched."""

    def __init__(
        self,
        upstream: str,
        directory: Path,
        *,
        max_bytes: int,
        policy: DeliveryPolicy | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """Open the cache.

        Args:
            upstream: address of a server that gives files under ``blocks/<sha256>``.
            directory: holds the files.
            max_bytes: that they may take.
            policy: how files may be fetched; a file gets an hour by default.
            now: monotonic seconds.

        Raises:
            ConfigError: `upstream` is no such address.
            DeliveryDiskError: the directory cannot be used.
        """
        HttpSource(upstream).close()  # refuses what is no address
        self._upstream = upstream if upstream.endswith("/") else f"{upstream}/"
        self._directory = directory
        self._max_bytes = max_bytes
        self._policy = policy or DeliveryPolicy(deadline_s=3600.0)
        self._now = now
        self._lock = threading.Lock()
        self._coming: dict[str, _Coming] = {}
        self._missing: OrderedDict[str, float] = OrderedDict()
        self._checked: set[str] = set()
        self._slots = threading.BoundedSemaphore(MAX_FETCHES)
        self._stopped = threading.Event()
        self.fetched_bytes = 0
        """Bytes of files that came from upstream and were right."""
        with disk_errors(directory):
            shutil.rmtree(directory / _ARRIVING, ignore_errors=True)
            (directory / _ARRIVING).mkdir(parents=True)

    def find(self, sha256: str) -> Blob | None:
        """The file with that digest, or ``None`` where neither the cache nor upstream has it. From any thread.

        Raises:
            SourceError: upstream cannot be asked.
            DeliveryDiskError: the disk refuses.
        """
        self._check(sha256)
        with self._lock:
            here = self._opened(sha256)
            if here is not None:
                return here
            coming = self._coming.get(sha256)
            if coming is None and self._missing.get(sha256, 0.0) > self._now():
                return None
        if coming is None:
            coming = self._begin(sha256)
        return None if coming is None else _ArrivingBlob(coming)

    def stop(self) -> None:
        """End what is under way; nothing is fetched any more."""
        self._stopped.set()
        with self._lock:
            threads = [coming.thread for coming in self._coming.values()]
        for thread in threads:
            if thread is not None:
                thread.join()

    def size_bytes(self) -> int:
        """What the whole files take."""
        return sum(size for _, size, _ in self._files())

    # --- what is here ---

    def _path(self, sha256: str) -> Path:
        return self._directory / f"{sha256}.blob"

    def _check(self, sha256: str) -> None:
        """Remove a file that went bad on the disk: once for each, since what arrives is checked anyway."""
        path = self._path(sha256)
        if sha256 in self._checked or not path.is_file():
            return
        with disk_errors(path):
            size_bytes = path.stat().st_size
            if not (size_bytes and is_whole(path, BlobRef(sha256=sha256, size_bytes=size_bytes))):
                log.warning("%s went bad on the disk", path)
                path.unlink(missing_ok=True)
                return
        self._checked.add(sha256)

    def _opened(self, sha256: str) -> Blob | None:
        path = self._path(sha256)
        if not path.is_file():
            return None
        with disk_errors(path):
            os.utime(path)  # it was asked for just now
        return FileBlob(path)

    def _files(self) -> list[tuple[float, int, Path]]:
        found = []
        with disk_errors(self._directory):
            for entry in os.scandir(self._directory):
                if _NAME.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                    status = entry.stat()
                    found.append((status.st_mtime, status.st_size, Path(entry.path)))
        return sorted(found)

    def _make_room(self, size_bytes: int) -> bool:
        """Remove what was asked for least recently until so much fits beside what arrives; whether it does."""
        arriving_bytes = sum(coming.blob.size_bytes for coming in self._coming.values())
        allowed_bytes = self._max_bytes - arriving_bytes - size_bytes
        if allowed_bytes < 0:
            return False
        files = self._files()
        in_all_bytes = sum(size for _, size, _ in files)
        for _, size, path in files:
            if in_all_bytes <= allowed_bytes:
                break
            with disk_errors(path):
                path.unlink(missing_ok=True)
            in_all_bytes -= size
            log.info("%s makes room", path.name)
        return True

    # --- what is not ---

    def _begin(self, sha256: str) -> _Coming | None:
        size_bytes = self._ask_size(sha256)
        with self._lock:
            if size_bytes is None:
                self._note_missing(sha256)
                return None
            if sha256 in self._coming:  # somebody else was faster
                return self._coming[sha256]
            if self._stopped.is_set() or not self._make_room(size_bytes):
                log.warning("%s, %d bytes, does not fit into the cache now", sha256, size_bytes)
                return None
            where = self._directory / _ARRIVING / sha256
            coming = _Coming(BlobRef(sha256=sha256, size_bytes=size_bytes), where / f"{sha256}.part")
            self._coming[sha256] = coming
            coming.thread = threading.Thread(
                target=self._fetch, args=(coming,), name="cache-fetch", daemon=True
            )
            coming.thread.start()
            return coming

    def _fetch(self, coming: _Coming) -> None:
        blob = coming.blob
        where = self._directory / _ARRIVING / blob.sha256
        problem: DeliveryError | None = None
        try:
            with self._slots:
                source = _Watched(HttpSource(self._upstream), coming)
                try:
                    path = Fetcher(where).fetch(
                        blob, [source], self._policy, cancelled=self._stopped, patience_s=_PATIENCE_S
                    )
                finally:
                    source.close()
            coming.mark_all()
            with self._lock, disk_errors(path):
                path.replace(self._path(blob.sha256))
                sync_directory(self._directory)
                self.fetched_bytes += blob.size_bytes
                self._checked.add(blob.sha256)
            log.info("%s, %d bytes, is here", blob.sha256, blob.size_bytes)
        except DeliveryError as error:
            problem = error
            log.warning("%s could not be fetched: %s", blob.sha256, error)
        finally:
            with self._lock:
                del self._coming[blob.sha256]
                if isinstance(problem, NoSourceError) and problem.missing:
                    self._note_missing(blob.sha256)
            coming.end()
            shutil.rmtree(where, ignore_errors=True)

    def _note_missing(self, sha256: str) -> None:
        self._missing[sha256] = self._now() + MISSING_S
        self._missing.move_to_end(sha256)
        if len(self._missing) > _MAX_MISSING:
            self._missing.popitem(last=False)

    def _ask_size(self, sha256: str) -> int | None:
        """The size of a file upstream; ``None`` where it has none that could be a package's.

        Raises:
            SourceError: it cannot be asked.
        """
        parts = urlsplit(self._upstream)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        connection = kind(parts.hostname or "", parts.port, timeout=_ASK_TIMEOUT_S)
        try:
            connection.request("HEAD", f"{parts.path}blocks/{sha256}", headers={"Connection": "close"})
            answer = connection.getresponse()
            length = answer.getheader("Content-Length", "")
        except (OSError, http.client.HTTPException) as error:
            raise SourceError(
                f"{self._upstream}: {error or type(error).__name__}", source=self._upstream, sha256=sha256
            ) from error
        finally:
            connection.close()
        if answer.status != http.client.OK:
            if answer.status in {401, 403, 404, 410, 451}:
                return None
            raise SourceError(
                f"{self._upstream}: answers {answer.status}", source=self._upstream, sha256=sha256
            )
        if not re.fullmatch(r"[1-9][0-9]{0,12}", length) or int(length) > MAX_PACKAGE_BYTES:
            log.warning("%s says that %s has %s bytes", self._upstream, sha256, ascii(length)[:40])
            return None
        return int(length)


# --- a file that arrives ------------------------------------------------------------------------------------


class _Coming:
    """A file on its way, and which of its blocks are here.

    Attributes:
        part: where they are written.
        thread: that fetches it.
    """

    def __init__(self, blob: BlobRef, part: Path) -> None:
        self.blob = blob
        self.part = part
        self.thread: threading.Thread | None = None
        self._here: set[int] = set()
        self._is_over = False
        self._changed = threading.Condition()

    def begin(self, wanted: Sequence[range]) -> None:
        """A source is asked for the blocks `wanted`: all others are here."""
        with self._changed:
            missing = {index for run in wanted for index in run}
            self._here = set(range(self.blob.block_count)) - missing
            self._changed.notify_all()

    def mark(self, index: int) -> None:
        """The block `index` is here."""
        with self._changed:
            self._here.add(index)
            self._changed.notify_all()

    def mark_all(self) -> None:
        """All of it is here, and right."""
        self.begin(())

    def end(self) -> None:
        """Nothing comes any more."""
        with self._changed:
            self._is_over = True
            self._changed.notify_all()

    def wait(self, indexes: range) -> bool:
        """Wait until some blocks are here; whether they are."""
        needed = set(indexes)
        with self._changed:
            self._changed.wait_for(lambda: needed <= self._here or self._is_over, _WAIT_S)
            return needed <= self._here


class _Watched:
    """A source whose blocks are marked once whoever took them has written them down."""

    def __init__(self, source: BlockSource, coming: _Coming) -> None:
        self._source = source
        self._coming = coming

    @property
    def name(self) -> str:
        return self._source.name

    @property
    def reach(self) -> Reach:
        return self._source.reach

    def blocks(
        self, blob: BlobRef, wanted: Sequence[range], received: Received
    ) -> Generator[Block, None, None]:
        self._coming.begin(wanted)
        for block in self._source.blocks(blob, wanted, received):
            yield block
            self._coming.mark(block.number)

    def close(self) -> None:
        self._source.close()


class _ArrivingBlob:
    """A file that is served while it arrives."""

    def __init__(self, coming: _Coming) -> None:
        self._coming = coming
        self._descriptor = -1

    @property
    def size_bytes(self) -> int:
        return self._coming.blob.size_bytes

    def read(self, offset: int, size_bytes: int) -> bytes:
        end = min(offset + size_bytes, self.size_bytes)
        if end <= offset:
            return b""
        if not self._coming.wait(range(offset // BLOCK_BYTES, -(-end // BLOCK_BYTES))):
            raise DeliveryError(
                f"{self._coming.blob.sha256}: bytes from {offset} on have not come yet",
                sha256=self._coming.blob.sha256,
            )
        with disk_errors(self._coming.part):
            if self._descriptor < 0:
                self._descriptor = self._open()
            data = os.pread(self._descriptor, end - offset, offset)
        if len(data) != end - offset:
            raise DeliveryError(
                f"{self._coming.blob.sha256}: upstream gave another file", sha256=self._coming.blob.sha256
            )
        return data

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _open(self) -> int:
        """The file under whichever name it has by now."""
        whole = self._coming.part.with_suffix(".blob")
        kept = self._coming.part.parents[2] / whole.name
        for path in (self._coming.part, whole, kept):
            try:
                return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                continue
        raise FileNotFoundError(2, "it is gone", str(self._coming.part))
