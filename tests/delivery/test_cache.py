"""A read-through cache between real servers and the fetcher that devices use."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from edgeslm.delivery.cache import ReadThrough
from edgeslm.delivery.fetcher import Fetcher
from edgeslm.delivery.files import FileBlob
from edgeslm.delivery.http_server import PackageServer, by_sha256, in_directory
from edgeslm.delivery.http_source import HttpSource
from edgeslm.delivery.port import Blob
from edgeslm.errors import ConfigError, EdgeslmError, NoSourceError
from edgeslm.schema.delivery import BlobRef, DeliveryPolicy
from tests.delivery.conftest import Library

POLICY = DeliveryPolicy(retry_s=0.05, max_retry_s=0.2, deadline_s=20)


class Slow:
    """A file that waits before each read until it may go on."""

    def __init__(self, file: FileBlob, gate: Callable[[int], object]) -> None:
        self._file, self._gate = file, gate
        self.size_bytes = file.size_bytes

    def read(self, offset: int, size_bytes: int) -> bytes:
        self._gate(offset)
        return self._file.read(offset, size_bytes)

    def close(self) -> None:
        self._file.close()


class Upstream:
    """The far server, which counts what is asked of it."""

    def __init__(self, library: Library) -> None:
        self.library = library
        self.asked: list[str] = []
        self.gate: Callable[[int], object] = lambda offset: None
        self.instead: dict[str, bytes] = {}

    def find(self, sha256: str) -> Blob | None:
        self.asked.append(sha256)
        if sha256 in self.instead:
            other = self.library.directory / "other"
            other.write_bytes(self.instead[sha256])
            return FileBlob(other)
        file = in_directory(self.library.directory)(sha256)
        return None if file is None else Slow(file, self.gate)  # type: ignore[arg-type]


@pytest.fixture
def library(tmp_path: Path) -> Library:
    return Library(tmp_path / "library")


@pytest.fixture
def upstream(library: Library) -> Upstream:
    return Upstream(library)


@contextmanager
def cached(
    upstream: Upstream, directory: Path, *, max_bytes: int = 2**24
) -> Iterator[tuple[ReadThrough, str]]:
    with PackageServer(by_sha256(upstream.find)) as far:
        cache = ReadThrough(far.url, directory, max_bytes=max_bytes, policy=POLICY)
        with PackageServer(by_sha256(cache.find)) as near:
            try:
                yield cache, near.url
            finally:
                upstream.gate = lambda offset: None
                cache.stop()


def fetched(url: str, directory: Path, blob: BlobRef) -> bytes:
    """What a device gets."""
    return Fetcher(directory).fetch(blob, [HttpSource(url, reach="lan")], POLICY).read_bytes()


def wait_until(is_met: Callable[[], object]) -> None:
    until_s = time.monotonic() + 15
    while not is_met():
        assert time.monotonic() < until_s
        time.sleep(0.01)


def test_many_devices_get_a_file_that_came_over_the_long_way_once(
    upstream: Upstream, library: Library, tmp_path: Path
) -> None:
    blob = library.add(700_000)
    with cached(upstream, tmp_path / "cache") as (cache, url):
        got: list[bytes] = []

        def device(number: int) -> None:
            got.append(fetched(url, tmp_path / f"device-{number}", blob))

        threads = [threading.Thread(target=device, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert got == [library.data(blob.sha256)] * 6
        wait_until(lambda: cache.fetched_bytes == 700_000 + len(library.data(blob.chunks_sha256 or "")))
        asked = len(upstream.asked)
        assert fetched(url, tmp_path / "late", blob) == library.data(blob.sha256)
        assert len(upstream.asked) == asked, "from the disk"


def test_what_has_arrived_is_given_out_before_the_rest_has(
    upstream: Upstream, library: Library, tmp_path: Path
) -> None:
    blob = library.add(300_000, chunks=False)
    rest = threading.Event()
    upstream.gate = lambda offset: offset < 200_000 or rest.wait(20)
    with cached(upstream, tmp_path / "cache") as (cache, _):
        arriving = cache.find(blob.sha256)
        assert arriving is not None
        assert arriving.size_bytes == 300_000
        assert arriving.read(65_536, 1000) == library.data(blob.sha256)[65_536:66_536]
        assert cache.fetched_bytes == 0
        rest.set()
        assert arriving.read(299_000, 5000) == library.data(blob.sha256)[299_000:]
        arriving.close()
        wait_until(lambda: cache.size_bytes() == 300_000)


def test_what_upstream_does_not_have_is_not_asked_for_time_and_again(
    upstream: Upstream, tmp_path: Path
) -> None:
    with cached(upstream, tmp_path / "cache") as (_, url):
        for number in range(3):
            with pytest.raises(NoSourceError):
                fetched(url, tmp_path / f"device-{number}", BlobRef(sha256="ab" * 32, size_bytes=10))
    assert len(upstream.asked) == 1


def test_an_upstream_that_is_not_there_is_told_and_asked_again(tmp_path: Path) -> None:
    cache = ReadThrough("http://127.0.0.1:1", tmp_path, max_bytes=2**20)
    for _ in range(2):
        with pytest.raises(EdgeslmError):
            cache.find("ab" * 32)
    with pytest.raises(ConfigError):
        ReadThrough("ftp://there", tmp_path, max_bytes=2**20)


def test_other_bytes_than_asked_for_are_never_kept(
    upstream: Upstream, library: Library, tmp_path: Path
) -> None:
    blob = library.add(100_000)
    upstream.instead[blob.sha256] = b"x" * 100_000
    with cached(upstream, tmp_path / "cache") as (cache, url):
        with pytest.raises(EdgeslmError):
            fetched(url, tmp_path / "device", blob)
        wait_until(lambda: not list((tmp_path / "cache" / "arriving").iterdir()))
        assert not (tmp_path / "cache" / f"{blob.sha256}.blob").exists()
        upstream.instead.clear()
        wait_until(lambda: _gives(cache, blob.sha256))


def _gives(cache: ReadThrough, sha256: str) -> bool:
    blob = cache.find(sha256)
    if blob is None:
        return False
    try:
        return blob.read(0, 10) != b"x" * 10
    except EdgeslmError:
        return False
    finally:
        blob.close()


def test_what_was_asked_for_least_recently_makes_room(
    upstream: Upstream, library: Library, tmp_path: Path
) -> None:
    blobs = [library.add(300_000, seed=seed, chunks=False) for seed in range(3)]
    with cached(upstream, tmp_path / "cache", max_bytes=700_000) as (cache, url):
        for number, blob in enumerate(blobs[:2]):
            fetched(url, tmp_path / f"device-{number}", blob)
            wait_until(lambda count=number + 1: cache.size_bytes() == count * 300_000)
        os.utime(tmp_path / "cache" / f"{blobs[0].sha256}.blob", (time.time() - 50, time.time() - 50))
        os.utime(tmp_path / "cache" / f"{blobs[1].sha256}.blob", (time.time() - 99, time.time() - 99))
        fetched(url, tmp_path / "device-0b", blobs[0])
        fetched(url, tmp_path / "device-2", blobs[2])
        wait_until(lambda: cache.fetched_bytes == 900_000)
        names = {path.name[:64] for path in (tmp_path / "cache").glob("*.blob")}
        assert names == {blobs[0].sha256, blobs[2].sha256}
        whale = library.add(800_000, seed=9, chunks=False)
        with pytest.raises(NoSourceError):
            fetched(url, tmp_path / "device-3", whale)
        assert cache.size_bytes() == 600_000


def test_a_cache_that_was_killed_goes_on_with_what_was_whole_and_mends_what_went_bad(
    upstream: Upstream, library: Library, tmp_path: Path
) -> None:
    blob = library.add(100_000, chunks=False)
    where = tmp_path / "cache"
    with cached(upstream, where) as (cache, url):
        fetched(url, tmp_path / "device", blob)
        wait_until(lambda: cache.size_bytes() == 100_000)
    (where / "arriving" / "junk").write_bytes(b"x" * 100)
    (where / "notes.txt").write_bytes(b"somebody's")
    (where / f"{blob.sha256}.blob").write_bytes(b"y" * 100_000)
    with cached(upstream, where) as (cache, url):
        assert not list((where / "arriving").iterdir())
        assert fetched(url, tmp_path / "device-2", blob) == library.data(blob.sha256)
    assert (where / "notes.txt").exists()


@pytest.mark.parametrize("path", ["/blocks/../../etc/passwd", "/metadata/timestamp.json", "/blocks/", "/"])
def test_nothing_but_files_by_their_digest_is_asked_of_it(
    upstream: Upstream, path: str, tmp_path: Path
) -> None:
    cache = ReadThrough("http://127.0.0.1:1", tmp_path, max_bytes=2**20)
    assert by_sha256(cache.find)(path) is None
    assert upstream.asked == []


def test_stopping_does_not_wait_for_what_is_under_way(
    upstream: Upstream, library: Library, tmp_path: Path
) -> None:
    blob = library.add(300_000, chunks=False)
    held = threading.Event()
    upstream.gate = lambda offset: offset < 100_000 or held.wait(30)
    with PackageServer(by_sha256(upstream.find)) as far:
        cache = ReadThrough(far.url, tmp_path / "cache", max_bytes=2**20, policy=POLICY)
        assert cache.find(blob.sha256) is not None
        began_s = time.monotonic()
        cache.stop()
        assert time.monotonic() - began_s < 10
        held.set()
        assert cache.find(blob.sha256) is None
