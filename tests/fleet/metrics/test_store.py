"""The database of figures: rolled up right however often and in whatever order, kept for as long as it should be."""

from __future__ import annotations

import multiprocessing
import random
import sqlite3
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import func, select

sys.path.insert(0, str(Path(__file__).parents[3]))

from benchmarks.fleet_metrics_load import power
from edgeslm.errors import FleetError, FleetVersionError
from edgeslm.fleet.metrics.query import Period, sums
from edgeslm.fleet.metrics.rows import points_of, power_row
from edgeslm.fleet.metrics.store import HOUR_MS, Batch, MetricsStore, metrics_url, oldest_ms
from edgeslm.fleet.store.database import sqlite_url
from edgeslm.fleet.store.metrics import SORTS, Width
from edgeslm.schema.fleet_metrics import MetricsSettings

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
NOON_MS = round(NOW.timestamp() * 1000)
DAY = timedelta(days=1)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "metrics.db"


@pytest.fixture
def metrics(path: Path) -> Iterator[MetricsStore]:
    opened = MetricsStore(sqlite_url(path))
    yield opened
    opened.close()


def add(metrics: MetricsStore, device: int, *times_ms: int, energy_j: float = 60.0) -> None:
    batch = Batch()
    for time_ms in times_ms:
        said = power("kitchen", time_ms // 1000, NOW).model_copy(update={"energy_j": energy_j})
        batch.rows["power"].append(power_row(device, time_ms, said))
        batch.touch(device, time_ms)
        batch.latest[device, "power"] = (time_ms, time_ms, 1, "{}")
    metrics.write(batch)


def energies(metrics: MetricsStore, width: Width) -> dict[tuple[int, int], float]:
    table = SORTS["power"].tables[width]
    time = table.c.at_ms if width == "report" else table.c.start_s
    return {
        (row[0], row[1]): row[2] for row in metrics.rows(select(table.c.device_id, time, table.c.energy_j))
    }


# --- rolling up ---------------------------------------------------------------------------------------------


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    steps=st.lists(
        st.lists(
            st.tuples(st.integers(1, 3), st.integers(0, 3 * 3_600_000)), min_size=1, max_size=8, unique=True
        ),
        min_size=1,
        max_size=6,
    )
)
def test_minutes_and_hours_are_the_sums_of_their_reports_whatever_the_order(
    tmp_path_factory: pytest.TempPathFactory, steps: list[list[tuple[int, int]]]
) -> None:
    metrics = MetricsStore(sqlite_url(tmp_path_factory.mktemp("m") / "m.db"))
    try:
        for step in steps:
            for device, offset_ms in step:
                add(metrics, device, NOON_MS + offset_ms)
            metrics.roll_up()
        reports = energies(metrics, "report")
        widths: tuple[tuple[Width, int], ...] = (("minute", 60), ("hour", 3600))
        for width, size_s in widths:
            expected: dict[tuple[int, int], float] = {}
            for (device, at_ms), energy_j in reports.items():
                start_s = (at_ms - 1) // (size_s * 1000) * size_s
                expected[device, start_s] = expected.get((device, start_s), 0.0) + energy_j
            assert energies(metrics, width) == pytest.approx(expected)
    finally:
        metrics.close()


def test_rolling_up_again_changes_nothing_and_what_comes_late_is_made_up_for(metrics: MetricsStore) -> None:
    add(metrics, 1, NOON_MS + 30_000, NOON_MS + 60_000)
    assert metrics.roll_up() == 1
    before = energies(metrics, "minute"), energies(metrics, "hour")
    assert metrics.roll_up() == 0
    add(metrics, 1, NOON_MS + 30_000, NOON_MS + 60_000)
    metrics.roll_up()
    assert (energies(metrics, "minute"), energies(metrics, "hour")) == before
    add(metrics, 1, NOON_MS + 15_000)
    metrics.roll_up()
    assert list(energies(metrics, "minute").values()) == [180.0]
    assert list(energies(metrics, "hour").values()) == [180.0]


def test_a_report_that_ends_on_the_full_hour_belongs_to_the_hour_before(metrics: MetricsStore) -> None:
    add(metrics, 1, NOON_MS + HOUR_MS)
    metrics.roll_up()
    assert list(energies(metrics, "hour")) == [(1, NOON_MS // 1000)]


def test_what_was_not_rolled_up_when_a_process_ended_is_rolled_up_by_the_next(path: Path) -> None:
    first = MetricsStore(sqlite_url(path))
    add(first, 1, NOON_MS + 1)
    first.close()
    second = MetricsStore(sqlite_url(path))
    assert second.roll_up() == 1
    assert len(energies(second, "hour")) == 1
    second.close()


def test_points_are_kept_as_they_were(metrics: MetricsStore) -> None:
    said = power("kitchen", 0, NOW)
    row = power_row(1, NOON_MS, said)
    packed = row[-1]
    assert isinstance(packed, bytes)
    assert [point.mean_w for point in points_of(packed)] == pytest.approx([p.mean_w for p in said.points])


# --- keeping ------------------------------------------------------------------------------------------------


def test_each_width_is_kept_for_its_own_time(metrics: MetricsStore) -> None:
    keep = MetricsSettings(reports_days=2, minutes_days=10, hours_days=100)
    for days in (0, 5, 50, 500):
        add(metrics, 1, NOON_MS - round(days * DAY.total_seconds() * 1000) - 1)
    metrics.roll_up()
    assert metrics.prune(keep, NOON_MS) > 0
    assert [len(energies(metrics, width)) for width in ("report", "minute", "hour")] == [1, 2, 3]


def test_what_is_still_taken_lies_within_hours_whose_reports_are_all_kept(metrics: MetricsStore) -> None:
    keep = MetricsSettings()
    for shift_ms in range(0, HOUR_MS, 7 * 60_000):
        now_ms = NOON_MS + shift_ms
        first_ms = oldest_ms(keep, now_ms)
        assert first_ms % HOUR_MS == 0
        kept_from_ms = first_ms - HOUR_MS
        assert now_ms - kept_from_ms <= keep.reports_days * 86_400_000
    hour_ms = oldest_ms(keep, NOON_MS)
    add(metrics, 1, *(hour_ms + minute * 60_000 for minute in range(1, 61)))
    metrics.roll_up()
    metrics.prune(keep, NOON_MS)
    before = energies(metrics, "hour")
    add(metrics, 1, hour_ms + 90_500, energy_j=0.0)
    metrics.roll_up()
    assert energies(metrics, "hour") == before


def test_settings_that_keep_the_coarse_shorter_than_the_fine_are_refused() -> None:
    with pytest.raises(ValueError, match="kept no longer"):
        MetricsSettings(reports_days=40)


# --- the database -------------------------------------------------------------------------------------------


def test_figures_lie_beside_sqlite_and_within_any_other_database(tmp_path: Path) -> None:
    assert metrics_url(tmp_path, None) == sqlite_url(tmp_path / "metrics.db")
    assert metrics_url(tmp_path, "sqlite:////elsewhere/fleet.db") == sqlite_url(tmp_path / "metrics.db")
    assert metrics_url(tmp_path, "postgresql+psycopg://host/fleet") == "postgresql+psycopg://host/fleet"


def test_figures_of_a_newer_release_are_refused(path: Path) -> None:
    MetricsStore(sqlite_url(path)).close()
    with sqlite3.connect(path) as db:
        db.execute("UPDATE metrics_about SET value = 9")
    with pytest.raises(FleetVersionError):
        MetricsStore(sqlite_url(path))


def test_a_file_that_is_no_database_is_named(path: Path) -> None:
    path.write_bytes(b"rubbish" * 1000)
    with pytest.raises(FleetError) as caught:
        MetricsStore(sqlite_url(path))
    assert str(path) in str(caught.value.path)


def _fill(url: str, barrier: object, device: int) -> None:
    barrier.wait()  # type: ignore[attr-defined]
    metrics = MetricsStore(url)
    for minute in range(20):
        add(metrics, device, NOON_MS + minute * 60_000)
        metrics.roll_up()
    metrics.close()


def test_processes_that_open_and_fill_it_together_all_get_their_rows_in(path: Path) -> None:
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(3)
    workers = [context.Process(target=_fill, args=(sqlite_url(path), barrier, one)) for one in (1, 2, 3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(90)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    metrics = MetricsStore(sqlite_url(path))
    metrics.roll_up()
    assert len(energies(metrics, "minute")) == 60
    metrics.close()


def test_sums_of_a_period_are_those_of_its_minutes(metrics: MetricsStore) -> None:
    chance = random.Random(1)
    for minute in range(1, 121):
        add(metrics, 1, NOON_MS + minute * 60_000, energy_j=60.0 + chance.random())
    metrics.roll_up()
    first_s = NOON_MS // 1000
    hour = sums(metrics, {1}, Period(first_s, first_s + 3600, "minute"))
    (values,) = hour.values()
    table = SORTS["power"].tables["report"]
    (row,) = metrics.rows(select(func.sum(table.c.energy_j)).where(table.c.at_ms <= NOON_MS + HOUR_MS))
    assert values["power.energy_j"] == pytest.approx(row[0])
    assert values["power.reports"] == 60
    (from_hours,) = sums(metrics, {1}, Period(first_s, first_s + 3600, "hour")).values()
    assert from_hours == pytest.approx(values)
