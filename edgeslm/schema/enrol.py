"""Joining a fleet: the claim as a file, and the messages between a device and its fleet about its identity.

First contact (``enrol/<claim>/...``) is sealed: the broker carries it and can neither forge nor change it. What
follows (``identity``, ``certificate``) is safe by what it holds: a certificate is signed by the fleet's authority,
and of use to the holder of the device's key alone.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AwareDatetime, Field, StringConstraints

from edgeslm.schema.base import FileModel, Identifier, Sha256, WireModel

MAX_PEM_CHARS = 8_192
MAX_SEALED_CHARS = 65_536
MAX_TRUST_ROOT_CHARS = 49_152

ClaimId = Annotated[str, StringConstraints(pattern=r"^[0-9a-hjkmnp-tv-z]{6}$")]
"""Crockford's base 32 in lower case; a topic level, and no secret."""
ClaimSecret = Annotated[str, StringConstraints(pattern=r"^[0-9a-hjkmnp-tv-z]{16}$")]
"""80 random bits in the same alphabet."""
Host = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._:-]{1,255}$")]
"""A host name or an address, IPv6 without brackets."""
Port = Annotated[int, Field(ge=1, le=65_535)]
Pem = Annotated[str, StringConstraints(min_length=1, max_length=MAX_PEM_CHARS)]
CertificateSerial = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{1,40}$")]
Printable = Annotated[str, StringConstraints(pattern=r"^[ -~]{1,128}$")]


class Claim(FileModel):
    """``claim.json``: all that a device needs for first contact. It holds a secret.

    Attributes:
        claim: name of the claim, part of its topics.
        secret: what proves that one holds it.
        device: the name that the device gets; ``None`` leaves it to the device to propose one.
        profile: what the device is set up to do.
        host: of the broker, as its certificate names it.
        port: of the broker's listener for claims.
        ca: certificate of the fleet's authority (PEM), by which broker and certificates are recognised.
        expires_at: when it is of no use any more, for whoever reads it; ``None`` where the claim was typed.
    """

    v: Literal[1] = 1
    fleet: Identifier
    claim: ClaimId
    secret: ClaimSecret
    device: Identifier | None = None
    profile: Identifier | None = None
    host: Host
    port: Port
    ca: Pem
    expires_at: AwareDatetime | None = None


class FleetFacts(FileModel):
    """``fleet.json`` on a device: the fleet that it belongs to, and its broker's listener for devices.

    Attributes:
        claim: name of the claim with which it joined.
    """

    fleet: Identifier
    claim: ClaimId
    host: Host
    port: Port


class Machine(WireModel):
    """What tells one machine from another that holds the same key.

    Attributes:
        serial: of the hardware, where it has one.
        machine_id: of the installation, hashed; a copied card has the same.
        boot_id: random, new at every boot: two that take turns are two machines.
        boots: boots counted on this card, 0 for unknown; it goes back when an old image of the card is restored.
    """

    board: Identifier | None = None
    serial: Printable | None = None
    machine_id: Sha256 | None = None
    boot_id: Printable | None = None
    boots: Annotated[int, Field(ge=0, le=2**53)] = 0


class Sealed(WireModel):
    """A message of first contact.

    Attributes:
        body: the message as JSON text; the seal is over exactly these characters.
        mac: HMAC-SHA256 under the claim's proof key, in hexadecimal.
    """

    v: Literal[1] = 1
    body: Annotated[str, StringConstraints(max_length=MAX_SEALED_CHARS)]
    mac: Sha256


class EnrolRequest(WireModel):
    """A device asks for its first certificate; it asks again until it is answered.

    Attributes:
        device: the name that it would like.
        csr: PKCS #10 request (PEM), signed by the key that the device made.
        agent: version of edgeslm on it.
    """

    v: Literal[1] = 1
    device: Identifier | None = None
    csr: Pem
    machine: Machine
    agent: Printable


class EnrolReply(WireModel):
    """What the fleet says to a request; the same request always gets the same certificate.

    Attributes:
        key_sha256: digest of the public key that the answer is for.
        reason: why it waits or is rejected.
        device: the name that the device has from now on.
        host: of the broker for devices; ``port`` is its listener.
        trust_root: root of the release repository that the device begins with, in base 64.
    """

    v: Literal[1] = 1
    state: Literal["pending", "issued", "rejected"]
    key_sha256: Sha256
    reason: Annotated[str, StringConstraints(max_length=500)] | None = None
    device: Identifier | None = None
    certificate: Pem | None = None
    host: Host | None = None
    port: Port | None = None
    trust_root: Annotated[str, StringConstraints(max_length=MAX_TRUST_ROOT_CHARS)] | None = None


class IdentityReport(WireModel):
    """What a device says of its identity after connecting, retained.

    Attributes:
        serial: of the certificate in use.
        renew: the next certificate is due. It will be for the key that the fleet knows, so nobody else could use
            it: no request has to be signed for it.
        has_root: it was given a root of the release repository; ``None`` from an agent that does not tell.
    """

    v: Literal[1] = 1
    serial: CertificateSerial
    machine: Machine
    agent: Printable
    renew: bool = False
    has_root: bool | None = None


class CertificateReply(WireModel):
    """The next certificate of a device; a new name in it renames the device.

    Attributes:
        trust_root: root of the release repository, in base 64, for a device that joined before there was one. It
            counts only where the certificate names its digest.
    """

    v: Literal[1] = 1
    certificate: Pem
    trust_root: Annotated[str, StringConstraints(max_length=MAX_TRUST_ROOT_CHARS)] | None = None
