"""The fleet's record of configurations: versions, what differs, what became of each."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.update_trust_rig import DEVICE, DEVICE_KEY, FLEET, START, Rig, key, rig
from edgeslm.codec import encode
from edgeslm.errors import (
    ConfigError,
    DeviceStateError,
    EdgeslmError,
    RemoteConfigError,
    UnknownDeviceError,
    UsageError,
)
from edgeslm.fleet.assignments import take_reported
from edgeslm.fleet.registry import list_audit
from edgeslm.fleet.remote_config import Change, check, difference, history, in_force, make, settle, supersede
from edgeslm.fleet.store.database import Store, sqlite_url
from edgeslm.fleet.store.models import DeviceRow
from edgeslm.schema.remote_config import RemoteConfig
from edgeslm.schema.update import Reported
from edgeslm.trust.remote_config import verify_remote_config


class Fleet:
    """A store with one device, and the keys."""

    def __init__(self, made: Rig, store: Store) -> None:
        self.rig, self.store = made, store
        trusted = made.device()
        trusted.refresh()
        self.authority = trusted.targets
        self.seq = 0
        with store.write() as session:
            session.add(
                DeviceRow(name=DEVICE, standing="active", key_sha256=DEVICE_KEY, notes="", created_at=START)
            )

    def make(
        self, settings: Mapping[str, Any], device: str = DEVICE, signer: str = "assignments", **wishes: Any
    ) -> tuple[RemoteConfig, str]:
        with self.store.write() as session:
            return make(
                session,
                FLEET,
                device,
                settings,
                [key(signer)],
                self.authority,
                command=f"c-{len(history(session, DEVICE))}",
                actor="tester",
                now=START,
                **wishes,
            )

    def settle(self, version: int, outcome: Any, detail: str = "") -> None:
        with self.store.write() as session:
            settle(session, DEVICE, version, outcome, detail, START)

    def reports(self, version: int | None) -> None:
        self.seq += 1
        report = Reported(device=DEVICE, epoch="e", seq=self.seq, assignment=0, models=(), config=version)
        with self.store.write() as session:
            assert take_reported(session, DEVICE, encode(report), START)

    @property
    def states(self) -> list[str]:
        with self.store.read() as session:
            return [record.state for record in history(session, DEVICE)]

    @property
    def set_now(self) -> dict[str, Any] | None:
        with self.store.read() as session:
            current = in_force(session, DEVICE)
        return None if current is None else current.settings


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    store = Store(sqlite_url(tmp_path / "fleet.db"))
    try:
        with rig() as made:
            yield Fleet(made, store)
    finally:
        store.close()


def test_what_is_made_is_what_the_device_takes_up(fleet: Fleet) -> None:
    config, document = fleet.make({"threads": 2}, confirm_s=30, life=timedelta(days=2))
    read = verify_remote_config(
        document.encode(),
        fleet.authority,
        fleet=FLEET,
        device=DEVICE,
        device_key_sha256=DEVICE_KEY,
        last_version=config.version - 1,
        now=START,
    )
    assert read == config
    assert (read.confirm_s, read.settings) == (30, '{"threads":2}')
    with fleet.store.read() as session:
        entry = list_audit(session, subject=DEVICE)[0]
    assert (entry.action, entry.actor, entry.detail["keys"]) == ("configure", "tester", "threads")


def test_versions_rise_whatever_the_clock_says_and_the_device_reports(fleet: Fleet) -> None:
    first, _ = fleet.make({"threads": 2})
    second, _ = fleet.make({"threads": 3})
    assert second.version > first.version
    fleet.reports(second.version + 100)  # the database is older than the device
    third, _ = fleet.make({"threads": 4})
    assert third.version > second.version + 100


@pytest.mark.parametrize(
    ("settings", "wishes", "error"),
    [
        ({"models": ["x"]}, {}, ConfigError),
        ({"threads": 0}, {}, ConfigError),
        ({"budget": {"windows": 3}}, {}, ConfigError),
        ({"threads": 2}, {"device": "nobody"}, UnknownDeviceError),
        ({"threads": 2}, {"signer": "stranger"}, RemoteConfigError),
        ({"threads": 2}, {"life": timedelta(days=60)}, UsageError),
        ({"threads": 2}, {"confirm_s": 1}, UsageError),
    ],
)
def test_what_no_device_would_take_up_is_refused_here_and_leaves_no_trace(
    fleet: Fleet, settings: dict[str, Any], wishes: dict[str, Any], error: type[EdgeslmError]
) -> None:
    with pytest.raises(error):
        fleet.make(settings, **wishes)
    assert fleet.states == []
    with fleet.store.read() as session:
        assert list_audit(session) == []


def test_a_device_that_is_out_of_use_gets_none(fleet: Fleet) -> None:
    with fleet.store.write() as session:
        row = session.get(DeviceRow, 1)
        assert row is not None
        row.standing = "retired"
    with pytest.raises(DeviceStateError):
        fleet.make({"threads": 2})


def test_the_first_answer_counts_and_says_what_is_in_force(fleet: Fleet) -> None:
    assert fleet.set_now is None
    first, _ = fleet.make({"threads": 2})
    assert (fleet.states, fleet.set_now) == (["sent"], None)
    fleet.settle(first.version, "committed")
    fleet.settle(first.version, "failed", "too late")
    second, _ = fleet.make({"threads": 3})
    fleet.settle(second.version, "rolled_back", "no broker")
    assert fleet.states == ["rolled_back", "committed"]
    assert fleet.set_now == {"threads": 2}


def test_what_a_device_reports_says_more_than_an_answer_that_never_came(fleet: Fleet) -> None:
    first, _ = fleet.make({"threads": 2})
    fleet.settle(first.version, "committed")
    second, _ = fleet.make({"threads": 3})
    fleet.reports(second.version)
    assert fleet.states == ["committed", "committed"]
    assert fleet.set_now == {"threads": 3}


def test_what_was_not_answered_is_superseded_by_the_next(fleet: Fleet) -> None:
    first, _ = fleet.make({"threads": 2})
    second, _ = fleet.make({"threads": 3})
    with fleet.store.write() as session:
        assert supersede(session, DEVICE, second.version, START) == ["c-0"]
        assert supersede(session, DEVICE, second.version, START) == []
    assert fleet.states == ["sent", "cancelled"]
    fleet.settle(first.version, "committed")
    assert fleet.states == ["sent", "cancelled"]


def test_clearing_is_a_configuration_without_settings(fleet: Fleet) -> None:
    cleared, _ = fleet.make({})
    fleet.settle(cleared.version, "committed")
    assert fleet.set_now == {}


def test_differences_are_told_by_setting() -> None:
    before = {"limits": {"max_queue": 5, "max_answered": 20}, "budget": {"windows": [1]}, "pool": True}
    after = {"limits": {"max_queue": 7}, "budget": {"windows": [2]}, "pool": True, "threads": 2}
    assert difference(before, after) == [
        Change("budget.windows", "changed", [1], [2]),
        Change("limits.max_answered", "removed", before=20),
        Change("limits.max_queue", "changed", 5, 7),
        Change("threads", "added", after=2),
    ]
    assert difference(after, after) == []


def test_settings_with_units_are_right_by_themselves() -> None:
    check({"budget": {"windows": [{"name": "day", "over": "1d", "limit": "20 Wh"}]}})
    with pytest.raises(ConfigError, match="fortnight"):
        check({"budget": {"windows": [{"name": "day", "over": "1 fortnight", "limit": "20 Wh"}]}})
