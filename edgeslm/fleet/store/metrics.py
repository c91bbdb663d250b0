"""Tables of what devices report: who is not believed, in the fleet's store; figures, in a database of their own.

Figures live apart (:data:`FIGURES` is not part of the store's migrations and of its backups): they come by the
thousand a second, are worth losing the last second of, and are thrown away in the end, none of which is true of the
store. Where the store is SQLite they have the file ``metrics.db`` beside it, so that no burst of reports ever keeps a
certificate from being written; PostgreSQL holds both in one database.

Every sort of report has three tables that differ in the width of a row: one report, a minute, an hour. All of their
figures can be put together by adding up, or by taking the least or the greatest, and of each column it is said here by
which: so an hour is made of minutes as a minute is of reports, and making it again gives the same.

What always holds: a row of a device is found by the device's number in the store, which it keeps through renames;
times are whole milliseconds or seconds of Unix time, at the end of the span of a report, at the beginning of a minute
or an hour.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Literal

from sqlalchemy import (
    BigInteger,
    Column,
    Float,
    ForeignKey,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    String,
    Table,
    Text,
)
from sqlalchemy.orm import Mapped, mapped_column

from edgeslm.fleet.store.models import Base

# --- in the store -------------------------------------------------------------------------------------------


class QuarantineRow(Base):
    """A device whose figures are not believed, from `at` until `released_at`."""

    __tablename__ = "quarantines"

    id: Mapped[int] = mapped_column(primary_key=True)
    device_id: Mapped[int] = mapped_column(ForeignKey("devices.id", ondelete="CASCADE"), index=True)
    reason: Mapped[str] = mapped_column(Text)
    at: Mapped[datetime]
    released_at: Mapped[datetime | None] = mapped_column(index=True)
    released_by: Mapped[str | None] = mapped_column(String(128))


# --- figures ------------------------------------------------------------------------------------------------

FIGURES: Final = MetaData()
VERSION: Final = 1
"""Of the tables below; one that a newer release wrote is refused."""
MAX_MODEL_CHARS: Final = 200

How = Literal["sum", "min", "max"]
Sort = Literal["power", "inference", "model", "system"]
Width = Literal["report", "minute", "hour"]
SECONDS: Final[dict[Width, int]] = {"report": 0, "minute": 60, "hour": 3600}


@dataclass(frozen=True)
class SortTables:
    """The tables of one sort of report.

    Attributes:
        columns: figures, each with how several of them become one.
        keys: what tells rows of one device and time apart.
        extras: columns of single reports only.
        tables: by width of a row.
    """

    columns: Mapping[str, How]
    keys: tuple[str, ...]
    extras: tuple[str, ...]
    tables: Mapping[Width, Table]


def _tables(
    sort: Sort, columns: Mapping[str, How], *, by_model: bool = False, extras: tuple[Column[Any], ...] = ()
) -> SortTables:
    keys = ("model",) if by_model else ()
    tables: dict[Width, Table] = {}
    for width in SECONDS:
        key_columns: list[Column[Any]] = [Column("device_id", Integer, primary_key=True, autoincrement=False)]
        if width == "report":
            key_columns += [
                Column("at_ms", BigInteger, primary_key=True, autoincrement=False),
                Column("seq", BigInteger, primary_key=True, autoincrement=False),
            ]
        else:
            key_columns.append(Column("start_s", BigInteger, primary_key=True, autoincrement=False))
        key_columns += [Column(key, String(MAX_MODEL_CHARS), primary_key=True) for key in keys]
        tables[width] = Table(
            f"metrics_{sort}_{width}",
            FIGURES,
            *key_columns,
            *(Column(name, Float) for name in columns),
            *(extras if width == "report" else ()),
            # Rows of one device lie together in the order of time: a day of it is some pages, not a page for each row.
            sqlite_with_rowid=False,
        )
    return SortTables(columns, keys, tuple(column.name for column in extras), tables)


SORTS: Final[dict[Sort, SortTables]] = {
    "power": _tables(
        "power",
        {
            "reports": "sum",
            "span_s": "sum",
            "energy_j": "sum",
            "min_w": "min",
            "max_w": "max",
            "idle_j": "sum",
            "prompt_j": "sum",
            "estimated_s": "sum",
            "left_share": "min",
            "exceeded": "sum",
            "battery_share": "min",
            "co2_g": "sum",
            "cost": "sum",
        },
        extras=(Column("points", LargeBinary),),
    ),
    "inference": _tables(
        "inference",
        {"reports": "sum", "span_s": "sum", "waiting_most": "max", "waiting_sum": "sum"},
    ),
    "model": _tables(
        "model",
        {
            "span_s": "sum",
            "answered": "sum",
            "failed": "sum",
            "refused": "sum",
            "deferred": "sum",
            "shortened": "sum",
            "prompt_tokens": "sum",
            "completion_tokens": "sum",
            "energy_j": "sum",
            "net_j": "sum",
            "tps_sum": "sum",
            "tps_tokens": "sum",
            "ttft_sum_ms": "sum",
            "ttft_prompts": "sum",
        },
        by_model=True,
    ),
    "system": _tables(
        "system",
        {
            "reports": "sum",
            "span_s": "sum",
            "temperature_most_c": "max",
            "temperature_sum": "sum",
            "temperature_s": "sum",
            "throttled_s": "sum",
            "busy_s": "sum",
            "rss_most_mb": "max",
            "memory_least_mb": "min",
            "disk_least_mb": "min",
        },
    ),
}

EVENTS: Final = Table(
    "metrics_event",
    FIGURES,
    Column("device_id", Integer, primary_key=True, autoincrement=False),
    Column("at_ms", BigInteger, primary_key=True, autoincrement=False),
    Column("type", String(32), primary_key=True),
    Column("detail", Text, nullable=False),
    Column("figures", Text, nullable=False),
    sqlite_with_rowid=False,
)

LATEST: Final = Table(
    "metrics_latest",
    FIGURES,
    Column("device_id", Integer, primary_key=True, autoincrement=False),
    Column("sort", String(16), primary_key=True),
    Column("at_ms", BigInteger, nullable=False),
    Column("own_ms", BigInteger, nullable=False),
    Column("seq", BigInteger, nullable=False),
    Column("body", Text, nullable=False),
    sqlite_with_rowid=False,
)
"""The newest report of each sort: `at_ms` as it is counted here, `own_ms` as the device stamped it."""

DIRTY: Final = Table(
    "metrics_dirty",
    FIGURES,
    Column("device_id", Integer, primary_key=True, autoincrement=False),
    Column("from_ms", BigInteger, nullable=False),
    Column("until_ms", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)
"""Of which time minutes and hours have to be made anew: reports came in that they do not hold yet."""

ABOUT: Final = Table(
    "metrics_about",
    FIGURES,
    Column("key", String(32), primary_key=True),
    Column("value", SmallInteger, nullable=False),
)
