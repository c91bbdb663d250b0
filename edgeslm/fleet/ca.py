"""The fleet's certificate authority.

What always holds:

- A device's certificate is for clients alone: its holder cannot stand in for the broker.
- Its name is ``<fleet>/<device>``, which the broker uses as user name, so the access list follows from it.
- The authority's and the broker's certificates are valid from 1970 on: a board whose clock is not set must be able
  to check them. Devices' certificates begin when they are made; the broker, which knows the time, checks them.
- A revocation list is as old as it has to be to be newer than the one before it: OpenSSL takes the newer of two, to
  the second. It does not run out before the authority does, since a broker with an expired list lets nobody in.

Keys are P-256 (FIPS 186-5): every TLS library and every secure element knows it. Form: RFC 5280, strictly, as
Python 3.13 demands.

Left to others: where keys lie (:mod:`edgeslm.fleet.directory`) and who gets a certificate
(:mod:`edgeslm.fleet.enrolment`).
"""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from edgeslm import topics
from edgeslm.errors import CertificateError, FleetSetupError, SigningKeyError
from edgeslm.trust.certificate import root_name, root_named

MAX_COMMON_NAME = 64
"""RFC 5280, appendix A.1: ub-common-name."""
MAX_REQUEST_BYTES = 8_192
AUTHORITY_LIFE = timedelta(days=365 * 20)
BROKER_LIFE = timedelta(days=365 * 5)
"""Long, since a broker that is to read a new certificate has to be started anew."""
_BACKDATE = timedelta(hours=1)
"""How far apart the clocks of fleet and broker may be."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class CertificateRequest:
    """A request whose signature was checked."""

    key: ec.EllipticCurvePublicKey
    key_sha256: str


@dataclass(frozen=True)
class IssuedCertificate:
    """A new certificate."""

    pem: str
    serial: str
    not_before: datetime
    not_after: datetime


@dataclass(frozen=True)
class Revoked:
    """One entry of a revocation list."""

    serial: str
    at: datetime


def read_request(pem: str) -> CertificateRequest:
    """The key that a PKCS #10 request is for.

    Raises:
        CertificateError: too long, no request, another kind of key than P-256, or not signed by that key.
    """
    if len(pem) > MAX_REQUEST_BYTES:
        raise CertificateError(
            f"a request of {len(pem)} bytes, at most {MAX_REQUEST_BYTES} are read", role="request"
        )
    try:
        request = x509.load_pem_x509_csr(pem.encode())
        key, is_signed = request.public_key(), request.is_signature_valid
    except (ValueError, TypeError, UnsupportedAlgorithm, InvalidSignature) as error:
        raise CertificateError(f"no request for a certificate: {str(error)[:200]}", role="request") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise CertificateError("the key of a request is not P-256", role="request", expected="P-256")
    if not is_signed:
        raise CertificateError("a request is not signed by its own key", role="request")
    return CertificateRequest(key, key_digest(key))


def certified_key(certificate_pem: str) -> CertificateRequest:
    """The key of a certificate that the authority made before: a request for the next one.

    Raises:
        CertificateError: it is none.
    """
    try:
        key = x509.load_pem_x509_certificate(certificate_pem.encode()).public_key()
    except ValueError as error:
        raise CertificateError(f"no certificate: {error}", role="certificate") from error
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise CertificateError("the key of a certificate is not P-256", role="certificate")
    return CertificateRequest(key, key_digest(key))


def key_digest(key: ec.EllipticCurvePublicKey) -> str:
    """SHA-256 of a public key (DER, SubjectPublicKeyInfo): what a device's key is called."""
    return hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def common_name(fleet: str, device: str) -> str:
    """The common name of a device's certificate.

    Raises:
        FleetSetupError: fleet and device together are too long for a certificate.
        TopicError: one of them is no identifier, or reserved.
    """
    name = topics.device_user(fleet, device)
    if len(name) > MAX_COMMON_NAME:
        raise FleetSetupError(
            f"'{name}' has {len(name)} characters, a certificate holds {MAX_COMMON_NAME}",
            hint=f"A device of fleet '{fleet}' may have {MAX_COMMON_NAME - 1 - len(fleet)}",
        )
    return name


def new_key() -> ec.EllipticCurvePrivateKey:
    """A new private key."""
    return ec.generate_private_key(ec.SECP256R1())


def key_pem(key: ec.EllipticCurvePrivateKey, passphrase: bytes | None = None) -> bytes:
    """`key` as PEM (PKCS #8), encrypted if a passphrase is given."""
    encryption = NoEncryption() if passphrase is None else BestAvailableEncryption(passphrase)
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)


def read_key(pem: bytes, passphrase: bytes | None, path: str) -> ec.EllipticCurvePrivateKey:
    """The private key in `pem`.

    Raises:
        SigningKeyError: a passphrase is missing or wrong, or it is no such key; `path` is blamed.
    """
    try:
        key = load_pem_private_key(pem, passphrase)
    except TypeError as error:
        asked = "needs a passphrase" if passphrase is None else "is not encrypted, yet a passphrase is given"
        raise SigningKeyError(f"{path} {asked}", path=path) from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise SigningKeyError(f"{path}: a wrong passphrase, or no private key", path=path) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise SigningKeyError(f"{path} is no P-256 key", path=path)
    return key


def is_encrypted(pem: bytes) -> bool:
    """Whether reading the key takes a passphrase (PKCS #8, RFC 7468 section 11)."""
    return b"BEGIN ENCRYPTED PRIVATE KEY" in pem


class CertificateAuthority:
    """Signs what it is asked to; whether to ask is decided elsewhere."""

    def __init__(self, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate) -> None:
        self._key = key
        self._certificate = certificate

    @classmethod
    def create(cls, fleet: str, now: datetime) -> CertificateAuthority:
        """A new authority for `fleet`."""
        key = new_key()
        name = x509.Name(
            [x509.NameAttribute(NameOID.COMMON_NAME, f"edgeslm fleet {fleet}"[:MAX_COMMON_NAME])]
        )
        usage = _key_usage(certificates=True)
        certificate = (
            _builder(key.public_key(), name, name, _EPOCH, now + AUTHORITY_LIFE)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(usage, critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .sign(key, hashes.SHA256())
        )
        return cls(key, certificate)

    @classmethod
    def load(cls, key: ec.EllipticCurvePrivateKey, certificate_pem: bytes) -> CertificateAuthority:
        """The authority with that key and certificate.

        Raises:
            CertificateError: they do not belong together, or it is no certificate.
        """
        try:
            certificate = x509.load_pem_x509_certificate(certificate_pem)
        except ValueError as error:
            raise CertificateError(f"no certificate of an authority: {error}", role="authority") from error
        if certificate.public_key() != key.public_key():
            raise CertificateError(
                "key and certificate of the authority do not belong together", role="authority"
            )
        return cls(key, certificate)

    @property
    def key(self) -> ec.EllipticCurvePrivateKey:
        """The private key."""
        return self._key

    @property
    def certificate_pem(self) -> str:
        """The certificate that everybody in the fleet trusts."""
        return self._certificate.public_bytes(Encoding.PEM).decode()

    @property
    def not_after(self) -> datetime:
        """When it ends."""
        return self._certificate.not_valid_after_utc

    def issue_device(
        self,
        request: CertificateRequest,
        fleet: str,
        device: str,
        now: datetime,
        life: timedelta,
        *,
        root_sha256: str | None = None,
    ) -> IssuedCertificate:
        """A certificate for a device.

        Args:
            root_sha256: digest of the root of the release repository, for which it vouches.

        Raises:
            FleetSetupError: the names are too long for a certificate.
            TopicError: they are no identifiers.
        """
        # A short life is not used up by the backdating.
        begin = now - min(_BACKDATE, life / 20)
        vouched = None
        if root_sha256 is not None:
            vouched = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(root_name(root_sha256))])
        return self._issue(
            request.key,
            common_name(fleet, device),
            ExtendedKeyUsageOID.CLIENT_AUTH,
            begin,
            now + life,
            vouched,
        )

    def issue_broker(
        self, key: ec.EllipticCurvePublicKey, hosts: Sequence[str], now: datetime
    ) -> IssuedCertificate:
        """A certificate for the broker; `hosts` are the names and addresses by which it is reached."""
        alternatives = x509.SubjectAlternativeName([_host_name(host) for host in hosts])
        name = hosts[0][:MAX_COMMON_NAME]
        return self._issue(
            key, name, ExtendedKeyUsageOID.SERVER_AUTH, _EPOCH, now + BROKER_LIFE, alternatives
        )

    def issue_client(
        self, key: ec.EllipticCurvePublicKey, name: str, now: datetime, life: timedelta = BROKER_LIFE
    ) -> IssuedCertificate:
        """A certificate for a client of the broker that is no device, such as the door; it lasts as long as that."""
        return self._issue(key, name, ExtendedKeyUsageOID.CLIENT_AUTH, now - _BACKDATE, now + life)

    def revocation_list(
        self, revoked: Sequence[Revoked], *, previous: datetime | None, now: datetime
    ) -> tuple[str, datetime]:
        """A list of `revoked` certificates, as PEM, and the time that it bears.

        Args:
            revoked: all of them.
            previous: the time that the list before it bears.
            now: a list that comes late enough bears a time an hour before this, which leaves room for more of
                them within one second and for a broker whose clock is behind.
        """
        at = (now - _BACKDATE).replace(microsecond=0)
        if previous is not None:
            at = max(at, previous + timedelta(seconds=1))
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self._certificate.subject)
            .last_update(at)
            .next_update(self.not_after)
            .add_extension(x509.CRLNumber(int(at.timestamp())), critical=False)
            .add_extension(self._authority_identifier(), critical=False)
        )
        for entry in revoked:
            builder = builder.add_revoked_certificate(
                x509.RevokedCertificateBuilder()
                .serial_number(int(entry.serial, 16))
                .revocation_date(entry.at)
                .build()
            )
        return builder.sign(self._key, hashes.SHA256()).public_bytes(Encoding.PEM).decode(), at

    def _issue(
        self,
        key: ec.EllipticCurvePublicKey,
        name: str,
        purpose: x509.ObjectIdentifier,
        begin: datetime,
        end: datetime,
        alternatives: x509.SubjectAlternativeName | None = None,
    ) -> IssuedCertificate:
        begin, end = begin.replace(microsecond=0), min(end, self.not_after).replace(microsecond=0)
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        builder = (
            _builder(key, subject, self._certificate.subject, begin, end)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(self._authority_identifier(), critical=False)
        )
        if alternatives is not None:
            builder = builder.add_extension(alternatives, critical=False)
        certificate = builder.sign(self._key, hashes.SHA256())
        pem = certificate.public_bytes(Encoding.PEM).decode()
        return IssuedCertificate(pem, f"{certificate.serial_number:x}", begin, end)

    def _authority_identifier(self) -> x509.AuthorityKeyIdentifier:
        return x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())


def vouched_root(certificate_pem: str) -> str | None:
    """The digest of the root that a device's certificate of ours vouches for, if it does."""
    certificate = x509.load_pem_x509_certificate(certificate_pem.encode())
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return None
    return root_named(names.get_values_for_type(x509.UniformResourceIdentifier))


def self_signed(key: ec.EllipticCurvePrivateKey, name: str, now: datetime) -> str:
    """A certificate that vouches for nothing but its own key: whoever trusts it trusts this one holder (PEM)."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    certificate = (
        _builder(key.public_key(), subject, subject, now - _BACKDATE, now + AUTHORITY_LIFE)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
        .sign(key, hashes.SHA256())
    )
    return certificate.public_bytes(Encoding.PEM).decode()


def name_hash(certificate_pem: bytes) -> str:
    """What OpenSSL calls files about the authority with that certificate (openssl-rehash(1)).

    Raises:
        CertificateError: it is no certificate.
    """
    try:
        subject = x509.load_pem_x509_certificate(certificate_pem).subject
    except ValueError as error:
        raise CertificateError(f"no certificate of an authority: {error}", role="authority") from error
    # SHA-1 of the name's canonical form (X509_NAME_hash_ex(3)). Our names are in that form already, in lower case
    # and with single spaces: what is left is to drop the outer header, two bytes for a name as short as ours.
    digest = hashlib.sha1(subject.public_bytes()[2:], usedforsecurity=False).digest()
    return f"{int.from_bytes(digest[:4], 'little'):08x}"


def is_current(certificate_pem: bytes, key_pem: bytes, hosts: Sequence[str], now: datetime) -> bool:
    """Whether a certificate of broker or door still serves.

    It has to be of that key, name those hosts (none for the door), and not be in the last third of its life.
    """
    try:
        certificate = x509.load_pem_x509_certificate(certificate_pem)
        key = load_pem_private_key(key_pem, None)
        named = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        named = x509.SubjectAlternativeName([])
    except (ValueError, TypeError):
        return False
    return (
        key.public_key() == certificate.public_key()
        and set(named) == {_host_name(host) for host in hosts}
        and certificate.not_valid_after_utc - now > BROKER_LIFE / 3
    )


def _host_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _builder(
    key: ec.EllipticCurvePublicKey, subject: x509.Name, issuer: x509.Name, begin: datetime, end: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(end)
    )


def _key_usage(*, certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=certificates,
        crl_sign=certificates,
        encipher_only=False,
        decipher_only=False,
    )
