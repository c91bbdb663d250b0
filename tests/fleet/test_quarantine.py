from __future__ import annotations

import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.fleet_metrics_load import add_devices
from edgeslm.errors import DeviceStateError, UnknownDeviceError
from edgeslm.fleet.quarantine import MAX_REASON_CHARS, list_quarantine, quarantine, quarantined, release
from edgeslm.fleet.registry import list_audit
from edgeslm.fleet.store.database import Store, sqlite_url
from edgeslm.fleet.store.models import DeviceRow, EventRow

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
LATER = NOW + timedelta(hours=1)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(sqlite_url(tmp_path / "fleet.db"))
    add_devices(opened, ["kitchen", "cellar"], NOW)
    yield opened
    opened.close()


def test_a_device_is_in_quarantine_once_with_its_first_reason_until_it_is_released(store: Store) -> None:
    with store.write() as session:
        quarantine(session, "kitchen", "draws -1 W", NOW)
        quarantine(session, "kitchen", "draws -2 W", LATER)
        assert quarantined(session) == {"kitchen": "draws -1 W"}
        release(session, "kitchen", "me", LATER)
        assert quarantined(session) == {}
        quarantine(session, "kitchen", "draws -3 W", LATER)
    with store.read() as session:
        assert quarantined(session) == {"kitchen": "draws -3 W"}
        (now,) = list_quarantine(session)
        assert (now.device, now.reason, now.at, now.released_at) == ("kitchen", "draws -3 W", LATER, None)
        past = list_quarantine(session, past=True)[1]
        assert (past.released_at, past.released_by) == (LATER, "me")


def test_going_in_is_an_event_and_coming_out_is_in_the_audit_log(store: Store) -> None:
    with store.write() as session:
        quarantine(session, "kitchen", "draws -1 W", NOW)
        release(session, "kitchen", "me", LATER)
    with store.read() as session:
        kinds = [event.kind for event in session.query(EventRow).order_by(EventRow.id)]
        (entry,) = list_audit(session)
    assert kinds == ["quarantined", "released"]
    assert (entry.actor, entry.action, entry.subject) == ("me", "release", "kitchen")


def test_a_device_that_is_none_or_not_in_quarantine_is_refused_by_name(store: Store) -> None:
    with pytest.raises(UnknownDeviceError) as caught, store.write() as session:
        quarantine(session, "kichen", "draws -1 W", NOW)
    assert caught.value.nearest == ("kitchen",)
    with pytest.raises(DeviceStateError), store.write() as session:
        release(session, "cellar", "me", NOW)


def test_a_device_stays_in_quarantine_under_its_new_name(store: Store) -> None:
    with store.write() as session:
        quarantine(session, "kitchen", "x" * 2 * MAX_REASON_CHARS, NOW)
        session.query(DeviceRow).filter_by(name="kitchen").one().name = "pantry"
    with store.read() as session:
        assert quarantined(session) == {"pantry": "x" * MAX_REASON_CHARS}
