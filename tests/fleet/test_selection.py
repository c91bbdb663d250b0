from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.orm import Session

from edgeslm.errors import SelectionError, UnknownDeviceError
from edgeslm.fleet import groups, registry
from edgeslm.fleet.assignments import take_reported
from edgeslm.fleet.descriptions import take_info
from edgeslm.fleet.quarantine import quarantine
from edgeslm.fleet.selection import facts, select, select_facts
from edgeslm.fleet.store.database import Store, sqlite_url
from edgeslm.fleet.store.models import CertificateRow, DeviceRow, FactRow, TagRow
from edgeslm.fleet.store.rollouts import PinRow
from edgeslm.schema.fleet import DeviceFacts

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
WHO = {"actor": "anna", "now": NOW}


@pytest.fixture
def session(tmp_path: Path) -> Iterator[Session]:
    opened = Store(sqlite_url(tmp_path / "fleet.db"))
    with opened.write() as session:
        for number, name in enumerate(("attic", "cellar", "kitchen")):
            session.add(
                DeviceRow(
                    name=name,
                    standing="active",
                    key_sha256=str(number) * 64,
                    notes="",
                    board=("pi-4b", "pi-5", "pi-4b")[number],
                    created_at=NOW,
                    last_seen_at=NOW - timedelta(hours=number),
                    tags=[TagRow(tag="house"), TagRow(tag="a")] if number else [],
                    certificates=[
                        CertificateRow(
                            name=name,
                            serial=f"{number}{days}",
                            key_sha256="0" * 64,
                            pem="",
                            not_before=NOW,
                            not_after=NOW + timedelta(days=days),
                        )
                        for days in (30, 60)
                    ],
                )
            )
        session.flush()
        yield session
    opened.close()


def names(session: Session, **asked: Any) -> list[str]:
    return [one.name for one in select(session, now=NOW, **asked)]


def known(session: Session, name: str = "kitchen") -> DeviceFacts:
    session.flush()
    return next(one for one in facts(session) if one.name == name)


def reported(version: str | None, seq: int = 1) -> bytes:
    model = {"name": "home-command", "version": version, "sha256": "a" * 64}
    body = {"v": 1, "device": "kitchen", "epoch": "e", "seq": seq, "assignment": 1, "models": [model]}
    return json.dumps(body).encode()


def info(**changes: Any) -> bytes:
    model = {
        "name": "home-command",
        "version": "1.0.0",
        "sha256": "a" * 64,
        "task": "generate",
        "context_tokens": 256,
        "graph": "x",
    }
    body = {
        "v": 1,
        "device": "kitchen",
        "agent": "0.1.0",
        "python": "3.11",
        "runtime": "ai-edge-litert 2.3.0",
        "board": "pi-4b",
        "tasks": ["generate"],
        "models": [model, {**model, "name": "other"}],
        "meter": "measured",
        "max_queue": 8,
        "max_body_bytes": 1000,
        "started_at": "x",
    }
    return json.dumps({**body, **changes}).encode()


# --- selecting ----------------------------------------------------------------------------------------------


def test_nothing_asked_is_every_device_in_use_by_name(session: Session) -> None:
    assert names(session) == ["attic", "cellar", "kitchen"]
    registry.retire_device(session, "cellar", **WHO)
    session.flush()
    assert names(session) == ["attic", "kitchen"]
    assert len(select_facts(session, standings=("active", "retired"))) == 3


def test_devices_and_groups_are_united_and_queries_narrow_them(session: Session) -> None:
    groups.create_group(session, "upper", devices=["attic"], **WHO)
    groups.create_group(session, "fast", query="board=pi-5", **WHO)
    assert names(session, groups=["upper"], devices=["kitchen"]) == ["attic", "kitchen"]
    assert names(session, groups=["upper", "fast"], devices=["attic"]) == ["attic", "cellar"]
    assert names(session, queries=["board=pi-4b"]) == ["attic", "kitchen"]
    assert names(session, queries=["board=pi-4b", "tag:house"]) == ["kitchen"]
    assert names(session, groups=["upper", "fast"], queries=["tag:house"]) == ["cellar"]
    assert names(session, queries=["not group:fast and seen < 1h"]) == ["attic"]


def test_an_empty_group_is_nobody_and_not_everybody(session: Session) -> None:
    groups.create_group(session, "empty", **WHO)
    assert names(session, groups=["empty"]) == []


@pytest.mark.parametrize(
    ("asked", "error", "nearest"),
    [
        ({"devices": ["attic", "kitchne"]}, UnknownDeviceError, ("kitchen",)),
        ({"groups": ["uper"]}, SelectionError, ("upper",)),
        ({"queries": ["online", "bord=x"]}, SelectionError, ("board",)),
        ({"queries": ["group:uper"]}, SelectionError, ("upper",)),
    ],
)
def test_what_means_nothing_is_an_error_with_the_nearest(
    session: Session, asked: dict[str, Any], error: type[UnknownDeviceError], nearest: tuple[str, ...]
) -> None:
    groups.create_group(session, "upper", devices=["attic"], **WHO)
    with pytest.raises(error) as caught:
        select(session, **asked)
    assert caught.value.nearest == nearest


def test_a_group_that_is_taken_for_a_device_is_recognised(session: Session) -> None:
    groups.create_group(session, "upper", devices=["attic"], **WHO)
    with pytest.raises(UnknownDeviceError, match="--group upper"):
        select(session, devices=["upper"])


# --- facts --------------------------------------------------------------------------------------------------


def test_facts_are_of_the_registry_the_reports_and_the_assignments(session: Session) -> None:
    row = registry.need_device(session, "kitchen")
    session.add(
        FactRow(
            key=f"assigned/{row.id}",
            value={"releases": {"home-command": {"version": "1.2.0"}}, "budget": '{"day_wh":5}'},
        )
    )
    take_info(session, "kitchen", info(), NOW)
    take_reported(session, "kitchen", reported("1.1.0"), NOW)
    quarantine(session, "kitchen", "negative watts", NOW)
    session.add(PinRow(device_id=row.id, reason="in a clinic", actor="anna", at=NOW))
    one = known(session)
    assert one.running == {"home-command": "1.1.0", "other": "1.0.0"}, "a report goes before a description"
    assert one.assigned == {"home-command": "1.2.0"}
    assert (one.runtime, one.meter) == ("ai-edge-litert 2.3.0", "measured")
    assert (one.budget, one.quarantine, one.pin) == ('{"day_wh":5}', "negative watts", "in a clinic")
    assert one.tags == ("a", "house")
    assert one.expires_at == NOW + timedelta(days=60)
    assert names(session, queries=["model.home-command = 1.1 and assigned.home-command = 1.2"]) == ["kitchen"]
    assert names(session, queries=["quarantine != none and pin ~ *clinic*"]) == ["kitchen"]
    assert known(session, "attic").running == {}


@pytest.mark.parametrize(
    "payload",
    [b"", b"{", b"[]", info(device="attic"), info(meter="guessed"), info(models="many"), b"x" * 10**6],
)
def test_a_description_that_is_none_is_dropped(session: Session, payload: bytes) -> None:
    assert take_info(session, "kitchen", payload, NOW) is None
    assert known(session).meter is None


def test_a_description_of_a_device_that_is_not_in_use_is_dropped(session: Session) -> None:
    registry.retire_device(session, "kitchen", **WHO)
    assert take_info(session, "kitchen", info(), NOW) is None
    assert take_info(session, "nobody", info(device="nobody"), NOW) is None


def test_the_newest_description_counts(session: Session) -> None:
    take_info(session, "kitchen", info(), NOW)
    session.flush()
    take_info(session, "kitchen", info(meter="estimated", models=[]), NOW + timedelta(hours=1))
    assert (known(session).meter, known(session).running) == ("estimated", {})
