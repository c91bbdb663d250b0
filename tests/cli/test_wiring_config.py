"""Settings from flags, environment, fleet, identity, file and defaults, put together."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NoReturn

import pytest
import yaml
from click.testing import CliRunner

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.update_fleet_rig import FleetRig, fleet_rig
from edgeslm.agent.remote_config import RemoteConfigFile, commit, take_up
from edgeslm.cli.main import cli
from edgeslm.cli.wiring_config import FILE_NAME, Settings, read_settings, start_settings
from edgeslm.errors import ConfigError, IdentityError
from edgeslm.link.broker import find_mosquitto
from edgeslm.schema.remote_config import RemoteConfig, settings_text
from edgeslm.trust.identity import Identity

pytestmark = pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed")

NOW = datetime.now(UTC)


@pytest.fixture(scope="module")
def rig() -> Iterator[FleetRig]:
    with fleet_rig() as made, made.service():
        yield made


@pytest.fixture(scope="module")
def identity(rig: FleetRig) -> Identity:
    return rig.join("porch")


@pytest.fixture
def state_dir(identity: Identity) -> Iterator[Path]:
    directory = identity.directory.parents[1]
    yield directory
    (directory / "remote-config.json").unlink(missing_ok=True)


@pytest.fixture
def own(state_dir: Path, tmp_path: Path) -> Path:
    path = tmp_path / "agent.yaml"
    path.write_text(
        yaml.safe_dump(
            {"state_dir": str(state_dir), "limits": {"max_queue": 5, "max_answered": 99}, "threads": 2}
        )
    )
    return path


def give(identity: Identity, settings: dict[str, Any], version: int = 1, *, proved: bool = True) -> None:
    config = RemoteConfig(
        fleet="green",
        device="porch",
        device_key_sha256=identity.directory.name,
        version=version,
        issued_at=NOW,
        expires_at=NOW + timedelta(days=1),
        settings=settings_text(settings),
    )
    file = RemoteConfigFile(identity.directory.parents[1], identity.directory.name)
    file.change(lambda state: take_up(state, config, f"{version:064x}", changes=True))
    if proved:
        file.change(commit)


def never() -> NoReturn:
    raise AssertionError


def start(path: Path, restart: Callable[[], None] = never, **overrides: Any) -> Settings:
    return start_settings(path, overrides, restart=restart, replace=never)


def test_the_fleet_goes_before_the_file_and_after_flags(own: Path, identity: Identity) -> None:
    give(identity, {"limits": {"max_queue": 7}, "threads": 3, "pool": False})
    config = start(own).config
    assert (config.limits.max_queue, config.limits.max_answered) == (7, 99)
    assert (config.threads, config.pool) == (3, False)
    assert start(own, threads=1).config.threads == 1


def test_the_broker_of_a_device_is_that_of_its_identity_until_the_fleet_says_otherwise(
    own: Path, identity: Identity
) -> None:
    assert start(own, broker_host="elsewhere").config.broker.port == identity.port
    give(identity, {"broker": {"port": 4711, "keepalive_s": 9}})
    broker = start(own, broker_host="elsewhere", broker_port=1).config.broker
    assert (broker.host, broker.port, broker.keepalive_s) == (identity.host, 4711, 9)
    assert broker.cert_file == identity.directory / "certificate.pem"


def test_what_is_on_trial_is_used_once_started_and_not_when_looked_at(own: Path, identity: Identity) -> None:
    give(identity, {"threads": 3})
    give(identity, {"threads": 4}, 2, proved=False)
    assert read_settings(own, {}).config.threads == 3
    tried = start(own)
    assert (tried.config.threads, tried.version) == (4, 1)
    assert tried.trial is not None
    tried.trial.stop()


def test_what_goes_not_together_with_the_device_s_own_settings_is_no_change_and_no_crash(
    own: Path, identity: Identity
) -> None:
    settings = start(own)
    assert settings.changes({"limits": {"max_queue": 6}})
    assert not settings.changes({"limits": {"max_queue": 5}})
    with pytest.raises(ConfigError, match="max_queue"):
        settings.changes({"limits": {"max_queue": 0}})


def test_a_trial_that_does_not_parse_any_more_is_taken_back_at_the_start(
    own: Path, identity: Identity
) -> None:
    give(identity, {"threads": 3})
    give(identity, {"threads": 4711}, 2, proved=False)
    settings = start(own)
    assert (settings.config.threads, settings.trial) == (3, None)
    state = RemoteConfigFile(identity.directory.parents[1], identity.directory.name).read()
    assert state.trial is None
    assert state.settled is not None
    assert "threads" in state.settled.reason


def test_what_is_in_force_and_cannot_be_used_any_more_keeps_no_device_from_starting(
    own: Path, identity: Identity
) -> None:
    give(identity, {"threads": 4711})
    settings = start(own)
    assert (settings.config.threads, settings.version) == (2, None)


def test_the_file_is_looked_for_where_it_is_written(tmp_path: Path) -> None:
    assert RemoteConfigFile(tmp_path, "ab" * 32).path.name == FILE_NAME


def test_whoever_may_not_read_the_identity_sees_the_file_alone(tmp_path: Path) -> None:
    (tmp_path / "identity" / "key").mkdir(parents=True)
    (tmp_path / "identity" / "current").symlink_to("key")
    path = tmp_path / "agent.yaml"
    path.write_text(yaml.safe_dump({"device": "shed", "state_dir": str(tmp_path), "threads": 2}))
    settings = read_settings(path, {})
    assert (settings.config.threads, settings.identity) == (2, None)
    with pytest.raises(IdentityError):
        start(path)


def test_agent_config_says_where_each_setting_comes_from(own: Path, identity: Identity) -> None:
    give(identity, {"limits": {"max_queue": 7}, "broker": {"port": 4711}})
    runner = CliRunner(env={"EDGESLM_BOARD": "host"})
    result = runner.invoke(cli, ["agent", "config", "--config", str(own), "--threads", "1", "--origins"])
    assert result.exit_code == 0, result.output
    found = {key: (one["value"], one["from"]) for key, one in json.loads(result.stdout).items()}
    assert found["limits.max_queue"] == (7, "fleet")
    assert found["limits.max_answered"] == (99, "file")
    assert found["broker.port"] == (4711, "fleet")
    assert found["broker.host"] == (identity.host, "identity")
    assert found["threads"] == (1, "flag")
    assert found["board"] == ("host", "environment")
    assert found["device"] == ("porch", "identity")
    assert found["pool"] == (True, "default")
    plain = runner.invoke(cli, ["agent", "config", "--config", str(own)])
    assert json.loads(plain.stdout)["limits"]["max_queue"] == 7
