"""What becomes of reports: counted once, wherever and whenever they come; and of devices that lie."""

from __future__ import annotations

import gzip
import json
import random
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import func, select

sys.path.insert(0, str(Path(__file__).parents[3]))

from benchmarks.fleet_metrics_load import FLEET, MODEL, add_devices, inference, power, reports, system
from edgeslm import codec, topics
from edgeslm.errors import FleetError
from edgeslm.fleet.metrics.intake import GARBLED, MOST_OF_ONE, STRIKES, Intake
from edgeslm.fleet.metrics.store import MetricsStore
from edgeslm.fleet.quarantine import quarantined, release
from edgeslm.fleet.store.database import Store, sqlite_url
from edgeslm.fleet.store.metrics import EVENTS, SORTS
from edgeslm.fleet.store.models import EventRow
from edgeslm.power.boards import load_boards
from edgeslm.schema.fleet_metrics import MetricsSettings
from edgeslm.schema.metrics import Event, Metrics

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
SECOND = timedelta(seconds=1)
BOARDS = load_boards()


class World:
    def __init__(self, directory: Path) -> None:
        self.store = Store(sqlite_url(directory / "fleet.db"))
        self.metrics = MetricsStore(sqlite_url(directory / "metrics.db"))
        add_devices(self.store, ["kitchen", "cellar"], NOW)
        self.intake = self.anew()
        self.number = 0

    def anew(self) -> Intake:
        return Intake(self.store, self.metrics, BOARDS, MetricsSettings())

    def send(self, *said: Metrics | Event, now: datetime = NOW, device: str | None = None) -> None:
        self.intake.take([message(one, device) for one in said], now)

    def count(self, sort: Any = "power", device: int = 1) -> int:
        table = SORTS[sort].tables["report"]
        (row,) = self.metrics.rows(select(func.count()).select_from(table).where(table.c.device_id == device))
        return int(row[0])

    def aside(self) -> dict[str, str]:
        with self.store.read() as session:
            return quarantined(session)


def message(said: Metrics | Event, device: str | None = None) -> tuple[str, bytes]:
    name = device or said.device
    if isinstance(said, Event):
        return topics.id_topic(FLEET, name, "e", said.type), codec.encode(said)
    channel: Any = {"Power": "m/power", "Infer": "m/inference", "Syste": "m/system"}[type(said).__name__[:5]]
    return topics.device_topic(FLEET, name, channel), codec.encode(said)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.metrics.close()
    made.store.close()


# --- counting -----------------------------------------------------------------------------------------------


def test_all_sorts_of_reports_are_kept_by_device(world: World) -> None:
    world.intake.take(reports(["kitchen", "cellar"], 0, NOW, random.Random(1)), NOW)
    assert [world.count(sort, 2) for sort in ("power", "inference", "model", "system")] == [1] * 4
    assert world.intake.counts["taken"] == 6


def test_a_report_that_comes_again_counts_once_even_for_a_collector_that_starts_anew(world: World) -> None:
    said = [power("kitchen", seq, NOW + seq * MINUTE) for seq in range(4)]
    world.send(*said, now=NOW + 4 * MINUTE)
    world.send(*said, now=NOW + 5 * MINUTE)
    world.intake = world.anew()
    world.send(*said, now=NOW + 6 * MINUTE)
    assert world.count() == 4


def test_compressed_reports_and_events_count_as_plain_ones_do(world: World) -> None:
    said = list(reports(["kitchen", "cellar"], 0, NOW, random.Random(1)))
    told = message(event("throttled"))
    world.intake.take([(topic, gzip.compress(body)) for topic, body in (*said, told)], NOW)
    assert (world.intake.counts["taken"], world.intake.counts["events"]) == (6, 1)
    world.intake.take([*said, told], NOW)
    assert (world.intake.counts["taken"], world.intake.counts["repeated"]) == (6, 6), "the same, in plain"


def test_two_collectors_of_one_fleet_do_no_harm(world: World) -> None:
    other = world.anew()
    said = [message(power("kitchen", seq, NOW + seq * MINUTE)) for seq in range(4)]
    for intake in (world.intake, other):
        intake.take(said, NOW + 4 * MINUTE)
    assert world.count() == 4


def test_reports_that_come_late_and_in_any_order_are_all_counted(world: World) -> None:
    said = [power("kitchen", seq, NOW + seq * MINUTE) for seq in range(50)]
    random.Random(1).shuffle(said)
    for one in said:
        world.send(one, now=NOW + 60 * MINUTE)
    assert world.count() == 50
    assert world.aside() == {}


def test_a_restart_goes_on_with_counting(world: World) -> None:
    world.send(*(power("kitchen", seq, NOW + seq * MINUTE) for seq in range(40)), now=NOW + 40 * MINUTE)
    world.send(*(power("kitchen", seq, NOW + (45 + seq) * MINUTE) for seq in range(5)), now=NOW + 50 * MINUTE)
    assert (world.count(), world.intake.counts["lost"], world.aside()) == (45, 0, {})


def test_a_board_without_a_clock_is_counted_by_arrival_and_once(world: World) -> None:
    past = datetime(1970, 1, 1, tzinfo=UTC)
    for seq in range(5):
        said = power("kitchen", seq, past + seq * MINUTE).model_copy(update={"clock_set": False})
        world.send(said, now=NOW + seq * MINUTE)
        world.send(said, now=NOW + seq * MINUTE + SECOND)
    assert world.count() == 5
    table = SORTS["power"].tables["report"]
    times = [row[0] for row in world.metrics.rows(select(table.c.at_ms).order_by(table.c.at_ms))]
    assert times == [round((NOW + seq * MINUTE).timestamp() * 1000) for seq in range(5)]


def test_a_device_that_nobody_knows_is_counted_and_dropped(world: World) -> None:
    world.send(power("attic", 0, NOW))
    assert (world.intake.counts["unknown"], world.intake.counts["taken"]) == (1, 0)
    add_devices(world.store, ["attic"], NOW)
    world.send(power("attic", 1, NOW + MINUTE), now=NOW + MINUTE)
    assert world.count(device=3) == 1


def test_a_database_that_refuses_loses_nothing_and_counts_nothing_twice(world: World) -> None:
    said = [power("kitchen", seq, NOW + seq * MINUTE) for seq in range(3)]
    whole = world.metrics.write

    def refuse(batch: object) -> None:
        raise FleetError("the disk is full")

    world.metrics.write = refuse  # type: ignore[method-assign]
    with pytest.raises(FleetError):
        world.send(*said, now=NOW + 3 * MINUTE)
    world.metrics.write = whole  # type: ignore[method-assign]
    world.send(*said, now=NOW + 3 * MINUTE)
    assert (world.count(), world.intake.counts["taken"]) == (3, 3)


# --- hostile bytes ------------------------------------------------------------------------------------------

HOSTILE = [
    b"",
    b"{",
    b"\xff\xfe",
    b"[]",
    b"null",
    b'{"v":1}',
    b"[" * 100_000,
    b'{"a":' * 5_000,
    b"x" * 200_000,
    gzip.compress(bytes(64 * 2**20)),
    gzip.compress(codec.encode(power("kitchen", 0, NOW)))[:-3],
    gzip.compress(gzip.compress(codec.encode(power("kitchen", 0, NOW)))),
    codec.encode(power("kitchen", 0, NOW)).replace(b'"seq":0', b'"seq":-1'),
    codec.encode(power("kitchen", 0, NOW)).replace(b'"seq":0', b'"seq":"0"'),
    codec.encode(power("kitchen", 0, NOW)).replace(b"2026-11", b"2026-13"),
]


@pytest.mark.parametrize("body", HOSTILE, ids=range(len(HOSTILE)))
def test_a_body_that_cannot_be_read_is_counted_and_keeps_nobody_else_from_counting(
    world: World, body: bytes
) -> None:
    topic = topics.device_topic(FLEET, "kitchen", "m/power")
    world.intake.take([(topic, body), message(power("cellar", 0, NOW))], NOW)
    assert (world.intake.counts["garbled"], world.intake.counts["taken"]) == (1, 1)
    assert world.aside() == {}


_NUMBERS = st.one_of(
    st.floats(),
    st.sampled_from([0, -1, 2**31, 2**63, 2**64, 10**400, 1e300, -1e300, 5e-324]),
    st.text(max_size=5),
    st.none(),
)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_value_of_any_field_keeps_another_device_from_counting(world: World, data: st.DataObject) -> None:
    sort = data.draw(st.sampled_from(["power", "inference", "system"]))
    said = {"power": power, "inference": inference, "system": system}[sort]("kitchen", 0, NOW)
    value = json.loads(codec.encode(said))
    parts: list[Any] = [value]
    while parts:
        part = parts.pop()
        keys = list(part) if isinstance(part, dict) else range(len(part))
        for key in keys:
            if isinstance(part[key], dict | list):
                parts.append(part[key])
            elif data.draw(st.integers(0, 9)) == 0:
                part[key] = data.draw(_NUMBERS)
    topic = topics.device_topic(FLEET, "kitchen", f"m/{sort}")  # type: ignore[arg-type]
    before = world.intake.counts["taken"]
    world.intake._strikes.clear()  # in quarantine nothing would be looked at
    world.number += 1
    other = power("cellar", world.number, NOW + world.number * SECOND)
    world.intake.take([(topic, json.dumps(value).encode()), message(other)], NOW + timedelta(hours=1))
    assert world.intake.counts["taken"] >= before + 1
    world.metrics.roll_up()


def test_an_event_s_text_that_no_database_takes_is_made_plain(world: World) -> None:
    said = event("throttled").model_copy(update={"detail": "a\x00b\x1b[31m"})
    world.send(said)
    assert [row[0] for row in world.metrics.rows(select(EVENTS.c.detail))] == ["a?b?[31m"]


def test_garbled_reports_never_lead_to_quarantine_but_to_one_event(world: World) -> None:
    topic = topics.device_topic(FLEET, "kitchen", "m/power")
    for _ in range(3):
        world.intake.take([(topic, b"{")] * GARBLED, NOW)
    assert world.aside() == {}
    with world.store.read() as session:
        events = session.scalars(select(EventRow).where(EventRow.kind == "bad-metrics")).all()
    assert [event.subject for event in events] == ["kitchen"]


@pytest.mark.parametrize(
    "topic",
    [
        "",
        "x/y",
        "edgeslm/v1/green/kitchen/info",
        "edgeslm/v1/green/kitchen/m/other",
        "edgeslm/v1/green/pool/m/power",
    ],
)
def test_other_topics_are_none_of_its_business(world: World, topic: str) -> None:
    world.intake.take([(topic, b"{}")], NOW)
    assert not +world.intake.counts


def test_a_model_s_name_that_could_steer_a_terminal_is_refused(world: World) -> None:
    world.send(
        inference("kitchen", 0, NOW, model="\x1b[31mred"), inference("kitchen", 1, NOW, model="m" * 500)
    )
    assert (world.intake.counts["garbled"], world.count("model")) == (2, 0)


def test_a_device_that_floods_costs_the_others_nothing(world: World) -> None:
    flood = [message(power("kitchen", seq, NOW + seq * SECOND)) for seq in range(MOST_OF_ONE + 50)]
    world.intake.take([*flood, message(power("cellar", 0, NOW))], NOW + timedelta(hours=1))
    assert (world.count(), world.count(device=2), world.intake.counts["flooded"]) == (MOST_OF_ONE, 1, 50)
    with world.store.read() as session:
        assert session.scalars(select(EventRow.kind)).all() == ["metrics-flood"]


# --- quarantine ---------------------------------------------------------------------------------------------


def lie(seq: int) -> Metrics:
    return power("kitchen", seq, NOW + seq * MINUTE).model_copy(update={"energy_j": -5.0})


def test_one_impossible_report_is_passed_over_and_several_are_quarantine(world: World) -> None:
    world.send(lie(0))
    assert (world.aside(), world.count(), world.intake.counts["impossible"]) == ({}, 0, 1)
    for seq in range(1, STRIKES):
        world.send(lie(seq), now=NOW + seq * MINUTE)
    assert list(world.aside()) == ["kitchen"]
    assert "energy_j -5" in world.aside()["kitchen"]


def test_impossible_reports_that_lie_hours_apart_are_no_quarantine(world: World) -> None:
    for seq in range(2 * STRIKES):
        said = power("kitchen", seq, NOW + seq * timedelta(hours=2)).model_copy(update={"energy_j": -5.0})
        world.send(said, now=NOW + seq * timedelta(hours=2))
    assert world.aside() == {}


LIARS = {
    "watts": lie,
    "future": lambda seq: power("kitchen", seq, NOW + timedelta(days=1)),
    "identity": lambda seq: power("cellar", seq, NOW),
    "backwards": lambda seq: power("kitchen", 900 - seq, NOW + seq * SECOND),
    "temperature": lambda seq: system("kitchen", seq, NOW, temperature_c=400.0),
}


@pytest.mark.parametrize("kind", LIARS)
def test_every_kind_of_liar_is_named_and_only_the_liar(world: World, kind: str) -> None:
    for seq in range(STRIKES + 1):
        said = LIARS[kind](seq)
        world.intake.take([message(said, "kitchen"), message(power("cellar", seq, NOW + seq * SECOND))], NOW)
    assert list(world.aside()) == ["kitchen"]
    assert world.count(device=2) == STRIKES + 1


def test_nothing_that_a_device_in_quarantine_sends_is_kept_and_after_its_release_it_counts_again(
    world: World,
) -> None:
    for seq in range(STRIKES):
        world.send(lie(seq), now=NOW)
    world.send(power("kitchen", 5, NOW + 5 * MINUTE), now=NOW + 5 * MINUTE)
    assert (world.count(), world.intake.counts["quarantined"]) == (0, 1)
    with world.store.write() as session:
        release(session, "kitchen", "me", NOW)
    world.send(power("kitchen", 6, NOW + 6 * MINUTE), now=NOW + 6 * MINUTE)
    assert world.count() == 1


# --- events -------------------------------------------------------------------------------------------------


def event(kind: Any, at: datetime = NOW, device: str = "kitchen") -> Event:
    return Event(device=device, type=kind, at=at.isoformat(), detail="it is so", figures={"left_share": -0.3})


def test_events_are_kept_and_those_that_matter_are_events_of_the_device(world: World) -> None:
    world.send(event("budget_exceeded"), event("budget_available"), event("budget_exceeded"))
    assert len(world.metrics.rows(select(EVENTS))) == 2
    with world.store.read() as session:
        kinds = session.scalars(select(EventRow.kind).where(EventRow.subject == "kitchen")).all()
    assert kinds == ["budget_exceeded"]


def test_an_event_under_another_s_type_or_name_is_refused(world: World) -> None:
    body = codec.encode(event("throttled"))
    world.intake.take([(topics.id_topic(FLEET, "kitchen", "e", "too_hot"), body)], NOW)
    world.send(event("throttled"), device="cellar")
    assert (world.intake.counts["garbled"], world.intake.counts["impossible"]) == (1, 1)


def test_a_flood_of_events_is_a_few_rows(world: World) -> None:
    world.send(*(event("throttled", NOW + timedelta(milliseconds=at)) for at in range(500)), now=NOW + MINUTE)
    with world.store.read() as session:
        assert session.scalar(select(func.count()).select_from(EventRow)) == 1


def test_the_model_s_name_is_kept_with_its_version(world: World) -> None:
    world.send(inference("kitchen", 0, NOW))
    assert world.metrics.rows(select(SORTS["model"].tables["report"].c.model)) == [(MODEL,)]
