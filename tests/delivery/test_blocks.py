"""The pull over MQTT: every block arrives over a broker that loses, repeats and reorders, and never holds much."""

from __future__ import annotations

import json
import random
from collections import Counter, deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeslm.codec import encode
from edgeslm.delivery.blocks import MAX_DEVICES, MAX_UNASKED, WINDOW, BlockPuller, BlockServer, block_message
from edgeslm.errors import LyingSourceError, SourceError, SourceMissingError
from edgeslm.schema.delivery import BLOCK_BYTES, BlobRef, BlockRefusal, BlockRequest, BlockRun
from edgeslm.schema.message import ErrorBody

COUNT = 100
BLOB = BlobRef(sha256="ab" * 32, size_bytes=COUNT * BLOCK_BYTES - 11)


def asked(request: bytes) -> list[int]:
    runs = json.loads(request)["blocks"]
    return [index for run in runs for index in range(run["first"], run["last"] + 1)]


def block(index: int) -> bytes:
    return block_message(index, bytes([index % 256]) * BLOB.block_bytes(index))


def pull(puller: BlockPuller, answer, now_s: float = 0.0, limit_s: float = 10_000) -> tuple[list[int], int]:
    """Run `puller` to its end; the blocks that came out and the most that was under way.

    `answer` turns a request into (delay, payload) pairs.
    """
    flying: list[tuple[float, int, bytes]] = []
    got, most, number = [], 0, 0
    while not puller.finished:
        request = puller.ask(now_s)
        if request is not None:
            for delay_s, payload in answer(asked(request)):
                number += 1
                flying.append((now_s + delay_s, number, payload))
        most = max(most, sum(len(payload) for _, _, payload in flying))
        wake_s = now_s + puller.wait_s(now_s)
        flying.sort()
        if flying and flying[0][0] <= wake_s:
            now_s, _, payload = flying.pop(0)
            came = puller.receive(payload, now_s)
            if came is not None:
                got.append(came.number)
                assert came.data == block(came.number)[8:]
        else:
            now_s = max(wake_s, now_s + 0.001)
        assert now_s < limit_s
    return got, most


def test_over_a_good_link_every_block_is_asked_for_once():
    requests = []

    def answer(indexes):
        requests.extend(indexes)
        return [(0.01 + 0.001 * place, block(index)) for place, index in enumerate(indexes)]

    puller = BlockPuller(BLOB, [range(COUNT)], 0.0)
    got, most = pull(puller, answer)
    assert sorted(got) == requests == list(range(COUNT))
    assert puller.lost == puller.unasked == 0
    assert most <= WINDOW * (BLOCK_BYTES + 8)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), loss=st.floats(0, 0.4), repeat=st.floats(0, 0.3), spread_s=st.floats(0, 1))
def test_whatever_is_lost_repeated_or_late_every_block_comes_once(seed, loss, repeat, spread_s):
    chance = random.Random(seed)

    def answer(indexes):
        for index in indexes:
            for _ in range(1 + (chance.random() < repeat)):
                if chance.random() >= loss:
                    yield 0.01 + chance.random() * spread_s, block(index)

    wanted = [range(3, 40), range(41, 42), range(60, COUNT)]
    puller = BlockPuller(BLOB, wanted, 0.0, give_up_s=500)
    got, most = pull(puller, answer)
    assert sorted(got) == [index for run in wanted for index in run]
    assert most <= 3 * WINDOW * (BLOCK_BYTES + 8)


def test_one_lost_block_is_asked_for_again_while_the_others_flow():
    lost = {7}

    def answer(indexes):
        for index in indexes:
            if index in lost:
                lost.remove(index)
            else:
                yield 0.05, block(index)

    puller = BlockPuller(BLOB, [range(COUNT)], 0.0)
    got, _ = pull(puller, answer, limit_s=9.0)  # no silence of 10 s was needed
    assert puller.lost == 1
    assert 7 < got.index(7) < 40


def test_blocks_within_a_window_may_come_in_any_order():
    def answer(indexes):
        return [(0.1 - 0.001 * place, block(index)) for place, index in enumerate(indexes)]

    puller = BlockPuller(BLOB, [range(COUNT)], 0.0)
    pull(puller, answer)
    assert puller.lost == 0


def test_over_a_slow_link_few_blocks_come_twice():
    busy_until_s = 0.0

    def pulled(rate: float) -> Counter[int]:
        nonlocal busy_until_s
        busy_until_s, now_s = 0.0, 0.0
        puller = BlockPuller(BLOB, [range(COUNT)], 0.0, give_up_s=300)
        sent: Counter[int] = Counter()
        flying: list[tuple[float, bytes]] = []
        while not puller.finished:
            request = puller.ask(now_s)
            for index in asked(request) if request is not None else []:
                busy_until_s = max(busy_until_s, now_s) + BLOCK_BYTES / rate
                flying.append((busy_until_s, block(index)))
                sent[index] += 1
            wake_s = now_s + max(puller.wait_s(now_s), 0.001)
            if flying and flying[0][0] <= wake_s:
                now_s, payload = flying.pop(0)
                puller.receive(payload, now_s)
            else:
                now_s = wake_s
        return sent

    for rate in (2_000, 5_000, 10_000, 100_000):
        sent = pulled(rate)
        assert sum(sent.values()) <= COUNT + 4, rate


def test_after_a_silence_few_blocks_are_asked_for_at_first():
    puller = BlockPuller(BLOB, [range(COUNT)], 0.0)
    under_way = deque(asked(puller.ask(0.0)))
    for _ in range(30):
        puller.receive(block(under_way.popleft()), 0.1)
        request = puller.ask(0.1)
        under_way.extend(asked(request) if request is not None else [])
    assert len(under_way) > WINDOW // 2
    wait_s = puller.wait_s(0.1)
    assert wait_s >= 10
    assert len(asked(puller.ask(0.1 + wait_s))) == 2


def ask_in_vain(puller: BlockPuller, times_s: list[float]) -> None:
    now_s = 0.0
    while True:
        if puller.ask(now_s) is not None:
            times_s.append(now_s)
        now_s += max(0.5, puller.wait_s(now_s))


def test_a_sender_that_is_gone_is_given_up():
    puller = BlockPuller(BLOB, [range(COUNT)], 0.0, give_up_s=60)
    times_s: list[float] = []
    with pytest.raises(SourceError, match="no block for 60 s"):
        ask_in_vain(puller, times_s)
    assert times_s[-1] <= 70
    assert len(times_s) <= 5  # silences double


@pytest.mark.parametrize(
    "payload",
    [b"", b"x", b"SLB1", b"SLB2" + block(0)[4:], block(0)[:-1], block(0) + b"x", block(99) + bytes(11),
     block_message(COUNT, b"x"), block_message(2**32 - 1, b""), b"{}", b'{"error": 1}', b"{" * 5000],
)  # fmt: skip
def test_what_is_no_answer_is_a_lie(payload):
    puller = BlockPuller(BLOB, [range(COUNT)], 0.0)
    puller.ask(0.0)
    with pytest.raises(LyingSourceError):
        puller.receive(payload, 1.0)


@pytest.mark.parametrize(
    ("code", "kind", "wait_s"), [("busy", SourceError, 7.0), ("unknown_model", SourceMissingError, None)]
)
def test_a_refusal_says_what_to_do(code, kind, wait_s):
    puller = BlockPuller(BLOB, [range(COUNT)], 0.0)
    refusal = encode(BlockRefusal(error=ErrorBody(code=code, message="no", retry_after_s=7.0)))
    with pytest.raises(SourceError) as caught:
        puller.receive(refusal, 0.0)
    assert type(caught.value) is kind
    assert caught.value.retry_after_s == wait_s


def test_blocks_that_nobody_asked_for_are_counted_and_then_too_many():
    puller = BlockPuller(BLOB, [range(COUNT)], 0.0)
    puller.ask(0.0)
    assert puller.receive(block(50), 0.0) is None
    assert puller.unasked == 1
    for _ in range(MAX_UNASKED - 1):
        puller.receive(block(50), 0.0)
    with pytest.raises(LyingSourceError):
        puller.receive(block(50), 0.0)


# --- the sender ---------------------------------------------------------------------------------------------


def request(*runs: tuple[int, int]) -> bytes:
    return encode(BlockRequest(blocks=tuple(BlockRun(first=first, last=last) for first, last in runs)))


def due(server: BlockServer) -> list[tuple[str, int]]:
    found = []
    while (item := server.next()) is not None:
        found.append((item[0], item[2]))
    return found


def test_the_sender_sends_what_was_asked_for_once():
    server = BlockServer()
    assert server.request("a", BLOB, request((0, 2), (5, 5)), 0.0) is None
    assert server.request("a", BLOB, request((2, 3)), 0.0) is None
    assert due(server) == [("a", 0), ("a", 1), ("a", 2), ("a", 5), ("a", 3)]
    assert due(server) == []


def test_no_device_has_more_than_its_window_under_way():
    server = BlockServer()
    server.request("a", BLOB, request((0, 99)), 0.0)
    server.request("a", BLOB, request((50, 99)), 0.0)
    assert len(due(server)) == WINDOW


def test_devices_take_turns():
    server = BlockServer()
    for device in "abc":
        server.request(device, BLOB, request((0, 3)), 0.0)
    order = [device for device, _ in due(server)]
    assert all(sorted(order[at : at + 3]) == ["a", "b", "c"] for at in range(0, 12, 3))


def test_more_devices_than_the_broker_can_hold_windows_of_have_to_wait():
    server = BlockServer()
    for number in range(MAX_DEVICES):
        assert server.request(f"d{number}", BLOB, request((0, 99)), 0.0) is None
    refusal = server.request("late", BLOB, request((0, 9)), 10.0)
    assert json.loads(refusal)["error"]["code"] == "busy"
    assert MAX_DEVICES * WINDOW * BLOCK_BYTES < 10_000_000
    assert len(due(server)) == MAX_DEVICES * WINDOW
    assert server.request("d0", BLOB, request(), 11.0) is None  # it has all that it wanted
    assert server.request("late", BLOB, request((0, 9)), 12.0) is None


def test_devices_that_are_gone_make_room():
    server = BlockServer()
    for number in range(MAX_DEVICES):
        server.request(f"d{number}", BLOB, request((0, 0)), 0.0)
    server.request("d1", BLOB, request((1, 1)), 25.0)
    assert server.request("late", BLOB, request((0, 9)), 31.0) is None
    assert ("d1", 1) in due(server)


@pytest.mark.parametrize(
    ("payload", "code"),
    [
        (b"", "bad_request"),
        (b"[]", "bad_request"),
        (b'{"blocks": [[0, 1]]}', "bad_request"),
        (b'{"blocks": [{"first": 5, "last": 4}]}', "bad_request"),
        (b'{"blocks": [{"first": -1, "last": 4}]}', "bad_request"),
        (b'{"blocks": [{"first": 0, "last": 99999999999}]}', "bad_request"),
        (b'{"v": 2, "blocks": [{"first": 0, "last": 1}]}', "bad_request"),
        (b'{"blocks": [' + b'{"first": 0, "last": 1},' * 64 + b'{"first": 0, "last": 1}]}', "bad_request"),
        (b" " * 20_000, "bad_request"),
    ],
)
def test_a_bad_request_is_refused_and_sends_nothing(payload, code):
    server = BlockServer()
    assert json.loads(server.request("a", BLOB, payload, 0.0))["error"]["code"] == code
    assert due(server) == []


def test_blocks_outside_of_the_file_are_not_there():
    server = BlockServer()
    assert server.request("a", BLOB, request((98, 1000)), 0.0) is None
    assert due(server) == [("a", 98), ("a", 99)]
    assert server.request("a", BLOB, request((500, 1000)), 0.0) is None
    assert due(server) == []


def test_a_file_that_is_not_there_is_refused():
    assert (
        json.loads(BlockServer().request("a", None, request((0, 1)), 0.0))["error"]["code"] == "unknown_model"
    )
