"""What the energy ledger can be asked, by the agent that writes it and by commands beside a running agent.

All times are Unix seconds; hours and days are those of UTC. Rows grow coarser with age (see
:mod:`edgeslm.power.ledger`): a row belongs to a period if it begins in it.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

from edgeslm.errors import LedgerError
from edgeslm.power.integrate import weakest
from edgeslm.schema.message import MeterClass, Priority

SCHEMA_VERSION = 1
Grouping = Literal["cause", "model", "rule", "minute", "hour", "day"]

_TIMES: dict[Grouping, int] = {"minute": 60, "hour": 3600, "day": 86_400}
_Group = tuple[int | None, str | None, str | None, str | None]

_PROMPT = """
SELECT id, at, model, rule, priority, prompt_tokens, completion_tokens, predicted_j, decision,
       energy_j, net_j, seconds, meter FROM prompts
"""


@dataclass(frozen=True, slots=True)
class EnergyRow:
    """Energy of one group; fields that were not asked to group by are ``None``.

    Attributes:
        start_s: Unix time at which the minute, hour or day begins.
        cause: kind of work, see :data:`edgeslm.power.attribution.CauseKind`.
        energy_j: joules, the idle draw included.
        net_j: joules above the idle draw.
        seconds: wall time that is the group's own.
        meter: the weakest class that a tenth of the energy or more rests on.
    """

    start_s: int | None
    cause: str | None
    model: str | None
    rule: str | None
    energy_j: float
    net_j: float
    seconds: float
    meter: MeterClass


@dataclass(frozen=True, slots=True)
class PowerPoint:
    """Draw of the board over `width_s` from Unix time `start_s`."""

    start_s: int
    width_s: int
    min_w: float
    mean_w: float
    max_w: float


@dataclass(frozen=True, slots=True)
class EnergyBucket:
    """Joules that the board drew in the `width_s` seconds from Unix time `start_s`.

    Attributes:
        seconds: for how many of them it was watched.
    """

    start_s: int
    width_s: int
    energy_j: float
    seconds: float


@dataclass(frozen=True, slots=True)
class PromptNote:
    """What the agent knows of a prompt.

    Attributes:
        at_s: Unix time of the decision about it.
        predicted_j: net joules that it was expected to take.
        decision: JSON text: what the governor decided and why.
    """

    id: str
    at_s: float
    model: str | None = None
    rule: str | None = None
    priority: Priority = "normal"
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    predicted_j: float | None = None
    decision: str | None = None


@dataclass(frozen=True, slots=True)
class PromptRow:
    """A prompt with its final account; the energies are ``None`` for one that never ran, or is not settled yet."""

    note: PromptNote
    energy_j: float | None
    net_j: float | None
    seconds: float | None
    meter: MeterClass | None


class LedgerReader:
    """Queries. Thread-safe."""

    def __init__(self, path: Path, db: sqlite3.Connection) -> None:
        """Take an open connection; :meth:`open` makes one."""
        self._path = path
        self._db = db
        self._db_lock = threading.Lock()

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open for reading, also while an agent writes.

        Raises:
            LedgerError: there is none, it cannot be read, or it was written by a newer release.
        """
        try:
            db = sqlite3.connect(
                f"{path.resolve().as_uri()}?mode=ro", uri=True, check_same_thread=False, timeout=10
            )
            version = user_version(db)
        except sqlite3.Error as error:
            raise LedgerError(
                f"cannot read {path}: {error}", hint="Has an agent run with this state directory?"
            ) from error
        check_version(path, version)
        return cls(path, db)

    def close(self) -> None:
        """Close the database."""
        with self._db_lock:
            self._db.close()

    def energy(self, start_s: float, end_s: float, group_by: Sequence[Grouping] = ()) -> list[EnergyRow]:
        """Energy of the period, one row for each group, ordered by time and then by energy.

        Args:
            group_by: at most one of ``minute``, ``hour`` and ``day``; none at all gives the total.

        Raises:
            LedgerError: the database cannot be read.
        """
        width_s = next((_TIMES[group] for group in group_by if group in _TIMES), None)
        columns = [
            "start / :width * :width" if width_s else "NULL",
            *(name if name in group_by else "NULL" for name in ("cause", "model", "rule")),
        ]
        with self._access() as db:
            rows = db.execute(
                f"SELECT {', '.join(columns)}, meter, SUM(energy_j), SUM(net_j), SUM(seconds) FROM energy "  # noqa: S608
                "WHERE start >= :start AND start < :end GROUP BY 1, 2, 3, 4, 5",
                {"width": width_s, "start": start_s, "end": end_s},
            ).fetchall()
        groups: dict[_Group, list[tuple[MeterClass, float, float, float]]] = {}
        for start, cause, model, rule, meter, *sums in rows:
            groups.setdefault((start, cause, model or None, rule or None), []).append((meter, *sums))
        found = [
            EnergyRow(
                *key,
                energy_j=sum(part[1] for part in parts),
                net_j=sum(part[2] for part in parts),
                seconds=sum(part[3] for part in parts),
                meter=weakest([(part[0], part[1]) for part in parts]),
            )
            for key, parts in groups.items()
        ]
        return sorted(found, key=lambda row: (row.start_s or 0, -row.energy_j))

    def power(self, start_s: float, end_s: float, width_s: int = 60) -> list[PowerPoint]:
        """Draw of the board over the period in steps of `width_s` seconds, for charts; steps without data lack.

        Raises:
            LedgerError: the database cannot be read.
        """
        with self._access() as db:
            rows = db.execute(
                "SELECT start / :width * :width, MIN(min_w), SUM(energy_j) / SUM(seconds), MAX(max_w) FROM power "
                "WHERE start >= :start AND start < :end GROUP BY 1 ORDER BY 1",
                {"width": width_s, "start": start_s, "end": end_s},
            ).fetchall()
        return [PowerPoint(start, width_s, low, mean, high) for start, low, mean, high in rows]

    def buckets(self, start_s: float, end_s: float) -> list[EnergyBucket]:
        """Energy of the whole board over the period, as fine as it is kept: what budget windows start from.

        Raises:
            LedgerError: the database cannot be read.
        """
        with self._access() as db:
            rows = db.execute(
                "SELECT start, width, SUM(energy_j), SUM(seconds) FROM energy WHERE start >= ? AND start < ? "
                "GROUP BY start, width ORDER BY start",
                (start_s, end_s),
            ).fetchall()
        return [EnergyBucket(*row) for row in rows]

    def spans(self, over_s: float, now_s: float, wall_s: float) -> list[tuple[float, float, float]]:
        """What was drawn in the last `over_s` seconds: start and end, monotonic, and joules; what windows start from.

        Where in its minute energy was drawn is not known. It is placed as late as can be, so that it counts for
        longest.

        Args:
            now_s: monotonic.
            wall_s: Unix time at `now_s`.

        Raises:
            LedgerError: the database cannot be read.
        """
        offset_s = wall_s - now_s
        found = []
        for bucket in self.buckets(wall_s - over_s, wall_s):
            end_s = min(bucket.start_s + bucket.width_s, wall_s) - offset_s
            found.append((end_s - min(bucket.seconds, bucket.width_s), end_s, bucket.energy_j))
        return found

    def prompt(self, prompt_id: str) -> PromptRow | None:
        """The prompt of this id, while it is kept.

        Raises:
            LedgerError: the database cannot be read.
        """
        with self._access() as db:
            row = db.execute(f"{_PROMPT} WHERE id = ?", (prompt_id,)).fetchone()
        return None if row is None else PromptRow(PromptNote(*row[:9]), *row[9:])

    def prompts(self, limit: int) -> list[PromptRow]:
        """The latest prompts, youngest first.

        Raises:
            LedgerError: the database cannot be read.
        """
        with self._access() as db:
            rows = db.execute(f"{_PROMPT} ORDER BY number DESC LIMIT ?", (limit,)).fetchall()
        return [PromptRow(PromptNote(*row[:9]), *row[9:]) for row in rows]

    @contextmanager
    def _access(self) -> Iterator[sqlite3.Connection]:
        with self._db_lock:
            try:
                yield self._db
            except sqlite3.Error as error:
                raise LedgerError(f"{self._path}: {error}") from error


def user_version(db: sqlite3.Connection) -> int:
    """Number of the last migration that was run; 0 for a new file."""
    return int(db.execute("PRAGMA user_version").fetchone()[0])


def check_version(path: Path, version: int) -> None:
    """Refuse what a newer release wrote."""
    if version > SCHEMA_VERSION:
        raise LedgerError(
            f"{path} has schema {version}, this release knows {SCHEMA_VERSION}",
            hint="Run the release that wrote it, or move the file away",
        )
