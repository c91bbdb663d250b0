"""The fleet's broker and door: keeping their files true, and putting a device off.

::

    <dir>/mosquitto.conf, acl      the broker, see :mod:`edgeslm.fleet.broker_files`
    <dir>/revoked/<hash>.r<n>      revocation lists, the newest last; the broker looks for it at every handshake
    <dir>/data/                    sessions and retained messages
    <dir>/door.conf, door-acl      the door
    <dir>/passwd                   every claim that may still be used
    <dir>/server.crt, server.key   certificate of both, with the authority's behind it
    <dir>/door.crt, door.key       the door's identity at the broker
    <dir>/operator.crt             the operator's certificate
    <dir>/ca.crt                   the authority

What always holds: the files follow from the store. :meth:`Broker.sync` writes what differs, each file whole. A revoked
certificate is refused from the next handshake on; a device that is connected is put off by taking its session over
(:meth:`Broker.disconnect`). The door reads its passwords again on SIGHUP. Everything else stays as it is for years;
when it does change, the operator is told to start the two anew.

Left to others: what a certificate says (:mod:`edgeslm.fleet.ca`), who is revoked, and running the two
(:mod:`edgeslm.fleet.broker_process`, or the system).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Literal

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from sqlalchemy import select
from sqlalchemy.orm import Session

from edgeslm import topics
from edgeslm.errors import FleetError, LinkError
from edgeslm.files import clear_partial, locked, replace_file
from edgeslm.fleet import broker_files as files
from edgeslm.fleet.ca import (
    CertificateAuthority,
    CertificateRequest,
    IssuedCertificate,
    Revoked,
    is_current,
    key_digest,
    key_pem,
    name_hash,
    new_key,
)
from edgeslm.fleet.claims import usable_logins
from edgeslm.fleet.directory import FleetDirectory, read_file
from edgeslm.fleet.grants import granted
from edgeslm.fleet.home_assistant import revoked_identities
from edgeslm.fleet.store.database import Store
from edgeslm.fleet.store.models import CertificateRow, FactRow
from edgeslm.link.mqtt import MqttLink
from edgeslm.link.port import Message
from edgeslm.schema.config import BrokerConfig

_LOCK = ".lock"
_RELOAD_TIMEOUT_S = 30.0
_VISIT_TIMEOUT_S = 10.0
_TAKEOVER_LIFE = timedelta(minutes=10)
_REVOKED_FACT = "revocations"

Reload = Literal["unneeded", "done", "not running", "refused"]
Authority = Callable[[], CertificateAuthority]
"""Gives the authority; called only where something has to be signed."""


@dataclass(frozen=True)
class Synced:
    """What :meth:`Broker.sync` did.

    Attributes:
        changed: names of the files that differ from before.
        reload: whether the door has read its passwords, where those changed.
        needs_restart: broker or door run with older files than these.
    """

    changed: tuple[str, ...]
    reload: Reload
    needs_restart: bool


class Broker:
    """The broker and the door of one fleet."""

    def __init__(self, fleet: FleetDirectory, authority: Authority) -> None:
        """Take the fleet, and where to get its authority from."""
        self._fleet = fleet
        self._authority = authority
        self._directory = fleet.broker

    @property
    def config_files(self) -> tuple[Path, Path]:
        """Configuration of the broker and of the door."""
        return self._directory / files.CONFIG, self._directory / files.DOOR_CONFIG

    def sync(self, store: Store, now: datetime) -> Synced:
        """Let the files say what the store says.

        Raises:
            FleetError: the disk or the store refuses, or the reload command fails.
            SigningKeyError: something has to be signed, and the authority's key cannot be used.
        """
        directory = self._directory
        try:
            for name in (directory, directory / files.DATA, directory / files.REVOKED):
                name.mkdir(exist_ok=True, mode=0o700)
            with locked(directory / _LOCK):
                clear_partial(directory)
                lasting = self._write_lasting(store, now)
                passing = self._write_passing(store, now)
        except OSError as error:
            raise FleetError(
                f"{error.filename or directory}: {error.strerror}", path=str(directory)
            ) from error
        is_running = self.is_running() or self._pid(files.DOOR_PID, files.DOOR_CONFIG) is not None
        reload: Reload = self._reload() if passing or lasting else "unneeded"
        return Synced((*lasting, *passing), reload, bool(lasting) and is_running)

    def is_running(self) -> bool:
        """Whether this fleet's broker runs on this machine."""
        return self._pid(files.PID, files.CONFIG) is not None

    def disconnect(self, device: str, now: datetime) -> None:
        """Put a device off the broker, and drop what waits for it there.

        It is done by taking its session over, with a certificate of its name that lives for minutes.

        Raises:
            LinkError: the broker cannot be reached.
            SigningKeyError: the authority's key cannot be used.
        """
        key = new_key()
        request = CertificateRequest(key.public_key(), key_digest(key.public_key()))
        self._take_over(
            key, self._authority().issue_device(request, self._fleet.name, device, now, _TAKEOVER_LIFE)
        )

    def disconnect_home_assistant(self, now: datetime) -> None:
        """Put whoever is there as Home Assistant off the broker, as :meth:`disconnect` does with a device.

        Raises:
            LinkError: the broker cannot be reached.
            SigningKeyError: the authority's key cannot be used.
        """
        key = new_key()
        name = files.HOME_ASSISTANT
        self._take_over(key, self._authority().issue_client(key.public_key(), name, now, _TAKEOVER_LIFE))

    def _take_over(self, key: EllipticCurvePrivateKey, certificate: IssuedCertificate) -> None:
        with tempfile.TemporaryDirectory(prefix="edgeslm-takeover-") as name:
            directory = Path(name)
            replace_file(directory / "key", key_pem(key), mode=0o600)
            replace_file(directory / "crt", certificate.pem.encode())
            config = BrokerConfig(
                host=self._fleet.config.broker.host,
                port=self._fleet.config.broker.port,
                session_expiry_s=0,
                ca_file=self._fleet.authority_certificate,
                cert_file=directory / "crt",
                key_file=directory / "key",
            )
            _connect_once(config, f"edgeslm-takeover-{secrets.token_hex(6)}")

    def forget(self, device: str) -> None:
        """Clear what the broker keeps of a device that is not there any more; Home Assistant forgets it with that.

        Raises:
            LinkError: the broker cannot be reached.
        """
        kept = topics.retained_topics(self._fleet.name, device)
        shown = topics.discovery_topic(self._fleet.name, device)
        messages = [Message(topic, b"", retain=True) for topic in (*kept, shown)]
        _connect_once(self._fleet.operator_config(), f"edgeslm-fleet-{secrets.token_hex(6)}", messages)

    # --- files --------------------------------------------------------------------------------------------

    def _write_lasting(self, store: Store, now: datetime) -> list[str]:
        """What is read once, at the start."""
        settings, changed = self._fleet.config.broker, self._renew_certificates(now)
        absolute, first_list = self._directory.resolve(), f"{self._name_hash()}.r0"
        with store.read() as session:
            grants = granted(session, self._fleet.config)
        texts = {
            files.AUTHORITY: self._fleet.authority_pem(),
            files.OPERATOR_CERTIFICATE: read_file(self._fleet.operator_certificate).decode(
                "ascii", "replace"
            ),
            files.ACCESS: files.access_text(self._fleet.name, grants),
            files.CONFIG: files.config_text(absolute, settings, first_list=first_list),
            files.DOOR_ACCESS: files.door_access_text(),
            files.DOOR_CONFIG: files.door_config_text(absolute, self._fleet.name, settings),
        }
        return changed + [name for name, text in texts.items() if self._write(name, text)]

    def _write_passing(self, store: Store, now: datetime) -> list[str]:
        """What changes with claims and revocations."""
        with store.write() as session:
            revoked = self._revocation_list(session, now)
            claims = usable_logins(session, now)
        changed = []
        if self._write(files.PASSWORDS, files.password_text(self._fleet.name, claims)):
            changed.append(files.PASSWORDS)
        folder, prefix = self._directory / files.REVOKED, f"{self._name_hash()}.r"
        count = len(list(folder.glob(f"{prefix}*")))
        # OpenSSL looks for the number after the last that it found, so lists are added, never replaced.
        if count == 0 or read_file(folder / f"{prefix}{count - 1}") != revoked.encode():
            replace_file(folder / f"{prefix}{count}", revoked.encode(), mode=0o600)
            changed.append(files.REVOKED)
        return changed

    def _write(self, name: str, text: str) -> bool:
        path = self._directory / name
        if path.exists() and read_file(path) == text.encode():
            return False
        replace_file(path, text.encode(), mode=0o600)
        return True

    def _renew_certificates(self, now: datetime) -> list[str]:
        """Make those of broker and door where they are missing, of other hosts, or in the last third of their life."""
        hosts, changed = files.broker_hosts(self._fleet.config.broker), []
        for certificate, key_file, names in (
            (files.CERTIFICATE, files.KEY, hosts),
            (files.DOOR_CERTIFICATE, files.DOOR_KEY, []),
        ):
            paths = self._directory / certificate, self._directory / key_file
            with contextlib.suppress(FleetError):
                if is_current(read_file(paths[0]), read_file(paths[1]), names, now):
                    continue
            authority, key = self._authority(), new_key()
            public = key.public_key()
            issued = (
                authority.issue_broker(public, names, now)
                if names
                else authority.issue_client(public, files.DOOR, now)
            )
            replace_file(paths[1], key_pem(key), mode=0o600)
            replace_file(paths[0], (issued.pem + authority.certificate_pem).encode())
            changed += [certificate, key_file]
        return changed

    def _name_hash(self) -> str:
        return name_hash(read_file(self._fleet.authority_certificate))

    def _revocation_list(self, session: Session, now: datetime) -> str:
        """The list of what is revoked and has not run out: signed anew only when that is another set."""
        rows: Sequence[CertificateRow] = session.scalars(
            select(CertificateRow)
            .where(CertificateRow.revoked_at.is_not(None), CertificateRow.not_after > now)
            .order_by(CertificateRow.serial)
        ).all()
        revoked = [Revoked(row.serial, row.revoked_at) for row in rows if row.revoked_at is not None]
        revoked += revoked_identities(session, now)
        digest = hashlib.sha256("\n".join(entry.serial for entry in revoked).encode()).hexdigest()
        fact = session.get(FactRow, _REVOKED_FACT)
        if fact is not None and fact.value["serials_sha256"] == digest:
            return str(fact.value["pem"])
        previous = None if fact is None else datetime.fromisoformat(fact.value["at"])
        pem, at = self._authority().revocation_list(revoked, previous=previous, now=now)
        session.merge(
            FactRow(key=_REVOKED_FACT, value={"serials_sha256": digest, "pem": pem, "at": at.isoformat()})
        )
        return pem

    # --- processes ----------------------------------------------------------------------------------------

    def _reload(self) -> Reload:
        """Let the door read its passwords again."""
        command = self._fleet.config.broker.reload_command
        if command:
            _run_reload(command)
            return "done"
        pid = self._pid(files.DOOR_PID, files.DOOR_CONFIG)
        if pid is None:
            return "not running"
        try:
            os.kill(pid, signal.SIGHUP)
        except PermissionError:
            return "refused"
        except ProcessLookupError:
            return "not running"
        return "done"

    def _pid(self, pid_file: str, config_file: str) -> int | None:
        """The mosquitto that reads that configuration; ``None`` if none runs on this machine."""
        try:
            pid = int(read_file(self._directory / pid_file))
            arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except (FleetError, ValueError, OSError):
            return None
        # After a crash the number may be another program's.
        return pid if os.fsencode((self._directory / config_file).resolve()) in arguments else None


def _run_reload(command: Sequence[str]) -> None:
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_RELOAD_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise FleetError(f"the door cannot be reloaded by '{command[0]}': {error}") from error
    if done.returncode != 0:
        text = done.stderr.decode("utf-8", "replace").strip()[-300:]
        raise FleetError(f"the door cannot be reloaded: '{command[0]}' ended with {done.returncode}: {text}")


class _Visit:
    """Notes what happens on a link."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.is_connected = False
        self.confirmed: set[int] = set()
        self.reason = "no answer"

    def on_message(self, message: Message) -> None:
        message.acknowledge()

    def on_connected(self, *, session_present: bool) -> None:
        del session_present
        with self.changed:
            self.is_connected = True
            self.changed.notify_all()

    def on_disconnected(self, reason: str) -> None:
        self.reason = reason

    def on_published(self, token: int) -> None:
        with self.changed:
            self.confirmed.add(token)
            self.changed.notify_all()

    def wait(self, is_met: Callable[[], bool]) -> bool:
        with self.changed:
            return self.changed.wait_for(is_met, _VISIT_TIMEOUT_S)


def _connect_once(config: BrokerConfig, client_id: str, messages: Sequence[Message] = ()) -> None:
    """Connect, publish `messages`, and leave."""
    visit, link = _Visit(), MqttLink(config, client_id)
    link.start(visit, [])
    try:
        if not visit.wait(lambda: visit.is_connected):
            raise LinkError(f"the broker at {config.host}:{config.port} cannot be reached: {visit.reason}")
        tokens = {link.publish(message) for message in messages}
        if not visit.wait(lambda: tokens <= visit.confirmed):
            raise LinkError(f"the broker at {config.host}:{config.port} does not confirm: {visit.reason}")
    finally:
        link.stop()
