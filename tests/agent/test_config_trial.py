"""A configuration on trial is proved by the broker, or given up, whatever the agent does."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from edgeslm.agent.config_trial import ConfigTrial
from edgeslm.agent.remote_config import RemoteConfigFile, commit, start_with, take_up
from edgeslm.schema.remote_config import RemoteConfig
from edgeslm.schema.remote_config_state import TrialOverlay

KEY = "ab" * 32
NOW = datetime(2026, 12, 1, 12, tzinfo=UTC)
SOON_S = 20.0


def config(version: int) -> RemoteConfig:
    return RemoteConfig(
        fleet="green",
        device="porch",
        device_key_sha256=KEY,
        version=version,
        issued_at=NOW,
        expires_at=NOW + timedelta(days=1),
        settings='{"threads":2}',
    )


class Agent:
    """What surrounds the trial."""

    def __init__(self, directory: Path, *, confirm_s: float = 0.5, grace_s: float = 60.0) -> None:
        self.file = RemoteConfigFile(directory, KEY)
        self.file.change(lambda state: commit(take_up(state, config(1), "1" * 64, changes=True)))
        self.file.change(lambda state: take_up(state, config(2), "2" * 64, changes=True))
        trial = start_with(self.file).trial
        assert trial is not None
        short = TrialOverlay.model_construct(**{**dict(trial), "confirm_s": confirm_s})
        self.restarted, self.replaced, self.proved = threading.Event(), threading.Event(), threading.Event()
        self.trial = ConfigTrial(
            self.file, short, restart=self._restart, replace=self.replaced.set, grace_s=grace_s
        )
        self.said_at_restart: object = None

    def _restart(self) -> None:
        settled = self.file.read().settled
        self.said_at_restart = None if settled is None else self.said
        self.restarted.set()

    def attach(self, is_online: Callable[[], bool]) -> None:
        self.trial.attach(is_online, lambda version: self.proved.set())

    @property
    def said(self) -> tuple[int | None, Any]:
        state = self.file.read()
        assert state.settled is not None
        return None if state.current is None else state.current.version, state.settled.outcome


def test_what_stays_at_the_broker_is_in_force(tmp_path: Path) -> None:
    agent = Agent(tmp_path, confirm_s=60)
    agent.trial.start()
    agent.attach(lambda: True)
    assert agent.proved.wait(SOON_S)
    agent.trial.stop()
    assert agent.said == (2, "committed")
    assert not agent.restarted.is_set()


def test_what_does_not_reach_the_broker_in_time_is_taken_back_before_the_agent_begins_anew(
    tmp_path: Path,
) -> None:
    agent = Agent(tmp_path)
    agent.trial.start()
    agent.attach(lambda: False)
    assert agent.restarted.wait(SOON_S)
    agent.trial.stop()
    assert agent.said_at_restart == (1, "rolled_back")
    assert not agent.replaced.is_set()


def test_a_broker_that_sends_the_device_away_at_once_proves_nothing(tmp_path: Path) -> None:
    agent = Agent(tmp_path, confirm_s=1.5)
    turns = iter(range(10_000))
    agent.trial.start()
    agent.attach(lambda: next(turns) % 3 != 0)
    assert agent.restarted.wait(SOON_S)
    agent.trial.stop()
    assert agent.said == (1, "rolled_back")


def test_an_agent_that_hangs_while_it_is_built_is_replaced(tmp_path: Path) -> None:
    agent = Agent(tmp_path, confirm_s=0.2, grace_s=0.2)
    agent.trial.start()  # and nobody ever attaches
    assert agent.replaced.wait(SOON_S)
    assert agent.said == (1, "rolled_back")


def test_an_agent_that_does_not_start_gives_up_at_once_and_says_why(tmp_path: Path) -> None:
    agent = Agent(tmp_path, confirm_s=600)
    agent.trial.start()
    assert agent.trial.failed("port 9100 is taken")
    assert agent.said == (1, "rolled_back")
    settled = agent.file.read().settled
    assert settled is not None
    assert "port 9100 is taken" in settled.reason
    assert not agent.trial.failed("again"), "nothing is on trial any more: the fault is another one"


def test_an_end_in_order_settles_nothing(tmp_path: Path) -> None:
    agent = Agent(tmp_path, confirm_s=600)
    agent.trial.start()
    agent.attach(lambda: False)
    agent.trial.stop()
    assert agent.file.read().trial is not None


def test_a_newer_one_that_came_meanwhile_is_left_alone(tmp_path: Path) -> None:
    agent = Agent(tmp_path, confirm_s=600)
    agent.file.change(lambda state: take_up(state, config(3), "3" * 64, changes=True))
    assert not agent.trial.failed("the older one does not start")
    trial = agent.file.read().trial
    assert trial is not None
    assert trial.version == 3


@pytest.mark.parametrize("is_online", [True, False])
def test_a_disk_that_refuses_leaves_it_to_the_count_of_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_online: bool
) -> None:
    agent = Agent(tmp_path)

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", refuse)
    agent.trial.start()
    agent.attach(lambda: is_online)
    if is_online:
        agent.trial._thread.join(SOON_S)
        assert not agent.proved.is_set()
    else:
        assert agent.restarted.wait(SOON_S)
    agent.trial.stop()
    monkeypatch.undo()
    trial = agent.file.read().trial
    assert trial is not None
    assert trial.starts == 1
