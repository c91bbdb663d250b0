"""Follows assignments: takes them from the broker, has them judged, hands them to the updater, and reports.

What always holds:

* Nothing reaches the updater that the fleet's release repository does not vouch for. The judging is done by a process
  of its own (:mod:`edgeslm.trust.child`), one at a time.
* An assignment that is refused changes nothing. Where the repository could not be reached it is judged again later;
  otherwise it is left alone until it comes again.
* The latest report is with the broker, or is published when the broker comes back.

Left to others: everything that follows from an assignment (:mod:`edgeslm.agent.update`).
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from edgeslm import codec, topics
from edgeslm.agent.ports import Message
from edgeslm.agent.update.change import wanted_by
from edgeslm.agent.update.ports import Cancelled
from edgeslm.agent.update.updater import Updater
from edgeslm.errors import (
    EdgeslmError,
    LinkError,
    MetadataFetchError,
    RemoteConfigError,
    UpdateInterruptedError,
)
from edgeslm.files import read_bounded, replace_file
from edgeslm.schema.assignment import MAX_ASSIGNMENT_BYTES
from edgeslm.schema.release import CheckRequest, CheckResult, HeldRelease, WantedAgent
from edgeslm.schema.remote_config import RemoteConfig
from edgeslm.schema.update import Reported
from edgeslm.trust.child import run_check
from edgeslm.trust.fetch import Fetch

log = logging.getLogger(__name__)

_RETRY_S = 15.0
_MAX_RETRY_S = 1800.0


@dataclass(frozen=True)
class Judge:
    """Asks whether an assignment is to be trusted, and what the repository says about its releases.

    Attributes:
        state_dir: of the trusted metadata.
        device_key_sha256: digest of the device's public key.
        fetch: gets files of the repository.
        close: ends a fetch that is under way.
    """

    state_dir: Path
    fleet: str
    device: str
    device_key_sha256: str
    fetch: Fetch
    close: Callable[[], None] = lambda: None
    _one_at_a_time: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def judge(
        self, assignment: str, last_seq: int, held: Mapping[str, HeldRelease], cancelled: Cancelled
    ) -> CheckResult:
        """What is to be thought of `assignment`.

        Args:
            assignment: body of the message.
            last_seq: number of the assignment followed last; 0 if none.
            held: what runs, by name.
            cancelled: asked before each file is fetched.

        Raises:
            TrustStateError: nothing could be judged.
            UpdateInterruptedError: it was cancelled.
        """
        asked = {"assignment": assignment, "last_seq": last_seq, "held": dict(held)}
        return self._check(self._request.model_copy(update=asked), cancelled)

    def judge_config(self, document: str, last_version: int, cancelled: Cancelled) -> RemoteConfig:
        """The configuration in `document`, if this device may take it up; see ``JudgeConfig``.

        Raises:
            RemoteConfigError: it may not.
            TrustStateError: nothing could be judged.
            UpdateInterruptedError: it was cancelled.
        """
        asked = {"configuration": document, "last_config": last_version}
        result = self._check(self._request.model_copy(update=asked), cancelled)
        if result.configuration is not None:
            return result.configuration
        refusals = (result.configuration_refused, result.refresh_refused)
        reasons = [refusal.message for refusal in refusals if refusal is not None]
        raise RemoteConfigError("; ".join(reasons) or "the configuration is refused", role="configuration")

    def vouch(self, agents: Sequence[WantedAgent], cancelled: Cancelled) -> CheckResult:
        """What the repository says about archives of the agent itself; see ``Vouch``.

        Raises:
            TrustStateError: nothing could be judged.
            UpdateInterruptedError: it was cancelled.
        """
        return self._check(self._request.model_copy(update={"agents": tuple(agents)}), cancelled)

    @property
    def _request(self) -> CheckRequest:
        return CheckRequest(
            state_dir=str(self.state_dir),
            fleet=self.fleet,
            device=self.device,
            device_key_sha256=self.device_key_sha256,
        )

    def _check(self, request: CheckRequest, cancelled: Cancelled) -> CheckResult:
        def fetch(path: str, max_bytes: int) -> bytes:
            if cancelled():
                raise UpdateInterruptedError
            try:
                return self.fetch(path, max_bytes)
            except MetadataFetchError:
                if cancelled():
                    raise UpdateInterruptedError from None
                raise

        with self._one_at_a_time:
            return run_check(request, fetch)


class Assigned:
    """The assignment that is followed, kept over restarts; from any thread."""

    def __init__(self, file: Path) -> None:
        """Read what is kept in `file`; something unreadable is none."""
        self._file = file
        try:
            self._body = read_bounded(file, MAX_ASSIGNMENT_BYTES).decode()
        except (OSError, UnicodeDecodeError):
            self._body = ""

    @property
    def body(self) -> str:
        """As it came; empty if there is none."""
        return self._body

    def keep(self, body: str) -> None:
        """Keep another one."""
        if body == self._body:
            return
        self._body = body
        try:
            replace_file(self._file, body.encode())
        except OSError:
            log.exception("the assignment cannot be kept; after a restart it has to come again")


class Reports:
    """The latest report, on its way to the broker; from any thread."""

    def __init__(
        self, topic: str, publish: Callable[[Message], int | None], config_version: int | None = None
    ) -> None:
        """Report nothing yet.

        Args:
            topic: to publish on, retained.
            publish: over the agent's own link.
            config_version: of the fleet's configuration that is in force.
        """
        self._topic = topic
        self._publish = publish
        self._config_version = config_version
        self._latest: Reported | None = None
        self._lock = threading.Lock()

    def report(self, reported: Reported) -> None:
        """There is something new."""
        with self._lock:
            self._latest = reported
            self._send(reported)

    def tell_config(self, version: int) -> None:
        """Another configuration of the fleet is in force."""
        with self._lock:
            self._config_version = version
            if self._latest is not None:
                self._send(self._latest)

    def connected(self) -> None:
        """The broker is there, and may not have the latest."""
        with self._lock:
            if self._latest is not None:
                self._send(self._latest)

    def _send(self, reported: Reported) -> None:
        whole = reported.model_copy(update={"config": self._config_version})
        try:
            self._publish(Message(self._topic, codec.encode(whole), retain=True))
        except LinkError:
            log.exception("the report on updates cannot be sent")


class Following:
    """``UpdateSide`` of the agent."""

    def __init__(
        self,
        updater: Updater,
        judge: Judge,
        assigned: Assigned,
        reports: Reports,
        last_seq: int,
        follow_budget: Callable[[str | None], None],
    ) -> None:
        """Take the parts.

        Args:
            updater: booted and attached before :meth:`start`.
            reports: where the updater reports to.
            last_seq: number of the assignment followed last; 0 if none.
            follow_budget: takes the budget of an assignment, JSON or none.
        """
        self._updater = updater
        self._follow_budget = follow_budget
        self._judge = judge
        self._assigned = assigned
        self._reports = reports
        self._last_seq = last_seq
        self._followed = ""
        self._offered: str | None = assigned.body or None
        self._changed = threading.Condition()
        self._ending = False
        self._thread = threading.Thread(target=self._run, name="edgeslm-follow", daemon=True)

    @property
    def topic(self) -> str:
        """See ``UpdateSide``."""
        return topics.device_topic(self._judge.fleet, self._judge.device, "desired")

    # --- told by others ----------------------------------------------------------------------------------------

    def on_message(self, message: Message) -> None:
        """See ``UpdateSide``."""
        if not 0 < len(message.payload) <= MAX_ASSIGNMENT_BYTES:
            log.warning("an assignment of %d bytes is ignored", len(message.payload))
            return
        try:
            body = message.payload.decode()
        except UnicodeDecodeError:
            log.warning("an assignment that is no text is ignored")
            return
        with self._changed:
            self._offered = body
            self._changed.notify()

    def connected(self) -> None:
        """See ``UpdateSide``."""
        self._updater.reconnected()
        self._reports.connected()

    def start(self) -> None:
        """See ``UpdateSide``."""
        self._updater.start()
        self._thread.start()

    def stop(self) -> None:
        """See ``UpdateSide``."""
        with self._changed:
            self._ending = True
            self._changed.notify()
        self._judge.close()
        if self._thread.is_alive():
            self._thread.join()
        self._updater.stop()

    # --- the thread --------------------------------------------------------------------------------------------

    def _run(self) -> None:
        wait_s = _RETRY_S
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._ending or self._offered is not None)
                if self._ending:
                    return
                body, self._offered = self._offered or "", None
            if body == self._followed or not self._is_to_be_judged_again(body):
                wait_s = _RETRY_S
                continue
            with self._changed:
                if not self._changed.wait_for(lambda: self._ending or self._offered is not None, wait_s):
                    self._offered = body
            wait_s = min(2 * wait_s, _MAX_RETRY_S)

    def _is_to_be_judged_again(self, body: str) -> bool:
        try:
            result = self._judge.judge(body, self._last_seq, {}, lambda: self._ending)
        except UpdateInterruptedError:
            return False
        except EdgeslmError as error:
            log.warning("an assignment could not be judged: %s", error)
            return True
        except Exception:  # one that listens no more is worse than one assignment that is not judged
            log.exception("an assignment could not be judged")
            return True
        if result.assignment is not None:
            log.info("assignment %d is followed", result.assignment.seq)
            self._followed, self._last_seq = body, result.assignment.seq
            self._assigned.keep(body)
            try:
                self._follow_budget(result.assignment.budget)
            except EdgeslmError as error:
                log.error("the budget of assignment %d is not followed: %s", result.assignment.seq, error)  # noqa: TRY400
            self._updater.follow(wanted_by(result.assignment), result.assignment.seq)
            return False
        refused, missing = result.assignment_refused, result.refresh_refused
        log.warning("an assignment is refused: %s", refused.message if refused is not None else "no reason")
        return missing is not None
