"""The collector at a broker: what arrives is written, whatever the database does meanwhile."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import func, select

sys.path.insert(0, str(Path(__file__).parents[3]))

from benchmarks.fleet_metrics_load import (
    FLEET,
    add_devices,
    device_names,
    inference,
    noon,
    power,
    reports,
    system,
)
from benchmarks.update_fleet_rig import Visitor, fleet_rig, wait_for
from edgeslm import codec, topics
from edgeslm.cli.fleet_common import Fleet
from edgeslm.cli.fleet_metrics import opened_metrics, running_collector
from edgeslm.clock import utc_now
from edgeslm.errors import FleetError
from edgeslm.fleet.metrics import collector as module
from edgeslm.fleet.metrics.collector import MetricsCollector
from edgeslm.fleet.metrics.intake import Intake
from edgeslm.fleet.metrics.store import Batch, MetricsStore
from edgeslm.fleet.store.database import Store, sqlite_url
from edgeslm.fleet.store.metrics import SORTS
from edgeslm.link.broker import EmbeddedBroker, find_mosquitto
from edgeslm.link.mqtt import MqttLink
from edgeslm.power.boards import load_boards
from edgeslm.schema.config import BrokerConfig
from edgeslm.schema.fleet_metrics import MetricsSettings

NEEDS_MOSQUITTO = pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed")
WAIT_S = 30.0
KEEP = MetricsSettings()
NAMES = device_names(3)


def count(metrics: MetricsStore, width: str = "report") -> int:
    table = SORTS["power"].tables[width]  # type: ignore[index]
    return int(metrics.rows(select(func.count()).select_from(table))[0][0])


class World:
    def __init__(self, directory: Path, broker: EmbeddedBroker) -> None:
        self.store = Store(sqlite_url(directory / "fleet.db"))
        self.metrics = MetricsStore(sqlite_url(directory / "metrics.db"))
        add_devices(self.store, NAMES, noon())
        self.intake = Intake(self.store, self.metrics, load_boards(), KEEP)
        self.config = BrokerConfig(port=broker.port)

    @contextmanager
    def collecting(self) -> Iterator[MetricsCollector]:
        clock = noon() + timedelta(minutes=30)
        link = MqttLink(self.config, "collector")
        made = MetricsCollector(FLEET, link, self.intake, self.metrics, KEEP, clock=lambda: clock)
        with made, Visitor(self.config, "devices") as self.devices:
            assert made.wait_connected(WAIT_S)
            yield made

    def send(self, minutes: range) -> None:
        for minute in minutes:
            for topic, body in reports(
                NAMES, minute, noon() + timedelta(minutes=minute), random.Random(minute)
            ):
                self.devices.publish(topic, body)


@pytest.fixture(scope="module")
def broker() -> Iterator[EmbeddedBroker]:
    with EmbeddedBroker() as running:
        yield running


@pytest.fixture
def world(tmp_path: Path, broker: EmbeddedBroker) -> Iterator[World]:
    made = World(tmp_path, broker)
    yield made
    made.metrics.close()
    made.store.close()


def test_what_arrives_is_written_and_rolled_up_when_it_ends(world: World) -> None:
    with world.collecting():
        world.send(range(1, 6))
        assert wait_for(lambda: count(world.metrics) == 15, WAIT_S)
    assert count(world.metrics, "minute") == 15
    assert count(world.metrics, "hour") > 0


def test_what_arrived_last_is_written_before_it_ends(world: World) -> None:
    with world.collecting() as running:
        world.send(range(1, 3))
        assert wait_for(lambda: running._inbox.qsize() > 0 or count(world.metrics) == 6, WAIT_S)
        world.devices.publish(topics.device_topic(FLEET, NAMES[0], "m/power"), b"{")
    assert count(world.metrics) == 6


def test_a_database_that_refuses_for_a_while_loses_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_RETRY_S", 0.01)
    whole, refusals = world.metrics.write, iter(range(3))

    def write(batch: Batch) -> None:
        if batch.touched and next(refusals, None) is not None:
            raise FleetError("the disk is full")
        whole(batch)

    world.metrics.write = write  # type: ignore[method-assign]
    with world.collecting():
        world.send(range(1, 4))
        assert wait_for(lambda: count(world.metrics) == 9, WAIT_S)
    assert next(refusals, None) is None


def test_a_fault_of_the_program_ends_one_batch_and_not_the_collector(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, faults = world.metrics.write, iter([1])

    def write(batch: Batch) -> None:
        if next(faults, None) is not None:
            raise RuntimeError("unheard of")
        whole(batch)

    world.metrics.write = write  # type: ignore[method-assign]
    with world.collecting():
        world.send(range(1, 2))
        assert wait_for(lambda: next(faults, None) is None, WAIT_S)
        assert wait_for(lambda: _sent_one_more(world), WAIT_S)


def _sent_one_more(world: World) -> bool:
    number = getattr(world, "number", 1) + 1
    world.number = number  # type: ignore[attr-defined]
    world.send(range(number, number + 1))
    return count(world.metrics) > 0


def test_what_comes_faster_than_it_can_be_written_is_dropped_and_counted(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_WAITING", 0)
    with world.collecting() as running:
        world.send(range(1, 2))
        assert wait_for(lambda: running.dropped == 9, WAIT_S)
    assert count(world.metrics) == 0


@NEEDS_MOSQUITTO
def test_a_device_that_joined_is_collected_over_its_own_certificate_and_speaks_for_no_other() -> None:
    with fleet_rig() as rig, rig.service():
        identity = rig.join("kitchen")
        rig.join("cellar")
        now = utc_now()
        with (
            running_collector(Fleet(rig.fleet, None)) as running,
            Visitor(identity.broker_config(), "kitchen") as device,
            opened_metrics(Fleet(rig.fleet, None)) as metrics,
        ):
            assert running.wait_connected(WAIT_S)
            device.publish(
                topics.device_topic("green", "cellar", "m/power"), codec.encode(power("cellar", 0, now))
            )
            for channel, said in (
                ("m/power", power("kitchen", 0, now)),
                ("m/inference", inference("kitchen", 0, now)),
                ("m/system", system("kitchen", 0, now)),
            ):
                device.publish(topics.device_topic("green", "kitchen", channel), codec.encode(said))  # type: ignore[arg-type]
            table = SORTS["system"].tables["report"]
            assert wait_for(lambda: bool(metrics.rows(select(table.c.device_id))), WAIT_S)
            assert [row[0] for row in metrics.rows(select(SORTS["power"].tables["report"].c.device_id))] == [
                1
            ]
