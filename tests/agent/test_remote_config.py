"""Which configuration runs: decided purely, kept in one file, whatever ends the process."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from edgeslm.agent.remote_config import (
    FILE_NAME,
    MAX_STARTS,
    RemoteConfigFile,
    commit,
    count_start,
    in_use,
    roll_back,
    start_with,
    take_up,
)
from edgeslm.codec import decode, encode
from edgeslm.errors import JournalError
from edgeslm.schema.remote_config import RemoteConfig
from edgeslm.schema.remote_config_state import RemoteConfigState

KEY = "ab" * 32
NOW = datetime(2026, 12, 1, 12, tzinfo=UTC)


def config(version: int, settings: str = '{"threads":2}') -> RemoteConfig:
    return RemoteConfig(
        fleet="green",
        device="porch",
        device_key_sha256=KEY,
        version=version,
        issued_at=NOW,
        expires_at=NOW + timedelta(days=1),
        settings=settings,
    )


def digest(version: int) -> str:
    return f"{version:064x}"


def taken(state: RemoteConfigState, version: int, *, changes: bool = True) -> RemoteConfigState:
    return take_up(state, config(version), digest(version), changes=changes)


@pytest.fixture
def file(tmp_path: Path) -> RemoteConfigFile:
    return RemoteConfigFile(tmp_path, KEY)


EMPTY = RemoteConfigState(device_key_sha256=KEY)


def test_what_is_tried_replaces_nothing_until_it_is_committed() -> None:
    first = commit(taken(EMPTY, 1))
    tried = taken(first, 2)
    assert tried.current == first.current
    used = in_use(tried)
    assert used is not None
    assert used.version == 2
    back = roll_back(tried, "the broker was not reached")
    assert (back.current, back.trial, back.last_version) == (first.current, None, 2)
    assert back.settled is not None
    assert (back.settled.outcome, back.settled.version) == ("rolled_back", 2)


def test_what_changes_nothing_is_in_force_at_once() -> None:
    state = taken(EMPTY, 3, changes=False)
    assert state.trial is None
    assert state.current is not None
    assert state.current.version == 3


def test_what_is_the_same_as_something_on_trial_is_not_proved_by_that() -> None:
    state = taken(count_start(taken(EMPTY, 1)), 2, changes=False)
    assert state.current is None
    assert state.trial is not None
    assert (state.trial.version, state.trial.starts) == (2, 0)


def test_one_that_ends_the_process_is_given_up_after_so_many_starts() -> None:
    state = taken(commit(taken(EMPTY, 1)), 2)
    for start in range(1, MAX_STARTS + 1):
        state = count_start(state)
        assert state.trial is not None
        assert state.trial.starts == start
    state = count_start(state)
    assert state.trial is None
    assert state.settled is not None
    assert "ended 2 times" in state.settled.reason
    used = in_use(state)
    assert used is not None
    assert used.version == 1


def test_a_start_without_anything_on_trial_writes_nothing(file: RemoteConfigFile) -> None:
    assert in_use(start_with(file)) is None
    assert not file.path.exists()


class Device(RuleBasedStateMachine):
    """A device that is given configurations, and whose process may end at any point."""

    def __init__(self) -> None:
        super().__init__()
        self.state = EMPTY
        self.version = 0
        self.good: int | None = None

    @rule(gap=st.integers(1, 3), changes=st.booleans())
    def comes(self, gap: int, changes: bool) -> None:
        self.version += gap
        if not changes and self.state.trial is None:
            self.good = self.version
        self.state = taken(self.state, self.version, changes=changes)

    @rule()
    def starts(self) -> None:
        self.state = count_start(self.state)

    @rule()
    def proves(self) -> None:
        if self.state.trial is not None:
            self.good = self.state.trial.version
        self.state = commit(self.state)

    @rule(reason=st.text(max_size=700))
    def fails(self, reason: str) -> None:
        self.state = roll_back(self.state, reason)

    @rule()
    def power_is_cut(self) -> None:
        self.state = decode(RemoteConfigState, encode(self.state))

    @invariant()
    def what_was_proved_last_is_still_there(self) -> None:
        current = self.state.current
        assert (None if current is None else current.version) == self.good

    @invariant()
    def nothing_is_tried_for_ever(self) -> None:
        assert self.state.trial is None or self.state.trial.starts <= MAX_STARTS

    @invariant()
    def no_version_comes_twice(self) -> None:
        assert self.state.last_version == self.version


Device.TestCase.settings = settings(max_examples=60, stateful_step_count=20, deadline=None)
TestDevice = Device.TestCase


# --- the file -----------------------------------------------------------------------------------------------


def test_the_file_holds_what_was_before_or_what_is_after_a_cut_write(
    file: RemoteConfigFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.change(lambda state: commit(taken(state, 1)))

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(JournalError):
        file.change(lambda state: taken(state, 2))
    monkeypatch.undo()
    assert file.read().last_version == 1
    assert [path.name for path in file.path.parent.iterdir()] == [FILE_NAME]


def test_where_a_start_cannot_be_counted_nothing_is_tried(
    file: RemoteConfigFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.change(lambda state: taken(commit(taken(state, 1)), 2))

    def refuse(*_: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(os, "replace", refuse)
    used = in_use(start_with(file))
    assert used is not None
    assert used.version == 1


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=200))
def test_a_damaged_file_is_none_and_the_device_s_own_settings_hold(
    file: RemoteConfigFile, data: bytes
) -> None:
    file.path.write_bytes(data)
    assert file.read() == EMPTY


def test_what_was_meant_for_the_board_before_counts_as_nothing(tmp_path: Path) -> None:
    RemoteConfigFile(tmp_path, KEY).change(lambda state: commit(taken(state, 1)))
    assert RemoteConfigFile(tmp_path, "cd" * 32).read() == RemoteConfigState(device_key_sha256="cd" * 32)
