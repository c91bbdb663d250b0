from __future__ import annotations

import io
import multiprocessing
import sqlite3
import tarfile
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from edgeslm.errors import DeviceStateError, FleetError, FleetSetupError, FleetVersionError
from edgeslm.fleet.backup import restore_backup, write_backup
from edgeslm.fleet.directory import FleetDirectory, create_fleet, locate
from edgeslm.fleet.store import database
from edgeslm.fleet.store.database import HEAD, Store, alembic_config, sqlite_url
from edgeslm.fleet.store.models import AuditRow, Base, DeviceRow, FactRow, TagRow
from edgeslm.schema.fleet import FleetBroker, FleetConfig

NOW = datetime(2026, 11, 24, 12, 30, 15, 123456, tzinfo=UTC)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "fleet.db"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    opened = Store(sqlite_url(path))
    yield opened
    opened.close()


def device(name: str) -> DeviceRow:
    return DeviceRow(
        name=name,
        standing="active",
        key_sha256="0" * 64,
        notes="",
        created_at=NOW,
        tags=[TagRow(tag="north")],
    )


# --- migrations ---------------------------------------------------------------------------------------------


def test_the_migrations_make_the_tables_that_the_code_uses(store: Store) -> None:
    with store._engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Base.metadata) == []


def test_the_code_knows_the_newest_migration(store: Store) -> None:
    with store._engine.connect() as connection:
        scripts = ScriptDirectory.from_config(alembic_config(connection))
    assert scripts.get_heads() == [HEAD]
    revisions = [script.revision for script in scripts.walk_revisions()]
    assert sorted(revisions, reverse=True) == revisions, "revisions have to sort as text"


def test_a_store_of_a_newer_release_is_refused_and_left_alone(path: Path) -> None:
    Store(sqlite_url(path)).close()
    with sqlite3.connect(path) as db:
        db.execute("UPDATE alembic_version SET version_num = '9999'")
    before = path.read_bytes()
    with pytest.raises(FleetVersionError) as caught:
        Store(sqlite_url(path))
    assert (caught.value.found, caught.value.known) == ("9999", HEAD)
    assert path.read_bytes() == before


def test_a_migration_that_is_cut_off_leaves_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = database.upgrade

    def cut_off(connection: object, revision: str = "head") -> None:
        whole(connection, revision)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(database, "upgrade", cut_off)
        with pytest.raises(KeyboardInterrupt):
            Store(sqlite_url(path))
    with sqlite3.connect(path) as db:
        assert db.execute("SELECT name FROM sqlite_master").fetchall() == []
    Store(sqlite_url(path)).close()


def _open_and_close(url: str, barrier: object) -> None:
    barrier.wait()  # type: ignore[attr-defined]
    Store(url).close()


def test_processes_that_open_a_new_store_together_all_find_it_whole(path: Path) -> None:
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(4)
    workers = [context.Process(target=_open_and_close, args=(sqlite_url(path), barrier)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(30)
    assert [worker.exitcode for worker in workers] == [0, 0, 0, 0]
    with sqlite3.connect(path) as db:
        assert db.execute("SELECT version_num FROM alembic_version").fetchall() == [(HEAD,)]


@pytest.mark.parametrize("url", ["no url", "nosuchdb:///x", "sqlite:////proc/nowhere/fleet.db"])
def test_a_database_that_cannot_be_used_is_named(url: str) -> None:
    with pytest.raises(FleetError):
        Store(url)


def test_a_file_that_is_no_database_is_named(path: Path) -> None:
    path.write_bytes(b"rubbish" * 1000)
    with pytest.raises(FleetError) as caught:
        Store(sqlite_url(path))
    assert caught.value.path is not None
    assert str(path) in caught.value.path


# --- transactions -------------------------------------------------------------------------------------------


def test_times_come_back_as_they_went_in_whatever_their_zone(store: Store) -> None:
    zone = timezone(timedelta(hours=5, minutes=30))
    with store.write() as session:
        session.add(device("kitchen"))
        session.add(AuditRow(at=NOW.astimezone(zone), actor="a", action="b", subject="c", detail={"d": 1}))
    with store.read() as session:
        (row,) = session.query(AuditRow).all()
        assert row.at == NOW
        assert row.at.tzinfo == UTC


def test_a_time_without_a_zone_is_a_fault_of_the_program(store: Store) -> None:
    with pytest.raises(FleetError, match="zone"), store.write() as session:
        session.add(AuditRow(at=NOW.replace(tzinfo=None), actor="a", action="b", subject="c", detail={}))


def test_a_transaction_that_raises_leaves_nothing(store: Store) -> None:
    def change_mind() -> None:
        with store.write() as session:
            session.add(device("kitchen"))
            session.flush()
            raise DeviceStateError("no", name="kitchen", state="none")

    with pytest.raises(DeviceStateError):
        change_mind()
    with store.read() as session:
        assert session.query(DeviceRow).count() == 0


def test_a_part_that_raises_is_undone_alone(store: Store) -> None:
    with store.write() as session:
        session.add(device("kitchen"))
        with pytest.raises(FleetError), store.part(session):  # noqa: PT012 - flushing is what fails
            session.add(device("kitchen"))
            session.flush()
        session.add(device("cellar"))
    with store.read() as session:
        assert {row.name for row in session.query(DeviceRow)} == {"kitchen", "cellar"}


def test_writers_wait_for_each_other_instead_of_failing(store: Store) -> None:
    with store.write() as session:
        session.add(FactRow(key="count", value={"n": 0}))
    failures: list[BaseException] = []

    def add_one() -> None:
        try:
            for _ in range(20):
                with store.write() as session:
                    row = session.get_one(FactRow, "count")
                    row.value = {"n": row.value["n"] + 1}
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=add_one) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    with store.read() as session:
        assert session.get_one(FactRow, "count").value == {"n": 80}


def test_a_reader_sees_one_state_while_others_write(store: Store) -> None:
    with store.read() as reader:
        assert reader.query(DeviceRow).count() == 0
        with store.write() as session:
            session.add(device("kitchen"))
        assert reader.query(DeviceRow).count() == 0


# --- the directory ------------------------------------------------------------------------------------------


def config(name: str = "green", **settings: object) -> FleetConfig:
    return FleetConfig.model_validate({"name": name, "broker": FleetBroker(host="localhost"), **settings})


def make(root: Path, **settings: object) -> FleetDirectory:
    return create_fleet(root, config(**settings), passphrase=None, now=NOW)


def contents(root: Path) -> dict[str, bytes]:
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and "fleet.db" not in path.name
    }


def test_making_a_fleet_again_changes_nothing(tmp_path: Path) -> None:
    make(tmp_path / "green")
    before = contents(tmp_path / "green")
    make(tmp_path / "green")
    assert contents(tmp_path / "green") == before


def test_a_fleet_is_for_its_owner_alone(tmp_path: Path) -> None:
    fleet = make(tmp_path / "green")
    assert fleet.root.stat().st_mode & 0o077 == 0
    for path in (fleet.authority_key, fleet.operator_key):
        assert path.stat().st_mode & 0o077 == 0


def test_making_another_fleet_in_its_place_is_refused(tmp_path: Path) -> None:
    make(tmp_path / "green")
    before = contents(tmp_path / "green")
    for other in (config("blue"), config(certificate_days=7)):
        with pytest.raises(FleetSetupError):
            create_fleet(tmp_path / "green", other, passphrase=None, now=NOW)
    assert contents(tmp_path / "green") == before


def test_a_directory_with_something_else_in_it_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(b"")
    with pytest.raises(FleetSetupError):
        make(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["photo.jpg"]


@pytest.mark.parametrize("missing", ["ca.key", "operator.key", "fleet.db"])
def test_what_was_cut_off_is_completed(tmp_path: Path, missing: str) -> None:
    fleet = make(tmp_path / "green")
    (fleet.root / missing).unlink()
    again = make(tmp_path / "green")
    again.authority(lambda path: b"")
    again.open_store().close()
    again.operator_config()
    assert (fleet.root / missing).exists()


def test_a_fleet_name_leaves_room_for_devices(tmp_path: Path) -> None:
    make(tmp_path / "long", name="f" * 47)
    with pytest.raises(FleetSetupError):
        make(tmp_path / "longer", name="f" * 48)


def test_the_only_fleet_needs_no_name_and_one_of_several_does(tmp_path: Path) -> None:
    with pytest.raises(FleetSetupError, match="init"):
        locate(None, tmp_path)
    make(tmp_path / "green")
    assert locate(None, tmp_path) == tmp_path / "green"
    make(tmp_path / "blue", name="blue")
    with pytest.raises(FleetSetupError, match="blue, green"):
        locate(None, tmp_path)
    assert locate("blue", tmp_path) == tmp_path / "blue"
    with pytest.raises(FleetSetupError):
        locate("red", tmp_path)


@pytest.mark.parametrize(
    "text", ["", "[]", "name: [", "name: green\nbroker: {host: x}\nunknown: 1\n", "name: GREEN\n"]
)
def test_wrong_settings_are_named(tmp_path: Path, text: str) -> None:
    fleet = make(tmp_path / "green")
    (fleet.root / "fleet.yaml").write_text(text)
    with pytest.raises(FleetSetupError, match=r"fleet\.yaml"):
        FleetDirectory(fleet.root)


def test_the_newest_root_of_the_repository_is_what_devices_begin_with(tmp_path: Path) -> None:
    fleet = make(tmp_path / "green")
    assert fleet.trust_root() is None
    metadata = fleet.releases / "public" / "metadata"
    metadata.mkdir(parents=True)
    for version in (1, 2, 10):
        (metadata / f"{version}.root.json").write_text(str(version))
    assert fleet.trust_root() == b"10"


# --- backup -------------------------------------------------------------------------------------------------


@pytest.fixture
def fleet(tmp_path: Path) -> FleetDirectory:
    made = make(tmp_path / "green")
    opened = made.open_store()
    with opened.write() as session:
        session.add_all([device("kitchen"), device("cellar")])
        session.add(FactRow(key="a", value={"b": [1, "ä"]}))
    opened.close()
    (made.root / "releases").mkdir()
    (made.root / "releases" / "package.slm").write_bytes(b"model" * 1000)
    (made.root / "broker" / "data").mkdir(parents=True)
    (made.root / "broker" / "data" / "mosquitto.db").write_bytes(b"sessions")
    return made


def names(fleet: FleetDirectory) -> set[str]:
    opened = fleet.open_store()
    with opened.read() as session:
        found = {row.name for row in session.query(DeviceRow) if [tag.tag for tag in row.tags] == ["north"]}
    opened.close()
    return found


def test_a_fleet_comes_back_from_its_backup(tmp_path: Path, fleet: FleetDirectory) -> None:
    size_bytes = write_backup(fleet, tmp_path / "backup.tar", NOW)
    assert (tmp_path / "backup.tar").stat().st_size == size_bytes
    assert (tmp_path / "backup.tar").stat().st_mode & 0o077 == 0
    back = restore_backup(tmp_path / "backup.tar", tmp_path / "again")
    assert back.config == fleet.config
    assert names(back) == {"kitchen", "cellar"}
    kept = {
        name: data for name, data in contents(fleet.root).items() if "data/" not in name and name[0] != "."
    }
    assert contents(back.root) == kept
    assert back.authority_key.stat().st_mode & 0o077 == 0
    back.authority(lambda path: b"")


def test_a_store_in_use_is_backed_up_as_it_is_at_one_moment(tmp_path: Path, fleet: FleetDirectory) -> None:
    opened = fleet.open_store()
    with opened.write() as session:
        session.add(device("attic"))
        session.flush()
        write_backup(fleet, tmp_path / "backup.tar", NOW)  # a reader does not wait for the writer
    opened.close()
    assert names(restore_backup(tmp_path / "backup.tar", tmp_path / "again")) == {"kitchen", "cellar"}


def test_a_backup_moves_a_fleet_to_another_database(tmp_path: Path, fleet: FleetDirectory) -> None:
    write_backup(fleet, tmp_path / "backup.tar", NOW)
    url = sqlite_url(tmp_path / "elsewhere.db")
    back = restore_backup(tmp_path / "backup.tar", tmp_path / "again", database=url)
    assert back.config.database == url
    assert not (back.root / "fleet.db").exists()
    assert names(back) == {"kitchen", "cellar"}
    with pytest.raises(FleetError, match="already"):
        restore_backup(tmp_path / "backup.tar", tmp_path / "third", database=url)
    assert not (tmp_path / "third").exists()


def test_nothing_is_written_over(tmp_path: Path, fleet: FleetDirectory) -> None:
    write_backup(fleet, tmp_path / "backup.tar", NOW)
    with pytest.raises(FleetSetupError):
        write_backup(fleet, tmp_path / "backup.tar", NOW)
    before = contents(fleet.root)
    with pytest.raises(FleetSetupError):
        restore_backup(tmp_path / "backup.tar", fleet.root)
    assert contents(fleet.root) == before


def test_a_backup_of_a_newer_release_is_refused(
    tmp_path: Path, fleet: FleetDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("edgeslm.fleet.backup.HEAD", "9999")
        write_backup(fleet, tmp_path / "backup.tar", NOW)
    with pytest.raises(FleetVersionError):
        restore_backup(tmp_path / "backup.tar", tmp_path / "again")
    assert not (tmp_path / "again").exists()


def _hostile(path: Path, name: str, kind: bytes = b"0", *, manifest: bool = True) -> None:
    with tarfile.open(path, "w") as archive:
        if manifest:
            data = b'{"v": 1, "fleet": "green", "revision": "0001", "made_at": "x"}'
            member = tarfile.TarInfo("manifest.json")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
        member = tarfile.TarInfo(name)
        member.type, member.linkname = kind, "/etc/passwd"
        member.size = 4 if kind == b"0" else 0
        archive.addfile(member, io.BytesIO(b"evil"))


@pytest.mark.parametrize(
    "name",
    [
        "files/../../evil",
        "/etc/evil",
        "files//evil",
        "files/./evil",
        "evil",
        "store.db/evil",
        "files",
        "../evil",
    ],
)
def test_an_entry_that_would_leave_the_directory_is_refused(tmp_path: Path, name: str) -> None:
    _hostile(tmp_path / "backup.tar", name)
    with pytest.raises(FleetSetupError):
        restore_backup(tmp_path / "backup.tar", tmp_path / "in" / "again")
    assert sorted(path.name for path in tmp_path.rglob("*") if "evil" in path.name) == []
    assert not (tmp_path / "in" / "again").exists()


@pytest.mark.parametrize("kind", [b"1", b"2", b"5", b"6"], ids=["hard link", "link", "directory", "pipe"])
def test_an_entry_that_is_no_file_is_refused(tmp_path: Path, kind: bytes) -> None:
    _hostile(tmp_path / "backup.tar", "files/evil", kind)
    with pytest.raises(FleetSetupError):
        restore_backup(tmp_path / "backup.tar", tmp_path / "again")
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize("data", [b"", b"rubbish" * 500, b"\0" * 10240])
def test_a_file_that_is_no_backup_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "backup.tar").write_bytes(data)
    with pytest.raises(FleetSetupError):
        restore_backup(tmp_path / "backup.tar", tmp_path / "again")


def test_an_archive_without_a_manifest_is_refused(tmp_path: Path) -> None:
    _hostile(tmp_path / "backup.tar", "files/fleet.yaml", manifest=False)
    with pytest.raises(FleetSetupError):
        restore_backup(tmp_path / "backup.tar", tmp_path / "again")
