"""Whole images past the page cache."""

from __future__ import annotations

import errno
import fcntl
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from edgeslm.errors import ImageError
from edgeslm.flash.image.beside import LAG, Beside
from edgeslm.flash.image.past_cache import STEP_BYTES, SparseWriter, chunks, copy_sparse, is_zero

MIB = 2**20
SIZES = [1, 4095, 4096, STEP_BYTES - 1, STEP_BYTES, STEP_BYTES + 512, 9 * STEP_BYTES + 4097]
SHARED = Path("/dev/shm")


@pytest.fixture(params=["disk", "memory"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A directory on a disk, and one on a file system in memory, which may know no O_DIRECT."""
    if request.param == "disk":
        yield tmp_path
        return
    if not os.access(SHARED, os.W_OK):
        pytest.skip("there is no file system in memory")
    directory = SHARED / f"edgeslm-test-{os.getpid()}-{threading.get_ident()}"
    directory.mkdir()
    try:
        yield directory
    finally:
        for path in directory.iterdir():
            path.unlink()
        directory.rmdir()


def make_holey(path: Path, size: int) -> bytes:
    """A file with data, zeros that are data and holes, one of each in turn."""
    numbers = random.Random(size)
    with path.open("wb") as stream:
        stream.truncate(size)
        for turn, at in enumerate(range(0, size, 3 * MIB + 12_288)):
            stream.seek(at)
            stream.write((bytes(MIB) if turn % 2 else numbers.randbytes(MIB))[: size - at])
    return path.read_bytes()


def forget(path: Path) -> None:
    """Let the kernel keep nothing of a file."""
    with path.open("rb") as stream:
        os.fsync(stream.fileno())
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def flags_of(descriptor: int) -> int:
    return fcntl.fcntl(descriptor, fcntl.F_GETFL)


def need_direct(descriptor: int) -> None:
    """Skip the test where the file system of temporary files knows no O_DIRECT."""
    before = flags_of(descriptor)
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETFL, before | os.O_DIRECT)
    except OSError:
        pytest.skip("the file system of temporary files knows no O_DIRECT")
    fcntl.fcntl(descriptor, fcntl.F_SETFL, before)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("cached", [True, False])
def test_a_file_of_any_size_comes_whole_and_in_order(place: Path, size: int, cached: bool) -> None:
    data = make_holey(place / "file", size)
    if not cached:
        forget(place / "file")
    found, kept = bytearray(), []
    with (place / "file").open("rb") as stream, closing(chunks(stream.fileno(), size)) as pieces:
        for chunk in pieces:
            assert chunk.start == len(found)
            found += bytes(chunk.end - chunk.start) if chunk.data is None else chunk.data
            kept.append(chunk)
            for earlier in kept[-LAG:]:
                if earlier.data is not None:
                    assert earlier.data == memoryview(data)[earlier.start : earlier.end]
    assert found == data


def test_what_is_not_in_memory_is_read_past_the_page_cache_and_what_is_there_from_there(
    tmp_path: Path,
) -> None:
    path = tmp_path / "file"
    make_holey(path, 5 * STEP_BYTES)
    with path.open("rb") as stream:
        before = flags_of(stream.fileno())
        need_direct(stream.fileno())
        with closing(chunks(stream.fileno(), 5 * STEP_BYTES)) as pieces:
            next(pieces)
            assert not flags_of(stream.fileno()) & os.O_DIRECT
        forget(path)
        with closing(chunks(stream.fileno(), 5 * STEP_BYTES)) as pieces:
            next(pieces)
            assert flags_of(stream.fileno()) & os.O_DIRECT
        assert flags_of(stream.fileno()) == before
        stream.seek(0)
        assert stream.read() == path.read_bytes()


def refuse_direct(monkeypatch: pytest.MonkeyPatch, *, when_set: bool) -> None:
    """A file system without O_DIRECT, which says so when it is asked for or when it is used."""
    control, read, write = fcntl.fcntl, os.preadv, os.pwrite

    def on_control(descriptor: int, command: int, argument: int = 0) -> int:
        if command == fcntl.F_SETFL and argument & os.O_DIRECT and when_set:
            raise OSError(errno.EINVAL, "Invalid argument")
        return control(descriptor, command, argument)

    def on_use(call: Callable[..., int]) -> Callable[..., int]:
        def use(descriptor: int, *words: object) -> int:
            if control(descriptor, fcntl.F_GETFL) & os.O_DIRECT:
                raise OSError(errno.EINVAL, "Invalid argument")
            return call(descriptor, *words)

        return use

    monkeypatch.setattr(fcntl, "fcntl", on_control)
    monkeypatch.setattr(os, "preadv", on_use(read))
    monkeypatch.setattr(os, "pwrite", on_use(write))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("when_set", [None, True, False])
def test_a_copy_has_the_same_bytes_and_no_zeros(
    place: Path, monkeypatch: pytest.MonkeyPatch, size: int, when_set: bool | None
) -> None:
    data = make_holey(place / "file", size)
    forget(place / "file")
    if when_set is not None:
        refuse_direct(monkeypatch, when_set=when_set)
    copy_sparse(place / "file", place / "copy")
    assert (place / "copy").read_bytes() == data
    taken = (place / "copy").stat().st_blocks * 512
    assert taken <= (place / "file").stat().st_blocks * 512 + 65_536
    if size > 8 * MIB:
        assert taken < 0.6 * (place / "file").stat().st_blocks * 512 + MIB


def test_two_reads_that_are_refused_at_once_both_go_through_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    data = bytes(range(256)) * (2 * STEP_BYTES // 256)
    path.write_bytes(data)
    forget(path)
    read, begun = os.preadv, threading.Barrier(2)

    def preadv(descriptor: int, buffers: list[memoryview], at: int) -> int:
        if not flags_of(descriptor) & os.O_DIRECT:
            return read(descriptor, buffers, at)
        begun.wait(timeout=10)
        while (
            at and flags_of(descriptor) & os.O_DIRECT
        ):  # the second is told when the first has drawn its conclusion
            time.sleep(0.001)
        raise OSError(errno.EINVAL, "Invalid argument")

    with path.open("rb") as stream:
        need_direct(stream.fileno())
        monkeypatch.setattr("edgeslm.flash.image.past_cache._is_cached", lambda _descriptor, _place: False)
        monkeypatch.setattr(os, "preadv", preadv)
        with closing(chunks(stream.fileno(), len(data))) as pieces:
            assert b"".join(bytes(piece.data or b"") for piece in pieces) == data


def test_a_copy_over_what_is_there_is_refused_and_leaves_it(tmp_path: Path) -> None:
    make_holey(tmp_path / "file", MIB)
    there = tmp_path / "there"
    there.write_bytes(b"precious")
    with pytest.raises(ImageError):
        copy_sparse(tmp_path / "file", there)
    assert there.read_bytes() == b"precious"
    with pytest.raises(ImageError):
        copy_sparse(tmp_path / "missing", tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_disk_that_is_full_is_named_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_holey(tmp_path / "file", 40 * MIB)

    def full(_descriptor: int, _data: object, at: int) -> int:
        raise OSError(errno.ENOSPC, f"No space left on device at {at}")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(ImageError, match="No space left"):
        copy_sparse(tmp_path / "file", tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


@pytest.mark.parametrize("holes", [True, False])
def test_a_file_that_is_shorter_than_it_was_is_found_out(tmp_path: Path, holes: bool) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"\1" * (3 * STEP_BYTES))
    if holes:
        os.truncate(path, 9 * STEP_BYTES)
    with path.open("rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        with closing(chunks(stream.fileno(), size + 1)) as pieces, pytest.raises(EOFError):
            list(pieces)
        with closing(chunks(stream.fileno(), size)) as pieces:
            next(pieces)
            os.truncate(path, size - STEP_BYTES + 5)
            with pytest.raises(EOFError):
                list(pieces)


@pytest.mark.parametrize("step", [1 * MIB, 100_003, 9 * MIB])
@pytest.mark.parametrize("size", [0, 5, 4096, 3 * STEP_BYTES, 6 * STEP_BYTES + 777])
def test_a_stream_in_pieces_of_any_size_is_written_whole(place: Path, step: int, size: int) -> None:
    numbers = random.Random(size)
    data = b"".join(numbers.randbytes(MIB) if turn % 3 else bytes(MIB) for turn in range(-(-size // MIB)))[
        :size
    ]
    with (place / "out").open("xb") as stream, SparseWriter(stream.fileno()) as writer:
        for at in range(0, size, step):
            writer.add(data[at : at + step])
        writer.finish(size)
    assert (place / "out").read_bytes() == data
    assert (place / "out").stat().st_blocks * 512 <= size


def test_a_short_write_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.pwrite
    monkeypatch.setattr(
        os,
        "pwrite",
        lambda descriptor, data, at: write(descriptor, data[: max(4096, len(data) // 8192 * 4096)], at),
    )
    data = random.Random(3).randbytes(2 * MIB)
    with (tmp_path / "out").open("xb") as stream, SparseWriter(stream.fileno()) as writer:
        writer.add(data)
        writer.finish(len(data))
    assert (tmp_path / "out").read_bytes() == data


def test_zero_is_zero() -> None:
    assert is_zero(memoryview(b""))
    assert is_zero(memoryview(bytes(65_536)))
    assert not is_zero(memoryview(bytes(65_535) + b"\1"))


def test_work_beside_is_done_in_its_order_and_lags_by_no_more_than_is_said() -> None:
    go, done = threading.Semaphore(0), list[int]()

    def work(number: int) -> None:
        go.acquire()
        done.append(number)

    with Beside() as beside:
        for number in range(LAG):
            beside.do(work, number)
        assert done == []
        go.release()
        beside.do(work, LAG)
        assert done == [0]
        go.release(LAG)
        beside.wait()
        assert done == list(range(LAG + 1))


def test_what_work_beside_raises_comes_out_with_what_follows() -> None:
    def fail() -> None:
        raise OSError(errno.ENOSPC, "full")

    with Beside() as beside:
        beside.do(fail)
        with pytest.raises(OSError, match="full"):
            beside.wait()
    with Beside() as beside, pytest.raises(OSError, match="full"):  # noqa: PT012 - any of them
        for _ in range(LAG + 1):
            beside.do(fail)
