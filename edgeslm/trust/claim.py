"""Claims: the token that a person types, and what both sides derive from its secret.

What always holds: the broker, to which a claim's holder logs in, learns only a password derived from the secret.
With it nobody can seal a message: the key for that is derived apart from it, and known to device and fleet alone.

A token is forty characters of Crockford's base 32 (no ``i l o u``) in eight groups: six name the claim, sixteen are
the secret (80 bits), sixteen are the beginning of the SHA-256 of the authority's certificate (80 bits, so that a
device which was given nothing else still knows its broker), two catch typing mistakes. Case and dashes do not
matter, and ``o`` reads as 0, ``i`` and ``l`` as 1.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import ssl
from dataclasses import dataclass, field
from typing import Literal, TypeVar

from pydantic import BaseModel

from edgeslm import codec
from edgeslm.errors import CertificateError, ClaimError
from edgeslm.schema.enrol import MAX_SEALED_CHARS, Sealed

ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_READ_AS = str.maketrans("oil", "011")
_CLAIM, _SECRET, _PIN, _CHECK = 6, 16, 16, 2
TOKEN_CHARS = _CLAIM + _SECRET + _PIN + _CHECK
_GROUP = 5

Direction = Literal["request", "reply"]
ModelT = TypeVar("ModelT", bound=BaseModel)


@dataclass(frozen=True)
class Token:
    """A claim as a person passes it on. Its text is a secret.

    Attributes:
        claim: name of the claim.
        secret: proves that one holds it.
        pin: beginning of the digest of the authority's certificate, see :func:`authority_pin`.
    """

    claim: str
    secret: str = field(repr=False)
    pin: str

    def __str__(self) -> str:
        """The token in groups of five."""
        text = self.claim + self.secret + self.pin
        text += _base32(hashlib.sha256(text.encode()).digest(), _CHECK)
        return "-".join(text[at : at + _GROUP] for at in range(0, TOKEN_CHARS, _GROUP)).upper()


def new_claim_id() -> str:
    """A random name for a claim."""
    return _base32(secrets.token_bytes(_CLAIM), _CLAIM)


def new_secret() -> str:
    """80 random bits as text."""
    return _base32(secrets.token_bytes(_SECRET), _SECRET)


def read_token(text: str) -> Token:
    """The token that a person typed.

    Raises:
        ClaimError: too long or short, a character that is none of a token's, or a typing mistake.
    """
    plain = "".join(char for char in text.lower() if char not in "- \t\r\n").translate(_READ_AS)
    strange = sorted(set(plain) - set(ALPHABET))
    if strange:
        raise ClaimError(f"a token has no '{strange[0]}'", hint="Copy it whole from `edgeslm fleet claim`")
    if len(plain) != TOKEN_CHARS:
        raise ClaimError(
            f"a token has {TOKEN_CHARS} characters, this one has {len(plain)}",
            hint="Copy it whole from `edgeslm fleet claim`",
        )
    token = Token(plain[:_CLAIM], plain[_CLAIM : -_PIN - _CHECK], plain[-_PIN - _CHECK : -_CHECK])
    if str(token).replace("-", "").lower() != plain:
        raise ClaimError("the token has a typing mistake", hint="Compare it group by group")
    return token


def authority_pin(certificate_der: bytes) -> str:
    """The pin of an authority's certificate, given in DER."""
    return _base32(hashlib.sha256(certificate_der).digest(), _PIN)


def pem_pin(certificate_pem: str) -> str:
    """The pin of an authority's certificate, given in PEM.

    Raises:
        CertificateError: it is no PEM.
    """
    try:
        return authority_pin(ssl.PEM_cert_to_DER_cert(certificate_pem))
    except ValueError as error:
        raise CertificateError(f"no certificate in PEM: {error}", role="authority") from error


def broker_password(secret: str) -> str:
    """The password with which the holder of a claim logs in to the broker."""
    return _derive(secret, "broker").hex()[:32]


def proof_key(secret: str) -> bytes:
    """The key of the seal on messages of first contact."""
    return _derive(secret, "proof")


def seal(key: bytes, direction: Direction, message: BaseModel) -> bytes:
    """The body of a sealed `message`, ready to publish."""
    body = codec.encode(message).decode()
    return codec.encode(Sealed(body=body, mac=_mac(key, direction, body)))


def unseal(key: bytes, direction: Direction, kind: type[ModelT], payload: bytes) -> ModelT:
    """The message under the seal.

    Raises:
        CodecError: the bytes are no such message.
        ClaimError: the seal is not of this key, or of the other direction.
    """
    sealed = codec.decode(Sealed, payload, max_bytes=2 * MAX_SEALED_CHARS)
    if not hmac.compare_digest(sealed.mac, _mac(key, direction, sealed.body)):
        raise ClaimError("the seal of a message is wrong: its sender does not hold the claim")
    return codec.decode(kind, sealed.body.encode())


def _derive(secret: str, purpose: str) -> bytes:
    return hmac.digest(secret.encode(), f"edgeslm claim {purpose} v1".encode(), "sha256")


def _mac(key: bytes, direction: Direction, body: str) -> str:
    return hmac.digest(key, f"{direction}\n{body}".encode(), "sha256").hex()


def _base32(data: bytes, chars: int) -> str:
    number = int.from_bytes(data, "big") >> (8 * len(data) - 5 * chars)
    return "".join(ALPHABET[(number >> 5 * at) & 31] for at in reversed(range(chars)))
