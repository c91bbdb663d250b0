"""Brings configurations to devices, hears what became of them, and writes that down.

What always holds: a configuration is signed and written down for all its devices, or for none, before anything leaves;
what a device has not answered before is taken back, so that it never tries two; the broker keeps what a device has
not answered until its time is over.

Left to others: what a configuration is (:mod:`edgeslm.fleet.remote_config`), and how devices are asked
(:mod:`edgeslm.fleet.operations`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, cast

from securesystemslib.signer import Signer

from edgeslm import topics
from edgeslm.clock import utc_now
from edgeslm.errors import EdgeslmError
from edgeslm.fleet.assignments import Visit
from edgeslm.fleet.directory import FleetDirectory
from edgeslm.fleet.operations import Outcome, Wishes, collect, new_id, note_request, request
from edgeslm.fleet.release_files import RepositoryFiles
from edgeslm.fleet.remote_config import ConfigRecord, ConfigStanding, history, make, settle, supersede
from edgeslm.fleet.store.database import Store
from edgeslm.schema.remote_config import DEFAULT_CONFIG_LIFETIME, DEFAULT_CONFIRM_S

OP = "set-config"
_REPEAT_S = 5.0
"""A device that is there repeats its last word at once."""


@dataclass(frozen=True)
class Prepared:
    """One request: the same id for all devices, to each its own document.

    Attributes:
        versions: by device.
        documents: signed, by device.
        former: ids of the requests that this one takes back, by device.
        life: how long it can be taken up.
    """

    command: str
    versions: Mapping[str, int]
    documents: Mapping[str, str]
    former: Mapping[str, Sequence[str]]
    life: timedelta


class ConfigSender:
    """Sends for one fleet."""

    def __init__(self, directory: FleetDirectory, store: Store, actor: str) -> None:
        """Take the parts.

        Args:
            directory: of the fleet.
            store: where it is written down.
            actor: who sends.
        """
        self._directory = directory
        self._store = store
        self._actor = actor

    def prepare(
        self,
        devices: Iterable[str],
        settings: Mapping[str, Any],
        signers: Sequence[Signer],
        *,
        life: timedelta = DEFAULT_CONFIG_LIFETIME,
        confirm_s: int = DEFAULT_CONFIRM_S,
    ) -> Prepared:
        """Sign `settings` for each device and write that down.

        Raises:
            EdgeslmError: as :func:`~edgeslm.fleet.remote_config.make` raises it; nothing was written then.
        """
        authority = RepositoryFiles.open(self._directory.releases).published().targets["targets"].signed
        command, now = new_id(), utc_now()
        versions, documents, former = {}, {}, {}
        with self._store.write() as session:
            for device in devices:
                made, documents[device] = make(
                    session,
                    self._directory.name,
                    device,
                    settings,
                    signers,
                    authority,
                    command=command,
                    actor=self._actor,
                    now=now,
                    life=life,
                    confirm_s=confirm_s,
                )
                versions[device] = made.version
                former[device] = supersede(session, device, made.version, now)
        return Prepared(command, versions, documents, former, life)

    def send(self, prepared: Prepared, wishes: Wishes) -> dict[str, ConfigRecord]:
        """Let the broker have it, and wait for what becomes of it.

        Args:
            prepared: what is sent.
            wishes: how long is waited; its ``life`` and ``keep`` are not asked.

        Returns:
            The record of each device by its name; ``sent`` where it did not answer in time.

        Raises:
            LinkError: the broker cannot be reached; all of them count as failed.
        """
        fleet, config = self._directory.name, self._directory.operator_config()
        outdated = [
            topics.command_topic(fleet, device, OP, command)
            for device, commands in prepared.former.items()
            for command in commands
        ]
        try:
            if outdated:
                with Visit(config, f"edgeslm-config-{prepared.command}") as visit:
                    for topic in outdated:
                        visit.publish(topic, b"")
            args = {device: {"document": document} for device, document in prepared.documents.items()}
            kept = replace(wishes, life=prepared.life, keep=True)
            outcomes = request(config, fleet, OP, args, kept, command_id=prepared.command)
        except EdgeslmError as error:
            with self._store.write() as session:
                for device, version in prepared.versions.items():
                    settle(session, device, version, "failed", f"it could not be sent: {error}", utc_now())
            raise
        with self._store.write() as session:
            devices = list(prepared.versions)
            note_request(session, OP, prepared.command, devices, actor=self._actor, now=utc_now())
        return self._settle(outcomes, prepared.versions)

    def ask_again(self, device: str) -> None:
        """Hear what became of the latest configuration of `device`, where that is not known yet.

        Raises:
            UnknownDeviceError: there is no such device.
            LinkError: the broker cannot be reached.
        """
        with self._store.read() as session:
            newest = history(session, device, limit=1)
        if not newest or newest[0].state != "sent":
            return
        record = newest[0]
        life = max(record.expires_at - utc_now(), timedelta(seconds=1))
        outcomes = collect(
            self._directory.operator_config(),
            self._directory.name,
            OP,
            record.command,
            Wishes(timeout_s=_REPEAT_S, life=life, keep=True),
            [device],
        )
        self._settle(outcomes, {device: record.version})

    def _settle(self, outcomes: Iterable[Outcome], versions: Mapping[str, int]) -> dict[str, ConfigRecord]:
        with self._store.write() as session:
            for outcome in outcomes:
                if not outcome.open:
                    state, detail = _standing(outcome)
                    settle(session, outcome.device, versions[outcome.device], state, detail, utc_now())
            records = {device: history(session, device) for device in versions}
        return {
            device: next(record for record in records[device] if record.version == version)
            for device, version in versions.items()
        }


def _standing(outcome: Outcome) -> tuple[ConfigStanding, str]:
    """What became of it by a last word, and why."""
    if not outcome.is_done:
        return cast("ConfigStanding", outcome.state), outcome.text
    changed = (outcome.result or {}).get("changed", True)
    return "committed", "" if changed else "the device ran with these settings already"
