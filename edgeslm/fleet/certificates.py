"""Devices' certificates: making them, renewing them, and changing the name in them.

What always holds: a certificate is in the store before it leaves the fleet; a renewal is for the key that the device
joined with, so whoever asks for it, only that key's holder can use it; a device that asks too early gets the
certificate that it has, or should have.

Functions take a session of the store and commit nothing themselves. What else follows from a message is an
:class:`Outcome`, to be carried out after the transaction.

Left to others: who may join (:mod:`edgeslm.fleet.enrolment`), and carrying messages (:mod:`edgeslm.fleet.service`).
"""

from __future__ import annotations

import base64
import hashlib
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from edgeslm import codec, topics
from edgeslm.errors import CodecError, EdgeslmError
from edgeslm.fleet.ca import CertificateAuthority, CertificateRequest, certified_key, vouched_root
from edgeslm.fleet.registry import device_row, note_event, note_fault, note_machine
from edgeslm.fleet.store.models import CertificateRow, ClaimRow, DeviceRow, EnrolmentRow
from edgeslm.fleet.store.rollouts import DesiredRow
from edgeslm.schema.enrol import CertificateReply, IdentityReport
from edgeslm.schema.fleet import FleetConfig

_LOG = logging.getLogger(__name__)

_EARLIEST_RENEWAL = 0.5
"""Share of a certificate's life before which the fleet gives no new one, whatever the device's clock says."""
_MAX_REPORT_BYTES = 32_768


@dataclass(frozen=True)
class Outcome:
    """What follows from a message.

    Attributes:
        reply: body to publish, where there is one.
        topic: where to.
        hook_input: the hook has to be asked with this; :func:`settle` takes its answer.
        claim: that the message came under.
        broker_changed: the broker's files are to be brought up to date.
        disconnect: device whose session is another key's.
        forget: topics whose retained messages are of nobody any more.
    """

    reply: bytes | None = None
    topic: str | None = None
    hook_input: dict[str, Any] | None = None
    claim: str | None = None
    broker_changed: bool = False
    disconnect: str | None = None
    forget: tuple[str, ...] = ()


@dataclass(frozen=True)
class Issuer:
    """What it takes to answer.

    Attributes:
        config: settings of the fleet.
        authority: signs.
        trust_root: gives the root of the release repository that devices begin with, if there is one.
    """

    config: FleetConfig
    authority: CertificateAuthority
    trust_root: Callable[[], bytes | None] = lambda: None

    @property
    def life(self) -> timedelta:
        """Of a device's certificate."""
        return timedelta(days=self.config.certificate_days)


def certify(
    session: Session, issuer: Issuer, device: DeviceRow, request: CertificateRequest, name: str, now: datetime
) -> CertificateRow:
    """Make a certificate for a device under `name`, and keep it.

    Raises:
        FleetSetupError: the name is too long for a certificate.
    """
    issued = issuer.authority.issue_device(
        request, issuer.config.name, name, now, issuer.life, root_sha256=_digest(_root(issuer))
    )
    row = CertificateRow(
        name=name,
        serial=issued.serial,
        key_sha256=request.key_sha256,
        pem=issued.pem,
        not_before=issued.not_before,
        not_after=issued.not_after,
    )
    device.certificates.append(row)
    session.flush()
    return row


def carry_on_renaming(session: Session, issuer: Issuer, now: datetime) -> list[Outcome]:
    """Certificates for devices that operators renamed since the last call."""
    rows = session.scalars(select(DeviceRow).where(DeviceRow.rename_to.is_not(None))).all()
    return [
        _hand_over(session, issuer, row, None, None, now)
        for row in rows
        if _newest(row, row.rename_to, now) is None
    ]


def take_report(
    session: Session, issuer: Issuer, name: str, payload: bytes, now: datetime, *, is_retained: bool
) -> Outcome:
    """A device says which certificate it uses, and on which machine.

    Args:
        name: by its topic, which the broker lets that device alone write.
        is_retained: it said so at some time before.
    """
    try:
        report = codec.decode(IdentityReport, payload, max_bytes=_MAX_REPORT_BYTES)
    except CodecError as error:
        note_fault(session, name, "bad-report", f"a report of its identity is refused: {error}", now)
        return Outcome()
    used = session.scalars(select(CertificateRow).where(CertificateRow.serial == report.serial)).one_or_none()
    if used is None or used.name != name:
        return _take_strange_report(session, issuer, name, report, now)
    device = used.device
    if used.revoked_at is not None or device.standing != "active":
        return Outcome() if is_retained else Outcome(broker_changed=True, disconnect=name)
    outcome = Outcome()
    if name == device.rename_to:
        outcome = _finish_rename(session, issuer, device, used, now)
    if not is_retained:
        device.last_seen_at = now
    device.first_seen_at = device.first_seen_at or now
    device.agent = report.agent
    note_machine(session, device, report.machine, now)
    if _finish_enrolment(session, device):
        outcome = replace(outcome, broker_changed=True)
    root = _root(issuer) if report.has_root is False else None
    if report.renew or device.rename_to is not None or root is not None:
        renewed = _hand_over(session, issuer, device, used, root, now)
        outcome = replace(outcome, reply=renewed.reply, topic=renewed.topic)
    return outcome


def take_presence(session: Session, name: str, state: str, now: datetime, *, is_retained: bool) -> None:
    """A device came, or went."""
    device = device_row(session, name)
    if device is None or device.standing != "active":
        return
    device.presence = state
    if not is_retained:
        device.last_seen_at = now


# --- inside -------------------------------------------------------------------------------------------------


def _hand_over(
    session: Session,
    issuer: Issuer,
    device: DeviceRow,
    used: CertificateRow | None,
    root: bytes | None,
    now: datetime,
) -> Outcome:
    """Give a device its next certificate, under its next name; nothing, while the one in use serves.

    Args:
        used: the certificate in use, as far as that is known.
        root: that the device lacks. Its certificate has to vouch for it: one that does not is replaced early.
    """
    name = device.rename_to or device.name
    certificate = _newest(device, name, now)
    is_vouched = root is None or (certificate is not None and vouched_root(certificate.pem) == _digest(root))
    if certificate is None or not is_vouched or _age(certificate, now) > _EARLIEST_RENEWAL:
        certificate = certify(session, issuer, device, certified_key(device.certificates[-1].pem), name, now)
        note_event(
            session,
            device.name,
            "renewed",
            f"certificate until {certificate.not_after:%Y-%m-%d}",
            now,
            device=device,
        )
    elif certificate is used and root is None:
        return Outcome()
    carried = None if root is None else base64.b64encode(root).decode()
    return Outcome(
        reply=codec.encode(CertificateReply(certificate=certificate.pem, trust_root=carried)),
        topic=topics.device_topic(issuer.config.name, device.name, "certificate"),
    )


def _root(issuer: Issuer) -> bytes | None:
    """The root that devices begin with; ``None`` where it cannot be read, for a certificate is due all the same."""
    try:
        return issuer.trust_root()
    except EdgeslmError as error:
        _LOG.warning("a certificate is made that vouches for no release repository: %s", error)
        return None


def _digest(root: bytes | None) -> str | None:
    return None if root is None else hashlib.sha256(root).hexdigest()


def _newest(device: DeviceRow, name: str | None, now: datetime) -> CertificateRow | None:
    """The newest certificate of a device's key under `name` that still serves."""
    for row in reversed(device.certificates):
        if (
            (row.name, row.key_sha256) == (name, device.key_sha256)
            and row.revoked_at is None
            and row.not_after > now
        ):
            return row
    return None


def _age(certificate: CertificateRow, now: datetime) -> float:
    """Share of a certificate's life that is over."""
    return (now - certificate.not_before) / (certificate.not_after - certificate.not_before)


def _finish_rename(
    session: Session, issuer: Issuer, device: DeviceRow, used: CertificateRow, now: datetime
) -> Outcome:
    """A device reports under its new name for the first time."""
    former = device.name
    device.name, device.rename_to = used.name, None
    for certificate in device.certificates:
        if certificate.name == former and certificate.revoked_at is None:
            certificate.revoked_at, certificate.reason = now, f"renamed to {device.name}"
    note_event(session, device.name, "renamed", f"was '{former}' before", now, device=device)
    desired = session.get(DesiredRow, device.id)
    if desired is not None:
        # It is for the former name, so the device does not follow it: whoever renews assignments finds it due.
        desired.expires_at = now
    return Outcome(broker_changed=True, forget=topics.retained_topics(issuer.config.name, former))


def _finish_enrolment(session: Session, device: DeviceRow) -> bool:
    """Settle the claim under which a device's key was certified; whether there was one."""
    rows = session.scalars(
        select(EnrolmentRow).where(
            EnrolmentRow.key_sha256 == device.key_sha256, EnrolmentRow.state == "issued"
        )
    ).all()
    for row in rows:
        row.state = "done"
        session.get_one(ClaimRow, row.claim).state = "used"
    return bool(rows)


def _take_strange_report(
    session: Session, issuer: Issuer, name: str, report: IdentityReport, now: datetime
) -> Outcome:
    """A report of a certificate that the store does not know, after a restored backup for example."""
    note_fault(session, name, "unknown-certificate", f"certificate {report.serial} is not in the store", now)
    device = device_row(session, name)
    if device is None or device.standing != "active" or not report.renew:
        return Outcome()
    return _hand_over(session, issuer, device, None, None, now)
