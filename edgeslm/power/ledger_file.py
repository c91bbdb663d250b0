"""The energy ledger's file: its schema, and what is written to it in one transaction."""

from __future__ import annotations

import json
import logging
import math
import sqlite3
from dataclasses import astuple
from pathlib import Path

from edgeslm.power.attribution import EndedSpan
from edgeslm.power.ledger_batch import DAY, HOUR, Batch
from edgeslm.power.ledger_reader import check_version, user_version

log = logging.getLogger(__name__)

MINUTES_KEPT_S = 2 * DAY
HOURS_KEPT_S = 90 * DAY
PROMPTS_KEPT_S = 30 * DAY
MOST_PROMPTS = 10_000

SEEN = "seen"
"""Key of the state that tells when the board was last heard of, and what it drew then."""

_MIGRATIONS = (
    """
    CREATE TABLE energy (
        start INTEGER NOT NULL,
        width INTEGER NOT NULL,
        cause TEXT NOT NULL,
        model TEXT NOT NULL,
        rule TEXT NOT NULL,
        meter TEXT NOT NULL,
        energy_j REAL NOT NULL,
        net_j REAL NOT NULL,
        seconds REAL NOT NULL,
        PRIMARY KEY (start, width, cause, model, rule, meter)
    ) WITHOUT ROWID;
    CREATE TABLE power (
        start INTEGER NOT NULL,
        width INTEGER NOT NULL,
        min_w REAL NOT NULL,
        max_w REAL NOT NULL,
        energy_j REAL NOT NULL,
        seconds REAL NOT NULL,
        PRIMARY KEY (start, width)
    ) WITHOUT ROWID;
    CREATE TABLE prompts (
        number INTEGER PRIMARY KEY,
        id TEXT NOT NULL UNIQUE,
        at REAL NOT NULL,
        model TEXT,
        rule TEXT,
        priority TEXT NOT NULL DEFAULT 'normal',
        prompt_tokens INTEGER,
        completion_tokens INTEGER,
        predicted_j REAL,
        decision TEXT,
        energy_j REAL,
        net_j REAL,
        seconds REAL,
        meter TEXT
    );
    CREATE TABLE state (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
    """,
)

_ADD_ENERGY = """
INSERT INTO energy VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (start, width, cause, model, rule, meter) DO UPDATE SET
    energy_j = energy_j + excluded.energy_j, net_j = net_j + excluded.net_j, seconds = seconds + excluded.seconds
"""
_ADD_POWER = """
INSERT INTO power VALUES (?, ?, ?, ?, ?, ?)
ON CONFLICT (start, width) DO UPDATE SET
    min_w = MIN(min_w, excluded.min_w), max_w = MAX(max_w, excluded.max_w),
    energy_j = energy_j + excluded.energy_j, seconds = seconds + excluded.seconds
"""
_PUT_NOTE = """
INSERT INTO prompts (id, at, model, rule, priority, prompt_tokens, completion_tokens, predicted_j, decision)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (id) DO UPDATE SET
    at = excluded.at, model = excluded.model, rule = excluded.rule,
    priority = excluded.priority, prompt_tokens = excluded.prompt_tokens,
    completion_tokens = excluded.completion_tokens, predicted_j = excluded.predicted_j, decision = excluded.decision
"""
_PUT_COST = """
INSERT INTO prompts (id, at, model, rule, energy_j, net_j, seconds, meter) VALUES (?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (id) DO UPDATE SET
    energy_j = excluded.energy_j, net_j = excluded.net_j, seconds = excluded.seconds, meter = excluded.meter
"""
_ROLL_UP = (
    """
    INSERT INTO energy
    SELECT start / :to * :to AS hour, :to, cause, model, rule, meter, SUM(energy_j), SUM(net_j), SUM(seconds)
    FROM energy WHERE width < :to AND start < :before GROUP BY hour, cause, model, rule, meter
    ON CONFLICT (start, width, cause, model, rule, meter) DO UPDATE SET
        energy_j = energy_j + excluded.energy_j, net_j = net_j + excluded.net_j, seconds = seconds + excluded.seconds
    """,
    "DELETE FROM energy WHERE width < :to AND start < :before",
    """
    INSERT INTO power
    SELECT start / :to * :to AS hour, :to, MIN(min_w), MAX(max_w), SUM(energy_j), SUM(seconds)
    FROM power WHERE width < :to AND start < :before GROUP BY hour
    ON CONFLICT (start, width) DO UPDATE SET
        min_w = MIN(min_w, excluded.min_w), max_w = MAX(max_w, excluded.max_w),
        energy_j = energy_j + excluded.energy_j, seconds = seconds + excluded.seconds
    """,
    "DELETE FROM power WHERE width < :to AND start < :before",
)


def connect(path: Path) -> sqlite3.Connection:
    """Open or create; older schemas are brought up to date.

    Raises:
        LedgerError: a newer release wrote it.
        sqlite3.Error: it cannot be opened.
    """
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=10)
    try:
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=NORMAL")
        db.execute("PRAGMA cache_size=-256")  # KiB
        version = user_version(db)
        check_version(path, version)
        for number, sql in enumerate(_MIGRATIONS[version:], version + 1):
            db.executescript(f"BEGIN IMMEDIATE;{sql}PRAGMA user_version={number};COMMIT;")
        db.execute("SELECT value FROM state LIMIT 1")  # a header alone is no proof of a database
    except BaseException:
        db.close()
        raise
    return db


def is_broken(error: BaseException) -> bool:
    """Whether the file is at fault, not the disk, the caller or another process."""
    return getattr(error, "sqlite_errorcode", None) in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}


def set_aside(path: Path) -> None:
    """Move a broken database away with its write-ahead log, which must not be played into a new one.

    Raises:
        OSError: it cannot be moved.
    """
    log.warning("%s is broken: it is set aside as %s.broken, and a new one begun", path, path.name)
    for suffix in ("", "-wal", "-shm"):
        file = path.with_name(path.name + suffix)
        if file.exists():
            file.replace(path.with_name(f"{path.name}.broken{suffix}"))


def write(db: sqlite3.Connection, batch: Batch, boot: str | None) -> None:
    """Add a batch, within the caller's transaction.

    Args:
        boot: what tells this boot from others; ``None`` where it is not known.
    """
    db.executemany(_ADD_ENERGY, [(*astuple(key), *astuple(part)) for key, part in batch.energy.items()])
    db.executemany(_ADD_POWER, [(*key, *astuple(part)) for key, part in batch.power.items()])
    db.executemany(_PUT_NOTE, [astuple(note) for note in batch.notes.values()])
    db.executemany(_PUT_COST, [_cost_row(*cost) for cost in batch.costs.values()])
    if batch.notes or batch.costs:
        # By number: after a step of the clock the youngest may bear the oldest time.
        db.execute(
            "DELETE FROM prompts WHERE number <= (SELECT MAX(number) FROM prompts) - ?", (MOST_PROMPTS,)
        )
    state = dict(batch.state)
    if boot is not None and batch.settled_s is not None:
        state[SEEN] = json.dumps({"boot": boot, "at_s": batch.settled_s, "power_w": batch.mean_w()})
    db.executemany("INSERT OR REPLACE INTO state VALUES (?, ?)", list(state.items()))


def tidy(db: sqlite3.Connection, wall_s: float) -> None:
    """Roll up and forget what is old at Unix time `wall_s`, within the caller's transaction."""
    for width, kept_s in ((HOUR, MINUTES_KEPT_S), (DAY, HOURS_KEPT_S)):
        before = math.floor((wall_s - kept_s) / width) * width
        for sql in _ROLL_UP:
            db.execute(sql, {"to": width, "before": before})
    db.execute("DELETE FROM prompts WHERE at < ?", (wall_s - PROMPTS_KEPT_S,))


def _cost_row(
    at_s: float, span: EndedSpan
) -> tuple[str | None, float, str | None, str | None, float, float, float, str]:
    cause = span.cause
    return cause.id, at_s, cause.model, cause.rule, span.energy_j, span.net_j, span.seconds, span.meter
