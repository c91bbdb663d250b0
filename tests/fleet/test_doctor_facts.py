"""What the doctor is told, from a real fleet: broker, keys, repository, store."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.update_fleet_rig import FleetRig, fleet_rig
from edgeslm import topics
from edgeslm.fleet import doctor_facts
from edgeslm.fleet.release_setup import set_up
from edgeslm.fleet.store.models import DeviceRow, FactRow
from edgeslm.fleet.store.rollouts import DesiredRow
from edgeslm.link.broker import find_mosquitto

pytestmark = pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed")

FLEET = "green"


@pytest.fixture(scope="module")
def rig() -> Iterator[FleetRig]:
    with fleet_rig() as made:
        yield made


def test_all_that_the_broker_retains_is_heard_however_much_it_is(rig: FleetRig) -> None:
    names = [f"d{number}" for number in range(400)]
    with rig.operator() as operator:
        for name in names:
            topic = topics.device_topic(FLEET, name, "availability")
            operator.publish(topic, b'{"v":1,"state":"online"}', retain=True)
        operator.publish(topics.device_topic(FLEET, "mad", "availability"), b"\xff", retain=True)
    fact, presence = doctor_facts.broker_fact(rig.fleet, rig.store, rig.now())
    assert presence == dict.fromkeys(names, "online")
    assert (fact.error, fact.changed, fact.unlisted) == (None, (), 0)


def test_which_keys_lie_here_and_how_is_seen_without_opening_them(rig: FleetRig) -> None:
    keys = rig.directory / "keys"
    assert doctor_facts.release_facts(rig.fleet, keys) == ([], [])
    set_up(rig.fleet.releases, keys, FLEET, lambda path: b"correct horse battery")
    (keys / "stray.pem").write_text("nothing")
    roles, pending = doctor_facts.release_facts(rig.fleet, keys)
    assert {one.role: (one.key, one.signs_alone) for one in roles} == {
        "root": ("encrypted", False),
        "targets": ("encrypted", False),
        "snapshot": ("here", True),
        "timestamp": ("here", True),
        "assignments": ("here", True),
    }
    assert pending == []
    assert all(one.expires_at is not None for one in roles if one.role != "assignments")
    (keys / "root.pem").rename(rig.directory / "root.pem")
    roles, _ = doctor_facts.release_facts(rig.fleet, keys)
    assert {one.role: one.key for one in roles}["root"] == "elsewhere"


def test_what_a_device_makes_of_its_assignment_is_told(rig: FleetRig) -> None:
    now = rig.now()
    change = {"version": "2.0.0", "state": "rolled_back", "assignment": 7, "fault": {"cause": "incompatible"}}
    reports = {
        "fails": {"assignment": 7, "models": [{"name": "m", "change": change}]},
        "failed-before": {"assignment": 7, "models": [{"name": "m", "change": {**change, "assignment": 6}}]},
        "quiet": None,
    }
    with rig.store.write() as session:
        for number, (name, report) in enumerate(reports.items()):
            row = DeviceRow(
                name=name, standing="active", key_sha256=f"{number:064}", notes="", created_at=now
            )
            session.add(row)
            session.flush()
            session.add(
                DesiredRow(
                    device_id=row.id,
                    device=name,
                    key_sha256=row.key_sha256,
                    seq=7,
                    body=b"",
                    published_seq=6,
                    issued_at=now,
                    expires_at=now + timedelta(days=7),
                    renews=True,
                )
            )
            if report is not None:
                session.add(FactRow(key=f"reported/{row.id}", value=report))
    with rig.store.read() as session:
        found = {one.device: one for one in doctor_facts.assignment_facts(session)}
    assert {name: (one.seq, one.published_seq, one.followed) for name, one in found.items()} == {
        "fails": (7, 6, 7),
        "failed-before": (7, 6, 7),
        "quiet": (7, 6, None),
    }
    assert found["fails"].failed == "m 2.0.0 rolled back, incompatible"
    assert found["failed-before"].failed is None
