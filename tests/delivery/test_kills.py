"""A fetch that is killed at any point goes on from what was synced, and ends with the right file."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable

import pytest

from edgeslm.delivery import partial as partial_module
from edgeslm.delivery.fetcher import Fetcher
from edgeslm.delivery.http_server import PackageServer, by_sha256, in_directory
from edgeslm.delivery.http_source import HttpSource
from edgeslm.schema.delivery import BLOCK_BYTES

EVENTS = ("open", "os.rename", "os.remove", "os.mkdir", "os.truncate", "fcntl.flock")
CALLS = ("pwrite", "fdatasync", "fsync")
BATCH = 3


def in_child(work: Callable[[], object], *, at: int) -> int:
    """Run `work` in a forked process that kills itself before its step `at`; its exit status.

    A step is a call that changes the disk, or opens something of it.
    """
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    status = 3
    try:
        count = 0

        def step(event: str, _arguments: object = None) -> None:
            nonlocal count
            if event in EVENTS or event in CALLS:
                if count == at:
                    os.kill(os.getpid(), signal.SIGKILL)
                count += 1

        def counted(name: str) -> Callable[..., object]:
            real = getattr(os, name)

            def call(*arguments: object) -> object:
                step(name)
                return real(*arguments)

            return call

        for name in CALLS:
            setattr(os, name, counted(name))
        sys.addaudithook(step)
        work()
        status = 0
    finally:
        os._exit(status)


@pytest.mark.parametrize("chunks", [True, False])
def test_a_fetch_killed_before_any_step_goes_on(tmp_path, library, scripted, policy, monkeypatch, chunks):
    monkeypatch.setattr(partial_module, "SYNC_BYTES", BATCH * BLOCK_BYTES)
    blob = library.add(6 * BLOCK_BYTES + 5, chunks=chunks)
    whole = library.data(blob.sha256)
    refetched = []
    for step in range(500):
        directory = tmp_path / f"arriving{step}"
        ended = in_child(lambda: Fetcher(directory).fetch(blob, [scripted()], policy), at=step)  # noqa: B023
        source, fetcher = scripted(), Fetcher(directory)
        assert not fetcher.path(blob).exists() or fetcher.path(blob).read_bytes() == whole
        assert fetcher.fetch(blob, [source], policy).read_bytes() == whole
        refetched.append(
            sum(sha256 == blob.sha256 for sha256, runs in source.asked for run in runs for _ in run)
        )
        left = {path.name for path in directory.iterdir()}
        assert left == {".lock", f"{blob.sha256}.blob", *([f"{blob.chunks_sha256}.blob"] if chunks else [])}
        if ended == 0:
            break
        assert ended == -signal.SIGKILL
    else:
        pytest.fail("the fetch never ended")
    assert step > 25
    assert refetched[0] == 7
    assert refetched[-1] == 0
    if chunks:  # what a kill costs is one batch at most, so the rest shrinks by batches
        assert refetched == sorted(refetched, reverse=True)
        assert {7, 4, 1, 0} <= set(refetched)


def test_a_repair_killed_before_any_step_goes_on(tmp_path, library, scripted, policy):
    blob = library.add(6 * BLOCK_BYTES)
    whole = library.data(blob.sha256)
    fetcher = Fetcher(tmp_path / "arriving")
    for step in range(500):
        path = fetcher.fetch(blob, [scripted()], policy)
        with path.open("r+b") as stream:
            stream.seek(4 * BLOCK_BYTES)
            stream.write(b"rotten")
        ended = in_child(lambda: fetcher.fetch(blob, [scripted()], policy), at=step)
        source = scripted()
        assert fetcher.fetch(blob, [source], policy).read_bytes() == whole
        assert source.given in ([], [4])
        if ended == 0:
            return
    pytest.fail("the repair never ended")


CHILD = """
    import sys
    from pathlib import Path
    from edgeslm.delivery import partial
    from edgeslm.delivery.fetcher import Fetcher
    from edgeslm.delivery.http_source import HttpSource
    from edgeslm.schema.delivery import BlobRef, DeliveryPolicy

    partial.SYNC_BYTES = 2**19
    url, directory, blob = sys.argv[1:]
    policy = DeliveryPolicy(max_bytes_per_s=2 * 2**20)
    print("ready", flush=True)
    Fetcher(Path(directory)).fetch(BlobRef.model_validate_json(blob), [HttpSource(url)], policy)
"""


def test_a_process_killed_again_and_again_still_gets_the_file(tmp_path, library, policy):
    blob = library.add(8 * 2**20)
    directory, chance = tmp_path / "arriving", random.Random(11)
    moved, kills = [0], 0

    class Counting:
        def __init__(self, blob):
            self._blob = blob
            self.size_bytes = blob.size_bytes
            self.close = blob.close

        def read(self, offset, size_bytes):
            moved[0] += size_bytes
            return self._blob.read(offset, size_bytes)

    def find(path):
        found = by_sha256(in_directory(library.directory))(path)
        return Counting(found) if found is not None else None

    with PackageServer(find) as server:
        command = [
            sys.executable,
            "-c",
            textwrap.dedent(CHILD),
            server.url,
            directory,
            blob.model_dump_json(),
        ]
        while kills < 5:
            child = subprocess.Popen(command, stdout=subprocess.PIPE)
            assert child.stdout is not None
            assert child.stdout.readline() == b"ready\n"
            until = moved[0] + chance.randint(1, 3 * 2**19)
            while moved[0] < until and child.poll() is None:
                time.sleep(0.002)
            child.kill()
            child.wait()
            child.stdout.close()
            kills += 1
        source = HttpSource(server.url)
        path = Fetcher(directory).fetch(blob, [source], policy)
        source.close()
    assert child.poll() == -signal.SIGKILL
    assert path.read_bytes() == library.data(blob.sha256)
    # Each kill may cost a batch, and what the sockets between held.
    assert moved[0] < blob.size_bytes + (kills + 1) * 4 * 2**20
