"""The database of figures on a real PostgreSQL, which is started for the test."""

from __future__ import annotations

import random
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[3]))

from benchmarks.fleet_metrics_load import add_devices, device_names, noon, reports
from edgeslm.fleet.metrics.figures import FIGURES, USUAL
from edgeslm.fleet.metrics.intake import Intake
from edgeslm.fleet.metrics.query import newest
from edgeslm.fleet.metrics.report import compare_around, make_report
from edgeslm.fleet.metrics.store import MetricsStore, metrics_url
from edgeslm.fleet.selection import select
from edgeslm.fleet.store.database import Store, sqlite_url
from edgeslm.power.boards import load_boards
from edgeslm.schema.fleet_metrics import MetricsSettings

pytest.importorskip("psycopg")
pytestmark = pytest.mark.slow


def answers(url: str | None, directory: Path) -> list[Any]:
    """What a database says to the same questions about the same reports, each of which came twice."""
    names, keep = device_names(3), MetricsSettings()
    store, metrics = (
        Store(url or sqlite_url(directory / "fleet.db")),
        MetricsStore(metrics_url(directory, url)),
    )
    add_devices(store, names, noon())
    intake = Intake(store, metrics, load_boards(), keep)
    for _ in range(2):
        for minute in range(120):
            at = noon() + timedelta(minutes=minute + 1)
            intake.take(reports(names, minute, at, random.Random(minute)), at)
        metrics.roll_up()
    now = noon() + timedelta(minutes=120)
    times: Any = {"since_s": noon().timestamp(), "until_s": now.timestamp(), "settings": keep, "now": now}
    usual = [FIGURES[name] for name in USUAL]
    with store.read() as session:
        devices = select(session)
        told = [
            make_report(session, metrics, devices, by="device", figures=usual, **times),
            make_report(session, metrics, devices, by="model", figures=[FIGURES["tps"]], step_s=600, **times),
            compare_around(
                session,
                metrics,
                devices,
                moment=noon() + timedelta(hours=1),
                figures=[],
                window_s=3600,
                settings=keep,
                now=now,
            ),
        ]
    count = len(newest(metrics, {1, 2, 3}))
    gone = metrics.prune(keep, round((now + timedelta(days=40)).timestamp() * 1000))
    metrics.close()
    store.close()
    return [rounded([one.model_dump() for one in told]), count, gone]


def rounded(value: Any) -> Any:
    """Sums in another order differ in their last digits."""
    if isinstance(value, float):
        return float(f"{round(value, 9):.9g}")
    if isinstance(value, dict):
        return {key: rounded(one) for key, one in value.items()}
    return [rounded(one) for one in value] if isinstance(value, list | tuple) else value


def test_both_databases_answer_the_same(postgres: str, tmp_path: Path) -> None:
    assert answers(f"{postgres}/postgres", tmp_path) == answers(None, tmp_path)
