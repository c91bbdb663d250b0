"""Keeps the device's certificate fresh while the agent runs.

What always holds: the certificate in use stays until the broker has taken the new one; nothing here blocks, for the
trial runs in a thread of its own; without a right clock the fleet is asked at every check, and it knows the time.

On each connection the device reports which certificate it uses, on which machine. That settles the claim it joined
with, shows copies of its key, and asks for the next certificate when two thirds of the life of this one are over.
The answer is staged, tried in a connection of its own (which takes the session over for a moment) and put in place.
A certificate with another name renames the device: what is published then has to go by that name, so the agent has
to start anew. So it has where a root of the release repository came with it, for a device that had none: from then on
it follows assignments.

Left to others: connecting, and starting the agent anew.
"""

from __future__ import annotations

import base64
import logging
import threading
import time
from collections.abc import Callable

from edgeslm import codec, topics
from edgeslm.agent.enrolment import PROOF_TIMEOUT_S, OpenLink, prove, report
from edgeslm.agent.ports import Message
from edgeslm.errors import EdgeslmError
from edgeslm.schema.config import BrokerConfig
from edgeslm.schema.enrol import CertificateReply, Machine
from edgeslm.trust.certificate import renewal_due
from edgeslm.trust.identity import CANDIDATE, Identity, IdentityStore

_LOG = logging.getLogger(__name__)

CHECK_S = 3600.0
"""Seconds between two looks at the certificate's age; short-lived ones are looked at twenty times in their life."""
_MAX_REPLY_BYTES = 65_536


class Renewal:
    """Renews the certificate of one identity. Its methods are called from one thread."""

    def __init__(
        self,
        store: IdentityStore,
        identity: Identity,
        machine: Machine,
        agent: str,
        *,
        config: BrokerConfig,
        open_link: OpenLink,
        publish: Callable[[Message], int | None],
        on_changed: Callable[[str], None],
        wall_clock: Callable[[], float] = time.time,
        trial_timeout_s: float = PROOF_TIMEOUT_S,
    ) -> None:
        """Take the parts.

        Args:
            store: where the certificates lie.
            identity: in use.
            machine: what this machine is.
            agent: version of edgeslm.
            config: how the agent reaches the broker.
            open_link: how to get a link for a trial.
            publish: publishes over the agent's own link.
            on_changed: called, from any thread, once the device has another name, or a root of the release repository
                for the first time; told what it is.
            wall_clock: Unix time, right or wrong.
            trial_timeout_s: seconds within which the broker has to take a new certificate.
        """
        self._store = store
        self._identity = identity
        self._machine = machine
        self._agent = agent
        self._config = config
        self._open_link = open_link
        self._publish = publish
        self._on_changed = on_changed
        self._wall_clock = wall_clock
        self._trial_timeout_s = trial_timeout_s
        self._report_token: int | None = None
        self._checked_s = time.monotonic()
        self._trial: threading.Thread | None = None
        self._has_first_root = False

    @property
    def topic(self) -> str:
        """The topic to subscribe to, with QoS 1."""
        facts = self._identity.facts
        return topics.device_topic(facts.fleet, facts.device, "certificate")

    def connected(self) -> None:
        """The broker accepted us: report."""
        self._report()
        candidate = self._store.staged(self._identity)
        if candidate is not None:  # a trial was cut off
            self._try(candidate)

    def published(self, token: int) -> None:
        """The broker has a message of ours."""
        if token == self._report_token and not self._store.is_settled(self._identity):
            self._store.settle(self._identity)

    def tick(self) -> None:
        """Look at the certificate's age, if that is due; call it every now and then."""
        facts = self._identity.facts
        period_s = min(CHECK_S, (facts.not_after_s - facts.not_before_s) / 20)
        if time.monotonic() - self._checked_s >= period_s and renewal_due(facts, self._wall_clock()):
            self._report()

    def take(self, payload: bytes) -> None:
        """A certificate came on :attr:`topic`; a wrong one is logged and dropped."""
        try:
            reply = codec.decode(CertificateReply, payload, max_bytes=_MAX_REPLY_BYTES)
            root = None if reply.trust_root is None else base64.b64decode(reply.trust_root, validate=True)
            had_root = self._identity.trust_root.exists()
            if self._is_trying():
                return
            candidate = self._store.stage(self._identity, reply.certificate, root)
        except (EdgeslmError, ValueError) as error:
            _LOG.error("a certificate from the fleet is refused: %s", error)
            return
        self._has_first_root = self._identity.trust_root.exists() and not had_root
        if candidate is not None:
            self._try(candidate)
        else:
            self._tell(self._identity)

    def stop(self) -> None:
        """Wait for a trial that is under way."""
        if self._trial is not None:
            self._trial.join()

    # --- inside -------------------------------------------------------------------------------------------

    def _report(self) -> None:
        self._checked_s = time.monotonic()
        is_due = renewal_due(self._identity.facts, self._wall_clock())
        self._report_token = self._publish(report(self._identity, self._machine, self._agent, renew=is_due))

    def _is_trying(self) -> bool:
        return self._trial is not None and self._trial.is_alive()

    def _try(self, candidate: Identity) -> None:
        if self._is_trying():
            return
        self._trial = threading.Thread(target=self._run_trial, args=(candidate,), name="renewal", daemon=True)
        self._trial.start()

    def _run_trial(self, candidate: Identity) -> None:
        # To the broker that the agent is at, which may be another one by now than when it joined.
        lead = {"host": self._config.host, "port": self._config.port}
        config = candidate.broker_config(self._config, certificate=CANDIDATE).model_copy(update=lead)
        message = report(candidate, self._machine, self._agent)
        try:
            prove(candidate, config, self._open_link, message, self._trial_timeout_s)
            self._store.promote(candidate)
        except EdgeslmError as error:
            _LOG.error("the new certificate is not used: %s", error)
            self._store.discard(self._identity)
            self._tell(self._identity)
            return
        former, self._identity = self._identity, candidate
        _LOG.info("new certificate, until Unix time %.0f", candidate.facts.not_after_s)
        self._tell(former)

    def _tell(self, former: Identity) -> None:
        """Say what is new about the identity in use, if starting anew has to follow from it."""
        if self._identity.facts.device != former.facts.device:
            self._on_changed(f"the fleet calls this device {self._identity.facts.device} from now on")
        elif self._has_first_root:
            self._on_changed("the fleet gave this device the root of its release repository")
        self._has_first_root = False
