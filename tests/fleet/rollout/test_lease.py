"""The lease: one holder, also among processes and with clocks that step; a fenced controller writes nothing."""

from __future__ import annotations

import multiprocessing
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[3]))

from benchmarks.rollout_rig import many, paper_fleet
from edgeslm.fleet.rollout import operate
from edgeslm.fleet.rollout.lease import LENGTH, Lease, holder_of
from edgeslm.fleet.store.database import Store, sqlite_url
from edgeslm.fleet.store.models import AuditRow

NOW = datetime(2026, 12, 1, tzinfo=UTC)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(sqlite_url(tmp_path / "fleet.db"))
    yield opened
    opened.close()


def hold(store: Store, lease: Lease, now: datetime) -> bool:
    with store.write() as session:
        return lease.hold(session, now)


def test_a_lease_has_one_holder_until_it_expires_or_is_given_back(store: Store) -> None:
    one, other = Lease("job", "one"), Lease("job", "other")
    assert hold(store, one, NOW)
    assert not hold(store, other, NOW + LENGTH / 2)
    assert hold(store, one, NOW + LENGTH * 0.9), "it is renewed"
    assert not hold(store, other, NOW + LENGTH)
    with store.read() as session:
        assert holder_of(session, "job", NOW + LENGTH) == "one"
    with store.write() as session:
        one.give_back(session, NOW + LENGTH)
    assert hold(store, other, NOW + LENGTH)
    assert not hold(store, one, NOW + LENGTH)
    assert (one.token, other.token) == (None, 2)


def test_who_slept_while_another_took_over_has_lost_it(store: Store) -> None:
    asleep, other = Lease("job", "asleep"), Lease("job", "other")
    assert hold(store, asleep, NOW)
    assert hold(store, other, NOW + LENGTH * 2)
    assert not hold(store, asleep, NOW), "whatever its clock says"


def test_a_lease_written_by_a_clock_that_was_ahead_does_not_last_for_years(store: Store) -> None:
    assert hold(store, Lease("job", "ahead"), NOW + timedelta(days=900))
    assert hold(store, Lease("job", "right"), NOW)


def test_a_controller_that_lost_its_lease_writes_nothing() -> None:
    with paper_fleet(many(2)) as fleet:
        old = fleet.controller
        assert old.turn() is False
        rollout_id = fleet.begin()
        fleet.now += LENGTH * 2
        new = fleet.new_controller()
        new.turn()
        asked = dict(fleet.statuses(rollout_id))
        assert set(asked.values()) == {"asked"}
        before = {topic: list(bodies) for topic, bodies in fleet.broker.sent.items()}
        with fleet.store.write() as session:
            for name in fleet.devices:
                operate.pin(session, name, reason="x", actor="me", now=fleet.now)
        assert not old.advance(rollout_id)
        assert not old.renew()
        assert old.turn() is False
        assert fleet.statuses(rollout_id) == asked
        assert fleet.broker.sent == before
        assert (old.leads, new.leads) == (False, True)


def _work(url: str, holder: str, until_s: float, length_s: float) -> None:
    """Write a note in each transaction in which the lease is held, with its token."""
    store = Store(url)
    lease = Lease("job", holder, timedelta(seconds=length_s))
    while time.time() < until_s:
        with store.write() as session:
            now = datetime.now(UTC)
            if lease.hold(session, now):
                session.add(
                    AuditRow(
                        at=now, actor=holder, action="work", subject="job", detail={"token": lease.token}
                    )
                )
        time.sleep(0.005)
    store.close()


def test_of_two_processes_one_works_and_the_other_takes_over_when_it_is_killed(tmp_path: Path) -> None:
    url = sqlite_url(tmp_path / "fleet.db")
    store = Store(url)
    context = multiprocessing.get_context("spawn")
    until_s = time.time() + 60
    workers: dict[str, Any] = {
        holder: context.Process(target=_work, args=(url, holder, until_s, 1.0)) for holder in ("one", "other")
    }

    def notes() -> list[tuple[str, int]]:
        with store.read() as session:
            rows = session.query(AuditRow).order_by(AuditRow.id)
            return [(row.actor, row.detail["token"]) for row in rows]

    def wait_for_workers(count: int) -> None:
        deadline_s = time.monotonic() + 40
        while len({actor for actor, _ in notes()}) < count:
            assert time.monotonic() < deadline_s
            time.sleep(0.02)

    try:
        for worker in workers.values():
            worker.start()
        wait_for_workers(1)
        first = notes()[0][0]
        workers[first].kill()
        workers[first].join()
        wait_for_workers(2)
    finally:
        for worker in workers.values():
            worker.kill()
            worker.join()
    found = notes()
    store.close()
    assert [token for _, token in found] == sorted(token for _, token in found)
    for token in {token for _, token in found}:
        assert len({actor for actor, number in found if number == token}) == 1
