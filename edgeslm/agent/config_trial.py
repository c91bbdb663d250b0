"""Proves a configuration that is on trial, or gives it up.

It is proved once the agent has been at the broker with it for a moment. If that does not come about in time, or the
agent does not even start, it is given up, and the agent begins anew with what it had before. That does not depend on
anybody who asks for it, nor on the command that brought the configuration.

What always holds: the outcome is on the disk before the process is asked to begin anew.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from edgeslm.agent.remote_config import RemoteConfigFile, commit, roll_back
from edgeslm.errors import JournalError
from edgeslm.schema.remote_config_state import RemoteConfigState, TrialOverlay

log = logging.getLogger(__name__)

STEADY_S = 1.0
"""A broker may accept a client and send it away at once; for so long it has to stay."""
GRACE_S = 60.0
"""An agent that is asked to begin anew and has not ended after this long hangs."""
_POLL_S = 0.1


class ConfigTrial:
    """Watches one start of the agent with a configuration on trial."""

    def __init__(
        self,
        file: RemoteConfigFile,
        trial: TrialOverlay,
        *,
        restart: Callable[[], None],
        replace: Callable[[], None],
        grace_s: float = GRACE_S,
    ) -> None:
        """Take the parts; nothing runs yet.

        Args:
            file: where the outcome goes.
            trial: what is tried.
            restart: asks the agent to end in order and begin anew; returns at once.
            replace: begins anew without asking; it does not return.
            grace_s: seconds between the two.
        """
        self._file = file
        self._trial = trial
        self._restart = restart
        self._replace = replace
        self._grace_s = grace_s
        self._is_online: Callable[[], bool] = lambda: False
        self._on_committed: Callable[[int], None] | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="edgeslm-config", daemon=True)

    def start(self) -> None:
        """Begin to count the time; before the agent is built, as it may hang there."""
        log.info("configuration %d is on trial", self._trial.version)
        self._thread.start()

    def attach(
        self, is_online: Callable[[], bool], on_committed: Callable[[int], None] | None = None
    ) -> None:
        """The agent is there.

        Args:
            is_online: tells whether it is at the broker.
            on_committed: told the version once that is proved.
        """
        self._on_committed = on_committed
        self._is_online = is_online

    def failed(self, reason: str) -> bool:
        """The agent did not start; returns whether it has to begin anew for that."""
        self._ended.set()
        return self._give_up(f"the agent does not start with it: {reason}")

    def stop(self) -> None:
        """The agent has ended in order; what is not settled by now is tried again at the next start."""
        self._ended.set()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join()

    def _run(self) -> None:
        started_s = time.monotonic()
        online_since_s: float | None = None
        while not self._ended.wait(_POLL_S):
            now_s = time.monotonic()
            if not self._is_online():
                online_since_s = None
                if now_s - started_s >= self._trial.confirm_s:
                    break
            elif online_since_s is None:
                online_since_s = now_s
            elif now_s - online_since_s >= STEADY_S:
                self._commit()
                return
        if self._ended.is_set():
            return
        reason = f"the broker was not reached with it within {self._trial.confirm_s} s"
        if not self._give_up(reason):
            return
        self._restart()
        if not self._ended.wait(self._grace_s):
            log.error("the agent does not end; it begins anew without")
            self._replace()

    def _commit(self) -> None:
        try:
            self._file.change(lambda state: commit(state) if self._is_still(state) else state)
        except JournalError:
            # Unsettled it is tried again at the next start, and rolled back if this goes on.
            log.exception("configuration %d works, but that cannot be written down", self._trial.version)
            return
        log.info("configuration %d is in force", self._trial.version)
        if self._on_committed is not None:
            self._on_committed(self._trial.version)

    def _give_up(self, reason: str) -> bool:
        """Write down that it is given up; ``False`` where nothing is on trial any more, or the disk refuses."""
        log.error("configuration %d is taken back: %s", self._trial.version, reason)
        rolled_back = False

        def step(state: RemoteConfigState) -> RemoteConfigState:
            nonlocal rolled_back
            rolled_back = self._is_still(state)
            return roll_back(state, reason) if rolled_back else state

        try:
            self._file.change(step)
        except JournalError:
            # Starts are counted: it ends that way.
            log.exception("that cannot be written down")
            return True
        return rolled_back

    def _is_still(self, state: RemoteConfigState) -> bool:
        trial = state.trial
        return trial is not None and trial.document_sha256 == self._trial.document_sha256
