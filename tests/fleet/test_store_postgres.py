"""The store on a real PostgreSQL, which is started for the test."""

from __future__ import annotations

import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import select

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.rollout_rig import PaperFleet, many
from edgeslm.errors import FleetError, FleetVersionError
from edgeslm.fleet.rollout import operate
from edgeslm.fleet.rollout.lease import LENGTH
from edgeslm.fleet.store.database import HEAD, Store, sqlite_url
from edgeslm.fleet.store.models import AuditRow, Base, DeviceRow, FactRow, TagRow

psycopg = pytest.importorskip("psycopg")
pytestmark = pytest.mark.slow

NOW = datetime(2026, 11, 24, 12, 30, 15, 123456, tzinfo=UTC)


@pytest.fixture
def url(postgres: str, request: pytest.FixtureRequest) -> str:
    name = f"t{abs(hash(request.node.name))}"
    with psycopg.connect(f"{postgres.replace('+psycopg', '')}/postgres", autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return f"{postgres}/{name}"


def device(name: str) -> DeviceRow:
    return DeviceRow(
        name=name,
        standing="active",
        key_sha256="0" * 64,
        notes="",
        created_at=NOW,
        tags=[TagRow(tag="north")],
    )


def test_the_migrations_make_the_tables_that_the_code_uses(url: str) -> None:
    store = Store(url)
    with store._engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Base.metadata) == []
    store.close()


def test_a_store_of_a_newer_release_is_refused(url: str) -> None:
    store = Store(url)
    with store.write() as session:
        session.connection().exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    store.close()
    with pytest.raises(FleetVersionError):
        Store(url)


def test_times_come_back_as_they_went_in(url: str) -> None:
    store = Store(url)
    with store.write() as session:
        session.add(AuditRow(at=NOW, actor="a", action="b", subject="c", detail={"d": ["ä"]}))
    with store.read() as session:
        (row,) = session.query(AuditRow).all()
        assert (row.at, row.at.tzinfo, row.detail) == (NOW, UTC, {"d": ["ä"]})
    store.close()


def test_a_part_that_raises_is_undone_alone(url: str) -> None:
    store = Store(url)
    with store.write() as session:
        session.add(device("kitchen"))
        with pytest.raises(FleetError), store.part(session):  # noqa: PT012 - flushing is what fails
            session.add(device("kitchen"))
            session.flush()
        session.add(device("cellar"))
    with store.read() as session:
        assert {row.name for row in session.query(DeviceRow)} == {"kitchen", "cellar"}
    store.close()


def test_rows_move_from_sqlite_and_back_and_numbering_goes_on(url: str, tmp_path: Path) -> None:
    first, there, back = (
        Store(sqlite_url(tmp_path / "a.db")),
        Store(url),
        Store(sqlite_url(tmp_path / "b.db")),
    )
    with first.write() as session:
        session.add_all([device("kitchen"), device("cellar"), FactRow(key="a", value={"b": 1})])
    first.copy_to(there)
    with there.write() as session:
        session.add(device("attic"))
    there.copy_to(back)
    with back.read() as session:
        assert {row.name for row in session.query(DeviceRow)} == {"kitchen", "cellar", "attic"}
        assert all([tag.tag for tag in row.tags] == ["north"] for row in session.query(DeviceRow))
    for store in (first, there, back):
        store.close()


def test_the_revision_is_the_newest(url: str) -> None:
    store = Store(url)
    with store.read() as session:
        assert (
            session.connection().exec_driver_sql("SELECT version_num FROM alembic_version").scalar_one()
            == HEAD
        )
    store.close()


def test_a_writer_waits_for_another_and_sees_what_it_wrote(url: str) -> None:
    one, other = Store(url), Store(url)
    began, goes_on = threading.Event(), threading.Event()

    def count_up(store: Store, *, first: bool) -> None:
        if not first:
            assert began.wait(60)
        with store.write() as session:
            row = session.get(FactRow, "counted") or FactRow(key="counted", value={"n": 0})
            seen = row.value["n"]
            if first:
                began.set()
                assert goes_on.wait(60)
            row.value = {"n": seen + 1}
            session.merge(row)

    with ThreadPoolExecutor(2) as pool:
        writers = [pool.submit(count_up, one, first=True), pool.submit(count_up, other, first=False)]
        assert began.wait(60)
        goes_on.set()
        for writer in writers:
            writer.result(60)
    with one.read() as session:
        assert session.get_one(FactRow, "counted").value == {"n": 2}


def test_a_reading_transaction_sees_one_state(url: str) -> None:
    store = Store(url)
    with store.read() as session:
        assert session.scalars(select(DeviceRow)).all() == []
        with store.write() as writing:
            writing.add(device("kitchen"))
        assert session.scalars(select(DeviceRow)).all() == []


def test_a_rollout_goes_through_its_waves_and_is_taken_over_under_the_lease(url: str) -> None:
    fleet = PaperFleet(Store(url), many(6))
    number = fleet.begin(waves="1 per board, 100%")
    fleet.hear()
    fleet.controller.turn()
    killed = fleet.controller
    successor = fleet.new_controller()
    assert not successor.turn(), "it stands by"
    assert not successor.leads
    fleet.now += LENGTH
    view = fleet.settle(number)
    assert (view.phase, view.passed) == ("completed", 6)
    assert {device.running["lamp"] for device in fleet.devices.values()} == {"1.1.0"}
    assert all(len(device.history) == 1 for device in fleet.devices.values()), "no step was taken twice"
    assert not killed.turn(), "its lease is another's"
    with fleet.store.read() as session:
        assert {row.actor for row in session.scalars(select(AuditRow))} >= {"test", "controller"}
    other = fleet.begin("1.2.0", waves="1 per board, 100%")
    with fleet.store.write() as session:
        operate.pin(session, "d0005", reason="a show", actor="me", now=fleet.now)
        operate.pause(session, other, reason="lunch", actor="me", now=fleet.now)
        operate.resume(session, other, actor="me", now=fleet.now)
    view = fleet.settle(other)
    assert (view.phase, view.passed) == ("completed", 5)
