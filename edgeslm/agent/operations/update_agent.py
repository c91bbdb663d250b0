"""``update-agent``: take another version of edgeslm itself.

Its arguments are a version and the digests of that version's archives. Nothing of them is taken on the word of whoever
sent the command: the release repository has to vouch for the archive, by keys that are kept offline. It is then fetched
and installed beside what runs, which goes on serving; the switch is a restart, by way of the launcher.

What always holds:

* Before the switch a failure leaves nothing behind. After it the launcher goes back by itself, also without our help
  (:mod:`edgeslm.agent.launcher`).
* Only the new version itself says that it is healthy: once it is at the broker and serves what was served before.
* Each step, done again after a cut, leads on from where it was.

Left to others: trust (:mod:`edgeslm.trust`), bytes (:mod:`edgeslm.delivery`), files of the installation
(:mod:`edgeslm.agent.installation`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

from pydantic import ValidationError

from edgeslm.agent.environments import Cancelled, Host, misfit
from edgeslm.agent.installation import Installation
from edgeslm.agent.launcher import Trial
from edgeslm.agent.operations.ports import Command, Done, Progress, Restart, Step, Waiting
from edgeslm.codec import describe
from edgeslm.errors import (
    AgentArchiveError,
    DeliveryCancelledError,
    DeliveryError,
    DeliveryPolicyError,
    InstallationCancelledError,
    InstallationError,
    OperationError,
    TrustStateError,
    UpdateInterruptedError,
)
from edgeslm.schema.agent_release import AgentInfo, AgentTarget, UpdateAgentArgs, version_name
from edgeslm.schema.release import CheckResult, Refusal, WantedAgent

log = logging.getLogger(__name__)

OP: Final = "update-agent"
HEALTHY_WITHIN_S: Final = 600.0
MAX_STARTS: Final = 3
_FETCH_SHARE = 0.5
"""Of the way to the switch; the rest is the build."""
_LATER_S = 600.0
_LOOK_S = 1.0
_MAX_RESTARTS = 3


class Vouch(Protocol):
    """Asks the release repository about archives of the agent."""

    def __call__(self, wanted: Sequence[WantedAgent], cancelled: Cancelled, /) -> CheckResult:
        """What it says about each of them.

        Raises:
            TrustStateError: nothing could be judged.
            UpdateInterruptedError: it was cancelled.
        """


class Bring(Protocol):
    """Brings archives here."""

    def fetch(self, info: AgentInfo, on_share: Callable[[float], None], cancelled: Cancelled) -> Path:
        """The file of an archive, whose sha256 is right.

        Raises:
            DeliveryError: it could not be brought here.
        """

    def forget(self) -> None:
        """Remove whatever was brought, whole or begun.

        Raises:
            DeliveryError: the disk refuses.
        """


class Health(Protocol):
    """Says whether this agent does what an agent is for."""

    def served(self) -> list[str]:
        """Names of the models that answer."""

    def missing(self, served: Sequence[str], cancelled: Cancelled) -> str | None:
        """What it still lacks; ``None`` if nothing.

        Args:
            served: names of the models that the version before served.
            cancelled: whether to stop looking.
        """


class UpdateAgent:
    """``Operation``, on a device of a fleet."""

    op = OP
    deadline_s = 6 * 3600.0

    def __init__(
        self,
        find: Callable[[], Installation],
        vouch: Vouch,
        bring: Bring,
        health: Health,
        agent: str,
        *,
        host: Callable[[], Host] = Host.here,
        healthy_within_s: float = HEALTHY_WITHIN_S,
        max_starts: int = MAX_STARTS,
    ) -> None:
        """Take the parts.

        Args:
            find: the installation that this process runs from; raises ``InstallationError`` where there is none.
            vouch: asks the release repository.
            bring: brings archives here.
            health: judges this agent when it is on trial.
            agent: version of this agent.
            host: what an archive has to fit.
            healthy_within_s: that a new version has from each start on.
            max_starts: that a new version has.
        """
        self._find = find
        self._vouch = vouch
        self._bring = bring
        self._health = health
        self._agent = agent
        self._host = host
        self._healthy_within_s = healthy_within_s
        self._max_starts = max_starts
        self._told = ""

    def begin(self, command: Command, progress: Progress) -> Step:
        """See ``Operation``."""
        arguments, installation = _arguments(command), self._installation()
        if installation.on_trial:
            raise OperationError("another version of the agent is on trial", reason="refused")
        running = installation.installed(installation.running or "")
        if (
            running is not None
            and running.version == arguments.version
            and running.sha256 in arguments.sha256s
        ):
            return Done({"version": running.version, "changed": False})
        target = self._vouched(arguments, progress)
        try:
            return self._take(command.id, target.info, installation, progress)
        except DeliveryPolicyError as error:
            progress.tell(f"waits: {error.message}", 0.0)
            return Waiting({"waits_for": error.message}, error.retry_after_s or _LATER_S)
        except (DeliveryCancelledError, InstallationCancelledError) as error:
            raise OperationError("given up before anything was changed", reason="cancelled") from error
        except (DeliveryError, InstallationError, AgentArchiveError) as error:
            raise OperationError(error.message, reason="failed", hint=error.hint) from error

    def resume(self, command: Command, memo: Mapping[str, Any] | None, progress: Progress) -> Step:
        """See ``Operation``."""
        installation = self._installation()
        trial = installation.trial
        if trial is None or trial.id != command.id:
            return self.begin(command, progress)
        try:
            return self._go_on(trial, dict(memo or {}), installation, progress)
        except InstallationError as error:
            raise OperationError(error.message, reason="failed", hint=error.hint) from error

    # --- up to the switch ---------------------------------------------------------------------------------------

    def _installation(self) -> Installation:
        try:
            return self._find()
        except InstallationError as error:
            raise OperationError(error.message, reason="refused", hint=error.hint) from error

    def _vouched(self, arguments: UpdateAgentArgs, progress: Progress) -> AgentTarget:
        """The first archive that is trusted, and fits this device."""
        progress.tell(f"asking the release repository about edgeslm {arguments.version}")
        wanted = [
            WantedAgent(
                version=arguments.version,
                sha256=sha256,
                running=self._agent,
                allow_downgrade=arguments.allow_downgrade,
            )
            for sha256 in arguments.sha256s
        ]
        try:
            result = self._vouch(wanted, progress.is_cancelled)
        except UpdateInterruptedError as error:
            raise OperationError("given up before anything was changed", reason="cancelled") from error
        except TrustStateError as error:
            raise OperationError(str(error), reason="failed") from error
        host, reasons = self._host(), list[str]()
        for found in result.agents:
            if found.target is None:
                reasons.append(_said(found.refused))
                continue
            unfit = misfit(found.target.info.requires, host, self._agent)
            if unfit is None:
                return found.target
            reasons.append(f"{found.sha256[:12]}: {unfit}")
        if result.refresh_refused is not None:
            reasons.append(_said(result.refresh_refused))
        raise OperationError(
            "; ".join(dict.fromkeys(reasons))[:800] or "nobody vouches for it", reason="refused"
        )

    def _take(self, operation: str, info: AgentInfo, installation: Installation, progress: Progress) -> Step:
        name = version_name(info.version, info.sha256)
        _tidy(installation, keep=(name,))
        if installation.installed(name) is None:
            installation.check_room(info.size_bytes, info.installed_bytes)

            def on_share(share: float) -> None:
                progress.tell(f"fetching edgeslm {info.version}", share * _FETCH_SHARE)

            def on_build(text: str, share: float) -> None:
                progress.tell(text, _FETCH_SHARE + share * (1 - _FETCH_SHARE))

            archive = self._bring.fetch(info, on_share, progress.is_cancelled)
            installation.build(archive, info.version, info.sha256, on_build, progress.is_cancelled)
        self._bring.forget()
        if progress.is_cancelled():
            raise OperationError("given up before anything was changed", reason="cancelled")
        return self._switch(operation, name, installation, progress)

    def _switch(self, operation: str, name: str, installation: Installation, progress: Progress) -> Step:
        served = self._health.served()
        installation.begin_trial(
            operation, name, healthy_within_s=self._healthy_within_s, max_starts=self._max_starts
        )
        log.info("%s is to be tried", name)
        progress.tell(f"the agent begins anew as {name}", 1.0)
        return Restart({"served": served, "restarts": 0})

    # --- after the switch ---------------------------------------------------------------------------------------

    def _go_on(
        self, trial: Trial, memo: dict[str, Any], installation: Installation, progress: Progress
    ) -> Step:
        if trial.state == "healthy":
            return self._done(trial, installation)
        if installation.current != trial.version:
            if trial.state != "trial":
                _tidy(installation)
                raise OperationError(
                    f"{trial.version} did not hold: {trial.reason}; {trial.previous} runs again",
                    reason="rolled_back",
                )
            # Cut off between writing it down and the switch.
            return self._switch(trial.id, trial.version, installation, progress)
        if installation.running != trial.version or trial.state != "trial":
            return self._begin_anew(trial, memo, installation)
        served = [str(name) for name in memo.get("served", ())]
        missing = self._health.missing(served, progress.is_cancelled)
        if missing is not None:
            text = f"{trial.version} is on trial, start {trial.starts} of {trial.max_starts}: {missing}"
            if text != self._told:
                self._told = text
                progress.tell(text)
            return Waiting(memo, _LOOK_S)
        installation.settle()
        progress.tell(f"{trial.version} is healthy and stays", 1.0)
        log.info("%s is healthy and stays", trial.version)
        return self._done(trial, installation)

    def _begin_anew(self, trial: Trial, memo: dict[str, Any], installation: Installation) -> Step:
        """Something else runs than the link says: only a start by the launcher changes that."""
        restarts = int(memo.get("restarts", 0)) + 1
        if restarts > _MAX_RESTARTS:
            reason = f"{restarts - 1} starts did not lead to it"
            installation.call_off(reason)
            raise OperationError(f"{trial.version} was not tried: {reason}", reason="rolled_back")
        return Restart({**memo, "restarts": restarts})

    def _done(self, trial: Trial, installation: Installation) -> Step:
        _tidy(installation)
        return Done(
            {"version": trial.version, "was": trial.previous, "starts": trial.starts, "changed": True}
        )


def _arguments(command: Command) -> UpdateAgentArgs:
    try:
        return UpdateAgentArgs.model_validate(dict(command.args))
    except ValidationError as error:
        raise OperationError(f"the arguments are none: {describe(error)}", reason="refused") from error


def _tidy(installation: Installation, keep: Sequence[str] = ()) -> None:
    """Remove what nobody goes to any more; what cannot be removed is no reason for anything."""
    try:
        gone = installation.collect(keep)
    except InstallationError as error:
        log.warning("cannot tidy up: %s", error)
    else:
        if gone:
            log.info("removed %s", ", ".join(gone))


def _said(refusal: Refusal | None) -> str:
    return "nobody vouches for it" if refusal is None else refusal.message
