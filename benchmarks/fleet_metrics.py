"""Figures of collecting a fleet's reports: ``python -m benchmarks.fleet_metrics [--json] [--quick] [--only KEY,...]``.

Reports have the form and size of real ones (a model, six points, two windows), are read, judged and written to SQLite
on a real disk, and come over a real mosquitto where that is asked. The database that is asked holds a day of a thousand
devices, as reports, minutes and hours: one device's day goes through the collector, and is copied for the others.
"""

from __future__ import annotations

import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path

from sqlalchemy import text

from benchmarks.agent_rig import MeasurementError, say
from benchmarks.fleet_metrics_load import FLEET, add_devices, device_names, noon, reports
from benchmarks.report import Benchmark, Found, Group, run
from edgeslm.fleet.metrics.collector import MetricsCollector
from edgeslm.fleet.metrics.figures import FIGURES, USUAL
from edgeslm.fleet.metrics.intake import Intake
from edgeslm.fleet.metrics.query import newest, period, sums
from edgeslm.fleet.metrics.report import make_report
from edgeslm.fleet.metrics.store import MetricsStore
from edgeslm.fleet.selection import select
from edgeslm.fleet.store.database import Store, sqlite_url
from edgeslm.fleet.store.metrics import EVENTS, LATEST, SORTS
from edgeslm.link.broker import EmbeddedBroker, find_mosquitto
from edgeslm.link.mqtt import MqttLink
from edgeslm.power.boards import load_boards
from edgeslm.schema.config import BrokerConfig
from edgeslm.schema.fleet_metrics import MetricsSettings

BARS = {
    "ingest_per_s": (">=", 5000.0),
    "broker_per_s": (">=", 5000.0),
    "query_ms": ("<", 50.0),
}
DEVICES = 1000
DAY_MINUTES = 1440
_ROUNDS = 15
_LIMIT_S = 120.0
_QUIET_S = 5.0
_PUBLISHERS = 2
_SENT_PER_S = 7000.0
"""To a broker whose subscriber is slower for long, reports are lost, whoever sends them."""


class World:
    """A store with devices, and a database for their figures."""

    def __init__(self, directory: Path, devices: int) -> None:
        self.path = directory / "metrics.db"
        self.store = Store(sqlite_url(directory / "fleet.db"))
        self.metrics = MetricsStore(sqlite_url(self.path))
        self.settings = MetricsSettings()
        self.names = device_names(devices)
        add_devices(self.store, self.names, noon())
        self.intake = Intake(self.store, self.metrics, load_boards(), self.settings)


@contextmanager
def _world(devices: int) -> Iterator[World]:
    with tempfile.TemporaryDirectory(prefix="edgeslm-metrics-") as name:
        made = World(Path(name), devices)
        try:
            yield made
        finally:
            made.metrics.close()
            made.store.close()


def measure_ingest(quick: bool) -> Found:
    """Reports a second that are read, judged and written, in batches as the collector makes them; roll-up included."""
    minutes = 5 if quick else 20
    with _world(DEVICES) as world:
        chance = random.Random(1)
        work = [
            (noon() + timedelta(minutes=minute + 1), list(reports(world.names, minute, at, chance)))
            for minute in range(minutes)
            for at in (noon() + timedelta(minutes=minute + 1),)
        ]
        began_s, began_cpu_s = time.perf_counter(), time.process_time()
        rolled_s = 0.0
        for at, batch in work:
            world.intake.take(batch, at + timedelta(seconds=1))
            before_s = time.perf_counter()
            world.metrics.roll_up()
            rolled_s += time.perf_counter() - before_s
        took_s, cpu_s = time.perf_counter() - began_s, time.process_time() - began_cpu_s
        count = sum(len(batch) for _, batch in work)
        if world.intake.counts["taken"] != count:
            raise MeasurementError(f"{world.intake.counts} of {count}")
        return {
            "ingest_per_s": count / took_s,
            "ingest_cpu_us": cpu_s / count * 1e6,
            "roll_up_ms": rolled_s / minutes * 1e3,
        }


_PUBLISH = """
import random, sys, time
from datetime import datetime, timedelta
import paho.mqtt.client as paho
from benchmarks.fleet_metrics_load import device_names, noon, reports
port, part, parts, minutes = (int(word) for word in sys.argv[1:])
names = device_names({devices})[part::parts]
chance = random.Random(part)
work = [one for minute in range(minutes)
        for one in reports(names, minute, noon() + timedelta(minutes=minute + 1), chance)]
client = paho.Client(paho.CallbackAPIVersion.VERSION2, protocol=paho.MQTTv5)
client.connect("127.0.0.1", port)
client.loop_start()
print("ready", flush=True)
sys.stdin.readline()
began_s = time.monotonic()
for at, (topic, payload) in enumerate(work):
    client.publish(topic, payload, qos=0)
    if at % 50 == 0:
        time.sleep(max(0.0, began_s + at / {rate} - time.monotonic()))
client.loop_stop()
client.disconnect()
"""


def measure_broker(quick: bool) -> Found:
    """The same over a real broker: sent by processes of their own at a steady rate, until the last is written."""
    if find_mosquitto() is None:
        raise MeasurementError("mosquitto is not installed")
    minutes = 5 if quick else 15
    count = DEVICES * minutes * 3
    with _world(DEVICES) as world, EmbeddedBroker(kind="mosquitto") as broker:
        link = MqttLink(BrokerConfig(port=broker.port), "metrics")
        clock = noon() + timedelta(minutes=minutes + 2)
        collector = MetricsCollector(
            FLEET, link, world.intake, world.metrics, world.settings, clock=lambda: clock
        )
        with collector, _publishers(broker.port, minutes) as begin:
            if not collector.wait_connected(_LIMIT_S):
                raise MeasurementError("no connection")
            began_s = time.perf_counter()
            begin()
            taken, took_s = 0, 0.0
            while taken < count and time.perf_counter() - began_s - took_s < _QUIET_S:
                time.sleep(0.01)
                if world.intake.counts["taken"] > taken:
                    taken, took_s = world.intake.counts["taken"], time.perf_counter() - began_s
    say(f"{taken} of {count} reports, {world.intake.counts['lost']} lost, {collector.dropped} dropped")
    return {"broker_per_s": taken / took_s, "broker_lost_share": 1 - taken / count}


@contextmanager
def _publishers(port: int, minutes: int) -> Iterator[Callable[[], None]]:
    """Processes that have everything ready; what is given lets them begin."""
    script = _PUBLISH.replace("{devices}", str(DEVICES)).replace("{rate}", str(_SENT_PER_S / _PUBLISHERS))
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(port), str(part), str(_PUBLISHERS), str(minutes)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parents[1],
        )
        for part in range(_PUBLISHERS)
    ]

    def begin() -> None:
        for process in processes:
            assert process.stdin is not None
            process.stdin.write(b"\n")
            process.stdin.flush()

    try:
        for process in processes:
            assert process.stdout is not None
            if process.stdout.readline() != b"ready\n":
                raise MeasurementError("a publisher does not start")
        yield begin
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def measure_query(quick: bool) -> Found:
    """Milliseconds to ask for a day of one device in steps of five minutes, and other questions, of a full database."""
    devices = 100 if quick else DEVICES
    with _world(devices) as world:
        now = _fill(world)
        say(f"{world.path.stat().st_size / 1e6:.0f} MB")
        now_s = now.timestamp()
        device = {devices // 2}

        def day(whose: set[int], step_s: int | None) -> None:
            when = period(
                now_s - 86_400,
                now_s,
                devices=len(whose),
                settings=world.settings,
                now_s=now_s,
                step_s=step_s,
            )
            if not sums(world.metrics, whose, when, step_s=step_s):
                raise MeasurementError("the database answers nothing")

        def table() -> None:
            with world.store.read() as session:
                make_report(
                    session,
                    world.metrics,
                    select(session),
                    by="device",
                    figures=[FIGURES[name] for name in USUAL],
                    since_s=now_s - 86_400,
                    until_s=now_s,
                    settings=world.settings,
                    now=now,
                )

        everybody = set(range(1, devices + 1))
        return {
            "query_ms": _median_ms(lambda: day(device, 300)),
            "sum_ms": _median_ms(lambda: day(device, None)),
            "fleet_day_ms": _median_ms(table, rounds=3),
            "top_ms": _median_ms(lambda: _discard(newest(world.metrics, everybody)), rounds=5),
            "database_mb": world.path.stat().st_size / 1e6,
        }


def _fill(world: World) -> datetime:
    """A day of every device."""
    one, chance = world.names[:1], random.Random(1)
    began = noon()
    for hour in range(DAY_MINUTES // 60):
        batch: list[tuple[str, bytes]] = []
        for minute in range(hour * 60, hour * 60 + 60):
            batch += reports(one, minute, began + timedelta(minutes=minute + 1), chance)
        world.intake.take(batch, began + timedelta(hours=hour + 1, seconds=1))
    world.metrics.roll_up()
    tables = [table for sort in SORTS.values() for table in sort.tables.values()]
    with world.metrics._transaction() as connection:
        for table in [*tables, EVENTS, LATEST]:
            columns = ", ".join(column.name for column in table.columns if column.name != "device_id")
            connection.execute(
                text(
                    f"WITH RECURSIVE d(id) AS (SELECT 2 UNION ALL SELECT id + 1 FROM d WHERE id < :devices) "  # noqa: S608
                    f"INSERT INTO {table.name} (device_id, {columns}) "
                    f"SELECT d.id, {columns} FROM d, {table.name} t WHERE t.device_id = 1"
                ),
                {"devices": len(world.names)},
            )
    return began + timedelta(minutes=DAY_MINUTES)


def _discard(_found: object) -> None:
    """Of an answer only the time matters."""


def _median_ms(do: Callable[[], None], rounds: int = _ROUNDS) -> float:
    times = []
    for _ in range(rounds):
        began_s = time.perf_counter()
        do()
        times.append(time.perf_counter() - began_s)
    return statistics.median(times) * 1e3


GROUPS = (
    Group(("ingest_per_s", "ingest_cpu_us", "roll_up_ms"), measure_ingest),
    Group(("broker_per_s", "broker_lost_share"), measure_broker),
    Group(("query_ms", "sum_ms", "fleet_day_ms", "top_ms", "database_mb"), measure_query),
)

if __name__ == "__main__":
    run(Benchmark("fleet_metrics", __doc__ or "", GROUPS, BARS))
