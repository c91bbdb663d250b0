"""Files to deliver, sources that do what they are told, and a clock that only moves when somebody waits."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import subprocess
from collections.abc import Callable, Generator, Sequence
from pathlib import Path

import pytest

from edgeslm.delivery import http_server
from edgeslm.delivery.chunks import write_map
from edgeslm.delivery.port import Block, Progress, Reach, Received
from edgeslm.errors import SourceMissingError
from edgeslm.schema.delivery import BLOCK_BYTES, BlobRef, DeliveryPolicy


class Library:
    """A directory of files named by their sha256, chunk maps among them."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir()

    def add(self, size_bytes: int, *, seed: int = 1, chunks: bool = True) -> BlobRef:
        return self.add_bytes(random.Random(seed).randbytes(size_bytes), chunks=chunks)

    def add_bytes(self, data: bytes, *, chunks: bool = True) -> BlobRef:
        path = self.directory / hashlib.sha256(data).hexdigest()
        path.write_bytes(data)
        blob = write_map(path)
        beside = path.with_name(f"{path.name}.chunks")
        if not chunks:
            beside.unlink()
            return BlobRef(sha256=blob.sha256, size_bytes=blob.size_bytes)
        beside.rename(self.directory / (blob.chunks_sha256 or ""))
        return blob

    def data(self, sha256: str) -> bytes:
        return (self.directory / sha256).read_bytes()


class Clock:
    """A clock and a `Cancel` in one: waiting takes no time but moves it."""

    def __init__(self) -> None:
        self.s = 1000.0
        self.waits: list[float] = []
        self.cancel_at_s: float | None = None

    def now(self) -> float:
        return self.s

    def is_set(self) -> bool:
        return self.cancel_at_s is not None and self.s >= self.cancel_at_s

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout is not None
        self.waits.append(timeout)
        self.s += timeout
        return self.is_set()


Act = Callable[[int, bytes], bytes]


class ScriptedSource:
    """Gives the files of a library; `act` may change each block, take time or raise."""

    def __init__(
        self,
        library: Library,
        act: Act = lambda _, data: data,
        *,
        name: str = "scripted",
        reach: Reach = "wan",
    ) -> None:
        self.library = library
        self.act = act
        self.asked: list[tuple[str, list[range]]] = []
        self.given: list[int] = []
        self._name = name
        self._reach: Reach = reach

    @property
    def name(self) -> str:
        return self._name

    @property
    def reach(self) -> Reach:
        return self._reach

    def blocks(
        self, blob: BlobRef, wanted: Sequence[range], received: Received
    ) -> Generator[Block, None, None]:
        self.asked.append((blob.sha256, list(wanted)))
        if not (self.library.directory / blob.sha256).exists():
            raise SourceMissingError(f"{self.name}: has no such file", source=self.name)
        data = self.library.data(blob.sha256)
        for run in wanted:
            for index in run:
                block = self.act(index, data[index * BLOCK_BYTES : (index + 1) * BLOCK_BYTES])
                received(len(block))
                self.given.append(index)
                yield Block(index, block)

    def close(self) -> None:
        pass


@pytest.fixture(autouse=True)
def _servers_stop_quickly(monkeypatch):
    monkeypatch.setattr(http_server, "_POLL_S", 0.01)


@pytest.fixture
def library(tmp_path) -> Library:
    return Library(tmp_path / "library")


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def scripted(library):
    def make(act: Act = lambda _, data: data, **named) -> ScriptedSource:
        return ScriptedSource(library, act, **named)

    return make


@pytest.fixture
def policy() -> DeliveryPolicy:
    return DeliveryPolicy()


@pytest.fixture
def told() -> list[Progress]:
    return []


@pytest.fixture
def small_disk(tmp_path):
    """A disk of a few MiB, if we may mount one."""
    directory = tmp_path / "disk"
    directory.mkdir()
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("mounting needs root")
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", directory], check=False)
    if mounted.returncode:
        pytest.skip("no disk can be mounted here")
    yield directory
    subprocess.run(["umount", directory], check=True)
