"""``set-config``: take up a configuration that the fleet signed.

The command's one argument is ``document``, the signed document as text. It is judged, put together with the device's
own settings, and written down; then the agent begins anew with it. Whether it holds is found without this operation
(:mod:`edgeslm.agent.config_trial`); here the answer is only waited for and told.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol

from edgeslm.agent.operations.ports import Command, Done, Progress, Restart, Step, Waiting
from edgeslm.agent.remote_config import RemoteConfigFile, take_up
from edgeslm.errors import ConfigError, OperationError, TrustError, UpdateInterruptedError
from edgeslm.schema.remote_config import (
    MAX_CONFIRM_S,
    MAX_REMOTE_CONFIG_BYTES,
    RemoteConfig,
    parse_settings,
)
from edgeslm.schema.remote_config_state import RemoteConfigState, SettledConfig

log = logging.getLogger(__name__)

OP: Final = "set-config"
DOCUMENT: Final = "document"
_POLL_S = 0.2
_LATER_S = 5.0


class JudgeConfig(Protocol):
    """Says whether a document is to be trusted."""

    def __call__(self, document: str, last_version: int, cancelled: Callable[[], bool]) -> RemoteConfig:
        """The configuration in `document`.

        Args:
            document: as it came.
            last_version: of the configuration taken up last; 0 if none.
            cancelled: whether to give up.

        Raises:
            TrustError: this device may not take it up.
            TrustStateError: nothing could be judged.
            UpdateInterruptedError: it was cancelled.
        """


class CheckSettings(Protocol):
    """Puts settings together with those of the device."""

    def __call__(self, settings: Mapping[str, Any], /) -> bool:
        """Whether the agent would run with other settings than now.

        Raises:
            ConfigError: together they are no configuration.
        """


class SetConfig:
    """``Operation``, on a device of a fleet."""

    op = OP
    deadline_s = 2.0 * MAX_CONFIRM_S + 600.0

    def __init__(
        self,
        file: RemoteConfigFile,
        judge: JudgeConfig,
        check: CheckSettings,
        on_committed: Callable[[int], None] = lambda version: None,
    ) -> None:
        """Take the parts.

        Args:
            file: what the device remembers of configurations.
            judge: says whether a document is to be trusted.
            check: puts its settings together with those of the device.
            on_committed: told the version of one that changes nothing, and so is in force at once.
        """
        self._file = file
        self._judge = judge
        self._check = check
        self._on_committed = on_committed

    def begin(self, command: Command, progress: Progress) -> Step:
        """See ``Operation``."""
        document = _document(command)
        progress.tell("judging the signature")
        try:
            config = self._judge(document, self._file.read().last_version, progress.is_cancelled)
            settings = parse_settings(config.settings)
            changes = self._check(settings)
        except (TrustError, ConfigError) as error:
            raise OperationError(str(error), reason="refused") from error
        except UpdateInterruptedError as error:
            raise OperationError("nothing was changed", reason="cancelled") from error
        if progress.is_cancelled():
            raise OperationError("nothing was changed", reason="cancelled")
        digest = _digest(document)

        def step(state: RemoteConfigState) -> RemoteConfigState:
            if state.last_version >= config.version:  # by another command, meanwhile
                raise OperationError(f"configuration {state.last_version} came first", reason="refused")
            return take_up(state, config, digest, changes=changes)

        state = self._file.change(step)
        if state.trial is None:
            self._on_committed(config.version)
            return Done({"version": config.version, "changed": False})
        log.info("configuration %d is to be tried", config.version)
        progress.tell(f"the agent begins anew with version {config.version}")
        return Restart({"version": config.version})

    def resume(self, command: Command, memo: Mapping[str, Any] | None, progress: Progress) -> Step:
        """See ``Operation``."""
        digest = _digest(_document(command))
        told = False
        while True:
            state = self._file.read()
            if state.settled is not None and state.settled.document_sha256 == digest:
                return _told(state.settled)
            if state.trial is None or state.trial.document_sha256 != digest:
                # The process ended before it was written down, and so before anything came of it.
                return self.begin(command, progress)
            if not told:
                progress.tell(
                    f"version {state.trial.version} has {state.trial.confirm_s} s to reach the broker"
                )
                told = True
            if progress.is_cancelled():
                # What becomes of it does not depend on who waits for it.
                return Waiting(memo or {"version": state.trial.version}, _LATER_S)
            time.sleep(_POLL_S)


def _told(settled: SettledConfig) -> Done:
    if settled.outcome == "rolled_back":
        raise OperationError(settled.reason or "it did not hold", reason="rolled_back")
    return Done({"version": settled.version, "changed": True})


def _document(command: Command) -> str:
    document = command.args.get(DOCUMENT)
    if not isinstance(document, str) or not document:
        raise OperationError(f"'{DOCUMENT}' is to hold the signed configuration", reason="refused")
    # Signed in ASCII; and what is no text at all is found here rather than by whoever encodes it next.
    if not document.isascii() or len(document) > MAX_REMOTE_CONFIG_BYTES:
        raise OperationError(
            f"'{DOCUMENT}' is to be ASCII, of at most {MAX_REMOTE_CONFIG_BYTES} characters", reason="refused"
        )
    return document


def _digest(document: str) -> str:
    return hashlib.sha256(document.encode()).hexdigest()
