"""The spool over the in-process broker and real files."""

from __future__ import annotations

import json
import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeslm import codec, topics
from edgeslm.agent.spool import Spool, SpoolLimits
from edgeslm.agent.stamps import iso_time, restamp
from edgeslm.clock import BUILT_AT
from edgeslm.link.inprocess import InProcessBroker, InProcessLink
from edgeslm.link.port import Message
from edgeslm.schema.metrics import Event, InferenceMetrics

FLEET, DEVICE, BOOT = "home", "dev1", "boot-1"
NOW_S = BUILT_AT.timestamp() + 86_400
REPORT = topics.device_topic(FLEET, DEVICE, "m/inference")
EVENT = topics.id_topic(FLEET, DEVICE, "e", "too_hot")
LIMITS = SpoolLimits(per_s=1e6, burst=10**6)


class Time:
    """Clocks that a test moves."""

    def __init__(self) -> None:
        self.mono_s = 1000.0
        self.wall_s = NOW_S
        self.since_boot_s = 50.0

    def pass_s(self, seconds: float) -> None:
        self.mono_s += seconds
        self.wall_s += seconds
        self.since_boot_s += seconds


class Lines:
    """A link that takes what it is given while it is up, and confirms when told."""

    def __init__(self) -> None:
        self.is_up = True
        self.room = 10**6
        self.taken: list[Message] = []

    def publish(self, message: Message) -> int | None:
        if not self.is_up or self.room <= 0:
            return None
        self.room -= 1
        self.taken.append(message)
        return len(self.taken)

    def start(self, events: Any, filters: Any) -> None: ...

    def stop(self, farewell: Message | None = None) -> None: ...

    def payloads(self) -> list[bytes]:
        return [message.payload for message in self.taken]


class World:
    def __init__(self, path: Path) -> None:
        self.path, self.time, self.lines = path, Time(), Lines()
        self.boot = BOOT
        self._confirmed = 0

    def spool(self, limits: SpoolLimits = LIMITS) -> Spool:
        return Spool(
            self.lines,
            self.path,
            self.boot,
            limits=limits,
            clock=lambda: self.time.mono_s,
            wall_clock=lambda: self.time.wall_s,
            since_boot=lambda: self.time.since_boot_s,
            chance=lambda: 1.0,
        )

    def confirm(self, spool: Spool) -> None:
        """The broker confirms everything, and what that lets go."""
        while self._confirmed < len(self.lines.taken):
            self._confirmed += 1
            spool.published(self._confirmed)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path / "spool.db")


def fill(spool: Spool, count: int, *, is_event: bool = False, start: int = 0) -> None:
    for number in range(start, start + count):
        spool.put(EVENT if is_event else REPORT, b"%d" % number, is_event=is_event)


def numbers(world: World) -> list[int]:
    return [int(payload) for payload in world.lines.payloads()]


def test_what_is_sent_at_once_never_touches_the_card(world: World) -> None:
    spool = world.spool()
    spool.connected()
    for _ in range(200):
        fill(spool, 3)
        world.confirm(spool)
        world.time.pass_s(60)
        spool.tick()
    assert spool.waiting == 0
    assert len(world.lines.taken) == 600
    spool.close()
    assert not world.path.exists()


def test_a_short_outage_never_touches_the_card(world: World) -> None:
    spool = world.spool()
    fill(spool, 5)
    world.time.pass_s(59)
    spool.tick()
    assert not world.path.exists()
    spool.connected()
    world.confirm(spool)
    assert numbers(world) == list(range(5))


def test_an_outage_is_written_once_a_minute_and_survives_a_kill(world: World) -> None:
    spool = world.spool()
    fill(spool, 5)
    world.time.pass_s(61)
    spool.tick()
    fill(spool, 5, start=5)
    spool.tick()
    killed = world.spool()  # another process on the same file
    assert killed.waiting == 5
    world.time.pass_s(60)
    spool.tick()
    after = world.spool()
    after.connected()
    world.confirm(after)
    assert numbers(world) == list(range(10))
    assert after.waiting == 0


def test_what_is_left_at_the_end_is_sent_by_the_next_process_before_its_own(world: World) -> None:
    spool = world.spool()
    spool.connected()
    world.lines.room = 2
    fill(spool, 6)
    spool.published(1)
    spool.close()
    world.lines.room = 100
    world.lines.taken.clear()
    world._confirmed = 0
    again = world.spool()
    assert again.waiting == 5  # one was taken and not confirmed
    fill(again, 2, start=6)
    again.connected()
    world.confirm(again)
    assert numbers(world) == [1, 2, 3, 4, 5, 6, 7]
    again.close()
    assert world.spool().waiting == 0


def test_reports_are_dropped_before_events_the_oldest_first_and_counted_over_restarts(world: World) -> None:
    limits = SpoolLimits(most_in_memory=10, most_items=100, per_s=1e6, burst=10**6)
    spool = world.spool(limits)
    fill(spool, 30, is_event=True)
    fill(spool, 270, start=30)
    spool.close()
    after = world.spool(limits)
    assert after.waiting <= 100
    assert after.waiting + after.dropped == 300
    after.connected()
    world.confirm(after)
    sent = numbers(world)
    assert sent[:30] == list(range(30)), "every event is there"
    assert sent[30:] == list(range(300 - len(sent[30:]), 300)), "and the latest reports"


def test_events_are_dropped_too_where_there_are_no_reports(world: World) -> None:
    limits = SpoolLimits(most_in_memory=10, most_items=50, per_s=1e6, burst=10**6)
    spool = world.spool(limits)
    fill(spool, 200, is_event=True)
    spool.close()
    after = world.spool(limits)
    assert after.waiting <= 50
    assert after.waiting + after.dropped == 200


def test_bytes_are_bounded(world: World) -> None:
    limits = SpoolLimits(most_in_memory=4, most_bytes=100_000, per_s=1e6, burst=10**6)
    spool = world.spool(limits)
    for _ in range(100):
        spool.put(REPORT, b"x" * 10_000, is_event=False)
    spool.close()
    assert world.spool(limits).waiting < 10
    assert world.path.stat().st_size < 300_000


def test_a_backlog_waits_a_little_and_goes_at_a_bounded_rate(world: World) -> None:
    spool = world.spool(SpoolLimits(per_s=25, burst=30, return_pause_s=5))
    fill(spool, 200)
    spool.connected()
    assert not world.lines.taken
    world.time.pass_s(5)
    spool.tick()
    world.confirm(spool)
    assert len(world.lines.taken) == 30
    world.time.pass_s(1)
    spool.tick()
    world.confirm(spool)
    assert len(world.lines.taken) == 55
    for _ in range(10):
        world.time.pass_s(1)
        spool.tick()
        world.confirm(spool)
    assert numbers(world) == list(range(200))


def test_a_link_that_takes_nothing_is_asked_less_and_less(world: World) -> None:
    spool = world.spool()
    world.lines.room = 0
    asked = []
    publish = world.lines.publish

    def count(message: Message) -> int | None:
        asked.append(world.time.mono_s)
        return publish(message)

    world.lines.publish = count  # type: ignore[method-assign]
    spool.connected()
    fill(spool, 1)
    for _ in range(600):
        world.time.pass_s(0.1)
        spool.tick()
    assert 5 <= len(asked) <= 10


def test_what_was_not_confirmed_goes_again_in_order_under_the_same_bytes(world: World) -> None:
    spool = world.spool()
    spool.connected()
    fill(spool, 20)
    assert numbers(world) == list(range(8)), "a window of them"
    spool.published(1)
    spool.disconnected()
    world.lines.taken.clear()
    world._confirmed = 0
    spool.connected()
    world.confirm(spool)
    assert numbers(world) == list(range(1, 20))


def test_a_file_that_is_none_is_set_aside_and_the_spool_works(world: World) -> None:
    world.path.write_bytes(b"no database" * 100)
    spool = world.spool()
    fill(spool, 3)
    spool.close()
    assert world.spool().waiting == 3
    assert world.path.with_name("spool.db.set-aside").read_bytes().startswith(b"no database")


def test_without_a_disk_memory_stays_bounded_and_events_go_last(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no directory")
    world = World(tmp_path / "file" / "spool.db")
    spool = world.spool(SpoolLimits(most_in_memory=20))
    fill(spool, 5, is_event=True)
    fill(spool, 100, start=5)
    assert (spool.waiting, spool.dropped) == (20, 85)
    spool.connected()
    world.confirm(spool)
    assert numbers(world)[:5] == list(range(5))
    spool.close()


def test_a_full_disk_loses_nothing_that_is_not_counted_and_the_spool_recovers(world: World) -> None:
    limits = SpoolLimits(most_in_memory=50, per_s=1e6, burst=10**6)
    spool = world.spool(limits)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    made = 0
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))  # as a full disk: writes fail
        for made in range(1, 401):
            world.time.pass_s(1.5)
            spool.put(REPORT, b"%06d" % made + b" " * 1000, is_event=False)
            spool.tick()
        assert spool.dropped > 0
        assert spool.waiting + spool.dropped == made
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    world.time.pass_s(100)
    spool.tick()
    dropped = spool.dropped
    spool.close()
    again = world.spool(limits)
    assert again.waiting + again.dropped == made
    assert again.dropped == dropped
    again.connected()
    world.confirm(again)
    sent = [int(payload[:6]) for payload in world.lines.payloads()]
    assert sent == sorted(set(sent))
    assert len(sent) + dropped == made
    again.close()


# --- time ------------------------------------------------------------------------------------------------------


def report(world: World, seq: int = 7) -> bytes:
    is_set = world.time.wall_s >= BUILT_AT.timestamp()
    return codec.encode(
        InferenceMetrics(
            device=DEVICE,
            seq=seq,
            at=iso_time(world.time.wall_s),
            clock_set=is_set,
            span_s=60,
            waiting=0,
            models=(),
        )
    )


def event(world: World) -> bytes:
    figures: dict[str, float | str] = {"at": '"at":"1970-01-01"', "temperature_c": 80.0}
    at = iso_time(world.time.wall_s)
    return codec.encode(Event(device=DEVICE, type="too_hot", at=at, detail="hot", figures=figures))


def test_stamps_of_a_board_without_a_clock_are_corrected_once_time_is_known(world: World) -> None:
    world.time.wall_s = 12.0
    spool = world.spool()
    spool.put(REPORT, report(world), is_event=False)
    spool.put(EVENT, event(world), is_event=True)
    world.time.pass_s(300)
    world.time.wall_s = NOW_S
    spool.connected()
    first, second = (json.loads(payload) for payload in world.lines.payloads())
    assert first["at"] == second["at"] == iso_time(NOW_S - 300)
    assert first["clock_set"] is True
    assert first["seq"] == 7
    assert second["figures"] == {"at": '"at":"1970-01-01"', "temperature_c": 80.0}


def test_old_ones_wait_for_the_clock_but_not_for_ever(world: World) -> None:
    world.time.wall_s = 12.0
    spool = world.spool()
    spool.put(REPORT, report(world), is_event=False)
    world.time.pass_s(600)
    spool.connected()
    world.time.pass_s(59)
    spool.tick()
    assert not world.lines.taken
    world.time.pass_s(2)
    spool.tick()
    assert json.loads(world.lines.payloads()[0])["clock_set"] is False


def test_new_ones_do_not_wait_for_the_clock(world: World) -> None:
    world.time.wall_s = 12.0
    spool = world.spool()
    spool.connected()
    spool.put(REPORT, report(world), is_event=False)
    assert len(world.lines.taken) == 1


def test_the_time_of_a_boot_that_became_known_too_late_is_kept_for_the_next_process(world: World) -> None:
    world.time.wall_s = 12.0
    spool = world.spool()
    spool.put(REPORT, report(world), is_event=False)
    world.time.pass_s(61)
    spool.tick()  # on the card now, with a wrong time
    world.time.wall_s = NOW_S
    spool.tick()  # and the clock is set
    spool.close()
    world.boot = "boot-2"
    world.time.since_boot_s = 3.0
    world.time.wall_s = NOW_S + 5000
    after = world.spool()
    after.connected()
    assert json.loads(world.lines.payloads()[0])["at"] == iso_time(NOW_S - 61)


def test_the_time_of_a_boot_that_never_became_known_stays_marked_as_unknown(world: World) -> None:
    world.time.wall_s = 12.0
    spool = world.spool()
    spool.put(REPORT, report(world), is_event=False)
    spool.close()
    world.boot = "boot-2"
    world.time.wall_s = NOW_S
    after = world.spool()
    after.connected()
    sent = json.loads(world.lines.payloads()[0])
    assert sent["clock_set"] is False
    assert sent["at"].startswith("1970")


@given(st.binary(max_size=200), st.floats(allow_nan=True, allow_infinity=True))
@settings(max_examples=100)
def test_nothing_makes_restamping_fail(payload: bytes, wall_s: float) -> None:
    assert restamp(REPORT, payload, wall_s) == payload
    assert restamp("some/where", payload, wall_s) == payload


# --- any sequence of faults ------------------------------------------------------------------------------------

STEPS = st.lists(
    st.sampled_from(
        ["put", "put", "put", "event", "minute", "up", "down", "confirm", "confirm-all", "restart"]
    ),
    max_size=60,
)


@given(STEPS)
@settings(max_examples=150, deadline=None)
def test_whatever_fails_nothing_is_lost_and_firsts_come_in_order(
    tmp_path_factory: pytest.TempPathFactory, steps: list[str]
) -> None:
    world = World(tmp_path_factory.mktemp("spool") / "spool.db")
    limits = SpoolLimits(most_in_memory=4, per_s=1e6, burst=10**6, return_pause_s=0)
    spool = world.spool(limits)
    is_up, made = False, 0

    def confirm(most: int) -> None:
        while is_up and most and world._confirmed < len(world.lines.taken):
            world._confirmed += 1
            spool.published(world._confirmed)
            most -= 1

    for step in [*steps, "up", "confirm-all"]:
        if step in {"put", "event"}:
            spool.put(EVENT if step == "event" else REPORT, b"%d" % made, is_event=step == "event")
            made += 1
        elif step == "minute":
            world.time.pass_s(61)
            spool.tick()
        elif step == "up" and not is_up:
            is_up = True
            spool.connected()
        elif step == "down" and is_up:
            is_up = False
            world._confirmed = len(world.lines.taken)
            spool.disconnected()
        elif step.startswith("confirm"):
            confirm(2 if step == "confirm" else 10**6)
        elif step == "restart":
            is_up = False
            spool.close()
            world._confirmed = len(world.lines.taken)
            spool = world.spool(limits)
    confirm(10**6)
    firsts = list(dict.fromkeys(numbers(world)))
    assert firsts == list(range(made))
    assert (spool.waiting, spool.dropped) == (0, 0)
    spool.close()


# --- the in-process link ---------------------------------------------------------------------------------------


class Events:
    """The agent's part: hands the news on."""

    def __init__(self) -> None:
        self.spool: Spool | None = None
        self.got: list[bytes] = []

    def on_message(self, message: Message) -> None:
        self.got.append(message.payload)
        message.acknowledge()

    def on_connected(self, *, session_present: bool) -> None:
        if self.spool is not None:
            self.spool.connected()

    def on_disconnected(self, reason: str) -> None:
        if self.spool is not None:
            self.spool.disconnected()

    def on_published(self, token: int) -> None:
        if self.spool is not None:
            self.spool.published(token)


@pytest.fixture
def linked(tmp_path: Path) -> Iterator[tuple[InProcessBroker, Spool, Events]]:
    broker = InProcessBroker()
    watcher, device = Events(), Events()
    watching, link = InProcessLink(broker, "watcher"), InProcessLink(broker, DEVICE)
    device.spool = Spool(
        link, tmp_path / "spool.db", BOOT, limits=SpoolLimits(return_pause_s=0.1, per_s=2000)
    )
    watching.start(watcher, [(f"{topics.ROOT}/#", 1)])
    link.start(device, [])
    yield broker, device.spool, watcher
    link.stop()
    watching.stop()
    device.spool.close()


def wait_for(is_met: Callable[[], bool]) -> None:
    until_s = time.monotonic() + 20
    while not is_met():
        assert time.monotonic() < until_s
        time.sleep(0.01)


def test_an_outage_of_a_real_link_loses_nothing_and_keeps_the_order(
    linked: tuple[InProcessBroker, Spool, Events],
) -> None:
    broker, spool, watcher = linked
    made = 0
    for _ in range(3):
        fill(spool, 50, start=made)
        broker.cut()
        fill(spool, 400, start=made + 50)
        broker.restore()
        fill(spool, 50, start=made + 450)
        made += 500

    def has_all() -> bool:
        spool.tick()
        return len(set(watcher.got)) == made and spool.waiting == 0

    wait_for(has_all)
    assert [int(payload) for payload in dict.fromkeys(watcher.got)] == list(range(made))
