from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3]))

from benchmarks.fleet_metrics_load import add_devices
from edgeslm.fleet.metrics.moments import rollout_moments
from edgeslm.fleet.store.database import Store, sqlite_url
from edgeslm.fleet.store.registry import RunRow
from edgeslm.fleet.store.rollouts import MemberRow, RolloutRow

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)


def test_the_moment_of_a_device_in_a_rollout_is_when_it_began_to_run_the_release(tmp_path: Path) -> None:
    store = Store(sqlite_url(tmp_path / "fleet.db"))
    add_devices(store, ["attic", "cellar", "kitchen"], NOW)
    with store.write() as session:
        rollout = RolloutRow(
            name="lamp", version="1.1.0", sha256="b" * 64, plan={}, phase="done", created_at=NOW,
            created_by="me", changed_at=NOW,
        )  # fmt: skip
        session.add(rollout)
        session.flush()
        for device in (1, 2):
            session.add(
                MemberRow(rollout_id=rollout.id, device_id=device, board="pi-4b", wave=0, status="done")
            )
        for device, version, since in (
            (1, "1.0.0", NOW - 9 * HOUR),
            (1, "1.1.0", NOW - HOUR),
            (2, "1.0.0", NOW - 9 * HOUR),
            (3, "1.1.0", NOW - 2 * HOUR),
        ):
            session.add(RunRow(device_id=device, name="lamp", version=version, sha256=None, since=since))
    with store.read() as session:
        assert rollout_moments(session, "1") == {"attic": NOW - HOUR}
        for name in ("2", "lamp", "", "-1", "9" * 40, "²"):
            assert rollout_moments(session, name) is None
    store.close()
