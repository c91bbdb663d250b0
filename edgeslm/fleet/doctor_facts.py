"""Gathers what :mod:`edgeslm.fleet.doctor` and its neighbour judge: files, keys, certificates, store, broker.

What always holds: nothing is changed, but that opening a store of an older release brings that up to date, as every
command does; no key is opened that has a passphrase.
"""

from __future__ import annotations

import secrets
import shutil
import stat
import time
from collections.abc import Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from sqlalchemy import func, select, text
from sqlalchemy.orm import Session

from edgeslm import codec, topics
from edgeslm.errors import (
    CertificateError,
    CodecError,
    ConfigError,
    FleetError,
    LinkError,
    SigningKeyError,
    TopicError,
)
from edgeslm.fleet import broker_files as files
from edgeslm.fleet import doctor
from edgeslm.fleet.assignments import reported_key
from edgeslm.fleet.broker_line import BrokerLine
from edgeslm.fleet.ca import is_encrypted, name_hash
from edgeslm.fleet.claims import usable_claims
from edgeslm.fleet.directory import DATABASE, FleetDirectory, read_file
from edgeslm.fleet.doctor_devices import AssignmentFact
from edgeslm.fleet.grants import granted
from edgeslm.fleet.metrics.store import MetricsStore, metrics_url
from edgeslm.fleet.release_files import is_repository
from edgeslm.fleet.release_setup import ASSIGNMENTS, ONLINE_ROLES
from edgeslm.fleet.releases import ReleaseRepository
from edgeslm.fleet.signing import load_public_key
from edgeslm.fleet.store.database import HEAD, Store
from edgeslm.fleet.store.metrics import LATEST
from edgeslm.fleet.store.models import CertificateRow, DeviceRow, EventRow, FactRow
from edgeslm.fleet.store.rollouts import DesiredRow
from edgeslm.link.port import Message
from edgeslm.schema.message import Availability, DeviceState
from edgeslm.trust.document import ROLE_PREFIX

_QUIET_S = 0.5
_LATELY = timedelta(hours=1)
_PRESENCE_TIMEOUT_S = 10.0
_FAILED_STATES = {"rejected", "rolling_back", "rolled_back", "safe_mode"}


def file_facts(
    fleet: FleetDirectory,
) -> tuple[doctor.FileFact, list[doctor.FileFact], doctor.FileFact | None]:
    """The fleet's directory, the private keys in it, and the store if that is a file in it."""
    keys = [_file(fleet.authority_key), _file(fleet.operator_key)]
    store = _file(fleet.root / DATABASE) if fleet.config.database is None else None
    return _file(fleet.root), keys, store


def _file(path: Path) -> doctor.FileFact:
    try:
        return doctor.FileFact(str(path), stat.S_IMODE(path.stat().st_mode))
    except OSError:
        return doctor.FileFact(str(path), None)


def free_mb(fleet: FleetDirectory) -> int:
    """Room on the disk of the fleet's directory.

    Raises:
        FleetError: that cannot be told.
    """
    try:
        return shutil.disk_usage(fleet.root).free // 2**20
    except OSError as error:
        raise FleetError(f"{fleet.root}: {error.strerror}", path=str(fleet.root)) from error


def certificate_facts(fleet: FleetDirectory) -> list[doctor.CertificateFact]:
    """The fleet's own certificates.

    Raises:
        FleetError: one cannot be read.
        CertificateError: one is none.
    """
    paths = {
        "authority": fleet.authority_certificate,
        "operator": fleet.operator_certificate,
        "broker": fleet.broker / files.CERTIFICATE,
        "door": fleet.broker / files.DOOR_CERTIFICATE,
    }
    found = []
    for name, path in paths.items():
        try:
            certificate = x509.load_pem_x509_certificate(read_file(path))
        except ValueError as error:
            raise CertificateError(f"{path} is no certificate", role=name) from error
        found.append(doctor.CertificateFact(name, certificate.not_valid_after_utc))
    return found


# --- the store ----------------------------------------------------------------------------------------------


def need_store(fleet: FleetDirectory) -> None:
    """Make sure that the store is there: opening one that is not would make a new one.

    Raises:
        FleetError: its file is missing.
    """
    path = fleet.root / DATABASE
    if fleet.config.database is None and not path.exists():
        raise FleetError(
            f"{path} is missing", path=str(path), hint="Bring it back from a backup: edgeslm fleet restore"
        )


def has_metrics(fleet: FleetDirectory) -> bool:
    """Whether figures were ever collected: asking for them where there are none would make a file for them."""
    url = metrics_url(fleet.root, fleet.config.database)
    return not url.startswith("sqlite:///") or Path(url.removeprefix("sqlite:///")).exists()


def store_fact(store: Store, fleet: FleetDirectory) -> doctor.StoreFact:
    """The store, after it looked at itself.

    Raises:
        FleetError: it cannot be read.
    """
    is_file = fleet.config.database is None
    damage = None
    with store.read() as session:
        count = session.scalar(select(func.count()).select_from(DeviceRow)) or 0
        if is_file:
            said = session.execute(text("PRAGMA quick_check(1)")).scalar_one()
            damage = None if said == "ok" else str(said)
    where = str(fleet.root / DATABASE) if is_file else "the database that fleet.yaml names"
    return doctor.StoreFact(where, HEAD, damage, count)


def newest_record(session: Session) -> datetime | None:
    """When the latest thing on record happened."""
    return session.scalar(select(func.max(EventRow.at)))


def assignment_facts(session: Session) -> list[AssignmentFact]:
    """What devices in use have been assigned, and make of it."""
    rows = session.execute(
        select(
            DeviceRow.id,
            DeviceRow.name,
            DesiredRow.seq,
            DesiredRow.published_seq,
            DesiredRow.issued_at,
            DesiredRow.expires_at,
            DesiredRow.renews,
        )
        .join(DesiredRow, DesiredRow.device_id == DeviceRow.id)
        .where(DeviceRow.standing == "active")
        .order_by(DeviceRow.name)
    ).all()
    prefix = reported_key(0).rpartition("/")[0] + "/"
    query = select(FactRow.key, FactRow.value).where(FactRow.key.startswith(prefix))
    reported: dict[str, Mapping[str, Any]] = {row[0]: row[1] for row in session.execute(query)}
    return [
        AssignmentFact(
            device=name,
            seq=seq,
            published_seq=published,
            issued_at=issued_at,
            expires_at=expires_at,
            renews=renews,
            followed=_followed(reported.get(reported_key(device_id))),
            failed=_failed(reported.get(reported_key(device_id)), seq),
        )
        for device_id, name, seq, published, issued_at, expires_at, renews in rows
    ]


def _followed(reported: Mapping[str, Any] | None) -> int | None:
    return None if reported is None else int(reported["assignment"])


def _failed(reported: Mapping[str, Any] | None, seq: int) -> str | None:
    """What of the present assignment did not work on a device."""
    for model in reported["models"] if reported is not None else ():
        change = model.get("change")
        if change is None or change["state"] not in _FAILED_STATES or change["assignment"] != seq:
            continue
        fault = change.get("fault")
        cause = f", {fault['cause']}" if fault is not None else ""
        return f"{model['name']} {change['version']} {change['state'].replace('_', ' ')}{cause}"
    return None


def ahead_of_us(metrics: MetricsStore, names: Mapping[int, str], now: datetime) -> dict[str, float]:
    """Seconds that the clocks of devices which reported lately were ahead of this machine's.

    Raises:
        FleetError: the database refuses.
    """
    since_ms = int((now - _LATELY).timestamp() * 1000)
    query = select(LATEST.c.device_id, LATEST.c.at_ms, LATEST.c.own_ms).where(LATEST.c.at_ms >= since_ms)
    found: dict[str, float] = {}
    for device_id, at_ms, own_ms in metrics.rows(query):
        if device_id in names:
            # A clock that was never set says nothing about ours; it is far behind.
            ahead_s = max(0.0, (own_ms - at_ms) / 1000)
            found[names[device_id]] = max(found.get(names[device_id], 0.0), ahead_s)
    return found


# --- releases -----------------------------------------------------------------------------------------------


def release_facts(
    fleet: FleetDirectory, keys: Path
) -> tuple[list[doctor.RoleFact], list[doctor.PendingFact]]:
    """The roles of the release repository with their keys, and what is pending; nothing without a repository.

    Raises:
        ReleaseRepositoryError: the repository cannot be read.
        MetadataError: a file of it is damaged.
    """
    if not is_repository(fleet.releases):
        return [], []
    repository = ReleaseRepository(fleet.releases)
    expiries = {one.role: one for one in repository.expiries()}
    here = _keys_here(keys)
    roles = []
    for role, facts in repository.role_keys().items():
        expiry = expiries.get(role)
        states = {here.get(keyid, "elsewhere") for keyid in facts.keyids}
        roles.append(
            doctor.RoleFact(
                role=ASSIGNMENTS if role.startswith(ROLE_PREFIX) else role,
                expires_at=expiry.expires_at if expiry is not None else None,
                due=expiry.due if expiry is not None else False,
                signs_alone=role in ONLINE_ROLES or role.startswith(ROLE_PREFIX),
                key="here" if "here" in states else "encrypted" if "encrypted" in states else "elsewhere",
            )
        )
    return roles, [doctor.PendingFact(one.role, one.missing) for one in repository.pending()]


def _keys_here(keys: Path) -> dict[str, Any]:
    """How each key in a directory lies there, by its id."""
    found: dict[str, Any] = {}
    for path in sorted(keys.glob("*.pem")):
        try:
            keyid = load_public_key(path.with_suffix(".pub")).keyid
            found[keyid] = "encrypted" if is_encrypted(read_file(path)) else "here"
        except (SigningKeyError, FleetError):  # none of ours, or unreadable: nothing can be signed with it
            continue
    return found


# --- the broker ---------------------------------------------------------------------------------------------


def broker_fact(
    fleet: FleetDirectory, store: Store, now: datetime
) -> tuple[doctor.BrokerFact, dict[str, DeviceState] | None]:
    """The broker and its files; and who is there as it has it, ``None`` if it cannot be asked."""
    presence: dict[str, DeviceState] | None = None
    error = None
    config = fleet.operator_config()
    client_id = f"edgeslm-doctor-{secrets.token_hex(6)}"
    try:
        with BrokerLine(config, client_id, [topics.fleet_filter(fleet.name, "availability")]) as line:
            presence = {}
            until_s = time.monotonic() + _PRESENCE_TIMEOUT_S
            while time.monotonic() < until_s and (messages := line.hear(_QUIET_S).messages):
                for message in messages:
                    _note_presence(presence, message)
    except (LinkError, ConfigError) as fault:
        error = fault.message
    fact = doctor.BrokerFact(
        where=f"{config.host}:{config.port}",
        error=error,
        changed=_changed_files(fleet, store, now),
        unlisted=_unlisted(fleet, store, now),
    )
    return fact, presence


def _note_presence(presence: dict[str, DeviceState], message: Message) -> None:
    try:
        topic = topics.parse(message.topic)
        if isinstance(topic, topics.DeviceTopic) and topic.channel == "availability" and message.payload:
            said = codec.decode(Availability, message.payload, max_bytes=1024)
            presence[topic.device] = said.state
    except (TopicError, CodecError):  # it says nothing, and that is what is noted
        return


def _changed_files(fleet: FleetDirectory, store: Store, now: datetime) -> tuple[str, ...]:
    """Files of the broker that say something else than they should."""
    absolute, settings = fleet.broker.resolve(), fleet.config.broker
    authority = read_file(fleet.authority_certificate)
    with store.read() as session:
        claims = [(row.claim, row.password_hash) for row in usable_claims(session, now)]
        grants = granted(session, fleet.config)
    wanted = {
        files.AUTHORITY: authority.decode("ascii", "replace"),
        files.OPERATOR_CERTIFICATE: read_file(fleet.operator_certificate).decode("ascii", "replace"),
        files.ACCESS: files.access_text(fleet.name, grants),
        files.CONFIG: files.config_text(absolute, settings, first_list=f"{name_hash(authority)}.r0"),
        files.DOOR_ACCESS: files.door_access_text(),
        files.DOOR_CONFIG: files.door_config_text(absolute, fleet.name, settings),
        files.PASSWORDS: files.password_text(fleet.name, claims),
    }
    return tuple(name for name, content in wanted.items() if not _says(fleet.broker / name, content))


def _says(path: Path, content: str) -> bool:
    try:
        return read_file(path) == content.encode()
    except FleetError:
        return False


def _unlisted(fleet: FleetDirectory, store: Store, now: datetime) -> int:
    """Revoked certificates that are not on the newest list."""
    with store.read() as session:
        query = select(CertificateRow.serial).where(
            CertificateRow.revoked_at.is_not(None), CertificateRow.not_after > now
        )
        revoked = {int(serial, 16) for serial in session.scalars(query)}
    lists = (fleet.broker / files.REVOKED).glob(f"{name_hash(read_file(fleet.authority_certificate))}.r*")
    numbered = [path for path in lists if path.suffix[2:].isdecimal()]
    try:
        newest = max(numbered, key=lambda path: int(path.suffix[2:]))
        listed = {entry.serial_number for entry in x509.load_pem_x509_crl(read_file(newest))}
    except (ValueError, FleetError):  # there is none, or it is none
        return len(revoked)
    return len(revoked - listed)
