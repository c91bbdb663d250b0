"""Which configuration of the fleet the agent runs with: the decisions, and the one file that they are kept in.

What always holds:

* One file says everything and is replaced as a whole, so whenever the process ends, however it does, the next one finds
  what was before a step or what is after it.
* A configuration on trial replaces nothing until it is committed: what was in force before stays beside it.
* A start with a configuration on trial is counted on the disk before anything is read from it. One that ends the
  process is given up after :data:`MAX_STARTS` starts, whoever starts the process.
* A version is taken up once, whatever becomes of it.

Left to others: whether a configuration is to be trusted (:mod:`edgeslm.trust.remote_config`), and how long it may take
until it is proved (:mod:`edgeslm.agent.config_trial`).
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path

from edgeslm import codec
from edgeslm.errors import CodecError, JournalError
from edgeslm.files import read_bounded, replace_file
from edgeslm.schema.remote_config import RemoteConfig
from edgeslm.schema.remote_config_state import Overlay, RemoteConfigState, SettledConfig, TrialOverlay

log = logging.getLogger(__name__)

FILE_NAME = "remote-config.json"
MAX_STARTS = 2
_MAX_BYTES = 131_072
_MAX_REASON_CHARS = 500


# --- decisions: pure ----------------------------------------------------------------------------------------


def take_up(
    state: RemoteConfigState, config: RemoteConfig, document_sha256: str, *, changes: bool
) -> RemoteConfigState:
    """The configuration `config` is to be tried, or, where it changes nothing that is proved, is in force at once.

    One that is on trial is superseded.

    Args:
        state: before.
        config: verified, and newer than `state.last_version`.
        document_sha256: digest of the document that it came with.
        changes: whether the agent would run with other settings than now.
    """
    trial = TrialOverlay(
        version=config.version,
        document_sha256=document_sha256,
        settings=config.settings,
        confirm_s=config.confirm_s,
    )
    taken = state.model_copy(update={"last_version": config.version, "trial": trial})
    return taken if changes or state.trial is not None else commit(taken)


def count_start(state: RemoteConfigState) -> RemoteConfigState:
    """The agent starts: with what is on trial, unless that had its starts."""
    trial = state.trial
    if trial is None:
        return state
    if trial.starts >= MAX_STARTS:
        return roll_back(state, f"the agent ended {trial.starts} times before it was at the broker")
    return state.model_copy(update={"trial": trial.model_copy(update={"starts": trial.starts + 1})})


def commit(state: RemoteConfigState) -> RemoteConfigState:
    """What is on trial is in force."""
    trial = state.trial
    if trial is None:
        return state
    current = Overlay(version=trial.version, document_sha256=trial.document_sha256, settings=trial.settings)
    settled = SettledConfig(version=trial.version, document_sha256=trial.document_sha256, outcome="committed")
    return state.model_copy(update={"current": current, "trial": None, "settled": settled})


def roll_back(state: RemoteConfigState, reason: str) -> RemoteConfigState:
    """What is on trial is given up; what was in force before stays so."""
    trial = state.trial
    if trial is None:
        return state
    settled = SettledConfig(
        version=trial.version,
        document_sha256=trial.document_sha256,
        outcome="rolled_back",
        reason=reason[:_MAX_REASON_CHARS],
    )
    return state.model_copy(update={"trial": None, "settled": settled})


def in_use(state: RemoteConfigState) -> Overlay | None:
    """What an agent that starts now runs with, on top of its own file."""
    return state.trial or state.current


# --- the file -----------------------------------------------------------------------------------------------


class RemoteConfigFile:
    """The file of one device; from any thread of its agent.

    Attributes:
        path: it is made with the first configuration.
    """

    def __init__(self, state_dir: Path, device_key_sha256: str) -> None:
        """Nothing is read yet.

        Args:
            state_dir: of the agent.
            device_key_sha256: digest of the device's public key; what was meant for another key counts as nothing.
        """
        self.path = state_dir / FILE_NAME
        self._key = device_key_sha256
        self._lock = threading.Lock()

    def read(self) -> RemoteConfigState:
        """What is remembered; something unreadable is nothing, and logged."""
        try:
            state = codec.decode(RemoteConfigState, read_bounded(self.path, _MAX_BYTES), max_bytes=_MAX_BYTES)
        except FileNotFoundError:
            return self._nothing()
        except (OSError, CodecError) as error:
            log.error("%s cannot be read; the device's own settings hold: %s", self.path, error)  # noqa: TRY400
            return self._nothing()
        return state if state.device_key_sha256 == self._key else self._nothing()

    def change(self, step: Callable[[RemoteConfigState], RemoteConfigState]) -> RemoteConfigState:
        """Take a step, and return what is remembered now.

        Raises:
            JournalError: the disk refuses; what was remembered before still is.
        """
        with self._lock:
            before = self.read()
            after = step(before)
            if after != before:
                try:
                    replace_file(self.path, codec.encode(after), mode=0o600)
                except OSError as error:
                    raise JournalError(f"{self.path}: {error.strerror or error}") from error
            return after

    def _nothing(self) -> RemoteConfigState:
        return RemoteConfigState(device_key_sha256=self._key)


def start_with(file: RemoteConfigFile) -> RemoteConfigState:
    """What the agent that starts now runs with; called once in the life of a process, before anything else is decided.

    Where the start cannot be counted nothing is tried.
    """
    try:
        return file.change(count_start)
    except JournalError as error:
        log.error("a start cannot be counted, so nothing is tried: %s", error)  # noqa: TRY400
        return file.read().model_copy(update={"trial": None})
