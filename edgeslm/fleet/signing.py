"""Signing keys of the fleet: making, keeping and using them.

A key is Ed25519, in a PKCS#8 file that only its owner may read. Keys that are kept offline are encrypted with a
passphrase, stretched by scrypt with 16 MiB and five passes: the most that `openssl` opens by itself, so a key can be
rescued without edgeslm. `cryptography` would write the file with 2,048 rounds of PBKDF2, which a thief tries through;
so the envelope is written here, and read back before it counts.

Passphrases come from a file, the environment or a prompt, and are never arguments of a program.

Sources: RFC 5958 (PKCS#8), RFC 8018 (PBES2), RFC 7914 (scrypt and its place in PBES2).
"""

from __future__ import annotations

import base64
import os
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt
from cryptography.hazmat.primitives.padding import PKCS7
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)
from securesystemslib.signer import CryptoSigner, Key, Signer, SSlibKey
from tuf.api.metadata import Root, Targets

from edgeslm.errors import ReleaseRepositoryError, SigningKeyError
from edgeslm.files import read_bounded, replace_file
from edgeslm.fleet.release_metadata import parse
from edgeslm.schema.assignment import Assignment
from edgeslm.schema.remote_config import RemoteConfig
from edgeslm.trust.decisions import Limits
from edgeslm.trust.document import body, payload

PASSPHRASE_VARIABLE = "EDGESLM_PASSPHRASE"  # noqa: S105 - the name of a variable
MIN_PASSPHRASE_BYTES = 12
_MAX_KEY_BYTES = 16_384

_SCRYPT_N, _SCRYPT_R, _SCRYPT_P = 2**14, 8, 5
_OID_PBES2 = bytes.fromhex("06092a864886f70d01050d")
_OID_SCRYPT = bytes.fromhex("06092b06010401da47040b")
_OID_AES_256_CBC = bytes.fromhex("060960864801650304012a")

Passphrase = Callable[[Path], bytes]
"""Gives the passphrase of a key file; called only where the key is encrypted."""


# --- passphrases --------------------------------------------------------------------------------------------


def passphrase_source(*, file: Path | None = None, prompt: Callable[[str], str] | None = None) -> Passphrase:
    """Where passphrases come from: a file, else the environment, else a prompt.

    Args:
        file: holds the passphrase in its first line.
        prompt: asks a person, such as :func:`getpass.getpass`; ``None`` where nobody can be asked.
    """

    def read(key: Path) -> bytes:
        if file is not None:
            return _first_line(file)
        if (text := os.environ.get(PASSPHRASE_VARIABLE)) is not None:
            return text.encode()
        if prompt is not None:
            return prompt(f"Passphrase of {key.name}: ").encode()
        raise SigningKeyError(
            f"{key} is encrypted, and no passphrase was given",
            path=str(key), hint=f"Give a passphrase file, or set {PASSPHRASE_VARIABLE}",
        )  # fmt: skip

    return read


def _first_line(path: Path) -> bytes:
    return _read(path).split(b"\n", 1)[0].rstrip(b"\r")


# --- key files ----------------------------------------------------------------------------------------------


def create_key(path: Path, passphrase: bytes | None) -> Key:
    """Make a key, write it to the new file `path` and its public half to the same name with ``.pub``.

    Args:
        path: of the private key.
        passphrase: encrypts it; ``None`` for a key that signs without a person, which lies there in the clear.

    Raises:
        SigningKeyError: the file exists or cannot be written, or the passphrase is too short.
    """
    if passphrase is not None and len(passphrase) < MIN_PASSPHRASE_BYTES:
        raise SigningKeyError(
            f"the passphrase is shorter than {MIN_PASSPHRASE_BYTES} bytes",
            path=str(path), hint="Take several words",
        )  # fmt: skip
    private = Ed25519PrivateKey.generate()
    if passphrase is None:
        pem = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    else:
        pem = _encrypted(private, passphrase)
    public = private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if path.exists():
            raise SigningKeyError(f"{path} exists already; a key is never overwritten", path=str(path))
        replace_file(path.with_suffix(".pub"), public)
        replace_file(path, pem, mode=0o600)
    except OSError as error:
        raise SigningKeyError(f"{path}: {error.strerror}", path=str(path)) from error
    return SSlibKey.from_crypto(private.public_key())


def load_signer(path: Path, passphrase: Passphrase | None = None) -> Signer:
    """The key in the file `path`, ready to sign.

    Args:
        path: of the private key.
        passphrase: asked for where the key is encrypted.

    Raises:
        SigningKeyError: unreadable, no Ed25519 key, no passphrase, or a wrong one.
    """
    pem = _read(path)
    secret = (passphrase or passphrase_source())(path) if b"ENCRYPTED" in pem else None
    try:
        private = load_pem_private_key(pem, secret)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise SigningKeyError(
            f"{path} cannot be opened: no private key, or another passphrase", path=str(path)
        ) from error
    if not isinstance(private, Ed25519PrivateKey):
        raise SigningKeyError(f"{path} is no Ed25519 key", path=str(path))
    return CryptoSigner(private)


def load_public_key(path: Path) -> Key:
    """The public key in the file `path` (PEM, SubjectPublicKeyInfo).

    Raises:
        SigningKeyError: unreadable, or no Ed25519 public key.
    """
    try:
        public = load_pem_public_key(_read(path))
    except (ValueError, UnsupportedAlgorithm) as error:
        raise SigningKeyError(f"{path} holds no public key in PEM", path=str(path)) from error
    if not isinstance(public, Ed25519PublicKey):
        raise SigningKeyError(f"{path} is no Ed25519 key", path=str(path))
    return SSlibKey.from_crypto(public)


def _read(path: Path) -> bytes:
    try:
        data = read_bounded(path, _MAX_KEY_BYTES)
    except OSError as error:
        raise SigningKeyError(f"{path}: {error.strerror}", path=str(path)) from error
    if len(data) > _MAX_KEY_BYTES:
        raise SigningKeyError(f"{path} is too long for a key or passphrase", path=str(path))
    return data


def _encrypted(private: Ed25519PrivateKey, passphrase: bytes) -> bytes:
    """EncryptedPrivateKeyInfo with PBES2: scrypt, then AES-256-CBC."""
    salt, iv = os.urandom(16), os.urandom(16)
    key = Scrypt(salt=salt, length=32, n=_SCRYPT_N, r=_SCRYPT_R, p=_SCRYPT_P).derive(passphrase)
    padder, encryptor = PKCS7(128).padder(), Cipher(algorithms.AES(key), modes.CBC(iv)).encryptor()
    plain = private.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    sealed = encryptor.update(padder.update(plain) + padder.finalize()) + encryptor.finalize()
    costs = _der_integer(_SCRYPT_N) + _der_integer(_SCRYPT_R) + _der_integer(_SCRYPT_P)
    stretching = _der(0x30, _OID_SCRYPT + _der(0x30, _der(0x04, salt) + costs))
    cipher = _der(0x30, _OID_AES_256_CBC + _der(0x04, iv))
    scheme = _der(0x30, _OID_PBES2 + _der(0x30, stretching + cipher))
    text = base64.encodebytes(_der(0x30, scheme + _der(0x04, sealed)))
    pem = b"-----BEGIN ENCRYPTED PRIVATE KEY-----\n" + text + b"-----END ENCRYPTED PRIVATE KEY-----\n"
    if load_pem_private_key(pem, passphrase).public_key() != private.public_key():
        raise SigningKeyError("the encrypted key cannot be read back")
    return pem


def _der(tag: int, content: bytes) -> bytes:
    """One element in DER; contents here stay below 64 KiB."""
    size = len(content)
    if size < 0x80:
        length = bytes([size])
    else:
        octets = size.to_bytes((size.bit_length() + 7) // 8, "big")
        length = bytes([0x80 | len(octets)]) + octets
    return bytes([tag]) + length + content


def _der_integer(value: int) -> bytes:
    return _der(0x02, value.to_bytes(value.bit_length() // 8 + 1, "big"))


# --- signing ------------------------------------------------------------------------------------------------


def sign_file(path: Path, signer: Signer) -> None:
    """Add a signature to a pending metadata file, on whatever machine it was carried to.

    Whether the key has a say in it is found where the file comes back
    (:meth:`edgeslm.fleet.releases.ReleaseRepository.collect`).

    Args:
        path: ``root.json``, or the targets of a role, under any other name.
        signer: the key.

    Raises:
        MetadataError: it is not metadata of that kind.
        ReleaseRepositoryError: it cannot be read or written.
    """
    limits = Limits()
    try:
        data = read_bounded(path, limits.targets_bytes)
        if path.name == "root.json":
            root = parse(Root, data, "root", limits.root_bytes)
            root.sign(signer, append=True)
            replace_file(path, root.to_bytes())
        else:
            targets = parse(Targets, data, path.stem, limits.targets_bytes)
            targets.sign(signer, append=True)
            replace_file(path, targets.to_bytes())
    except OSError as error:
        raise ReleaseRepositoryError(f"{path}: {error.strerror}", path=str(path)) from error


def sign_assignment(assignment: Assignment, signers: Sequence[Signer]) -> bytes:
    """The body of `assignment`, signed.

    Args:
        assignment: what the device should run.
        signers: the keys to which its signing is delegated.
    """
    signed = payload(assignment)
    return body(assignment, [signer.sign(signed) for signer in signers])


def sign_remote_config(config: RemoteConfig, signers: Sequence[Signer]) -> bytes:
    """The document of `config`, signed.

    Args:
        config: what the device should run with.
        signers: the keys to which the signing of its assignments is delegated.
    """
    signed = payload(config)
    return body(config, [signer.sign(signed) for signer in signers])


def next_seq(last: int, now: datetime) -> int:
    """A number for the next assignment: above the last one, and above any lost with a database of earlier today.

    Args:
        last: the number used last for the device; 0 if none is known.
        now: the present time.
    """
    return max(last + 1, int(now.timestamp()))
