"""The database of figures on a real PostgreSQL, which is started for the test."""

from __future__ import annotations

import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
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
_BINARIES = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
_PATH = os.pathsep.join([*(str(path) for path in _BINARIES), os.environ.get("PATH", "")])
_NOBODY = 65534

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("initdb", path=_PATH) is None, reason="PostgreSQL is not installed"),
]


def _run(program: str, *arguments: str) -> None:
    path = shutil.which(program, path=_PATH)
    assert path is not None
    who = (
        {"user": _NOBODY, "group": _NOBODY} if os.geteuid() == 0 else {}
    )  # PostgreSQL refuses to run as root
    subprocess.run([path, *arguments], check=True, capture_output=True, cwd="/", timeout=60, **who)


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="edgeslm-postgres-") as name:
        data = f"{name}/data"
        Path(name).chmod(0o700)
        if os.geteuid() == 0:
            os.chown(name, _NOBODY, _NOBODY)
        _run("initdb", "-D", data, "-U", "edgeslm", "-A", "trust", "-E", "UTF8", "--locale=C")
        options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories="
        _run("pg_ctl", "-D", data, "-w", "-l", f"{name}/log", "-o", options, "start")
        try:
            yield f"postgresql+psycopg://edgeslm@127.0.0.1:{port}/postgres"
        finally:
            _run("pg_ctl", "-D", data, "-m", "immediate", "stop")


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


def test_both_databases_answer_the_same(server: str, tmp_path: Path) -> None:
    assert answers(server, tmp_path) == answers(None, tmp_path)
