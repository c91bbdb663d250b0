"""``edgeslm fleet homeassistant``, and what it writes, at a real broker."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.update_fleet_rig import FleetRig, Visitor, fleet_rig, wait_for
from edgeslm.cli.fleet import fleet
from edgeslm.link.broker import find_mosquitto
from edgeslm.schema.config import BrokerConfig


def run(root: Path, *arguments: str) -> Result:
    clean = {name: "" for name in os.environ if name.startswith("EDGESLM_")}
    return CliRunner(env=clean).invoke(fleet, [*arguments, "--fleet-dir", str(root)])


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "green"
    assert run(root, "init", "green", "--broker-host", "broker.lan").exit_code == 0
    return root


@pytest.fixture(scope="module")
def rig() -> Iterator[FleetRig]:
    if find_mosquitto() is None:
        pytest.skip("mosquitto is not installed")
    with fleet_rig() as made:
        yield made


def test_it_says_what_to_enter_in_home_assistant(root, tmp_path):
    out = tmp_path / "for-ha"
    done = run(root, "homeassistant", "--out", str(out))
    assert done.exit_code == 0, done.stderr
    lines = {line.strip() for line in done.stdout.splitlines()}
    assert "Broker                         broker.lan" in lines
    assert "Port                           8883" in lines
    assert f"Private key file               {out / 'home-assistant.key'}" in lines
    assert (out / "home-assistant.key").stat().st_mode & 0o777 == 0o600
    assert (out / "ca.crt").read_text() == (root / "ca.crt").read_text()
    assert "PRIVATE" not in done.stdout


def test_a_dry_run_makes_nothing(root, tmp_path):
    done = run(root, "homeassistant", "--out", str(tmp_path / "out"), "--dry-run")
    assert done.exit_code == 0
    assert "dry run" in done.stderr
    assert not (tmp_path / "out").exists()
    assert json.loads(run(root, "homeassistant", "--revoke", "--json").stdout) == {"revoked": False}


def test_a_second_certificate_has_to_be_wanted(root, tmp_path):
    out = tmp_path / "out"
    assert run(root, "homeassistant", "--out", str(out)).exit_code == 0
    before = (out / "home-assistant.key").read_bytes()
    asked = run(root, "homeassistant", "--out", str(out))
    assert asked.exit_code == 2
    assert "--yes" in asked.stderr
    assert (out / "home-assistant.key").read_bytes() == before


@pytest.mark.parametrize("flags", [[], ["--revoke", "--out", "x"]])
def test_refuses_to_guess_what_is_wanted(root, flags):
    assert run(root, "homeassistant", *flags).exit_code == 2


def test_what_cannot_be_written_replaces_nothing(root, tmp_path):
    blocked = tmp_path / "blocked"
    blocked.mkdir()
    (blocked / "home-assistant.key").mkdir()
    done = run(root, "homeassistant", "--out", str(blocked))
    assert done.exit_code == 1
    assert str(blocked) in done.stderr
    assert json.loads(run(root, "homeassistant", "--revoke", "--json").stdout) == {"revoked": False}


def _config(out: Path, told: dict) -> BrokerConfig:
    return BrokerConfig(
        host=told["host"],
        port=told["port"],
        ca_file=out / "ca.crt",
        cert_file=out / "home-assistant.crt",
        key_file=out / "home-assistant.key",
        session_expiry_s=0,
    )


def test_the_files_open_the_broker_until_they_are_replaced_or_revoked(rig, tmp_path):
    root, one, two = rig.fleet.root, tmp_path / "one", tmp_path / "two"
    told = json.loads(run(root, "homeassistant", "--out", str(one), "--json").stdout)
    with Visitor(_config(one, told), "home-assistant") as first:
        assert run(root, "homeassistant", "--out", str(two), "--yes").exit_code == 0
        assert wait_for(lambda: len(first.events.reasons) > 1)
        assert first.events.connections == 1
    with Visitor(_config(two, told), "home-assistant") as second:
        done = run(root, "homeassistant", "--revoke", "--yes")
        assert (done.exit_code, done.stdout) == (0, "Home Assistant is refused\n")
        assert wait_for(lambda: len(second.events.reasons) > 1)
        assert second.events.connections == 1
