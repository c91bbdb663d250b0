"""The operator finds the broker of a fleet that is called otherwise by its devices than by this machine."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from edgeslm.fleet.directory import create_fleet
from edgeslm.schema.fleet import FleetBroker, FleetConfig


@pytest.mark.parametrize(
    ("bind", "expected"),
    [
        (None, "10.0.2.2"),
        ("127.0.0.1", "127.0.0.1"),
        ("::1", "::1"),
        ("localhost", "localhost"),
        ("192.168.1.5", "10.0.2.2"),
    ],
)
def test_a_broker_on_the_loopback_alone_is_reached_there(
    tmp_path: Path, bind: str | None, expected: str
) -> None:
    config = FleetConfig(name="green", broker=FleetBroker(host="10.0.2.2", bind=bind))
    fleet = create_fleet(tmp_path / "fleet", config, passphrase=None, now=datetime.now(UTC))
    assert fleet.operator_config().host == expected
