"""Opens the store, brings it up to date, and gives out transactions.

What always holds:

- A step of migration is done whole or not at all, and by one process: all steps run in one transaction, under the
  write lock of SQLite or an advisory lock of PostgreSQL.
- A store that a newer release wrote is refused, untouched.
- A writing transaction has the write lock from its beginning, so it never fails half-way for another writer, and
  decides nothing by what another changes meanwhile. In PostgreSQL an advisory lock takes the part of SQLite's.
- What a method returns is on the disk (WAL, ``synchronous=FULL``).

Left to others: what stands in the tables (:mod:`edgeslm.fleet.registry` and its neighbours).
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, func, insert, inspect, select, text
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError
from sqlalchemy.orm import Session

from edgeslm.errors import FleetError, FleetSetupError, FleetVersionError
from edgeslm.fleet.store import configs, metrics, registry, rollouts  # noqa: F401 - their tables
from edgeslm.fleet.store.models import Base

HEAD = "0005"
"""The newest revision; a test compares it with the migrations."""
_VERSION_TABLE = "alembic_version"
_ADVISORY_LOCK = 0x65646765_736C6D00
"""Any number that is ours: ``edgeslm`` in ASCII."""
_WRITE_LOCK = _ADVISORY_LOCK + 1
WRITES = "edgeslm_writes"
"""Option of a connection whose transactions write."""
BUSY_TIMEOUT_S = 30
_BUSY_POLL_S = 0.02
_COPY_ROWS = 1000


def sqlite_url(path: Path) -> str:
    """The URL of the SQLite file at `path`."""
    return f"sqlite:///{path.resolve()}"


class Store:
    """The fleet's database; its methods may be called from any thread."""

    def __init__(self, url: str) -> None:
        """Connect, and create the tables or bring them up to date.

        Raises:
            FleetVersionError: a newer release wrote it.
            FleetSetupError: `url` names no database that can be used here.
            FleetError: it cannot be reached or is damaged.
        """
        self._engine = _engine(url)
        self._writing = self._engine.execution_options(**{WRITES: True})
        self._where = self._engine.url.render_as_string(hide_password=True)
        try:
            with self._faults():
                with self._engine.connect() as connection:
                    revision = _revision(connection)
                if revision != HEAD:
                    self._migrate()
        except BaseException:
            self._engine.dispose()
            raise

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A transaction that sees one state and changes nothing.

        Raises:
            FleetError: the database refuses.
        """
        with self._faults(), Session(self._engine, expire_on_commit=False) as session:
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """A transaction that is kept whole when the block ends, and dropped when it raises.

        Raises:
            FleetError: the database refuses.
        """
        with self._faults(), Session(self._writing, expire_on_commit=False) as session, session.begin():
            yield session

    @contextmanager
    def part(self, session: Session) -> Iterator[None]:
        """A part of a writing transaction that is undone by itself when the block raises.

        Raises:
            FleetError: the database refuses.
        """
        with self._faults(), session.begin_nested():
            yield

    def copy_to(self, other: Store) -> None:
        """Put every row into `other`, a store without any: a backup, or a move to another database.

        Raises:
            FleetError: a database refuses, or `other` holds rows.
        """
        with self.read() as source, other.write() as target:
            for table in Base.metadata.sorted_tables:
                if target.execute(select(func.count()).select_from(table)).scalar_one():
                    raise FleetError(f"{other._where} holds a fleet already", path=other._where)
                for rows in source.execute(select(table)).mappings().partitions(_COPY_ROWS):
                    target.execute(insert(table), [dict(row) for row in rows])
            if other._engine.dialect.name == "postgresql":
                _set_sequences(target)

    def close(self) -> None:
        """Close its connections. Idempotent."""
        self._engine.dispose()

    # --- inside -------------------------------------------------------------------------------------------

    def _migrate(self) -> None:
        with self._writing.begin() as connection:
            if connection.dialect.name == "postgresql":
                connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _ADVISORY_LOCK})
            revision = _revision(connection)  # again, under the lock: another process may have been faster
            if revision == HEAD:
                return
            if revision is not None and revision > HEAD:
                raise FleetVersionError(
                    f"{self._where} has revision {revision}, this release knows {HEAD}",
                    found=revision,
                    known=HEAD,
                    hint="Use the release that wrote it, or a newer one",
                )
            upgrade(connection)

    @contextmanager
    def _faults(self) -> Iterator[None]:
        try:
            yield
        except SQLAlchemyError as error:
            reason = getattr(error, "orig", None) or error
            raise FleetError(
                f"the store {self._where}: {' '.join(str(reason).split())[:300]}", path=self._where
            ) from error


def upgrade(connection: Connection, revision: str = "head") -> None:
    """Run the steps up to `revision` within the transaction of `connection`."""
    from alembic import command  # noqa: PLC0415 - a store that is up to date needs no Alembic

    command.upgrade(alembic_config(connection), revision)


def alembic_config(connection: Connection | None = None) -> Any:
    """How Alembic finds the steps, for `connection`."""
    from alembic.config import Config  # noqa: PLC0415

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.attributes["connection"] = connection
    return config


def _engine(url: str) -> Engine:
    try:
        engine = create_engine(
            url,
            connect_args={"timeout": BUSY_TIMEOUT_S} if url.startswith("sqlite") else {},
            pool_pre_ping=True,
        )
    except (ArgumentError, NoSuchModuleError) as error:
        raise FleetSetupError(f"no database URL: {error}", hint="See docs/fleet.md on databases") from error
    except ImportError as error:
        raise FleetSetupError(
            f"the driver for that database is not installed: {error.name}",
            hint="For PostgreSQL: pip install 'psycopg[binary]'",
        ) from error
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _set_up_sqlite)
        event.listen(engine, "begin", begin_sqlite)
    elif engine.dialect.name == "postgresql":
        event.listen(engine, "begin", _begin_postgresql)
    return engine


def _set_up_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # Python's own BEGIN leaves DDL outside transactions
    connection.execute("PRAGMA foreign_keys=ON")
    connection.execute("PRAGMA synchronous=FULL")
    use_wal(connection)


def use_wal(connection: Any) -> None:
    """Let a connection of SQLite write ahead; others may open the same new file just now."""
    deadline_s = time.monotonic() + BUSY_TIMEOUT_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError:
            # SQLite does not wait for others to change the mode of a new file, whatever the timeout.
            if time.monotonic() > deadline_s:
                raise
            time.sleep(_BUSY_POLL_S)
        else:
            return


def begin_sqlite(connection: Connection) -> None:
    """Begin a transaction; one that is to write has the write lock from its beginning."""
    writes = connection.get_execution_options().get(WRITES, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _begin_postgresql(connection: Connection) -> None:
    if connection.get_execution_options().get(WRITES, False):
        connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{BUSY_TIMEOUT_S}s'")
        # Alone in its statement: those that follow see what was written by who held it before.
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_WRITE_LOCK})")
    else:
        connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")


def _revision(connection: Connection) -> str | None:
    """The revision of the store; ``None`` if it is empty."""
    if not inspect(connection).has_table(_VERSION_TABLE):
        return None
    return connection.execute(text(f"SELECT version_num FROM {_VERSION_TABLE}")).scalar_one_or_none()  # noqa: S608


def _set_sequences(session: Session) -> None:
    """Let numbering go on behind the rows that were copied with their numbers."""
    for table in Base.metadata.sorted_tables:
        column = table.autoincrement_column
        if column is not None:
            highest = session.execute(select(func.max(column))).scalar_one() or 0
            session.execute(
                text("SELECT setval(pg_get_serial_sequence(:table, :column), :next, false)"),
                {"table": table.name, "column": column.name, "next": highest + 1},
            )
