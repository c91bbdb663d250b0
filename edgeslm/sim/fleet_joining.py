"""How simulated devices get their credentials: over the wire like real ones, or straight from the fleet's directory.

Over the wire is what :mod:`edgeslm.agent.enrolment` does, for many at once: each makes its key, asks under its claim
until it is answered, and shows its certificate to the broker. The sealed messages are the same.

What always holds: a key lies in a file of its owner's alone, and is not synced to the disk: what a power cut takes is
made anew.

Left to others: answering (:mod:`edgeslm.fleet.service`), and the network (:mod:`edgeslm.sim.fleet_loop`).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from sqlalchemy import select
from sqlalchemy.orm import Session

import edgeslm
from edgeslm import topics
from edgeslm.errors import (
    CertificateError,
    ClaimError,
    CodecError,
    DeviceStateError,
    IdentityError,
    UnknownDeviceError,
)
from edgeslm.fleet.ca import CertificateRequest, certified_key, key_digest, key_pem, new_key
from edgeslm.fleet.certificates import Issuer, certify
from edgeslm.fleet.claims import issue_claim
from edgeslm.fleet.registry import audit, device_row, retire_device
from edgeslm.fleet.store.models import DeviceRow, TagRow
from edgeslm.link.port import Message
from edgeslm.schema.enrol import Claim, EnrolReply, EnrolRequest
from edgeslm.sim.fleet_device import Credentials, SimulatedDevice
from edgeslm.sim.fleet_link import Endpoint
from edgeslm.trust.claim import broker_password, proof_key, seal, unseal

FIRST_RETRY_S: Final = 5.0
LONGEST_RETRY_S: Final = 30.0
CLAIM_LIFE: Final = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class Member:
    """A device that belongs to the fleet, with the file that holds its key and certificate."""

    credentials: Credentials
    file: Path


class Joining:
    """A device under its claim, until it has a certificate. Sans I/O but for its key file.

    Attributes:
        member: who it is from then on.
        rejected: why it gets none.
    """

    __slots__ = (
        "_body",
        "_claim",
        "_device",
        "_due_s",
        "_file",
        "_key",
        "_key_sha256",
        "_retry_s",
        "member",
        "rejected",
    )

    def __init__(self, device: SimulatedDevice, claim: Claim, file: Path) -> None:
        """Make the key and the request."""
        key = new_key()
        request = (
            x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
        )
        self._device, self._claim, self._file, self._key = device, claim, file, key
        self._key_sha256 = key_digest(key.public_key())
        self._body = seal(
            proof_key(claim.secret),
            "request",
            EnrolRequest(
                device=device.name,
                csr=request.public_bytes(Encoding.PEM).decode(),
                machine=device.machine(),
                agent=edgeslm.__version__,
            ),
        )
        self._due_s, self._retry_s = 0.0, FIRST_RETRY_S
        self.member: Member | None = None
        self.rejected: str | None = None

    @property
    def due_s(self) -> float:
        """When it asks again, in real seconds."""
        return self._due_s

    def endpoint(self, address: str, ca_file: Path) -> Endpoint:
        """Where it asks: the door, by password."""
        claim = self._claim
        user = topics.claim_user(claim.fleet, claim.claim)
        return Endpoint(
            host=claim.host,
            address=address,
            port=claim.port,
            client_id=user,
            user=user,
            password=broker_password(claim.secret),
            ca_file=ca_file,
        )

    def filters(self) -> tuple[str, ...]:
        """What it listens to."""
        return (topics.enrol_topic(self._claim.fleet, self._claim.claim, "reply"),)

    def ask(self, now_s: float) -> list[Message]:
        """Ask, and again later."""
        self._due_s, self._retry_s = now_s + self._retry_s, min(2 * self._retry_s, LONGEST_RETRY_S)
        return [Message(topics.enrol_topic(self._claim.fleet, self._claim.claim, "request"), self._body)]

    def take(self, payload: bytes) -> None:
        """What the fleet says.

        Raises:
            IdentityError: the key file cannot be written.
            CertificateError: the certificate is none of our key.
        """
        try:
            reply = unseal(proof_key(self._claim.secret), "reply", EnrolReply, payload)
        except (ClaimError, CodecError):
            return
        if reply.key_sha256 != self._key_sha256:
            return
        if reply.state == "rejected":
            self.rejected = reply.reason or "no reason given"
        elif reply.state == "issued" and reply.certificate is not None:
            self.member = _keep(self._file, self._key, reply.certificate)


def claims_for(
    session: Session, issuer: Issuer, devices: Sequence[SimulatedDevice], *, actor: str, now: datetime
) -> dict[str, Claim]:
    """A claim for each device, by its name.

    Raises:
        DeviceStateError: a device of that name is in use.
        FleetSetupError: a name is too long for a certificate.
    """
    _refuse_names_in_use(session, devices)
    return {
        device.name: issue_claim(
            session,
            issuer.config,
            issuer.authority.certificate_pem,
            device=device.name,
            profile=device.group.profile,
            replaces=False,
            life=CLAIM_LIFE,
            actor=actor,
            now=now,
        ).claim
        for device in devices
    }


def preset(
    session: Session,
    issuer: Issuer,
    devices: Sequence[SimulatedDevice],
    directory: Path,
    *,
    actor: str,
    now: datetime,
) -> dict[str, Member]:
    """Write devices into the store as if they had joined, with certificates of the fleet's authority.

    Raises:
        DeviceStateError: a device of that name is in use.
        IdentityError: a key file cannot be written.
        FleetSetupError: a name is too long for a certificate.
    """
    _refuse_names_in_use(session, devices)
    members = {}
    for device in devices:
        key = new_key()
        machine = device.machine()
        row = device_row(session, device.name)
        if row is None:
            row = DeviceRow(name=device.name, created_at=now, notes="", certificates=[])
            row.tags = [TagRow(tag=tag) for tag in device.group.tags]
            session.add(row)
        row.standing, row.key_sha256 = "active", key_digest(key.public_key())
        row.board, row.serial, row.agent = machine.board, machine.serial, edgeslm.__version__
        row.profile = device.group.profile
        request = CertificateRequest(key.public_key(), row.key_sha256)
        certificate = certify(session, issuer, row, request, device.name, now)
        members[device.name] = _keep(directory / f"{device.name}.pem", key, certificate.pem)
    audit(session, actor, "simulate", issuer.config.name, now, devices=len(members))
    return members


def kept_members(session: Session, directory: Path, devices: Iterable[SimulatedDevice]) -> dict[str, Member]:
    """The devices whose keys an earlier simulation left, and that the fleet still knows by them.

    Args:
        session: of the store.
        directory: where the files lie.
        devices: which ones.
    """
    found = {}
    for device in devices:
        row, file = device_row(session, device.name), directory / f"{device.name}.pem"
        if row is None or row.standing != "active":
            continue
        try:
            member = Member(_credentials(_certificate_in(file.read_text("ascii"))), file)
        except (OSError, ValueError, CertificateError):
            continue
        if member.credentials.key_sha256 == row.key_sha256:
            found[device.name] = member
    return found


def retire(session: Session, names: Iterable[str], *, actor: str, now: datetime) -> None:
    """Take simulated devices out of use; those that never joined are left out."""
    for name in names:
        try:
            retire_device(session, name, actor=actor, now=now)
        except UnknownDeviceError:
            continue


def _refuse_names_in_use(session: Session, devices: Sequence[SimulatedDevice]) -> None:
    """A simulated device must never take the place of a real one."""
    names = [device.name for device in devices]
    used = select(DeviceRow.name).where(DeviceRow.name.in_(names), DeviceRow.standing == "active")
    name = session.scalars(used.limit(1)).first()
    if name is not None:
        raise DeviceStateError(
            f"'{name}' is a device of this fleet already",
            name=name,
            state="active",
            hint="Call the group of the scenario something else, or retire the device: edgeslm fleet retire",
        )


def _keep(file: Path, key: ec.EllipticCurvePrivateKey, certificate_pem: str) -> Member:
    credentials = _credentials(certificate_pem)
    if credentials.key_sha256 != key_digest(key.public_key()):
        raise CertificateError("the certificate is of another key", role="certificate")
    try:
        file.unlink(missing_ok=True)
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(key_pem(key) + certificate_pem.encode())
    except OSError as error:
        raise IdentityError(f"{file}: {error.strerror}", path=str(file)) from error
    return Member(credentials, file)


def _certificate_in(text: str) -> str:
    """The certificate behind a key, in PEM."""
    begin = text.find("-----BEGIN CERTIFICATE-----")
    if begin < 0:
        raise ValueError("no certificate")
    return text[begin:]


def _credentials(certificate_pem: str) -> Credentials:
    request = certified_key(certificate_pem)
    serial = x509.load_pem_x509_certificate(certificate_pem.encode()).serial_number
    return Credentials(request.key_sha256, f"{serial:x}")
