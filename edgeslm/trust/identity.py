"""A device's identity: its key, made on the board, and the certificate that the fleet gives to it.

::

    <dir>/<key>/device.key        private key; it never leaves the board; <key> is the digest of its public half
    <dir>/<key>/device.csr        request for a certificate, sent again whenever one is due
    <dir>/<key>/claim.json        the claim, until the fleet has seen the first certificate in use
    <dir>/<key>/fleet.json        broker and names, from the answer to the claim
    <dir>/<key>/ca.crt            the fleet's authority
    <dir>/<key>/certificate.pem   in use
    <dir>/<key>/candidate.pem     a newer one that has yet to prove itself
    <dir>/<key>/root.json         root of the release repository to begin with, if the fleet gave one; it is never
                                  replaced
    <dir>/current                 symbolic link: the identity in use
    <dir>/boots.json              counts boots
    <dir>/.lock                   held while any of this changes

What always holds, whenever power is cut: ``current`` leads to a whole identity or does not exist; a key that a
claim was answered for is found again; the certificate in use is replaced by one rename, after the new one worked.

The key is P-256: every TLS library takes it, and so do secure elements, should a board have one. Only making a key
loads `cryptography`, which costs some 12 MB: the agent never does.

Left to others: judging a certificate (:mod:`edgeslm.trust.certificate`), and asking for one
(:mod:`edgeslm.agent.enrolment`, :mod:`edgeslm.agent.renewal`).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from edgeslm import codec
from edgeslm.errors import CertificateError, CodecError, IdentityError
from edgeslm.files import clear_partial, locked, read_bounded, replace_file, sync_directory
from edgeslm.schema.config import BrokerConfig
from edgeslm.schema.enrol import Claim, FleetFacts
from edgeslm.trust.certificate import CertificateFacts, inspect

CURRENT = "current"
KEY, REQUEST, CLAIM, FLEET = "device.key", "device.csr", "claim.json", "fleet.json"
AUTHORITY, CERTIFICATE, CANDIDATE, TRUST_ROOT = "ca.crt", "certificate.pem", "candidate.pem", "root.json"
BOOTS = "boots.json"
_LOCK = ".lock"
_NEW = ".new-"
_MAX_BYTES = 65_536


@dataclass(frozen=True)
class Identity:
    """Who this device is, with the files that prove it.

    Attributes:
        directory: where the files lie; it keeps its name for the life of the key.
        claim: name of the claim with which the device joined.
        host: of the broker; ``port`` is its listener for devices.
    """

    directory: Path
    facts: CertificateFacts
    claim: str
    host: str
    port: int

    @property
    def trust_root(self) -> Path:
        """File with the root of the release repository to begin with; the fleet may have given none."""
        return self.directory / TRUST_ROOT

    def broker_config(
        self, base: BrokerConfig | None = None, *, certificate: str = CERTIFICATE
    ) -> BrokerConfig:
        """How to reach the broker as this device.

        Args:
            base: other settings, such as the keepalive.
            certificate: file name of the certificate to show.
        """
        return (base or BrokerConfig()).model_copy(
            update={
                "host": self.host,
                "port": self.port,
                "username": None,
                "password_file": None,
                "ca_file": self.directory / AUTHORITY,
                "cert_file": self.directory / certificate,
                "key_file": self.directory / KEY,
            }
        )

    def request_pem(self) -> str:
        """The request with which the next certificate is asked for.

        Raises:
            IdentityError: it cannot be read.
        """
        return _read_text(self.directory / REQUEST)


@dataclass(frozen=True)
class Applicant:
    """A key with its request, for which `claim` is to bring a certificate."""

    directory: Path
    claim: Claim
    request_pem: str
    key_sha256: str


class IdentityStore:
    """The identities under one directory; any number of processes may open it.

    Attributes:
        directory: it is made when missing, for its owner alone.
    """

    def __init__(self, directory: Path) -> None:
        """Open the directory and clear what a killed process left behind.

        Raises:
            IdentityError: it cannot be made or written.
        """
        self.directory = directory
        with _faults(directory):
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            with self._locked():
                for place in (directory, *self._key_directories()):
                    clear_partial(place)
                for leftover in directory.glob(f"{_NEW}*"):
                    shutil.rmtree(leftover, ignore_errors=True)

    @property
    def boots_file(self) -> Path:
        """Where boots are counted."""
        return self.directory / BOOTS

    def current(self) -> Identity | None:
        """The identity in use; ``None`` before this device has joined a fleet.

        Raises:
            IdentityError: it cannot be read.
            CertificateError: the certificate is not what it was when it was put there.
        """
        link = self.directory / CURRENT
        try:
            name = os.readlink(link)  # noqa: PTH115 - the name alone, not a path
        except FileNotFoundError:
            return None
        except OSError as error:
            raise IdentityError(f"{link}: {error.strerror}", path=str(link)) from error
        return _load(self.directory / name, CERTIFICATE)

    def apply(self, claim: Claim) -> Applicant:
        """The key for `claim`: the one made for it before, else a new one, synced before this returns.

        Raises:
            IdentityError: the disk refuses.
        """
        with _faults(self.directory), self._locked():
            for directory in self._applications():
                if _same_claim(_read_claim(directory), claim):
                    return _applicant(directory, claim)
            return self._make_key(claim)

    def is_settled(self, identity: Identity) -> bool:
        """Whether the fleet has seen this identity in use."""
        return not (identity.directory / CLAIM).exists()

    def adopt(
        self, applicant: Applicant, certificate_pem: str, *, host: str, port: int, trust_root: bytes | None
    ) -> Identity:
        """Make the certified key of `applicant` the identity in use; the earlier one is removed.

        Raises:
            CertificateError: the certificate is not of that key, authority and fleet.
            IdentityError: the disk refuses; the earlier identity stays.
        """
        directory, fleet = applicant.directory, applicant.claim.fleet
        with _faults(directory), self._locked():
            facts = FleetFacts(fleet=fleet, claim=applicant.claim.claim, host=host, port=port)
            replace_file(directory / FLEET, codec.encode(facts))
            if trust_root is not None:
                replace_file(directory / TRUST_ROOT, trust_root)
            replace_file(directory / CANDIDATE, certificate_pem.encode())
            identity = _load(directory, CANDIDATE)
            _rename(directory / CANDIDATE, directory / CERTIFICATE)
            self._point_to(directory)
            for other in self._key_directories():
                if other != directory:
                    shutil.rmtree(other, ignore_errors=True)
        return identity

    def settle(self, identity: Identity) -> None:
        """Forget the claim: the fleet has seen the certificate in use.

        Raises:
            IdentityError: the disk refuses.
        """
        with _faults(identity.directory), self._locked():
            (identity.directory / CLAIM).unlink(missing_ok=True)
            sync_directory(identity.directory)

    def stage(
        self, identity: Identity, certificate_pem: str, trust_root: bytes | None = None
    ) -> Identity | None:
        """Put a newer certificate beside the one in use, to be tried; ``None`` if it is the one in use.

        Args:
            identity: in use.
            certificate_pem: the newer one.
            trust_root: root of the release repository that came with it. It is kept if the certificate names it and
                there was none before: a root in use is replaced by roots that it signed alone.

        Raises:
            CertificateError: it is not of this key, authority and fleet, or older than the one in use. Nothing
                is changed.
            IdentityError: the disk refuses.
        """
        directory = identity.directory
        with _faults(directory), self._locked():
            replace_file(directory / CANDIDATE, certificate_pem.encode())
            try:
                candidate = _load(directory, CANDIDATE)
                if candidate.facts.not_before_s < identity.facts.not_before_s:
                    raise CertificateError(
                        "the new certificate is older than the one in use", role="certificate"
                    )
            except CertificateError:
                (directory / CANDIDATE).unlink()
                raise
            if trust_root is not None and not identity.trust_root.exists():
                _keep_root(candidate, trust_root)
            if candidate.facts == identity.facts:
                (directory / CANDIDATE).unlink()
                return None
        return candidate

    def staged(self, identity: Identity) -> Identity | None:
        """The certificate that has yet to be tried, after a restart for example.

        Raises:
            IdentityError: it cannot be read.
        """
        if not (identity.directory / CANDIDATE).exists():
            return None
        try:
            return _load(identity.directory, CANDIDATE)
        except CertificateError:
            self.discard(identity)
            return None

    def promote(self, candidate: Identity) -> None:
        """Use the staged certificate from now on: it worked.

        Raises:
            IdentityError: the disk refuses; the earlier one stays.
        """
        with _faults(candidate.directory), self._locked():
            _rename(candidate.directory / CANDIDATE, candidate.directory / CERTIFICATE)

    def discard(self, identity: Identity) -> None:
        """Forget the staged certificate: it did not work.

        Raises:
            IdentityError: the disk refuses.
        """
        with _faults(identity.directory), self._locked():
            (identity.directory / CANDIDATE).unlink(missing_ok=True)

    # --- inside -------------------------------------------------------------------------------------------

    def _locked(self) -> contextlib.AbstractContextManager[None]:
        return locked(self.directory / _LOCK)

    def _key_directories(self) -> list[Path]:
        return sorted(
            entry for entry in self.directory.iterdir() if (entry / KEY).is_file() and not entry.is_symlink()
        )

    def _applications(self) -> list[Path]:
        return [directory for directory in self._key_directories() if (directory / CLAIM).is_file()]

    def _make_key(self, claim: Claim) -> Applicant:
        for directory in self._applications():  # one claim at a time: a former one was given up
            if not (directory / CERTIFICATE).exists():
                shutil.rmtree(directory)
        key_pem, request_pem, key_sha256 = _new_key()
        work = self.directory / f"{_NEW}{secrets.token_hex(8)}"
        work.mkdir(mode=0o700)
        replace_file(work / KEY, key_pem, mode=0o600)
        replace_file(work / REQUEST, request_pem)
        replace_file(work / AUTHORITY, claim.ca.encode())
        replace_file(work / CLAIM, codec.encode(claim), mode=0o600)
        directory = self.directory / key_sha256
        _rename(work, directory)
        return Applicant(directory, claim, request_pem.decode(), key_sha256)

    def _point_to(self, directory: Path) -> None:
        temporary = self.directory / f".partial-{secrets.token_hex(8)}"
        temporary.symlink_to(directory.name)
        _rename(temporary, self.directory / CURRENT)


def _new_key() -> tuple[bytes, bytes, str]:
    """A new key, its request, and the SHA-256 of its public half (DER, SubjectPublicKeyInfo)."""
    from cryptography import x509  # noqa: PLC0415
    from cryptography.hazmat.primitives import hashes  # noqa: PLC0415
    from cryptography.hazmat.primitives.asymmetric import ec  # noqa: PLC0415
    from cryptography.hazmat.primitives.serialization import (  # noqa: PLC0415
        Encoding,
        NoEncryption,
        PrivateFormat,
        PublicFormat,
    )

    key = ec.generate_private_key(ec.SECP256R1())
    # The name is the fleet's to give, so the request has none.
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
    public = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return (
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        request.public_bytes(Encoding.PEM),
        hashlib.sha256(public).hexdigest(),
    )


def _keep_root(candidate: Identity, root: bytes) -> None:
    if hashlib.sha256(root).hexdigest() == candidate.facts.root_sha256:
        replace_file(candidate.trust_root, root)


def _applicant(directory: Path, claim: Claim) -> Applicant:
    return Applicant(directory, claim, _read_text(directory / REQUEST), directory.name)


def _same_claim(one: Claim, other: Claim) -> bool:
    return (one.fleet, one.claim, one.secret) == (other.fleet, other.claim, other.secret)


def _read_claim(directory: Path) -> Claim:
    path = directory / CLAIM
    try:
        return codec.decode(Claim, _read(path))
    except CodecError as error:
        raise IdentityError(
            f"{path}: {error}", path=str(path), hint="Remove it, and use a new claim"
        ) from error


def _load(directory: Path, certificate: str) -> Identity:
    """The identity in `directory`, by its certificate of that file name."""
    path = directory / FLEET
    try:
        fleet = codec.decode(FleetFacts, _read(path))
    except CodecError as error:
        raise IdentityError(f"{path}: {error}", path=str(path), hint="Join the fleet again") from error
    facts = inspect(directory / certificate, directory / KEY, directory / AUTHORITY)
    if facts.fleet != fleet.fleet:
        raise CertificateError(
            "the certificate is of another fleet",
            role="certificate",
            expected=fleet.fleet,
            actual=facts.fleet,
        )
    return Identity(directory, facts, fleet.claim, fleet.host, fleet.port)


def _read(path: Path) -> bytes:
    try:
        data = read_bounded(path, _MAX_BYTES)
    except OSError as error:
        raise IdentityError(f"{path}: {error.strerror or error}", path=str(path)) from error
    if not 0 < len(data) <= _MAX_BYTES:
        raise IdentityError(f"{path}: {len(data) or 'no'} bytes", path=str(path))
    return data


def _read_text(path: Path) -> str:
    try:
        return _read(path).decode("ascii")
    except UnicodeDecodeError as error:
        raise IdentityError(f"{path} is no PEM", path=str(path)) from error


def _rename(path: Path, to: Path) -> None:
    os.replace(path, to)  # noqa: PTH105 - named so that a test can let it fail
    sync_directory(to.parent)


@contextmanager
def _faults(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise IdentityError(f"{path}: {error.strerror or error}", path=str(path)) from error
