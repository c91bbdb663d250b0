"""Both ends of the pull, over queues and over a real broker."""

from __future__ import annotations

import random
import threading
from contextlib import closing

import pytest

from edgeslm.delivery.blocks import MAX_DEVICES, WINDOW, BlockServer, block_message
from edgeslm.delivery.fetcher import Fetcher
from edgeslm.delivery.http_server import in_directory
from edgeslm.delivery.mqtt_source import BlockService, MqttSource
from edgeslm.delivery.port import BlockSource
from edgeslm.errors import DeliveryDiskError, LyingSourceError, NoSourceError, SourceError
from edgeslm.link.broker import EmbeddedBroker, find_mosquitto
from edgeslm.link.mqtt import MqttLink
from edgeslm.link.port import Message
from edgeslm.schema.delivery import BLOCK_BYTES, DeliveryPolicy

SIZE = 60 * BLOCK_BYTES + 5


class Wire:
    """Both ends, joined by threads; `spoil` may change, lose or repeat what goes to the device."""

    def __init__(self, find, spoil=lambda payload: [payload], **server) -> None:
        self.under_way = self.most_under_way = self.answers = 0
        self._spoil = spoil
        self._lock = threading.Lock()
        self.service = BlockService(find, self._answer, server=BlockServer(**server))
        self.source = MqttSource(
            lambda sha256, payload: self.service.offer("kitchen", sha256, payload), silence_s=0.2
        )
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self.service.run, args=(self._stopped,), daemon=True)
        self._thread.start()

    def _answer(self, _device: str, sha256: str, payload: bytes) -> None:
        self.answers += 1
        for copy in self._spoil(payload):
            self.source.offer(sha256, copy)

    def close(self) -> None:
        self._stopped.set()
        self._thread.join(5)


@pytest.fixture
def wire(library):
    wires = []

    def make(**named):
        wires.append(Wire(named.pop("find", in_directory(library.directory)), **named))
        return wires[-1]

    yield make
    for one in wires:
        one.close()


@pytest.fixture
def blob(library):
    return library.add(SIZE)


def test_a_file_comes_whole(tmp_path, wire, library, blob, policy):
    one = wire()
    source: BlockSource = one.source
    path = Fetcher(tmp_path / "arriving").fetch(blob, [source], policy)
    assert path.read_bytes() == library.data(blob.sha256)
    assert one.answers == 61 + 1  # and the chunk map


def test_a_file_comes_whole_over_a_broker_that_loses_repeats_and_swaps(tmp_path, wire, library, blob):
    chance = random.Random(5)
    held: list[bytes] = []

    def spoil(payload):
        if chance.random() < 0.03:
            return []
        if chance.random() < 0.2:
            held.append(payload)
            return []
        found = [*held, payload, *([payload] if chance.random() < 0.1 else [])]
        held.clear()
        return found

    policy = DeliveryPolicy(deadline_s=60)
    one = wire(
        spoil=spoil
    )  # the last blocks may be lost without one behind them to tell: only a silence does
    path = Fetcher(tmp_path / "arriving").fetch(blob, [one.source], policy)
    assert path.read_bytes() == library.data(blob.sha256)


def test_a_sender_of_wrong_blocks_is_dropped(tmp_path, wire, blob):
    one = wire(spoil=lambda payload: [payload[:-1] + b"!" if len(payload) > BLOCK_BYTES else payload])
    with pytest.raises(NoSourceError, match="as block"):
        Fetcher(tmp_path / "arriving").fetch(blob, [one.source], POLICY)


POLICY = DeliveryPolicy(retry_s=0.05, max_retry_s=0.1, deadline_s=30)


def test_a_file_that_is_not_there_is_missing(tmp_path, wire, library):
    blob = library.add(1000)
    (library.directory / blob.sha256).unlink()
    with pytest.raises(NoSourceError) as caught:
        Fetcher(tmp_path / "arriving").fetch(blob, [wire().source], POLICY)
    assert caught.value.missing


def test_a_sender_that_is_busy_is_asked_again_later(wire, blob):
    one = wire(max_devices=0)
    with closing(one.source), pytest.raises(SourceError) as caught:
        list(one.source.blocks(blob, [range(1)], lambda _: None))
    assert caught.value.retry_after_s == 30


def test_a_file_that_cannot_be_read_gives_no_block_and_ends_nothing(wire, library, blob):
    class Broken:
        size_bytes = SIZE

        def read(self, offset, size_bytes):
            raise DeliveryDiskError("rotten", path="x")

        def close(self):
            pass

    mended = threading.Event()

    def find(sha256):
        return in_directory(library.directory)(sha256) if mended.is_set() else Broken()

    threading.Timer(0.3, mended.set).start()
    with closing(wire(find=find).source) as source:
        assert len(list(source.blocks(blob, [range(2)], lambda _: None))) == 2
    assert mended.is_set()


def test_answers_about_another_file_are_not_taken(wire, blob):
    source = MqttSource(lambda *_: None)
    calls = []

    def received(size):
        calls.append(size)
        source.offer("00" * 32, block_message(0, bytes(BLOCK_BYTES)))
        if len(calls) > 2:
            raise LyingSourceError("enough", source="test")

    with pytest.raises(LyingSourceError):
        list(source.blocks(blob, [range(1)], received))
    assert calls == [0] * 3


def test_a_flood_of_answers_fills_no_memory(wire, blob):
    source = MqttSource(lambda *_: None)
    for _ in range(10_000):
        source.offer(blob.sha256, bytes(1000))
    assert source._answers.qsize() <= 4 * WINDOW


class Ends:
    """Both ends at a real broker: one sender, and a source for each device."""

    def __init__(self, broker: EmbeddedBroker, find) -> None:
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self.published = self.taken = self.most_under_way = 0
        self.service = BlockService(find, self._answer)
        self.sender = self._link(broker, "sender", "t/+/fetch/+", self._requested)
        self._links = [self.sender]
        self.sources: list[MqttSource] = []
        for number in range(MAX_DEVICES):
            self._add_device(broker, f"d{number}")
        self._thread = threading.Thread(target=self.service.run, args=(self._stopped,), daemon=True)
        self._thread.start()

    def _link(self, broker: EmbeddedBroker, name: str, topic: str, on_message) -> MqttLink:
        connected = threading.Event()

        class Events:
            def on_message(self, message):
                on_message(message)

            def on_connected(self, *, session_present):
                connected.set()

            def on_disconnected(self, reason):
                pass

            def on_published(self, token):
                pass

        link = MqttLink(broker.client_config(), name)
        link.start(Events(), [(topic, 0)])
        assert connected.wait(10)
        return link

    def _add_device(self, broker: EmbeddedBroker, device: str) -> None:
        source = MqttSource(
            lambda sha256, payload: link.publish(Message(f"t/{device}/fetch/{sha256}", payload, qos=1)),
            silence_s=1.0,
        )

        def answered(message: Message) -> None:
            with self._lock:
                self.taken += len(message.payload)
            source.offer(message.topic.split("/")[3], message.payload)

        link = self._link(broker, device, f"t/{device}/blocks/+", answered)
        self._links.append(link)
        self.sources.append(source)

    def _requested(self, message: Message) -> None:
        _, device, _, sha256 = message.topic.split("/")
        self.service.offer(device, sha256, message.payload)

    def _answer(self, device: str, sha256: str, payload: bytes) -> None:
        self.sender.publish(Message(f"t/{device}/blocks/{sha256}", payload, qos=0))
        with self._lock:
            self.published += len(payload)
            self.most_under_way = max(self.most_under_way, self.published - self.taken)

    def close(self) -> None:
        self._stopped.set()
        self._thread.join(5)
        for link in self._links:
            link.stop()


@pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed")
def test_eight_devices_at_once_never_have_10_mb_in_a_real_broker(tmp_path, library, policy):
    blob = library.add(6 * 2**20)
    found: list[bool] = []
    with (
        EmbeddedBroker(kind="mosquitto") as broker,
        closing(Ends(broker, in_directory(library.directory))) as ends,
    ):

        def fetch(number: int) -> None:
            path = Fetcher(tmp_path / f"arriving{number}").fetch(blob, [ends.sources[number]], policy)
            found.append(path.read_bytes() == library.data(blob.sha256))

        threads = [threading.Thread(target=fetch, args=(number,)) for number in range(MAX_DEVICES)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert found == [True] * MAX_DEVICES
    assert ends.most_under_way < 10_000_000
    assert ends.published < 1.05 * MAX_DEVICES * blob.size_bytes
