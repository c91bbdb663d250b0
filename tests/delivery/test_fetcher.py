"""A file comes whole from sources that fail, lie, crawl or lack it; and what has arrived is never lost."""

from __future__ import annotations

import shutil
import socket
import threading
import time
from collections import namedtuple
from contextlib import closing

import pytest

from edgeslm.delivery.chunks import write_map
from edgeslm.delivery.fetcher import Fetcher
from edgeslm.delivery.file_source import FileSource
from edgeslm.delivery.http_server import PackageServer, by_sha256, in_directory
from edgeslm.delivery.http_source import HttpSource
from edgeslm.delivery.port import Polled
from edgeslm.errors import (
    ChunkMapError,
    DeliveryBusyError,
    DeliveryCancelledError,
    DeliveryDeadlineError,
    DeliveryDiskError,
    DeliveryPolicyError,
    DeliveryRoomError,
    NoSourceError,
    SourceError,
)
from edgeslm.schema.delivery import BLOCK_BYTES, BlobRef, DeliveryPolicy

SIZE = 20 * BLOCK_BYTES + 3


@pytest.fixture
def blob(library):
    return library.add(SIZE)


@pytest.fixture
def fetcher(tmp_path, clock):
    return Fetcher(tmp_path / "arriving", now=clock.now, chance=lambda: 1.0)


def names(fetcher) -> set[str]:
    return {path.name for path in fetcher.directory.iterdir()} - {".lock"}


def fail(*_):
    raise SourceError("refused", source="failing")


# --- the file -----------------------------------------------------------------------------------------------


def test_a_file_comes_whole_and_leaves_only_itself_and_its_map(
    fetcher, library, blob, scripted, policy, told
):
    path = fetcher.fetch(blob, [scripted()], policy, told.append)
    assert path.read_bytes() == library.data(blob.sha256)
    assert names(fetcher) == {f"{blob.sha256}.blob", f"{blob.chunks_sha256}.blob"}
    assert told[-1].done_bytes == told[-1].blob.size_bytes == SIZE
    assert told[-1].source == "scripted"


def test_what_is_here_is_not_fetched_again(fetcher, blob, scripted, policy):
    fetcher.fetch(blob, [scripted()], policy)
    assert fetcher.fetch(blob, [], policy) == fetcher.path(blob)


def test_what_went_bad_is_fetched_again_and_nothing_else(fetcher, library, blob, scripted, policy):
    path = fetcher.fetch(blob, [scripted()], policy)
    with path.open("r+b") as stream:
        stream.seek(7 * BLOCK_BYTES)
        stream.write(b"rotten")
    source = scripted()
    assert fetcher.fetch(blob, [source], policy).read_bytes() == library.data(blob.sha256)
    assert source.given == [7]


def test_what_arrived_is_not_fetched_again_by_the_next_attempt(
    tmp_path, clock, fetcher, library, blob, scripted, policy
):
    def cut_off(index, data):
        if index == 12 and len(data) == BLOCK_BYTES:
            clock.cancel_at_s = clock.s
        return data

    with pytest.raises(DeliveryCancelledError):
        fetcher.fetch(blob, [scripted(cut_off)], policy, cancelled=clock)
    assert fetcher.arrived_bytes(blob) >= 12 * BLOCK_BYTES
    source = scripted()
    later = Fetcher(tmp_path / "arriving")
    assert later.fetch(blob, [source], policy).read_bytes() == library.data(blob.sha256)
    assert source.given == list(range(12, 21))


def test_a_file_without_a_map_is_checked_as_a_whole(fetcher, library, scripted, policy):
    blob = library.add(SIZE, chunks=False)
    assert fetcher.fetch(blob, [scripted()], policy).read_bytes() == library.data(blob.sha256)


def test_where_nobody_has_the_map_the_whole_is_checked(fetcher, library, blob, scripted, policy, caplog):
    (library.directory / blob.chunks_sha256).unlink()
    assert fetcher.fetch(blob, [scripted()], policy).read_bytes() == library.data(blob.sha256)
    assert "only the whole will be checked" in caplog.text


def test_a_map_that_is_none_is_an_error_that_no_source_can_mend(fetcher, library, blob, scripted, policy):
    no_map = library.add_bytes(bytes(56 + 21 * 32), chunks=False)
    wrong = blob.model_copy(update={"chunks_sha256": no_map.sha256})
    with pytest.raises(ChunkMapError):
        fetcher.fetch(wrong, [scripted()], policy)


# --- sources ------------------------------------------------------------------------------------------------


def test_a_source_that_fails_leaves_it_to_the_next(fetcher, library, blob, scripted, policy):
    bad, good = scripted(fail, name="bad"), scripted(name="good")
    assert fetcher.fetch(blob, [bad, good], policy).read_bytes() == library.data(blob.sha256)
    assert len(bad.asked) == 2  # for the map, and for the file
    assert bad.given == []


def test_a_source_that_lacks_the_file_is_not_asked_again(fetcher, library, blob, scripted, policy, clock):
    other_library = type(library)(library.directory.parent / "other library")
    empty = scripted(name="empty")
    empty.library = other_library
    times = []

    def sometimes(_, data):
        times.append(1)
        if len(times) % 3 == 0:
            fail()
        return data

    fetcher.fetch(blob, [empty, scripted(sometimes, name="good")], policy, cancelled=clock)
    assert [sha256 for sha256, _ in empty.asked] == [blob.chunks_sha256, blob.sha256]


def test_a_source_that_breaks_off_goes_on_at_once_and_is_preferred_still(
    fetcher, library, blob, scripted, policy, clock
):
    count = 0

    def breaking(_, data):
        nonlocal count
        count += 1
        if count % 4 == 0:
            fail()
        return data

    first, second = scripted(breaking, name="first"), scripted(name="second")
    fetcher.fetch(blob, [first, second], policy, cancelled=clock)
    assert second.given == []
    assert sorted(first.given) == sorted([0, *range(21)])
    assert clock.waits == []


def test_the_only_source_is_waited_for_ever_longer(fetcher, library, blob, scripted, clock, told):
    policy = DeliveryPolicy(retry_s=2, max_retry_s=60)

    def down_for_300_s(_, data):
        if clock.s < 1300:
            fail()
        return data

    fetcher.fetch(blob, [scripted(down_for_300_s)], policy, told.append, clock)
    assert clock.waits == [2, 4, 8, 16, 32, 60, 60, 60, 60]
    assert {progress.problem for progress in told if progress.source is None} == {"refused"}
    assert told[-1].problem is None


def test_a_source_that_says_when_is_asked_then(fetcher, blob, scripted, clock, policy):
    def busy(_, data):
        if clock.s < 1050:
            raise SourceError("busy", source="x", retry_after_s=55)
        return data

    fetcher.fetch(blob, [scripted(busy)], policy, cancelled=clock)
    assert clock.waits == [55]


def test_wrong_blocks_are_never_kept_and_their_source_is_dropped(
    fetcher, library, blob, scripted, policy, clock
):
    def lying(index, data):
        return bytes(len(data)) if index % 3 == 2 else data

    liar, honest = scripted(lying, name="liar"), scripted(name="honest")
    path = fetcher.fetch(blob, [liar, honest], policy, cancelled=clock)
    assert path.read_bytes() == library.data(blob.sha256)
    assert sum(index % 3 == 2 for index in liar.given) <= 3


def test_when_all_lie_nothing_is_left_that_is_wrong(fetcher, library, blob, scripted, policy, clock):
    def lying(index, data):
        return bytes(len(data)) if index > 5 else data

    with pytest.raises(NoSourceError, match="other bytes as block 6") as caught:
        fetcher.fetch(blob, [scripted(lying), scripted(lying)], policy, cancelled=clock)
    assert not caught.value.missing
    assert caught.value.sha256 == blob.sha256
    assert not fetcher.path(blob).exists()
    source = scripted()
    fetcher.fetch(blob, [source], policy)
    assert source.given == list(range(6, 21))


def test_without_a_map_the_source_of_a_wrong_file_is_found_out(fetcher, library, scripted, policy, clock):
    blob = library.add(SIZE, chunks=False)
    calls = []

    def lying_and_breaking(index, data):
        calls.append(index)
        if len(calls) == 5:
            fail()
        return bytes(len(data)) if index == 3 else data

    liar, honest = scripted(lying_and_breaking, name="liar"), scripted(name="honest")
    path = fetcher.fetch(blob, [liar, honest], policy, cancelled=clock)
    assert path.read_bytes() == library.data(blob.sha256)
    assert honest.given == list(range(21))
    assert len(liar.given) == 21


def test_without_a_map_blocks_of_two_sources_are_never_mixed(fetcher, library, scripted, policy, clock):
    blob = library.add(SIZE, chunks=False)

    def dying(index, data):
        if index == 10:
            clock.s += 1
            fail()
        return data

    down = []

    def down_at_first(index, data):
        if not down:
            down.append(1)
            fail()
        return data

    first, second = scripted(down_at_first, name="first"), scripted(dying, name="second")
    fetcher.fetch(blob, [first, second], policy, cancelled=clock)
    assert second.given[:10] == list(range(10))
    assert first.given == list(range(21))


def test_no_source_is_left_when_all_say_that_they_lack_it(fetcher, scripted, policy):
    nowhere = BlobRef(sha256="00" * 32, size_bytes=5)
    with pytest.raises(NoSourceError) as caught:
        fetcher.fetch(nowhere, [scripted(), scripted()], policy)
    assert caught.value.missing
    with pytest.raises(NoSourceError, match="there was none"):
        fetcher.fetch(nowhere, [], policy)


def test_a_source_that_gives_nothing_and_says_nothing_is_a_failing_one(fetcher, blob, scripted, clock):
    class Empty(type(scripted())):
        def blocks(self, blob, wanted, received):
            yield from ()

    source = scripted()
    source.__class__ = Empty
    with pytest.raises(DeliveryDeadlineError):
        fetcher.fetch(blob, [source], DeliveryPolicy(deadline_s=100), cancelled=clock)
    assert len(clock.waits) < 10


def test_a_source_that_crawls_is_left_for_another(fetcher, library, blob, scripted, clock):
    def crawling(_, data):
        clock.s += 100
        return data

    policy = DeliveryPolicy(min_bytes_per_s=1024, slow_after_s=30)
    slow, quick = scripted(crawling, name="slow"), scripted(name="quick")
    fetcher.fetch(blob, [slow, quick], policy, cancelled=clock)
    assert len(slow.given) <= 2
    assert quick.given


def test_waiting_for_our_own_cap_is_no_fault_of_the_source(fetcher, blob, scripted, clock):
    policy = DeliveryPolicy(max_bytes_per_s=2048, min_bytes_per_s=2048, slow_after_s=5)
    began_s = clock.s
    fetcher.fetch(blob, [scripted()], policy, cancelled=clock)
    assert clock.s - began_s == pytest.approx(SIZE / 2048, rel=0.02)


def test_the_cap_does_not_hold_for_a_local_disk(fetcher, blob, scripted, clock):
    began_s = clock.s
    fetcher.fetch(blob, [scripted(reach="local")], DeliveryPolicy(max_bytes_per_s=2048), cancelled=clock)
    assert clock.s == began_s


# --- limits -------------------------------------------------------------------------------------------------


def test_the_deadline_ends_it(fetcher, blob, scripted, clock):
    policy = DeliveryPolicy(deadline_s=1000, retry_s=10)
    with pytest.raises(DeliveryDeadlineError):
        fetcher.fetch(blob, [scripted(fail)], policy, cancelled=clock)
    assert clock.s == 2000


def test_patience_ends_it_before_the_deadline(fetcher, blob, scripted, clock, policy):
    with pytest.raises(NoSourceError, match="nothing came for 60 s"):
        fetcher.fetch(blob, [scripted(fail)], policy, cancelled=clock, patience_s=60)
    assert clock.s == 1060


def test_patience_lasts_while_something_comes(fetcher, blob, scripted, clock):
    def slowly(_, data):
        clock.s += 50
        return data

    policy = DeliveryPolicy(min_bytes_per_s=0)
    fetcher.fetch(blob, [scripted(slowly)], policy, cancelled=clock, patience_s=60)
    assert clock.s > 1060


def test_a_cancel_while_waiting_ends_it_at_once(fetcher, blob, scripted, clock, policy):
    clock.cancel_at_s = 1003
    with pytest.raises(DeliveryCancelledError):
        fetcher.fetch(blob, [scripted(fail)], policy, cancelled=clock)


def test_a_cancel_while_a_source_is_silent_ends_it_within_a_second(tmp_path, blob, policy):
    listener = socket.create_server(("127.0.0.1", 0))
    cancelled = threading.Event()
    threading.Timer(0.2, cancelled.set).start()
    began_s = time.monotonic()
    source = HttpSource(f"http://127.0.0.1:{listener.getsockname()[1]}")
    with closing(listener), pytest.raises(DeliveryCancelledError):
        Fetcher(tmp_path / "arriving").fetch(blob, [source], policy, cancelled=cancelled)
    assert time.monotonic() - began_s < 1.5


def test_a_cancel_may_be_a_question(tmp_path, blob, scripted, policy):
    answers = [False] * 4
    polled = Polled(lambda: not answers or answers.pop())
    with pytest.raises(DeliveryCancelledError):
        Fetcher(tmp_path / "arriving").fetch(blob, [scripted(fail)], policy, cancelled=polled)


def test_what_is_no_longer_allowed_ends_and_stays(fetcher, library, blob, scripted, clock, policy):
    def allowed(source):
        assert source.name == "scripted"
        if clock.s > 1020:
            raise DeliveryPolicyError("metered now", retry_after_s=600)

    def slowly(_, data):
        clock.s += 1
        return data

    with pytest.raises(DeliveryPolicyError):
        fetcher.fetch(blob, [scripted(slowly)], policy, cancelled=clock, allowed=allowed)
    source = scripted()
    fetcher.fetch(blob, [source], policy)
    assert 0 < len(source.given) < 10


def test_progress_only_grows_and_tells_rate_and_rest(fetcher, blob, scripted, clock, policy, told):
    def steadily(_, data):
        clock.s += 0.5
        return data

    fetcher.fetch(blob, [scripted(steadily)], policy, told.append, clock)
    of_file = [progress for progress in told if progress.blob == blob]
    assert [progress.done_bytes for progress in of_file] == sorted(
        progress.done_bytes for progress in of_file
    )
    assert of_file[-1].moved_bytes == SIZE + 56 + 21 * 32
    middle = of_file[10]
    assert middle.rate_bytes_per_s == pytest.approx(BLOCK_BYTES / 0.5, rel=0.2)
    assert middle.eta_s == pytest.approx((SIZE - middle.done_bytes) / middle.rate_bytes_per_s)
    assert len(of_file) < 30


# --- disks --------------------------------------------------------------------------------------------------


def test_too_little_room_is_told_with_figures_before_anything_is_asked(
    fetcher, blob, scripted, policy, monkeypatch
):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 0, 20 * 2**20))
    source = scripted()
    with pytest.raises(DeliveryRoomError) as caught:
        fetcher.fetch(blob, [source], policy, room_bytes=30 * 2**20)
    assert caught.value.free_bytes == 20 * 2**20
    assert caught.value.needed_bytes == SIZE + (30 + 16) * 2**20
    assert source.asked == []
    fetcher.fetch(blob, [source], policy)  # without the room to unpack it fits


def test_a_disk_that_fills_up_meanwhile_is_a_room_error_and_a_later_fetch_goes_on(
    small_disk, library, scripted, policy
):
    blob = library.add(5 * 2**20)
    fetcher = Fetcher(small_disk)

    def fill_up(index, data):
        if index == 60:
            ballast = bytes(shutil.disk_usage(small_disk).free)
            (small_disk / "ballast").write_bytes(ballast)
        return data

    with pytest.raises(DeliveryRoomError) as caught:
        fetcher.fetch(blob, [scripted(fill_up)], policy)
    assert caught.value.free_bytes < 2**20
    (small_disk / "ballast").unlink()
    source = scripted()
    assert fetcher.fetch(blob, [source], policy).read_bytes() == library.data(blob.sha256)
    assert len(source.given) <= 20


def test_a_card_on_which_blocks_keep_going_bad_is_given_up(fetcher, library, blob, scripted, policy):
    def rot(progress):
        if progress.done_bytes == SIZE:
            with (fetcher.directory / f"{blob.sha256}.part").open("r+b") as stream:
                stream.write(b"rotten")

    source = scripted()
    with pytest.raises(DeliveryDiskError, match="went bad") as caught:
        fetcher.fetch(blob, [source], policy, rot)
    assert caught.value.hint
    assert source.given[-2:] == [0, 0]
    assert not fetcher.path(blob).exists()


def test_a_directory_that_cannot_be_made_is_a_disk_error(tmp_path, blob, scripted, policy):
    (tmp_path / "file").write_text("")
    with pytest.raises(DeliveryDiskError):
        Fetcher(tmp_path / "file" / "arriving").fetch(blob, [scripted()], policy)


def test_one_fetch_at_a_time_works_in_a_directory(fetcher, blob, scripted, policy, tmp_path):
    def meanwhile(_, data):
        other = Fetcher(tmp_path / "arriving")
        for attempt in (lambda: other.fetch(blob, [scripted()], policy), lambda: other.keep_only([])):
            with pytest.raises(DeliveryBusyError):
                attempt()
        return data

    fetcher.fetch(blob, [scripted(meanwhile)], policy)


def test_leftovers_are_removed_and_nothing_else(fetcher, blob, library, scripted, policy):
    other = library.add(5, seed=9)
    for one in (blob, other):
        fetcher.fetch(one, [scripted()], policy)
    rubbish = {f"{'ab' * 32}.part", f"{'ab' * 32}.have", f".{'cd' * 32}.blob.partial"}
    foreign = {"notes.txt", f"{'AB' * 32}.part", f"{'ab' * 32}", f"{'ab' * 32}.slm"}
    for name in rubbish | foreign:
        (fetcher.directory / name).write_text("")
    fetcher.keep_only({blob.sha256})
    assert names(fetcher) == {f"{blob.sha256}.blob", *foreign}
    fetcher.forget({blob.sha256})
    assert names(fetcher) == foreign


# --- real ones ----------------------------------------------------------------------------------------------


class CuttingProxy:
    """Passes a connection on and cuts it after so many bytes; counts what goes to the client."""

    def __init__(self, url: str, cut_bytes: int) -> None:
        self._target = ("127.0.0.1", int(url.rsplit(":", 1)[1]))
        self._cut_bytes = cut_bytes
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.passed_bytes = self.connections = 0
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._pass_on, args=(client,), daemon=True).start()

    def _pass_on(self, client: socket.socket) -> None:
        left = self._cut_bytes
        with client, socket.create_connection(self._target) as server:
            try:
                while left:
                    server.sendall(client.recv(65_536))
                    server.settimeout(0.05)
                    while left:
                        try:
                            data = server.recv(min(left, 16_384))
                        except TimeoutError:
                            break
                        if not data:
                            return
                        client.sendall(data)
                        self.passed_bytes += len(data)
                        left -= len(data)
            except OSError:
                pass

    def close(self) -> None:
        self._listener.close()


@pytest.mark.parametrize("cut_bytes", [30_000, 200_000, 1_000_000])
def test_over_a_link_that_drops_hardly_more_than_the_file_moves(tmp_path, library, cut_bytes):
    blob = library.add(3 * 2**20)
    policy = DeliveryPolicy(retry_s=0.01)
    with (
        PackageServer(by_sha256(in_directory(library.directory))) as server,
        closing(CuttingProxy(server.url, cut_bytes)) as proxy,
    ):
        path = Fetcher(tmp_path / "arriving").fetch(blob, [HttpSource(proxy.url)], policy)
    assert path.read_bytes() == library.data(blob.sha256)
    assert proxy.connections >= blob.size_bytes // cut_bytes
    assert proxy.passed_bytes < 1.05 * blob.size_bytes


def test_a_neighbour_that_was_given_a_file_serves_it_to_the_next(tmp_path, library, blob, policy):
    first = Fetcher(tmp_path / "first")
    first.fetch(blob, [FileSource(library.directory)], policy)
    with PackageServer(by_sha256(in_directory(first.directory))) as server:
        path = Fetcher(tmp_path / "second").fetch(blob, [HttpSource(server.url, reach="lan")], policy)
    assert path.read_bytes() == library.data(blob.sha256)


@pytest.mark.nightly
@pytest.mark.timeout(600)
def test_a_file_above_4_gib_comes_whole(tmp_path, library, policy):
    path = tmp_path / "huge"
    with path.open("wb") as stream:
        stream.truncate(2**32 + 100_000)
        stream.seek(2**32 + 99_999)
        stream.write(b"!")
    blob = write_map(path)
    path.rename(library.directory / blob.sha256)
    (tmp_path / "huge.chunks").rename(library.directory / blob.chunks_sha256)
    fetcher = Fetcher(tmp_path / "arriving")
    with PackageServer(by_sha256(in_directory(library.directory))) as server:
        arrived = fetcher.fetch(blob, [HttpSource(server.url)], policy)
        with arrived.open("r+b") as stream:
            stream.seek(2**32 + 99_999)
            assert stream.read() == b"!"
            stream.seek(2**32 + 99_999)
            stream.write(b"?")
        told = []
        fetcher.fetch(blob, [HttpSource(server.url)], policy, told.append)
    assert told[-1].moved_bytes < 2 * BLOCK_BYTES  # the last block alone
