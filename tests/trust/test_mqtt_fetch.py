"""Metadata over MQTT: both ends together, and the device's end against one that lies. The wire is two calls."""

from __future__ import annotations

import itertools
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.update_trust_rig import key, rig
from edgeslm.codec import decode, encode
from edgeslm.errors import (
    EdgeslmError,
    MetadataExpiredError,
    MetadataFetchError,
    MetadataHashError,
    MetadataMissingError,
    MetadataSizeError,
    MetadataVersionError,
    SlowRetrievalError,
)
from edgeslm.schema.delivery import MAX_METADATA_BYTES, MetadataRefusal, MetadataRequest
from edgeslm.trust.mqtt_fetch import PART_BYTES, MetadataService, MqttFetch, is_metadata_name

Behave = Callable[[str, MetadataRequest, Callable[[bytes], None]], None]
"""What the other end does with a request about the file of that name; it has a way to answer."""


def part(number: int, offset: int, size_bytes: int, data: bytes) -> bytes:
    return struct.pack("<4sQII", b"SLM1", number, offset, size_bytes) + data


def device_of(behave: Behave, **times: float) -> MqttFetch:
    """A device whose questions go to `behave`, on the thread that asks."""

    def ask(name: str, payload: bytes) -> None:
        behave(name, decode(MetadataRequest, payload), lambda answer: fetch.offer(name, answer))

    fetch = MqttFetch(ask, **{"retry_s": 0.02, "silence_s": 0.3, "deadline_s": 0.6, **times})
    return fetch


def honest(directory: Path) -> Behave:
    service = MetadataService(directory, lambda *_: None)

    def behave(name: str, request: MetadataRequest, answer: Callable[[bytes], None]) -> None:
        said = service.answer(name, encode(request))
        assert said is not None
        answer(said)

    return behave


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "timestamp.json").write_bytes(b"x" * 1000)
    (tmp_path / "7.targets.json").write_bytes(bytes(range(256)) * 600)
    (tmp_path / "notes.json").write_bytes(b"none of a device's business")
    (tmp_path / "8.targets.json").write_bytes(b"x" * (MAX_METADATA_BYTES + 1))
    (tmp_path / "9.targets.json").mkdir()
    return tmp_path


# --- both ends ----------------------------------------------------------------------------------------------


def test_a_file_comes_whole_in_as_many_parts_as_it_takes(directory: Path) -> None:
    asked: list[int] = []
    behave = honest(directory)

    def counted(name: str, request: MetadataRequest, answer: Callable[[bytes], None]) -> None:
        asked.append(request.offset)
        behave(name, request, answer)

    fetch = device_of(counted)
    whole = (directory / "7.targets.json").read_bytes()
    assert fetch("metadata/7.targets.json", len(whole)) == whole
    assert asked == [0, PART_BYTES, 2 * PART_BYTES]
    assert fetch("metadata/timestamp.json", 1000) == b"x" * 1000


def test_nothing_is_given_of_a_file_that_is_longer_than_asked_for(directory: Path) -> None:
    with pytest.raises(MetadataSizeError):
        device_of(honest(directory))("metadata/timestamp.json", 999)


def test_a_missing_file_is_told_from_one_that_cannot_be_read(directory: Path) -> None:
    fetch = device_of(honest(directory))
    with pytest.raises(MetadataMissingError):
        fetch("metadata/2.root.json", 1000)
    for name in ("8.targets.json", "9.targets.json"):
        with pytest.raises(MetadataFetchError) as caught:
            fetch(f"metadata/{name}", 2 * MAX_METADATA_BYTES)
        assert not isinstance(caught.value, MetadataMissingError)


@pytest.mark.parametrize(
    "path", ["metadata/notes.json", "targets/x.slm", "metadata/../x.json", "timestamp.json", "metadata/", ""]
)
def test_a_path_of_something_else_is_not_even_asked_for(path: str) -> None:
    def behave(*_: object) -> None:
        raise AssertionError("asked")

    with pytest.raises(MetadataFetchError):
        device_of(behave)(path, 1000)


@pytest.mark.parametrize("name", ["notes.json", "../secret", "ab" * 32, "7.targets.json/..", "07.root.json"])
def test_the_sender_reads_nothing_but_metadata(directory: Path, name: str) -> None:
    service = MetadataService(directory, lambda *_: None)
    answer = service.answer(name, encode(MetadataRequest(id=5)))
    assert decode(MetadataRefusal, answer or b"") == MetadataRefusal(id=5, reason="missing")


@given(st.binary(max_size=200))
def test_the_sender_survives_whatever_is_sent_to_it(payload: bytes) -> None:
    assert MetadataService(Path("/nowhere"), lambda *_: None).answer("1.root.json", payload) is None


def test_a_digest_is_never_the_name_of_metadata() -> None:
    assert not is_metadata_name("ab" * 32)
    assert all(map(is_metadata_name, ["timestamp.json", "7.root.json", "12.growers-2.json"]))


def test_what_is_lost_is_asked_for_again(directory: Path) -> None:
    count = itertools.count()
    behave = honest(directory)

    def lossy(name: str, request: MetadataRequest, answer: Callable[[bytes], None]) -> None:
        if next(count) % 3 == 2:
            behave(name, request, answer)

    whole = (directory / "7.targets.json").read_bytes()
    assert device_of(lossy, silence_s=5, deadline_s=20)("metadata/7.targets.json", 2**20) == whole


def test_the_sender_s_thread_answers_each_device_and_forgets_what_was_asked_anew(directory: Path) -> None:
    answered: list[tuple[str, str]] = []
    stopped = threading.Event()
    service = MetadataService(directory, lambda device, name, _: answered.append((device, name)))
    for device in ("one", "two"):
        service.offer(device, "timestamp.json", encode(MetadataRequest(id=1)))
    service.offer("one", "7.targets.json", encode(MetadataRequest(id=2)))
    service.offer("three", "timestamp.json", b"\xff")
    thread = threading.Thread(target=service.run, args=(stopped,))
    thread.start()
    until_s = time.monotonic() + 10
    while len(answered) < 2 and time.monotonic() < until_s:
        time.sleep(0.01)
    stopped.set()
    thread.join()
    assert answered == [("one", "7.targets.json"), ("two", "timestamp.json")]


# --- one that lies ------------------------------------------------------------------------------------------


def _silent(name: str, request: MetadataRequest, answer: Callable[[bytes], None]) -> None:
    pass


def _dripping(name: str, request: MetadataRequest, answer: Callable[[bytes], None]) -> None:
    time.sleep(0.02)
    answer(part(request.id, request.offset, 10_000, b"{"))


def _flooding_with_old_answers(name: str, request: MetadataRequest, answer: Callable[[bytes], None]) -> None:
    for _ in range(100):
        answer(part(request.id ^ 1, 0, 1000, b"x" * 1000))
        answer(encode(MetadataRefusal(id=request.id ^ 1, reason="missing")))


def _endless(name: str, request: MetadataRequest, answer: Callable[[bytes], None]) -> None:
    answer(part(request.id, request.offset, 2**32 - 1, b"x" * PART_BYTES))


def _growing(name: str, request: MetadataRequest, answer: Callable[[bytes], None]) -> None:
    answer(part(request.id, request.offset, request.offset + 200, b"x" * 100))


def _more_than_announced(name: str, request: MetadataRequest, answer: Callable[[bytes], None]) -> None:
    answer(part(request.id, request.offset, 100, b"x" * 101))


def _empty(name: str, request: MetadataRequest, answer: Callable[[bytes], None]) -> None:
    answer(part(request.id, request.offset, 0, b""))


def _huge(name: str, request: MetadataRequest, answer: Callable[[bytes], None]) -> None:
    answer(part(request.id, request.offset, 2**20, b"x" * (PART_BYTES + 1)))


def _garbage(name: str, request: MetadataRequest, answer: Callable[[bytes], None]) -> None:
    answer(b"\xff" * 64)


def _no_json(name: str, request: MetadataRequest, answer: Callable[[bytes], None]) -> None:
    answer(b"{" * 100)


def _missing(name: str, request: MetadataRequest, answer: Callable[[bytes], None]) -> None:
    answer(encode(MetadataRefusal(id=request.id, reason="missing")))


LIES: list[tuple[Behave, type[EdgeslmError]]] = [
    (_silent, SlowRetrievalError),
    (_dripping, SlowRetrievalError),
    (_flooding_with_old_answers, SlowRetrievalError),
    (_endless, MetadataSizeError),
    (_growing, MetadataFetchError),
    (_more_than_announced, MetadataFetchError),
    (_empty, MetadataFetchError),
    (_huge, MetadataFetchError),
    (_garbage, MetadataFetchError),
    (_no_json, MetadataFetchError),
    (_missing, MetadataMissingError),
]


@contextmanager
def refusing(error: type[EdgeslmError], behave: Callable[[Path], Behave], file: str) -> Iterator[None]:
    """A device asks another end for `file` and the honest one for the rest; it refuses, and is as it was."""
    with rig() as made:
        made.release("lamp", "1.2.0")
        made.publish()
        lying, right = device_of(behave(made.directory)), device_of(honest(made.server.public / "metadata"))

        def fetch(path: str, max_bytes: int) -> bytes:
            return (lying if path.endswith(file) else right)(path, max_bytes)

        before, began_s = made.kept(), time.monotonic()
        with pytest.raises(error) as caught:
            made.device(fetch).refresh()
        assert caught.type is error
        assert time.monotonic() - began_s < 5, "the deadline was not kept"
        assert made.kept() == before
        yield
        device = made.device(right)
        device.refresh()
        assert device.find("lamp", "1.2.0").info.version == "1.2.0"


@pytest.mark.parametrize(("behave", "error"), LIES, ids=lambda item: getattr(item, "__name__", ""))
def test_what_another_end_sends_is_refused_by_name_and_harms_nothing(
    behave: Behave, error: type[EdgeslmError]
) -> None:
    with refusing(error, lambda _: behave, "timestamp.json"):
        pass


def test_an_older_timestamp_is_refused_as_over_any_other_way() -> None:
    with rig() as made:
        old = (made.server.public / "metadata" / "timestamp.json").read_bytes()
        made.clock.at += timedelta(hours=1)
        made.publish()
        right = device_of(honest(made.server.public / "metadata"))
        made.device(right).refresh()
        before = made.kept()

        def stale(name: str, request: MetadataRequest, answer: Callable[[bytes], None]) -> None:
            answer(part(request.id, 0, len(old), old))

        def fetch(path: str, max_bytes: int) -> bytes:
            return (device_of(stale) if path.endswith("timestamp.json") else right)(path, max_bytes)

        with pytest.raises(MetadataVersionError):
            made.device(fetch).refresh()
        assert made.kept() == before
        made.clock.at += timedelta(days=8)
        with pytest.raises(MetadataExpiredError):
            made.device(right).refresh()


def test_bytes_of_another_file_are_refused() -> None:
    def behave(directory: Path) -> Behave:
        right = honest(directory / "repository" / "public" / "metadata")
        return lambda name, request, answer: right("1.snapshot.json", request, answer)

    with refusing(MetadataHashError, behave, ".snapshot.json"):
        assert key("snapshot")


@given(st.binary(max_size=300))
def test_the_device_survives_whatever_is_sent_to_it(payload: bytes) -> None:
    fetch = device_of(lambda name, request, answer: answer(payload), silence_s=0.01, deadline_s=0.01)
    with pytest.raises((MetadataFetchError, MetadataSizeError)):
        fetch("metadata/timestamp.json", 1000)


def test_a_device_that_is_about_to_stop_waits_for_nothing() -> None:
    asked = threading.Event()
    fetch = device_of(lambda *_: asked.set(), silence_s=60, deadline_s=60)
    refused: list[EdgeslmError] = []

    def run() -> None:
        try:
            fetch("metadata/timestamp.json", 1000)
        except EdgeslmError as error:
            refused.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    assert asked.wait(10)
    fetch.close()
    thread.join(10)
    assert [type(error) for error in refused] == [MetadataFetchError]
