"""``set-config``: judged, put together, tried; the answer follows from the device's own record."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[3]))

from benchmarks.update_trust_rig import DEVICE, DEVICE_KEY, FLEET, START, Rig, key, rig
from edgeslm.agent.operations.ports import Command, Done, Restart, Waiting
from edgeslm.agent.operations.set_config import OP, SetConfig
from edgeslm.agent.remote_config import RemoteConfigFile, commit, in_use, roll_back, start_with
from edgeslm.errors import (
    ConfigError,
    JournalError,
    OperationError,
    RemoteConfigError,
    TrustStateError,
    UpdateInterruptedError,
)
from edgeslm.fleet.signing import sign_remote_config
from edgeslm.schema.config import AgentConfig
from edgeslm.schema.release import CheckRequest
from edgeslm.schema.remote_config import RemoteConfig, merged
from edgeslm.trust.check import check

OWN: Mapping[str, Any] = {"device": DEVICE, "threads": 1}


class Progress:
    """Hears what is told; cancelled when it is said so."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.cancelled = threading.Event()

    def tell(self, text: str, share: float | None = None) -> None:
        del share
        self.told.append(text)

    def is_cancelled(self) -> bool:
        return self.cancelled.is_set()


class Device:
    """A device with its record, that trusts a repository."""

    def __init__(self, made: Rig) -> None:
        self.rig = made
        self.file = RemoteConfigFile(made.directory, DEVICE_KEY)
        self.in_force: list[int] = []
        self.operation = SetConfig(self.file, self.judge, self.changes, self.in_force.append)
        self.progress = Progress()

    def judge(self, document: str, last_version: int, cancelled: Callable[[], bool]) -> RemoteConfig:
        request = CheckRequest(
            state_dir=str(self.rig.storage.directory),
            fleet=FLEET,
            device=DEVICE,
            device_key_sha256=DEVICE_KEY,
            configuration=document,
            last_config=last_version,
        )
        if cancelled():
            raise UpdateInterruptedError
        result = check(request, self.rig.server, clock=self.rig.clock)
        if result.configuration is None:
            assert result.configuration_refused is not None
            raise RemoteConfigError(result.configuration_refused.message)
        return result.configuration

    def changes(self, settings: Mapping[str, Any], /) -> bool:
        def whole(overlay: Mapping[str, Any]) -> AgentConfig:
            try:
                return AgentConfig.model_validate(merged(OWN, overlay))
            except ValueError as error:
                raise ConfigError(str(error)) from error

        used = in_use(self.file.read())
        return whole(settings) != whole({} if used is None else {"threads": 3})

    def begin(self, document: object) -> Any:
        return self.operation.begin(self.command(document), self.progress)

    def resume(self, document: object) -> Any:
        return self.operation.resume(self.command(document), None, self.progress)

    def command(self, document: object) -> Command:
        return Command("c1", OP, {} if document is None else {"document": document})


def document(version: int = 7, signer: str = "assignments", **changes: Any) -> str:
    fields: dict[str, Any] = {
        "fleet": FLEET,
        "device": DEVICE,
        "device_key_sha256": DEVICE_KEY,
        "version": version,
        "issued_at": START,
        "expires_at": START + timedelta(days=1),
        "settings": '{"threads":3}',
        **changes,
    }
    return sign_remote_config(RemoteConfig(**fields), [key(signer)]).decode()


@pytest.fixture
def device() -> Iterator[Device]:
    with rig() as made:
        yield Device(made)


def refusal(device: Device, given: object) -> OperationError:
    before = device.file.read()
    with pytest.raises(OperationError) as caught:
        device.begin(given)
    assert device.file.read() == before, "nothing was changed"
    return caught.value


def test_a_good_one_is_written_down_before_the_agent_begins_anew_and_answered_once_it_holds(
    device: Device,
) -> None:
    given = document()
    assert device.begin(given) == Restart({"version": 7})
    trial = start_with(device.file).trial
    assert trial is not None
    assert (trial.version, trial.starts) == (7, 1)
    threading.Timer(0.5, lambda: device.file.change(commit)).start()
    assert device.resume(given) == Done({"version": 7, "changed": True})


def test_one_that_did_not_hold_is_answered_rolled_back_with_the_reason(device: Device) -> None:
    given = document()
    device.begin(given)
    device.file.change(lambda state: roll_back(state, "the broker was not reached"))
    with pytest.raises(OperationError, match="the broker was not reached") as caught:
        device.resume(given)
    assert caught.value.reason == "rolled_back"


def test_one_that_changes_nothing_is_in_force_without_a_new_start(device: Device) -> None:
    assert device.begin(document(settings='{"threads":1}')) == Done({"version": 7, "changed": False})
    assert device.in_force == [7]
    state = device.file.read()
    assert (state.last_version, state.trial) == (7, None)


@pytest.mark.parametrize(
    "given",
    [
        None,
        3,
        "",
        "{}",
        "x" * 60_000,
        "\ud800",
        "é",
        {"signed": {}},
        document(signer="stranger"),
        document(device="yard"),
        document(device_key_sha256="cd" * 32),
        document(issued_at=START - timedelta(days=2), expires_at=START - timedelta(days=1)),
        document(settings='{"state_dir":"/tmp"}'),
        document(settings='{"threads":0}'),
        document(settings="[]"),
        document(settings='{"threads":NaN}'),
    ],
)
def test_what_is_wrong_is_refused_and_leaves_nothing_behind(device: Device, given: object) -> None:
    assert refusal(device, given).reason == "refused"
    assert not device.file.path.exists()


def test_a_version_is_taken_up_once_even_after_it_was_rolled_back(device: Device) -> None:
    given = document()
    device.begin(given)
    device.file.change(lambda state: roll_back(state, "no broker"))
    assert "not newer" in str(refusal(device, given))
    assert "not newer" in str(refusal(device, document(6)))
    assert isinstance(device.begin(document(8)), Restart)


def test_a_process_that_ended_before_it_was_written_down_begins_again(device: Device) -> None:
    assert device.resume(document()) == Restart({"version": 7})


def test_a_process_that_ended_right_after_it_was_written_down_only_waits(device: Device) -> None:
    given = document()
    device.begin(given)
    device.progress.cancelled.set()
    step = device.resume(given)
    assert isinstance(step, Waiting)
    trial = device.file.read().trial
    assert trial is not None
    assert trial.version == 7


def test_taking_the_command_back_while_it_is_judged_changes_nothing(device: Device) -> None:
    device.progress.cancelled.set()
    assert refusal(device, document()).reason == "cancelled"


def test_where_nothing_can_be_judged_or_written_it_fails_and_nothing_changed(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.replace", refuse)
        with pytest.raises((JournalError, TrustStateError)):
            device.begin(document())
    assert device.file.read().last_version == 0
    assert isinstance(device.begin(document()), Restart)
