"""The database of figures: opens it, takes rows by the thousand, rolls them up, throws old ones away.

What always holds:

- A batch is written whole or not at all, and a report twice is there once.
- Minutes and hours are made from what they consist of and from nothing else, so making them again gives the same; what
  came in since they were made is noted in the transaction that brought it, and is made up for at the next turn.
- Reports are kept longer than any that is still taken is old, so a minute is never made from a part of its reports.
- The last second of figures may be lost when the machine loses power (WAL, ``synchronous=NORMAL``), the database never.

Left to others: what a report has to be (:mod:`edgeslm.fleet.metrics.judge`), and who asks for what
(:mod:`edgeslm.fleet.metrics.query`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Connection, Engine, Select, create_engine, event, insert, select, text
from sqlalchemy.exc import SQLAlchemyError

from edgeslm.errors import FleetError, FleetVersionError
from edgeslm.fleet.metrics.rows import Row
from edgeslm.fleet.store.database import BUSY_TIMEOUT_S, WRITES, begin_sqlite, sqlite_url, use_wal
from edgeslm.fleet.store.metrics import (
    ABOUT,
    DIRTY,
    EVENTS,
    FIGURES,
    LATEST,
    SECONDS,
    SORTS,
    VERSION,
    Sort,
    SortTables,
    Width,
)
from edgeslm.schema.fleet_metrics import MetricsSettings

DATABASE: Final = "metrics.db"
_VERSION_KEY: Final = "version"
_ADVISORY_LOCK: Final = 0x65646765_736C6D01
"""Any number that is ours, and not the store's."""
_DAY_MS: Final = 86_400_000
HOUR_MS: Final = 3_600_000
_MINUTE_MS: Final = 60_000
_EVENT_DAYS: Final = 30


def metrics_url(root: Path, database: str | None) -> str:
    """The URL of the figures of the fleet in `root` whose store is at `database`: beside SQLite, within others."""
    return sqlite_url(root / DATABASE) if database is None or database.startswith("sqlite") else database


@dataclass(slots=True)
class Batch:
    """What is to be written together.

    Attributes:
        rows: by sort.
        events: device, time in milliseconds, type, detail, figures as JSON.
        latest: by device and sort: time, the device's own, sequence, body.
        touched: by device: earliest and latest time of its rows.
    """

    rows: dict[Sort, list[Row]] = field(default_factory=lambda: {sort: [] for sort in SORTS})
    events: list[Row] = field(default_factory=list)
    latest: dict[tuple[int, str], Row] = field(default_factory=dict)
    touched: dict[int, tuple[int, int]] = field(default_factory=dict)

    def touch(self, device_id: int, at_ms: int) -> None:
        """A row of `device_id` at `at_ms` is among them."""
        before = self.touched.get(device_id)
        self.touched[device_id] = (
            (at_ms, at_ms) if before is None else (min(before[0], at_ms), max(before[1], at_ms))
        )


class MetricsStore:
    """The database of figures; its methods may be called from any thread."""

    def __init__(self, url: str) -> None:
        """Connect, and create the tables where there are none.

        Raises:
            FleetVersionError: a newer release wrote it.
            FleetError: it cannot be reached or is damaged.
        """
        self._where = url
        with self._faults():
            self._engine = _engine(url)
        self._where = self._engine.url.render_as_string(hide_password=True)
        self._writing = self._engine.execution_options(**{WRITES: True})
        self._mark = "?" if self._engine.dialect.name == "sqlite" else "%s"
        try:
            self._create()
        except BaseException:
            self._engine.dispose()
            raise
        self._inserts = {sort: self._insert(one) for sort, one in SORTS.items()}

    def close(self) -> None:
        """Close its connections. Idempotent."""
        self._engine.dispose()

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A transaction that sees one state.

        Raises:
            FleetError: the database refuses.
        """
        with self._faults(), self._engine.begin() as connection:
            yield connection

    def rows(self, query: Select[Any]) -> list[Any]:
        """All rows of `query`.

        Raises:
            FleetError: the database refuses.
        """
        with self.read() as connection:
            return list(connection.execute(query).all())

    def write(self, batch: Batch) -> None:
        """Write a batch.

        Raises:
            FleetError: the database refuses; nothing was written.
        """
        with self._transaction() as connection:
            for sort, rows in batch.rows.items():
                if rows:
                    connection.exec_driver_sql(self._inserts[sort], rows)
            if batch.events:
                marks = ", ".join([self._mark] * len(EVENTS.columns))
                connection.exec_driver_sql(
                    f"INSERT INTO {EVENTS.name} VALUES ({marks}) ON CONFLICT DO NOTHING",  # noqa: S608 - our names
                    batch.events,
                )
            if batch.latest:
                marks = ", ".join([self._mark] * len(LATEST.columns))
                columns = ("at_ms", "own_ms", "seq", "body")
                connection.exec_driver_sql(
                    f"INSERT INTO {LATEST.name} VALUES ({marks}) ON CONFLICT (device_id, sort) DO UPDATE SET "  # noqa: S608
                    + ", ".join(f"{name} = excluded.{name}" for name in columns),
                    [(*key, *row) for key, row in batch.latest.items()],
                )
            if batch.touched:
                least, most = ("min", "max") if self._mark == "?" else ("least", "greatest")
                marks = ", ".join([self._mark] * len(DIRTY.columns))
                connection.exec_driver_sql(
                    f"INSERT INTO {DIRTY.name} VALUES ({marks}) ON CONFLICT (device_id) DO UPDATE SET "  # noqa: S608
                    f"from_ms = {least}({DIRTY.name}.from_ms, excluded.from_ms), "
                    f"until_ms = {most}({DIRTY.name}.until_ms, excluded.until_ms)",
                    [(device, *times) for device, times in batch.touched.items()],
                )

    def roll_up(self) -> int:
        """Make minutes and hours of all that came in since the last time; for how many devices there was something.

        Raises:
            FleetError: the database refuses; it is made up for the next time.
        """
        with self._transaction() as connection:
            count = connection.execute(text(f"SELECT count(*) FROM {DIRTY.name}")).scalar_one()  # noqa: S608
            if count:
                for one in SORTS.values():
                    for width in ("minute", "hour"):
                        connection.exec_driver_sql(_rolling(one, width))
                connection.exec_driver_sql(f"DELETE FROM {DIRTY.name}")  # noqa: S608
        return int(count)

    def prune(self, settings: MetricsSettings, now_ms: int) -> int:
        """Throw away what is older than it is to be kept; how many rows that were. Roll up first.

        Raises:
            FleetError: the database refuses.
        """
        cuts: dict[Width, int] = {
            "report": oldest_ms(settings, now_ms) - HOUR_MS,
            "minute": int(now_ms - settings.minutes_days * _DAY_MS) // 1000,
            "hour": int(now_ms - settings.hours_days * _DAY_MS) // 1000,
        }
        gone = 0
        with self.read() as connection:
            devices = list(connection.execute(select(LATEST.c.device_id).distinct()).scalars())
        with self._transaction() as connection:
            # By device, since that is how rows lie; over all of them every page would be read.
            for one in SORTS.values():
                for width, cut in cuts.items():
                    column = "at_ms" if width == "report" else "start_s"
                    done = connection.exec_driver_sql(
                        f"DELETE FROM {one.tables[width].name} "  # noqa: S608 - our names
                        f"WHERE device_id = {self._mark} AND {column} < {self._mark}",
                        [(device, cut) for device in devices] or [(-1, cut)],
                    )
                    gone += max(0, done.rowcount)
            connection.execute(EVENTS.delete().where(EVENTS.c.at_ms < now_ms - _EVENT_DAYS * _DAY_MS))
        return gone

    def _insert(self, one: SortTables) -> str:
        table = one.tables["report"]
        names = [column.name for column in table.columns]
        marks = ", ".join([self._mark] * len(names))
        return f"INSERT INTO {table.name} ({', '.join(names)}) VALUES ({marks}) ON CONFLICT DO NOTHING"  # noqa: S608

    def _create(self) -> None:
        with self._transaction() as connection:
            if self._engine.dialect.name == "postgresql":
                connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _ADVISORY_LOCK})
            FIGURES.create_all(connection)
            query = select(ABOUT.c.value).where(ABOUT.c.key == _VERSION_KEY)
            found = connection.execute(query).scalar_one_or_none()
            if found is None:
                connection.execute(insert(ABOUT).values(key=_VERSION_KEY, value=VERSION))
            elif found > VERSION:
                raise FleetVersionError(
                    f"{self._where} has figures of version {found}, this release knows {VERSION}",
                    found=str(found),
                    known=str(VERSION),
                    hint="Use the release that wrote it, or a newer one",
                )

    @contextmanager
    def _transaction(self) -> Iterator[Connection]:
        with self._faults(), self._writing.begin() as connection:
            yield connection

    @contextmanager
    def _faults(self) -> Iterator[None]:
        try:
            yield
        except SQLAlchemyError as error:
            reason = getattr(error, "orig", None) or error
            raise FleetError(
                f"the figures in {self._where}: {' '.join(str(reason).split())[:300]}", path=self._where
            ) from error


def oldest_ms(settings: MetricsSettings, now_ms: int) -> int:
    """Reports from before this are not taken any more: an hour before the end of what is kept, on the full hour."""
    return (int(now_ms - settings.reports_days * _DAY_MS) // HOUR_MS + 2) * HOUR_MS


def _rolling(one: SortTables, width: Width) -> str:
    """Makes rows of `width` anew where something came in."""
    target = one.tables[width]
    source = one.tables["report" if width == "minute" else "minute"]
    size_ms = SECONDS[width] * 1000
    # A report that ends on the full minute is one on the minute before.
    time_ms = "(s.at_ms - 1)" if width == "minute" else "(s.start_s * 1000)"
    start_s = f"{time_ms} / {size_ms} * {size_ms // 1000}"
    low = f"(d.from_ms - 1) / {size_ms} * {size_ms}"
    high = f"((d.until_ms - 1) / {size_ms} + 1) * {size_ms}"
    # The bounds stand beside the bare column, or no index is used.
    within = (
        f"s.at_ms > {low} AND s.at_ms <= {high}"
        if width == "minute"
        else f"s.start_s >= {low} / 1000 AND s.start_s < {high} / 1000"
    )
    columns = list(one.columns)
    figures = ", ".join(f"{how}(s.{name})" for name, how in one.columns.items())
    keys = ["device_id", "start_s", *one.keys]
    grouped = ", ".join(["s.device_id", start_s, *(f"s.{key}" for key in one.keys)])
    return (
        f"INSERT INTO {target.name} ({', '.join([*keys, *columns])}) "  # noqa: S608 - our names
        f"SELECT {grouped}, {figures} FROM {DIRTY.name} d JOIN {source.name} s ON s.device_id = d.device_id "
        f"AND {within} WHERE true GROUP BY {grouped} "
        f"ON CONFLICT ({', '.join(keys)}) DO UPDATE SET "
        + ", ".join(f"{name} = excluded.{name}" for name in columns)
    )


def _engine(url: str) -> Engine:
    is_sqlite = url.startswith("sqlite")
    engine = create_engine(
        url, connect_args={"timeout": BUSY_TIMEOUT_S} if is_sqlite else {}, pool_pre_ping=not is_sqlite
    )
    if is_sqlite:
        event.listen(engine, "connect", _set_up_sqlite)
        event.listen(engine, "begin", begin_sqlite)
    return engine


def _set_up_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None
    connection.execute("PRAGMA synchronous=NORMAL")
    connection.execute("PRAGMA cache_size=-65536")
    use_wal(connection)
